//! Beam search and VED once more, in f64, over a plain set of SIDs, written from spec 4 and not from the kernels.

use super::table_model::{logit_of, node_hash, prompt_hash, value_of};
use crate::decode::Ved;
use crate::rng::{Rng, Stream};
use std::collections::BTreeSet;

/// A catalog under a model and a prompt.
pub struct World<'a> {
    pub sids: &'a BTreeSet<Vec<u32>>,
    pub vocab: usize,
    pub levels: usize,
    pub renormalise: bool,
    pub prompt: &'a [u32],
}

impl World<'_> {
    fn legal(&self, prefix: &[u32]) -> Vec<u32> {
        let next: BTreeSet<u32> = self
            .sids
            .iter()
            .filter(|sid| sid.starts_with(prefix))
            .map(|sid| sid[prefix.len()])
            .collect();
        next.into_iter().collect()
    }

    fn hash(&self, prefix: &[u32]) -> u32 {
        let positions = self.prompt.len() as u32..;
        let base = prompt_hash(self.prompt.iter().copied());
        prefix
            .iter()
            .zip(positions)
            .fold(base, |h, (&token, position)| node_hash(h, token, position))
    }

    fn value(&self, prefix: &[u32]) -> f64 {
        value_of(self.hash(prefix)) as f64
    }

    /// The legal children's log-probs and their entropy.
    fn policy(&self, prefix: &[u32]) -> (Vec<f64>, f64) {
        let hash = self.hash(prefix);
        let lse = |tokens: &[u32]| {
            tokens
                .iter()
                .map(|&t| (logit_of(hash, t) as f64).exp())
                .sum::<f64>()
                .ln()
        };
        let legal = self.legal(prefix);
        let all: Vec<u32> = (0..self.vocab as u32).collect();
        let normaliser = lse(if self.renormalise { &legal } else { &all });
        let own = lse(&legal);
        let logits = legal.iter().map(|&t| logit_of(hash, t) as f64);
        let entropy = logits.clone().map(|x| -(x - own) * (x - own).exp()).sum();
        (logits.map(|x| x - normaliser).collect(), entropy)
    }

    pub fn logp(&self, sid: &[u32]) -> f64 {
        (0..sid.len())
            .map(|l| {
                let at = self
                    .legal(&sid[..l])
                    .iter()
                    .position(|&t| t == sid[l])
                    .unwrap();
                self.policy(&sid[..l]).0[at]
            })
            .sum()
    }

    /// The prefixes kept at each level, best first.
    pub fn beam(&self, widths: &[usize]) -> Vec<Vec<Vec<u32>>> {
        let mut kept = vec![vec![]];
        let mut levels = Vec::new();
        for &width in widths {
            let mut next = Vec::new();
            for (rank, prefix) in kept.iter().enumerate() {
                let prefix: &Vec<u32> = prefix;
                let before = self.logp(prefix);
                for (token, logp) in self.legal(prefix).into_iter().zip(self.policy(prefix).0) {
                    next.push((before + logp, token, rank));
                }
            }
            next.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
            next.truncate(width);
            kept = next
                .iter()
                .map(|&(_, token, rank)| [kept[rank].as_slice(), &[token]].concat())
                .collect();
            levels.push(kept.clone());
        }
        levels
    }
}

struct Node {
    prefix: Vec<u32>,
    parent: Option<usize>,
    visits: usize,
    children: Vec<usize>,
    g: f64,
}

/// VED's tree and accounts.
pub struct Search<'a> {
    world: &'a World<'a>,
    ved: &'a Ved,
    nodes: Vec<Node>,
    draws: Rng,
    pub cost: usize,
    pub dead_ends: usize,
}

impl<'a> Search<'a> {
    pub fn new(world: &'a World, ved: &'a Ved, seed: u64, step: u32, document: u32) -> Self {
        let mut search = Search {
            world,
            ved,
            nodes: Vec::new(),
            draws: Rng::new(seed, Stream::Decode, step, document),
            cost: 1,
            dead_ends: 0,
        };
        search.nodes.push(Node {
            prefix: vec![],
            parent: None,
            visits: 1,
            children: vec![],
            g: search.score(&[]),
        });
        search
    }

    fn score(&self, prefix: &[u32]) -> f64 {
        let entropy = if self.is_leaf(prefix) {
            0.0
        } else {
            self.world.policy(prefix).1
        };
        self.world.value(prefix) + self.ved.lambda as f64 * entropy
    }

    /// An SID or, where leaves are not run, a prefix that no other SID begins with.
    fn is_leaf(&self, prefix: &[u32]) -> bool {
        let below = || self.world.sids.iter().filter(|sid| sid.starts_with(prefix));
        let settled = !self.ved.score_leaves && !prefix.is_empty() && below().count() == 1;
        prefix.len() == self.world.levels || settled
    }

