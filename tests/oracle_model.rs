//! The model forward and backward against independent computations, on the CPU device and on a GPU: the numbers another
//! framework made, where they are at hand, and always a plain f64 implementation with finite differences.

#[path = "support/devices.rs"]
mod devices;
#[path = "support/oracle.rs"]
mod oracle_files;
#[path = "support/plain_model.rs"]
mod plain_model;

use anyhow::Result;
use devices::{bare_gpu, cpu};
use plain_model::{PlainModel, Sizes, Token, log_prob};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::Path;
use vstar::device::lockstep::relative_error;
use vstar::device::{DeviceRef, Precision};
use vstar::learn::probe;
use vstar::learn::tensors::Output;
use vstar::model::checkpoint::Init;
use vstar::model::layout::{for_each_part_mut, parts};
use vstar::model::{Architecture, Family, Model};
use vstar::rng::{Rng, Stream};

const TOLERANCE: f64 = 1e-5;
const GRADIENT_TOLERANCE: f64 = 1e-4;
const INIT: Init = Init { seed: 1, std: 0.02 };

type Question = fn(Model, &SafeTensors, bool) -> Result<Vec<Output>>;
type Answers = BTreeMap<String, Vec<f32>>;

fn tolerance(name: &str) -> f64 {
    match name.starts_with("grad.") {
        true => GRADIENT_TOLERANCE,
        false => TOLERANCE,
    }
}

/// Loads a checkpoint, lets `change` alter its tensors by name, and asks.
fn ask(
    device: &DeviceRef,
    checkpoint: &Path,
    input: &[u8],
    question: Question,
    change: impl Fn(&str, &mut [f32]),
) -> Answers {
    let inputs = SafeTensors::deserialize(input).unwrap();
    let positions = probe::positions(&inputs).unwrap();
    let model = Model::load(device, checkpoint, positions, Precision::F32, INIT).unwrap();
    let mut blocks = model.weights.read().unwrap();
    for_each_part_mut(&model.layout, &mut blocks, |name, _, values| {
        change(name, values);
        Ok(())
    })
    .unwrap();
    model.weights.write(&blocks).unwrap();
    let answers = question(model, &inputs, true).unwrap();
    answers
        .into_iter()
        .map(|(name, _, values)| (name, values))
        .collect()
}

/// The outputs that differ from what is wanted by more than their tolerance, and by how much.
fn wrong(want: &Answers, got: &Answers) -> Vec<String> {
    let off = |(name, want): (&String, &Vec<f32>)| {
        let error = relative_error(want, &got[name]);
        (error > tolerance(name)).then(|| format!("{name}: off by {error:.1e}"))
    };
    want.iter().filter_map(off).collect()
}

/// Both devices answer as wanted, with an answer for every tensor of the checkpoint; a model with one corrupted weight
/// does not.
fn check(what: &str, checkpoint: &Path, input: &[u8], question: Question, want: &Answers) {
    for device in [cpu(), bare_gpu()] {
        let got = ask(&device, checkpoint, input, question, |_, _| ());
        let names = |answers: &Answers| answers.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&got), names(want), "{what}");
        let info = device.info();
        assert_eq!(wrong(want, &got), [""; 0], "{what}, {info}");
    }
    let corrupted = ask(&cpu(), checkpoint, input, question, |name, values| {
        if name == "model.norm.weight" {
            values[0] *= 1.05;
        }
    });
    let found = wrong(want, &corrupted);
    let (gradients, answers): (Vec<&String>, Vec<&String>) =
        found.iter().partition(|line| line.starts_with("grad."));
    assert!(
        !gradients.is_empty() && !answers.is_empty(),
        "{what}: a corrupted weight goes unnoticed: {found:?}"
    );
}

/// The outputs a file of the oracle holds.
fn answers(file: &[u8], outputs: &[&str]) -> Answers {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let wanted = |name: &str| name.starts_with("grad.") || outputs.contains(&name);
    let values = |view: TensorView| {
        let words = view.data().chunks_exact(4);
        words
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    };
    let named = tensors
        .tensors()
        .into_iter()
        .filter(|(name, _)| wanted(name));
    named.map(|(name, view)| (name, values(view))).collect()
}

const FORWARD: [&str; 2] = ["logits", "loss"];
const TREE: [&str; 3] = ["node_logprob", "node_value", "node_next_logits"];

