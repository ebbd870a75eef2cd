//! Our own plain format: `items.jsonl`, `interactions.jsonl`, for a time split `valid.jsonl` and `test.jsonl`, and
//! perhaps `embeddings.safetensors`.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::folder::{Folder, file_name};
use super::read::{self, Entry, Id, Names, Users};
use super::{Example, Log, Sequence, Source, embeddings};
use crate::catalog::{Embeddings, Items};

const ITEMS: &str = "items.jsonl";
const INTERACTIONS: &str = "interactions.jsonl";
const VALID: &str = "valid.jsonl";
const TEST: &str = "test.jsonl";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ItemRow {
    id: Id,
    #[serde(default)]
    sid: Vec<u32>,
    #[serde(default)]
    title: String,
    #[serde(default)]
    text: String,
    worth: Option<f32>,
    #[serde(default)]
    embedding: Vec<f32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SequenceRow {
    user: Id,
    items: Vec<Id>,
    times: Option<Vec<i64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExampleRow {
    user: Id,
    history: Vec<Id>,
    target: Id,
}

pub(super) fn import(folder: &Folder) -> Result<Source> {
    let items_path = folder.need(ITEMS, INTERACTIONS)?;
    let log_path = folder.need(INTERACTIONS, ITEMS)?;
    let mut items = items(&items_path)?;
    if let Some(path) = folder.find(embeddings::FILE)? {
        ensure!(
            items.embeddings.is_none(),
            "{}: {} has embeddings too: keep one of the two",
            path.display(),
            file_name(&items_path)
        );
        items.embeddings = Some(embeddings::read(&path, &items.names)?);
    }
    let items = read::checked(&items_path, items)?;
    let names = Names::new(&items_path, &items);
    let mut users = Users::default();
    let log = match (folder.find(VALID)?, folder.find(TEST)?) {
        (None, None) => Log::Sequences(sequences(&log_path, &names, |user| users.insert(user))?),
        (Some(valid), Some(test)) => {
            let train = sequences(&log_path, &names, |user| Ok(users.intern(user)))?;
            Log::Rows {
                whole: train.len() == users.names.len(),
                train,
                valid: examples(&valid, &mut users, &names)?,
                test: examples(&test, &mut users, &names)?,
            }
        }
        (Some(path), None) | (None, Some(path)) => bail!(
            "{}: stands alone: a time split needs both {VALID} and {TEST}",
            path.display()
        ),
    };
    Ok(Source {
        name: folder.name(),
        items,
        users: users.names,
        log,
        warnings: Vec::new(),
    })
}

/// Reads `items.jsonl`. SIDs, of one length, and embeddings, of one dimension, are given for all items or for none.
fn items(path: &Path) -> Result<Items> {
    let mut items = Items::default();
    let mut embeddings = Embeddings {
        dim: 0,
        data: Vec::new(),
    };
    let mut seen = HashSet::new();
    read::json_lines(path, |row: ItemRow| -> Entry {
        let name = row.id.0;
        if items.names.is_empty() {
            items.levels = row.sid.len();
            embeddings.dim = row.embedding.len();
        }
        if row.sid.len() != items.levels {
            return Err(format!(
                "item {name:?} has an SID of {} codes, the first item one of {}: all must be equally long, or none be given",
                row.sid.len(),
                items.levels
            ));
        }
        if row.embedding.len() != embeddings.dim {
            return Err(format!(
                "item {name:?} has an embedding of {} numbers, the first item one of {}: give all items one, or none",
                row.embedding.len(),
                embeddings.dim
            ));
        }
        if !seen.insert(name.clone()) {
            return Err(format!(
                "item {name:?} is there twice: ids must be distinct"
            ));
        }
        items.names.push(name);
        items.titles.push(row.title);
        items.texts.push(row.text);
        items.codes.extend(row.sid);
        items.worth.push(row.worth.unwrap_or(1.0));
        embeddings.data.extend(row.embedding);
        Ok(())
    })?;
    items.embeddings = (embeddings.dim > 0).then_some(embeddings);
    Ok(items)
}

/// Reads `interactions.jsonl`; `user` numbers the users, or refuses one.
fn sequences(
    path: &Path,
    names: &Names,
    mut user: impl FnMut(&str) -> Result<u32, String>,
) -> Result<Vec<Sequence>> {
    let mut sequences = Vec::new();
    let mut first_is_timed = None;
    read::json_lines(path, |row: SequenceRow| {
        let name = &row.user.0;
        let timed = row.times.is_some();
        if timed != *first_is_timed.get_or_insert(timed) {
            return Err(format!(
                "user {name:?} has {}times, unlike the first user: give all users times, or none",
                if timed { "" } else { "no " }
            ));
        }
        let times = row.times.unwrap_or_default();
        if timed && times.len() != row.items.len() {
            return Err(format!(
                "user {name:?} has {} items but {} times",
                row.items.len(),
                times.len()
            ));
        }
        if !times.is_sorted() {
            return Err(format!(
                "the times of user {name:?} decrease: put the oldest item first"
            ));
        }
        sequences.push(Sequence {
            user: user(name)?,
            items: names.items(&row.items)?,
            times,
        });
        Ok(())
    })?;
    Ok(sequences)
}

/// Reads the rows of a time split.
fn examples(path: &Path, users: &mut Users, names: &Names) -> Result<Vec<Example>> {
    let mut examples = Vec::new();
    read::json_lines(path, |row: ExampleRow| {
        if row.history.is_empty() {
            return Err(format!(
                "user {:?} has an empty history: there is nothing to recommend from",
                row.user.0
            ));
        }
        examples.push(Example {
            user: users.intern(&row.user.0),
            history: names.items(&row.history)?,
            target: names.item(&row.target.0)?,
        });
        Ok(())
    })?;
    Ok(examples)
}

#[derive(Serialize)]
struct ItemLine<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "<[u32]>::is_empty")]
    sid: &'a [u32],
    #[serde(skip_serializing_if = "str::is_empty")]
    title: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    worth: Option<f32>,
}

