//! The state of a tree search (spec 4) and the kernel that starts one.
//!
//! `tree`: u32 `[B, 1 + M, 8]`: per prompt a header record and M node records (node 0 is the root, the prompt's end):
//!
//! | word   | 0        | 1      | 2        | 3      | 4        | 5      | 6     | 7         |
//! |--------|----------|--------|----------|--------|----------|--------|-------|-----------|
//! | header | kv_begin | kv_end | document | count  | frontier | cost   | draws | dead_ends |
//! | node   | trie     | parent | depth    | visits | children | closed | first | next      |
//!
//! Header: the prompt's cache slots, its document id for draws, nodes so far, the first node of the newest level or
//! round, backbone tokens run (the root counts 1), random words used, selections that led nowhere. Node: trie node,
//! parent, depth, visits N, children attached, children whose subtree is complete, the newest child and, in that
//! child's list, the next sibling. Nodes are numbered in the order they were made, so parents come before children.
//!
//! `stats`: f32 `[B, M, 5]`: value V, entropy H, score G = V + lambda H, log-prob of the node's token, of its prefix.
//!
//! `entry`: u32 `[n, 2]`: for each row the model ran, its node (`b * M + i`, or NONE for an inactive row) and trie node.
//!
//! `trie`: u32, `child_begin`, then (from word `tokens_at`) `child_token`, then each node's *settled* children, those that a
//! single SID begins with ([`trie_words`]; see [`crate::decode::TrieBuffers`]). What follows a settled prefix is decided, so a
//! search that has no use for the scores of complete SIDs does not run it: there it counts as the SID itself.
//!
//! Node `i` of prompt `b` has the cache slot `slot_base + b * M + i`; the root's is never written (its keys and values
//! are the prompt's).

use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::forest::Row;
use crate::kernels::harness::{Harness, TestBuffer};
use crate::rng::Rng;
use crate::{bindings, params};
use anyhow::Result;

pub const NONE: u32 = u32::MAX;
/// Words of a header and of a node.
pub const RECORD: usize = 8;
/// Floats of a node.
pub const STATS: usize = 5;
/// Bytes written for a new node that is run: its record, stats, parent link, row and entry.
pub(super) const NEW_NODE_BYTES: u64 = 4 * (2 * RECORD + STATS + 1 + 2) as u64;

/// Words of a header.
pub mod header {
    pub const KV_BEGIN: usize = 0;
    pub const KV_END: usize = 1;
    pub const DOCUMENT: usize = 2;
    pub const COUNT: usize = 3;
    pub const FRONTIER: usize = 4;
    pub const COST: usize = 5;
    pub const DRAWS: usize = 6;
    pub const DEAD_ENDS: usize = 7;
}

/// Words of a node.
pub mod node {
    pub const TRIE: usize = 0;
    pub const PARENT: usize = 1;
    pub const DEPTH: usize = 2;
    pub const VISITS: usize = 3;
    pub const CHILDREN: usize = 4;
    pub const CLOSED: usize = 5;
    pub const FIRST: usize = 6;
    pub const NEXT: usize = 7;
}

/// Floats of a node.
pub mod stat {
    pub const VALUE: usize = 0;
    pub const ENTROPY: usize = 1;
    pub const SCORE: usize = 2;
    pub const LOGP: usize = 3;
    pub const CUMULATIVE: usize = 4;
}

/// `trie` as the twins read it.
#[derive(Clone, Copy)]
pub(super) struct Trie<'a> {
    words: &'a [u32],
    tokens_at: usize,
}

impl<'a> Trie<'a> {
    pub fn new(words: &'a [u32], tokens_at: u32) -> Self {
        let tokens_at = tokens_at as usize;
        Trie { words, tokens_at }
    }

    /// The child edges of `node`; edge `e` leads to node `e + 1`.
    pub fn edges(self, node: u32) -> std::ops::Range<u32> {
        self.words[node as usize]..self.words[node as usize + 1]
    }

    pub fn token(self, edge: u32) -> u32 {
        self.words[self.tokens_at + edge as usize]
    }

