//! `vstar eval`: the figures of a trained model.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::DeviceArgs;
use crate::run::locate_model;

/// Evaluate a model on the test users of a data set
///
/// Prints HR and NDCG with 95% intervals, on codes and on items, the hit rate per level, coverage,
/// diversity and popularity buckets.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vstar eval --model runs/office
  vstar eval --model runs/office --data data/office eval.beam=50 eval.max_users=1000")]
pub struct Args {
    /// Run folder (its best model is taken) or checkpoint folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,

    /// Folder with the data set; that of the model's run if not given
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Settings that win over those of the model's run, for example eval.decode=ved
    #[arg(value_name = "key=value", value_parser = super::setting)]
    overrides: Vec<String>,
}

/// Evaluates.
pub fn run(args: Args) -> Result<()> {
    locate_model(&args.model)?;
    bail!("eval is not built yet")
}
