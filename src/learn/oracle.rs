//! Answers to worked cases of the objective and of the value loss (spec 5, 6), as `vstar probe` and the tests ask for
//! them: the inputs of an `objective` or `value` safetensors file in, its outputs out.
//!
//! The files hold tables [B, G, L] that repeat a shared prefix for each candidate through it. Gradients are with respect
//! to those entries: GRPO's and the value loss's are the candidate's own, a node's sibling gradient is shared equally
//! among its entries. Training needs only their sum per node; these functions run the same kernels on a tree without
//! sharing for the entries' own parts.

use super::tensors::{Output, floats, integers, shape_of};
use crate::device::{Buffer, DeviceRef, Stream, read_f32};
use crate::forest::Row;
use crate::kernels::advantage::{self, Scaling};
use crate::kernels::objective::{self, Hyper, LogProbs, Loss, Metrics};
use crate::kernels::reward::{self, Reward};
use crate::kernels::td;
use crate::kernels::tree_tables::Candidates;
use anyhow::{Result, bail, ensure};
use safetensors::SafeTensors;

fn scalar(inputs: &SafeTensors, name: &str) -> Result<f32> {
    Ok(floats(inputs, name, &[1])?[0])
}

/// A token tensor of `rank` dimensions.
fn tokens(inputs: &SafeTensors, name: &str, rank: usize) -> Result<(Vec<usize>, Vec<u32>)> {
    let (shape, values) = integers(inputs, name, rank)?;
    let tokens = values.iter().map(|&t| u32::try_from(t).ok());
    match tokens.collect::<Option<Vec<u32>>>() {
        Some(tokens) => Ok((shape, tokens)),
        None => bail!("tensor `{name}` holds a token below 0 or above 2^32 - 1"),
    }
}

/// `candidates` [B, G, L].
fn candidates(inputs: &SafeTensors) -> Result<([usize; 3], Vec<u32>)> {
    let (shape, tokens) = tokens(inputs, "candidates", 3)?;
    ensure!(!tokens.is_empty(), "tensor `candidates` is empty");
    Ok(([shape[0], shape[1], shape[2]], tokens))
}

/// A candidate tree on the device.
struct Tree {
    tables: Candidates,
    cand_node: Buffer,
    node_info: Buffer,
}

impl Tree {
    fn new(device: &DeviceRef, tables: Candidates) -> Result<Tree> {
        Ok(Tree {
            cand_node: Buffer::with_u32(device, "candidates' nodes", &tables.cand_node)?,
            node_info: Buffer::with_u32(device, "nodes", &tables.node_info)?,
            tables,
        })
    }

    /// One value per node from one per entry; entries of a node agree.
    fn per_node(&self, entries: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; self.tables.shape.nodes];
        for (&node, &value) in self.tables.cand_node.iter().zip(entries) {
            out[node as usize] = value;
        }
        out
    }

    /// Each entry's node's value.
    fn per_entry(&self, nodes: &[f32]) -> Vec<f32> {
        let entries = self.tables.cand_node.iter();
        entries.map(|&node| nodes[node as usize]).collect()
    }
}

/// What a run of the objective leaves: dLoss/dlogp and KL per node, and the figures.
struct Answer {
    g: Vec<f32>,
    kl: Vec<f32>,
    metrics: Metrics,
}

/// Runs the objective on a tree; `logp` holds policy, old and reference per node.
fn run_objective(
    device: &DeviceRef,
    tree: &Tree,
    logp: [&[f32]; 3],
    advantages: &Buffer,
    hyper: Hyper,
) -> Result<Answer> {
    let nodes = tree.tables.shape.nodes;
    let upload = |values| Buffer::with_f32(device, "log-probs", values);
    let (policy, old, reference) = (upload(logp[0])?, upload(logp[1])?, upload(logp[2])?);
    let g = Buffer::new(device, "g", nodes)?;
    let terms = Buffer::new(device, "objective terms", nodes * objective::TERMS)?;
    let sums = Buffer::new(device, "objective sums", objective::TERMS)?;
    let mut stream = Stream::new();
    objective::objective(
        &mut stream,
        LogProbs {
            policy: policy.all(),
            old: old.all(),
            reference: reference.all(),
        },
        advantages.all(),
        tree.cand_node.all(),
        tree.node_info.all(),
        objective::Outputs {
            g: g.all(),
            terms: terms.all(),
            sums: sums.all(),
        },
        tree.tables.shape,
        hyper,
    );
    device.run(&stream)?;
    let terms = terms.read_f32()?;
    Ok(Answer {
        g: g.read_f32()?,
        kl: terms
            .chunks_exact(objective::TERMS)
            .map(|t| t[2] / t[6])
            .collect(),
        metrics: Metrics::from_sums(&sums.read_f32()?, hyper.sibling_weight),
    })
}

