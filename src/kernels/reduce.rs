//! The sums behind a step's metrics: `out[0] = sum_i x_i w_i` ([`dot`]: per-token losses and entropies) and
//! `out[c] = sum_r x[r, c]` ([`columns`]: the terms of the objective).
//!
//! Floor: 2 operations and 8 bytes, or 1 and 4, per element. One workgroup per sum in a fixed order and no scratch: the
//! sums of a step have a few thousand terms ([`super::grad_norm`] has the two-stage form for millions).

use crate::device::{Args, Cost, Grid, Kernel, Launch, Size, Slice, Stream};
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
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![x: In F32, w: In F32, out: Out F32],
    twin,
    cost: dot_cost,
};

params! {
    ColumnParams { rows: u32, columns: u32 }
}

pub static COLUMNS: Kernel = Kernel {
    name: "reduce_columns",
    source: include_str!("../../shaders/reduce_columns.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: ColumnParams::FIELDS,
    bindings: bindings![x: In F32, out: Out F32],
    twin: columns_twin,
    cost: columns_cost,
};

/// Writes the dot product of the first `n` elements of `x` and `w` to `out[0]`.
pub fn dot(stream: &mut Stream, x: Slice, w: Slice, out: Slice, n: impl Into<Size>) {
    let n = n.into();
    let params = Params { n: n.max as u32 };
    stream
        .push(&DOT, &params, &[x, w, out], Grid(1))
        .size("n", n);
}

/// Writes the sum of each column of `x` [rows, columns] to `out` [columns].
pub fn columns(stream: &mut Stream, x: Slice, out: Slice, rows: impl Into<Size>, columns: usize) {
    let rows = rows.into();
    let params = ColumnParams {
        rows: rows.max as u32,
        columns: columns as u32,
    };
    stream
        .push(&COLUMNS, &params, &[x, out], Grid(columns as u32))
        .size("rows", rows);
}

fn dot_cost(launch: &Launch) -> Cost {
    let n = launch.read_params::<Params>().n as u64;
    Cost {
        operations: 2 * n,
        bytes: 8 * n + 4,
    }
}

fn columns_cost(launch: &Launch) -> Cost {
    let p: ColumnParams = launch.read_params();
    let [rows, columns] = [p.rows, p.columns].map(u64::from);
    Cost {
        operations: rows * columns,
        bytes: 4 * (rows + 1) * columns,
    }
}

fn columns_twin(args: &Args) {
    let p: ColumnParams = args.params();
    let (rows, columns) = (p.rows as usize, p.columns as usize);
    let out = &mut args.f32_mut(1)[..columns];
    out.fill(0.0);
    for row in args.f32(0)[..rows * columns].chunks_exact(columns) {
        math::axpy(out, 1.0, row);
    }
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let n = p.n as usize;
    args.f32_mut(2)[0] = math::dot(&args.f32(0)[..n], &args.f32(1)[..n]);
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for n in [1, 255, 256, 257, 10_007] {
        let (x, out) = (h.random("x", n), h.random("out", 1));
        // Weights of the terms' signs: the sum must not vanish beside them, or the comparison would be of noise.
        let signs: Vec<f32> = x.f64().iter().map(|v| v.signum() as f32).collect();
        let w = h.f32("w", &signs);
        dot(h.stream(), x.slice(), w.slice(), out.slice(), n);
        h.run()?;
        h.read_f32(&out)?;
    }
    for (rows, width) in [(1, 1), (65, 8), (1_009, 3)] {
        let (x, out) = (h.random("x", rows * width), h.random("out", width));
        let squares: Vec<f32> = x.f64().iter().map(|v| (v * v) as f32).collect();
        let x = h.f32("x", &squares);
        columns(h.stream(), x.slice(), out.slice(), rows, width);
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

    #[test]
    fn columns_match_f64() {
        devices::each(|h| {
            let (x, out) = (h.random("x", 131 * 7), h.random("out", 7));
            columns(h.stream(), x.slice(), out.slice(), 131, 7);
            h.run().unwrap();
            let mut want = vec![0.0; 7];
            for (i, v) in x.f64().iter().enumerate() {
                want[i % 7] += v;
            }
            h.expect(&out, &want, 1e-6);
        });
    }
}
