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
use crate::device::threads::{chunks, chunks_mut, each, rising};
use crate::device::{Args, Cost, Form, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::{bindings, params};
use anyhow::Result;

params! {
    Params { tokens: u32, heads: u32, kv_heads: u32, head_dim: u32 }
}

/// An invocation for each four pairs of a head.
const fn vec4(source: &'static str) -> Form {
    let grid = |w: &[u32]| Grid((w[0] * (w[1] + 2 * w[2]) * (w[3] / 8)).div_ceil(64));
    Form::vec4(source, |w| w[3].is_multiple_of(8), grid)
}

pub static FORWARD: Kernel = Kernel {
    name: "rope",
    source: include_str!("../../shaders/rope.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[vec4(include_str!("../../shaders/rope_vec4.wgsl"))],
    params: Params::FIELDS,
    bindings: bindings![rows: In U32, table: In F32, qk: In Real, qkv: In Real, q: Out Real, kv: Out Real],
    twin: forward_twin,
    cost,
};

pub static BACKWARD: Kernel = Kernel {
    name: "rope_backward",
    source: include_str!("../../shaders/rope_backward.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[vec4(include_str!("../../shaders/rope_backward_vec4.wgsl"))],
    params: Params::FIELDS,
    bindings: bindings![rows: In U32, table: In F32, dq: In Real, dkv: In Real, dqkv: Out Real],
    twin: backward_twin,
    cost,
};

impl Params {
    fn new(dims: Dims<Size>) -> Self {
        assert!(dims.head_dim.is_multiple_of(2), "rotary heads are even");
        Params {
            tokens: dims.tokens.max as u32,
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

fn grid(dims: Dims<Size>) -> Grid {
    Grid::cover(dims.tokens.max * dims.qkv_width() / 2, 64)
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
    dims: impl Into<Dims<Size>>,
) {
    let dims = dims.into();
    let slices = [rows, table, qk, qkv, q, kv];
    s.push(&FORWARD, &Params::new(dims), &slices, grid(dims))
        .size("tokens", dims.tokens);
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
    dims: impl Into<Dims<Size>>,
) {
    let dims = dims.into();
    let slices = [rows, table, dq, dkv, dqkv];
    s.push(&BACKWARD, &Params::new(dims), &slices, grid(dims))
        .size("tokens", dims.tokens);
}

fn cost(launch: &Launch) -> Cost {
    let dims = launch.read_params::<Params>().dims();
    let [tokens, width, head_dim] =
        [dims.tokens, dims.qkv_width(), dims.head_dim].map(|n| n as u64);
    let rotated = (dims.q_width() + dims.kv_width() / 2) as u64;
    Cost {
        operations: 3 * tokens * rotated,
        bytes: tokens * (launch.width(2) * 2 * width + 4 * (head_dim + Row::WORDS as u64)),
    }
}

/// Pairs whose sines and cosines are parted at a time.
const PAIRS: usize = 32;

/// `to` = the heads of `from`, each turned by the angles in `table` (those of one position), or back if `sign` is -1.
fn turn(from: &[f32], to: &mut [f32], table: &[f32], head_dim: usize, sign: f32) {
    let half = head_dim / 2;
    for (block, angles) in table[..head_dim].chunks(2 * PAIRS).enumerate() {
        // Parted once for all heads: what is left to do is then the same in every lane.
        let (mut cos, mut sin) = ([0.0; PAIRS], [0.0; PAIRS]);
        for ((c, s), angle) in cos.iter_mut().zip(&mut sin).zip(angles.chunks_exact(2)) {
            (*c, *s) = (angle[0], sign * angle[1]);
        }
        let (first, count) = (block * PAIRS, angles.len() / 2);
        let (cos, sin) = (&cos[..count], &sin[..count]);
        let heads = from.chunks_exact(head_dim);
        for (from, to) in heads.zip(to.chunks_exact_mut(head_dim)) {
            let (a, b) = (&from[first..][..count], &from[half + first..][..count]);
            let (x, y) = to.split_at_mut(half);
            let (x, y) = (&mut x[first..][..count], &mut y[first..][..count]);
            for i in 0..count {
                x[i] = a[i] * cos[i] - b[i] * sin[i];
                y[i] = b[i] * cos[i] + a[i] * sin[i];
            }
        }
    }
}

/// Rows per task of a twin: enough work to pay for handing it out.
fn rows_per_task(dims: &Dims) -> usize {
    (16_384 / dims.qkv_width()).max(1)
}

fn forward_twin(args: &Args) {
    let dims = args.params::<Params>().dims();
    let rows = records(args.u32(0), dims.tokens);
    let (table, hd) = (args.f32(1), dims.head_dim);
    let (q_width, keys) = (dims.q_width(), dims.kv_width() / 2);
    let inputs = || {
        (
            chunks(rows, 1),
            chunks(args.f32(2), dims.qkv_width()),
            chunks(args.f32(3), dims.qkv_width()),
        )
    };
    let rotate = |q: &mut [f32], row: &Row, qk: &[f32]| {
        let angles = &table[row.position as usize * hd..][..hd];
        turn(&qk[..q_width], q, angles, hd, 1.0);
    };
    let file = |kv: &mut [f32], row: &Row, qk: &[f32], qkv: &[f32]| {
        let angles = &table[row.position as usize * hd..][..hd];
        turn(&qk[q_width..][..keys], &mut kv[..keys], angles, hd, 1.0);
        kv[keys..].copy_from_slice(&qkv[q_width + keys..]);
    };
    let q = &mut args.f32_mut(4)[..dims.tokens * q_width];
    let kv = args.f32_mut(5);
    let slot = |t: usize| (rows[t].slot != NONE).then_some(rows[t].slot as usize);
    // SAFETY: the rows do not change meanwhile.
    if let Some(slots) = unsafe { rising(kv, 2 * keys, dims.tokens, slot) } {
        let parts = (chunks_mut(q, q_width), slots, inputs());
        each(parts, rows_per_task(&dims), |_, (q, kv, (row, qk, qkv))| {
            rotate(q, &row[0], qk);
            if !kv.is_empty() {
                file(kv, &row[0], qk, qkv);
            }
        });
        return;
    }
    each(
        (chunks_mut(q, q_width), inputs()),
        1,
        |_, (q, (row, qk, _))| rotate(q, &row[0], qk),
    );
    let projected = args
        .f32(2)
        .chunks(dims.qkv_width())
        .zip(args.f32(3).chunks(dims.qkv_width()));
    for (t, (qk, qkv)) in projected.take(dims.tokens).enumerate() {
        if let Some(slot) = slot(t) {
            file(&mut kv[slot * 2 * keys..][..2 * keys], &rows[t], qk, qkv);
        }
    }
}

fn backward_twin(args: &Args) {
    let dims = args.params::<Params>().dims();
    let rows = records(args.u32(0), dims.tokens);
    let (table, hd) = (args.f32(1), dims.head_dim);
    let (q_width, keys) = (dims.q_width(), dims.kv_width() / 2);
    let dqkv = &mut args.f32_mut(4)[..dims.tokens * dims.qkv_width()];
    let parts = (
        chunks_mut(dqkv, dims.qkv_width()),
        chunks(args.f32(2), q_width),
        chunks(args.f32(3), 2 * keys),
        chunks(rows, 1),
    );
    each(parts, rows_per_task(&dims), |_, (out, dq, dkv, row)| {
        let angles = &table[row[0].position as usize * hd..][..hd];
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
        let qk = h.real("qk", dims.tokens * dims.qkv_width());
        let qkv = h.real("qkv", dims.tokens * dims.qkv_width());
        let q = h.real("q", dims.tokens * dims.q_width());
        let kv = h.real("kv", 2 * dims.tokens * dims.kv_width());
        let dqkv = h.real("dqkv", dims.tokens * dims.qkv_width());
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
                let qk = h.real("qk", dims.tokens * dims.qkv_width());
                let qkv = h.real("qkv", dims.tokens * dims.qkv_width());
                let q = h.real("q", dims.tokens * dims.q_width());
                let kv = h.real("kv", 2 * dims.tokens * dims.kv_width());
                let dq = h.real("dq", dims.tokens * dims.q_width());
                let dkv = h.real("dkv", dims.tokens * dims.kv_width());
                let dqkv = h.real("dqkv", dims.tokens * dims.qkv_width());
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
