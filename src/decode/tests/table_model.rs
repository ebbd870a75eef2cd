//! A model whose hidden state is a hash of everything a row may see, kept in a cache at the row's slot as keys and values
//! would be. A wrong slot, chain, position or prompt range gives other logits. All arithmetic is exact, so that devices
//! agree to the bit.

use crate::decode::{DecodeModel, Prefill};
use crate::device::{Args, Buffer, Cost, DeviceRef, Grid, Kernel, Size, Slice, Stream};
use crate::forest::Row;
use crate::kernels::gather::gather_rows;
use crate::rng::{pcg4d, unit};
use crate::{bindings, params};

const HIDDEN: usize = 3;
const NONE: u32 = u32::MAX;

/// What a prompt of these tokens, seen to its end, hashes to.
pub fn prompt_hash(tokens: impl IntoIterator<Item = u32>) -> u32 {
    tokens
        .into_iter()
        .fold(1, |hash, token| pcg4d([hash, token, 0, 0])[0])
}

/// A node's hash from its parent's (or the prompt's).
pub fn node_hash(parent: u32, token: u32, position: u32) -> u32 {
    pcg4d([parent, token, position, 1])[0]
}

pub fn value_of(hash: u32) -> f32 {
    unit(pcg4d([hash, 0, 0, 2])[0])
}

pub fn logit_of(hash: u32, token: u32) -> f32 {
    4.0 * unit(pcg4d([hash, token, 0, 3])[0])
}

pub struct TableModel {
    pub vocab: usize,
    cache: Buffer,
    no_value: Buffer,
    prompt_hidden: Buffer,
    prompt_value: Buffer,
}

impl TableModel {
    /// A model for a decoder with `slots` slots that runs at most `rows` rows at once.
    pub fn new(device: &DeviceRef, vocab: usize, slots: usize, rows: usize) -> Self {
        TableModel {
            vocab,
            cache: Buffer::new(device, "cache", slots).unwrap(),
            no_value: Buffer::new(device, "no value", rows).unwrap(),
            prompt_hidden: Buffer::new(device, "hidden", HIDDEN * rows).unwrap(),
            prompt_value: Buffer::new(device, "value", rows).unwrap(),
        }
    }
}

impl DecodeModel for TableModel {
    fn vocab(&self) -> usize {
        self.vocab
    }

    fn hidden(&self) -> usize {
        HIDDEN
    }

    fn prefill(&self, s: &mut Stream, prompts: &Prefill, hidden: Slice, value: Option<Slice>) {
        let (all, values) = (self.prompt_hidden.all(), self.prompt_value.all());
        let (n, parent) = (prompts.tokens(), prompts.parent);
        self.forward(s, prompts.rows, n.into(), parent, all, Some(values));
        gather_rows(s, all, prompts.ends, hidden, prompts.prompts, HIDDEN);
        if let Some(value) = value {
            gather_rows(s, values, prompts.ends, value, prompts.prompts, 1);
        }
    }

    fn forward(
        &self,
        s: &mut Stream,
        rows: Slice,
        n: Size,
        parent: Slice,
        hidden: Slice,
        value: Option<Slice>,
    ) {
        let value = value.unwrap_or(self.no_value.first(n.max));
        let slices = [rows, parent, self.cache.all(), hidden, value];
        let params = ForwardParams { n: n.max as u32 };
        s.push(&FORWARD, &params, &slices, Grid::cover(n.max, 64))
            .size("n", n);
    }

    fn logits(&self, s: &mut Stream, hidden: Slice, n: Size, logits: Slice) {
        let params = LogitsParams {
            n: n.max as u32,
            vocab: self.vocab as u32,
        };
        s.push(
            &LOGITS,
            &params,
            &[hidden, logits],
            Grid::cover(n.max * self.vocab, 64),
        )
        .size("n", n);
    }
}

params! { ForwardParams { n: u32 } }
params! { LogitsParams { n: u32, vocab: u32 } }

