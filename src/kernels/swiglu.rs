//! SwiGLU (Shazeer, arXiv 2002.05202): `out = silu(gate) * up` with gate and up side by side in one product's output
//! `gate_up` `[rows, 2 f]` (gate first). Gradients: `d_gate = d_out up silu'(gate)`, `d_up = d_out silu(gate)`.
//!
//! Floor per output element: 5 operations, one of them an exponential, and 12 bytes; backward 11 and 20.

use super::silu::slope;
use crate::device::threads::{chunks, chunks_mut, each};
use crate::device::{Args, Cost, Form, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::kernels::math::sigmoid;
use crate::{bindings, params};
use anyhow::Result;

params! {
    Params { rows: u32, f: u32 }
}

pub static SWIGLU: Kernel = Kernel {
    name: "swiglu",
    source: include_str!("../../shaders/swiglu.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[Form::vec4(
        include_str!("../../shaders/swiglu_vec4.wgsl"),
        |w| w[1].is_multiple_of(4),
        |w| Grid((w[0] * w[1] / 4).div_ceil(256)),
    )],
    params: Params::FIELDS,
    bindings: bindings![gate_up: In Real, out: Out Real],
    twin: forward_twin,
    cost: forward_cost,
};

pub static SWIGLU_BACKWARD: Kernel = Kernel {
    name: "swiglu_backward",
    source: include_str!("../../shaders/swiglu_backward.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[Form::vec4(
        include_str!("../../shaders/swiglu_backward_vec4.wgsl"),
        |w| w[1].is_multiple_of(4),
        |w| Grid((w[0] * w[1] / 4).div_ceil(256)),
    )],
    params: Params::FIELDS,
    bindings: bindings![gate_up: In Real, d_out: In Real, d_gate_up: Out Real],
    twin: backward_twin,
    cost: backward_cost,
};

fn params(rows: Size, f: usize) -> Params {
    Params {
        rows: rows.max as u32,
        f: f as u32,
    }
}

/// `out[rows, f] = silu(gate) * up` from `gate_up` `[rows, 2 f]`.
pub fn forward(s: &mut Stream, gate_up: Slice, out: Slice, rows: impl Into<Size>, f: usize) {
    let rows = rows.into();
    let grid = Grid::cover(rows.max * f, 256);
    s.push(&SWIGLU, &params(rows, f), &[gate_up, out], grid)
        .size("rows", rows);
}

/// Writes `d_gate_up` `[rows, 2 f]` from `gate_up` and `d_out` `[rows, f]`.
pub fn backward(
    s: &mut Stream,
    gate_up: Slice,
    d_out: Slice,
    d_gate_up: Slice,
    rows: impl Into<Size>,
    f: usize,
) {
    let rows = rows.into();
    let slices = [gate_up, d_out, d_gate_up];
    let grid = Grid::cover(rows.max * f, 256);
    s.push(&SWIGLU_BACKWARD, &params(rows, f), &slices, grid)
        .size("rows", rows);
}

fn forward_cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let n = p.rows as u64 * p.f as u64;
    Cost {
        operations: 5 * n,
        bytes: (2 * launch.width(0) + launch.width(1)) * n,
    }
}

fn backward_cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let n = p.rows as u64 * p.f as u64;
    Cost {
        operations: 11 * n,
        bytes: (2 * launch.width(0) + launch.width(1) + 2 * launch.width(2)) * n,
    }
}

/// Rows per task of the twins.
fn rows_per_task(f: usize) -> usize {
    (4 * 1024usize).div_ceil(f)
}

fn forward_twin(args: &Args) {
    let p: Params = args.params();
    let (rows, f) = (p.rows as usize, p.f as usize);
    let parts = (
        chunks_mut(&mut args.f32_mut(1)[..rows * f], f),
        chunks(&args.f32(0)[..rows * 2 * f], 2 * f),
    );
    each(parts, rows_per_task(f), |_, (out, gate_up)| {
        let (gate, up) = gate_up.split_at(f);
        for (out, (&x, &up)) in out.iter_mut().zip(gate.iter().zip(up)) {
            *out = x * sigmoid(x) * up;
        }
    });
}

