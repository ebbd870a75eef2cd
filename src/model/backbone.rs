//! The model on a device: weights, the backbone's passes, and logits where something reads them.

use super::activations::Activations;
use super::architecture::Architecture;
use super::layer::{self, Pass};
use super::layout::{Layout, Room, ShardId, Weights};
use crate::device::{
    ALIGN_WORDS, Buffer, DeviceRef, MAX_BUFFER_WORDS, Precision, Size, Slice, Stream, read_f32,
};
use crate::forest::{ForestSize, Row};
use crate::kernels::columns::{Columns, copy_columns};
use crate::kernels::dropout::dropout_in_place;
use crate::kernels::matmul::{Dims, Form, linear};
use crate::kernels::matmul_softmax::matmul_softmax;
use crate::kernels::rmsnorm::{self, Heads};
use crate::kernels::token_order::Tokens;
use crate::kernels::{embedding, fill, rope};
use anyhow::{Result, ensure};

/// A model's shape, its weights and its rotary table. Immutable but for the weights' values.
pub struct Model {
    pub device: DeviceRef,
    pub architecture: Architecture,
    pub layout: Layout,
    pub weights: Weights,
    /// How activations, their gradients and the operands of matrix products are stored; the residual stream and its
    /// gradient, hidden states, logits and the weights themselves are f32.
    pub precision: Precision,
    table: Buffer,
    positions: usize,
    /// [rows, rows of a shard] logits on their way to or from those of the whole vocabulary, where it is in several shards.
    columns: Option<Buffer>,
}

/// The site of dropout that layers do not have ([`super::layout::LayerIds::sites`]).
const EMBEDDING_SITE: u32 = 0;

/// Rows of a forest whose hidden states somebody reads.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// u32 [n]
    pub index: Slice,
    /// [n, ROW] scratch: their records.
    pub records: Slice,
    /// n.
    pub rows: Size,
    /// What they attend to, at most.
    pub size: ForestSize,
}

/// Room for logits that a device has in one binding: what is cut up anyway need not be larger than every adapter allows.
pub fn most_logits(device: &DeviceRef) -> usize {
    device.max_buffer_words().min(MAX_BUFFER_WORDS)
}

/// Rows [n, d] whose logits are computed at a time where `words` have room for them: a multiple of 64 or, of a vocabulary
/// too large for that, as many as end on a whole line of hidden states; at least such a line.
pub fn logit_rows(words: usize, vocab: usize, hidden: usize) -> usize {
    let line = ALIGN_WORDS >> hidden.trailing_zeros().min(ALIGN_WORDS.trailing_zeros());
    let rows = words / vocab;
    let step = if rows >= ALIGN_WORDS {
        ALIGN_WORDS
    } else {
        line
    };
    (rows / step).max(1) * step
}

impl Model {
    /// Zero weights for documents of up to `positions` tokens. Errors: sizes that do not fit together; f16 on a device
    /// without it.
    pub fn new(
        device: &DeviceRef,
        architecture: &Architecture,
        positions: usize,
        precision: Precision,
    ) -> Result<Model> {
        architecture.validate()?;
        ensure!(
            precision == Precision::F32 || device.has_halves(),
            "{}: this device has no f16 in shaders (SHADER_F16): use precision=f32",
            device.info()
        );
        let layout = Layout::new(architecture, Room::of(device));
        let weights = Weights::operands(device, &layout, "weights", precision)?;
        let rows = logit_rows(most_logits(device), architecture.vocab, architecture.hidden);
        let columns = match &layout.lm_head[..] {
            [_] => None,
            [shard, ..] => Some(Buffer::new(device, "logits of a shard", rows * shard.rows)?),
            [] => unreachable!("a vocabulary has a token"),
        };
        let table = rope::table(positions, architecture.head_dim, architecture.rope_theta);
        Ok(Model {
            device: device.clone(),
            architecture: architecture.clone(),
            layout,
            weights,
            precision,
            table: Buffer::with_f32(device, "rotary table", &table)?,
            positions,
            columns,
        })
    }

