//! The CPU twins. Rows that attend to the same prompt are taken together: their scores, their outputs and all gradients
//! are small matrix products with the prompt's keys and values, of which a row uses the part it sees. Chains, a few
//! ancestors each, are gone through row by row.

use super::{DeltaParams, KeyValueParams, Params};
use crate::device::Args;
use crate::device::threads::{chunks, chunks_mut, each};
use crate::kernels::math::{MASKED, axpy, dot, exp, fold};
use crate::kernels::matmul::Dims as Product;
use crate::kernels::matmul_cpu::{View, add_product};
use crate::kernels::rows::{Dims, NONE, Row, records};
use std::ops::Range;

/// Most rows of a task, and keys (or queries) of a tile: a multiple of sixteen.
const ROWS: usize = 64;
const TILE: usize = 96;

/// A score for every row of a task and every key (or query) of a tile. Aligned, so that no register is loaded from two
/// lines of the cache.
#[repr(C, align(64))]
struct Scores([[f32; TILE]; ROWS]);

impl Scores {
    const ZERO: Scores = Scores([[0.0; TILE]; ROWS]);
}

/// One vector of every record of a matrix: vector `r` starts at `r * stride + offset`.
#[derive(Clone, Copy)]
struct Vectors<'a> {
    data: &'a [f32],
    stride: usize,
    offset: usize,
    width: usize,
}

impl<'a> Vectors<'a> {
    fn get(&self, record: usize) -> &'a [f32] {
        &self.data[record * self.stride + self.offset..][..self.width]
    }

    /// The vectors from `record` on, one a row.
    fn from(&self, record: usize) -> View<'a> {
        View {
            data: &self.data[record * self.stride + self.offset..],
            down: self.stride,
            across: 1,
        }
    }

    /// `scores[i][j] = rows.vector(own.start + i) . self.vector(tile.start + j)`.
    fn scores(&self, tile: Range<usize>, rows: Vectors, own: Range<usize>, scores: &mut Scores) {
        let scores = &mut scores.0[..own.len()];
        let columns = tile.len().next_multiple_of(16);
        scores.iter_mut().for_each(|row| row[..columns].fill(0.0));
        let dims = Product {
            m: own.len(),
            n: tile.len(),
            k: self.width,
        };
        let (rows, vectors) = (rows.from(own.start), self.from(tile.start).transposed());
        add_product(
            rows,
            vectors,
            scores.as_flattened_mut(),
            (TILE, columns),
            dims,
        );
    }

    /// Row i of `sums`, `stride` apart, += `sum over j of weights[i][j] * vector(tile.start + j)`.
    fn weigh(&self, tile: Range<usize>, weights: &[[f32; TILE]], sums: &mut [f32], stride: usize) {
        let dims = Product {
            m: weights.len(),
            n: self.width,
            k: tile.len(),
        };
        let weights = View {
            data: weights.as_flattened(),
            down: TILE,
            across: 1,
        };
        add_product(
            weights,
            self.from(tile.start),
            sums,
            (stride, self.width),
            dims,
        );
    }
}

