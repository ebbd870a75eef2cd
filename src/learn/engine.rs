//! A model with everything a training pass over a forest needs: activations, the logits where a loss reads them, and the
//! optimiser. Fine-tuning and policy optimisation differ only in the forest, the targets and dLoss/dlog-prob.

use crate::device::{Buffer, DeviceRef, Slice, Stream};
use crate::forest::{Forest, ForestSize, TokenIndex};
use crate::kernels::{gather, log_softmax};
use crate::model::backbone::TokenIndexSlices;
use crate::model::layer::Pass;
use crate::model::optimiser::Optimiser;
use crate::model::{Activations, Layout, Model, Weights};
use anyhow::{Result, ensure};

/// Which next tokens are scored, grouped by the row whose logits score them: targets `starts[r]..starts[r + 1]` hang from
/// forest row `rows[r]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    pub rows: Vec<u32>,
    pub starts: Vec<u32>,
    pub tokens: Vec<u32>,
}

impl Targets {
    /// Number of targets K.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    pub fn clear(&mut self) {
        self.rows.clear();
        self.starts.clear();
        self.tokens.clear();
    }

    /// Adds a scored row, unless it was the last one added.
    pub fn push_row(&mut self, row: u32) {
        if self.rows.last() != Some(&row) {
            self.rows.push(row);
            self.starts.push(self.tokens.len() as u32);
        }
    }

    /// Adds a target scored at `row`; targets of one row are added one after another.
    pub fn push(&mut self, row: u32, token: u32) {
        self.push_row(row);
        self.tokens.push(token);
    }

    /// `starts` closed with K.
    fn closed_starts(&self) -> Vec<u32> {
        let mut starts = self.starts.clone();
        starts.push(self.tokens.len() as u32);
        starts
    }
}

/// Most tokens, scored rows and targets a pass may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub tokens: usize,
    pub rows: usize,
    pub targets: usize,
}

impl Capacity {
    /// Room for either.
    pub fn max(self, other: Capacity) -> Capacity {
        Capacity {
            tokens: self.tokens.max(other.tokens),
            rows: self.rows.max(other.rows),
            targets: self.targets.max(other.targets),
        }
    }
}

/// Logits at the scored rows and what is computed from them.
pub struct Head {
    /// u32 [R] forest rows; [R + 1] starts; [K] tokens.
    pub rows: Buffer,
    pub starts: Buffer,
    pub tokens: Buffer,
    hidden: Buffer,
    d_hidden: Buffer,
    logits: Buffer,
    lse: Buffer,
    /// [R] entropy of the policy over the vocabulary.
    pub entropy: Buffer,
    /// [K] log-probs of the targets.
    pub logp: Buffer,
    /// [K] dLoss/dlog-prob.
    pub g: Buffer,
}

impl Head {
    fn new(device: &DeviceRef, model: &Model, c: Capacity) -> Result<Head> {
        let (v, d) = (model.architecture.vocab, model.architecture.hidden);
        let buffer = |label, words| Buffer::new(device, label, words);
        Ok(Head {
            rows: buffer("scored rows", c.rows)?,
            starts: buffer("target starts", c.rows + 1)?,
            tokens: buffer("targets", c.targets)?,
            hidden: buffer("scored hidden states", c.rows * d)?,
            d_hidden: buffer("scored hidden-state gradient", c.rows * d)?,
            logits: buffer("logits", c.rows * v)?,
            lse: buffer("log-sums", c.rows)?,
            entropy: buffer("entropies", c.rows)?,
            logp: buffer("log-probs", c.targets)?,
            g: buffer("log-prob gradient", c.targets)?,
        })
    }
}

/// Sizes of the forest being trained on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    pub tokens: usize,
    pub rows: usize,
    pub targets: usize,
    distinct: usize,
    forest: ForestSize,
}

pub struct Engine {
    pub model: Model,
    pub optimiser: Optimiser,
    pub acts: Activations,
    pub head: Head,
    capacity: Capacity,
    order: Buffer,
    token_starts: Buffer,
    distinct_tokens: Buffer,
    index: TokenIndex,
    pub sizes: Sizes,
}

impl Engine {
    pub fn new(model: Model, capacity: Capacity) -> Result<Engine> {
        let device = &model.device.clone();
        let acts = Activations::for_training(device, &model.architecture, capacity.tokens)?;
        let head = Head::new(device, &model, capacity)?;
        Ok(Engine {
            optimiser: Optimiser::new(device, &model.layout)?,
            order: Buffer::new(device, "token order", capacity.tokens)?,
            token_starts: Buffer::new(device, "token starts", capacity.tokens + 1)?,
            distinct_tokens: Buffer::new(device, "distinct tokens", capacity.tokens)?,
            index: TokenIndex::default(),
            sizes: Sizes::default(),
            acts,
            head,
            model,
            capacity,
        })
    }

