//! One level of beam search (spec 4): the `width` best of all entries' candidates become the next level's nodes.
//!
//! A prompt's entries are its newest nodes (`frontier .. count`); entry `e` has row `b * entries + e` of `top_edge` and
//! `top_logp` (`[n, top]`, from [`super::expand`]). Order: cumulative log-prob, then lower token id, then lower entry; new
//! nodes are numbered in it. Their rows and entries (`width` per prompt, inactive past the last candidate) are written
//! for the next forward; `run` says whether there is one, which is what costs.
//!
//! Floor: 2 operations and 8 bytes per candidate, a node and a row written per place. Ranks are counted, `entries log(top)`
//! loads per candidate in parallel; the twin sorts.

use super::search::{
    FIXTURE_SLOTS, Fixture, NEW_NODE_BYTES, NONE, SearchSlices, Shape, Trie, each_prompt, header,
    stat,
};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::{bindings, params};
use anyhow::Result;
use std::cell::RefCell;

params! {
    /// `nodes` is M, `entries` the rows per prompt of the candidates, `width` those of the next forward.
    Params {
        prompts: u32, nodes: u32, slot_base: u32, width: u32, tokens_at: u32, entries: u32, top: u32, run: u32,
    }
}

pub static BEAM: Kernel = Kernel {
    name: "beam",
    source: include_str!("../../shaders/beam.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![
        top_edge: In U32, top_logp: In F32, trie: In U32,
        tree: Out U32, stats: Out F32, rows: Out U32, parent: Out U32, entry: Out U32,
    ],
    twin,
    cost,
};

/// Grows every prompt's tree by one level. `inputs`: `top_edge`, `top_logp`, `trie`.
pub fn beam(s: &mut Stream, inputs: [Slice; 3], on: SearchSlices, p: Params) {
    s.push(&BEAM, &p, &on.after(inputs), Grid(p.prompts));
}

fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let prompts = p.prompts as u64;
    let candidates = prompts * p.entries as u64 * p.top as u64;
    Cost {
        operations: 2 * candidates,
        bytes: 8 * candidates + prompts * p.width as u64 * NEW_NODE_BYTES,
    }
}

/// Log-prob of the prefix, token, entry, place among the best children.
type Candidate = (f32, u32, usize, usize);

thread_local! {
    /// Room to order a prompt's candidates in.
    static CANDIDATES: RefCell<Vec<Candidate>> = const { RefCell::new(Vec::new()) };
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let (entries, top, width) = (p.entries as usize, p.top as usize, p.width as usize);
    let (top_edge, top_logp) = (args.u32(0), args.f32(1));
    let trie = Trie::new(args.u32(2), p.tokens_at);
    let shape = Shape {
        prompts: p.prompts,
        nodes: p.nodes,
        slot_base: p.slot_base,
        width: p.width,
    };
    each_prompt(shape, args, 3, |mut prompt| {
        let frontier = *prompt.header(header::FRONTIER) as usize;
        let count = *prompt.header(header::COUNT) as usize;
        let made = CANDIDATES.with_borrow_mut(|candidates| {
            candidates.clear();
            for e in 0..count - frontier {
                let prefix = prompt.stat(frontier + e, stat::CUMULATIVE);
                let first = (prompt.index * entries + e) * top;
                for i in first..first + top {
                    if top_edge[i] != NONE {
                        candidates.push((prefix + top_logp[i], trie.token(top_edge[i]), e, i));
                    }
                }
            }
            let before = |a: &Candidate, b: &Candidate| {
                // Adding 0 makes -0 equal to 0, as the shader's comparison has it.
                (b.0 + 0.0)
                    .total_cmp(&(a.0 + 0.0))
                    .then((a.1, a.2).cmp(&(b.1, b.2)))
            };
            if candidates.len() > width {
                candidates.select_nth_unstable_by(width - 1, before);
                candidates.truncate(width);
            }
            candidates.sort_unstable_by(before);
            for (rank, &(_, token, e, i)) in candidates.iter().enumerate() {
                prompt.make(count + rank, frontier + e, top_edge[i], top_logp[i]);
                prompt.run(rank, count + rank, token);
            }
            candidates.len()
        });
        prompt.rest(made);
        *prompt.header(header::COUNT) += made as u32;
        *prompt.header(header::FRONTIER) = count as u32;
        *prompt.header(header::COST) += if p.run != 0 { made as u32 } else { 0 };
    });
}

pub fn cases(h: &mut Harness) -> Result<()> {
    // Two levels in a row; coarse log-probs, so that scores tie within and across entries.
    for (prompts, fanout, width) in [(1, 1, 1), (3, 5, 4), (65, 7, 9), (2, 70, 130)] {
        let nodes = 1 + 2 * width;
        let at = Fixture::new(h, [2, fanout], [prompts, nodes, width])?;
        let begin = &at.child_begin;
        for level in 0..2 {
            let entries = if level == 0 { 1 } else { width };
            let top = fanout.min(width);
            let place = h.read_u32(&at.entry)?;
            let (mut edges, mut logps) = (Vec::new(), Vec::new());
            for row in 0..prompts * entries {
                let (node, inner) = (place[2 * row], place[2 * row + 1] as usize);
                let mut list: Vec<f32> = (0..top).map(|_| -(h.draws().below(6) as f32)).collect();
                list.sort_by(|a, b| b.total_cmp(a));
                let children = if node == NONE {
                    0..0
                } else {
                    begin[inner]..begin[inner + 1]
                };
                // Any order of children will do for the kernel; keep the edges distinct.
                edges.extend((0..top).map(|i| children.clone().nth(i).unwrap_or(NONE)));
                logps.extend(list);
            }
            let (top_edge, top_logp) = (h.u32("top_edge", &edges), h.f32("top_logp", &logps));
            let p = Params {
                prompts: prompts as u32,
                nodes: nodes as u32,
                slot_base: FIXTURE_SLOTS,
                width: width as u32,
                tokens_at: begin.len() as u32,
                entries: entries as u32,
                top: top as u32,
                run: 1 - level,
            };
            beam(
                h.stream(),
                [top_edge.slice(), top_logp.slice(), at.trie.slice()],
                at.slices(),
                p,
            );
            at.run(h)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::kernels::harness::devices;

    #[test]
    fn shader_equals_twin() {
        devices::lockstep(super::cases);
    }
}
