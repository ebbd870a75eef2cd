//! `dst[r] = src[index[r]]`, row by row.
//!
//! Shapes: `src` `[n, width]`, `index` u32 `[rows]`, `dst` `[rows, width]`. Floor: 8 bytes per element of `dst`.

use crate::device::{Args, Grid, Kernel, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::{bindings, params};
use anyhow::Result;

params! { Params { rows: u32, width: u32 } }

pub static GATHER_ROWS: Kernel = Kernel {
    name: "gather",
    source: include_str!("../../shaders/gather.wgsl"),
    entry: "main",
    constants: &[],
    params: Params::FIELDS,
    bindings: bindings![src: In F32, index: In U32, dst: Out F32],
    twin,
};

/// Copies the rows of `src` that `index` names to `dst`.
pub fn gather_rows(
    s: &mut Stream,
    src: Slice,
    index: Slice,
    dst: Slice,
    rows: usize,
    width: usize,
) {
    let params = Params {
        rows: rows as u32,
        width: width as u32,
    };
    s.push(
        &GATHER_ROWS,
        &params,
        &[src, index, dst],
        Grid::cover(rows * width, 256),
    );
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let width = p.width as usize;
    let (src, index, dst) = (args.f32(0), args.u32(1), args.f32_mut(2));
    for (to, &from) in dst.chunks_exact_mut(width).zip(&index[..p.rows as usize]) {
        to.copy_from_slice(&src[from as usize * width..][..width]);
    }
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (n, rows, width) in [(1, 1, 1), (9, 5, 67), (3, 300, 2)] {
        let src = h.random("src", n * width);
        let index = h.random_below("index", rows, n);
        let dst = h.random("dst", rows * width);
        gather_rows(
            h.stream(),
            src.slice(),
            index.slice(),
            dst.slice(),
            rows,
            width,
        );
        h.run()?;
        h.read_u32(&dst)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::kernels::harness::devices;

    #[test]
    fn shader_equals_twin() {
        devices::lockstep(super::cases);
    }
}
