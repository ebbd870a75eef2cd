//! Where each tensor lives: few large buffers ("blocks") per family of parameters, so that clearing, the gradient norm
//! and AdamW are a handful of launches whatever the number of tensors.
//!
//! Projections that read the same input are stored as one matrix (q, k, v; gate, up) and split into Hugging Face's
//! tensors only when read from or written to a file. A table of the vocabulary that no binding of the device holds is cut
//! into shards, which are one tensor in a file.

use super::architecture::Architecture;
use crate::device::{ALIGN_WORDS, Buffer, DeviceRef, MAX_BUFFER_WORDS, Precision, Slice, Stream};
use crate::kernels::copy::copy;
use crate::kernels::embedding::Shard;
use crate::kernels::matmul;
use anyhow::Result;
use std::borrow::Cow;
use std::ops::Range;

/// One stored tensor: the rows of one or more Hugging Face tensors on top of each other, or some rows of one.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub words: usize,
    block: usize,
    offset: usize,
}

/// One Hugging Face tensor: its name, its shape, and where its words are, in order.
#[derive(Clone, Debug)]
struct Part {
    name: String,
    shape: Vec<usize>,
    pieces: Vec<(usize, Range<usize>)>,
}

impl Part {
    /// Its values, copied only where they lie in several blocks.
    fn values<'a>(&self, blocks: &'a [Vec<f32>]) -> Cow<'a, [f32]> {
        match &self.pieces[..] {
            [(block, range)] => blocks[*block][range.clone()].into(),
            pieces => {
                let slices = pieces.iter().map(|(b, range)| &blocks[*b][range.clone()]);
                slices.collect::<Vec<_>>().concat().into()
            }
        }
    }
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

/// Rows `first ..` `first + rows` of a table [V, d].
#[derive(Clone, Copy, Debug)]
pub struct ShardId {
    pub first: usize,
    pub rows: usize,
    pub id: Id,
}

/// Every tensor of a model, backbone and value head.
#[derive(Clone, Debug)]
pub struct Layout {
    pub tensors: Vec<Tensor>,
    pub blocks: Vec<Block>,
    parts: Vec<Part>,
    pub embed: Vec<ShardId>,
    pub layers: Vec<LayerIds>,
    pub norm: Id,
    /// The output projection [V, d]; the embedding itself when tied.
    pub lm_head: Vec<ShardId>,
    pub value: ValueIds,
}

/// What a device has for a tensor.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Words of the largest binding.
    pub words: usize,
    /// Rows of a table that a sum may go over.
    pub rows: usize,
}

impl Room {
    pub fn of(device: &DeviceRef) -> Room {
        Room {
            words: device.max_buffer_words(),
            rows: (device.longest_loop() as u64 / matmul::ITERATIONS) as usize,
        }
    }
}

struct Builder {
    room: Room,
    tensors: Vec<Tensor>,
    blocks: Vec<Block>,
    parts: Vec<Part>,
    /// Layers so far.
    layers: u32,
}

impl Builder {
    fn new(room: Room) -> Builder {
        Builder {
            room,
            tensors: Vec::new(),
            blocks: Vec::new(),
            parts: Vec::new(),
            layers: 0,
        }
    }

    /// Room for `words` in a block.
    fn place(&mut self, decayed: bool, words: usize) -> Id {
        let most = MAX_BUFFER_WORDS.min(self.room.words);
        let room = |b: &Block| b.decayed == decayed && b.words + words <= most;
        let block = self.blocks.iter().position(room).unwrap_or_else(|| {
            self.blocks.push(Block { words: 0, decayed });
            self.blocks.len() - 1
        });
        let offset = self.blocks[block].words;
        // A tensor begins on a whole line as f16 too.
        self.blocks[block].words = (offset + words).next_multiple_of(2 * ALIGN_WORDS);
        self.tensors.push(Tensor {
            words,
            block,
            offset,
        });
        Id(self.tensors.len() - 1)
    }

