//! One round of value-guided search (spec 4, steps 2 to 5): select, gate, draw, attach, back up.
//!
//! Up to `width` times, for each prompt: descend from the root to the child with the largest
//! `U = G + beta sqrt(ln(N_root + 1) / (N + 1))` until a node with unexpanded children passes the gate (G at least the mean
//! of its depth) and the widening rule (`children < c N^a`); draw one of its unexpanded children by Gumbel-max; attach it
//! and write its row for the next forward; count a visit along its path. That visit is the backup, made at once: within a
//! round it acts as the virtual visit that sends the next selection elsewhere. Nodes of the current round have no scores
//! yet and are not descended into; nodes whose subtree is complete are closed and never are.
//!
//! - A descent that ends at no expandable node counts a visit along its path; [`MAX_DEAD_ENDS`] of them end the round.
//! - The budget is hard. When leaves are not run, they cost nothing, nor does any other prefix that a single SID begins with
//!   (a *settled* one, see [`super::search`]): it counts as a leaf. There may be at most `leaves` of them.
//! - When what is left of the budget (or of the rounds) is only just enough to reach `goal` complete SIDs, the round
//!   completes prefixes greedily instead: of the deepest nodes with an unexpanded child that costs a forward, the child with
//!   the best `V + eta logp` (V of its parent). What is needed is known from the trie alone. With R the last depth that is
//!   run (L, or L - 1 when leaves are not), such a child of a node at depth d < R is at most R - d forwards from one more
//!   SID; leaves that were run, and settled children of nodes that were, are SIDs within reach.
//!
//! Draws: word 0 of the generator at (key, step, document, `draws + c`), `draws` advancing by the number of children.
//! `table`: f32 `[3, n]` by visits: `ceil(c N^a)`, `beta sqrt(ln(N + 1))`, `1 / sqrt(N + 1)` ([`table`]), so that integer
//! boundaries do not depend on an adapter's `pow`.
//!
//! Floor, bounded from above: the tree read once, 4 operations a node for the survey and 4 for each selection, and a draw
//! per child and selection. Little work, but a few hundred dependent steps per prompt, so one invocation per prompt and no
//! barriers.

use super::rng::DRAW_OPERATIONS;
use super::search::{
    FIXTURE_SLOTS, Fixture, NEW_NODE_BYTES, NONE, Prompt, RECORD, STATS, SearchSlices, Shape, Trie,
    each_prompt, header, node, stat,
};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::{bindings, params, rng};
use anyhow::Result;

/// The deepest SIDs the search takes.
pub const MAX_LEVELS: usize = 16;
/// Descents that lead nowhere before a round gives up.
pub const MAX_DEAD_ENDS: u32 = 16;
/// Relative slack of the gate.
const SLACK: f32 = 1e-6;

params! {
    /// `nodes` is M, `width` the selections of a round; levels up to `run_levels` are run; `rounds_left` counts this one, `first` marks the round after the
    /// first tree, `table` is the length of each of the three tables.
    Params {
        prompts: u32, nodes: u32, slot_base: u32, width: u32, tokens_at: u32, fanout: u32, levels: u32,
        run_levels: u32, budget: u32, goal: u32, leaves: u32, rounds_left: u32, first: u32, table: u32,
        key: u32, step: u32, eta: f32,
    }
}

pub static VED_SELECT: Kernel = Kernel {
    name: "ved_select",
    source: include_str!("../../shaders/ved_select.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![
        child_logp: In F32, trie: In U32, table: In F32,
        tree: Out U32, stats: Out F32, rows: Out U32, parent: Out U32, entry: Out U32,
    ],
    twin,
    cost,
};

/// Records one round. `inputs`: `child_logp` (`[nodes, fanout]`), `trie`, `table`.
pub fn ved_select(s: &mut Stream, inputs: [Slice; 3], on: SearchSlices, p: Params) {
    let grid = Grid::cover(p.prompts as usize, 64);
    s.push(&VED_SELECT, &p, &on.after(inputs), grid);
}

