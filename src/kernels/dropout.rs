//! Dropout (Srivastava et al., JMLR 2014): `y = mask * x / (1 - rate)`, and onto a residual stream `y = x + mask * y /
//! (1 - rate)`. The gradient takes the same mask.
//!
//! A mask is never stored. Element e of a step's activations at one site of the model has 16 bits of the draw (key, step,
//! site, e / 8), so that passes forward and backward, adapters, and steps cut into any number of parts agree on it.
//!
//! Floor: 8 operations per element (an eighth of a draw, compare, multiply and add) and 8 bytes; onto a residual stream 12.

use crate::device::threads::{chunks, chunks_mut, each};
use crate::device::{Args, Cost, Form, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::rng::pcg4d;
use crate::{bindings, params};
use anyhow::Result;

/// What a step draws its masks from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Share of the elements that become 0, from 0 to below 1; rounded to a multiple of 2^-16.
    pub rate: f32,
    /// [`crate::rng::key`] of the seed.
    pub key: u32,
    pub step: u32,
    /// Rows of the step before the first one of this pass.
    pub row: usize,
}

/// The mask of the activations [T, width] at one site of the model.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    pub of: Dropout,
    pub site: u32,
    pub width: usize,
}

params! {
    /// `first`: the step's element that element 0 is. Elements whose bits are below `keep` are kept and multiplied by `scale`.
    Params { n: u32, first: u32, key: u32, step: u32, site: u32, keep: u32, scale: f32 }
}

params! {
    /// As [`Params`]; `onto`: whether x is added, 1 or 0.
    AddParams { n: u32, first: u32, key: u32, step: u32, site: u32, keep: u32, scale: f32, onto: u32 }
}

/// Elements that share a draw.
const BLOCK: usize = 8;

/// Whole blocks.
const fn vec4(source: &'static str) -> Form {
    let fits = |w: &[u32]| w[0].is_multiple_of(8) && w[1].is_multiple_of(8);
    Form::vec4(source, fits, |w| Grid((w[0] / 8).div_ceil(256)))
}

