//! SiLU, `y = x sigmoid(x)` (Elfwing et al., arXiv 1702.03118), between the value head's layers, and its gradient
//! `dx = dy s (1 + x (1 - s))` with `s = sigmoid(x)`.
//!
//! Floor per element: 4 operations, one of them an exponential, and 8 bytes; backward 8 and 12.

use crate::device::threads::{chunks, chunks_mut, each};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::kernels::math::sigmoid;
use crate::{bindings, params};
use anyhow::Result;

params! {
    Params { n: u32 }
}

pub static SILU: Kernel = Kernel {
    name: "silu",
    source: include_str!("../../shaders/silu.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![x: In F32, y: Out F32],
    twin: forward_twin,
    cost: forward_cost,
};

pub static SILU_BACKWARD: Kernel = Kernel {
    name: "silu_backward",
    source: include_str!("../../shaders/silu_backward.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![x: In F32, dy: In F32, d_x: Out F32],
    twin: backward_twin,
    cost: backward_cost,
};

/// `y = silu(x)`, `n` elements.
pub fn forward(s: &mut Stream, x: Slice, y: Slice, n: impl Into<Size>) {
    let n = n.into();
    let params = Params { n: n.max as u32 };
    s.push(&SILU, &params, &[x, y], Grid::cover(n.max, 256))
        .size("n", n);
}

/// `dx = dy silu'(x)`, `n` elements.
pub fn backward(s: &mut Stream, x: Slice, dy: Slice, dx: Slice, n: impl Into<Size>) {
    let n = n.into();
    let params = Params { n: n.max as u32 };
    let slices = [x, dy, dx];
    s.push(&SILU_BACKWARD, &params, &slices, Grid::cover(n.max, 256))
        .size("n", n);
}

/// `d silu(x) / dx`, given `s = sigmoid(x)`.
#[inline(always)]
pub(super) fn slope(x: f32, s: f32) -> f32 {
    s * (1.0 + x * (1.0 - s))
}

fn forward_cost(launch: &Launch) -> Cost {
    let n = launch.read_params::<Params>().n as u64;
    Cost {
        operations: 4 * n,
        bytes: 8 * n,
    }
}

fn backward_cost(launch: &Launch) -> Cost {
    let n = launch.read_params::<Params>().n as u64;
    Cost {
        operations: 8 * n,
        bytes: 12 * n,
    }
}

/// Elements per task of the twins.
const CHUNK: usize = 4 * 1024;

fn forward_twin(args: &Args) {
    let n = args.params::<Params>().n as usize;
    let parts = (
        chunks_mut(&mut args.f32_mut(1)[..n], CHUNK),
        chunks(&args.f32(0)[..n], CHUNK),
    );
    each(parts, 1, |_, (y, x)| {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * sigmoid(x);
        }
    });
}

fn backward_twin(args: &Args) {
    let n = args.params::<Params>().n as usize;
    let parts = (
        chunks_mut(&mut args.f32_mut(2)[..n], CHUNK),
        chunks(&args.f32(0)[..n], CHUNK),
        chunks(&args.f32(1)[..n], CHUNK),
    );
    each(parts, 1, |_, (dx, x, dy)| {
        for (dx, (&x, &dy)) in dx.iter_mut().zip(x.iter().zip(dy)) {
            *dx = dy * slope(x, sigmoid(x));
        }
    });
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for n in [1, 255, 256, 257, CHUNK + 13] {
        let (x, y) = (h.random_scaled("x", n, 3.0), h.random("y", n));
        let (dy, dx) = (h.random("dy", n), h.random("dx", n));
        forward(h.stream(), x.slice(), y.slice(), n);
        backward(h.stream(), x.slice(), dy.slice(), dx.slice(), n);
        h.run()?;
        h.read_u32(&y)?;
        h.read_u32(&dx)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::harness::{devices, finite_difference};

    fn silu64(x: f64) -> f64 {
        x / (1.0 + (-x).exp())
    }

    fn gradient64(x: &[f64], dy: &[f64]) -> Vec<f64> {
        x.iter()
            .zip(dy)
            .map(|(x, dy)| {
                let s = 1.0 / (1.0 + (-x).exp());
                dy * (s + x * s * (1.0 - s))
            })
            .collect()
    }

    #[test]
    fn shader_equals_twin() {
        devices::lockstep(cases);
    }

    #[test]
    fn equals_f64() {
        devices::each(|h| {
            for n in [1, 257, 1009] {
                let (x, y) = (h.random_scaled("x", n, 3.0), h.random("y", n));
                let (dy, dx) = (h.random("dy", n), h.random("dx", n));
                forward(h.stream(), x.slice(), y.slice(), n);
                backward(h.stream(), x.slice(), dy.slice(), dx.slice(), n);
                h.run().unwrap();
                let want: Vec<f64> = x.f64().into_iter().map(silu64).collect();
                h.expect(&y, &want, 1e-6);
                h.expect(&dx, &gradient64(&x.f64(), &dy.f64()), 2e-6);
            }
        });
    }

    /// Far from zero nothing overflows: silu tends to 0 on the left and to x on the right.
    #[test]
    fn saturates() {
        devices::each(|h| {
            let x = h.f32("x", &[-1e30, -200.0, 200.0, 1e30]);
            let (dy, y, dx) = (h.f32("dy", &[1.0; 4]), h.random("y", 4), h.random("dx", 4));
            forward(h.stream(), x.slice(), y.slice(), 4);
            backward(h.stream(), x.slice(), dy.slice(), dx.slice(), 4);
            h.run().unwrap();
            for (got, want) in [(&y, [0.0, 0.0, 200.0, 1e30]), (&dx, [0.0, 0.0, 1.0, 1.0])] {
                for (got, want) in h.read_f32(got).unwrap().into_iter().zip(want) {
                    assert!((got - want).abs() <= 1e-4, "{got}, not {want}");
                }
            }
        });
    }

    #[test]
    fn the_reference_gradient_is_the_slope() {
        let (x, dy) = ([-2.5, -0.3, 0.0, 0.7, 4.0], [1.0, -2.0, 0.5, 3.0, -1.0]);
        let loss = |x: &[f64]| x.iter().zip(dy).map(|(&x, dy)| dy * silu64(x)).sum();
        for (numeric, exact) in finite_difference(loss, &x).iter().zip(gradient64(&x, &dy)) {
            assert!((numeric - exact).abs() < 1e-8, "{numeric} {exact}");
        }
    }
}
