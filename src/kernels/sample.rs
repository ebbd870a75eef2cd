//! One level of ancestral sampling (`rl.decode = sample`): each of `width` samples goes on by a child drawn from the
//! policy over the legal children, `softmax(logp * sharpness)` (sharpness: 1 / temperature), by Gumbel-max.
//!
//! A prompt's entries are the root or its newest nodes, one per sample; entry `e` has row `b * entries + e` of
//! `child_logp` (`[n, fanout]`). The draw of child `c` for sample `j` is word 0 of the generator at (key, step, document,
//! `draws + j * fanout + c`). Samples may coincide; each has nodes of its own.
//!
//! Floor: two logarithms per child and sample.

use super::search::{Shape, Trie, each_prompt, header, node};
use crate::device::{Args, Grid, Kernel, Slice, Stream};
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
    params: Params::FIELDS,
    bindings: bindings![
        child_logp: In F32, trie: In U32,
        tree: Out U32, stats: Out F32, rows: Out U32, parent: Out U32, entry: Out U32,
    ],
    twin,
};

/// The buffers of [`sample`], in the kernel's order (see [`super::search`] for the last five).
#[derive(Clone, Copy)]
pub struct Sample {
    pub child_logp: Slice,
    pub trie: Slice,
    pub tree: Slice,
    pub stats: Slice,
    pub rows: Slice,
    pub parent: Slice,
    pub entry: Slice,
}

/// Grows every sample by one token.
pub fn sample(s: &mut Stream, on: Sample, p: Params) {
    let slices = [
        on.child_logp,
        on.trie,
        on.tree,
        on.stats,
        on.rows,
        on.parent,
        on.entry,
    ];
    s.push(&SAMPLE, &p, &slices, Grid(p.prompts));
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
    let (tree, stats) = (args.u32_mut(2), args.f32_mut(3));
    let (rows, parent, entry) = (args.u32_mut(4), args.u32_mut(5), args.u32_mut(6));
    each_prompt(shape, tree, stats, rows, parent, entry, |mut prompt| {
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
    use super::search::{RECORD, STATS, search_begin};
    for (prompts, fanout, width) in [(1, 1, 1), (3, 5, 4), (65, 7, 9), (2, 70, 130)] {
        let (begin, tokens, _) = super::expand::random_trie(h.draws(), 2, fanout, 200);
        let trie = h.u32("trie", &[begin.clone(), tokens].concat());
        let nodes = 1 + 2 * width;
        let slot_base = 10;
        let spans: Vec<u32> = (0..prompts as u32)
            .flat_map(|b| [3 * b, 3 * b + 2, b])
            .collect();
        let prompt = h.u32("prompt", &spans);
        let tree = h.u32("tree", &vec![3; prompts * (1 + nodes) * RECORD]);
        let stats = h.random("stats", prompts * nodes * STATS);
        let rows = h.u32("rows", &vec![5; prompts * width * RECORD]);
        let parent = h.u32("parent", &vec![7; slot_base + prompts * nodes]);
        let entry = h.u32("entry", &vec![9; prompts * width * 2]);
        let [a, b, c, d] = [prompt.slice(), tree.slice(), stats.slice(), entry.slice()];
        search_begin(h.stream(), a, b, c, d, prompts, nodes);
        for level in 0..2 {
            let entries = if level == 0 { 1 } else { width };
            let child_logp = h.random("child_logp", prompts * entries * fanout);
            let on = Sample {
                child_logp: child_logp.slice(),
                trie: trie.slice(),
                tree: tree.slice(),
                stats: stats.slice(),
                rows: rows.slice(),
                parent: parent.slice(),
                entry: entry.slice(),
            };
            let p = Params {
                prompts: prompts as u32,
                nodes: nodes as u32,
                slot_base: slot_base as u32,
                width: width as u32,
                tokens_at: begin.len() as u32,
                entries: entries as u32,
                fanout: fanout as u32,
                run: 1 - level,
                key: 77,
                step: 5,
                sharpness: 0.5,
            };
            sample(h.stream(), on, p);
            h.run()?;
            for buffer in [&tree, &stats, &rows, &parent, &entry] {
                h.read_u32(buffer)?;
            }
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