/// The three tables of widening and exploration for `0 .. visits` visits.
pub fn table(visits: usize, beta: f64, widen_c: f64, widen_a: f64) -> Vec<f32> {
    let by_visits =
        |f: &dyn Fn(f64) -> f64| -> Vec<f32> { (0..visits).map(|n| f(n as f64) as f32).collect() };
    [
        by_visits(&|n| (widen_c * n.powf(widen_a)).ceil()),
        by_visits(&|n| beta * (n + 1.0).ln().sqrt()),
        by_visits(&|n| 1.0 / (n + 1.0).sqrt()),
    ]
    .concat()
}

fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [nodes, width, fanout] = [p.nodes, p.width, p.fanout].map(u64::from);
    let draw = fanout * (DRAW_OPERATIONS + 4);
    Cost {
        operations: 4 * nodes + width * (4 * nodes + draw),
        bytes: 4 * nodes * (RECORD + STATS) as u64 + width * (4 * fanout + NEW_NODE_BYTES),
    } * p.prompts as u64
}

/// One prompt's round.
struct Round<'a> {
    p: Params,
    on: Prompt<'a>,
    child_logp: &'a [f32],
    trie: Trie<'a>,
    table: &'a [f32],
    frontier: usize,
    /// Unexpanded children of the nodes at each depth that cost a forward.
    open: [u32; MAX_LEVELS],
    /// Mean of G at each depth.
    mean: [f32; MAX_LEVELS],
    /// SIDs that need no further forward.
    reachable: u32,
    leaves: u32,
}

