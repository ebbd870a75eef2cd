//! Rotary positions: turns the pair `(i, i + hd/2)` of every query and key head by `position * theta^(-2i/hd)`, and
//! files keys and values under their slots of the cache.
//!
//! Su et al., "RoFormer" (2021), with the halves paired as in Hugging Face's Llama and Qwen2. Sines and cosines come
//! from a table made on the host in f64: GPUs' own are not accurate at large angles. The gradient is the inverse
//! rotation.
//!
//! Floor: 3 operations per rotated element; each element read once and written once (8 bytes), a record and hd words of the
//! table per row.

use super::harness::Harness;
use super::rows::{Dims, NONE, Row, records};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::{bindings, params};
use anyhow::Result;
use rayon::prelude::*;

params! {
    Params { tokens: u32, heads: u32, kv_heads: u32, head_dim: u32 }
}

pub static FORWARD: Kernel = Kernel {
    name: "rope",
    source: include_str!("../../shaders/rope.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![rows: In U32, table: In F32, qk: In F32, qkv: In F32, q: Out F32, kv: Out F32],
    twin: forward_twin,
    cost,
};

pub static BACKWARD: Kernel = Kernel {
    name: "rope_backward",
    source: include_str!("../../shaders/rope_backward.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![rows: In U32, table: In F32, dq: In F32, dkv: In F32, dqkv: Out F32],
    twin: backward_twin,
    cost,
};

impl Params {
    fn new(dims: Dims) -> Self {
        assert!(dims.head_dim.is_multiple_of(2), "rotary heads are even");
        Params {
            tokens: dims.tokens as u32,
            heads: dims.heads as u32,
            kv_heads: dims.kv_heads as u32,
            head_dim: dims.head_dim as u32,
        }
    }

    fn dims(&self) -> Dims {
        Dims {
            tokens: self.tokens as usize,
            heads: self.heads as usize,
            kv_heads: self.kv_heads as usize,
            head_dim: self.head_dim as usize,
        }
    }
}

/// Cosine and sine of every angle, `[max_positions, head_dim / 2, 2]`.
pub fn table(max_positions: usize, head_dim: usize, theta: f64) -> Vec<f32> {
    let mut out = Vec::with_capacity(max_positions * head_dim);
    for position in 0..max_positions {
        for i in 0..head_dim / 2 {
            let frequency = theta.powf(-2.0 * i as f64 / head_dim as f64);
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            out.extend([cos as f32, sin as f32]);
        }
    }
    out
}

fn grid(dims: Dims) -> Grid {
    Grid::cover(dims.tokens * dims.qkv_width() / 2, 64)
}

/// Rotates the queries of `qk` (`[T, (H + 2 Hk) hd]`) into `q` (`[T, H hd]`) and its keys into `kv`
/// (`[slots, 2 Hk hd]`), with the values of `qkv` (laid out as `qk`, and possibly the same slice) beside them. Rows
/// without a slot write no key or value. Every position must be in `table`.
pub fn forward(
    s: &mut Stream,
    rows: Slice,
    table: Slice,
    qk: Slice,
    qkv: Slice,
    q: Slice,
    kv: Slice,
    dims: Dims,
) {
    let slices = [rows, table, qk, qkv, q, kv];
    s.push(&FORWARD, &Params::new(dims), &slices, grid(dims));
}

/// `dqkv` (`[T, (H + 2 Hk) hd]`) from `dq` (`[T, H hd]`) and `dkv` (`[T, 2 Hk hd]`, by row: every row's slot is its
/// own index).
pub fn backward(
    s: &mut Stream,
    rows: Slice,
    table: Slice,
    dq: Slice,
    dkv: Slice,
    dqkv: Slice,
    dims: Dims,
) {
    let slices = [rows, table, dq, dkv, dqkv];
    s.push(&BACKWARD, &Params::new(dims), &slices, grid(dims));
}

fn cost(launch: &Launch) -> Cost {
    let dims = launch.read_params::<Params>().dims();
    let [tokens, width, head_dim] =
        [dims.tokens, dims.qkv_width(), dims.head_dim].map(|n| n as u64);
    let rotated = (dims.q_width() + dims.kv_width() / 2) as u64;
    Cost {
        operations: 3 * tokens * rotated,
        bytes: 4 * tokens * (2 * width + head_dim + Row::WORDS as u64),
    }
}

/// `to` = the heads of `from`, each turned by the angles in `table` (those of one position), or back if `sign` is -1.
fn turn(from: &[f32], to: &mut [f32], table: &[f32], head_dim: usize, sign: f32) {
    let half = head_dim / 2;
    for (from, to) in from
        .chunks_exact(head_dim)
        .zip(to.chunks_exact_mut(head_dim))
    {
        let (a, b) = from.split_at(half);
        let (x, y) = to.split_at_mut(half);
        for i in 0..half {
            let (c, s) = (table[2 * i], sign * table[2 * i + 1]);
            x[i] = a[i] * c - b[i] * s;
            y[i] = b[i] * c + a[i] * s;
        }
    }
}

/// Rows per task of a twin: enough work to pay for handing it out.
fn rows_per_task(dims: &Dims) -> usize {
    (16_384 / dims.qkv_width()).max(1)
}

/// What writes the cache: the rows' projections and the table.
struct KeyValues<'a> {
    dims: Dims,
    rows: &'a [Row],
    table: &'a [f32],
    qk: &'a [f32],
    qkv: &'a [f32],
    /// Whether the slots ascend with the rows, so that rows can be parted between threads together with the cache.
    ascending: bool,
}

impl KeyValues<'_> {
    /// Files rows `from .. to`; `kv` starts at slot `first`.
    fn file(&self, from: usize, to: usize, first: usize, kv: &mut [f32]) {
        let width = self.dims.kv_width();
        let middle = (from + to) / 2;
        let cut = self.rows[middle..to].iter().find(|r| r.slot != NONE);
        if self.ascending
            && to - from > rows_per_task(&self.dims)
            && let Some(cut) = cut
        {
            let cut = cut.slot as usize;
            let (left, right) = kv.split_at_mut((cut - first) * width);
            rayon::join(
                || self.file(from, middle, first, left),
                || self.file(middle, to, cut, right),
            );
            return;
        }
        let (hd, keys) = (self.dims.head_dim, width / 2);
        for (t, row) in (from..to).zip(&self.rows[from..to]) {
            if row.slot == NONE {
                continue;
            }
            let angles = &self.table[row.position as usize * hd..][..hd];
            let at = t * self.dims.qkv_width() + self.dims.q_width();
            let to = &mut kv[(row.slot as usize - first) * width..][..width];
            turn(&self.qk[at..][..keys], &mut to[..keys], angles, hd, 1.0);
            to[keys..].copy_from_slice(&self.qkv[at + keys..][..keys]);
        }
    }
}

