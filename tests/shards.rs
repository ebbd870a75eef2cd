//! Models whose embedding and logits no binding holds: cut into shards, they are the same model.

#[path = "support/devices.rs"]
mod devices;
#[path = "support/steps.rs"]
mod steps;
#[path = "support/toy.rs"]
mod toy;
#[path = "support/train.rs"]
mod train;

use devices::{cpu, gpu};
use steps::{CAUSAL, Outcome, both_ways, gradient_difference, regularised_step, update};
use train::{config, dataset};
use vstar::config::Config;
use vstar::data::Dataset;
use vstar::decode::search::{Decoding, Searcher};
use vstar::device::DeviceRef;
use vstar::device::gpu::GpuOptions;
use vstar::forest::Forest;
use vstar::kernels::harness::lockstep_pair;
use vstar::learn::engine::{Capacity, Engine, Targets};
use vstar::learn::job::{self, Stages};
use vstar::learn::sequences::{Window, push_window, windows};
use vstar::learn::sft::Regulariser;
use vstar::model::checkpoint::Init;
use vstar::model::{Architecture, Model};

/// What the GPU of these tests binds: 1 MiB, 4,096 rows of [`WIDTH`].
const BINDING: u64 = 1 << 20;
const WIDTH: usize = 64;
/// Two full shards, and one of a size of its own.
const VOCAB: usize = 9003;

fn narrow_gpu() -> DeviceRef {
    gpu(GpuOptions {
        max_binding: Some(BINDING),
        ..Default::default()
    })
}

fn settings(changes: &[&str]) -> Config {
    config(&[&["model.layers=1", "model.hidden_size=64"], changes].concat())
}

/// A fresh model of the large vocabulary.
fn model(device: &DeviceRef, config: &Config, data: &Dataset) -> Model {
    let architecture = Architecture {
        vocab: VOCAB,
        ..job::architecture(config, data)
    };
    assert_eq!(architecture.hidden, WIDTH);
    let init = Init { seed: 1, std: 0.02 };
    Model::initialised(device, &architecture, 32, job::precision(config), init).unwrap()
}

/// Ready to train.
fn engine(device: &DeviceRef, config: &Config, data: &Dataset) -> Engine {
    let capacity = Capacity {
        tokens: 512,
        rows: 512,
        targets: 512,
        slots: 512,
    };
    let stages = Stages {
        sft: true,
        rl: true,
        eval: false,
    };
    let options = job::options(config, stages);
    Engine::new(model(device, config, data), capacity, options).unwrap()
}

fn documents(data: &Dataset) -> Vec<Window> {
    windows(&data.train, 7, CAUSAL)[..7].to_vec()
}

/// Documents whose tokens are spread over the whole vocabulary.
fn packed(data: &Dataset) -> (Forest, Targets) {
    let (mut forest, mut targets) = (Forest::new(), Targets::default());
    for window in documents(data) {
        let items = &data.train[window.sequence as usize];
        let to = (&mut forest, &mut targets);
        push_window(&data.catalog, items, window, CAUSAL, to);
    }
    let spread = |token: &mut u32| *token = *token * 977 % VOCAB as u32;
    forest
        .rows
        .iter_mut()
        .for_each(|row| spread(&mut row.token));
    targets.tokens.iter_mut().for_each(spread);
    (forest, targets)
}

/// Log-probs and gradient, by the way of fine-tuning with label smoothing and by that of a policy.
fn passes(device: &DeviceRef, config: &Config, data: &Dataset) -> [Outcome; 2] {
    let engine = engine(device, config, data);
    let (forest, targets) = packed(data);
    both_ways(&engine, (&forest, &targets), 0.1)
}

