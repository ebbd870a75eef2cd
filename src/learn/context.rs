//! What the stages of a run share: settings, data, the run folder, progress.

use super::engine::Engine;
use crate::config::Config;
use crate::data::Dataset;
use crate::device::{Counters, DeviceRef};
use crate::forest::PromptAttention;
use crate::model::Model;
use crate::model::checkpoint::{Init, load_blocks, save_blocks};
use crate::model::optimiser::LossScale;
use crate::run::atomic_write;
use crate::run::{Checkpoints, Interrupt, Metrics, Progress, RunFolder, Stage, State};
use anyhow::{Result, bail};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Steps in a row with a loss or gradient that is not finite, after which a run stops (spec 9).
const MAX_SKIPPED_IN_A_ROW: u64 = 3;

pub struct Context<'a> {
    pub config: &'a Config,
    pub data: &'a Dataset,
    pub folder: &'a RunFolder,
    pub checkpoints: Checkpoints,
    pub metrics: Metrics,
    pub progress: Progress,
    pub interrupt: Interrupt,
    /// When this process began, and the seconds of the run before it.
    pub started: Instant,
    pub elapsed_before: f64,
}

/// Figures of one validation.
#[derive(Clone, Debug, PartialEq)]
pub struct Validation {
    pub hr10: f64,
    pub ndcg10: f64,
    /// HR@10 weighted by the targets' worth.
    pub value_hr10: f64,
    /// Share of all SIDs in anyone's top ten.
    pub coverage10: f64,
    /// [L] share of users whose top ten holds the target's first 1, 2, .. codes.
    pub prefix_hit10: Vec<f64>,
    /// What the run is after: NDCG@10, weighted by worth where the reward is.
    pub metric: f64,
}

/// What prompt tokens see under these settings.
pub fn attention(config: &Config) -> PromptAttention {
    match config.model.prompt_attention {
        crate::config::PromptAttention::Causal => PromptAttention::Causal,
        crate::config::PromptAttention::Full => PromptAttention::Full,
    }
}

impl<'a> Context<'a> {
    /// In `folder`, of which this process has taken hold, and the checkpoint to go on from, if there is one.
    pub fn open(
        config: &'a Config,
        data: &'a Dataset,
        folder: &'a RunFolder,
        interrupt: Interrupt,
    ) -> Result<(Context<'a>, Option<PathBuf>)> {
        let checkpoints = folder.checkpoints(config.run.keep_checkpoints)?;
        let latest = checkpoints.latest()?;
        let state = latest.as_deref().map(State::load).transpose()?;
        let context = Context {
            config,
            data,
            folder,
            checkpoints,
            metrics: folder.metrics(state.as_ref())?,
            progress: Progress::new(),
            interrupt,
            started: Instant::now(),
            elapsed_before: state.map_or(0.0, |state| state.elapsed_seconds),
        };
        Ok((context, latest))
    }

    pub fn attention(&self) -> PromptAttention {
        attention(self.config)
    }

    /// Wall-clock seconds of the run so far.
    pub fn seconds(&self) -> f64 {
        self.elapsed_before + self.started.elapsed().as_secs_f64()
    }

    /// Saves model, optimiser and state.
    pub fn save(&mut self, engine: &Engine, state: &mut State) -> Result<()> {
        self.save_with(engine, state, |_| Ok(()))
    }

    /// As [`Context::save`], with what `more` writes into the checkpoint's folder.
    pub fn save_with(
        &mut self,
        engine: &Engine,
        state: &mut State,
        more: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        state.elapsed_seconds = self.seconds();
        state.catalog = Some(self.data.catalog.fingerprint());
        self.checkpoints.save(state, |folder| {
            engine.result().save(folder)?;
            let (layout, optimiser) = (engine.layout(), &engine.optimiser);
            if engine.averaged.is_some() {
                let trained = engine.model.weights.read()?;
                save_blocks(layout, &trained, &folder.join(TRAINED))?;
            }
            let moments = [
                (FIRST_MOMENT, &optimiser.first_moment),
                (SECOND_MOMENT, &optimiser.second_moment),
            ];
            for (name, moment) in moments {
                save_blocks(layout, &moment.read()?, &folder.join(name))?;
            }
            let choices = engine.device().choices();
            if !choices.0.is_empty() {
                atomic_write(&folder.join(CHOICES), &serde_json::to_vec_pretty(&choices)?)?;
            }
            more(folder)
        })?;
        Ok(())
    }

    /// What tensors that a checkpoint lacks are made from.
    pub fn init(&self) -> Init {
        Init {
            seed: self.config.seed,
            std: self.config.model.init_std as f32,
        }
    }

    /// Puts a checkpoint's weights into a model of the same shape.
    pub fn restore_weights(&self, model: &Model, checkpoint: &Path) -> Result<()> {
        model.restore(checkpoint, self.init())
    }

    /// Puts a checkpoint's weights and moments into the engine.
    pub fn restore(&self, engine: &Engine, checkpoint: &Path) -> Result<()> {
        self.restore_weights(engine.result(), checkpoint)?;
        if engine.averaged.is_some() {
            let trained = load_blocks(engine.layout(), &checkpoint.join(TRAINED))?;
            engine.model.weights.write(&trained)?;
        }
        let optimiser = &engine.optimiser;
        let moments = [
            (FIRST_MOMENT, &optimiser.first_moment),
            (SECOND_MOMENT, &optimiser.second_moment),
        ];
        for (name, moment) in moments {
            moment.write(&load_blocks(engine.layout(), &checkpoint.join(name))?)?;
        }
        Ok(())
    }
}

/// The forms of kernels that a GPU run has chosen: others may add in another order.
const CHOICES: &str = "tuning.json";

