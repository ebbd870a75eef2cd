//! Reinforcement learning with V-STAR (spec 4 to 6): decode candidates, reward them, pack them with their prompt as one
//! tree, and move policy and value head.
//!
//! Departures from the paper, by configuration: `rl.decode = beam | sample` instead of value-guided decoding,
//! `rl.sibling_weight = 0` for plain group advantages. The two together are GRPO. Beyond the paper: questions that nobody
//! knows the answer of (`rl.open_prompts`), fine-tuning mixed in (`rl.sft_weight`), and rewards that need no target
//! (`reward.repeat`, `reward.teacher`), which is what helps on held-out data where fine-tuning has learnt what the targets
//! can teach (docs/results.md).

use super::context::{Context, Faults, Pace, Record, StepRecord, Validation};
use super::engine::{Engine, follow};
use super::mixing::Mixing;
use super::policy::{Policy, StepFigures};
use super::questions::{Question, Questions};
use super::rollout::{self, Rollout};
use super::schedule::{LearningRate, Limit};
use crate::config::Config;
use crate::data::Dataset;
use crate::device::{Counters, Reading, Stream};
use crate::model::Model;
use crate::model::checkpoint::{load_blocks, save_blocks};
use crate::model::optimiser::Update;
use crate::run::State;
use anyhow::Result;
use std::path::Path;
use std::time::Instant;

/// One step of reinforcement learning on the device: rollout and updates, submitted without a look at what comes out.
pub struct Stepper {
    pub rollout: Rollout,
    pub policy: Policy,
    mixing: Option<Mixing>,
    stream: Stream,
    /// Decay of the average of the weights.
    ema: f64,
}

/// A step whose figures are on their way.
pub struct Submitted {
    reading: Reading,
    pub counters: Counters,
}

impl Stepper {
    /// For the engine's model. Errors: as [`Rollout::new`].
    pub fn new(engine: &Engine, config: &Config, data: &Dataset) -> Result<Stepper> {
        let rollout = Rollout::new(engine, config, data)?;
        let policy = Policy::new(engine, config, &rollout)?;
        Ok(Stepper {
            rollout,
            policy,
            mixing: Mixing::new(engine, config, data)?,
            stream: Stream::new(),
            ema: config.rl.ema,
        })
    }

    /// Uploads the questions `asked`, in parts of `part`, and records a step on them: decoding, rewards, `updates` updates.
    /// `step` numbers it in draws.
    fn load(
        &mut self,
        engine: &Engine,
        data: &Dataset,
        (asked, part, step): (&[Question], usize, u32),
        reference: Option<&Model>,
        updates: (usize, &Update, bool),
    ) -> Result<()> {
        self.rollout.upload(data, asked, part)?;
        if let Some(mixing) = &mut self.mixing {
            mixing.upload(engine, data, step)?;
        }
        let mut s = std::mem::take(&mut self.stream);
        s.clear();
        self.record(&mut s, engine, step, reference, updates);
        self.stream = s;
        Ok(())
    }

    /// Submits a step, as [`Stepper::load`] has it, all of it in one submission.
    pub fn submit(
        &mut self,
        engine: &Engine,
        data: &Dataset,
        questions: (&[Question], usize, u32),
        reference: Option<&Model>,
        updates: (usize, &Update, bool),
    ) -> Result<Submitted> {
        let device = engine.device();
        let before = device.counters();
        self.load(engine, data, questions, reference, updates)?;
        device.run(&self.stream)?;
        let reading = device.begin_reading(&self.policy.figures(engine))?;
        Ok(Submitted {
            reading,
            counters: device.counters() - before,
        })
    }

    /// Makes what steps on other questions, as many as were asked last, will need: the trees behind the prompts may begin
    /// elsewhere, and a backbone that rests now will not rest for ever.
    pub fn prepare(
        &mut self,
        engine: &Engine,
        reference: Option<&Model>,
        (updates, update): (usize, &Update),
    ) -> Result<()> {
        let uploaded = self.rollout.uploaded().to_vec();
        let longest = engine.lengths().next().expect("a length");
        let lengths = engine.lengths().chain(std::iter::repeat(longest));
        // Every beginning, and every length of what is mixed in; the two do not depend on each other.
        let beginnings: Vec<usize> = self.rollout.beginnings().collect();
        let first = *beginnings.first().expect("a beginning");
        let count = match &self.mixing {
            None => beginnings.len(),
            Some(_) => beginnings.len().max(engine.lengths().count()),
        };
        let beginnings = beginnings.into_iter().chain(std::iter::repeat(first));
        let mut streams = beginnings.zip(lengths).take(count).map(|(rows, lengths)| {
            let parts = uploaded.iter().map(|part| part.taking(rows));
            self.rollout.suppose(parts.collect());
            if let Some(mixing) = &mut self.mixing {
                mixing.suppose(engine, lengths);
            }
            let mut s = Stream::new();
            self.record(&mut s, engine, 0, reference, (updates, update, false));
            s
        });
        let prepared = engine.device().prepare(&mut streams);
        drop(streams);
        self.rollout.suppose(uploaded);
        prepared
    }