static FORWARD: Kernel = Kernel {
    name: "table_forward",
    source: "
struct Params { n: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> parent: array<u32>;
@group(0) @binding(3) var<storage, read_write> cache: array<u32>;
@group(0) @binding(4) var<storage, read_write> hidden: array<f32>;
@group(0) @binding(5) var<storage, read_write> value: array<f32>;
//!include grid
//!include rng
//!include rows
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 64u + lane;
    if i >= p.n { return; }
    let slot = rows[ROW * i + 4u];
    let chain = rows[ROW * i + 5u];
    var hash = 1u;
    if chain != 0xffffffffu {
        let up = parent[chain];
        var base = 0u;
        if up == 0xffffffffu { base = cache[rows[ROW * i + 3u] - 1u]; } else { base = cache[up]; }
        hash = pcg4d(vec4<u32>(base, rows[ROW * i], rows[ROW * i + 1u], 1u)).x;
    } else if slot != 0xffffffffu {
        for (var j = rows[ROW * i + 2u]; j <= i; j++) {
            hash = pcg4d(vec4<u32>(hash, rows[ROW * j], 0u, 0u)).x;
        }
    }
    if slot != 0xffffffffu { cache[slot] = hash; }
    hidden[3u * i] = f32(hash & 0xffffu);
    hidden[3u * i + 1u] = f32(hash >> 16u);
    hidden[3u * i + 2u] = 0.0;
    value[i] = unit(pcg4d(vec4<u32>(hash, 0u, 0u, 2u)).x);
}",
    entry: "main",
    constants: &[],
    forms: &[],
    params: ForwardParams::FIELDS,
    bindings: bindings![rows: In U32, parent: In U32, cache: Out U32, hidden: Out F32, value: Out F32],
    twin: forward_twin,
    cost: |_| Cost::default(),
};

fn forward_twin(args: &Args) {
    let p: ForwardParams = args.params();
    let (rows, parent, cache) = (args.u32(0), args.u32(1), args.u32_mut(2));
    let (hidden, value) = (args.f32_mut(3), args.f32_mut(4));
    for i in 0..p.n as usize {
        let [token, position, begin, end, slot, chain, ..] =
            rows[Row::WORDS * i..Row::WORDS * (i + 1)]
        else {
            unreachable!()
        };
        let hash = if chain != NONE {
            let up = parent[chain as usize];
            let base = cache[if up == NONE {
                end as usize - 1
            } else {
                up as usize
            }];
            node_hash(base, token, position)
        } else if slot != NONE {
            prompt_hash((begin as usize..=i).map(|j| rows[Row::WORDS * j]))
        } else {
            1
        };
        if slot != NONE {
            cache[slot as usize] = hash;
        }
        let halves = [(hash & 0xffff) as f32, (hash >> 16) as f32, 0.0];
        hidden[HIDDEN * i..][..HIDDEN].copy_from_slice(&halves);
        value[i] = value_of(hash);
    }
}

static LOGITS: Kernel = Kernel {
    name: "table_logits",
    source: "
struct Params { n: u32, vocab: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> hidden: array<f32>;
@group(0) @binding(2) var<storage, read_write> logits: array<f32>;
//!include grid
//!include rng
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_number(group) * 64u + lane;
    if i >= p.n * p.vocab { return; }
    let row = i / p.vocab;
    let hash = u32(hidden[3u * row]) | (u32(hidden[3u * row + 1u]) << 16u);
    logits[i] = 4.0 * unit(pcg4d(vec4<u32>(hash, i % p.vocab, 0u, 3u)).x);
}",
    entry: "main",
    constants: &[],
    forms: &[],
    params: LogitsParams::FIELDS,
    bindings: bindings![hidden: In F32, logits: Out F32],
    twin: logits_twin,
    cost: |_| Cost::default(),
};

fn logits_twin(args: &Args) {
    let p: LogitsParams = args.params();
    let vocab = p.vocab as usize;
    let (hidden, logits) = (args.f32(0), args.f32_mut(1));
    for (row, out) in logits
        .chunks_exact_mut(vocab)
        .take(p.n as usize)
        .enumerate()
    {
        let hash = hidden[HIDDEN * row] as u32 | (hidden[HIDDEN * row + 1] as u32) << 16;
        for (token, logit) in out.iter_mut().enumerate() {
            *logit = logit_of(hash, token as u32);
        }
    }
}