/// Makes the device take the forms that the run took until `checkpoint`. One without them, or with ones that this adapter
/// lacks, costs time and bits, not the run.
pub fn restore_choices(device: &DeviceRef, checkpoint: &Path) {
    let kept = std::fs::read(checkpoint.join(CHOICES));
    if let Some(choices) = kept
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
    {
        device.choose(&choices);
    }
}

/// The weights under training, where `model.safetensors` has their average.
const TRAINED: &str = "trained.safetensors";
const FIRST_MOMENT: &str = "first_moment.safetensors";
const SECOND_MOMENT: &str = "second_moment.safetensors";

/// In the record of a step that was left out: where the first number that was not finite came from.
const NOT_FINITE: &str = "not_finite";

/// Watches for steps that were skipped because something was not finite.
#[derive(Default)]
pub struct Faults {
    in_a_row: u64,
    /// Where the first of them came from.
    cause: Option<String>,
}

impl Faults {
    /// Takes note of step `step` (from 1), which left the loss scale in `state`; true if it counts. What a lower
    /// loss scale would not have saved is looked into by `find`, for the record, until it is found. Errors: too many such in
    /// a row.
    pub fn check(
        &mut self,
        (step, finite): (u64, bool),
        state: &mut State,
        checkpoints: &Checkpoints,
        record: &mut Record,
        find: impl FnOnce() -> Result<Option<String>>,
    ) -> Result<bool> {
        if finite {
            self.in_a_row = 0;
            return Ok(true);
        }
        state.skipped_steps += 1;
        if state.loss_scale.is_some_and(|scale| scale.factor > 1.0) {
            return Ok(false);
        }
        self.in_a_row += 1;
        if self.in_a_row == 1 {
            self.cause = None;
        }
        if self.cause.is_none() {
            self.cause = find()?;
        }
        // The step after it had been made when it was repeated.
        let cause = self.cause.as_deref();
        let cause = cause.unwrap_or("all was finite when the step was repeated");
        record.0.insert(NOT_FINITE.into(), cause.into());
        if self.in_a_row >= MAX_SKIPPED_IN_A_ROW {
            let last = match checkpoints.latest()? {
                Some(path) => format!("the last good checkpoint is {}", path.display()),
                None => "no checkpoint was written yet".into(),
            };
            bail!(
                "{} step {step}: loss or gradient not finite in {MAX_SKIPPED_IN_A_ROW} steps in a row ({cause}): lower the \
                 learning rate ({last})",
                state.stage.name()
            );
        }
        Ok(false)
    }
}

/// The record of one step, before it is written.
pub struct StepRecord {
    pub stage: Stage,
    pub step: u64,
    pub record: Record,
    /// What the progress line shows.
    pub shown: Vec<(&'static str, f64)>,
}

impl StepRecord {
    /// Writes it, with the figures of a validation if there was one, and shows the step; only every so many steps
    /// (`run.log_every`) where there was none.
    pub fn write(mut self, context: &mut Context, validation: Option<&Validation>) -> Result<()> {
        if let Some(v) = validation {
            self.record.validation(v);
            self.shown
                .extend([("hr@10", v.hr10), ("ndcg@10", v.ndcg10)]);
        }
        if let Some(cause) = self.record.0.get(NOT_FINITE).and_then(Value::as_str) {
            let (stage, step) = (self.stage.name(), self.step);
            let note = format!("{stage} step {step} left out, not finite: {cause}");
            context.progress.note(&note);
        }
        let every = context.config.run.log_every as u64;
        if self.step.is_multiple_of(every) || validation.is_some() {
            context
                .metrics
                .write(self.stage, self.step, &self.record.0)?;
            context.progress.step(self.step, &self.shown);
        }
        Ok(())
    }
}

/// Seconds from when one step's figures were there to the next's, without what the host does in between.
pub struct Pace(Instant);

impl Pace {
    pub fn start() -> Self {
        Pace(Instant::now())
    }

    /// Seconds from the last mark to `now`, where it is moved.
    pub fn lap(&mut self, now: Instant) -> f64 {
        let seconds = now.saturating_duration_since(self.0).as_secs_f64();
        self.0 = now;
        seconds
    }
}

/// A metrics record under construction.
#[derive(Default)]
pub struct Record(pub Map<String, Value>);

impl Record {
    /// Adds a number; one that is not finite is written as null.
    pub fn number(&mut self, key: &str, value: f64) -> &mut Self {
        self.0.insert(key.into(), Value::from(value));
        self
    }

    /// The loss scale, where there is one.
    pub fn loss_scale(&mut self, scale: Option<LossScale>) -> &mut Self {
        match scale {
            Some(scale) => self.number("loss_scale", scale.factor as f64),
            None => self,
        }
    }

    /// What a step asked of the device.
    pub fn counters(&mut self, c: Counters) -> &mut Self {
        let numbers = [
            ("submissions", c.submissions),
            ("dispatches", c.dispatches),
            ("bytes_uploaded", c.bytes_uploaded),
            ("bytes_read_back", c.bytes_read_back),
            ("pipelines_created", c.pipelines_created),
            ("bind_groups_created", c.bind_groups_created),
        ];
        for (name, number) in numbers {
            self.0.insert(format!("device/{name}"), number.into());
        }
        self
    }

    pub fn validation(&mut self, v: &Validation) -> &mut Self {
        self.number("hr@10", v.hr10)
            .number("ndcg@10", v.ndcg10)
            .number("value_hr@10", v.value_hr10)
            .number("coverage@10", v.coverage10);
        for (level, &hit) in (1..).zip(&v.prefix_hit10) {
            self.number(&format!("prefix_hit@10/{level}"), hit);
        }
        self
    }
}
