//! Whole steps: one of fine-tuning and one of V-STAR, and SIDs of a few items. `vstar validate` runs them with small models
//! on a few prompts of the built-in shop: on a lockstep device every launch of them is compared, at the sizes and in the
//! order of a real step. `vstar tune` runs them with the user's settings and data.

use anyhow::{Result, ensure};

use crate::catalog::Embeddings;
use crate::config::{Arch, Config, Precision, PromptAttention};
use crate::data::{Dataset, LoadOptions};
use crate::decode::search::{Decoding, Searcher};
use crate::device::DeviceRef;
use crate::forest::{self, Forest};
use crate::learn::engine::{Capacity, Engine, Options, Targets};
use crate::learn::questions::Question;
use crate::learn::rl::Stepper;
use crate::learn::rollout;
use crate::learn::sequences::{Window, push_window, windows};
use crate::learn::sft::Regulariser;
use crate::learn::{job, sft};
use crate::model::Model;
use crate::model::checkpoint::Init;
use crate::model::optimiser::Update;
use crate::rng::{self, Rng};
use crate::sid::build::{self, Method, Resolution};

/// Runs one step on a fresh device.
pub type Step = fn(&DeviceRef) -> Result<()>;

/// Name and step. Between them the two shapes have grouped queries, q/k norms, a q/k/v bias, a tied and an untied
/// output, causal and full prompts.
pub const WHOLE_STEPS: &[(&str, Step)] = &[
    ("sft step, qwen3", |device| {
        Steps::small(Arch::Qwen3)?.fine_tune(device)
    }),
    ("sft step, qwen2", |device| {
        Steps::small(Arch::Qwen2)?.fine_tune(device)
    }),
    ("sft step, regularised", |device| {
        Steps::small(Arch::Llama)?.regularised().fine_tune(device)
    }),
    ("rl step, qwen3", |device| {
        Steps::small(Arch::Qwen3)?.reinforce(device)
    }),
    ("rl step, qwen2", |device| {
        Steps::small(Arch::Qwen2)?.reinforce(device)
    }),
    ("semantic ids", semantic_ids),
];

/// The same with activations and operands of f16, for devices that have it.
pub const HALF_STEPS: &[(&str, Step)] = &[
    ("sft step, f16", |device| {
        Steps::small(Arch::Qwen3)?.halved().fine_tune(device)
    }),
    ("rl step, f16", |device| {
        Steps::small(Arch::Qwen2)?.halved().reinforce(device)
    }),
];

/// SIDs of a few items by residual k-means.
fn semantic_ids(device: &DeviceRef) -> Result<()> {
    const ITEMS: usize = 300;
    const DIM: usize = 17;
    let mut draws = Rng::new(1, rng::Stream::Test, 5, 0);
    let embeddings = Embeddings {
        dim: DIM,
        data: (0..ITEMS * DIM).map(|_| draws.normal()).collect(),
    };
    let options = build::Options {
        method: Method::ResidualKmeans,
        codes: vec![23, 8],
        collisions: Resolution::Digit,
        seed: 1,
    };
    build::build(device, ITEMS, Some(&embeddings), &options, &mut |_| ()).map(drop)
}

/// Documents of a fine-tuning step, in parts of so many.
const DOCUMENTS: usize = 9;
const PART: usize = 5;

/// The settings and data that steps are taken with.
pub struct Steps {
    pub config: Config,
    pub data: Dataset,
    /// Documents of a fine-tuning step, and of a part of it.
    pub documents: usize,
    pub part: usize,
}

impl Steps {
    /// A small model and the shop.
    fn small(arch: Arch) -> Result<Steps> {
        let mut config = Config::default();
        config.model.arch = arch;
        config.model.layers = 2;
        config.model.hidden_size = 32;
        config.model.heads = 4;
        config.model.kv_heads = 2;
        config.model.tie_embeddings = arch == Arch::Qwen3;
        config.model.prompt_attention = match arch {
            Arch::Qwen3 => PromptAttention::Causal,
            _ => PromptAttention::Full,
        };
        config.rl.prompts = 3;
        config.rl.group = 8;
        config.ved.init_beam = 4;
        // A model that has learnt nothing hits no target; how near its candidates come still tells them apart.
        config.reward.semantic = 1.0;
        Ok(Steps {
            config,
            data: crate::data::load(None, LoadOptions::default())?,
            documents: DOCUMENTS,
            part: PART,
        })
    }

