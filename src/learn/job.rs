//! The whole job: fine-tuning, V-STAR, the baseline, the final comparison.

use super::comparison::{self, System, bootstrap};
use super::context::{Context, Validation, attention, restore_choices};
use super::engine::{Capacity, Engine, Options};
use super::schedule::Limit;
use super::trained_on::other_catalog;
use super::{mixing, rl, rollout, sft};
use crate::config::{self, Arch, Candidates, Config};
use crate::data::{self, Dataset, LoadOptions, Protocol};
use crate::decode::search::{Decoding, Searcher};
use crate::device::{DeviceRef, Precision};
use crate::eval::bootstrap::Statistic;
use crate::eval::metrics::{Evaluation, coverage};
use crate::eval::per_user::{Credit, Gain};
use crate::eval::report::Report;
use crate::eval::system::{SidTables, baseline_evaluation, evaluate};
use crate::kernels::half_test::half_test;
use crate::model::checkpoint::Init;
use crate::model::{Architecture, Family, Model};
use crate::run::{Located, Stage, State, locate_model};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// Which stages to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stages {
    pub sft: bool,
    pub rl: bool,
    pub eval: bool,
}

/// The shape a from-scratch model of these settings has.
pub fn architecture(config: &Config, data: &Dataset) -> Architecture {
    let m = &config.model;
    let family = match m.arch {
        Arch::Qwen2 => Family::Qwen2,
        Arch::Llama => Family::Llama,
        Arch::Qwen3 => Family::Qwen3,
    };
    Architecture {
        family,
        vocab: data.catalog.vocab_size(),
        hidden: m.hidden_size,
        intermediate: m.feed_forward_size(),
        layers: m.layers,
        heads: m.heads,
        kv_heads: m.kv_heads,
        head_dim: m.hidden_size / m.heads,
        rope_theta: m.rope_theta,
        eps: m.rms_norm_eps as f32,
        tied: m.tie_embeddings,
        qkv_bias: family == Family::Qwen2,
        max_positions: positions(data),
    }
}

/// How models of these settings store what they compute with.
pub fn precision(config: &Config) -> Precision {
    match config.precision {
        config::Precision::F32 => Precision::F32,
        config::Precision::F16 => Precision::F16,
    }
}

/// As [`precision`], tried on the device. Errors: it has no f16, or gets it wrong.
pub fn tried_precision(device: &DeviceRef, config: &Config) -> Result<Precision> {
    let precision = precision(config);
    if precision == Precision::F16 && device.has_halves() {
        half_test(device)?;
    }
    Ok(precision)
}

/// The data that the settings name; the built-in shop if none.
pub fn load_data(config: &Config) -> Result<Dataset> {
    let path = (!config.data.path.is_empty()).then(|| Path::new(&config.data.path));
    let options = LoadOptions {
        protocol: match config.data.protocol {
            config::Protocol::Auto => None,
            config::Protocol::LeaveOneOut => Some(Protocol::LeaveOneOut),
            config::Protocol::TimeSplit => Some(Protocol::TimeSplit),
        },
        max_history: (config.data.max_history > 0).then_some(config.data.max_history),
    };
    data::load(path, options)
}

/// Tokens of the longest prompt and candidate.
pub fn positions(data: &Dataset) -> usize {
    1 + (data.max_history + 1) * data.catalog.levels()
}

/// Loads a checkpoint for this data. Errors: its vocabulary is too small for the catalog.
pub fn load_model(
    device: &DeviceRef,
    dir: &Path,
    data: &Dataset,
    positions: usize,
    precision: Precision,
    init: Init,
) -> Result<Model> {
    let model = Model::load(device, dir, positions, precision, init)?;
    let (has, needs) = (model.architecture.vocab, data.catalog.vocab_size());
    ensure!(
        has >= needs,
        "{}: its vocabulary of {has} tokens is too small for this catalog, which needs {needs}: was it trained on other data?",
        dir.display()
    );
    Ok(model)
}

/// The buffers that every stage of a run uses.
pub fn prepare(
    model: Model,
    config: &Config,
    data: &Dataset,
    plan: &sft::Plan,
    stages: Stages,
) -> Result<(Engine, Searcher)> {
    let mut capacity = Capacity {
        tokens: 1,
        rows: 1,
        targets: 1,
        slots: 1,
    };
    if stages.sft {
        capacity = capacity.max(plan.capacity(data.catalog.levels(), attention(config)));
    }
    if stages.rl {
        capacity = capacity.max(rollout::capacity(config, data)?);
        if config.rl.sft_weight > 0.0 {
            capacity = capacity.max(mixing::capacity(config, data)?);
        }
        if stages.eval && config.eval.baselines {
            capacity = capacity.max(rollout::capacity(&baseline(config), data)?);
        }
    }
    let engine = Engine::new(model, capacity, options(config, stages))?;
    let validation = Searcher::new(&engine.model, data, &Decoding::evaluation(config, data))?;
    Ok((engine, validation))
}

