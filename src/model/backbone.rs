//! The model on a device: weights, the backbone's passes, and logits where something reads them.

use super::activations::Activations;
use super::architecture::Architecture;
use super::layer::{self, Pass};
use super::layout::{Layout, Weights};
use crate::device::{Buffer, DeviceRef, Slice, Stream};
use crate::forest::Forest;
use crate::kernels::matmul::{Dims, Form, linear, matmul};
use crate::kernels::rmsnorm::{self, Heads};
use crate::kernels::{embedding, fill, gather, rope};
use anyhow::{Result, ensure};

/// A model's shape, its weights and its rotary table. Immutable but for the weights' values.
pub struct Model {
    pub device: DeviceRef,
    pub architecture: Architecture,
    pub layout: Layout,
    pub weights: Weights,
    table: Buffer,
    positions: usize,
}

/// The rows of an embedding gradient on the device ([`crate::forest::TokenIndex`]).
#[derive(Clone, Copy)]
pub struct TokenIndexSlices {
    pub order: Slice,
    pub starts: Slice,
    pub tokens: Slice,
    pub distinct: usize,
}

impl Model {
    /// Zero weights for documents of up to `positions` tokens.
    pub fn new(device: &DeviceRef, architecture: &Architecture, positions: usize) -> Result<Model> {
        architecture.validate()?;
        let layout = Layout::new(architecture);
        let weights = Weights::zeros(device, &layout, "weights")?;
        let table = rope::table(positions, architecture.head_dim, architecture.rope_theta);
        Ok(Model {
            device: device.clone(),
            architecture: architecture.clone(),
            layout,
            weights,
            table: Buffer::with_f32(device, "rotary table", &table)?,
            positions,
        })
    }

    /// Writes a forest into the buffers of a pass. Errors: a token outside the vocabulary, a document longer than the
    /// model was made for, more tokens than the buffers hold.
    pub fn upload(&self, acts: &Activations, forest: &Forest) -> Result<()> {
        let vocab = self.architecture.vocab;
        if let Some(row) = forest.rows.iter().find(|r| r.token as usize >= vocab) {
            anyhow::bail!(
                "token {} is outside the model's vocabulary of {vocab}",
                row.token
            );
        }
        ensure!(
            forest.max_positions() <= self.positions,
            "a document of {} tokens is longer than the {} positions prepared",
            forest.max_positions(),
            self.positions
        );
        ensure!(
            forest.len() <= acts.tokens,
            "a batch of {} tokens exceeds the {} the buffers hold",
            forest.len(),
            acts.tokens
        );
        self.device.write(acts.rows, forest.row_words())?;
        self.device.write(acts.parent, &forest.parent)
    }

    /// The pass over the first `tokens` rows held by `acts`.
    pub fn pass(&self, acts: &Activations, tokens: usize) -> Pass<'_> {
        Pass::over(&self.architecture, acts, tokens, self.table.all())
    }

    /// Runs the backbone over a pass; `hidden` [T, d] gets the hidden states after the final norm.
    pub fn forward(&self, s: &mut Stream, pass: &Pass, acts: &Activations, hidden: Slice) {
        let (a, t) = (&self.architecture, pass.tokens);
        let embed = self.weights.slice(self.layout.embed);
        embedding::forward(s, embed, pass.rows, acts.layers[0].x_in, t, a.hidden);
        for (ids, x) in self.layout.layers.iter().zip(&acts.layers) {
            layer::forward(s, pass, &self.weights, ids, x);
        }
        let last = acts.layers[a.layers - 1].x_out;
        let norm = self.weights.slice(self.layout.norm);
        let heads = Heads::plain(t, a.hidden);
        rmsnorm::forward(s, last, norm, hidden, acts.hidden_rstd, heads, a.eps);
    }

    /// Back from `grads.hidden` [T, d] (gradient of the final hidden states) to every weight, added to `dw`.
    pub fn backward(
        &self,
        s: &mut Stream,
        pass: &Pass,
        acts: &Activations,
        dw: &Weights,
        index: &TokenIndexSlices,
    ) {
        let (a, t) = (&self.architecture, pass.tokens);
        let g = acts.grads.as_ref().expect("training buffers");
        let last = acts.layers[a.layers - 1].x_out;
        let heads = Heads::plain(t, a.hidden);
        let (norm, d_norm) = (
            self.weights.slice(self.layout.norm),
            dw.slice(self.layout.norm),
        );
        rmsnorm::weight_gradient(
            s,
            last,
            acts.hidden_rstd,
            g.hidden,
            d_norm,
            g.scratch,
            heads,
        );
        rmsnorm::backward(
            s,
            last,
            norm,
            acts.hidden_rstd,
            g.hidden,
            g.layer.residual,
            heads,
            false,
        );
        for (ids, x) in self.layout.layers.iter().zip(&acts.layers).rev() {
            layer::backward(s, pass, (&self.weights, dw), ids, x, (&g.layer, g.scratch));
        }
        let d_embed = dw.slice(self.layout.embed);
        embedding::backward(
            s,
            g.layer.residual,
            index.order,
            index.starts,
            index.tokens,
            d_embed,
            index.distinct,
            a.hidden,
        );
    }

    /// Logits [n, V] of n hidden rows [n, d].
    pub fn logits(&self, s: &mut Stream, hidden: Slice, n: usize, logits: Slice) {
        let a = &self.architecture;
        let dims = Dims {
            m: n,
            n: a.vocab,
            k: a.hidden,
        };
        linear(
            s,
            hidden,
            self.weights.slice(self.layout.lm_head),
            None,
            logits,
            dims,
        );
    }

    /// Back from logits: dW of the output projection is added to `dw`; the gradient of the n hidden rows is written to
    /// `d_rows` and added to `d_hidden` at the rows they came from.
    pub fn logits_backward(
        &self,
        s: &mut Stream,
        hidden_rows: Slice,
        index: Slice,
        n: usize,
        d_logits: Slice,
        d_rows: Slice,
        d_hidden: Slice,
        dw: &Weights,
    ) {
        let (v, d) = (self.architecture.vocab, self.architecture.hidden);
        let (head, d_head) = (
            self.weights.slice(self.layout.lm_head),
            dw.slice(self.layout.lm_head),
        );
        matmul(
            s,
            Form::TN,
            d_logits,
            hidden_rows,
            d_head,
            Dims { m: v, n: d, k: n },
            true,
        );
        matmul(
            s,
            Form::NN,
            d_logits,
            head,
            d_rows,
            Dims { m: n, n: d, k: v },
            false,
        );
        gather::scatter_add_rows(s, d_rows, index, d_hidden, n, d);
    }

    /// A model of the same shape with zero weights: to become the reference policy.
    pub fn same_shape(&self) -> Result<Model> {
        Model::new(&self.device, &self.architecture, self.positions)
    }

    /// Clears gradients.
    pub fn clear(s: &mut Stream, dw: &Weights) {
        for block in &dw.blocks {
            fill::fill_f32(s, block.all(), 0.0);
        }
    }
}
