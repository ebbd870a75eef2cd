//! One policy update: reference and policy log-probs over the packed trees, advantages, the objective, the value head's
//! temporal-difference loss, backward, AdamW.

use super::context::Record;
use super::engine::Engine;
use super::group::Groups;
use super::judge::Rewarded;
use crate::config::{Config, Loss, ScaleRewards};
use crate::device::{ALIGN_WORDS, Buffer, Slice, Stream};
use crate::kernels::advantage::{self, Scaling};
use crate::kernels::tree_tables::Shape;
use crate::kernels::objective::{self, LogProbs};
use crate::kernels::{reduce, td};
use crate::model::Model;
use crate::model::optimiser::Update;
use crate::model::value_head::At;
use anyhow::Result;

/// The candidates of one part of a step with their rewards.
pub struct Batch {
    groups: Groups,
    /// [B, G] and [B, G, L]; 0 for absent candidates.
    rewards: Vec<f32>,
    step_rewards: Vec<f32>,
    shape: Shape,
    present: usize,
    /// Prompts whose rewards are not all equal.
    varied: usize,
}

impl Batch {
    pub fn new(groups: Groups, rewarded: &[Rewarded], group: usize, levels: usize) -> Batch {
        let prompts = rewarded.len();
        let mut rewards = vec![0.0; prompts * group];
        let mut step_rewards = vec![0.0; prompts * group * levels];
        for (b, r) in rewarded.iter().enumerate() {
            rewards[b * group..][..r.rewards.len()].copy_from_slice(&r.rewards);
            step_rewards[b * group * levels..][..r.steps.len()].copy_from_slice(&r.steps);
        }
        Batch {
            shape: Shape {
                prompts,
                group,
                levels,
                nodes: groups.nodes(),
            },
            present: rewarded.iter().map(|r| r.rewards.len()).sum(),
            varied: rewarded.iter().filter(|r| !r.is_flat()).count(),
            groups,
            rewards,
            step_rewards,
        }
    }
}

/// Figures of one update.
#[derive(Clone, Copy, Debug, Default)]
pub struct PolicyMetrics {
    pub objective: objective::Metrics,
    pub value_loss: f32,
    pub entropy: f32,
}

impl PolicyMetrics {
    pub fn record(&self, record: &mut Record) {
        let o = &self.objective;
        record
            .number("loss", o.loss as f64)
            .number("policy_loss", o.policy as f64)
            .number("sibling_loss", o.sibling as f64)
            .number("value_loss", self.value_loss as f64)
            .number("kl", o.kl as f64)
            .number("entropy", self.entropy as f64)
            .number("clip_ratio", (o.clip_low + o.clip_high) as f64)
            .number("clip_ratio/low_mean", o.clip_low as f64)
            .number("clip_ratio/high_mean", o.clip_high as f64)
            .number("ratio", o.ratio as f64);
    }
}

/// What an update leaves for the host.
pub struct UpdateResult {
    pub metrics: PolicyMetrics,
    pub grad_norm: f32,
    pub finite: bool,
}

/// Log-probs a part keeps between the updates of one rollout.
struct Kept {
    old: Buffer,
    reference: Option<Buffer>,
    /// The objective's sums, the value loss, the sum of entropies: one aligned slot each.
    metrics: Buffer,
}

impl Kept {
    fn slot(&self, i: usize, words: usize) -> Slice {
        self.metrics.slice(i * ALIGN_WORDS, words)
    }
}

/// Device buffers of the objective.
pub struct Policy {
    parts: Vec<Kept>,
    rewards: Buffer,
    step_rewards: Buffer,
    cand_node: Buffer,
    node_info: Buffer,
    node_row: Buffer,
    advantages: Buffer,
    node_reward: Buffer,
    terms: Buffer,
    values: Buffer,
    d_value: Buffer,
    td_target: Buffer,
    td_terms: Buffer,
    stream: Stream,
    hyper: objective::Hyper,
    scaling: Scaling,
    td: td::Hyper,
    detach: bool,
    /// Whether the value head is trained at all.
    value: bool,
}