/// Turns scores into `exp(scale * score - top)`, where `top` is the larger of `before` and the largest scaled score;
/// returns `top` and the sum. In sixteen lanes: scores from `count` on become 0 up to a multiple of sixteen.
fn exponentials(scores: &mut [f32; TILE], count: usize, scale: f32, before: f32) -> (f32, f32) {
    let padded = count.next_multiple_of(16);
    let scores = &mut scores[..padded];
    let (mut tops, mut sums) = ([before; 16], [0.0f32; 16]);
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    scores.iter_mut().for_each(|score| *score *= scale);
    scores[count..].fill(MASKED);
    for chunk in scores.chunks_exact(16) {
        for i in 0..16 {
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

/// Turns scores into `p = exp(scale score - lse)`, and `d_o . v` into `ds = p (d_o . v - delta) scale`.
fn weights_and_slopes<'a>(
    weights: &mut [f32],
    slopes: &mut [f32],
    lse_and_delta: impl Iterator<Item = (&'a f32, &'a f32)>,
    scale: f32,
) {
    let scores = weights.iter_mut().zip(slopes);
    for ((weight, slope), (lse, delta)) in scores.zip(lse_and_delta) {
        *weight = exp(*weight * scale - lse);
        *slope = *weight * (*slope - delta) * scale;
    }
}

/// What a row of a tile does not see has no weight.
fn mask(scores: &mut [f32; TILE], tile: usize, seen: Range<usize>) {
    scores[..seen.start].fill(0.0);
    scores[seen.end..tile].fill(0.0);
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
        Self::new(&args.params())
    }

    fn new(p: &Params) -> Self {
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
            width: self.dims.head_dim,
        }
    }

    /// Key head and value head `head` of every slot.
    fn keys_values<'a>(&self, data: &'a [f32], head: usize) -> (Vectors<'a>, Vectors<'a>) {
        let vectors = |head| Vectors {
            data,
            stride: self.dims.kv_width(),
            offset: head * self.dims.head_dim,
            width: self.dims.head_dim,
        };
        (vectors(head), vectors(self.dims.kv_heads + head))
    }

    /// Rows per task. What is taken together, and with it the order of sums, follows from the shape alone.
    fn rows_per_task(&self) -> usize {
        (self.dims.tokens / 16).clamp(8, ROWS)
    }
}

/// Calls `f` with the first row of each run of rows that are `alike`, and the run.
fn runs(rows: &[Row], alike: impl Fn(&Row, &Row) -> bool, mut f: impl FnMut(usize, &[Row])) {
    let mut first = 0;
    for run in rows.chunk_by(alike) {
        f(first, run);
        first += run.len();
    }
}

/// Cuts a range into tiles.
fn tiles(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range
        .step_by(TILE)
        .map(move |first| first..(first + TILE).min(end))
}

/// The prompt slots that some row of the run sees. All begin with the same.
fn prompt(run: &[Row]) -> Range<usize> {
    let end = run.iter().map(|row| row.kv_end).max().unwrap_or(0);
    run[0].kv_begin as usize..end as usize
}

/// The slots of a row's chain.
fn chain(row: &Row, parent: &[u32]) -> impl Iterator<Item = usize> {
    let slot = |slot: u32| (slot != NONE).then_some(slot);
    std::iter::successors(slot(row.chain), move |&at| slot(parent[at as usize]))
        .map(|slot| slot as usize)
}

pub(super) fn forward(args: &Args) {
    let shape = Shape::of(args);
    let (heads, head_dim) = (shape.dims.heads, shape.dims.head_dim);
    let rows = records(args.u32(0), shape.dims.tokens);
    let (parent, q, kv) = (args.u32(1), args.f32(2), args.f32(3));
    let (width, per_task) = (shape.dims.q_width(), shape.rows_per_task());
    let parts = (
        chunks_mut(&mut args.f32_mut(4)[..rows.len() * width], per_task * width),
        chunks_mut(args.f32_mut(5), per_task * heads),
        chunks(rows, per_task),
    );
    each(parts, 1, |task, (o, lse, rows)| {
        let mut scores = Scores::ZERO;
        o.fill(0.0);
        let same_prompt = |a: &Row, b: &Row| a.kv_begin == b.kv_begin;
        runs(rows, same_prompt, |first, run| {
            let own = task * per_task + first..task * per_task + first + run.len();
            for head in 0..heads {
                let queries = shape.queries(q, head);
                let (keys, values) = shape.keys_values(kv, head / shape.group);
                let o = &mut o[first * width + head * head_dim..];
                let mut sums = [Sum::EMPTY; ROWS];
                for tile in tiles(prompt(run)) {
                    keys.scores(tile.clone(), queries, own.clone(), &mut scores);
                    for (i, row) in run.iter().enumerate() {
                        let seen = (row.kv_end as usize).clamp(tile.start, tile.end) - tile.start;
                        let o = &mut o[i * width..][..head_dim];
                        sums[i].take(&mut scores.0[i], seen, shape.scale, o);
                        mask(&mut scores.0[i], tile.len(), 0..seen);
                    }
                    values.weigh(tile, &scores.0[..run.len()], o, width);
                }
                for (i, row) in run.iter().enumerate() {
                    let o = &mut o[i * width..][..head_dim];
                    let q = queries.get(own.start + i);
                    let (mut chain, scores) = (chain(row, parent), &mut scores.0[0]);
                    loop {
                        let (mut slots, mut count) = ([0; 16], 0);
                        for (place, slot) in slots.iter_mut().zip(&mut chain) {
                            *place = slot;
                            scores[count] = dot(q, keys.get(slot));
                            count += 1;
                        }
                        if count == 0 {
                            break;
                        }
                        sums[i].take(scores, count, shape.scale, o);
                        for (&weight, &slot) in scores[..count].iter().zip(&slots) {
                            axpy(o, weight, values.get(slot));
                        }
                    }
                    lse[(first + i) * heads + head] = sums[i].finish(o);
                }
            }
        });
    });
}

