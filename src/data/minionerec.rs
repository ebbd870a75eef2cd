//! MiniOneRec's files: `*.info.txt` (SID, title, item id), `*.index.json`, `*.item.json` (optional) and
//! `*.train.csv` (optional), `*.valid.csv`, `*.test.csv` with Python lists in their columns.
//!
//! A row is one next-item question; the rows of a user follow each other in time, the newest items of a row's history
//! being the row before. Training sequences come from `train.csv`: rows that continue each other are joined, so every
//! interaction is there once. Without it they come from the histories of the evaluation rows, see [`first_histories`].

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Result, anyhow, ensure};

use super::folder::{Folder, file_name};
use super::read::{self, Names, Users};
use super::{Example, Log, Sequence, Source};
use crate::catalog::Items;

const COLUMNS: [&str; 5] = [
    "user_id",
    "history_item_id",
    "item_id",
    "history_item_sid",
    "item_sid",
];

pub(super) fn import(folder: &Folder) -> Result<Source> {
    let info_path = folder.need("info.txt", "index.json")?;
    let index_path = folder.need("index.json", "info.txt")?;
    let valid_path = folder.need("valid.csv", "test.csv")?;
    let test_path = folder.need("test.csv", "valid.csv")?;
    let mut items = read::index(&index_path)?;
    items.titles = info(&info_path, &index_path, &items)?;
    if let Some(path) = folder.find("item.json")? {
        read::texts(&path, &mut items)?;
    }
    let items = read::checked(&index_path, items)?;
    let names = Names::new(&index_path, &items);

    let mut users = Users::default();
    let mut rows = |path: &Path| rows(path, &names, &items, &mut users);
    let valid = rows(&valid_path)?;
    let test = rows(&test_path)?;
    let mut warnings = Vec::new();
    let train = match folder.find("train.csv")? {
        Some(path) => joined(rows(&path)?),
        None => first_histories(&valid, &test, &mut warnings),
    };
    Ok(Source {
        name: folder.name(),
        items,
        users: users.names,
        log: Log::Rows {
            train,
            valid,
            test,
            whole: false,
        },
        warnings,
    })
}

/// Titles by item from `info.txt`, whose items and SIDs must be those of the index.
fn info(path: &Path, index_path: &Path, items: &Items) -> Result<Vec<String>> {
    let item_of: HashMap<&str, usize> = (items.names.iter().enumerate())
        .map(|(item, name)| (&**name, item))
        .collect();
    let mut titles: Vec<Option<String>> = vec![None; items.names.len()];
    let (mut text, mut line, mut number) = (read::open(path)?, Vec::new(), 0);
    loop {
        number += 1;
        let fail = |message: String| read::at(path, number, message);
        if !read::next_line(&mut text, &mut line).map_err(|error| fail(error.to_string()))? {
            break;
        }
        let line = read::utf8(&line).map_err(fail)?;
        let line = line.strip_suffix('\n').unwrap_or(line);
        let line = line.strip_suffix('\r').unwrap_or(line);
        // A title may hold anything, a tab as well: cut at the first and at the last.
        let (sid, title, name) = line
            .split_once('\t')
            .and_then(|(sid, rest)| {
                rest.rsplit_once('\t')
                    .map(|(title, name)| (sid, title, name))
            })
            .ok_or_else(|| fail("expected SID, title and item id with tabs between".into()))?;
        let codes = read::sid_text(sid).map_err(fail)?;
        let index = file_name(index_path);
        let Some(&item) = item_of.get(name) else {
            return Err(fail(format!("item {name:?} is not in {index}")));
        };
        if codes != items.codes[item * items.levels..][..items.levels] {
            return Err(fail(format!("item {name:?} has another SID in {index}")));
        }
        if titles[item].replace(title.into()).is_some() {
            return Err(fail(format!(
                "item {name:?} is there twice: ids must be distinct"
            )));
        }
    }
    (titles.into_iter().zip(&items.names))
        .map(|(title, name)| {
            title.ok_or_else(|| {
                let index = file_name(index_path);
                anyhow!("{}: item {name:?} of {index} is missing", path.display())
            })
        })
        .collect()
}

