//! Reading files as streams, with `file:line` in every error.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::marker::PhantomData;
use std::path::Path;

use anyhow::{Result, anyhow, bail, ensure};
use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, de};

use super::described::Described;
use super::folder::file_name;
use crate::catalog::Items;

/// What an item callback may complain of; the reader adds file and line.
pub(super) type Entry = Result<(), String>;

/// An external id: JSON string or integer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id(pub String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Id, D::Error> {
        struct AnyId;
        impl Visitor<'_> for AnyId {
            type Value = Id;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an id (a string or an integer)")
            }
            fn visit_str<E: de::Error>(self, id: &str) -> Result<Id, E> {
                Ok(Id(id.into()))
            }
            fn visit_i64<E: de::Error>(self, id: i64) -> Result<Id, E> {
                Ok(Id(id.to_string()))
            }
            fn visit_u64<E: de::Error>(self, id: u64) -> Result<Id, E> {
                Ok(Id(id.to_string()))
            }
        }
        deserializer.deserialize_any(AnyId)
    }
}

/// Opens `path` for buffered reading.
pub(super) fn open(path: &Path) -> Result<BufReader<File>> {
    match File::open(path) {
        Ok(file) => Ok(BufReader::new(file)),
        Err(error) => bail!("{}: cannot be opened ({error})", path.display()),
    }
}

/// Longest line accepted. Real ones, even of users with the longest histories, have less than one MiB; one without end
/// would not fit memory.
const MAX_LINE: u64 = 16 << 20;

/// Reads the next line, with its end, into `line`, which is cleared; false at the end of the text.
///
/// # Errors
/// The text cannot be read, or a line is beyond any record's length.
pub(super) fn next_line(text: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    text.take(MAX_LINE).read_until(b'\n', line)?;
    match line.len() as u64 {
        MAX_LINE => Err(io::Error::other(
            "a line of 16 MiB: expected one record a line",
        )),
        length => Ok(length > 0),
    }
}

/// A line as text. Errors: it is not UTF-8.
pub(super) fn utf8(line: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(line).map_err(|_| "not UTF-8 text".into())
}

/// An error at a line of a file.
pub(super) fn at(
    path: &Path,
    line: impl fmt::Display,
    message: impl fmt::Display,
) -> anyhow::Error {
    anyhow!("{}:{line}: {message}", path.display())
}

/// Counts the lines handed on. serde_json reads byte by byte and at most one ahead, so while an entry is in hand the
/// count is the line it ends on; the line in serde_json's own errors about an entry may be that of what follows.
struct CountLines<'a, R>(R, &'a Cell<usize>);

impl<R: Read> Read for CountLines<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        let newlines = buffer[..read].iter().filter(|&&byte| byte == b'\n').count();
        self.1.set(self.1.get() + newlines);
        Ok(read)
    }
}

/// Calls `entry` for every key and value of the JSON object in `path`, in order, holding one at a time.
pub(super) fn json_entries<V: DeserializeOwned>(
    path: &Path,
    mut entry: impl FnMut(String, V) -> Entry,
) -> Result<()> {
    struct Entries<V, F>(F, PhantomData<V>);
    impl<'de, V: Deserialize<'de>, F: FnMut(String, V) -> Result<(), ()>> Visitor<'de>
        for Entries<V, F>
    {
        type Value = usize;
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("one JSON object")
        }
        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<usize, A::Error> {
            let mut entries = 0;
            while let Some(key) = map.next_key()? {
                (self.0)(key, map.next_value()?).map_err(|()| A::Error::custom("refused"))?;
                entries += 1;
            }
            Ok(entries)
        }
    }
    let line = Cell::new(1);
    let reader = CountLines(open(path)?, &line);
    let mut fault = None;
    let mut json = serde_json::Deserializer::from_reader(reader);
    let read = (&mut json)
        .deserialize_map(Entries(
            |key, value| {
                entry(key, value).map_err(|message| fault = Some(at(path, line.get(), message)))
            },
            PhantomData,
        ))
        .and_then(|entries| json.end().map(|()| entries));
    if let Some(fault) = fault {
        return Err(fault);
    }
    let entries = read.map_err(|error| json_error(path, error.line(), &error))?;
    ensure!(entries > 0, "{}: holds no entries", path.display());
    Ok(())
}

/// Calls `row` for every line of the JSON Lines file `path`; blank lines are skipped.
pub(super) fn json_lines<T: DeserializeOwned>(
    path: &Path,
    mut row: impl FnMut(T) -> Entry,
) -> Result<()> {
    let mut lines = open(path)?;
    let (mut line, mut number, mut rows) = (Vec::new(), 1, 0);
    while next_line(&mut lines, &mut line).map_err(|error| at(path, number, error))? {
        let text = utf8(&line).map_err(|message| at(path, number, message))?;
        if !text.trim().is_empty() {
            let value = serde_json::from_str(text).map_err(|e| json_error(path, number, &e))?;
            row(value).map_err(|message| at(path, number, message))?;
            rows += 1;
        }
        number += 1;
    }
    ensure!(rows > 0, "{}: holds no rows", path.display());
    Ok(())
}

/// What [`json_message`] says, with our file and line before it.
fn json_error(path: &Path, line: usize, error: &serde_json::Error) -> anyhow::Error {
    at(path, line, json_message(error))
}

