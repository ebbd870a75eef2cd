//! A model with everything a training pass over a forest needs: activations, the logits where a loss reads them, and the
//! optimiser. Fine-tuning and policy optimisation differ only in the forest, the targets and dLoss/dlog-prob.

use super::head::Head;
use crate::device::audit::first_not_finite;
use crate::device::{Buffer, DeviceRef, Launch, Size, Slice, Stream, admit_loop};
use crate::forest::{Forest, ForestSize, Row};
use crate::kernels::copy::copy;
use crate::kernels::dropout::Dropout;
use crate::kernels::lerp::lerp;
use crate::kernels::matmul;
use crate::kernels::token_order::{Tokens, token_order};
use crate::model::layer::Pass;
use crate::model::optimiser::Optimiser;
use crate::model::{Activations, Asked, Layout, Model, Weights};
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
}

/// Most tokens, scored rows and targets a pass may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub tokens: usize,
    pub rows: usize,
    pub targets: usize,
    /// Slots of the key/value caches, where decoding shares them; at least `tokens` there are.
    pub slots: usize,
}

impl Capacity {
    /// Room for either.
    pub fn max(self, other: Capacity) -> Capacity {
        Capacity {
            tokens: self.tokens.max(other.tokens),
            rows: self.rows.max(other.rows),
            targets: self.targets.max(other.targets),
            slots: self.slots.max(other.slots),
        }
    }
}

/// [`Targets`] on the device: u32 [R], [R + 1], [K].
#[derive(Clone, Copy, Debug)]
pub struct TargetSlices {
    pub rows: Slice,
    pub starts: Slice,
    pub tokens: Slice,
}

/// What a training pass is run on, on the device.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// [T, ROW] and the parent of each row.
    pub rows: Slice,
    pub parent: Slice,
    /// [T] scratch: the rows by token.
    pub order: Slice,
    pub targets: TargetSlices,
    /// T.
    pub tokens: Size,
    /// R.
    pub scored: Size,
    /// K.
    pub count: Size,
    /// What its rows attend to, at most; and, where there are trees that hang from prompts, those of the trees, and the
    /// scored rows.
    pub size: ForestSize,
    pub trees: ForestSize,
    pub scored_size: ForestSize,
    /// For fine-tuning with dropout.
    pub dropout: Option<Dropout>,
}

/// Where a forest and its targets are uploaded to. Forests that one stream runs over have a room of their own each.
pub struct Room {
    rows: Buffer,
    parent: Buffer,
    target_rows: Buffer,
    target_starts: Buffer,
    target_tokens: Buffer,
}

impl Room {
    /// For what `engine` can run.
    pub fn new(engine: &Engine) -> Result<Room> {
        let c = engine.capacity;
        let buffer = |label, words| Buffer::new(engine.device(), label, words);
        Ok(Room {
            rows: buffer("forest rows", c.tokens * Row::WORDS)?,
            parent: buffer("forest parents", c.tokens)?,
            target_rows: buffer("scored rows", c.rows)?,
            target_starts: buffer("target starts", c.rows + 1)?,
            target_tokens: buffer("targets", c.targets)?,
        })
    }
}

/// What an engine can do beyond the plain passes, at the cost of memory or time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Layers keep their inputs only (`model.recompute`).
    pub recompute: bool,
    /// Passes may have dropout.
    pub dropout: bool,
    /// An average of the weights is kept.
    pub average: bool,
}

pub struct Engine {
    pub model: Model,
    /// The moving average of the model's weights, where a stage keeps one.
    pub averaged: Option<Model>,
    pub optimiser: Optimiser,
    pub acts: Activations,
    pub head: Head,
    capacity: Capacity,
    order: Buffer,
    /// [R, ROW] scratch of the reference's last layer.
    scored_records: Buffer,
}

/// `to += share (from - to)`, a copy where the share is 1, and what products read of `to`.
pub fn follow(s: &mut Stream, from: &Weights, to: &Weights, share: f32) {
    for (from, to) in from.blocks.iter().zip(&to.blocks) {
        match share < 1.0 {
            true => lerp(s, from.all(), to.all(), share, to.len()),
            false => copy(s, from.all(), to.all(), to.len()),
        }
    }
    to.refresh(s);
}

