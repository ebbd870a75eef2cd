//! The buffers a forward and backward pass work in, allocated once for a capacity of T tokens. Launches bind whole buffers
//! and carry the sizes in their parameters, so that bind groups are made once although T varies per step; only where a
//! pass begins past row 0 do its slices begin there too ([`LayerActs::skip`]).

use super::architecture::Architecture;
use super::backbone::Model;
use crate::device::{Buffer, DeviceRef, Precision, Slice};
use anyhow::Result;

/// What one decoder layer reads and leaves. For training each layer has its own set, or, where its backward pass computes
/// them anew, its own input and cache; for decoding all layers share one, apart from the cache.
#[derive(Clone, Copy, Debug)]
pub struct LayerActs {
    /// [T, d] residual stream at the layer's input.
    pub x_in: Slice,
    /// [T, d] normed input, [T] its reciprocal root mean square.
    pub h1: Slice,
    pub rstd1: Slice,
    /// [T, (H + 2 Hk) hd]
    pub qkv: Slice,
    /// Qwen3: normed queries and keys in qkv's layout, [T H] and [T Hk] reciprocal root mean squares.
    pub qk_normed: Option<(Slice, Slice, Slice)>,
    /// [T, H hd] rotated queries.
    pub q: Slice,
    /// [slots, 2 Hk hd] rotated keys and values.
    pub kv: Slice,
    /// [T, H hd] attention output, [T, H] log-sum-exp of the scores.
    pub o: Slice,
    pub lse: Slice,
    /// [T, d] residual stream after attention.
    pub x_mid: Slice,
    pub h2: Slice,
    pub rstd2: Slice,
    /// [T, 2 f] gate and up, [T, f] their product.
    pub gate_up: Slice,
    pub act: Slice,
    /// [T, d] residual stream at the layer's output.
    pub x_out: Slice,
}

/// What the backward pass of any layer works in.
#[derive(Clone, Copy, Debug)]
pub struct GradActs {
    /// [T, d] gradient of the residual stream, accumulated in place from the last layer to the first.
    pub residual: Slice,
    /// [T, d] the gradient of what a branch added to it, where that differs: by precision, or by dropout.
    pub branch: Option<Slice>,
    /// [T, d] gradient of a normed input.
    pub h: Slice,
    pub act: Slice,
    pub gate_up: Slice,
    pub o: Slice,
    pub delta: Slice,
    pub q: Slice,
    pub kv: Slice,
    pub qkv: Slice,
}

/// How the labels of the buffers here begin.
pub const ACTIVATIONS: &str = "activations: ";
/// What each cache is called.
pub const CACHE: &str = "key/value cache";

/// Hands out buffers and keeps them alive.
pub struct Arena {
    device: DeviceRef,
    precision: Precision,
    buffers: Vec<Buffer>,
}

impl Arena {
    /// For a model's buffers.
    pub fn new(model: &Model) -> Self {
        Arena {
            device: model.device.clone(),
            precision: model.precision,
            buffers: Vec::new(),
        }
    }

    /// A zeroed buffer for `n` numbers in the model's precision.
    pub fn real(&mut self, label: &str, n: usize) -> Result<Slice> {
        let words = self.take(label, self.precision.words(n))?;
        Ok(self.precision.of(words))
    }

    /// A zeroed buffer's whole slice.
    pub fn take(&mut self, label: &str, words: usize) -> Result<Slice> {
        let buffer = Buffer::new(&self.device, &format!("{ACTIVATIONS}{label}"), words)?;
        let slice = buffer.all();
        self.buffers.push(buffer);
        Ok(slice)
    }
}

impl LayerActs {
    /// A set with its own buffers, reading `x_in`; `kv` is its cache.
    pub fn new(
        arena: &mut Arena,
        a: &Architecture,
        tokens: usize,
        x_in: Slice,
        kv: Slice,
    ) -> Result<LayerActs> {
        let (t, d, f) = (tokens, a.hidden, a.intermediate);
        // It also holds the inputs of rows that are asked for, as f32 (`layer::select`).
        let gate_up = (2 * f).max(d * arena.precision.per_word());
        let qk_normed = if a.qk_norm() {
            Some((
                arena.real("normed queries and keys", t * a.qkv_width())?,
                arena.take("query norms", t * a.heads)?,
                arena.take("key norms", t * a.kv_heads)?,
            ))
        } else {
            None
        };
        Ok(LayerActs {
            x_in,
            h1: arena.real("attention input", t * d)?,
            rstd1: arena.take("attention norms", t)?,
            qkv: arena.real("queries, keys, values", t * a.qkv_width())?,
            qk_normed,
            q: arena.real("queries", t * a.q_width())?,
            kv,
            o: arena.real("attention output", t * a.q_width())?,
            lse: arena.take("attention log-sums", t * a.heads)?,
            x_mid: arena.take("residual after attention", t * d)?,
            h2: arena.real("feed-forward input", t * d)?,
            rstd2: arena.take("feed-forward norms", t)?,
            gate_up: arena.real("gate and up", t * gate_up)?,
            act: arena.real("gated activation", t * f)?,
            x_out: arena.take("residual at output", t * d)?,
        })
    }

