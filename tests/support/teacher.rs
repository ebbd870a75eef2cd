//! A model with one token per item, trained for a moment on the toy data: a teacher.

use super::program::success;
use super::toy;
use std::path::{Path, PathBuf};

/// Makes one below `folder`: its run.
pub fn make(folder: &Path) -> PathBuf {
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (data, atomic, run) = (at("toy"), at("atomic"), at("teacher"));
    std::fs::create_dir(&data).unwrap();
    toy::write(Path::new(&data));
    let build = ["sid", "build", "--data", &data, "--method", "atomic"];
    success(&[&build[..], &["--device", "cpu", "--out", &atomic]].concat());
    let train = ["train", "--data", &atomic, "--device", "cpu"];
    let stage = ["--stage", "sft", "--out", &run, "sft.epochs=4"];
    let other = ["model.hidden_size=48", "reward.semantic=0"];
    success(&[&train[..], &stage, toy::SETTINGS, &other].concat());
    run.into()
}
