//! Supervised fine-tuning: next-SID cross-entropy over whole histories, each token once (spec 3), until validation
//! NDCG@10 stops improving.

use super::context::{Context, Faults, Pace, Record, StepRecord, Validation, attention};
use super::engine::{Capacity, Engine, Input, Room, Targets};
use super::schedule::LearningRate;
use super::sequences::{Window, epoch_order, push_window, windows};
use crate::config::Config;
use crate::data::Dataset;
use crate::device::{ALIGN_WORDS, Buffer, Counters, Reading, Stream};
use crate::forest::{Forest, PromptAttention};
use crate::kernels::dropout::Dropout;
use crate::kernels::{fill, grad_norm, reduce};
use crate::model::Model;
use crate::model::optimiser::{LossScale, Update};
use crate::rng::{self, Rng};
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
        Self::of(context.config, context.data)
    }

    /// From settings and data.
    pub fn of(all: &Config, data: &Dataset) -> Result<Plan> {
        Self::with_batch(all, data, all.sft.batch, all.sft.accumulate)
    }

    /// As [`Plan::of`], with other steps: of `batch` documents in `parts` parts.
    pub fn with_batch(all: &Config, data: &Dataset, batch: usize, parts: usize) -> Result<Plan> {
        let config = &all.sft;
        let levels = data.catalog.levels();
        let items = match config.window {
            0 => data.max_history + 1,
            tokens => (tokens - 1) / levels,
        };
        let windows = windows(&data.train, items, attention(all));
        ensure!(
            !windows.is_empty(),
            "no training sequence is long enough: {} sequences, and fine-tuning learns the item after a history",
            data.train.len()
        );
        let batch = batch.min(windows.len());
        let steps_per_epoch = windows.len().div_ceil(batch) as u64;
        let planned = steps_per_epoch * config.epochs as u64;
        Ok(Plan {
            part: batch.div_ceil(parts),
            steps_per_epoch,
            total_steps: match config.max_steps as u64 {
                0 => planned,
                limit => planned.min(limit),
            },
            windows,
            batch,
        })
    }

    /// Every document of an epoch.
    pub fn documents(&self) -> &[Window] {
        &self.windows
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
            slots: 0,
        }
    }

    /// The epoch of a step and the order of its documents.
    fn order(&self, seed: u64, step: u64) -> (u64, Vec<u32>) {
        let epoch = step / self.steps_per_epoch;
        (epoch, epoch_order(self.windows.len(), seed, epoch as u32))
    }

    /// The documents of step `step` of the run, some of them cropped, cut into parts, given the order of its epoch.
    fn parts(&self, order: &[u32], step: u64, config: &Config) -> Vec<Vec<Window>> {
        let first = (step % self.steps_per_epoch) as usize * self.batch;
        let epoch = (step / self.steps_per_epoch) as u32;
        let share = config.sft.random_crop as f32;
        order
            .iter()
            .skip(first)
            .take(self.batch)
            .map(|&i| {
                let mut draws = Rng::new(config.seed, rng::Stream::Crop, epoch, i);
                match draws.uniform() < share {
                    true => self.windows[i as usize].cropped(&mut draws),
                    false => self.windows[i as usize],
                }
            })
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
    /// Of each part.
    rooms: Vec<Room>,
    /// The loss of each part, one aligned slot each, and their sum.
    losses: Buffer,
    loss: Buffer,
    /// Of the next step.
    pub regulariser: Regulariser,
}

/// What a step does against overfitting.
#[derive(Clone, Copy, Debug, Default)]
pub struct Regulariser {
    pub dropout: Option<Dropout>,
    /// Share of each target that is spread over the vocabulary.
    pub label_smoothing: f32,
    /// Decay of the average of the weights, if the engine keeps one, and steps that it has seen.
    pub ema: (f64, u64),
}

