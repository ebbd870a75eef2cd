//! What a run needs of its device's memory, known before it begins (`vstar train --dry-run`): the buffers of each stage,
//! counted by building them on a device that has none ([`crate::device::planner`]).

use super::engine::Engine;
use super::job::{self, Stages};
use super::rl::Stepper;
use super::sft;
use crate::config::Config;
use crate::data::Dataset;
use crate::decode::search::Searcher;
use crate::device::planner::{Limits, Planner};
use crate::device::report::{Bytes, Host};
use crate::device::{Device, DeviceInfo, DeviceRef, TooLarge};
use crate::model::activations::{ACTIVATIONS, CACHE};
use crate::model::{Model, checkpoint};
use crate::run::locate_model;
use anyhow::{Result, bail};
use std::fmt::{Display, Formatter};
use std::path::Path;
use std::sync::Arc;

/// Kinds of buffers, in the order they are listed.
pub const KINDS: [&str; 6] = [
    "parameters",
    "optimiser",
    "activations",
    "key/value caches",
    "logits",
    "search and tables",
];

/// Which of [`KINDS`] a buffer with that label is.
fn kind(label: &str) -> usize {
    match label {
        "weights" | "rotary table" => 0,
        "gradients" | "first moments" | "second moments" => 1,
        "gradient norm" | "gradient-norm partial sums" => 1,
        "logits" | "logits of a shard" | "decoder logits" => 4,
        _ => match label.strip_prefix(ACTIVATIONS) {
            Some(CACHE) => 3,
            Some(_) => 2,
            None => 5,
        },
    }
}

/// The memory of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Bytes of each of [`KINDS`] at the peak.
    pub kinds: [u64; KINDS.len()],
    /// (stage, bytes) while it runs.
    pub stages: Vec<(&'static str, u64)>,
    /// Bytes at the peak, which is a stage's.
    pub peak: u64,
}

impl Plan {
    /// Plans the stages asked for, on a device with these limits. Errors: what the run itself would
    /// fail with before its first step, such as a larger buffer.
    pub fn new(config: &Config, data: &Dataset, stages: Stages, limits: Limits) -> Result<Plan> {
        let planner = Arc::new(Planner::new(limits));
        let device: DeviceRef = planner.clone();
        let given = match config.model.init.as_str() {
            "" => None,
            folder => Some(locate_model(Path::new(folder))?.checkpoint),
        };
        let architecture = match given {
            Some(folder) => checkpoint::architecture(&folder)?,
            None => job::architecture(config, data),
        };
        let sft_plan = sft::Plan::of(config, data)?;
        let positions = job::positions(data).max(sft_plan.longest(data.catalog.levels()));
        let model = Model::new(&device, &architecture, positions, job::precision(config))?;
        let (engine, validation) = job::prepare(model, config, data, &sft_plan, stages)?;
        let mut plan = Plan {
            kinds: [0; KINDS.len()],
            stages: Vec::new(),
            peak: 0,
        };
        if stages.sft {
            let _trainer = sft::Trainer::new(&engine, config.sft.accumulate)?;
            plan.note("fine-tuning", &planner);
        }
        if stages.rl {
            plan.reinforce("V-STAR", &planner, &engine, config, data)?;
            if stages.eval && config.eval.baselines {
                let baseline = job::baseline(config);
                plan.reinforce("GRPO (beam)", &planner, &engine, &baseline, data)?;
            }
        }
        if stages.eval {
            plan.note("evaluation", &planner);
        }
        drop::<Searcher>(validation);
        Ok(plan)
    }

    fn reinforce(
        &mut self,
        name: &'static str,
        planner: &Planner,
        engine: &Engine,
        config: &Config,
        data: &Dataset,
    ) -> Result<()> {
        let _reference = match config.rl.kl_beta > 0.0 {
            true => Some(engine.model.same_shape()?),
            false => None,
        };
        let _stepper = Stepper::new(engine, config, data)?;
        self.note(name, planner);
        Ok(())
    }

    fn note(&mut self, stage: &'static str, planner: &Planner) {
        let bytes = planner.memory().now;
        self.stages.push((stage, bytes));
        if bytes > self.peak {
            self.peak = bytes;
            self.kinds = [0; KINDS.len()];
            for (label, bytes) in planner.buffers() {
                self.kinds[kind(&label)] += bytes;
            }
        }
    }

    /// Refuses a run that cannot be built or does not fit the memory that the machine has left, with settings that would
    /// make it fit. What a hardware GPU has is not known; it says so itself when it runs out.
    pub fn admit(
        plan: Result<Plan>,
        config: &Config,
        data: &Dataset,
        stages: Stages,
        (device, limits): (&DeviceInfo, Limits),
    ) -> Result<()> {
        let available = match device.software {
            true => Host::new().memory_available.unwrap_or(u64::MAX),
            false => u64::MAX,
        };
        let why = match plan {
            Ok(plan) if plan.peak <= available => return Ok(()),
            Ok(plan) => format!(
                "this run needs {} and {} has {} left",
                Bytes(plan.peak),
                device.name,
                Bytes(available)
            ),
            Err(error) if error.is::<TooLarge>() => format!("{error:#}"),
            Err(error) => return Err(error),
        };
        match Plan::settings_that_fit(config, data, stages, (available, limits)) {
            Some(settings) => bail!("{why}: it would fit with {settings}"),
            None => bail!("{why}: no smaller batch would fit, take a smaller model"),
        }
    }

    /// Settings with which the run would fit `available` bytes on such a device, as `key=value` arguments: more parts per step, smaller
    /// evaluation batches and, if that is not enough, activations computed anew. None if the model itself does not fit.
    pub fn settings_that_fit(
        config: &Config,
        data: &Dataset,
        stages: Stages,
        (available, limits): (u64, Limits),
    ) -> Option<String> {
        let most = config
            .sft
            .batch
            .max(config.rl.prompts)
            .max(config.eval.batch);
        let factors =
            std::iter::successors(Some(1), |f| Some(2 * f)).take_while(|&f| f <= 2 * most);
        for factor in factors {
            for recompute in [config.model.recompute, true] {
                let mut tried = config.clone();
                let parts = |now: usize, most: usize| (now * factor).min(most);
                tried.sft.accumulate = parts(config.sft.accumulate, config.sft.batch);
                tried.rl.accumulate = parts(config.rl.accumulate, config.rl.prompts);
                tried.eval.batch = (config.eval.batch / factor).max(1);
                tried.model.recompute = recompute;
                let plan = Plan::new(&tried, data, stages, limits);
                if plan.is_ok_and(|plan| plan.peak <= available) {
                    return Some(format!(
                        "sft.accumulate={} rl.accumulate={} eval.batch={} model.recompute={}",
                        tried.sft.accumulate,
                        tried.rl.accumulate,
                        tried.eval.batch,
                        tried.model.recompute
                    ));
                }
            }
        }
        None
    }
}

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        for (name, bytes) in KINDS.iter().zip(self.kinds) {
            writeln!(f, "memory  {name:<18} {:>9}", Bytes(bytes).to_string())?;
        }
        for (stage, bytes) in &self.stages {
            writeln!(f, "stage   {stage:<18} {:>9}", Bytes(*bytes).to_string())?;
        }
        write!(f, "peak    {:<18} {:>9}", "", Bytes(self.peak).to_string())
    }
}
