//! Our own plain format: `items.jsonl`, `interactions.jsonl` and, for a time split, `valid.jsonl` and `test.jsonl`.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Result, bail};
use serde::Deserialize;

use super::read::{self, Entry, Id, Users};
use super::{Example, Folder, Imported, Log};
use crate::catalog::{Embeddings, Items};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ItemRow {
    id: Id,
    sid: Vec<u32>,
    #[serde(default)]
    title: String,
    worth: Option<f32>,
    embedding: Option<Vec<f32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SequenceRow {
    user: Id,
    items: Vec<Id>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExampleRow {
    user: Id,
    history: Vec<Id>,
    target: Id,
}

pub(super) fn import(folder: &Folder) -> Result<Imported> {
    let items_path = folder.need("items.jsonl", "interactions.jsonl")?;
    let log_path = folder.need("interactions.jsonl", "items.jsonl")?;
    let catalog = read::catalog(&items_path, items(&items_path)?)?;
    let find = |id: &Id| read::known_item(&catalog, &items_path, &id.0);

    let mut users = Users::default();
    let mut sequences = Vec::new();
    read::json_lines(&log_path, |row: SequenceRow| {
        users.insert(&row.user.0)?;
        sequences.push(
            row.items
                .iter()
                .map(find)
                .collect::<Result<Vec<u32>, _>>()?,
        );
        Ok(())
    })?;
    let log = match (folder.find("valid.jsonl")?, folder.find("test.jsonl")?) {
        (None, None) => Log::Sequences(sequences),
        (Some(valid), Some(test)) => Log::Rows {
            train: sequences
                .iter()
                .filter(|items| !items.is_empty())
                .cloned()
                .collect(),
            valid: examples(&valid, &mut users, find)?,
            test: examples(&test, &mut users, find)?,
            sequences: Some(sequences),
        },
        (Some(path), None) | (None, Some(path)) => bail!(
            "{}: stands alone: a time split needs both valid.jsonl and test.jsonl",
            path.display()
        ),
    };
    Ok(Imported {
        catalog,
        users: users.names,
        log,
        warnings: Vec::new(),
    })
}

/// Reads `items.jsonl`. SIDs are equally long; embeddings are given for all items, in one dimension, or for none.
fn items(path: &Path) -> Result<Items> {
    let mut items = Items::default();
    let mut embeddings = Embeddings {
        dim: 0,
        data: Vec::new(),
    };
    let mut seen = HashSet::new();
    read::json_lines(path, |row: ItemRow| -> Entry {
        let name = row.id.0;
        let embedding = row.embedding.unwrap_or_default();
        if items.names.is_empty() {
            items.levels = row.sid.len();
            embeddings.dim = embedding.len();
        }
        if row.sid.is_empty() || row.sid.len() != items.levels {
            return Err(format!(
                "item {name:?} has an SID of {} codes, the first item one of {}: all must be equally long",
                row.sid.len(),
                items.levels
            ));
        }
        if embedding.len() != embeddings.dim {
            return Err(format!(
                "item {name:?} has an embedding of {} numbers, the first item one of {}: give all items one, or none",
                embedding.len(),
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
        items.codes.extend(row.sid);
        items.worth.push(row.worth.unwrap_or(1.0));
        embeddings.data.extend(embedding);
        Ok(())
    })?;
    items.embeddings = (embeddings.dim > 0).then_some(embeddings);
    Ok(items)
}

/// Reads the rows of a time split.
fn examples(
    path: &Path,
    users: &mut Users,
    find: impl Fn(&Id) -> Result<u32, String>,
) -> Result<Vec<Example>> {
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
            history: row.history.iter().map(&find).collect::<Result<_, _>>()?,
            target: find(&row.target)?,
        });
        Ok(())
    })?;
    Ok(examples)
}
