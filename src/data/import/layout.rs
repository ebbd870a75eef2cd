//! The layouts of raw files, and which file is in which.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail, ensure};

use super::super::described::Described;
use super::super::folder::{Folder, file_name};
use super::lines::Lines;
use super::{Watch, amazon, movielens};

/// Where a raw file comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Amazon2014,
    Amazon2018,
    Amazon2023,
    /// `ratings.csv` and `movies.csv`.
    MovieLensCsv,
    /// `ratings.dat` and `movies.dat`, fields separated by `::`.
    MovieLensDat,
    /// `u.data` and `u.item`.
    MovieLens100k,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Layout::Amazon2014 => "Amazon 2014",
            Layout::Amazon2018 => "Amazon 2018",
            Layout::Amazon2023 => "Amazon 2023",
            Layout::MovieLensCsv => "MovieLens csv",
            Layout::MovieLensDat => "MovieLens dat",
            Layout::MovieLens100k => "MovieLens 100K",
        })
    }
}

/// What a raw file holds, one record a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Interactions,
    Descriptions,
}

/// A raw file.
#[derive(Clone, Debug)]
pub(super) struct RawFile {
    pub path: PathBuf,
    /// Size on the disk.
    pub bytes: u64,
    pub layout: Layout,
    pub kind: Kind,
}

/// Endings of the files that are looked at in a folder; `.gz` may follow.
const ENDINGS: [&str; 6] = ["json", "jsonl", "csv", "dat", "data", "item"];

/// The raw files that `paths`, files or folders, stand for. In a folder what is in no known layout is passed over.
///
/// # Errors
/// A file that cannot be read or is in no known layout, nothing with interactions, or interactions in two layouts.
pub(super) fn find(paths: &[PathBuf]) -> Result<Vec<RawFile>> {
    let mut files: Vec<RawFile> = Vec::new();
    for path in paths {
        if path.is_dir() {
            for inside in Folder::open(path)?.paths() {
                let name = file_name(&inside).into_owned();
                let name = name.strip_suffix(".gz").unwrap_or(&name);
                let known = ENDINGS.map(|ending| name.ends_with(&format!(".{ending}")));
                if known.contains(&true) && inside.is_file() {
                    files.extend(recognise(&inside)?);
                }
            }
        } else {
            ensure!(
                path.is_file() || !path.exists(),
                "{}: is no regular file; files are read twice, so keep it as one",
                path.display()
            );
            files.push(recognise(path)?.ok_or_else(|| unknown(path))?);
        }
    }
    let mut interactions = files.iter().filter(|file| file.kind == Kind::Interactions);
    let Some(first) = interactions.next() else {
        bail!(
            "{}: no interactions here: looked for Amazon reviews (2014, 2018, 2023), MovieLens ratings and our JSONL{}",
            paths[0].display(),
            match paths.iter().any(|path| has_zip(path)) {
                true => "; there is a zip archive: unpack it first",
                false => "",
            }
        );
    };
    if let Some(other) = interactions.find(|file| file.layout != first.layout) {
        bail!(
            "{} is {} and {} is {}: import one at a time",
            first.path.display(),
            first.layout,
            other.path.display(),
            other.layout
        );
    }
    Ok(files)
}

/// What to say of a file that is none of ours.
fn unknown(path: &Path) -> anyhow::Error {
    let shown = path.display();
    let expected = "expected Amazon reviews or metadata, or a MovieLens file";
    let mut first = String::new();
    if let Ok(mut lines) = Lines::open(path)
        && lines.advance().is_ok()
    {
        first = lines.utf8_or_latin1().into_owned();
    }
    let fields: Vec<&str> = first.split(',').collect();
    let is_rating = |fields: &[&str]| fields[fields.len() - 1].parse::<f64>().is_ok();
    if first.starts_with("PK") {
        anyhow!("{shown}: is a zip archive: unpack it first")
    } else if first.starts_with("user_id,parent_asin,")
        || fields.len() == 4 && is_rating(&fields[2..]) && is_rating(&fields[..3])
    {
        anyhow!("{shown}:1: Amazon's files of ratings alone are not read: take the reviews")
    } else {
        anyhow!("{shown}:1: in no known layout: {expected}")
    }
}

fn has_zip(path: &Path) -> bool {
    let folder = Folder::open(path);
    folder.is_ok_and(|inside| (inside.paths()).any(|path| file_name(&path).ends_with(".zip")))
}

/// Layout and kind of a file, by its name or by its first record.
fn recognise(path: &Path) -> Result<Option<RawFile>> {
    let mut lines = Lines::open(path)?;
    ensure!(lines.advance()?, "{}: the file is empty", path.display());
    let name = file_name(path).into_owned();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    let first = lines.utf8_or_latin1();
    let found = movielens::recognise(name, &first).or_else(|| amazon::recognise(&first));
    Ok(found.map(|(layout, kind)| RawFile {
        path: path.into(),
        bytes: std::fs::metadata(path).map_or(0, |file| file.len()),
        layout,
        kind,
    }))
}

impl RawFile {
    /// Calls `each` with user, item and unix seconds of every interaction.
    pub fn interactions(
        &self,
        watch: &mut dyn Watch,
        each: &mut dyn FnMut(&str, &str, i64),
    ) -> Result<()> {
        self.lines(watch, |lines| {
            match self.layout {
                Layout::Amazon2014 | Layout::Amazon2018 | Layout::Amazon2023 => {
                    let review = amazon::review(lines.utf8()?, self.layout)?;
                    each(&review.user, &review.item, review.time);
                }
                _ => {
                    let line = lines.utf8_or_latin1();
                    let (user, item, time) = movielens::rating(&line, self.layout)?;
                    each(user, item, time);
                }
            }
            Ok(())
        })
    }

    /// Calls `each` with every item and what is written about it.
    pub fn descriptions(
        &self,
        watch: &mut dyn Watch,
        each: &mut dyn FnMut(&str, Described),
    ) -> Result<()> {
        self.lines(watch, |lines| {
            let (item, described) = match self.layout {
                Layout::Amazon2014 | Layout::Amazon2018 | Layout::Amazon2023 => {
                    amazon::description(lines.utf8()?, self.layout)?
                }
                _ => movielens::description(&lines.utf8_or_latin1(), self.layout)?,
            };
            each(&item, described);
            Ok(())
        })
    }

    /// Calls `record` at every line but a header.
    fn lines(
        &self,
        watch: &mut dyn Watch,
        mut record: impl FnMut(&Lines) -> Result<(), String>,
    ) -> Result<()> {
        watch.file(&file_name(&self.path));
        let mut lines = Lines::open(&self.path)?;
        let mut header = self.layout == Layout::MovieLensCsv;
        let mut seen = 0;
        while lines.advance()? {
            if !std::mem::take(&mut header) {
                record(&lines).map_err(|message| lines.fault(message))?;
            }
            let now = lines.bytes_read();
            if now > seen {
                watch.read(now - seen);
                seen = now;
            }
        }
        watch.read(self.bytes.saturating_sub(seen));
        Ok(())
    }
}
