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

/// How many bytes of the file are whole records up to and including the position `last`.
fn kept(bytes: &[u8], last: (Stage, u64)) -> Result<usize> {
    let mut kept = 0;
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let whole = line.ends_with(b"\n");
        match position(line) {
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

fn position(line: &[u8]) -> Option<(Stage, u64)> {
    let record: Value = serde_json::from_slice(line).ok()?;
    let stage = Stage::from_name(record.get("stage")?.as_str()?)?;
    Some((stage, record.get("step")?.as_u64()?))
}
