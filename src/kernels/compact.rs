//! The active rows of a search's next forward pass, moved to the front and counted.
//!
//! A round of value-guided search has room for so many rows per prompt; prompts that are done, or nearly, leave theirs
//! inactive. The pass then runs over as many rows as there are ([`crate::device::Size`]), not over the room.
//!
//! Floor: no operations, 12 words read and at most written per row; one workgroup.

use super::harness::Harness;
use super::rows::{NONE, Row};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::{bindings, params};
use anyhow::Result;

params! {
    Params { rows: u32 }
}

pub static COMPACT: Kernel = Kernel {
    name: "compact",
    source: include_str!("../../shaders/compact.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![rows: Out U32, entry: Out U32, count: Out U32],
    twin,
    cost,
};

/// Of `n` rows [n, ROW] and entries [n, 2], those whose entry is not [`NONE`] come first, in order; `count` [1] is their
/// number. What lies behind them is left.
pub fn compact(s: &mut Stream, rows: Slice, entry: Slice, count: Slice, n: usize) {
    let params = Params { rows: n as u32 };
    s.push(&COMPACT, &params, &[rows, entry, count], Grid(1));
}

fn cost(launch: &Launch) -> Cost {
    let rows = launch.read_params::<Params>().rows as u64;
    Cost {
        operations: rows,
        bytes: 4 * (2 * (Row::WORDS as u64 + 2) * rows + 1),
    }
}

fn twin(args: &Args) {
    let n = args.params::<Params>().rows as usize;
    let (rows, entry) = (args.u32_mut(0), args.u32_mut(1));
    let mut done = 0;
    for i in 0..n {
        if entry[2 * i] != NONE {
            rows.copy_within(i * Row::WORDS..(i + 1) * Row::WORDS, done * Row::WORDS);
            entry.copy_within(2 * i..2 * i + 2, 2 * done);
            done += 1;
        }
    }
    args.u32_mut(2)[0] = done as u32;
}

/// Rows of which about one in `every` is inactive (0: all of them).
fn random(h: &mut Harness, n: usize, every: usize) -> (Vec<u32>, Vec<u32>) {
    let rows = (0..n * Row::WORDS).map(|i| i as u32).collect();
    let mut entry = Vec::new();
    for i in 0..n {
        let active = every > 0 && h.draws().below(every) > 0;
        entry.extend([if active { i as u32 } else { NONE }, 7]);
    }
    (rows, entry)
}

const SHAPES: [(usize, usize); 6] = [(1, 0), (1, 9), (63, 2), (64, 0), (65, 3), (300, 4)];

pub fn cases(h: &mut Harness) -> Result<()> {
    for (n, every) in SHAPES {
        let (rows, entry) = random(h, n, every);
        let (rows, entry) = (h.u32("rows", &rows), h.u32("entry", &entry));
        let count = h.u32("count", &[9]);
        let (r, e) = (rows.slice(), entry.slice());
        compact(h.stream(), r, e, count.slice(), n);
        h.run()?;
        for buffer in [&rows, &entry, &count] {
            h.read_u32(buffer)?;
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
    fn active_rows_come_first_in_order() {
        devices::each(|h| {
            for (n, every) in SHAPES {
                let (rows, entry) = random(h, n, every);
                let kept: Vec<u32> = (0..n as u32)
                    .filter(|&i| entry[2 * i as usize] != NONE)
                    .collect();
                let (rows, entry) = (h.u32("rows", &rows), h.u32("entry", &entry));
                let count = h.u32("count", &[9]);
                let (r, e) = (rows.slice(), entry.slice());
                compact(h.stream(), r, e, count.slice(), n);
                h.run().unwrap();
                h.expect_u32(&count, &[kept.len() as u32]);
                let (rows, entry) = (h.read_u32(&rows).unwrap(), h.read_u32(&entry).unwrap());
                for (to, &from) in kept.iter().enumerate() {
                    assert_eq!(entry[2 * to..2 * to + 2], [from, 7]);
                    let record = &rows[to * Row::WORDS..(to + 1) * Row::WORDS];
                    let first = from * Row::WORDS as u32;
                    assert!(record.iter().copied().eq(first..first + Row::WORDS as u32));
                }
            }
        });
    }
}
