//! Supervised fine-tuning: next-SID cross-entropy over whole histories, each token once (spec 3), until validation
//! NDCG@10 stops improving.

use super::context::{Context, Faults, Record, Validation};
use super::engine::{Capacity, Engine, Targets};
use super::schedule::LearningRate;
use super::sequences::{Window, epoch_order, push_window, windows};
use crate::device::{ALIGN_WORDS, Buffer, Stream};
use crate::forest::{Forest, PromptAttention};
use crate::kernels::reduce;
use crate::model::Model;
use crate::model::optimiser::Update;
use crate::run::{Stage, State};
use anyhow::{Result, ensure};
use std::time::Instant;

/// The documents of an epoch and how they are cut into steps.
pub struct Plan {
    windows: Vec<Window>,
    /// Documents per step, and per part of a step.
    batch: usize,
    part: usize,
    pub steps_per_epoch: u64,
    pub total_steps: u64,
}

impl Plan {
    pub fn new(context: &Context) -> Result<Plan> {
        let (config, data) = (&context.config.sft, context.data);
        let levels = data.catalog.levels();
        let items = match config.window {
            0 => data.max_history + 1,
            tokens => (tokens - 1) / levels,
        };
        let windows = windows(&data.train, items, context.attention());
        ensure!(
            !windows.is_empty(),
            "no training sequence is long enough: {} sequences, and fine-tuning learns the item after a history",
            data.train.len()
        );
        let batch = config.batch.min(windows.len());
        let steps_per_epoch = windows.len().div_ceil(batch) as u64;
        let planned = steps_per_epoch * config.epochs as u64;
        Ok(Plan {
            part: batch.div_ceil(config.accumulate),
            steps_per_epoch,
            total_steps: match config.max_steps as u64 {
                0 => planned,
                limit => planned.min(limit),
            },
            windows,
            batch,
        })
    }

    /// Tokens of the longest document.
    pub fn longest(&self, levels: usize) -> usize {
        let items = self.windows.iter().map(|w| (w.end - w.begin) as usize);
        1 + items.max().unwrap_or(0) * levels
    }

    /// What the largest part of a step can need.
    pub fn capacity(&self, levels: usize, attention: PromptAttention) -> Capacity {
        let mut lengths: Vec<(usize, usize)> = self
            .windows
            .iter()
            .map(|w| {
                let tokens = 1 + (w.end - w.begin) as usize * levels;
                match attention {
                    PromptAttention::Causal => (tokens - 1, (w.end - w.fresh) as usize * levels),
                    PromptAttention::Full => (tokens - 1, levels),
                }
            })
            .collect();
        let mut largest = |key: fn(&(usize, usize)) -> usize| {
            lengths.sort_by_key(|l| std::cmp::Reverse(key(l)));
            lengths.iter().take(self.part).map(key).sum::<usize>()
        };
        let rows = largest(|l| l.1);
        Capacity {
            tokens: largest(|l| l.0),
            rows,
            targets: rows,
        }
    }

    /// The epoch of a step and the order of its documents.
    fn order(&self, seed: u64, step: u64) -> (u64, Vec<u32>) {
        let epoch = step / self.steps_per_epoch;
        (epoch, epoch_order(self.windows.len(), seed, epoch as u32))
    }

    /// The documents of step `step` of the run, cut into parts, given the order of its epoch.
    fn parts(&self, order: &[u32], step: u64) -> Vec<Vec<Window>> {
        let first = (step % self.steps_per_epoch) as usize * self.batch;
        order
            .iter()
            .skip(first)
            .take(self.batch)
            .map(|&i| self.windows[i as usize])
            .collect::<Vec<_>>()
            .chunks(self.part)
            .map(<[Window]>::to_vec)
            .collect()
    }
}

/// Buffers and scratch of a fine-tuning step.
pub struct Trainer {
    forest: Forest,
    targets: Targets,
    stream: Stream,
    /// The loss of each part, one aligned slot each.
    losses: Buffer,
}

/// What one step measured.
#[derive(Clone, Copy, Debug)]
pub struct StepResult {
    pub loss: f64,
    pub grad_norm: f32,
    pub finite: bool,
    pub tokens: usize,
}

impl Trainer {
    pub fn new(engine: &Engine, parts: usize) -> Result<Trainer> {
        Ok(Trainer {
            forest: Forest::new(),
            targets: Targets::default(),
            stream: Stream::new(),
            losses: Buffer::new(engine.device(), "losses", parts.max(1) * ALIGN_WORDS)?,
        })
    }

