//! Answers to the files another framework made (`vstar probe`): the inputs of `forward.safetensors` or `tree.safetensors`
//! in, the same-named outputs out.

use super::engine::{Capacity, Engine, Input, Options, Room, Targets};
use super::sequences::push_tree;
use super::tensors::{Output, floats, integers};
use crate::device::{Buffer, Stream};
use crate::forest::{Forest, NONE, Node, PromptAttention};
use crate::kernels::reduce;
use crate::model::Model;
use crate::model::layout::parts;
use anyhow::{Context, Result, ensure};
use safetensors::SafeTensors;

/// Row `i` of a padded token matrix, cut to its length.
fn document(
    name: &str,
    (shape, tokens): &(Vec<usize>, Vec<i64>),
    i: usize,
    length: i64,
) -> Result<Vec<u32>> {
    let width = shape[1];
    ensure!(
        (1..=width as i64).contains(&length),
        "row {i} of `{name}` is said to be {length} long: expected 1 to {width}"
    );
    tokens[i * width..][..length as usize]
        .iter()
        .map(|&t| u32::try_from(t).with_context(|| format!("row {i} of `{name}` holds token {t}")))
        .collect()
}

/// Lengths of the documents. Errors: not one per row of `of`.
fn lengths(inputs: &SafeTensors, name: &str, of: &(Vec<usize>, Vec<i64>)) -> Result<Vec<i64>> {
    let (shape, values) = integers(inputs, name, 1)?;
    ensure!(
        shape[0] == of.0[0],
        "tensor `{name}` has {} entries for {} documents",
        shape[0],
        of.0[0]
    );
    Ok(values)
}

/// The gradient in Hugging Face's tensors, as `grad.<tensor>`.
fn gradients(engine: &Engine, with_value_head: bool) -> Result<Vec<Output>> {
    let blocks = engine.optimiser.gradient.read()?;
    Ok(parts(engine.layout(), &blocks)
        .filter(|(name, ..)| with_value_head || !name.starts_with("value_head."))
        .map(|(name, shape, values)| (format!("grad.{name}"), shape.to_vec(), values.to_vec()))
        .collect())
}

fn engine_for(model: Model, forest: &Forest, targets: &Targets) -> Result<(Engine, Room, Input)> {
    let capacity = Capacity {
        tokens: forest.len(),
        rows: targets.rows.len(),
        targets: targets.len(),
        slots: 0,
    };
    let engine = Engine::new(model, capacity, Options::default())?;
    let room = Room::new(&engine)?;
    let input = engine.upload(&room, forest, targets)?;
    Ok((engine, room, input))
}

/// How long the longest document of a probe file is: the positions its model must be made for.
pub fn positions(inputs: &SafeTensors) -> Result<usize> {
    if inputs.tensor("tokens").is_ok() {
        return Ok(integers(inputs, "tokens", 2)?.0[1]);
    }
    let prompt = integers(inputs, "prompt", 2)?.0[1];
    Ok(prompt + integers(inputs, "node_token", 2)?.0[1])
}

/// `forward.safetensors`: tokens [B, T] and lengths [B] to logits [B, T, V] (zero past a document's end), the mean
/// cross-entropy of the next token, and with `grad` its gradient.
pub fn forward(model: Model, inputs: &SafeTensors, grad: bool) -> Result<Vec<Output>> {
    let device = model.device.clone();
    let tokens = integers(inputs, "tokens", 2)?;
    let lengths = lengths(inputs, "lengths", &tokens)?;
    let (mut forest, mut targets) = (Forest::new(), Targets::default());
    for (i, &length) in lengths.iter().enumerate() {
        let document = document("tokens", &tokens, i, length)?;
        let first = forest.len() as u32;
        forest.push_prompt(&document, PromptAttention::Causal);
        for (t, &next) in document.iter().enumerate().skip(1) {
            targets.push(first + t as u32 - 1, next);
        }
        targets.push_row(first + document.len() as u32 - 1);
    }
    let vocab = model.architecture.vocab;
    let (engine, _room, input) = engine_for(model, &forest, &targets)?;
    let count = targets.len();
    engine.head.g.write_f32(&vec![-1.0 / count as f32; count])?;
    let loss = Buffer::new(&device, "loss", 1)?;
    let mut s = Stream::new();
    engine.forward(&mut s, &input, engine.head.logp.all());
    reduce::dot(
        &mut s,
        engine.head.logp.all(),
        engine.head.g.all(),
        loss.all(),
        count,
    );
    device.run(&s)?;
    let packed = crate::device::read_f32(&device, engine.head.logits(&input, vocab))?;
    let width = tokens.0[1];
    let mut logits = vec![0.0; lengths.len() * width * vocab];
    for (i, span) in forest.documents.iter().enumerate() {
        let rows = span.begin * vocab..span.end * vocab;
        logits[i * width * vocab..][..rows.len()].copy_from_slice(&packed[rows]);
    }
    let mut out = vec![
        ("logits".into(), vec![lengths.len(), width, vocab], logits),
        ("loss".into(), vec![1], loss.read_f32()?),
    ];
    if grad {
        s.clear();
        engine.backward_head(&mut s, &input);
        engine.backward_backbone(&mut s, &input);
        device.run(&s)?;
        out.extend(gradients(&engine, false)?);
    }
    Ok(out)
}

