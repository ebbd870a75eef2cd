//! Token embedding: `out[t, :] = table[token(t), :]` with `token(t)` the first field of row record t (spec 3), and its
//! gradient `d_table[token, :] += sum of d_out[t, :] over the rows t that hold the token`.
//!
//! A list of targets, too, chooses rows of a table, those of the output projection, and its gradient is of the same kind:
//! there row t of `d_out` is row `rows[t]` of a matrix times `weights[t]`. Tokens outside the table ([`super::rows::NONE`])
//! have no gradient.
//!
//! The list is sorted by token first ([`super::token_order`]), so that each row of the table has one owner: no atomics,
//! one order of addition.
//!
//! Floor: forward 8 bytes per element; backward, for T rows, 1 operation per element (weighted, 2) and 4 bytes, and 8 more
//! for the rows of the table, at most T of them; 4 bytes per row for each list.

use crate::device::threads::{chunks, chunks_mut, each};
use crate::device::{Args, Cost, Form, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::{Harness, TestBuffer};
use crate::kernels::math::axpy;
use crate::kernels::rows::NONE;
use crate::kernels::token_order::{self, Tokens};
use crate::{bindings, params};
use anyhow::Result;

/// Words of a row record; the token is the first.
const RECORD: usize = crate::forest::Row::WORDS;

/// Consecutive rows of a table with a row per token, in one binding: all of them, or as many as one holds.
#[derive(Clone, Copy, Debug)]
pub struct Shard {
    /// The token of the first row.
    pub first: usize,
    /// [tokens held, width]
    pub rows: Slice,
}

impl Shard {
    /// A table that is in one binding.
    pub fn whole(rows: Slice) -> Shard {
        Shard { first: 0, rows }
    }

    /// Its first token, and how many it holds.
    pub(super) fn tokens(&self, width: usize) -> [u32; 2] {
        [self.first as u32, self.rows.len / width as u32]
    }
}

params! {
    /// The table holds the tokens `first ..` `first + held`.
    Params { tokens: u32, width: u32, first: u32, held: u32 }
}

params! {
    /// `weighted`: 1 or 0. The table holds the tokens `first ..` `first + held`.
    BackwardParams { count: u32, width: u32, stride: u32, first: u32, held: u32, weighted: u32 }
}

/// Rows of a multiple of 4.
const fn vec4(source: &'static str) -> Form {
    let grid = |w: &[u32]| Grid((w[0] * w[1] / 4).div_ceil(256));
    Form::vec4(source, |w| w[1].is_multiple_of(4), grid)
}

pub static EMBEDDING: Kernel = Kernel {
    name: "embedding",
    source: include_str!("../../shaders/embedding.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[vec4(include_str!("../../shaders/embedding_vec4.wgsl"))],
    params: Params::FIELDS,
    bindings: bindings![table: In F32, rows: In U32, out: Out F32],
    twin: forward_twin,
    cost: forward_cost,
};

pub static EMBEDDING_BACKWARD: Kernel = Kernel {
    name: "embedding_backward",
    source: include_str!("../../shaders/embedding_backward.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[vec4(include_str!(
        "../../shaders/embedding_backward_vec4.wgsl"
    ))],
    params: BackwardParams::FIELDS,
    bindings: bindings![
        d_out: In F32, tokens: In U32, order: In U32, rows: In U32, weights: In F32, d_table: Out F32,
    ],
    twin: backward_twin,
    cost: backward_cost,
};

/// The rows of `out[tokens, width]` whose tokens, those of the pass's `rows`, are in the shard.
pub fn forward(
    s: &mut Stream,
    table: Shard,
    rows: Slice,
    out: Slice,
    tokens: impl Into<Size>,
    width: usize,
) {
    let tokens = tokens.into();
    let [first, held] = table.tokens(width);
    let params = Params {
        tokens: tokens.max as u32,
        width: width as u32,
        first,
        held,
    };
    let grid = Grid::cover(tokens.max * width, 256);
    s.push(&EMBEDDING, &params, &[table.rows, rows, out], grid)
        .size("tokens", tokens);
}

/// Which row of `d_out` belongs to each entry of a list of tokens [n], and what it is multiplied by.
#[derive(Clone, Copy, Debug)]
pub struct Weighted {
    pub rows: Slice,
    pub weights: Slice,
}

