//! `vstar ablate`: what each part of V-STAR is worth, at equal decode tokens.

use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::train::resolve;
use super::{DeviceArgs, Unfinished};
use crate::device::choose;
use crate::learn::ablation::{Ablation, Compared};
use crate::learn::job;
use crate::run::{Interrupt, RunFolder};

/// Compare V-STAR with what it is made of, at the same number of decode tokens
///
/// Fine-tunes once (or takes model.init), then trains from there, for each seed: GRPO with beam search,
/// GRPO with samples, beam search with sibling advantages, value-guided search without them, and V-STAR.
/// Ends with a table, its figures (result.json) and a picture (plot.svg). Settings are V-STAR's and are
/// taken as `vstar train` takes them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vstar ablate --data data/office --out runs/ablation rl.steps=500
  vstar ablate --data data/office --seeds 1,2 --systems grpo-beam,vstar model.init=runs/office
  vstar ablate --resume runs/ablation")]
pub struct Args {
    /// Folder with the data set; the built-in shop if not given
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Folder to make, which must be empty or missing [default: runs/<time>-<data set>-ablation]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Seeds of the reinforcement learning, separated by commas
    #[arg(long, value_name = "N,..", default_value = "1,2,3")]
    seeds: String,

    /// What to compare with the fine-tuned model: names of the folders they get, separated by commas
    #[arg(
        long,
        value_name = "NAME,..",
        default_value = "grpo-beam,grpo-sample,sibling,ved,vstar"
    )]
    systems: String,

    /// TOML file with settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Folder of an ablation to go on with, with its own settings
    #[arg(long, value_name = "DIR", conflicts_with_all = ["data", "out", "seeds", "systems", "config", "overrides"])]
    resume: Option<PathBuf>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Settings that win over the file's, for example rl.steps=500
    #[arg(value_name = "key=value", value_parser = super::setting)]
    overrides: Vec<String>,
}

/// The seeds of `1,2,3`; none of an empty text.
fn seeds(text: &str) -> Result<Vec<u64>> {
    let parts = text.split(',').filter(|_| !text.trim().is_empty());
    let seed = |part: &str| {
        let number = part.trim().parse();
        number.with_context(|| format!("--seeds {text}: `{part}` is not a whole number"))
    };
    parts.map(seed).collect()
}

/// The names of `vstar,ved`.
fn names(text: &str) -> Vec<String> {
    let parts = text.split(',').map(str::trim);
    parts
        .filter(|part| !part.is_empty())
        .map(Into::into)
        .collect()
}

/// Compares.
pub fn run(args: Args) -> Result<()> {
    let (config, what) = match &args.resume {
        Some(root) => Ablation::begun(root)?,
        None => {
            let file = args.config.as_deref();
            let config = resolve(file, args.data.as_deref(), None, &args.overrides)?;
            let what = Compared {
                seeds: seeds(&args.seeds)?,
                systems: names(&args.systems),
            };
            (config, what)
        }
    };
    let data = job::load_data(&config)?;
    let root = match args.resume.as_ref().or(args.out.as_ref()) {
        Some(root) => root.clone(),
        None => RunFolder::default_path(&format!("{}-ablation", data.name)),
    };
    let device = args.device.open_for(&config)?;
    let ablation = Ablation::new(&root, config, what, &data)?;
    ablation.check(&data, &*device)?;
    if args.resume.is_none() {
        ablation.create()?;
    }
    let mut out = stdout().lock();
    let chosen = choose::explain(&args.device.choice(), device.info());
    writeln!(out, "device  {chosen}")?;
    writeln!(
        out,
        "data    {}: {} users, {} items, {} test examples, {}",
        data.name,
        data.users.len(),
        data.catalog.items(),
        data.test.len(),
        data.protocol
    )?;
    for warning in &data.warnings {
        writeln!(out, "warning {warning}")?;
    }
    writeln!(out, "folder  {}", root.display())?;
    for run in &ablation.runs {
        let done = if ablation.is_done(run) { ", done" } else { "" };
        writeln!(out, "plan    {run}{done}")?;
    }
    let interrupt = Interrupt::listen()?;
    for (number, run) in (1..).zip(&ablation.runs) {
        if !ablation.is_done(run) {
            let all = ablation.runs.len();
            writeln!(out, "run     {number}/{all} {}", run.folder)?;
            out.flush()?;
            let done = ablation.complete(run, &device, &data, &interrupt);
            done.map_err(|error| Unfinished::error(error, "ablate", &root))?;
        }
    }
    let summary = ablation.summary(&data)?;
    summary.write()?;
    write!(out, "{}", summary.table())?;
    writeln!(out, "figures {}", root.join("result.json").display())?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::seeds;

    #[test]
    fn seeds_are_separated_by_commas() {
        assert_eq!(seeds("3, 1,20").unwrap(), [3, 1, 20]);
        assert!(seeds("").unwrap().is_empty());
        for wrong in ["1,,2", "1;2", "-1"] {
            assert!(seeds(wrong).is_err(), "{wrong}");
        }
    }
}
