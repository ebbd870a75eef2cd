//! Column sums, the gradient of a bias: `out[j] (+)= sum over i of x[i, j]`, `x` `[rows, columns]`.
//!
//! Floor: 1 operation and 4 bytes per element of x.

use crate::device::threads::{chunks_mut, each};
use crate::device::{Args, Cost, Form, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::kernels::math::axpy;
use crate::{bindings, params};
use anyhow::Result;

params! {
    Params { rows: u32, columns: u32, accumulate: u32 }
}

pub static COLUMN_SUM: Kernel = Kernel {
    name: "column_sum",
    source: include_str!("../../shaders/column_sum.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[Form::wide(
        include_str!("../../shaders/column_sum_wide.wgsl"),
        |w| w[1].is_multiple_of(4),
        |w| Grid(w[1].div_ceil(16)),
    )],
    params: Params::FIELDS,
    bindings: bindings![x: In Real, out: Out F32],
    twin,
    cost,
};

/// `out[columns] = column sums of x[rows, columns]`, added to what `out` holds if `accumulate`.
pub fn column_sum(
    s: &mut Stream,
    x: Slice,
    out: Slice,
    rows: impl Into<Size>,
    columns: usize,
    accumulate: bool,
) {
    let rows = rows.into();
    let params = Params {
        rows: rows.max as u32,
        columns: columns as u32,
        accumulate: accumulate as u32,
    };
    s.push(&COLUMN_SUM, &params, &[x, out], Grid::cover(columns, 32))
        .size("rows", rows);
}

/// Columns per task of the twin.
const CHUNK: usize = 128;

fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [rows, columns, accumulate] = [p.rows, p.columns, p.accumulate].map(u64::from);
    Cost {
        operations: rows * columns,
        bytes: columns * (launch.width(0) * rows + 4 * (1 + accumulate)),
    }
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let (rows, columns) = (p.rows as usize, p.columns as usize);
    let x = &args.f32(0)[..rows * columns];
    let out = &mut args.f32_mut(1)[..columns];
    each(chunks_mut(out, CHUNK), 1, |chunk, out| {
        let mut sums = [0.0; CHUNK];
        let sums = &mut sums[..out.len()];
        for row in x.chunks_exact(columns) {
            axpy(sums, 1.0, &row[chunk * CHUNK..][..out.len()]);
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = if p.accumulate != 0 { *out + *sum } else { *sum };
        }
    });
}

const SHAPES: [(usize, usize); 8] = [
    (1, 1),
    (7, 1),
    (1, 31),
    (8, 32),
    (9, 33),
    (257, 131),
    (63, 700),
    (130, 36),
];

pub fn cases(h: &mut Harness) -> Result<()> {
    for (rows, columns) in SHAPES {
        for accumulate in [false, true] {
            let (x, out) = (h.real("x", rows * columns), h.random("out", columns));
            column_sum(
                h.stream(),
                x.slice(),
                out.slice(),
                rows,
                columns,
                accumulate,
            );
            h.run()?;
            h.read_u32(&out)?;
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

    #[test]
    fn equals_f64() {
        devices::each(|h| {
            for (rows, columns) in SHAPES {
                for accumulate in [false, true] {
                    let (x, out) = (h.real("x", rows * columns), h.random("out", columns));
                    column_sum(
                        h.stream(),
                        x.slice(),
                        out.slice(),
                        rows,
                        columns,
                        accumulate,
                    );
                    h.run().unwrap();
                    let mut want = out.f64();
                    if !accumulate {
                        want.fill(0.0);
                    }
                    for row in x.f64().chunks(columns) {
                        want.iter_mut().zip(row).for_each(|(w, x)| *w += x);
                    }
                    h.expect(&out, &want, 2e-6);
                }
            }
        });
    }
}
