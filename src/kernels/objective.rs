//! The policy objective and its gradient with respect to the log-probabilities (spec 6), fused.
//!
//! Per tree node n with `r = exp(lp - lp_old)` and `kl = exp(d) - d - 1`, `d = lp_ref - lp`:
//! - GRPO: the sum over the candidates g through n of `-w [min(r A_g, clip(r) A_g) - beta kl]`,
//!   `clip(r)` into `[1 - clip_low, 1 + clip_high]`. A node that several candidates share counts once for each.
//! - Sibling: `-(1 / (P G)) min(r A_n, clip(r) A_n)`, once per node.
//!
//! `g` = d(GRPO + sibling_weight Sibling)/dlp, summed over the candidates through the node. (PyTorch's autograd on a
//! [B, G, L] table that repeats a node for each of its candidates gives each copy its candidate's GRPO part and an equal
//! share of the sibling part; their sum is `g`.) The subgradients are PyTorch's: where r lies inside the clip range,
//! bounds included, both arguments of `min` are equal and the derivative is `r A`; outside it is 0 if the clipped
//! argument is the smaller, else `r A`.
//!
//! Losses differ in r and in w, P being the prompts averaged over and G_b the present candidates of the prompt:
//! `grpo` w = 1 / (P G_b L); `dr_grpo` w = 1 / (P G L); `dapo` w = 1 / (present candidates of the batch x L); `gspo` w as
//! in `grpo`, but r is the candidate's: `exp` of the mean of `lp - lp_old` along its path. Candidates all have L tokens,
//! so without absent candidates the first three coincide.
//!
//! Floor: 2 exponentials and about 20 G operations per node, 60 bytes per node. The sums go through `terms` and
//! [`super::reduce::columns`], in a fixed order.

use super::tree_tables::{Candidates, NONE, Shape};
use crate::device::{Args, Grid, Kernel, Slice, Stream};
use crate::kernels::harness::Harness;
use crate::kernels::{math, reduce};
use crate::{bindings, params};
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// The importance ratio and the normaliser.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    #[default]
    Grpo,
    DrGrpo,
    Dapo,
    Gspo,
}

/// The settings of one objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    pub loss: Loss,
    pub clip_low: f32,
    pub clip_high: f32,
    /// Weight of the KL term; at 0 `logp_ref` may be any slice of K finite values, `logp` for one.
    pub beta: f32,
    pub sibling_weight: f32,
    /// Leave prompts out whose group advantages are all 0 (their KL too).
    pub mask_zero_variance: bool,
    /// P: the prompts averaged over, over all streams whose gradients are accumulated; less the masked ones.
    pub prompts: usize,
    /// Present candidates of those prompts; `dapo` averages over them.
    pub candidates: usize,
}

params! {
    Params {
        prompts: u32,
        group: u32,
        levels: u32,
        nodes: u32,
        clip_low: f32,
        clip_high: f32,
        beta: f32,
        sibling_weight: f32,
        policy_scale: f32,
        sibling_scale: f32,
        per_candidate: u32,
        sequence_ratio: u32,
        mask_zero_variance: u32,
    }
}

pub static OBJECTIVE: Kernel = Kernel {
    name: "objective",
    source: include_str!("../../shaders/objective.wgsl"),
    entry: "main",
    constants: &[],
    params: Params::FIELDS,
    bindings: bindings![
        logp: In F32,
        logp_old: In F32,
        logp_ref: In F32,
        advantages: In F32,
        cand_node: In U32,
        node_info: In U32,
        g: Out F32,
        terms: Out F32,
    ],
    twin,
};

/// Columns of `terms`, and words of the sums.
pub const TERMS: usize = 8;

/// Log-probabilities per tree node, [K] each.
#[derive(Clone, Copy, Debug)]
pub struct LogProbs {
    pub policy: Slice,
    /// Of the policy that drew the candidates.
    pub old: Slice,
    pub reference: Slice,
}

/// What [`objective`] writes.
#[derive(Clone, Copy, Debug)]
pub struct Outputs {
    /// [K]: dLoss/dlogp.
    pub g: Slice,
    /// [K, [`TERMS`]]: each node's share of the sums; column 2 over column 6 is its kl.
    pub terms: Slice,
    /// [[`TERMS`]]: for [`Metrics::from_sums`].
    pub sums: Slice,
}

