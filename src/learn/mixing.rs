//! Fine-tuning mixed into reinforcement learning (`rl.sft_weight`): every update also takes the gradient of the
//! cross-entropy over a few training documents, which keeps the policy near what the histories say where rewards say
//! nothing.

use super::context::attention;
use super::engine::{Capacity, Engine, Input, Room, Targets};
use super::sequences::{Window, push_window};
use super::sft;
use crate::config::Config;
use crate::data::Dataset;
use crate::device::{Slice, Stream};
use crate::forest::{Forest, PromptAttention};
use crate::kernels::{fill, reduce};
use crate::rng::{self, Rng};
use anyhow::Result;

/// The documents of a step, as many as it has prompts, and how they weigh.
pub struct Mixing {
    weight: f32,
    seed: u64,
    attention: PromptAttention,
    documents: Vec<Window>,
    count: usize,
    forest: Forest,
    targets: Targets,
    room: Room,
    input: Option<Input>,
    regulariser: sft::Regulariser,
}

/// What its passes can need. Errors: no document to learn from.
pub fn capacity(config: &Config, data: &Dataset) -> Result<Capacity> {
    let plan = sft::Plan::with_batch(config, data, config.rl.prompts, 1)?;
    Ok(plan.capacity(data.catalog.levels(), attention(config)))
}

impl Mixing {
    /// None without a weight. Errors: as [`capacity`]; out of memory.
    pub fn new(engine: &Engine, config: &Config, data: &Dataset) -> Result<Option<Mixing>> {
        if config.rl.sft_weight == 0.0 {
            return Ok(None);
        }
        let plan = sft::Plan::with_batch(config, data, config.rl.prompts, 1)?;
        Ok(Some(Mixing {
            weight: config.rl.sft_weight as f32,
            seed: config.seed,
            attention: attention(config),
            documents: plan.documents().to_vec(),
            count: config.rl.prompts,
            forest: Forest::new(),
            targets: Targets::default(),
            room: Room::new(engine)?,
            input: None,
            regulariser: sft::Regulariser::of(config, 0),
        }))
    }

    /// The documents of step `step`, drawn uniformly.
    pub fn documents(&self, step: u32) -> Vec<Window> {
        let all = &self.documents;
        let draw = |i: usize| Rng::new(self.seed, rng::Stream::Mixing, step, i as u32);
        let drawn = (0..self.count.min(all.len())).map(|i| all[draw(i).below(all.len())]);
        drawn.collect()
    }

    /// Uploads them.
    pub fn upload(&mut self, engine: &Engine, data: &Dataset, step: u32) -> Result<()> {
        self.forest.clear();
        self.targets.clear();
        for window in self.documents(step) {
            let items = &data.train[window.sequence as usize];
            let into = (&mut self.forest, &mut self.targets);
            push_window(&data.catalog, items, window, self.attention, into);
        }
        let uploaded = engine.upload(&self.room, &self.forest, &self.targets)?;
        self.input = Some(self.dropping(uploaded, step));
        Ok(())
    }

    /// From now on records as if there were so many tokens, rows and targets: for streams that are not run.
    pub fn suppose(&mut self, engine: &Engine, lengths: [usize; 3]) {
        self.input = Some(self.dropping(engine.input(&self.room, lengths), 0));
    }

    fn dropping(&self, input: Input, step: u32) -> Input {
        let dropout = self.regulariser.dropout;
        Input {
            dropout: dropout.map(|of| crate::kernels::dropout::Dropout { step, ..of }),
            ..input
        }
    }

    /// Records the passes over the uploaded documents, whose gradient is added; `loss` gets their mean cross-entropy times
    /// the weight.
    pub fn record(&self, s: &mut Stream, engine: &Engine, loss: Slice) {
        let input = self.input.as_ref().expect("uploaded before");
        let (logp, g) = (engine.head.logp.all(), engine.head.g.all());
        let n = input.count.max;
        fill::fill_first(s, g, n, (-self.weight / n as f32).to_bits());
        engine.forward_backward(s, input, self.regulariser.label_smoothing);
        reduce::dot(s, logp, g, loss, input.count);
    }
}