/// `objective.safetensors`: candidates, rewards, the three log-probs and `hyper.*` to the advantages, kl, the losses and
/// `dloss_dlogp`. Errors: an input that is missing, misshapen or of another type, by name.
pub fn objective(device: &DeviceRef, inputs: &SafeTensors) -> Result<Vec<Output>> {
    let (shape, paths) = candidates(inputs)?;
    let [prompts, group, levels] = shape;
    let rewards = floats(inputs, "rewards", &[prompts, group])?;
    let logp = floats(inputs, "logp", &shape)?;
    let logp_old = floats(inputs, "logp_old", &shape)?;
    let logp_ref = floats(inputs, "logp_ref", &shape)?;
    let hyper = Hyper {
        loss: Loss::Grpo,
        clip_low: scalar(inputs, "hyper.clip_low")?,
        clip_high: scalar(inputs, "hyper.clip_high")?,
        beta: scalar(inputs, "hyper.beta")?,
        sibling_weight: scalar(inputs, "hyper.sibling_weight")?,
        mask_zero_variance: false,
        prompts: prompts.into(),
        candidates: (prompts * group).into(),
    };

    let tree = Tree::new(device, Candidates::shared(&paths, group, levels))?;
    let rewards = Buffer::with_f32(device, "rewards", &rewards)?;
    let advantages = Buffer::new(
        device,
        "advantages",
        advantage::advantages_len(tree.tables.shape),
    )?;
    let node_reward = Buffer::new(device, "nodes' rewards", tree.tables.shape.nodes)?;
    let mut stream = Stream::new();
    advantage::advantage(
        &mut stream,
        rewards.all(),
        tree.cand_node.all(),
        tree.node_info.all(),
        advantages.all(),
        node_reward.all(),
        tree.tables.shape,
        Scaling::Group,
    );
    device.run(&stream)?;
    let by_node = [&logp, &logp_old, &logp_ref].map(|x| tree.per_node(x));
    let whole = run_objective(
        device,
        &tree,
        by_node.each_ref().map(Vec::as_slice),
        &advantages,
        hyper,
    )?;

    // Each entry's own part: GRPO on a tree without sharing.
    let alone = Tree::new(device, Candidates::unshared(&paths, group, levels))?;
    let mut values = read_f32(device, advantages.first(prompts * group))?;
    values.resize(advantage::advantages_len(alone.tables.shape), 0.0);
    let group_advantages = Buffer::with_f32(device, "group advantages", &values)?;
    let own = run_objective(
        device,
        &alone,
        [&logp, &logp_old, &logp_ref],
        &group_advantages,
        hyper,
    )?;
    // What a node's gradient holds beyond its entries' own parts is the sibling part.
    let mut own_sum = vec![0.0; tree.tables.shape.nodes];
    let mut entries = vec![0.0; tree.tables.shape.nodes];
    for (&node, g) in tree.tables.cand_node.iter().zip(&own.g) {
        own_sum[node as usize] += g;
        entries[node as usize] += 1.0;
    }
    let shares: Vec<f32> = (0..entries.len())
        .map(|n| (whole.g[n] - own_sum[n]) / entries[n])
        .collect();
    let dlogp = own.g.iter().zip(tree.per_entry(&shares));
    let dlogp = dlogp.map(|(own, share)| own + share).collect();

    let all = advantages.read_f32()?;
    let (by_group, by_node) = all.split_at(prompts * group);
    let table = shape.to_vec();
    Ok(vec![
        (
            "group_advantage".into(),
            vec![prompts, group],
            by_group.to_vec(),
        ),
        (
            "sibling_advantage".into(),
            table.clone(),
            tree.per_entry(by_node),
        ),
        ("kl".into(), table.clone(), tree.per_entry(&whole.kl)),
        ("loss_grpo".into(), vec![1], vec![whole.metrics.policy]),
        ("loss_sibling".into(), vec![1], vec![whole.metrics.sibling]),
        ("loss_total".into(), vec![1], vec![whole.metrics.loss]),
        ("dloss_dlogp".into(), table, dlogp),
    ])
}

