//! From candidates to a forest, on the device: the candidates of a prompt become one tree in which a shared prefix is one
//! node (spec 3), packed as rows behind the prompts' rows, with the tables the objective reads.
//!
//! Walked in the order of their SIDs, candidates with equal prefixes follow each other: a candidate opens new nodes from
//! the first token on in which it differs from the one before. Rows are numbered in that order, which is depth-first; the
//! nodes of a prompt, and with them the targets, are numbered breadth-first, so that the children of a node follow each
//! other. [`sizes`] counts, [`pack`] writes.
//!
//! `asked`: u32 `[B, ASKED + L]`: the prompt's first row and the one past its last, the target's SID, its worth (bits),
//! the target's tokens. `picked` is what [`super::candidates`] wrote.
//!
//! Floor: G^2 L operations per prompt, in one invocation: latency, not throughput, and little beside a forward pass; what is
//! read and written once, as if no candidates shared a node.

use super::candidates::{SUMMARY, picked_words};
use super::harness::{Harness, TestBuffer};
use super::rows::{NONE, Row};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::rng::Rng;
use crate::{bindings, params};
use anyhow::Result;

/// Words of `asked` before the target's tokens.
pub const ASKED: usize = 4;
/// Where they lie.
pub mod asked {
    use crate::forest::Row;

    pub const BEGIN: usize = 0;
    pub const END: usize = 1;
    pub const WANTED: usize = 2;
    pub const WORTH: usize = 3;

    /// The tokens of the prompt that `asked` is about.
    pub fn prompt(asked: &[u32], rows: &[Row]) -> Vec<u32> {
        let rows = &rows[asked[BEGIN] as usize..asked[END] as usize];
        rows.iter().map(|row| row.token).collect()
    }

    /// Whether a prompt holds an item's tokens, one after the other.
    pub fn holds(prompt: &[u32], item: &[u32]) -> bool {
        prompt.windows(item.len()).any(|window| window == item)
    }
}

/// Words of `sizes` per prompt: nodes, scored rows, whether its rewards differ, candidates.
pub const SIZES: usize = 4;

/// Floats of `figures` before the levels: candidates, their rewards' sum and sum of squares, 1 if these are all equal,
/// 1 if the target is among the candidates, nodes, backbone tokens of the search, scored rows; then, per level, the
/// nodes' parents with two children or more.
pub const FIGURES: usize = 8;

/// Longest SID.
pub const MAX_LEVELS: usize = 16;

params! {
    SizesParams { prompts: u32, group: u32, levels: u32 }
}

params! {
    /// `tree_begin` is the first row of the trees; the last eight say where in `tables` each table begins.
    PackParams {
        prompts: u32, group: u32, levels: u32, tree_begin: u32, begin_totals: u32,
        scored: u32, starts: u32, tokens: u32, cand_node: u32, node_info: u32, node_row: u32, counts: u32, totals: u32,
    }
}

