//! One policy update: reference and policy log-probs over the packed trees, advantages, the objective, the value head's
//! temporal-difference loss, backward, AdamW. Recorded without a look at the rollout: how many nodes its trees have stays
//! on the device.

use super::context::Record;
use super::engine::Engine;
use super::mixing::Mixing;
use super::rollout::{Packed, Rollout};
use crate::config::{Config, Loss, ScaleRewards};
use crate::device::{ALIGN_WORDS, Buffer, Precision, Slice, Stream};
use crate::kernels::advantage::{self, Scaling};
use crate::kernels::objective::{self, LogProbs};
use crate::kernels::tree::FIGURES;
use crate::kernels::{gather, grad_norm, reduce, td};
use crate::model::activations::Activations;
use crate::model::optimiser::{LossScale, Update};
use crate::model::{Model, Weights};
use anyhow::Result;

/// Figures of one step.
#[derive(Clone, Debug, Default)]
pub struct StepFigures {
    pub objective: objective::Metrics,
    pub value_loss: f32,
    /// Of fine-tuning that is mixed in, times its weight.
    pub sft_loss: f32,
    pub entropy: f32,
    pub grad_norm: f32,
    /// Updates made so far in this stage; one whose gradient is not finite is not made.
    pub updates: u64,
    /// The loss scale after it, where there is one.
    pub loss_scale: Option<LossScale>,
    pub candidates: f64,
    pub reward: f64,
    pub reward_std: f64,
    /// Prompts whose candidates all got the same reward, and those with the target among the candidates.
    pub flat: f64,
    pub hits: f64,
    pub nodes: f64,
    /// Backbone tokens of the search.
    pub decode_cost: u64,
    /// Groups of at least two siblings, by level.
    pub sibling_groups: Vec<f64>,
}

impl StepFigures {
    /// Adds what a metrics record says of a step of `prompts` prompts.
    pub fn record(&self, prompts: usize, record: &mut Record) {
        let (o, prompts) = (&self.objective, prompts as f64);
        record
            .number("reward", self.reward)
            .number("reward_std", self.reward_std)
            .number("frac_reward_zero_std", self.flat / prompts)
            .number("frac_hit", self.hits / prompts)
            .number("nodes", self.nodes / prompts);
        for (level, &groups) in self.sibling_groups.iter().enumerate() {
            record.number(&format!("sibling_groups/{}", level + 1), groups);
        }
        record
            .number("loss", o.loss as f64)
            .number("policy_loss", o.policy as f64)
            .number("sibling_loss", o.sibling as f64)
            .number("value_loss", self.value_loss as f64)
            .number("sft_loss", self.sft_loss as f64)
            .number("kl", o.kl as f64)
            .number("entropy", self.entropy as f64)
            .number("clip_ratio", (o.clip_low + o.clip_high) as f64)
            .number("clip_ratio/low_mean", o.clip_low as f64)
            .number("clip_ratio/high_mean", o.clip_high as f64)
            .number("ratio", o.ratio as f64)
            .number("grad_norm", self.grad_norm as f64)
            .number("decode_cost", self.decode_cost as f64 / prompts);
    }

    /// Whether the losses are numbers.
    pub fn is_finite(&self) -> bool {
        (self.objective.loss + self.value_loss + self.sft_loss).is_finite()
    }
}

/// Log-probs a part keeps between the updates of one rollout.
struct Kept {
    old: Buffer,
    reference: Option<Buffer>,
}

/// What a part leaves in the metrics, one aligned slot each.
#[derive(Clone, Copy)]
enum Slot {
    /// The rollout's [`FIGURES`] and levels.
    Rollout,
    /// The objective's sums.
    Objective,
    ValueLoss,
    /// The sum of the scored rows' entropies.
    Entropy,
    /// The loss of fine-tuning that is mixed in; the first part's alone is used.
    Mixed,
}
const SLOTS: usize = 5;

