//! Group and sibling advantages (spec 6).
//!
//! Group, per candidate g of a prompt: `A_g = (R_g - mean) / (std + 1e-4)`, std unbiased, over the prompt's candidates
//! that are present. Sibling, per tree node v with parent h: `Rbar(v)` is the mean reward of the candidates through v,
//! `A(h, v) = (Rbar(v) - mean) / (std + 1e-4)` over the distinct children of h, std of the population; 0 where h has one
//! child. With [`Scaling::None`] neither is divided by its deviation: where rewards are differences of probabilities,
//! siblings that all but agree are then left alone, not pulled apart. Equal rewards give exactly 0 (what
//! [`super::objective::Hyper::mask_zero_variance`] looks for).
//!
//! Floor: 6 operations per candidate and 2 G + 6 per node (each moment taken once); 4 bytes per candidate in and out, 4 per
//! entry of `cand_node`, 24 per node. One invocation per candidate and per node recomputes its group's moments, some ten
//! thousand operations per prompt: cheaper than a second launch.

use super::tree_tables::{Candidates, NONE, Shape};
use crate::device::threads::{chunks_mut, each};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::{bindings, params};
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// What the group advantages are divided by, and whether the sibling advantages are divided by the siblings' deviation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scaling {
    /// The standard deviation of the prompt's rewards (GRPO).
    #[default]
    Group,
    /// The standard deviation of all rewards of the batch.
    Batch,
    /// Nothing (Dr. GRPO), and siblings' by nothing either.
    None,
}

params! {
    Params { prompts: u32, group: u32, levels: u32, nodes: u32, scaling: u32 }
}

pub static ADVANTAGE: Kernel = Kernel {
    name: "advantage",
    source: include_str!("../../shaders/advantage.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![
        rewards: In F32,
        cand_node: In U32,
        node_info: In U32,
        advantages: Out F32,
        node_reward: Out F32,
    ],
    twin,
    cost,
};

/// Length of `advantages`.
pub fn advantages_len(shape: impl Into<Shape<Size>>) -> usize {
    let shape = shape.into();
    shape.candidates() + shape.nodes.max
}

/// From `rewards` [B, G] and the candidate tables: `advantages`, the group advantages [B, G] followed by the sibling
/// advantages [K] in one slice of [`advantages_len`] words, and `node_reward` [K], each node's mean reward. An absent
/// candidate's advantage is 0.
pub fn advantage(
    stream: &mut Stream,
    rewards: Slice,
    cand_node: Slice,
    node_info: Slice,
    advantages: Slice,
    node_reward: Slice,
    shape: impl Into<Shape<Size>>,
    scaling: Scaling,
) {
    let shape = shape.into();
    let params = Params {
        prompts: shape.prompts as u32,
        group: shape.group as u32,
        levels: shape.levels as u32,
        nodes: shape.nodes.max as u32,
        scaling: scaling as u32,
    };
    let slices = [rewards, cand_node, node_info, advantages, node_reward];
    let grid = Grid::cover(advantages_len(shape), 64);
    stream
        .push(&ADVANTAGE, &params, &slices, grid)
        .size("nodes", shape.nodes);
}

const EPSILON: f32 = 1e-4;

/// An estimate of the mean, what it lacks, the sum of squared deviations, the number. In two steps, so that rewards that
/// differ little keep their digits and equal ones deviate by exactly 0.
#[derive(Default)]
struct Moments {
    center: f32,
    rest: f32,
    squares: f32,
    count: f32,
}

impl Moments {
    /// Of values that `about` gives as deviations from its argument.
    fn of<I: Iterator<Item = f32>>(about: impl Fn(f32) -> I) -> Moments {
        let count = about(0.0).count() as f32;
        let center = about(0.0).sum::<f32>() / count.max(1.0);
        let rest = about(center).sum::<f32>() / count.max(1.0);
        let squares = about(center).map(|d| (d - rest) * (d - rest)).sum();
        Moments {
            center,
            rest,
            squares,
            count,
        }
    }

    /// Standard deviation with `ddof` degrees of freedom taken off.
    fn std(&self, ddof: f32) -> f32 {
        (self.squares / (self.count - ddof).max(1.0)).sqrt()
    }
}

fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [group, nodes] = [p.group, p.nodes].map(u64::from);
    let candidates = p.prompts as u64 * group;
    let entries = candidates * p.levels as u64;
    Cost {
        operations: 6 * candidates + (2 * group + 6) * nodes,
        bytes: 4 * (2 * candidates + entries + 6 * nodes),
    }
}