/// A softmax in the making: the largest score so far, and the sum of exponentials about it.
#[derive(Clone, Copy)]
struct Sum {
    top: f32,
    sum: f32,
}

impl Sum {
    const EMPTY: Sum = Sum {
        top: MASKED,
        sum: 0.0,
    };

    /// Turns `count` more scores into weights; `o` holds what was weighted before.
    fn take(&mut self, scores: &mut [f32; TILE], count: usize, scale: f32, o: &mut [f32]) {
        let before = self.top;
        let (top, sum) = exponentials(scores, count, scale, before);
        if self.sum > 0.0 && top > before {
            let keep = exp(before - top);
            self.sum *= keep;
            o.iter_mut().for_each(|o| *o *= keep);
        }
        self.top = top;
        self.sum += sum;
    }

    /// Divides by the sum; returns its logarithm.
    fn finish(self, o: &mut [f32]) -> f32 {
        if self.sum == 0.0 {
            return MASKED;
        }
        let inverse = 1.0 / self.sum;
        o.iter_mut().for_each(|o| *o *= inverse);
        self.top + self.sum.ln()
    }
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
    let (heads, head_dim) = (shape.dims.heads, shape.dims.head_dim);
    let rows = records(args.u32(0), shape.dims.tokens);
    let (parent, q, kv, lse) = (args.u32(1), args.f32(2), args.f32(3), args.f32(4));
    let (d_o, delta) = (args.f32(5), args.f32(6));
    let (width, per_task) = (shape.dims.q_width(), shape.rows_per_task());
    let parts = (
        chunks_mut(&mut args.f32_mut(7)[..rows.len() * width], per_task * width),
        chunks(rows, per_task),
    );
    each(parts, 1, |task, (dq, rows)| {
        let (mut weights, mut slopes) = (Scores::ZERO, Scores::ZERO);
        dq.fill(0.0);
        let same_prompt = |a: &Row, b: &Row| a.kv_begin == b.kv_begin;
        runs(rows, same_prompt, |first, run| {
            let own = task * per_task + first..task * per_task + first + run.len();
            for head in 0..heads {
                let (queries, outputs) = (shape.queries(q, head), shape.queries(d_o, head));
                let (keys, values) = shape.keys_values(kv, head / shape.group);
                let dq = &mut dq[first * width + head * head_dim..];
                let lse_and_delta = |i: usize| {
                    let at = (own.start + i) * heads + head;
                    std::iter::repeat((&lse[at], &delta[at]))
                };
                for tile in tiles(prompt(run)) {
                    keys.scores(tile.clone(), queries, own.clone(), &mut weights);
                    values.scores(tile.clone(), outputs, own.clone(), &mut slopes);
                    for (i, row) in run.iter().enumerate() {
                        let seen = (row.kv_end as usize).clamp(tile.start, tile.end) - tile.start;
                        let (weights, slopes) = (&mut weights.0[i][..seen], &mut slopes.0[i]);
                        let constants = lse_and_delta(i);
                        weights_and_slopes(weights, &mut slopes[..seen], constants, shape.scale);
                        mask(slopes, tile.len(), 0..seen);
                    }
                    keys.weigh(tile, &slopes.0[..run.len()], dq, width);
                }
                for (i, row) in run.iter().enumerate() {
                    let dq = &mut dq[i * width..][..head_dim];
                    let (q, d_o) = (queries.get(own.start + i), outputs.get(own.start + i));
                    for slot in chain(row, parent) {
                        let mut weight = [dot(q, keys.get(slot))];
                        let mut slope = [dot(d_o, values.get(slot))];
                        let constants = lse_and_delta(i);
                        weights_and_slopes(&mut weight, &mut slope, constants, shape.scale);
                        axpy(dq, slope[0], keys.get(slot));
                    }
                }
            }
        });
    });
}

