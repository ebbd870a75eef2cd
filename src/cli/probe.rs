//! `vstar probe`: answers to another framework's questions.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::DeviceArgs;

/// Compute what an oracle file asks, for comparison with another framework
///
/// Reads the inputs of a forward, tree, objective or value file in safetensors form, and writes the
/// outputs under the names they have there, as f32.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vstar probe --model checkpoint --input tree.safetensors --output answer.safetensors --grad")]
pub struct Args {
    /// Run folder (its best model is taken) or checkpoint folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,

    /// The questions, a safetensors file
    #[arg(long, value_name = "FILE")]
    input: PathBuf,

    /// The answers, a safetensors file to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,

    /// Answer with gradients too
    #[arg(long)]
    grad: bool,

    #[command(flatten)]
    device: DeviceArgs,
}

/// Answers.
pub fn run(_: Args) -> Result<()> {
    bail!("probe is not built yet")
}