/// `d_table[token, :] += sum of d_out[t, :]` over the entries t of the list that hold the token, or, `weighted`, of
/// `weights[t] d_out[rows[t], :]`, for the tokens of the shard; `order` [n] is what [`super::token_order`] made of the list.
pub fn backward(
    s: &mut Stream,
    d_out: Slice,
    weighted: Option<Weighted>,
    tokens: Tokens,
    order: Slice,
    d_table: Shard,
    width: usize,
) {
    let count = tokens.count;
    let [first, held] = d_table.tokens(width);
    let params = BackwardParams {
        count: count.max as u32,
        width: width as u32,
        stride: tokens.stride as u32,
        first,
        held,
        weighted: weighted.is_some() as u32,
    };
    // Without weights, what is bound in their place is not read.
    let (rows, weights) = weighted.map_or((order, d_out), |w| (w.rows, w.weights));
    let slices = [d_out, tokens.words, order, rows, weights, d_table.rows];
    let grid = Grid::cover(count.max * width, 256);
    s.push(&EMBEDDING_BACKWARD, &params, &slices, grid)
        .size("count", count);
}

fn forward_cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [tokens, width] = [p.tokens, p.width].map(u64::from);
    Cost {
        operations: 0,
        bytes: 8 * tokens * width + 4 * tokens,
    }
}

fn backward_cost(launch: &Launch) -> Cost {
    let p: BackwardParams = launch.read_params();
    let [count, width, held, weighted] = [p.count, p.width, p.held, p.weighted].map(u64::from);
    Cost {
        operations: (1 + weighted) * count * width,
        bytes: 4 * ((count + 2 * count.min(held)) * width + 2 * (1 + weighted) * count),
    }
}

fn forward_twin(args: &Args) {
    let p: Params = args.params();
    let (tokens, width) = (p.tokens as usize, p.width as usize);
    let (table, held) = (args.f32(0), p.held);
    let parts = (
        chunks_mut(&mut args.f32_mut(2)[..tokens * width], width),
        chunks(args.u32(1), RECORD),
    );
    each(parts, (16 * 1024usize).div_ceil(width), |_, (out, row)| {
        let token = row[0].wrapping_sub(p.first);
        if token < held {
            out.copy_from_slice(&table[token as usize * width..][..width]);
        }
    });
}

/// Little work: on one thread.
fn backward_twin(args: &Args) {
    let p: BackwardParams = args.params();
    let (width, weighted) = (p.width as usize, p.weighted == 1);
    let (d_out, tokens, order) = (args.f32(0), args.u32(1), args.u32(2));
    let (rows, weights, d_table) = (args.u32(3), args.f32(4), args.f32_mut(5));
    for &entry in &order[..p.count as usize] {
        let entry = entry as usize;
        let token = tokens[entry * p.stride as usize].wrapping_sub(p.first);
        if token >= p.held {
            continue;
        }
        let (row, weight) = match weighted {
            true => (rows[entry] as usize, weights[entry]),
            false => (entry, 1.0),
        };
        let grad = &mut d_table[token as usize * width..][..width];
        axpy(grad, weight, &d_out[row * width..][..width]);
    }
}

/// A random table, in so many shards: the first token and the rows of each.
fn table(
    h: &mut Harness,
    name: &'static str,
    (vocabulary, width): (usize, usize),
    shards: usize,
) -> Vec<(usize, TestBuffer)> {
    let each = vocabulary.div_ceil(shards);
    let shard = |first: usize| {
        let rows = each.min(vocabulary - first);
        (first, h.random(name, rows * width))
    };
    (0..vocabulary).step_by(each).map(shard).collect()
}

fn shard((first, rows): &(usize, TestBuffer)) -> Shard {
    Shard {
        first: *first,
        rows: rows.slice(),
    }
}

/// (vocabulary, tokens, width).
const SHAPES: [(usize, usize, usize); 5] = [
    (1, 1, 1),
    (5, 23, 3),
    (97, 31, 64),
    (11, 300, 67),
    (7, 90, 12),
];

/// Rows with random tokens, on both devices, and their order.
fn sorted_rows(h: &mut Harness, vocabulary: usize, tokens: usize) -> (TestBuffer, TestBuffer) {
    let rows = token_order::random_rows(h, vocabulary, tokens);
    let mut order: Vec<u32> = (0..tokens as u32).collect();
    order.sort_by_key(|&t| rows[t as usize].token);
    (
        h.u32("rows", bytemuck::cast_slice(&rows)),
        h.u32("order", &order),
    )
}