impl Round<'_> {
    fn legal(&self, node: usize) -> u32 {
        self.trie.edges(self.on.node(node, node::TRIE)).len() as u32
    }

    /// Whether prefixes that a single SID begins with are not run.
    fn settles(&self) -> bool {
        self.p.run_levels < self.p.levels
    }

    /// Whether a node is complete: an SID, or the only way to one. The root is neither.
    fn is_settled(&self, node: usize) -> bool {
        let at = self.on.node(node, node::TRIE);
        node > 0 && self.trie.is_settled(at, self.settles())
    }

    fn is_run(&self, node: usize) -> bool {
        !self.settles() || !self.is_settled(node)
    }

    /// Children that complete an SID without a forward.
    fn free_children(&self, node: usize) -> u32 {
        match self.settles() {
            true => self.trie.settled_children(self.on.node(node, node::TRIE)),
            false => 0,
        }
    }

    fn is_closed(&self, node: usize) -> bool {
        self.is_settled(node) || self.on.node(node, node::CLOSED) == self.legal(node)
    }

    /// The log-probs of the node's children.
    fn logps(&self, node: usize) -> &[f32] {
        let row = self.on.index * self.p.nodes as usize + node;
        &self.child_logp[row * self.p.fanout as usize..][..self.legal(node) as usize]
    }

    fn table(&self, which: u32, visits: u32) -> f32 {
        self.table[(which * self.p.table + visits.min(self.p.table - 1)) as usize]
    }

    /// Backup: one more visit to the node and its ancestors.
    fn visit(&mut self, node: usize) {
        let mut at = node as u32;
        while at != NONE {
            *self.on.node_mut(at as usize, node::VISITS) += 1;
            at = self.on.node(at as usize, node::PARENT);
        }
    }

    /// Enters a node in its parent's list of children, closes what it completes, backs up its visit.
    fn link(&mut self, node: usize) {
        let mut up = self.on.node(node, node::PARENT);
        *self.on.node_mut(node, node::NEXT) = self.on.node(up as usize, node::FIRST);
        *self.on.node_mut(up as usize, node::FIRST) = node as u32;
        *self.on.node_mut(up as usize, node::CHILDREN) += 1;
        if self.is_settled(node) {
            while up != NONE {
                *self.on.node_mut(up as usize, node::CLOSED) += 1;
                if !self.is_closed(up as usize) {
                    break;
                }
                up = self.on.node(up as usize, node::PARENT);
            }
        }
        self.visit(node);
    }

    /// Counts a node that is in the tree: its children are unexpanded or, where they cost nothing, within reach.
    fn count_children(&mut self, node: usize) {
        if self.is_settled(node) {
            self.leaves += 1;
            // One that was not run is among its parent's free children.
            self.reachable += self.is_run(node) as u32;
        } else {
            let (depth, free) = (self.on.node(node, node::DEPTH), self.free_children(node));
            self.reachable += free;
            self.open[depth as usize] += self.legal(node) - free;
        }
    }

    fn survey(&mut self) {
        let (mut first, mut sum) = ([0.0f32; MAX_LEVELS], [0.0f32; MAX_LEVELS]);
        let mut members = [0u32; MAX_LEVELS];
        for node in 0..self.frontier {
            let d = self.on.node(node, node::DEPTH) as usize;
            self.count_children(node);
            if node > 0 && self.is_run(node) {
                self.open[d - 1] -= 1;
            }
            if self.is_settled(node) {
                continue;
            }
            // Relative to the first, so that the mean of equal scores is that score.
            let g = self.on.stat(node, stat::SCORE);
            if members[d] == 0 {
                first[d] = g;
            }
            sum[d] += g - first[d];
            members[d] += 1;
        }
        for d in 0..self.p.levels as usize {
            self.mean[d] = first[d] + sum[d] / members[d].max(1) as f32;
        }
    }

    /// Forwards that suffice to reach `goal` SIDs, taking the deepest open prefixes first.
    fn reserve(&self) -> u32 {
        let mut need = self.p.goal.saturating_sub(self.reachable);
        let mut total = 0;
        for depth in (0..self.p.run_levels).rev() {
            let some = need.min(self.open[depth as usize]);
            total += some * (self.p.run_levels - depth);
            need -= some;
        }
        total + need * self.p.run_levels
    }

    /// The child to complete when what is left of the budget or of the rounds is needed for `goal` SIDs. `Err` when
    /// the rest of the round must be left unspent for it.
    fn complete(&mut self) -> std::result::Result<Option<(usize, u32)>, ()> {
        let kept = self.reserve();
        let left = self.p.budget - *self.on.header(header::COST);
        let late = self.p.rounds_left < kept.div_ceil(self.p.width) + self.p.run_levels;
        if kept == 0 || (left > kept && !late) {
            return Ok(None);
        }
        let open = self.best_open();
        if open.is_none() && left <= kept {
            Err(())
        } else {
            Ok(open)
        }
    }

    fn is_taken(&self, node: usize, edge: u32) -> bool {
        let mut child = self.on.node(node, node::FIRST);
        while child != NONE {
            if self.on.node(child as usize, node::TRIE) == edge + 1 {
                return true;
            }
            child = self.on.node(child as usize, node::NEXT);
        }
        false
    }

    /// Greedy completion: of the deepest nodes with an unexpanded child that costs a forward, the child with the best
    /// V + eta logp. `None` when the nodes of this round, once they are scored, lead to enough SIDs by shorter ways.
    fn best_open(&self) -> Option<(usize, u32)> {
        let (mut chosen, mut deepest, mut best) = (None, 0, 0.0);
        for node in 0..self.frontier {
            let depth = self.on.node(node, node::DEPTH);
            let full = self.on.node(node, node::CHILDREN) == self.legal(node);
            if depth >= self.p.run_levels || depth < deepest || full {
                continue;
            }
            let value = self.on.stat(node, stat::VALUE);
            let edges = self.trie.edges(self.on.node(node, node::TRIE));
            for (&logp, edge) in self.logps(node).iter().zip(edges) {
                let score = value + self.p.eta * logp;
                let better = chosen.is_none() || depth > deepest || score > best;
                let free = self.settles() && self.trie.is_settled(edge + 1, true);
                if better && !free && !self.is_taken(node, edge) {
                    (chosen, deepest, best) = (Some((node, edge)), depth, score);
                }
            }
        }
        let deeper = self.open.iter().skip(deepest as usize + 1).sum::<u32>();
        chosen.filter(|_| self.reachable + deeper < self.p.goal)
    }

    fn is_expandable(&self, node: usize) -> bool {
        let d = self.on.node(node, node::DEPTH);
        let children = self.on.node(node, node::CHILDREN);
        let mean = self.mean[d as usize];
        children < self.legal(node)
            && (children as f32) < self.table(0, self.on.node(node, node::VISITS))
            && (self.free_children(node) == 0 || self.leaves < self.p.leaves)
            && self.on.stat(node, stat::SCORE) + SLACK * mean.abs() >= mean
    }

    /// The node to expand, or `None` at a dead end (which counts a visit, so that the next try goes elsewhere).
    fn select(&mut self) -> Option<usize> {
        let mut node = 0;
        let explore = self.table(1, self.on.node(0, node::VISITS));
        while !self.is_expandable(node) {
            let (mut next, mut best) = (NONE, 0.0);
            let mut child = self.on.node(node, node::FIRST);
            while child != NONE {
                let at = child as usize;
                if at < self.frontier && !self.is_closed(at) {
                    let u = self.on.stat(at, stat::SCORE)
                        + explore * self.table(2, self.on.node(at, node::VISITS));
                    if next == NONE || u > best || (u == best && child < next) {
                        (next, best) = (child, u);
                    }
                }
                child = self.on.node(at, node::NEXT);
            }
            if next == NONE {
                self.visit(node);
                *self.on.header(header::DEAD_ENDS) += 1;
                return None;
            }
            node = next as usize;
        }
        Some(node)
    }

    /// Gumbel-max over the unexpanded children: the edge.
    fn draw(&mut self, node: usize) -> u32 {
        let document = *self.on.header(header::DOCUMENT);
        let index = *self.on.header(header::DRAWS);
        *self.on.header(header::DRAWS) = index.wrapping_add(self.legal(node));
        let (mut chosen, mut best) = (NONE, 0.0);
        let edges = self.trie.edges(self.on.node(node, node::TRIE));
        for (c, (&logp, edge)) in self.logps(node).iter().zip(edges).enumerate() {
            let counters = [
                self.p.key,
                self.p.step,
                document,
                index.wrapping_add(c as u32),
            ];
            let drawn = logp + rng::gumbel(rng::pcg4d(counters)[0]);
            if (chosen == NONE || drawn > best) && !self.is_taken(node, edge) {
                (chosen, best) = (edge, drawn);
            }
        }
        chosen
    }

    /// Attaches `edge` under `under`: the new node.
    fn attach(&mut self, under: usize, edge: u32) -> usize {
        let first = self.trie.edges(self.on.node(under, node::TRIE)).start;
        let logp = self.logps(under)[(edge - first) as usize];
        let new = *self.on.header(header::COUNT) as usize;
        *self.on.header(header::COUNT) += 1;
        self.on.make(new, under, edge, logp);
        self.link(new);
        self.count_children(new);
        if self.is_run(new) {
            self.open[self.on.node(new, node::DEPTH) as usize - 1] -= 1;
        }
        new
    }

    fn play(&mut self) {
        *self.on.header(header::FRONTIER) = self.frontier as u32;
        if self.p.first != 0 {
            (1..self.frontier).for_each(|node| self.link(node));
        }
        self.survey();
        let (mut row, mut dead_ends) = (0, 0);
        while row < self.p.width as usize
            && dead_ends < MAX_DEAD_ENDS
            && *self.on.header(header::COST) < self.p.budget
            && *self.on.header(header::COUNT) < self.p.nodes
            && !self.is_closed(0)
        {
            let Ok(completion) = self.complete() else {
                break;
            };
            let (under, edge) = match completion {
                Some(open) => open,
                None => match self.select() {
                    Some(under) => (under, self.draw(under)),
                    None => {
                        dead_ends += 1;
                        continue;
                    }
                },
            };
            let new = self.attach(under, edge);
            if self.is_run(new) {
                self.on.run(row, new, self.trie.token(edge));
                *self.on.header(header::COST) += 1;
                row += 1;
            }
        }
        self.on.rest(row);
    }
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let (child_logp, table) = (args.f32(0), args.f32(2));
    let trie = Trie::new(args.u32(1), p.tokens_at);
    let shape = Shape {
        prompts: p.prompts,
        nodes: p.nodes,
        slot_base: p.slot_base,
        width: p.width,
    };
    each_prompt(shape, args, 3, |mut on| {
        Round {
            p,
            frontier: *on.header(header::COUNT) as usize,
            on,
            child_logp,
            trie,
            table,
            open: [0; MAX_LEVELS],
            mean: [0.0; MAX_LEVELS],
            reachable: 0,
            leaves: 0,
        }
        .play();
    });
}