    /// Whether a forest can be run. Errors: a token outside the vocabulary, a document longer than the model was made
    /// for.
    pub fn check(&self, rows: &[Row]) -> Result<()> {
        let vocab = self.architecture.vocab;
        if let Some(row) = rows.iter().find(|r| r.token as usize >= vocab) {
            anyhow::bail!(
                "token {} is outside the model's vocabulary of {vocab}",
                row.token
            );
        }
        let longest = rows.iter().map(|r| r.position as usize + 1).max();
        ensure!(
            longest.unwrap_or(0) <= self.positions,
            "a document of {} tokens is longer than the {} positions prepared",
            longest.unwrap_or(0),
            self.positions
        );
        Ok(())
    }

    /// The pass over the first `tokens` rows of a forest.
    pub fn pass(&self, rows: Slice, parent: Slice, tokens: impl Into<Size>) -> Pass<'_> {
        Pass {
            a: &self.architecture,
            from: 0,
            tokens: tokens.into(),
            rows,
            parent,
            table: self.table.all(),
            dropout: None,
        }
    }

    /// Runs the backbone over a pass; its rows of `hidden` [T, d] get the hidden states after the final norm.
    pub fn forward(&self, s: &mut Stream, pass: &Pass, acts: &Activations, hidden: Slice) {
        self.layers(s, pass, acts, self.architecture.layers);
        self.final_norm(s, pass, acts, hidden);
    }

    /// As [`Model::forward`] over a whole forest of which few rows are asked for: all have keys and values in the last
    /// layer, but only those asked for go through the rest of it. Their hidden states are written to `hidden` [n, d] in
    /// the index's order.
    pub fn forward_at(
        &self,
        s: &mut Stream,
        pass: &Pass,
        acts: &Activations,
        asked: Asked,
        hidden: Slice,
    ) {
        let last = self.architecture.layers - 1;
        self.layers(s, pass, acts, last);
        let (ids, x) = (&self.layout.layers[last], &acts.layers[last]);
        layer::project(s, pass, &self.weights, ids, x);
        let (pass, x) = layer::select(s, pass, x, (asked.index, asked.records, asked.rows));
        s.forest = asked.size;
        layer::finish(s, &pass, &self.weights, ids, &x);
        self.final_norm(s, &pass, acts, hidden);
    }

    /// The embedding and the first `layers` layers.
    fn layers(&self, s: &mut Stream, pass: &Pass, acts: &Activations, layers: usize) {
        let d = self.architecture.hidden;
        let x_in = acts.layers[0].x_in.skip(pass.from * d);
        for shard in &self.layout.embed {
            let table = self.weights.shard(shard);
            embedding::forward(s, table, pass.records(), x_in, pass.tokens, d);
        }
        if let Some(mask) = pass.mask(EMBEDDING_SITE) {
            dropout_in_place(s, pass.table, x_in, mask, pass.tokens);
        }
        for (ids, x) in self.layout.layers[..layers].iter().zip(&acts.layers) {
            layer::forward(s, pass, &self.weights, ids, x);
        }
    }

    fn final_norm(&self, s: &mut Stream, pass: &Pass, acts: &Activations, hidden: Slice) {
        let a = &self.architecture;
        let skip = |slice: Slice, width: usize| slice.skip(pass.from * width);
        let last = skip(acts.layers[a.layers - 1].x_out, a.hidden);
        let (hidden, rstd) = (skip(hidden, a.hidden), skip(acts.hidden_rstd, 1));
        let norm = self.weights.slice(self.layout.norm);
        let heads = Heads::plain(pass.tokens, a.hidden);
        rmsnorm::forward(s, last, norm, hidden, rstd, heads, a.eps);
    }

    /// Back from `grads.hidden` [T, d] (gradient of the final hidden states) to every weight, added to `dw`; `order` is
    /// what [`crate::kernels::token_order`] made of the rows.
    pub fn backward(
        &self,
        s: &mut Stream,
        pass: &Pass,
        acts: &Activations,
        dw: &Weights,
        order: Slice,
    ) {
        let (a, t) = (&self.architecture, pass.tokens);
        let g = acts.grads.as_ref().expect("training buffers");
        let last = acts.layers[a.layers - 1].x_out;
        let heads = Heads::plain(t, a.hidden);
        let id = self.layout.norm;
        let (norm, d_norm) = (self.weights.slice(id), dw.slice(id));
        let (rstd, residual) = (acts.hidden_rstd, g.layer.residual);
        rmsnorm::weight_gradient(s, last, rstd, g.hidden, d_norm, g.scratch, heads);
        rmsnorm::backward(s, last, norm, rstd, g.hidden, residual, heads, false);
        let layers = self.layout.layers.iter().zip(&acts.layers);
        for (number, (ids, x)) in layers.enumerate().rev() {
            // The last layer's are still there.
            if acts.recompute && number + 1 < a.layers {
                layer::forward(s, pass, &self.weights, ids, x);
            }
            let buffers = (&g.layer, g.scratch);
            layer::backward(s, pass, (&self.weights, dw), ids, x, buffers, 0);
        }
        if let Some(mask) = pass.mask(EMBEDDING_SITE) {
            dropout_in_place(s, g.hidden, residual, mask, t);
        }
        let tokens = Tokens::of_rows(pass.rows, t);
        for shard in &self.layout.embed {
            embedding::backward(s, residual, None, tokens, order, dw.shard(shard), a.hidden);
        }
    }

    /// Logits [n, V] of n hidden rows [n, d]; n as [`logit_rows`] has it.
    pub fn logits(&self, s: &mut Stream, hidden: Slice, n: impl Into<Size>, logits: Slice) {
        let n = n.into();
        for shard in &self.layout.lm_head {
            let dims = Dims {
                m: n,
                n: shard.rows,
                k: self.architecture.hidden.into(),
            };
            let w = self.weights.operand(shard.id);
            match &self.columns {
                None => linear(s, hidden, w, None, logits, dims),
                Some(part) => {
                    linear(s, hidden, w, None, part.all(), dims);
                    let (part, all) = self.columns_of(shard, part.all(), logits);
                    copy_columns(s, part, all, n, shard.rows);
                }
            }
        }
    }

    /// The logits of a shard, and where they are among all.
    fn columns_of(&self, shard: &ShardId, part: Slice, logits: Slice) -> (Columns, Columns) {
        let all = Columns {
            matrix: logits,
            stride: self.architecture.vocab,
            first: shard.first,
        };
        (Columns::all(part, shard.rows), all)
    }

    /// Back from logits [n, V] with these log-sums, those of the rows from `first` on, the part that all tokens have: what
    /// `d_rows` [n, d] holds, the hidden states times minus the sum of their targets' gradients, goes into dW of the output
    /// projection; in its place come the sums of the projection's rows, weighted by probability
    /// ([`crate::kernels::target_gradient`]).
    pub fn logits_backward(
        &self,
        s: &mut Stream,
        logits: Slice,
        lse: (Slice, usize),
        n: Size,
        d_rows: Slice,
        dw: &Weights,
    ) {
        let d = self.architecture.hidden;
        let shards = &self.layout.lm_head;
        // Of all shards the first product before the second, which replaces what the first reads.
        for shard in shards {
            let part = self.part_of_logits(s, shard, logits, n);
            let dims = Dims {
                m: shard.rows.into(),
                n: d,
                k: n,
            };
            let d_w = dw.slice(shard.id);
            matmul_softmax(s, Form::TN, part, lse, d_rows, d_w, dims, true);
        }
        for shard in shards {
            let part = self.part_of_logits(s, shard, logits, n);
            let dims = Dims {
                m: n,
                n: d,
                k: shard.rows.into(),
            };
            let w = self.weights.operand(shard.id);
            matmul_softmax(s, Form::NN, part, lse, w, d_rows, dims, shard.first > 0);
        }
    }

    /// The logits of a shard among those of the whole vocabulary.
    fn part_of_logits(&self, s: &mut Stream, shard: &ShardId, logits: Slice, n: Size) -> Slice {
        let Some(part) = &self.columns else {
            return logits;
        };
        let (to, all) = self.columns_of(shard, part.all(), logits);
        copy_columns(s, all, to, n, shard.rows);
        part.all()
    }

    /// The rows of the output projection [V, d], read back.
    pub fn output_embeddings(&self) -> Result<Vec<f32>> {
        let shards = self.layout.lm_head.iter();
        let read = shards.map(|shard| read_f32(&self.device, self.weights.slice(shard.id)));
        Ok(read.collect::<Result<Vec<_>>>()?.concat())
    }

    /// A model of the same shape with zero weights: to become the reference policy.
    pub fn same_shape(&self) -> Result<Model> {
        let (device, precision) = (&self.device, self.precision);
        Model::new(device, &self.architecture, self.positions, precision)
    }

    /// Clears gradients.
    pub fn clear(s: &mut Stream, dw: &Weights) {
        for block in &dw.blocks {
            fill::fill_f32(s, block.all(), 0.0);
        }
    }
}
