//! Numbers that are not finite: a step with one is left out, and the run says where the first came from.

#[path = "support/devices.rs"]
mod devices;
#[path = "support/folder.rs"]
mod folder;
#[path = "support/toy.rs"]
mod toy;
#[path = "support/train.rs"]
mod train;
#[path = "support/validated.rs"]
mod validated;
#[path = "support/watched.rs"]
mod watched;

use anyhow::ensure;
use devices::{bare_gpu, cpu};
use folder::in_folder;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use train::{config, dataset, engine};
use validated::fine_tune;
use vstar::device::audit::first_not_finite;
use vstar::device::{DeviceRef, Stream};
use vstar::learn::job;
use vstar::model::Model;
use vstar::model::checkpoint::Init;
use vstar::model::layout::for_each_part_mut;
use watched::Watched;

const INIT: Init = Init { seed: 1, std: 0.02 };

/// Puts `value` into the middle of a tensor.
fn inject(model: &Model, tensor: &str, value: f32) {
    let mut weights = model.weights.read().unwrap();
    let mut injected = false;
    for_each_part_mut(&model.layout, &mut weights, |name, _, values| {
        if name == tensor {
            values[values.len() / 2] = value;
            injected = true;
        }
        Ok(())
    })
    .unwrap();
    assert!(injected, "no {tensor}");
    model.weights.write(&weights).unwrap();
}

/// The first layer's input norm, which every token passes.
const NORM: &str = "model.layers.0.input_layernorm.weight";
const WHERE: &str = "launch 5 of 84, kernel rmsnorm, read NaN in `w`, element 16 (model.layers.0.input_layernorm.weight)";

fn poison(model: &Model) {
    inject(model, NORM, f32::NAN);
}

fn causes(root: &Path) -> Vec<String> {
    let metrics = fs::read_to_string(root.join("metrics.jsonl")).unwrap();
    let records = metrics
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    records
        .filter_map(|r| Some(r["not_finite"].as_str()?.to_owned()))
        .collect()
}

#[test]
fn the_launch_and_the_tensor_are_named() {
    for device in [cpu(), bare_gpu()] {
        for (tensor, value, launch, what) in [
            (
                "model.embed_tokens.weight",
                f32::NAN,
                "kernel embedding, read NaN in `table`",
                "model.embed_tokens.weight",
            ),
            (NORM, f32::INFINITY, "read inf in `w`", NORM),
            (
                "model.layers.1.self_attn.k_proj.weight",
                f32::NAN,
                "read NaN in `b`",
                "model.layers.1.self_attn.k_proj.weight",
            ),
            // Finite, but not what comes of it.
            (NORM, 3e38, "wrote ", "activations: attention input"),
            (
                "model.layers.1.mlp.up_proj.weight",
                -3e38,
                "wrote ",
                "activations: ",
            ),
        ] {
            let temporary = tempfile::tempdir().unwrap();
            let root = temporary.path().join("run");
            let changes = ["sft.patience=0", "sft.eval_every=1"];
            let ran = fine_tune(&device, &root, &changes, |step, model| {
                if step == 2 {
                    inject(model, tensor, value);
                }
                0.5
            });
            // The checkpoint of the first step is the best, so that no other was written.
            let line = format!("{:#}", ran.err().expect("three in a row"));
            assert!(line.contains("sft-00000001"), "{line}");
            let causes = causes(&root);
            let info = device.info();
            assert_eq!(causes.len(), 2, "{info}, {tensor}: {line}");
            assert!(
                causes[0].contains(launch) && causes[0].contains(what),
                "{info}, {tensor}: {causes:?}"
            );
            assert_eq!(causes[0], causes[1]);
        }
    }
}

/// Rewards too large for f32, of a data set whose items are worth that much.
#[test]
fn a_reward_that_is_not_finite_is_named_and_the_model_kept() {
    let folder = tempfile::tempdir().unwrap();
    toy::write(folder.path());
    let items = folder.path().join("items.jsonl");
    let mut text = fs::read_to_string(&items).unwrap();
    for worth in 1..=3 {
        text = text.replace(&format!("\"worth\": {worth},"), "\"worth\": 3e38,");
    }
    fs::write(&items, text).unwrap();
    let data = vstar::data::load(Some(folder.path()), Default::default()).unwrap();
    let settings = [
        "sft.max_steps=4",
        "rl.steps=9",
        "rl.prompts=40",
        "reward.value=1000",
    ];
    let config = config(&settings);
    let stages = job::Stages {
        sft: true,
        rl: true,
        eval: false,
    };
    for device in [cpu(), bare_gpu()] {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().join("run");
        let ran = in_folder(&root, &config, &data, |context| {
            job::run(&device, context, stages, None)
        });
        let message = format!("{:#}", ran.unwrap_err());
        assert!(
            message.contains("kernel reward, wrote inf in `rewards`"),
            "{message}"
        );
        let kept = root.join("checkpoints/sft-00000004");
        assert!(
            message.contains(&format!("the last good checkpoint is {}", kept.display())),
            "{message}"
        );
        engine(&device, &config, &data)
            .model
            .restore(&kept, INIT)
            .unwrap();
    }
}