impl Regulariser {
    /// Of the step that follows `step` others.
    pub fn of(config: &Config, step: u64) -> Regulariser {
        let sft = &config.sft;
        Regulariser {
            dropout: (sft.dropout > 0.0).then(|| Dropout {
                rate: sft.dropout as f32,
                key: rng::key(config.seed, rng::Stream::Dropout),
                step: step as u32,
                row: 0,
            }),
            label_smoothing: sft.label_smoothing as f32,
            ema: (sft.ema, step),
        }
    }
}

/// A step whose figures are on their way.
pub struct Submitted {
    reading: Reading,
    tokens: usize,
    scaled: bool,
    pub counters: Counters,
}

impl Submitted {
    pub fn wait(self) -> Result<StepResult> {
        Ok(self.wait_timed()?.0)
    }

    /// The figures, and when they were there.
    fn wait_timed(self) -> Result<(StepResult, Instant)> {
        let (read, done) = self.reading.wait_timed()?;
        let float = |w: u32| f32::from_bits(w);
        let loss = float(read[0][0]) as f64;
        let result = StepResult {
            loss,
            grad_norm: float(read[1][0]),
            finite: loss.is_finite() && float(read[1][2]) == 1.0,
            tokens: self.tokens,
            updates: float(read[1][grad_norm::APPLIED]) as u64,
            loss_scale: self.scaled.then(|| LossScale::read(&read[1])),
        };
        Ok((result, done))
    }
}

/// What one step measured.
#[derive(Clone, Copy, Debug)]
pub struct StepResult {
    pub loss: f64,
    pub grad_norm: f32,
    pub finite: bool,
    pub tokens: usize,
    /// Updates made so far.
    pub updates: u64,
    /// The loss scale after it, where there is one.
    pub loss_scale: Option<LossScale>,
}

impl Trainer {
    /// For steps of up to `parts` parts.
    pub fn new(engine: &Engine, parts: usize) -> Result<Trainer> {
        let rooms = (0..parts).map(|_| Room::new(engine));
        Ok(Trainer {
            forest: Forest::new(),
            targets: Targets::default(),
            stream: Stream::new(),
            rooms: rooms.collect::<Result<_>>()?,
            regulariser: Regulariser::default(),
            losses: Buffer::new(engine.device(), "losses", parts * ALIGN_WORDS)?,
            loss: Buffer::new(engine.device(), "loss", ALIGN_WORDS)?,
        })
    }

    /// Uploads `parts` and records the gradient over them (mean over all their targets), then one update. Returns the
    /// tokens.
    fn load<D>(
        &mut self,
        engine: &Engine,
        parts: &[D],
        pack: impl Fn(&D, &mut Forest, &mut Targets),
        update: &Update,
    ) -> Result<usize> {
        let (mut tokens, mut inputs) = (0, Vec::with_capacity(parts.len()));
        for (part, room) in parts.iter().zip(&self.rooms) {
            self.forest.clear();
            self.targets.clear();
            pack(part, &mut self.forest, &mut self.targets);
            let dropout = self.regulariser.dropout;
            inputs.push(Input {
                dropout: dropout.map(|all| Dropout { row: tokens, ..all }),
                ..engine.upload(room, &self.forest, &self.targets)?
            });
            tokens += self.forest.len();
        }
        ensure!(
            inputs.len() == parts.len(),
            "{} parts do not fit {} rooms",
            parts.len(),
            self.rooms.len()
        );
        let mut s = std::mem::take(&mut self.stream);
        s.clear();
        self.record(&mut s, engine, &inputs, update);
        self.stream = s;
        Ok(tokens)
    }

    /// Submits a step on `parts`, all of it in one submission.
    pub fn submit<D>(
        &mut self,
        engine: &Engine,
        parts: &[D],
        pack: impl Fn(&D, &mut Forest, &mut Targets),
        update: &Update,
    ) -> Result<Submitted> {
        let device = engine.device();
        let before = device.counters();
        let tokens = self.load(engine, parts, pack, update)?;
        device.run(&self.stream)?;
        let read = [self.loss.first(1), engine.optimiser.norm()];
        let reading = device.begin_reading(&read)?;
        Ok(Submitted {
            reading,
            tokens,
            scaled: engine.optimiser.is_scaled(),
            counters: device.counters() - before,
        })
    }

