//! The candidates of a batch as one prefix tree per prompt: the tables that [`super::advantage`], [`super::objective`]
//! and [`super::td`] read.

use crate::device::Size;
use crate::rng::Rng;
use std::collections::HashMap;

/// Marks an absent candidate in `cand_node` and the missing parent of a first-level node.
pub const NONE: u32 = u32::MAX;

/// Sizes of a batch of candidates. `S` is [`Size`] where the device knows how many nodes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape<S = usize> {
    /// B.
    pub prompts: usize,
    /// G, the candidates of one prompt.
    pub group: usize,
    /// L, the tokens of a candidate.
    pub levels: usize,
    /// K, the tree nodes of all prompts.
    pub nodes: S,
}

impl From<Shape> for Shape<Size> {
    fn from(shape: Shape) -> Self {
        Shape {
            prompts: shape.prompts,
            group: shape.group,
            levels: shape.levels,
            nodes: shape.nodes.into(),
        }
    }
}

impl<S> Shape<S> {
    /// B G, the length of a table per candidate.
    pub fn candidates(&self) -> usize {
        self.prompts * self.group
    }

    /// B G L, the length of a table per candidate and level.
    pub fn entries(&self) -> usize {
        self.candidates() * self.levels
    }
}

/// Which node each candidate passes at each level, and where each node hangs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidates {
    pub shape: Shape,
    /// [B, G, L]: node of candidate g of prompt b at level l (0-based); [`NONE`] at every level of an absent candidate.
    pub cand_node: Vec<u32>,
    /// [K, 4]: prompt, depth (0-based level), parent node or [`NONE`], 0. The nodes of a prompt are contiguous.
    pub node_info: Vec<u32>,
}

impl Candidates {
    /// One node per distinct prefix of `tokens` [B, G, L]. A candidate whose first token is [`NONE`] is absent.
    pub fn shared(tokens: &[u32], group: usize, levels: usize) -> Candidates {
        Self::build(tokens, group, levels, |_| 0)
    }

    /// One node per candidate and level: nothing is shared, so that a node's results are one candidate's.
    pub fn unshared(tokens: &[u32], group: usize, levels: usize) -> Candidates {
        Self::build(tokens, group, levels, |candidate| candidate)
    }

    /// Candidates of one prompt share a prefix when `class` puts them in the same class.
    fn build(
        tokens: &[u32],
        group: usize,
        levels: usize,
        class: impl Fn(usize) -> usize,
    ) -> Candidates {
        assert!(tokens.len().is_multiple_of(group * levels), "[B, G, L]");
        let prompts = tokens.len() / (group * levels);
        let mut cand_node = vec![NONE; tokens.len()];
        let mut node_info = Vec::new();
        let mut known = HashMap::new();
        for (candidate, path) in tokens.chunks_exact(levels).enumerate() {
            if path[0] == NONE {
                continue;
            }
            let prompt = (candidate / group) as u32;
            let mut parent = NONE;
            for (depth, &token) in path.iter().enumerate() {
                let next = (node_info.len() / 4) as u32;
                let key = (prompt, class(candidate), parent, token);
                let node = *known.entry(key).or_insert(next);
                if node == next {
                    node_info.extend([prompt, depth as u32, parent, 0]);
                }
                cand_node[candidate * levels + depth] = node;
                parent = node;
            }
        }
        let nodes = node_info.len() / 4;
        let shape = Shape {
            prompts,
            group,
            levels,
            nodes,
        };
        Candidates {
            shape,
            cand_node,
            node_info,
        }
    }

    /// Number of candidates that are not absent.
    pub fn present(&self) -> usize {
        let levels = self.shape.levels;
        let first = self.cand_node.iter().step_by(levels);
        first.filter(|&&node| node != NONE).count()
    }

    /// Random candidates over few tokens, so that prefixes are shared and some candidates repeat; every seventh is
    /// absent if `gaps`. For tests and `vstar validate`.
    pub fn random(
        draws: &mut Rng,
        prompts: usize,
        group: usize,
        levels: usize,
        gaps: bool,
    ) -> Self {
        let mut tokens: Vec<u32> = (0..prompts * group * levels)
            .map(|_| draws.below(3) as u32)
            .collect();
        if gaps {
            for path in tokens.chunks_exact_mut(levels).skip(2).step_by(7) {
                path[0] = NONE;
            }
        }
        Self::shared(&tokens, group, levels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_shared_within_a_prompt_only() {
        // Prompt 0: (1 2), (1 3), absent. Prompt 1: (1 2), (4 2), (1 2).
        let tokens = [1, 2, 1, 3, NONE, 0, 1, 2, 4, 2, 1, 2];
        let c = Candidates::shared(&tokens, 3, 2);
        assert_eq!(c.cand_node, [0, 1, 0, 2, NONE, NONE, 3, 4, 5, 6, 3, 4]);
        assert_eq!(c.node_info[..8], [0, 0, NONE, 0, 0, 1, 0, 0]);
        assert_eq!((c.shape.nodes, c.present()), (7, 5));
        let alone = Candidates::unshared(&tokens, 3, 2);
        assert_eq!(alone.shape.nodes, 10);
        assert_eq!(alone.cand_node[10..], [8, 9]);
    }
}
