//! The CPU twins: rows in parallel; per (row, head) a tile of scores on the stack, and sums of 64 columns kept in
//! registers.

use super::{DeltaParams, Params};
use crate::device::Args;
use crate::device::threads::{chunks, chunks_mut, each};
use crate::kernels::math::{MASKED, dot, exp, fold};
use crate::kernels::rows::{Dims, NONE, Row, records};

/// Keys (or queries) per tile.
const TILE: usize = 128;

/// Records whose dot products are summed up together.
const DOTS: usize = 16;

/// One vector of every record of a matrix: vector `r` starts at `r * stride + offset`.
#[derive(Clone, Copy)]
struct Vectors<'a> {
    data: &'a [f32],
    stride: usize,
    offset: usize,
}

impl<'a> Vectors<'a> {
    #[inline(always)]
    fn get(&self, record: u32, width: usize) -> &'a [f32] {
        &self.data[record as usize * self.stride + self.offset..][..width]
    }

    /// `out[k] = x . vector(records[k])`.
    fn dots(&self, x: &[f32], records: &[u32], out: &mut [f32]) {
        out.fill(0.0);
        let mut at = 0;
        while at + 64 <= x.len() {
            self.dots_block::<64>(x, records, at, out);
            at += 64;
        }
        while at + 16 <= x.len() {
            self.dots_block::<16>(x, records, at, out);
            at += 16;
        }
        if at < x.len() {
            for (&record, out) in records.iter().zip(out) {
                let y = &self.get(record, x.len())[at..];
                for (x, y) in x[at..].iter().zip(y) {
                    *out = x.mul_add(*y, *out);
                }
            }
        }
    }

    /// The part of [`Vectors::dots`] from the `W` elements at `at`. Eight partial sums per record are left in memory and
    /// added up for [`DOTS`] records at once: summing a register across its lanes costs more than filling it.
    #[inline(always)]
    fn dots_block<const W: usize>(&self, x: &[f32], records: &[u32], at: usize, out: &mut [f32]) {
        let x: &[f32; W] = x[at..at + W].try_into().expect("W elements");
        for (records, out) in records.chunks(DOTS).zip(out.chunks_mut(DOTS)) {
            let mut partial = [[0.0f32; 8]; DOTS];
            for (&record, partial) in records.iter().zip(&mut partial) {
                let y: &[f32; W] = self.get(record, at + W)[at..]
                    .try_into()
                    .expect("W elements");
                let mut sums = [0.0f32; 16];
                for (x, y) in x.chunks_exact(16).zip(y.chunks_exact(16)) {
                    for i in 0..16 {
                        sums[i] = x[i].mul_add(y[i], sums[i]);
                    }
                }
                for i in 0..8 {
                    partial[i] = sums[i] + sums[i + 8];
                }
            }
            for (out, p) in out.iter_mut().zip(&partial) {
                *out += ((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7]));
            }
        }
    }

    /// `y += sum over k of weights[k] * vector(records[k])`.
    fn accumulate(&self, weights: &[f32], records: &[u32], y: &mut [f32]) {
        let mut at = 0;
        while at + 64 <= y.len() {
            self.accumulate_block::<64>(weights, records, at, y);
            at += 64;
        }
        while at + 16 <= y.len() {
            self.accumulate_block::<16>(weights, records, at, y);
            at += 16;
        }
        if at < y.len() {
            for (&weight, &record) in weights.iter().zip(records) {
                let v = &self.get(record, y.len())[at..];
                for (y, v) in y[at..].iter_mut().zip(v) {
                    *y = weight.mul_add(*v, *y);
                }
            }
        }
    }

    #[inline(always)]
    fn accumulate_block<const W: usize>(
        &self,
        weights: &[f32],
        records: &[u32],
        at: usize,
        y: &mut [f32],
    ) {
        let y: &mut [f32; W] = (&mut y[at..at + W]).try_into().expect("W elements");
        let mut sums = *y;
        for (&weight, &record) in weights.iter().zip(records) {
            let v: &[f32; W] = self.get(record, at + W)[at..]
                .try_into()
                .expect("W elements");
            for i in 0..W {
                sums[i] = weight.mul_add(v[i], sums[i]);
            }
        }
        *y = sums;
    }
}