/// serde_json's message without its own "at line .. column ..".
pub(super) fn json_message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text
        .rsplit_once(" at line ")
        .map_or(&*text, |(message, _)| message);
    match error.is_eof() {
        true => format!("the JSON is cut short ({text})"),
        false => text.into(),
    }
}

/// The code in an SID token such as `<a_183>`; `level` fixes the letter.
pub(super) fn sid_token(token: &str, level: usize) -> Result<u32, String> {
    let letter = (b'a' + (level % 26) as u8) as char;
    token
        .strip_prefix('<')
        .and_then(|rest| rest.strip_prefix(letter))
        .and_then(|rest| rest.strip_prefix('_'))
        .and_then(|rest| rest.strip_suffix('>'))
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| format!("SID token {token:?} is not of the form <{letter}_N>, N a number"))
}

/// The codes of an SID in one string, such as `<a_60><b_159><c_203>`.
pub(super) fn sid_text(text: &str) -> Result<Vec<u32>, String> {
    text.split_inclusive('>')
        .enumerate()
        .map(|(level, token)| sid_token(token, level))
        .collect()
}

/// Reads `*.index.json`: item id to SID tokens, one per level.
pub(super) fn index(path: &Path) -> Result<Items> {
    let mut items = Items::default();
    let mut seen = HashSet::new();
    json_entries(path, |name, tokens: Vec<String>| {
        if items.names.is_empty() {
            items.levels = tokens.len();
        }
        if tokens.is_empty() || tokens.len() != items.levels {
            return Err(format!(
                "item {name:?} has an SID of {} tokens, the first item one of {}: all must be equally long",
                tokens.len(),
                items.levels
            ));
        }
        for (level, token) in tokens.iter().enumerate() {
            let code = sid_token(token, level).map_err(|e| format!("item {name:?}: {e}"))?;
            items.codes.push(code);
        }
        if !seen.insert(name.clone()) {
            return Err(format!(
                "item {name:?} is there twice: ids must be distinct"
            ));
        }
        items.names.push(name);
        Ok(())
    })?;
    Ok(items)
}

/// Reads `*.item.json` (item id to an object, see [`Described`]) into `items`: texts, and titles where there are none
/// yet. Both files must hold the same items.
pub(super) fn texts(path: &Path, items: &mut Items) -> Result<()> {
    let Items {
        names,
        titles,
        texts,
        ..
    } = items;
    titles.resize(names.len(), String::new());
    texts.resize(names.len(), String::new());
    let mut item_of: HashMap<&str, (usize, bool)> = (names.iter().enumerate())
        .map(|(item, name)| (&**name, (item, false)))
        .collect();
    json_entries(path, |name, described: Described| {
        match item_of.get_mut(&*name) {
            None => return Err(format!("item {name:?} has no SID in index.json")),
            Some((_, true)) => return Err(format!("item {name:?} is there twice")),
            Some((item, seen)) => {
                *seen = true;
                texts[*item] = described.text();
                if titles[*item].is_empty() {
                    titles[*item] = described.title();
                }
            }
        }
        Ok(())
    })?;
    if let Some(name) = names.iter().find(|name| !item_of[name.as_str()].1) {
        bail!("{}: item {name:?} of index.json is missing", path.display());
    }
    Ok(())
}

/// [`Items::check`], its errors laid at the door of `path`.
pub(super) fn checked(path: &Path, items: Items) -> Result<Items> {
    match items.check() {
        Ok(()) => Ok(items),
        Err(error) => bail!("{}: {error}", path.display()),
    }
}

/// Items by their external ids.
pub(super) struct Names<'a> {
    /// The file the items are from.
    pub source: &'a Path,
    item_of: HashMap<&'a str, u32>,
}

impl<'a> Names<'a> {
    pub fn new(source: &'a Path, items: &'a Items) -> Names<'a> {
        let names = items.names.iter().enumerate();
        Names {
            source,
            item_of: names.map(|(item, name)| (&**name, item as u32)).collect(),
        }
    }

    /// The item called `name`, which some row of the log speaks of.
    pub fn item(&self, name: &str) -> Result<u32, String> {
        (self.item_of.get(name).copied())
            .ok_or_else(|| format!("item {name:?} is not in {}", file_name(self.source)))
    }

    /// [`Names::item`] of each.
    pub fn items(&self, ids: &[Id]) -> Result<Vec<u32>, String> {
        ids.iter().map(|id| self.item(&id.0)).collect()
    }
}

/// User ids by order of first appearance.
#[derive(Default)]
pub(super) struct Users {
    pub names: Vec<String>,
    index: HashMap<String, u32>,
}

impl Users {
    /// The user called `name`, new or known.
    pub fn intern(&mut self, name: &str) -> u32 {
        if let Some(&user) = self.index.get(name) {
            return user;
        }
        let user = self.names.len() as u32;
        self.names.push(name.into());
        self.index.insert(name.into(), user);
        user
    }

    /// A user who may appear once only.
    pub fn insert(&mut self, name: &str) -> Result<u32, String> {
        let known = self.names.len() as u32;
        match self.intern(name) {
            user if user == known => Ok(user),
            _ => Err(format!(
                "user {name:?} is there twice: put all of a user's items in one entry"
            )),
        }
    }
}
