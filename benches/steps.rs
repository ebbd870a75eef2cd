//! Whole steps on one device, to be read beside another framework's in one run:
//! `cargo bench --bench steps -- [--device D] [WIDTH ..]`.
//!
//! The shapes are those of a PyTorch script users compare with: 4 layers, 4 heads, feed-forward 8/3 d, vocabulary 1,028,
//! 32 documents of 36 tokens.

use vstar::device::choose::{self, DeviceChoice};
use vstar::device::gpu::GpuOptions;
use vstar::device::DeviceRef;
use vstar::forest::{Forest, PromptAttention};
use vstar::learn::engine::{Capacity, Engine, Targets};
use vstar::learn::sft::Trainer;
use vstar::model::checkpoint::Init;
use vstar::model::optimiser::Update;
use vstar::model::{Architecture, Family, Model};
use vstar::rng::{Rng, Stream};
use std::time::Instant;

const DOCUMENTS: usize = 32;
const TOKENS: usize = 36;
const VOCAB: usize = 1028;

fn architecture(hidden: usize) -> Architecture {
    Architecture {
        family: Family::Llama,
        vocab: VOCAB,
        hidden,
        intermediate: hidden * 8 / 3 / 32 * 32,
        layers: 4,
        heads: 4,
        kv_heads: 4,
        head_dim: hidden / 4,
        rope_theta: 1e4,
        eps: 1e-6,
        tied: true,
        qkv_bias: false,
        max_positions: 256,
    }
}

/// Median seconds of `f` over `n` runs, after one to warm up.
fn median(n: usize, mut f: impl FnMut()) -> f64 {
    f();
    let mut times: Vec<f64> = (0..n)
        .map(|_| {
            let started = Instant::now();
            f();
            started.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[n / 2]
}

fn sft(device: &DeviceRef, hidden: usize) -> f64 {
    let init = Init { seed: 1, std: 0.02 };
    let model = Model::initialised(device, &architecture(hidden), 64, init).expect("model");
    let tokens = DOCUMENTS * TOKENS;
    let capacity = Capacity {
        tokens,
        rows: tokens,
        targets: tokens,
    };
    let mut engine = Engine::new(model, capacity).expect("buffers");
    let mut trainer = Trainer::new(&engine, 1).expect("buffers");
    let update = Update {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.98,
        eps: 1e-8,
        weight_decay: 0.05,
        clip_norm: 1.0,
        step: 1,
    };
    let mut rng = Rng::new(1, Stream::Test, 0, 0);
    let documents: Vec<Vec<u32>> = (0..DOCUMENTS)
        .map(|_| (0..TOKENS).map(|_| 2 + rng.below(VOCAB - 2) as u32).collect())
        .collect();
    let pack = |documents: &Vec<Vec<u32>>, forest: &mut Forest, targets: &mut Targets, _: &mut Vec<u32>| {
        for document in documents {
            let first = forest.len() as u32;
            forest.push_prompt(document, PromptAttention::Causal);
            for (t, &next) in document.iter().enumerate().skip(1) {
                targets.push(first + t as u32 - 1, next);
            }
        }
    };
    median(7, || {
        let result = trainer.step(&mut engine, std::slice::from_ref(&documents), pack, &update);
        assert!(result.expect("step").finite);
    })
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let mut choice = DeviceChoice {
        device: "cpu".into(),
        ..Default::default()
    };
    let mut widths = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--device" => choice.device = rest.next().expect("--device D").clone(),
            width => widths.push(width.parse().expect("a width, for example 256")),
        }
    }
    if widths.is_empty() {
        widths = vec![128, 256];
    }
    let device = choose::open(&choice, GpuOptions::default()).expect("device");
    println!("{}", device.info());
    for hidden in widths {
        let seconds = sft(&device, hidden);
        println!(
            "d {hidden:4}  sft {:7.3} ms/prompt  {:7.0} tokens/s",
            1e3 * seconds / DOCUMENTS as f64,
            (DOCUMENTS * TOKENS) as f64 / seconds
        );
    }
}
