//! Back from the log-probabilities of targets ([`super::log_softmax`]) to what their logits `x = h W^T` were made of,
//! without the gradient of the logits, which would be as large as they are: for cross-entropy (`g = -weight`) and for
//! policy gradients (`g = dLoss/dlogp`, spec 6) alike.
//!
//! Row r of the gradient is `sum_k g_k (1[v = t_k] - p_v)` over its targets, `starts[r] <= k < starts[r+1]`, p the softmax:
//! `-S_r p` with `S_r = sum_k g_k`, and few elements more. So for hidden states h [R, d] and output projection W [V, d]
//!
//! - `dW = p^T (-S h)`, and `dW[t_k, :] += g_k h[r, :]`: [`scale`] prepares -S h, a product takes p as it loads logits
//!   ([`super::matmul_softmax`]), [`super::embedding::backward`] adds the rows of targets;
//! - `dh = -S (p W)`, and `dh[r, :] += g_k W[t_k, :]`: the product first, the rest is [`add`].
//!
//! A row may have no target (its gradient is 0) or several (the children of a tree node). A target outside the
//! vocabulary ([`super::rows::NONE`]) has no gradient.
//!
//! Floor, as for one target per row: [`scale`] 1 operation per element of h, 8 bytes; [`add`] 3 operations, 8 bytes and 4
//! for the rows of W, of which there are R or V; beside them 4 bytes a row. The targets, some bytes a row, are not counted:
//! the parameters do not tell K.

use crate::device::threads::{chunks, chunks_mut, each};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::embedding::Shard;
use crate::kernels::harness::Harness;
use crate::kernels::log_softmax::ragged_targets;
use crate::kernels::math::axpy;
use crate::{bindings, params};
use anyhow::Result;
use std::ops::Range;

params! {
    Params { rows: u32, width: u32, vocab: u32 }
}

params! {
    /// `keep`: what label smoothing leaves to a target, 1 without. The projection's rows given are those of the tokens
    /// `first ..` `first + held`.
    AddParams { rows: u32, width: u32, vocab: u32, keep: f32, first: u32, held: u32 }
}

pub static SCALE: Kernel = Kernel {
    name: "target_scale",
    source: include_str!("../../shaders/target_scale.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![
        x: In F32, starts: In U32, targets: In U32, g: In F32, y: Out F32, rows: Out U32,
    ],
    twin: scale_twin,
    cost: scale_cost,
};

pub static ADD: Kernel = Kernel {
    name: "target_add",
    source: include_str!("../../shaders/target_add.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: AddParams::FIELDS,
    bindings: bindings![w: In Real, starts: In U32, targets: In U32, g: In F32, y: Out F32],
    twin: add_twin,
    cost: add_cost,
};

/// Lists of targets by row, and what their log-probabilities' gradient is.
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// [R + 1]
    pub starts: Slice,
    /// [K]
    pub tokens: Slice,
    /// [K] dLoss/dlogp.
    pub g: Slice,
    /// R.
    pub rows: Size,
    /// V.
    pub vocab: usize,
}

/// `y[r, :] = -S_r x[r, :]`, both `[R, width]`; `rows` [K] gets the row of each target.
pub fn scale(s: &mut Stream, x: Slice, on: Targets, y: Slice, rows: Slice, width: usize) {
    let slices = [x, on.starts, on.tokens, on.g, y, rows];
    let params = Params {
        rows: on.rows.max as u32,
        width: width as u32,
        vocab: on.vocab as u32,
    };
    s.push(&SCALE, &params, &slices, Grid(params.rows))
        .size("rows", on.rows);
}

/// `y[r, :] = -S_r y[r, :] + keep sum_k g_k w[t_k, :]`, y being `[R, width]` and w `[V, width]`. Where w is in several
/// shards: once for each, of which the first brings the factor.
pub fn add(s: &mut Stream, w: Shard, on: Targets, keep: f32, y: Slice, width: usize) {
    let slices = [w.rows, on.starts, on.tokens, on.g, y];
    let [first, held] = w.tokens(width);
    let params = AddParams {
        rows: on.rows.max as u32,
        width: width as u32,
        vocab: on.vocab as u32,
        keep,
        first,
        held,
    };
    s.push(&ADD, &params, &slices, Grid(params.rows))
        .size("rows", on.rows);
}