/// Targets, one of them outside the vocabulary, and their order; rows and weights of each.
fn weighted_targets(
    h: &mut Harness,
    vocabulary: usize,
    count: usize,
) -> (TestBuffer, TestBuffer, (TestBuffer, TestBuffer)) {
    let mut below = |n: usize| h.draws().below(n) as u32;
    let mut targets: Vec<u32> = (0..count).map(|_| below(vocabulary)).collect();
    let rows: Vec<u32> = (0..count).map(|_| below(count)).collect();
    if count > 1 {
        targets[count / 2] = NONE;
    }
    let mut order: Vec<u32> = (0..count as u32).collect();
    order.sort_by_key(|&k| targets[k as usize]);
    (
        h.u32("targets", &targets),
        h.u32("order", &order),
        (h.u32("rows", &rows), h.random("weights", count)),
    )
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for ((vocabulary, tokens, width), shards) in SHAPES.iter().flat_map(|&s| [(s, 1), (s, 3)]) {
        let (rows, order) = sorted_rows(h, vocabulary, tokens);
        let values = table(h, "table", (vocabulary, width), shards);
        let out = h.random("out", tokens * width);
        let grads = table(h, "d_table", (vocabulary, width), shards);
        let [r, o] = [&rows, &out].map(|b| b.slice());
        for values in &values {
            forward(h.stream(), shard(values), r, o, tokens, width);
        }
        let list = Tokens::of_rows(r, tokens);
        for grad in &grads {
            backward(h.stream(), o, None, list, order.slice(), shard(grad), width);
        }
        h.run()?;
        h.read_u32(&out)?;

        let (targets, order, weighted) = weighted_targets(h, vocabulary, tokens);
        let [rows, weights] = [&weighted.0, &weighted.1].map(|b| b.slice());
        let weighted = Some(Weighted { rows, weights });
        let list = Tokens::plain(targets.slice(), tokens);
        for grad in &grads {
            h.read_u32(&grad.1)?;
            let d_table = shard(grad);
            backward(h.stream(), o, weighted, list, order.slice(), d_table, width);
        }
        h.run()?;
        for grad in &grads {
            h.read_u32(&grad.1)?;
        }
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

    /// The values of a table, one shard after the other.
    fn whole(table: &[(usize, TestBuffer)]) -> Vec<f64> {
        table.iter().flat_map(|(_, rows)| rows.f64()).collect()
    }

    /// Compares the shards of a table with what they should hold.
    fn expect(h: &mut Harness, table: &[(usize, TestBuffer)], want: &[f64], within: f64) {
        let mut at = 0;
        for (_, rows) in table {
            h.expect(rows, &want[at..at + rows.words.len()], within);
            at += rows.words.len();
        }
    }

    #[test]
    fn looks_up_rows_and_adds_their_gradients() {
        devices::each(|h| {
            for ((vocabulary, tokens, width), shards) in
                SHAPES.iter().flat_map(|&s| [(s, 1), (s, 2), (s, 4)])
            {
                let (rows, order) = sorted_rows(h, vocabulary, tokens);
                let values = table(h, "table", (vocabulary, width), shards);
                let out = h.random("out", tokens * width);
                let d_out = h.random("d_out", tokens * width);
                let grads = table(h, "d_table", (vocabulary, width), shards);
                let (d_o, o, r) = (d_out.slice(), order.slice(), rows.slice());
                let list = Tokens::of_rows(r, tokens);
                for (values, grad) in values.iter().zip(&grads) {
                    forward(h.stream(), shard(values), r, out.slice(), tokens, width);
                    backward(h.stream(), d_o, None, list, o, shard(grad), width);
                }
                h.run().unwrap();
                // The gradient by definition, position by position.
                let (table, d_out) = (whole(&values), d_out.f64());
                let (mut want, mut grad) = (Vec::new(), whole(&grads));
                for (t, record) in rows.words.chunks(RECORD).enumerate() {
                    let row = record[0] as usize * width;
                    want.extend_from_slice(&table[row..row + width]);
                    for j in 0..width {
                        grad[row + j] += d_out[t * width + j];
                    }
                }
                h.expect(&out, &want, 0.0);
                expect(h, &grads, &grad, 2e-6);
            }
        });
    }

    #[test]
    fn adds_weighted_rows_of_targets() {
        devices::each(|h| {
            for ((vocabulary, count, width), shards) in
                SHAPES.iter().flat_map(|&s| [(s, 1), (s, 3)])
            {
                let (targets, order, (rows, weights)) = weighted_targets(h, vocabulary, count);
                let d_out = h.random("d_out", count * width);
                let grads = table(h, "d_table", (vocabulary, width), shards);
                let (d_o, o) = (d_out.slice(), order.slice());
                let weighted = Some(Weighted {
                    rows: rows.slice(),
                    weights: weights.slice(),
                });
                let list = Tokens::plain(targets.slice(), count);
                for grad in &grads {
                    backward(h.stream(), d_o, weighted, list, o, shard(grad), width);
                }
                h.run().unwrap();
                let (d_out, weights, mut grad) = (d_out.f64(), weights.f64(), whole(&grads));
                for (k, &token) in targets.words.iter().enumerate() {
                    if token != NONE {
                        for j in 0..width {
                            let from = rows.words[k] as usize * width + j;
                            grad[token as usize * width + j] += weights[k] * d_out[from];
                        }
                    }
                }
                expect(h, &grads, &grad, 2e-6);
            }
        });
    }
}
