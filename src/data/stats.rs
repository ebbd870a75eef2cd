//! What a person wants to know of a dataset before training on it: `vstar data`.

use std::collections::HashSet;
use std::fmt;

use anyhow::Result;
use serde::Serialize;

use super::{Corpus, Example, Protocol, item_counts};
use crate::catalog::{Catalog, Collisions, LevelShape};

/// Figures of a dataset; prints as aligned text, serialises as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    pub name: String,
    pub protocol: Protocol,
    pub users: usize,
    pub items: usize,
    pub interactions: Interactions,
    /// If the items have any.
    #[serde(flatten)]
    pub semantic_ids: Option<SemanticIds>,
    pub train_lengths: Lengths,
    pub test_histories: Lengths,
    /// Training interactions with an item that their sequence had before: where there are none, what a history holds is
    /// never right (`reward.repeat`).
    pub repeats: usize,
    pub valid: usize,
    pub test: usize,
    pub max_history: usize,
    pub beam: usize,
    pub popularity: Popularity,
    pub worth: Worth,
    pub warnings: Vec<String>,
}

/// What the SIDs are like.
#[derive(Clone, Debug, Serialize)]
pub struct SemanticIds {
    /// Distinct ones.
    pub sids: usize,
    pub collisions: Collisions,
    pub codebooks: Vec<u32>,
    pub vocabulary: usize,
    pub trie_nodes: usize,
    /// Branching by depth of the parent.
    pub trie: Vec<LevelShape>,
}

/// Interactions by use: each training interaction once, and one for each target.
#[derive(Clone, Debug, Serialize)]
pub struct Interactions {
    pub train: usize,
    pub valid: usize,
    pub test: usize,
}

/// Distribution of a number of items.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lengths {
    pub count: usize,
    pub min: usize,
    /// Lower median.
    pub median: usize,
    pub mean: f64,
    pub max: usize,
}

/// How training interactions spread over the items.
#[derive(Clone, Debug, Serialize)]
pub struct Popularity {
    /// 0: all items equally popular; towards 1: one item has everything.
    pub gini: f64,
    /// Share of the training interactions on the most popular tenth of the items.
    pub top_tenth: f64,
    /// Items no training sequence holds.
    pub untrained_items: usize,
    /// Test examples whose target no training sequence holds.
    pub untrained_targets: usize,
}

/// Worth over the items.
#[derive(Clone, Debug, Serialize)]
pub struct Worth {
    pub min: f32,
    pub mean: f64,
    pub max: f32,
}

impl Lengths {
    fn of(mut lengths: Vec<usize>) -> Lengths {
        lengths.sort_unstable();
        let count = lengths.len();
        Lengths {
            count,
            min: lengths.first().copied().unwrap_or(0),
            median: lengths
                .get(count.saturating_sub(1) / 2)
                .copied()
                .unwrap_or(0),
            mean: lengths.iter().sum::<usize>() as f64 / count.max(1) as f64,
            max: lengths.last().copied().unwrap_or(0),
        }
    }
}

/// Gini coefficient of `counts`: 0 when all are equal, (n - 1) / n when one has everything; 0 when there is nothing.
pub fn gini(counts: &[u32]) -> f64 {
    let mut sorted = counts.to_vec();
    sorted.sort_unstable();
    let n = sorted.len() as f64;
    let total: f64 = sorted.iter().map(|&count| count as f64).sum();
    if total == 0.0 {
        return 0.0;
    }
    let ranked: f64 = sorted
        .iter()
        .enumerate()
        .map(|(at, &count)| (2.0 * (at as f64 + 1.0) - n - 1.0) * count as f64)
        .sum();
    ranked / (n * total)
}

/// Items of a sequence that are in it before.
fn repeats(sequence: &[u32]) -> usize {
    let distinct: HashSet<u32> = sequence.iter().copied().collect();
    sequence.len() - distinct.len()
}

impl Stats {
    /// Counts everything.
    ///
    /// # Errors
    /// SIDs that are none ([`Catalog::new`]).
    pub fn of(data: &Corpus) -> Result<Stats> {
        let items = data.items.names.len();
        let counts = item_counts(&data.train, items);
        let catalog = match data.items.codes.is_empty() {
            true => None,
            false => Some(Catalog::new(data.items.clone())?),
        };
        let mut by_popularity = counts.clone();
        by_popularity.sort_unstable_by(|a, b| b.cmp(a));
        let train: usize = data.train.iter().map(Vec::len).sum();
        let top: u32 = by_popularity[..items.div_ceil(10)].iter().sum();
        let untrained = |example: &&Example| counts[example.target as usize] == 0;
        let worth = match &data.items.worth[..] {
            [] => &[1.0],
            given => given,
        };
        Ok(Stats {
            name: data.name.clone(),
            protocol: data.protocol,
            users: data.users.len(),
            items,
            interactions: Interactions {
                train,
                valid: data.valid.len(),
                test: data.test.len(),
            },
            semantic_ids: catalog.map(|catalog| SemanticIds {
                sids: catalog.sids(),
                collisions: catalog.collisions(),
                codebooks: catalog.codebooks().to_vec(),
                vocabulary: catalog.vocab_size(),
                trie_nodes: catalog.trie().nodes(),
                trie: catalog.trie().shape(),
            }),
            train_lengths: Lengths::of(data.train.iter().map(Vec::len).collect()),
            test_histories: Lengths::of(data.test.iter().map(|e| e.history.len()).collect()),
            repeats: data.train.iter().map(|sequence| repeats(sequence)).sum(),
            valid: data.valid.len(),
            test: data.test.len(),
            max_history: data.max_history,
            beam: data.beam,
            popularity: Popularity {
                gini: gini(&counts),
                top_tenth: top as f64 / train as f64,
                untrained_items: counts.iter().filter(|&&count| count == 0).count(),
                untrained_targets: data.test.iter().filter(untrained).count(),
            },
            worth: Worth {
                min: worth.iter().copied().fold(f32::INFINITY, f32::min),
                mean: worth.iter().map(|&w| w as f64).sum::<f64>() / worth.len() as f64,
                max: worth.iter().copied().fold(0.0, f32::max),
            },
            warnings: data.warnings.clone(),
        })
    }
}

