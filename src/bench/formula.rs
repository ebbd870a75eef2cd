//! Operations and bytes of a step, from the sizes alone: the formulas of `docs/performance.md`, letter by letter. A test
//! holds them to the launches that steps record.

use crate::forest::ForestSize;
use crate::model::{Architecture, Layout};
use std::iter::Sum;
use std::ops::{Add, Mul};

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

    fn layer_forward(&self, size: ForestSize) -> Work {
        let Letters { d, f, .. } = *self;
        let [q, kv, w, rotated] = self.widths();
        let t = size.rows;
        let head_norms = Work::norm(t * self.heads, self.head_dim)
            + Work::norm(t * self.kv_heads, self.head_dim);
        [
            Work::norm(t, d) * 2,
            Work::linear(t, w, d) + Work::elementwise(0, w) * self.bias,
            head_norms * self.qk_norm,
            Work::elementwise(3 * t * rotated, t * (2 * w + self.head_dim + 8)),
            Work::attention(
                4 * size.pairs * q,
                2 * t * q + size.keys * kv + t * self.heads + 8 * t,
            ),
            Work::linear(t, d, q),
            Work::linear(t, 2 * f, d),
            Work::elementwise(5 * t * f, 3 * t * f),
            Work::linear(t, d, f),
            Work::elementwise(t * d, 3 * t * d) * 2,
        ]
        .into_iter()
        .sum()
    }

    fn layer_backward(&self, size: ForestSize) -> Work {
        let Letters { d, f, heads, .. } = *self;
        let [q, kv, w, rotated] = self.widths();
        let t = size.rows;
        let head_norms = Work::norm_backward(t * heads, self.head_dim, 3)
            + Work::norm_backward(t * self.kv_heads, self.head_dim, 3);
        [
            Work::linear_backward(t, d, f),
            Work::elementwise(11 * t * f, 5 * t * f),
            Work::linear_backward(t, 2 * f, d),
            Work::norm_backward(t, d, 4) * 2,
            Work::linear_backward(t, d, q),
            Work::attention(
                2 * t * q + 14 * size.pairs * q,
                7 * t * q + 3 * size.keys * kv + 5 * t * heads + 16 * t,
            ),
            Work::elementwise(3 * t * rotated, t * (2 * w + self.head_dim + 8)),
            head_norms * self.qk_norm,
            Work::elementwise(t * w, (t + 2) * w) * self.bias,
            Work::linear_backward(t, w, d),
        ]
        .into_iter()
        .sum()
    }

    /// The backbone over a forest, to the hidden states.
    pub fn forward(&self, size: ForestSize) -> Work {
        let (t, d) = (size.rows, self.d);
        Work::elementwise(0, 2 * t * d + t)
            + self.layer_forward(size) * self.layers
            + Work::norm(t, d)
    }

    /// Back from the hidden states to the weights' gradient; `distinct` tokens occur in the forest.
    pub fn backward(&self, size: ForestSize, distinct: u64) -> Work {
        let (t, d) = (size.rows, self.d);
        Work::norm_backward(t, d, 3)
            + self.layer_backward(size) * self.layers
            + Work::elementwise(t * d, (t + 2 * distinct) * (d + 1))
    }

    /// Logits of `rows` hidden states.
    pub fn logits(&self, rows: u64) -> Work {
        Work::linear(rows, self.vocab, self.d)
    }

    /// Scored rows and their log-probs.
    pub fn head_forward(&self, rows: u64) -> Work {
        Work::elementwise(0, 2 * rows * self.d + rows)
            + self.logits(rows)
            + Work::elementwise(5 * rows * self.vocab, rows * (self.vocab + 3))
    }

    /// Back to the hidden states, of which buffers hold `capacity` rows.
    pub fn head_backward(&self, rows: u64, capacity: u64) -> Work {
        let (v, d) = (self.vocab, self.d);
        Work::elementwise(3 * rows * v, rows * (2 * v + 2))
            + Work::elementwise(0, capacity * d)
            + Work::linear_backward(rows, v, d)
            + Work::elementwise(rows * d, 3 * rows * d + rows)
    }

    /// The value head over a forest: V at `at` listed rows, or at all.
    pub fn value_forward(&self, size: ForestSize, at: Option<u64>) -> Work {
        let d = self.d;
        let n = at.unwrap_or(size.rows);
        let gathered = at.map_or(0, |n| 2 * n * d + n);
        self.layer_forward(size)
            + Work::norm(size.rows, d)
            + Work::elementwise(0, gathered)
            + Work::linear(n, d, d)
            + Work::elementwise(4 * n * d, 2 * n * d)
            + Work::linear(n, 1, d)
            + Work::elementwise(0, d + 1)
    }

    /// Back from dLoss/dV at `n` listed rows; without `detach`, on into the backbone's hidden states.
    pub fn value_backward(&self, size: ForestSize, n: u64, capacity: u64, detach: bool) -> Work {
        let (t, d) = (size.rows, self.d);
        Work::linear_backward(n, 1, d)
            + Work::elementwise(n, n + 2)
            + Work::elementwise(8 * n * d, 3 * n * d)
            + Work::linear_backward(n, d, d)
            + Work::elementwise(n * d, (n + 2) * d)
            + Work::elementwise(0, capacity * d)
            + Work::elementwise(n * d, 3 * n * d + n)
            + Work::norm_backward(t, d, 3)
            + self.layer_backward(size)
            + Work::elementwise(t * d, 3 * t * d) * !detach as u64
    }
}

