//! One decoder layer, forward and backward: `x += o(attention(norm(x)))`, then `x += down(swiglu(gate_up(norm(x))))`.

use super::activations::{GradActs, LayerActs};
use super::architecture::Architecture;
use super::layout::{LayerIds, Weights};
use crate::device::{Size, Slice, Stream};
use crate::forest::Row;
use crate::kernels::copy::copy;
use crate::kernels::dropout::{Dropout, Mask, dropout, dropout_onto};
use crate::kernels::gather::gather_rows;
use crate::kernels::matmul::{Dims, Form, linear, linear_onto, matmul};
use crate::kernels::rmsnorm::{self, Heads};
use crate::kernels::{attention, column_sum, fill, rope, rows, swiglu};

/// The rows a pass runs on and the rotary table.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    pub a: &'a Architecture,
    /// The first row of the pass in the buffers, a multiple of 64.
    pub from: usize,
    /// Rows T in this pass, from there on (at most the buffers' capacity).
    pub tokens: Size,
    /// The forest, from row 0 on.
    pub rows: Slice,
    pub parent: Slice,
    /// cos and sin by position.
    pub table: Slice,
    /// For training with dropout: on embedded tokens, and on what attention and feed-forward layers add to the residual
    /// stream.
    pub dropout: Option<Dropout>,
}

impl<'a> Pass<'a> {
    /// The records of the pass's rows.
    pub fn records(&self) -> Slice {
        self.rows.skip(self.from * Row::WORDS)
    }

    /// The rows from `from` on, counted in the buffers.
    pub fn starting(self, from: usize) -> Self {
        assert!(from >= self.from);
        Pass {
            from,
            tokens: self.tokens.part(from - self.from, self.tokens.max),
            ..self
        }
    }

    /// The mask of what a site adds to the residual stream [T, d].
    pub fn mask(&self, site: u32) -> Option<Mask> {
        self.dropout.map(|of| {
            assert_eq!(self.from, 0, "dropout counts rows from the forest's first");
            let width = self.a.hidden;
            Mask { of, site, width }
        })
    }

    fn attention_dims(&self) -> rows::Dims<Size> {
        rows::Dims {
            tokens: self.tokens,
            heads: self.a.heads,
            kv_heads: self.a.kv_heads,
            head_dim: self.a.head_dim,
        }
    }

