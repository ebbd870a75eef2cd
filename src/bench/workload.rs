//! What is measured: whole steps on random models, catalogs and histories, as `vstar train` runs them.

use super::formula::{Letters, Part};
use crate::catalog::{Catalog, Items};
use crate::config::Config;
use crate::data::{Dataset, Protocol};
use crate::decode::Decoded;
use crate::decode::search::{Decoding, Searcher};
use crate::device::{DeviceRef, MAX_BUFFER_WORDS};
use crate::forest::{Forest, PromptAttention, TokenIndex};
use crate::learn::engine::{Capacity, Engine, Targets};
use crate::learn::group::Groups;
use crate::learn::judge::Rewarded;
use crate::learn::policy::{Batch, Policy};
use crate::learn::sft::Trainer;
use crate::model::checkpoint::Init;
use crate::model::optimiser::Update;
use crate::model::{Architecture, Family, Model};
use crate::rng::{Rng, Stream};
use anyhow::{Result, ensure};
use std::time::Instant;

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
    step: 1,
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
    /// Prompts of a rollout, and items of history in each.
    pub prompts: usize,
    pub history: usize,
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
            prompts: 32,
            history: 11,
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
        Model::initialised(device, &self.architecture(), self.positions(), init)
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
    capacity: usize,
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
    /// In as few parts as buffers have room for.
    pub fn new(device: &DeviceRef, shape: &Shape) -> Result<FineTuning> {
        let a = shape.architecture();
        let widest = a.vocab.max(2 * a.intermediate);
        let fitting = (MAX_BUFFER_WORDS / (widest * shape.tokens)).max(1);
        let mut rng = Rng::new(SEED, Stream::Test, 1, 0);
        let mut document = || {
            let tokens = (0..shape.tokens).map(|_| 2 + rng.below(a.vocab - 2) as u32);
            tokens.collect::<Vec<u32>>()
        };
        let documents: Vec<_> = (0..shape.documents).map(|_| document()).collect();
        let parts = shape.documents.div_ceil(fitting);
        let parts: Vec<_> = documents
            .chunks(shape.documents.div_ceil(parts))
            .map(<[_]>::to_vec)
            .collect();
        let tokens = parts[0].len() * shape.tokens;
        let capacity = Capacity {
            tokens,
            rows: tokens,
            targets: tokens,
        };
        let engine = Engine::new(shape.model(device)?, capacity)?;
        Ok(FineTuning {
            trainer: Trainer::new(&engine, parts.len())?,
            engine,
            parts,
            capacity: tokens,
        })
    }

    pub fn step(&mut self) -> Result<()> {
        let result = self
            .trainer
            .step(&mut self.engine, &self.parts, pack, &UPDATE)?;
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
            part(&forest, &targets, self.capacity)
        };
        self.parts.iter().map(size).collect()
    }
}

fn part(forest: &Forest, targets: &Targets, capacity: usize) -> Part {
    let mut index = TokenIndex::default();
    index.rebuild(forest);
    Part {
        forest: forest.size(),
        rows: targets.rows.len() as u64,
        targets: targets.len() as u64,
        distinct: index.tokens.len() as u64,
        capacity: capacity as u64,
    }
}

/// V-STAR steps from prompts to updated weights; rewards are random.
pub struct Reinforcement {
    pub engine: Engine,
    reference: Model,
    searcher: Searcher,
    policy: Policy,
    data: Dataset,
    histories: Vec<Vec<u32>>,
    group: usize,
    capacity: usize,
    draws: Rng,
    steps: u32,
}

/// What one step did.
#[derive(Clone, Copy, Debug)]
pub struct Reinforced {
    pub decode_seconds: f64,
    /// Rows run by decoding after the prompts' own, the root counted.
    pub decoded: usize,
    /// The packed prompts and candidates.
    pub trees: Part,
}

impl Reinforcement {
    /// `config` gives the rollout and the objective.
    pub fn new(device: &DeviceRef, shape: &Shape, config: &Config) -> Result<Reinforcement> {
        let (data, group) = (shape.dataset()?, config.rl.group);
        let nodes = shape.prompts * group * LEVELS;
        let capacity = Capacity {
            tokens: shape.prompts * shape.prompt() + nodes,
            rows: shape.prompts + nodes,
            targets: nodes,
        };
        let engine = Engine::new(shape.model(device)?, capacity)?;
        let decoding = Decoding::rollout(config, &data, shape.prompts);
        Ok(Reinforcement {
            reference: shape.model(device)?,
            searcher: Searcher::new(&engine.model, &data, &decoding)?,
            policy: Policy::new(&engine, config, shape.prompts, LEVELS)?,
            engine,
            data,
            histories: shape.histories(),
            group,
            capacity: capacity.tokens,
            draws: Rng::new(SEED, Stream::Test, 2, 0),
            steps: 0,
        })
    }

    pub fn step(&mut self) -> Result<Reinforced> {
        let (catalog, group) = (&self.data.catalog, self.group);
        let asked: Vec<&[u32]> = self.histories.iter().map(Vec::as_slice).collect();
        let started = Instant::now();
        self.steps += 1;
        let model = &self.engine.model;
        let found = self
            .searcher
            .search(model, catalog, &asked, self.steps, 0)?;
        let decode_seconds = started.elapsed().as_secs_f64();
        let (mut groups, mut rewarded) = (Groups::default(), Vec::new());
        for (history, decoded) in asked.iter().zip(&found) {
            let candidates = decoded.candidates.iter().map(|c| c.tokens.as_slice());
            let prompt = catalog.prompt(history);
            groups.push(&prompt, candidates, group, LEVELS, PromptAttention::Causal);
            let draws = &mut self.draws;
            let mut random = |n| (0..n).map(|_| draws.normal()).collect();
            rewarded.push(Rewarded {
                rewards: random(decoded.candidates.len()),
                steps: random(decoded.candidates.len() * LEVELS),
                hit: false,
            });
        }
        let done = Reinforced {
            decode_seconds,
            decoded: found.iter().map(|d| d.cost).sum(),
            trees: part(&groups.forest, &groups.targets, self.capacity),
        };
        let batch = Batch::new(groups, &rewarded, group, LEVELS);
        let updated = self.policy.update(
            &mut self.engine,
            Some(&self.reference),
            &[batch],
            &UPDATE,
            (true, false),
        )?;
        ensure!(updated.finite, "the loss or the gradient is not finite");
        Ok(done)
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