/// Clearing the gradient, its norm and AdamW.
pub fn update(layout: &Layout) -> Work {
    let blocks = layout.blocks.iter().map(|b| b.words as u64);
    let partials: u64 = blocks.map(|words| words.div_ceil(8192)).sum();
    let n = layout.words() as u64;
    Work::elementwise(0, n) + Work::elementwise(16 * n + partials, 8 * n + 2 * partials + 4)
}

/// What one part of a fine-tuning step runs over.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub forest: ForestSize,
    /// Scored rows R and targets K.
    pub rows: u64,
    pub targets: u64,
    /// Distinct tokens.
    pub distinct: u64,
    /// Rows that the buffers hold.
    pub capacity: u64,
}

/// The passes of a fine-tuning step over one of its parts; the step is the sum of these and one [`update`].
pub fn sft_part(l: &Letters, part: Part) -> Work {
    l.forward(part.forest)
        + l.head_forward(part.rows)
        + Work::elementwise(2 * part.targets, 2 * part.targets + 1)
        + l.head_backward(part.rows, part.capacity)
        + l.backward(part.forest, part.distinct)
}

/// One run of the model over new nodes while decoding.
#[derive(Clone, Copy, Debug)]
pub struct DecodePass {
    pub forest: ForestSize,
    /// Rows whose logits are computed.
    pub scored: u64,
}

/// A rollout: the prompts of `prefill`, scored at their `prompts` ends, then `passes`; with the value head if `valued`.
/// Leaves the search itself out: well under a hundredth of the whole.
pub fn rollout(
    l: &Letters,
    prefill: ForestSize,
    prompts: u64,
    passes: &[DecodePass],
    valued: bool,
) -> Work {
    let first = DecodePass {
        forest: prefill,
        scored: prompts,
    };
    let passes = std::iter::once(&first).chain(passes);
    let run = |pass: &DecodePass| {
        l.forward(pass.forest)
            + l.value_forward(pass.forest, None) * valued as u64
            + l.logits(pass.scored)
    };
    passes.map(run).sum()
}

/// The passes of a policy update over one part of a rollout, its `values` tree nodes valued; the update is the sum of
/// these and one [`update`]. Leaves the candidates' tables (advantages, objective, targets) out: well under a hundredth.
pub fn policy_part(l: &Letters, part: Part, values: u64, reference: bool, detach: bool) -> Work {
    let scored = l.forward(part.forest) + l.head_forward(part.rows);
    scored * (1 + reference as u64)
        + l.head_backward(part.rows, part.capacity)
        + l.value_forward(part.forest, Some(values))
        + l.value_backward(part.forest, values, part.capacity, detach)
        + l.backward(part.forest, part.distinct)
}