fn forward_twin(args: &Args) {
    let dims = args.params::<Params>().dims();
    let rows = records(args.u32(0), dims.tokens);
    let (table, qk, hd) = (args.f32(1), args.f32(2), dims.head_dim);
    args.f32_mut(4)[..dims.tokens * dims.q_width()]
        .par_chunks_exact_mut(dims.q_width())
        .zip(qk.par_chunks_exact(dims.qkv_width()))
        .zip(rows)
        .with_min_len(rows_per_task(&dims))
        .for_each(|((q, qk), row)| {
            let angles = &table[row.position as usize * hd..][..hd];
            turn(&qk[..dims.q_width()], q, angles, hd, 1.0);
        });
    let filled = || rows.iter().map(|r| r.slot).filter(|&slot| slot != NONE);
    let work = KeyValues {
        dims,
        rows,
        table,
        qk,
        qkv: args.f32(3),
        ascending: filled().zip(filled().skip(1)).all(|(a, b)| a < b),
    };
    work.file(0, dims.tokens, 0, args.f32_mut(5));
}

fn backward_twin(args: &Args) {
    let dims = args.params::<Params>().dims();
    let rows = records(args.u32(0), dims.tokens);
    let (table, hd) = (args.f32(1), dims.head_dim);
    let (q_width, keys) = (dims.q_width(), dims.kv_width() / 2);
    args.f32_mut(4)[..dims.tokens * dims.qkv_width()]
        .par_chunks_exact_mut(dims.qkv_width())
        .zip(args.f32(2).par_chunks_exact(q_width))
        .zip(args.f32(3).par_chunks_exact(2 * keys))
        .zip(rows)
        .with_min_len(rows_per_task(&dims))
        .for_each(|(((out, dq), dkv), row)| {
            let angles = &table[row.position as usize * hd..][..hd];
            turn(dq, &mut out[..q_width], angles, hd, -1.0);
            turn(&dkv[..keys], &mut out[q_width..][..keys], angles, hd, -1.0);
            out[q_width + keys..].copy_from_slice(&dkv[keys..]);
        });
}

/// Shapes with the slots of their rows: in order, with gaps, shuffled, absent.
fn shapes(h: &mut Harness) -> Vec<(Dims, Vec<u32>)> {
    let mut out = Vec::new();
    for (tokens, heads, kv_heads, head_dim) in [
        (1, 1, 1, 2),
        (7, 2, 1, 6),
        (65, 3, 3, 10),
        (131, 4, 2, 64),
        (5, 8, 2, 128),
    ] {
        let dims = Dims {
            tokens,
            heads,
            kv_heads,
            head_dim,
        };
        let ordered: Vec<u32> = (0..tokens as u32).collect();
        let gaps = ordered
            .iter()
            .map(|&t| if t % 5 == 3 { NONE } else { 2 * t })
            .collect();
        let mut shuffled = ordered.clone();
        h.draws().shuffle(&mut shuffled);
        out.extend([(dims, ordered), (dims, gaps), (dims, shuffled)]);
    }
    out
}

