//! Rewards of candidates, and the step rewards of the value head (spec 5), on the device.
//!
//! The reward of candidate c of a prompt, each term by its weight:
//! - `rule`: 1 if it is the target; `value`: the target's worth if it is.
//! - `rank`: in a group with a hit, a miss at rank i (0-based, by decreasing log-prob, ties by number) gets
//!   `-(1 / log2(i + 2)) / sum_{j < G} 1 / log2(j + 2)`: the likelier the miss, the worse.
//! - `semantic`: the cosine of its embedding with the target's.
//! - `repeat`: -1 for a miss that the prompt holds: the user has it already.
//! - `teacher`: how much more of the prompt another model would give it than the policy does ([`super::shares`]).
//! - `novelty`: its SID's entry of a table: negative log-popularity, scaled into [0, 1].
//!
//! The step reward of its prefix of length l: `w_l` if it is a prefix of the target, else
//! `-w_l (1 - cos(e_p, e_target))`, e_p being the mean embedding of the group's candidates that start with the prefix (a
//! candidate that is there twice counts twice; a sum has the mean's direction). Without embeddings every cosine is 0.
//!
//! Where no target is known (an SID of [`NONE`]) every candidate is a miss that nothing is like; but with a teacher the step
//! reward of a prefix is what may be expected if the target is one of the candidates, drawn from the teacher's distribution
//! over them: `w_l (2 q - 1)`, q being the share of those that start with the prefix.
//!
//! An absent candidate gets 0 everywhere. Floor, the sum of a prefix taken once: (7 L + 6) D operations per candidate for
//! embeddings of D floats and L for the rest; its words, its rewards and embeddings once. What `repeat` reads of the prompts
//! is not counted.

use super::candidates::picked_words;
use super::harness::Harness;
use super::tree::{self, ASKED, Paths, asked};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Slice, Stream};
use crate::forest::{NONE, Row};
use crate::{bindings, params};
use anyhow::Result;

/// How the rewards of one candidate are added up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weights {
    pub rule: f32,
    pub rank: f32,
    pub semantic: f32,
    pub repeat: f32,
    pub novelty: f32,
    pub value: f32,
    pub teacher: f32,
}

params! {
    /// `dim` is D, 0 without embeddings.
    Params {
        prompts: u32, group: u32, levels: u32, dim: u32,
        rule: f32, rank: f32, semantic: f32, repeat: f32, novelty: f32, value: f32, teacher: f32,
    }
}

pub static REWARD: Kernel = Kernel {
    name: "reward",
    source: include_str!("../../shaders/reward.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![
        picked: In U32, scores: In F32, asked: In U32, rows: In U32, sids: In F32, embeddings: In F32,
        rewards: Out F32, steps: Out F32,
    ],
    twin,
    cost,
};

/// The buffers of [`reward`], in the kernel's order.
#[derive(Clone, Copy, Debug)]
pub struct Reward {
    /// What [`super::candidates`] wrote.
    pub picked: Slice,
    pub scores: Slice,
    /// See [`super::tree`].
    pub asked: Slice,
    /// The prompts' [`crate::forest::Row`]s.
    pub rows: Slice,
    /// Level weights [L], then the novelty of every SID [S] (needed only where it has a weight).
    pub sids: Slice,
    /// [S, D].
    pub embeddings: Slice,
    /// [B, G] and [B, G, L], where what [`super::shares`] wrote stands at first if a teacher has a weight.
    pub rewards: Slice,
    pub steps: Slice,
}

/// Rewards every candidate.
pub fn reward(s: &mut Stream, on: Reward, p: Params) {
    let slices = [
        on.picked,
        on.scores,
        on.asked,
        on.rows,
        on.sids,
        on.embeddings,
        on.rewards,
        on.steps,
    ];
    let grid = Grid::cover((p.prompts * p.group) as usize, 64);
    s.push(&REWARD, &p, &slices, grid);
}

fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [prompts, group, levels, dim] = [p.prompts, p.group, p.levels, p.dim].map(u64::from);
    let candidates = prompts * group;
    let words = picked_words(p.levels as usize, p.group as usize) + ASKED + p.levels as usize;
    let embeddings = ((candidates + prompts) * dim).min(launch.slices()[5].len as u64);
    Cost {
        operations: candidates * ((7 * levels + 6) * dim + levels),
        bytes: 4 * (prompts * words as u64 + candidates * (2 + levels) + levels + embeddings),
    }
}