/// Whole searches from bare roots; the model's logits and values are random.
pub fn cases(h: &mut Harness) -> Result<()> {
    use super::expand::{self, Expand, expand};
    for (prompts, levels, fanout, width, score_leaves) in [
        (1, 1, 1, 1, 1),
        (2, 3, 5, 4, 1),
        (65, 2, 7, 3, 0),
        (3, 4, 3, 2, 0),
        (2, 2, 67, 5, 1),
    ] {
        let (budget, rounds, leaves, vocab) = (24, 8, 6, 200);
        let nodes = budget + if score_leaves == 1 { 0 } else { leaves };
        let at = Fixture::new(h, [levels, fanout], [prompts, nodes, width])?;
        let tokens_at = at.child_begin.len() as u32;
        let child_logp = h.random("child_logp", prompts * nodes * fanout);
        let table = h.f32("table", &table(40, 1.0, 2.0, 0.5));
        let unused = [h.u32("top_edge", &[0]), h.random("top_logp", 1)];
        let score = |h: &mut Harness, rows: usize| {
            let (logits, value) = (h.random("logits", rows * vocab), h.random("value", rows));
            let on = Expand {
                logits: logits.slice(),
                value: Some(value.slice()),
                entry: at.entry.slice(),
                trie: at.trie.slice(),
                child_logp: child_logp.slice(),
                stats: at.stats.slice(),
                top_edge: unused[0].slice(),
                top_logp: unused[1].slice(),
            };
            let p = expand::Params {
                rows: rows as u32,
                vocab: vocab as u32,
                fanout: fanout as u32,
                tokens_at,
                top: 0,
                keep: 1,
                renormalise: 0,
                valued: 0,
                lambda: 0.1,
                first: 0,
            };
            expand(h.stream(), on, p, p.rows as usize);
            at.run(h)
        };
        score(h, prompts)?;
        for round in 0..rounds {
            let p = Params {
                prompts: prompts as u32,
                nodes: nodes as u32,
                slot_base: FIXTURE_SLOTS,
                width: width as u32,
                tokens_at,
                fanout: fanout as u32,
                levels: levels as u32,
                run_levels: levels as u32 + score_leaves - 1,
                budget: budget as u32,
                goal: 9,
                leaves: if score_leaves == 1 {
                    u32::MAX
                } else {
                    leaves as u32
                },
                rounds_left: rounds - round,
                first: (round == 0) as u32,
                table: 40,
                key: 77,
                step: 5,
                eta: 0.1,
            };
            let inputs = [child_logp.slice(), at.trie.slice(), table.slice()];
            ved_select(h.stream(), inputs, at.slices(), p);
            at.run(h)?;
            score(h, prompts * width)?;
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
    fn tables_hold_the_formulas() {
        let t = table(10, 2.0, 2.0, 0.5);
        // 2 sqrt(4) is exactly 4: a node with 4 visits may not have more than 4 children.
        assert_eq!(t[..5], [0.0, 2.0, 3.0, 4.0, 4.0]);
        assert!((t[10 + 3] as f64 - 2.0 * 4f64.ln().sqrt()).abs() < 1e-6);
        assert_eq!(t[20 + 3], 0.5);
    }
}