const POSITIONS: usize = 37;

fn random_rows(h: &mut Harness, slots: &[u32]) -> Vec<Row> {
    slots
        .iter()
        .map(|&slot| Row {
            position: h.draws().below(POSITIONS) as u32,
            slot,
            ..Row::INACTIVE
        })
        .collect()
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (dims, slots) in shapes(h) {
        let records = random_rows(h, &slots);
        let rows = h.u32("rows", bytemuck::cast_slice(&records));
        let table = h.f32("table", &table(POSITIONS, dims.head_dim, 10_000.0));
        let qk = h.random("qk", dims.tokens * dims.qkv_width());
        let qkv = h.random("qkv", dims.tokens * dims.qkv_width());
        let q = h.random("q", dims.tokens * dims.q_width());
        let kv = h.random("kv", 2 * dims.tokens * dims.kv_width());
        let dqkv = h.random("dqkv", dims.tokens * dims.qkv_width());
        let [r, t, qks, qkvs, qs, kvs] = [&rows, &table, &qk, &qkv, &q, &kv].map(|b| b.slice());
        forward(h.stream(), r, t, qks, qkvs, qs, kvs, dims);
        backward(h.stream(), r, t, qs, kvs, dqkv.slice(), dims);
        h.run()?;
        for buffer in [&q, &kv, &dqkv] {
            h.read_f32(buffer)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::harness::devices;

    const THETA: f64 = 500.0;

    /// Head `head` of `from` turned by the angles of `position`, in f64.
    fn turned(from: &[f64], head: usize, hd: usize, position: f64) -> Vec<f64> {
        let x = &from[head * hd..][..hd];
        (0..hd)
            .map(|j| {
                let i = j % (hd / 2);
                let angle = position * THETA.powf(-2.0 * i as f64 / hd as f64);
                let partner = if j < hd / 2 { -x[j + hd / 2] } else { x[i] };
                x[j] * angle.cos() + partner * angle.sin()
            })
            .collect()
    }

    #[test]
    fn shader_equals_twin() {
        devices::lockstep(cases);
    }

    #[test]
    fn rotation_and_its_gradient_match_f64() {
        devices::each(|h| {
            for (dims, slots) in shapes(h) {
                let (hd, heads) = (dims.head_dim, dims.heads);
                let records = random_rows(h, &slots);
                let rows = h.u32("rows", bytemuck::cast_slice(&records));
                let table = h.f32("table", &table(POSITIONS, hd, THETA));
                let qk = h.random("qk", dims.tokens * dims.qkv_width());
                let qkv = h.random("qkv", dims.tokens * dims.qkv_width());
                let q = h.random("q", dims.tokens * dims.q_width());
                let kv = h.random("kv", 2 * dims.tokens * dims.kv_width());
                let dq = h.random("dq", dims.tokens * dims.q_width());
                let dkv = h.random("dkv", dims.tokens * dims.kv_width());
                let dqkv = h.random("dqkv", dims.tokens * dims.qkv_width());
                let [r, t, qks, qkvs] = [&rows, &table, &qk, &qkv].map(|b| b.slice());
                let s = h.stream();
                forward(s, r, t, qks, qkvs, q.slice(), kv.slice(), dims);
                backward(s, r, t, dq.slice(), dkv.slice(), dqkv.slice(), dims);
                h.run().unwrap();

                let (mut want_q, mut want_kv, mut want_d) = (Vec::new(), kv.f64(), Vec::new());
                let (qk, qkv, dq, dkv) = (qk.f64(), qkv.f64(), dq.f64(), dkv.f64());
                for (t, row) in records.iter().enumerate() {
                    let position = row.position as f64;
                    let x = &qk[t * dims.qkv_width()..][..dims.qkv_width()];
                    for head in 0..heads {
                        want_q.extend(turned(x, head, hd, position));
                        let dq = &dq[t * dims.q_width()..];
                        want_d.extend(turned(dq, head, hd, -position));
                    }
                    let dkv = &dkv[t * dims.kv_width()..][..dims.kv_width()];
                    for head in 0..dims.kv_heads {
                        want_d.extend(turned(dkv, head, hd, -position));
                    }
                    want_d.extend(&dkv[dims.kv_width() / 2..]);
                    if row.slot == NONE {
                        continue;
                    }
                    let mut filed: Vec<f64> = (heads..heads + dims.kv_heads)
                        .flat_map(|head| turned(x, head, hd, position))
                        .collect();
                    let values = dims.q_width() + dims.kv_width() / 2;
                    filed.extend(&qkv[t * dims.qkv_width()..][values..dims.qkv_width()]);
                    want_kv[row.slot as usize * dims.kv_width()..][..dims.kv_width()]
                        .copy_from_slice(&filed);
                }
                h.expect(&q, &want_q, 1e-6);
                h.expect(&kv, &want_kv, 1e-6);
                h.expect(&dqkv, &want_d, 1e-6);
            }
        });
    }
}