/// Device buffers of the objective.
pub struct Policy {
    parts: Vec<Kept>,
    /// [parts, SLOTS, 64], and their sum over the parts: all that the host reads of a step, beside the norm.
    metrics: Buffer,
    sums: Buffer,
    advantages: Buffer,
    node_reward: Buffer,
    terms: Buffer,
    /// [T] by row, and [K] by node.
    row_values: Buffer,
    values: Buffer,
    row_d_values: Buffer,
    d_values: Buffer,
    /// With the loss scale, where there is one.
    scaled_d_values: Buffer,
    td_target: Buffer,
    td_terms: Buffer,
    /// Where the reference runs: the searcher's buffers, with a cache of its own.
    other: Option<Activations>,
    hyper: objective::Hyper,
    scaling: Scaling,
    td: td::Hyper,
    detach: bool,
    /// Whether there is a loss scale.
    scaled: bool,
    /// Whether the value head is trained at all.
    value: bool,
    levels: usize,
}

impl Policy {
    pub fn new(engine: &Engine, config: &Config, rollout: &Rollout) -> Result<Policy> {
        let (rl, device) = (&config.rl, engine.device());
        let (levels, parts) = (rollout.levels(), rollout.parts());
        let candidates = super::rollout::part(config) * rollout.group();
        let capacity = engine.capacity();
        let (tokens, nodes) = (capacity.tokens, capacity.targets);
        let buffer = |label, words| Buffer::new(device, label, words);
        let kept = (0..parts).map(|_| {
            Ok(Kept {
                old: buffer("rollout log-probs", nodes)?,
                reference: (rl.kl_beta > 0.0)
                    .then(|| buffer("reference log-probs", nodes))
                    .transpose()?,
            })
        });
        let scratch = rollout.searcher.scratch();
        let other =
            (rl.kl_beta > 0.0).then(|| scratch.with_own_cache(&engine.model, scratch.tokens));
        Ok(Policy {
            parts: kept.collect::<Result<Vec<_>>>()?,
            metrics: buffer("step figures by part", parts * SLOTS * ALIGN_WORDS)?,
            sums: buffer("step figures", SLOTS * ALIGN_WORDS)?,
            advantages: buffer("advantages", candidates + nodes)?,
            node_reward: buffer("nodes' rewards", nodes)?,
            terms: buffer("objective terms", nodes * objective::TERMS)?,
            row_values: buffer("values by row", tokens)?,
            values: buffer("values", nodes)?,
            row_d_values: buffer("value gradient by row", tokens)?,
            d_values: buffer("value gradient", nodes)?,
            scaled_d_values: match engine.model.precision {
                Precision::F32 => buffer("scaled value gradient", 1)?,
                Precision::F16 => buffer("scaled value gradient", nodes)?,
            },
            td_target: buffer("value targets", candidates * levels)?,
            td_terms: buffer("value-loss terms", nodes)?,
            other: other.transpose()?,
            hyper: objective::Hyper {
                loss: match rl.loss {
                    Loss::Grpo => objective::Loss::Grpo,
                    Loss::DrGrpo => objective::Loss::DrGrpo,
                    Loss::Dapo => objective::Loss::Dapo,
                    Loss::Gspo => objective::Loss::Gspo,
                },
                clip_low: rl.clip_low as f32,
                clip_high: rl.clip_high as f32,
                beta: rl.kl_beta as f32,
                sibling_weight: rl.sibling_weight as f32,
                mask_zero_variance: rl.mask_zero_variance,
                prompts: 0.into(),
                candidates: 0.into(),
            },
            scaling: match rl.scale_rewards {
                ScaleRewards::Group => Scaling::Group,
                ScaleRewards::Batch => Scaling::Batch,
                ScaleRewards::None => Scaling::None,
            },
            td: td::Hyper {
                gamma: config.value.gamma as f32,
                weight: rl.value_weight as f32,
                prompts: 0,
            },
            detach: config.value.detach,
            scaled: engine.optimiser.is_scaled(),
            value: rl.value_weight > 0.0,
            levels,
        })
    }

