//! What fine-tuning does against overfitting: dropout, label smoothing, random crops, an average of the weights.

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

use devices::{bare_gpu, cpu};
use folder::in_folder;
use steps::{CAUSAL, fine_tune, gradient, gradient_difference};
use steps::{regularised_step, sft_step, update};
use train::{config, dataset, engine};
use vstar::config::Config;
use vstar::data::Dataset;
use vstar::device::lockstep::relative_error;
use vstar::device::{DeviceRef, read_f32};
use vstar::forest::Forest;
use vstar::learn::engine::{Engine, Targets};
use vstar::learn::job;
use vstar::learn::mixing::Mixing;
use vstar::learn::questions::Question;
use vstar::learn::rl::Stepper;
use vstar::learn::rollout;
use vstar::learn::sequences::{Window, push_window, windows};
use vstar::learn::sft::{Regulariser, StepResult};
use vstar::model::layout::parts;

const REGULARISED: [&str; 4] = [
    "sft.dropout=0.3",
    "sft.label_smoothing=0.2",
    "sft.ema=0.9",
    "sft.random_crop=0.5",
];

fn documents(data: &Dataset) -> Vec<Window> {
    windows(&data.train, 7, CAUSAL)[..8].to_vec()
}

/// Step `step` on eight documents in parts of `part`, without moving the weights.
fn step(engine: &Engine, data: &Dataset, of: &Config, part: usize, step: u64) -> StepResult {
    let parts: Vec<Vec<Window>> = documents(data)
        .chunks(part)
        .map(<[Window]>::to_vec)
        .collect();
    let with = (&update(0.0), Regulariser::of(of, step));
    regularised_step(engine, data, &parts, CAUSAL, with)
}

#[test]
fn a_step_in_parts_has_the_same_masks() {
    let data = dataset();
    let config = config(&REGULARISED);
    for device in [cpu(), bare_gpu()] {
        let engine = engine(&device, &config, &data);
        let gradients = |part, number| {
            step(&engine, &data, &config, part, number);
            gradient(&engine)
        };
        let whole = gradients(8, 3);
        let off = gradient_difference(&whole, &gradients(1, 3));
        assert!(off < 1e-5, "the gradients differ by {off:.1e}");
        let other = gradient_difference(&whole, &gradients(8, 4));
        assert!(other > 1e-2, "another step has other masks: {other:.1e}");
    }
}

#[test]
fn recomputed_layers_drop_the_same() {
    let data = dataset();
    let gradients = |recompute: &str| {
        let config = config(&["sft.dropout=0.3", recompute]);
        let engine = engine(&cpu(), &config, &data);
        step(&engine, &data, &config, 8, 1);
        gradient(&engine)
    };
    let kept = gradients("model.recompute=false");
    assert_eq!(kept, gradients("model.recompute=true"));
}

/// The loss falls along its gradient as fast as the gradient says, with masks that stay.
#[test]
fn the_gradient_under_dropout_is_the_slope() {
    let data = dataset();
    for arch in ["model.arch=llama", "model.arch=qwen3"] {
        let settings = [arch, "sft.dropout=0.3", "model.init_std=0.2"];
        let config = config(&settings);
        let engine = engine(&cpu(), &config, &data);
        let loss = || step(&engine, &data, &config, 8, 5).loss;
        loss();
        let weights = engine.model.weights.read().unwrap();
        let gradient = engine.optimiser.gradient.read().unwrap();
        let squares = gradient.iter().flatten().map(|g| (*g as f64).powi(2));
        let norm = squares.sum::<f64>().sqrt();
        let at = |distance: f64| {
            let scale = (distance / norm) as f32;
            let moved: Vec<Vec<f32>> = weights
                .iter()
                .zip(&gradient)
                .map(|(w, g)| w.iter().zip(g).map(|(w, g)| w + scale * g).collect())
                .collect();
            engine.model.weights.write(&moved).unwrap();
            loss()
        };
        let slope = (at(5e-3) - at(-5e-3)) / 1e-2;
        assert!((slope / norm - 1.0).abs() < 2e-3, "{arch}: {slope} {norm}");
        engine.model.weights.write(&weights).unwrap();
        let plain = sft_step(&engine, &data, &[documents(&data)], CAUSAL, &update(0.0));
        assert!((plain.grad_norm as f64 / norm - 1.0).abs() > 1e-2);
    }
}

