//! Logits at the scored rows and what a loss makes of them: log-probs of the targets forward, the gradient of the hidden
//! states and of the output projection backward.
//!
//! Logits are the largest matrix of a step, R x V, so they are computed for as many rows at a time as every binding holds
//! (152 thousand tokens: 192 rows). Where one chunk holds them all they are computed once; where not, once forward and
//! once backward, unless the gradient of the log-probs is known from the start (cross-entropy): then each chunk goes
//! forward and backward before the next. Their gradient is never written ([`target_gradient`]).

use super::engine::{Capacity, Input};
use crate::device::{Buffer, DeviceRef, Precision, Size, Slice, Stream};
use crate::kernels::embedding::{self, Weighted};
use crate::kernels::log_softmax::{self, Scored};
use crate::kernels::matmul::{Dims, Form, matmul};
use crate::kernels::scale::scale;
use crate::kernels::target_gradient::{self, Targets};
use crate::kernels::token_order::{Tokens, token_order};
use crate::kernels::{fill, gather};
use crate::model::backbone::{logit_rows, most_logits};
use crate::model::{Model, Weights};
use anyhow::Result;

pub struct Head {
    hidden: Buffer,
    /// Their gradient, and on the way back, until it is known, what is multiplied with probabilities.
    d_hidden: Buffer,
    /// [rows of a chunk, V]
    logits: Buffer,
    /// Scored rows per chunk.
    chunk: usize,
    lse: Buffer,
    /// [R] entropy of the policy over the vocabulary.
    pub entropy: Buffer,
    /// [K] log-probs of the targets.
    pub logp: Buffer,
    /// [K] dLoss/dlog-prob, and with the loss scale where there is one.
    pub g: Buffer,
    pub scaled_g: Buffer,
    /// [K] the scored row of each target, and the targets by token.
    target_rows: Buffer,
    target_order: Buffer,
    smoothing: Smoothing,
}

/// What label smoothing (Szegedy et al., CVPR 2016) works in. A target keeps the share 1 - e of its weight; the share e goes
/// to all V tokens alike, which adds the same row to the gradient of every hidden state, and of every token's weights.
struct Smoothing {
    /// [K] dLoss/dlog-prob of what the targets keep; then [R] -1.
    kept: Buffer,
    /// One number: 1 - e.
    keep: Buffer,
    /// [V] e / V.
    share: Buffer,
    /// [d] e times the mean of the projection's rows, and the sum of the hidden states weighted by dLoss/dlog-prob.
    mean_weight: Buffer,
    hidden_sum: Buffer,
}

impl Head {
    /// Errors: out of memory.
    pub fn new(device: &DeviceRef, model: &Model, c: Capacity) -> Result<Head> {
        Self::with_chunks(device, model, c, most_logits(device))
    }

    /// As [`Head::new`], with logits of at most `words` at a time.
    pub fn with_chunks(
        device: &DeviceRef,
        model: &Model,
        c: Capacity,
        words: usize,
    ) -> Result<Head> {
        let (v, d) = (model.architecture.vocab, model.architecture.hidden);
        let buffer = |label, words| Buffer::new(device, label, words);
        let chunk = logit_rows(words, v, d);
        Ok(Head {
            hidden: buffer("scored hidden states", c.rows * d)?,
            d_hidden: buffer("scored hidden-state gradient", c.rows * d)?,
            logits: buffer("logits", chunk.min(c.rows) * v)?,
            chunk,
            lse: buffer("log-sums", c.rows)?,
            entropy: buffer("entropies", c.rows)?,
            logp: buffer("log-probs", c.targets)?,
            g: buffer("log-prob gradient", c.targets)?,
            scaled_g: match model.precision {
                Precision::F32 => buffer("scaled log-prob gradient", 1)?,
                Precision::F16 => buffer("scaled log-prob gradient", c.targets)?,
            },
            target_rows: buffer("targets' rows", c.targets)?,
            target_order: buffer("target order", c.targets)?,
            smoothing: Smoothing {
                kept: buffer("kept log-prob gradient", c.targets.max(c.rows))?,
                keep: buffer("smoothing", 1)?,
                share: buffer("share of every token", v)?,
                mean_weight: buffer("mean of the projection", d)?,
                hidden_sum: buffer("sum of hidden states", d)?,
            },
        })
    }

