//! The trie of all SIDs (spec 1): which tokens may follow a prefix.
//!
//! Nodes are numbered breadth first, children by rising token id. Three facts follow, and every decoder uses them:
//! - edge `e` leads to node `e + 1`, so the tree is two arrays, `child_begin` and `child_token`, and no third;
//! - the nodes of one level are consecutive;
//! - leaves are in the lexicographic order of their SIDs, so `leaf - first_leaf()` is the SID's index in the catalog.

use std::ops::Range;

/// Flat arrays, ready to be copied to a device as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trie {
    child_begin: Vec<u32>,
    child_token: Vec<u32>,
    level_begin: Vec<u32>,
}

/// The branching of the nodes at one depth (0 is the root, the last depth is that of the leaves' parents).
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct LevelShape {
    pub depth: usize,
    pub nodes: usize,
    pub mean_children: f64,
    pub max_children: usize,
    /// Share of the nodes with exactly one child: no sibling group there, nothing for a decoder to decide.
    pub singleton_share: f64,
}

impl Trie {
    /// The root, where every walk starts.
    pub const ROOT: u32 = 0;

    /// Builds the trie of `sids`: `[n, levels]` token ids, row-major, rows distinct and in lexicographic order.
    pub(super) fn new(sids: &[u32], levels: usize) -> Self {
        let rows = sids.len() / levels;
        debug_assert!(
            (1..rows).all(|r| {
                sids[(r - 1) * levels..r * levels] < sids[r * levels..(r + 1) * levels]
            })
        );
        let mut child_begin = Vec::new();
        let mut child_token = Vec::new();
        let mut level_begin = vec![0, 1];
        // Row ranges of the nodes of the current level; splitting each by its next token gives the next level.
        let root = 0..rows;
        let mut nodes = vec![root];
        for level in 0..levels {
            let mut children = Vec::new();
            for node in nodes {
                child_begin.push(child_token.len() as u32);
                let mut begin = node.start;
                while begin < node.end {
                    let token = sids[begin * levels + level];
                    let run = (begin..node.end)
                        .take_while(|row| sids[row * levels + level] == token)
                        .count();
                    child_token.push(token);
                    children.push(begin..begin + run);
                    begin += run;
                }
            }
            level_begin.push(level_begin[level + 1] + children.len() as u32);
            nodes = children;
        }
        let edges = child_token.len() as u32;
        child_begin.extend(std::iter::repeat_n(edges, nodes.len() + 1));
        Trie {
            child_begin,
            child_token,
            level_begin,
        }
    }

    /// Number of nodes, root and leaves included.
    pub fn nodes(&self) -> usize {
        self.child_begin.len() - 1
    }

    /// L: the depth of every leaf.
    pub fn levels(&self) -> usize {
        self.level_begin.len() - 2
    }

    /// `[nodes + 1]`: the children of node `n` are the edges `child_begin[n] .. child_begin[n + 1]`.
    pub fn child_begin(&self) -> &[u32] {
        &self.child_begin
    }

    /// `[nodes - 1]`: the token of each edge. Edge `e` leads to node `e + 1`.
    pub fn child_token(&self) -> &[u32] {
        &self.child_token
    }

    /// The node of the first SID in lexicographic order.
    pub fn first_leaf(&self) -> u32 {
        self.level_begin[self.levels()]
    }

    /// The SID that ends at `node`, or `None` for an inner node.
    pub fn sid_of(&self, node: u32) -> Option<u32> {
        node.checked_sub(self.first_leaf())
    }

    /// The nodes at `depth` (0 is the root, L the leaves).
    pub fn level(&self, depth: usize) -> Range<u32> {
        self.level_begin[depth]..self.level_begin[depth + 1]
    }

    /// Nodes per depth, 0 ..= L.
    pub fn level_sizes(&self) -> Vec<usize> {
        (0..=self.levels())
            .map(|depth| self.level(depth).len())
            .collect()
    }

    /// The child edges of `node`.
    fn edges(&self, node: u32) -> Range<usize> {
        self.child_begin[node as usize] as usize..self.child_begin[node as usize + 1] as usize
    }

