//! Fine-tuning steps and what they leave, for tests that look inside.

use vstar::data::Dataset;
use vstar::device::Stream;
use vstar::device::lockstep::relative_error;
use vstar::forest::{Forest, PromptAttention};
use vstar::learn::engine::{Engine, Room, Targets};
use vstar::learn::sequences::{Window, epoch_order, push_window, windows};
use vstar::learn::sft::{Regulariser, StepResult, Trainer};
use vstar::model::Model;
use vstar::model::layout::parts;
use vstar::model::optimiser::Update;

pub const CAUSAL: PromptAttention = PromptAttention::Causal;

/// An update with learning rate `lr`.
pub fn update(lr: f32) -> Update {
    Update {
        lr,
        beta1: 0.9,
        beta2: 0.98,
        eps: 1e-8,
        weight_decay: 0.01,
        clip_norm: 1.0,
    }
}

/// One fine-tuning step on documents in parts.
#[allow(dead_code)]
pub fn sft_step(
    engine: &Engine,
    data: &Dataset,
    parts: &[Vec<Window>],
    attention: PromptAttention,
    update: &Update,
) -> StepResult {
    regularised_step(
        engine,
        data,
        parts,
        attention,
        (update, Regulariser::default()),
    )
}

/// As [`sft_step`], against overfitting.
pub fn regularised_step(
    engine: &Engine,
    data: &Dataset,
    parts: &[Vec<Window>],
    attention: PromptAttention,
    (update, regulariser): (&Update, Regulariser),
) -> StepResult {
    let pack = |part: &Vec<Window>, forest: &mut Forest, targets: &mut Targets| {
        for &w in part {
            let items = &data.train[w.sequence as usize];
            push_window(&data.catalog, items, w, attention, (forest, targets));
        }
    };
    let mut trainer = Trainer::new(engine, parts.len()).unwrap();
    trainer.regulariser = regulariser;
    trainer.step(engine, parts, pack, update).unwrap()
}

/// Losses of fine-tuning steps over shuffled documents.
#[allow(dead_code)]
pub fn fine_tune(
    engine: &Engine,
    data: &Dataset,
    attention: PromptAttention,
    (steps, lr): (u32, f32),
) -> Vec<f64> {
    let documents = windows(&data.train, 7, attention);
    let step = |number: u32| {
        let order = epoch_order(documents.len(), 3, number);
        let batch = order.iter().take(16).map(|&i| documents[i as usize]);
        let part = batch.collect::<Vec<_>>();
        let result = sft_step(engine, data, &[part], attention, &update(lr));
        assert!(result.finite);
        result.loss
    };
    (0..steps).map(step).collect()
}

/// Log-probs, and gradients by tensor.
#[allow(dead_code)]
pub type Outcome = (Vec<f32>, Vec<(String, Vec<f32>)>);

/// Log-probs and gradient of a pass, by the way of fine-tuning with that label smoothing and by that of a policy.
#[allow(dead_code)]
pub fn both_ways(
    engine: &Engine,
    (forest, targets): (&Forest, &Targets),
    smoothing: f32,
) -> [Outcome; 2] {
    let room = Room::new(engine).unwrap();
    let input = engine.upload(&room, forest, targets).unwrap();
    let g: Vec<f32> = (0..targets.len()).map(|k| (k as f32).sin()).collect();
    [true, false].map(|fused| {
        engine.head.g.write_f32(&g).unwrap();
        let mut s = Stream::new();
        Model::clear(&mut s, &engine.optimiser.gradient);
        if fused {
            engine.forward_backward(&mut s, &input, smoothing);
        } else {
            engine.forward(&mut s, &input, engine.head.logp.all());
            engine.backward_head(&mut s, &input);
            engine.backward_backbone(&mut s, &input);
        }
        engine.model.device.run(&s).unwrap();
        (engine.head.logp.read_f32().unwrap(), gradient(engine))
    })
}

/// The gradient of the last step, tensor by tensor.
#[allow(dead_code)]
pub fn gradient(engine: &Engine) -> Vec<(String, Vec<f32>)> {
    let blocks = engine.optimiser.gradient.read().unwrap();
    let named = parts(engine.layout(), &blocks);
    named
        .map(|(name, _, values)| (name.to_string(), values.to_vec()))
        .collect()
}

/// The largest relative difference over the tensors.
#[allow(dead_code)]
pub fn gradient_difference(a: &[(String, Vec<f32>)], b: &[(String, Vec<f32>)]) -> f64 {
    let pairs = a.iter().zip(b);
    pairs
        .map(|((_, a), (_, b))| relative_error(a, b))
        .fold(0.0, f64::max)
}
