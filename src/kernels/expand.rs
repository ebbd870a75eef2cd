//! Trie-masked expansion (spec 4), fused: of each row's logits `x` over the vocabulary and its trie node,
//! - `logp_c = x_c - lse(x)` of every legal child `c` (`lse` over the vocabulary, or over the children when renormalised),
//! - the entropy H of the policy restricted and renormalised to the children, V, and G = V + lambda H,
//! - the `top` children by logit, hence by log-prob; ties go to the lower token id.
//!
//! Shapes: `logits` `[n, V]`, `value` `[n]`, `entry` `[n, 2]`, `child_logp` `[rows or nodes, fanout]` (the first words of
//! a row are its children's), `stats` `[nodes, 5]` (see [`super::search`]), `top_edge` and `top_logp` `[nodes, top]` (NONE and
//! -1e30 past the last child). Inactive rows (entry NONE) and leaves read no logits; a leaf's H is 0 and its G is V.
//!
//! Values that are not finite become -1e30: a diverged model is noticed by its loss, and still spells valid SIDs.
//!
//! Floor per row, taking all to be active, with a whole fanout of children: 5 (V + fanout) operations, and 4 (V + fanout +
//! 2 top) bytes beside its record. The order of the children is found by counting, for each, those
//! before it: children^2 comparisons, no barrier, no sorting network; codebooks have a few hundred codes.

use super::log_softmax::{row_max, row_sums};
use super::math::MASKED;
use super::search::{self, NONE, STATS, Trie, stat};
use crate::device::threads::{chunks, each, rising};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::{bindings, params};
use anyhow::Result;
use std::cell::RefCell;

params! {
    /// `keep`: row of `child_logp` is the entry's node, else the entry's row. `valued`: rows of `value` (0: V = 0). `first`: the
    /// row of everything else that the first row of logits belongs to.
    Params {
        rows: u32, vocab: u32, fanout: u32, tokens_at: u32, top: u32, keep: u32, renormalise: u32, valued: u32,
        lambda: f32, first: u32,
    }
}

pub static EXPAND: Kernel = Kernel {
    name: "expand",
    source: include_str!("../../shaders/expand.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![
        logits: In F32, value: In F32, entry: In U32, trie: In U32,
        child_logp: Out F32, stats: Out F32, top_edge: Out U32, top_logp: Out F32,
    ],
    twin,
    cost,
};

/// The buffers of one [`expand`].
#[derive(Clone, Copy)]
pub struct Expand {
    pub logits: Slice,
    /// Values of the rows; without them V is 0.
    pub value: Option<Slice>,
    /// Nodes of the active rows rise strictly.
    pub entry: Slice,
    pub trie: Slice,
    pub child_logp: Slice,
    pub stats: Slice,
    pub top_edge: Slice,
    pub top_logp: Slice,
}

/// Scores the children of `rows` entries, from `p.first` on; `p.rows` and `p.valued` follow.
pub fn expand(s: &mut Stream, on: Expand, p: Params, rows: impl Into<Size>) {
    let rows = rows.into();
    let p = Params {
        rows: rows.max as u32,
        valued: on.value.map_or(0, |_| rows.max as u32),
        ..p
    };
    let slices = [
        on.logits,
        on.value.unwrap_or(on.logits),
        on.entry,
        on.trie,
        on.child_logp,
        on.stats,
        on.top_edge,
        on.top_logp,
    ];
    s.push(&EXPAND, &p, &slices, Grid(p.rows))
        .size("rows", rows);
}

fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [vocab, fanout, top] = [p.vocab, p.fanout, p.top].map(u64::from);
    let stats = STATS as u64;
    Cost {
        operations: 5 * (vocab + fanout),
        bytes: 4 * (vocab + fanout + 2 * top + stats + 2),
    } * p.rows as u64
}

fn finite(x: f32) -> f32 {
    if x.is_finite() { x } else { MASKED }
}

