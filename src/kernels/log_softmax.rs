//! Log-probabilities of chosen tokens; [`super::target_gradient`] is the way back.
//!
//! Row r of `logits` [N, V] with the targets t_k, `starts[r] <= k < starts[r+1]`:
//! `lse = log sum_v exp(x_v)`, `entropy = lse - sum_v softmax_v x_v` (over the full vocabulary),
//! `logp_k = x[t_k] - lse`. Both sums are taken about the row's maximum.
//!
//! A row may have no target or several (the children of a tree node). A target outside the vocabulary (`NONE`) has
//! log-probability 0.
//!
//! Floor: 5 NV operations, one exponential each, 4 NV bytes read (the second pass finds a row in cache), and 12 a row. The
//! targets, some bytes a row, are not counted: the parameters do not tell K.
//!
//! A row belongs to a workgroup of 64: wide enough to coalesce, and few enough lanes that a small vocabulary does not drown
//! in barriers. `wide` has 256 lanes and vec4, `subgroup` 128 and a single barrier, `direct` none: an invocation owns a row.

use crate::device::threads::{chunks, chunks_mut, each};
use crate::device::{Args, Cost, Form, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::kernels::math::{MASKED, exp};
use crate::{bindings, params};
use anyhow::Result;

params! {
    /// `first`: the row of everything else that the first row of logits belongs to.
    Params { rows: u32, vocab: u32, first: u32 }
}

/// A vocabulary that is a multiple of 4.
fn fours(w: &[u32]) -> bool {
    w[1].is_multiple_of(4)
}

pub static LOG_SOFTMAX: Kernel = Kernel {
    name: "log_softmax",
    source: include_str!("../../shaders/log_softmax.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[
        Form::subgroup(
            include_str!("../../shaders/log_softmax_subgroup.wgsl"),
            fours,
            |w| Grid(w[0]),
        ),
        Form::wide(
            include_str!("../../shaders/log_softmax_wide.wgsl"),
            fours,
            |w| Grid(w[0]),
        ),
        // One invocation for a row of more is slow, and too long for some drivers' loops (device/gpu/loops.rs).
        Form::direct(
            include_str!("../../shaders/log_softmax_direct.wgsl"),
            |w| w[1] <= 1 << 16,
            |w| Grid(w[0].div_ceil(32)),
        ),
    ],
    params: Params::FIELDS,
    bindings: bindings![
        logits: In F32,
        starts: In U32,
        targets: In U32,
        lse: Out F32,
        entropy: Out F32,
        logp: Out F32,
    ],
    twin,
    cost,
};

/// What [`forward`] reads and writes beside the logits, for R rows with K targets.
#[derive(Clone, Copy)]
pub struct Scored {
    /// [R + 1] delimits each row's targets.
    pub starts: Slice,
    /// [K]
    pub targets: Slice,
    /// [R]
    pub lse: Slice,
    /// [R]
    pub entropy: Slice,
    /// [K]
    pub logp: Slice,
}

/// `lse`, `entropy` and `logp` of `rows` rows, from row `first` on; `logits` [rows, V] are of those only.
pub fn forward(
    stream: &mut Stream,
    logits: Slice,
    on: Scored,
    (first, rows): (usize, impl Into<Size>),
    vocab: usize,
) {
    let rows = rows.into();
    let params = Params {
        rows: rows.max as u32,
        vocab: vocab as u32,
        first: first as u32,
    };
    let slices = [logits, on.starts, on.targets, on.lse, on.entropy, on.logp];
    stream
        .push(&LOG_SOFTMAX, &params, &slices, Grid(rows.max as u32))
        .size("rows", rows);
}

fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [rows, vocab] = [p.rows, p.vocab].map(u64::from);
    Cost {
        operations: 5 * rows * vocab,
        bytes: 4 * rows * (vocab + 3),
    }
}

/// Independent running values, so that reductions vectorise in a fixed order.
const LANES: usize = 32;

/// The largest element, but at least [`MASKED`].
pub(super) fn row_max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [MASKED; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], chunk[i]);
        }
    }
    lanes.iter().chain(rest).fold(MASKED, |a, &b| larger(a, b))
}

/// `(sum e^d, sum e^d d)`, `d = x - max`.
pub(super) fn row_sums(x: &[f32], max: f32) -> (f32, f32) {
    let mut sums = [0.0f32; LANES];
    let mut weighted = [0.0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            let d = chunk[i] - max;
            let e = exp(d);
            sums[i] += e;
            weighted[i] = e.mul_add(d, weighted[i]);
        }
    }
    for (i, &v) in rest.iter().enumerate() {
        let d = v - max;
        let e = exp(d);
        sums[i] += e;
        weighted[i] = e.mul_add(d, weighted[i]);
    }
    (sums.iter().sum(), weighted.iter().sum())
}

/// Rows per task: about 16k elements.
fn rows_per_task(vocab: usize) -> usize {
    (16_384 / vocab.max(1)).max(1)
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let (rows, vocab, first) = (p.rows as usize, p.vocab as usize, p.first as usize);
    let (logits, starts, targets) = (args.f32(0), &args.u32(1)[first..], args.u32(2));
    let lse = &mut args.f32_mut(3)[first..][..rows];
    let (entropy, logp) = (&mut args.f32_mut(4)[first..][..rows], args.f32_mut(5));
    let parts = (
        chunks(&logits[..rows * vocab], vocab),
        chunks_mut(lse, 1),
        chunks_mut(entropy, 1),
    );
    each(parts, rows_per_task(vocab), |_, (x, lse, entropy)| {
        let max = row_max(x);
        let (sum, weighted) = row_sums(x, max);
        let log = sum.ln();
        lse[0] = max + log;
        entropy[0] = log - weighted / sum;
    });
    for row in 0..rows {
        for k in starts[row] as usize..starts[row + 1] as usize {
            let token = targets[k] as usize;
            logp[k] = if token < vocab {
                logits[row * vocab + token] - lse[row]
            } else {
                0.0
            };
        }
    }
}

