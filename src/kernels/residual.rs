//! What a table's entries leave of rows: `y[row, :] = x[row, :] - table[index[row], :]`, `square[row] = |y[row, :]|^2`.
//!
//! Of residual quantisation, the next level's points and the squared error; of an autoencoder, the gradient of half the
//! squared error of a reconstruction.
//!
//! Floor: 3 operations and 8 bytes per element, and what is read of the table.

use crate::device::threads::{chunks, chunks_mut, each};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::kernels::harness::{Harness, TestBuffer};
use crate::kernels::math::dot;
use crate::{bindings, params};
use anyhow::Result;

params! {
    Params { rows: u32, width: u32 }
}

pub static RESIDUAL: Kernel = Kernel {
    name: "residual",
    source: include_str!("../../shaders/residual.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![x: In F32, table: In F32, index: In U32, y: Out F32, square: Out F32],
    twin,
    cost,
};

/// A table of rows, and the row of it that belongs to each row of something else.
#[derive(Clone, Copy, Debug)]
pub struct Lookup {
    /// [entries, width].
    pub table: Slice,
    /// [rows].
    pub index: Slice,
}

/// `y` [rows, width] and `square` [rows] from `x` [rows, width].
pub fn residual(
    s: &mut Stream,
    x: Slice,
    of: Lookup,
    y: Slice,
    square: Slice,
    rows: usize,
    width: usize,
) {
    let params = Params {
        rows: rows as u32,
        width: width as u32,
    };
    let slices = [x, of.table, of.index, y, square];
    s.push(&RESIDUAL, &params, &slices, Grid(rows as u32));
}

fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [rows, width] = [p.rows, p.width].map(u64::from);
    let read = (rows * width).min(launch.slices()[1].len as u64);
    Cost {
        operations: 3 * rows * width,
        bytes: 4 * (2 * rows * width + read + 2 * rows),
    }
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let (rows, width) = (p.rows as usize, p.width as usize);
    let table = args.f32(1);
    let parts = (
        chunks(&args.f32(0)[..rows * width], width),
        chunks(&args.u32(2)[..rows], 1),
        chunks_mut(&mut args.f32_mut(3)[..rows * width], width),
        chunks_mut(&mut args.f32_mut(4)[..rows], 1),
    );
    let per_task = (16 * 1024usize).div_ceil(width);
    each(parts, per_task, |_, (x, index, y, square)| {
        let entry = &table[index[0] as usize * width..][..width];
        for ((y, x), entry) in y.iter_mut().zip(x).zip(entry) {
            *y = x - entry;
        }
        square[0] = dot(y, y);
    });
}

/// (rows, entries, width).
const SHAPES: [(usize, usize, usize); 6] = [
    (1, 1, 1),
    (7, 3, 63),
    (65, 130, 64),
    (33, 5, 129),
    (5, 2, 300),
    (66_000, 3, 2),
];

/// Runs one shape on random data: y and square, x, table and index.
fn case(
    h: &mut Harness,
    (rows, entries, width): (usize, usize, usize),
) -> Result<([TestBuffer; 2], [TestBuffer; 3])> {
    let index: Vec<u32> = (0..rows).map(|_| h.draws().below(entries) as u32).collect();
    let (x, table) = (
        h.random("x", rows * width),
        h.random("table", entries * width),
    );
    let (y, square) = (h.random("y", rows * width), h.random("square", rows));
    let index = h.u32("index", &index);
    let of = Lookup {
        table: table.slice(),
        index: index.slice(),
    };
    let (from, to, squares) = (x.slice(), y.slice(), square.slice());
    residual(h.stream(), from, of, to, squares, rows, width);
    h.run()?;
    Ok(([y, square], [x, table, index]))
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for shape in SHAPES {
        let (written, _) = case(h, shape)?;
        for buffer in &written {
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

    #[test]
    fn equals_f64() {
        devices::each(|h| {
            for shape @ (rows, _, width) in SHAPES {
                let (written, [x, table, index]) = case(h, shape).unwrap();
                let (x, table) = (x.f64(), table.f64());
                let (mut y, mut square) = (vec![0.0; rows * width], vec![0.0; rows]);
                for row in 0..rows {
                    for j in 0..width {
                        let entry = table[index.words[row] as usize * width + j];
                        y[row * width + j] = x[row * width + j] - entry;
                        square[row] += y[row * width + j].powi(2);
                    }
                }
                h.expect(&written[0], &y, 1e-6);
                h.expect(&written[1], &square, 1e-6);
            }
        });
    }
}