    fn record(
        &mut self,
        s: &mut Stream,
        engine: &Engine,
        step: u32,
        reference: Option<&Model>,
        (updates, update, value_only): (usize, &Update, bool),
    ) {
        for number in 0..self.rollout.uploaded().len() {
            let sums = self.policy.rollout_figures(number);
            self.rollout.record(s, engine, (number, step), sums);
        }
        for number in 0..updates {
            let flags = (number == 0, value_only);
            let with = (update, self.mixing.as_ref());
            self.policy
                .record(s, engine, &self.rollout, reference, with, flags);
        }
        engine.average(s, self.ema, step as u64);
    }

    /// Waits for a step's figures.
    pub fn wait(&self, submitted: Submitted) -> Result<StepFigures> {
        Ok(self.wait_timed(submitted)?.0)
    }

    /// The figures, and when they were there.
    fn wait_timed(&self, submitted: Submitted) -> Result<(StepFigures, Instant)> {
        let (words, done) = submitted.reading.wait_timed()?;
        Ok((self.policy.parse(&words), done))
    }
}

/// A submitted step that is not in the records yet.
struct Ahead {
    step: u64,
    lr: f32,
    prompts: usize,
    updates: u64,
    submitted: Submitted,
}

impl Ahead {
    /// Waits for the step's figures and takes note of them; its record, and whether it counts.
    fn settle(
        self,
        stepper: &mut Stepper,
        context: &Context,
        state: &mut State,
        (faults, pace): (&mut Faults, &mut Pace),
        find: impl FnOnce(&mut Stepper, u64) -> Result<Option<String>>,
    ) -> Result<(StepRecord, bool)> {
        let counters = self.submitted.counters;
        let (figures, done) = stepper.wait_timed(self.submitted)?;
        let finite = figures.is_finite() && figures.updates == state.updates + self.updates;
        state.updates = figures.updates;
        state.loss_scale = figures.loss_scale;
        state.decode_tokens += figures.decode_cost;
        state.last_decode_tokens = figures.decode_cost;
        let mut record = Record::default();
        let (step, checkpoints) = (self.step, &context.checkpoints);
        let counts = faults.check((step, finite), state, checkpoints, &mut record, || {
            find(stepper, step)
        })?;
        figures.record(self.prompts, &mut record);
        record
            .loss_scale(figures.loss_scale)
            .number("lr", self.lr as f64)
            .number("decode_tokens", state.decode_tokens as f64)
            .number("step_time", pace.lap(done))
            .counters(counters);
        let record = StepRecord {
            stage: state.stage,
            step: self.step,
            shown: vec![("reward", figures.reward)],
            record,
        };
        Ok((record, counts))
    }
}

