//! One decoder layer, forward and backward: `x += o(attention(norm(x)))`, then `x += down(swiglu(gate_up(norm(x))))`.

use super::activations::{Activations, GradActs, LayerActs};
use super::architecture::Architecture;
use super::layout::{LayerIds, Weights};
use crate::device::{Slice, Stream};
use crate::kernels::matmul::{Dims, Form, linear, matmul};
use crate::kernels::rmsnorm::{self, Heads};
use crate::kernels::{add, attention, column_sum, rope, rows, swiglu};

/// The rows a pass runs on and the rotary table.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    pub a: &'a Architecture,
    /// Rows T in this pass (at most the buffers' capacity).
    pub tokens: usize,
    pub rows: Slice,
    pub parent: Slice,
    /// cos and sin by position.
    pub table: Slice,
}

impl<'a> Pass<'a> {
    /// A pass over the forest held by `acts`.
    pub fn over(a: &'a Architecture, acts: &Activations, tokens: usize, table: Slice) -> Self {
        Pass {
            a,
            tokens,
            rows: acts.rows,
            parent: acts.parent,
            table,
        }
    }

    fn attention_dims(&self) -> rows::Dims {
        rows::Dims {
            tokens: self.tokens,
            heads: self.a.heads,
            kv_heads: self.a.kv_heads,
            head_dim: self.a.head_dim,
        }
    }

    /// The query and the key part of a fused projection, as vectors of one head each.
    fn head_parts(&self) -> (Heads, Heads) {
        let (a, rows, stride) = (self.a, self.tokens, self.a.qkv_width());
        let dim = a.head_dim;
        let part = |per_row, offset| Heads {
            rows,
            per_row,
            stride,
            offset,
            dim,
        };
        (part(a.heads, 0), part(a.kv_heads, a.q_width()))
    }
}

/// Words of scratch the norm-weight gradients need for T tokens.
pub fn scratch_words(a: &Architecture, tokens: usize) -> usize {
    let plain = rmsnorm::scratch_words(Heads::plain(tokens, a.hidden));
    let heads = rmsnorm::scratch_words(Heads {
        rows: tokens,
        per_row: a.heads,
        stride: a.qkv_width(),
        offset: 0,
        dim: a.head_dim,
    });
    plain.max(heads)
}

/// Records the layer's forward pass.
pub fn forward(s: &mut Stream, pass: &Pass, w: &Weights, ids: &LayerIds, x: &LayerActs) {
    let (a, t) = (pass.a, pass.tokens);
    let (d, f) = (a.hidden, a.intermediate);
    let plain = Heads::plain(t, d);
    rmsnorm::forward(s, x.x_in, w.slice(ids.input_norm), x.h1, x.rstd1, plain, a.eps);
    let qkv = Dims {
        m: t,
        n: a.qkv_width(),
        k: d,
    };
    let bias = ids.qkv_bias.map(|id| w.slice(id));
    linear(s, x.h1, w.slice(ids.qkv), bias, x.qkv, qkv);
    let mut rotated = x.qkv;
    if let (Some((normed, q_rstd, k_rstd)), Some((q_norm, k_norm))) = (x.qk_normed, ids.qk_norm) {
        let (q, k) = pass.head_parts();
        rmsnorm::forward(s, x.qkv, w.slice(q_norm), normed, q_rstd, q, a.eps);
        rmsnorm::forward(s, x.qkv, w.slice(k_norm), normed, k_rstd, k, a.eps);
        rotated = normed;
    }
    let dims = pass.attention_dims();
    rope::forward(s, pass.rows, pass.table, rotated, x.qkv, x.q, x.kv, dims);
    attention::forward(s, pass.rows, pass.parent, x.q, x.kv, x.o, x.lse, dims);
    let o = Dims {
        m: t,
        n: d,
        k: a.q_width(),
    };
    linear(s, x.o, w.slice(ids.o), None, x.branch, o);
    add::add(s, x.x_in, x.branch, x.x_mid, t * d);
    rmsnorm::forward(s, x.x_mid, w.slice(ids.post_norm), x.h2, x.rstd2, plain, a.eps);
    let gate_up = Dims {
        m: t,
        n: 2 * f,
        k: d,
    };
    linear(s, x.h2, w.slice(ids.gate_up), None, x.gate_up, gate_up);
    swiglu::forward(s, x.gate_up, x.act, t, f);
    linear(s, x.act, w.slice(ids.down), None, x.branch, Dims { m: t, n: d, k: f });
    add::add(s, x.x_mid, x.branch, x.x_out, t * d);
}

