//! The global gradient norm, the clipping scale, whether the gradient is finite (spec 9), and the number of updates.
//!
//! Two stages, because the gradients lie in many tensors: [`partial`] sums the squares of each [`CHUNK`] of one tensor,
//! [`finish`] adds the partial sums of all tensors, in a fixed order, and writes
//! `out = [norm, scale, finite, t, 1 / (1 - b1^t), 1 / sqrt(1 - b2^t), S, calm]`: `scale = min(1, clip / (norm + 1e-6)) / S`
//! (1 / S if `clip` is 0), `finite` 1 or 0, `t` the updates so far and AdamW's bias corrections for it. A gradient whose
//! squares overflow f32 counts as not finite, like one that holds a NaN or an infinity; [`super::adamw`] then skips the
//! step, so it is not counted, and `scale` means nothing. The count is the device's, because the host hears of a skipped
//! step later than it records the next.
//!
//! The gradient is that of S times the loss (Micikevicius et al., "Mixed Precision Training", 2018); `norm` is that of the
//! loss itself. S moves if `growth` is not 0: it is halved by a gradient that is not finite, and doubled by so many in a
//! row that are, `calm` of which there have been; it stays within 1 and 2^24.
//!
//! Floor: 2n operations, 4n bytes.

use crate::device::threads::{chunks, chunks_mut, each};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::kernels::math;
use crate::{bindings, params};
use anyhow::Result;

/// Elements behind one partial sum.
pub const CHUNK: usize = 8192;

params! {
    PartialParams { n: u32, first: u32 }
}

params! {
    FinishParams { count: u32, clip: f32, ln_beta1: f32, ln_beta2: f32, growth: u32 }
}

