//! What is measured: whole steps on random models, catalogs and histories, as `vstar train` runs them.

use super::formula::{Head, Letters, Part, Trees};
use crate::catalog::{Catalog, Items};
use crate::config::{Candidates, Config};
use crate::data::{Dataset, Protocol};
use crate::decode::Decoded;
use crate::decode::search::{Decoding, Searcher};
use crate::device::{DeviceRef, MAX_BUFFER_WORDS, Precision};
use crate::forest::{Forest, ForestSize, PromptAttention};
use crate::kernels::dropout::Dropout;
use crate::learn::engine::{Capacity, Engine, Options, Targets};
use crate::learn::questions::Question;
use crate::learn::rl::Stepper;
use crate::learn::rollout;
use crate::learn::sft::Trainer;
use crate::model::checkpoint::Init;
use crate::model::optimiser::Update;
use crate::model::{Architecture, Family, Model};
use crate::rng::{Rng, Stream};
use anyhow::{Result, ensure};

/// Of everything random.
pub const SEED: u64 = 1;
/// L
pub const LEVELS: usize = 3;
/// Items of the catalog, with random codes.
const ITEMS: usize = 4096;

const UPDATE: Update = Update {
    lr: 1e-4,
    beta1: 0.9,
    beta2: 0.98,
    eps: 1e-8,
    weight_decay: 0.05,
    clip_norm: 1.0,
};

const DROPOUT: Dropout = Dropout {
    rate: 0.2,
    key: SEED as u32,
    step: 0,
    row: 0,
};

/// Sizes of a model and of its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub family: Family,
    /// d; the feed-forward size is 8/3 of it, rounded down to a multiple of 32.
    pub hidden: usize,
    pub layers: usize,
    /// H = Hk
    pub heads: usize,
    /// Codes per level: V = 2 + L codes.
    pub codes: usize,
    /// Documents of a fine-tuning step, and tokens of each.
    pub documents: usize,
    pub tokens: usize,
    /// Parts that such a step is cut into, at least.
    pub parts: usize,
    /// Prompts of a rollout, and items of history in each.
    pub prompts: usize,
    pub history: usize,
    pub precision: Precision,
    /// Whether fine-tuning has dropout.
    pub dropout: bool,
}

impl Default for Shape {
    /// The default model with a vocabulary of 1,028, and steps of 32 documents of 36 tokens.
    fn default() -> Self {
        Shape {
            family: Family::Llama,
            hidden: 128,
            layers: 4,
            heads: 4,
            codes: 342,
            documents: 32,
            tokens: 36,
            parts: 1,
            prompts: 32,
            history: 11,
            precision: Precision::F32,
            dropout: false,
        }
    }
}

impl Shape {
    pub fn vocab(&self) -> usize {
        2 + LEVELS * self.codes
    }

    /// Tokens of a prompt.
    pub fn prompt(&self) -> usize {
        1 + LEVELS * self.history
    }

    pub fn architecture(&self) -> Architecture {
        Architecture {
            family: self.family,
            vocab: self.vocab(),
            hidden: self.hidden,
            intermediate: (self.hidden * 8 / 3 / 32 * 32).max(32),
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.heads,
            head_dim: self.hidden / self.heads,
            rope_theta: 1e4,
            eps: 1e-6,
            tied: true,
            qkv_bias: self.family == Family::Qwen2,
            max_positions: self.positions(),
        }
    }

    fn positions(&self) -> usize {
        self.tokens.max(self.prompt() + LEVELS)
    }

    pub fn letters(&self) -> Letters {
        Letters::of(&self.architecture())
    }

    pub fn model(&self, device: &DeviceRef) -> Result<Model> {
        let init = Init {
            seed: SEED,
            std: 0.02,
        };
        let (shape, positions) = (self.architecture(), self.positions());
        Model::initialised(device, &shape, positions, self.precision, init)
    }

