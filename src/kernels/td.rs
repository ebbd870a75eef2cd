//! Temporal-difference targets and the value gradient (spec 6).
//!
//! Target of candidate (b, g) at level l: `r_l + gamma V(node at l + 1)` below the last level, `r_L` at it; no gradient
//! flows through it. `loss` = mean over prompts, present candidates and levels of `(V - target)^2`; a node that several
//! candidates share has one value and one target for each. `dvalue` = weight dloss/dV, summed over them.
//!
//! Floor: 6 operations per candidate and level and 4 per node, 12 and 28 bytes.

use super::tree_tables::{Candidates, NONE, Shape};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::kernels::reduce;
use crate::{bindings, params};
use anyhow::Result;

/// The settings of one value loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    pub gamma: f32,
    /// Of the value loss in the total (w_v): scales the gradient, not the reported loss.
    pub weight: f32,
    /// The prompts averaged over, over all streams whose gradients are accumulated.
    pub prompts: usize,
}

params! {
    Params {
        prompts: u32,
        group: u32,
        levels: u32,
        nodes: u32,
        gamma: f32,
        scale: f32,
        weight: f32,
    }
}

pub static TD: Kernel = Kernel {
    name: "td",
    source: include_str!("../../shaders/td.wgsl"),
    entry: "main",
    constants: &[],
    forms: &[],
    params: Params::FIELDS,
    bindings: bindings![
        value: In F32,
        step_reward: In F32,
        cand_node: In U32,
        node_info: In U32,
        td_target: Out F32,
        dvalue: Out F32,
        terms: Out F32,
    ],
    twin,
    cost,
};

/// What [`td`] writes.
#[derive(Clone, Copy, Debug)]
pub struct Outputs {
    /// [B, G, L]; 0 for an absent candidate.
    pub target: Slice,
    /// [K].
    pub dvalue: Slice,
    /// [K]: each node's share of the loss.
    pub terms: Slice,
    /// [1].
    pub loss: Slice,
}

/// From `value` [K], V at each tree node (V(s_0) has no target and is not among them), and `step_reward` [B, G, L].
pub fn td(
    stream: &mut Stream,
    value: Slice,
    step_reward: Slice,
    cand_node: Slice,
    node_info: Slice,
    outputs: Outputs,
    shape: impl Into<Shape<Size>>,
    hyper: Hyper,
) {
    let shape = shape.into();
    let params = Params {
        prompts: shape.prompts as u32,
        group: shape.group as u32,
        levels: shape.levels as u32,
        nodes: shape.nodes.max as u32,
        gamma: hyper.gamma,
        scale: 1.0 / (hyper.prompts.max(1) * shape.levels) as f32,
        weight: hyper.weight,
    };
    let slices = [
        value,
        step_reward,
        cand_node,
        node_info,
        outputs.target,
        outputs.dvalue,
        outputs.terms,
    ];
    let grid = Grid::cover(shape.entries().max(shape.nodes.max), 64);
    stream
        .push(&TD, &params, &slices, grid)
        .size("nodes", shape.nodes);
    reduce::columns(stream, outputs.terms, outputs.loss, shape.nodes, 1);
}

fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let nodes = p.nodes as u64;
    let entries = p.prompts as u64 * p.group as u64 * p.levels as u64;
    Cost {
        operations: 6 * entries + 4 * nodes,
        bytes: 4 * (3 * entries + 7 * nodes),
    }
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let (group, levels, nodes) = (p.group as usize, p.levels as usize, p.nodes as usize);
    let entries = p.prompts as usize * group * levels;
    let (value, step_reward) = (args.f32(0), args.f32(1));
    let cand_node = &args.u32(2)[..entries];
    let info = args.u32(3)[..4 * nodes].chunks_exact(4);
    let target = &mut args.f32_mut(4)[..entries];
    for (entry, target) in target.iter_mut().enumerate() {
        *target = if cand_node[entry] == NONE {
            0.0
        } else if entry % levels + 1 == levels {
            step_reward[entry]
        } else {
            step_reward[entry] + p.gamma * value[cand_node[entry + 1] as usize]
        };
    }
    let outputs = args.f32_mut(5).iter_mut().zip(args.f32_mut(6));
    for (node, (info, (dvalue, term))) in info.zip(outputs).enumerate() {
        let (mut error, mut squares, mut present) = (0.0, 0.0, 0.0f32);
        if info[0] < p.prompts {
            let (prompt, depth) = (info[0] as usize, info[1] as usize);
            for c in prompt * group..(prompt + 1) * group {
                present += (cand_node[c * levels] != NONE) as u32 as f32;
                let entry = c * levels + depth;
                if cand_node[entry] == node as u32 {
                    let d = value[node] - target[entry];
                    error += d;
                    squares += d * d;
                }
            }
        }
        let scale = p.scale / present.max(1.0);
        *dvalue = 2.0 * scale * p.weight * error;
        *term = scale * squares;
    }
}

