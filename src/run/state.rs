//! Where a run stands: what a checkpoint holds beside the weights and the optimiser.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::disk::atomic_write;
use crate::model::optimiser::LossScale;

/// The stages of a run, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Supervised fine-tuning.
    Sft,
    /// Reinforcement learning.
    Rl,
    /// The baseline of the final table: GRPO with beam search at the same number of decode tokens.
    Grpo,
    /// The final evaluation.
    Eval,
}

impl Stage {
    /// Every stage, first to last.
    pub const ALL: [Stage; 4] = [Stage::Sft, Stage::Rl, Stage::Grpo, Stage::Eval];

    /// The name in checkpoints and metrics: `sft`, `rl`, `grpo` or `eval`.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Sft => "sft",
            Stage::Rl => "rl",
            Stage::Grpo => "grpo",
            Stage::Eval => "eval",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Stage> {
        Stage::ALL.into_iter().find(|stage| stage.name() == name)
    }
}

/// Largest count of a state: what JSON's readers and f64 hold exactly.
const MAX_COUNT: u64 = 1 << 53;

/// Everything a resumed run needs that is not a tensor. Random draws need no state of their own:
/// they are functions of (seed, stream, step, document, index).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub stage: Stage,
    /// Steps of this stage that are done, skipped ones included.
    pub step: u64,
    /// Passes over the training data of this stage that are done.
    pub epoch: u64,
    /// The best validation metric of this stage; none before the first validation.
    pub best_metric: Option<f64>,
    /// The step it was found at.
    #[serde(default)]
    pub best_step: Option<u64>,
    /// Validations since the best one.
    pub bad_evaluations: u64,
    /// Backbone tokens run by decoding so far.
    pub decode_tokens: u64,
    /// Those of the last step.
    #[serde(default)]
    pub last_decode_tokens: u64,
    /// Steps left out for a loss or gradient that was not finite.
    pub skipped_steps: u64,
    /// Updates of the weights that were made in this stage: AdamW's count.
    pub updates: u64,
    /// The loss scale, where `precision` asks for one.
    #[serde(default)]
    pub loss_scale: Option<LossScale>,
    /// Wall-clock seconds of training in all stages, resumed parts added up.
    pub elapsed_seconds: f64,
    /// The fingerprint of the items and semantic IDs that were trained on.
    #[serde(default)]
    pub catalog: Option<String>,
    /// What a stage needs beyond the above.
    pub extra: Map<String, Value>,
}

impl State {
    const FILE: &str = "state.json";

    /// The beginning of a stage.
    pub fn start(stage: Stage) -> State {
        State {
            stage,
            step: 0,
            epoch: 0,
            best_metric: None,
            best_step: None,
            bad_evaluations: 0,
            decode_tokens: 0,
            last_decode_tokens: 0,
            skipped_steps: 0,
            updates: 0,
            loss_scale: None,
            elapsed_seconds: 0.0,
            catalog: None,
            extra: Map::new(),
        }
    }

    /// As it may be after a step that is under way and spends at most so many tokens.
    pub fn after(&self, decode_tokens: u64) -> State {
        State {
            decode_tokens: self.decode_tokens + decode_tokens,
            ..self.clone()
        }
    }

    /// Takes note of a validation; true if it is the best so far.
    pub fn note_validation(&mut self, metric: f64) -> bool {
        let improved = self.best_metric.is_none_or(|best| metric > best);
        if improved {
            self.best_metric = Some(metric);
            self.best_step = Some(self.step);
            self.bad_evaluations = 0;
        } else {
            self.bad_evaluations += 1;
        }
        improved
    }

    /// Reads `state.json` of a checkpoint folder.
    pub fn load(checkpoint: &Path) -> Result<State> {
        let path = checkpoint.join(Self::FILE);
        let text =
            fs::read(&path).with_context(|| format!("cannot read the state {}", path.display()))?;
        (serde_json::from_slice(&text).map_err(anyhow::Error::from))
            .and_then(Self::checked)
            .with_context(|| format!("{} is not a run's state", path.display()))
    }

    /// As [`State::load`]; none in the folder of a checkpoint that no run of ours has made.
    pub fn of(checkpoint: &Path) -> Result<Option<State>> {
        match checkpoint.join(Self::FILE).is_file() {
            true => State::load(checkpoint).map(Some),
            false => Ok(None),
        }
    }

    /// Itself. Errors: a count that a run which goes on could take beyond what 64 bits hold; a step that took more than all.
    fn checked(self) -> Result<State> {
        let counts = [
            ("step", self.step),
            ("epoch", self.epoch),
            ("bad_evaluations", self.bad_evaluations),
            ("decode_tokens", self.decode_tokens),
            ("skipped_steps", self.skipped_steps),
            ("updates", self.updates),
        ];
        if self.last_decode_tokens > self.decode_tokens {
            bail!(
                "last_decode_tokens = {} is more than decode_tokens = {}",
                self.last_decode_tokens,
                self.decode_tokens
            );
        }
        match counts.into_iter().find(|&(_, count)| count > MAX_COUNT) {
            Some((name, count)) => bail!("{name} = {count} is more than any run has"),
            None => Ok(self),
        }
    }

    /// Writes `state.json` into a checkpoint folder.
    ///
    /// # Errors
    /// The file cannot be written, or a number is not finite, which JSON cannot hold.
    pub fn save(&self, checkpoint: &Path) -> Result<()> {
        let numbers = self.best_metric.into_iter().chain([self.elapsed_seconds]);
        for number in numbers {
            if !number.is_finite() {
                bail!("the state at step {} holds {number}", self.step);
            }
        }
        let text = serde_json::to_vec_pretty(self)?;
        atomic_write(&checkpoint.join(Self::FILE), &text)
    }
}