    /// Scored rows whose logits are computed at a time.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// The logits [R, V] of the last pass, if one chunk held them.
    pub fn logits(&self, input: &Input, vocab: usize) -> Slice {
        assert!(input.scored.max <= self.chunk, "the logits were not kept");
        self.logits.first(input.scored.max * vocab)
    }

    /// (first row, number of rows) of each chunk.
    fn chunks(&self, scored: Size) -> impl Iterator<Item = (usize, Size)> + use<> {
        let chunk = self.chunk;
        (0..scored.max)
            .step_by(chunk)
            .map(move |from| (from, scored.part(from, chunk)))
    }

    fn gather(&self, s: &mut Stream, model: &Model, hidden: Slice, input: &Input) {
        let (rows, to) = (input.targets.rows, self.hidden.all());
        gather::gather_rows(s, hidden, rows, to, input.scored, model.architecture.hidden);
    }

    fn chunk_logits(&self, s: &mut Stream, model: &Model, (from, n): (usize, Size)) {
        let hidden = self.hidden.all().skip(from * model.architecture.hidden);
        model.logits(s, hidden, n, self.logits.all());
    }

    fn chunk_forward(
        &self,
        s: &mut Stream,
        model: &Model,
        input: &Input,
        (from, n): (usize, Size),
        logp: Slice,
    ) {
        let on = Scored {
            starts: input.targets.starts,
            targets: input.targets.tokens,
            lse: self.lse.all(),
            entropy: self.entropy.all(),
            logp,
        };
        let (logits, vocab) = (self.logits.all(), model.architecture.vocab);
        log_softmax::forward(s, logits, on, (from, n), vocab);
    }

    /// Before the way back through the chunks: the gradient of the projection's rows of targets, and what the products
    /// begin with.
    fn begin_backward(
        &self,
        s: &mut Stream,
        model: &Model,
        input: &Input,
        (g, smoothing): (Slice, f32),
        dw: &Weights,
    ) {
        let d = model.architecture.hidden;
        let hidden = self.hidden.all();
        let (rows, order) = (self.target_rows.all(), self.target_order.all());
        let on = targets(model, input, g);
        target_gradient::scale(s, hidden, on, self.d_hidden.all(), rows, d);
        let mut kept = g;
        if smoothing > 0.0 {
            let keep = self.smoothing.keep.all();
            kept = self.smoothing.kept.all();
            fill::fill_f32(s, keep, 1.0 - smoothing);
            scale(s, g, keep, 0, kept, input.count);
        }
        let tokens = Tokens::plain(on.tokens, input.count);
        token_order(s, tokens, order);
        let weighted = Some(Weighted {
            rows,
            weights: kept,
        });
        for shard in &model.layout.lm_head {
            embedding::backward(s, hidden, weighted, tokens, order, dw.shard(shard), d);
        }
    }

    /// After the chunks, with one target per row: what all tokens get alike. [`Head::end_backward`] multiplies the part of the
    /// hidden states by minus dLoss/dlog-prob.
    fn smooth(
        &self,
        s: &mut Stream,
        model: &Model,
        input: &Input,
        (g, smoothing): (Slice, f32),
        dw: &Weights,
    ) {
        assert_eq!(input.scored.max, input.count.max, "one target per row");
        let (v, d) = (model.architecture.vocab, model.architecture.hidden);
        let with = &self.smoothing;
        // Shards of the projection take as many of the same numbers.
        let (share, one) = (with.share.all(), Size::from(1));
        let [mean, sum] = [&with.mean_weight, &with.hidden_sum].map(Buffer::all);
        let dims = |m: Size, k: Size| Dims { m, n: d, k };
        fill::fill_f32(s, share, smoothing / v as f32);
        let shards = &model.layout.lm_head;
        for shard in shards {
            let (w, terms) = (model.weights.slice(shard.id), dims(one, shard.rows.into()));
            matmul(s, Form::TN, share, w, mean, terms, shard.first > 0);
        }
        let (d_hidden, minus) = (self.d_hidden.all(), with.kept.all());
        fill::fill_first(s, minus, input.scored.max, (-1.0f32).to_bits());
        let outer = dims(input.scored, one);
        matmul(s, Form::NN, minus, mean, d_hidden, outer, true);
        let hidden = self.hidden.all();
        matmul(s, Form::TN, g, hidden, sum, dims(one, input.scored), false);
        for shard in shards {
            let (d_w, outer) = (dw.slice(shard.id), dims(shard.rows.into(), one));
            matmul(s, Form::NN, share, sum, d_w, outer, true);
        }
    }

