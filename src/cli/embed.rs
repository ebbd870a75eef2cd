//! `vstar embed`: item embeddings from texts, interactions, a file or a trained model.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::catalog::{Embeddings, Items};
use crate::data::{self, Corpus, LoadOptions, embeddings};
use crate::device::DeviceRef;
use crate::device::cpu::Cpu;
use crate::embed::neighbours::Neighbours;
use crate::embed::{self, Part, Source};
use crate::learn::item_model::ItemModel;
use crate::run::{Progress, atomic_write};

/// Items whose neighbours are shown, and how many of each.
const SHOWN_ITEMS: usize = 3;
const SHOWN_NEIGHBOURS: usize = 3;

/// Make item embeddings from texts, interactions, a file or a trained model
///
/// What is made from several sources stands side by side, each scaled to length 1 and multiplied by its
/// weight. Interactions are those of the training part only. A file (.npy, or .safetensors with one
/// tensor) has a row for each item, in the dataset's order. A run is one of a model with a token per item
/// (`vstar sid build --method atomic`): what it has learnt of them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vstar embed --data DIR --from text --out DIR/embeddings.safetensors
  vstar embed --data DIR --from text --from interactions --weights 1,0.5 --out both.safetensors
  vstar embed --data DIR --from runs/atomic --out learnt.safetensors")]
pub struct Args {
    /// Folder of the dataset, with or without semantic IDs (see docs/formats.md)
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// What to make them from; may be given several times
    #[arg(long, required = true, value_name = "text|interactions|FILE|RUN", value_parser = source)]
    from: Vec<From>,

    /// Weight of each source, in their order; 1 each if not given
    #[arg(long, value_name = "W,W,...", value_delimiter = ',')]
    weights: Vec<f32>,

    /// Most dimensions of text and of interactions, each
    #[arg(long, default_value_t = 128)]
    dim: usize,

    /// Seed of the random projection
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// The embeddings, a safetensors file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Where embeddings come from: what can be read, or a model.
#[derive(Clone, Debug)]
enum From {
    Source(Source),
    /// Its folder.
    Model(PathBuf),
}

impl std::fmt::Display for From {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            From::Source(source) => source.fmt(f),
            From::Model(folder) => folder.display().fmt(f),
        }
    }
}

fn source(text: &str) -> Result<From, String> {
    Ok(match Source::from(text) {
        Source::File(path) if path.is_dir() => From::Model(path),
        source => From::Source(source),
    })
}

impl Args {
    /// The weight of each source.
    fn weights(&self) -> Result<Vec<f32>> {
        let Args { from, weights, .. } = self;
        if weights.is_empty() {
            return Ok(vec![1.0; from.len()]);
        }
        ensure!(
            weights.len() == from.len(),
            "--weights has {} numbers for {} sources (--from): give one each",
            weights.len(),
            from.len()
        );
        ensure!(
            weights.iter().all(|w| w.is_finite() && *w > 0.0),
            "--weights {weights:?}: each must be a number above 0"
        );
        Ok(weights.clone())
    }
}

/// Makes them, writes the file and shows what is near what.
///
/// # Errors
/// A fault in the data or in a source's file, a source the data does not have, or a file that cannot be written.
pub fn run(args: Args) -> Result<()> {
    let weights = args.weights()?;
    ensure!(args.dim > 0, "--dim 0: give 1 or more");
    let beside = args.out.parent().unwrap_or(Path::new(""));
    ensure!(
        beside.as_os_str().is_empty() || beside.is_dir(),
        "{}: there is no folder {}",
        args.out.display(),
        beside.display()
    );
    let corpus = data::load_corpus(Some(&args.data), LoadOptions::default())?;
    let mut out = std::io::stdout().lock();
    let mut parts = Vec::new();
    for (source, weight) in args.from.iter().zip(&weights) {
        let started = Instant::now();
        let part = part(&corpus, source, &args)?;
        let seconds = started.elapsed().as_secs_f64();
        writeln!(out, "{source}: {}; {seconds:.1} s", described(&part))?;
        out.flush()?;
        parts.push((part, *weight));
    }
    let embeddings = embed::concatenate(&parts);
    let sources: Vec<String> = args.from.iter().map(From::to_string).collect();
    let weights: Vec<String> = weights.iter().map(f32::to_string).collect();
    let made = [
        ("source", sources.join(",")),
        ("weights", weights.join(",")),
        ("seed", args.seed.to_string()),
    ];
    let names = &corpus.items.names;
    atomic_write(&args.out, &embeddings::bytes(&embeddings, names, &made))?;
    writeln!(
        out,
        "{}: {} items in {} dimensions",
        args.out.display(),
        names.len(),
        embeddings.dim
    )?;
    let neighbours = Neighbours::new(&embeddings);
    for item in most_popular(&corpus) {
        writeln!(out, "near {}", title(&corpus.items, item))?;
        for (other, cosine) in neighbours.nearest(item, SHOWN_NEIGHBOURS) {
            writeln!(out, "  {cosine:.2}  {}", title(&corpus.items, other))?;
        }
    }
    Ok(())
}

/// What the model of a run has learnt of the items: the directions of its output embeddings from their mean.
fn learnt(folder: &Path, names: &[String]) -> Result<Embeddings> {
    let device: DeviceRef = Arc::new(Cpu::new());
    let model =
        ItemModel::load(&device, folder, names, 1).with_context(|| folder.display().to_string())?;
    let rows = Embeddings {
        dim: model.model.architecture.hidden,
        data: model.embeddings()?,
    };
    Ok(rows.directions())
}

/// [`embed::part`], with its progress shown, or what a model says.
fn part(corpus: &Corpus, from: &From, args: &Args) -> Result<Part> {
    let source = match from {
        From::Source(source) => source,
        From::Model(folder) => return Ok(Part::given(learnt(folder, &corpus.items.names)?)),
    };
    let mut progress = Progress::new();
    progress.stage(&source.to_string(), 0, embed::STEPS);
    let part = embed::part(corpus, source, args.dim, args.seed, |done| {
        progress.step(done, &[])
    });
    progress.finish();
    part
}

fn described(part: &Part) -> String {
    let dim = part.embeddings.dim;
    let mut text = match part.decomposed {
        Some((columns, explained)) => {
            let share = 100.0 * explained;
            format!("{dim} dimensions explain {share:.1} % of {columns} columns")
        }
        None => format!("{dim} dimensions"),
    };
    if part.zero_rows > 0 {
        text += &format!(
            "; warning: {} items of which it says nothing have rows of zeros",
            part.zero_rows
        );
    }
    text
}

/// The items that training sequences hold most often.
fn most_popular(corpus: &Corpus) -> Vec<u32> {
    let mut counts = vec![0u32; corpus.items.names.len()];
    for &item in corpus.train.iter().flatten() {
        counts[item as usize] += 1;
    }
    let mut items: Vec<u32> = (0..counts.len() as u32).collect();
    items.sort_by_key(|&item| std::cmp::Reverse(counts[item as usize]));
    items.truncate(SHOWN_ITEMS);
    items
}

/// What a person knows an item by.
fn title(items: &Items, item: u32) -> &str {
    let title = items
        .titles
        .get(item as usize)
        .filter(|title| !title.is_empty());
    title.unwrap_or(&items.names[item as usize])
}
