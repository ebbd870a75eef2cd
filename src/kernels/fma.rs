//! `y = a y + b`, over and over: what benches measure an adapter's arithmetic by.
//!
//! Floor: 2 operations per element and round, 8 bytes per element.

use crate::device::threads::{chunks_mut, each};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::{bindings, params};
use anyhow::Result;

params! {
    Params { n: u32, rounds: u32, a: f32, b: f32 }
}

pub static FMA: Kernel = Kernel {
    name: "fma",
    source: include_str!("../../shaders/fma.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![y: Out F32],
    twin,
    cost,
};

/// Elements of a workgroup.
pub const BLOCK: usize = 2048;

/// `rounds` times (a multiple of 4) `y = a y + b` for each of the first `n` elements, a multiple of [`BLOCK`].
pub fn fma(s: &mut Stream, y: Slice, n: usize, rounds: u32, [a, b]: [f32; 2]) {
    assert!(n.is_multiple_of(BLOCK) && rounds.is_multiple_of(4));
    let params = Params {
        n: n as u32,
        rounds,
        a,
        b,
    };
    s.push(&FMA, &params, &[y], Grid::cover(n, BLOCK));
}

fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [n, rounds] = [p.n, p.rounds].map(u64::from);
    Cost {
        operations: 2 * n * rounds,
        bytes: 8 * n,
    }
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let blocks = chunks_mut(&mut args.f32_mut(0)[..p.n as usize], BLOCK);
    each(blocks, 1, |_, block| rounds(block, p));
}

/// As many chains as registers hold, or the latency of one would be measured.
#[cfg(not(all(target_arch = "x86_64", target_feature = "avx512f")))]
fn rounds(block: &mut [f32], p: Params) {
    const LANES: usize = 96;
    for y in block.chunks_mut(LANES) {
        let mut lanes = [0.0; LANES];
        lanes[..y.len()].copy_from_slice(y);
        for _ in 0..p.rounds {
            for v in &mut lanes {
                *v = p.a.mul_add(*v, p.b);
            }
        }
        y.copy_from_slice(&lanes[..y.len()]);
    }
}

/// Compilers keep to 256 bits where matrix products ([`super::matmul`]) use 512.
#[cfg(all(target_arch = "x86_64", target_feature = "avx512f"))]
fn rounds(block: &mut [f32], p: Params) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps};
    const WIDTH: usize = 16;
    const CHAINS: usize = 16;
    for y in block.as_chunks_mut::<{ WIDTH * CHAINS }>().0 {
        let place = |i: usize| y[WIDTH * i..].as_ptr();
        // SAFETY: the instructions exist (see `cfg`), and every place has WIDTH elements.
        unsafe {
            let (a, b) = (_mm512_set1_ps(p.a), _mm512_set1_ps(p.b));
            let mut chains: [_; CHAINS] = std::array::from_fn(|i| _mm512_loadu_ps(place(i)));
            for _ in 0..p.rounds {
                // Not `map`, which a build may leave as a call for each, with all chains in memory.
                for v in &mut chains {
                    *v = _mm512_fmadd_ps(a, *v, b);
                }
            }
            for (y, v) in y.chunks_exact_mut(WIDTH).zip(chains) {
                _mm512_storeu_ps(y.as_mut_ptr(), v);
            }
        }
    }
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (blocks, rounds) in [(1, 4), (3, 8), (2, 40)] {
        let n = blocks * BLOCK;
        let y = h.random("y", n + 5);
        fma(h.stream(), y.slice(), n, rounds, [0.75, 0.5]);
        h.run()?;
        h.read_u32(&y)?;
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
    fn each_round_is_one_multiply_add() {
        devices::each(|h| {
            let y = h.random("y", BLOCK);
            let round = |v: f64| 0.75 * v + 0.5;
            let want: Vec<f64> = y
                .f64()
                .into_iter()
                .map(|v| round(round(round(round(v)))))
                .collect();
            fma(h.stream(), y.slice(), BLOCK, 4, [0.75, 0.5]);
            h.run().unwrap();
            h.expect(&y, &want, 1e-6);
        });
    }
}
