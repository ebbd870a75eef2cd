//! The value head V (spec 2): a decoder layer of the backbone's kind on the final hidden states, RMSNorm, fc1, SiLU, fc2.
//!
//! A value is asked for at few rows (tree nodes, ends of prompts), but those attend to whole prompts: every row has a key
//! and a value in the block's cache ([`Model::value_keys`]), only the rows asked for go through the rest of it
//! ([`Model::value`]).

use super::activations::{Activations, LayerActs, ValueActs};
use super::backbone::Model;
use super::layer::{self, Pass};
use super::layout::Weights;
use crate::device::{Slice, Stream};
use crate::kernels::matmul::{Dims, Form, linear, matmul};
use crate::kernels::rmsnorm::{self, Heads};
use crate::kernels::{add, column_sum, fill, silu};

impl Model {
    /// Queries of a pass's rows, and their keys and values into the block's cache, from the hidden states in
    /// `block.x_in`.
    pub fn value_keys(&self, s: &mut Stream, pass: &Pass, block: &LayerActs) {
        let ids = &self.layout.value.block;
        layer::project(s, pass, &self.weights, ids, block);
    }

    /// V at a pass's rows, into `value` [T]; after [`Model::value_keys`] of those rows and of all they attend to.
    pub fn value(
        &self,
        s: &mut Stream,
        pass: &Pass,
        block: &LayerActs,
        acts: &ValueActs,
        value: Slice,
    ) {
        let (a, w, ids) = (&self.architecture, &self.weights, &self.layout.value);
        let (t, d) = (pass.tokens, a.hidden);
        layer::finish(s, pass, w, &ids.block, block);
        let x_out = block.skip(a, pass.from).x_out;
        let (acts, value) = (acts.skip(a, pass.from), value.skip(pass.from));
        let (norm, plain) = (w.slice(ids.norm), Heads::plain(t, d));
        rmsnorm::forward(s, x_out, norm, acts.hidden, acts.rstd, plain, a.eps);
        let dims = |n, k: usize| Dims {
            m: t,
            n,
            k: k.into(),
        };
        let bias = Some(w.slice(ids.fc1_bias));
        linear(
            s,
            acts.hidden,
            w.operand(ids.fc1),
            bias,
            acts.fc1,
            dims(d, d),
        );
        silu::forward(s, acts.fc1, acts.fc1_act, t * d);
        let bias = Some(w.slice(ids.fc2_bias));
        linear(s, acts.fc1_act, w.operand(ids.fc2), bias, value, dims(1, d));
    }

    /// Back from dLoss/dV (`d_value` [T]) at the rows from `from` on, those that [`Model::value`] was asked for: weight
    /// gradients are added to `dw`, and, unless `detach` (`value.detach`), the gradient of all rows' hidden states to
    /// `grads.hidden`.
    pub fn value_backward(
        &self,
        s: &mut Stream,
        pass: &Pass,
        acts: &Activations,
        (from, d_value): (usize, Slice),
        dw: &Weights,
        detach: bool,
    ) {
        let (a, w, ids) = (&self.architecture, &self.weights, &self.layout.value);
        let g = acts.grads.as_ref().expect("training buffers");
        let d = a.hidden;
        let n = pass.starting(from).tokens;
        let (value, d_value) = (acts.value.skip(a, from), d_value.skip(from));
        let [fc1, fc1_act] = [g.fc1, g.fc1_act].map(|slice| slice.skip(from * d));
        let layer = g.layer.skip(a, from);
        let columns = |m: usize| Dims {
            m: m.into(),
            n: d,
            k: n,
        };
        let rows = |k: usize| Dims {
            m: n,
            n: d,
            k: k.into(),
        };
        let (fc2, d_fc2) = (w.operand(ids.fc2), dw.slice(ids.fc2));
        matmul(s, Form::TN, d_value, value.fc1_act, d_fc2, columns(1), true);
        column_sum::column_sum(s, d_value, dw.slice(ids.fc2_bias), n, 1, true);
        matmul(s, Form::NN, d_value, fc2, fc1_act, rows(1), false);
        silu::backward(s, value.fc1, fc1_act, fc1, n * d);
        let (weight, d_weight) = (w.operand(ids.fc1), dw.slice(ids.fc1));
        matmul(s, Form::TN, fc1, value.hidden, d_weight, columns(d), true);
        column_sum::column_sum(s, fc1, dw.slice(ids.fc1_bias), n, d, true);
        matmul(s, Form::NN, fc1, weight, layer.h, rows(d), false);
        let x_out = acts.value_block.skip(a, from).x_out;
        let (norm, d_norm) = (w.slice(ids.norm), dw.slice(ids.norm));
        let (rstd, plain) = (value.rstd, Heads::plain(n, d));
        rmsnorm::weight_gradient(s, x_out, rstd, layer.h, d_norm, g.scratch, plain);
        let residual = layer.residual;
        rmsnorm::backward(s, x_out, norm, rstd, layer.h, residual, plain, false);
        if from > 0 {
            fill::fill_f32(s, g.layer.residual.first(from * d), 0.0);
        }
        let buffers = (&g.layer, g.scratch);
        layer::backward(
            s,
            pass,
            (w, dw),
            &ids.block,
            &acts.value_block,
            buffers,
            from,
        );
        if !detach {
            add::add(s, g.layer.residual, g.hidden, pass.tokens * d);
        }
    }
}