    pub fn settled_children(self, node: u32) -> u32 {
        self.words[2 * self.tokens_at - 2 + node as usize]
    }

    /// Whether `node` spells a single SID; without `settle`, whether it is one.
    pub fn is_settled(self, node: u32, settle: bool) -> bool {
        match self.edges(node).len() {
            0 => true,
            1 => settle && self.settled_children(node) == 1,
            _ => false,
        }
    }
}

/// The words of a trie.
pub fn trie_words(child_begin: &[u32], child_token: &[u32]) -> Vec<u32> {
    let nodes = child_begin.len() - 1;
    let mut children = vec![0; nodes];
    let mut is_settled = vec![false; nodes];
    // Children come after their parents; edge e leads to node e + 1.
    for node in (0..nodes).rev() {
        let edges = child_begin[node] as usize..child_begin[node + 1] as usize;
        let below = edges.len();
        children[node] = edges.filter(|edge| is_settled[edge + 1]).count() as u32;
        is_settled[node] = below == 0 || (below == 1 && children[node] == 1);
    }
    [child_begin, child_token, &children].concat()
}

/// What one prompt's part of a twin may write: its tree, stats, parent links, and its rows and entries of the next
/// forward.
pub(super) struct Prompt<'a> {
    pub index: usize,
    pub nodes: usize,
    pub slot_base: u32,
    pub tree: &'a mut [u32],
    pub stats: &'a mut [f32],
    pub parent: &'a mut [u32],
    pub rows: &'a mut [u32],
    pub entry: &'a mut [u32],
}

impl Prompt<'_> {
    pub fn header(&mut self, field: usize) -> &mut u32 {
        &mut self.tree[field]
    }

    pub fn node(&self, node: usize, field: usize) -> u32 {
        self.tree[(1 + node) * RECORD + field]
    }

    pub fn node_mut(&mut self, node: usize, field: usize) -> &mut u32 {
        &mut self.tree[(1 + node) * RECORD + field]
    }

    pub fn stat(&self, node: usize, field: usize) -> f32 {
        self.stats[node * STATS + field]
    }

    fn slot(&self, node: usize) -> u32 {
        self.slot_base + (self.index * self.nodes + node) as u32
    }

    /// Writes node `new` as the child of `under` along `edge`.
    pub fn make(&mut self, new: usize, under: usize, edge: u32, logp: f32) {
        let depth = self.node(under, node::DEPTH) + 1;
        let record = [edge + 1, under as u32, depth, 0, 0, 0, NONE, NONE];
        self.tree[(1 + new) * RECORD..][..RECORD].copy_from_slice(&record);
        let cumulative = self.stat(under, stat::CUMULATIVE) + logp;
        self.stats[new * STATS..][..STATS].copy_from_slice(&[0.0, 0.0, 0.0, logp, cumulative]);
        self.parent[new] = if under == 0 { NONE } else { self.slot(under) };
    }

    /// Makes `row` of the next forward run node `new`.
    pub fn run(&mut self, row: usize, new: usize, token: u32) {
        let (begin, end) = (self.tree[header::KV_BEGIN], self.tree[header::KV_END]);
        let slot = self.slot(new);
        let position = end - begin + self.node(new, node::DEPTH) - 1;
        let record = [token, position, begin, end, slot, slot, 0, 0, 0, 0];
        self.rows[row * Row::WORDS..][..Row::WORDS].copy_from_slice(&record);
        let place = (self.index * self.nodes + new) as u32;
        let pair = [place, self.node(new, node::TRIE)];
        self.entry[2 * row..2 * row + 2].copy_from_slice(&pair);
    }

    /// Makes `row` inactive.
    pub fn idle(&mut self, row: usize) {
        let record = bytemuck::cast_slice(&[Row::INACTIVE]);
        self.rows[row * Row::WORDS..][..Row::WORDS].copy_from_slice(record);
        self.entry[2 * row..2 * row + 2].copy_from_slice(&[NONE, 0]);
    }

    /// Makes the rows from `row` on inactive.
    pub fn rest(&mut self, row: usize) {
        (row..self.entry.len() / 2).for_each(|row| self.idle(row));
    }
}

