//! The whole job: fine-tuning, V-STAR, the baseline, the final comparison.

use super::context::{Context, Validation, attention, restore_choices};
use super::engine::{Capacity, Engine, Options};
use super::{mixing, rl, rollout, sft};
use crate::config::{self, Arch, Candidates, Config};
use crate::data::Dataset;
use crate::decode::search::{Decoding, Searcher};
use crate::device::{DeviceRef, Precision};
use crate::eval::bootstrap::Bootstrap;
use crate::eval::metrics::Evaluation;
use crate::eval::per_user::{Credit, Gain};
use crate::eval::report::{Report, Row, compare, table};
use crate::eval::system::{SidTables, baseline_evaluation, evaluate};
use crate::kernels::half_test::half_test;
use crate::model::checkpoint::Init;
use crate::model::{Architecture, Family, Model};
use crate::run::{Stage, State, locate_model};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
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

/// What the final table holds of one system.
struct System {
    name: &'static str,
    evaluation: Evaluation,
    report: Report,
    decode_tokens: u64,
    train_decode_tokens: Option<u64>,
}

/// In the baseline's state: the decode tokens that reinforcement learning spent, which it may spend too.
const TOKENS_BEFORE: &str = "decode_tokens_before";

struct Job<'a> {
    context: Context<'a>,
    engine: Engine,
    tables: SidTables,
    validation: Searcher,
}

/// Runs the stages asked for; with `resume`, goes on from the folder's latest checkpoint. Returns the final table.
pub fn run(
    device: &DeviceRef,
    mut context: Context,
    stages: Stages,
    resume: Option<PathBuf>,
) -> Result<String> {
    let (config, data) = (context.config, context.data);
    let start = match &resume {
        Some(checkpoint) => State::load(checkpoint)?,
        None => State::start(if stages.sft { Stage::Sft } else { Stage::Rl }),
    };
    context.elapsed_before = start.elapsed_seconds;
    if let Some(checkpoint) = &resume {
        restore_choices(device, checkpoint);
    }
    let plan = sft::Plan::new(&context)?;
    let (init, precision) = (context.init(), tried_precision(device, config)?);
    let positions = plan.longest(data.catalog.levels()).max(positions(data));
    let given = match config.model.init.as_str() {
        "" => None,
        folder => Some(locate_model(Path::new(folder))?.checkpoint),
    };
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
    let (engine, mut validation) = prepare(model, config, data, &plan, stages)?;
    validation.prepare(&engine.model)?;
    let tables = SidTables::new(data);
    let mut job = Job {
        context,
        engine,
        tables,
        validation,
    };
    job.run(stages, start, resume.as_deref(), given.as_deref())
}