/// Turns scores into `exp(scale * score - top)`, where `top` is the larger of `before` and the largest scaled score;
/// returns `top` and the sum. Both in sixteen lanes, the last ones masked.
fn exponentials(scores: &mut [f32; TILE], count: usize, scale: f32, before: f32) -> (f32, f32) {
    let padded = count.next_multiple_of(16);
    scores[count..padded].fill(MASKED);
    let scores = &mut scores[..padded];
    let (mut tops, mut sums) = ([before; 16], [0.0f32; 16]);
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    for chunk in scores.chunks_exact_mut(16) {
        for i in 0..16 {
            chunk[i] *= scale;
            tops[i] = larger(tops[i], chunk[i]);
        }
    }
    let top = fold(tops, larger);
    for chunk in scores.chunks_exact_mut(16) {
        for i in 0..16 {
            chunk[i] = exp(chunk[i] - top);
            sums[i] += chunk[i];
        }
    }
    (top, fold(sums, |a, b| a + b))
}

/// Turns scores less their logarithm of the sum into `p = exp(score)`, and `d_o . v - delta` into
/// `ds = p (d_o . v - delta) scale`. Sixteen at a time: what lies behind `count` is not read by anyone.
fn weights_and_slopes(
    weights: &mut [f32; TILE],
    slopes: &mut [f32; TILE],
    count: usize,
    scale: f32,
) {
    let whole = count.next_multiple_of(16);
    let slopes = slopes[..whole].chunks_exact_mut(16);
    for (weights, slopes) in weights[..whole].chunks_exact_mut(16).zip(slopes) {
        for i in 0..16 {
            weights[i] = exp(weights[i]);
            slopes[i] = weights[i] * slopes[i] * scale;
        }
    }
}

/// A row's keys, a tile at a time: its prompt, then its chain.
struct Keys<'a> {
    next: u32,
    end: u32,
    ancestor: u32,
    parent: &'a [u32],
}

impl<'a> Keys<'a> {
    fn of(row: &Row, parent: &'a [u32]) -> Self {
        Keys {
            next: row.kv_begin,
            end: row.kv_end,
            ancestor: row.chain,
            parent,
        }
    }

    /// How many slots were written to `tile`; 0 at the end.
    fn fill(&mut self, tile: &mut [u32; TILE]) -> usize {
        let mut count = TILE.min((self.end - self.next) as usize);
        for (slot, key) in tile[..count].iter_mut().zip(self.next..) {
            *slot = key;
        }
        self.next += count as u32;
        while count < TILE && self.ancestor != NONE {
            tile[count] = self.ancestor;
            self.ancestor = self.parent[self.ancestor as usize];
            count += 1;
        }
        count
    }
}

/// The launch's shape, and where heads lie.
struct Shape {
    dims: Dims,
    scale: f32,
    /// Query heads per key/value head.
    group: usize,
}

impl Shape {
    fn of(args: &Args) -> Self {
        let p: Params = args.params();
        Shape {
            dims: Dims {
                tokens: p.tokens as usize,
                heads: p.heads as usize,
                kv_heads: p.kv_heads as usize,
                head_dim: p.head_dim as usize,
            },
            scale: p.scale,
            group: (p.heads / p.kv_heads) as usize,
        }
    }

