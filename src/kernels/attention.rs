//! Forest attention with grouped queries (spec 3): every row attends to its prompt and to its chain of ancestors, as
//! its [`Row`](super::rows::Row) says; `o = softmax(q . k / sqrt(hd)) v` per query head.
//!
//! Rows need no padding and no mask: a row's keys are listed by its record. The softmax is online over tiles of keys and
//! the backward pass recomputes probabilities from the logarithm of the sum (Dao et al., "FlashAttention", 2022):
//! `ds = p (d_o . v - delta)`, `delta = o . d_o`, `dq = ds k / sqrt(hd)`, `dk = sum ds q / sqrt(hd)`,
//! `dv = sum p d_o`. A row of `dkv` belongs to one owner that sums over the rows `q_begin .. q_end`: a fixed order.
//!
//! Floor for A attended (row, key) pairs ([`ForestSize`], which the parameters do not hold):
//! forward 4 A H hd operations, backward 14 A H hd (6 for dq and 8 for dk and dv, the scores recomputed in each) and
//! 2 T H hd for delta; each of q, kv, o and their gradients once, 4 bytes an element.
//!
//! Forms. In the portable text one workgroup of 64 owns a (row, head): enough groups at any batch, few barriers, but every
//! pair loads its key, its value and its query anew, and every invocation takes every exponential of the forward pass. With
//! `tiled` a workgroup owns 32 rows of a head and goes over 32 keys at a time in workgroup memory; an invocation has 4 x 4
//! scores and 4 rows of an eighth of the columns. For a pair and column of the head:
//!
//! | | multiply-adds | words from buffers | from workgroup memory | exponentials a pair |
//! |---|---:|---:|---:|---:|
//! | forward, `portable` | 2 | 3 | 192 / hd | 64 |
//! | `tiled`, where all of a tile is attended to | 2 | 3/32 | 1 | 1.25 |
//! | query gradient, `portable` | 3 | 5 | 128 / hd | 1 |
//! | `tiled` | 3 | 5/32 | 1.5 | 1 |
//! | key and value gradient, `portable` | 4 | 6 | 192 / hd | 1 |
//! | `tiled` | 4 | 6/32 | 2 | 1 |
//!
//! The gradient of keys and values is the same with the parts exchanged: a workgroup owns 32 keys and goes over queries.
//! `tiled_wide` is the same text with registers for 128 columns instead of 64.
//!
//! Elements that a row does not attend to are worked on too. Of packed causal documents of 16, 36, 128 and 512 tokens the
//! attended share of all tiles is 27, 31, 81 and 94%; at a quarter a pair still takes an eighth of the portable loads. A
//! decoder's tile of one row a document would be 3%: where the rows attend to less than an eighth of what their prompts
//! cover together, each row's keys are fetched alone, in fours, as those of chains always are, with 3 words a pair and
//! column and one exponential a pair. What remains against `tiled` in decoding is that few rows make few workgroups,
//! T H / 32: whether those fill a GPU depends on the GPU, so `fits` asks for one tile of rows and the measurement decides.
//!
//! The forms for SIMD on the host's processor have no barriers: with `direct` an invocation owns columns of a (row, head),
//! with `subgroup` eight rows of a head go over the keys that any of them attends to, each of which is loaded once.

mod twin;

use super::harness::{Harness, TestBuffer};
use super::rows::{Dims, NONE, Row};
use crate::device::{Cost, Form, Grid, Home, Kernel, Launch, Size, Slice, Stream};
use crate::forest::ForestSize;
use crate::{bindings, params};
use anyhow::Result;
use std::iter::successors;

params! {
    Params { tokens: u32, heads: u32, kv_heads: u32, head_dim: u32, scale: f32 }
}

params! {
    /// Queries before row `first_query` take no part.
    KeyValueParams {
        tokens: u32, heads: u32, kv_heads: u32, head_dim: u32, scale: f32, first_query: u32,
    }
}

params! {
    DeltaParams { vectors: u32, head_dim: u32 }
}

