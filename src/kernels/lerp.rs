//! `y += share (x - y)`: a reference follows the policy (`rl.ref_mix`), an average the weights (`sft.ema`, `rl.ema`).
//!
//! Floor: 3 operations and 12 bytes per element.

use crate::device::threads::{chunks, chunks_mut, each};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::{bindings, params};
use anyhow::Result;

params! {
    Params { n: u32, share: f32 }
}

pub static LERP: Kernel = Kernel {
    name: "lerp",
    source: include_str!("../../shaders/lerp.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![x: In F32, y: Out F32],
    twin,
    cost,
};

/// Moves `y` towards `x`, both [n].
pub fn lerp(s: &mut Stream, x: Slice, y: Slice, share: f32, n: usize) {
    let params = Params { n: n as u32, share };
    s.push(&LERP, &params, &[x, y], Grid::cover(n, 256));
}

/// Elements per task of the twin.
const CHUNK: usize = 16 * 1024;

fn cost(launch: &Launch) -> Cost {
    let n = launch.read_params::<Params>().n as u64;
    Cost {
        operations: 3 * n,
        bytes: 12 * n,
    }
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let n = p.n as usize;
    let parts = (
        chunks_mut(&mut args.f32_mut(1)[..n], CHUNK),
        chunks(&args.f32(0)[..n], CHUNK),
    );
    each(parts, 1, |_, (y, x)| {
        for (y, x) in y.iter_mut().zip(x) {
            *y += p.share * (x - *y);
        }
    });
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for n in [1, 255, 257, CHUNK + 13] {
        let (x, y) = (h.random("x", n), h.random("y", n));
        lerp(h.stream(), x.slice(), y.slice(), 0.3, n);
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
    fn follows() {
        devices::each(|h| {
            let (x, y) = (h.random("x", 300), h.random("y", 300));
            lerp(h.stream(), x.slice(), y.slice(), 0.25, 300);
            h.run().unwrap();
            let want: Vec<f64> = x
                .f64()
                .iter()
                .zip(y.f64())
                .map(|(x, y)| y + 0.25 * (x - y))
                .collect();
            h.expect(&y, &want, 1e-6);
        });
    }
}