/// Sizes that the kernels which grow a tree share.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub prompts: u32,
    /// M
    pub nodes: u32,
    pub slot_base: u32,
    /// Rows of the next forward per prompt.
    pub width: u32,
}

/// Runs `grow` for every prompt, on all threads. The bindings of [`SearchSlices`] begin at `first`.
pub(super) fn each_prompt(shape: Shape, args: &Args, first: usize, grow: impl Fn(Prompt) + Sync) {
    use crate::device::threads::{chunks_mut, each};
    let (prompts, nodes) = (shape.prompts as usize, shape.nodes as usize);
    let (slot_base, width) = (shape.slot_base as usize, shape.width as usize);
    let (tree, stats) = (args.u32_mut(first), args.f32_mut(first + 1));
    let [rows, parent, entry] = [2, 3, 4].map(|i| args.u32_mut(first + i));
    let parts = (
        chunks_mut(
            &mut tree[..prompts * (1 + nodes) * RECORD],
            (1 + nodes) * RECORD,
        ),
        chunks_mut(stats, nodes * STATS),
        chunks_mut(rows, width * Row::WORDS),
        chunks_mut(&mut parent[slot_base..], nodes),
        chunks_mut(entry, width * 2),
    );
    each(parts, 1, |index, (tree, stats, rows, parent, entry)| {
        grow(Prompt {
            index,
            nodes,
            slot_base: shape.slot_base,
            tree,
            stats,
            parent,
            rows,
            entry,
        });
    });
}

/// What the kernels that grow a search write, in the order they bind it.
#[derive(Clone, Copy)]
pub struct SearchSlices {
    pub tree: Slice,
    pub stats: Slice,
    /// Rows of the next forward: u32 `[B * width, 8]`.
    pub rows: Slice,
    /// u32 `[slots]`: the slot of a node's parent, or NONE under the prompt.
    pub parent: Slice,
    pub entry: Slice,
}

impl SearchSlices {
    /// All arguments of a kernel that binds `inputs` first.
    pub(super) fn after<const N: usize>(self, inputs: [Slice; N]) -> Vec<Slice> {
        let own = [self.tree, self.stats, self.rows, self.parent, self.entry];
        inputs.into_iter().chain(own).collect()
    }
}

params! { Params { prompts: u32, nodes: u32 } }