thread_local! {
    /// Room to order a node's children in.
    static ORDER: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let (rows, vocab, top) = (p.rows as usize, p.vocab as usize, p.top as usize);
    let (logits, value, first) = (args.f32(0), args.f32(1), p.first as usize);
    let entry = &args.u32(2)[2 * first..][..2 * rows];
    let trie = Trie::new(args.u32(3), p.tokens_at);
    let place = |row: usize| (entry[2 * row] != NONE).then_some(entry[2 * row] as usize);
    let line = |row: usize| place(row).map(|place| if p.keep != 0 { place } else { first + row });
    // SAFETY: the entries do not change meanwhile.
    let (child_logp, stats, top_edge, top_logp) = unsafe {
        (
            rising(args.f32_mut(4), p.fanout as usize, rows, line),
            rising(args.f32_mut(5), STATS, rows, place),
            rising(args.u32_mut(6), top, rows, place),
            rising(args.f32_mut(7), top, rows, place),
        )
    };
    let risen = "nodes of entries rise";
    let parts = (
        chunks(entry, 2),
        child_logp.expect(risen),
        stats.expect(risen),
        top_edge.expect(risen),
        top_logp.expect(risen),
    );
    let per_task = (16_384 / vocab.max(1)).max(1);
    each(
        parts,
        per_task,
        |row, (entry, child_logp, stats, top_edge, top_logp)| {
            top_edge.fill(NONE);
            top_logp.fill(MASKED);
            if entry[0] == NONE {
                return;
            }
            let edges = trie.edges(entry[1]);
            let v = if p.valued > 0 {
                finite(value[first + row])
            } else {
                0.0
            };
            let mut h = 0.0;
            if !edges.is_empty() {
                let x = &logits[row * vocab..][..vocab];
                let legal = &mut child_logp[..edges.len()];
                for (y, edge) in legal.iter_mut().zip(edges.clone()) {
                    *y = finite(x[trie.token(edge) as usize]);
                }
                let high = row_max(legal);
                let (sum, weighted) = row_sums(legal, high);
                if legal.len() > 1 {
                    h = finite(sum.ln() - weighted / sum);
                }
                let normaliser = if p.renormalise != 0 {
                    high + sum.ln()
                } else {
                    let high = row_max(x);
                    high + row_sums(x, high).0.ln()
                };
                if top > 0 {
                    ORDER.with_borrow_mut(|order| {
                        best(legal, top, order);
                        for (i, &c) in order.iter().enumerate() {
                            top_edge[i] = edges.start + c;
                            top_logp[i] = finite(legal[c as usize] - normaliser);
                        }
                    });
                }
                for y in legal {
                    *y = finite(*y - normaliser);
                }
            }
            stats[stat::VALUE] = v;
            stats[stat::ENTROPY] = h;
            stats[stat::SCORE] = v + p.lambda * h;
        },
    );
}