fn scale_cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [rows, width] = [p.rows, p.width].map(u64::from);
    Cost {
        operations: rows * width,
        bytes: 4 * rows * (2 * width + 1),
    }
}

fn add_cost(launch: &Launch) -> Cost {
    let p: AddParams = launch.read_params();
    let [rows, width, held] = [p.rows, p.width, p.held].map(u64::from);
    let w = launch.width(0);
    Cost {
        operations: 3 * rows * width,
        bytes: 4 * rows * (2 * width + 1) + w * rows.min(held) * width,
    }
}

/// What a row's targets say.
struct Row<'a> {
    tokens: &'a [u32],
    g: &'a [f32],
    vocab: u32,
}

impl<'a> Row<'a> {
    /// Token and gradient of those inside the vocabulary.
    fn inside(&self) -> impl Iterator<Item = (usize, f32)> + use<'_, 'a> {
        let all = self.tokens.iter().zip(self.g);
        let inside = all.filter(|(token, _)| **token < self.vocab);
        inside.map(|(&token, &g)| (token as usize, g))
    }

    /// S.
    fn total(&self) -> f32 {
        self.inside().map(|(_, g)| g).sum()
    }
}

/// Rows of `width` elements that are worth a task.
fn rows_per_task(width: usize) -> usize {
    (16 * 1024usize).div_ceil(width)
}

fn range(starts: &[u32], row: usize) -> Range<usize> {
    starts[row] as usize..starts[row + 1] as usize
}

fn scale_twin(args: &Args) {
    let p: Params = args.params();
    let (rows, width) = (p.rows as usize, p.width as usize);
    let (starts, tokens, g) = (args.u32(1), args.u32(2), args.f32(3));
    let parts = (
        chunks(&args.f32(0)[..rows * width], width),
        chunks_mut(&mut args.f32_mut(4)[..rows * width], width),
    );
    each(parts, rows_per_task(width), |row, (x, y)| {
        let own = range(starts, row);
        let (tokens, g) = (&tokens[own.clone()], &g[own]);
        let vocab = p.vocab;
        let factor = -Row { tokens, g, vocab }.total();
        for (y, x) in y.iter_mut().zip(x) {
            *y = factor * x;
        }
    });
    let row_of = args.u32_mut(5);
    for row in 0..rows {
        row_of[range(starts, row)].fill(row as u32);
    }
}

fn add_twin(args: &Args) {
    let p: AddParams = args.params();
    let (rows, width) = (p.rows as usize, p.width as usize);
    let (w, starts, tokens, g) = (args.f32(0), args.u32(1), args.u32(2), args.f32(3));
    let y = chunks_mut(&mut args.f32_mut(4)[..rows * width], width);
    each(y, rows_per_task(width), |row, y| {
        let own = range(starts, row);
        let (tokens, g) = (&tokens[own.clone()], &g[own]);
        let vocab = p.vocab;
        let targets = Row { tokens, g, vocab };
        if p.first == 0 {
            let factor = -targets.total();
            for y in y.iter_mut() {
                *y *= factor;
            }
        }
        for (token, g) in targets.inside() {
            let at = (token as u32).wrapping_sub(p.first);
            if at < p.held {
                axpy(y, p.keep * g, &w[at as usize * width..][..width]);
            }
        }
    });
}

/// (rows, vocabulary, width).
const SHAPES: [(usize, usize, usize); 6] = [
    (1, 1, 1),
    (3, 5, 7),
    (17, 31, 12),
    (5, 66, 63),
    (33, 129, 64),
    (70, 12, 68),
];

