//! The toy data, the toy settings and a model for them.

use super::toy;
use vstar::config::Config;
use vstar::data::{Dataset, LoadOptions};
use vstar::device::DeviceRef;
use vstar::learn::engine::{Capacity, Engine};
use vstar::learn::job;
use vstar::model::Model;
use vstar::model::checkpoint::Init;

/// The toy data.
pub fn dataset() -> Dataset {
    let folder = tempfile::tempdir().unwrap();
    toy::write(folder.path());
    let options = LoadOptions {
        max_history: Some(6),
        ..Default::default()
    };
    vstar::data::load(Some(folder.path()), options).unwrap()
}

/// The toy settings with changes.
pub fn config(changes: &[&str]) -> Config {
    let settings: Vec<String> = toy::SETTINGS
        .iter()
        .chain(changes)
        .map(ToString::to_string)
        .collect();
    Config::load(None, &settings).unwrap()
}

/// A fresh model ready to train, with room for every batch of these tests. Not every test has one.
#[allow(dead_code)]
pub fn engine(device: &DeviceRef, config: &Config, data: &Dataset) -> Engine {
    let init = Init {
        seed: config.seed,
        std: config.model.init_std as f32,
    };
    let architecture = job::architecture(config, data);
    let positions = job::positions(data);
    let model = Model::initialised(
        device,
        &architecture,
        positions,
        job::precision(config),
        init,
    )
    .unwrap();
    let capacity = Capacity {
        tokens: 1024,
        rows: 1024,
        targets: 1024,
        slots: 2048,
    };
    let stages = job::Stages {
        sft: true,
        rl: true,
        eval: false,
    };
    Engine::new(model, capacity, job::options(config, stages)).unwrap()
}