pub static TREE_SIZES: Kernel = Kernel {
    name: "tree_sizes",
    source: include_str!("../../shaders/tree_sizes.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: SizesParams::FIELDS,
    bindings: bindings![picked: In U32, rewards: In F32, sizes: Out U32],
    twin: sizes_twin,
    cost: sizes_cost,
};

pub static TREE_PACK: Kernel = Kernel {
    name: "tree_pack",
    source: include_str!("../../shaders/tree_pack.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: PackParams::FIELDS,
    bindings: bindings![
        picked: In U32, asked: In U32, rewards: In F32, sizes: In U32,
        tables: Out U32, rows: Out U32, parent: Out U32, figures: Out F32,
    ],
    twin: pack_twin,
    cost: pack_cost,
};

/// Per prompt what [`SIZES`] says, from `picked` and `rewards` [B, G].
pub fn sizes(s: &mut Stream, picked: Slice, rewards: Slice, sizes: Slice, p: SizesParams) {
    let grid = Grid::cover(p.prompts as usize, 32);
    s.push(&TREE_SIZES, &p, &[picked, rewards, sizes], grid);
}

/// The buffers of [`pack`], in the kernel's order.
#[derive(Clone, Copy, Debug)]
pub struct Pack {
    pub picked: Slice,
    pub asked: Slice,
    pub rewards: Slice,
    pub sizes: Slice,
    /// See [`PackParams`]: scored rows [R]; starts [R + 1] and tokens [K] of the targets; candidates' nodes [B, G, L];
    /// nodes [K, 4]; their rows [K]; counts: T, K, R; totals over the parts of a step: prompts whose rewards differ,
    /// candidates (begun anew if `begin_totals`).
    pub tables: Slice,
    /// The prompts' rows, which are told where their tree lies, then the trees'.
    pub rows: Slice,
    pub parent: Slice,
    /// [B, [`FIGURES`] + L].
    pub figures: Slice,
}

/// Writes the trees of all prompts.
pub fn pack(s: &mut Stream, on: Pack, p: PackParams) {
    assert!(p.levels as usize <= MAX_LEVELS);
    let grid = Grid::cover(p.prompts as usize, 32);
    let slices = [
        on.picked, on.asked, on.rewards, on.sizes, on.tables, on.rows, on.parent, on.figures,
    ];
    s.push(&TREE_PACK, &p, &slices, grid);
}

/// Of counting or packing: `read` words per prompt beside `picked` and the rewards, `entry` per candidate and level.
fn cost([prompts, group, levels]: [u32; 3], read: usize, entry: usize) -> Cost {
    let picked = picked_words(levels as usize, group as usize);
    let words = picked + group as usize + read + (group * levels) as usize * entry;
    Cost {
        operations: (group * group * levels) as u64,
        bytes: 4 * words as u64,
    } * prompts as u64
}

fn sizes_cost(launch: &Launch) -> Cost {
    let p: SizesParams = launch.read_params();
    cost([p.prompts, p.group, p.levels], SIZES, 0)
}

fn pack_cost(launch: &Launch) -> Cost {
    let p: PackParams = launch.read_params();
    let levels = p.levels as usize;
    let prompt = SIZES + ASKED + levels + FIGURES + levels;
    // Its entry of `cand_node`, its token, its four words and its row; the row's record and parent.
    let entry = 7 + Row::WORDS + 1;
    cost([p.prompts, p.group, p.levels], prompt, entry)
}

/// One prompt's candidates, as `shaders/shared/paths.wgsl` reads them.
#[derive(Clone, Copy)]
pub(super) struct Paths<'a> {
    /// The prompt's words of `picked`.
    words: &'a [u32],
    levels: usize,
}

impl<'a> Paths<'a> {
    pub fn of(picked: &'a [u32], b: usize, group: usize, levels: usize) -> Self {
        let stride = picked_words(levels, group);
        let words = &picked[b * stride..(b + 1) * stride];
        Paths { words, levels }
    }

    pub fn count(&self) -> usize {
        self.words[0] as usize
    }

    fn cost(&self) -> u32 {
        self.words[2]
    }

    fn path(&self, c: usize) -> &'a [u32] {
        let at = SUMMARY + self.levels + 1 + c * (1 + self.levels);
        &self.words[at..at + 1 + self.levels]
    }

    pub fn sid(&self, c: usize) -> u32 {
        self.path(c)[0]
    }

    pub fn tokens(&self, c: usize) -> &'a [u32] {
        &self.path(c)[1..]
    }

    /// Whether candidate `other` starts with the first `len` tokens of candidate c.
    pub fn starts_with(&self, other: usize, c: usize, len: usize) -> bool {
        self.tokens(other)[..len] == self.tokens(c)[..len]
    }

    /// Calls `f(candidate, levels in common with the one before)` in the order of SIDs, ties by number.
    fn walk(&self, mut f: impl FnMut(usize, usize)) {
        let mut before: Option<usize> = None;
        let next = |last: Option<usize>| {
            let after = |&c: &usize| last.is_none_or(|l| (self.sid(c), c) > (self.sid(l), l));
            (0..self.count())
                .filter(after)
                .min_by_key(|&c| (self.sid(c), c))
        };
        while let Some(c) = next(before) {
            let shared = before.map_or(0, |b| {
                let pairs = self.tokens(b).iter().zip(self.tokens(c));
                pairs.take_while(|(x, y)| x == y).count()
            });
            f(c, shared);
            before = Some(c);
        }
    }
}