impl SemanticIds {
    /// (label, text) of the lines that tell of them.
    fn lines(&self) -> Vec<(String, String)> {
        let Collisions {
            sids,
            items,
            largest,
        } = self.collisions;
        let distinct = self.sids;
        let mut lines = vec![
            (
                "SIDs".into(),
                format!(
                    "{distinct} distinct; {items} items share {sids}, at most {largest} on one"
                ),
            ),
            (
                "vocabulary".into(),
                format!("{} tokens; codebooks {:?}", self.vocabulary, self.codebooks),
            ),
            ("trie".into(), format!("{} nodes", self.trie_nodes)),
        ];
        lines.extend(self.trie.iter().map(|level| {
            let text = format!(
                "{:>7} nodes, children mean {:.2}, max {}; singletons {:.1} %",
                level.nodes,
                level.mean_children,
                level.max_children,
                100.0 * level.singleton_share
            );
            (format!("  depth {}", level.depth), text)
        }));
        lines
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut line = |label: &str, text: String| writeln!(f, "{label:<16}{text}");
        let lengths = |l: &Lengths| {
            format!(
                "min {}, median {}, mean {:.1}, max {}",
                l.min, l.median, l.mean, l.max
            )
        };
        line("dataset", self.name.clone())?;
        line(
            "protocol",
            format!(
                "{} (history of at most {}, beam {})",
                self.protocol, self.max_history, self.beam
            ),
        )?;
        line("users", self.users.to_string())?;
        line("items", self.items.to_string())?;
        let Interactions { train, valid, test } = self.interactions;
        line(
            "interactions",
            format!(
                "{} (train {train}, valid {valid}, test {test})",
                train + valid + test
            ),
        )?;
        match &self.semantic_ids {
            None => line("SIDs", "none yet: `vstar sid build` makes them".into())?,
            Some(sids) => {
                for (label, text) in sids.lines() {
                    line(&label, text)?;
                }
            }
        }
        line(
            "train",
            format!(
                "{} sequences: {}",
                self.train_lengths.count,
                lengths(&self.train_lengths)
            ),
        )?;
        line("valid", format!("{} examples", self.valid))?;
        line(
            "test",
            format!(
                "{} examples; history: {}",
                self.test,
                lengths(&self.test_histories)
            ),
        )?;
        let share = self.repeats as f64 / train.max(1) as f64;
        line(
            "repeats",
            format!(
                "{} training interactions ({:.1} %) with an item that the sequence had before",
                self.repeats,
                100.0 * share
            ),
        )?;
        let p = &self.popularity;
        line(
            "popularity",
            format!(
                "Gini {:.3}; top 10 % of the items have {:.1} % of the training interactions",
                p.gini,
                100.0 * p.top_tenth
            ),
        )?;
        line(
            "not in train",
            format!(
                "{} items, targets of {} test examples",
                p.untrained_items, p.untrained_targets
            ),
        )?;
        line(
            "worth",
            format!(
                "min {:.2}, mean {:.2}, max {:.2}",
                self.worth.min, self.worth.mean, self.worth.max
            ),
        )?;
        for warning in &self.warnings {
            line("warning", warning.clone())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gini_of_known_distributions() {
        assert_eq!(gini(&[3, 3, 3, 3]), 0.0);
        assert_eq!(gini(&[0, 8, 0, 0]), 0.75);
        assert_eq!(gini(&[0, 0]), 0.0);
        assert!((gini(&[1, 2, 3]) - 2.0 / 9.0).abs() < 1e-15);
    }

    #[test]
    fn repeats_are_counted_but_for_the_first() {
        assert_eq!(
            [repeats(&[7, 3, 7, 7]), repeats(&[1, 2]), repeats(&[])],
            [2, 0, 0]
        );
    }

    #[test]
    fn lengths_of_a_small_sample() {
        let lengths = Lengths::of(vec![5, 1, 2, 8]);
        let wanted = Lengths {
            count: 4,
            min: 1,
            median: 2,
            mean: 4.0,
            max: 8,
        };
        assert_eq!(lengths, wanted);
    }
}
