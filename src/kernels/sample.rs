//! One level of ancestral sampling (`rl.decode = sample`): each of `width` samples goes on by a child drawn from the
//! policy over the legal children, `softmax(logp * sharpness)` (sharpness: 1 / temperature), by Gumbel-max.
//!
//! A prompt's entries are the root or its newest nodes, one per sample; entry `e` has row `b * entries + e` of
//! `child_logp` (`[n, fanout]`). The draw of child `c` for sample `j` is word 0 of the generator at (key, step, document,
//! `draws + j * fanout + c`). Samples may coincide; each has nodes of its own.
//!
//! Floor, all nodes having a whole fanout of children: a draw, two logarithms and two operations per child and sample; 4
//! bytes per child of an entry, a node and a row written per sample.

use super::rng::DRAW_OPERATIONS;
use super::search::{
    FIXTURE_SLOTS, Fixture, NEW_NODE_BYTES, SearchSlices, Shape, Trie, each_prompt, header, node,
};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::{bindings, params, rng};
use anyhow::Result;

params! {
    /// As [`super::beam::Params`]; `key` is [`rng::key`].
    Params {
        prompts: u32, nodes: u32, slot_base: u32, width: u32, tokens_at: u32, entries: u32, fanout: u32, run: u32,
        key: u32, step: u32, sharpness: f32,
    }
}

pub static SAMPLE: Kernel = Kernel {
    name: "sample",
    source: include_str!("../../shaders/sample.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![
        child_logp: In F32, trie: In U32,
        tree: Out U32, stats: Out F32, rows: Out U32, parent: Out U32, entry: Out U32,
    ],
    twin,
    cost,
};

/// Grows every sample by one token. `inputs`: `child_logp`, `trie`.
pub fn sample(s: &mut Stream, inputs: [Slice; 2], on: SearchSlices, p: Params) {
    s.push(&SAMPLE, &p, &on.after(inputs), Grid(p.prompts));
}

fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [width, entries, fanout] = [p.width, p.entries, p.fanout].map(u64::from);
    Cost {
        operations: width * fanout * (DRAW_OPERATIONS + 4),
        bytes: 4 * entries * fanout + width * NEW_NODE_BYTES,
    } * p.prompts as u64
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let (entries, fanout, width) = (p.entries as usize, p.fanout as usize, p.width as usize);
    let child_logp = args.f32(0);
    let trie = Trie::new(args.u32(1), p.tokens_at);
    let shape = Shape {
        prompts: p.prompts,
        nodes: p.nodes,
        slot_base: p.slot_base,
        width: p.width,
    };
    each_prompt(shape, args, 2, |mut prompt| {
        let frontier = *prompt.header(header::FRONTIER) as usize;
        let count = *prompt.header(header::COUNT) as usize;
        let draws = *prompt.header(header::DRAWS);
        let document = *prompt.header(header::DOCUMENT);
        for j in 0..width {
            let e = j % entries;
            let edges = trie.edges(prompt.node(frontier + e, node::TRIE));
            let logps = &child_logp[(prompt.index * entries + e) * fanout..][..edges.len()];
            let (mut chosen, mut best) = (0, 0.0);
            for (c, &logp) in logps.iter().enumerate() {
                let index = draws.wrapping_add((j * fanout + c) as u32);
                let word = rng::pcg4d([p.key, p.step, document, index])[0];
                let drawn = logp * p.sharpness + rng::gumbel(word);
                if c == 0 || drawn > best {
                    (chosen, best) = (c, drawn);
                }
            }
            let edge = edges.start + chosen as u32;
            prompt.make(count + j, frontier + e, edge, logps[chosen]);
            prompt.run(j, count + j, trie.token(edge));
        }
        *prompt.header(header::COUNT) += p.width;
        *prompt.header(header::FRONTIER) = count as u32;
        *prompt.header(header::COST) += if p.run != 0 { p.width } else { 0 };
        *prompt.header(header::DRAWS) = draws.wrapping_add(p.width * p.fanout);
    });
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (prompts, fanout, width) in [(1, 1, 1), (3, 5, 4), (65, 7, 9), (2, 70, 130)] {
        let nodes = 1 + 2 * width;
        let at = Fixture::new(h, [2, fanout], [prompts, nodes, width])?;
        for level in 0..2 {
            let entries = if level == 0 { 1 } else { width };
            let child_logp = h.random("child_logp", prompts * entries * fanout);
            let p = Params {
                prompts: prompts as u32,
                nodes: nodes as u32,
                slot_base: FIXTURE_SLOTS,
                width: width as u32,
                tokens_at: at.child_begin.len() as u32,
                entries: entries as u32,
                fanout: fanout as u32,
                run: 1 - level,
                key: 77,
                step: 5,
                sharpness: 0.5,
            };
            sample(
                h.stream(),
                [child_logp.slice(), at.trie.slice()],
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
