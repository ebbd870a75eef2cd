//! Consecutive columns of one matrix copied to consecutive columns of another: between the logits of a part of the
//! vocabulary and those of all of it, where no binding holds the output projection.
//!
//! Floor: 0 operations; 8 bytes per element.

use crate::device::threads::{chunks, chunks_mut, each};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::{Harness, TestBuffer};
use crate::{bindings, params};
use anyhow::Result;

params! {
    /// `stride`: columns of the matrix; `first`: the first of those copied.
    Params { rows: u32, width: u32, x_stride: u32, x_first: u32, y_stride: u32, y_first: u32 }
}

pub static COLUMNS: Kernel = Kernel {
    name: "columns",
    source: include_str!("../../shaders/columns.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![x: In U32, y: Out U32],
    twin,
    cost,
};

/// Columns of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct Columns {
    /// [rows, stride]
    pub matrix: Slice,
    pub stride: usize,
    pub first: usize,
}

impl Columns {
    /// All `width` columns of a matrix.
    pub fn all(matrix: Slice, width: usize) -> Columns {
        Columns {
            matrix,
            stride: width,
            first: 0,
        }
    }
}

/// Copies `width` columns of x to y, in `rows` rows.
pub fn copy_columns(s: &mut Stream, x: Columns, y: Columns, rows: Size, width: usize) {
    for side in [&x, &y] {
        assert!(side.first + width <= side.stride);
    }
    let params = Params {
        rows: rows.max as u32,
        width: width as u32,
        x_stride: x.stride as u32,
        x_first: x.first as u32,
        y_stride: y.stride as u32,
        y_first: y.first as u32,
    };
    let grid = Grid::cover(rows.max * width, 256);
    s.push(&COLUMNS, &params, &[x.matrix, y.matrix], grid)
        .size("rows", rows);
}

fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    Cost {
        operations: 0,
        bytes: 8 * p.rows as u64 * p.width as u64,
    }
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let [rows, width] = [p.rows, p.width].map(|n| n as usize);
    let [from, to] = [p.x_first, p.y_first].map(|at| at as usize..at as usize + width);
    let [x_stride, y_stride] = [p.x_stride, p.y_stride].map(|n| n as usize);
    let parts = (
        chunks(&args.u32(0)[..rows * x_stride], x_stride),
        chunks_mut(&mut args.u32_mut(1)[..rows * y_stride], y_stride),
    );
    each(parts, 65_536usize.div_ceil(width), |_, (x, y)| {
        y[to.clone()].copy_from_slice(&x[from.clone()]);
    });
}

/// (rows, width, stride and first of x, those of y).
const SHAPES: [(usize, usize, [usize; 2], [usize; 2]); 5] = [
    (1, 1, [1, 0], [1, 0]),
    (3, 5, [5, 0], [17, 12]),
    (7, 64, [131, 64], [64, 0]),
    (66, 3, [67, 64], [3, 0]),
    (5, 300, [300, 0], [900, 300]),
];

/// Matrices of a shape, as the columns of a copy.
fn matrices(
    h: &mut Harness,
    (rows, _, x, y): (usize, usize, [usize; 2], [usize; 2]),
) -> [(TestBuffer, [usize; 2]); 2] {
    [("x", x), ("y", y)].map(|(name, side)| (h.random(name, rows * side[0]), side))
}

fn columns((buffer, [stride, first]): &(TestBuffer, [usize; 2])) -> Columns {
    Columns {
        matrix: buffer.slice(),
        stride: *stride,
        first: *first,
    }
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for shape in SHAPES {
        let (rows, width, ..) = shape;
        let [x, y] = matrices(h, shape);
        let (from, to) = (columns(&x), columns(&y));
        copy_columns(h.stream(), from, to, rows.into(), width);
        h.run()?;
        h.read_u32(&y.0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Word;
    use crate::kernels::harness::devices;

    #[test]
    fn shader_equals_twin() {
        devices::lockstep(cases);
    }

    #[test]
    fn copies_these_columns_of_the_rows_there_are() {
        devices::each(|h| {
            for shape in SHAPES {
                let (rows, width, x_side, y_side) = shape;
                let [x, y] = matrices(h, shape);
                let count = h.u32("count", &[rows as u32 - 1]);
                let held = Size::held(Word::at(count.slice(), 0), rows);
                let (from, to) = (columns(&x), columns(&y));
                copy_columns(h.stream(), from, to, held, width);
                h.run().unwrap();
                let (x, mut want) = (x.0.f64(), y.0.f64());
                for row in 0..rows - 1 {
                    for j in 0..width {
                        want[row * y_side[0] + y_side[1] + j] = x[row * x_side[0] + x_side[1] + j];
                    }
                }
                h.expect(&y.0, &want, 0.0);
            }
        });
    }
}
