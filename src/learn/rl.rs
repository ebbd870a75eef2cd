//! Reinforcement learning with V-STAR (spec 4 to 6): decode candidates, reward them, pack them with their prompt as one
//! tree, and move policy and value head.
//!
//! Departures from the paper, by configuration: `rl.decode = beam | sample` instead of value-guided decoding,
//! `rl.sibling_weight = 0` for plain group advantages. The two together are GRPO.

use super::context::{Context, Faults, Record, Validation};
use super::engine::{Capacity, Engine};
use super::group::Groups;
use super::judge::Judge;
use super::policy::{Batch, Policy, PolicyMetrics};
use super::schedule::LearningRate;
use crate::config::Config;
use crate::data::Dataset;
use crate::decode::search::{Decoding, Searcher};
use crate::model::Model;
use crate::model::checkpoint::{load_blocks, save_blocks};
use crate::model::optimiser::Update;
use crate::rng::{Rng, Stream};
use crate::run::State;
use anyhow::{Result, ensure};
use std::path::Path;
use std::time::Instant;

/// Where a stage ends: after a number of steps, or of decode tokens.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub steps: Option<u64>,
    pub decode_tokens: Option<u64>,
}

impl Limit {
    fn reached(&self, state: &State) -> bool {
        self.steps.is_some_and(|n| state.step >= n)
            || self.decode_tokens.is_some_and(|n| state.decode_tokens >= n)
    }

    /// Steps this comes to when each decodes `per_step` tokens.
    fn total(&self, per_step: u64) -> u64 {
        let by_tokens = self.decode_tokens.map(|n| n.div_ceil(per_step.max(1)));
        self.steps.into_iter().chain(by_tokens).min().unwrap_or(0)
    }
}

/// Prompts in one part of a step.
fn part(config: &Config) -> usize {
    config.rl.prompts.div_ceil(config.rl.accumulate)
}

/// The most a part of a step can need.
pub fn capacity(config: &Config, data: &Dataset) -> Capacity {
    let (prompts, levels) = (part(config), data.catalog.levels());
    let prompt = 1 + data.max_history * levels;
    let nodes = config.rl.group * levels;
    Capacity {
        tokens: prompts * (prompt + nodes),
        // The prompt's end and every node above the leaves.
        rows: prompts * (1 + config.rl.group * (levels - 1)),
        targets: prompts * nodes,
    }
}

/// A question drawn from the training sequences: a history and the item that followed it.
struct Question<'a> {
    history: &'a [u32],
    target: u32,
}

/// The prompts of a step: a training sequence with at least two items and a place in it, both drawn uniformly.
fn questions<'a>(
    data: &'a Dataset,
    usable: &[u32],
    count: usize,
    seed: u64,
    step: u64,
) -> Vec<Question<'a>> {
    (0..count)
        .map(|i| {
            let mut rng = Rng::new(seed, Stream::Prompts, step as u32, i as u32);
            let sequence = &data.train[usable[rng.below(usable.len())] as usize];
            let at = 1 + rng.below(sequence.len() - 1);
            Question {
                history: &sequence[at.saturating_sub(data.max_history)..at],
                target: sequence[at],
            }
        })
        .collect()
}

/// Sums over a rollout's parts.
#[derive(Default)]
struct Totals {
    rewards: Vec<f32>,
    groups: usize,
    flat_groups: usize,
    hits: usize,
    nodes: usize,
    sibling_groups: Vec<usize>,
    decode_cost: u64,
    policy: PolicyMetrics,
}