    /// Makes what steps on parts of any length will need.
    pub fn prepare(&self, engine: &Engine, update: &Update) -> Result<()> {
        let mut streams = engine.lengths().map(|lengths| {
            let rooms = self.rooms.iter();
            let inputs = rooms.map(|room| Input {
                dropout: self.regulariser.dropout,
                ..engine.input(room, lengths)
            });
            let inputs: Vec<Input> = inputs.collect();
            let mut s = Stream::new();
            self.record(&mut s, engine, &inputs, update);
            s
        });
        engine.device().prepare(&mut streams)
    }

    fn record(&self, s: &mut Stream, engine: &Engine, parts: &[Input], update: &Update) {
        let lengths = || parts.iter().map(|part| part.count.max);
        let (logp, g) = (engine.head.logp.all(), engine.head.g.all());
        let (smoothing, (ema, step)) = (self.regulariser.label_smoothing, self.regulariser.ema);
        // The same in every part, and for every target.
        let weight = -1.0 / lengths().sum::<usize>() as f32;
        let most = lengths().max().unwrap_or(0);
        fill::fill_first(s, g, most, weight.to_bits());
        Model::clear(s, &engine.optimiser.gradient);
        for (number, input) in parts.iter().enumerate() {
            engine.forward_backward(s, input, smoothing);
            let loss = self.losses.slice(number * ALIGN_WORDS, 1);
            reduce::dot(s, logp, g, loss, input.count);
        }
        engine.optimiser.step(s, &engine.model.weights, update);
        engine.average(s, ema, step);
        // Losses of all parts, for the one slice the host reads.
        let (losses, sum) = (self.losses.all(), self.loss.all());
        reduce::columns(s, losses, sum, parts.len(), ALIGN_WORDS);
    }

    /// Runs a step and waits for its figures.
    pub fn step<D>(
        &mut self,
        engine: &Engine,
        parts: &[D],
        pack: impl Fn(&D, &mut Forest, &mut Targets),
        update: &Update,
    ) -> Result<StepResult> {
        self.submit(engine, parts, pack, update)?.wait()
    }
}

/// A submitted step that is not in the records yet.
struct Ahead {
    step: u64,
    epoch: f64,
    lr: f32,
    submitted: Submitted,
}

impl Ahead {
    /// Waits for the step's figures and takes note of them; its record, and whether it counts.
    fn settle(
        self,
        context: &Context,
        state: &mut State,
        (faults, pace): (&mut Faults, &mut Pace),
        find: impl FnOnce(u64) -> Result<Option<String>>,
    ) -> Result<(StepRecord, bool)> {
        let counters = self.submitted.counters;
        let (result, done) = self.submitted.wait_timed()?;
        state.updates = result.updates;
        state.loss_scale = result.loss_scale;
        let mut record = Record::default();
        let (step, checkpoints) = (self.step, &context.checkpoints);
        let counts = faults.check(
            (step, result.finite),
            state,
            checkpoints,
            &mut record,
            || find(step),
        )?;
        record
            .number("loss", result.loss)
            .number("grad_norm", result.grad_norm as f64)
            .loss_scale(result.loss_scale)
            .number("lr", self.lr as f64)
            .number("tokens", result.tokens as f64)
            .number("epoch", self.epoch)
            .number("step_time", pace.lap(done))
            .counters(counters);
        let record = StepRecord {
            stage: Stage::Sft,
            step: self.step,
            shown: vec![("loss", result.loss)],
            record,
        };
        Ok((record, counts))
    }
}