#[test]
fn models_answer_as_another_framework_does() {
    let Some(root) = oracle_files::folder() else {
        return;
    };
    for family in ["qwen2", "llama"] {
        let questions: [(&str, &[&str], Question); 2] = [
            ("forward", &FORWARD, probe::forward),
            ("tree", &TREE, probe::tree),
        ];
        for (kind, outputs, question) in questions {
            let folder = root.join(family);
            let file = std::fs::read(folder.join(format!("{kind}.safetensors"))).unwrap();
            let want = answers(&file, outputs);
            assert!(
                want.len() > outputs.len() + 20,
                "the oracle's gradients are there"
            );
            check(&format!("{family} {kind}"), &folder, &file, question, &want);
        }
    }
}

/// A small model with nothing left at its initial ones and zeros, saved, and its plain twin.
fn small_model(family: Family, tied: bool, folder: &Path) -> PlainModel {
    let architecture = Architecture {
        family,
        vocab: 13,
        hidden: 12,
        intermediate: 10,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 4,
        rope_theta: 100.0,
        eps: 1e-6,
        tied,
        qkv_bias: family == Family::Qwen2,
        max_positions: 16,
    };
    let model = Model::initialised(&cpu(), &architecture, 16, Precision::F32, INIT).unwrap();
    let mut blocks = model.weights.read().unwrap();
    let mut rng = Rng::new(5, Stream::Test, 0, 0);
    for_each_part_mut(&model.layout, &mut blocks, |_, _, values| {
        values.iter_mut().for_each(|v| *v += 0.3 * rng.normal());
        Ok(())
    })
    .unwrap();
    model.weights.write(&blocks).unwrap();
    model.save(folder).unwrap();
    let wide = |values: &[f32]| values.iter().map(|&v| v as f64).collect();
    let tensors = parts(&model.layout, &blocks);
    PlainModel {
        sizes: Sizes {
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 4,
            theta: 100.0,
            // As the model holds it: in f32.
            eps: architecture.eps as f64,
            tied,
        },
        tensors: tensors
            .map(|(name, _, values)| (name.to_string(), wide(&values)))
            .collect(),
    }
}

