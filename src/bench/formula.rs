//! Operations and bytes of a step, from the sizes alone: the formulas of `docs/performance.md`, letter by letter. A test
//! holds them to the launches that steps record.

use crate::device::ALIGN_WORDS;
use crate::forest::{ForestSize, Row};
use crate::kernels::grad_norm::WORDS as NORM;
use crate::model::{Architecture, Layout};
use std::iter::Sum;
use std::ops::{Add, Mul};

/// Words of a row's record.
const ROW: u64 = Row::WORDS as u64;

/// What a part of a step costs at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Operations of matrix products.
    pub products: u64,
    /// Operations of attention.
    pub attention: u64,
    /// All others.
    pub elementwise: u64,
    /// 32-bit words moved, each operand of each launch once.
    pub words: u64,
}

impl Work {
    pub fn operations(&self) -> u64 {
        self.products + self.attention + self.elementwise
    }

    pub fn bytes(&self) -> u64 {
        4 * self.words
    }

    fn elementwise(operations: u64, words: u64) -> Work {
        Work {
            elementwise: operations,
            words,
            ..Work::default()
        }
    }

    fn attention(operations: u64, words: u64) -> Work {
        Work {
            attention: operations,
            words,
            ..Work::default()
        }
    }

    /// `y[m, n] = x[m, k] W[n, k]^T`
    fn linear(m: u64, n: u64, k: u64) -> Work {
        Work {
            products: 2 * m * n * k,
            words: m * k + n * k + m * n,
            ..Work::default()
        }
    }

    /// A list of `count` rows sorted by token.
    fn token_order(count: u64) -> Work {
        Work::elementwise(count * count, 2 * count)
    }

    /// `dW += dY^T X` and `dX = dY W` of [`Work::linear`].
    fn linear_backward(m: u64, n: u64, k: u64) -> Work {
        Work {
            products: 4 * m * n * k,
            words: 2 * m * (n + k) + 3 * n * k,
            ..Work::default()
        }
    }

    /// RMSNorm of `vectors` of `dim` elements.
    fn norm(vectors: u64, dim: u64) -> Work {
        let n = vectors * dim;
        Work::elementwise(4 * n, 2 * n + vectors + dim)
    }

    /// Its gradients, that of the input written to `moved` arrays' worth of words.
    fn norm_backward(vectors: u64, dim: u64, moved: u64) -> Work {
        let (n, chunks) = (vectors * dim, vectors.div_ceil(64));
        Work::elementwise(
            11 * n + chunks * dim,
            (2 + moved) * n + 2 * vectors + (2 * chunks + 3) * dim,
        )
    }
}

impl Add for Work {
    type Output = Work;

    fn add(self, other: Work) -> Work {
        Work {
            products: self.products + other.products,
            attention: self.attention + other.attention,
            elementwise: self.elementwise + other.elementwise,
            words: self.words + other.words,
        }
    }
}

impl Mul<u64> for Work {
    type Output = Work;

    fn mul(self, times: u64) -> Work {
        Work {
            products: self.products * times,
            attention: self.attention * times,
            elementwise: self.elementwise * times,
            words: self.words * times,
        }
    }
}

impl Sum for Work {
    fn sum<I: Iterator<Item = Work>>(parts: I) -> Work {
        parts.fold(Work::default(), Add::add)
    }
}

/// The letters of an architecture.
#[derive(Clone, Copy, Debug)]
pub struct Letters {
    vocab: u64,
    d: u64,
    f: u64,
    layers: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    /// 1 or 0.
    bias: u64,
    qk_norm: u64,
}

impl Letters {
    pub fn of(a: &Architecture) -> Letters {
        let [vocab, d, f, layers] = [a.vocab, a.hidden, a.intermediate, a.layers].map(|n| n as u64);
        let [heads, kv_heads, head_dim] = [a.heads, a.kv_heads, a.head_dim].map(|n| n as u64);
        Letters {
            vocab,
            d,
            f,
            layers,
            heads,
            kv_heads,
            head_dim,
            bias: a.qkv_bias as u64,
            qk_norm: a.qk_norm() as u64,
        }
    }