/// Smoothed targets by the definition, in f64, from the hidden states that the step left.
#[test]
fn smoothed_targets_have_the_gradient_of_the_definition() {
    let data = dataset();
    for device in [cpu(), bare_gpu()] {
        for smoothing in ["0.0", "0.2"] {
            let share: f64 = smoothing.parse().unwrap();
            let setting = format!("sft.label_smoothing={smoothing}");
            let config = config(&["model.tie_embeddings=false", "model.init_std=0.2", &setting]);
            let engine = engine(&device, &config, &data);
            fine_tune(&engine, &data, CAUSAL, (3, 1e-2));
            step(&engine, &data, &config, 8, 0);
            let (mut forest, mut targets) = (Forest::new(), Targets::default());
            for w in documents(&data) {
                let items = &data.train[w.sequence as usize];
                let into = (&mut forest, &mut targets);
                push_window(&data.catalog, items, w, CAUSAL, into);
            }
            let (v, d) = (
                engine.model.architecture.vocab,
                engine.model.architecture.hidden,
            );
            let rows = targets.tokens.len();
            let hidden = read_f32(engine.device(), engine.head.hidden().first(rows * d)).unwrap();
            let blocks = engine.model.weights.read().unwrap();
            let w = parts(engine.layout(), &blocks)
                .find(|(name, ..)| *name == "lm_head.weight")
                .unwrap()
                .2;
            let mut want = vec![0.0; v * d];
            let mut want_hidden = Vec::new();
            for (row, &target) in targets.tokens.iter().enumerate() {
                let h = &hidden[row * d..][..d];
                let dot = |w: &[f32]| -> f64 {
                    w.iter().zip(h).map(|(w, h)| *w as f64 * *h as f64).sum()
                };
                let exps: Vec<f64> = w.chunks(d).map(|w| dot(w).exp()).collect();
                let sum: f64 = exps.iter().sum();
                let mut own = vec![0.0; d];
                for (token, exp) in exps.iter().enumerate() {
                    let hit = (token == target as usize) as u8 as f64;
                    let wanted = (1.0 - share) * hit + share / v as f64;
                    let slope = (exp / sum - wanted) / rows as f64;
                    for (want, h) in want[token * d..][..d].iter_mut().zip(h) {
                        *want += slope * *h as f64;
                    }
                    for (own, w) in own.iter_mut().zip(&w[token * d..][..d]) {
                        *own += slope * *w as f64;
                    }
                }
                want_hidden.extend(own.into_iter().map(|x| x as f32));
            }
            let want: Vec<f32> = want.into_iter().map(|x| x as f32).collect();
            let got = gradient(&engine);
            let (_, got) = got
                .iter()
                .find(|(name, _)| name == "lm_head.weight")
                .unwrap();
            let off = relative_error(&want, got);
            assert!(off < 1e-5, "{smoothing}: off by {off:.1e}");
            let all = engine.acts.grads.as_ref().unwrap().hidden;
            let all = read_f32(engine.device(), all).unwrap();
            let scored = targets.rows.iter().map(|&row| row as usize * d);
            let got: Vec<f32> = scored.flat_map(|at| all[at..at + d].to_vec()).collect();
            let off = relative_error(&want_hidden, &got);
            assert!(off < 1e-5, "{smoothing}: hidden states off by {off:.1e}");
        }
    }
}

#[test]
fn devices_regularise_alike() {
    let data = dataset();
    let config = config(&[&REGULARISED[..], &["model.init_std=0.2"]].concat());
    let outcome = |device| {
        let engine = engine(device, &config, &data);
        let result = step(&engine, &data, &config, 3, 7);
        (result.loss, gradient(&engine))
    };
    let (on_cpu, on_gpu) = (outcome(&cpu()), outcome(&bare_gpu()));
    assert!((on_cpu.0 / on_gpu.0 - 1.0).abs() < 1e-5);
    let off = gradient_difference(&on_cpu.1, &on_gpu.1);
    assert!(off < 1e-4, "the gradients differ by {off:.1e}");
}