    /// Gradient over `parts` (mean over all their targets), then one update.
    pub fn step<D>(
        &mut self,
        engine: &mut Engine,
        parts: &[D],
        pack: impl Fn(&D, &mut Forest, &mut Targets),
        update: &Update,
    ) -> Result<StepResult> {
        let mut counts = Vec::with_capacity(parts.len());
        for part in parts {
            self.pack(part, &pack);
            counts.push(self.targets.len());
        }
        let total: usize = counts.iter().sum();
        let (mut tokens, device) = (0, engine.device().clone());
        for (i, part) in parts.iter().enumerate() {
            self.pack(part, &pack);
            tokens += self.forest.len();
            engine.upload(&self.forest, &self.targets)?;
            engine
                .head
                .g
                .write_f32(&vec![-1.0 / total as f32; self.targets.len()])?;
            let s = &mut self.stream;
            s.clear();
            if i == 0 {
                Model::clear(s, &engine.optimiser.gradient);
            }
            let logp = engine.head.logp.all();
            engine.forward(s, &engine.model, logp);
            let loss = self.losses.slice(i * ALIGN_WORDS, 1);
            reduce::dot(s, logp, engine.head.g.all(), loss, self.targets.len());
            engine.backward_head(s);
            engine.backward_backbone(s);
            if i + 1 == parts.len() {
                engine.optimiser.step(s, &engine.model.weights, update);
            }
            device.run(s)?;
        }
        let read = device.read(&[self.losses.all(), engine.optimiser.norm()])?;
        let float = |w: u32| f32::from_bits(w);
        let loss: f64 = (0..parts.len())
            .map(|i| float(read[0][i * ALIGN_WORDS]) as f64)
            .sum();
        Ok(StepResult {
            loss,
            grad_norm: float(read[1][0]),
            finite: loss.is_finite() && float(read[1][2]) == 1.0,
            tokens,
        })
    }

    fn pack<D>(&mut self, part: &D, pack: impl Fn(&D, &mut Forest, &mut Targets)) {
        self.forest.clear();
        self.targets.clear();
        pack(part, &mut self.forest, &mut self.targets);
    }
}

/// Runs the stage from `state` on; the engine's model ends up with the weights of the best validation.
pub fn run(
    context: &mut Context,
    engine: &mut Engine,
    plan: &Plan,
    mut state: State,
    validate: &mut dyn FnMut(&Model) -> Result<Validation>,
) -> Result<State> {
    let config = &context.config.sft;
    let (data, attention) = (context.data, context.attention());
    let rate = LearningRate {
        schedule: config.schedule,
        peak: config.lr,
        floor: config.min_lr,
        warmup: config.warmup_steps as u64,
        total: plan.steps_per_epoch * config.epochs as u64,
    };
    let (mut epoch, mut order) = plan.order(context.config.seed, state.step);
    let mut trainer = Trainer::new(engine, config.accumulate)?;
    let mut faults = Faults::default();
    let eval_every = match config.eval_every as u64 {
        0 => plan.steps_per_epoch,
        n => n,
    };
    let stopped = |s: &State| config.patience > 0 && s.bad_evaluations >= config.patience as u64;
    context.progress.stage("sft", state.step, plan.total_steps);
    while state.step < plan.total_steps && !stopped(&state) {
        let started = Instant::now();
        let lr = rate.at(state.step);
        let update = Update {
            lr,
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            eps: config.adam_eps as f32,
            weight_decay: config.weight_decay as f32,
            clip_norm: config.clip_norm as f32,
            step: (state.step - state.skipped_steps + 1) as u32,
        };
        if state.step / plan.steps_per_epoch != epoch {
            (epoch, order) = plan.order(context.config.seed, state.step);
        }
        let parts = plan.parts(&order, state.step);
        let pack = |part: &Vec<Window>, f: &mut Forest, t: &mut Targets| {
            for &w in part {
                let items = &data.train[w.sequence as usize];
                push_window(&data.catalog, items, w, attention, (f, t));
            }
        };
        let result = trainer.step(engine, &parts, pack, &update)?;
        state.step += 1;
        state.epoch = state.step / plan.steps_per_epoch;
        let counts = faults.check(result.finite, &mut state, &context.checkpoints)?;
        let mut record = Record::default();
        record
            .number("loss", result.loss)
            .number("grad_norm", result.grad_norm as f64)
            .number("lr", lr as f64)
            .number("tokens", result.tokens as f64)
            .number("epoch", state.step as f64 / plan.steps_per_epoch as f64)
            .number("step_time", started.elapsed().as_secs_f64());
        let mut shown = vec![("loss", result.loss)];
        let last = state.step == plan.total_steps;
        let mut improved = false;
        if state.step.is_multiple_of(eval_every) || last {
            let validation = validate(&engine.model)?;
            record.validation(&validation);
            shown.extend([("hr@10", validation.hr10), ("ndcg@10", validation.ndcg10)]);
            improved = state.note_validation(validation.metric);
        }
        if state
            .step
            .is_multiple_of(context.config.run.log_every as u64)
            || last
        {
            // Before the checkpoint of the same step: a resumed run keeps the records up to it.
            context.metrics.write(Stage::Sft, state.step, &record.0)?;
            context.progress.step(state.step, &shown);
        }
        let every = context.config.run.checkpoint_every as u64;
        // After a skipped step the checkpoint before may be the last good one.
        let due = counts && every > 0 && state.step.is_multiple_of(every);
        if due || improved || last || stopped(&state) {
            context.save(engine, &mut state)?;
        }
        if improved {
            context.checkpoints.mark_best(Stage::Sft, state.step)?;
        }
    }
    context.progress.finish();
    if let Some(best) = context.checkpoints.best(Stage::Sft)? {
        context.restore_weights(&engine.model, &best)?;
    }
    Ok(state)
}