impl Engine {
    /// Buffers for passes of up to `capacity`.
    pub fn new(model: Model, capacity: Capacity, options: Options) -> Result<Engine> {
        let device = &model.device.clone();
        let (tokens, slots) = (capacity.tokens, capacity.slots);
        let iterations = matmul::ITERATIONS * tokens as u64;
        let what = format!("a pass over {tokens} tokens (accumulating takes smaller ones)");
        admit_loop(device, iterations, &what)?;
        let kept = (options.recompute, options.dropout);
        let acts = Activations::for_training(&model, tokens, slots, kept)?;
        let head = Head::new(device, &model, capacity)?;
        let buffer = |label, words| Buffer::new(device, label, words);
        Ok(Engine {
            optimiser: Optimiser::new(device, &model.layout, model.precision)?,
            averaged: options.average.then(|| model.same_shape()).transpose()?,
            order: buffer("token order", tokens)?,
            scored_records: buffer("scored rows' records", capacity.rows * Row::WORDS)?,
            acts,
            head,
            model,
            capacity,
        })
    }

    /// Records one step of the moving average, if there is one, after `updates` updates of a stage; the first steps count
    /// more, so that where the stage began is soon forgotten.
    pub fn average(&self, s: &mut Stream, decay: f64, updates: u64) {
        if let Some(averaged) = &self.averaged {
            let decay = decay.min((1 + updates) as f64 / (10 + updates) as f64);
            follow(
                s,
                &self.model.weights,
                &averaged.weights,
                1.0 - decay as f32,
            );
        }
    }

    /// The average begins with the model's weights: a new stage begins.
    pub fn reset_average(&self) -> Result<()> {
        let mut s = Stream::new();
        if let Some(averaged) = &self.averaged {
            follow(&mut s, &self.model.weights, &averaged.weights, 1.0);
        }
        self.device().run(&s)
    }

    /// The model that training is after: the average, or what is trained itself.
    pub fn result(&self) -> &Model {
        self.averaged.as_ref().unwrap_or(&self.model)
    }

    pub fn device(&self) -> &DeviceRef {
        &self.model.device
    }

    /// Runs a step's stream again, up to its update, and says where the first number that is not finite is: the launch and
    /// the tensor. None if there is none.
    pub fn first_not_finite(&self, s: &Stream) -> Result<Option<String>> {
        let (model, optimiser) = (&self.model, &self.optimiser);
        let updated = |launch: &Launch| launch.writes(optimiser.norm().buffer);
        let found = first_not_finite(self.device(), s, |launch| !updated(launch))?;
        Ok(found.map(|found| {
            let (slice, element) = (found.slice, found.element);
            let families = [(&model.weights, ""), (&optimiser.gradient, "gradient of ")];
            let tensor = families.iter().find_map(|(family, what)| {
                let (block, at) = family.place(slice, element)?;
                Some(format!("{what}{}", model.layout.name_at(block, at)?))
            });
            let tensor = tensor.unwrap_or_else(|| self.device().label(slice.buffer));
            format!("{found} ({tensor})")
        }))
    }

    pub fn layout(&self) -> &Layout {
        &self.model.layout
    }

    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Lengths [T, R, K] of inputs, one of each size that forms of kernels are chosen for, the largest first.
    pub fn lengths(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        let c = self.capacity;
        let most = c.tokens.max(c.rows).max(c.targets);
        let halved = |&n: &usize| (n > 1).then(|| n.div_ceil(2));
        std::iter::successors(Some(most), halved)
            .map(move |n| [c.tokens, c.rows, c.targets].map(|most| n.min(most)))
    }

    /// Uploads a forest and its targets to `to`, a room of this engine's capacity. Errors: more than that, tokens outside the
    /// vocabulary.
    pub fn upload(&self, to: &Room, forest: &Forest, targets: &Targets) -> Result<Input> {
        let c = self.capacity;
        ensure!(
            forest.len() <= c.tokens
                && targets.rows.len() <= c.rows
                && targets.len() <= c.targets
                && !targets.is_empty(),
            "a batch of {} tokens, {} scored rows and {} targets does not fit {}, {} and {}",
            forest.len(),
            targets.rows.len(),
            targets.len(),
            c.tokens,
            c.rows,
            c.targets
        );
        let vocab = self.model.architecture.vocab;
        if let Some(token) = targets.tokens.iter().find(|&&t| t as usize >= vocab) {
            anyhow::bail!("target token {token} is outside the model's vocabulary of {vocab}");
        }
        self.model.check(&forest.rows)?;
        to.rows.write_u32(forest.row_words())?;
        to.parent.write_u32(&forest.parent)?;
        to.target_rows.write_u32(&targets.rows)?;
        let closed = [targets.starts.as_slice(), &[targets.len() as u32]].concat();
        to.target_starts.write_u32(&closed)?;
        to.target_tokens.write_u32(&targets.tokens)?;
        let lengths = [forest.len(), targets.rows.len(), targets.len()];
        Ok(Input {
            size: forest.size(),
            ..self.input(to, lengths)
        })
    }