#[derive(Serialize)]
struct SequenceLine<'a> {
    user: &'a str,
    items: Vec<&'a str>,
    #[serde(skip_serializing_if = "<[i64]>::is_empty")]
    times: &'a [i64],
}

#[derive(Serialize)]
struct ExampleLine<'a> {
    user: &'a str,
    history: Vec<&'a str>,
    target: &'a str,
}

/// Writes a dataset into the folder `dir`, which exists and holds none yet; reading it back gives the same [`Source`] but
/// for name, warnings and the order of the users. Embeddings go to `embeddings.safetensors`.
///
/// Files are written in place: a folder that must appear whole is filled through [`crate::run::write_folder`].
///
/// # Errors
/// A file cannot be written.
pub fn write(dir: &Path, source: &Source) -> Result<()> {
    let Source {
        items, users, log, ..
    } = source;
    lines(
        &dir.join(ITEMS),
        (0..items.names.len()).map(|item| ItemLine {
            id: &items.names[item],
            sid: &items.codes[item * items.levels..][..items.levels],
            title: text(&items.titles, item),
            text: text(&items.texts, item),
            worth: items.worth.get(item).copied().filter(|&worth| worth != 1.0),
        }),
    )?;
    if let Some(embeddings) = &items.embeddings {
        let path = dir.join(embeddings::FILE);
        std::fs::write(&path, embeddings::bytes(embeddings, &items.names, &[]))
            .with_context(|| format!("{}: cannot be written", path.display()))?;
    }
    let name = |&item: &u32| &*items.names[item as usize];
    let (Log::Sequences(sequences)
    | Log::Rows {
        train: sequences, ..
    }) = log;
    lines(
        &dir.join(INTERACTIONS),
        sequences.iter().map(|sequence| SequenceLine {
            user: &users[sequence.user as usize],
            items: sequence.items.iter().map(name).collect(),
            times: &sequence.times,
        }),
    )?;
    if let Log::Rows { valid, test, .. } = log {
        for (file, examples) in [(VALID, valid), (TEST, test)] {
            lines(
                &dir.join(file),
                examples.iter().map(|example| ExampleLine {
                    user: &users[example.user as usize],
                    history: example.history.iter().map(name).collect(),
                    target: name(&example.target),
                }),
            )?;
        }
    }
    Ok(())
}

/// The text of an item, where items have texts.
fn text(texts: &[String], item: usize) -> &str {
    texts.get(item).map_or("", |text| text)
}

/// Writes one JSON object on each line.
fn lines<T: Serialize>(path: &Path, rows: impl Iterator<Item = T>) -> Result<()> {
    let write = || -> Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for row in rows {
            serde_json::to_writer(&mut file, &row)?;
            file.write_all(b"\n")?;
        }
        Ok(file.flush()?)
    };
    write().with_context(|| format!("{}: cannot be written", path.display()))
}