/// Step rewards [B, G, L] by the kernel. Every candidate is an SID of its own with its own embedding, and so is every
/// target.
fn step_rewards(
    device: &DeviceRef,
    (paths, targets): (&[u32], &[u32]),
    (embedding, target_embedding): (&[f32], &[f32]),
    weights: &[f32],
    [prompts, group, levels, dim]: [usize; 4],
) -> Result<Vec<f32>> {
    let (mut picked, mut asked) = (Vec::new(), Vec::new());
    for b in 0..prompts {
        picked.extend([group as u32, group as u32, 0, 0]);
        picked.extend(vec![0; levels + 1]);
        for c in b * group..(b + 1) * group {
            picked.push(c as u32);
            picked.extend(&paths[c * levels..][..levels]);
        }
        asked.extend([0, 0, (prompts * group + b) as u32, 0]);
        asked.extend(&targets[b * levels..][..levels]);
    }
    let words = |label, data: &[u32]| Buffer::with_u32(device, label, data);
    let floats = |label, data: &[f32]| Buffer::with_f32(device, label, data);
    let (picked, asked) = (words("candidates", &picked)?, words("targets", &asked)?);
    let scores = Buffer::new(device, "scores", prompts * group * (2 + levels))?;
    // Every prompt is empty.
    let rows = Buffer::new(device, "prompt rows", Row::WORDS)?;
    let sids = floats("level weights", weights)?;
    let embeddings = floats("embeddings", &[embedding, target_embedding].concat())?;
    let rewards = Buffer::new(device, "rewards", prompts * group)?;
    let steps = Buffer::new(device, "step rewards", prompts * group * levels)?;
    let on = Reward {
        picked: picked.all(),
        scores: scores.all(),
        asked: asked.all(),
        rows: rows.all(),
        sids: sids.all(),
        embeddings: embeddings.all(),
        rewards: rewards.all(),
        steps: steps.all(),
    };
    let params = reward::Params {
        prompts: prompts as u32,
        group: group as u32,
        levels: levels as u32,
        dim: dim as u32,
        rule: 0.0,
        rank: 0.0,
        semantic: 0.0,
        repeat: 0.0,
        novelty: 0.0,
        value: 0.0,
        teacher: 0.0,
    };
    let mut stream = Stream::new();
    reward::reward(&mut stream, on, params);
    device.run(&stream)?;
    steps.read_f32()
}

/// `value.safetensors`: candidates, target, embeddings, values and `hyper.*` to the step rewards, the targets, the loss
/// and `dloss_dvalue`. Errors: as [`objective`].
pub fn value(device: &DeviceRef, inputs: &SafeTensors) -> Result<Vec<Output>> {
    let (shape, paths) = candidates(inputs)?;
    let [prompts, group, levels] = shape;
    let (target_shape, target) = tokens(inputs, "target", 2)?;
    ensure!(
        target_shape == [prompts, levels],
        "tensor `target` has shape {target_shape:?}: expected {:?}",
        [prompts, levels]
    );
    let dim = shape_of(inputs, "item_embedding")?.last().copied();
    let dim = dim.unwrap_or(0);
    let embedding = floats(inputs, "item_embedding", &[prompts, group, dim])?;
    ensure!(dim > 0, "tensor `item_embedding` is empty");
    let target_embedding = floats(inputs, "target_embedding", &[prompts, dim])?;
    let values = floats(inputs, "value", &shape)?;
    let weights = floats(inputs, "hyper.level_weight", &[levels])?;
    let gamma = scalar(inputs, "hyper.gamma")?;

    let step_reward = step_rewards(
        device,
        (&paths, &target),
        (&embedding, &target_embedding),
        &weights,
        [prompts, group, levels, dim],
    )?;

    let alone = Tree::new(device, Candidates::unshared(&paths, group, levels))?;
    let nodes = alone.tables.shape.nodes;
    let value = Buffer::with_f32(device, "values", &values)?;
    let rewarded = Buffer::with_f32(device, "step rewards", &step_reward)?;
    let td_target = Buffer::new(device, "value targets", paths.len())?;
    let dvalue = Buffer::new(device, "value gradient", nodes)?;
    let terms = Buffer::new(device, "value-loss terms", nodes)?;
    let loss = Buffer::new(device, "value loss", 1)?;
    let mut stream = Stream::new();
    td::td(
        &mut stream,
        value.all(),
        rewarded.all(),
        alone.cand_node.all(),
        alone.node_info.all(),
        td::Outputs {
            target: td_target.all(),
            dvalue: dvalue.all(),
            terms: terms.all(),
            loss: loss.all(),
        },
        alone.tables.shape,
        td::Hyper {
            gamma,
            weight: 1.0,
            prompts,
        },
    );
    device.run(&stream)?;
    let table = shape.to_vec();
    Ok(vec![
        ("step_reward".into(), table.clone(), step_reward),
        ("td_target".into(), table.clone(), td_target.read_f32()?),
        ("loss".into(), vec![1], loss.read_f32()?),
        ("dloss_dvalue".into(), table, dvalue.read_f32()?),
    ])
}