/// What the stages ask of the engine.
pub fn options(config: &Config, stages: Stages) -> Options {
    let (sft, rl) = (&config.sft, &config.rl);
    Options {
        recompute: config.model.recompute,
        dropout: (stages.sft || stages.rl && rl.sft_weight > 0.0) && sft.dropout > 0.0,
        average: stages.sft && sft.ema > 0.0 || stages.rl && rl.ema > 0.0,
    }
}

/// The settings of the baseline: GRPO with beam search.
pub fn baseline(config: &Config) -> Config {
    let mut config = config.clone();
    config.rl.decode = Candidates::Beam;
    config.rl.sibling_weight = 0.0;
    config.rl.value_weight = 0.0;
    config.rl.value_warmup_steps = 0;
    config
}

/// In the baseline's state: the decode tokens that reinforcement learning spent, which it may spend too.
const TOKENS_BEFORE: &str = "decode_tokens_before";

/// A run under way.
struct Job<'a> {
    context: Context<'a>,
    stages: Stages,
    /// Where it stands when it begins, the checkpoint that says so, and the model it was given.
    start: State,
    resume: Option<PathBuf>,
    given: Option<PathBuf>,
    engine: Engine,
    tables: SidTables,
    validation: Searcher,
}

/// Runs the stages asked for; with `resume`, goes on from the folder's latest checkpoint. Returns the final table.
pub fn run(
    device: &DeviceRef,
    context: Context,
    stages: Stages,
    resume: Option<PathBuf>,
) -> Result<String> {
    Job::begin(device, context, stages, resume)?.run()
}

/// One system of an ablation: the stage asked for, if any, then the evaluation of what it leaves, by itself, as `name`.
/// Writes the test users' figures, then `result.json`. Goes on as [`run`] does.
pub fn run_system(
    device: &DeviceRef,
    context: Context,
    stages: Stages,
    resume: Option<PathBuf>,
    name: &'static str,
) -> Result<()> {
    Job::begin(device, context, stages, resume)?.run_system(name)
}

