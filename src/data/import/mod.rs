//! From raw files to a dataset without semantic IDs: `vstar data import`.
//!
//! Interactions are read twice. The first time users and items are counted (at most 40 bytes for each), the second time
//! only rows that the k-core may have are held (16 bytes each, and about 80 for each of their ids). Descriptions are read
//! last, and those of the items that are left are held. All else is streamed.

mod amazon;
mod card;
mod filter;
mod html;
mod layout;
mod lines;
mod movielens;
mod python;
mod sequences;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use super::folder::file_name;
use super::{Log, Protocol, Source};
use crate::catalog::Items;
use card::{Lengths, Origin, Split};
use filter::{FirstCount, Interaction};
use layout::{Kind, RawFile};

pub use card::{Card, Step};
pub use filter::Window;

/// What is kept, and how it is split.
#[derive(Clone, Debug)]
pub struct Options {
    /// Every user and every item has at least so many interactions.
    pub k_core: u32,
    pub window: Window,
    pub split: Protocol,
    /// Orders interactions of the same instant.
    pub seed: u64,
}

/// Is told how far the reading is.
pub trait Watch {
    /// Bytes to be read in all.
    fn total(&mut self, bytes: u64);
    /// Another file is begun.
    fn file(&mut self, name: &str);
    /// So many more bytes have been read.
    fn read(&mut self, bytes: u64);
}

/// Where interactions and descriptions come from.
enum Raw {
    Files(Vec<RawFile>),
    /// A dataset in our own format, with times.
    Dataset(Box<Source>),
}

/// Makes a dataset called `name` from raw files and folders of them, or from a folder with one in our own format.
/// `command` is for the card.
///
/// # Errors
/// Files in no known layout, any fault in them, or nothing that is left of them; in one line.
pub fn import(
    paths: &[PathBuf],
    options: &Options,
    name: &str,
    command: &str,
    watch: &mut dyn Watch,
) -> Result<(Source, Card)> {
    let raw = Raw::open(paths)?;
    watch.total(raw.bytes());

    let mut count = FirstCount::new(options.window, options.k_core);
    raw.interactions(watch, &mut |user, item, time| count.add(user, item, time))?;
    let mut steps = count.steps().to_vec();

    let (mut users, mut items) = (Interner::default(), Interner::default());
    let mut log = Vec::new();
    raw.interactions(watch, &mut |user, item, time| {
        if count.may_stay(user, item, time) {
            log.push(Interaction {
                user: users.intern(user),
                item: items.intern(item),
                time,
            });
        }
    })?;
    drop(count);
    let k = options.k_core;
    steps.push(filter::step(
        format!("at least {k} at the first count"),
        &log,
    ));
    filter::keep_firsts(&mut log);
    steps.push(filter::step("first of each user and item".into(), &log));
    let mut round = 1;
    while filter::core_round(&mut log, k) {
        steps.push(filter::step(format!("{k}-core, round {round}"), &log));
        round += 1;
    }
    ensure!(
        !log.is_empty(),
        "{}: no interactions are left of {}: lower --k-core, or widen the time window",
        paths[0].display(),
        steps[0].interactions
    );
    let users = users.renumber(&mut log, |row| &mut row.user);
    let names = items.renumber(&mut log, |row| &mut row.item);
    let times = (log.iter()).fold([i64::MAX, i64::MIN], |[oldest, newest], row| {
        [oldest.min(row.time), newest.max(row.time)]
    });
    let (items, items_without_metadata) = raw.describe(names, watch)?;
    let sequences = sequences::of(log, options.seed);
    let lengths = Lengths::of(sequences.iter().map(|s| s.items.len()).collect());
    let interactions = steps.last().map_or(0, |step| step.interactions);
    let source = Source {
        name: name.into(),
        items,
        users,
        log: match options.split {
            Protocol::LeaveOneOut => Log::Sequences(sequences),
            Protocol::TimeSplit => sequences::time_split(sequences),
        },
        warnings: Vec::new(),
    };
    let split = Split::of(&source);
    ensure!(
        split.valid > 0 && split.test > 0,
        "{}: {interactions} interactions are too few for a {} split",
        paths[0].display(),
        options.split
    );
    let card = Card {
        name: name.into(),
        command: command.into(),
        seed: options.seed,
        sources: raw.origins(),
        steps,
        users: source.users.len(),
        items: source.items.names.len(),
        interactions,
        density: interactions as f64 / source.users.len() as f64 / source.items.names.len() as f64,
        lengths,
        split,
        times,
        items_without_metadata,
        items_without_title: source.items.titles.iter().filter(|t| t.is_empty()).count(),
        licence:
            "LICENCE: fill in under which licence the sources are published, and whom to cite."
                .into(),
    };
    Ok((source, card))
}

impl Raw {
    fn open(paths: &[PathBuf]) -> Result<Raw> {
        let ours = |path: &&PathBuf| path.join("items.jsonl").is_file();
        match paths.iter().find(ours) {
            Some(path) if paths.len() == 1 => Ok(Raw::Dataset(Box::new(timed(path)?))),
            Some(path) => bail!(
                "{}: is a dataset in our own format: import it by itself, without {} other",
                path.display(),
                paths.len() - 1
            ),
            None => Ok(Raw::Files(layout::find(paths)?)),
        }
    }