/// Runs the stage from `state` on; the engine's model ends up with the weights of the best validation.
pub fn run(
    context: &mut Context,
    engine: &Engine,
    plan: &Plan,
    mut state: State,
    validate: &mut dyn FnMut(&Model) -> Result<Validation>,
) -> Result<State> {
    let all = context.config;
    let config = &all.sft;
    let (data, attention) = (context.data, context.attention());
    let rate = LearningRate {
        schedule: config.schedule,
        peak: config.lr,
        floor: config.min_lr,
        warmup: config.warmup_steps as u64,
        total: plan.steps_per_epoch * config.epochs as u64,
    };
    let (mut epoch, mut order) = plan.order(all.seed, state.step);
    let mut trainer = Trainer::new(engine, config.accumulate)?;
    let mut prepared = false;
    let mut faults = Faults::default();
    let eval_every = match config.eval_every as u64 {
        0 => plan.steps_per_epoch,
        n => n,
    };
    let stopped = |s: &State| config.patience > 0 && s.bad_evaluations >= config.patience as u64;
    context.progress.stage("sft", state.step, plan.total_steps);
    if state.step == 0 {
        engine.reset_average()?;
    }
    engine.optimiser.resume(state.updates, state.loss_scale)?;
    let mut ahead: Option<Ahead> = None;
    let mut pace = Pace::start();
    while state.step < plan.total_steps && !stopped(&state) {
        let lr = rate.at(state.step);
        let update = Update {
            lr,
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            eps: config.adam_eps as f32,
            weight_decay: config.weight_decay as f32,
            clip_norm: config.clip_norm as f32,
        };
        if state.step / plan.steps_per_epoch != epoch {
            (epoch, order) = plan.order(all.seed, state.step);
        }
        let parts = plan.parts(&order, state.step, all);
        let pack = |part: &Vec<Window>, f: &mut Forest, t: &mut Targets| {
            for &w in part {
                let items = &data.train[w.sequence as usize];
                push_window(&data.catalog, items, w, attention, (f, t));
            }
        };
        trainer.regulariser = Regulariser::of(all, state.step);
        let before = engine.device().counters();
        let mut submitted = trainer.submit(engine, &parts, pack, &update)?;
        if !prepared {
            prepared = true;
            trainer.prepare(engine, &update)?;
            submitted.counters = engine.device().counters() - before;
        }
        state.step += 1;
        state.epoch = state.step / plan.steps_per_epoch;
        let next = Ahead {
            step: state.step,
            epoch: state.step as f64 / plan.steps_per_epoch as f64,
            lr,
            submitted,
        };
        let mut find = |step: u64| {
            let (_, order) = plan.order(all.seed, step - 1);
            let parts = plan.parts(&order, step - 1, all);
            trainer.regulariser = Regulariser::of(all, step - 1);
            trainer.load(engine, &parts, pack, &update)?;
            engine.first_not_finite(&trainer.stream)
        };
        // The step before has had all this time to finish.
        if let Some(before) = ahead.replace(next) {
            let meters = (&mut faults, &mut pace);
            let (record, _) = before.settle(context, &mut state, meters, &mut find)?;
            record.write(context, None)?;
        }
        let last = state.step == plan.total_steps;
        let evaluate = state.step.is_multiple_of(eval_every) || last;
        let every = context.config.run.checkpoint_every as u64;
        let due = every > 0 && state.step.is_multiple_of(every);
        let interrupted = context.interrupt.asked();
        if !(evaluate || due || interrupted) {
            continue;
        }
        let now = ahead.take().expect("just submitted");
        let meters = (&mut faults, &mut pace);
        let (record, counts) = now.settle(context, &mut state, meters, &mut find)?;
        let validation = match evaluate {
            true => Some(validate(engine.result())?),
            false => None,
        };
        // Before the checkpoint of the same step: a resumed run keeps the records up to it.
        record.write(context, validation.as_ref())?;
        let improved = validation.is_some_and(|v| state.note_validation(v.metric));
        // After a skipped step the checkpoint before may be the last good one.
        if (due || interrupted) && counts || improved || last || stopped(&state) {
            context.save(engine, &mut state)?;
            if interrupted {
                return Err(context.interrupt.error(Stage::Sft, state.step));
            }
        }
        pace = Pace::start();
    }
    context.progress.finish();
    if let Some(best) = context.checkpoints.best(Stage::Sft)? {
        context.restore_weights(&engine.model, &best)?;
    }
    Ok(state)
}