impl<'a> Job<'a> {
    fn begin(
        device: &DeviceRef,
        context: Context<'a>,
        stages: Stages,
        resume: Option<PathBuf>,
    ) -> Result<Job<'a>> {
        let (config, data) = (context.config, context.data);
        let start = match &resume {
            Some(checkpoint) => {
                let of_run = context.folder.config_path();
                if let Some(fault) = other_catalog(checkpoint, Some(&of_run), config, data)? {
                    bail!("{fault}: a run goes on with the data it was begun with");
                }
                State::load(checkpoint)?
            }
            None => State::start(if stages.sft { Stage::Sft } else { Stage::Rl }),
        };
        if let Some(checkpoint) = &resume {
            restore_choices(device, checkpoint);
        }
        let plan = sft::Plan::new(&context)?;
        let (init, precision) = (context.init(), tried_precision(device, config)?);
        let positions = plan.longest(data.catalog.levels()).max(positions(data));
        let given = match config.model.init.as_str() {
            "" => None,
            folder => Some(locate_model(Path::new(folder))?),
        };
        let other = match given.as_ref().filter(|_| resume.is_none()) {
            None => None,
            Some(Located {
                checkpoint,
                config: of_run,
            }) => other_catalog(checkpoint, of_run.as_deref(), config, data)?,
        };
        let given = given.map(|located| located.checkpoint);
        let from = resume.as_ref().or(given.as_ref());
        ensure!(
            stages.sft || from.is_some(),
            "--stage rl and --stage eval need a model: give model.init=DIR, a run folder's checkpoint"
        );
        let model = match from {
            Some(dir) => load_model(device, dir, data, positions, precision, init)?,
            None => {
                let shape = architecture(config, data);
                Model::initialised(device, &shape, positions, precision, init)?
            }
        };
        if let Some(fault) = other {
            context.progress.note(&format!("warning {fault}"));
        }
        let (engine, mut validation) = prepare(model, config, data, &plan, stages)?;
        validation.prepare(&engine.model)?;
        Ok(Job {
            context,
            stages,
            start,
            resume,
            given,
            engine,
            tables: SidTables::new(data),
            validation,
        })
    }

    fn run(mut self) -> Result<String> {
        let stages = self.stages;
        let mut systems = Vec::new();
        if stages.sft {
            self.fine_tune()?;
        }
        let origin = self.origin()?;
        if stages.eval {
            if let Some(origin) = &origin {
                self.context.restore_weights(&self.engine.model, origin)?;
            }
            systems.push(self.evaluate(self.origin_name(origin.as_deref())?, None)?);
        }
        if stages.rl {
            let origin = origin.context(NO_ORIGIN)?;
            let tokens = self.reinforce(Stage::Rl, &origin, None)?;
            if stages.eval {
                systems.push(self.evaluate("V-STAR", Some(tokens))?);
            }
            if stages.eval && self.context.config.eval.baselines {
                let spent = self.reinforce(Stage::Grpo, &origin, Some(tokens))?;
                systems.insert(1, self.evaluate("GRPO (beam)", Some(spent))?);
            }
        }
        self.draw_curves()?;
        if !stages.eval {
            return Ok(String::new());
        }
        self.finish(systems)
    }

    fn run_system(mut self, name: &'static str) -> Result<()> {
        let mut spent = None;
        if self.stages.sft {
            self.fine_tune()?;
        }
        if self.stages.rl {
            let origin = self.origin()?.context(NO_ORIGIN)?;
            spent = Some(self.reinforce(Stage::Rl, &origin, None)?);
        }
        self.draw_curves()?;
        let system = self.evaluate(name, spent)?;
        let folder = self.context.folder;
        system.evaluation.per_user.save(&folder.test_users_path())?;
        let result = comparison::result(&self.context, &self.engine.model, &[system])?;
        folder.write_result(&result.into())
    }

    /// Where reinforcement learning starts: the best fine-tuned weights, or the model given.
    fn origin(&self) -> Result<Option<PathBuf>> {
        let best = self.context.checkpoints.best(Stage::Sft)?;
        Ok(best.or_else(|| self.given.clone()))
    }

    /// The system that the origin is: fine-tuned, or, where nothing is trained from it, of whichever stage it came.
    fn origin_name(&self, origin: Option<&Path>) -> Result<&'static str> {
        let trains = self.stages.sft || self.stages.rl;
        let state = origin.filter(|_| !trains).map(State::of).transpose()?;
        Ok(match state.flatten().map(|state| state.stage) {
            Some(Stage::Rl) => "V-STAR",
            Some(Stage::Grpo) => "GRPO (beam)",
            _ => "SFT",
        })
    }

    fn draw_curves(&self) -> Result<()> {
        let Context { data, folder, .. } = &self.context;
        folder.draw_curves(&format!("Training on {}", data.name))
    }

    /// Fine-tunes, unless the run is past it.
    fn fine_tune(&mut self) -> Result<()> {
        if self.start.stage > Stage::Sft {
            return Ok(());
        }
        if let Some(checkpoint) = &self.resume {
            self.context.restore(&self.engine, checkpoint)?;
        }
        let state = self.start.clone();
        let plan = sft::Plan::new(&self.context)?;
        let users = self.context.config.sft.eval_users;
        let (data, tables, searcher) = (self.context.data, &self.tables, &mut self.validation);
        let mut check = |model: &Model| validate(model, data, tables, searcher, users, false);
        sft::run(&mut self.context, &self.engine, &plan, state, &mut check)?;
        Ok(())
    }

    /// Runs a reinforcement stage from `origin`, or from where the run had begun it, unless the run is past it; leaves
    /// its best weights in the engine. Returns the decode tokens it spent.
    fn reinforce(&mut self, stage: Stage, origin: &Path, token_limit: Option<u64>) -> Result<u64> {
        let start = &self.start;
        if start.stage > stage
            && let Some(best) = self.context.checkpoints.best(stage)?
        {
            self.context.restore_weights(&self.engine.model, &best)?;
            let spent = start.extra.get(TOKENS_BEFORE).and_then(Value::as_u64);
            return spent.context("the checkpoint lacks the decode tokens of the stage before");
        }
        let config = match stage {
            Stage::Grpo => baseline(self.context.config),
            _ => self.context.config.clone(),
        };
        let begun = self.resume.as_ref().filter(|_| start.stage == stage);
        let state = match begun {
            Some(checkpoint) => {
                self.context.restore(&self.engine, checkpoint)?;
                start.clone()
            }
            None => {
                self.context.restore_weights(&self.engine.model, origin)?;
                self.engine.optimiser.reset()?;
                let mut state = State::start(stage);
                if let Some(tokens) = token_limit {
                    state.extra.insert(TOKENS_BEFORE.into(), tokens.into());
                }
                state
            }
        };
        let users = config.rl.eval_users;
        let (data, tables, searcher) = (self.context.data, &self.tables, &mut self.validation);
        let weighted = config.reward.value > 0.0;
        let mut check = |model: &Model| validate(model, data, tables, searcher, users, weighted);
        let limit = match token_limit {
            None => Limit::of(&config.rl),
            decode_tokens => Limit {
                steps: None,
                decode_tokens,
            },
        };
        let state = rl::run(
            &mut self.context,
            &config,
            &self.engine,
            (state, limit, origin),
            &mut check,
        )?;
        Ok(state.decode_tokens)
    }

    fn evaluate(&mut self, name: &'static str, train_decode_tokens: Option<u64>) -> Result<System> {
        let data = self.context.data;
        let examples = limited(&data.test, self.context.config.eval.max_users);
        self.context
            .progress
            .stage(&format!("test {name}"), 0, examples.len() as u64);
        let (progress, interrupt) = (&mut self.context.progress, &self.context.interrupt);
        let (evaluation, decode_tokens) = evaluate(
            &self.engine.model,
            data,
            &self.tables,
            &mut self.validation,
            &examples,
            |done| {
                progress.step(done as u64, &[]);
                match interrupt.asked() {
                    true => Err(interrupt.error(Stage::Eval, 0)),
                    false => Ok(()),
                }
            },
        )?;
        self.context.progress.finish();
        Ok(self.system(name, evaluation, decode_tokens, train_decode_tokens))
    }

    fn system(
        &self,
        name: &'static str,
        evaluation: Evaluation,
        decode_tokens: u64,
        train_decode_tokens: Option<u64>,
    ) -> System {
        let (config, data) = (self.context.config, self.context.data);
        let protocol = data.protocol.to_string();
        let report = Report::new(&protocol, &evaluation, &bootstrap(config));
        System {
            name,
            evaluation,
            report,
            decode_tokens,
            train_decode_tokens,
        }
    }

    /// The table and `result.json`.
    fn finish(&mut self, mut systems: Vec<System>) -> Result<String> {
        let (config, data) = (self.context.config, self.context.data);
        if config.eval.baselines {
            let examples = limited(&data.test, config.eval.max_users);
            let beam = self.validation.beam();
            let popularity = baseline_evaluation(data, &self.tables, &examples, beam)?;
            systems.insert(0, self.system("popularity", popularity, 0, None));
        }
        let (text, differences) = comparison::summary(config, &systems)?;
        let mut result = comparison::result(&self.context, &self.engine.model, &systems)?;
        result.extend(differences);
        self.context.folder.write_result(&result.into())?;
        Ok(text)
    }
}

