//! `vstar train`: from interactions to a trained and compared recommender.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::{DeviceArgs, Unfinished};
use crate::config::Config;
use crate::device::choose;
use crate::device::planner::Limits;
use crate::learn::context::Context as Run;
use crate::learn::job;
use crate::learn::plan::Plan;
use crate::run::{Interrupt, Interrupted, RunFolder};

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
  vstar train --data data/office --dry-run model.hidden_size=512
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

    /// Say what memory the run would take, and stop there
    #[arg(long)]
    dry_run: bool,

    /// The part of the job to do
    #[arg(long, value_enum, default_value_t)]
    stage: Stages,

    #[command(flatten)]
    device: DeviceArgs,

    /// Settings that win over the file's, for example rl.decode=beam
    #[arg(value_name = "key=value", value_parser = super::setting)]
    overrides: Vec<String>,
}

/// Settings of the built-in shop.
pub(super) const SHOP: &str = include_str!("../../assets/shop.toml");

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

impl Stages {
    fn name(self) -> &'static str {
        match self {
            Stages::All => "all",
            Stages::Sft => "sft",
            Stages::Rl => "rl",
            Stages::Eval => "eval",
        }
    }
}

/// The resolved configuration: that of `file`, or of the built-in shop where neither a file nor data is given, under the
/// options and then the settings given as arguments.
pub(super) fn resolve(
    file: Option<&Path>,
    data: Option<&Path>,
    seed: Option<u64>,
    settings: &[String],
) -> Result<Config> {
    let mut overrides = Vec::new();
    if let Some(data) = data {
        overrides.push(format!("data.path={}", absolute(data)?));
    }
    if let Some(seed) = seed {
        overrides.push(format!("seed={seed}"));
    }
    overrides.extend_from_slice(settings);
    let mut config = Config::load(file, &overrides)?;
    // The built-in shop comes with the settings made for it.
    if file.is_none() && config.data.path.is_empty() {
        config = Config::load_text("assets/shop.toml", SHOP, &overrides)?;
    }
    for path in [
        &mut config.model.init,
        &mut config.reward.value_table,
        &mut config.reward.teacher_model,
    ] {
        if !path.is_empty() {
            *path = absolute(Path::new(path))?;
        }
    }
    Ok(config)
}

/// The path as a setting that means the same from any working folder, for a later --resume.
pub(super) fn absolute(path: &Path) -> Result<String> {
    let absolute = std::path::absolute(path)
        .with_context(|| format!("cannot use the folder {}", path.display()))?;
    match absolute.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => bail!("{} is not valid UTF-8: rename it", path.display()),
    }
}

/// Trains.
pub fn run(args: Args) -> Result<()> {
    let resumed = args.resume.as_deref().map(RunFolder::resume).transpose()?;
    let kept = resumed.as_ref().map(RunFolder::config_path);
    let file = kept.as_deref().or(args.config.as_deref());
    let config = resolve(file, args.data.as_deref(), args.seed, &args.overrides)?;
    let data = job::load_data(&config)?;
    let device = args.device.open_for(&config)?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "device  {}",
        choose::explain(&args.device.choice(), device.info())
    )?;
    writeln!(
        out,
        "data    {}: {} users, {} items, {} training sequences, {} test examples, {}",
        data.name,
        data.users.len(),
        data.catalog.items(),
        data.train.len(),
        data.test.len(),
        data.protocol
    )?;
    for warning in &data.warnings {
        writeln!(out, "warning {warning}")?;
    }
    let [sft, rl, eval] = match args.stage {
        Stages::All => [true, true, true],
        Stages::Sft => [true, false, false],
        Stages::Rl => [false, true, false],
        Stages::Eval => [false, false, true],
    };
    let stages = job::Stages { sft, rl, eval };
    let limits = Limits::of(&*device);
    let plan = Plan::new(&config, &data, stages, limits);
    if args.dry_run
        && let Ok(plan) = &plan
    {
        writeln!(out, "{plan}")?;
    }
    Plan::admit(plan, &config, &data, stages, (device.info(), limits))?;
    if args.dry_run {
        return Ok(());
    }
    let folder = match resumed {
        Some(folder) => folder,
        None => {
            let root = args.out.clone();
            let root = root.unwrap_or_else(|| RunFolder::default_path(&data.name));
            RunFolder::create(&root, &config)?
        }
    };
    writeln!(out, "run     {}", folder.root().display())?;
    out.flush()?;
    let (context, latest) = Run::open(&config, &data, &folder, Interrupt::listen()?)?;
    match job::run(&device, context, stages, latest) {
        Ok(table) => write!(out, "{table}")?,
        Err(error) => {
            let root = folder.root().to_owned();
            if args.resume.is_none() {
                // What went wrong first is what the user is told.
                let _ = folder.discard_unused();
            }
            let command = match args.stage {
                Stages::All => "train".into(),
                stage => format!("train --stage {}", stage.name()),
            };
            // Who goes on with it already is told no news, but after an interruption.
            let news = args.resume.is_none() || error.is::<Interrupted>();
            return Err(match RunFolder::open(&root) {
                Ok(_) if news => Unfinished::error(error, &command, &root),
                _ => error,
            });
        }
    }
    if eval {
        writeln!(out, "figures {}", folder.result_path().display())?;
    }
    Ok(())
}
