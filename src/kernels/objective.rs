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
//! Floor: about 20 operations per node and per candidate and level; 68 bytes per node (three log-probs, an advantage, its
//! record, `g`, [`TERMS`]), 4 per candidate and level and per candidate. The sums go through `terms` and
//! [`super::reduce::columns`], in a fixed order.

use super::tree_tables::{Candidates, NONE, Shape};
use crate::device::{Args, Cost, Grid, Kernel, Launch, Size, Slice, Stream};
use crate::kernels::harness::{Harness, TestBuffer};
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
    pub prompts: Size,
    /// Present candidates of those prompts; `dapo` averages over them.
    pub candidates: Size,
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
    forms: &[],
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
    cost,
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
    shape: impl Into<Shape<Size>>,
    hyper: Hyper,
) {
    let shape = shape.into();
    let levels = shape.levels as f64;
    let (share, of) = match hyper.loss {
        Loss::Grpo | Loss::Gspo => (1.0, hyper.prompts),
        Loss::DrGrpo => (1.0 / (shape.group as f64 * levels), hyper.prompts),
        Loss::Dapo => (1.0 / levels, hyper.candidates),
    };
    let divided = |share: f64, of: Size| (share / of.max.max(1) as f64) as f32;
    let params = Params {
        prompts: shape.prompts as u32,
        group: shape.group as u32,
        levels: shape.levels as u32,
        nodes: shape.nodes.max as u32,
        clip_low: hyper.clip_low,
        clip_high: hyper.clip_high,
        beta: hyper.beta,
        sibling_weight: hyper.sibling_weight,
        policy_scale: divided(share, of),
        sibling_scale: divided(1.0, hyper.prompts),
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
    stream
        .push(
            &OBJECTIVE,
            &params,
            &slices,
            Grid::cover(shape.nodes.max, 64),
        )
        .size("nodes", shape.nodes)
        .share("policy_scale", share as f32, of)
        .share("sibling_scale", 1.0, hyper.prompts);
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

fn cost(launch: &Launch) -> Cost {
    let p: Params = launch.read_params();
    let [levels, nodes] = [p.levels, p.nodes].map(u64::from);
    let candidates = p.prompts as u64 * p.group as u64;
    Cost {
        operations: 20 * (candidates * levels + nodes),
        bytes: 4 * (candidates * (levels + 1) + (9 + TERMS as u64) * nodes),
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

/// Random inputs of one objective, the first prompt without variance.
struct Inputs {
    candidates: Candidates,
    logp: TestBuffer,
    old: TestBuffer,
    reference: TestBuffer,
    advantages: TestBuffer,
}

impl Inputs {
    fn new(h: &mut Harness, prompts: usize, group: usize, levels: usize) -> Inputs {
        let candidates = Candidates::random(h.draws(), prompts, group, levels, group > 2);
        let nodes = candidates.shape.nodes;
        let mut advantages = vec![0.0; candidates.shape.candidates() + nodes];
        advantages[group..].fill_with(|| h.draws().normal());
        Inputs {
            logp: h.random_scaled("logp", nodes, 0.5),
            old: h.random_scaled("logp_old", nodes, 0.5),
            reference: h.random_scaled("logp_ref", nodes, 0.5),
            advantages: h.f32("advantages", &advantages),
            candidates,
        }
    }

    /// Runs the objective; `g`, `terms` and `sums`.
    fn run(&self, h: &mut Harness, hyper: Hyper) -> Result<[TestBuffer; 3]> {
        let c = &self.candidates;
        let nodes = c.shape.nodes;
        let cand_node = h.u32("cand_node", &c.cand_node);
        let node_info = h.u32("node_info", &c.node_info);
        let g = h.random("g", nodes);
        let (terms, sums) = (h.random("terms", nodes * TERMS), h.random("sums", TERMS));
        objective(
            h.stream(),
            LogProbs {
                policy: self.logp.slice(),
                old: self.old.slice(),
                reference: self.reference.slice(),
            },
            self.advantages.slice(),
            cand_node.slice(),
            node_info.slice(),
            Outputs {
                g: g.slice(),
                terms: terms.slice(),
                sums: sums.slice(),
            },
            c.shape,
            hyper,
        );
        h.run()?;
        Ok([g, terms, sums])
    }
}

const LOSSES: [Loss; 4] = [Loss::Grpo, Loss::DrGrpo, Loss::Dapo, Loss::Gspo];

pub fn cases(h: &mut Harness) -> Result<()> {
    for (prompts, group, levels) in [(1, 1, 1), (3, 16, 3), (7, 13, 4)] {
        for loss in LOSSES {
            let inputs = Inputs::new(h, prompts, group, levels);
            let hyper = Hyper {
                loss,
                clip_low: 0.2,
                clip_high: 0.28,
                beta: 0.05,
                sibling_weight: 0.7,
                mask_zero_variance: loss == Loss::Dapo,
                prompts: prompts.into(),
                candidates: inputs.candidates.present().into(),
            };
            for buffer in inputs.run(h, hyper)? {
                h.read_f32(&buffer)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::harness::{devices, finite_difference};

    #[test]
    fn shader_equals_twin() {
        devices::lockstep(cases);
    }

    const HYPER: Hyper = Hyper {
        loss: Loss::Grpo,
        clip_low: 0.05,
        clip_high: 0.1,
        beta: 0.1,
        sibling_weight: 0.6,
        mask_zero_variance: false,
        prompts: Size::known(3),
        candidates: Size::known(0),
    };

    impl Inputs {
        /// The module's formulas, entry by entry in f64: GRPO and sibling loss.
        fn losses(&self, lp: &[f64], hyper: Hyper) -> (f64, f64) {
            let c = &self.candidates;
            let (old, reference, a) = (self.old.f64(), self.reference.f64(), self.advantages.f64());
            let [lo, hi, beta] = [hyper.clip_low, hyper.clip_high, hyper.beta].map(f64::from);
            let surrogate = |r: f64, a: f64| (r * a).min(r.clamp(1.0 - lo, 1.0 + hi) * a);
            let path = |i: usize| &c.cand_node[3 * i..3 * i + 3];
            let present =
                |b: usize| (8 * b..8 * b + 8).filter(|&i| path(i)[0] != NONE).count() as f64;
            let all: f64 = (0..3).map(present).sum();
            let prompts = hyper.prompts.max as f64;
            let (mut policy, mut sibling) = (0.0, 0.0);
            for i in (0..24).filter(|&i| path(i)[0] != NONE) {
                let b = i / 8;
                if hyper.mask_zero_variance && b == 0 {
                    continue;
                }
                let weight = match hyper.loss {
                    Loss::Grpo | Loss::Gspo => 1.0 / (prompts * present(b) * 3.0),
                    Loss::DrGrpo => 1.0 / (prompts * 8.0 * 3.0),
                    Loss::Dapo => 1.0 / (all * 3.0),
                };
                let log_ratio = |n: &u32| lp[*n as usize] - old[*n as usize];
                let mean_log_ratio = path(i).iter().map(log_ratio).sum::<f64>() / 3.0;
                for n in path(i) {
                    let r = match hyper.loss {
                        Loss::Gspo => mean_log_ratio.exp(),
                        _ => log_ratio(n).exp(),
                    };
                    let d = reference[*n as usize] - lp[*n as usize];
                    policy -= weight * (surrogate(r, a[i]) - beta * (d.exp() - d - 1.0));
                }
            }
            for (n, info) in c.node_info.chunks(4).enumerate() {
                let r = (lp[n] - old[n]).exp();
                sibling -= surrogate(r, a[24 + n]) / (prompts * present(info[0] as usize));
            }
            (policy, sibling)
        }
    }

    #[test]
    fn losses_and_gradients_match_f64() {
        devices::each(|h| {
            for loss in LOSSES {
                for mask_zero_variance in [false, true] {
                    let inputs = Inputs::new(h, 3, 8, 3);
                    let hyper = Hyper {
                        loss,
                        mask_zero_variance,
                        candidates: inputs.candidates.present().into(),
                        ..HYPER
                    };
                    let [g, _, sums] = inputs.run(h, hyper).unwrap();
                    let lp = inputs.logp.f64();
                    let (policy, sibling) = inputs.losses(&lp, hyper);
                    let metrics =
                        Metrics::from_sums(&h.read_f32(&sums).unwrap(), hyper.sibling_weight);
                    assert!((metrics.policy as f64 - policy).abs() < 1e-6);
                    assert!((metrics.sibling as f64 - sibling).abs() < 1e-6);
                    assert!(metrics.clip_low > 0.0 && metrics.clip_high > 0.0);
                    let total = |lp: &[f64]| {
                        let (policy, sibling) = inputs.losses(lp, hyper);
                        policy + hyper.sibling_weight as f64 * sibling
                    };
                    assert!((metrics.loss as f64 - total(&lp)).abs() < 1e-6);
                    h.expect(&g, &finite_difference(total, &lp), 2e-6);
                }
            }
        });
    }

    /// The loss switches that share a formula without absent candidates do differ with them.
    #[test]
    fn normalisers_coincide_only_when_every_candidate_is_present() {
        let device = std::sync::Arc::new(crate::device::cpu::Cpu::new());
        let h = &mut Harness::new(device);
        let inputs = Inputs::new(h, 3, 8, 3);
        let mut policy = |inputs: &Inputs, loss| {
            let hyper = Hyper {
                loss,
                candidates: inputs.candidates.present().into(),
                ..HYPER
            };
            let [.., sums] = inputs.run(h, hyper).unwrap();
            h.read_f32(&sums).unwrap()[0]
        };
        let grpo = policy(&inputs, Loss::Grpo);
        assert!((policy(&inputs, Loss::DrGrpo) - grpo).abs() > 1e-4);
        let mut full = inputs;
        for entry in 0..full.candidates.cand_node.len() {
            if full.candidates.cand_node[entry] == NONE {
                // Repeat a neighbour; no two in a row are absent.
                let other = if entry % 24 < 3 { entry + 3 } else { entry - 3 };
                full.candidates.cand_node[entry] = full.candidates.cand_node[other];
            }
        }
        let grpo = policy(&full, Loss::Grpo);
        for loss in [Loss::DrGrpo, Loss::Dapo] {
            assert!((policy(&full, loss) - grpo).abs() < 1e-6);
        }
        assert!((policy(&full, Loss::Gspo) - grpo).abs() > 1e-4);
    }

    #[test]
    fn kl_keeps_its_precision_near_zero() {
        for d in [-0.2, -0.0999, -1e-3, 1e-4, 0.05, 0.1, 0.7] {
            let want = (d as f64).exp_m1() - d as f64;
            let error = (kl_estimate(d) as f64 - want).abs() / want;
            assert!(error < 2e-5, "kl({d}) is off by {error:.1e}");
        }
    }
}