    /// The same without the first `rows` rows, a multiple of 64; the cache, which goes by slot, stays whole.
    pub fn skip(&self, a: &Architecture, rows: usize) -> LayerActs {
        let (d, f, q) = (a.hidden, a.intermediate, a.q_width());
        let skip = |slice: Slice, width: usize| slice.skip(rows * width);
        LayerActs {
            x_in: skip(self.x_in, d),
            h1: skip(self.h1, d),
            rstd1: skip(self.rstd1, 1),
            qkv: skip(self.qkv, a.qkv_width()),
            qk_normed: self.qk_normed.map(|(normed, q_rstd, k_rstd)| {
                (
                    skip(normed, a.qkv_width()),
                    skip(q_rstd, a.heads),
                    skip(k_rstd, a.kv_heads),
                )
            }),
            q: skip(self.q, q),
            kv: self.kv,
            o: skip(self.o, q),
            lse: skip(self.lse, a.heads),
            x_mid: skip(self.x_mid, d),
            h2: skip(self.h2, d),
            rstd2: skip(self.rstd2, 1),
            gate_up: skip(self.gate_up, 2 * f),
            act: skip(self.act, f),
            x_out: skip(self.x_out, d),
        }
    }
}

impl GradActs {
    /// The same without the first `rows` rows, a multiple of 64; the gradient of keys and values stays whole.
    pub fn skip(&self, a: &Architecture, rows: usize) -> GradActs {
        let (d, f, q) = (a.hidden, a.intermediate, a.q_width());
        let skip = |slice: Slice, width: usize| slice.skip(rows * width);
        GradActs {
            residual: skip(self.residual, d),
            branch: self.branch.map(|slice| skip(slice, d)),
            h: skip(self.h, d),
            act: skip(self.act, f),
            gate_up: skip(self.gate_up, 2 * f),
            o: skip(self.o, q),
            delta: skip(self.delta, a.heads),
            q: skip(self.q, q),
            kv: self.kv,
            qkv: skip(self.qkv, a.qkv_width()),
        }
    }
}

/// What the value head keeps behind its block: [T, d] each, and [T] norms.
#[derive(Clone, Copy, Debug)]
pub struct ValueActs {
    pub hidden: Slice,
    pub rstd: Slice,
    pub fc1: Slice,
    pub fc1_act: Slice,
}

impl ValueActs {
    /// As [`LayerActs::skip`].
    pub fn skip(&self, a: &Architecture, rows: usize) -> ValueActs {
        let skip = |slice: Slice, width: usize| slice.skip(rows * width);
        ValueActs {
            hidden: skip(self.hidden, a.hidden),
            rstd: skip(self.rstd, 1),
            fc1: skip(self.fc1, a.hidden),
            fc1_act: skip(self.fc1_act, a.hidden),
        }
    }
}

/// Buffers for passes over up to `tokens` rows.
pub struct Activations {
    pub tokens: usize,
    pub layers: Vec<LayerActs>,
    /// Its `x_in` is `hidden`.
    pub value_block: LayerActs,
    /// [T, d] after the final norm, and [T] its norms.
    pub hidden: Slice,
    pub hidden_rstd: Slice,
    pub value: ValueActs,
    /// Whether layers share what their backward pass then computes anew.
    pub recompute: bool,
    pub grads: Option<Gradients>,
    arena: Arena,
}

/// Buffers of the backward pass.
pub struct Gradients {
    pub layer: GradActs,
    /// [T, d] gradient of the final hidden states.
    pub hidden: Slice,
    /// [T, d] gradients inside the value head.
    pub fc1: Slice,
    pub fc1_act: Slice,
    /// Partial sums of norm-weight gradients.
    pub scratch: Slice,
}

/// Where keys and values of each layer lie.
pub enum Cache<'a> {
    /// A cache of so many slots per layer, for passes that read what earlier ones left.
    PerLayer(usize),
    /// The caches of another set of buffers.
    Of(&'a Activations),
}