/// Runs a stage from `state` until `limit`; the engine ends up with the weights of the best validation, if there was any.
/// `origin` holds the weights of the reference model.
pub fn run(
    context: &mut Context,
    config: &Config,
    engine: &mut Engine,
    (mut state, limit, origin): (State, Limit, &Path),
    validate: &mut dyn FnMut(&Model) -> Result<Validation>,
) -> Result<State> {
    let (data, rl) = (context.data, &config.rl);
    let stage = state.stage;
    let usable: Vec<u32> = (0..data.train.len() as u32)
        .filter(|&i| data.train[i as usize].len() >= 2)
        .collect();
    ensure!(
        !usable.is_empty(),
        "reinforcement learning needs training sequences of two items or more"
    );
    let reference = match rl.kl_beta > 0.0 {
        false => None,
        true => Some(reference_model(context, engine, &state, origin)?),
    };
    let mut searcher = Searcher::new(
        &engine.model,
        data,
        &Decoding::rollout(config, data, part(config)),
    )?;
    let mut policy = Policy::new(engine, config, part(config), data.catalog.levels())?;
    let judge = Judge::new(config, data)?;
    let total = limit.total((rl.prompts * searcher.budget()) as u64);
    let rate = LearningRate {
        schedule: rl.schedule,
        peak: rl.lr,
        floor: rl.min_lr,
        warmup: rl.warmup_steps as u64,
        // A stage that ends by tokens has the whole schedule too; `rl.max_steps` cuts one off.
        total: match limit.decode_tokens {
            Some(_) => total,
            None => rl.steps as u64,
        },
    };
    let mut faults = Faults::default();
    let stopped = |s: &State| rl.patience > 0 && s.bad_evaluations >= rl.patience as u64;
    context.progress.stage(stage.name(), state.step, total);
    if state.step == 0 && state.best_metric.is_none() {
        let before = validate(&engine.model)?;
        let mut record = Record::default();
        context
            .metrics
            .write(stage, 0, &record.validation(&before).0)?;
    }
    while !limit.reached(&state) && !stopped(&state) {
        let started = Instant::now();
        let lr = rate.at(state.step);
        let asked = questions(data, &usable, rl.prompts, config.seed, state.step);
        let parts = asked.chunks(part(config));
        let (batches, mut totals) = roll_out(
            context,
            config,
            engine,
            parts,
            &mut searcher,
            &judge,
            state.step,
        )?;
        state.decode_tokens += totals.decode_cost;
        let mut norm = 0.0;
        let mut finite = true;
        for number in 0..rl.updates {
            let applied = state.step * rl.updates as u64 + number as u64 - state.skipped_steps;
            let update = Update {
                lr,
                beta1: rl.beta1 as f32,
                beta2: rl.beta2 as f32,
                eps: rl.adam_eps as f32,
                weight_decay: rl.weight_decay as f32,
                clip_norm: rl.clip_norm as f32,
                step: (applied + 1) as u32,
            };
            let value_only = state.step < rl.value_warmup_steps as u64;
            let flags = (number == 0, value_only);
            let result = policy.update(engine, reference.as_ref(), &batches, &update, flags)?;
            totals.policy = result.metrics;
            norm = result.grad_norm;
            finite &= result.finite;
        }
        state.step += 1;
        let counts = faults.check(finite, &mut state, &context.checkpoints)?;
        if let Some(reference) = &reference
            && rl.ref_sync_steps > 0
            && state.step.is_multiple_of(rl.ref_sync_steps as u64)
        {
            mix(reference, &engine.model, rl.ref_mix as f32)?;
        }
        let mut record = totals.record();
        record
            .number("grad_norm", norm as f64)
            .number("lr", lr as f64)
            .number("decode_tokens", state.decode_tokens as f64)
            .number("decode_cost", totals.decode_cost as f64 / rl.prompts as f64)
            .number("step_time", started.elapsed().as_secs_f64());
        let mut shown = vec![("reward", totals.mean_reward())];
        let last = limit.reached(&state);
        let mut improved = false;
        if rl.eval_every > 0 && state.step.is_multiple_of(rl.eval_every as u64) || last {
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
            context.metrics.write(stage, state.step, &record.0)?;
            context.progress.step(state.step, &shown);
        }
        let every = context.config.run.checkpoint_every as u64;
        // After a skipped step the checkpoint before may be the last good one.
        let due = counts && every > 0 && state.step.is_multiple_of(every);
        if due || improved || last || stopped(&state) {
            save(
                context,
                engine,
                &mut state,
                reference.as_ref(),
                rl.ref_sync_steps > 0,
            )?;
        }
        if improved {
            context.checkpoints.mark_best(stage, state.step)?;
        }
    }
    context.progress.finish();
    if let Some(best) = context.checkpoints.best(stage)? {
        context.restore_weights(&engine.model, &best)?;
    }
    Ok(state)
}