impl Job<'_> {
    fn run(
        &mut self,
        stages: Stages,
        start: State,
        resume: Option<&Path>,
        given: Option<&Path>,
    ) -> Result<String> {
        let mut systems = Vec::new();
        if stages.sft && start.stage == Stage::Sft {
            if let Some(checkpoint) = resume {
                self.context.restore(&self.engine, checkpoint)?;
            }
            self.fine_tune(start.clone())?;
        }
        // Where reinforcement learning starts: the best fine-tuned weights, or the model given.
        let origin = match self.context.checkpoints.best(Stage::Sft)? {
            Some(best) => Some(best),
            None => given.map(Path::to_path_buf),
        };
        if stages.eval {
            if let Some(origin) = &origin {
                self.context.restore_weights(&self.engine.model, origin)?;
            }
            systems.push(self.evaluate("SFT", None)?);
        }
        if stages.rl {
            let origin = origin.context("reinforcement learning needs a fine-tuned model")?;
            let begun = (&start, resume);
            let tokens = self.reinforce(Stage::Rl, &origin, begun, None)?;
            if stages.eval {
                systems.push(self.evaluate("V-STAR", Some(tokens))?);
            }
            if stages.eval && self.context.config.eval.baselines {
                let spent = self.reinforce(Stage::Grpo, &origin, begun, Some(tokens))?;
                systems.insert(1, self.evaluate("GRPO (beam)", Some(spent))?);
            }
        }
        if !stages.eval {
            return Ok(String::new());
        }
        self.finish(systems)
    }

    fn fine_tune(&mut self, state: State) -> Result<()> {
        let plan = sft::Plan::new(&self.context)?;
        let users = self.context.config.sft.eval_users;
        let (data, tables, searcher) = (self.context.data, &self.tables, &mut self.validation);
        let mut check = |model: &Model| validate(model, data, tables, searcher, users, false);
        sft::run(&mut self.context, &self.engine, &plan, state, &mut check)?;
        Ok(())
    }

    /// Runs a reinforcement stage from `origin`, or from where the run had begun it, unless the run is past it; leaves
    /// its best weights in the engine. Returns the decode tokens it spent.
    fn reinforce(
        &mut self,
        stage: Stage,
        origin: &Path,
        (start, resume): (&State, Option<&Path>),
        token_limit: Option<u64>,
    ) -> Result<u64> {
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
        let state = match resume.filter(|_| start.stage == stage) {
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
        let limit = rl::Limit {
            steps: (token_limit.is_none()).then_some(config.rl.last_step() as u64),
            decode_tokens: token_limit,
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
        let progress = &mut self.context.progress;
        let (evaluation, decode_tokens) = evaluate(
            &self.engine.model,
            data,
            &self.tables,
            &mut self.validation,
            &examples,
            |done| progress.step(done as u64, &[]),
        )?;
        self.context.progress.finish();
        self.system(name, evaluation, decode_tokens, train_decode_tokens)
    }

    fn system(
        &self,
        name: &'static str,
        evaluation: Evaluation,
        decode_tokens: u64,
        train_decode_tokens: Option<u64>,
    ) -> Result<System> {
        let report = Report::new(
            &self.context.data.protocol.to_string(),
            &evaluation,
            &self.bootstrap(),
        );
        Ok(System {
            name,
            evaluation,
            report,
            decode_tokens,
            train_decode_tokens,
        })
    }

    fn bootstrap(&self) -> Bootstrap {
        Bootstrap {
            seed: self.context.config.seed,
            resamples: self.context.config.eval.bootstrap as u32,
        }
    }

    /// The table and `result.json`.
    fn finish(&mut self, mut systems: Vec<System>) -> Result<String> {
        let (config, data) = (self.context.config, self.context.data);
        if config.eval.baselines {
            let examples = limited(&data.test, config.eval.max_users);
            let beam = self.validation.beam();
            let popularity = baseline_evaluation(data, &self.tables, &examples, beam)?;
            systems.insert(0, self.system("popularity", popularity, 0, None)?);
        }
        let rows: Vec<Row> = systems
            .iter()
            .map(|s| Row {
                name: s.name,
                report: &s.report,
                decode_tokens: s.decode_tokens,
            })
            .collect();
        let mut text = table(&rows)?;
        let mut comparisons = serde_json::Map::new();
        let find = |name| systems.iter().find(|s: &&System| s.name == name);
        if let (Some(ours), Some(sft)) = (find("V-STAR"), find("SFT")) {
            let measures = [
                ("ndcg@10", Gain::Ndcg, false),
                ("hr@10", Gain::Hr, false),
                ("value_hr@10", Gain::Hr, true),
            ];
            for (key, gain, valued) in measures {
                let top = sft.report.top;
                let difference = compare(
                    &self.bootstrap(),
                    &ours.evaluation.per_user,
                    &sft.evaluation.per_user,
                    |p| match valued {
                        true => p.valued(gain, Credit::Sid, top),
                        false => p.ranking(gain, Credit::Sid, top),
                    },
                )?;
                if let Some(difference) = difference {
                    text.push_str(&format!(
                        "V-STAR over SFT, {key}: {difference} (paired bootstrap)\n"
                    ));
                    comparisons.insert(key.into(), serde_json::to_value(difference)?);
                }
            }
        }
        for s in &systems {
            if let Some(tokens) = s.train_decode_tokens {
                text.push_str(&format!(
                    "{} spent {tokens} decode tokens in training\n",
                    s.name
                ));
            }
        }
        let figures = systems
            .iter()
            .map(|s| {
                let mut object = serde_json::Map::new();
                s.report.merge_into(&mut object)?;
                object.insert("decode_tokens".into(), s.decode_tokens.into());
                object.insert("train_decode_tokens".into(), json!(s.train_decode_tokens));
                Ok((s.name.to_string(), Value::Object(object)))
            })
            .collect::<Result<serde_json::Map<_, _>>>()?;
        let device = self.engine.device();
        let seconds = self.context.elapsed_before + self.context.started.elapsed().as_secs_f64();
        self.context.folder.write_result(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "data": data.name,
            "protocol": data.protocol.to_string(),
            "seed": config.seed,
            "device": device.info(),
            "parameters": self.engine.model.architecture.parameters(),
            "seconds": seconds,
            "counters": device.counters(),
            "memory": device.memory(),
            "systems": figures,
            "vstar_over_sft": comparisons,
        }))?;
        Ok(text)
    }
}

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
    let (evaluation, _) = evaluate(model, data, tables, searcher, &examples, |_| {})?;
    let (p, top) = (&evaluation.per_user, evaluation.top);
    let value = |s: crate::eval::bootstrap::Statistic| s.value().unwrap_or(0.0);
    let ndcg10 = value(p.ranking(Gain::Ndcg, Credit::Sid, top));
    Ok(Validation {
        hr10: value(p.ranking(Gain::Hr, Credit::Sid, top)),
        ndcg10,
        value_hr10: value(p.valued(Gain::Hr, Credit::Sid, top)),
        metric: if weighted {
            value(p.valued(Gain::Ndcg, Credit::Sid, top))
        } else {
            ndcg10
        },
    })
}
