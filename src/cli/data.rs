//! `vstar data`: what a data set holds.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// Check a data set and print what it holds
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder with the data set; the built-in shop if not given
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the summary.
pub fn run(_: Args) -> Result<()> {
    bail!("data is not built yet")
}