pub static DROPOUT: Kernel = Kernel {
    name: "dropout",
    source: include_str!("../../shaders/dropout.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[vec4(include_str!("../../shaders/dropout_vec4.wgsl"))],
    params: Params::FIELDS,
    bindings: bindings![x: In F32, y: Out Real],
    twin,
    cost,
};

pub static DROPOUT_ADD: Kernel = Kernel {
    name: "dropout_add",
    source: include_str!("../../shaders/dropout_add.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[vec4(include_str!("../../shaders/dropout_add_vec4.wgsl"))],
    params: AddParams::FIELDS,
    bindings: bindings![x: In F32, y: Out F32],
    twin: add_twin,
    cost: add_cost,
};

impl Mask {
    fn params(&self, rows: Size) -> Params {
        assert!((0.0..1.0).contains(&self.of.rate));
        let keep = ((1.0 - self.of.rate) * 65_536.0).round().max(1.0);
        Params {
            n: (rows.max * self.width) as u32,
            // Draws repeat after 2^32 elements of one step.
            first: (self.of.row * self.width) as u32,
            key: self.of.key,
            step: self.of.step,
            site: self.site,
            keep: keep as u32,
            scale: 65_536.0 / keep,
        }
    }
}

/// `y = mask * x / (1 - rate)`, both [rows, width].
pub fn dropout(s: &mut Stream, x: Slice, y: Slice, mask: Mask, rows: Size) {
    let params = mask.params(rows);
    let grid = Grid::cover(params.n as usize, 256);
    s.push(&DROPOUT, &params, &[x, y], grid)
        .size("n", rows * mask.width);
}

/// `y = x + mask * y / (1 - rate)`, both [rows, width].
pub fn dropout_onto(s: &mut Stream, x: Slice, y: Slice, mask: Mask, rows: Size) {
    push_add(s, (x, true), y, mask, rows);
}

/// `y = mask * y / (1 - rate)`, [rows, width]; `other` stands for what is not added, any other buffer.
pub fn dropout_in_place(s: &mut Stream, other: Slice, y: Slice, mask: Mask, rows: Size) {
    push_add(s, (other, false), y, mask, rows);
}

fn push_add(s: &mut Stream, (x, onto): (Slice, bool), y: Slice, mask: Mask, rows: Size) {
    let p = mask.params(rows);
    let params = AddParams {
        n: p.n,
        first: p.first,
        key: p.key,
        step: p.step,
        site: p.site,
        keep: p.keep,
        scale: p.scale,
        onto: onto as u32,
    };
    let grid = Grid::cover(p.n as usize, 256);
    s.push(&DROPOUT_ADD, &params, &[x, y], grid)
        .size("n", rows * mask.width);
}

fn cost(launch: &Launch) -> Cost {
    let n = launch.read_params::<Params>().n as u64;
    Cost {
        operations: 8 * n,
        bytes: (launch.width(0) + launch.width(1)) * n,
    }
}

fn add_cost(launch: &Launch) -> Cost {
    let p: AddParams = launch.read_params();
    let n = p.n as u64;
    Cost {
        operations: 8 * n,
        bytes: (8 + 4 * p.onto as u64) * n,
    }
}

/// Elements whose factors a twin computes at a time: a few dozen blocks, which the compiler draws side by side.
const TILE: usize = 256;
/// Elements per task of the twins.
const CHUNK: usize = 64 * TILE;

/// The factors of elements `begin..begin + TILE`.
fn factors(p: &Params, begin: usize) -> [f32; TILE] {
    const BLOCKS: usize = TILE / BLOCK + 1;
    let block = (begin / BLOCK) as u32;
    let mut words = [[0; 4]; BLOCKS];
    for (i, words) in words.iter_mut().enumerate() {
        *words = pcg4d([p.key, p.step, p.site, block.wrapping_add(i as u32)]);
    }
    let skip = begin % BLOCK;
    let mut out = [0.0; TILE];
    for (i, out) in out.iter_mut().enumerate() {
        let e = skip + i;
        let bits = words[e / BLOCK][e / 2 % 4] >> (16 * (e % 2)) & 0xffff;
        *out = if bits < p.keep { p.scale } else { 0.0 };
    }
    out
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let n = p.n as usize;
    let parts = (
        chunks(&args.f32(0)[..n], CHUNK),
        chunks_mut(&mut args.f32_mut(1)[..n], CHUNK),
    );
    each(parts, 1, |chunk, (x, y)| {
        let tiles = x.chunks(TILE).zip(y.chunks_mut(TILE));
        for (tile, (x, y)) in tiles.enumerate() {
            let begin = p.first as usize + chunk * CHUNK + tile * TILE;
            for ((y, x), factor) in y.iter_mut().zip(x).zip(factors(&p, begin)) {
                *y = factor * x;
            }
        }
    });
}

fn add_twin(args: &Args) {
    let p: AddParams = args.params();
    let n = p.n as usize;
    let plain = Params {
        n: p.n,
        first: p.first,
        key: p.key,
        step: p.step,
        site: p.site,
        keep: p.keep,
        scale: p.scale,
    };
    let x = match p.onto {
        1 => &args.f32(0)[..n],
        _ => &[],
    };
    each(
        chunks_mut(&mut args.f32_mut(1)[..n], CHUNK),
        1,
        |chunk, y| {
            for (tile, y) in y.chunks_mut(TILE).enumerate() {
                let at = chunk * CHUNK + tile * TILE;
                let factors = factors(&plain, p.first as usize + at);
                for (y, factor) in y.iter_mut().zip(factors) {
                    *y *= factor;
                }
                if !x.is_empty() {
                    y.iter_mut().zip(&x[at..]).for_each(|(y, x)| *y += x);
                }
            }
        },
    );
}

/// (rows before the pass, rows, width): with and without whole blocks.
const SHAPES: [(usize, usize, usize); 6] = [
    (0, 1, 1),
    (3, 5, 7),
    (2, 9, 40),
    (1, 33, 8),
    (64, 129, 128),
    (5, 3, CHUNK + 3),
];

fn mask((row, width): (usize, usize), rate: f32, site: u32) -> Mask {
    let of = Dropout {
        rate,
        key: 0x1234_5678,
        step: 77,
        row,
    };
    Mask { of, site, width }
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (site, (row, rows, width)) in (0..).zip(SHAPES) {
        for rate in [0.0, 0.2, 0.9] {
            let n = rows * width;
            let mask = mask((row, width), rate, site);
            let (x, y) = (h.random("x", n), h.real("y", n));
            dropout(h.stream(), x.slice(), y.slice(), mask, rows.into());
            h.run()?;
            h.read_u32(&y)?;
            let y = h.random("y", n);
            dropout_onto(h.stream(), x.slice(), y.slice(), mask, rows.into());
            h.run()?;
            h.read_u32(&y)?;
            dropout_in_place(h.stream(), x.slice(), y.slice(), mask, rows.into());
            h.run()?;
            h.read_u32(&y)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::harness::devices;

    /// By the definition, element by element.
    fn factor64(mask: Mask, element: usize) -> f64 {
        let e = mask.of.row * mask.width + element;
        let Dropout { key, step, .. } = mask.of;
        let words = pcg4d([key, step, mask.site, (e / 8) as u32]);
        let bits = (words[(e % 8) / 2] as usize >> (16 * (e % 2))) % 65_536;
        let keep = ((1.0 - mask.of.rate as f64) * 65_536.0).round();
        match (bits as f64) < keep {
            true => 65_536.0 / keep,
            false => 0.0,
        }
    }

    #[test]
    fn shader_equals_twin() {
        devices::lockstep(cases);
    }

    #[test]
    fn equals_f64() {
        devices::each(|h| {
            for (site, (row, rows, width)) in (0..).zip(SHAPES) {
                let n = rows * width;
                let mask = mask((row, width), 0.3, site);
                let factors: Vec<f64> = (0..n).map(|e| factor64(mask, e)).collect();
                let (x, y) = (h.random("x", n), h.real("y", n));
                dropout(h.stream(), x.slice(), y.slice(), mask, rows.into());
                h.run().unwrap();
                let want: Vec<f64> = x.f64().iter().zip(&factors).map(|(x, f)| x * f).collect();
                h.expect(&y, &want, 1e-6);
                let (y, z) = (h.random("y", n), h.random("z", n));
                dropout_onto(h.stream(), x.slice(), y.slice(), mask, rows.into());
                dropout_in_place(h.stream(), x.slice(), z.slice(), mask, rows.into());
                h.run().unwrap();
                let masked = |v: &[f64]| -> Vec<f64> {
                    v.iter().zip(&factors).map(|(v, f)| v * f).collect()
                };
                h.expect(&z, &masked(&z.f64()), 1e-6);
                let want: Vec<f64> = masked(&y.f64())
                    .iter()
                    .zip(x.f64())
                    .map(|(y, x)| x + y)
                    .collect();
                h.expect(&y, &want, 1e-6);
            }
        });
    }

    #[test]
    fn keeps_its_share_and_the_mean() {
        for rate in [0.0, 0.2, 0.5] {
            let mask = mask((0, 100), rate, 3);
            let factors: Vec<f64> = (0..50_000).map(|e| factor64(mask, e)).collect();
            let kept = factors.iter().filter(|f| **f > 0.0).count() as f64 / 5e4;
            let mean = factors.iter().sum::<f64>() / 5e4;
            assert!((kept - (1.0 - rate as f64)).abs() < 0.01, "{kept}");
            assert!((mean - 1.0).abs() < 0.02, "{mean}");
        }
    }

    #[test]
    fn sites_steps_and_rows_have_masks_of_their_own() {
        let zeros =
            |mask: Mask| -> Vec<bool> { (0..64 * 4).map(|e| factor64(mask, e) == 0.0).collect() };
        let base = mask((0, 64), 0.5, 1);
        let mut next_step = base;
        next_step.of.step += 1;
        let mut next_row = base;
        next_row.of.row = 1;
        let other_site = Mask { site: 2, ..base };
        for other in [next_step, next_row, other_site] {
            assert_ne!(zeros(base), zeros(other));
        }
        assert_eq!(zeros(base)[64..], zeros(next_row)[..192]);
    }
}