fn sizes_twin(args: &Args) {
    let p: SizesParams = args.params();
    let (prompts, group, levels) = (p.prompts as usize, p.group as usize, p.levels as usize);
    let (picked, rewards) = (args.u32(0), args.f32(1));
    let sizes = args.u32_mut(2)[..SIZES * prompts].chunks_exact_mut(SIZES);
    for (b, sizes) in sizes.enumerate() {
        let paths = Paths::of(picked, b, group, levels);
        let (mut nodes, mut inner) = (0, 0);
        paths.walk(|_, shared| {
            nodes += levels - shared;
            inner += (levels - 1).saturating_sub(shared);
        });
        let rewards = &rewards[b * group..][..paths.count()];
        let varied = rewards.iter().any(|r| *r != rewards[0]);
        let scored = if paths.count() > 0 { 1 + inner } else { 0 };
        let words = [nodes, scored, varied as usize, paths.count()];
        sizes.copy_from_slice(&words.map(|w| w as u32));
    }
}

fn pack_twin(args: &Args) {
    let p: PackParams = args.params();
    let (prompts, group, levels) = (p.prompts as usize, p.group as usize, p.levels as usize);
    let (picked, all_asked, rewards, sizes) = (args.u32(0), args.u32(1), args.f32(2), args.u32(3));
    let (tables, words) = (args.u32_mut(4), args.u32_mut(5));
    let rows: &mut [Row] = bytemuck::cast_slice_mut(words);
    let (parent, figures) = (args.u32_mut(6), args.f32_mut(7));
    let [scored, starts, tokens, cand_node, node_info, node_row] = [
        p.scored,
        p.starts,
        p.tokens,
        p.cand_node,
        p.node_info,
        p.node_row,
    ]
    .map(|at| at as usize);
    let (mut first_node, mut first_scored) = (0, 0);
    let (mut varied, mut present) = (0, 0);
    for b in 0..prompts {
        let paths = Paths::of(picked, b, group, levels);
        let asked = &all_asked[b * (ASKED + levels)..];
        let (begin, end) = (asked[asked::BEGIN], asked[asked::END]);
        let size = &sizes[SIZES * b..][..SIZES];
        let (count, nodes) = (paths.count(), size[0] as usize);
        let tree = p.tree_begin + first_node as u32;
        for row in &mut rows[begin as usize..end as usize] {
            (row.tree_begin, row.tree_end) = (tree, tree + nodes as u32);
        }
        if count > 0 {
            tables[scored + first_scored] = end - 1;
            tables[starts + first_scored] = first_node as u32;
        }
        let figures = &mut figures[b * (FIGURES + levels)..][..FIGURES + levels];
        figures.fill(0.0);
        // Nodes per level, then the first of each.
        let (mut made, mut offset) = ([0; MAX_LEVELS], [0; MAX_LEVELS]);
        paths.walk(|_, shared| made[shared..levels].iter_mut().for_each(|m| *m += 1));
        let mut first = 0;
        for l in 0..levels {
            (offset[l], made[l], first) = (first, 0, first + made[l]);
        }
        let mut children = [0; MAX_LEVELS];
        // (node, row) of the open path.
        let mut open = [(NONE, NONE); MAX_LEVELS];
        let mut next_row = tree;
        paths.walk(|c, shared| {
            for &(_, row) in open[shared..levels].iter().filter(|o| o.1 != NONE) {
                rows[row as usize].q_end = next_row;
            }
            for l in shared..levels {
                let local = offset[l] + made[l];
                let (node, row, token) = (first_node + local, next_row, paths.tokens(c)[l]);
                let (above, above_row) = if l > 0 { open[l - 1] } else { (NONE, NONE) };
                made[l] += 1;
                next_row += 1;
                children[l] += 1;
                if children[l] == 2 {
                    figures[FIGURES + l] += 1.0;
                }
                rows[row as usize] = Row {
                    token,
                    position: end - begin + l as u32,
                    kv_begin: begin,
                    kv_end: end,
                    slot: row,
                    chain: row,
                    q_begin: row,
                    ..Row::INACTIVE
                };
                parent[row as usize] = above_row;
                tables[tokens + node] = token;
                tables[node_row + node] = row;
                tables[node_info + 4 * node..][..4]
                    .copy_from_slice(&[b as u32, l as u32, above, 0]);
                if l + 1 < levels {
                    children[l + 1] = 0;
                    tables[scored + first_scored + 1 + local] = row;
                    tables[starts + first_scored + 1 + local] =
                        (first_node + offset[l + 1] + made[l + 1]) as u32;
                }
                open[l] = (node as u32, row);
            }
            let own = &mut tables[cand_node + (b * group + c) * levels..][..levels];
            for (word, (node, _)) in own.iter_mut().zip(open) {
                *word = node;
            }
            if paths.sid(c) == asked[asked::WANTED] {
                figures[4] = 1.0;
            }
        });
        for &(_, row) in open[..levels].iter().filter(|o| o.1 != NONE) {
            rows[row as usize].q_end = next_row;
        }
        tables[cand_node + (b * group + count) * levels..cand_node + (b + 1) * group * levels]
            .fill(NONE);
        figures[0] = count as f32;
        for &reward in &rewards[b * group..][..count] {
            figures[1] += reward;
            figures[2] += reward * reward;
        }
        figures[3] = 1.0 - size[2] as f32;
        figures[5] = nodes as f32;
        figures[6] = paths.cost() as f32;
        figures[7] = size[1] as f32;
        first_node += nodes;
        first_scored += size[1] as usize;
        varied += size[2];
        present += size[3];
    }
    tables[starts + first_scored] = first_node as u32;
    let counts = [p.tree_begin as usize + first_node, first_node, first_scored];
    let counts = counts.map(|n| n as u32);
    tables[p.counts as usize..][..3].copy_from_slice(&counts);
    let totals = &mut tables[p.totals as usize..][..2];
    if p.begin_totals != 0 {
        totals.fill(0);
    }
    totals[0] += varied;
    totals[1] += present;
}