/// An invocation for each vector and block of its columns.
const fn direct(source: &'static str, grid: fn(&[u32]) -> Grid) -> Form {
    Form::direct(source, |w| w[3].is_multiple_of(4), grid)
}

/// An invocation for each vector of up to 64 columns, eight neighbouring rows of a head together.
const fn subgroup(source: &'static str, grid: fn(&[u32]) -> Grid) -> Form {
    Form {
        name: "subgroup",
        subgroup: 8,
        ..Form::direct(source, |w| w[3].is_multiple_of(4) && w[3] <= 64, grid)
    }
}

/// Rows of a workgroup's tile in the forms for GPUs (`shaders/shared/tile.wgsl`).
const TILE: u32 = 32;

/// A workgroup for each tile of rows and head of up to 64 columns. From a tile of rows on.
const fn tiled(source: &'static str, grid: fn(&[u32]) -> Grid) -> Form {
    Form {
        name: "tiled",
        home: Home::Hardware,
        constants: &[("PIECES", 2.0)],
        ..Form::direct(source, |w| fits_tiles(w) && w[3] <= 64, grid)
    }
}

/// The same with registers for 128 columns.
const fn tiled_wide(source: &'static str, grid: fn(&[u32]) -> Grid) -> Form {
    let fits = |w: &[u32]| fits_tiles(w) && w[3] > 64 && w[3] <= 128;
    Form {
        name: "tiled_wide",
        constants: &[("PIECES", 4.0)],
        fits,
        ..tiled(source, grid)
    }
}

fn fits_tiles(w: &[u32]) -> bool {
    w[0] >= TILE && w[3].is_multiple_of(4)
}

fn tiled_grid(rows: u32, heads: u32) -> Grid {
    Grid(rows.div_ceil(TILE) * heads)
}

fn direct_grid(vectors: u32, head_dim: u32) -> Grid {
    Grid((vectors * head_dim.div_ceil(64)).div_ceil(32))
}

fn subgroup_grid(rows: u32, heads: u32) -> Grid {
    Grid(rows.div_ceil(8) * heads)
}

const TILED_FORWARD: &str = include_str!("../../shaders/attention_tiled.wgsl");
const TILED_QUERY: &str = include_str!("../../shaders/attention_backward_query_tiled.wgsl");
const TILED_KEY_VALUE: &str = include_str!("../../shaders/attention_backward_key_value_tiled.wgsl");

pub static FORWARD: Kernel = Kernel {
    name: "attention",
    source: include_str!("../../shaders/attention.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[
        subgroup(include_str!("../../shaders/attention_subgroup.wgsl"), |w| {
            subgroup_grid(w[0], w[1])
        }),
        tiled(TILED_FORWARD, |w| tiled_grid(w[0], w[1])),
        tiled_wide(TILED_FORWARD, |w| tiled_grid(w[0], w[1])),
        direct(include_str!("../../shaders/attention_direct.wgsl"), |w| {
            direct_grid(w[0] * w[1], w[3])
        }),
    ],
    params: Params::FIELDS,
    bindings: bindings![rows: In U32, parent: In U32, q: In Real, kv: In Real, o: Out Real, lse: Out F32],
    twin: twin::forward,
    cost: forward_cost,
};