/// Decodes and rewards the questions of a step, part by part, and packs each part's candidates as trees.
fn roll_out<'q>(
    context: &Context,
    config: &Config,
    engine: &Engine,
    parts: impl Iterator<Item = &'q [Question<'q>]>,
    searcher: &mut Searcher,
    judge: &Judge,
    step: u64,
) -> Result<(Vec<Batch>, Totals)> {
    let (catalog, group) = (&context.data.catalog, config.rl.group);
    let levels = catalog.levels();
    let (mut batches, mut totals) = (Vec::new(), Totals::default());
    let mut first = 0;
    for asked in parts {
        let histories: Vec<&[u32]> = asked.iter().map(|q| q.history).collect();
        let decoded = searcher.search(&engine.model, catalog, &histories, step as u32, first)?;
        first += asked.len() as u32;
        let mut groups = Groups::default();
        let mut rewarded = Vec::with_capacity(asked.len());
        for (question, found) in asked.iter().zip(&decoded) {
            let prompt = catalog.prompt(question.history);
            let candidates = found.candidates.iter().map(|c| c.tokens.as_slice());
            groups.push(&prompt, candidates, group, levels, context.attention());
            rewarded.push(judge.reward(question.target, &found.candidates));
            totals.decode_cost += found.cost as u64;
        }
        totals.note(&groups, &rewarded, levels);
        batches.push(Batch::new(groups, &rewarded, group, levels));
    }
    Ok((batches, totals))
}

const REFERENCE: &str = "reference.safetensors";

/// The frozen policy of the KL term: the fine-tuned weights, or, where it moves, those of the checkpoint.
fn reference_model(
    context: &Context,
    engine: &Engine,
    state: &State,
    origin: &Path,
) -> Result<Model> {
    let model = engine.model.same_shape()?;
    let moved = match state.step {
        0 => None,
        _ => context.checkpoints.latest()?.map(|c| c.join(REFERENCE)),
    };
    match moved.filter(|path| path.is_file()) {
        Some(path) => model.weights.write(&load_blocks(&model.layout, &path)?)?,
        None => context.restore_weights(&model, origin)?,
    }
    Ok(model)
}

/// `reference = mix policy + (1 - mix) reference`.
fn mix(reference: &Model, policy: &Model, mix: f32) -> Result<()> {
    let mut blocks = reference.weights.read()?;
    for (block, new) in blocks.iter_mut().zip(policy.weights.read()?) {
        for (r, p) in block.iter_mut().zip(new) {
            *r += mix * (p - *r);
        }
    }
    reference.weights.write(&blocks)
}

/// Saves a checkpoint, with the reference where it moves.
fn save(
    context: &mut Context,
    engine: &Engine,
    state: &mut State,
    reference: Option<&Model>,
    moves: bool,
) -> Result<()> {
    let moved = reference.filter(|_| moves);
    context.save_with(engine, state, |folder| match moved {
        Some(r) => save_blocks(&r.layout, &r.weights.read()?, &folder.join(REFERENCE)),
        None => Ok(()),
    })
}

impl Totals {
    fn note(&mut self, groups: &Groups, rewarded: &[super::judge::Rewarded], levels: usize) {
        for r in rewarded {
            self.groups += 1;
            self.flat_groups += r.is_flat() as usize;
            self.hits += r.hit as usize;
            self.rewards.extend_from_slice(&r.rewards);
        }
        self.nodes += groups.nodes();
        self.sibling_groups.resize(levels, 0);
        for (sum, n) in self
            .sibling_groups
            .iter_mut()
            .zip(groups.usable_sibling_groups(levels))
        {
            *sum += n;
        }
    }

    fn mean_reward(&self) -> f64 {
        self.rewards.iter().map(|&r| r as f64).sum::<f64>() / self.rewards.len().max(1) as f64
    }

    fn record(&self) -> Record {
        let mean = self.mean_reward();
        let n = self.rewards.len().max(2) as f64;
        let square: f64 = self
            .rewards
            .iter()
            .map(|&r| (r as f64 - mean).powi(2))
            .sum();
        let mut record = Record::default();
        record
            .number("reward", mean)
            .number("reward_std", (square / (n - 1.0)).sqrt())
            .number(
                "frac_reward_zero_std",
                self.flat_groups as f64 / self.groups as f64,
            )
            .number("frac_hit", self.hits as f64 / self.groups as f64)
            .number("nodes", self.nodes as f64 / self.groups as f64);
        for (depth, &n) in self.sibling_groups.iter().enumerate() {
            record.number(&format!("sibling_groups/{}", depth + 1), n as f64);
        }
        self.policy.record(&mut record);
        record
    }
}