/// `tree.safetensors`: prompts and trees to each node's log-prob, value and next logits (zero where there is no node),
/// and with `grad` the gradient of sum(node_weight logprob + node_value_weight value).
pub fn tree(model: Model, inputs: &SafeTensors, grad: bool) -> Result<Vec<Output>> {
    let device = model.device.clone();
    let prompts = integers(inputs, "prompt", 2)?;
    let prompt_lengths = lengths(inputs, "prompt_len", &prompts)?;
    let tokens = integers(inputs, "node_token", 2)?;
    let parents = integers(inputs, "node_parent", 2)?;
    ensure!(
        parents.0 == tokens.0 && tokens.0[0] == prompts.0[0],
        "tensors `node_parent` {:?} and `node_token` {:?} do not fit `prompt` {:?}",
        parents.0,
        tokens.0,
        prompts.0
    );
    let counts = lengths(inputs, "node_count", &tokens)?;
    let [documents, width] = tokens.0[..] else {
        unreachable!("rank 2 was checked")
    };
    let (mut forest, mut targets) = (Forest::new(), Targets::default());
    // Where the file's node (document, number) is among the targets, and its forest row.
    let mut target_of = vec![NONE; documents * width];
    let mut row_of = vec![NONE; documents * width];
    for i in 0..documents {
        let prompt = document("prompt", &prompts, i, prompt_lengths[i])?;
        let node_tokens = document("node_token", &tokens, i, counts[i])?;
        let nodes = node_tokens
            .iter()
            .zip(&parents.1[i * width..])
            .enumerate()
            .map(|(n, (&token, &parent))| {
                ensure!(
                    parent >= -1 && parent < n as i64,
                    "row {i} of `node_parent`: node {n} has parent {parent}, which does not come before it"
                );
                let parent = if parent < 0 { NONE } else { parent as u32 };
                Ok(Node { token, parent })
            })
            .collect::<Result<Vec<_>>>()?;
        let packed = push_tree(
            &prompt,
            &nodes,
            PromptAttention::Causal,
            true,
            (&mut forest, &mut targets),
        );
        for (n, (target, row)) in packed.into_iter().enumerate() {
            target_of[i * width + n] = target;
            row_of[i * width + n] = row;
        }
    }
    let vocab = model.architecture.vocab;
    let (engine, _room, input) = engine_for(model, &forest, &targets)?;
    let present: Vec<usize> = (0..documents * width)
        .filter(|&n| row_of[n] != NONE)
        .collect();
    let value = Buffer::new(&device, "values", forest.len())?;
    let mut s = Stream::new();
    engine.forward(&mut s, &input, engine.head.logp.all());
    let (pass, acts) = (engine.pass(&input), &engine.acts);
    let block = &acts.value_block;
    engine.model.value_keys(&mut s, &pass, block);
    engine
        .model
        .value(&mut s, &pass, block, &acts.value, value.all());
    device.run(&s)?;
    let logp = engine.head.logp.read_f32()?;
    let values = value.read_f32()?;
    let scored = crate::device::read_f32(&device, engine.head.logits(&input, vocab))?;
    let shape = vec![documents, width];
    let mut node_logprob = vec![0.0; documents * width];
    let mut node_value = vec![0.0; documents * width];
    let mut next_logits = vec![0.0; documents * width * vocab];
    for &n in &present {
        node_logprob[n] = logp[target_of[n] as usize];
        node_value[n] = values[row_of[n] as usize];
        let at = targets
            .rows
            .binary_search(&row_of[n])
            .expect("every node is scored");
        next_logits[n * vocab..][..vocab].copy_from_slice(&scored[at * vocab..][..vocab]);
    }
    let mut out = vec![
        ("node_logprob".into(), shape.clone(), node_logprob),
        ("node_value".into(), shape.clone(), node_value),
        (
            "node_next_logits".into(),
            vec![documents, width, vocab],
            next_logits,
        ),
    ];
    if grad {
        let weight = floats(inputs, "node_weight", &shape)?;
        let value_weight = floats(inputs, "node_value_weight", &shape)?;
        let mut g = vec![0.0; targets.len()];
        for &n in &present {
            g[target_of[n] as usize] = weight[n];
        }
        engine.head.g.write_f32(&g)?;
        let mut d_value = vec![0.0; forest.len()];
        for &n in &present {
            d_value[row_of[n] as usize] = value_weight[n];
        }
        let d_value = Buffer::with_f32(&device, "value gradient", &d_value)?;
        s.clear();
        engine.backward_head(&mut s, &input);
        engine.model.value_backward(
            &mut s,
            &engine.pass(&input),
            &engine.acts,
            (0, d_value.all()),
            &engine.optimiser.gradient,
            false,
        );
        engine.backward_backbone(&mut s, &input);
        device.run(&s)?;
        out.extend(gradients(&engine, true)?);
    }
    Ok(out)
}
