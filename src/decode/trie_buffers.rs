//! The trie on a device.

use crate::device::{Buffer, DeviceRef, Slice};
use crate::kernels::search::trie_words;
use anyhow::Result;

/// The trie's arrays in one buffer, and the few numbers about it that the host needs.
pub struct TrieBuffers {
    words: Buffer,
    tokens_at: u32,
    first_leaf: u32,
    fanout: usize,
    last_fanout: usize,
    level_sizes: Vec<usize>,
}

impl TrieBuffers {
    /// Copies a trie to `device`. Nodes are numbered breadth first and the children of a node by rising token: the
    /// children of node `n` are the edges `child_begin[n] .. child_begin[n + 1]` (`[nodes + 1]`), edge `e` spells
    /// `child_token[e]` and leads to node `e + 1`; leaves are the nodes from `first_leaf` on, all at one depth.
    ///
    /// # Errors
    /// The device has no room for it.
    pub fn new(
        device: &DeviceRef,
        child_begin: &[u32],
        child_token: &[u32],
        first_leaf: u32,
    ) -> Result<Self> {
        let words = Buffer::with_u32(device, "trie", &trie_words(child_begin, child_token))?;
        let fanouts = child_begin
            .windows(2)
            .map(|pair| (pair[1] - pair[0]) as usize);
        // A level's children are the next level.
        let mut level_sizes = vec![1];
        let mut level = [0, 1];
        while level[0] != first_leaf {
            level = level.map(|node| child_begin[node as usize] + 1);
            level_sizes.push((level[1] - level[0]) as usize);
        }
        let parents = first_leaf as usize - level_sizes.iter().rev().nth(1).unwrap_or(&0);
        Ok(TrieBuffers {
            words,
            tokens_at: child_begin.len() as u32,
            first_leaf,
            fanout: fanouts.clone().max().unwrap_or(0),
            last_fanout: fanouts.skip(parents).max().unwrap_or(0),
            level_sizes,
        })
    }

    /// As the kernels read it ([`crate::kernels::search`]).
    pub fn words(&self) -> Slice {
        self.words.all()
    }

    /// Where `child_token` begins in [`words`](Self::words).
    pub fn tokens_at(&self) -> u32 {
        self.tokens_at
    }

    /// The node of SID 0.
    pub fn first_leaf(&self) -> u32 {
        self.first_leaf
    }

    /// The largest number of children of any node.
    pub fn fanout(&self) -> usize {
        self.fanout
    }

    /// The largest number of children of any parent of leaves.
    pub fn last_fanout(&self) -> usize {
        self.last_fanout
    }

    /// L: the number of tokens of an SID.
    pub fn levels(&self) -> usize {
        self.level_sizes.len() - 1
    }

    /// Nodes per depth, 0 ..= L; the last is the number of SIDs.
    pub fn level_sizes(&self) -> &[usize] {
        &self.level_sizes
    }
}