    /// A catalog of random SIDs, without users.
    pub fn dataset(&self) -> Result<Dataset> {
        let mut rng = Rng::new(SEED, Stream::Test, 0, 0);
        let mut codes: Vec<u32> = (0..ITEMS * LEVELS)
            .map(|_| rng.below(self.codes) as u32)
            .collect();
        // The codebooks are as large as the largest codes.
        codes[..LEVELS].fill(self.codes as u32 - 1);
        Ok(Dataset {
            name: "random".into(),
            catalog: Catalog::new(Items {
                names: (0..ITEMS).map(|i| i.to_string()).collect(),
                levels: LEVELS,
                codes,
                ..Items::default()
            })?,
            protocol: Protocol::LeaveOneOut,
            users: Vec::new(),
            train: Vec::new(),
            valid: Vec::new(),
            test: Vec::new(),
            max_history: self.history,
            beam: 10,
            warnings: Vec::new(),
        })
    }

    fn histories(&self) -> Vec<Vec<u32>> {
        let mut rng = Rng::new(SEED, Stream::Test, 0, 1);
        let mut history = || (0..self.history).map(|_| rng.below(ITEMS) as u32).collect();
        (0..self.prompts).map(|_| history()).collect()
    }
}

/// Fine-tuning on random documents, every token scored.
pub struct FineTuning {
    pub engine: Engine,
    trainer: Trainer,
    parts: Vec<Vec<Vec<u32>>>,
}

fn pack(documents: &Vec<Vec<u32>>, forest: &mut Forest, targets: &mut Targets) {
    for document in documents {
        let first = forest.len() as u32;
        forest.push_prompt(document, PromptAttention::Causal);
        for (t, &next) in document.iter().enumerate().skip(1) {
            targets.push(first + t as u32 - 1, next);
        }
    }
}

impl FineTuning {
    /// In more parts than the shape says if buffers have no room for those.
    pub fn new(device: &DeviceRef, shape: &Shape) -> Result<FineTuning> {
        let a = shape.architecture();
        let widest = a.qkv_width().max(2 * a.intermediate);
        let fitting = (MAX_BUFFER_WORDS / (widest * shape.tokens)).max(1);
        let mut rng = Rng::new(SEED, Stream::Test, 1, 0);
        let mut document = || {
            let tokens = (0..shape.tokens).map(|_| 2 + rng.below(a.vocab - 2) as u32);
            tokens.collect::<Vec<u32>>()
        };
        let documents: Vec<_> = (0..shape.documents).map(|_| document()).collect();
        let parts = shape.documents.div_ceil(fitting).max(shape.parts);
        let parts: Vec<_> = documents
            .chunks(shape.documents.div_ceil(parts))
            .map(<[_]>::to_vec)
            .collect();
        let tokens = parts[0].len() * shape.tokens;
        let capacity = Capacity {
            tokens,
            rows: tokens,
            targets: tokens,
            slots: 0,
        };
        let options = Options {
            dropout: shape.dropout,
            ..Options::default()
        };
        let engine = Engine::new(shape.model(device)?, capacity, options)?;
        let mut trainer = Trainer::new(&engine, parts.len())?;
        trainer.regulariser.dropout = shape.dropout.then_some(DROPOUT);
        Ok(FineTuning {
            trainer,
            engine,
            parts,
        })
    }

    pub fn step(&mut self) -> Result<()> {
        let result = self
            .trainer
            .step(&self.engine, &self.parts, pack, &UPDATE)?;
        ensure!(result.finite, "the loss or the gradient is not finite");
        Ok(())
    }

    /// Tokens of a step.
    pub fn tokens(&self) -> usize {
        self.parts.iter().flatten().map(Vec::len).sum()
    }

    /// What the formula needs to know of each part of the step.
    pub fn sizes(&self) -> Vec<Part> {
        let size = |documents| {
            let (mut forest, mut targets) = (Forest::new(), Targets::default());
            pack(documents, &mut forest, &mut targets);
            Part {
                forest: forest.size(),
                head: head(&self.engine, targets.rows.len(), targets.len()),
            }
        };
        self.parts.iter().map(size).collect()
    }
}