    fn chunk_backward(
        &self,
        s: &mut Stream,
        model: &Model,
        (from, n): (usize, Size),
        dw: &Weights,
    ) {
        let d_hidden = self.d_hidden.all().skip(from * model.architecture.hidden);
        let lse = (self.lse.all(), from);
        model.logits_backward(s, self.logits.all(), lse, n, d_hidden, dw);
    }

    /// After it: completes the gradient of the scored rows and spreads it over `d_hidden` [T, d], whose other rows become 0.
    fn end_backward(
        &self,
        s: &mut Stream,
        model: &Model,
        input: &Input,
        (g, smoothing): (Slice, f32),
        d_hidden: Slice,
    ) {
        let d = model.architecture.hidden;
        let (on, keep) = (targets(model, input, g), 1.0 - smoothing);
        for shard in &model.layout.lm_head {
            let w = model.weights.shard_operand(shard);
            target_gradient::add(s, w, on, keep, self.d_hidden.all(), d);
        }
        fill::fill_f32(s, d_hidden, 0.0);
        let (from, rows) = (self.d_hidden.all(), input.targets.rows);
        gather::scatter_add_rows(s, from, rows, d_hidden, input.scored, d);
    }

    /// Records the log-probs of the targets from the hidden states [T, d].
    pub fn forward(
        &self,
        s: &mut Stream,
        model: &Model,
        hidden: Slice,
        input: &Input,
        logp: Slice,
    ) {
        self.gather(s, model, hidden, input);
        self.score(s, model, input, logp);
    }

    /// [R, d] where [`Head::score`] reads the hidden states of the scored rows.
    pub fn hidden(&self) -> Slice {
        self.hidden.all()
    }

    /// Records the log-probs of the targets from the scored rows' hidden states in [`Head::hidden`].
    pub fn score(&self, s: &mut Stream, model: &Model, input: &Input, logp: Slice) {
        for chunk in self.chunks(input.scored) {
            self.chunk_logits(s, model, chunk);
            self.chunk_forward(s, model, input, chunk, logp);
        }
    }

    /// Records the way back from `g` [K] to `d_hidden` [T, d] and the output projection's gradient in `dw`, after
    /// [`Head::forward`] of the same input.
    pub fn backward(
        &self,
        s: &mut Stream,
        model: &Model,
        input: &Input,
        g: Slice,
        d_hidden: Slice,
        dw: &Weights,
    ) {
        self.begin_backward(s, model, input, (g, 0.0), dw);
        for chunk in self.chunks(input.scored) {
            if input.scored.max > self.chunk {
                self.chunk_logits(s, model, chunk);
            }
            self.chunk_backward(s, model, chunk, dw);
        }
        self.end_backward(s, model, input, (g, 0.0), d_hidden);
    }

    /// [`Head::forward`] and [`Head::backward`] in one, for a `g` that does not depend on the log-probs.
    pub fn forward_backward(
        &self,
        s: &mut Stream,
        model: &Model,
        hidden: Slice,
        input: &Input,
        (g, smoothing): (Slice, f32),
        d_hidden: Slice,
        dw: &Weights,
    ) {
        self.gather(s, model, hidden, input);
        self.begin_backward(s, model, input, (g, smoothing), dw);
        for chunk in self.chunks(input.scored) {
            self.chunk_logits(s, model, chunk);
            self.chunk_forward(s, model, input, chunk, self.logp.all());
            self.chunk_backward(s, model, chunk, dw);
        }
        if smoothing > 0.0 {
            self.smooth(s, model, input, (g, smoothing), dw);
        }
        self.end_backward(s, model, input, (g, smoothing), d_hidden);
    }
}

fn targets(model: &Model, input: &Input, g: Slice) -> Targets {
    Targets {
        starts: input.targets.starts,
        tokens: input.targets.tokens,
        g,
        rows: input.scored,
        vocab: model.architecture.vocab,
    }
}
