//! `vstar doctor`: what is there to compute on.

use anyhow::{Result, bail};

/// List the adapters found and test the one that would be used
///
/// Shows backends, limits, features, drivers and memory, what `--device auto` would take, and the
/// outcome of a self-test of about a second.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vstar doctor --json")]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lists and tests.
pub fn run(_: Args) -> Result<()> {
    bail!("doctor is not built yet")
}
