//! One level of beam search (spec 4): the `width` best of all entries' candidates become the next level's nodes.
//!
//! A prompt's entries are its newest nodes (`frontier .. count`); a node has its row of `top_edge` and `top_logp`
//! (`[B * M, top]`, from [`super::expand`]). Order: cumulative log-prob, then lower token id, then lower node; new
//! nodes are numbered in it. Their rows and entries (`width` per prompt, inactive past the last candidate) are written
//! for the next forward; `run` says whether there is one, which is what costs.
//!
//! With `settle`, a node that a single SID begins with is complete: it has an inactive row, costs nothing, and keeps its
//! place, so that the levels below have one less.
//!
//! Floor: 2 operations and 8 bytes per candidate, taking all of the places above to have some, a node and a row written per
//! place. Ranks are counted, `width log(top)` loads per candidate in parallel; the twin sorts.

use super::search::{
    FIXTURE_SLOTS, Fixture, NEW_NODE_BYTES, NONE, Prompt, RECORD, SearchSlices, Shape, Trie,
    each_prompt, header, node, stat,
};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::{bindings, params};
use anyhow::Result;
use std::cell::RefCell;

params! {
    /// `nodes` is M, `width` the rows per prompt of the next forward.
    Params {
        prompts: u32, nodes: u32, slot_base: u32, width: u32, tokens_at: u32, top: u32, run: u32, settle: u32,
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
    let candidates = prompts * p.width as u64 * p.top as u64;
    Cost {
        operations: 2 * candidates,
        bytes: 8 * candidates + prompts * p.width as u64 * NEW_NODE_BYTES,
    }
}

/// Log-prob of the prefix, token, node, place among the best children.
type Candidate = (f32, u32, usize, usize);

thread_local! {
    /// Room to order a prompt's candidates in.
    static CANDIDATES: RefCell<Vec<Candidate>> = const { RefCell::new(Vec::new()) };
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let (nodes, top, width) = (p.nodes as usize, p.top as usize, p.width as usize);
    let (top_edge, top_logp) = (args.u32(0), args.f32(1));
    let trie = Trie::new(args.u32(2), p.tokens_at);
    let shape = Shape {
        prompts: p.prompts,
        nodes: p.nodes,
        slot_base: p.slot_base,
        width: p.width,
    };
    let is_settled = |prompt: &Prompt, node: usize| {
        p.settle != 0 && node > 0 && trie.is_settled(prompt.node(node, node::TRIE), true)
    };
    each_prompt(shape, args, 3, |mut prompt| {
        let frontier = *prompt.header(header::FRONTIER) as usize;
        let count = *prompt.header(header::COUNT) as usize;
        let made = CANDIDATES.with_borrow_mut(|candidates| {
            candidates.clear();
            for node in (frontier..count).filter(|&node| !is_settled(&prompt, node)) {
                let prefix = prompt.stat(node, stat::CUMULATIVE);
                let first = (prompt.index * nodes + node) * top;
                for i in first..first + top {
                    if top_edge[i] != NONE {
                        candidates.push((prefix + top_logp[i], trie.token(top_edge[i]), node, i));
                    }
                }
            }
            let before = |a: &Candidate, b: &Candidate| {
                // Adding 0 makes -0 equal to 0, as the shader's comparison has it.
                (b.0 + 0.0)
                    .total_cmp(&(a.0 + 0.0))
                    .then((a.1, a.2).cmp(&(b.1, b.2)))
            };
            let complete = (1..count).filter(|&node| is_settled(&prompt, node));
            let places = width.saturating_sub(complete.count());
            if candidates.len() > places {
                if places > 0 {
                    candidates.select_nth_unstable_by(places - 1, before);
                }
                candidates.truncate(places);
            }
            candidates.sort_unstable_by(before);
            for (rank, &(_, token, node, i)) in candidates.iter().enumerate() {
                prompt.make(count + rank, node, top_edge[i], top_logp[i]);
                prompt.run(rank, count + rank, token);
            }
            candidates.len()
        });
        let mut cost = 0;
        for rank in 0..made {
            match is_settled(&prompt, count + rank) {
                true => prompt.idle(rank),
                false => cost += 1,
            }
        }
        prompt.rest(made);
        *prompt.header(header::COUNT) += made as u32;
        *prompt.header(header::FRONTIER) = count as u32;
        *prompt.header(header::COST) += if p.run != 0 { cost } else { 0 };
    });
}

pub fn cases(h: &mut Harness) -> Result<()> {
    // Three levels in a row; coarse log-probs, so that scores tie within and across entries.
    for (prompts, fanout, width, settle) in [
        (1, 1, 1, 0),
        (3, 5, 4, 1),
        (65, 2, 9, 1),
        (65, 7, 9, 0),
        (2, 70, 130, 0),
    ] {
        let nodes = 1 + 3 * width;
        let at = Fixture::new(h, [3, fanout], [prompts, nodes, width])?;
        let begin = &at.child_begin;
        for level in 0..3 {
            let top = fanout.min(width);
            let tree = h.read_u32(&at.tree)?;
            let (mut edges, mut logps) = (Vec::new(), Vec::new());
            for record in tree.chunks_exact((1 + nodes) * RECORD).flat_map(|tree| {
                let count = tree[header::COUNT] as usize;
                let nodes = tree[RECORD..].chunks_exact(RECORD).enumerate();
                nodes.map(move |(node, record)| (node < count).then_some(record))
            }) {
                let mut list: Vec<f32> = (0..top).map(|_| -(h.draws().below(6) as f32)).collect();
                list.sort_by(|a, b| b.total_cmp(a));
                let children = record.map_or(0..0, |record| {
                    let inner = record[node::TRIE] as usize;
                    begin[inner]..begin[inner + 1]
                });
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
                top: top as u32,
                run: (level < 2) as u32,
                settle,
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
