//! Rows by index: `dst[i, :] = src[index[i], :]` and its gradient `dst[index[i], :] += src[i, :]` (indices distinct, so
//! every element has one owner and the sum needs no atomics).
//!
//! Floor: 8 bytes per element (12 for the sum, with 1 operation).

use crate::device::threads::{chunks, chunks_mut, each, rising};
use crate::device::{Args, Cost, Form, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::{bindings, params};
use anyhow::Result;

params! {
    /// `rows` indexed rows of `width` elements.
    Params { rows: u32, width: u32 }
}

/// Rows of a multiple of 4.
const fn vec4(source: &'static str) -> Form {
    let grid = |w: &[u32]| Grid((w[0] * w[1] / 4).div_ceil(256));
    Form::vec4(source, |w| w[1].is_multiple_of(4), grid)
}

/// Of words of any type: moved as integers, so that none is rounded to zero on the way.
pub static GATHER_ROWS: Kernel = Kernel {
    name: "gather_rows",
    source: include_str!("../../shaders/gather_rows.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[vec4(include_str!("../../shaders/gather_rows_vec4.wgsl"))],
    params: Params::FIELDS,
    bindings: bindings![src: In U32, index: In U32, dst: Out U32],
    twin: gather_twin,
    cost: gather_cost,
};

pub static SCATTER_ADD_ROWS: Kernel = Kernel {
    name: "scatter_add_rows",
    source: include_str!("../../shaders/scatter_add_rows.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[vec4(include_str!(
        "../../shaders/scatter_add_rows_vec4.wgsl"
    ))],
    params: Params::FIELDS,
    bindings: bindings![src: In F32, index: In U32, dst: Out F32],
    twin: scatter_add_twin,
    cost: scatter_add_cost,
};

fn push(s: &mut Stream, kernel: &'static Kernel, slices: [Slice; 3], rows: Size, width: usize) {
    let params = Params {
        rows: rows.max as u32,
        width: width as u32,
    };
    s.push(kernel, &params, &slices, Grid::cover(rows.max * width, 256))
        .size("rows", rows);
}

/// `dst[i, :] = src[index[i], :]` for `rows` indices; rows are `width` wide on both sides.
pub fn gather_rows(
    s: &mut Stream,
    src: Slice,
    index: Slice,
    dst: Slice,
    rows: impl Into<Size>,
    width: usize,
) {
    let width = match (src.half, dst.half) {
        (true, true) => width / 2,
        (false, false) => width,
        _ => panic!("gathered rows keep their type"),
    };
    let slices = [src.words(), index, dst.words()];
    push(s, &GATHER_ROWS, slices, rows.into(), width);
}

/// `dst[index[i], :] += src[i, :]` for `rows` distinct indices.
pub fn scatter_add_rows(
    s: &mut Stream,
    src: Slice,
    index: Slice,
    dst: Slice,
    rows: impl Into<Size>,
    width: usize,
) {
    push(s, &SCATTER_ADD_ROWS, [src, index, dst], rows.into(), width);
}

fn gather_cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [rows, width] = [p.rows, p.width].map(u64::from);
    Cost {
        operations: 0,
        bytes: rows * (8 * width + 4),
    }
}

fn scatter_add_cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [rows, width] = [p.rows, p.width].map(u64::from);
    Cost {
        operations: rows * width,
        bytes: rows * (12 * width + 4),
    }
}

fn gather_twin(args: &Args) {
    let p: Params = args.params();
    let (rows, width) = (p.rows as usize, p.width as usize);
    let (src, index) = (args.u32(0), args.u32(1));
    let parts = (
        chunks_mut(&mut args.u32_mut(2)[..rows * width], width),
        chunks(&index[..rows], 1),
    );
    each(parts, (16 * 1024usize).div_ceil(width), |_, (dst, row)| {
        dst.copy_from_slice(&src[row[0] as usize * width..][..width]);
    });
}