pub static DELTA: Kernel = Kernel {
    name: "attention_delta",
    source: include_str!("../../shaders/attention_delta.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: DeltaParams::FIELDS,
    bindings: bindings![o: In Real, d_o: In Real, delta: Out F32],
    twin: twin::delta,
    cost: delta_cost,
};

pub static BACKWARD_QUERY: Kernel = Kernel {
    name: "attention_backward_query",
    source: include_str!("../../shaders/attention_backward_query.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[
        subgroup(
            include_str!("../../shaders/attention_backward_query_subgroup.wgsl"),
            |w| subgroup_grid(w[0], w[1]),
        ),
        tiled(TILED_QUERY, |w| tiled_grid(w[0], w[1])),
        tiled_wide(TILED_QUERY, |w| tiled_grid(w[0], w[1])),
        direct(
            include_str!("../../shaders/attention_backward_query_direct.wgsl"),
            |w| direct_grid(w[0] * w[1], w[3]),
        ),
    ],
    params: Params::FIELDS,
    bindings: bindings![
        rows: In U32, parent: In U32, q: In Real, kv: In Real, lse: In F32, d_o: In Real, delta: In F32, dq: Out Real
    ],
    twin: twin::backward_query,
    cost: backward_query_cost,
};

pub static BACKWARD_KEY_VALUE: Kernel = Kernel {
    name: "attention_backward_key_value",
    source: include_str!("../../shaders/attention_backward_key_value.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[
        subgroup(
            include_str!("../../shaders/attention_backward_key_value_subgroup.wgsl"),
            |w| subgroup_grid(w[0], w[2]),
        ),
        tiled(TILED_KEY_VALUE, |w| tiled_grid(w[0], w[2])),
        tiled_wide(TILED_KEY_VALUE, |w| tiled_grid(w[0], w[2])),
        direct(
            include_str!("../../shaders/attention_backward_key_value_direct.wgsl"),
            |w| direct_grid(w[0] * w[2], w[3]),
        ),
    ],
    params: KeyValueParams::FIELDS,
    bindings: bindings![
        rows: In U32, q: In Real, kv: In Real, lse: In F32, d_o: In Real, delta: In F32, dkv: Out Real
    ],
    twin: twin::backward_key_value,
    cost: backward_key_value_cost,
};

/// The widest head: four columns for each of a workgroup's 64 lanes.
pub const MAX_HEAD_DIM: usize = 256;

impl Params {
    fn new(dims: Dims<Size>) -> Self {
        assert!(dims.head_dim <= MAX_HEAD_DIM && dims.heads.is_multiple_of(dims.kv_heads));
        Params {
            tokens: dims.tokens.max as u32,
            heads: dims.heads as u32,
            kv_heads: dims.kv_heads as u32,
            head_dim: dims.head_dim as u32,
            scale: 1.0 / (dims.head_dim as f32).sqrt(),
        }
    }
}

/// `o` (`[T, H hd]`) and `lse` (`[T, H]`) for the queries `q` (`[T, H hd]`) of `rows`, over the cache `kv`
/// (`[slots, 2 Hk hd]`); `parent` has an entry for every slot on a chain. A row without keys gets 0 and the mask
/// constant.
pub fn forward(
    s: &mut Stream,
    rows: Slice,
    parent: Slice,
    q: Slice,
    kv: Slice,
    o: Slice,
    lse: Slice,
    dims: impl Into<Dims<Size>>,
) {
    let dims = dims.into();
    let slices = [rows, parent, q, kv, o, lse];
    let grid = Grid::cover(dims.tokens.max * dims.heads, 1);
    s.push(&FORWARD, &Params::new(dims), &slices, grid)
        .size("tokens", dims.tokens);
}

/// The buffers of [`backward`], as the forward pass left them, and what it writes.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    pub rows: Slice,
    pub parent: Slice,
    pub q: Slice,
    pub kv: Slice,
    pub o: Slice,
    pub lse: Slice,
    /// `[T, H hd]`: the gradient of `o`.
    pub d_o: Slice,
    /// `[T, H]`: scratch.
    pub delta: Slice,
    /// `[T, H hd]` and `[T, 2 Hk hd]`: overwritten.
    pub dq: Slice,
    pub dkv: Slice,
}