/// `advantages` is what [`super::advantage::advantage`] wrote; a node whose prompt is not below B is padding (`g` 0).
pub fn objective(
    stream: &mut Stream,
    logp: LogProbs,
    advantages: Slice,
    cand_node: Slice,
    node_info: Slice,
    outputs: Outputs,
    shape: Shape,
    hyper: Hyper,
) {
    let prompts = hyper.prompts.max(1) as f64;
    let levels = shape.levels as f64;
    let policy_scale = match hyper.loss {
        Loss::Grpo | Loss::Gspo => 1.0 / prompts,
        Loss::DrGrpo => 1.0 / (prompts * shape.group as f64 * levels),
        Loss::Dapo => 1.0 / (hyper.candidates.max(1) as f64 * levels),
    };
    let params = Params {
        prompts: shape.prompts as u32,
        group: shape.group as u32,
        levels: shape.levels as u32,
        nodes: shape.nodes as u32,
        clip_low: hyper.clip_low,
        clip_high: hyper.clip_high,
        beta: hyper.beta,
        sibling_weight: hyper.sibling_weight,
        policy_scale: policy_scale as f32,
        sibling_scale: (1.0 / prompts) as f32,
        per_candidate: matches!(hyper.loss, Loss::Grpo | Loss::Gspo) as u32,
        sequence_ratio: (hyper.loss == Loss::Gspo) as u32,
        mask_zero_variance: hyper.mask_zero_variance as u32,
    };
    let slices = [
        logp.policy,
        logp.old,
        logp.reference,
        advantages,
        cand_node,
        node_info,
        outputs.g,
        outputs.terms,
    ];
    stream.push(&OBJECTIVE, &params, &slices, Grid::cover(shape.nodes, 64));
    reduce::columns(stream, outputs.terms, outputs.sums, shape.nodes, TERMS);
}

/// A step's figures under TRL's meanings: means over the candidates' tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Metrics {
    /// `policy + sibling_weight sibling`.
    pub loss: f32,
    pub policy: f32,
    /// Unweighted.
    pub sibling: f32,
    pub kl: f32,
    /// Share of the tokens clipped from below, and from above.
    pub clip_low: f32,
    pub clip_high: f32,
    /// Mean importance ratio.
    pub ratio: f32,
}

impl Metrics {
    /// From the [`TERMS`] words of [`Outputs::sums`]; sums of several streams may be added before.
    pub fn from_sums(sums: &[f32], sibling_weight: f32) -> Metrics {
        let tokens = sums[6].max(1.0);
        Metrics {
            loss: sums[0] + sibling_weight * sums[1],
            policy: sums[0],
            sibling: sums[1],
            kl: sums[2] / tokens,
            clip_low: sums[3] / tokens,
            clip_high: sums[4] / tokens,
            ratio: sums[5] / tokens,
        }
    }
}

/// `min(r A, clip(r) A)`, its derivative with respect to log r, and which bound clipped it (low, high).
fn clipped(p: &Params, ratio: f32, advantage: f32) -> (f32, f32, f32, f32) {
    let (least, most) = (1.0 - p.clip_low, 1.0 + p.clip_high);
    if advantage < 0.0 && ratio < least {
        (least * advantage, 0.0, 1.0, 0.0)
    } else if advantage > 0.0 && ratio > most {
        (most * advantage, 0.0, 0.0, 1.0)
    } else {
        (ratio * advantage, ratio * advantage, 0.0, 0.0)
    }
}

/// `exp(d) - d - 1`, by its series where the difference would cancel.
fn kl_estimate(d: f32) -> f32 {
    if d.abs() < 0.1 {
        d * d * (0.5 + d * (1.0 / 6.0 + d * (1.0 / 24.0 + d * (1.0 / 120.0))))
    } else {
        math::exp(d) - d - 1.0
    }
}

