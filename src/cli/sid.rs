//! `vstar sid`: semantic IDs, one subcommand for each thing to do with them.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use crate::data::{self, LoadOptions};
use crate::sid::report::Report;

/// Semantic IDs of the items
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Sid,
}

#[derive(Debug, Subcommand)]
enum Sid {
    Report(ReportArgs),
}

/// Runs the subcommand that was given.
///
/// # Errors
/// Any fault in the data, in one line.
pub fn run(args: Args) -> Result<()> {
    match args.command {
        Sid::Report(args) => report(&args),
    }
}

/// Show how good the semantic IDs of a dataset are
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vstar sid report --data data/office")]
struct ReportArgs {
    /// Folder of the dataset (see docs/formats.md); without it, the built-in shop
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

fn report(args: &ReportArgs) -> Result<()> {
    let dataset = data::load(args.data.as_deref(), LoadOptions::default())?;
    let report = Report::of(&dataset.catalog);
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(())
}
