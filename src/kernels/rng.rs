//! The random generator of [`crate::rng`] on the device: a launch that writes its draws, so that `vstar validate` can
//! hold an adapter to the same integers. Kernels that draw include `shaders/shared/rng.wgsl` themselves.
//!
//! Floor: about 40 integer operations, 24 bytes written per index.

use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::rng;
use crate::{bindings, params};
use anyhow::Result;

params! {
    /// The counters shared by all draws of a launch; the fourth is the index.
    Params { n: u32, key: u32, step: u32, document: u32 }
}

pub static RNG: Kernel = Kernel {
    name: "rng",
    source: include_str!("../../shaders/rng.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![words: Out U32, units: Out F32, gumbels: Out F32],
    twin,
    cost,
};

/// For each index below `n`: the four words (`words` [n, 4]), and the first of them as a uniform (`units` [n]) and as
/// Gumbel noise (`gumbels` [n]).
pub fn draw(stream: &mut Stream, params: Params, words: Slice, units: Slice, gumbels: Slice) {
    let grid = Grid::cover(params.n as usize, 64);
    stream.push(&RNG, &params, &[words, units, gumbels], grid);
}

/// Integer operations of one draw.
pub(super) const DRAW_OPERATIONS: u64 = 40;

fn cost(launch: &Launch) -> Cost {
    let n = launch.read_params::<Params>().n as u64;
    Cost {
        operations: DRAW_OPERATIONS * n,
        bytes: 24 * n,
    }
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let n = p.n as usize;
    let words = args.u32_mut(0)[..4 * n].chunks_exact_mut(4);
    let draws = args.f32_mut(1).iter_mut().zip(args.f32_mut(2));
    for (i, (words, (unit, gumbel))) in words.zip(draws).enumerate() {
        let block = rng::pcg4d([p.key, p.step, p.document, i as u32]);
        words.copy_from_slice(&block);
        *unit = rng::unit(block[0]);
        *gumbel = rng::gumbel(block[0]);
    }
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (n, step, document) in [
        (1, 0, 0),
        (63, 1, u32::MAX),
        (65, u32::MAX, 3),
        (4_001, 7, 11),
    ] {
        let key = rng::key(5, rng::Stream::Test);
        let params = Params {
            n: n as u32,
            key,
            step,
            document,
        };
        let words = h.u32("words", &vec![0; 4 * n]);
        let (units, gumbels) = (h.random("units", n), h.random("gumbels", n));
        let floats = (units.slice(), gumbels.slice());
        draw(h.stream(), params, words.slice(), floats.0, floats.1);
        h.run()?;
        h.read_u32(&words)?;
        h.read_f32(&units)?;
        h.read_f32(&gumbels)?;
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

    /// Integers and uniforms are the same bits on every device; Gumbel noise is as good as the adapter's logarithm.
    #[test]
    fn draws_equal_the_host_generator() {
        devices::each(|h| {
            const N: usize = 200;
            let (seed, step, document) = (9, 4, 2);
            let params = Params {
                n: N as u32,
                key: rng::key(seed, rng::Stream::Test),
                step,
                document,
            };
            let words = h.u32("words", &[0; 4 * N]);
            let (units, gumbels) = (h.u32("units", &[0; N]), h.f32("gumbels", &[0.0; N]));
            let floats = (units.slice(), gumbels.slice());
            draw(h.stream(), params, words.slice(), floats.0, floats.1);
            h.run().unwrap();
            let mut host = rng::Rng::new(seed, rng::Stream::Test, step, document);
            let blocks: Vec<[u32; 4]> = (0..N).map(|_| host.block()).collect();
            h.expect_u32(&words, blocks.as_flattened());
            let bits: Vec<u32> = blocks.iter().map(|b| rng::unit(b[0]).to_bits()).collect();
            h.expect_u32(&units, &bits);
            let want: Vec<f64> = blocks
                .iter()
                .map(|b| -(-(rng::unit(b[0]) as f64).ln()).ln())
                .collect();
            h.expect(&gumbels, &want, 2e-5);
        });
    }
}
