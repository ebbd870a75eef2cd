//! The buffers a forward and backward pass work in, allocated once for a capacity of T tokens. Launches always bind whole
//! buffers and carry the sizes in their parameters, so that bind groups are made once although T varies per step.

use super::architecture::Architecture;
use crate::device::{Buffer, DeviceRef, Slice};
use anyhow::Result;

/// What one decoder layer reads and leaves. For training each layer has its own set; for decoding all layers share one,
/// apart from the key/value cache.
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
    /// [T, d] output of a projection on its way into the residual stream.
    pub branch: Slice,
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

/// Hands out buffers and keeps them alive.
pub struct Arena {
    device: DeviceRef,
    buffers: Vec<Buffer>,
}

impl Arena {
    pub fn new(device: &DeviceRef) -> Self {
        Arena {
            device: device.clone(),
            buffers: Vec::new(),
        }
    }

    /// A zeroed buffer's whole slice.
    pub fn take(&mut self, label: &str, words: usize) -> Result<Slice> {
        let buffer = Buffer::new(&self.device, label, words)?;
        let slice = buffer.all();
        self.buffers.push(buffer);
        Ok(slice)
    }
}

impl LayerActs {
    /// A set with its own buffers, reading `x_in`; `kv` has `slots` rows.
    pub fn new(
        arena: &mut Arena,
        a: &Architecture,
        tokens: usize,
        slots: usize,
        x_in: Slice,
    ) -> Result<LayerActs> {
        let (t, d, f) = (tokens, a.hidden, a.intermediate);
        let qk_normed = if a.qk_norm() {
            Some((
                arena.take("normed queries and keys", t * a.qkv_width())?,
                arena.take("query norms", t * a.heads)?,
                arena.take("key norms", t * a.kv_heads)?,
            ))
        } else {
            None
        };
        Ok(LayerActs {
            x_in,
            h1: arena.take("attention input", t * d)?,
            rstd1: arena.take("attention norms", t)?,
            qkv: arena.take("queries, keys, values", t * a.qkv_width())?,
            qk_normed,
            q: arena.take("queries", t * a.q_width())?,
            kv: arena.take("keys and values", slots * a.kv_width())?,
            o: arena.take("attention output", t * a.q_width())?,
            lse: arena.take("attention log-sums", t * a.heads)?,
            branch: arena.take("branch output", t * d)?,
            x_mid: arena.take("residual after attention", t * d)?,
            h2: arena.take("feed-forward input", t * d)?,
            rstd2: arena.take("feed-forward norms", t)?,
            gate_up: arena.take("gate and up", t * 2 * f)?,
            act: arena.take("gated activation", t * f)?,
            x_out: arena.take("residual at output", t * d)?,
        })
    }
}

/// Buffers for passes over up to `tokens` rows.
pub struct Activations {
    pub tokens: usize,
    /// u32 [T, 8] and [slots]: the forest.
    pub rows: Slice,
    pub parent: Slice,
    pub layers: Vec<LayerActs>,
    pub value_block: LayerActs,
    /// [T, d] after the final norm, and [T] its norms.
    pub hidden: Slice,
    pub hidden_rstd: Slice,
    /// [T, d] after the value head's norm, and its norms.
    pub value_hidden: Slice,
    pub value_rstd: Slice,
    /// [T, d] rows the value is asked for, before and after fc1 and SiLU.
    pub value_rows: Slice,
    pub fc1: Slice,
    pub fc1_act: Slice,
    pub grads: Option<Gradients>,
    arena: Arena,
}

/// Buffers of the backward pass.
pub struct Gradients {
    pub layer: GradActs,
    /// [T, d] gradient of the final hidden states.
    pub hidden: Slice,
    /// [T, d] gradients inside the value head.
    pub value_rows: Slice,
    pub fc1: Slice,
    pub fc1_act: Slice,
    /// Partial sums of norm-weight gradients.
    pub scratch: Slice,
}

impl Activations {
    /// For training: every layer keeps what its backward pass reads. Slots are rows.
    pub fn for_training(
        device: &DeviceRef,
        a: &Architecture,
        tokens: usize,
    ) -> Result<Activations> {
        let mut made = Self::build(device, a, tokens, tokens, true)?;
        let (t, d) = (tokens, a.hidden);
        let arena = &mut made.arena;
        made.grads = Some(Gradients {
            layer: GradActs {
                residual: arena.take("residual gradient", t * d)?,
                h: arena.take("normed-input gradient", t * d)?,
                act: arena.take("activation gradient", t * a.intermediate)?,
                gate_up: arena.take("gate and up gradient", t * 2 * a.intermediate)?,
                o: arena.take("attention-output gradient", t * a.q_width())?,
                delta: arena.take("attention deltas", t * a.heads)?,
                q: arena.take("query gradient", t * a.q_width())?,
                kv: arena.take("key and value gradient", t * a.kv_width())?,
                qkv: arena.take("projection gradient", t * a.qkv_width())?,
            },
            hidden: arena.take("hidden gradient", t * d)?,
            value_rows: arena.take("value-row gradient", t * d)?,
            fc1: arena.take("fc1 gradient", t * d)?,
            fc1_act: arena.take("fc1 activation gradient", t * d)?,
            scratch: arena.take(
                "norm-weight partial sums",
                super::layer::scratch_words(a, t),
            )?,
        });
        Ok(made)
    }

    /// For forward passes only: layers share their buffers, and each has a key/value cache of `slots` rows.
    pub fn for_inference(
        device: &DeviceRef,
        a: &Architecture,
        tokens: usize,
        slots: usize,
    ) -> Result<Activations> {
        Self::build(device, a, tokens, slots, false)
    }

    fn build(
        device: &DeviceRef,
        a: &Architecture,
        tokens: usize,
        slots: usize,
        own: bool,
    ) -> Result<Activations> {
        let mut arena = Arena::new(device);
        let (t, d) = (tokens, a.hidden);
        let embedded = arena.take("embedded tokens", t * d)?;
        let mut layers: Vec<LayerActs> = Vec::with_capacity(a.layers + 1);
        // One more than the backbone has: the value head's block.
        for _ in 0..=a.layers {
            let x_in = layers.last().map_or(embedded, |last| last.x_out);
            let acts = match layers.first() {
                Some(first) if !own => LayerActs {
                    x_in: embedded,
                    kv: arena.take("key/value cache", slots * a.kv_width())?,
                    ..*first
                },
                _ => LayerActs::new(&mut arena, a, t, slots, x_in)?,
            };
            // Shared buffers: a layer writes its output over its input, which only the first addition reads.
            let x_out = if own { acts.x_out } else { embedded };
            layers.push(LayerActs { x_out, ..acts });
        }
        let hidden = arena.take("hidden states", t * d)?;
        let value_out = arena.take("value block output", t * d)?;
        let value_block = LayerActs {
            x_in: hidden,
            x_out: value_out,
            ..layers.pop().expect("the value head's block")
        };
        Ok(Activations {
            tokens,
            rows: arena.take("forest rows", t * crate::forest::Row::WORDS)?,
            parent: arena.take("forest parents", slots)?,
            layers,
            value_block,
            hidden,
            hidden_rstd: arena.take("final norms", t)?,
            value_hidden: arena.take("value hidden states", t * d)?,
            value_rstd: arena.take("value norms", t)?,
            value_rows: arena.take("value rows", t * d)?,
            fc1: arena.take("fc1 output", t * d)?,
            fc1_act: arena.take("fc1 activation", t * d)?,
            grads: None,
            arena,
        })
    }
}