    fn slot(&self, part: usize, slot: Slot) -> Slice {
        let at = (part * SLOTS + slot as usize) * ALIGN_WORDS;
        self.metrics.slice(at, ALIGN_WORDS)
    }

    /// Where the rollout of part `number` leaves its figures.
    pub fn rollout_figures(&self, number: usize) -> Slice {
        self.slot(number, Slot::Rollout)
            .first(FIGURES + self.levels)
    }

    /// Records one update over all parts of a rollout. In the rollout's `first` update the policy is the one that drew the
    /// candidates: its log-probs, and the reference's, are kept for the later ones, and, where there is one part, the
    /// passes over the prompts go on from the decoder's. With `value_only` the backbone rests.
    pub fn record(
        &mut self,
        s: &mut Stream,
        engine: &Engine,
        rollout: &Rollout,
        reference: Option<&Model>,
        (update, mixing): (&Update, Option<&Mixing>),
        (first, value_only): (bool, bool),
    ) {
        let (parts, prompts) = (rollout.uploaded().len(), rollout.prompts());
        self.td.prompts = prompts;
        self.hyper.prompts = match self.hyper.mask_zero_variance {
            true => rollout.varied(),
            false => prompts.into(),
        };
        self.hyper.candidates = rollout.present();
        Model::clear(s, &engine.optimiser.gradient);
        for number in 0..parts {
            let packed = rollout.packed(number);
            // How far the passes have got already: backbone, value head's block.
            let run = match first && parts == 1 {
                true if rollout.is_valued() => [packed.tree_begin; 2],
                true => [packed.tree_begin, 0],
                false => [0; 2],
            };
            let flags = (first, value_only);
            self.record_part(s, engine, (number, &packed), reference, run, flags);
        }
        if let Some(mixing) = mixing.filter(|_| !value_only) {
            mixing.record(s, engine, self.slot(0, Slot::Mixed).first(1));
        }
        // A resting backbone must not decay either.
        let weight_decay = if value_only { 0.0 } else { update.weight_decay };
        let update = Update {
            weight_decay,
            ..*update
        };
        engine.optimiser.step(s, &engine.model.weights, &update);
        let columns = SLOTS * ALIGN_WORDS;
        reduce::columns(s, self.metrics.all(), self.sums.all(), parts, columns);
    }

    /// Records the passes over one part.
    fn record_part(
        &self,
        s: &mut Stream,
        engine: &Engine,
        (number, packed): (usize, &Packed),
        reference: Option<&Model>,
        [run, value_run]: [usize; 2],
        (first, value_only): (bool, bool),
    ) {
        let (kept, input, shape) = (&self.parts[number], &packed.input, packed.shape);
        if first && let (Some(model), Some(logp)) = (reference, &kept.reference) {
            let acts = self.other.as_ref().expect("buffers of the reference");
            engine.forward_other(s, model, acts, input, logp.all());
        }
        // In the first update old and new log-probs are the same numbers: one slice is both.
        let logp = if first {
            kept.old.all()
        } else {
            engine.head.logp.all()
        };
        engine.forward_from(s, input, run, logp);
        let entropy = engine.head.entropy.all();
        let sum = self.slot(number, Slot::Entropy).first(1);
        reduce::columns(s, entropy, sum, input.scored, 1);
        let (cand_node, node_info) = (packed.cand_node, packed.node_info);
        advantage::advantage(
            s,
            packed.rewards,
            cand_node,
            node_info,
            self.advantages.all(),
            self.node_reward.all(),
            shape,
            self.scaling,
        );
        objective::objective(
            s,
            LogProbs {
                policy: logp,
                old: kept.old.all(),
                reference: kept.reference.as_ref().map_or(logp, Buffer::all),
            },
            self.advantages.all(),
            cand_node,
            node_info,
            objective::Outputs {
                g: engine.head.g.all(),
                terms: self.terms.all(),
                sums: self.slot(number, Slot::Objective).first(objective::TERMS),
            },
            shape,
            self.hyper,
        );
        if !value_only {
            engine.backward_head(s, input);
        }
        if self.value {
            let loss = self.slot(number, Slot::ValueLoss).first(1);
            s.forest = input.trees;
            self.value(s, engine, packed, value_run, loss);
            let gradient: &Weights = &engine.optimiser.gradient;
            let detach = self.detach || value_only;
            let asked = (packed.tree_begin, self.row_d_values.all());
            let pass = engine.pass(input);
            let (model, acts) = (&engine.model, &engine.acts);
            model.value_backward(s, &pass, acts, asked, gradient, detach);
        }
        if !value_only {
            engine.backward_backbone(s, input);
        }
    }

