//! `vstar data`: what is in a dataset, and datasets from raw files.

mod import;

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;

use crate::data::stats::Stats;
use crate::data::{self, LoadOptions};

/// Shows what is in a dataset, or makes one from raw files
///
/// Without a subcommand: users, items, interactions, history lengths and split sizes, and of semantic IDs, if there are any,
/// collisions and the shape of the trie.
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Folder of the dataset (see docs/formats.md); without it, the built-in shop
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    Import(import::Args),
}

/// Runs the command.
///
/// # Errors
/// Any fault in the data, in one line.
pub fn run(args: &Args) -> Result<()> {
    if let Some(Command::Import(args)) = &args.command {
        return import::run(args);
    }
    let corpus = data::load_corpus(args.data.as_deref(), LoadOptions::default())?;
    let stats = Stats::of(&corpus)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&stats)?)?;
    } else {
        write!(out, "{stats}")?;
    }
    Ok(())
}
