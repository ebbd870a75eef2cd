//! `y += x`: gradients that meet.
//!
//! Floor: 1 operation and 12 bytes per element.

use crate::device::threads::{chunks, chunks_mut, each};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::{bindings, params};
use anyhow::Result;

params! {
    Params { n: u32 }
}

pub static ADD: Kernel = Kernel {
    name: "add",
    source: include_str!("../../shaders/add.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![x: In F32, y: Out F32],
    twin,
    cost,
};

/// `y += x`, `n` elements.
pub fn add(s: &mut Stream, x: Slice, y: Slice, n: impl Into<Size>) {
    let n = n.into();
    let params = Params { n: n.max as u32 };
    s.push(&ADD, &params, &[x, y], Grid::cover(n.max, 256))
        .size("n", n);
}

/// Elements per task of the twins.
const CHUNK: usize = 16 * 1024;

fn cost(launch: &Launch) -> Cost {
    let n = launch.read_params::<Params>().n as u64;
    Cost {
        operations: n,
        bytes: 12 * n,
    }
}

fn twin(args: &Args) {
    let n = args.params::<Params>().n as usize;
    let parts = (
        chunks_mut(&mut args.f32_mut(1)[..n], CHUNK),
        chunks(&args.f32(0)[..n], CHUNK),
    );
    each(parts, 1, |_, (y, x)| {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    });
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for n in [1, 255, 256, 257, CHUNK + 13] {
        let (x, y) = (h.random("x", n), h.random("y", n));
        add(h.stream(), x.slice(), y.slice(), n);
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
    fn equals_f64() {
        devices::each(|h| {
            for n in [1, 257, CHUNK + 1] {
                let (x, y) = (h.random("x", n), h.random("y", n));
                add(h.stream(), x.slice(), y.slice(), n);
                h.run().unwrap();
                let want: Vec<f64> = x.f64().iter().zip(y.f64()).map(|(x, y)| x + y).collect();
                h.expect(&y, &want, 1e-6);
            }
        });
    }
}
