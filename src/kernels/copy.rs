//! `y = x`, each in its own precision: makes the operands of an f16 model's products from its weights, and is what benches
//! measure an adapter's memory by.
//!
//! Floor: 0 operations; 8 bytes per f32.

use crate::device::threads::{chunks, chunks_mut, each};
use crate::device::{Args, Cost, Form, Grid, Kernel, Launch, Size, Slice, Stream, Word};
use crate::kernels::harness::Harness;
use crate::{bindings, params};
use anyhow::Result;

params! {
    Params { n: u32 }
}

pub static COPY: Kernel = Kernel {
    name: "copy",
    source: include_str!("../../shaders/copy.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[Form::vec4(
        include_str!("../../shaders/copy_vec4.wgsl"),
        |w| w[0].is_multiple_of(4),
        |w| Grid((w[0] / 4).div_ceil(256)),
    )],
    params: Params::FIELDS,
    bindings: bindings![x: In Real, y: Out Real],
    twin,
    cost,
};

/// Copies the first `n` elements.
pub fn copy(s: &mut Stream, x: Slice, y: Slice, n: impl Into<Size>) {
    let n = n.into();
    let params = Params { n: n.max as u32 };
    s.push(&COPY, &params, &[x, y], Grid::cover(n.max, 256))
        .size("n", n);
}

fn cost(launch: &Launch) -> Cost {
    Cost {
        operations: 0,
        bytes: (launch.width(0) + launch.width(1)) * launch.read_params::<Params>().n as u64,
    }
}

/// Elements per task of the twin.
const CHUNK: usize = 65_536;

fn twin(args: &Args) {
    let n = args.params::<Params>().n as usize;
    let parts = (
        chunks_mut(&mut args.f32_mut(1)[..n], CHUNK),
        chunks(&args.f32(0)[..n], CHUNK),
    );
    each(parts, 1, |_, (y, x)| y.copy_from_slice(x));
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for n in [1, 255, 1020, 1024, 1028, CHUNK + 12] {
        let (x, y) = (h.random("x", n), h.real("y", n));
        copy(h.stream(), x.slice(), y.slice(), n);
        h.run()?;
        h.read_u32(&y)?;
        let (x, y) = (h.real("x", n), h.random("y", n));
        copy(h.stream(), x.slice(), y.slice(), n);
        h.run()?;
        h.read_u32(&y)?;
    }
    let (x, y) = (h.random("x", 1028), h.real("y", 1028));
    let count = h.u32("count", &[1021]);
    let held = Size::held(Word::at(count.slice(), 0), 1028);
    copy(h.stream(), x.slice(), y.slice(), held);
    h.run()?;
    h.read_u32(&y)?;
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
    fn copies_and_touches_nothing_else() {
        devices::each(|h| {
            let (x, y) = (h.random("x", 1028), h.random("y", 1030));
            copy(h.stream(), x.slice(), y.slice(), 1028);
            h.run().unwrap();
            let mut want = x.f64();
            want.extend(&y.f64()[1028..]);
            h.expect(&y, &want, 0.0);
            let (x, y) = (h.real("x", 36), h.random("y", 36));
            copy(h.stream(), x.slice(), y.slice(), 36);
            h.run().unwrap();
            h.expect(&y, &x.f64(), 0.0);
        });
    }
}
