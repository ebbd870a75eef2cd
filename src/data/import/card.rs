//! The data card: what a dataset was made from, how, and what came of it.

use std::fmt;

use serde::Serialize;

use super::super::{Log, Source};
use crate::calendar;

/// Everything a person needs to make the dataset again, and to judge it. Prints as Markdown, serialises as JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Card {
    pub name: String,
    /// The command line.
    pub command: String,
    pub seed: u64,
    pub sources: Vec<Origin>,
    /// What was left after each step of filtering.
    pub steps: Vec<Step>,
    pub users: usize,
    pub items: usize,
    pub interactions: u64,
    /// Interactions over users x items.
    pub density: f64,
    pub lengths: Lengths,
    pub split: Split,
    /// The oldest and the newest interaction, unix seconds.
    pub times: [i64; 2],
    /// Items that no metadata speaks of.
    pub items_without_metadata: usize,
    pub items_without_title: usize,
    pub licence: String,
}

/// A file the dataset was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    pub file: String,
    /// Size on the disk; none for a whole dataset.
    pub bytes: Option<u64>,
    pub layout: String,
}

/// What was left after a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    pub step: String,
    pub users: usize,
    pub items: usize,
    pub interactions: u64,
}

/// Interactions per user; percentiles are the smallest length that so many users do not exceed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lengths {
    pub min: usize,
    pub p25: usize,
    pub median: usize,
    pub p75: usize,
    pub p90: usize,
    pub p99: usize,
    pub max: usize,
    pub mean: f64,
}

/// How the interactions are used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Split {
    pub protocol: String,
    pub train_sequences: usize,
    pub train_interactions: usize,
    pub valid: usize,
    pub test: usize,
}

impl Lengths {
    /// Of at least one length.
    pub(super) fn of(mut lengths: Vec<usize>) -> Lengths {
        lengths.sort_unstable();
        let percentile = |percent: usize| {
            let at = (lengths.len() * percent).div_ceil(100).max(1);
            lengths[at - 1]
        };
        Lengths {
            min: lengths[0],
            p25: percentile(25),
            median: percentile(50),
            p75: percentile(75),
            p90: percentile(90),
            p99: percentile(99),
            max: percentile(100),
            mean: lengths.iter().sum::<usize>() as f64 / lengths.len() as f64,
        }
    }
}

impl Split {
    pub(super) fn of(source: &Source) -> Split {
        let total = |lengths: &mut dyn Iterator<Item = usize>| lengths.sum();
        match &source.log {
            Log::Sequences(sequences) => {
                let evaluated = sequences.iter().filter(|s| s.items.len() > 2).count();
                let all: usize = total(&mut sequences.iter().map(|s| s.items.len()));
                Split {
                    protocol: "leave-one-out".into(),
                    train_sequences: sequences.len(),
                    train_interactions: all - 2 * evaluated,
                    valid: evaluated,
                    test: evaluated,
                }
            }
            Log::Rows {
                train, valid, test, ..
            } => Split {
                protocol: "time-split".into(),
                train_sequences: train.len(),
                train_interactions: total(&mut train.iter().map(|s| s.items.len())),
                valid: valid.len(),
                test: test.len(),
            },
        }
    }
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "# {}\n", self.name)?;
        writeln!(f, "{}\n", self.licence)?;
        writeln!(f, "Made by\n\n    {}\n", self.command)?;
        writeln!(f, "seed {}, from\n", self.seed)?;
        writeln!(f, "| File | Bytes | Layout |\n|---|---:|---|")?;
        for origin in &self.sources {
            let bytes = origin.bytes.map_or("".into(), |bytes| bytes.to_string());
            writeln!(f, "| {} | {bytes} | {} |", origin.file, origin.layout)?;
        }
        writeln!(f, "\n## What is left after each step\n")?;
        writeln!(
            f,
            "| Step | Users | Items | Interactions |\n|---|---:|---:|---:|"
        )?;
        for step in &self.steps {
            let Step {
                step,
                users,
                items,
                interactions,
            } = step;
            writeln!(f, "| {step} | {users} | {items} | {interactions} |")?;
        }
        writeln!(f, "\n## What it is\n")?;
        let [oldest, newest] = self.times.map(date);
        let Lengths {
            min,
            p25,
            median,
            p75,
            p90,
            p99,
            max,
            mean,
        } = self.lengths;
        let split = &self.split;
        for (name, figure) in [
            ("users", self.users.to_string()),
            ("items", self.items.to_string()),
            ("interactions", self.interactions.to_string()),
            ("density", format!("{:.4} %", 100.0 * self.density)),
            ("times", format!("{oldest} to {newest} (UTC)")),
            (
                "interactions per user",
                format!(
                    "mean {mean:.2}, min {min}, 25 % {p25}, median {median}, 75 % {p75}, 90 % {p90}, 99 % {p99}, max {max}"
                ),
            ),
            (
                "split",
                format!(
                    "{}: {} training sequences ({} interactions), {} validation and {} test examples",
                    split.protocol,
                    split.train_sequences,
                    split.train_interactions,
                    split.valid,
                    split.test
                ),
            ),
            (
                "items without metadata",
                self.items_without_metadata.to_string(),
            ),
            ("items without title", self.items_without_title.to_string()),
        ] {
            writeln!(f, "- {name}: {figure}")?;
        }
        Ok(())
    }
}

/// `YYYY-MM-DD` of unix seconds.
fn date(seconds: i64) -> String {
    let [year, month, day] = calendar::date(seconds);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_small_sample() {
        let lengths = Lengths::of((1..=10).rev().collect());
        assert_eq!(
            (lengths.min, lengths.p25, lengths.median, lengths.p75),
            (1, 3, 5, 8)
        );
        assert_eq!((lengths.p90, lengths.p99, lengths.max), (9, 10, 10));
        assert_eq!(lengths.mean, 5.5);
        assert_eq!(Lengths::of(vec![4]).p25, 4);
    }
}