/// Reads one CSV file of rows.
fn rows(path: &Path, names: &Names, items: &Items, users: &mut Users) -> Result<Vec<Example>> {
    let mut reader = csv::Reader::from_reader(read::open(path)?);
    let headers = reader
        .headers()
        .map_err(|error| csv_error(path, &error))?
        .clone();
    let mut columns = [0; COLUMNS.len()];
    for (column, wanted) in columns.iter_mut().zip(COLUMNS) {
        *column = (headers.iter().position(|header| header == wanted))
            .ok_or_else(|| read::at(path, 1, format_args!("no column {wanted:?}")))?;
    }
    let mut rows = Vec::new();
    let mut record = csv::StringRecord::new();
    while reader
        .read_record(&mut record)
        .map_err(|error| csv_error(path, &error))?
    {
        let line = record.position().map_or(0, |position| position.line());
        let row = row(columns.map(|column| &record[column]), names, items, users);
        rows.push(row.map_err(|message| read::at(path, line, message))?);
    }
    ensure!(!rows.is_empty(), "{}: holds no rows", path.display());
    Ok(rows)
}

/// One row from its fields, in the order of [`COLUMNS`].
fn row(
    [user, history, target, history_sids, target_sid]: [&str; 5],
    names: &Names,
    items: &Items,
    users: &mut Users,
) -> Result<Example, String> {
    let item = |name: &str, sid: &str| {
        let item = names.item(name)?;
        if read::sid_text(sid)? != items.codes[item as usize * items.levels..][..items.levels] {
            return Err(format!(
                "item {name:?} has SID {sid}, another than in {}",
                file_name(names.source)
            ));
        }
        Ok(item)
    };
    let ids = python_list(history).map_err(|e| format!("history_item_id: {e}"))?;
    let sids = python_list(history_sids).map_err(|e| format!("history_item_sid: {e}"))?;
    if ids.len() != sids.len() {
        return Err(format!(
            "the history has {} items but {} SIDs",
            ids.len(),
            sids.len()
        ));
    }
    if ids.is_empty() {
        return Err("the history is empty: there is nothing to recommend from".into());
    }
    let history: Result<Vec<u32>, String> = (ids.iter().zip(&sids))
        .map(|(name, sid)| item(name, sid))
        .collect();
    Ok(Example {
        user: users.intern(user),
        history: history?,
        target: item(target, target_sid)?,
    })
}

fn csv_error(path: &Path, error: &csv::Error) -> anyhow::Error {
    let line = error.position().map_or(1, |position| position.line());
    match error.kind() {
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => read::at(
            path,
            line,
            format_args!(
                "{len} fields where the header has {expected_len}: the file is cut short or a quote is missing"
            ),
        ),
        csv::ErrorKind::Utf8 { .. } => read::at(path, line, "not UTF-8 text"),
        _ => read::at(path, line, error),
    }
}

/// The elements of a printed Python list of numbers or strings: `[12, 7]`, `['<a_1><b_2>', "x"]`.
fn python_list(text: &str) -> Result<Vec<String>, String> {
    let broken = || {
        let start: String = text.chars().take(40).collect();
        format!("{start:?} is not a Python list such as [1, 2] or ['a', 'b']")
    };
    let inner = text
        .trim()
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let mut rest = inner.ok_or_else(broken)?.trim();
    let mut elements = Vec::new();
    while !rest.is_empty() {
        let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'));
        let (element, after) = match quote {
            Some(quote) => rest[1..].split_once(quote).ok_or_else(broken)?,
            None => rest.split_at(rest.find(',').unwrap_or(rest.len())),
        };
        // Ids and SIDs need no escapes; a backslash means that this is some other column.
        if element.trim().is_empty() || element.contains('\\') {
            return Err(broken());
        }
        elements.push(element.trim().to_owned());
        rest = match after.trim_start() {
            "" => "",
            more => more.strip_prefix(',').ok_or_else(broken)?.trim_start(),
        };
    }
    Ok(elements)
}

/// Whether `next` is the row after `row` of the same user: its history ends in `row`'s history and target. A history is
/// truncated to its newest items, so it may have lost its oldest one.
fn follows(row: &Example, next: &Example) -> bool {
    let whole = row.history.len() + 1;
    let kept = next.history.len();
    (kept == whole || kept == whole - 1)
        && next.history.last() == Some(&row.target)
        && next.history[..kept - 1] == row.history[whole - kept..]
}

/// Joins rows that follow each other into sequences; a row that follows nothing starts a new one.
fn joined(rows: Vec<Example>) -> Vec<Sequence> {
    let mut sequences: Vec<Sequence> = Vec::new();
    let mut last: HashMap<u32, (usize, Example)> = HashMap::new();
    for row in rows {
        let sequence = match last.remove(&row.user) {
            Some((sequence, before)) if follows(&before, &row) => sequence,
            _ => {
                sequences.push(Sequence::untimed(row.user, row.history.clone()));
                sequences.len() - 1
            }
        };
        sequences[sequence].items.push(row.target);
        last.insert(row.user, (sequence, row));
    }
    sequences
}