/// Runs a stage from `state` until `limit`; the engine ends up with the weights of the best validation, if there was any.
/// `origin` holds the weights of the reference model.
pub fn run(
    context: &mut Context,
    config: &Config,
    engine: &Engine,
    (mut state, limit, origin): (State, Limit, &Path),
    validate: &mut dyn FnMut(&Model) -> Result<Validation>,
) -> Result<State> {
    let (data, rl) = (context.data, &config.rl);
    let stage = state.stage;
    let questions = Questions::new(data, config)?;
    let reference = match rl.kl_beta > 0.0 {
        false => None,
        true => Some(reference_model(context, engine, &state, origin)?),
    };
    let moving = reference.as_ref().filter(|_| rl.ref_sync_steps > 0);
    let mixing = moving.map(|reference| mixing(reference, &engine.model, rl.ref_mix as f32));
    let mut stepper = Stepper::new(engine, config, data)?;
    let mut prepared = false;
    let per_step = (rl.prompts * stepper.rollout.searcher.budget()) as u64;
    let total = |bought: Option<u64>| limit.steps.into_iter().chain(bought).min().unwrap_or(0);
    let mut faults = Faults::default();
    let stopped = |s: &State| rl.patience > 0 && s.bad_evaluations >= rl.patience as u64;
    let bought = limit.bought((state.decode_tokens, state.step), per_step);
    context
        .progress
        .stage(stage.name(), state.step, total(bought));
    if state.step == 0 && state.best_metric.is_none() {
        engine.reset_average()?;
        let before = validate(&engine.model)?;
        let mut record = Record::default();
        context.metrics.write(
            stage,
            0,
            &record.number("decode_tokens", 0.0).validation(&before).0,
        )?;
    }
    engine.optimiser.resume(state.updates, state.loss_scale)?;
    let mut ahead: Option<Ahead> = None;
    let mut pace = Pace::start();
    while !limit.reached(&state) && !stopped(&state) {
        // What the last step but one had spent: the same whether the last is still under way or not.
        let known = match ahead {
            Some(_) => state.decode_tokens,
            None => state.decode_tokens - state.last_decode_tokens,
        };
        let bought = limit.bought((known, state.step.saturating_sub(1)), per_step);
        context.progress.expect(total(bought));
        let rate = LearningRate {
            schedule: rl.schedule,
            peak: rl.lr,
            floor: rl.min_lr,
            warmup: rl.warmup_steps as u64,
            // A stage that ends by tokens has the whole schedule too; `rl.max_steps` cuts one off.
            total: bought.unwrap_or(rl.steps as u64),
        };
        let lr = rate.at(state.step);
        let asked = questions.draw(rl.prompts, state.step);
        let update = Update {
            lr,
            beta1: rl.beta1 as f32,
            beta2: rl.beta2 as f32,
            eps: rl.adam_eps as f32,
            weight_decay: rl.weight_decay as f32,
            clip_norm: rl.clip_norm as f32,
        };
        let value_only = state.step < rl.value_warmup_steps as u64;
        let before = engine.device().counters();
        let mut submitted = stepper.submit(
            engine,
            data,
            (&asked, rollout::part(config), state.step as u32),
            reference.as_ref(),
            (rl.updates, &update, value_only),
        )?;
        if !prepared {
            prepared = true;
            stepper.prepare(engine, reference.as_ref(), (rl.updates, &update))?;
            engine.device().prepare(&mut mixing.iter().cloned())?;
            submitted.counters = engine.device().counters() - before;
        }
        state.step += 1;
        if let Some(mixing) = &mixing
            && state.step.is_multiple_of(rl.ref_sync_steps as u64)
        {
            engine.device().run(mixing)?;
        }
        let next = Ahead {
            step: state.step,
            lr,
            prompts: asked.len(),
            updates: rl.updates as u64,
            submitted,
        };
        let find = |stepper: &mut Stepper, step: u64| {
            let asked = questions.draw(rl.prompts, step - 1);
            let questions = (&asked[..], rollout::part(config), step as u32 - 1);
            let updates = (rl.updates, &update, value_only);
            stepper.load(engine, data, questions, reference.as_ref(), updates)?;
            engine.first_not_finite(&stepper.stream)
        };
        // The step before has had all this time to finish.
        if let Some(before) = ahead.replace(next) {
            let meters = (&mut faults, &mut pace);
            let (record, _) = before.settle(&mut stepper, context, &mut state, meters, find)?;
            record.write(context, None)?;
        }
        let evaluate = rl.eval_every > 0 && state.step.is_multiple_of(rl.eval_every as u64);
        let every = context.config.run.checkpoint_every as u64;
        let due = every > 0 && state.step.is_multiple_of(every);
        // What is under way may be the last step, or spend what tokens there are.
        let interrupted = context.interrupt.asked();
        if !(evaluate || due || interrupted || limit.reached(&state.after(per_step))) {
            continue;
        }
        let now = ahead.take().expect("just submitted");
        let meters = (&mut faults, &mut pace);
        let (record, counts) = now.settle(&mut stepper, context, &mut state, meters, find)?;
        let last = limit.reached(&state);
        let validation = match evaluate || last {
            true => Some(validate(engine.result())?),
            false => None,
        };
        // Before the checkpoint of the same step: a resumed run keeps the records up to it.
        record.write(context, validation.as_ref())?;
        let improved = validation.is_some_and(|v| state.note_validation(v.metric));
        // After a skipped step the checkpoint before may be the last good one.
        if (due || interrupted) && counts || improved || last || stopped(&state) {
            save(context, engine, &mut state, moving)?;
            if interrupted {
                return Err(context.interrupt.error(stage, state.step));
            }
        }
        pace = Pace::start();
    }
    context.progress.finish();
    if let Some(best) = context.checkpoints.best(stage)? {
        context.restore_weights(&engine.model, &best)?;
    }
    Ok(state)
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
fn mixing(reference: &Model, policy: &Model, mix: f32) -> Stream {
    let mut s = Stream::new();
    follow(&mut s, &policy.weights, &reference.weights, mix);
    s
}

/// Saves a checkpoint, with the reference if it moves.
fn save(
    context: &mut Context,
    engine: &Engine,
    state: &mut State,
    moved: Option<&Model>,
) -> Result<()> {
    context.save_with(engine, state, |folder| match moved {
        Some(r) => save_blocks(&r.layout, &r.weights.read()?, &folder.join(REFERENCE)),
        None => Ok(()),
    })
}
