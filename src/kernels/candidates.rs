//! The final selection (spec 4): up to `goal` complete SIDs per prompt, with all the host reads back.
//!
//! - `ordered` (beam search, sampling): the newest nodes, in their order.
//! - Else the leaves of the tree by value (ties: the earlier node): their own V if leaves were run, or V of the parent plus
//!   `eta logp` of the whole SID; then, while there are fewer than `goal`, the SIDs that are not in the tree but whose parent
//!   was run, likewise. All distinct. Where leaves are not run, a prefix that a single SID begins with is that SID (see
//!   [`super::search`]); the log-probs of the tokens that it leaves open count 0.
//!
//! `picked`: u32 `[B, 4 + L + 1 + goal (1 + L)]`: candidates, of these found by the search, cost, dead ends; nodes per
//! depth 0 ..= L; then sid and tokens of each candidate. `scores`: f32 `[B, goal, 2 + L]`: log-prob, value, log-prob per
//! level. Past the last candidate both are left as they were.
//!
//! Floor: a scan of the tree and, where leaves are not run, of the log-probs it keeps per candidate, 2 operations a node and a
//! log-prob; the tree, its stats and log-probs read once. One workgroup per prompt.

use super::search::{NONE, RECORD, STATS, Trie, header, node, random_trie, stat, trie_words};
use crate::device::threads::{chunks, chunks_mut, each};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::{bindings, params};
use anyhow::Result;

/// Words before the nodes per depth.
pub const SUMMARY: usize = 4;

params! {
    /// `nodes` is M.
    Params {
        prompts: u32, nodes: u32, levels: u32, tokens_at: u32, fanout: u32, first_leaf: u32, goal: u32,
        ordered: u32, score_leaves: u32, eta: f32,
    }
}

pub static CANDIDATES: Kernel = Kernel {
    name: "candidates",
    source: include_str!("../../shaders/candidates.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![
        tree: In U32, stats: In F32, child_logp: In F32, trie: In U32,
        picked: Out U32, scores: Out F32,
    ],
    twin,
    cost,
};

/// The buffers of [`candidates`], in the kernel's order.
#[derive(Clone, Copy)]
pub struct Candidates {
    pub tree: Slice,
    pub stats: Slice,
    /// `[nodes, fanout]`; not read when ordered.
    pub child_logp: Slice,
    pub trie: Slice,
    pub picked: Slice,
    pub scores: Slice,
}

/// Words of `picked` per prompt.
pub fn picked_words(levels: usize, goal: usize) -> usize {
    SUMMARY + levels + 1 + goal * (1 + levels)
}

/// Selects every prompt's candidates.
pub fn candidates(s: &mut Stream, on: Candidates, p: Params) {
    let slices = [
        on.tree,
        on.stats,
        on.child_logp,
        on.trie,
        on.picked,
        on.scores,
    ];
    s.push(&CANDIDATES, &p, &slices, Grid(p.prompts));
}

/// One prompt's selection.
struct Selection<'a> {
    p: Params,
    tree: &'a [u32],
    stats: &'a [f32],
    child_logp: &'a [f32],
    trie: Trie<'a>,
    picked: &'a mut [u32],
    scores: &'a mut [f32],
    found: usize,
}