    /// Query head `head` of every row of a `[T, H hd]` matrix.
    fn queries<'a>(&self, data: &'a [f32], head: usize) -> Vectors<'a> {
        Vectors {
            data,
            stride: self.dims.q_width(),
            offset: head * self.dims.head_dim,
        }
    }

    /// Key head and value head `head` of every slot.
    fn keys_values<'a>(&self, data: &'a [f32], head: usize) -> (Vectors<'a>, Vectors<'a>) {
        let vectors = |head| Vectors {
            data,
            stride: self.dims.kv_width(),
            offset: head * self.dims.head_dim,
        };
        (vectors(head), vectors(self.dims.kv_heads + head))
    }

    /// Rows per task, for about 64k multiplications: `pairs` of all rows with what they attend to.
    fn rows_per_task(&self, pairs: usize) -> usize {
        let per_row = (pairs / self.dims.tokens + 1) * self.dims.q_width();
        (65_536 / per_row).max(1)
    }
}

fn prompt_pairs(rows: &[Row]) -> usize {
    rows.iter().map(|r| (r.kv_end - r.kv_begin) as usize).sum()
}

pub(super) fn forward(args: &Args) {
    let shape = Shape::of(args);
    let Dims {
        tokens,
        heads,
        head_dim,
        ..
    } = shape.dims;
    let rows = records(args.u32(0), tokens);
    let (parent, q, kv) = (args.u32(1), args.f32(2), args.f32(3));
    let parts = (
        chunks_mut(args.f32_mut(4), heads * head_dim),
        chunks_mut(args.f32_mut(5), heads),
        chunks(rows, 1),
    );
    let per_task = shape.rows_per_task(prompt_pairs(rows));
    each(parts, per_task, |t, (o, lse, row)| {
        for (head, o) in o.chunks_exact_mut(head_dim).enumerate() {
            let q = shape.queries(q, head).get(t as u32, head_dim);
            let (keys, values) = shape.keys_values(kv, head / shape.group);
            let slots = Keys::of(&row[0], parent);
            lse[head] = attend(q, slots, keys, values, shape.scale, o);
        }
    });
}

/// One query's output; returns the logarithm of the sum of exponentials.
fn attend(
    q: &[f32],
    mut slots: Keys,
    keys: Vectors,
    values: Vectors,
    scale: f32,
    o: &mut [f32],
) -> f32 {
    let (mut tile, mut scores) = ([0u32; TILE], [0.0f32; TILE]);
    let (mut top, mut sum) = (MASKED, 0.0f32);
    o.fill(0.0);
    loop {
        let count = slots.fill(&mut tile);
        if count == 0 {
            break;
        }
        keys.dots(q, &tile[..count], &mut scores[..count]);
        let before = top;
        let tile_sum;
        (top, tile_sum) = exponentials(&mut scores, count, scale, before);
        if sum > 0.0 {
            let keep = exp(before - top);
            sum *= keep;
            o.iter_mut().for_each(|o| *o *= keep);
        }
        sum += tile_sum;
        values.accumulate(&scores[..count], &tile[..count], o);
    }
    if sum == 0.0 {
        return MASKED;
    }
    let inverse = 1.0 / sum;
    o.iter_mut().for_each(|o| *o *= inverse);
    top + sum.ln()
}

pub(super) fn delta(args: &Args) {
    let p: DeltaParams = args.params();
    let head_dim = p.head_dim as usize;
    let parts = (
        chunks_mut(&mut args.f32_mut(2)[..p.vectors as usize], 1),
        chunks(args.f32(0), head_dim),
        chunks(args.f32(1), head_dim),
    );
    each(parts, (16_384 / head_dim).max(1), |_, (delta, o, d_o)| {
        delta[0] = dot(o, d_o);
    });
}

