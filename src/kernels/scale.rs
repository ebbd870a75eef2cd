//! `y = x * factors[at]`: the loss scale, which the device holds, into the gradients that a backward pass begins with.
//!
//! Floor: 1 operation and 8 bytes per element.

use crate::device::threads::{chunks, chunks_mut, each};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::{bindings, params};
use anyhow::Result;

params! {
    Params { n: u32, at: u32 }
}

pub static SCALE: Kernel = Kernel {
    name: "scale",
    source: include_str!("../../shaders/scale.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![x: In F32, factors: In F32, y: Out F32],
    twin,
    cost,
};

/// `y[i] = x[i] * factors[at]` for `n` elements.
pub fn scale(s: &mut Stream, x: Slice, factors: Slice, at: usize, y: Slice, n: impl Into<Size>) {
    let n = n.into();
    assert!(at < factors.len as usize);
    let params = Params {
        n: n.max as u32,
        at: at as u32,
    };
    let grid = Grid::cover(n.max, 64);
    s.push(&SCALE, &params, &[x, factors, y], grid).size("n", n);
}

fn cost(launch: &Launch) -> Cost {
    let n = launch.read_params::<Params>().n as u64;
    Cost {
        operations: n,
        bytes: 8 * n,
    }
}

fn twin(args: &Args) {
    const CHUNK: usize = 65_536;
    let p: Params = args.params();
    let n = p.n as usize;
    let factor = args.f32(1)[p.at as usize];
    let parts = (
        chunks(&args.f32(0)[..n], CHUNK),
        chunks_mut(&mut args.f32_mut(2)[..n], CHUNK),
    );
    each(parts, 1, |_, (x, y)| {
        for (y, x) in y.iter_mut().zip(x) {
            *y = factor * x;
        }
    });
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (n, at) in [(1, 0), (63, 2), (257, 1)] {
        let (x, y) = (h.random("x", n), h.random("y", n));
        let factors = h.random("factors", 3);
        scale(h.stream(), x.slice(), factors.slice(), at, y.slice(), n);
        h.run()?;
        h.read_f32(&y)?;
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
            let (x, y) = (h.random("x", 130), h.random("y", 130));
            let factors = h.f32("factors", &[7.0, 0.25]);
            scale(h.stream(), x.slice(), factors.slice(), 1, y.slice(), 100);
            h.run().unwrap();
            let mut want: Vec<f64> = x.f64().iter().map(|x| x / 4.0).collect();
            want[100..].copy_from_slice(&y.f64()[100..]);
            h.expect(&y, &want, 1e-7);
        });
    }
}