#[test]
fn the_average_follows_the_weights() {
    let data = dataset();
    let config = config(&["sft.ema=0.5"]);
    let engine = engine(&cpu(), &config, &data);
    engine.reset_average().unwrap();
    let all = |model: &vstar::model::Model| model.weights.read().unwrap().concat();
    let mut want = all(&engine.model);
    for number in 0..6 {
        let parts = [documents(&data)];
        let with = (&update(1e-2), Regulariser::of(&config, number));
        regularised_step(&engine, &data, &parts, CAUSAL, with);
        // The first steps count more: 1/10, 2/11, .. of the past is kept, at most a half.
        let decay = ((1 + number) as f32 / (10 + number) as f32).min(0.5);
        for (average, w) in want.iter_mut().zip(all(&engine.model)) {
            *average = decay * *average + (1.0 - decay) * w;
        }
    }
    let got = all(engine.result());
    assert!(relative_error(&want, &got) < 1e-6);
    assert!(relative_error(&all(&engine.model), &got) > 1e-3);
}

#[test]
fn a_run_keeps_the_average_of_its_weights() {
    let data = dataset();
    let config = config(&[&REGULARISED[..], &["sft.max_steps=6"]].concat());
    let folder = tempfile::tempdir().unwrap();
    let stages = job::Stages {
        sft: true,
        rl: false,
        eval: false,
    };
    let ran = in_folder(folder.path(), &config, &data, |context| {
        let best = context.checkpoints.clone();
        job::run(&cpu(), context, stages, None)?;
        let best = best.best(vstar::run::Stage::Sft)?.unwrap();
        let read = |name: &str| std::fs::read(best.join(name)).unwrap();
        assert_ne!(read("model.safetensors"), read("trained.safetensors"));
        Ok(())
    });
    ran.unwrap();
}

/// What is mixed into an update is the gradient of fine-tuning on the documents drawn, times its weight.
#[test]
fn reinforcement_takes_the_gradient_of_fine_tuning_along() {
    let data = dataset();
    let with = |weight: &str| {
        let settings = [
            "rl.kl_beta=0",
            "sft.dropout=0.3",
            "sft.label_smoothing=0.1",
            weight,
        ];
        config(&settings)
    };
    let gradients = |weight: &str, device: DeviceRef| {
        let config = with(weight);
        let engine = engine(&device, &config, &data);
        let examples = data.test[..config.rl.prompts].iter();
        let asked: Vec<Question> = examples
            .map(|e| Question {
                history: &e.history,
                target: Some(e.target),
            })
            .collect();
        let mut stepper = Stepper::new(&engine, &config, &data).unwrap();
        let of = (&asked[..], rollout::part(&config), 4);
        let submitted = stepper.submit(&engine, &data, of, None, (1, &update(0.0), false));
        let figures = stepper.wait(submitted.unwrap()).unwrap();
        assert!(figures.is_finite());
        (
            figures.sft_loss,
            engine.optimiser.gradient.read().unwrap().concat(),
        )
    };
    for device in [cpu(), bare_gpu()] {
        let (none, alone) = gradients("rl.sft_weight=0", device.clone());
        let (loss, mixed) = gradients("rl.sft_weight=0.5", device.clone());
        let config = with("rl.sft_weight=0.5");
        let engine = engine(&device, &config, &data);
        let mixing = Mixing::new(&engine, &config, &data).unwrap().unwrap();
        let parts = [mixing.documents(4)];
        assert_ne!(parts[0], mixing.documents(5));
        let regulariser = (&update(0.0), Regulariser::of(&config, 4));
        let fine_tuned = regularised_step(&engine, &data, &parts, CAUSAL, regulariser);
        let gradient = engine.optimiser.gradient.read().unwrap().concat();
        let want: Vec<f32> = alone
            .iter()
            .zip(&gradient)
            .map(|(a, g)| a + 0.5 * g)
            .collect();
        let off = relative_error(&want, &mixed);
        assert!(off < 1e-6, "off by {off:.1e}");
        let moved = relative_error(&alone, &mixed);
        assert!(moved > 1e-3, "nothing to see: {moved:.1e}");
        assert_eq!(none, 0.0);
        assert!((loss as f64 / (0.5 * fine_tuned.loss) - 1.0).abs() < 1e-5);
    }
}
