//! Data: from files to a [`Dataset`], the catalog plus training sequences and evaluation examples.
//!
//! One importer per format (`docs/formats.md`), each streaming its files and answering every fault in them with one
//! line that says where; one place for the protocols (`split`); and a built-in shop for when there is no data.

mod jsonl;
mod letter;
mod minionerec;
mod read;
mod shop;
mod split;
pub mod stats;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::catalog::Catalog;

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
        let mut counts = vec![0; self.catalog.items()];
        for &item in self.train.iter().flatten() {
            counts[item as usize] += 1;
        }
        counts
    }
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
/// A folder in no known format or in several, any fault in its files, a protocol the files cannot serve, or a split
/// with nothing to train on or to test. Each is one line that names the file and, inside it, the line.
pub fn load(dir: Option<&Path>, options: LoadOptions) -> Result<Dataset> {
    if let Some(0) = options.max_history {
        bail!("the longest history is set to 0 items: give 1 or more");
    }
    let Some(dir) = dir else {
        let max_history = options.max_history.or(Some(shop::MAX_HISTORY));
        return split::dataset(
            "shop",
            shop::build()?,
            LoadOptions {
                max_history,
                ..options
            },
        );
    };
    let folder = Folder::open(dir)?;
    let imported = match folder.format()? {
        Format::Letter => letter::import(&folder),
        Format::MiniOneRec => minionerec::import(&folder),
        Format::Jsonl => jsonl::import(&folder),
    }?;
    split::dataset(&folder.name(), imported, options)
        .map_err(|error| anyhow!("{}: {error}", dir.display()))
}

/// What an importer hands over: the catalog, and interactions that no protocol has touched yet.
struct Imported {
    catalog: Catalog,
    users: Vec<String>,
    log: Log,
    warnings: Vec<String>,
}

enum Log {
    /// One whole sequence per user, aligned with `users`.
    Sequences(Vec<Vec<u32>>),
    /// A split the files have made themselves. `sequences` is the first form of the same data where the files have
    /// it, for who asks for leave-one-out instead.
    Rows {
        train: Vec<Vec<u32>>,
        valid: Vec<Example>,
        test: Vec<Example>,
        sequences: Option<Vec<Vec<u32>>>,
    },
}

enum Format {
    Letter,
    MiniOneRec,
    Jsonl,
}

/// The names of the files in a data folder.
struct Folder {
    dir: PathBuf,
    files: Vec<String>,
}

impl Folder {
    fn open(dir: &Path) -> Result<Folder> {
        let unreadable =
            |error| anyhow!("{}: cannot read this data folder ({error})", dir.display());
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(unreadable)? {
            files.extend(entry.map_err(unreadable)?.file_name().into_string());
        }
        files.sort();
        Ok(Folder {
            dir: dir.into(),
            files,
        })
    }

    /// The dataset's name: that of the folder.
    fn name(&self) -> String {
        let whole = self.dir.canonicalize().unwrap_or_else(|_| self.dir.clone());
        let name = whole.file_name().map(|name| name.to_string_lossy());
        name.map_or_else(|| "data".into(), Into::into)
    }

    /// The file called `kind` or `*.kind`, if there is one; two are an error.
    fn find(&self, kind: &str) -> Result<Option<PathBuf>> {
        let suffix = format!(".{kind}");
        let fits = |name: &&String| *name == kind || name.ends_with(&suffix);
        let found: Vec<&String> = self.files.iter().filter(fits).collect();
        ensure!(
            found.len() < 2,
            "{}: both {} and {} could be the dataset's {kind}: keep one dataset in a folder",
            self.dir.display(),
            found[0],
            found[1]
        );
        Ok(found.first().map(|name| self.dir.join(name)))
    }

    /// [`Folder::find`] for a file the format cannot do without.
    fn need(&self, kind: &str, because: &str) -> Result<PathBuf> {
        let Some(path) = self.find(kind)? else {
            bail!(
                "{}: no {kind} (or *.{kind}), which must stand beside {because}",
                self.dir.display()
            );
        };
        Ok(path)
    }

    /// The one format whose telling file is here.
    fn format(&self) -> Result<Format> {
        let mut found = Vec::new();
        for (kind, format) in [
            ("inter.json", Format::Letter),
            ("info.txt", Format::MiniOneRec),
            ("items.jsonl", Format::Jsonl),
        ] {
            if let Some(path) = self.find(kind)? {
                found.push((path, format));
            }
        }
        match found.len() {
            0 => bail!(
                "{}: no dataset here: looked for *.inter.json (LETTER), *.info.txt (MiniOneRec) and items.jsonl (JSONL)",
                self.dir.display()
            ),
            1 => Ok(found.remove(0).1),
            _ => bail!(
                "{}: two datasets here, {} and {}: keep one dataset in a folder",
                self.dir.display(),
                file_name(&found[0].0),
                file_name(&found[1].0)
            ),
        }
    }
}

/// The last part of a path, for messages.
fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}