fn twin(args: &Args) {
    let p: Params = args.params();
    let (group, levels, nodes) = (p.group as usize, p.levels as usize, p.nodes as usize);
    let candidates = p.prompts as usize * group;
    let (logp, logp_old, logp_ref) = (args.f32(0), args.f32(1), args.f32(2));
    let (advantages, cand_node) = (args.f32(3), args.u32(4));
    let info = args.u32(5)[..4 * nodes].chunks_exact(4);
    let outputs = args
        .f32_mut(6)
        .iter_mut()
        .zip(args.f32_mut(7).chunks_exact_mut(TERMS));
    let path_ratio = |c: usize| {
        let path = &cand_node[c * levels..(c + 1) * levels];
        let sum: f32 = path
            .iter()
            .map(|&n| logp[n as usize] - logp_old[n as usize])
            .sum();
        math::exp(sum / levels as f32)
    };
    for (node, (info, (g, terms))) in info.zip(outputs).enumerate() {
        let (prompt, depth) = (info[0] as usize, info[1] as usize);
        *g = 0.0;
        terms.fill(0.0);
        if info[0] >= p.prompts {
            continue;
        }
        let members = prompt * group..(prompt + 1) * group;
        let is_present = |c: &usize| cand_node[c * levels] != NONE;
        let present = (members.clone().filter(is_present).count() as f32).max(1.0);
        let varied =
            p.mask_zero_variance == 0 || advantages[members.clone()].iter().any(|&a| a != 0.0);
        let scale = if p.per_candidate != 0 {
            p.policy_scale / (present * levels as f32)
        } else {
            p.policy_scale
        };
        let d = logp_ref[node] - logp[node];
        let kl = kl_estimate(d);
        let node_ratio = math::exp(logp[node] - logp_old[node]);
        let through = members.filter(|c| cand_node[c * levels + depth] == node as u32);
        for c in through.filter(|_| varied) {
            let ratio = if p.sequence_ratio != 0 {
                path_ratio(c)
            } else {
                node_ratio
            };
            let (value, slope, low, high) = clipped(&p, ratio, advantages[c]);
            terms[0] -= scale * (value - p.beta * kl);
            // The derivative of kl with respect to lp is -(exp(d) - 1) = -(kl + d).
            *g -= scale * (slope + p.beta * (kl + d));
            for (term, value) in terms[2..7].iter_mut().zip([kl, low, high, ratio, 1.0]) {
                *term += value;
            }
        }
        let (value, slope, ..) = clipped(&p, node_ratio, advantages[candidates + node]);
        let sibling_scale = p.sibling_scale / present;
        terms[1] = -sibling_scale * value;
        *g -= p.sibling_weight * sibling_scale * slope;
    }
}

pub fn cases(h: &mut Harness) -> Result<()> {
    let hyper = Hyper {
        loss: Loss::Grpo,
        clip_low: 0.2,
        clip_high: 0.28,
        beta: 0.05,
        sibling_weight: 0.7,
        mask_zero_variance: false,
        prompts: 3,
        candidates: 40,
    };
    let losses = [Loss::Grpo, Loss::DrGrpo, Loss::Dapo, Loss::Gspo];
    for (prompts, group, levels) in [(1, 1, 1), (3, 16, 3), (7, 13, 4)] {
        for loss in losses {
            let c = Candidates::random(h.draws(), prompts, group, levels, group > 2);
            let nodes = c.shape.nodes;
            let logp = h.random("logp", nodes);
            let (old, reference) = (h.random("logp_old", nodes), h.random("logp_ref", nodes));
            let mut values = h.random("advantages", c.shape.candidates() + nodes).f64();
            // The first prompt has no variance.
            values[..group].fill(0.0);
            let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
            let advantages = h.f32("advantages", &values);
            let cand_node = h.u32("cand_node", &c.cand_node);
            let node_info = h.u32("node_info", &c.node_info);
            let (g, terms) = (h.random("g", nodes), h.random("terms", nodes * TERMS));
            let sums = h.random("sums", TERMS);
            objective(
                h.stream(),
                LogProbs {
                    policy: logp.slice(),
                    old: old.slice(),
                    reference: reference.slice(),
                },
                advantages.slice(),
                cand_node.slice(),
                node_info.slice(),
                Outputs {
                    g: g.slice(),
                    terms: terms.slice(),
                    sums: sums.slice(),
                },
                c.shape,
                Hyper {
                    loss,
                    mask_zero_variance: loss == Loss::Dapo,
                    ..hyper
                },
            );
            h.run()?;
            for buffer in [&g, &terms, &sums] {
                h.read_f32(buffer)?;
            }
        }
    }
    Ok(())
}
