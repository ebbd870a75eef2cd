//! Attention against f64 with an explicit mask, on random forests.

use super::*;
use crate::kernels::harness::{devices, finite_difference, relative_error};
use crate::rng::{self, Rng};

/// Which slots every row attends to, found from the documents' trees rather than from the rows.
type Mask = Vec<Vec<usize>>;

#[derive(Clone, Copy, PartialEq)]
enum Prompt {
    Causal,
    Full,
}

/// A document: its prompt's length, and for every tree node, in depth-first pre-order, the node it hangs from.
struct Document {
    prompt: usize,
    parents: Vec<Option<usize>>,
}

impl Document {
    fn random(draws: &mut Rng) -> Self {
        let prompt = if draws.below(3) == 0 {
            1
        } else {
            1 + draws.below(12)
        };
        let nodes = draws.below(11);
        Document::with_tree(draws, prompt, nodes)
    }

    /// A random tree.
    fn with_tree(draws: &mut Rng, prompt: usize, nodes: usize) -> Self {
        let mut path: Vec<usize> = Vec::new();
        let mut parents = Vec::new();
        for node in 0..nodes {
            path.truncate(draws.below(path.len() + 1));
            parents.push(path.last().copied());
            path.push(node);
        }
        Document { prompt, parents }
    }

    /// Prompt and tree longer than a tile of any form, the tree one path.
    fn long() -> Self {
        Document {
            prompt: 70,
            parents: (0..40).map(|node: usize| node.checked_sub(1)).collect(),
        }
    }

    fn len(&self) -> usize {
        self.prompt + self.parents.len()
    }

    /// Tokens (prompt first, then nodes) that token `i` attends to.
    fn seen(&self, i: usize, kind: Prompt) -> Vec<usize> {
        match i.checked_sub(self.prompt) {
            None if kind == Prompt::Causal => (0..=i).collect(),
            None => (0..self.prompt).collect(),
            Some(node) => {
                let mut seen: Vec<usize> = (0..self.prompt).collect();
                let mut at = Some(node);
                while let Some(node) = at {
                    seen.push(self.prompt + node);
                    at = self.parents[node];
                }
                seen
            }
        }
    }
}

/// Random documents, the last a long one.
fn documents(draws: &mut Rng) -> Vec<Document> {
    let mut documents: Vec<_> = (0..7).map(|_| Document::random(draws)).collect();
    documents.push(Document::long());
    documents
}

/// Documents packed as for training, with an inactive row after each, and their mask.
fn training(documents: &[Document], kind: Prompt) -> (Vec<Row>, Vec<u32>, Mask) {
    let (mut rows, mut parent, mut mask) = (Vec::new(), Vec::new(), Mask::new());
    for document in documents {
        let begin = rows.len();
        let seen: Vec<Vec<usize>> = (0..document.len())
            .map(|i| document.seen(i, kind))
            .collect();
        for i in 0..document.len() {
            let node = i.checked_sub(document.prompt);
            let kv = match node {
                None if kind == Prompt::Causal => i + 1,
                _ => document.prompt,
            };
            let readers: Vec<usize> = (0..seen.len()).filter(|&j| seen[j].contains(&i)).collect();
            let (first, last) = (readers[0], readers[readers.len() - 1]);
            assert_eq!(last - first + 1, readers.len(), "readers are contiguous");
            rows.push(Row {
                kv_begin: begin as u32,
                kv_end: (begin + kv) as u32,
                slot: (begin + i) as u32,
                chain: node.map_or(NONE, |_| (begin + i) as u32),
                q_begin: (begin + first) as u32,
                q_end: (begin + last + 1) as u32,
                ..Row::INACTIVE
            });
            let above = node.and_then(|n| document.parents[n]);
            parent.push(above.map_or(NONE, |n| (begin + document.prompt + n) as u32));
        }
        mask.extend(seen.iter().map(|s| s.iter().map(|i| begin + i).collect()));
        rows.push(Row::INACTIVE);
        parent.push(NONE);
        mask.push(Vec::new());
    }
    (rows, parent, mask)
}

