//! `vstar sid build`: from a dataset and embeddings to the dataset with semantic IDs.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::cli::DeviceArgs;
use crate::data::{self, embeddings, jsonl};
use crate::device::DeviceInfo;
use crate::run::{Progress, ensure_free, write_folder};
use crate::sid::build::{self, Figures, Method, Options, Resolution};

/// What was asked for and what came of it, beside the data.
const RECORD: &str = "sid.json";

/// Make semantic IDs of the items
///
/// Writes a whole dataset in our JSONL format: the items with their SIDs, the interactions and the split of the data given,
/// the embeddings, and sid.json, which says how the SIDs were made.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vstar sid build --data data/beauty --embeddings beauty.safetensors --out data/beauty-sid
  vstar train --data data/beauty-sid")]
pub struct Args {
    /// Folder of the dataset, with or without semantic IDs (see docs/formats.md)
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// Embeddings of the items, in their order; without it, those of the dataset
    #[arg(long, value_name = "FILE")]
    embeddings: Option<PathBuf>,

    /// Where SIDs come from
    #[arg(long, value_enum, default_value_t = Method::ResidualKmeans)]
    method: Method,

    /// Codes of an SID [default: 3]
    #[arg(long, value_name = "N")]
    levels: Option<usize>,

    /// Codes to choose from, for all levels or for each: 256 or 256,256,256 [default: 256]
    #[arg(long, value_name = "K", value_delimiter = ',')]
    codes: Vec<usize>,

    /// What becomes of items on one SID
    #[arg(long, value_enum, default_value_t = Resolution::Digit)]
    collisions: Resolution,

    /// Seed of everything drawn at random
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    #[command(flatten)]
    device: DeviceArgs,

    /// Folder of the new dataset
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Args {
    /// Codes of each level.
    fn sizes(&self) -> Result<Vec<usize>> {
        let (given, codes) = (self.levels, &self.codes);
        if self.method == Method::Atomic {
            ensure!(
                given.is_none() && codes.is_empty(),
                "--method atomic has one level with a code for each item: leave out --levels and --codes"
            );
            return Ok(Vec::new());
        }
        ensure!(
            given != Some(0) && !codes.contains(&0),
            "--levels and --codes must be 1 or more"
        );
        let sizes = match codes[..] {
            [] => vec![256; given.unwrap_or(3)],
            [all] => vec![all; given.unwrap_or(3)],
            _ => codes.clone(),
        };
        let levels = given.unwrap_or(sizes.len());
        ensure!(
            levels == sizes.len(),
            "--codes has {} numbers for {levels} levels: give one, or one for each",
            sizes.len()
        );
        Ok(sizes)
    }
}

#[derive(Serialize)]
struct Record<'a> {
    data: &'a str,
    embeddings: Option<&'a Path>,
    items: usize,
    /// Numbers in an embedding.
    dim: Option<usize>,
    #[serde(flatten)]
    options: &'a Options,
    device: &'a DeviceInfo,
    #[serde(flatten)]
    figures: &'a Figures,
}

/// The codes that each level of the SIDs in `folder` had to choose from; none where they were not built here.
///
/// # Errors
/// sid.json is there and cannot be read.
pub(super) fn codes(folder: &Path) -> Result<Vec<u32>> {
    #[derive(Deserialize)]
    struct Built {
        codes: Vec<u32>,
    }
    let path = folder.join(RECORD);
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let read = || -> Result<Built> { Ok(serde_json::from_slice(&std::fs::read(&path)?)?) };
    let built = read().with_context(|| format!("{}: cannot be read", path.display()))?;
    Ok(built.codes)
}

/// Runs the command.
///
/// # Errors
/// A fault in the data or the embeddings, too few codes, or a folder that is there already; in one line, and then nothing
/// is written.
pub fn run(args: &Args) -> Result<()> {
    let options = Options {
        method: args.method,
        codes: args.sizes()?,
        collisions: args.collisions,
        seed: args.seed,
    };
    ensure_free(&args.out)?;
    let mut source = data::read(&args.data)?;
    if let Some(path) = &args.embeddings {
        source.items.embeddings = Some(embeddings::read(path, &source.items.names)?);
    }
    let (items, embeddings) = (source.items.names.len(), source.items.embeddings.as_ref());
    let device = args.device.open()?;
    let mut progress = Progress::new();
    let built = build::build(
        &device,
        items,
        embeddings,
        &options,
        &mut |tick| match tick.done {
            0 => progress.stage(tick.stage, 0, tick.total as u64),
            done => progress.step(done as u64, tick.figures),
        },
    )
    .with_context(|| args.data.display().to_string())?;
    progress.finish();
    let record = Record {
        data: &source.name,
        embeddings: args.embeddings.as_deref(),
        items,
        dim: embeddings.map(|embeddings| embeddings.dim),
        options: &options,
        device: device.info(),
        figures: &built.figures,
    };
    let mut record = serde_json::to_vec_pretty(&record)?;
    record.push(b'\n');
    source.items.levels = built.levels;
    source.items.codes = built.codes;
    write_folder(&args.out, |dir| {
        jsonl::write(dir, &source)?;
        let path = dir.join(RECORD);
        std::fs::write(&path, &record)
            .with_context(|| format!("{}: cannot be written", path.display()))
    })?;
    let mut out = std::io::stdout().lock();
    write!(out, "{}", built.figures)?;
    let (levels, folder) = (built.levels, args.out.display());
    writeln!(
        out,
        "written     {folder}: {items} items, SIDs of {levels} codes"
    )?;
    Ok(())
}