pub(super) fn backward_query(args: &Args) {
    let shape = Shape::of(args);
    let Dims {
        tokens,
        heads,
        head_dim,
        ..
    } = shape.dims;
    let rows = records(args.u32(0), tokens);
    let (parent, q, kv, lse) = (args.u32(1), args.f32(2), args.f32(3), args.f32(4));
    let (d_o, delta) = (args.f32(5), args.f32(6));
    let parts = (
        chunks_mut(args.f32_mut(7), heads * head_dim),
        chunks(rows, 1),
    );
    let per_task = shape.rows_per_task(2 * prompt_pairs(rows));
    each(parts, per_task, |t, (dq, row)| {
        let (mut tile, mut weights, mut slopes) = ([0; TILE], [0.0f32; TILE], [0.0f32; TILE]);
        for (head, dq) in dq.chunks_exact_mut(head_dim).enumerate() {
            let q = shape.queries(q, head).get(t as u32, head_dim);
            let d_o = shape.queries(d_o, head).get(t as u32, head_dim);
            let (lse, delta) = (lse[t * heads + head], delta[t * heads + head]);
            let (keys, values) = shape.keys_values(kv, head / shape.group);
            let mut slots = Keys::of(&row[0], parent);
            dq.fill(0.0);
            loop {
                let count = slots.fill(&mut tile);
                if count == 0 {
                    break;
                }
                let tile = &tile[..count];
                keys.dots(q, tile, &mut weights[..count]);
                values.dots(d_o, tile, &mut slopes[..count]);
                let whole = count.next_multiple_of(16);
                for (weight, slope) in weights[..whole].iter_mut().zip(&mut slopes[..whole]) {
                    *weight = *weight * shape.scale - lse;
                    *slope -= delta;
                }
                weights_and_slopes(&mut weights, &mut slopes, count, shape.scale);
                keys.accumulate(&slopes[..count], tile, dq);
            }
        }
    });
}

pub(super) fn backward_key_value(args: &Args) {
    let shape = Shape::of(args);
    let Dims {
        tokens,
        heads,
        kv_heads,
        head_dim,
    } = shape.dims;
    let rows = records(args.u32(0), tokens);
    let (q, kv, lse) = (args.f32(1), args.f32(2), args.f32(3));
    let (d_o, delta) = (args.f32(4), args.f32(5));
    let width = shape.dims.kv_width();
    let parts = (chunks_mut(args.f32_mut(6), width), chunks(rows, 1));
    let per_task = shape.rows_per_task(3 * prompt_pairs(rows));
    each(parts, per_task, |t, (dkv, row)| {
        let row = &row[0];
        let (mut tile, mut weights, mut slopes) = ([0; TILE], [0.0f32; TILE], [0.0f32; TILE]);
        let (dk, dv) = dkv.split_at_mut(width / 2);
        dk.fill(0.0);
        dv.fill(0.0);
        for head in 0..kv_heads {
            let (keys, values) = shape.keys_values(kv, head);
            let (k, v) = (keys.get(t as u32, head_dim), values.get(t as u32, head_dim));
            let own = head * head_dim..(head + 1) * head_dim;
            let (dk, dv) = (&mut dk[own.clone()], &mut dv[own]);
            for query_head in head * shape.group..(head + 1) * shape.group {
                let queries = shape.queries(q, query_head);
                let outputs = shape.queries(d_o, query_head);
                for first in (row.q_begin..row.q_end).step_by(TILE) {
                    let count = TILE.min((row.q_end - first) as usize);
                    for (i, record) in tile[..count].iter_mut().zip(first..) {
                        *i = record;
                    }
                    let tile = &tile[..count];
                    queries.dots(k, tile, &mut weights[..count]);
                    outputs.dots(v, tile, &mut slopes[..count]);
                    for ((weight, slope), &i) in weights.iter_mut().zip(&mut slopes).zip(tile) {
                        let at = i as usize * heads + query_head;
                        *weight = *weight * shape.scale - lse[at];
                        *slope -= delta[at];
                    }
                    weights_and_slopes(&mut weights, &mut slopes, count, shape.scale);
                    queries.accumulate(&slopes[..count], tile, dk);
                    outputs.accumulate(&weights[..count], tile, dv);
                }
            }
        }
    });
}