/// A ragged target list: `rows + 1` starts and the tokens; rows without targets, with several, with duplicates.
pub(super) fn ragged_targets(h: &mut Harness, rows: usize, vocab: usize) -> (Vec<u32>, Vec<u32>) {
    let (mut starts, mut targets) = (vec![0], Vec::new());
    for row in 0..rows {
        let count = if row == 0 { 2 } else { h.draws().below(4) };
        targets.extend((0..count).map(|_| h.draws().below(vocab) as u32));
        starts.push(targets.len() as u32);
    }
    targets[0] = u32::MAX;
    (starts, targets)
}

/// First row and number of rows of what is computed at a time.
fn halves(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let half = rows.div_ceil(2);
    [(0, half), (half, rows - half)]
        .into_iter()
        .filter(|(_, rows)| *rows > 0)
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (rows, vocab) in [
        (1, 1),
        (3, 2),
        (6, 4),
        (5, 63),
        (4, 65),
        (17, 257),
        (33, 1028),
    ] {
        let (starts, targets) = ragged_targets(h, rows, vocab);
        let count = targets.len();
        let (starts, targets) = (h.u32("starts", &starts), h.u32("targets", &targets));
        let (lse, entropy) = (h.random("lse", rows), h.random("entropy", rows));
        let logp = h.random("logp", count);
        let on = Scored {
            starts: starts.slice(),
            targets: targets.slice(),
            lse: lse.slice(),
            entropy: entropy.slice(),
            logp: logp.slice(),
        };
        for (first, rows) in halves(rows) {
            let logits = h.random_scaled("logits", rows * vocab, 3.0);
            forward(h.stream(), logits.slice(), on, (first, rows), vocab);
            h.run()?;
        }
        for buffer in [&lse, &entropy, &logp] {
            h.read_f32(buffer)?;
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

    fn row_f64(x: &[f64]) -> (f64, f64) {
        let max = x.iter().copied().fold(f64::MIN, f64::max);
        let lse = max + x.iter().map(|v| (v - max).exp()).sum::<f64>().ln();
        let entropy = x.iter().map(|v| -(v - lse).exp() * (v - lse)).sum();
        (lse, entropy)
    }

    #[test]
    fn values_match_f64() {
        devices::each(|h| {
            for (rows, vocab) in [(3, 5), (4, 31), (5, 12), (3, 67), (2, 1028)] {
                let (starts, targets) = ragged_targets(h, rows, vocab);
                let count = targets.len();
                let (b_starts, b_targets) = (h.u32("starts", &starts), h.u32("targets", &targets));
                let (lse, entropy) = (h.random("lse", rows), h.random("entropy", rows));
                let logp = h.random("logp", count);
                let on = Scored {
                    starts: b_starts.slice(),
                    targets: b_targets.slice(),
                    lse: lse.slice(),
                    entropy: entropy.slice(),
                    logp: logp.slice(),
                };
                let mut x = Vec::new();
                for (first, rows) in halves(rows) {
                    let logits = h.random_scaled("logits", rows * vocab, 3.0);
                    forward(h.stream(), logits.slice(), on, (first, rows), vocab);
                    h.run().unwrap();
                    x.extend(logits.f64());
                }

                let per_row: Vec<_> = x.chunks(vocab).map(row_f64).collect();
                let want: Vec<f64> = per_row.iter().map(|r| r.0).collect();
                h.expect(&lse, &want, 1e-6);
                let want: Vec<f64> = per_row.iter().map(|r| r.1).collect();
                h.expect(&entropy, &want, 3e-6);
                let mut want = vec![0.0; count];
                for row in 0..rows {
                    for k in starts[row] as usize..starts[row + 1] as usize {
                        if (targets[k] as usize) < vocab {
                            want[k] = x[row * vocab + targets[k] as usize] - per_row[row].0;
                        }
                    }
                }
                h.expect(&logp, &want, 1e-6);
            }
        });
    }

    #[test]
    fn large_logits_do_not_overflow() {
        devices::each(|h| {
            let logits = h.f32("logits", &[1e4, -1e4, 9_999.0]);
            let (starts, targets) = (h.u32("starts", &[0, 1]), h.u32("targets", &[2]));
            let (lse, entropy) = (h.f32("lse", &[0.0]), h.f32("entropy", &[0.0]));
            let logp = h.f32("logp", &[0.0]);
            let on = Scored {
                starts: starts.slice(),
                targets: targets.slice(),
                lse: lse.slice(),
                entropy: entropy.slice(),
                logp: logp.slice(),
            };
            forward(h.stream(), logits.slice(), on, (0, 1), 3);
            h.run().unwrap();
            let (want, entropy_want) = row_f64(&logits.f64());
            h.expect(&lse, &[want], 1e-6);
            h.expect(&entropy, &[entropy_want], 1e-6);
            h.expect(&logp, &[9_999.0 - want], 1e-3);
        });
    }
}
