//! How much more of a prompt another model, one that knows each item by a vector, would give each candidate than the
//! policy does: `softmax_c(query_b . key_c) - softmax_c(logp_bc)`, both over the prompt's candidates; the query is the other
//! model's hidden state at the prompt's end, the keys are its output embeddings. It would give nothing to absent candidates
//! nor, with `skip_held`, to those that the prompt holds.
//!
//! As a reward this is distillation: the policy's gradient with the difference for an advantage is that of the
//! cross-entropy from the other model's distribution over the candidates to the policy's. The differences of a prompt add up
//! to 0, and all are 0 where the two agree.
//!
//! `steps` gets what that model would give to all candidates that start with a candidate's first l tokens, from which the
//! step rewards of questions without an answer are made ([`super::reward`]).
//!
//! Floor: 2 D operations per candidate; its words, keys, log-prob, share and steps once, queries once. What `skip_held` reads
//! of the prompts, and the few operations of the softmaxes and the sums, are not counted.

use super::candidates::picked_words;
use super::harness::Harness;
use super::tree::{self, ASKED, Paths, asked};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::forest::Row;
use crate::{bindings, params};
use anyhow::Result;

params! {
    Params { prompts: u32, group: u32, levels: u32, dim: u32, skip_held: u32 }
}

pub static SHARES: Kernel = Kernel {
    name: "shares",
    source: include_str!("../../shaders/shares.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![
        picked: In U32, scores: In F32, asked: In U32, rows: In U32, queries: In F32, keys: In F32, shares: Out F32,
        steps: Out F32,
    ],
    twin,
    cost,
};

/// Most candidates of a prompt: `rl.group` ends there too.
const MAX_GROUP: u32 = 1024;

/// The buffers of [`shares`], in the kernel's order.
#[derive(Clone, Copy, Debug)]
pub struct Shares {
    /// What [`super::candidates`] wrote.
    pub picked: Slice,
    pub scores: Slice,
    /// See [`super::tree`].
    pub asked: Slice,
    /// The prompts' [`Row`]s.
    pub rows: Slice,
    /// [B, D].
    pub queries: Slice,
    /// [S, D], by SID.
    pub keys: Slice,
    /// [B, G], and [B, G, L].
    pub shares: Slice,
    pub steps: Slice,
}

/// Compares on every prompt.
pub fn shares(s: &mut Stream, on: Shares, p: Params) {
    assert!(p.group <= MAX_GROUP, "{} candidates", p.group);
    let slices = [
        on.picked, on.scores, on.asked, on.rows, on.queries, on.keys, on.shares, on.steps,
    ];
    s.push(&SHARES, &p, &slices, Grid(p.prompts));
}

fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [prompts, group, dim] = [p.prompts, p.group, p.dim].map(u64::from);
    let candidates = prompts * group;
    let words = picked_words(p.levels as usize, p.group as usize) as u64;
    let keys = (candidates * dim).min(launch.slices()[5].len as u64);
    Cost {
        operations: 2 * candidates * dim,
        bytes: 4 * (prompts * (words + dim) + (2 + p.levels as u64) * candidates + keys),
    }
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let (group, levels, dim) = (p.group as usize, p.levels as usize, p.dim as usize);
    let (picked, scores, asked, keys) = (args.u32(0), args.f32(1), args.u32(2), args.f32(5));
    let rows: &[Row] = bytemuck::cast_slice(args.u32(3));
    let queries = args.f32(4)[..p.prompts as usize * dim].chunks_exact(dim);
    let shares = args.f32_mut(6).chunks_exact_mut(group);
    let steps = args.f32_mut(7).chunks_exact_mut(group * levels);
    for (b, ((query, shares), steps)) in queries.zip(shares).zip(steps).enumerate() {
        let paths = Paths::of(picked, b, group, levels);
        let prompt = asked::prompt(&asked[b * (ASKED + levels)..], rows);
        let counts = |&c: &usize| p.skip_held == 0 || !asked::holds(&prompt, paths.tokens(c));
        let counted: Vec<usize> = (0..paths.count()).filter(counts).collect();
        let logit = |&c: &usize| -> f32 {
            let key = &keys[paths.sid(c) as usize * dim..][..dim];
            query.iter().zip(key).map(|(q, k)| q * k).sum()
        };
        let logp = |c: usize| scores[(b * group + c) * (2 + levels)];
        shares.fill(0.0);
        for (&c, share) in counted.iter().zip(softmax(counted.iter().map(logit))) {
            shares[c] = share;
        }
        steps.fill(0.0);
        for (c, l) in (0..paths.count()).flat_map(|c| (0..levels).map(move |l| (c, l))) {
            let below = (0..paths.count()).filter(|&o| paths.starts_with(o, c, l + 1));
            steps[c * levels + l] = below.map(|o| shares[o]).sum();
        }
        for (to, share) in shares.iter_mut().zip(softmax((0..paths.count()).map(logp))) {
            *to -= share;
        }
    }
}

