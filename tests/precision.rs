//! `precision=f16`: what it changes and what it must not.

#[path = "support/devices.rs"]
mod devices;
#[path = "support/folder.rs"]
mod folder;
#[path = "support/steps.rs"]
mod steps;
#[path = "support/toy.rs"]
mod toy;
#[path = "support/train.rs"]
mod train;

use devices::{bare_gpu, cpu, with_halves};
use folder::in_folder;
use half::f16;
use serde_json::Value;
use steps::{CAUSAL, fine_tune, gradient, gradient_difference, sft_step, update};
use train::{config, dataset, engine};
use vstar::device::planner::Limits;
use vstar::device::{Buffer, DeviceRef, Precision, Slice};
use vstar::learn::engine::Engine;
use vstar::learn::job::{self, Stages};
use vstar::learn::plan::Plan;
use vstar::learn::sequences::{Window, windows};
use vstar::model::optimiser::LossScale;

const F16: &str = "precision=f16";

fn documents() -> Vec<Window> {
    windows(&dataset().train, 7, CAUSAL)[..8].to_vec()
}

/// The loss and the gradient, without the loss scale, of a step on fresh weights.
fn first_step(
    device: &DeviceRef,
    settings: &[&str],
    factor: f32,
) -> (f64, Vec<(String, Vec<f32>)>) {
    let (data, config) = (dataset(), config(settings));
    let engine = engine(device, &config, &data);
    let scale = LossScale { factor, calm: 0.0 };
    engine.optimiser.resume(0, Some(scale)).unwrap();
    let result = sft_step(&engine, &data, &[documents()], CAUSAL, &update(1e-3));
    assert!(result.finite);
    let mut gradient = gradient(&engine);
    let values = gradient.iter_mut().flat_map(|(_, values)| values);
    values.for_each(|v| *v /= factor);
    (result.loss, gradient)
}

#[test]
fn the_gradient_is_nearly_that_of_f32_whatever_the_loss_scale() {
    let (loss, want) = first_step(&cpu(), &[], 1.0);
    for device in with_halves() {
        for factor in [256.0, 16_384.0] {
            let (half_loss, got) = first_step(&device, &[F16], factor);
            assert!((half_loss / loss - 1.0).abs() < 1e-4, "{half_loss} {loss}");
            let off = gradient_difference(&want, &got);
            assert!(off < 1e-2, "{}: {off}", device.info());
            // It is another computation, though.
            assert!(off > 1e-6, "{}: {off}", device.info());
        }
    }
}

#[test]
fn it_learns_as_f32_does() {
    let data = dataset();
    let curve = |device: &DeviceRef, settings: &[&str]| {
        let engine = engine(device, &config(settings), &data);
        let scale = LossScale {
            factor: 4096.0,
            calm: 0.0,
        };
        engine.optimiser.resume(0, Some(scale)).unwrap();
        fine_tune(&engine, &data, CAUSAL, (40, 3e-3))
    };
    let want = curve(&cpu(), &[]);
    assert!(want[39] < 0.8 * want[0]);
    for device in with_halves() {
        let got = curve(&device, &[F16]);
        let pairs = want.iter().zip(&got);
        let off = pairs.map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
        assert!(off < 1e-2, "{}: {off}", device.info());
    }
}

/// The operand of the first layer's q, k and v as f32, and the weights it stands for.
fn operand_and_weights(engine: &Engine) -> (Vec<f32>, Vec<f32>) {
    let (weights, id) = (&engine.model.weights, engine.layout().layers[0].qkv);
    let read = |slice: Slice| engine.device().read(&[slice]).unwrap().remove(0);
    let halves = read(weights.operand(id));
    let halves: &[u16] = bytemuck::cast_slice(&halves);
    let widened = halves.iter().map(|&h| f16::from_bits(h).to_f32()).collect();
    (widened, bytemuck::cast_vec(read(weights.slice(id))))
}

