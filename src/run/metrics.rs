//! `metrics.jsonl`: one JSON object a line, in the order of the steps.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::state::Stage;

/// Appends records. Each is one write, so that a crash tears the last line at most.
#[derive(Debug)]
pub struct Metrics {
    file: File,
    path: PathBuf,
}

impl Metrics {
    /// Starts an empty file.
    pub fn create(path: &Path) -> Result<Metrics> {
        let file =
            File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Metrics {
            file,
            path: path.to_owned(),
        })
    }

    /// Goes on after `step` of `stage`, that of the checkpoint a run resumes from: records of later
    /// steps and a torn last line are cut off. A missing file is an empty one.
    ///
    /// # Errors
    /// A line before the last is not a record: the message names it, and the file is left as it is.
    pub fn resume(path: &Path, stage: Stage, step: u64) -> Result<Metrics> {
        let open = || -> std::io::Result<(Vec<u8>, File)> {
            // Not truncated: `set_len` below keeps what is before the checkpoint.
            let mut options = File::options();
            let file = options
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)?;
            Ok((fs::read(path)?, file))
        };
        let (bytes, mut file) =
            open().with_context(|| format!("cannot open {}", path.display()))?;
        let kept = kept(&bytes, (stage, step))
            .with_context(|| format!("{} is damaged", path.display()))?;
        file.set_len(kept as u64)
            .and_then(|()| file.seek(SeekFrom::End(0)))
            .and_then(|_| file.sync_all())
            .with_context(|| format!("cannot cut {} back", path.display()))?;
        Ok(Metrics {
            file,
            path: path.to_owned(),
        })
    }

    /// The records of a file, in their order.
    ///
    /// # Errors
    /// It cannot be read, or a line is not a record: the message names it.
    pub fn read(path: &Path) -> Result<Vec<Entry>> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let lines = (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n'));
        let entry = |(number, line): (usize, &[u8])| {
            let entry = Entry::parse(line);
            entry.with_context(|| format!("{}:{number}: not a record", path.display()))
        };
        lines.map(entry).collect()
    }

    /// Appends one record: `stage`, `step` and `fields`. Several records of a step are allowed, as
    /// long as all are written before that step's checkpoint. A number that is not finite becomes
    /// `null`.
    pub fn write(&mut self, stage: Stage, step: u64, fields: &Map<String, Value>) -> Result<()> {
        let mut record = Map::new();
        record.insert("stage".into(), stage.name().into());
        record.insert("step".into(), step.into());
        record.extend(fields.clone());
        let mut line = serde_json::to_string(&record)?;
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// One record.
#[derive(Clone, Debug)]
pub struct Entry {
    pub stage: Stage,
    pub step: u64,
    pub figures: Map<String, Value>,
}

impl Entry {
    fn parse(line: &[u8]) -> Option<Entry> {
        let mut figures: Map<String, Value> = serde_json::from_slice(line).ok()?;
        Some(Entry {
            stage: Stage::from_name(figures.shift_remove("stage")?.as_str()?)?,
            step: figures.shift_remove("step")?.as_u64()?,
            figures,
        })
    }
}

/// How many bytes of the file are whole records up to and including the position `last`.
fn kept(bytes: &[u8], last: (Stage, u64)) -> Result<usize> {
    let mut kept = 0;
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let whole = line.ends_with(b"\n");
        match Entry::parse(line).map(|entry| (entry.stage, entry.step)) {
            Some(position) if whole && position <= last => kept += line.len(),
            Some(_) => break,
            None if !whole || kept + line.len() == bytes.len() => break,
            None => bail!(
                "line {} is not a record: mend or remove it, then resume",
                index + 1
            ),
        }
    }
    Ok(kept)
}