    /// The block and the words of a tensor.
    fn range(&self, id: Id) -> (usize, Range<usize>) {
        let t = &self.tensors[id.0];
        (t.block, t.offset..t.offset + t.words)
    }

    /// Hugging Face tensors, (name, shape), on top of each other.
    fn add(&mut self, decayed: bool, parts: Vec<(String, Vec<usize>)>) -> Id {
        let words = |shape: &[usize]| shape.iter().product::<usize>();
        let id = self.place(decayed, parts.iter().map(|(_, shape)| words(shape)).sum());
        let (block, Range { start: mut at, .. }) = self.range(id);
        for (name, shape) in parts {
            let range = at..at + words(&shape);
            at = range.end;
            let pieces = vec![(block, range)];
            self.parts.push(Part {
                name,
                shape,
                pieces,
            });
        }
        id
    }

    /// A matrix with a row per token, in as many shards as it takes; each but the last has a multiple of 64 rows.
    fn table(&mut self, name: &str, rows: usize, columns: usize) -> Vec<ShardId> {
        let fitting = self.room.rows.min(self.room.words / columns);
        let most = match rows <= fitting {
            true => rows,
            false => (fitting / ALIGN_WORDS).max(1) * ALIGN_WORDS,
        };
        let shard = |first: usize| {
            let rows = most.min(rows - first);
            let id = self.place(true, rows * columns);
            ShardId { first, rows, id }
        };
        let shards: Vec<ShardId> = (0..rows).step_by(most).map(shard).collect();
        self.parts.push(Part {
            name: name.into(),
            shape: vec![rows, columns],
            pieces: shards.iter().map(|shard| self.range(shard.id)).collect(),
        });
        shards
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
    pub fn new(a: &Architecture, room: Room) -> Layout {
        let mut b = Builder::new(room);
        let d = a.hidden;
        let embed = b.table("model.embed_tokens.weight", a.vocab, d);
        let layers = (0..a.layers)
            .map(|l| b.layer(&format!("model.layers.{l}"), a))
            .collect();
        let norm = b.vector("model.norm.weight".into(), d);
        let lm_head = if a.tied {
            embed.clone()
        } else {
            b.table("lm_head.weight", a.vocab, d)
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
            parts: b.parts,
            embed,
            layers,
            norm,
            lm_head,
            value,
        }
    }

    /// The Hugging Face tensor that has word `at` of a block; none between tensors.
    pub fn name_at(&self, block: usize, at: usize) -> Option<&str> {
        let holds = |piece: &(usize, Range<usize>)| piece.0 == block && piece.1.contains(&at);
        let part = self.parts.iter().find(|part| part.pieces.iter().any(holds));
        part.map(|part| part.name.as_str())
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

    pub fn shard(&self, shard: &ShardId) -> Shard {
        Shard {
            first: shard.first,
            rows: self.slice(shard.id),
        }
    }

    /// A shard as products read it.
    pub fn shard_operand(&self, shard: &ShardId) -> Shard {
        Shard {
            first: shard.first,
            rows: self.operand(shard.id),
        }
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
) -> impl Iterator<Item = (&'a str, &'a [usize], Cow<'a, [f32]>)> {
    let all = layout.parts.iter();
    all.map(|part| (&part.name[..], &part.shape[..], part.values(blocks)))
}

/// As [`parts`], to be filled.
pub fn for_each_part_mut(
    layout: &Layout,
    blocks: &mut [Vec<f32>],
    mut fill: impl FnMut(&str, &[usize], &mut [f32]) -> Result<()>,
) -> Result<()> {
    for part in &layout.parts {
        if let [(block, range)] = &part.pieces[..] {
            fill(&part.name, &part.shape, &mut blocks[*block][range.clone()])?;
            continue;
        }
        let mut values = part.values(blocks).into_owned();
        fill(&part.name, &part.shape, &mut values)?;
        let mut rest = &values[..];
        for (block, range) in &part.pieces {
            let (own, after) = rest.split_at(range.len());
            blocks[*block][range.clone()].copy_from_slice(own);
            rest = after;
        }
    }
    Ok(())
}