#[test]
fn operands_follow_the_weights() {
    let data = dataset();
    for device in with_halves() {
        let engine = engine(&device, &config(&[F16]), &data);
        let mut seen: Vec<Vec<f32>> = Vec::new();
        for step in 0..2 {
            let (operand, weights) = operand_and_weights(&engine);
            let rounded = weights.iter().map(|&w| f16::from_f32(w).to_f32());
            // One unit in the last place: either way of rounding.
            let near = |(a, b): (&f32, f32)| (a - b).abs() <= 1e-3 * b.abs() + 6e-8;
            assert!(operand.iter().zip(rounded).all(near), "step {step}");
            seen.push(operand);
            sft_step(&engine, &data, &[documents()], CAUSAL, &update(1e-2));
        }
        assert_ne!(seen[0], seen[1]);
    }
}

#[test]
fn an_overflow_costs_a_step_and_halves_the_loss_scale() {
    let data = dataset();
    for device in with_halves() {
        let engine = engine(&device, &config(&[F16]), &data);
        let huge = LossScale {
            factor: 16_777_216.0,
            calm: 3.0,
        };
        engine.optimiser.resume(0, Some(huge)).unwrap();
        let before = engine.model.weights.read().unwrap();
        let mut factors = Vec::new();
        loop {
            let result = sft_step(&engine, &data, &[documents()], CAUSAL, &update(1e-3));
            let scale = result.loss_scale.unwrap();
            factors.push(scale.factor);
            if result.finite {
                assert_eq!((result.updates, scale.calm), (1, 1.0));
                break;
            }
            assert_eq!((result.updates, scale.calm), (0, 0.0));
            assert!(engine.model.weights.read().unwrap() == before);
        }
        assert!(factors.len() > 2, "{factors:?}");
        let last = factors.len() - 1;
        assert!(factors[..last].windows(2).all(|w| w[1] == w[0] / 2.0));
        assert_eq!(factors[last], factors[last - 1]);
        assert!(engine.model.weights.read().unwrap() != before);
    }
}

#[test]
fn runs_need_less_memory_and_say_how_the_loss_was_scaled() {
    let data = dataset();
    let all = Stages {
        sft: true,
        rl: true,
        eval: true,
    };
    let wide = ["model.hidden_size=64", "sft.max_steps=2", "rl.steps=2"];
    let planned = |settings: &[&str]| {
        let config = config(&[&wide[..], settings].concat());
        let limits = Limits::of(&*cpu());
        Plan::new(&config, &data, all, limits).unwrap().peak as f64
    };
    let (whole, half) = (planned(&[]), planned(&[F16]));
    assert!(half < 0.85 * whole, "{half} of {whole}");
    for device in with_halves() {
        let config = config(&[&wide[..], &[F16]].concat());
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().join("run");
        let ran = in_folder(&root, &config, &data, |context| {
            job::run(&device, context, all, None)
        });
        ran.unwrap();
        let ratio = device.memory().peak as f64 / half;
        assert!((0.9..1.1).contains(&ratio), "{ratio}");
        let metrics = std::fs::read_to_string(root.join("metrics.jsonl")).unwrap();
        let records = metrics
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        let steps: Vec<Value> = records.filter(|r: &Value| r["lr"].is_f64()).collect();
        assert!(steps.len() >= 4);
        for step in steps {
            assert!(step["loss_scale"].as_f64().unwrap() >= 1.0, "{step}");
        }
    }
}

#[test]
fn a_device_without_f16_says_so() {
    let (data, config) = (dataset(), config(&[F16]));
    let device = bare_gpu();
    let temporary = tempfile::tempdir().unwrap();
    let all = Stages {
        sft: true,
        rl: false,
        eval: false,
    };
    let ran = in_folder(&temporary.path().join("run"), &config, &data, |context| {
        job::run(&device, context, all, None)
    });
    let error = format!("{:#}", ran.unwrap_err());
    assert!(
        error.contains("no f16 in shaders") && error.contains("precision=f32"),
        "{error}"
    );
}

#[test]
fn halves_share_words_and_lines() {
    let buffer = Buffer::new(&cpu(), "halves", 256).unwrap();
    let halves = buffer.all().halves();
    assert_eq!((halves.len, halves.width()), (512, 2));
    assert_eq!(halves.part(128, 9).words(), buffer.slice(64, 5));
    assert_eq!(Precision::F16.words(9), 5);
}