    /// Widths of queries (H hd), of keys and values (2 Hk hd), of both, of what is rotated ((H + Hk) hd).
    fn widths(&self) -> [u64; 4] {
        let (q, kv) = (
            self.heads * self.head_dim,
            2 * self.kv_heads * self.head_dim,
        );
        [q, kv, q + kv, q + kv / 2]
    }

    /// The first part of a layer: queries, keys and values of T rows.
    fn project(&self, t: u64) -> Work {
        let [_, _, w, rotated] = self.widths();
        let head_norms = Work::norm(t * self.heads, self.head_dim)
            + Work::norm(t * self.kv_heads, self.head_dim);
        [
            Work::norm(t, self.d),
            Work::linear(t, w, self.d) + Work::elementwise(0, w) * self.bias,
            head_norms * self.qk_norm,
            Work::elementwise(3 * t * rotated, t * (2 * w + self.head_dim + ROW)),
        ]
        .into_iter()
        .sum()
    }

    /// The second part: attention and all that follows it.
    fn finish(&self, size: ForestSize) -> Work {
        let Letters { d, f, .. } = *self;
        let [q, kv, ..] = self.widths();
        let t = size.rows;
        [
            Work::attention(
                4 * size.pairs * q,
                2 * t * q + size.keys * kv + t * self.heads + ROW * t,
            ),
            Work::linear(t, d, q),
            Work::norm(t, d),
            Work::linear(t, 2 * f, d),
            Work::elementwise(5 * t * f, 3 * t * f),
            Work::linear(t, d, f),
            // The residual that each product is added to.
            Work::elementwise(0, t * d) * 2,
        ]
        .into_iter()
        .sum()
    }

    fn layer_forward(&self, size: ForestSize) -> Work {
        self.project(size.rows) + self.finish(size)
    }

    /// Back through a layer over T rows, of which only those of `finished` had a second part.
    fn layer_backward(&self, t: u64, finished: ForestSize) -> Work {
        let Letters { d, f, heads, .. } = *self;
        let [q, kv, w, rotated] = self.widths();
        let n = finished.rows;
        let head_norms = Work::norm_backward(t * heads, self.head_dim, 3)
            + Work::norm_backward(t * self.kv_heads, self.head_dim, 3);
        [
            Work::linear_backward(n, d, f),
            Work::elementwise(11 * n * f, 5 * n * f),
            Work::linear_backward(n, 2 * f, d),
            Work::norm_backward(n, d, 4),
            Work::linear_backward(n, d, q),
            Work::attention(
                2 * n * q + 14 * finished.pairs * q,
                7 * n * q + 3 * finished.keys * kv + 5 * n * heads + ROW * (n + t),
            ),
            Work::elementwise(0, (t - n) * q),
            Work::elementwise(3 * t * rotated, t * (2 * w + self.head_dim + ROW)),
            head_norms * self.qk_norm,
            Work::elementwise(t * w, (t + 2) * w) * self.bias,
            Work::linear_backward(t, w, d),
            Work::norm_backward(t, d, 4),
        ]
        .into_iter()
        .sum()
    }

    /// The backbone over a forest, to the hidden states.
    pub fn forward(&self, size: ForestSize) -> Work {
        let t = size.rows;
        self.embedding(t) + self.layer_forward(size) * self.layers + Work::norm(t, self.d)
    }

    fn embedding(&self, t: u64) -> Work {
        Work::elementwise(0, 2 * t * self.d + t)
    }

    /// The same, where the last layer is finished for the rows of `asked` alone.
    fn forward_at(&self, size: ForestSize, asked: ForestSize) -> Work {
        let ([q, ..], n) = (self.widths(), asked.rows);
        let select = Self::gather(n, ROW) + Self::gather(n, self.d) + Self::gather(n, q);
        self.embedding(size.rows)
            + self.layer_forward(size) * (self.layers - 1)
            + self.project(size.rows)
            + select
            + self.finish(asked)
            + Work::norm(n, self.d)
    }

