//! The value head V (spec 2): a decoder layer of the backbone's kind on the final hidden states, RMSNorm, fc1, SiLU, fc2.

use super::activations::{Activations, LayerActs};
use super::backbone::Model;
use super::layer::{self, Pass};
use super::layout::Weights;
use crate::device::{Slice, Stream};
use crate::kernels::matmul::{Dims, Form, linear, matmul};
use crate::kernels::rmsnorm::{self, Heads};
use crate::kernels::{add, column_sum, fill, gather, silu};

/// The rows a value is asked for: all of the pass, or those listed.
#[derive(Clone, Copy, Debug)]
pub enum At {
    /// Every row of the pass.
    All,
    /// u32 [n] distinct row numbers.
    Rows(Slice, usize),
}

impl At {
    fn count(self, tokens: usize) -> usize {
        match self {
            At::All => tokens,
            At::Rows(_, n) => n,
        }
    }
}

impl Model {
    /// V at the rows asked for, from the backbone's `hidden` [T, d]; into `value` [n].
    pub fn value(
        &self,
        s: &mut Stream,
        pass: &Pass,
        acts: &Activations,
        hidden: Slice,
        at: At,
        value: Slice,
    ) {
        let (a, w, ids) = (&self.architecture, &self.weights, &self.layout.value);
        let (t, d) = (pass.tokens, a.hidden);
        let block = &LayerActs {
            x_in: hidden,
            ..acts.value_block
        };
        layer::forward(s, pass, w, &ids.block, block);
        let plain = Heads::plain(t, d);
        let norm = w.slice(ids.norm);
        rmsnorm::forward(
            s,
            block.x_out,
            norm,
            acts.value_hidden,
            acts.value_rstd,
            plain,
            a.eps,
        );
        let n = at.count(t);
        let rows = match at {
            At::All => acts.value_hidden,
            At::Rows(index, _) => {
                gather::gather_rows(s, acts.value_hidden, index, acts.value_rows, n, d);
                acts.value_rows
            }
        };
        let fc1 = Dims { m: n, n: d, k: d };
        linear(
            s,
            rows,
            w.slice(ids.fc1),
            Some(w.slice(ids.fc1_bias)),
            acts.fc1,
            fc1,
        );
        silu::forward(s, acts.fc1, acts.fc1_act, n * d);
        let fc2 = Dims { m: n, n: 1, k: d };
        linear(
            s,
            acts.fc1_act,
            w.slice(ids.fc2),
            Some(w.slice(ids.fc2_bias)),
            value,
            fc2,
        );
    }

    /// Back from dLoss/dV at the rows given to [`Model::value`]: weight gradients are added to `dw`, and, unless `detach`
    /// (`value.detach`), the gradient of the hidden states to `grads.hidden`.
    pub fn value_backward(
        &self,
        s: &mut Stream,
        pass: &Pass,
        acts: &Activations,
        (index, n): (Slice, usize),
        d_value: Slice,
        dw: &Weights,
        detach: bool,
    ) {
        let (a, w, ids) = (&self.architecture, &self.weights, &self.layout.value);
        let (t, d) = (pass.tokens, a.hidden);
        let g = acts.grads.as_ref().expect("training buffers");
        let block = &acts.value_block;
        matmul(
            s,
            Form::TN,
            d_value,
            acts.fc1_act,
            dw.slice(ids.fc2),
            Dims { m: 1, n: d, k: n },
            true,
        );
        column_sum::column_sum(s, d_value, dw.slice(ids.fc2_bias), n, 1, true);
        let dims = Dims { m: n, n: d, k: 1 };
        matmul(
            s,
            Form::NN,
            d_value,
            w.slice(ids.fc2),
            g.fc1_act,
            dims,
            false,
        );
        silu::backward(s, acts.fc1, g.fc1_act, g.fc1, n * d);
        let square = Dims { m: d, n: d, k: n };
        matmul(
            s,
            Form::TN,
            g.fc1,
            acts.value_rows,
            dw.slice(ids.fc1),
            square,
            true,
        );
        column_sum::column_sum(s, g.fc1, dw.slice(ids.fc1_bias), n, d, true);
        let dims = Dims { m: n, n: d, k: d };
        matmul(
            s,
            Form::NN,
            g.fc1,
            w.slice(ids.fc1),
            g.value_rows,
            dims,
            false,
        );
        fill::fill_f32(s, g.layer.h, 0.0);
        gather::scatter_add_rows(s, g.value_rows, index, g.layer.h, n, d);
        let plain = Heads::plain(t, d);
        let (norm, d_norm) = (w.slice(ids.norm), dw.slice(ids.norm));
        let rstd = acts.value_rstd;
        rmsnorm::weight_gradient(s, block.x_out, rstd, g.layer.h, d_norm, g.scratch, plain);
        rmsnorm::backward(
            s,
            block.x_out,
            norm,
            rstd,
            g.layer.h,
            g.layer.residual,
            plain,
            false,
        );
        layer::backward(s, pass, (w, dw), &ids.block, block, (&g.layer, g.scratch));
        if !detach {
            add::add_in_place(s, g.layer.residual, g.hidden, t * d);
        }
    }
}
