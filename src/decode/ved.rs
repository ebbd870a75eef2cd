//! The rounds of value-guided search after its first tree.

use super::{DecodeModel, Decoder, Ved};
use crate::device::Stream;
use crate::kernels::ved_select::{self, ved_select};

impl Decoder {
    /// Selects, runs and scores, as often as the plan says. A prompt that is done has inactive rows from then on.
    pub(super) fn rounds(&self, s: &mut Stream, model: &dyn DecodeModel, ved: &Ved, step: u32) {
        let (on, plan) = (&self.buffers, &self.plan);
        for round in 0..plan.rounds {
            let params = ved_select::Params {
                prompts: self.prompts() as u32,
                nodes: plan.nodes as u32,
                slot_base: self.slot_base(),
                width: plan.round as u32,
                tokens_at: self.trie.tokens_at(),
                fanout: self.trie.fanout() as u32,
                levels: self.trie.levels() as u32,
                run_levels: plan.run_levels as u32,
                budget: plan.budget as u32,
                goal: plan.goal as u32,
                leaves: if ved.score_leaves {
                    u32::MAX
                } else {
                    plan.free_leaves as u32
                },
                rounds_left: (plan.rounds - round) as u32,
                first: (round == 0) as u32,
                table: plan.visits() as u32,
                key: self.key(),
                step,
                eta: ved.eta,
            };
            let inputs = [on.child_logp.all(), self.trie.words(), on.table.all()];
            ved_select(s, inputs, on.search(), params);
            let rows = self.compact(s, self.prompts() * plan.round);
            self.run_rows(s, model, (rows, plan.run_levels), 0, false);
        }
    }
}
