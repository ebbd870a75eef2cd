//! The global gradient norm, the clipping scale and whether the gradient is finite (spec 9).
//!
//! Two stages, because the gradients lie in many tensors: [`partial`] sums the squares of each [`CHUNK`] of one tensor,
//! [`finish`] adds the partial sums of all tensors, in a fixed order, and writes
//! `out = [norm, scale, finite, 0]`: `scale = min(1, clip / (norm + 1e-6))` (1 if `clip` is 0), `finite` 1 or 0. A
//! gradient whose squares overflow f32 counts as not finite, like one that holds a NaN or an infinity; the caller then
//! skips the step ([`super::adamw`] does), so `scale` is 1 and means nothing.
//!
//! Floor: 2n operations, 4n bytes.

use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::kernels::math;
use crate::{bindings, params};
use anyhow::Result;
use rayon::prelude::*;

/// Elements behind one partial sum.
pub const CHUNK: usize = 8192;

params! {
    PartialParams { n: u32, first: u32 }
}

params! {
    FinishParams { count: u32, clip: f32 }
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

/// `out` [4] from the first `count` partial sums; `clip` is the largest norm allowed, 0 for no clipping.
pub fn finish(stream: &mut Stream, partials: Slice, count: usize, clip: f32, out: Slice) {
    let params = FinishParams {
        count: count as u32,
        clip,
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
        bytes: 4 * (count + 4),
    }
}

fn partial_twin(args: &Args) {
    let p: PartialParams = args.params();
    let first = p.first as usize;
    args.f32(0)[..p.n as usize]
        .par_chunks(CHUNK)
        .zip(&mut args.f32_mut(1)[first..])
        .with_min_len(4)
        .for_each(|(g, sum)| *sum = math::dot(g, g));
}

fn finish_twin(args: &Args) {
    let p: FinishParams = args.params();
    let square = math::sum(args.f32(0)[..p.count as usize].iter().copied());
    let norm = square.sqrt();
    let finite = square.is_finite();
    let scale = if p.clip > 0.0 && finite {
        (p.clip / (norm + 1e-6)).min(1.0)
    } else {
        1.0
    };
    let finite = finite as u32 as f32;
    args.f32_mut(1)[..4].copy_from_slice(&[norm, scale, finite, 0.0]);
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (sizes, clip) in [
        (vec![1], 0.0),
        (vec![CHUNK - 1, 7], 1.0),
        (vec![CHUNK + 1, 3 * CHUNK, 1009], 1e9),
    ] {
        let total = sizes.iter().map(|&n| partial_count(n)).sum();
        let (partials, out) = (h.random("partials", total), h.random("out", 4));
        let mut first = 0;
        for &n in &sizes {
            let g = h.random("g", n);
            first += partial(h.stream(), g.slice(), partials.slice(), first, n);
            h.run()?;
        }
        finish(h.stream(), partials.slice(), first, clip, out.slice());
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
                let (partials, out) = (h.random("partials", 8), h.random("out", 4));
                let s = h.stream();
                let first = partial(s, a.slice(), partials.slice(), 0, 9_001);
                let count = first + partial(s, b.slice(), partials.slice(), first, 5);
                finish(s, partials.slice(), count, clip, out.slice());
                h.run().unwrap();
                assert_eq!(count, 3);
                let square: f64 = a.f64().iter().chain(&b.f64()).map(|v| v * v).sum();
                let norm = square.sqrt();
                let scale = match clip {
                    0.0 => 1.0,
                    clip => (clip as f64 / (norm + 1e-6)).min(1.0),
                };
                h.expect(&out, &[norm, scale, 1.0, 0.0], 1e-6);
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
                let out = h.random("out", 4);
                partial(h.stream(), g.slice(), partials.slice(), 0, 500);
                finish(h.stream(), partials.slice(), 1, 1.0, out.slice());
                h.run().unwrap();
                assert_eq!(h.read_f32(&out).unwrap()[1..], [1.0, 0.0, 0.0], "{bad}");
            }
        });
    }
}