    /// The part of an SID that is drawn or run.
    pub fn decided<'s>(&self, sid: &'s [u32]) -> &'s [u32] {
        let len = (1..=sid.len()).find(|&len| self.is_leaf(&sid[..len]));
        &sid[..len.expect("an SID is one")]
    }

    /// The children of a node that cost no forward.
    fn free_children(&self, node: usize) -> usize {
        let prefix = &self.nodes[node].prefix;
        let legal = self.world.legal(prefix);
        let free = |&token: &u32| self.is_leaf(&[prefix.as_slice(), &[token]].concat());
        match self.ved.score_leaves {
            true => 0,
            false => legal.iter().filter(|token| free(token)).count(),
        }
    }

    fn add(&mut self, parent: usize, token: u32) {
        let prefix = [self.nodes[parent].prefix.as_slice(), &[token]].concat();
        let new = self.nodes.len();
        self.cost += (!self.is_leaf(&prefix) || self.ved.score_leaves) as usize;
        let g = self.score(&prefix);
        self.nodes[parent].children.push(new);
        self.nodes.push(Node {
            prefix,
            parent: Some(parent),
            visits: 0,
            children: vec![],
            g,
        });
        self.visit(new);
    }

    fn visit(&mut self, node: usize) {
        let mut at = Some(node);
        while let Some(i) = at {
            self.nodes[i].visits += 1;
            at = self.nodes[i].parent;
        }
    }

    fn unexpanded(&self, node: usize) -> Vec<u32> {
        let Node {
            prefix, children, ..
        } = &self.nodes[node];
        if self.is_leaf(prefix) {
            return vec![];
        }
        let taken: Vec<u32> = children
            .iter()
            .map(|&c| *self.nodes[c].prefix.last().unwrap())
            .collect();
        let legal = self.world.legal(prefix);
        legal
            .into_iter()
            .filter(|token| !taken.contains(token))
            .collect()
    }

    /// Unexpanded children that cost a forward.
    fn open(&self, node: usize) -> Vec<u32> {
        let prefix = &self.nodes[node].prefix;
        let free =
            |token| !self.ved.score_leaves && self.is_leaf(&[prefix.as_slice(), &[token]].concat());
        let open = self.unexpanded(node).into_iter();
        open.filter(|&token| !free(token)).collect()
    }

    /// Whether every SID below the node is in the tree.
    fn is_closed(&self, node: usize) -> bool {
        self.unexpanded(node).is_empty()
            && self.nodes[node]
                .children
                .iter()
                .all(|&child| self.is_closed(child))
    }

    fn leaves(&self) -> usize {
        self.nodes
            .iter()
            .filter(|n| self.is_leaf(&n.prefix))
            .count()
    }

    /// The last depth that is run.
    fn last_run(&self) -> usize {
        self.world.levels - !self.ved.score_leaves as usize
    }

    /// The forwards each SID that is missing for `goal` may need, fewest first.
    fn missing(&self, goal: usize) -> Vec<usize> {
        let last = self.last_run();
        let mut costs = Vec::new();
        let mut reachable = 0;
        for (i, node) in self.nodes.iter().enumerate() {
            let depth = node.prefix.len();
            if self.is_leaf(&node.prefix) {
                reachable += self.ved.score_leaves as usize;
            } else {
                reachable += self.free_children(i);
                costs.extend(self.open(i).iter().map(|_| last - depth));
            }
        }
        let need = goal.saturating_sub(reachable);
        costs.sort();
        costs.resize(costs.len().max(need), last);
        costs.truncate(need);
        costs
    }

    fn select(&self, known: usize, free_leaves: usize, path: &mut Vec<usize>) -> Option<usize> {
        let mut node = 0;
        loop {
            path.push(node);
            let depth = self.nodes[node].prefix.len();
            let peers: Vec<f64> = self.nodes[..known]
                .iter()
                .filter(|n| n.prefix.len() == depth && !self.is_leaf(&n.prefix))
                .map(|n| n.g)
                .collect();
            let mean = peers.iter().sum::<f64>() / peers.len() as f64;
            let visits = self.nodes[node].visits as f64;
            let widest = self.ved.widen_c as f64 * visits.powf(self.ved.widen_a as f64);
            let room = self.free_children(node) == 0 || self.leaves() < free_leaves;
            if !self.unexpanded(node).is_empty()
                && (self.nodes[node].children.len() as f64) < widest
                && room
                && self.nodes[node].g + 1e-6 * mean.abs() >= mean
            {
                return Some(node);
            }
            let root = self.nodes[0].visits as f64;
            let reach = |child: usize| {
                let n = self.nodes[child].visits as f64;
                self.nodes[child].g + self.ved.beta as f64 * ((root + 1.0).ln() / (n + 1.0)).sqrt()
            };
            node = self.nodes[node]
                .children
                .iter()
                .copied()
                .filter(|&child| child < known && !self.is_closed(child))
                .max_by(|&a, &b| reach(a).total_cmp(&reach(b)).then(b.cmp(&a)))?;
        }
    }

    fn draw(&mut self, node: usize) -> u32 {
        let prefix = self.nodes[node].prefix.clone();
        let open = self.unexpanded(node);
        let policy = self.world.policy(&prefix).0;
        let noisy: Vec<(f64, u32)> = self
            .world
            .legal(&prefix)
            .into_iter()
            .zip(policy)
            .map(|(token, logp)| {
                let u = self.draws.uniform() as f64;
                (logp - (-u.ln()).ln(), token)
            })
            .collect();
        let open = noisy.into_iter().filter(|(_, token)| open.contains(token));
        open.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap().1
    }

    fn best_open(&self, known: usize, goal: usize) -> Option<(usize, u32)> {
        let mut all = Vec::new();
        for node in 0..known {
            let prefix = &self.nodes[node].prefix;
            if prefix.len() < self.last_run() {
                for token in self.open(node) {
                    let whole = self.world.logp(&[prefix.as_slice(), &[token]].concat());
                    let logp = whole - self.world.logp(prefix);
                    let promise = self.world.value(prefix) + self.ved.eta as f64 * logp;
                    all.push((prefix.len(), promise, node, token));
                }
            }
        }
        all.sort_by(|a, b| b.0.cmp(&a.0).then(b.1.total_cmp(&a.1)));
        let &(depth, _, node, token) = all.first()?;
        let cost = self.last_run() - depth;
        // It must bring one of the missing SIDs nearer.
        self.missing(goal)
            .iter()
            .any(|&c| c >= cost)
            .then_some((node, token))
    }

    /// The whole search: first tree, rounds, final selection. The plan's bounds are the caller's.
    pub fn run(&mut self, plan: &crate::decode::Plan) -> Vec<(Vec<u32>, f64)> {
        for (level, &width) in plan.widths.iter().enumerate() {
            // A beam in which what is complete keeps its place.
            let places = width.saturating_sub(self.leaves());
            let mut next = Vec::new();
            for node in 0..self.nodes.len() {
                let prefix = &self.nodes[node].prefix;
                if prefix.len() == level && !self.is_leaf(prefix) {
                    for token in self.world.legal(prefix) {
                        let logp = self.world.logp(&[prefix.as_slice(), &[token]].concat());
                        next.push((logp, token, node));
                    }
                }
            }
            next.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
            next.truncate(places);
            for (_, token, node) in next {
                self.add(node, token);
            }
        }
        for round in 0..plan.rounds {
            let rounds_left = plan.rounds - round;
            let known = self.nodes.len();
            let start = self.cost;
            let mut dead_ends = 0;
            while self.cost < start + plan.round
                && self.cost < plan.budget
                && dead_ends < 16
                && !self.is_closed(0)
            {
                let reserve: usize = self.missing(plan.goal).iter().sum();
                let left = plan.budget - self.cost;
                let late = rounds_left < reserve.div_ceil(plan.round) + self.last_run();
                if reserve > 0 && (left <= reserve || late) {
                    if let Some((node, token)) = self.best_open(known, plan.goal) {
                        self.add(node, token);
                        continue;
                    }
                    if left <= reserve {
                        break;
                    }
                }
                let mut path = Vec::new();
                match self.select(known, plan.free_leaves, &mut path) {
                    Some(node) => {
                        let token = self.draw(node);
                        self.add(node, token);
                    }
                    None => {
                        self.visit(*path.last().unwrap());
                        dead_ends += 1;
                        self.dead_ends += 1;
                    }
                }
            }
        }
        self.finish(plan.goal)
    }

    fn finish(&self, goal: usize) -> Vec<(Vec<u32>, f64)> {
        let eta = self.ved.eta as f64;
        let promise = |up: &[u32], sid: &[u32]| self.world.value(up) + eta * self.world.logp(sid);
        let whole = |prefix: &[u32]| {
            let mut sids = self.world.sids.iter();
            sids.find(|sid| sid.starts_with(prefix)).unwrap().clone()
        };
        let (mut found, mut rest) = (Vec::new(), Vec::new());
        for (i, node) in self.nodes.iter().enumerate() {
            let prefix = &node.prefix;
            if self.is_leaf(prefix) {
                let value = if self.ved.score_leaves {
                    self.world.value(prefix)
                } else {
                    promise(&prefix[..prefix.len() - 1], prefix)
                };
                found.push((whole(prefix), value));
                continue;
            }
            for token in self.unexpanded(i) {
                let sid = [prefix.as_slice(), &[token]].concat();
                if self.is_leaf(&sid) {
                    rest.push((whole(&sid), promise(prefix, &sid)));
                }
            }
        }
        found.sort_by(|a, b| b.1.total_cmp(&a.1));
        rest.sort_by(|a, b| b.1.total_cmp(&a.1));
        found.extend(rest);
        found.truncate(goal);
        found
    }
}