    /// A forest of T rows in `at`, R of them scored, with K targets; uploaded, unless it is for a stream that is not run.
    pub fn input(&self, at: &Room, [tokens, scored, count]: [usize; 3]) -> Input {
        Input {
            rows: at.rows.all(),
            parent: at.parent.all(),
            order: self.order.all(),
            targets: TargetSlices {
                rows: at.target_rows.all(),
                starts: at.target_starts.all(),
                tokens: at.target_tokens.all(),
            },
            tokens: tokens.into(),
            scored: scored.into(),
            count: count.into(),
            size: ForestSize::default(),
            trees: ForestSize::default(),
            scored_size: ForestSize::default(),
            dropout: None,
        }
    }

    /// The pass over an input.
    pub fn pass(&self, input: &Input) -> Pass<'_> {
        Pass {
            dropout: input.dropout,
            ..self.model.pass(input.rows, input.parent, input.tokens)
        }
    }

    /// Records the forward pass to the targets' log-probs.
    pub fn forward(&self, s: &mut Stream, input: &Input, logp: Slice) {
        self.forward_from(s, input, 0, logp);
    }

    /// As [`Engine::forward`], where the rows before `from` (where the trees begin) have been run already.
    pub fn forward_from(&self, s: &mut Stream, input: &Input, from: usize, logp: Slice) {
        let (model, acts) = (&self.model, &self.acts);
        let pass = self.pass(input).starting(from);
        s.forest = if from > 0 { input.trees } else { input.size };
        model.forward(s, &pass, acts, acts.hidden);
        self.head.forward(s, model, acts.hidden, input, logp);
    }

    /// Records the forward pass of another model of the same shape, in other buffers, to the targets' log-probs.
    pub fn forward_other(
        &self,
        s: &mut Stream,
        model: &Model,
        acts: &Activations,
        input: &Input,
        logp: Slice,
    ) {
        let pass = model.pass(input.rows, input.parent, input.tokens);
        s.forest = input.size;
        let asked = Asked {
            index: input.targets.rows,
            records: self.scored_records.all(),
            rows: input.scored,
            size: input.scored_size,
        };
        model.forward_at(s, &pass, acts, asked, self.head.hidden());
        self.head.score(s, model, input, logp);
    }

    /// Records a forward and backward pass whose dLoss/dlog-prob, `head.g`, is known from the start, with a share `smoothing`
    /// of each target spread over the vocabulary; the log-probs are left in `head.logp`.
    pub fn forward_backward(&self, s: &mut Stream, input: &Input, smoothing: f32) {
        let (model, acts) = (&self.model, &self.acts);
        s.forest = input.size;
        model.forward(s, &self.pass(input), acts, acts.hidden);
        let (g, d_hidden) = (self.scaled_g(s, input), self.d_hidden());
        let dw = &self.optimiser.gradient;
        self.head
            .forward_backward(s, model, acts.hidden, input, (g, smoothing), d_hidden, dw);
        self.backward_backbone(s, input);
    }

    /// Records the backward pass from `head.g` down to the gradient of the final hidden states (`grads.hidden`), which a
    /// value head may then add to.
    pub fn backward_head(&self, s: &mut Stream, input: &Input) {
        let (g, d_hidden) = (self.scaled_g(s, input), self.d_hidden());
        let dw = &self.optimiser.gradient;
        self.head.backward(s, &self.model, input, g, d_hidden, dw);
    }

    /// `head.g` as the backward pass begins with it.
    fn scaled_g(&self, s: &mut Stream, input: &Input) -> Slice {
        let (g, to) = (self.head.g.all(), self.head.scaled_g.all());
        self.optimiser.scaled(s, g, to, input.count)
    }

    fn d_hidden(&self) -> Slice {
        let grads = self.acts.grads.as_ref();
        grads.expect("training buffers").hidden
    }

    /// Records the backward pass from `grads.hidden` to the weights' gradient.
    pub fn backward_backbone(&self, s: &mut Stream, input: &Input) {
        let tokens = Tokens::of_rows(input.rows, input.tokens);
        token_order(s, tokens, input.order);
        let gradient: &Weights = &self.optimiser.gradient;
        let pass = self.pass(input);
        s.forest = input.size;
        self.model
            .backward(s, &pass, &self.acts, gradient, input.order);
    }
}