    fn regularised(mut self) -> Steps {
        self.config.sft.dropout = 0.2;
        self.config.sft.label_smoothing = 0.1;
        self.config.sft.ema = 0.9;
        self
    }

    fn halved(mut self) -> Steps {
        self.config.precision = Precision::F16;
        self
    }

    /// Weights far larger than a run starts with, so that log-probs are far from uniform and no two candidates tie.
    fn model(&self, device: &DeviceRef, seed: u64) -> Result<Model> {
        let architecture = job::architecture(&self.config, &self.data);
        let init = Init { seed, std: 0.3 };
        let (positions, precision) = (job::positions(&self.data), job::precision(&self.config));
        Model::initialised(device, &architecture, positions, precision, init)
    }

    fn attention(&self) -> forest::PromptAttention {
        match self.config.model.prompt_attention {
            PromptAttention::Causal => forest::PromptAttention::Causal,
            PromptAttention::Full => forest::PromptAttention::Full,
        }
    }

    pub fn fine_tune(&self, device: &DeviceRef) -> Result<()> {
        let (data, attention) = (&self.data, self.attention());
        let tokens = self.part * job::positions(data);
        let capacity = Capacity {
            tokens,
            rows: tokens,
            targets: tokens,
            slots: 0,
        };
        let stages = job::Stages {
            sft: true,
            rl: false,
            eval: false,
        };
        let options = job::options(&self.config, stages);
        let engine = Engine::new(self.model(device, 1)?, capacity, options)?;
        let sequences = &data.train[..self.documents.min(data.train.len())];
        let documents = windows(sequences, data.max_history + 1, attention);
        let taken = self.documents.min(documents.len());
        let parts: Vec<_> = documents[..taken].chunks(self.part).collect();
        let pack = |part: &&[Window], forest: &mut Forest, targets: &mut Targets| {
            for &window in *part {
                let items = &data.train[window.sequence as usize];
                push_window(&data.catalog, items, window, attention, (forest, targets));
            }
        };
        let mut trainer = sft::Trainer::new(&engine, parts.len())?;
        trainer.regulariser = Regulariser::of(&self.config, 0);
        let result = trainer.step(&engine, &parts, pack, &UPDATE)?;
        ensure!(
            result.finite && result.grad_norm > 0.0,
            "loss {} with a gradient of norm {}",
            result.loss,
            result.grad_norm
        );
        Ok(())
    }

    /// Decodes as many prompts as the evaluation does at once.
    pub fn decode(&self, device: &DeviceRef) -> Result<()> {
        let (config, data) = (&self.config, &self.data);
        let model = self.model(device, 1)?;
        let decoding = Decoding::evaluation(config, data);
        let mut searcher = Searcher::new(&model, data, &decoding)?;
        let asked = data.valid.iter().take(decoding.batch);
        let histories: Vec<&[u32]> = asked.map(|e| e.history.as_slice()).collect();
        searcher.search(&model, &data.catalog, &histories, 0, 0)?;
        Ok(())
    }

    /// A rollout and two updates on it: in the second, policy and rollout differ.
    pub fn reinforce(&self, device: &DeviceRef) -> Result<()> {
        let (config, data) = (&self.config, &self.data);
        let capacity = rollout::capacity(config, data)?;
        let engine = Engine::new(self.model(device, 1)?, capacity, Options::default())?;
        let reference = self.model(device, 2)?;
        let asked: Vec<Question> = data.valid[..config.rl.prompts]
            .iter()
            .map(|example| Question {
                history: &example.history,
                target: Some(example.target),
            })
            .collect();
        let mut stepper = Stepper::new(&engine, config, data)?;
        let of = (asked.as_slice(), asked.len(), 0);
        let updates = (2, &UPDATE, false);
        let submitted = stepper.submit(&engine, data, of, Some(&reference), updates)?;
        let figures = stepper.wait(submitted)?;
        ensure!(
            (figures.flat as usize) < asked.len(),
            "every prompt's candidates all have the same reward"
        );
        ensure!(
            figures.is_finite() && figures.updates == 2 && figures.grad_norm > 0.0,
            "{} updates, the last with a gradient of norm {}",
            figures.updates,
            figures.grad_norm
        );
        Ok(())
    }
}

const UPDATE: Update = Update {
    lr: 1e-2,
    beta1: 0.9,
    beta2: 0.98,
    eps: 1e-8,
    weight_decay: 0.1,
    clip_norm: 1.0,
};