    /// Bytes of all readings.
    fn bytes(&self) -> u64 {
        let Raw::Files(files) = self else {
            return 0;
        };
        let read = |file: &RawFile| match file.kind {
            Kind::Interactions => 2 * file.bytes,
            Kind::Descriptions => file.bytes,
        };
        files.iter().map(read).sum()
    }

    fn origins(&self) -> Vec<Origin> {
        match self {
            Raw::Files(files) => files
                .iter()
                .map(|file| Origin {
                    file: file_name(&file.path).into(),
                    bytes: Some(file.bytes),
                    layout: file.layout.to_string(),
                })
                .collect(),
            Raw::Dataset(source) => vec![Origin {
                file: source.name.clone(),
                bytes: None,
                layout: "JSONL".into(),
            }],
        }
    }

    /// Calls `each` with user, item and unix seconds of every interaction.
    fn interactions(
        &self,
        watch: &mut dyn Watch,
        each: &mut dyn FnMut(&str, &str, i64),
    ) -> Result<()> {
        match self {
            Raw::Files(files) => {
                let with_interactions = files.iter().filter(|f| f.kind == Kind::Interactions);
                for file in with_interactions {
                    file.interactions(watch, each)?;
                }
            }
            Raw::Dataset(source) => {
                let Log::Sequences(sequences) = &source.log else {
                    unreachable!("checked by `timed`");
                };
                for sequence in sequences {
                    let user = &source.users[sequence.user as usize];
                    for (&item, &time) in sequence.items.iter().zip(&sequence.times) {
                        each(user, &source.items.names[item as usize], time);
                    }
                }
            }
        }
        Ok(())
    }

    /// The items called `names` with what is known about them, and how many nothing is known about. Where several
    /// descriptions speak of an item, the first is taken.
    fn describe(&self, names: Vec<String>, watch: &mut dyn Watch) -> Result<(Items, usize)> {
        let files = match self {
            Raw::Files(files) => files,
            Raw::Dataset(source) => {
                let all: HashMap<&String, u32> = source.items.names.iter().zip(0..).collect();
                let kept: Vec<u32> = names.iter().map(|name| all[name]).collect();
                // Those of another split may be made of interactions that are tested now.
                return Ok((source.items.without_sids(&kept), 0));
            }
        };
        let mut items = Items {
            titles: vec![String::new(); names.len()],
            texts: vec![String::new(); names.len()],
            ..Items::default()
        };
        let mut undescribed: HashMap<&str, usize> = names
            .iter()
            .enumerate()
            .map(|(at, name)| (&**name, at))
            .collect();
        for file in files.iter().filter(|file| file.kind == Kind::Descriptions) {
            file.descriptions(watch, &mut |item, described| {
                if let Some(at) = undescribed.remove(item) {
                    let described = described.map(&html::text);
                    items.titles[at] = described.title();
                    items.texts[at] = described.text();
                }
            })?;
        }
        let unknown = undescribed.len();
        items.names = names;
        Ok((items, unknown))
    }
}

/// The dataset in folder `path`, if its interactions have times and are whole.
fn timed(path: &Path) -> Result<Source> {
    let source = super::read(path)?;
    let Log::Sequences(sequences) = &source.log else {
        bail!(
            "{}: has a time split already, which cannot be filtered again: import what it was made from",
            path.display()
        );
    };
    ensure!(
        sequences.iter().all(|s| s.times.len() == s.items.len()),
        "{}: interactions.jsonl has no times, which filters and splits need",
        path.display()
    );
    Ok(source)
}

/// Numbers for ids.
#[derive(Default)]
struct Interner(HashMap<Box<str>, u32>);

impl Interner {
    fn intern(&mut self, id: &str) -> u32 {
        if let Some(&number) = self.0.get(id) {
            return number;
        }
        let number = self.0.len() as u32;
        self.0.insert(id.into(), number);
        number
    }

    /// Numbers the ids that rows of `log` still have anew, in the order of the ids, so that no order of a file is left;
    /// returns these ids.
    fn renumber(
        self,
        log: &mut [Interaction],
        number: impl Fn(&mut Interaction) -> &mut u32,
    ) -> Vec<String> {
        let mut occurs = vec![false; self.0.len()];
        for row in log.iter_mut() {
            occurs[*number(row) as usize] = true;
        }
        let mut kept: Vec<(Box<str>, u32)> = (self.0.into_iter())
            .filter(|&(_, old)| occurs[old as usize])
            .collect();
        kept.sort_unstable();
        let mut new = vec![0; occurs.len()];
        for (&(_, old), at) in kept.iter().zip(0..) {
            new[old as usize] = at;
        }
        for row in log {
            let number = number(row);
            *number = new[*number as usize];
        }
        kept.into_iter().map(|(id, _)| id.into()).collect()
    }
}