/// Named 32-bit tensors as a safetensors file.
fn file(tensors: &[(&str, Dtype, &[usize], Vec<u32>)]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, words)| {
        let view = TensorView::new(*dtype, shape.to_vec(), bytemuck::cast_slice(words));
        (*name, view.unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

fn bits(values: &[f64]) -> Vec<u32> {
    values.iter().map(|&v| (v as f32).to_bits()).collect()
}

fn narrow(values: impl IntoIterator<Item = f64>) -> Vec<f32> {
    values.into_iter().map(|v| v as f32).collect()
}

/// A prompt and then a tree of (token, parent's number among the nodes), in the given order.
fn document(prompt: &[usize], nodes: &[(usize, Option<usize>)]) -> Vec<Token> {
    let chain = |id, t| Token {
        id,
        position: t,
        sees: (0..=t).collect(),
    };
    let mut out: Vec<Token> = prompt
        .iter()
        .zip(0..)
        .map(|(&id, t)| chain(id, t))
        .collect();
    for &(id, parent) in nodes {
        let parent = out[parent.map_or(prompt.len() - 1, |p| prompt.len() + p)].clone();
        let mut sees = parent.sees;
        sees.push(out.len());
        out.push(Token {
            id,
            position: parent.position + 1,
            sees,
        });
    }
    out
}

fn with_gradient(mut answers: Answers, gradient: BTreeMap<String, Vec<f64>>) -> Answers {
    let named = gradient
        .into_iter()
        .map(|(name, g)| (format!("grad.{name}"), narrow(g)));
    answers.extend(named);
    answers
}

#[test]
fn documents_agree_with_plain_f64_loops() {
    const VOCAB: usize = 13;
    const LONGEST: usize = 6;
    let documents: [&[usize]; 2] = [&[1, 5, 9, 12, 5, 3], &[1, 7, 2, 11]];
    for (family, tied) in [
        (Family::Qwen3, false),
        (Family::Llama, true),
        (Family::Qwen2, true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let plain = small_model(family, tied, folder.path());
        let mut tokens = vec![0; 2 * LONGEST];
        for (row, document) in tokens.chunks_exact_mut(LONGEST).zip(documents) {
            row.iter_mut()
                .zip(document)
                .for_each(|(to, &t)| *to = t as u32);
        }
        let lengths = documents.map(|d| d.len() as u32).to_vec();
        let input = file(&[
            ("tokens", Dtype::I32, &[2, LONGEST], tokens),
            ("lengths", Dtype::I32, &[2], lengths),
        ]);
        let run = |model: &PlainModel, tokens: &[usize]| model.run(&document(tokens, &[])).0;
        let loss = |model: &PlainModel| {
            let mut scores = Vec::new();
            for tokens in documents {
                let logits = run(model, tokens);
                scores.extend(
                    tokens[1..]
                        .iter()
                        .zip(logits)
                        .map(|(&t, l)| log_prob(&l, t)),
                );
            }
            -scores.iter().sum::<f64>() / scores.len() as f64
        };
        let mut logits = vec![0.0; 2 * LONGEST * VOCAB];
        for (out, tokens) in logits.chunks_exact_mut(LONGEST * VOCAB).zip(documents) {
            let values = run(&plain, tokens).into_iter().flatten();
            out.iter_mut().zip(values).for_each(|(to, v)| *to = v);
        }
        let answers = [
            ("logits".to_string(), narrow(logits)),
            ("loss".to_string(), narrow([loss(&plain)])),
        ];
        let mut gradient = plain.gradient(loss);
        gradient.retain(|name, _| !name.starts_with("value_head."));
        let want = with_gradient(answers.into(), gradient);
        let what = format!("{} forward", family.name());
        check(&what, folder.path(), &input, probe::forward, &want);
    }
}

#[test]
fn trees_agree_with_plain_f64_loops() {
    const VOCAB: usize = 13;
    let prompt = [1, 8, 4, 6];
    // Two branches, one of which branches again, and a leaf beside them.
    let nodes = [
        (3, None),
        (9, None),
        (5, Some(0)),
        (6, Some(0)),
        (11, Some(2)),
        (12, None),
    ];
    let n = nodes.len();
    let weight = [0.7, -0.4, 1.1, 0.3, -0.9, 0.5];
    let value_weight = [-0.2, 0.8, 0.6, -1.3, 0.4, 0.9];
    for (family, tied) in [
        (Family::Qwen3, false),
        (Family::Llama, true),
        (Family::Qwen2, true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let plain = small_model(family, tied, folder.path());
        let words = |values: &[usize]| values.iter().map(|&v| v as u32).collect::<Vec<_>>();
        let parents = nodes.iter().map(|(_, p)| p.map_or(u32::MAX, |p| p as u32));
        let input = file(&[
            ("prompt", Dtype::I32, &[1, 4], words(&prompt)),
            ("prompt_len", Dtype::I32, &[1], vec![4]),
            (
                "node_token",
                Dtype::I32,
                &[1, n],
                words(&nodes.map(|(t, _)| t)),
            ),
            ("node_parent", Dtype::I32, &[1, n], parents.collect()),
            ("node_count", Dtype::I32, &[1], vec![n as u32]),
            ("node_weight", Dtype::F32, &[1, n], bits(&weight)),
            (
                "node_value_weight",
                Dtype::F32,
                &[1, n],
                bits(&value_weight),
            ),
        ]);
        let document = document(&prompt, &nodes);
        // Per node: log-prob, value, logits of what comes after it.
        let run = |model: &PlainModel| {
            let (logits, values) = model.run(&document);
            let row = |node: Option<usize>| node.map_or(prompt.len() - 1, |n| prompt.len() + n);
            let log_probs = nodes
                .iter()
                .map(|&(token, parent)| log_prob(&logits[row(parent)], token));
            let log_probs: Vec<f64> = log_probs.collect();
            (
                log_probs,
                values[prompt.len()..].to_vec(),
                logits[prompt.len()..].concat(),
            )
        };
        let loss = |model: &PlainModel| {
            let (log_probs, values, _) = run(model);
            let weighted =
                |w: [f64; 6], x: Vec<f64>| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
            weighted(weight, log_probs) + weighted(value_weight, values)
        };
        let (log_probs, values, logits) = run(&plain);
        assert_eq!(logits.len(), n * VOCAB);
        let answers = [
            ("node_logprob".to_string(), narrow(log_probs)),
            ("node_value".to_string(), narrow(values)),
            ("node_next_logits".to_string(), narrow(logits)),
        ];
        let want = with_gradient(answers.into(), plain.gradient(loss));
        let what = format!("{} tree", family.name());
        check(&what, folder.path(), &input, probe::tree, &want);
    }
}