pub fn cases(h: &mut Harness) -> Result<()> {
    for (prompts, group, levels) in [(1, 1, 1), (2, 16, 3), (5, 13, 4)] {
        let c = Candidates::random(h.draws(), prompts, group, levels, group > 2);
        let (nodes, entries) = (c.shape.nodes, c.shape.entries());
        let (value, step_reward) = (h.random("value", nodes), h.random("step_reward", entries));
        let cand_node = h.u32("cand_node", &c.cand_node);
        let node_info = h.u32("node_info", &c.node_info);
        let (target, dvalue) = (h.random("target", entries), h.random("dvalue", nodes));
        let (terms, loss) = (h.random("terms", nodes), h.random("loss", 1));
        td(
            h.stream(),
            value.slice(),
            step_reward.slice(),
            cand_node.slice(),
            node_info.slice(),
            Outputs {
                target: target.slice(),
                dvalue: dvalue.slice(),
                terms: terms.slice(),
                loss: loss.slice(),
            },
            c.shape,
            Hyper {
                gamma: 0.99,
                weight: 0.5,
                prompts,
            },
        );
        h.run()?;
        for buffer in [&target, &dvalue, &terms, &loss] {
            h.read_f32(buffer)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::harness::{devices, finite_difference, relative_error};

    #[test]
    fn shader_equals_twin() {
        devices::lockstep(cases);
    }

    const GAMMA: f64 = 0.9;
    const WEIGHT: f32 = 0.25;

    fn targets(c: &Candidates, value: &[f64], step_reward: &[f64]) -> Vec<f64> {
        let levels = c.shape.levels;
        let target = |(entry, &node): (usize, &u32)| match node {
            NONE => 0.0,
            _ if entry % levels == levels - 1 => step_reward[entry],
            _ => step_reward[entry] + GAMMA * value[c.cand_node[entry + 1] as usize],
        };
        c.cand_node.iter().enumerate().map(target).collect()
    }

    /// Mean over prompts of the mean over present candidates and levels.
    fn loss(c: &Candidates, value: &[f64], target: &[f64]) -> f64 {
        let per_prompt = c.shape.group * c.shape.levels;
        let prompts = c
            .cand_node
            .chunks(per_prompt)
            .zip(target.chunks(per_prompt));
        let means = prompts.map(|(nodes, targets)| {
            let present: Vec<_> = nodes.iter().zip(targets).filter(|e| *e.0 != NONE).collect();
            let squares = present
                .iter()
                .map(|(n, t)| (value[**n as usize] - *t).powi(2));
            squares.sum::<f64>() / present.len() as f64
        });
        means.sum::<f64>() / c.shape.prompts as f64
    }

    #[test]
    fn loss_and_gradient_match_f64() {
        devices::each(|h| {
            let c = Candidates::random(h.draws(), 3, 8, 3, true);
            let (nodes, entries) = (c.shape.nodes, c.shape.entries());
            let (value, step_reward) = (h.random("value", nodes), h.random("step_reward", entries));
            let cand_node = h.u32("cand_node", &c.cand_node);
            let node_info = h.u32("node_info", &c.node_info);
            let (target, dvalue) = (h.random("target", entries), h.random("dvalue", nodes));
            let (terms, out) = (h.random("terms", nodes), h.random("loss", 1));
            td(
                h.stream(),
                value.slice(),
                step_reward.slice(),
                cand_node.slice(),
                node_info.slice(),
                Outputs {
                    target: target.slice(),
                    dvalue: dvalue.slice(),
                    terms: terms.slice(),
                    loss: out.slice(),
                },
                c.shape,
                Hyper {
                    gamma: GAMMA as f32,
                    weight: WEIGHT,
                    prompts: 3,
                },
            );
            h.run().unwrap();
            let v = value.f64();
            let want = targets(&c, &v, &step_reward.f64());
            h.expect(&target, &want, 1e-6);
            h.expect(&out, &[loss(&c, &v, &want)], 1e-6);
            // The targets stay fixed while the values move.
            let gradient = finite_difference(|v| WEIGHT as f64 * loss(&c, v, &want), &v);
            h.expect(&dvalue, &gradient, 1e-6);
            let through_targets = finite_difference(
                |v| WEIGHT as f64 * loss(&c, v, &targets(&c, v, &step_reward.f64())),
                &v,
            );
            let got = h.read_f32(&dvalue).unwrap();
            assert!(relative_error(&through_targets, &got) > 0.1);
        });
    }
}