    /// Records the values of the trees' nodes, the temporal-difference loss and its gradient by row; the block's keys are
    /// there for the rows before `run`.
    fn value(&self, s: &mut Stream, engine: &Engine, packed: &Packed, run: usize, loss: Slice) {
        let (model, acts) = (&engine.model, &engine.acts);
        let pass = engine.pass(&packed.input);
        model.value_keys(s, &pass.starting(run), &acts.value_block);
        let trees = pass.starting(packed.tree_begin);
        let rows = self.row_values.all();
        model.value(s, &trees, &acts.value_block, &acts.value, rows);
        let (values, nodes) = (self.values.all(), packed.shape.nodes);
        gather::gather_rows(s, rows, packed.node_row, values, nodes, 1);
        let outputs = td::Outputs {
            target: self.td_target.all(),
            dvalue: self.d_values.all(),
            terms: self.td_terms.all(),
            loss,
        };
        td::td(
            s,
            values,
            packed.steps,
            packed.cand_node,
            packed.node_info,
            outputs,
            packed.shape,
            self.td,
        );
        let (by_node, scaled) = (self.d_values.all(), self.scaled_d_values.all());
        let by_node = engine.optimiser.scaled(s, by_node, scaled, nodes);
        let by_row = self.row_d_values.all();
        crate::kernels::fill::fill_f32(s, by_row, 0.0);
        gather::scatter_add_rows(s, by_node, packed.node_row, by_row, nodes, 1);
    }

    /// All that the host reads of a step, once it has run: about 1 KiB.
    pub fn figures(&self, engine: &Engine) -> [Slice; 2] {
        [self.sums.all(), engine.optimiser.norm()]
    }

    /// What the words of [`Policy::figures`] say.
    pub fn parse(&self, words: &[Vec<u32>]) -> StepFigures {
        let float = |w: u32| f32::from_bits(w);
        let slot = |slot: Slot| -> Vec<f32> {
            let words = &words[0][slot as usize * ALIGN_WORDS..][..ALIGN_WORDS];
            words.iter().copied().map(float).collect()
        };
        let (rollout, sums) = (slot(Slot::Rollout), slot(Slot::Objective));
        let [candidates, reward, squares] = [0, 1, 2].map(|i| rollout[i] as f64);
        let mean = reward / candidates.max(1.0);
        let variance = (squares - reward * mean) / (candidates - 1.0).max(1.0);
        StepFigures {
            objective: objective::Metrics::from_sums(&sums, self.hyper.sibling_weight),
            value_loss: if self.value {
                slot(Slot::ValueLoss)[0]
            } else {
                0.0
            },
            sft_loss: slot(Slot::Mixed)[0],
            entropy: slot(Slot::Entropy)[0] / rollout[7].max(1.0),
            grad_norm: float(words[1][0]),
            updates: float(words[1][grad_norm::APPLIED]) as u64,
            loss_scale: self.scaled.then(|| LossScale::read(&words[1])),
            candidates,
            reward: mean,
            reward_std: variance.max(0.0).sqrt(),
            flat: rollout[3] as f64,
            hits: rollout[4] as f64,
            nodes: rollout[5] as f64,
            decode_cost: rollout[6] as u64,
            sibling_groups: rollout[FIGURES..][..self.levels]
                .iter()
                .map(|&g| g as f64)
                .collect(),
        }
    }
}