/// The same forest with all prompts before all trees, which begin at a multiple of 64; also their first row.
fn apart((rows, parent, mask): (Vec<Row>, Vec<u32>, Mask)) -> (Vec<Row>, Vec<u32>, Mask, usize) {
    let is_tree = |&i: &usize| rows[i].chain != NONE;
    let mut order: Vec<Option<usize>> = (0..rows.len()).filter(|i| !is_tree(i)).map(Some).collect();
    let first = order.len().next_multiple_of(64);
    order.resize(first, None);
    order.extend((0..rows.len()).filter(is_tree).map(Some));
    let place = |old: u32| order.iter().position(|&o| o == Some(old as usize)).unwrap() as u32;
    let moved = |old: u32| if old == NONE { NONE } else { place(old) };
    let made = order.iter().map(|&old| {
        let Some(old) = old.filter(|&i| rows[i].slot != NONE) else {
            return (Row::INACTIVE, NONE, Vec::new());
        };
        let row = rows[old];
        let (mut near, mut tree) = (Vec::new(), Vec::new());
        for query in row.q_begin..row.q_end {
            match is_tree(&(query as usize)) && row.chain == NONE {
                true => tree.push(place(query)),
                false => near.push(place(query)),
            }
        }
        let range = |v: &[u32]| {
            v.first()
                .map_or((0, 0), |&begin| (begin, begin + v.len() as u32))
        };
        let ((q_begin, q_end), (tree_begin, tree_end)) = (range(&near), range(&tree));
        let kv_begin = place(row.kv_begin);
        let row = Row {
            kv_begin,
            kv_end: kv_begin + row.kv_end - row.kv_begin,
            slot: place(row.slot),
            chain: moved(row.chain),
            q_begin,
            q_end,
            tree_begin,
            tree_end,
            ..row
        };
        let seen = mask[old].iter().map(|&i| place(i as u32) as usize);
        (row, moved(parent[old]), seen.collect())
    });
    let (mut all, mut links, mut seen) = (Vec::new(), Vec::new(), Mask::new());
    for (row, link, slots) in made {
        all.push(row);
        links.push(link);
        seen.push(slots);
    }
    (all, links, seen, first)
}

/// A decoder's call: prompts in the cache, trees in slots of any order behind them, and only some nodes as queries.
/// `sizes`: prompt and nodes of each document.
fn decoding(draws: &mut Rng, sizes: &[(usize, usize)]) -> (Vec<Row>, Vec<u32>, Mask) {
    let documents: Vec<Document> = sizes
        .iter()
        .map(|&(prompt, nodes)| Document::with_tree(draws, prompt, nodes))
        .collect();
    let prompts: usize = documents.iter().map(|d| d.prompt).sum();
    let nodes: usize = documents.iter().map(|d| d.parents.len()).sum();
    let mut free: Vec<usize> = (prompts..prompts + 2 * nodes + 1).collect();
    draws.shuffle(&mut free);
    let mut parent = vec![NONE; prompts + free.len()];
    let (mut rows, mut mask, mut begin) = (vec![Row::INACTIVE], vec![Vec::new()], 0);
    for document in documents {
        let slots: Vec<usize> = (begin..begin + document.prompt)
            .chain(free.drain(..document.parents.len()))
            .collect();
        for (node, above) in document.parents.iter().enumerate() {
            let slot = slots[document.prompt + node];
            parent[slot] = above.map_or(NONE, |n| slots[document.prompt + n] as u32);
            if draws.below(2) == 0 {
                continue;
            }
            rows.push(Row {
                kv_begin: begin as u32,
                kv_end: (begin + document.prompt) as u32,
                slot: slot as u32,
                chain: slot as u32,
                ..Row::INACTIVE
            });
            let seen = document.seen(document.prompt + node, Prompt::Causal);
            mask.push(seen.iter().map(|&i| slots[i]).collect());
        }
        begin += document.prompt;
    }
    (rows, parent, mask)
}

/// Attention in f64: for every (row, head) the probabilities of the slots in the mask.
struct Reference<'a> {
    mask: &'a Mask,
    dims: Dims,
}

