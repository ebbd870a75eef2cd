//! `out[0] = sum_i x_i w_i`: weighted sums of per-token losses and entropies, for the metrics of a step.
//!
//! Floor: 2n operations, 8n bytes. One workgroup in a fixed order and no scratch: the sums of a step have a few
//! thousand terms ([`super::grad_norm`] has the two-stage form for millions).

use crate::device::{Args, Grid, Kernel, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::kernels::math;
use crate::{bindings, params};
use anyhow::Result;

params! {
    Params { n: u32 }
}

pub static DOT: Kernel = Kernel {
    name: "reduce_dot",
    source: include_str!("../../shaders/reduce.wgsl"),
    entry: "main",
    constants: &[],
    params: Params::FIELDS,
    bindings: bindings![x: In F32, w: In F32, out: Out F32],
    twin,
};

/// Writes the dot product of the first `n` elements of `x` and `w` to `out[0]`.
pub fn dot(stream: &mut Stream, x: Slice, w: Slice, out: Slice, n: usize) {
    stream.push(&DOT, &Params { n: n as u32 }, &[x, w, out], Grid(1));
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let n = p.n as usize;
    args.f32_mut(2)[0] = math::dot(&args.f32(0)[..n], &args.f32(1)[..n]);
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for n in [1, 255, 256, 257, 10_007] {
        let (x, out) = (h.random("x", n), h.random("out", 1));
        // Positive weights near 1/n: the sum must not vanish beside its terms, or the comparison would be of noise.
        let positive: Vec<f32> = x.f64().iter().map(|v| v.signum() as f32).collect();
        let w = h.f32("w", &positive);
        dot(h.stream(), x.slice(), w.slice(), out.slice(), n);
        h.run()?;
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
    fn matches_f64() {
        devices::each(|h| {
            for n in [1, 300, 4_001] {
                let (x, w, out) = (h.random("x", n), h.random("w", n), h.random("out", 3));
                let mut want: Vec<f64> = out.f64();
                want[0] = x.f64().iter().zip(w.f64()).map(|(a, b)| a * b).sum();
                dot(h.stream(), x.slice(), w.slice(), out.slice(), n);
                h.run().unwrap();
                h.expect(&out, &want, 1e-5);
            }
        });
    }
}