/// Random `picked` words of `prompts` prompts with up to `group` of the paths over three tokens, some twice, some prompts
/// without any. SIDs are numbered in the order of their tokens, which begin at 5.
pub(super) fn random_picked(
    draws: &mut Rng,
    prompts: usize,
    group: usize,
    levels: usize,
) -> Vec<u32> {
    let mut words = Vec::new();
    for b in 0..prompts {
        let count = if b % 5 == 3 {
            0
        } else {
            1 + draws.below(group)
        };
        words.extend([count as u32, count as u32, 40 + b as u32, 0]);
        words.extend(vec![1; levels + 1]);
        for _ in 0..group {
            let tokens: Vec<u32> = (0..levels).map(|_| 5 + draws.below(3) as u32).collect();
            words.push(tokens.iter().fold(0, |sid, t| 3 * sid + (t - 5)));
            words.extend(tokens);
        }
    }
    words
}

/// Random questions about prompts of random lengths, packed from row 0 on; and the words and the rows they need.
pub(super) fn random_asked(draws: &mut Rng, prompts: usize, levels: usize) -> (Vec<u32>, Vec<Row>) {
    let (mut words, mut rows) = (Vec::new(), Vec::new());
    for _ in 0..prompts {
        let (begin, length) = (rows.len() as u32, 1 + draws.below(9) as u32);
        let tokens: Vec<u32> = (0..levels).map(|_| 5 + draws.below(3) as u32).collect();
        let sid = tokens.iter().fold(0, |sid, t| 3 * sid + (t - 5));
        words.extend([begin, begin + length, sid, 2.5f32.to_bits()]);
        words.extend(tokens);
        rows.extend((0..length).map(|position| Row {
            token: 4,
            position,
            kv_begin: begin,
            kv_end: begin + position + 1,
            slot: begin + position,
            q_begin: begin + position,
            q_end: begin + length,
            ..Row::INACTIVE
        }));
    }
    (words, rows)
}