impl Reference<'_> {
    fn q_at(&self, t: usize, h: usize) -> usize {
        t * self.dims.q_width() + h * self.dims.head_dim
    }

    /// Where the key and the value of `slot` for query head `h` lie.
    fn kv_at(&self, slot: usize, h: usize) -> (usize, usize) {
        let head = h / (self.dims.heads / self.dims.kv_heads);
        let key = slot * self.dims.kv_width() + head * self.dims.head_dim;
        (key, key + self.dims.kv_width() / 2)
    }

    fn dot(&self, a: &[f64], i: usize, b: &[f64], j: usize) -> f64 {
        (0..self.dims.head_dim).map(|d| a[i + d] * b[j + d]).sum()
    }

    fn scale(&self) -> f64 {
        1.0 / (self.dims.head_dim as f64).sqrt()
    }

    /// Probabilities and the logarithm of the sum.
    fn softmax(&self, t: usize, h: usize, q: &[f64], kv: &[f64]) -> (Vec<f64>, f64) {
        let scores: Vec<f64> = self.mask[t]
            .iter()
            .map(|&j| self.scale() * self.dot(q, self.q_at(t, h), kv, self.kv_at(j, h).0))
            .collect();
        let lse = scores.iter().map(|s| s.exp()).sum::<f64>().ln();
        (scores.iter().map(|s| (s - lse).exp()).collect(), lse)
    }

    /// `(o, lse)`.
    fn forward(&self, q: &[f64], kv: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (mut o, mut all) = (vec![0.0; q.len()], Vec::new());
        for t in 0..self.dims.tokens {
            for h in 0..self.dims.heads {
                let (probabilities, lse) = self.softmax(t, h, q, kv);
                for (&j, p) in self.mask[t].iter().zip(probabilities) {
                    for d in 0..self.dims.head_dim {
                        o[self.q_at(t, h) + d] += p * kv[self.kv_at(j, h).1 + d];
                    }
                }
                all.push(if self.mask[t].is_empty() { 0.0 } else { lse });
            }
        }
        (o, all)
    }

    /// `(dq, dkv)`.
    fn backward(&self, q: &[f64], kv: &[f64], d_o: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (mut dq, mut dkv) = (vec![0.0; q.len()], vec![0.0; kv.len()]);
        for t in 0..self.dims.tokens {
            for h in 0..self.dims.heads {
                let at = self.q_at(t, h);
                let (probabilities, _) = self.softmax(t, h, q, kv);
                let slots = &self.mask[t];
                let pulls: Vec<f64> = slots
                    .iter()
                    .map(|&j| self.dot(d_o, at, kv, self.kv_at(j, h).1))
                    .collect();
                let mean: f64 = probabilities.iter().zip(&pulls).map(|(p, g)| p * g).sum();
                for ((&j, p), pull) in slots.iter().zip(&probabilities).zip(&pulls) {
                    let slope = p * (pull - mean) * self.scale();
                    let (key, value) = self.kv_at(j, h);
                    for d in 0..self.dims.head_dim {
                        dq[at + d] += slope * kv[key + d];
                        dkv[key + d] += slope * q[at + d];
                        dkv[value + d] += p * d_o[at + d];
                    }
                }
            }
        }
        (dq, dkv)
    }
}

/// The mask constant of rows without keys would drown the others: 0 in its place, where it is due.
fn expect_lse(h: &mut Harness, case: &Case, mask: &Mask, want: &[f64]) {
    let mut got = h.read_f32(&case.lse).unwrap();
    for (i, lse) in got.iter_mut().enumerate() {
        if mask[i / case.dims.heads].is_empty() {
            assert_eq!(*lse, crate::kernels::math::MASKED);
            *lse = 0.0;
        }
    }
    assert!(relative_error(want, &got) < 2e-6);
}

fn dims(rows: &[Row], heads: usize, kv_heads: usize, head_dim: usize) -> Dims {
    Dims {
        tokens: rows.len(),
        heads,
        kv_heads,
        head_dim,
    }
}

#[test]
fn shader_equals_twin() {
    devices::lockstep(cases);
}

#[test]
fn training_forwards_and_gradients_match_f64() {
    devices::each(|h| {
        let shapes = [
            (1, 1, 1),
            (4, 2, 6),
            (3, 3, 20),
            (4, 1, 64),
            (2, 1, 100),
            (2, 1, 129),
        ];
        for kind in [Prompt::Causal, Prompt::Full] {
            for (heads, kv_heads, head_dim) in shapes {
                let (rows, parent, mask) = training(&documents(h.draws()), kind);
                let dims = dims(&rows, heads, kv_heads, head_dim);
                let case = Case::new(h, &rows, &parent, dims);
                case.forward(h.stream());
                case.backward(h.stream(), 0);
                h.run().unwrap();
                let reference = Reference { mask: &mask, dims };
                let (q, kv) = (case.q.f64(), case.kv.f64());
                let (o, lse) = reference.forward(&q, &kv);
                let (dq, dkv) = reference.backward(&q, &kv, &case.d_o.f64());
                h.expect(&case.o, &o, 2e-6);
                expect_lse(h, &case, &mask, &lse);
                h.expect(&case.dq, &dq, 5e-6);
                h.expect(&case.dkv, &dkv, 5e-6);
            }
        }
    });
}

