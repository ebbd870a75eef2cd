//! Fine-tuning steps: the same on every device and however a batch is cut; and what is trained decides the same.

#[path = "support/devices.rs"]
mod devices;
#[path = "support/steps.rs"]
mod steps;
#[path = "support/toy.rs"]
mod toy;
#[path = "support/train.rs"]
mod train;

use devices::{bare_gpu, cpu};
use steps::{CAUSAL, fine_tune, gradient, gradient_difference, sft_step, update};
use train::{config, dataset, engine};
use vstar::data::Dataset;
use vstar::decode::Decoded;
use vstar::decode::search::{Decoding, Searcher};
use vstar::device::lockstep::relative_error;
use vstar::forest::PromptAttention;
use vstar::learn::sequences::{Window, windows};
use vstar::model::Model;

/// The largest relative difference of two curves.
fn difference(a: &[f64], b: &[f64]) -> f64 {
    let pairs = a.iter().zip(b);
    pairs.map(|(a, b)| ((a - b) / a).abs()).fold(0.0, f64::max)
}

fn decode(model: &Model, data: &Dataset, decoding: &Decoding) -> Vec<Decoded> {
    let histories: Vec<&[u32]> = data.test[..16].iter().map(|e| &e.history[..]).collect();
    let mut searcher = Searcher::new(model, data, decoding).unwrap();
    let decoded = searcher.search(model, &data.catalog, &histories, 5, 0);
    decoded.unwrap()
}

/// What a decoder decided on a prompt: candidates, how many the search found, cost, nodes per depth.
type Decisions<'a> = (Vec<u32>, usize, usize, &'a [usize]);

fn decisions(decoded: &[Decoded]) -> Vec<Decisions<'_>> {
    let of = decoded.iter().map(|d| {
        let sids = d.candidates.iter().map(|c| c.sid).collect();
        (sids, d.searched, d.cost, &d.nodes_per_depth[..])
    });
    of.collect()
}

#[test]
fn devices_learn_the_same_and_then_decide_the_same() {
    let (data, config) = (dataset(), config(&[]));
    let on_cpu = engine(&cpu(), &config, &data);
    let untrained = on_cpu.model.weights.read().unwrap();
    let cpu_losses = fine_tune(&on_cpu, &data, CAUSAL, (50, 3e-3));
    let on_gpu = engine(&bare_gpu(), &config, &data);
    let gpu_losses = fine_tune(&on_gpu, &data, CAUSAL, (50, 3e-3));
    let off = difference(&cpu_losses, &gpu_losses);
    assert!(off < 1e-3, "the curves differ by {off:.1e}");
    assert!(cpu_losses[49] < 0.8 * cpu_losses[0], "{cpu_losses:?}");
    let other = engine(&cpu(), &config, &data);
    let other_losses = fine_tune(&other, &data, CAUSAL, (50, 3.1e-3));
    assert!(difference(&cpu_losses, &other_losses) > 1e-3);

    // Both devices decode with the same weights, to the bit.
    let trained = on_cpu.model.weights.read().unwrap();
    on_gpu.model.weights.write(&trained).unwrap();
    other.model.weights.write(&untrained).unwrap();
    for (name, method) in [
        ("beam", "rl.decode=beam"),
        ("ved", "rl.decode=ved"),
        ("sample", "rl.decode=sample"),
    ] {
        let decoding = Decoding::rollout(&train::config(&[method]), &data, 16);
        let want = decode(&on_cpu.model, &data, &decoding);
        let got = decode(&on_gpu.model, &data, &decoding);
        assert_eq!(decisions(&want), decisions(&got), "{name}");
        let logp = |decoded: &[Decoded]| -> Vec<f32> {
            let candidates = decoded.iter().flat_map(|d| &d.candidates);
            candidates.map(|c| c.logp).collect()
        };
        assert!(relative_error(&logp(&want), &logp(&got)) < 1e-5, "{name}");
        let changed = decode(&other.model, &data, &decoding);
        assert_ne!(decisions(&want), decisions(&changed), "{name}");
    }
}

#[test]
fn fine_tuning_in_parts_has_the_same_gradient() {
    let (data, config) = (dataset(), config(&[]));
    let documents: Vec<Window> = windows(&data.train, 7, CAUSAL)
        .into_iter()
        .take(8)
        .collect();
    let cut = |part: usize, of: &[Window]| {
        let engine = engine(&cpu(), &config, &data);
        let cut: Vec<Vec<Window>> = of.chunks(part).map(<[Window]>::to_vec).collect();
        let result = sft_step(&engine, &data, &cut, CAUSAL, &update(1e-3));
        (result, gradient(&engine))
    };
    let (whole, whole_gradient) = cut(8, &documents);
    for part in [1, 3] {
        let (parts, parts_gradient) = cut(part, &documents);
        assert!((whole.loss / parts.loss - 1.0).abs() < 1e-6);
        assert_eq!(whole.tokens, parts.tokens);
        let off = gradient_difference(&whole_gradient, &parts_gradient);
        assert!(
            off < 1e-5,
            "parts of {part}: the gradients differ by {off:.1e}"
        );
    }
    let (_, fewer) = cut(1, &documents[1..]);
    assert!(gradient_difference(&whole_gradient, &fewer) > 1e-2);
}

#[test]
fn full_prompts_learn() {
    let (data, config) = (dataset(), config(&["model.prompt_attention=full"]));
    for device in [cpu(), bare_gpu()] {
        let engine = engine(&device, &config, &data);
        let losses = fine_tune(&engine, &data, PromptAttention::Full, (40, 3e-3));
        assert!(losses[39] < 0.8 * losses[0], "{losses:?}");
    }
}