/// `dq` and `dkv` from `d_o`, for training forwards: every row's slot is its own index. Queries before row `first`, a
/// multiple of [`crate::device::ALIGN_WORDS`], take no part: their `dq` is left alone, and `dkv` of all rows counts the others only.
pub fn backward(s: &mut Stream, on: Backward, dims: impl Into<Dims<Size>>, first: usize) {
    let dims = dims.into();
    let queries = Dims {
        tokens: dims.tokens.part(first, dims.tokens.max),
        ..dims
    };
    let from = |slice: Slice, width: usize| slice.skip(first * width);
    let (rows, width) = (from(on.rows, Row::WORDS), dims.q_width());
    let [q, o, d_o, dq] = [on.q, on.o, on.d_o, on.dq].map(|slice| from(slice, width));
    let [lse, delta] = [on.lse, on.delta].map(|slice| from(slice, dims.heads));
    let vectors = queries.tokens * dims.heads;
    let params = DeltaParams {
        vectors: vectors.max as u32,
        head_dim: dims.head_dim as u32,
    };
    let grid = Grid::cover(vectors.max, 64);
    s.push(&DELTA, &params, &[o, d_o, delta], grid)
        .size("vectors", vectors);
    let slices = [rows, on.parent, q, on.kv, lse, d_o, delta, dq];
    let grid = Grid::cover(vectors.max, 1);
    s.push(&BACKWARD_QUERY, &Params::new(queries), &slices, grid)
        .size("tokens", queries.tokens);
    let p = Params::new(dims);
    let params = KeyValueParams {
        tokens: p.tokens,
        heads: p.heads,
        kv_heads: p.kv_heads,
        head_dim: p.head_dim,
        scale: p.scale,
        first_query: first as u32,
    };
    let slices = [on.rows, on.q, on.kv, on.lse, on.d_o, on.delta, on.dkv];
    let grid = Grid::cover(dims.tokens.max * dims.kv_heads, 1);
    s.push(&BACKWARD_KEY_VALUE, &params, &slices, grid)
        .size("tokens", dims.tokens);
}

/// What the costs have in common: attended pairs times H hd, and the words of queries, of keys and values that are
/// attended to, of a number per query and head, and of row records.
fn sizes(forest: ForestSize, [tokens, queries, heads, kv_heads, width]: [u32; 5]) -> [u64; 5] {
    let [queries, keys, width] = [queries * heads, 2 * kv_heads, width].map(u64::from);
    [
        forest.pairs * heads as u64 * width,
        queries * width,
        forest.keys * keys * width,
        queries,
        tokens as u64 * Row::WORDS as u64,
    ]
}

impl Params {
    fn sizes(&self, forest: ForestSize) -> [u64; 5] {
        let of = [
            self.tokens,
            self.tokens,
            self.heads,
            self.kv_heads,
            self.head_dim,
        ];
        sizes(forest, of)
    }
}

fn forward_cost(launch: &Launch) -> Cost {
    let [pairs, q, kv, lse, rows] = launch.read_params::<Params>().sizes(launch.forest);
    Cost {
        operations: 4 * pairs,
        bytes: launch.width(2) * (2 * q + kv) + 4 * (lse + rows),
    }
}

fn delta_cost(launch: &Launch) -> Cost {
    let p: DeltaParams = launch.read_params();
    let vectors = p.vectors as u64;
    let n = vectors * p.head_dim as u64;
    Cost {
        operations: 2 * n,
        bytes: launch.width(0) * 2 * n + 4 * vectors,
    }
}

fn backward_query_cost(launch: &Launch) -> Cost {
    let [pairs, q, kv, lse, rows] = launch.read_params::<Params>().sizes(launch.forest);
    Cost {
        operations: 6 * pairs,
        bytes: launch.width(2) * (3 * q + kv) + 4 * (2 * lse + rows),
    }
}

fn backward_key_value_cost(launch: &Launch) -> Cost {
    let p: KeyValueParams = launch.read_params();
    let queries = p.tokens - p.first_query;
    let of = [p.tokens, queries, p.heads, p.kv_heads, p.head_dim];
    let [pairs, q, kv, lse, rows] = sizes(launch.forest, of);
    Cost {
        operations: 8 * pairs,
        bytes: launch.width(1) * (2 * q + 2 * kv) + 4 * (2 * lse + rows),
    }
}

/// The buffers of one forward and backward, on random data.
struct Case {
    dims: Dims,
    size: ForestSize,
    rows: TestBuffer,
    parent: TestBuffer,
    q: TestBuffer,
    kv: TestBuffer,
    o: TestBuffer,
    lse: TestBuffer,
    d_o: TestBuffer,
    delta: TestBuffer,
    dq: TestBuffer,
    dkv: TestBuffer,
}

