//! Root-mean-square norm over many vectors of one buffer: `y = x * rstd * w`, `rstd = 1 / sqrt(mean(x^2) + eps)`.
//!
//! Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), as in Llama, Qwen2 and, per query and key head,
//! Qwen3. The gradient, with `m = mean(w * dy * x)` over the vector:
//! `dx = rstd * (w * dy - x * rstd^2 * m)`, `dw = sum over vectors of dy * x * rstd`.
//!
//! Floor for n elements: forward 4n operations and 8n bytes; backward 8n and 12n (16n when it accumulates); weight
//! gradient 3n and 8n; beside them one number per vector and one per column, and the weight gradient's partial sums.
//!
//! A sum over a vector is shared by a workgroup of 64 (portable; `wide` in vec4), by 16 invocations where vectors are short
//! (`thin`) or by a subgroup; on the host's processor one invocation owns a vector (`direct`), without a barrier.

use super::harness::Harness;
use crate::device::{Cost, Form, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::{bindings, params};
use anyhow::Result;

/// Which parts of a buffer are vectors: head `h < per_row` of row `t < rows` starts at
/// `t * stride + offset + h * dim`.
#[derive(Clone, Copy, Debug)]
pub struct Heads<S = usize> {
    pub rows: S,
    pub per_row: usize,
    pub stride: usize,
    pub offset: usize,
    pub dim: usize,
}

impl From<Heads> for Heads<Size> {
    fn from(heads: Heads) -> Self {
        Heads {
            rows: heads.rows.into(),
            per_row: heads.per_row,
            stride: heads.stride,
            offset: heads.offset,
            dim: heads.dim,
        }
    }
}

impl<S> Heads<S> {
    /// One vector per row of a `[rows, dim]` matrix.
    pub fn plain(rows: S, dim: usize) -> Self {
        Heads {
            rows,
            per_row: 1,
            stride: dim,
            offset: 0,
            dim,
        }
    }

    /// Rows per task of a twin: enough work to pay for handing it out.
    fn rows_per_task(&self) -> usize {
        (16_384 / (self.per_row * self.dim)).max(1)
    }
}

impl Heads<Size> {
    fn vectors(&self) -> Size {
        self.rows * self.per_row
    }

    fn check(&self, whole: &[Slice], w: Slice, rstd: Slice) {
        let span = (self.rows.max.max(1) - 1) * self.stride + self.offset + self.per_row * self.dim;
        assert!(self.offset + self.per_row * self.dim <= self.stride);
        assert!(whole.iter().all(|s| s.len as usize >= span));
        assert!(w.len as usize >= self.dim && rstd.len as usize >= self.vectors().max);
    }
}

impl Heads {
    /// How many vectors there are; the length of `rstd`.
    pub fn vectors(&self) -> usize {
        self.rows * self.per_row
    }

    /// Words from the start of the first row to the end of the last vector.
    fn span(&self) -> usize {
        self.rows.saturating_sub(1) * self.stride + self.offset + self.per_row * self.dim
    }

    /// Where vector `v` lies, counted from the row of vector 0.
    fn vector(&self, v: usize) -> std::ops::Range<usize> {
        let at = v / self.per_row * self.stride + self.offset + v % self.per_row * self.dim;
        at..at + self.dim
    }

    /// So many operations and moved bytes per element, one word per vector and one per column.
    fn cost(&self, operations: u64, bytes: u64) -> Cost {
        let [vectors, dim] = [self.vectors(), self.dim].map(|n| n as u64);
        Cost {
            operations: operations * vectors * dim,
            bytes: bytes * vectors * dim + 4 * (vectors + dim),
        }
    }
}

/// The parameters of a kernel over [`Heads`]: where the vectors are, then the fields of its own.
macro_rules! params_over_heads {
    ($name:ident { $($field:ident: $ty:ident),* }) => {
        params! {
            $name { vectors: u32, per_row: u32, stride: u32, offset: u32, dim: u32, $($field: $ty),* }
        }

        impl $name {
            fn new(heads: Heads<Size>, $($field: $ty),*) -> Self {
                $name {
                    vectors: heads.vectors().max as u32,
                    per_row: heads.per_row as u32,
                    stride: heads.stride as u32,
                    offset: heads.offset as u32,
                    dim: heads.dim as u32,
                    $($field),*
                }
            }

            fn heads(&self) -> Heads {
                Heads {
                    rows: (self.vectors / self.per_row) as usize,
                    per_row: self.per_row as usize,
                    stride: self.stride as usize,
                    offset: self.offset as usize,
                    dim: self.dim as usize,
                }
            }
        }
    };
}

params_over_heads!(ForwardParams { eps: f32 });
params_over_heads!(BackwardParams { accumulate: u32 });
params_over_heads!(InPlaceParams {});
params_over_heads!(PartialParams { chunk: u32 });

params! {
    SumParams { chunks: u32, dim: u32 }
}

/// Stride, offset and length multiples of 4.
fn fours(w: &[u32]) -> bool {
    w[2..5].iter().all(|length| length.is_multiple_of(4))
}

/// An invocation for each vector.
const fn direct(source: &'static str) -> Form {
    Form::direct(source, fours, |w| Grid(w[0].div_ceil(32)))
}

/// Workgroups of 64: as many vectors as there are subgroups in one, which only the device knows.
const fn subgroup(source: &'static str) -> Form {
    Form::subgroup(source, fours, |w| Grid(w[0]))
}

/// A workgroup of 64 for each vector.
const fn wide(source: &'static str) -> Form {
    Form::wide(source, fours, |w| Grid(w[0]))
}

/// The same text where 64 lanes would have little to do each (heads): 16 for each vector.
const fn thin(source: &'static str) -> Form {
    let fits = |w: &[u32]| fours(w) && w[4] <= 128;
    Form {
        name: "thin",
        constants: &[("LANES", 16.0)],
        ..Form::wide(source, fits, |w| Grid(w[0].div_ceil(4)))
    }
}

/// The forms of the kernel whose shaders have this name.
macro_rules! forms {
    ($name:literal) => {
        &[
            subgroup(include_str!(concat!(
                "../../shaders/",
                $name,
                "_subgroup.wgsl"
            ))),
            thin(include_str!(concat!("../../shaders/", $name, "_wide.wgsl"))),
            wide(include_str!(concat!("../../shaders/", $name, "_wide.wgsl"))),
            direct(include_str!(concat!(
                "../../shaders/",
                $name,
                "_direct.wgsl"
            ))),
        ]
    };
}

pub static FORWARD: Kernel = Kernel {
    name: "rmsnorm",
    source: include_str!("../../shaders/rmsnorm.wgsl"),
    entry: "main",
    constants: &[],
    forms: forms!("rmsnorm"),
    params: ForwardParams::FIELDS,
    bindings: bindings![x: In Real, w: In F32, y: Out Real, rstd: Out F32],
    twin: twin::forward,
    cost: forward_cost,
};

pub static BACKWARD: Kernel = Kernel {
    name: "rmsnorm_backward",
    source: include_str!("../../shaders/rmsnorm_backward.wgsl"),
    entry: "main",
    constants: &[],
    forms: forms!("rmsnorm_backward"),
    params: BackwardParams::FIELDS,
    bindings: bindings![x: In F32, w: In F32, rstd: In F32, dy: In Real, d_x: Out F32],
    twin: twin::backward,
    cost: backward_cost,
};

pub static BACKWARD_IN_PLACE: Kernel = Kernel {
    name: "rmsnorm_backward_in_place",
    source: include_str!("../../shaders/rmsnorm_backward_in_place.wgsl"),
    entry: "main",
    constants: &[],
    forms: forms!("rmsnorm_backward_in_place"),
    params: InPlaceParams::FIELDS,
    bindings: bindings![x: In Real, w: In F32, rstd: In F32, g: Out Real],
    twin: twin::backward_in_place,
    cost: backward_in_place_cost,
};

pub static WEIGHT_PARTIAL: Kernel = Kernel {
    name: "rmsnorm_weight_partial",
    source: include_str!("../../shaders/rmsnorm_weight_partial.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[
        Form::wide(
            include_str!("../../shaders/rmsnorm_weight_partial_wide.wgsl"),
            fours,
            |w| Grid(w[0].div_ceil(w[5]) * w[4].div_ceil(64)),
        ),
        Form::vec4(
            include_str!("../../shaders/rmsnorm_weight_partial_vec4.wgsl"),
            fours,
            |w| Grid((w[0].div_ceil(w[5]) * w[4] / 4).div_ceil(64)),
        ),
    ],
    params: PartialParams::FIELDS,
    bindings: bindings![x: In Real, rstd: In F32, dy: In Real, partial: Out F32],
    twin: twin::weight_partial,
    cost: weight_partial_cost,
};

pub static WEIGHT_SUM: Kernel = Kernel {
    name: "rmsnorm_weight_sum",
    source: include_str!("../../shaders/rmsnorm_weight_sum.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: SumParams::FIELDS,
    bindings: bindings![partial: In F32, dw: Out F32],
    twin: twin::weight_sum,
    cost: weight_sum_cost,
};

/// Normalises the vectors of `x` into the same places of `y`, whose other words stay; `rstd`: `[rows * per_row]`,
/// `w`: `[dim]`.
pub fn forward(
    s: &mut Stream,
    x: Slice,
    w: Slice,
    y: Slice,
    rstd: Slice,
    heads: impl Into<Heads<Size>>,
    eps: f32,
) {
    let heads = heads.into();
    heads.check(&[x, y], w, rstd);
    let params = ForwardParams::new(heads, eps);
    let grid = Grid::cover(heads.vectors().max, 1);
    s.push(&FORWARD, &params, &[x, w, y, rstd], grid)
        .size("vectors", heads.vectors());
}

/// `dx` = (or, with `accumulate`, +=) the gradient of `x`, given that of `y`; all three laid out as `x`.
pub fn backward(
    s: &mut Stream,
    x: Slice,
    w: Slice,
    rstd: Slice,
    dy: Slice,
    dx: Slice,
    heads: impl Into<Heads<Size>>,
    accumulate: bool,
) {
    let heads = heads.into();
    heads.check(&[x, dy, dx], w, rstd);
    let params = BackwardParams::new(heads, accumulate as u32);
    let grid = Grid::cover(heads.vectors().max, 1);
    s.push(&BACKWARD, &params, &[x, w, rstd, dy, dx], grid)
        .size("vectors", heads.vectors());
}

/// Turns the gradient of `y` in `g` into that of `x`; words of `g` outside the vectors stay.
pub fn backward_in_place(
    s: &mut Stream,
    x: Slice,
    w: Slice,
    rstd: Slice,
    g: Slice,
    heads: impl Into<Heads<Size>>,
) {
    let heads = heads.into();
    heads.check(&[x, g], w, rstd);
    let params = InPlaceParams::new(heads);
    let grid = Grid::cover(heads.vectors().max, 1);
    s.push(&BACKWARD_IN_PLACE, &params, &[x, w, rstd, g], grid)
        .size("vectors", heads.vectors());
}

/// Vectors summed by one invocation of the weight gradient's first stage.
const CHUNK: usize = 64;

/// Words of `scratch` that [`weight_gradient`] needs.
pub fn scratch_words(heads: impl Into<Heads<Size>>) -> usize {
    let heads = heads.into();
    heads.vectors().max.div_ceil(CHUNK) * heads.dim
}

/// `dw += ` the gradient of `w`; before any [`backward_in_place`] over `dy`.
pub fn weight_gradient(
    s: &mut Stream,
    x: Slice,
    rstd: Slice,
    dy: Slice,
    dw: Slice,
    scratch: Slice,
    heads: impl Into<Heads<Size>>,
) {
    let heads = heads.into();
    heads.check(&[x, dy], dw, rstd);
    let params = PartialParams::new(heads, CHUNK as u32);
    let words = scratch_words(heads);
    assert!(scratch.len as usize >= words);
    let grid = Grid::cover(words, 64);
    s.push(&WEIGHT_PARTIAL, &params, &[x, rstd, dy, scratch], grid)
        .size("vectors", heads.vectors());
    let chunks = heads.vectors().groups(CHUNK);
    let params = SumParams {
        chunks: chunks.max as u32,
        dim: heads.dim as u32,
    };
    s.push(
        &WEIGHT_SUM,
        &params,
        &[scratch, dw],
        Grid::cover(heads.dim, 64),
    )
    .size("chunks", chunks);
}

fn forward_cost(launch: &Launch) -> Cost {
    let heads = launch.read_params::<ForwardParams>().heads();
    heads.cost(4, launch.width(0) + launch.width(2))
}

fn backward_cost(launch: &Launch) -> Cost {
    let p: BackwardParams = launch.read_params();
    let dx = launch.width(4) * (1 + p.accumulate as u64);
    p.heads().cost(8, launch.width(0) + launch.width(3) + dx)
}

fn backward_in_place_cost(launch: &Launch) -> Cost {
    let heads = launch.read_params::<InPlaceParams>().heads();
    heads.cost(8, launch.width(0) + 2 * launch.width(3))
}

fn weight_partial_cost(launch: &Launch) -> Cost {
    let p: PartialParams = launch.read_params();
    let partial = (p.vectors.div_ceil(p.chunk) - 1) as u64 * p.dim as u64;
    let bytes = launch.width(0) + launch.width(2);
    let mut cost = p.heads().cost(3, bytes);
    cost.bytes += 4 * partial;
    cost
}

fn weight_sum_cost(launch: &Launch) -> Cost {
    let p: SumParams = launch.read_params();
    let [chunks, dim] = [p.chunks, p.dim].map(u64::from);
    Cost {
        operations: chunks * dim,
        bytes: 4 * (chunks + 2) * dim,
    }
}

/// Odd sizes, and heads inside wider rows.
fn shapes() -> Vec<Heads> {
    let inside = |rows, per_row, stride, offset, dim| Heads {
        rows,
        per_row,
        stride,
        offset,
        dim,
    };
    vec![
        Heads::plain(1, 3),
        Heads::plain(3, 7),
        Heads::plain(65, 64),
        Heads::plain(129, 65),
        Heads::plain(5, 257),
        Heads::plain(9, 520),
        inside(7, 3, 31, 5, 6),
        inside(67, 2, 160, 64, 16),
        inside(33, 3, 44, 8, 12),
    ]
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for heads in shapes() {
        let n = heads.rows * heads.stride;
        let (x, w) = (h.random("x", n), h.random("w", heads.dim));
        let (y, rstd) = (h.real("y", n), h.random("rstd", heads.vectors()));
        let (dy, dx, g) = (h.real("dy", n), h.random("dx", n), h.real("g", n));
        let heads_x = h.real("heads' x", n);
        let dw = h.random("dw", heads.dim);
        let scratch = h.random("scratch", scratch_words(heads));
        let [xs, ws, rs, dys] = [&x, &w, &rstd, &dy].map(|b| b.slice());
        let s = h.stream();
        forward(s, xs, ws, y.slice(), rs, heads, 1e-6);
        backward(s, xs, ws, rs, dys, dx.slice(), heads, false);
        backward(s, xs, ws, rs, dys, dx.slice(), heads, true);
        weight_gradient(s, xs, rs, dys, dw.slice(), scratch.slice(), heads);
        let xs = heads_x.slice();
        forward(s, xs, ws, y.slice(), rs, heads, 1e-6);
        weight_gradient(s, xs, rs, dys, dw.slice(), scratch.slice(), heads);
        backward_in_place(s, xs, ws, rs, g.slice(), heads);
        h.run()?;
        for buffer in [&y, &rstd, &dx, &dw, &scratch, &g] {
            h.read_f32(buffer)?;
        }
    }
    Ok(())
}

mod twin;

#[cfg(test)]
mod tests;