/// Makes `order` the numbers of the `top` largest, the largest first; of equals the first.
fn best(x: &[f32], top: usize, order: &mut Vec<u32>) {
    order.clear();
    order.extend(0..x.len() as u32);
    let before = |&a: &u32, &b: &u32| {
        // Adding 0 makes -0 equal to 0.
        (x[b as usize] + 0.0)
            .total_cmp(&(x[a as usize] + 0.0))
            .then(a.cmp(&b))
    };
    if top < order.len() {
        order.select_nth_unstable_by(top - 1, before);
        order.truncate(top);
    }
    order.sort_unstable_by(before);
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (rows, vocab, fanout, top) in [
        (1, 5, 1, 1),
        (3, 67, 5, 7),
        (5, 257, 65, 8),
        (7, 131, 130, 0),
    ] {
        for (renormalise, keep, valued) in [(0, 1, true), (1, 0, false)] {
            let (begin, tokens, first_leaf) = search::random_trie(h.draws(), 2, fanout, vocab);
            let trie = h.u32("trie", &search::trie_words(&begin, &tokens));
            // Equal logits in places, so that ties are met; the last row is a leaf, the one before inactive.
            let values: Vec<f32> = (0..rows * vocab)
                .map(|i| if i % 3 == 0 { 0.5 } else { h.draws().normal() })
                .collect();
            // Of the last rows alone, or of all.
            let first = if keep == 0 { rows / 2 } else { 0 };
            let logits = h.f32("logits", &values[first * vocab..]);
            let value = h.random("value", rows);
            let entries: Vec<u32> = (0..rows as u32)
                .flat_map(|r| match rows as u32 - r {
                    1 if rows > 1 => [2 * r, first_leaf],
                    2 => [NONE, 0],
                    _ => [2 * r, h.draws().below(first_leaf as usize) as u32],
                })
                .collect();
            let entry = h.u32("entry", &entries);
            let child_logp = h.random("child_logp", 2 * rows * fanout);
            let stats = h.random("stats", 2 * rows * STATS);
            let top_edge = h.u32("top_edge", &vec![1; (2 * rows * top).max(1)]);
            let top_logp = h.random("top_logp", (2 * rows * top).max(1));
            let on = Expand {
                logits: logits.slice(),
                value: valued.then_some(value.slice()),
                entry: entry.slice(),
                trie: trie.slice(),
                child_logp: child_logp.slice(),
                stats: stats.slice(),
                top_edge: top_edge.slice(),
                top_logp: top_logp.slice(),
            };
            let p = Params {
                rows: rows as u32,
                vocab: vocab as u32,
                fanout: fanout as u32,
                tokens_at: begin.len() as u32,
                top: top as u32,
                keep,
                renormalise,
                valued: 0,
                lambda: 0.1,
                first: first as u32,
            };
            expand(h.stream(), on, p, rows - first);
            h.run()?;
            for buffer in [&child_logp, &stats, &top_edge, &top_logp] {
                h.read_u32(buffer)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::harness::devices;

    #[test]
    fn shader_equals_twin() {
        devices::lockstep(cases);
    }

    /// One row over a root with the children 1, 3, 4 of a vocabulary of 6.
    fn expand_one(
        h: &mut Harness,
        x: [f32; 6],
        renormalise: u32,
    ) -> (Vec<f32>, Vec<f32>, Vec<u32>) {
        let trie = h.u32("trie", &search::trie_words(&[0, 3, 3, 3, 3], &[1, 3, 4]));
        let (logits, value) = (h.f32("logits", &x), h.f32("value", &[0.25]));
        let entry = h.u32("entry", &[0, 0]);
        let (child_logp, stats) = (
            h.f32("child_logp", &[0.0; 3]),
            h.f32("stats", &[0.0; STATS]),
        );
        let (top_edge, top_logp) = (h.u32("top_edge", &[9; 4]), h.f32("top_logp", &[0.0; 4]));
        let on = Expand {
            logits: logits.slice(),
            value: Some(value.slice()),
            entry: entry.slice(),
            trie: trie.slice(),
            child_logp: child_logp.slice(),
            stats: stats.slice(),
            top_edge: top_edge.slice(),
            top_logp: top_logp.slice(),
        };
        let (rows, vocab, fanout, tokens_at, top, keep) = (1, 6, 3, 5, 4, 1);
        let (valued, lambda) = (0, 0.1);
        expand(
            h.stream(),
            on,
            Params {
                rows,
                vocab,
                fanout,
                tokens_at,
                top,
                keep,
                renormalise,
                valued,
                lambda,
                first: 0,
            },
            1,
        );
        h.run().unwrap();
        (
            h.read_f32(&child_logp).unwrap(),
            h.read_f32(&stats).unwrap(),
            h.read_u32(&top_edge).unwrap(),
        )
    }

    #[test]
    fn matches_the_formulas_in_f64() {
        devices::each(|h| {
            let x = [0.3, -1.0, 2.0, 0.7, 0.7, -0.2];
            let lse = |tokens: &[usize]| {
                tokens
                    .iter()
                    .map(|&t| (x[t] as f64).exp())
                    .sum::<f64>()
                    .ln()
            };
            for (renormalise, normaliser) in [(0, lse(&[0, 1, 2, 3, 4, 5])), (1, lse(&[1, 3, 4]))] {
                let (logp, stats, top) = expand_one(h, x, renormalise);
                let entropy: f64 = [1, 3, 4]
                    .map(|t| x[t] as f64 - lse(&[1, 3, 4]))
                    .map(|l| -l * l.exp())
                    .iter()
                    .sum();
                for (got, token) in logp.iter().zip([1, 3, 4]) {
                    assert!((*got as f64 - (x[token] as f64 - normaliser)).abs() < 2e-6);
                }
                for (got, want) in stats.iter().zip([0.25, entropy, 0.25 + 0.1 * entropy]) {
                    assert!((*got as f64 - want).abs() < 2e-6, "{got} {want}");
                }
                // 3 and 4 tie: the lower token first.
                assert_eq!(top, [1, 2, 0, NONE]);
            }
        });
    }

    #[test]
    fn a_diverged_model_still_orders_the_legal_children() {
        devices::each(|h| {
            let (logp, stats, top) = expand_one(h, [f32::NAN; 6], 0);
            assert_eq!(top, [0, 1, 2, NONE]);
            assert!(logp.iter().chain(&stats).all(|x| x.is_finite()));
        });
    }
}
