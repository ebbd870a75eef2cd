//! The rows of a pass sorted by token, rows of one token ascending: what gives each row of an embedding's gradient one
//! owner and one order of addition (see [`super::embedding`]).
//!
//! A row's place is the number of rows that come before it. Floor: T^2 comparisons, a fraction of a percent of a forward
//! pass for any T a batch has; 8 T bytes.

use crate::device::{Args, Cost, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::kernels::rows::{Row, records};
use crate::{bindings, params};
use anyhow::Result;

params! {
    Params { tokens: u32 }
}

pub static TOKEN_ORDER: Kernel = Kernel {
    name: "token_order",
    source: include_str!("../../shaders/token_order.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![rows: In U32, order: Out U32],
    twin,
    cost,
};

/// `order` [T]: the rows (`[T, 8]` and more words) by token.
pub fn token_order(s: &mut Stream, rows: Slice, order: Slice, tokens: impl Into<Size>) {
    let tokens = tokens.into();
    let params = Params {
        tokens: tokens.max as u32,
    };
    let grid = Grid::cover(tokens.max, 64);
    s.push(&TOKEN_ORDER, &params, &[rows, order], grid)
        .size("tokens", tokens);
}

fn cost(launch: &Launch) -> Cost {
    let tokens = launch.read_params::<Params>().tokens as u64;
    Cost {
        operations: tokens * tokens,
        bytes: 8 * tokens,
    }
}

fn twin(args: &Args) {
    let tokens = args.params::<Params>().tokens as usize;
    let rows = records(args.u32(0), tokens);
    let order = &mut args.u32_mut(1)[..tokens];
    for (row, place) in (0..).zip(order.iter_mut()) {
        *place = row;
    }
    order.sort_unstable_by_key(|&row| (rows[row as usize].token, row));
}

/// Row records with random tokens below `vocabulary`.
pub(super) fn random_rows(h: &mut Harness, vocabulary: usize, tokens: usize) -> Vec<Row> {
    let row = |token| Row {
        token,
        ..Row::INACTIVE
    };
    (0..tokens)
        .map(|_| row(h.draws().below(vocabulary) as u32))
        .collect()
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (vocabulary, tokens) in [(1, 1), (5, 63), (3, 64), (97, 65), (11, 300)] {
        let rows = random_rows(h, vocabulary, tokens);
        let rows = h.u32("rows", bytemuck::cast_slice(&rows));
        let order = h.u32("order", &vec![7; tokens]);
        token_order(h.stream(), rows.slice(), order.slice(), tokens);
        h.run()?;
        h.read_u32(&order)?;
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
    fn sorts_stably() {
        devices::each(|h| {
            let rows: Vec<Row> = [3, 1, 3, 2, 1]
                .map(|token| Row {
                    token,
                    ..Row::INACTIVE
                })
                .into();
            let rows = h.u32("rows", bytemuck::cast_slice(&rows));
            let order = h.u32("order", &[9; 5]);
            token_order(h.stream(), rows.slice(), order.slice(), 5);
            h.run().unwrap();
            h.expect_u32(&order, &[1, 4, 3, 0, 2]);
        });
    }
}
