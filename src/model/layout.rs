//! Where each tensor lives: few large buffers ("blocks") per family of parameters, so that clearing, the gradient norm
//! and AdamW are a handful of launches whatever the number of tensors.
//!
//! Projections that read the same input are stored as one matrix (q, k, v; gate, up) and split into Hugging Face's
//! tensors only when read from or written to a file.

use super::architecture::Architecture;
use crate::device::{ALIGN_WORDS, Buffer, DeviceRef, MAX_BUFFER_WORDS, Precision, Slice, Stream};
use crate::kernels::copy::copy;
use anyhow::Result;

/// One stored tensor: the rows of one or more Hugging Face tensors on top of each other.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// (Hugging Face name, shape) of the parts, in row order.
    pub parts: Vec<(String, Vec<usize>)>,
    pub words: usize,
    block: usize,
    offset: usize,
}

/// Number of a tensor in its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(usize);

/// Contiguous tensors that fit one binding; weight decay applies to all of a block or to none of it.
#[derive(Clone, Debug)]
pub struct Block {
    pub words: usize,
    pub decayed: bool,
}

/// The tensors of one decoder layer.
#[derive(Clone, Debug)]
pub struct LayerIds {
    /// Where dropout draws its masks from, behind attention and behind the feed-forward layer; site 0 is the embedding.
    pub sites: [u32; 2],
    pub input_norm: Id,
    /// [(H + 2 Hk) hd, d]
    pub qkv: Id,
    pub qkv_bias: Option<Id>,
    /// Qwen3's per-head norms of query and key, [hd] each.
    pub qk_norm: Option<(Id, Id)>,
    /// [d, H hd]
    pub o: Id,
    pub post_norm: Id,
    /// [2 f, d]
    pub gate_up: Id,
    /// [d, f]
    pub down: Id,
}

/// The tensors of the value head (spec 2).
#[derive(Clone, Debug)]
pub struct ValueIds {
    pub block: LayerIds,
    pub norm: Id,
    pub fc1: Id,
    pub fc1_bias: Id,
    pub fc2: Id,
    pub fc2_bias: Id,
}

/// Every tensor of a model, backbone and value head.
#[derive(Clone, Debug)]
pub struct Layout {
    pub tensors: Vec<Tensor>,
    pub blocks: Vec<Block>,
    pub embed: Id,
    pub layers: Vec<LayerIds>,
    pub norm: Id,
    /// The output projection [V, d]; the embedding itself when tied.
    pub lm_head: Id,
    pub value: ValueIds,
}

#[derive(Default)]
struct Builder {
    tensors: Vec<Tensor>,
    blocks: Vec<Block>,
    /// Layers so far.
    layers: u32,
}

impl Builder {
    fn add(&mut self, decayed: bool, parts: Vec<(String, Vec<usize>)>) -> Id {
        let words: usize = parts.iter().map(|p| p.1.iter().product::<usize>()).sum();
        let room = |b: &Block| b.decayed == decayed && b.words + words <= MAX_BUFFER_WORDS;
        let block = self.blocks.iter().position(room).unwrap_or_else(|| {
            self.blocks.push(Block { words: 0, decayed });
            self.blocks.len() - 1
        });
        let offset = self.blocks[block].words;
        // A tensor begins on a whole line as f16 too.
        self.blocks[block].words = (offset + words).next_multiple_of(2 * ALIGN_WORDS);
        self.tensors.push(Tensor {
            parts,
            words,
            block,
            offset,
        });
        Id(self.tensors.len() - 1)
    }

    /// A matrix: decayed.
    fn matrix(&mut self, name: String, rows: usize, columns: usize) -> Id {
        self.add(true, vec![(name, vec![rows, columns])])
    }

    /// A norm's weight or a bias: not decayed.
    fn vector(&mut self, name: String, len: usize) -> Id {
        self.add(false, vec![(name, vec![len])])
    }

