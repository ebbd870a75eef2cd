//! `vstar data`: what is in a dataset.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;

use crate::data::stats::Stats;
use crate::data::{self, LoadOptions};

/// Prints users, items, interactions, collisions, trie shape, history lengths and split sizes.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of the dataset (see docs/formats.md); without it, the built-in shop
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Any fault in the data, in one line.
pub fn run(args: &Args) -> Result<()> {
    let stats = Stats::of(&data::load(args.data.as_deref(), LoadOptions::default())?);
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&stats)?)?;
    } else {
        write!(out, "{stats}")?;
    }
    Ok(())
}
