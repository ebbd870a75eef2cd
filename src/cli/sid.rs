//! `vstar sid`: semantic IDs, one subcommand for each thing to do with them.

mod build;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;

use crate::data::{self, LoadOptions, embeddings};
use crate::run::atomic_write;
use crate::sid::picture;
use crate::sid::report::Report;

/// Semantic IDs of the items
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Sid,
}

#[derive(Debug, Subcommand)]
enum Sid {
    Build(build::Args),
    Report(ReportArgs),
}

/// Runs the subcommand that was given.
///
/// # Errors
/// Any fault in the data, in one line.
pub fn run(args: Args) -> Result<()> {
    match args.command {
        Sid::Build(args) => build::run(&args),
        Sid::Report(args) => report(&args),
    }
}

/// Show how good the semantic IDs of a dataset are
///
/// Per level: codes used, how evenly, and how prefixes branch; items that share an SID; with embeddings
/// also how much of them the prefixes keep; and items of one prefix. --out adds a picture of the tree.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vstar sid report --data DIR --embeddings embeddings.safetensors --out report")]
struct ReportArgs {
    /// Folder of the dataset (see docs/formats.md); without it, the built-in shop
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Embeddings to compare with (.safetensors or .npy); the dataset's own, if any, if not given
    #[arg(long, value_name = "FILE")]
    embeddings: Option<PathBuf>,

    /// Folder for report.txt, report.json and tree.svg
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

fn report(args: &ReportArgs) -> Result<()> {
    let dataset = data::load(args.data.as_deref(), LoadOptions::default())?;
    let catalog = &dataset.catalog;
    let read = match &args.embeddings {
        Some(path) => Some(embeddings::read(path, catalog.names())?),
        None => None,
    };
    let embeddings = read.as_ref().or(catalog.embeddings());
    let codes = (args.data.as_deref()).map_or(Ok(Vec::new()), build::codes)?;
    let report = Report::of(&dataset.name, catalog, embeddings, &codes);
    let text = report.to_string();
    let json = serde_json::to_string_pretty(&report)? + "\n";
    let mut out = std::io::stdout().lock();
    out.write_all(if args.json { &json } else { &text }.as_bytes())?;
    if let Some(folder) = &args.out {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("{}: cannot be made", folder.display()))?;
        let svg = picture::svg(&report, catalog, embeddings);
        for (name, content) in [
            ("report.txt", text),
            ("report.json", json),
            ("tree.svg", svg),
        ] {
            atomic_write(&folder.join(name), content.as_bytes())?;
        }
    }
    Ok(())
}