#[test]
fn trees_may_lie_apart_and_alone() {
    devices::each(|h| {
        for kind in [Prompt::Causal, Prompt::Full] {
            for (heads, kv_heads, head_dim) in [(1, 1, 2), (4, 2, 6), (4, 1, 64)] {
                let (rows, parent, mut mask, first) = apart(training(&documents(h.draws()), kind));
                let dims = dims(&rows, heads, kv_heads, head_dim);
                let case = Case::new(h, &rows, &parent, dims);
                let (q, kv, d_o) = (case.q.f64(), case.kv.f64(), case.d_o.f64());
                case.forward(h.stream());
                case.backward(h.stream(), 0);
                h.run().unwrap();
                let reference = Reference { mask: &mask, dims };
                let (dq, dkv) = reference.backward(&q, &kv, &d_o);
                h.expect(&case.dq, &dq, 5e-6);
                h.expect(&case.dkv, &dkv, 5e-6);

                // Only the trees ask: the prompts' own queries count for nothing.
                let alone = Case::new(h, &rows, &parent, dims);
                alone.forward(h.stream());
                alone.backward(h.stream(), first);
                h.run().unwrap();
                mask[..first].iter_mut().for_each(Vec::clear);
                let (q, kv, d_o) = (alone.q.f64(), alone.kv.f64(), alone.d_o.f64());
                let reference = Reference { mask: &mask, dims };
                let (mut dq, dkv) = reference.backward(&q, &kv, &d_o);
                let untouched = first * dims.q_width();
                dq[..untouched].copy_from_slice(&alone.dq.f64()[..untouched]);
                h.expect(&alone.dq, &dq, 5e-6);
                h.expect(&alone.dkv, &dkv, 5e-6);
            }
        }
    });
}

#[test]
fn decoding_calls_match_f64() {
    devices::each(|h| {
        // Few rows of many documents; then many rows of two, with a stretch between their prompts that none attends to.
        let few = [(1, 5), (130, 9), (64, 10), (257, 7), (63, 8), (2, 4)].repeat(2);
        let many = [(130, 90), (200, 0), (70, 60)];
        for sizes in [&few[..], &many] {
            for (heads, kv_heads, head_dim) in [(2, 1, 6), (4, 2, 64), (2, 1, 128), (1, 1, 256)] {
                let (rows, parent, mask) = decoding(h.draws(), sizes);
                assert!(rows.len() > super::TILE as usize, "less than a tile");
                let dims = dims(&rows, heads, kv_heads, head_dim);
                let case = Case::new(h, &rows, &parent, dims);
                case.forward(h.stream());
                h.run().unwrap();
                let reference = Reference { mask: &mask, dims };
                let (o, lse) = reference.forward(&case.q.f64(), &case.kv.f64());
                h.expect(&case.o, &o, 2e-6);
                expect_lse(h, &case, &mask, &lse);
            }
        }
    });
}

#[test]
fn reference_gradients_match_finite_differences() {
    let mut draws = Rng::new(2, rng::Stream::Test, 0, 0);
    let documents = [(); 2].map(|()| Document::random(&mut draws));
    let (rows, _, mask) = training(&documents, Prompt::Causal);
    let dims = dims(&rows, 2, 1, 3);
    let reference = Reference { mask: &mask, dims };
    let mut draw = |n: usize| (0..n).map(|_| draws.normal() as f64).collect::<Vec<_>>();
    let q = draw(dims.tokens * dims.q_width());
    let kv = draw(dims.tokens * dims.kv_width());
    let d_o = draw(q.len());
    let loss = |q: &[f64], kv: &[f64]| -> f64 {
        let (o, _) = reference.forward(q, kv);
        o.iter().zip(&d_o).map(|(o, d)| o * d).sum()
    };
    let (dq, dkv) = reference.backward(&q, &kv, &d_o);
    let close = |want: Vec<f64>, got: &[f64]| {
        let got: Vec<f32> = got.iter().map(|&g| g as f32).collect();
        assert!(relative_error(&want, &got) < 1e-6);
    };
    close(finite_difference(|q| loss(q, &kv), &q), &dq);
    close(finite_difference(|kv| loss(&q, kv), &kv), &dkv);
}