/// Training sequences where there is no `train.csv`: the history of each user's first row (validation rows come before
/// test rows), which lies before every evaluated interaction, and nothing later.
///
/// The first row in the file is the first in time only if the user's rows follow each other. Where they do not, the
/// shortest history is the oldest, but histories cut to the same length cannot be told apart; so there the history is
/// also cut before the first item that is a target of that user. Either way no target of a row is trained on as such.
fn first_histories(
    valid: &[Example],
    test: &[Example],
    warnings: &mut Vec<String>,
) -> Vec<Sequence> {
    let mut by_user: HashMap<u32, Vec<&Example>> = HashMap::new();
    let mut order = Vec::new();
    for row in valid.iter().chain(test) {
        let rows = by_user.entry(row.user).or_default();
        if rows.is_empty() {
            order.push(row.user);
        }
        rows.push(row);
    }
    let mut unordered = 0;
    let mut train = Vec::with_capacity(order.len());
    for user in order {
        let rows = &by_user[&user];
        let mut history = rows[0].history.clone();
        if !rows.windows(2).all(|pair| follows(pair[0], pair[1])) {
            unordered += 1;
            let oldest = rows
                .iter()
                .min_by_key(|row| row.history.len())
                .map(|row| &row.history);
            let targets: HashSet<u32> = rows.iter().map(|row| row.target).collect();
            history = (oldest.into_iter().flatten().copied())
                .take_while(|item| !targets.contains(item))
                .collect();
        }
        if !history.is_empty() {
            train.push(Sequence::untimed(user, history));
        }
    }
    warnings.push(format!(
        "no train.csv: trained on the histories of each user's first row only ({} sequences, {} interactions)",
        train.len(),
        train.iter().map(|row| row.items.len()).sum::<usize>()
    ));
    if unordered > 0 {
        warnings.push(format!(
            "the rows of {unordered} users do not follow each other in time: their histories are cut before any target"
        ));
    }
    train
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(user: u32, history: &[u32], target: u32) -> Example {
        Example {
            user,
            history: history.into(),
            target,
        }
    }

    #[test]
    fn python_lists() {
        assert_eq!(python_list("[]").unwrap(), [""; 0]);
        assert_eq!(python_list("[12, 7]").unwrap(), ["12", "7"]);
        assert_eq!(
            python_list(r#"['<a_1>,<b_2>', "x"]"#).unwrap(),
            ["<a_1>,<b_2>", "x"]
        );
        for broken in ["", "12", "[12", "['a]", "['a' 'b']", "[,]", r"['a\'b']"] {
            assert!(python_list(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn rows_that_follow_each_other_are_joined_once() {
        // A window of 3; user 1 is interleaved; user 0's last row follows nothing.
        let rows = vec![
            row(0, &[1, 2], 3),
            row(1, &[9], 8),
            row(0, &[1, 2, 3], 4),
            row(0, &[2, 3, 4], 5),
            row(1, &[9, 8], 7),
            row(0, &[6], 1),
        ];
        assert_eq!(
            joined(rows),
            [
                Sequence::untimed(0, vec![1, 2, 3, 4, 5]),
                Sequence::untimed(1, vec![9, 8, 7]),
                Sequence::untimed(0, vec![6, 1])
            ]
        );
    }

    #[test]
    fn first_histories_hold_no_target() {
        let valid = [
            row(0, &[1, 2, 3], 4),
            row(0, &[2, 3, 4], 5),
            row(1, &[5, 6, 7], 8),
        ];
        // User 1's test row is older than the validation row; user 2's only row repeats an item, which is no leak.
        let test = [
            row(0, &[3, 4, 5], 6),
            row(1, &[4, 5, 6], 7),
            row(2, &[1, 2], 1),
        ];
        let mut warnings = Vec::new();
        let train = first_histories(&valid, &test, &mut warnings);
        assert_eq!(
            train,
            [
                Sequence::untimed(0, vec![1, 2, 3]),
                Sequence::untimed(1, vec![5, 6]),
                Sequence::untimed(2, vec![1, 2])
            ]
        );
        assert!(
            warnings[0].contains("3 sequences, 7 interactions"),
            "{warnings:?}"
        );
        assert!(warnings[1].contains("rows of 1 users"), "{warnings:?}");
    }
}