    pub fn device(&self) -> &DeviceRef {
        &self.model.device
    }

    pub fn layout(&self) -> &Layout {
        &self.model.layout
    }

    /// Uploads a forest and its targets. Errors: more than the capacity, tokens outside the vocabulary.
    pub fn upload(&mut self, forest: &Forest, targets: &Targets) -> Result<()> {
        let c = self.capacity;
        ensure!(
            targets.rows.len() <= c.rows && targets.len() <= c.targets && !targets.is_empty(),
            "a batch of {} scored rows and {} targets does not fit {} and {}",
            targets.rows.len(),
            targets.len(),
            c.rows,
            c.targets
        );
        let vocab = self.model.architecture.vocab;
        if let Some(token) = targets.tokens.iter().find(|&&t| t as usize >= vocab) {
            anyhow::bail!("target token {token} is outside the model's vocabulary of {vocab}");
        }
        self.model.upload(&self.acts, forest)?;
        self.index.rebuild(forest);
        self.order.write_u32(&self.index.order)?;
        self.token_starts.write_u32(&self.index.starts)?;
        self.distinct_tokens.write_u32(&self.index.tokens)?;
        self.head.rows.write_u32(&targets.rows)?;
        self.head.starts.write_u32(&targets.closed_starts())?;
        self.head.tokens.write_u32(&targets.tokens)?;
        self.sizes = Sizes {
            tokens: forest.len(),
            rows: targets.rows.len(),
            targets: targets.len(),
            distinct: self.index.tokens.len(),
            forest: forest.size(),
        };
        Ok(())
    }

    /// Records the forward pass of `model` (the trained one or a reference of the same shape) to the targets' log-probs.
    pub fn forward(&self, s: &mut Stream, model: &Model, logp: Slice) {
        let (n, d) = (self.sizes.rows, model.architecture.hidden);
        let head = &self.head;
        s.forest = self.sizes.forest;
        let pass = model.pass(&self.acts, self.sizes.tokens);
        model.forward(s, &pass, &self.acts, self.acts.hidden);
        gather::gather_rows(
            s,
            self.acts.hidden,
            head.rows.all(),
            head.hidden.all(),
            n,
            d,
        );
        model.logits(s, head.hidden.all(), n, head.logits.all());
        log_softmax::forward(
            s,
            head.logits.all(),
            head.starts.all(),
            head.tokens.all(),
            head.lse.all(),
            head.entropy.all(),
            logp,
            n,
            model.architecture.vocab,
        );
    }

    /// The pass over the uploaded forest.
    pub fn pass(&self) -> Pass<'_> {
        self.model.pass(&self.acts, self.sizes.tokens)
    }

    /// Records the backward pass from `head.g` down to the gradient of the final hidden states (`grads.hidden`), which a
    /// value head may then add to. Consumes the logits.
    pub fn backward_head(&self, s: &mut Stream) {
        let (n, head) = (self.sizes.rows, &self.head);
        let vocab = self.model.architecture.vocab;
        let grads = self.acts.grads.as_ref().expect("training buffers");
        log_softmax::backward(
            s,
            head.logits.all(),
            head.lse.all(),
            head.starts.all(),
            head.tokens.all(),
            head.g.all(),
            n,
            vocab,
        );
        crate::kernels::fill::fill_f32(s, grads.hidden, 0.0);
        self.model.logits_backward(
            s,
            head.hidden.all(),
            head.rows.all(),
            n,
            head.logits.all(),
            head.d_hidden.all(),
            grads.hidden,
            &self.optimiser.gradient,
        );
    }

    /// Records the backward pass from `grads.hidden` to the weights' gradient.
    pub fn backward_backbone(&self, s: &mut Stream) {
        let index = TokenIndexSlices {
            order: self.order.all(),
            starts: self.token_starts.all(),
            tokens: self.distinct_tokens.all(),
            distinct: self.sizes.distinct,
        };
        let gradient: &Weights = &self.optimiser.gradient;
        self.model
            .backward(s, &self.pass(), &self.acts, gradient, &index);
    }

    /// The logits [R, V] of the scored rows, until [`Engine::backward_head`] consumes them.
    pub fn logits(&self) -> Slice {
        self.head
            .logits
            .first(self.sizes.rows * self.model.architecture.vocab)
    }
}