    /// Back from the hidden states to the weights' gradient. How many tokens are distinct is not known: at most as many
    /// as there are rows, or in the vocabulary.
    pub fn backward(&self, size: ForestSize) -> Work {
        let (t, d) = (size.rows, self.d);
        let embedding = Work::elementwise(t * d, (t + 2 * t.min(self.vocab)) * d + 2 * t);
        Work::norm_backward(t, d, 3)
            + self.layer_backward(t, size) * self.layers
            + Work::token_order(t)
            + embedding
    }

    /// What dropout adds to both ways: a mask behind the embedding, and two per layer.
    fn dropout(&self, t: u64) -> Work {
        let n = t * self.d;
        Work::elementwise(8 * n, 2 * n) * (2 + 4 * self.layers)
    }

    /// Logits of `rows` hidden states.
    pub fn logits(&self, rows: u64) -> Work {
        Work::linear(rows, self.vocab, self.d)
    }

    fn gather(rows: u64, width: u64) -> Work {
        Work::elementwise(0, rows * (2 * width + 1))
    }

    /// Scored rows and their log-probs.
    pub fn head_forward(&self, head: Head) -> Work {
        Self::gather(head.rows, self.d) + self.score(head)
    }

    /// Log-probs of scored rows that lie together already.
    fn score(&self, head: Head) -> Work {
        let v = self.vocab;
        let chunk = |n| self.logits(n) + Work::elementwise(5 * n * v, n * (v + 3));
        head.chunks().map(chunk).sum()
    }

    /// Back to the hidden states; logits that were not kept are computed anew if `again`. Tokens as in
    /// [`Letters::backward`], and a target per row.
    pub fn head_backward(&self, head: Head, again: bool) -> Work {
        let (v, d, rows, k) = (self.vocab, self.d, head.rows, head.targets);
        let again = again && rows > head.chunk;
        // Two products with a softmax.
        let softmax = |n| Work {
            products: 4 * n * v,
            words: 2 * n,
            ..Work::default()
        };
        let chunk = |n| self.logits(n) * again as u64 + Work::linear_backward(n, v, d) + softmax(n);
        let targets = Work::elementwise(rows * d, rows * (2 * d + 1))
            + Work::token_order(k)
            + Work::elementwise(2 * k * d, (k + 2 * k.min(v)) * d + 4 * k)
            + Work::elementwise(3 * rows * d, rows * (2 * d + 1) + rows.min(v) * d);
        head.chunks().map(chunk).sum::<Work>()
            + targets
            + Work::elementwise(0, head.capacity * d)
            + Work::elementwise(rows * d, 3 * rows * d + rows)
    }

    /// V at rows whose keys the value head's block has.
    fn value_finish(&self, size: ForestSize) -> Work {
        let (n, d) = (size.rows, self.d);
        self.finish(size)
            + Work::norm(n, d)
            + Work::linear(n, d, d)
            + Work::elementwise(4 * n * d, 2 * n * d)
            + Work::linear(n, 1, d)
            + Work::elementwise(0, d + 1)
    }

    /// Back from dLoss/dV at the rows of `asked`, the last of T; without `detach`, on into the backbone's hidden states.
    fn value_backward(&self, t: u64, asked: ForestSize, detach: bool) -> Work {
        let (n, d) = (asked.rows, self.d);
        Work::linear_backward(n, 1, d)
            + Work::elementwise(n, n + 2)
            + Work::elementwise(8 * n * d, 3 * n * d)
            + Work::linear_backward(n, d, d)
            + Work::elementwise(n * d, (n + 2) * d)
            + Work::norm_backward(n, d, 3)
            + Work::elementwise(0, (t - n) * d)
            + self.layer_backward(t, asked)
            + Work::elementwise(t * d, 3 * t * d) * !detach as u64
    }
}

/// Where logits are computed.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// Targets K.
    pub targets: u64,
    /// Scored rows R, and as many of them at a time as logits have room for.
    pub rows: u64,
    pub chunk: u64,
    /// Rows that the buffers of hidden states hold.
    pub capacity: u64,
}

