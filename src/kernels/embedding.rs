//! Token embedding: `out[t, :] = table[token(t), :]` with `token(t)` the first field of row record t (spec 3), and its
//! gradient `d_table[token, :] += sum of d_out[t, :] over the rows t that hold the token`.
//!
//! The host sorts the positions by token (`order`, `starts`, `tokens`), so that each row of the table has one owner:
//! no atomics, one order of addition.
//!
//! Floor: forward 8 bytes per element; backward, for T rows with U distinct tokens, T operations and 4 (T + 2 U) bytes per
//! column (T from [`ForestSize`](crate::forest::ForestSize)); 4 bytes per row and twice per token for the lists.

use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::kernels::math::axpy;
use crate::{bindings, params};
use anyhow::Result;
use rayon::prelude::*;

/// Words of a row record; the token is the first.
const RECORD: usize = 8;

params! {
    Params { tokens: u32, width: u32 }
}

params! {
    BackwardParams { distinct: u32, width: u32 }
}

pub static EMBEDDING: Kernel = Kernel {
    name: "embedding",
    source: include_str!("../../shaders/embedding.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
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
    forms: &[],
    params: BackwardParams::FIELDS,
    bindings: bindings![d_out: In F32, order: In U32, starts: In U32, tokens: In U32, d_table: Out F32],
    twin: backward_twin,
    cost: backward_cost,
};

/// `out[tokens, width]` from `table` `[vocabulary, width]` and `rows` `[tokens, 8]`.
pub fn forward(s: &mut Stream, table: Slice, rows: Slice, out: Slice, tokens: usize, width: usize) {
    let params = Params {
        tokens: tokens as u32,
        width: width as u32,
    };
    let grid = Grid::cover(tokens * width, 256);
    s.push(&EMBEDDING, &params, &[table, rows, out], grid);
}

/// `d_table[tokens[u], :] += sum of d_out[order[k], :]` over k in `starts[u] .. starts[u + 1]`, for u below `distinct`.
/// `order`: u32 positions sorted by token; `starts`: u32 `[distinct + 1]`; `tokens`: u32 `[distinct]`, each once.
pub fn backward(
    s: &mut Stream,
    d_out: Slice,
    order: Slice,
    starts: Slice,
    tokens: Slice,
    d_table: Slice,
    distinct: usize,
    width: usize,
) {
    let params = BackwardParams {
        distinct: distinct as u32,
        width: width as u32,
    };
    let slices = [d_out, order, starts, tokens, d_table];
    let grid = Grid::cover(distinct * width, 256);
    s.push(&EMBEDDING_BACKWARD, &params, &slices, grid);
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
    let [distinct, width] = [p.distinct, p.width].map(u64::from);
    let tokens = launch.forest.rows;
    Cost {
        operations: tokens * width,
        bytes: 4 * (tokens + 2 * distinct) * (width + 1),
    }
}

fn forward_twin(args: &Args) {
    let p: Params = args.params();
    let (tokens, width) = (p.tokens as usize, p.width as usize);
    let table = args.f32(0);
    args.f32_mut(2)[..tokens * width]
        .par_chunks_mut(width)
        .zip(args.u32(1).par_chunks(RECORD))
        .with_min_len((16 * 1024usize).div_ceil(width))
        .for_each(|(out, row)| out.copy_from_slice(&table[row[0] as usize * width..][..width]));
}

/// Serial: the rows it writes are not known to be apart, and the loop is bound by memory.
fn backward_twin(args: &Args) {
    let p: BackwardParams = args.params();
    let (distinct, width) = (p.distinct as usize, p.width as usize);
    let (d_out, order, starts, tokens) = (args.f32(0), args.u32(1), args.u32(2), args.u32(3));
    let d_table = args.f32_mut(4);
    for u in 0..distinct {
        let grad = &mut d_table[tokens[u] as usize * width..][..width];
        for &t in &order[starts[u] as usize..starts[u + 1] as usize] {
            axpy(grad, 1.0, &d_out[t as usize * width..][..width]);
        }
    }
}

/// (vocabulary, tokens, width).
const SHAPES: [(usize, usize, usize); 4] = [(1, 1, 1), (5, 23, 3), (97, 31, 64), (11, 300, 67)];

/// Row records with random tokens and noise in the other fields.
fn records(h: &mut Harness, vocabulary: usize, tokens: usize) -> Vec<u32> {
    let mut rows = vec![u32::MAX; tokens * RECORD];
    for row in rows.chunks_mut(RECORD) {
        row[0] = h.draws().below(vocabulary) as u32;
    }
    rows
}

/// `order`, `starts` and `tokens` of [`backward`] for these row records.
fn sorted(rows: &[u32]) -> [Vec<u32>; 3] {
    let token = |t: u32| rows[t as usize * RECORD];
    let mut order: Vec<u32> = (0..(rows.len() / RECORD) as u32).collect();
    order.sort_by_key(|&t| token(t));
    let (mut starts, mut tokens) = (vec![0], Vec::new());
    for group in order.chunk_by(|&a, &b| token(a) == token(b)) {
        tokens.push(token(group[0]));
        starts.push(starts[starts.len() - 1] + group.len() as u32);
    }
    [order, starts, tokens]
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (vocabulary, tokens, width) in SHAPES {
        let rows = records(h, vocabulary, tokens);
        let (table, out) = (
            h.random("table", vocabulary * width),
            h.random("out", tokens * width),
        );
        let [order, starts, distinct] = sorted(&rows).map(|words| h.u32("sorted", &words));
        let rows = h.u32("rows", &rows);
        let d_table = h.random("d_table", vocabulary * width);
        forward(
            h.stream(),
            table.slice(),
            rows.slice(),
            out.slice(),
            tokens,
            width,
        );
        let [o, s, t] = [&order, &starts, &distinct].map(|b| b.slice());
        let count = distinct.words.len();
        h.stream().forest.rows = tokens as u64;
        backward(
            h.stream(),
            out.slice(),
            o,
            s,
            t,
            d_table.slice(),
            count,
            width,
        );
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
                let records = records(h, vocabulary, tokens);
                let rows = h.u32("rows", &records);
                let table = h.random("table", vocabulary * width);
                let (out, d_out) = (
                    h.random("out", tokens * width),
                    h.random("d_out", tokens * width),
                );
                let d_table = h.random("d_table", vocabulary * width);
                let [order, starts, distinct] =
                    sorted(&records).map(|words| h.u32("sorted", &words));
                forward(
                    h.stream(),
                    table.slice(),
                    rows.slice(),
                    out.slice(),
                    tokens,
                    width,
                );
                let [o, s, t] = [&order, &starts, &distinct].map(|b| b.slice());
                let count = distinct.words.len();
                backward(
                    h.stream(),
                    d_out.slice(),
                    o,
                    s,
                    t,
                    d_table.slice(),
                    count,
                    width,
                );
                h.run().unwrap();
                // The gradient by definition, position by position.
                let (table, d_out) = (table.f64(), d_out.f64());
                let (mut want, mut grad) = (Vec::new(), d_table.f64());
                for (t, record) in records.chunks(RECORD).enumerate() {
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
