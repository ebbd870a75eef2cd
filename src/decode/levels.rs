//! The levels of beam search and of sampling; VED's first tree is a beam search too.

use super::{DecodeModel, Decoder, Method};
use crate::device::Stream;
use crate::kernels::beam::{self, beam};
use crate::kernels::sample::{self, sample};

impl Decoder {
    /// Grows the trees level by level to the complete SIDs, running each level that has successors or is scored; where the
    /// search settles, what is left of it to run.
    pub(super) fn levels(&self, s: &mut Stream, model: &dyn DecodeModel, step: u32) {
        let levels = self.trie.levels();
        let mut entries = 1;
        for depth in 1..=levels {
            let width = self.plan.widths[depth - 1];
            if width == 0 {
                break;
            }
            let run = depth <= self.plan.run_levels;
            self.grow(s, entries, depth, run, step);
            if run {
                let top = if depth < levels { self.top(depth) } else { 0 };
                let made = self.prompts() * width;
                let rows = match self.plan.settles {
                    true => self.compact(s, made),
                    false => made.into(),
                };
                self.run_rows(s, model, (rows, depth), top, depth == levels);
            }
            entries = width;
        }
    }

    /// Makes the nodes at `depth` from the `entries` above.
    fn grow(&self, s: &mut Stream, entries: usize, depth: usize, run: bool, step: u32) {
        let on = &self.buffers;
        let trie = self.trie.words();
        let prompts = self.prompts() as u32;
        let nodes = self.plan.nodes as u32;
        let slot_base = self.slot_base();
        let width = self.plan.widths[depth - 1] as u32;
        let tokens_at = self.trie.tokens_at();
        let (entries, run) = (entries as u32, run as u32);
        if let Method::Sample { temperature, .. } = self.config.method {
            let params = sample::Params {
                prompts,
                nodes,
                slot_base,
                width,
                tokens_at,
                entries,
                fanout: self.trie.fanout() as u32,
                run,
                key: self.key(),
                step,
                sharpness: 1.0 / temperature,
            };
            sample(s, [on.child_logp.all(), trie], on.search(), params);
        } else {
            let params = beam::Params {
                prompts,
                nodes,
                slot_base,
                width,
                tokens_at,
                top: self.top(depth - 1) as u32,
                run,
                settle: self.plan.settles as u32,
            };
            let inputs = [on.top_edge.all(), on.top_logp.all(), trie];
            beam(s, inputs, on.search(), params);
        }
    }
}
