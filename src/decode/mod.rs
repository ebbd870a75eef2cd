//! Trie-constrained decoding (spec 4): beam search, ancestral sampling and value-guided search (VED), batched over
//! prompts.
//!
//! A [`Decoder`] owns the search state on the device. [`Decoder::upload`] takes the prompts, [`Decoder::decode`] records the
//! whole search into a stream; the candidates stay on the device for those who go on there ([`Decoder::found`]), or
//! [`Decoder::read`] brings them back. In between the host neither waits nor looks. Prompt keys and values are computed
//! once; after that only new tree nodes are run.

mod decoder;
mod levels;
mod plan;
mod prompts;
pub mod search;
mod trie_buffers;
mod ved;

#[cfg(test)]
mod tests;

pub use decoder::Decoder;
pub use plan::Plan;
pub use prompts::{Prefill, PromptBuffers};
pub use trie_buffers::TrieBuffers;

use crate::device::{ALIGN_WORDS, Size, Slice, Stream};

/// What decoding needs of a model.
pub trait DecodeModel {
    /// V: the number of tokens.
    fn vocab(&self) -> usize;

    /// d: the width of hidden states.
    fn hidden(&self) -> usize;

    /// Records the backbone over all prompts, so that their keys and values are in the model's cache. Leaves the hidden
    /// states after the final norm of each prompt's last token in `hidden` `[B, d]`, and the values there in `value`
    /// `[B]` if they are wanted.
    fn prefill(&self, s: &mut Stream, prompts: &Prefill, hidden: Slice, value: Option<Slice>);

    /// Records the backbone, and the value head if `value` is given, over `n` rows of tree nodes
    /// ([`crate::forest::Row`]). Keys and values go to the model's cache at the rows' slots, of which
    /// there are [`Decoder::slots`]; `parent` (u32 `[slots]`) links a node's slot to its parent's. Leaves the hidden
    /// states after the final norm in `hidden` `[n, d]` and the values in `value` `[n]`.
    fn forward(
        &self,
        s: &mut Stream,
        rows: Slice,
        n: Size,
        parent: Slice,
        hidden: Slice,
        value: Option<Slice>,
    );

    /// Records the logits `[n, V]` of `n` hidden states.
    fn logits(&self, s: &mut Stream, hidden: Slice, n: Size, logits: Slice);
}

/// How candidates are found.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// The `width` SIDs a beam search of that width ends with, by log-prob.
    Beam { width: usize },
    /// `count` independent samples of the policy over the legal children; they may coincide.
    Sample { count: usize, temperature: f32 },
    /// Value-guided search.
    Ved(Ved),
}

/// Settings of value-guided search, by their names in spec 4.
#[derive(Clone, Debug, PartialEq)]
pub struct Ved {
    /// Weight of the entropy beside the value of a node.
    pub lambda: f32,
    /// Weight of exploration when descending.
    pub beta: f32,
    /// b0: width of the beam search that makes the first tree.
    pub init_beam: usize,
    /// Backbone tokens per prompt after prefill, never exceeded; 0 is twice the first tree's cost.
    pub budget: usize,
    /// A node visited N times may have fewer than `widen_c N^widen_a` children before it gets another.
    pub widen_c: f32,
    pub widen_a: f32,
    /// Whether complete SIDs are run, so that they have a value of their own. If not, neither is a prefix that a single SID
    /// begins with: nothing is left to decide, and it counts as that SID.
    pub score_leaves: bool,
    /// Weight of its log-prob in the value of an SID that is not run.
    pub eta: f32,
    /// W: nodes per prompt selected in one round and run as one batch.
    pub round: usize,
    /// G: candidates returned.
    pub candidates: usize,
}

impl Default for Ved {
    fn default() -> Self {
        Ved {
            lambda: 0.1,
            beta: 1.0,
            init_beam: 8,
            budget: 0,
            widen_c: 2.0,
            widen_a: 0.5,
            score_leaves: true,
            eta: 0.1,
            round: 4,
            candidates: 16,
        }
    }
}

/// Everything that fixes what a decoder returns, the model aside.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeConfig {
    pub method: Method,
    /// Log-probs over the legal children instead of the whole vocabulary.
    pub renormalise: bool,
    /// Whether prompt tokens see the whole prompt (`model.prompt_attention = full`) instead of their past.
    pub full_prompt: bool,
    /// Seed of every draw.
    pub seed: u64,
}

/// The largest batch a decoder takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub prompts: usize,
    /// Tokens of all prompts together.
    pub tokens: usize,
}

/// Whatever lies behind the prompts of a batch begins at one of at most so many rows ([`Capacity::beginnings`]): what is
/// made once for each of them is bounded.
const BEGINNINGS: usize = 32;

impl Capacity {
    /// Prompts are padded to a multiple of so many rows: of 64, so that slices can begin behind them, or of a 32nd of all
    /// there can be if that is more, which wastes 3% of them at most.
    pub fn grain(&self) -> usize {
        self.tokens
            .div_ceil(BEGINNINGS)
            .next_multiple_of(ALIGN_WORDS)
    }

    /// Rows that so many tokens take, and the first slot of tree nodes.
    pub fn rows(&self) -> usize {
        self.tokens.next_multiple_of(self.grain())
    }

    /// The numbers of rows that a batch can take.
    pub fn beginnings(&self) -> impl Iterator<Item = usize> + use<> {
        (self.grain()..=self.rows()).step_by(self.grain())
    }
}

/// One prompt of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    pub tokens: &'a [u32],
    /// Names the prompt in draws, so that its candidates do not depend on the rest of the batch.
    pub document: u32,
}

/// One complete SID.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its index among the catalog's SIDs.
    pub sid: u32,
    pub tokens: Vec<u32>,
    /// The sum of `level_logp`.
    pub logp: f32,
    /// V of the complete SID if it was run, else V of the last prefix that was plus eta times `logp`; 0 in beam search and
    /// sampling.
    pub value: f32,
    /// Log-prob of each token; 0 where VED left them out, because no other SID begins so.
    pub level_logp: Vec<f32>,
}

/// What became of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// Best first: by log-prob (beam search), by value (VED), in the order drawn (sampling).
    pub candidates: Vec<Candidate>,
    /// The first so many candidates were found by the search; the rest complete its prefixes.
    pub searched: usize,
    /// Backbone tokens run after prefill (the root counts 1).
    pub cost: usize,
    /// Selections of VED that ended at no expandable node.
    pub dead_ends: usize,
    /// Nodes of the tree at depth 0 ..= L.
    pub nodes_per_depth: Vec<usize>,
}