fn head(engine: &Engine, rows: usize, targets: usize) -> Head {
    Head {
        rows: rows as u64,
        targets: targets as u64,
        chunk: engine.head.chunk() as u64,
        capacity: engine.capacity().tokens as u64,
    }
}

/// V-STAR steps from prompts to updated weights, with the rewards that `vstar train` gives by default.
pub struct Reinforcement {
    pub engine: Engine,
    /// Where the objective has a KL term.
    reference: Option<Model>,
    stepper: Stepper,
    config: Config,
    data: Dataset,
    histories: Vec<Vec<u32>>,
    steps: u32,
}

/// What one step did.
#[derive(Clone, Copy, Debug)]
pub struct Reinforced {
    /// Rows run by decoding after the prompts' own, the roots counted.
    pub decoded: usize,
    /// Rows trained on: prompts and tree nodes.
    pub trained: usize,
}

impl Reinforcement {
    /// `config` gives the rollout and the objective.
    pub fn new(device: &DeviceRef, shape: &Shape, config: &Config) -> Result<Reinforcement> {
        let (data, mut config) = (shape.dataset()?, config.clone());
        config.rl.prompts = shape.prompts;
        let capacity = rollout::capacity(&config, &data)?;
        let engine = Engine::new(shape.model(device)?, capacity, Options::default())?;
        Ok(Reinforcement {
            reference: (config.rl.kl_beta > 0.0)
                .then(|| shape.model(device))
                .transpose()?,
            stepper: Stepper::new(&engine, &config, &data)?,
            engine,
            config,
            data,
            histories: shape.histories(),
            steps: 0,
        })
    }

    pub fn step(&mut self) -> Result<Reinforced> {
        self.steps += 1;
        let mut targets = Rng::new(SEED, Stream::Test, 2, 0);
        let mut question = |history| Question {
            history,
            target: Some(targets.below(ITEMS) as u32),
        };
        let histories = self.histories.iter().map(Vec::as_slice);
        let asked: Vec<Question> = histories.map(&mut question).collect();
        let submitted = self.stepper.submit(
            &self.engine,
            &self.data,
            (&asked, asked.len(), self.steps),
            self.reference.as_ref(),
            (1, &UPDATE, false),
        )?;
        let figures = self.stepper.wait(submitted)?;
        ensure!(
            figures.is_finite() && figures.updates == self.steps as u64,
            "the loss or the gradient is not finite"
        );
        let prompts: usize = asked.iter().map(|q| 1 + LEVELS * q.history.len()).sum();
        Ok(Reinforced {
            decoded: figures.decode_cost as usize,
            trained: prompts + figures.nodes as usize,
        })
    }

    /// What the formula needs to know of the step's update: the most that it can run over.
    pub fn trees(&self, prompts: ForestSize) -> Trees {
        let widths = rollout::widths(self.stepper.rollout.group(), &self.data);
        let inner: usize = widths[..LEVELS - 1].iter().sum();
        let count = self.histories.len();
        let trees = prompts.trees(count, &widths);
        let nodes = trees.rows as usize;
        Trees {
            prompts,
            trees,
            scored: prompts.scored(count, &widths),
            head: head(&self.engine, count * (1 + inner), nodes),
            valued: self.config.rl.decode == Candidates::Ved,
        }
    }
}

/// Decoding alone.
pub struct Search {
    model: Model,
    searcher: Searcher,
    data: Dataset,
    histories: Vec<Vec<u32>>,
}

impl Search {
    /// As rollouts of `config` decode.
    pub fn new(device: &DeviceRef, shape: &Shape, config: &Config) -> Result<Search> {
        let (model, data) = (shape.model(device)?, shape.dataset()?);
        let decoding = Decoding::rollout(config, &data, shape.prompts);
        Ok(Search {
            searcher: Searcher::new(&model, &data, &decoding)?,
            model,
            data,
            histories: shape.histories(),
        })
    }

    pub fn run(&mut self) -> Result<Vec<Decoded>> {
        let asked: Vec<&[u32]> = self.histories.iter().map(Vec::as_slice).collect();
        self.searcher
            .search(&self.model, &self.data.catalog, &asked, 1, 0)
    }
}