/// On one thread unless the indices rise, as those of scored rows do: else rows are not known to be apart.
fn scatter_add_twin(args: &Args) {
    let p: Params = args.params();
    let (rows, width) = (p.rows as usize, p.width as usize);
    let (src, index, dst) = (&args.f32(0)[..rows * width], args.u32(1), args.f32_mut(2));
    let add = |dst: &mut [f32], src: &[f32]| dst.iter_mut().zip(src).for_each(|(y, x)| *y += x);
    // SAFETY: the indices do not change meanwhile.
    if let Some(dst) = unsafe { rising(dst, width, rows, |i| Some(index[i] as usize)) } {
        let per_task = (16 * 1024usize).div_ceil(width);
        each((dst, chunks(src, width)), per_task, |_, (dst, src)| {
            add(dst, src)
        });
        return;
    }
    for (src, &row) in src.chunks_exact(width).zip(index) {
        add(&mut dst[row as usize * width..][..width], src);
    }
}

/// (rows of the long side, indices, width).
const SHAPES: [(usize, usize, usize); 5] = [
    (1, 1, 1),
    (7, 3, 5),
    (257, 131, 3),
    (64, 64, 64),
    (300, 299, 67),
];

/// `count` distinct indices below `rows`.
fn distinct(h: &mut Harness, rows: usize, count: usize) -> Vec<u32> {
    let mut all: Vec<u32> = (0..rows as u32).collect();
    h.draws().shuffle(&mut all);
    all.truncate(count);
    all
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (long, rows, width) in SHAPES {
        let index = distinct(h, long, rows);
        let index = h.u32("index", &index);
        let (table, part) = (
            h.random("table", long * width),
            h.random("part", rows * width),
        );
        gather_rows(
            h.stream(),
            table.slice(),
            index.slice(),
            part.slice(),
            rows,
            width,
        );
        let grown = h.random("grown", long * width);
        scatter_add_rows(
            h.stream(),
            part.slice(),
            index.slice(),
            grown.slice(),
            rows,
            width,
        );
        h.run()?;
        h.read_u32(&part)?;
        h.read_u32(&grown)?;
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

    /// Small integers are denormal numbers, and some words no numbers: rows of records are moved as they are.
    #[test]
    fn moves_any_words() {
        devices::each(|h| {
            let words = [0, 1, 7, 0x7fff_ffff, 0x7fa0_0001, 0x8000_0000, u32::MAX, 42];
            for (width, index) in [(2, vec![3, 0, 2]), (4, vec![1, 0])] {
                let want: Vec<u32> = index
                    .iter()
                    .flat_map(|&row| &words[row as usize * width..][..width])
                    .copied()
                    .collect();
                let (table, rows) = (h.u32("table", &words), index.len());
                let (index, part) = (h.u32("index", &index), h.u32("part", &vec![9; want.len()]));
                let slices = (table.slice(), index.slice(), part.slice());
                gather_rows(h.stream(), slices.0, slices.1, slices.2, rows, width);
                h.run().unwrap();
                assert_eq!(h.read_u32(&part).unwrap(), want);
            }
        });
    }

    #[test]
    fn moves_the_named_rows() {
        devices::each(|h| {
            for (long, rows, width) in SHAPES {
                let index = distinct(h, long, rows);
                let index = h.u32("index", &index);
                let (table, part) = (
                    h.random("table", long * width),
                    h.random("part", rows * width),
                );
                gather_rows(
                    h.stream(),
                    table.slice(),
                    index.slice(),
                    part.slice(),
                    rows,
                    width,
                );
                let grown = h.random("grown", long * width);
                scatter_add_rows(
                    h.stream(),
                    part.slice(),
                    index.slice(),
                    grown.slice(),
                    rows,
                    width,
                );
                h.run().unwrap();
                let (table, mut sum, mut picked) = (table.f64(), grown.f64(), Vec::new());
                for &row in &index.words {
                    for j in row as usize * width..(row as usize + 1) * width {
                        picked.push(table[j]);
                        sum[j] += table[j];
                    }
                }
                h.expect(&part, &picked, 0.0);
                h.expect(&grown, &sum, 1e-6);
            }
        });
    }
}
