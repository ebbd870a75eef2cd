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

params! {
    Params { tokens: u32, width: u32 }
}

params! {
    /// `weighted`: 1 or 0.
    BackwardParams { count: u32, width: u32, stride: u32, vocab: u32, weighted: u32 }
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

/// `out[tokens, width]` from `table` `[vocabulary, width]` and the `rows` of the pass.
pub fn forward(
    s: &mut Stream,
    table: Slice,
    rows: Slice,
    out: Slice,
    tokens: impl Into<Size>,
    width: usize,
) {
    let tokens = tokens.into();
    let params = Params {
        tokens: tokens.max as u32,
        width: width as u32,
    };
    let grid = Grid::cover(tokens.max * width, 256);
    s.push(&EMBEDDING, &params, &[table, rows, out], grid)
        .size("tokens", tokens);
}

/// Which row of `d_out` belongs to each entry of a list of tokens [n], and what it is multiplied by.
#[derive(Clone, Copy, Debug)]
pub struct Weighted {
    pub rows: Slice,
    pub weights: Slice,
}

/// `d_table[token, :] += sum of d_out[t, :]` over the entries t of the list that hold the token, or, `weighted`, of
/// `weights[t] d_out[rows[t], :]`; `order` [n] is what [`super::token_order`] made of the list.
pub fn backward(
    s: &mut Stream,
    d_out: Slice,
    weighted: Option<Weighted>,
    tokens: Tokens,
    order: Slice,
    d_table: Slice,
    width: usize,
) {
    let count = tokens.count;
    let params = BackwardParams {
        count: count.max as u32,
        width: width as u32,
        stride: tokens.stride as u32,
        vocab: d_table.len / width as u32,
        weighted: weighted.is_some() as u32,
    };
    // Without weights, what is bound in their place is not read.
    let (rows, weights) = weighted.map_or((order, d_out), |w| (w.rows, w.weights));
    let slices = [d_out, tokens.words, order, rows, weights, d_table];
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
    let [count, width, vocab, weighted] = [p.count, p.width, p.vocab, p.weighted].map(u64::from);
    Cost {
        operations: (1 + weighted) * count * width,
        bytes: 4 * ((count + 2 * count.min(vocab)) * width + 2 * (1 + weighted) * count),
    }
}

fn forward_twin(args: &Args) {
    let p: Params = args.params();
    let (tokens, width) = (p.tokens as usize, p.width as usize);
    let table = args.f32(0);
    let parts = (
        chunks_mut(&mut args.f32_mut(2)[..tokens * width], width),
        chunks(args.u32(1), RECORD),
    );
    each(parts, (16 * 1024usize).div_ceil(width), |_, (out, row)| {
        out.copy_from_slice(&table[row[0] as usize * width..][..width]);
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
        let token = tokens[entry * p.stride as usize];
        if token >= p.vocab {
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
    for (vocabulary, tokens, width) in SHAPES {
        let (rows, order) = sorted_rows(h, vocabulary, tokens);
        let table = h.random("table", vocabulary * width);
        let out = h.random("out", tokens * width);
        let d_table = h.random("d_table", vocabulary * width);
        let [t, r, o] = [&table, &rows, &out].map(|b| b.slice());
        forward(h.stream(), t, r, o, tokens, width);
        let (order, d_t) = (order.slice(), d_table.slice());
        let rows = Tokens::of_rows(r, tokens);
        backward(h.stream(), o, None, rows, order, d_t, width);
        h.run()?;
        h.read_u32(&out)?;
        h.read_u32(&d_table)?;

        let (targets, order, weighted) = weighted_targets(h, vocabulary, tokens);
        let [rows, weights] = [&weighted.0, &weighted.1].map(|b| b.slice());
        let weighted = Some(Weighted { rows, weights });
        let targets = Tokens::plain(targets.slice(), tokens);
        backward(h.stream(), o, weighted, targets, order.slice(), d_t, width);
        h.run()?;
        h.read_u32(&d_table)?;
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
    fn looks_up_rows_and_adds_their_gradients() {
        devices::each(|h| {
            for (vocabulary, tokens, width) in SHAPES {
                let (rows, order) = sorted_rows(h, vocabulary, tokens);
                let table = h.random("table", vocabulary * width);
                let out = h.random("out", tokens * width);
                let d_out = h.random("d_out", tokens * width);
                let d_table = h.random("d_table", vocabulary * width);
                let (t, r) = (table.slice(), rows.slice());
                forward(h.stream(), t, r, out.slice(), tokens, width);
                let (d_o, o, d_t) = (d_out.slice(), order.slice(), d_table.slice());
                let list = Tokens::of_rows(r, tokens);
                backward(h.stream(), d_o, None, list, o, d_t, width);
                h.run().unwrap();
                // The gradient by definition, position by position.
                let (table, d_out) = (table.f64(), d_out.f64());
                let (mut want, mut grad) = (Vec::new(), d_table.f64());
                for (t, record) in rows.words.chunks(RECORD).enumerate() {
                    let row = record[0] as usize * width;
                    want.extend_from_slice(&table[row..row + width]);
                    for j in 0..width {
                        grad[row + j] += d_out[t * width + j];
                    }
                }
                h.expect(&out, &want, 0.0);
                h.expect(&d_table, &grad, 2e-6);
            }
        });
    }

    #[test]
    fn adds_weighted_rows_of_targets() {
        devices::each(|h| {
            for (vocabulary, count, width) in SHAPES {
                let (targets, order, (rows, weights)) = weighted_targets(h, vocabulary, count);
                let d_out = h.random("d_out", count * width);
                let d_table = h.random("d_table", vocabulary * width);
                let (d_o, o, d_t) = (d_out.slice(), order.slice(), d_table.slice());
                let weighted = Some(Weighted {
                    rows: rows.slice(),
                    weights: weights.slice(),
                });
                let list = Tokens::plain(targets.slice(), count);
                backward(h.stream(), d_o, weighted, list, o, d_t, width);
                h.run().unwrap();
                let (d_out, weights, mut grad) = (d_out.f64(), weights.f64(), d_table.f64());
                for (k, &token) in targets.words.iter().enumerate() {
                    if token != NONE {
                        for j in 0..width {
                            let from = rows.words[k] as usize * width + j;
                            grad[token as usize * width + j] += weights[k] * d_out[from];
                        }
                    }
                }
                h.expect(&d_table, &grad, 2e-6);
            }
        });
    }
}