impl Case {
    fn new(h: &mut Harness, rows: &[Row], parent: &[u32], dims: Dims) -> Self {
        assert_eq!(rows.len(), dims.tokens);
        let (q, lse) = (dims.tokens * dims.q_width(), dims.tokens * dims.heads);
        let up = |slot: u32| (slot != NONE).then_some(slot);
        let chain = |r: &Row| successors(up(r.chain), |&slot| up(parent[slot as usize])).count();
        let seen = |r: &Row| (r.kv_end - r.kv_begin) as u64 + chain(r) as u64;
        Case {
            dims,
            size: ForestSize {
                rows: rows.len() as u64,
                keys: parent.len() as u64,
                pairs: rows.iter().map(seen).sum(),
            },
            rows: h.u32("rows", bytemuck::cast_slice(rows)),
            parent: h.u32("parent", parent),
            q: h.real("q", q),
            kv: h.real("kv", parent.len() * dims.kv_width()),
            o: h.real("o", q),
            lse: h.random("lse", lse),
            d_o: h.real("d_o", q),
            delta: h.random("delta", lse),
            dq: h.real("dq", q),
            dkv: h.real("dkv", dims.tokens * dims.kv_width()),
        }
    }

    fn forward(&self, s: &mut Stream) {
        let [rows, parent, q, kv] =
            [&self.rows, &self.parent, &self.q, &self.kv].map(|b| b.slice());
        let (o, lse) = (self.o.slice(), self.lse.slice());
        s.forest = self.size;
        forward(s, rows, parent, q, kv, o, lse, self.dims);
    }

    fn backward(&self, s: &mut Stream, first: usize) {
        s.forest = self.size;
        let on = Backward {
            rows: self.rows.slice(),
            parent: self.parent.slice(),
            q: self.q.slice(),
            kv: self.kv.slice(),
            o: self.o.slice(),
            lse: self.lse.slice(),
            d_o: self.d_o.slice(),
            delta: self.delta.slice(),
            dq: self.dq.slice(),
            dkv: self.dkv.slice(),
        };
        backward(s, on, self.dims, first);
    }
}

/// Documents of one prompt and a chain of `nodes` tree nodes each, causal, packed as for training.
fn chains(documents: &[(usize, usize)]) -> (Vec<Row>, Vec<u32>) {
    let (mut rows, mut parent) = (Vec::new(), Vec::new());
    for &(prompt, nodes) in documents {
        let begin = rows.len() as u32;
        let (body, end) = (begin + prompt as u32, begin + (prompt + nodes) as u32);
        for slot in begin..end {
            let node = slot >= body;
            rows.push(Row {
                position: slot - begin,
                kv_begin: begin,
                kv_end: if node { body } else { slot + 1 },
                slot,
                chain: if node { slot } else { NONE },
                q_begin: slot,
                q_end: end,
                ..Row::INACTIVE
            });
            parent.push(if slot > body { slot - 1 } else { NONE });
        }
    }
    (rows, parent)
}

pub fn cases(h: &mut Harness) -> Result<()> {
    let forests: [&[(usize, usize)]; 5] = [
        &[(1, 1)],
        &[(1, 3), (7, 2)],
        &[(64, 4), (3, 66)],
        &[(65, 1), (2, 5), (61, 7)],
        &[(1, 1); 40],
    ];
    let shapes = [
        (1, 1, 1),
        (2, 1, 6),
        (3, 3, 20),
        (4, 2, 64),
        (2, 1, 100),
        (2, 1, 128),
        (2, 1, 129),
        (3, 1, 136),
    ];
    for documents in forests {
        for (heads, kv_heads, head_dim) in shapes {
            let (mut rows, mut parent) = chains(documents);
            rows.push(Row::INACTIVE);
            parent.push(NONE);
            let dims = Dims {
                tokens: rows.len(),
                heads,
                kv_heads,
                head_dim,
            };
            let case = Case::new(h, &rows, &parent, dims);
            case.forward(h.stream());
            case.backward(h.stream(), 0);
            h.run()?;
            for buffer in [&case.o, &case.lse, &case.delta, &case.dq, &case.dkv] {
                h.read_f32(buffer)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