impl Selection<'_> {
    fn node(&self, node: usize, field: usize) -> u32 {
        self.tree[(1 + node) * RECORD + field]
    }

    fn stat(&self, node: usize, field: usize) -> f32 {
        self.stats[node * STATS + field]
    }

    fn parent(&self, node: usize) -> usize {
        self.node(node, node::PARENT) as usize
    }

    /// Whether prefixes that a single SID begins with are complete as they are.
    fn settles(&self) -> bool {
        self.p.ordered == 0 && self.p.score_leaves == 0
    }

    fn is_leaf(&self, node: usize) -> bool {
        node > 0
            && self
                .trie
                .is_settled(self.node(node, node::TRIE), self.settles())
    }

    /// The SID below `edge` is among the candidates.
    fn is_picked(&self, edge: u32) -> bool {
        let mut leaf = edge + 1;
        while !self.trie.edges(leaf).is_empty() {
            leaf = self.trie.edges(leaf).start + 1;
        }
        let sid = leaf - self.p.first_leaf;
        let list = self.picked.chunks_exact(1 + self.p.levels as usize);
        list.take(self.found).any(|candidate| candidate[0] == sid)
    }

    /// Appends the SID that `edge` under node `under` leads to; tokens that nothing else could be have log-prob 0.
    fn pick(&mut self, under: usize, edge: u32, logp: f32, value: f32) {
        let levels = self.p.levels as usize;
        let at = self.found * (1 + levels);
        let at_scores = self.found * (2 + levels);
        self.found += 1;
        let depth = self.node(under, node::DEPTH) as usize + 1;
        self.scores[at_scores] = self.stat(under, stat::CUMULATIVE) + logp;
        self.scores[at_scores + 1] = value;
        self.picked[at + depth] = self.trie.token(edge);
        self.scores[at_scores + 1 + depth] = logp;
        let mut leaf = edge + 1;
        for level in depth + 1..=levels {
            let edge = self.trie.edges(leaf).start;
            self.picked[at + level] = self.trie.token(edge);
            self.scores[at_scores + 1 + level] = 0.0;
            leaf = edge + 1;
        }
        self.picked[at] = leaf - self.p.first_leaf;
        let mut node = under;
        for level in (1..depth).rev() {
            self.picked[at + level] = self.trie.token(self.node(node, node::TRIE) - 1);
            self.scores[at_scores + 1 + level] = self.stat(node, stat::LOGP);
            node = self.parent(node);
        }
    }

    /// The value of a leaf in the tree.
    fn leaf_value(&self, leaf: usize) -> f32 {
        match self.settles() {
            true => self.promise(self.parent(leaf), self.stat(leaf, stat::LOGP)),
            false => self.stat(leaf, stat::VALUE),
        }
    }

    /// The value of an SID that was not run.
    fn promise(&self, under: usize, logp: f32) -> f32 {
        let prefix = self.stat(under, stat::CUMULATIVE);
        self.stat(under, stat::VALUE) + self.p.eta * (prefix + logp)
    }

    fn pick_leaf(&mut self, leaf: usize) {
        let edge = self.node(leaf, node::TRIE) - 1;
        let (logp, value) = (self.stat(leaf, stat::LOGP), self.leaf_value(leaf));
        self.pick(self.parent(leaf), edge, logp, value);
    }

    /// Appends the best leaf of the tree that is not picked yet; false if there is none.
    fn pick_best_leaf(&mut self, count: usize) -> bool {
        let (mut chosen, mut best) = (None, 0.0);
        for node in 0..count {
            if self.is_leaf(node) {
                let value = self.leaf_value(node);
                let edge = self.node(node, node::TRIE) - 1;
                if (chosen.is_none() || value > best) && !self.is_picked(edge) {
                    (chosen, best) = (Some(node), value);
                }
            }
        }
        chosen.inspect(|&leaf| self.pick_leaf(leaf)).is_some()
    }

    /// Appends the best SID that is not in the tree but whose parent was run; false if there is none.
    fn pick_best_completion(&mut self, count: usize) -> bool {
        let (mut chosen, mut best) = (None, 0.0);
        for node in 0..count {
            let is_parent = self.settles() || self.node(node, node::DEPTH) + 1 == self.p.levels;
            if self.is_leaf(node) || !is_parent {
                continue;
            }
            let edges = self.trie.edges(self.node(node, node::TRIE));
            let logps = &self.child_logp[node * self.p.fanout as usize..];
            for (edge, &logp) in edges.zip(logps) {
                let value = self.promise(node, logp);
                let better = chosen.is_none() || value > best;
                let complete = self.trie.is_settled(edge + 1, self.settles());
                if better && complete && !self.is_picked(edge) {
                    (chosen, best) = (Some((node, edge, logp)), value);
                }
            }
        }
        chosen
            .inspect(|&(node, edge, logp)| self.pick(node, edge, logp, best))
            .is_some()
    }
}

fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [nodes, fanout, goal] = [p.nodes, p.fanout, p.goal].map(u64::from);
    // Ordered decoders keep no log-probs per node, and take their candidates from the end of the tree.
    let [scanned, kept] = if p.ordered != 0 {
        [goal, 0]
    } else {
        let looked_at = if p.score_leaves != 0 { 1 } else { 1 + fanout };
        [nodes * looked_at * goal, nodes * fanout]
    };
    let words = picked_words(p.levels as usize, goal as usize) as u64;
    let scores = goal * (2 + p.levels as u64);
    let read = nodes * (RECORD + STATS) as u64 + kept;
    Cost {
        operations: 2 * scanned,
        bytes: 4 * (read + words + scores),
    } * p.prompts as u64
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let (nodes, levels, goal) = (p.nodes as usize, p.levels as usize, p.goal as usize);
    let (tree, stats, child_logp) = (args.u32(0), args.f32(1), args.f32(2));
    let trie = Trie::new(args.u32(3), p.tokens_at);
    let (picked, scores) = (args.u32_mut(4), args.f32_mut(5));
    let words = picked_words(levels, goal);
    let parts = (
        chunks(tree, (1 + nodes) * RECORD),
        chunks(stats, nodes * STATS),
        chunks_mut(&mut picked[..p.prompts as usize * words], words),
        chunks_mut(scores, goal * (2 + levels)),
    );
    each(parts, 1, |b, (tree, stats, picked, scores)| {
        let (summary, list) = picked.split_at_mut(SUMMARY + levels + 1);
        let count = tree[header::COUNT] as usize;
        // Ordered decoders keep no log-probs per node.
        let kept = if p.ordered != 0 {
            0
        } else {
            b * nodes * p.fanout as usize
        };
        let mut selection = Selection {
            p,
            tree,
            stats,
            child_logp: &child_logp[kept..],
            trie,
            picked: list,
            scores,
            found: 0,
        };
        if p.ordered != 0 {
            (tree[header::FRONTIER] as usize..count)
                .take(goal)
                .for_each(|leaf| selection.pick_leaf(leaf));
        } else {
            while selection.found < goal && selection.pick_best_leaf(count) {}
        }
        let searched = selection.found as u32;
        if p.ordered == 0 {
            while selection.found < goal && selection.pick_best_completion(count) {}
        }
        summary.fill(0);
        summary[0] = selection.found as u32;
        summary[1] = searched;
        summary[2] = tree[header::COST];
        summary[3] = tree[header::DEAD_ENDS];
        for node in 0..count {
            summary[SUMMARY + selection.node(node, node::DEPTH) as usize] += 1;
        }
    });
}