    fn layer(&mut self, prefix: &str, a: &Architecture) -> LayerIds {
        let (d, f) = (a.hidden, a.intermediate);
        let (q, k) = (a.q_width(), a.kv_heads * a.head_dim);
        let attn = format!("{prefix}.self_attn");
        let projections = [("q_proj", q), ("k_proj", k), ("v_proj", k)];
        let site = 1 + 2 * self.layers;
        self.layers += 1;
        LayerIds {
            sites: [site, site + 1],
            input_norm: self.vector(format!("{prefix}.input_layernorm.weight"), d),
            qkv: self.add(
                true,
                projections
                    .iter()
                    .map(|(n, w)| (format!("{attn}.{n}.weight"), vec![*w, d]))
                    .collect(),
            ),
            qkv_bias: a.qkv_bias.then(|| {
                self.add(
                    false,
                    projections
                        .iter()
                        .map(|(n, w)| (format!("{attn}.{n}.bias"), vec![*w]))
                        .collect(),
                )
            }),
            qk_norm: a.qk_norm().then(|| {
                (
                    self.vector(format!("{attn}.q_norm.weight"), a.head_dim),
                    self.vector(format!("{attn}.k_norm.weight"), a.head_dim),
                )
            }),
            o: self.matrix(format!("{attn}.o_proj.weight"), d, q),
            post_norm: self.vector(format!("{prefix}.post_attention_layernorm.weight"), d),
            gate_up: self.add(
                true,
                ["gate_proj", "up_proj"]
                    .iter()
                    .map(|n| (format!("{prefix}.mlp.{n}.weight"), vec![f, d]))
                    .collect(),
            ),
            down: self.matrix(format!("{prefix}.mlp.down_proj.weight"), d, f),
        }
    }
}

impl Layout {
    pub fn new(a: &Architecture) -> Layout {
        let mut b = Builder::default();
        let d = a.hidden;
        let embed = b.matrix("model.embed_tokens.weight".into(), a.vocab, d);
        let layers = (0..a.layers)
            .map(|l| b.layer(&format!("model.layers.{l}"), a))
            .collect();
        let norm = b.vector("model.norm.weight".into(), d);
        let lm_head = if a.tied {
            embed
        } else {
            b.matrix("lm_head.weight".into(), a.vocab, d)
        };
        let value = ValueIds {
            block: b.layer("value_head.block", a),
            norm: b.vector("value_head.norm.weight".into(), d),
            fc1: b.matrix("value_head.fc1.weight".into(), d, d),
            fc1_bias: b.vector("value_head.fc1.bias".into(), d),
            fc2: b.matrix("value_head.fc2.weight".into(), 1, d),
            fc2_bias: b.vector("value_head.fc2.bias".into(), 1),
        };
        Layout {
            tensors: b.tensors,
            blocks: b.blocks,
            embed,
            layers,
            norm,
            lm_head,
            value,
        }
    }

    /// The Hugging Face tensor that has word `at` of a block; none between tensors.
    pub fn name_at(&self, block: usize, at: usize) -> Option<&str> {
        let in_block = self.tensors.iter().filter(|t| t.block == block);
        let tensor = in_block.filter(|t| (t.offset..t.offset + t.words).contains(&at));
        let mut end = 0;
        tensor
            .flat_map(|t| t.parts.iter().map(move |part| (t, part)))
            .find_map(|(t, (name, shape))| {
                end += shape.iter().product::<usize>();
                (at < t.offset + end).then_some(name.as_str())
            })
    }

    /// Words of all blocks.
    pub fn words(&self) -> usize {
        self.blocks.iter().map(|b| b.words).sum()
    }
}

/// One value per parameter: the weights, their gradient, or a moment.
pub struct Weights {
    pub blocks: Vec<Buffer>,
    /// The slice of each tensor.
    slices: Vec<Slice>,
    /// By block: its values as f16, where products read those.
    halves: Vec<Option<Buffer>>,
    /// The slice of each tensor that products read.
    operands: Vec<Slice>,
}