#[test]
fn log_probs_and_gradients_are_those_of_the_whole() {
    let data = dataset();
    let narrow = narrow_gpu();
    assert_eq!(narrow.max_buffer_words() as u64, BINDING / 4);
    for tied in ["model.tie_embeddings=true", "model.tie_embeddings=false"] {
        let config = settings(&[tied]);
        let shards = model(&narrow, &config, &data).layout.lm_head.len();
        assert_eq!(shards, 3);
        let (want, got) = (
            passes(&cpu(), &config, &data),
            passes(&narrow, &config, &data),
        );
        for ((logp, grads), (want_logp, want_grads)) in got.iter().zip(&want) {
            for (a, b) in logp.iter().zip(want_logp) {
                assert!((a - b).abs() <= 1e-5 * b.abs(), "{a} {b}");
            }
            let off = gradient_difference(grads, want_grads);
            assert!(off < 1e-5, "{tied}: the gradient is off by {off:.1e}");
            // What it is compared by notices a token that is counted twice.
            let mut wrong = want_grads.clone();
            let embed = wrong
                .iter_mut()
                .find(|(name, _)| name.contains("embed_tokens"));
            let row = embed.unwrap().1.chunks_mut(WIDTH).find(|row| row[0] != 0.0);
            row.unwrap().iter_mut().for_each(|g| *g *= 2.0);
            assert!(gradient_difference(grads, &wrong) > 1e-5);
        }
    }
}

/// Every launch is compared with its twin, and the steps with those of the whole.
#[test]
fn steps_and_searches_are_those_of_the_whole() {
    let data = dataset();
    let mut changes = vec!["precision=f32"];
    if narrow_gpu().has_halves() {
        changes.push("precision=f16");
    }
    for precision in changes {
        let against = ["sft.dropout=0.1", "sft.label_smoothing=0.1"];
        let config = settings(&[&against[..], &[precision]].concat());
        let run = |device: &DeviceRef| {
            let engine = engine(device, &config, &data);
            let regulariser = Regulariser::of(&config, 0);
            let parts = [documents(&data)];
            let step = |_| {
                let with = (&update(1e-3), regulariser);
                regularised_step(&engine, &data, &parts, CAUSAL, with).loss
            };
            let losses: Vec<f64> = (0..3).map(step).collect();
            let histories: Vec<&[u32]> = data.test[..5].iter().map(|e| &e.history[..]).collect();
            let decoding = Decoding::rollout(&config, &data, 5);
            let mut searcher = Searcher::new(&engine.model, &data, &decoding).unwrap();
            let found = searcher.search(&engine.model, &data.catalog, &histories, 0, 0);
            let of = |d: &vstar::decode::Decoded| d.candidates.iter().map(|c| c.sid).collect();
            let items: Vec<Vec<_>> = found.unwrap().iter().map(of).collect();
            (losses, items)
        };
        let pair = lockstep_pair(narrow_gpu());
        let device: DeviceRef = pair.clone();
        let (losses, items) = run(&device);
        assert!(pair.worst().keys().any(|form| form.starts_with("columns")));
        let (want, want_items) = run(&cpu());
        for (a, b) in losses.iter().zip(&want) {
            let within = if precision == "precision=f32" {
                1e-6
            } else {
                2e-3
            };
            assert!((a - b).abs() < within * b, "{losses:?} {want:?}");
        }
        assert!(losses[2] < losses[0]);
        if precision == "precision=f32" {
            assert_eq!(items, want_items);
        }
    }
}

#[test]
fn files_are_those_of_the_whole() {
    let (data, config) = (dataset(), settings(&["model.tie_embeddings=false"]));
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let devices = [cpu(), narrow_gpu()];
    for (device, folder) in devices.iter().zip(&folders) {
        model(device, &config, &data).save(folder.path()).unwrap();
    }
    let files = folders
        .each_ref()
        .map(|folder| std::fs::read(folder.path().join("model.safetensors")).unwrap());
    assert!(files[0] == files[1], "the same bytes");
    // Read into shards and written again.
    let changed = model(&devices[1], &config, &data);
    let mut blocks = changed.weights.read().unwrap();
    blocks.iter_mut().flatten().for_each(|v| *v = 1.0);
    changed.weights.write(&blocks).unwrap();
    changed
        .restore(folders[0].path(), Init { seed: 2, std: 0.02 })
        .unwrap();
    changed.save(folders[1].path()).unwrap();
    let again = std::fs::read(folders[1].path().join("model.safetensors")).unwrap();
    assert!(again == files[0], "the same bytes");
    // A place in any shard has the tensor's name.
    let layout = &changed.layout;
    let embed = "model.embed_tokens.weight";
    let named = (0..layout.blocks.len()).filter(|&block| layout.name_at(block, 0) == Some(embed));
    assert!(named.count() >= 2);
    assert_eq!(changed.output_embeddings().unwrap().len(), VOCAB * WIDTH);
}