impl Head {
    fn chunks(self) -> impl Iterator<Item = u64> {
        let Head { rows, chunk, .. } = self;
        (0..rows.div_ceil(chunk)).map(move |i| chunk.min(rows - i * chunk))
    }
}

/// Clearing the gradient, its norm and AdamW.
pub fn update(layout: &Layout) -> Work {
    let blocks = layout.blocks.iter().map(|b| b.words as u64);
    let partials: u64 = blocks.map(|words| words.div_ceil(8192)).sum();
    let n = layout.words() as u64;
    let norm = 2 * partials + 1 + NORM as u64;
    Work::elementwise(0, n) + Work::elementwise(16 * n + partials, 8 * n + norm)
}

/// What one part of a fine-tuning step runs over.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub forest: ForestSize,
    pub head: Head,
}

/// A fine-tuning step over these parts, with dropout or without.
pub fn fine_tuning(l: &Letters, layout: &Layout, parts: &[Part], dropout: bool) -> Work {
    let pass = |part: &Part| {
        l.dropout(part.forest.rows) * dropout as u64
            + l.forward(part.forest)
            + l.head_forward(part.head)
            + Work::elementwise(2 * part.head.targets, 2 * part.head.targets + 1)
            + l.head_backward(part.head, false)
            + l.backward(part.forest)
    };
    let (losses, slot) = (parts.len() as u64, ALIGN_WORDS as u64);
    let losses = Work::elementwise(losses * slot, (losses + 1) * slot);
    let weights = parts
        .iter()
        .map(|part| part.head.targets)
        .max()
        .unwrap_or(0);
    let weights = Work::elementwise(0, weights);
    parts.iter().map(pass).sum::<Work>() + update(layout) + losses + weights
}

/// One run of the model over new nodes while decoding.
#[derive(Clone, Copy, Debug)]
pub struct DecodePass {
    pub forest: ForestSize,
    /// Rows whose logits are computed.
    pub scored: u64,
}

/// A rollout: the rows of `prefill`, scored at the ends of its `prompts`, then `passes`; with the value head if `valued`.
/// Leaves out the search itself, rewards and packing: a few hundredths of the whole at most.
pub fn rollout(
    l: &Letters,
    prefill: ForestSize,
    prompts: u64,
    passes: &[DecodePass],
    valued: bool,
) -> Work {
    let [q, ..] = l.widths();
    let ends = Letters::gather(prompts, q) + l.value_finish(prefill.ends(prompts as usize));
    let first = l.forward(prefill)
        + Letters::gather(prompts, l.d)
        + (l.project(prefill.rows) + ends) * valued as u64
        + l.logits(prompts);
    let run = |pass: &DecodePass| {
        let value = l.project(pass.forest.rows) + l.value_finish(pass.forest);
        l.forward(pass.forest) + value * valued as u64 + l.logits(pass.scored)
    };
    first + passes.iter().map(run).sum()
}

/// What the first update on a rollout of one part runs over.
#[derive(Clone, Copy, Debug)]
pub struct Trees {
    /// The prompts, which the rollout has run already, and the most nodes that their trees can have.
    pub prompts: ForestSize,
    pub trees: ForestSize,
    /// Prompts' ends and nodes that are not leaves.
    pub scored: ForestSize,
    pub head: Head,
    /// Whether the rollout left the prompts' keys in the value head's block (VED).
    pub valued: bool,
}

/// That update. Leaves the candidates' tables (advantages, objective, targets) out: a few hundredths at most.
pub fn policy_update(
    l: &Letters,
    layout: &Layout,
    on: Trees,
    reference: bool,
    detach: bool,
) -> Work {
    let (trees, whole) = (on.trees, on.prompts.and(on.trees));
    let keys = if on.valued { trees.rows } else { whole.rows };
    (l.forward_at(whole, on.scored) + l.score(on.head)) * reference as u64
        + l.forward(trees)
        + l.head_forward(on.head)
        + l.head_backward(on.head, true)
        + l.project(keys)
        + l.value_finish(trees)
        + l.value_backward(whole.rows, trees, detach)
        + l.backward(whole)
        + update(layout)
}
