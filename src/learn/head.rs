//! Logits at the scored rows and what a loss makes of them: log-probs of the targets forward, the gradient of the hidden
//! states and of the output projection backward.
//!
//! Logits are the largest matrix of a step, R x V, so they are computed for as many rows at a time as one binding holds
//! (152 thousand tokens: 192 rows). Where one chunk holds them all they are computed once; where not, once forward and
//! once backward, unless the gradient of the log-probs is known from the start (cross-entropy): then each chunk goes
//! forward and backward before the next.

use super::engine::{Capacity, Input};
use crate::device::{
    ALIGN_WORDS, Buffer, DeviceRef, MAX_BUFFER_WORDS, Precision, Size, Slice, Stream,
};
use crate::kernels::{fill, gather, log_softmax};
use crate::model::{Model, Weights};
use anyhow::{Result, ensure};

pub struct Head {
    hidden: Buffer,
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
}

impl Head {
    /// Errors: a vocabulary whose logits one binding cannot hold for 64 rows; out of memory.
    pub fn new(device: &DeviceRef, model: &Model, c: Capacity) -> Result<Head> {
        Self::with_chunks(device, model, c, MAX_BUFFER_WORDS)
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
        let fitting = words / v / ALIGN_WORDS * ALIGN_WORDS;
        ensure!(
            fitting > 0,
            "a vocabulary of {v} tokens is too large: one binding holds the logits of {} rows, of the {ALIGN_WORDS} \
             that a pass needs",
            words / v
        );
        let chunk = fitting.min(c.rows.next_multiple_of(ALIGN_WORDS));
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
        })
    }

    /// Scored rows whose logits are computed at a time.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// The logits [R, V] of the last pass, if one chunk held them and nothing has consumed them.
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
        log_softmax::forward(
            s,
            self.logits.all(),
            input.targets.starts.skip(from),
            input.targets.tokens,
            self.lse.all().skip(from),
            self.entropy.all().skip(from),
            logp,
            n,
            model.architecture.vocab,
        );
    }

    fn chunk_backward(
        &self,
        s: &mut Stream,
        model: &Model,
        input: &Input,
        (from, n): (usize, Size),
        g: Slice,
        dw: &Weights,
    ) {
        let d = model.architecture.hidden;
        log_softmax::backward(
            s,
            self.logits.all(),
            self.lse.all().skip(from),
            input.targets.starts.skip(from),
            input.targets.tokens,
            g,
            n,
            model.architecture.vocab,
        );
        let hidden = self.hidden.all().skip(from * d);
        let d_hidden = self.d_hidden.all().skip(from * d);
        model.logits_backward(s, hidden, n, self.logits.all(), d_hidden, dw);
    }

    /// Spreads the gradient of the scored rows over `d_hidden` [T, d], whose other rows become 0.
    fn scatter(&self, s: &mut Stream, model: &Model, input: &Input, d_hidden: Slice) {
        let d = model.architecture.hidden;
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
    /// [`Head::forward`] of the same input. Consumes the logits.
    pub fn backward(
        &self,
        s: &mut Stream,
        model: &Model,
        input: &Input,
        g: Slice,
        d_hidden: Slice,
        dw: &Weights,
    ) {
        for chunk in self.chunks(input.scored) {
            if input.scored.max > self.chunk {
                self.chunk_logits(s, model, chunk);
            }
            self.chunk_backward(s, model, input, chunk, g, dw);
        }
        self.scatter(s, model, input, d_hidden);
    }

    /// [`Head::forward`] and [`Head::backward`] in one, for a `g` that does not depend on the log-probs.
    pub fn forward_backward(
        &self,
        s: &mut Stream,
        model: &Model,
        hidden: Slice,
        input: &Input,
        g: Slice,
        d_hidden: Slice,
        dw: &Weights,
    ) {
        self.gather(s, model, hidden, input);
        for chunk in self.chunks(input.scored) {
            self.chunk_logits(s, model, chunk);
            self.chunk_forward(s, model, input, chunk, self.logp.all());
            self.chunk_backward(s, model, input, chunk, g, dw);
        }
        self.scatter(s, model, input, d_hidden);
    }
}