/// `y = x Wt`: accumulates dW += dYt X, and writes dX = dY W.
fn linear_backward(
    s: &mut Stream,
    dims: Dims,
    (x, w): (Slice, Slice),
    d_y: Slice,
    (d_x, d_w): (Slice, Slice),
) {
    let Dims { m, n, k } = dims;
    matmul(s, Form::TN, d_y, x, d_w, Dims { m: n, n: k, k: m }, true);
    matmul(s, Form::NN, d_y, w, d_x, Dims { m, n: k, k: n }, false);
}

/// Records the layer's backward pass. `g.residual` holds the gradient of `x_out` on entry and of `x_in` on exit; weight
/// gradients are added to `dw`.
pub fn backward(
    s: &mut Stream,
    pass: &Pass,
    (w, dw): (&Weights, &Weights),
    ids: &LayerIds,
    x: &LayerActs,
    (g, scratch): (&GradActs, Slice),
) {
    let (a, t) = (pass.a, pass.tokens);
    let (d, f) = (a.hidden, a.intermediate);
    let plain = Heads::plain(t, d);
    let pair = |id| (w.slice(id), dw.slice(id));

    let (down, d_down) = pair(ids.down);
    linear_backward(s, Dims { m: t, n: d, k: f }, (x.act, down), g.residual, (g.act, d_down));
    swiglu::backward(s, x.gate_up, g.act, g.gate_up, t, f);
    let (gate_up, d_gate_up) = pair(ids.gate_up);
    let dims = Dims {
        m: t,
        n: 2 * f,
        k: d,
    };
    linear_backward(s, dims, (x.h2, gate_up), g.gate_up, (g.h, d_gate_up));
    let (post, d_post) = pair(ids.post_norm);
    rmsnorm::weight_gradient(s, x.x_mid, x.rstd2, g.h, d_post, scratch, plain);
    rmsnorm::backward(s, x.x_mid, post, x.rstd2, g.h, g.residual, plain, true);

    let (o, d_o) = pair(ids.o);
    let dims = Dims {
        m: t,
        n: d,
        k: a.q_width(),
    };
    linear_backward(s, dims, (x.o, o), g.residual, (g.o, d_o));
    let dims = pass.attention_dims();
    attention::backward(
        s, pass.rows, pass.parent, x.q, x.kv, x.o, x.lse, g.o, g.delta, g.q, g.kv, dims,
    );
    rope::backward(s, pass.rows, pass.table, g.q, g.kv, g.qkv, dims);
    if let (Some((_, q_rstd, k_rstd)), Some((q_norm, k_norm))) = (x.qk_normed, ids.qk_norm) {
        let (q, k) = pass.head_parts();
        for (norm, rstd, heads) in [(q_norm, q_rstd, q), (k_norm, k_rstd, k)] {
            let (weight, d_weight) = pair(norm);
            rmsnorm::weight_gradient(s, x.qkv, rstd, g.qkv, d_weight, scratch, heads);
            rmsnorm::backward_in_place(s, x.qkv, weight, rstd, g.qkv, heads);
        }
    }
    if let Some(bias) = ids.qkv_bias {
        column_sum::column_sum(s, g.qkv, dw.slice(bias), t, a.qkv_width(), true);
    }
    let (qkv, d_qkv) = pair(ids.qkv);
    let dims = Dims {
        m: t,
        n: a.qkv_width(),
        k: d,
    };
    linear_backward(s, dims, (x.h1, qkv), g.qkv, (g.h, d_qkv));
    let (input, d_input) = pair(ids.input_norm);
    rmsnorm::weight_gradient(s, x.x_in, x.rstd1, g.h, d_input, scratch, plain);
    rmsnorm::backward(s, x.x_in, input, x.rstd1, g.h, g.residual, plain, true);
}