/// The rows from `first` on that attend to some row of the run: near ones and, where it lies apart, the tree.
fn attending(run: &[Row], first: u32) -> [Range<usize>; 2] {
    std::array::from_fn(|range| {
        let seen = || {
            let ranges = run.iter().map(|row| row.queries(first)[range].clone());
            ranges.filter(|range| !range.is_empty())
        };
        let begin = seen().map(|range| range.start).min().unwrap_or(0);
        let end = seen().map(|range| range.end).max().unwrap_or(0);
        begin as usize..end as usize
    })
}

pub(super) fn backward_key_value(args: &Args) {
    let p: KeyValueParams = args.params();
    let shape = Shape::new(&Params {
        tokens: p.tokens,
        heads: p.heads,
        kv_heads: p.kv_heads,
        head_dim: p.head_dim,
        scale: p.scale,
    });
    let (heads, kv_heads, head_dim) = (shape.dims.heads, shape.dims.kv_heads, shape.dims.head_dim);
    let rows = records(args.u32(0), shape.dims.tokens);
    let (q, kv, lse) = (args.f32(1), args.f32(2), args.f32(3));
    let (d_o, delta) = (args.f32(4), args.f32(5));
    let (width, per_task) = (shape.dims.kv_width(), shape.rows_per_task());
    let parts = (
        chunks_mut(&mut args.f32_mut(6)[..rows.len() * width], per_task * width),
        chunks(rows, per_task),
    );
    each(parts, 1, |task, (dkv, rows)| {
        let (mut weights, mut slopes) = (Scores::ZERO, Scores::ZERO);
        dkv.fill(0.0);
        // Nodes are seen by fewer rows than their prompt.
        let alike =
            |a: &Row, b: &Row| a.kv_begin == b.kv_begin && (a.chain == NONE) == (b.chain == NONE);
        runs(rows, alike, |first, run| {
            let own = task * per_task + first..task * per_task + first + run.len();
            for query_head in 0..heads {
                let head = query_head / shape.group;
                let (keys, values) = shape.keys_values(kv, head);
                let (queries, outputs) =
                    (shape.queries(q, query_head), shape.queries(d_o, query_head));
                let dkv = &mut dkv[first * width + head * head_dim..];
                let attending = attending(run, p.first_query).into_iter().enumerate();
                for (range, tile) in attending.flat_map(|(n, all)| tiles(all).map(move |t| (n, t)))
                {
                    let (mut tile_lse, mut tile_delta) = ([0.0; TILE], [0.0; TILE]);
                    for (i, row) in tile.clone().enumerate() {
                        tile_lse[i] = lse[row * heads + query_head];
                        tile_delta[i] = delta[row * heads + query_head];
                    }
                    queries.scores(tile.clone(), keys, own.clone(), &mut weights);
                    outputs.scores(tile.clone(), values, own.clone(), &mut slopes);
                    for (i, row) in run.iter().enumerate() {
                        let seen = &row.queries(p.first_query)[range];
                        let [begin, end] = [seen.start, seen.end]
                            .map(|at| (at as usize).clamp(tile.start, tile.end) - tile.start);
                        let (weights, slopes) = (&mut weights.0[i], &mut slopes.0[i]);
                        let constants = tile_lse[begin..end].iter().zip(&tile_delta[begin..end]);
                        weights_and_slopes(
                            &mut weights[begin..end],
                            &mut slopes[begin..end],
                            constants,
                            shape.scale,
                        );
                        mask(weights, tile.len(), begin..end);
                        mask(slopes, tile.len(), begin..end);
                    }
                    queries.weigh(tile.clone(), &slopes.0[..run.len()], dkv, width);
                    let dv = &mut dkv[kv_heads * head_dim..];
                    outputs.weigh(tile, &weights.0[..run.len()], dv, width);
                }
            }
        });
    });
}
