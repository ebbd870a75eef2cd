//! The candidates of a batch of prompts as one forest: a shared prefix is one node, computed once.

use super::engine::Targets;
use super::sequences::push_tree;
use crate::forest::{Forest, NONE, Node, PromptAttention};

/// Trees of candidates packed for one pass. K nodes over all prompts, numbered as targets.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    pub forest: Forest,
    pub targets: Targets,
    /// [B, G, L] node of each candidate's prefix at each level; [`NONE`] for an absent candidate.
    pub cand_node: Vec<u32>,
    /// [K, 4]: prompt, depth from 0, parent node ([`NONE`] at depth 0), 0.
    pub node_info: Vec<[u32; 4]>,
    /// [K] forest row of each node.
    pub node_row: Vec<u32>,
    prompts: u32,
}

impl Groups {
    pub fn clear(&mut self) {
        self.forest.clear();
        self.targets.clear();
        self.cand_node.clear();
        self.node_info.clear();
        self.node_row.clear();
        self.prompts = 0;
    }

    /// Adds a prompt with up to `group` candidates of `levels` tokens each. Equal candidates share all their nodes.
    pub fn push<'a>(
        &mut self,
        prompt: &[u32],
        candidates: impl Iterator<Item = &'a [u32]>,
        group: usize,
        levels: usize,
        attention: PromptAttention,
    ) {
        let mut nodes: Vec<Node> = Vec::new();
        let mut depths: Vec<u32> = Vec::new();
        let first = self.cand_node.len();
        self.cand_node.resize(first + group * levels, NONE);
        for (g, tokens) in candidates.take(group).enumerate() {
            assert_eq!(tokens.len(), levels, "a candidate is a whole SID");
            let mut parent = NONE;
            for (l, &token) in tokens.iter().enumerate() {
                let wanted = Node { token, parent };
                let node = nodes.iter().position(|n| *n == wanted).unwrap_or_else(|| {
                    nodes.push(wanted);
                    depths.push(l as u32);
                    nodes.len() - 1
                });
                self.cand_node[first + g * levels + l] = node as u32;
                parent = node as u32;
            }
        }
        let known = (&mut self.forest, &mut self.targets);
        let packed = push_tree(prompt, &nodes, attention, false, known);
        // From numbers within the prompt to target numbers.
        for node in &mut self.cand_node[first..] {
            if *node != NONE {
                *node = packed[*node as usize].0;
            }
        }
        self.node_info.resize(self.targets.len(), [0; 4]);
        self.node_row.resize(self.targets.len(), 0);
        for (n, &(target, row)) in packed.iter().enumerate() {
            let parent = match nodes[n].parent {
                NONE => NONE,
                parent => packed[parent as usize].0,
            };
            self.node_info[target as usize] = [self.prompts, depths[n], parent, 0];
            self.node_row[target as usize] = row;
        }
        self.prompts += 1;
    }

    /// Number of nodes K.
    pub fn nodes(&self) -> usize {
        self.targets.len()
    }

    /// Sibling groups with at least two children, per depth: what the sibling advantage can learn from (spec 1).
    pub fn usable_sibling_groups(&self, levels: usize) -> Vec<usize> {
        let mut counts = std::collections::BTreeMap::new();
        for &[prompt, depth, parent, _] in &self.node_info {
            *counts.entry((depth, prompt, parent)).or_insert(0usize) += 1;
        }
        let mut usable = vec![0; levels];
        for ((depth, ..), children) in counts {
            usable[depth as usize] += (children >= 2) as usize;
        }
        usable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_share_prefixes() {
        let mut groups = Groups::default();
        let candidates: [&[u32]; 4] = [&[5, 7], &[5, 8], &[6, 7], &[5, 7]];
        for _ in 0..2 {
            groups.push(&[1, 2, 3], candidates.iter().copied(), 5, 2, PromptAttention::Causal);
        }
        // Two roots' children (5, 6), then 5's (7, 8) and 6's (7): five nodes a prompt.
        assert_eq!(groups.nodes(), 10);
        assert_eq!(groups.forest.len(), 2 * (3 + 5));
        let of = |b: usize, g: usize, l: usize| groups.cand_node[(b * 5 + g) * 2 + l];
        assert_eq!(of(0, 0, 0), of(0, 1, 0));
        assert_ne!(of(0, 0, 1), of(0, 1, 1));
        assert_ne!(of(0, 0, 1), of(0, 2, 1), "same token under another parent");
        assert_eq!(of(0, 0, 1), of(0, 3, 1), "equal candidates are one path");
        assert_eq!(of(0, 4, 0), NONE, "absent candidate");
        assert_ne!(of(0, 0, 0), of(1, 0, 0));
        assert_eq!(groups.usable_sibling_groups(2), [2, 2]);
        for (k, &row) in groups.node_row.iter().enumerate() {
            assert_eq!(groups.forest.rows[row as usize].token, groups.targets.tokens[k]);
        }
        let [prompt, depth, parent, _] = groups.node_info[of(1, 1, 1) as usize];
        assert_eq!((prompt, depth, parent), (1, 1, of(1, 1, 0)));
    }
}