fn backward_twin(args: &Args) {
    let p: Params = args.params();
    let (rows, f) = (p.rows as usize, p.f as usize);
    let parts = (
        chunks_mut(&mut args.f32_mut(2)[..rows * 2 * f], 2 * f),
        chunks(args.f32(0), 2 * f),
        chunks(args.f32(1), f),
    );
    each(parts, rows_per_task(f), |_, (d_gate_up, gate_up, d_out)| {
        let (gate, up) = gate_up.split_at(f);
        let (d_gate, d_up) = d_gate_up.split_at_mut(f);
        let inputs = gate.iter().zip(up).zip(d_out);
        let outputs = d_gate.iter_mut().zip(d_up);
        for ((d_gate, d_up), ((&x, &up), &d_out)) in outputs.zip(inputs) {
            let s = sigmoid(x);
            *d_gate = d_out * up * slope(x, s);
            *d_up = d_out * x * s;
        }
    });
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (rows, f) in [(1, 1), (3, 7), (5, 256), (2, 257), (131, 67), (33, 68)] {
        let (gate_up, out) = (h.real("gate_up", rows * 2 * f), h.real("out", rows * f));
        let d_out = h.real("d_out", rows * f);
        let d_gate_up = h.real("d_gate_up", rows * 2 * f);
        forward(h.stream(), gate_up.slice(), out.slice(), rows, f);
        backward(
            h.stream(),
            gate_up.slice(),
            d_out.slice(),
            d_gate_up.slice(),
            rows,
            f,
        );
        h.run()?;
        h.read_u32(&out)?;
        h.read_u32(&d_gate_up)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::harness::{devices, finite_difference};

    fn forward64(gate_up: &[f64], f: usize) -> Vec<f64> {
        let silu = |x: f64| x / (1.0 + (-x).exp());
        gate_up
            .chunks(2 * f)
            .flat_map(|row| (0..f).map(move |i| silu(row[i]) * row[f + i]))
            .collect()
    }

    fn backward64(gate_up: &[f64], d_out: &[f64], f: usize) -> Vec<f64> {
        let mut grad = vec![0.0; gate_up.len()];
        for (row, d_out) in d_out.chunks(f).enumerate() {
            for (i, d) in d_out.iter().enumerate() {
                let gate = row * 2 * f + i;
                let (x, up) = (gate_up[gate], gate_up[gate + f]);
                let s = 1.0 / (1.0 + (-x).exp());
                grad[gate] = d * up * (s + x * s * (1.0 - s));
                grad[gate + f] = d * x * s;
            }
        }
        grad
    }

    #[test]
    fn shader_equals_twin() {
        devices::lockstep(cases);
    }

    #[test]
    fn equals_f64() {
        devices::each(|h| {
            for (rows, f) in [(1, 1), (3, 7), (29, 67), (29, 12)] {
                let (gate_up, out) = (h.real("gate_up", rows * 2 * f), h.real("out", rows * f));
                let d_out = h.real("d_out", rows * f);
                let d_gate_up = h.real("d_gate_up", rows * 2 * f);
                forward(h.stream(), gate_up.slice(), out.slice(), rows, f);
                backward(
                    h.stream(),
                    gate_up.slice(),
                    d_out.slice(),
                    d_gate_up.slice(),
                    rows,
                    f,
                );
                h.run().unwrap();
                h.expect(&out, &forward64(&gate_up.f64(), f), 1e-6);
                h.expect(
                    &d_gate_up,
                    &backward64(&gate_up.f64(), &d_out.f64(), f),
                    2e-6,
                );
            }
        });
    }

    #[test]
    fn the_reference_gradient_is_the_slope() {
        let x: Vec<f64> = (0..12).map(|i| (i as f64 * 1.7).sin() * 2.0).collect();
        let d_out: Vec<f64> = (0..6).map(|i| (i as f64 * 0.9).cos()).collect();
        let loss = |x: &[f64]| forward64(x, 3).iter().zip(&d_out).map(|(y, d)| y * d).sum();
        for (numeric, exact) in finite_difference(loss, &x)
            .iter()
            .zip(backward64(&x, &d_out, 3))
        {
            assert!((numeric - exact).abs() < 1e-8, "{numeric} {exact}");
        }
    }
}