/// Nodes per task of the twin.
const NODES_PER_TASK: usize = 32;

fn twin(args: &Args) {
    let p: Params = args.params();
    let (group, levels, nodes) = (p.group as usize, p.levels as usize, p.nodes as usize);
    let candidates = p.prompts as usize * group;
    let (rewards, cand_node) = (args.f32(0), args.u32(1));
    let info = &args.u32(2)[..4 * nodes];
    let (by_group, by_node) = args.f32_mut(3).split_at_mut(candidates);
    let node_reward = &mut args.f32_mut(4)[..nodes];

    let is_present = |c: &usize| cand_node[c * levels] != NONE;
    let moments = |range: std::ops::Range<usize>| {
        Moments::of(|center| {
            let present = range.clone().filter(is_present);
            present.map(move |c| rewards[c] - center)
        })
    };
    let batch_std = match p.scaling {
        s if s == Scaling::Batch as u32 => moments(0..candidates).std(1.0),
        _ => 0.0,
    };
    for (prompt, advantages) in by_group.chunks_exact_mut(group).enumerate() {
        let begin = prompt * group;
        let own = moments(begin..begin + group);
        let divisor = match p.scaling {
            s if s == Scaling::Group as u32 => own.std(1.0) + EPSILON,
            s if s == Scaling::Batch as u32 => batch_std + EPSILON,
            _ => 1.0,
        };
        for (g, advantage) in advantages.iter_mut().enumerate() {
            *advantage = match is_present(&(begin + g)) {
                true => (rewards[begin + g] - own.center - own.rest) / divisor,
                false => 0.0,
            };
        }
    }

    // Mean of reward - center over the candidates through a node, and their number.
    let mean_through = |node: usize, center: f32| {
        let (prompt, depth) = (info[4 * node] as usize, info[4 * node + 1] as usize);
        let (mut sum, mut count) = (0.0, 0.0f32);
        if info[4 * node] < p.prompts {
            for c in prompt * group..(prompt + 1) * group {
                if cand_node[c * levels + depth] == node as u32 {
                    sum += rewards[c] - center;
                    count += 1.0;
                }
            }
        }
        (sum / count.max(1.0), count)
    };
    each(
        chunks_mut(node_reward, 1),
        NODES_PER_TASK,
        |node, reward| {
            reward[0] = mean_through(node, 0.0).0;
        },
    );
    let prompt = |node: usize| info[4 * node];
    let place = |node: usize| (info[4 * node + 1], info[4 * node + 2]);
    let by_node = &mut by_node[..nodes];
    each(chunks_mut(by_node, 1), NODES_PER_TASK, |node, advantage| {
        // The nodes of a prompt lie together.
        let own_prompt = |&n: &usize| prompt(n) == prompt(node);
        let begin = node - (0..node).rev().take_while(own_prompt).count();
        let end = node + (node..nodes).take_while(own_prompt).count();
        let siblings = Moments::of(|center| {
            (begin..end)
                .filter(|&n| place(n) == place(node))
                .map(move |n| mean_through(n, center))
                .filter_map(|(mean, count)| (count > 0.0).then_some(mean))
        });
        let (own, count) = mean_through(node, siblings.center);
        let divisor = match p.scaling {
            s if s == Scaling::None as u32 => 1.0,
            _ => siblings.std(0.0) + EPSILON,
        };
        advantage[0] = match count > 0.0 && siblings.count >= 2.0 {
            true => (own - siblings.rest) / divisor,
            false => 0.0,
        };
    });
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (prompts, group, levels) in [(1, 1, 1), (1, 2, 3), (3, 16, 3), (5, 13, 4)] {
        for scaling in [Scaling::Group, Scaling::Batch, Scaling::None] {
            let c = Candidates::random(h.draws(), prompts, group, levels, group > 2);
            let rewards = h.random("rewards", c.shape.candidates());
            let cand_node = h.u32("cand_node", &c.cand_node);
            let node_info = h.u32("node_info", &c.node_info);
            let advantages = h.random("advantages", advantages_len(c.shape));
            let node_reward = h.random("node_reward", c.shape.nodes);
            let tables = (cand_node.slice(), node_info.slice());
            let outputs = (advantages.slice(), node_reward.slice());
            let r = rewards.slice();
            let s = h.stream();
            advantage(
                s, r, tables.0, tables.1, outputs.0, outputs.1, c.shape, scaling,
            );
            h.run()?;
            h.read_f32(&advantages)?;
            h.read_f32(&node_reward)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::harness::devices;
    use std::collections::BTreeMap;

    #[test]
    fn shader_equals_twin() {
        devices::lockstep(cases);
    }

    fn mean(x: &[f64]) -> f64 {
        x.iter().sum::<f64>() / x.len() as f64
    }

    fn std(x: &[f64], ddof: f64) -> f64 {
        let m = mean(x);
        let squares: f64 = x.iter().map(|v| (v - m).powi(2)).sum();
        (squares / (x.len() as f64 - ddof)).sqrt()
    }

    #[test]
    fn advantages_match_the_definitions_in_f64() {
        devices::each(|h| {
            for scaling in [Scaling::Group, Scaling::Batch, Scaling::None] {
                let c = Candidates::random(h.draws(), 4, 16, 3, true);
                let rewards = h.random("rewards", 64);
                let cand_node = h.u32("cand_node", &c.cand_node);
                let node_info = h.u32("node_info", &c.node_info);
                let advantages = h.random("advantages", advantages_len(c.shape));
                let node_reward = h.random("node_reward", c.shape.nodes);
                advantage(
                    h.stream(),
                    rewards.slice(),
                    cand_node.slice(),
                    node_info.slice(),
                    advantages.slice(),
                    node_reward.slice(),
                    c.shape,
                    scaling,
                );
                h.run().unwrap();

                let r = rewards.f64();
                let is_present = |&i: &usize| c.cand_node[3 * i] != NONE;
                let all: Vec<f64> = (0..64).filter(is_present).map(|i| r[i]).collect();
                let mut want = vec![0.0; advantages_len(c.shape)];
                for b in 0..4 {
                    let members: Vec<usize> = (16 * b..16 * b + 16).filter(is_present).collect();
                    assert!(members.len() < 16);
                    let own: Vec<f64> = members.iter().map(|&i| r[i]).collect();
                    let divisor = match scaling {
                        Scaling::Group => std(&own, 1.0) + 1e-4,
                        Scaling::Batch => std(&all, 1.0) + 1e-4,
                        Scaling::None => 1.0,
                    };
                    for i in members {
                        want[i] = (r[i] - mean(&own)) / divisor;
                    }
                }
                let mut through = vec![Vec::new(); c.shape.nodes];
                for (entry, &node) in c.cand_node.iter().enumerate() {
                    if node != NONE {
                        through[node as usize].push(r[entry / 3]);
                    }
                }
                let rbar: Vec<f64> = through.iter().map(|t| mean(t)).collect();
                let mut children: BTreeMap<_, Vec<usize>> = BTreeMap::new();
                for (node, info) in c.node_info.chunks(4).enumerate() {
                    children.entry(&info[..3]).or_default().push(node);
                }
                for siblings in children.values().filter(|s| s.len() > 1) {
                    let own: Vec<f64> = siblings.iter().map(|&n| rbar[n]).collect();
                    let divisor = match scaling {
                        Scaling::None => 1.0,
                        _ => std(&own, 0.0) + 1e-4,
                    };
                    for &n in siblings {
                        want[64 + n] = (rbar[n] - mean(&own)) / divisor;
                    }
                }
                h.expect(&advantages, &want, 1e-5);
                h.expect(&node_reward, &rbar, 1e-6);
            }
        });
    }

    #[test]
    fn equal_rewards_have_exactly_no_advantage() {
        devices::each(|h| {
            let c = Candidates::random(h.draws(), 2, 16, 3, false);
            let rewards = h.f32("rewards", &[0.3; 32]);
            let cand_node = h.u32("cand_node", &c.cand_node);
            let node_info = h.u32("node_info", &c.node_info);
            let advantages = h.random("advantages", advantages_len(c.shape));
            let node_reward = h.random("node_reward", c.shape.nodes);
            advantage(
                h.stream(),
                rewards.slice(),
                cand_node.slice(),
                node_info.slice(),
                advantages.slice(),
                node_reward.slice(),
                c.shape,
                Scaling::Group,
            );
            h.run().unwrap();
            h.expect_u32(&advantages, &vec![0; advantages_len(c.shape)]);
        });
    }
}