pub fn cases(h: &mut Harness) -> Result<()> {
    for (rows, vocab, width) in SHAPES {
        let (starts, tokens) = ragged_targets(h, rows, vocab);
        let count = tokens.len();
        let (x, y) = (h.random("x", rows * width), h.random("y", rows * width));
        let half = vocab.div_ceil(2);
        let w = h.real("w", half * width);
        let rest = h.real("w", (vocab - half).max(1) * width);
        let row_of = h.u32("rows", &vec![7; count]);
        let (starts, tokens) = (h.u32("starts", &starts), h.u32("targets", &tokens));
        let g = h.random("g", count);
        let on = Targets {
            starts: starts.slice(),
            tokens: tokens.slice(),
            g: g.slice(),
            rows: rows.into(),
            vocab,
        };
        let (from, to) = (x.slice(), y.slice());
        scale(h.stream(), from, on, to, row_of.slice(), width);
        add(h.stream(), Shard::whole(w.slice()), on, 0.75, to, width);
        let rest = Shard {
            first: half,
            rows: rest.slice(),
        };
        add(h.stream(), rest, on, 0.75, to, width);
        h.run()?;
        h.read_u32(&row_of)?;
        h.read_f32(&y)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Size, Word};
    use crate::kernels::embedding::{self, Weighted};
    use crate::kernels::harness::{devices, finite_difference, relative_error};
    use crate::kernels::log_softmax::{self, Scored};
    use crate::kernels::matmul::{Dims, Form, linear};
    use crate::kernels::matmul_softmax::matmul_softmax;
    use crate::kernels::token_order::{Tokens, token_order};

    #[test]
    fn shader_equals_twin() {
        devices::lockstep(cases);
    }

    /// Lists of targets in f64.
    struct Lists<'a> {
        starts: &'a [u32],
        tokens: &'a [u32],
        g: &'a [f64],
    }

    impl Lists<'_> {
        fn of(&self, row: usize, vocab: usize) -> impl Iterator<Item = (usize, f64)> {
            range(self.starts, row)
                .map(|k| (self.tokens[k] as usize, self.g[k]))
                .filter(move |(token, _)| *token < vocab)
        }
    }

    /// The sum of g_k logp_k over rows of hidden states [R, d] and a projection [V, d].
    fn loss(h: &[f64], w: &[f64], lists: &Lists, width: usize) -> f64 {
        let vocab = w.len() / width;
        let mut total = 0.0;
        for (row, h) in h.chunks(width).enumerate() {
            let dot = |w: &[f64]| w.iter().zip(h).map(|(a, b)| a * b).sum::<f64>();
            let logits: Vec<f64> = w.chunks(width).map(dot).collect();
            let largest = logits.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = logits.iter().map(|x| (x - largest).exp()).sum();
            for (token, g) in lists.of(row, vocab) {
                total += g * (logits[token] - largest - sum.ln());
            }
        }
        total
    }

    /// The gradient of that, written out.
    fn gradient(h: &[f64], w: &[f64], lists: &Lists, width: usize) -> [Vec<f64>; 2] {
        let vocab = w.len() / width;
        let (mut dh, mut dw) = (vec![0.0; h.len()], vec![0.0; w.len()]);
        for (row, h) in h.chunks(width).enumerate() {
            let dot = |w: &[f64]| w.iter().zip(h).map(|(a, b)| a * b).sum::<f64>();
            let weights: Vec<f64> = w.chunks(width).map(|w| dot(w).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let mut dx = vec![0.0; vocab];
            for (token, g) in lists.of(row, vocab) {
                dx.iter_mut()
                    .zip(&weights)
                    .for_each(|(dx, e)| *dx -= g * e / sum);
                dx[token] += g;
            }
            for (token, dx) in dx.iter().enumerate() {
                for j in 0..width {
                    dh[row * width + j] += dx * w[token * width + j];
                    dw[token * width + j] += dx * h[j];
                }
            }
        }
        [dh, dw]
    }

    /// Records the way from hidden states to log-probs and back, as `learn/head.rs` does; sizes are known to the device
    /// alone, and may be smaller than what is allocated.
    #[test]
    fn the_whole_way_equals_differences_of_the_loss() {
        devices::each(|h| {
            for (rows, vocab, width) in [(1, 2, 3), (5, 7, 4), (20, 13, 8), (9, 36, 5)] {
                // The last rows are not there.
                let bound = rows + 3;
                let (starts, tokens) = ragged_targets(h, bound, vocab);
                let count = tokens.len();
                let present = starts[rows] as usize;
                let hidden = h.random("hidden", bound * width);
                let w = h.random("w", vocab * width);
                let g = h.random("g", count);
                let (b_starts, b_tokens) = (h.u32("starts", &starts), h.u32("targets", &tokens));
                let [logits, d_hidden] = [
                    h.random("logits", bound * vocab),
                    h.random("d_hidden", bound * width),
                ];
                let d_w = h.random("d_w", vocab * width);
                let (lse, entropy) = (h.random("lse", bound), h.random("entropy", bound));
                let logp = h.random("logp", count);
                let (order, row_of) = (
                    h.u32("order", &vec![0; count]),
                    h.u32("rows", &vec![0; count]),
                );
                let sizes = h.u32("sizes", &[rows as u32, present as u32]);
                let held = |at, max| Size::held(Word::at(sizes.slice(), at), max);
                let (r, k) = (held(0, bound), held(1, count));

                let on = Targets {
                    starts: b_starts.slice(),
                    tokens: b_tokens.slice(),
                    g: g.slice(),
                    rows: r,
                    vocab,
                };
                let (x, dh, dw) = (logits.slice(), d_hidden.slice(), d_w.slice());
                let (l, t) = (lse.slice(), Tokens::plain(on.tokens, k));
                let (v, d) = (vocab, width);
                let s = h.stream();
                let forward = Dims {
                    m: r,
                    n: v,
                    k: d.into(),
                };
                linear(s, hidden.slice(), w.slice(), None, x, forward);
                let scored = Scored {
                    starts: on.starts,
                    targets: on.tokens,
                    lse: l,
                    entropy: entropy.slice(),
                    logp: logp.slice(),
                };
                log_softmax::forward(s, x, scored, (0, r), v);
                scale(s, hidden.slice(), on, dh, row_of.slice(), d);
                token_order(s, t, order.slice());
                let weighted = Some(Weighted {
                    rows: row_of.slice(),
                    weights: on.g,
                });
                let d_table = Shard::whole(dw);
                embedding::backward(s, hidden.slice(), weighted, t, order.slice(), d_table, d);
                let dims = Dims {
                    m: v.into(),
                    n: d,
                    k: r,
                };
                matmul_softmax(s, Form::TN, x, (l, 0), dh, dw, dims, true);
                let dims = Dims {
                    m: r,
                    n: d,
                    k: v.into(),
                };
                matmul_softmax(s, Form::NN, x, (l, 0), w.slice(), dh, dims, false);
                add(s, Shard::whole(w.slice()), on, 1.0, dh, d);
                h.run().unwrap();

                let (all_g, all_hidden, w) = (g.f64(), hidden.f64(), w.f64());
                let hidden = &all_hidden[..rows * width];
                let lists = Lists {
                    starts: &starts,
                    tokens: &tokens,
                    g: &all_g,
                };
                let [mut want_h, mut want_w] = gradient(hidden, &w, &lists, width);
                let narrow = |x: Vec<f64>| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
                let slope = finite_difference(|h| loss(h, &w, &lists, width), hidden);
                assert!(relative_error(&want_h, &narrow(slope)) < 1e-6);
                let slope = finite_difference(|w| loss(hidden, w, &lists, width), &w);
                assert!(relative_error(&want_w, &narrow(slope)) < 1e-6);

                want_w
                    .iter_mut()
                    .zip(d_w.f64())
                    .for_each(|(w, was)| *w += was);
                want_h.extend_from_slice(&d_hidden.f64()[rows * width..]);
                h.expect(&d_w, &want_w, 5e-6);
                h.expect(&d_hidden, &want_h, 5e-6);
                let got = h.read_f32(&d_hidden).unwrap();
                for row in (0..rows).filter(|&row| lists.of(row, vocab).next().is_none()) {
                    assert!(got[row * width..][..width].iter().all(|&x| x == 0.0));
                }
            }
        });
    }
}
