//! The nearest centroid of each row: `code[row] = argmin_k norms[k] - 2 products[row, k]`, the lower k of equals, with
//! `products = x C^T` ([`super::matmul`]) and `norms[k] = |c_k|^2` ([`super::residual`]). `|x|^2`, which would make it the
//! squared distance, is the same for all k.
//!
//! Floor: 3 operations (one a comparison) and 4 bytes per product.

use crate::device::threads::{chunks, chunks_mut, each};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::{bindings, params};
use anyhow::Result;

params! {
    Params { rows: u32, centroids: u32 }
}

pub static NEAREST: Kernel = Kernel {
    name: "nearest",
    source: include_str!("../../shaders/nearest.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![products: In F32, norms: In F32, code: Out U32],
    twin,
    cost,
};

/// `code` [rows] from `products` [rows, centroids] and `norms` [centroids].
pub fn nearest(
    s: &mut Stream,
    products: Slice,
    norms: Slice,
    code: Slice,
    rows: usize,
    centroids: usize,
) {
    let params = Params {
        rows: rows as u32,
        centroids: centroids as u32,
    };
    s.push(
        &NEAREST,
        &params,
        &[products, norms, code],
        Grid(rows as u32),
    );
}

fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [rows, centroids] = [p.rows, p.centroids].map(u64::from);
    Cost {
        operations: 3 * rows * centroids,
        bytes: 4 * (rows * centroids + centroids + rows),
    }
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let (rows, centroids) = (p.rows as usize, p.centroids as usize);
    let norms = &args.f32(1)[..centroids];
    let parts = (
        chunks_mut(&mut args.u32_mut(2)[..rows], 1),
        chunks(&args.f32(0)[..rows * centroids], centroids),
    );
    each(
        parts,
        (16 * 1024usize).div_ceil(centroids),
        |_, (code, row)| {
            let distances = norms.iter().zip(row).map(|(norm, p)| norm - 2.0 * p);
            // Two passes, the first of which vectorises.
            let mut lanes = [f32::MAX; 16];
            for (norms, row) in norms.chunks(16).zip(row.chunks(16)) {
                for ((least, norm), p) in lanes.iter_mut().zip(norms).zip(row) {
                    *least = least.min(norm - 2.0 * p);
                }
            }
            let least = lanes.into_iter().fold(f32::MAX, f32::min);
            let mut distances = distances.enumerate();
            code[0] = distances
                .find(|(_, distance)| *distance <= least)
                .map_or(u32::MAX, |(k, _)| k as u32);
        },
    );
}

/// (rows, centroids).
const SHAPES: [(usize, usize); 6] = [(1, 1), (7, 63), (65, 64), (3, 257), (130, 5), (66_000, 2)];

pub fn cases(h: &mut Harness) -> Result<()> {
    for (rows, centroids) in SHAPES {
        let products = h.random("products", rows * centroids);
        let norms = h.random("norms", centroids);
        let code = h.u32("code", &vec![9; rows]);
        let slices = [&products, &norms, &code].map(|b| b.slice());
        nearest(h.stream(), slices[0], slices[1], slices[2], rows, centroids);
        h.run()?;
        h.read_u32(&code)?;
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

    /// Against distances by definition, of points that are nearer to one centroid than to any other by far more than f32
    /// rounds.
    #[test]
    fn finds_the_nearest() {
        const WIDTH: usize = 6;
        devices::each(|h| {
            for (rows, centroids) in [(1, 1), (67, 5), (40, 131)] {
                let x: Vec<f64> = h.random("x", rows * WIDTH).f64();
                let c: Vec<f64> = h.random("c", centroids * WIDTH).f64();
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let pairs = || {
                    x.chunks(WIDTH)
                        .map(|x| c.chunks(WIDTH).map(move |c| (x, c)))
                };
                let products: Vec<f32> = pairs()
                    .flat_map(|row| row.map(|(x, c)| dot(x, c) as f32))
                    .collect();
                let norms: Vec<f32> = c.chunks(WIDTH).map(|c| dot(c, c) as f32).collect();
                let mut wanted = Vec::new();
                for row in pairs() {
                    let distance = |(x, c): (&[f64], &[f64])| {
                        x.iter().zip(c).map(|(x, c)| (x - c).powi(2)).sum()
                    };
                    let distances: Vec<f64> = row.map(distance).collect();
                    let least = (0..centroids)
                        .min_by(|&a, &b| distances[a].total_cmp(&distances[b]))
                        .unwrap();
                    wanted.push(least as u32);
                }
                let products = h.f32("products", &products);
                let norms = h.f32("norms", &norms);
                let code = h.u32("code", &vec![9; rows]);
                let slices = [&products, &norms, &code].map(|b| b.slice());
                nearest(h.stream(), slices[0], slices[1], slices[2], rows, centroids);
                h.run().unwrap();
                h.expect_u32(&code, &wanted);
            }
        });
    }

    #[test]
    fn the_lower_of_equals_wins() {
        devices::each(|h| {
            // Distances 1, 0, .., with a second 0 at `twin`.
            for twin in [2, 65, 128] {
                let mut norms = vec![1.0; 129];
                (norms[1], norms[twin]) = (0.0, 0.0);
                let (norms, products) = (h.f32("norms", &norms), h.f32("products", &[0.0; 129]));
                let code = h.u32("code", &[9]);
                let slices = [&products, &norms, &code].map(|b| b.slice());
                nearest(h.stream(), slices[0], slices[1], slices[2], 1, 129);
                h.run().unwrap();
                h.expect_u32(&code, &[1]);
            }
        });
    }
}