/// 0 if either vector is zero or empty.
fn cosine(pairs: impl Iterator<Item = (f32, f32)>) -> f32 {
    let (mut product, mut a, mut b) = (0.0f32, 0.0f32, 0.0f32);
    for (x, y) in pairs {
        product += x * y;
        a += x * x;
        b += y * y;
    }
    let norms = a.sqrt() * b.sqrt();
    if norms > 0.0 { product / norms } else { 0.0 }
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let (group, levels, dim) = (p.group as usize, p.levels as usize, p.dim as usize);
    let (picked, scores, asked_words) = (args.u32(0), args.f32(1), args.u32(2));
    let rows: &[Row] = bytemuck::cast_slice(args.u32(3));
    let (sids, embeddings) = (args.f32(4), args.f32(5));
    let rewards = args.f32_mut(6)[..p.prompts as usize * group].chunks_exact_mut(group);
    let steps = args.f32_mut(7).chunks_exact_mut(group * levels);
    let embedding = |sid: u32| &embeddings[sid as usize * dim..][..dim];
    for (b, (rewards, steps)) in rewards.zip(steps).enumerate() {
        let paths = Paths::of(picked, b, group, levels);
        let asked = &asked_words[b * (ASKED + levels)..][..ASKED + levels];
        let (wanted, worth) = (asked[asked::WANTED], f32::from_bits(asked[asked::WORTH]));
        let count = paths.count();
        let prompt = asked::prompt(asked, rows);
        let logp = |c: usize| scores[(b * group + c) * (2 + levels)];
        let known = dim > 0 && wanted != NONE;
        let any_hit = (0..count).any(|c| paths.sid(c) == wanted);
        rewards[count..].fill(0.0);
        steps[count * levels..].fill(0.0);
        for c in 0..count {
            let sid = paths.sid(c);
            let mut reward = match p.teacher {
                0.0 => 0.0,
                weight => weight * rewards[c],
            };
            if sid == wanted {
                reward += p.rule + p.value * worth;
            } else if any_hit && p.rank != 0.0 {
                let discount = |i: usize| 1.0 / ((i + 2) as f32).log2();
                let before = |&o: &usize| logp(o) > logp(c) || (logp(o) == logp(c) && o < c);
                let rank = (0..count).filter(before).count();
                let total: f32 = (0..count).map(discount).sum();
                reward -= p.rank * (discount(rank) / total);
            }
            if p.repeat != 0.0 && sid != wanted && asked::holds(&prompt, paths.tokens(c)) {
                reward -= p.repeat;
            }
            if p.semantic != 0.0 && wanted != NONE {
                let pairs = embedding(sid).iter().zip(embedding(wanted));
                reward += p.semantic * cosine(pairs.map(|(&x, &y)| (x, y)));
            }
            if p.novelty != 0.0 {
                reward += p.novelty * sids[levels + sid as usize];
            }
            rewards[c] = reward;
            let tokens = paths.tokens(c);
            for l in 0..levels {
                let weight = sids[l];
                let step = &mut steps[c * levels + l];
                *step = if wanted == NONE && p.teacher != 0.0 {
                    weight * (2.0 * *step - 1.0)
                } else if tokens[..=l] == asked[ASKED..][..=l] {
                    weight
                } else {
                    let below = |&o: &usize| paths.starts_with(o, c, l + 1);
                    let sum = |i: usize| -> f32 {
                        let own = (0..count).filter(below);
                        own.map(|o| embedding(paths.sid(o))[i]).sum()
                    };
                    let target = if known { embedding(wanted) } else { &[] };
                    let pairs = target.iter().enumerate().map(|(i, &t)| (sum(i), t));
                    -weight * (1.0 - cosine(pairs))
                };
            }
        }
    }
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (prompts, group, levels, dim) in [(1, 1, 1, 0), (3, 5, 2, 3), (9, 16, 3, 17), (33, 7, 4, 8)]
    {
        let picked = tree::random_picked(h.draws(), prompts, group, levels);
        let (mut asked, rows) = tree::random_asked(h.draws(), prompts, levels);
        // The last prompt has no target.
        let last = asked.len() - ASKED - levels;
        asked[last + asked::WANTED..].fill(NONE);
        asked[last + asked::WORTH] = 0;
        let sids = 3usize.pow(levels as u32);
        let picked = h.u32("picked", &picked);
        let asked = h.u32("asked", &asked);
        let rows = h.u32("rows", bytemuck::cast_slice(&rows));
        let scores = h.random("scores", prompts * group * (2 + levels));
        let table = h.random("sids", levels + sids);
        let embeddings = h.random("embeddings", (sids * dim).max(1));
        let rewards = h.random("rewards", prompts * group);
        let steps = h.random("steps", prompts * group * levels);
        let on = Reward {
            picked: picked.slice(),
            scores: scores.slice(),
            asked: asked.slice(),
            rows: rows.slice(),
            sids: table.slice(),
            embeddings: embeddings.slice(),
            rewards: rewards.slice(),
            steps: steps.slice(),
        };
        let weight = if dim > 0 { 0.7 } else { 0.0 };
        let p = Params {
            prompts: prompts as u32,
            group: group as u32,
            levels: levels as u32,
            dim: dim as u32,
            rule: 1.0,
            rank: 0.5,
            semantic: weight,
            repeat: 0.4,
            novelty: 0.3,
            value: 0.2,
            teacher: 0.6 * (levels % 2) as f32,
        };
        reward(h.stream(), on, p);
        h.run()?;
        h.read_f32(&rewards)?;
        h.read_f32(&steps)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
