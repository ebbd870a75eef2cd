//! Data, in three steps: [`read`] takes files to a [`Source`], items and interactions as the files hold them; the
//! protocol cuts that into a [`Corpus`], training sequences and evaluation examples; and a [`Dataset`] is a corpus whose
//! items have semantic IDs, with the catalog they make.
//!
//! One importer per format (`docs/formats.md`), each streaming its files and answering every fault in them with one
//! line that says where; one place for the protocols (`split`); and a built-in shop for when there is no data.

mod described;
pub mod embeddings;
mod folder;
pub mod histories;
pub mod import;
pub mod jsonl;
mod letter;
mod minionerec;
mod npy;
mod read;
mod shop;
mod source;
mod split;
pub mod stats;

use std::fmt;
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, Items};
use folder::{Folder, Format};

pub use source::{Log, Sequence, Source};

/// How interactions become training sequences and evaluation examples (spec 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Per user: the last item is test, the one before is validation, the rest train.
    LeaveOneOut,
    /// Rows as the files give them, cut by time.
    TimeSplit,
}

impl Protocol {
    /// Longest history of an example, by the published convention of the protocol.
    pub fn max_history(self) -> usize {
        match self {
            Protocol::LeaveOneOut => 20,
            Protocol::TimeSplit => 10,
        }
    }

    /// Beam width of the evaluation, by the published convention of the protocol.
    pub fn beam(self) -> usize {
        match self {
            Protocol::LeaveOneOut => 20,
            Protocol::TimeSplit => 50,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Protocol::LeaveOneOut => "leave-one-out",
            Protocol::TimeSplit => "time-split",
        })
    }
}

/// One question of an evaluation: given this history, which item comes next?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Index into [`Dataset::users`].
    pub user: u32,
    /// Items, oldest first, at least one, at most [`Dataset::max_history`].
    pub history: Vec<u32>,
    pub target: u32,
}

/// A dataset whose items need no semantic IDs: what is cut by the protocol, and the items.
#[derive(Clone, Debug)]
pub struct Corpus {
    pub name: String,
    /// As the files give them; with codes for all items, or for none.
    pub items: Items,
    pub protocol: Protocol,
    /// External user ids.
    pub users: Vec<String>,
    /// Training sequences of items, oldest first, of any length from 1; not aligned with `users`.
    pub train: Vec<Vec<u32>>,
    pub valid: Vec<Example>,
    pub test: Vec<Example>,
    pub max_history: usize,
    /// Beam width of the protocol's evaluation.
    pub beam: usize,
    /// What a person should know before trusting the numbers, one line each.
    pub warnings: Vec<String>,
}

impl Corpus {
    /// The dataset to train on.
    ///
    /// # Errors
    /// The items have no semantic IDs.
    pub fn into_dataset(self) -> Result<Dataset> {
        if self.items.codes.is_empty() {
            bail!("the items have no semantic IDs (sid): make them with `vstar sid build`");
        }
        Ok(Dataset {
            name: self.name,
            catalog: Catalog::new(self.items)?,
            protocol: self.protocol,
            users: self.users,
            train: self.train,
            valid: self.valid,
            test: self.test,
            max_history: self.max_history,
            beam: self.beam,
            warnings: self.warnings,
        })
    }
}

/// Everything a run reads from its data.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub name: String,
    pub catalog: Catalog,
    pub protocol: Protocol,
    /// External user ids.
    pub users: Vec<String>,
    /// Training sequences of items, oldest first, of any length from 1; not aligned with `users`.
    pub train: Vec<Vec<u32>>,
    pub valid: Vec<Example>,
    pub test: Vec<Example>,
    pub max_history: usize,
    /// Beam width of the protocol's evaluation.
    pub beam: usize,
    /// What a person should know before trusting the numbers, one line each.
    pub warnings: Vec<String>,
}

impl Dataset {
    /// `[items]`: training popularity, the number of interactions of each item in `train`.
    pub fn item_counts(&self) -> Vec<u32> {
        item_counts(&self.train, self.catalog.items())
    }
}

/// `[items]`: how often each item is in the sequences.
fn item_counts(sequences: &[Vec<u32>], items: usize) -> Vec<u32> {
    let mut counts = vec![0; items];
    for &item in sequences.iter().flatten() {
        counts[item as usize] += 1;
    }
    counts
}

/// What the caller may decide instead of the data.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// The protocol, where the files allow more than one.
    pub protocol: Option<Protocol>,
    /// Longest history of an example.
    pub max_history: Option<usize>,
}

/// Loads the dataset in folder `dir`, whose format is known by its files; without a folder, the built-in shop.
///
/// # Errors
/// Those of [`load_corpus`], and items without semantic IDs.
pub fn load(dir: Option<&Path>, options: LoadOptions) -> Result<Dataset> {
    let dataset = load_corpus(dir, options)?.into_dataset();
    match dir {
        Some(dir) => dataset.map_err(|error| anyhow!("{}: {error}", dir.display())),
        None => dataset,
    }
}

/// Loads the dataset in folder `dir`, with or without semantic IDs; its format is known by its files. Without a folder, the
/// built-in shop.
///
/// # Errors
/// Those of [`read`], a protocol the files cannot serve, or a split with nothing to train on or to test. Each is one
/// line that names the file and, inside it, the line.
pub fn load_corpus(dir: Option<&Path>, options: LoadOptions) -> Result<Corpus> {
    let Some(dir) = dir else {
        return shop_corpus(options);
    };
    check(options)?;
    split::corpus(read(dir)?, options).map_err(|error| anyhow!("{}: {error}", dir.display()))
}

/// Reads the files of the dataset in folder `dir`, with or without semantic IDs; no protocol is applied.
///
/// # Errors
/// A folder in no known format or in several, or any fault in its files, in one line.
pub fn read(dir: &Path) -> Result<Source> {
    let folder = Folder::open(dir)?;
    match folder.format()? {
        Format::Letter => letter::import(&folder),
        Format::MiniOneRec => minionerec::import(&folder),
        Format::Jsonl => jsonl::import(&folder),
    }
}

fn shop_corpus(options: LoadOptions) -> Result<Corpus> {
    check(options)?;
    let max_history = options.max_history.or(Some(shop::MAX_HISTORY));
    split::corpus(
        shop::build(),
        LoadOptions {
            max_history,
            ..options
        },
    )
}

fn check(options: LoadOptions) -> Result<()> {
    if let Some(0) = options.max_history {
        bail!("the longest history is set to 0 items: give 1 or more");
    }
    Ok(())
}
