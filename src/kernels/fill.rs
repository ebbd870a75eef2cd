//! `y[i] = value`: clears gradients and search state.
//!
//! Floor: 0 operations, 4 bytes written per element.

use crate::device::threads::{chunks_mut, each};
use crate::device::{Args, Cost, Form, Grid, Kernel, Launch, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::{bindings, params};
use anyhow::Result;

params! {
    /// `value` holds the bits of the word to store.
    Params { n: u32, value: u32 }
}

pub static FILL: Kernel = Kernel {
    name: "fill",
    source: include_str!("../../shaders/fill.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[Form::vec4(
        include_str!("../../shaders/fill_vec4.wgsl"),
        |w| w[0].is_multiple_of(4),
        |w| Grid((w[0] / 4).div_ceil(256)),
    )],
    params: Params::FIELDS,
    bindings: bindings![y: Out U32],
    twin,
    cost,
};

/// Sets every word of `y` to `value`.
pub fn fill_u32(stream: &mut Stream, y: Slice, value: u32) {
    fill_first(stream, y, y.len as usize, value);
}

/// Sets the first `n` words of `y` to `value`.
pub fn fill_first(stream: &mut Stream, y: Slice, n: usize, value: u32) {
    let params = Params { n: n as u32, value };
    stream.push(&FILL, &params, &[y], Grid::cover(n, 256));
}

/// Sets every element of `y` to `value`.
pub fn fill_f32(stream: &mut Stream, y: Slice, value: f32) {
    fill_u32(stream, y, value.to_bits());
}

fn cost(launch: &Launch) -> Cost {
    Cost {
        operations: 0,
        bytes: 4 * launch.read_params::<Params>().n as u64,
    }
}

fn twin(args: &Args) {
    const CHUNK: usize = 65_536;
    let p: Params = args.params();
    let y = &mut args.u32_mut(0)[..p.n as usize];
    each(chunks_mut(y, CHUNK), 1, |_, chunk| chunk.fill(p.value));
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for n in [1, 255, 256, 257, 1009, 1028, 65_535 * 256 + 300] {
        let y = h.u32("y", &vec![1; n]);
        fill_f32(h.stream(), y.slice(), 1.5);
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
    fn fills_and_touches_nothing_else() {
        devices::each(|h| {
            for n in [1, 4, 257, 1009, 1028] {
                let y = h.random("y", n);
                fill_f32(h.stream(), y.slice(), 1.5);
                h.run().unwrap();
                h.expect(&y, &vec![1.5; n], 0.0);
            }
        });
    }
}