impl Activations {
    /// For training: every layer keeps what its backward pass reads, or, with `recompute`, its input, from which the
    /// backward pass computes the rest anew; `dropout`: passes may have it. Rows are slots; there are `slots` of them, at
    /// least `tokens`.
    pub fn for_training(
        model: &Model,
        tokens: usize,
        slots: usize,
        (recompute, dropout): (bool, bool),
    ) -> Result<Activations> {
        let cache = Cache::PerLayer(slots.max(tokens));
        let a = &model.architecture;
        let mut made = Self::build(model, tokens, cache, !recompute, true)?;
        made.recompute = recompute;
        let (t, d) = (tokens, a.hidden);
        let arena = &mut made.arena;
        made.grads = Some(Gradients {
            layer: GradActs {
                residual: arena.take("residual gradient", t * d)?,
                branch: match (model.precision, dropout) {
                    (Precision::F32, false) => None,
                    _ => Some(arena.real("branch gradient", t * d)?),
                },
                h: arena.real("normed-input gradient", t * d)?,
                act: arena.real("activation gradient", t * a.intermediate)?,
                gate_up: arena.real("gate and up gradient", t * 2 * a.intermediate)?,
                o: arena.real("attention-output gradient", t * a.q_width())?,
                delta: arena.take("attention deltas", t * a.heads)?,
                q: arena.real("query gradient", t * a.q_width())?,
                kv: arena.real("key and value gradient", t * a.kv_width())?,
                qkv: arena.real("projection gradient", t * a.qkv_width())?,
            },
            hidden: arena.take("hidden gradient", t * d)?,
            fc1: arena.take("fc1 gradient", t * d)?,
            fc1_act: arena.take("fc1 activation gradient", t * d)?,
            scratch: arena.take(
                "norm-weight partial sums",
                super::layer::scratch_words(a, t),
            )?,
        });
        Ok(made)
    }

    /// For forward passes only: layers share their buffers.
    pub fn for_inference(model: &Model, tokens: usize, cache: Cache) -> Result<Activations> {
        Self::build(model, tokens, cache, false, false)
    }

    /// The same buffers with one cache of `slots` slots for all layers: for passes over whole forests, while nobody else
    /// uses the buffers, that must leave the caches alone.
    pub fn with_own_cache(&self, model: &Model, slots: usize) -> Result<Activations> {
        let mut arena = Arena::new(model);
        let kv = arena.real(CACHE, slots * model.architecture.kv_width())?;
        let with = |acts: &LayerActs| LayerActs { kv, ..*acts };
        Ok(Activations {
            tokens: self.tokens,
            layers: self.layers.iter().map(with).collect(),
            value_block: with(&self.value_block),
            hidden: self.hidden,
            hidden_rstd: self.hidden_rstd,
            value: self.value,
            recompute: false,
            grads: None,
            arena,
        })
    }

    /// `own`: every layer has all its buffers; `inputs`: it has its input.
    fn build(
        model: &Model,
        tokens: usize,
        cache: Cache,
        own: bool,
        inputs: bool,
    ) -> Result<Activations> {
        let (mut arena, a) = (Arena::new(model), &model.architecture);
        let (t, d) = (tokens, a.hidden);
        let kv = |arena: &mut Arena, layer: usize| match &cache {
            Cache::Of(other) => Ok(match other.layers.get(layer) {
                Some(acts) => acts.kv,
                None => other.value_block.kv,
            }),
            Cache::PerLayer(slots) => arena.real(CACHE, slots * a.kv_width()),
        };
        let embedded = arena.take("embedded tokens", t * d)?;
        let mut layers: Vec<LayerActs> = Vec::with_capacity(a.layers);
        for l in 0..a.layers {
            let x_in = layers.last().map_or(embedded, |last| last.x_out);
            let kv = kv(&mut arena, l)?;
            let mut acts = match layers.first() {
                Some(first) if !own => LayerActs { x_in, kv, ..*first },
                _ => LayerActs::new(&mut arena, a, t, x_in, kv)?,
            };
            // Shared buffers: a layer writes its output over its input, which only the first residual sum reads.
            acts.x_out = match (own, inputs) {
                (true, _) => acts.x_out,
                (false, true) => arena.take("residual at output", t * d)?,
                (false, false) => embedded,
            };
            layers.push(acts);
        }
        let hidden = arena.take("hidden states", t * d)?;
        let value_kv = kv(&mut arena, a.layers)?;
        let value_out = arena.take("value block output", t * d)?;
        // The value head's block comes after all layers, but its backward pass before theirs.
        let block = match inputs {
            true => LayerActs::new(&mut arena, a, t, hidden, value_kv)?,
            false => layers[0],
        };
        Ok(Activations {
            tokens,
            value_block: LayerActs {
                x_in: hidden,
                kv: value_kv,
                x_out: value_out,
                ..block
            },
            layers,
            hidden,
            hidden_rstd: arena.take("final norms", t)?,
            value: ValueActs {
                hidden: arena.take("value hidden states", t * d)?,
                rstd: arena.take("value norms", t)?,
                fc1: arena.take("fc1 output", t * d)?,
                fc1_act: arena.take("fc1 activation", t * d)?,
            },
            recompute: false,
            grads: None,
            arena,
        })
    }
}