impl Policy {
    /// For parts of up to `prompts` prompts.
    pub fn new(engine: &Engine, config: &Config, prompts: usize, levels: usize) -> Result<Policy> {
        let rl = &config.rl;
        let candidates = prompts * rl.group;
        let nodes = candidates * levels;
        let device = engine.device();
        let buffer = |label, words| Buffer::new(device, label, words);
        let parts = (0..rl.accumulate)
            .map(|_| {
                Ok(Kept {
                    old: buffer("rollout log-probs", nodes)?,
                    reference: (rl.kl_beta > 0.0)
                        .then(|| buffer("reference log-probs", nodes))
                        .transpose()?,
                    metrics: buffer("update figures", 3 * ALIGN_WORDS)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Policy {
            parts,
            rewards: buffer("rewards", candidates)?,
            step_rewards: buffer("step rewards", nodes)?,
            cand_node: buffer("candidates' nodes", nodes)?,
            node_info: buffer("nodes", 4 * nodes)?,
            node_row: buffer("nodes' rows", nodes)?,
            advantages: buffer("advantages", candidates + nodes)?,
            node_reward: buffer("nodes' rewards", nodes)?,
            terms: buffer("objective terms", nodes * objective::TERMS)?,
            values: buffer("values", nodes)?,
            d_value: buffer("value gradient", nodes)?,
            td_target: buffer("value targets", nodes)?,
            td_terms: buffer("value-loss terms", nodes)?,
            stream: Stream::new(),
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
                prompts: 0,
                candidates: 0,
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
            value: rl.value_weight > 0.0,
        })
    }

    /// One update over all parts of a rollout. In the rollout's `first` update the policy is the one that drew the
    /// candidates: its log-probs, and the reference's, are kept for the later ones. With `value_only` the backbone rests.
    pub fn update(
        &mut self,
        engine: &mut Engine,
        reference: Option<&Model>,
        batches: &[Batch],
        update: &Update,
        (first, value_only): (bool, bool),
    ) -> Result<UpdateResult> {
        let device = engine.device().clone();
        let prompts = batches.iter().map(|b| b.shape.prompts).sum();
        self.td.prompts = prompts;
        self.hyper.prompts = match self.hyper.mask_zero_variance {
            true => batches.iter().map(|b| b.varied).sum(),
            false => prompts,
        };
        self.hyper.candidates = batches.iter().map(|b| b.present).sum();
        for (i, batch) in batches.iter().enumerate() {
            self.upload(engine, batch)?;
            let mut s = std::mem::take(&mut self.stream);
            s.clear();
            if i == 0 {
                Model::clear(&mut s, &engine.optimiser.gradient);
            }
            self.record(&mut s, engine, (i, batch), reference, (first, value_only));
            if i + 1 == batches.len() {
                // A resting backbone must not decay either.
                let weight_decay = if value_only { 0.0 } else { update.weight_decay };
                let update = Update {
                    weight_decay,
                    ..*update
                };
                engine.optimiser.step(&mut s, &engine.model.weights, &update);
            }
            let ran = device.run(&s);
            self.stream = s;
            ran?;
        }
        self.read(engine, batches)
    }

    fn upload(&self, engine: &mut Engine, batch: &Batch) -> Result<()> {
        let groups = &batch.groups;
        engine.upload(&groups.forest, &groups.targets)?;
        self.rewards.write_f32(&batch.rewards)?;
        self.step_rewards.write_f32(&batch.step_rewards)?;
        self.cand_node.write_u32(&groups.cand_node)?;
        self.node_info
            .write_u32(bytemuck::cast_slice(&groups.node_info))?;
        self.node_row.write_u32(&groups.node_row)
    }

    /// Records the passes over one part.
    fn record(
        &self,
        s: &mut Stream,
        engine: &Engine,
        (i, batch): (usize, &Batch),
        reference: Option<&Model>,
        (first, value_only): (bool, bool),
    ) {
        let (kept, shape) = (&self.parts[i], batch.shape);
        if first && let (Some(model), Some(logp)) = (reference, &kept.reference) {
            engine.forward(s, model, logp.all());
        }
        // In the first update old and new log-probs are the same numbers: one slice is both.
        let logp = if first {
            kept.old.all()
        } else {
            engine.head.logp.all()
        };
        engine.forward(s, &engine.model, logp);
        reduce::columns(s, engine.head.entropy.all(), kept.slot(2, 1), engine.sizes.rows, 1);
        let (cand_node, node_info) = (self.cand_node.all(), self.node_info.all());
        advantage::advantage(
            s,
            self.rewards.all(),
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
                sums: kept.slot(0, objective::TERMS),
            },
            shape,
            self.hyper,
        );
        if !value_only {
            engine.backward_head(s);
        }
        if self.value {
            let rows = (self.node_row.all(), shape.nodes);
            let (pass, at) = (engine.pass(), At::Rows(rows.0, rows.1));
            let model = &engine.model;
            model.value(s, &pass, &engine.acts, at, self.values.all());
            let outputs = td::Outputs {
                target: self.td_target.all(),
                dvalue: self.d_value.all(),
                terms: self.td_terms.all(),
                loss: kept.slot(1, 1),
            };
            let step_rewards = self.step_rewards.all();
            td::td(s, self.values.all(), step_rewards, cand_node, node_info, outputs, shape, self.td);
            let gradient = &engine.optimiser.gradient;
            let detach = self.detach || value_only;
            let d_value = self.d_value.all();
            model.value_backward(s, &pass, &engine.acts, rows, d_value, gradient, detach);
        }
        if !value_only {
            engine.backward_backbone(s);
        }
    }

    fn read(&self, engine: &Engine, batches: &[Batch]) -> Result<UpdateResult> {
        let mut slices: Vec<Slice> = vec![engine.optimiser.norm()];
        slices.extend(self.parts[..batches.len()].iter().map(|p| p.metrics.all()));
        let read = engine.device().read(&slices)?;
        let float = |w: u32| f32::from_bits(w);
        let mut sums = [0.0f32; objective::TERMS];
        let (mut value_loss, mut entropy, mut rows) = (0.0, 0.0, 0);
        for (words, batch) in read[1..].iter().zip(batches) {
            for (sum, &w) in sums.iter_mut().zip(words) {
                *sum += float(w);
            }
            value_loss += float(words[ALIGN_WORDS]);
            entropy += float(words[2 * ALIGN_WORDS]);
            rows += batch.groups.targets.rows.len();
        }
        let metrics = PolicyMetrics {
            objective: objective::Metrics::from_sums(&sums, self.hyper.sibling_weight),
            value_loss: if self.value { value_loss } else { 0.0 },
            entropy: entropy / rows.max(1) as f32,
        };
        let loss = metrics.objective.loss + metrics.value_loss;
        Ok(UpdateResult {
            metrics,
            grad_norm: float(read[0][0]),
            finite: loss.is_finite() && float(read[0][2]) == 1.0,
        })
    }
}