fn softmax(logits: impl Iterator<Item = f32>) -> Vec<f32> {
    let logits: Vec<f32> = logits.collect();
    let most = logits.iter().copied().fold(f32::MIN, f32::max);
    let total: f32 = logits.iter().map(|l| (l - most).exp()).sum();
    logits.iter().map(|l| (l - most).exp() / total).collect()
}

/// (prompts, group, levels, dim).
const SHAPES: [(usize, usize, usize, usize); 5] = [
    (1, 1, 1, 1),
    (3, 5, 2, 3),
    (9, 16, 3, 17),
    (5, 65, 2, 8),
    (4, 130, 4, 33),
];

pub fn cases(h: &mut Harness) -> Result<()> {
    for (number, (prompts, group, levels, dim)) in SHAPES.into_iter().enumerate() {
        let picked = tree::random_picked(h.draws(), prompts, group, levels);
        let (asked, rows) = tree::random_asked(h.draws(), prompts, levels);
        let picked = h.u32("picked", &picked);
        let scores = h.random("scores", prompts * group * (2 + levels));
        let asked = h.u32("asked", &asked);
        let rows = h.u32("rows", bytemuck::cast_slice(&rows));
        let queries = h.random("queries", prompts * dim);
        let keys = h.random("keys", 3usize.pow(levels as u32) * dim);
        let out = h.random("shares", prompts * group);
        let steps = h.random("steps", prompts * group * levels);
        let on = Shares {
            picked: picked.slice(),
            scores: scores.slice(),
            asked: asked.slice(),
            rows: rows.slice(),
            queries: queries.slice(),
            keys: keys.slice(),
            shares: out.slice(),
            steps: steps.slice(),
        };
        let p = Params {
            prompts: prompts as u32,
            group: group as u32,
            levels: levels as u32,
            dim: dim as u32,
            skip_held: (number % 2) as u32,
        };
        shares(h.stream(), on, p);
        h.run()?;
        h.read_f32(&out)?;
        h.read_f32(&steps)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::harness::devices;

    #[test]
    fn shader_equals_twin() {
        devices::lockstep(cases);
    }

    #[test]
    fn by_hand() {
        devices::each(|h| {
            // Two candidates of three that there may be, which begin alike; the first is in the prompt.
            let picked = [2, 2, 9, 0, 1, 1, 1, 4, 3, 7, 5, 3, 8, 6, 9, 9];
            let picked = h.u32("picked", &picked);
            let scores = [-1.0, 9.0, 9.0, 9.0, -2.0, 9.0, 9.0, 9.0, 5.0, 9.0, 9.0, 9.0];
            let scores = h.f32("scores", &scores);
            let asked = h.u32("asked", &[0, 3, 0, 0, 3, 7]);
            let prompt = [0, 3, 7].map(|token| Row {
                token,
                ..Row::INACTIVE
            });
            let rows = h.u32("rows", bytemuck::cast_slice(&prompt));
            let queries = h.f32("queries", &[2.0, -1.0]);
            let keys: Vec<f32> = (0..14).map(|i| [9.0, 1.0, 0.5, 0.25][i % 4]).collect();
            let keys = h.f32("keys", &keys);
            for (skip_held, want) in [(0, None), (1, Some([0.0, 1.0, 0.0]))] {
                let (out, steps) = (h.random("shares", 3), h.random("steps", 6));
                let on = Shares {
                    picked: picked.slice(),
                    scores: scores.slice(),
                    asked: asked.slice(),
                    rows: rows.slice(),
                    queries: queries.slice(),
                    keys: keys.slice(),
                    shares: out.slice(),
                    steps: steps.slice(),
                };
                let p = Params {
                    prompts: 1,
                    group: 3,
                    levels: 2,
                    dim: 2,
                    skip_held,
                };
                shares(h.stream(), on, p);
                h.run().unwrap();
                let got = h.read_f32(&out).unwrap();
                // SID 4 has the key (9, 1), SID 5 (0.5, 0.25): logits 17 and 0.75.
                let odds = (17.0f64 - 0.75).exp();
                let plain = [odds / (1.0 + odds), 1.0 / (1.0 + odds), 0.0];
                let e = 1f64.exp();
                let own = [e / (1.0 + e), 1.0 / (1.0 + e), 0.0];
                let theirs = want.unwrap_or(plain);
                for (g, (theirs, own)) in got.iter().zip(theirs.into_iter().zip(own)) {
                    assert!((*g as f64 - (theirs - own)).abs() < 1e-6, "{got:?}");
                }
                let want = [1.0, theirs[0], 1.0, theirs[1], 0.0, 0.0];
                h.expect(&steps, &want, 1e-6);
            }
        });
    }
}
