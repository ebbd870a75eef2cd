//! The entries of a list sorted by token, those of one token ascending: what gives each row of a table's gradient one
//! owner and one order of addition (see [`super::embedding`]).
//!
//! An entry's place is the number of entries that come before it. Floor: n^2 comparisons, a fraction of a percent of a
//! forward pass for any number a batch has; 8 n bytes.

use crate::device::{Args, Cost, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::kernels::rows::Row;
use crate::{bindings, params};
use anyhow::Result;

/// A list of tokens: the first of every `stride` words.
#[derive(Clone, Copy, Debug)]
pub struct Tokens {
    pub words: Slice,
    pub stride: usize,
    pub count: Size,
}

impl Tokens {
    /// Those of the rows of a pass.
    pub fn of_rows(rows: Slice, count: impl Into<Size>) -> Tokens {
        Tokens {
            words: rows,
            stride: Row::WORDS,
            count: count.into(),
        }
    }

    /// Words that are nothing else.
    pub fn plain(words: Slice, count: impl Into<Size>) -> Tokens {
        Tokens {
            words,
            stride: 1,
            count: count.into(),
        }
    }
}

params! {
    Params { count: u32, stride: u32 }
}

pub static TOKEN_ORDER: Kernel = Kernel {
    name: "token_order",
    source: include_str!("../../shaders/token_order.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![tokens: In U32, order: Out U32],
    twin,
    cost,
};

/// `order` [n]: the n entries by token.
pub fn token_order(s: &mut Stream, tokens: Tokens, order: Slice) {
    let Tokens {
        words,
        stride,
        count,
    } = tokens;
    let params = Params {
        count: count.max as u32,
        stride: stride as u32,
    };
    let grid = Grid::cover(count.max, 64);
    s.push(&TOKEN_ORDER, &params, &[words, order], grid)
        .size("count", count);
}

fn cost(launch: &Launch) -> Cost {
    let count = launch.read_params::<Params>().count as u64;
    Cost {
        operations: count * count,
        bytes: 8 * count,
    }
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let tokens = args.u32(0);
    let order = &mut args.u32_mut(1)[..p.count as usize];
    for (entry, place) in (0..).zip(order.iter_mut()) {
        *place = entry;
    }
    order.sort_unstable_by_key(|&entry| (tokens[(entry * p.stride) as usize], entry));
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
        let plain: Vec<u32> = rows.iter().map(|row| row.token).collect();
        let rows = h.u32("rows", bytemuck::cast_slice(&rows));
        let plain = h.u32("tokens", &plain);
        for list in [
            Tokens::of_rows(rows.slice(), tokens),
            Tokens::plain(plain.slice(), tokens),
        ] {
            let order = h.u32("order", &vec![7; tokens]);
            token_order(h.stream(), list, order.slice());
            h.run()?;
            h.read_u32(&order)?;
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
            let plain = h.u32("tokens", &[3, 1, u32::MAX, 2, 1]);
            let plain_order = h.u32("order", &[9; 5]);
            let rows = Tokens::of_rows(rows.slice(), 5);
            token_order(h.stream(), rows, order.slice());
            token_order(
                h.stream(),
                Tokens::plain(plain.slice(), 5),
                plain_order.slice(),
            );
            h.run().unwrap();
            h.expect_u32(&order, &[1, 4, 3, 0, 2]);
            h.expect_u32(&plain_order, &[1, 4, 3, 0, 2]);
        });
    }
}
