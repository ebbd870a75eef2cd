//! Fine-tuning whose validations a test answers.

use super::folder::in_folder;
use super::train::{config, dataset, engine};
use anyhow::Result;
use std::path::Path;
use vstar::device::DeviceRef;
use vstar::learn::context::Validation;
use vstar::learn::sft;
use vstar::model::Model;
use vstar::run::{Stage, State};

/// Fine-tunes with a validation after every step, whose metric a closure gives, from the step's number and the model.
pub fn fine_tune(
    device: &DeviceRef,
    root: &Path,
    changes: &[&str],
    mut metric: impl FnMut(u64, &Model) -> f64,
) -> Result<(State, Model)> {
    let (data, config) = (
        dataset(),
        config(&[&["sft.eval_every=1"], changes].concat()),
    );
    let engine = engine(device, &config, &data);
    let mut step = 0;
    let mut validate = |model: &Model| {
        step += 1;
        let metric = metric(step, model);
        Ok(Validation {
            hr10: metric,
            value_hr10: metric,
            coverage10: metric,
            prefix_hit10: vec![metric; 3],
            ndcg10: metric,
            metric,
        })
    };
    let state = in_folder(root, &config, &data, |mut context| {
        let plan = sft::Plan::new(&context)?;
        let state = State::start(Stage::Sft);
        sft::run(&mut context, &engine, &plan, state, &mut validate)
    })?;
    Ok((state, engine.model))
}