/// What training, validation and evaluation write is finite, so that what is not is a fault.
#[test]
fn nothing_that_a_run_computes_is_not_finite() {
    let settings = [
        "sft.max_steps=3",
        "sft.dropout=0.1",
        "sft.label_smoothing=0.1",
        "sft.ema=0.9",
        "rl.steps=3",
        "rl.eval_every=2",
        "rl.sft_weight=0.5",
        "rl.open_prompts=0.3",
        "rl.ref_sync_steps=2",
        "reward.repeat=0.5",
        "eval.max_users=8",
    ];
    let (data, config) = (dataset(), config(&settings));
    let stages = job::Stages {
        sft: true,
        rl: true,
        eval: true,
    };
    let run = |device: &DeviceRef, stream: &Stream| {
        let found = first_not_finite(device, stream, |_| true)?;
        ensure!(found.is_none(), "{}", found.unwrap());
        Ok(())
    };
    for device in [cpu(), bare_gpu()] {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().join("run");
        let device: DeviceRef = Arc::new(Watched { device, run });
        let ran = in_folder(&root, &config, &data, |context| {
            job::run(&device, context, stages, None)
        });
        assert!(ran.unwrap().contains("V-STAR"));
    }
}

#[test]
fn steps_that_are_not_finite_are_skipped_and_counted() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("run");
    let mut good = Vec::new();
    let ran = fine_tune(
        &cpu(),
        &root,
        &["sft.max_steps=6", "sft.patience=0"],
        |step, model| {
            match step {
                2 => {
                    good = model.weights.read().unwrap();
                    poison(model);
                }
                4 => {
                    // The two skipped steps left all but the poison alone.
                    let now = model.weights.read().unwrap();
                    let bits =
                        |w: &[Vec<f32>]| w.concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    let pairs = bits(&now).into_iter().zip(bits(&good));
                    assert_eq!(pairs.filter(|(a, b)| a != b).count(), 1);
                    model.weights.write(&good).unwrap();
                }
                _ => {}
            }
            0.5
        },
    );
    let (state, model) = ran.unwrap();
    assert_eq!((state.step, state.skipped_steps), (6, 2));
    assert!(
        model
            .weights
            .read()
            .unwrap()
            .concat()
            .iter()
            .all(|w| w.is_finite())
    );
    let metrics = fs::read_to_string(root.join("metrics.jsonl")).unwrap();
    let records = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let records: Vec<Value> = records.collect();
    let finite: Vec<bool> = records.iter().map(|r| r["loss"].is_f64()).collect();
    assert_eq!(finite, [true, true, false, false, true, true]);
    let causes: Vec<Option<&str>> = records.iter().map(|r| r["not_finite"].as_str()).collect();
    let where_ = Some(WHERE);
    assert_eq!(causes, [None, None, where_, where_, None, None]);
}

#[test]
fn three_steps_in_a_row_that_are_not_finite_end_the_run() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("run");
    // Checkpoints are due at steps 2, 4 and 6, of which the latter two are skipped.
    let changes = [
        "run.checkpoint_every=2",
        "run.keep_checkpoints=1",
        "sft.patience=0",
    ];
    let ran = fine_tune(&cpu(), &root, &changes, |step, model| {
        if step == 3 {
            poison(model);
        }
        0.5
    });
    let message = format!("{:#}", ran.err().expect("the run should have ended"));
    let good = root.join("checkpoints/sft-00000002");
    assert_eq!(
        message,
        format!(
            "sft step 6: loss or gradient not finite in 3 steps in a row ({WHERE}): lower the learning rate (the last \
             good checkpoint is {})",
            good.display()
        )
    );
    // It can be loaded, which a model that is not finite could not.
    let model = engine(&cpu(), &config(&[]), &dataset()).model;
    model.restore(&good, INIT).unwrap();
}

#[test]
fn weights_that_are_not_finite_are_not_kept() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("run");
    let ran = fine_tune(&cpu(), &root, &["sft.max_steps=3"], |step, model| {
        if step == 2 {
            poison(model);
        }
        step as f64
    });
    let line = format!(
        "{:#}",
        ran.err().expect("the checkpoint of step 2 cannot be kept")
    );
    let checkpoints = root.join("checkpoints");
    let shown = checkpoints.display();
    assert_eq!(
        line,
        format!(
            "cannot save the checkpoint {shown}/sft-00000002: tensor `{NORM}` holds NaN at element 16"
        )
    );
    let model = engine(&cpu(), &config(&[]), &dataset()).model;
    model
        .restore(&checkpoints.join("sft-00000001"), INIT)
        .unwrap();
}