    /// The query and the key part of a fused projection, as vectors of one head each.
    fn head_parts(&self) -> (Heads<Size>, Heads<Size>) {
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

/// A projection of every row to `n` columns from `k`.
fn dims(rows: Size, n: usize, k: usize) -> Dims<Size> {
    Dims {
        m: rows,
        n,
        k: k.into(),
    }
}

/// Records the layer's forward pass.
pub fn forward(s: &mut Stream, pass: &Pass, w: &Weights, ids: &LayerIds, x: &LayerActs) {
    project(s, pass, w, ids, x);
    finish(s, pass, w, ids, x);
}

/// The first part: queries, and keys and values into the cache.
pub fn project(s: &mut Stream, pass: &Pass, w: &Weights, ids: &LayerIds, x: &LayerActs) {
    let (a, t, x) = (pass.a, pass.tokens, x.skip(pass.a, pass.from));
    let (norm, plain) = (w.slice(ids.input_norm), Heads::plain(t, a.hidden));
    rmsnorm::forward(s, x.x_in, norm, x.h1, x.rstd1, plain, a.eps);
    let bias = ids.qkv_bias.map(|id| w.slice(id));
    let qkv = dims(t, a.qkv_width(), a.hidden);
    linear(s, x.h1, w.operand(ids.qkv), bias, x.qkv, qkv);
    let mut rotated = x.qkv;
    if let (Some((normed, q_rstd, k_rstd)), Some((q_norm, k_norm))) = (x.qk_normed, ids.qk_norm) {
        let (q, k) = pass.head_parts();
        rmsnorm::forward(s, x.qkv, w.slice(q_norm), normed, q_rstd, q, a.eps);
        rmsnorm::forward(s, x.qkv, w.slice(k_norm), normed, k_rstd, k, a.eps);
        rotated = normed;
    }
    let (rows, shape) = (pass.records(), pass.attention_dims());
    rope::forward(s, rows, pass.table, rotated, x.qkv, x.q, x.kv, shape);
}

/// Of a projected pass, the rows `index` [n] as a pass of their own, to be [finished](finish) alone; `records` [n, ROW] gets
/// theirs. What else is gathered takes the place of what the projection is done with.
pub fn select<'a>(
    s: &mut Stream,
    pass: &Pass<'a>,
    x: &LayerActs,
    (index, records, n): (Slice, Slice, Size),
) -> (Pass<'a>, LayerActs) {
    assert_eq!(pass.from, 0, "rows are counted from the forest's first");
    let (x_in, q) = (x.gate_up.words(), x.qkv);
    gather_rows(s, pass.rows, index, records, n, Row::WORDS);
    gather_rows(s, x.x_in, index, x_in, n, pass.a.hidden);
    gather_rows(s, x.q, index, q, n, pass.a.q_width());
    let selected = Pass {
        tokens: n,
        rows: records,
        ..*pass
    };
    (selected, LayerActs { x_in, q, ..*x })
}

/// The second part, for rows whose queries and whose prompts' and ancestors' keys are there.
pub fn finish(s: &mut Stream, pass: &Pass, w: &Weights, ids: &LayerIds, x: &LayerActs) {
    let (a, t, x) = (pass.a, pass.tokens, x.skip(pass.a, pass.from));
    let (d, f) = (a.hidden, a.intermediate);
    let (rows, shape) = (pass.records(), pass.attention_dims());
    attention::forward(s, rows, pass.parent, x.q, x.kv, x.o, x.lse, shape);
    let (o, [after_attention, after_feed_forward]) = (w.operand(ids.o), ids.sites);
    let mask = pass.mask(after_attention);
    add_branch(s, mask, x.o, o, x.x_in, x.x_mid, dims(t, d, a.q_width()));
    let (norm, plain) = (w.slice(ids.post_norm), Heads::plain(t, d));
    rmsnorm::forward(s, x.x_mid, norm, x.h2, x.rstd2, plain, a.eps);
    let gate_up = w.operand(ids.gate_up);
    linear(s, x.h2, gate_up, None, x.gate_up, dims(t, 2 * f, d));
    swiglu::forward(s, x.gate_up, x.act, t, f);
    let (down, mask) = (w.operand(ids.down), pass.mask(after_feed_forward));
    add_branch(s, mask, x.act, down, x.x_mid, x.x_out, dims(t, d, f));
}

/// `out = residual + dropout(x Wt)`.
fn add_branch(
    s: &mut Stream,
    mask: Option<Mask>,
    x: Slice,
    w: Slice,
    residual: Slice,
    out: Slice,
    dims: Dims<Size>,
) {
    match mask {
        None => linear_onto(s, x, w, residual, out, dims),
        Some(mask) => {
            linear(s, x, w, None, out, dims);
            dropout_onto(s, residual, out, mask, dims.m);
        }
    }
}

/// `y = x Wt`: accumulates dW += dYt X, and writes dX = dY W.
fn linear_backward(
    s: &mut Stream,
    Dims { m, n, k }: Dims<Size>,
    (x, w): (Slice, Slice),
    d_y: Slice,
    (d_x, d_w): (Slice, Slice),
) {
    let d_weight = Dims {
        m: n.into(),
        n: k.max,
        k: m,
    };
    matmul(s, Form::TN, d_y, x, d_w, d_weight, true);
    let d_input = Dims {
        m,
        n: k.max,
        k: n.into(),
    };
    matmul(s, Form::NN, d_y, w, d_x, d_input, false);
}

/// The gradient of what a branch added to the residual stream, as products read it; both of its products read all of it.
fn branch_gradient(
    s: &mut Stream,
    a: &Architecture,
    g: &GradActs,
    mask: Option<Mask>,
    rows: Size,
) -> Slice {
    match (g.branch, mask) {
        (Some(branch), Some(mask)) => {
            dropout(s, g.residual, branch, mask, rows);
            branch
        }
        (Some(branch), None) if branch.half => {
            copy(s, g.residual, branch, rows * a.hidden);
            branch
        }
        (None, Some(_)) => unreachable!("activations made without dropout"),
        (_, None) => g.residual,
    }
}

/// Records the layer's backward pass. `g.residual` holds the gradient of `x_out` on entry and of `x_in` on exit; weight
/// gradients are added to `dw`. If only the rows from `from` on were [finished](finish), the gradient of the others'
/// `x_in` is what comes from their keys and values, added to what `g.residual` holds.
pub fn backward(
    s: &mut Stream,
    pass: &Pass,
    (w, dw): (&Weights, &Weights),
    ids: &LayerIds,
    all: &LayerActs,
    (all_g, scratch): (&GradActs, Slice),
    from: usize,
) {
    assert_eq!(pass.from, 0, "a backward pass is over the whole forest");
    let a = pass.a;
    let (d, f) = (a.hidden, a.intermediate);
    let pair = |id| (w.slice(id), dw.slice(id));
    let matrix = |id| (w.operand(id), dw.slice(id));
    let finished = pass.starting(from);
    let (t, x, g) = (finished.tokens, all.skip(a, from), all_g.skip(a, from));

    let (down, d_down) = matrix(ids.down);
    let [mid_mask, out_mask] = ids.sites.map(|site| pass.mask(site));
    let d_out = branch_gradient(s, a, &g, out_mask, t);
    let (into, shape) = ((g.act, d_down), dims(t, d, f));
    linear_backward(s, shape, (x.act, down), d_out, into);
    swiglu::backward(s, x.gate_up, g.act, g.gate_up, t, f);
    let (gate_up, d_gate_up) = matrix(ids.gate_up);
    let (into, shape) = ((g.h, d_gate_up), dims(t, 2 * f, d));
    linear_backward(s, shape, (x.h2, gate_up), g.gate_up, into);
    let (post, d_post) = pair(ids.post_norm);
    let plain = Heads::plain(t, d);
    rmsnorm::weight_gradient(s, x.x_mid, x.rstd2, g.h, d_post, scratch, plain);
    rmsnorm::backward(s, x.x_mid, post, x.rstd2, g.h, g.residual, plain, true);
    let (o, d_o) = matrix(ids.o);
    let d_mid = branch_gradient(s, a, &g, mid_mask, t);
    let (into, shape) = ((g.o, d_o), dims(t, d, a.q_width()));
    linear_backward(s, shape, (x.o, o), d_mid, into);

    let (t, x, g) = (pass.tokens, all, all_g);
    let on = attention::Backward {
        rows: pass.rows,
        parent: pass.parent,
        q: x.q,
        kv: x.kv,
        o: x.o,
        lse: x.lse,
        d_o: g.o,
        delta: g.delta,
        dq: g.q,
        dkv: g.kv,
    };
    let shape = pass.attention_dims();
    attention::backward(s, on, shape, from);
    if from > 0 {
        fill::fill_f32(s, g.q.first(from * a.q_width()).words(), 0.0);
    }
    rope::backward(s, pass.rows, pass.table, g.q, g.kv, g.qkv, shape);
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
    let (qkv, d_qkv) = matrix(ids.qkv);
    let (into, shape) = ((g.h, d_qkv), dims(t, a.qkv_width(), d));
    linear_backward(s, shape, (x.h1, qkv), g.qkv, into);
    let (input, d_input) = pair(ids.input_norm);
    let plain = Heads::plain(t, d);
    rmsnorm::weight_gradient(s, x.x_in, x.rstd1, g.h, d_input, scratch, plain);
    rmsnorm::backward(s, x.x_in, input, x.rstd1, g.h, g.residual, plain, true);
}