pub static PARTIAL: Kernel = Kernel {
    name: "grad_norm_partial",
    source: include_str!("../../shaders/grad_norm_partial.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: PartialParams::FIELDS,
    bindings: bindings![g: In F32, partials: Out F32],
    twin: partial_twin,
    cost: partial_cost,
};

pub static FINISH: Kernel = Kernel {
    name: "grad_norm",
    source: include_str!("../../shaders/grad_norm.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: FinishParams::FIELDS,
    bindings: bindings![partials: In F32, out: Out F32],
    twin: finish_twin,
    cost: finish_cost,
};

/// Number of partial sums of a tensor of `n` elements.
pub fn partial_count(n: usize) -> usize {
    n.div_ceil(CHUNK)
}

/// Writes the sums of squares of `g` [n] to `partials[first..]`; returns how many ([`partial_count`]).
pub fn partial(stream: &mut Stream, g: Slice, partials: Slice, first: usize, n: usize) -> usize {
    let count = partial_count(n);
    assert!(
        first + count <= partials.len as usize,
        "grad_norm: {} partial sums do not fit a slice of {}",
        first + count,
        partials.len
    );
    let params = PartialParams {
        n: n as u32,
        first: first as u32,
    };
    stream.push(&PARTIAL, &params, &[g, partials], Grid(count as u32));
    count
}

/// Words of what [`finish`] writes, and where the number of updates, the loss scale and the steps it has stood are among
/// them.
pub const WORDS: usize = 8;
pub const APPLIED: usize = 3;
pub const LOSS_SCALE: usize = 6;
pub const CALM: usize = 7;

/// What [`finish`] finds there before the first update: nothing is scaled.
pub const START: [f32; WORDS] = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0];

/// The largest loss scale.
const MAX_LOSS_SCALE: f32 = 16_777_216.0;

/// `out` [[`WORDS`]] from the first `count` partial sums; `clip` is the largest norm allowed, 0 for no clipping; `betas`
/// are AdamW's; the loss scale grows after `growth` steps, 0: it stands.
pub fn finish(
    stream: &mut Stream,
    partials: Slice,
    count: usize,
    clip: f32,
    betas: [f32; 2],
    growth: u32,
    out: Slice,
) {
    let [ln_beta1, ln_beta2] = betas.map(|beta| (beta as f64).ln() as f32);
    let params = FinishParams {
        count: count as u32,
        clip,
        ln_beta1,
        ln_beta2,
        growth,
    };
    stream.push(&FINISH, &params, &[partials, out], Grid(1));
}

fn partial_cost(launch: &Launch) -> Cost {
    let n = launch.read_params::<PartialParams>().n as usize;
    Cost {
        operations: 2 * n as u64,
        bytes: 4 * (n + partial_count(n)) as u64,
    }
}

fn finish_cost(launch: &Launch) -> Cost {
    let count = launch.read_params::<FinishParams>().count as u64;
    Cost {
        operations: count,
        bytes: 4 * (count + 1 + WORDS as u64),
    }
}

fn partial_twin(args: &Args) {
    let p: PartialParams = args.params();
    let first = p.first as usize;
    let parts = (
        chunks(&args.f32(0)[..p.n as usize], CHUNK),
        chunks_mut(&mut args.f32_mut(1)[first..], 1),
    );
    each(parts, 4, |_, (g, sum)| sum[0] = math::dot(g, g));
}

fn finish_twin(args: &Args) {
    let p: FinishParams = args.params();
    let square = math::sum(args.f32(0)[..p.count as usize].iter().copied());
    let out = args.f32_mut(1);
    let (mut loss_scale, mut calm) = (out[LOSS_SCALE], out[CALM]);
    let norm = square.sqrt() / loss_scale;
    let finite = square.is_finite();
    let mut scale = 1.0 / loss_scale;
    if p.clip > 0.0 && finite {
        scale *= (p.clip / (norm + 1e-6)).min(1.0);
    }
    if p.growth > 0 {
        calm = if finite { calm + 1.0 } else { 0.0 };
        if !finite {
            loss_scale = (loss_scale / 2.0).max(1.0);
        } else if calm >= p.growth as f32 {
            loss_scale = (loss_scale * 2.0).min(MAX_LOSS_SCALE);
            calm = 0.0;
        }
    }
    let finite = finite as u32 as f32;
    let t = out[APPLIED] + finite;
    let kept = [p.ln_beta1, p.ln_beta2].map(|ln_beta| -(t.max(1.0) * ln_beta).exp_m1());
    let corrections = [1.0 / kept[0], 1.0 / kept[1].sqrt()];
    let [first, second] = corrections;
    let all = [norm, scale, finite, t, first, second, loss_scale, calm];
    out[..WORDS].copy_from_slice(&all);
}

const BETAS: [f32; 2] = [0.9, 0.999];

pub fn cases(h: &mut Harness) -> Result<()> {
    for (sizes, clip, growth) in [
        (vec![1], 0.0, 0),
        (vec![CHUNK - 1, 7], 1.0, 5),
        (vec![CHUNK + 1, 3 * CHUNK, 1009], 1e9, 6),
    ] {
        let total = sizes.iter().map(|&n| partial_count(n)).sum();
        let partials = h.random("partials", total);
        let out = h.f32(
            "out",
            &[
                0.5,
                0.5,
                0.5,
                f32::min(10.0 * clip, 9.0),
                0.5,
                0.5,
                512.0,
                4.0,
            ],
        );
        let mut first = 0;
        for &n in &sizes {
            let g = h.random("g", n);
            first += partial(h.stream(), g.slice(), partials.slice(), first, n);
            h.run()?;
        }
        let (partials_slice, out_slice) = (partials.slice(), out.slice());
        let s = h.stream();
        finish(s, partials_slice, first, clip, BETAS, growth, out_slice);
        h.run()?;
        h.read_f32(&partials)?;
        h.read_f32(&out)?;
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

    #[test]
    fn norm_and_scale_match_f64() {
        devices::each(|h| {
            for clip in [0.0, 0.5, 1e6] {
                let (a, b) = (h.random("a", 9_001), h.random("b", 5));
                let partials = h.random("partials", 8);
                let out = h.f32("out", &[7.0, 7.0, 7.0, 2.0, 7.0, 7.0, 8.0, 0.0]);
                let s = h.stream();
                let first = partial(s, a.slice(), partials.slice(), 0, 9_001);
                let count = first + partial(s, b.slice(), partials.slice(), first, 5);
                finish(s, partials.slice(), count, clip, BETAS, 0, out.slice());
                h.run().unwrap();
                assert_eq!(count, 3);
                let square: f64 = a.f64().iter().chain(&b.f64()).map(|v| v * v).sum();
                let norm = square.sqrt() / 8.0;
                let scale = match clip {
                    0.0 => 1.0,
                    clip => (clip as f64 / (norm + 1e-6)).min(1.0),
                } / 8.0;
                let [b1, b2] = BETAS.map(|beta| 1.0 - (beta as f64).powi(3));
                let corrections = [1.0 / b1, 1.0 / b2.sqrt()];
                let [first, second] = corrections;
                let want = [norm, scale, 1.0, 3.0, first, second, 8.0, 0.0];
                h.expect(&out, &want, 1e-6);
            }
        });
    }

    #[test]
    fn one_bad_element_clears_the_flag() {
        devices::each(|h| {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
                let mut values = vec![0.5; 500];
                values[321] = bad;
                let (g, partials) = (h.f32("g", &values), h.f32("partials", &[0.0]));
                let out = h.f32("out", &[7.0, 7.0, 7.0, 5.0, 7.0, 7.0, 1.0, 0.0]);
                partial(h.stream(), g.slice(), partials.slice(), 0, 500);
                finish(h.stream(), partials.slice(), 1, 1.0, BETAS, 0, out.slice());
                h.run().unwrap();
                assert_eq!(h.read_f32(&out).unwrap()[1..4], [1.0, 0.0, 5.0], "{bad}");
            }
        });
    }

    #[test]
    fn the_loss_scale_falls_at_once_and_rises_slowly() {
        devices::each(|h| {
            let (inf, top) = (f32::INFINITY, MAX_LOSS_SCALE);
            for (square, growth, before, after) in [
                (4.0, 3, [64.0, 1.0], [64.0, 2.0]),
                (4.0, 3, [64.0, 2.0], [128.0, 0.0]),
                (4.0, 3, [top, 2.0], [top, 0.0]),
                (inf, 3, [64.0, 2.0], [32.0, 0.0]),
                (inf, 3, [1.0, 2.0], [1.0, 0.0]),
                (4.0, 0, [64.0, 2.0], [64.0, 2.0]),
                (inf, 0, [64.0, 2.0], [64.0, 2.0]),
            ] {
                let partials = h.f32("partials", &[square]);
                let mut words = [7.0; WORDS];
                words[LOSS_SCALE..].copy_from_slice(&before);
                let out = h.f32("out", &words);
                let s = h.stream();
                finish(s, partials.slice(), 1, 0.0, BETAS, growth, out.slice());
                h.run().unwrap();
                let got = h.read_f32(&out).unwrap();
                assert_eq!(got[LOSS_SCALE..], after, "{square} {growth} {before:?}");
                if square == 4.0 {
                    assert_eq!(got[..2], [2.0 / before[0], 1.0 / before[0]]);
                }
            }
        });
    }
}
