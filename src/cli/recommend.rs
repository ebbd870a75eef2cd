//! `vstar recommend`: histories in, items out.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::DeviceArgs;
use crate::run::locate_model;

/// Recommend items for histories: JSON lines on stdin, JSON lines on stdout
///
/// Every line in is a history of items, oldest first; every line out has the best items for it, in
/// the same order.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vstar recommend --model runs/office --top-k 5 < histories.jsonl > items.jsonl")]
pub struct Args {
    /// Run folder (its best model is taken) or checkpoint folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,

    /// Folder with the data set; that of the model's run if not given
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Items per history
    #[arg(long, value_name = "K", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1024))]
    top_k: u32,

    #[command(flatten)]
    device: DeviceArgs,

    /// Settings that win over those of the model's run, for example eval.beam=50
    #[arg(value_name = "key=value", value_parser = super::setting)]
    overrides: Vec<String>,
}

/// Recommends.
pub fn run(args: Args) -> Result<()> {
    locate_model(&args.model)?;
    bail!("recommend is not built yet")
}
