//! Token embedding: `out[t, :] = table[token(t), :]` with `token(t)` the first field of row record t (spec 3), and its
//! gradient `d_table[token, :] += sum of d_out[t, :] over the rows t that hold the token`.
//!
//! The rows are sorted by token first ([`super::token_order`]), so that each row of the table has one owner: no atomics,
//! one order of addition.
//!
//! Floor: forward 8 bytes per element; backward, for T rows, 1 operation per element and 4 bytes, and 8 more for the rows of
//! the table, at most T of them; 4 bytes per row for each list.

use crate::device::threads::{chunks, chunks_mut, each};
use crate::device::{Args, Cost, Form, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::{Harness, TestBuffer};
use crate::kernels::math::axpy;
use crate::kernels::token_order;
use crate::{bindings, params};
use anyhow::Result;

/// Words of a row record; the token is the first.
const RECORD: usize = crate::forest::Row::WORDS;

params! {
    Params { tokens: u32, width: u32 }
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
    params: Params::FIELDS,
    bindings: bindings![d_out: In F32, rows: In U32, order: In U32, d_table: Out F32],
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

/// `d_table[token, :] += sum of d_out[t, :]` over the rows t that hold the token; `order` is what
/// [`super::token_order`] wrote.
pub fn backward(
    s: &mut Stream,
    d_out: Slice,
    rows: Slice,
    order: Slice,
    d_table: Slice,
    tokens: impl Into<Size>,
    width: usize,
) {
    let tokens = tokens.into();
    let params = Params {
        tokens: tokens.max as u32,
        width: width as u32,
    };
    let slices = [d_out, rows, order, d_table];
    let grid = Grid::cover(tokens.max * width, 256);
    s.push(&EMBEDDING_BACKWARD, &params, &slices, grid)
        .size("tokens", tokens);
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
    let p: Params = launch.read_params();
    let [tokens, width] = [p.tokens, p.width].map(u64::from);
    let table = launch.slices()[3].len as u64 / width;
    Cost {
        operations: tokens * width,
        bytes: 4 * ((tokens + 2 * tokens.min(table)) * width + 2 * tokens),
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

/// Tokens come sorted, so that the rows of the table can be parted between threads.
fn backward_twin(args: &Args) {
    let p: Params = args.params();
    let (tokens, width) = (p.tokens as usize, p.width as usize);
    let (d_out, rows, order) = (args.f32(0), args.u32(1), args.u32(2));
    let d_table = args.f32_mut(3);
    for &t in &order[..tokens] {
        let token = rows[t as usize * RECORD] as usize;
        let grad = &mut d_table[token * width..][..width];
        axpy(grad, 1.0, &d_out[t as usize * width..][..width]);
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

pub fn cases(h: &mut Harness) -> Result<()> {
    for (vocabulary, tokens, width) in SHAPES {
        let (rows, order) = sorted_rows(h, vocabulary, tokens);
        let table = h.random("table", vocabulary * width);
        let out = h.random("out", tokens * width);
        let d_table = h.random("d_table", vocabulary * width);
        let [t, r, o] = [&table, &rows, &out].map(|b| b.slice());
        forward(h.stream(), t, r, o, tokens, width);
        let (order, d_t) = (order.slice(), d_table.slice());
        backward(h.stream(), o, r, order, d_t, tokens, width);
        h.run()?;
        h.read_u32(&out)?;
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
                let (d_o, o) = (d_out.slice(), order.slice());
                backward(h.stream(), d_o, r, o, d_table.slice(), tokens, width);
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
}