const NO_ORIGIN: &str = "reinforcement learning needs a fine-tuned model";

/// At most `limit` of the examples, evenly spread (files often order users by activity); 0: all.
pub fn limited<T: Clone>(examples: &[T], limit: usize) -> Cow<'_, [T]> {
    let all = examples.len();
    match limit {
        n if n == 0 || n >= all => examples.into(),
        n => (0..n).map(|i| examples[i * all / n].clone()).collect(),
    }
}

/// Validation figures; the metric is NDCG@10, weighted by worth where the reward is.
fn validate(
    model: &Model,
    data: &Dataset,
    tables: &SidTables,
    searcher: &mut Searcher,
    users: usize,
    weighted: bool,
) -> Result<Validation> {
    let examples = limited(&data.valid, users);
    if examples.is_empty() {
        bail!("the data has no validation users: early stopping needs some");
    }
    let (evaluation, _) = evaluate(model, data, tables, searcher, &examples, |_| Ok(()))?;
    let (p, top) = (&evaluation.per_user, evaluation.top);
    let value = |s: Statistic| s.value().unwrap_or(0.0);
    let levels = 1..=evaluation.levels;
    let ndcg10 = value(p.ranking(Gain::Ndcg, Credit::Sid, top));
    Ok(Validation {
        hr10: value(p.ranking(Gain::Hr, Credit::Sid, top)),
        ndcg10,
        value_hr10: value(p.valued(Gain::Hr, Credit::Sid, top)),
        coverage10: coverage(&evaluation.exposure),
        prefix_hit10: levels.map(|l| value(p.prefix_hit(l))).collect(),
        metric: if weighted {
            value(p.valued(Gain::Ndcg, Credit::Sid, top))
        } else {
            ndcg10
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_takes_examples_from_all_over() {
        let all: Vec<usize> = (0..10).collect();
        assert_eq!(*limited(&all, 4), [0, 2, 5, 7]);
        for limit in [0, 10, 11] {
            assert_eq!(*limited(&all, limit), all[..]);
        }
    }
}
