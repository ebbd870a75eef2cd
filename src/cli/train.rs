//! `vstar train`: from interactions to a trained and compared recommender.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::DeviceArgs;
use crate::config::Config;
use crate::run::RunFolder;

/// Train a recommender, from data to the final table
///
/// Imports the data, fine-tunes the model (sft), improves it by reinforcement learning (rl) and
/// compares the results (eval). Everything is kept in a run folder: configuration, metrics,
/// checkpoints and result.json. Settings are taken from their defaults, then the --config file, then
/// key=value arguments.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "\
Examples:
  vstar train
  vstar train --data data/office --out runs/office rl.steps=500 sft.lr=0.001
  vstar train --resume runs/office",
    after_long_help = super::settings_help()
)]
pub struct Args {
    /// Folder with the data set; the built-in shop if not given
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Run folder to make, which must be empty or missing [default: runs/<time>-<data set>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Seed of every random draw [default: 1]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// TOML file with settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Run folder to go on with, from its latest checkpoint and with its own settings
    #[arg(long, value_name = "DIR", conflicts_with_all = ["out", "seed", "config"])]
    resume: Option<PathBuf>,

    /// The part of the job to do
    #[arg(long, value_enum, default_value_t)]
    stage: Stages,

    #[command(flatten)]
    device: DeviceArgs,

    /// Settings that win over the file's, for example rl.decode=beam
    #[arg(value_name = "key=value", value_parser = super::setting)]
    overrides: Vec<String>,
}

/// The parts of the job that can be done alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Stages {
    /// Everything
    #[default]
    All,
    /// Supervised fine-tuning
    Sft,
    /// Reinforcement learning, from the checkpoint that model.init names
    Rl,
    /// The final evaluation, of the checkpoint that model.init names
    Eval,
}

impl Args {
    /// The resolved configuration: that of the run to go on with, or of the --config file, under
    /// the options and then the settings given as arguments.
    fn resolve(&self) -> Result<Config> {
        let run = self.resume.as_deref().map(RunFolder::open).transpose()?;
        let resumed = run.map(|run| run.config_path());
        let mut overrides = Vec::new();
        if let Some(data) = &self.data {
            overrides.push(format!("data.path={}", absolute(data)?));
        }
        if let Some(seed) = self.seed {
            overrides.push(format!("seed={seed}"));
        }
        overrides.extend_from_slice(&self.overrides);
        Config::load(resumed.as_deref().or(self.config.as_deref()), &overrides)
    }
}

/// The path as a setting that means the same from any working folder, for a later --resume.
fn absolute(path: &Path) -> Result<String> {
    let absolute = std::path::absolute(path)
        .with_context(|| format!("cannot use the folder {}", path.display()))?;
    match absolute.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => bail!("{} is not valid UTF-8: rename it", path.display()),
    }
}

/// Trains.
pub fn run(args: Args) -> Result<()> {
    args.resolve()?;
    bail!("train is not built yet")
}