impl Weights {
    /// Zeros in the layout's shape; `what` names the family in errors.
    pub fn zeros(device: &DeviceRef, layout: &Layout, what: &str) -> Result<Weights> {
        let blocks = layout
            .blocks
            .iter()
            .map(|b| Buffer::new(device, what, b.words))
            .collect::<Result<Vec<_>>>()?;
        let slices: Vec<Slice> = layout
            .tensors
            .iter()
            .map(|t| blocks[t.block].slice(t.offset, t.words))
            .collect();
        Ok(Weights {
            halves: blocks.iter().map(|_| None).collect(),
            operands: slices.clone(),
            blocks,
            slices,
        })
    }

    /// Zeros whose matrices products read in `precision`. The values themselves are f32 in any case: updates are smaller
    /// than what f16 can tell apart.
    pub fn operands(
        device: &DeviceRef,
        layout: &Layout,
        what: &str,
        precision: Precision,
    ) -> Result<Weights> {
        let mut made = Self::zeros(device, layout, what)?;
        if precision == Precision::F32 {
            return Ok(made);
        }
        for (i, block) in layout.blocks.iter().enumerate().filter(|(_, b)| b.decayed) {
            let label = format!("{what}, f16");
            let halves = Buffer::new(device, &label, precision.words(block.words))?;
            let tensors = layout.tensors.iter().enumerate();
            for (number, t) in tensors.filter(|(_, t)| t.block == i) {
                made.operands[number] = precision.of(halves.all()).part(t.offset, t.words);
            }
            made.halves[i] = Some(halves);
        }
        Ok(made)
    }

    pub fn slice(&self, id: Id) -> Slice {
        self.slices[id.0]
    }

    /// A matrix as products read it.
    pub fn operand(&self, id: Id) -> Slice {
        self.operands[id.0]
    }

    /// Records what brings the operands up to date: to follow every change of the values on the device.
    pub fn refresh(&self, s: &mut Stream) {
        for (block, halves) in self.blocks.iter().zip(&self.halves) {
            if let Some(halves) = halves {
                copy(s, block.all(), halves.all().halves(), block.len());
            }
        }
    }

    /// The block, and the word of it, that an element of `slice` is; none if it is no value of this family.
    pub fn place(&self, slice: Slice, element: usize) -> Option<(usize, usize)> {
        let is = |buffer: &Buffer| buffer.all().buffer == slice.buffer;
        let halves = |i: usize| self.halves[i].as_ref().is_some_and(is);
        let block = (0..self.blocks.len()).find(|&i| is(&self.blocks[i]) || halves(i))?;
        Some((block, slice.offset as usize + element))
    }

    /// Writes one family from host values, a vector per block.
    pub fn write(&self, blocks: &[Vec<f32>]) -> Result<()> {
        for (buffer, values) in self.blocks.iter().zip(blocks) {
            buffer.write_f32(values)?;
        }
        let mut s = Stream::new();
        self.refresh(&mut s);
        match self.blocks.first() {
            Some(block) if !s.launches.is_empty() => block.device().run(&s),
            _ => Ok(()),
        }
    }

    /// Host values, a vector per block.
    pub fn read(&self) -> Result<Vec<Vec<f32>>> {
        self.blocks.iter().map(Buffer::read_f32).collect()
    }
}

/// The Hugging Face tensors inside host blocks, with their names and shapes.
pub fn parts<'a>(
    layout: &'a Layout,
    blocks: &'a [Vec<f32>],
) -> impl Iterator<Item = (&'a str, &'a [usize], &'a [f32])> {
    layout.tensors.iter().flat_map(move |t| {
        let mut at = t.offset;
        t.parts.iter().map(move |(name, shape)| {
            let words = shape.iter().product::<usize>();
            at += words;
            (
                name.as_str(),
                shape.as_slice(),
                &blocks[t.block][at - words..at],
            )
        })
    })
}

/// As [`parts`], to be filled.
pub fn for_each_part_mut(
    layout: &Layout,
    blocks: &mut [Vec<f32>],
    mut fill: impl FnMut(&str, &[usize], &mut [f32]) -> Result<()>,
) -> Result<()> {
    for t in &layout.tensors {
        let mut at = t.offset;
        for (name, shape) in &t.parts {
            let words = shape.iter().product::<usize>();
            fill(name, shape, &mut blocks[t.block][at..at + words])?;
            at += words;
        }
    }
    Ok(())
}
