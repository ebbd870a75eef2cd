//! `vstar validate`: is this GPU right?

use anyhow::{Result, bail};

use super::DeviceArgs;

/// Check every kernel of this device against its twin on the CPU
///
/// Runs every kernel over many shapes, then a whole step of fine-tuning and one of reinforcement
/// learning in lockstep, and prints the worst relative error of each. Fails if any is too large.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vstar validate --device gpu
  vstar validate --device llvmpipe --kernel attention")]
pub struct Args {
    /// Only the kernels whose name contains this; the whole steps are then left out
    #[arg(long, value_name = "PATTERN")]
    kernel: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    device: DeviceArgs,
}

/// Compares.
pub fn run(_: Args) -> Result<()> {
    bail!("validate is not built yet")
}