    /// `(token, node)` of each child, by rising token; empty at a leaf.
    pub fn children(&self, node: u32) -> impl ExactSizeIterator<Item = (u32, u32)> + '_ {
        self.edges(node)
            .map(|edge| (self.child_token[edge], edge as u32 + 1))
    }

    /// The child of `node` by `token`, or `None` where the trie forbids it.
    pub fn child(&self, node: u32, token: u32) -> Option<u32> {
        let edges = self.edges(node);
        let at = self.child_token[edges.clone()].binary_search(&token).ok()?;
        Some((edges.start + at) as u32 + 1)
    }

    /// The node at the end of `tokens`, from the root, or `None` where the trie forbids one of them.
    pub fn walk(&self, tokens: &[u32]) -> Option<u32> {
        tokens
            .iter()
            .try_fold(Self::ROOT, |node, &token| self.child(node, token))
    }

    /// The branching at each depth `0 .. L`.
    pub fn shape(&self) -> Vec<LevelShape> {
        (0..self.levels())
            .map(|depth| {
                let fanouts = self.level(depth).map(|node| self.edges(node).len());
                let nodes = fanouts.len();
                let singletons = fanouts.clone().filter(|&fanout| fanout == 1).count();
                LevelShape {
                    depth,
                    nodes,
                    mean_children: self.level(depth + 1).len() as f64 / nodes as f64,
                    max_children: fanouts.max().unwrap_or(0),
                    singleton_share: singletons as f64 / nodes as f64,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng, Stream};
    use std::collections::BTreeSet;

    #[test]
    fn a_small_trie_node_by_node() {
        // 2 -> 5 -> {7, 9};  3 -> 4 -> 7;  3 -> 5 -> 8
        let trie = Trie::new(&[2, 5, 7, 2, 5, 9, 3, 4, 7, 3, 5, 8], 3);
        assert_eq!(trie.child_token(), [2, 3, 5, 4, 5, 7, 9, 7, 8]);
        assert_eq!(trie.child_begin(), [0, 2, 3, 5, 7, 8, 9, 9, 9, 9, 9]);
        assert_eq!((trie.nodes(), trie.levels(), trie.first_leaf()), (10, 3, 6));
        assert_eq!(trie.children(2).collect::<Vec<_>>(), [(4, 4), (5, 5)]);
        assert_eq!(trie.children(6).len(), 0);
        assert_eq!(
            [0, 1, 2, 3].map(|depth| trie.level(depth)),
            [0..1, 1..3, 3..6, 6..10]
        );
        assert_eq!(trie.shape().iter().map(|s| s.max_children).max(), Some(2));
        let shape = trie.shape();
        assert_eq!((shape[1].nodes, shape[1].max_children), (2, 2));
        assert_eq!(
            (shape[1].mean_children, shape[1].singleton_share),
            (1.5, 0.5)
        );
        assert_eq!(shape[2].singleton_share, 2.0 / 3.0);
    }

    #[test]
    fn walks_every_sid_to_its_leaf_and_no_other_word() {
        let mut rng = Rng::new(3, Stream::Test, 0, 0);
        let (levels, codes) = (4, 5);
        let sids: BTreeSet<Vec<u32>> = (0..150)
            .map(|_| {
                (0..levels)
                    .map(|l| (2 + codes * l + rng.below(codes)) as u32)
                    .collect()
            })
            .collect();
        let flat: Vec<u32> = sids.iter().flatten().copied().collect();
        let trie = Trie::new(&flat, levels);
        for (index, sid) in sids.iter().enumerate() {
            let leaf = trie.walk(sid).unwrap();
            assert_eq!(trie.sid_of(leaf), Some(index as u32));
            assert!(trie.level(levels).contains(&leaf));
        }
        // Every word over the alphabet that is not an SID is refused.
        let all = codes.pow(levels as u32);
        let legal = (0..all)
            .filter(|word| {
                let spelled: Vec<u32> = (0..levels)
                    .map(|l| (2 + codes * l + word / codes.pow(l as u32) % codes) as u32)
                    .collect();
                trie.walk(&spelled).is_some()
            })
            .count();
        assert_eq!(legal, sids.len());
        assert_eq!(trie.sid_of(trie.first_leaf() - 1), None);
    }
}