pub static SEARCH_BEGIN: Kernel = Kernel {
    name: "search_begin",
    source: include_str!("../../shaders/search_begin.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![prompt: In U32, tree: Out U32, stats: Out F32, entry: Out U32],
    twin,
    cost,
};

/// Plants a root for each prompt. `prompt`: u32 `[B, 3]`, its cache slots `[kv_begin, kv_end)` and document id. Writes
/// the headers and roots of `tree` and `stats` and the first B entries. `nodes` is M.
pub fn search_begin(
    s: &mut Stream,
    prompt: Slice,
    tree: Slice,
    stats: Slice,
    entry: Slice,
    prompts: usize,
    nodes: usize,
) {
    let params = Params {
        prompts: prompts as u32,
        nodes: nodes as u32,
    };
    let grid = Grid::cover(prompts, 64);
    s.push(&SEARCH_BEGIN, &params, &[prompt, tree, stats, entry], grid);
}

fn cost(launch: &Launch) -> Cost {
    let prompts = launch.read_params::<Params>().prompts as u64;
    Cost {
        operations: 0,
        bytes: 4 * prompts * (3 + 2 * RECORD + STATS + 2) as u64,
    }
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let nodes = p.nodes as usize;
    let (prompt, tree) = (args.u32(0), args.u32_mut(1));
    let (stats, entry) = (args.f32_mut(2), args.u32_mut(3));
    for b in 0..p.prompts as usize {
        let [begin, end, document] = [0, 1, 2].map(|i| prompt[3 * b + i]);
        let records = [
            [begin, end, document, 1, 0, 1, 0, 0],
            [0, NONE, 0, 1, 0, 0, NONE, NONE],
        ];
        tree[b * (1 + nodes) * RECORD..][..2 * RECORD].copy_from_slice(records.as_flattened());
        stats[b * nodes * STATS..][..STATS].fill(0.0);
        entry[2 * b..2 * b + 2].copy_from_slice(&[(b * nodes) as u32, 0]);
    }
}

/// A random trie of `levels` levels: `(child_begin, child_token, first_leaf)`, at most `fanout` children a node, tokens
/// below `vocab`. The root has exactly `fanout`.
pub(super) fn random_trie(
    draws: &mut Rng,
    levels: usize,
    fanout: usize,
    vocab: usize,
) -> (Vec<u32>, Vec<u32>, u32) {
    let (mut begin, mut tokens) = (Vec::new(), Vec::new());
    let (mut level, mut nodes) = (1, 1);
    for depth in 0..levels {
        let mut next = 0;
        for _ in 0..level {
            begin.push(tokens.len() as u32);
            let count = if depth == 0 {
                fanout
            } else {
                1 + draws.below(fanout)
            };
            let mut all: Vec<u32> = (0..vocab as u32).collect();
            draws.shuffle(&mut all);
            all.truncate(count);
            all.sort();
            tokens.extend(all);
            next += count;
        }
        level = next;
        nodes += next;
    }
    begin.extend(std::iter::repeat_n(tokens.len() as u32, level + 1));
    (begin, tokens, (nodes - level) as u32)
}

/// The first slot of tree nodes in a [`Fixture`].
pub(super) const FIXTURE_SLOTS: u32 = 10;

/// Newly planted searches over a random trie, for the cases of the kernels that grow them.
pub(super) struct Fixture {
    pub child_begin: Vec<u32>,
    pub trie: TestBuffer,
    pub tree: TestBuffer,
    pub stats: TestBuffer,
    pub rows: TestBuffer,
    pub parent: TestBuffer,
    pub entry: TestBuffer,
}

impl Fixture {
    /// Plants `prompts` roots in trees of `nodes` nodes; forwards run `width` rows per prompt.
    pub fn new(
        h: &mut Harness,
        [levels, fanout]: [usize; 2],
        [prompts, nodes, width]: [usize; 3],
    ) -> Result<Self> {
        let (child_begin, tokens, _) = random_trie(h.draws(), levels, fanout, 200);
        let spans: Vec<u32> = (0..prompts as u32)
            .flat_map(|b| [3 * b, 3 * b + 2, b])
            .collect();
        let prompt = h.u32("prompt", &spans);
        let slots = FIXTURE_SLOTS as usize + prompts * nodes;
        let fixture = Fixture {
            trie: h.u32("trie", &trie_words(&child_begin, &tokens)),
            child_begin,
            tree: h.u32("tree", &vec![3; prompts * (1 + nodes) * RECORD]),
            stats: h.random("stats", prompts * nodes * STATS),
            rows: h.u32("rows", &vec![5; prompts * width * Row::WORDS]),
            parent: h.u32("parent", &vec![7; slots]),
            entry: h.u32("entry", &vec![9; prompts * width * 2]),
        };
        let [tree, stats, entry] =
            [&fixture.tree, &fixture.stats, &fixture.entry].map(|b| b.slice());
        search_begin(
            h.stream(),
            prompt.slice(),
            tree,
            stats,
            entry,
            prompts,
            nodes,
        );
        h.run()?;
        Ok(fixture)
    }

    pub fn slices(&self) -> SearchSlices {
        SearchSlices {
            tree: self.tree.slice(),
            stats: self.stats.slice(),
            rows: self.rows.slice(),
            parent: self.parent.slice(),
            entry: self.entry.slice(),
        }
    }

    /// Runs what was recorded; checks the sentinels of everything a kernel may write.
    pub fn run(&self, h: &mut Harness) -> Result<()> {
        h.run()?;
        for buffer in [
            &self.tree,
            &self.stats,
            &self.rows,
            &self.parent,
            &self.entry,
        ] {
            h.read_u32(buffer)?;
        }
        Ok(())
    }
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (prompts, nodes) in [(1, 1), (65, 3)] {
        let fixture = Fixture::new(h, [1, 2], [prompts, nodes, 1])?;
        fixture.run(h)?;
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