/// Small trees made by hand: a chain per leaf would hide the sharing, so prefixes are drawn at random.
pub fn cases(h: &mut Harness) -> Result<()> {
    for (prompts, levels, fanout, goal, ordered, score_leaves) in [
        (1, 1, 1, 1, 0, 1),
        (3, 3, 4, 5, 0, 0),
        (9, 4, 3, 12, 0, 0),
        (65, 2, 5, 9, 0, 1),
        (2, 3, 3, 4, 1, 0),
    ] {
        let (begin, tokens, first_leaf) = random_trie(h.draws(), levels, fanout, 50);
        let words = trie_words(&begin, &tokens);
        let settles = ordered == 0 && score_leaves == 0;
        let is_settled =
            |at: usize| Trie::new(&words, begin.len() as u32).is_settled(at as u32, settles);
        let trie = h.u32("trie", &words);
        let nodes = 1 + 4 * levels;
        let mut image = Vec::new();
        for b in 0..prompts as u32 {
            // One more child of a random inner node at a time, each edge once.
            let mut tree = vec![[0, NONE, 0, 0, 0, 0, NONE, NONE]];
            for _ in 0..60 {
                let under = h.draws().below(tree.len());
                let at = tree[under][node::TRIE] as usize;
                let children = (begin[at + 1] - begin[at]) as usize;
                if (under == 0 || !is_settled(at)) && tree.len() < nodes {
                    let child = begin[at] + h.draws().below(children) as u32 + 1;
                    if tree.iter().all(|record| record[node::TRIE] != child) {
                        tree.push([child, under as u32, tree[under][2] + 1, 0, 0, 0, NONE, NONE]);
                    }
                }
            }
            // A beam's newest nodes are leaves: without any, the list is empty.
            let inner = tree
                .iter()
                .filter(|r| r[node::DEPTH] < levels as u32)
                .count();
            if ordered == 1 {
                let mut order: Vec<usize> = (0..tree.len()).collect();
                order.sort_by_key(|&i| tree[i][node::DEPTH]);
                let place = |old: u32| order.iter().position(|&i| i as u32 == old);
                tree = order
                    .iter()
                    .map(|&i| {
                        let mut record = tree[i];
                        record[node::PARENT] =
                            place(record[node::PARENT]).map_or(NONE, |p| p as u32);
                        record
                    })
                    .collect();
            }
            image.extend([0, 2, b, tree.len() as u32, inner as u32, 7, 0, b]);
            tree.resize(nodes, [0; RECORD]);
            image.extend(tree.as_flattened());
        }
        let tree = h.u32("tree", &image);
        let stats = h.random("stats", prompts * nodes * STATS);
        let child_logp = h.random("child_logp", prompts * nodes * fanout);
        let picked = h.u32("picked", &vec![1; prompts * picked_words(levels, goal)]);
        let scores = h.random("scores", prompts * goal * (2 + levels));
        let on = Candidates {
            tree: tree.slice(),
            stats: stats.slice(),
            child_logp: child_logp.slice(),
            trie: trie.slice(),
            picked: picked.slice(),
            scores: scores.slice(),
        };
        let p = Params {
            prompts: prompts as u32,
            nodes: nodes as u32,
            levels: levels as u32,
            tokens_at: begin.len() as u32,
            fanout: fanout as u32,
            first_leaf,
            goal: goal as u32,
            ordered,
            score_leaves,
            eta: 0.3,
        };
        candidates(h.stream(), on, p);
        h.run()?;
        h.read_u32(&picked)?;
        h.read_u32(&scores)?;
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