/// The buffers of one case.
struct Case {
    sizes: TestBuffer,
    tables: TestBuffer,
    rows: TestBuffer,
    parent: TestBuffer,
    figures: TestBuffer,
}

impl Case {
    fn record(h: &mut Harness, prompts: usize, group: usize, levels: usize) -> (Case, PackParams) {
        let picked = random_picked(h.draws(), prompts, group, levels);
        let (asked, mut rows) = random_asked(h.draws(), prompts, levels);
        let tree_begin = rows.len().next_multiple_of(64);
        let nodes = prompts * group * levels;
        rows.resize(tree_begin + nodes, Row::INACTIVE);
        let mut at = 0;
        let mut table = |words: usize| {
            at += words;
            (at - words) as u32
        };
        let params = PackParams {
            prompts: prompts as u32,
            group: group as u32,
            levels: levels as u32,
            tree_begin: tree_begin as u32,
            begin_totals: (prompts != 3) as u32,
            scored: table(nodes + prompts),
            starts: table(nodes + prompts + 1),
            tokens: table(nodes),
            cand_node: table(nodes),
            node_info: table(4 * nodes),
            node_row: table(nodes),
            counts: table(3),
            totals: table(2),
        };
        let rewards: Vec<f32> = (0..prompts * group)
            .map(|i| {
                if i / group == 1 {
                    1.0
                } else {
                    h.draws().normal()
                }
            })
            .collect();
        let (picked, asked) = (h.u32("picked", &picked), h.u32("asked", &asked));
        let rewards = h.f32("rewards", &rewards);
        let case = Case {
            sizes: h.u32("sizes", &vec![9; SIZES * prompts]),
            tables: h.u32("tables", &vec![9; at]),
            parent: h.u32("parent", &vec![9; rows.len()]),
            rows: h.u32("rows", bytemuck::cast_slice(&rows)),
            figures: h.random("figures", prompts * (FIGURES + levels)),
        };
        let sizes_params = SizesParams {
            prompts: prompts as u32,
            group: group as u32,
            levels: levels as u32,
        };
        let (picked, rewards) = (picked.slice(), rewards.slice());
        sizes(
            h.stream(),
            picked,
            rewards,
            case.sizes.slice(),
            sizes_params,
        );
        let on = Pack {
            picked,
            asked: asked.slice(),
            rewards,
            sizes: case.sizes.slice(),
            tables: case.tables.slice(),
            rows: case.rows.slice(),
            parent: case.parent.slice(),
            figures: case.figures.slice(),
        };
        pack(h.stream(), on, params);
        h.run().expect("tree");
        (case, params)
    }
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (prompts, group, levels) in [(1, 1, 1), (3, 5, 2), (9, 16, 3), (33, 7, 4)] {
        let (case, _) = Case::record(h, prompts, group, levels);
        for buffer in [
            &case.sizes,
            &case.tables,
            &case.rows,
            &case.parent,
            &case.figures,
        ] {
            h.read_u32(buffer)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
