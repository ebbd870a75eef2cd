//! What a person wants to know of the semantic IDs of a catalog before training on them: `vstar sid report`.

use std::fmt;

use rayon::prelude::*;
use serde::Serialize;

use super::prefixes::{Prefix, centres, prefixes};
use crate::catalog::{Catalog, Collisions, Embeddings};
use crate::embed::neighbours::Neighbours;

/// Nearest items that are looked for under an item's prefixes.
const NEAREST: usize = 10;
/// Most items whose neighbours are looked for.
const SAMPLE: usize = 1000;
/// Items shown of a prefix.
const SHOWN: usize = 10;

/// Figures of a catalog's SIDs; prints as aligned text, serialises as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub dataset: String,
    pub items: usize,
    pub sids: usize,
    pub collisions: Collisions,
    pub levels: Vec<Level>,
    /// How well the SIDs keep what embeddings say, if there are any.
    pub fit: Option<Fit>,
    pub example: Example,
}

/// One level of the SIDs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Level {
    /// From 1.
    pub level: usize,
    /// K, the codes there were to choose from; where that is not known, the largest code plus one.
    pub codebook: u32,
    /// Distinct codes in use.
    pub used: usize,
    /// Exponential of the entropy of the code over the items: as many codes, were all equally frequent.
    pub perplexity: f64,
    /// Distinct prefixes of this length.
    pub prefixes: usize,
    /// How many of them continue a prefix that is shorter by one.
    pub children: Children,
}

/// Distribution of the number of children.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Children {
    pub mean: f64,
    /// Lower median.
    pub median: usize,
    pub max: usize,
    /// Share of the parents with one child.
    pub singletons: f64,
}

/// What the SIDs keep of the embeddings, over the items whose vector is not zero.
#[derive(Clone, Debug, Serialize)]
pub struct Fit {
    pub dim: usize,
    /// Items with a vector other than zero.
    pub items: usize,
    /// Items whose neighbours were looked for, evenly spaced over the catalog.
    pub sample: usize,
    /// Per prefix length, from 1.
    pub depths: Vec<DepthFit>,
}

/// What prefixes of one length keep of the embeddings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DepthFit {
    pub depth: usize,
    /// Share of the variance that the means of the prefixes explain; what is left is the reconstruction error.
    pub explained: f64,
    /// The same, expected of prefixes of the same sizes with items drawn at random.
    pub explained_at_random: f64,
    /// Share of an item's nearest neighbours that are under its prefix, mean over the sample.
    pub neighbours: f64,
    /// The same, expected of neighbours drawn at random.
    pub neighbours_at_random: f64,
}

/// Some items of the most populated prefix of length two (of length one where SIDs have no more than two codes).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    pub prefix: Vec<u32>,
    /// Items under it in all.
    pub items: usize,
    pub shown: Vec<Shown>,
}

/// An item as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shown {
    pub sid: Vec<u32>,
    pub id: String,
    pub title: Option<String>,
}

impl Report {
    /// Counts everything. `embeddings` has a row for each item; `codes` are those that each level had to choose from, as
    /// far as that is known.
    pub fn of(
        dataset: &str,
        catalog: &Catalog,
        embeddings: Option<&Embeddings>,
        codes: &[u32],
    ) -> Report {
        let levels = catalog.levels();
        let by_depth: Vec<Vec<Prefix>> =
            (1..=levels).map(|depth| prefixes(catalog, depth)).collect();
        Report {
            dataset: dataset.into(),
            items: catalog.items(),
            sids: catalog.sids(),
            collisions: catalog.collisions(),
            levels: (0..levels)
                .map(|level| Level::of(catalog, level, codes.get(level).copied()))
                .collect(),
            fit: embeddings.map(|embeddings| Fit::of(catalog, &by_depth, embeddings)),
            example: Example::of(catalog, &by_depth[example_depth(levels) - 1]),
        }
    }
}

fn example_depth(levels: usize) -> usize {
    (levels - 1).clamp(1, 2)
}

impl Level {
    fn of(catalog: &Catalog, level: usize, codes: Option<u32>) -> Level {
        let largest = catalog.codebooks()[level];
        let mut counts = vec![0usize; largest as usize];
        for item in 0..catalog.items() as u32 {
            counts[catalog.item_codes(item)[level] as usize] += 1;
        }
        let trie = catalog.trie();
        let parents = trie.level(level);
        Level {
            level: level + 1,
            codebook: largest.max(codes.unwrap_or(0)),
            used: counts.iter().filter(|&&count| count > 0).count(),
            perplexity: perplexity(&counts),
            prefixes: trie.level(level + 1).len(),
            children: Children::of(parents.map(|node| trie.children(node).len()).collect()),
        }
    }
}

/// exp(-sum p ln p) of a distribution by its counts.
pub(super) fn perplexity(counts: &[usize]) -> f64 {
    let total: usize = counts.iter().sum();
    let entropy: f64 = counts
        .iter()
        .filter(|&&count| count > 0)
        .map(|&count| count as f64 / total as f64)
        .map(|p| -p * p.ln())
        .sum();
    entropy.exp()
}

impl Children {
    fn of(mut counts: Vec<usize>) -> Children {
        counts.sort_unstable();
        let parents = counts.len() as f64;
        Children {
            mean: counts.iter().sum::<usize>() as f64 / parents,
            median: counts[(counts.len() - 1) / 2],
            max: counts[counts.len() - 1],
            singletons: counts.iter().filter(|&&count| count == 1).count() as f64 / parents,
        }
    }
}

impl Fit {
    fn of(catalog: &Catalog, by_depth: &[Vec<Prefix>], embeddings: &Embeddings) -> Fit {
        let neighbours = Neighbours::new(embeddings);
        let known: Vec<u32> = (0..catalog.items() as u32)
            .filter(|&item| neighbours.has(item))
            .collect();
        let sample = known.len().min(SAMPLE);
        let nearest: Vec<(u32, Vec<u32>)> = (0..sample)
            .into_par_iter()
            .map(|at| {
                let item = known[at * known.len() / sample];
                let nearest = neighbours.nearest(item, NEAREST);
                (item, nearest.into_iter().map(|(other, _)| other).collect())
            })
            .collect();
        let whole = prefixes(catalog, 0)[0].centre(catalog, embeddings).spread;
        let depths = by_depth.iter().enumerate().map(|(at, prefixes)| {
            let depth = at + 1;
            let centres = centres(catalog, prefixes, embeddings);
            let left: f64 = centres.iter().map(|centre| centre.spread).sum();
            let groups = centres.iter().filter(|centre| centre.count > 0).count();
            let others = known.len().saturating_sub(1).max(1) as f64;
            let size = |item: u32| {
                let sid = catalog.item_sid(item);
                let prefix = prefixes.partition_point(|prefix| prefix.sids.end <= sid);
                centres[prefix].count
            };
            DepthFit {
                depth,
                explained: if whole > 0.0 { 1.0 - left / whole } else { 0.0 },
                explained_at_random: groups.saturating_sub(1) as f64 / others,
                neighbours: mean(nearest.iter().map(|(item, nearest)| {
                    let own = &catalog.item_codes(*item)[..depth];
                    let under = |other: &&u32| catalog.item_codes(**other)[..depth] == *own;
                    nearest.iter().filter(under).count() as f64 / nearest.len().max(1) as f64
                })),
                neighbours_at_random: mean(
                    nearest
                        .iter()
                        .map(|(item, _)| (size(*item) - 1) as f64 / others),
                ),
            }
        });
        Fit {
            dim: embeddings.dim,
            items: known.len(),
            sample,
            depths: depths.collect(),
        }
    }
}

/// The mean of some numbers, 0 of none.
fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

impl Example {
    fn of(catalog: &Catalog, prefixes: &[Prefix]) -> Example {
        let largest = prefixes
            .iter()
            .rev()
            .max_by_key(|prefix| prefix.items)
            .expect("a catalog has items");
        let items: Vec<u32> = largest.items(catalog).collect();
        let shown = items.len().min(SHOWN);
        let shown = (0..shown).map(|at| {
            let item = items[at * items.len() / shown];
            Shown {
                sid: catalog.item_codes(item).into(),
                id: catalog.name(item).into(),
                title: catalog.title(item).map(Into::into),
            }
        });
        Example {
            prefix: largest.codes.clone(),
            items: items.len(),
            shown: shown.collect(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Collisions {
            sids,
            items,
            largest,
        } = self.collisions;
        writeln!(f, "dataset         {}", self.dataset)?;
        writeln!(f, "items           {}", self.items)?;
        writeln!(
            f,
            "SIDs            {} distinct; {items} items share {sids}, at most {largest} on one",
            self.sids
        )?;
        writeln!(
            f,
            "\nlevel    codes used  perplexity  prefixes  children: mean  median    max  one child"
        )?;
        for level in &self.levels {
            let used = format!("{} of {}", level.used, level.codebook);
            let children = &level.children;
            writeln!(
                f,
                "{:>5}{used:>14}{:>12.1}{:>10}{:>16.2}{:>8}{:>7}{:>9.1} %",
                level.level,
                level.perplexity,
                level.prefixes,
                children.mean,
                children.median,
                children.max,
                100.0 * children.singletons
            )?;
        }
        if let Some(fit) = &self.fit {
            write!(f, "{fit}")?;
        }
        write!(f, "{}", self.example)
    }
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(
            f,
            "\nembeddings of {} items in {} dimensions; nearest neighbours of {} of them",
            self.items, self.dim, self.sample
        )?;
        writeln!(
            f,
            "depth  variance explained  (random)  of {NEAREST} nearest under the prefix  (random)"
        )?;
        for depth in &self.depths {
            writeln!(
                f,
                "{:>5}{:>18.1} %{:>8.1} %{:>30.1} %{:>8.1} %",
                depth.depth,
                100.0 * depth.explained,
                100.0 * depth.explained_at_random,
                100.0 * depth.neighbours,
                100.0 * depth.neighbours_at_random
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(
            f,
            "\nprefix {} has {} items, the most of its length; some of them:",
            joined(&self.prefix),
            self.items
        )?;
        for Shown { sid, id, title } in &self.shown {
            writeln!(f, "  {:<16}{}", joined(sid), title.as_ref().unwrap_or(id))?;
        }
        Ok(())
    }
}

/// Codes as people read them: `12-40-7`.
pub fn joined(codes: &[u32]) -> String {
    let codes: Vec<String> = codes.iter().map(u32::to_string).collect();
    codes.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Items;

    /// SIDs 0-0 (two items), 0-1, 0-2 and 2-0, and embeddings that level 1 explains in part.
    fn catalog() -> (Catalog, Embeddings) {
        let catalog = Catalog::new(Items {
            names: ["a", "b", "c", "d", "e", "f"].map(String::from).into(),
            titles: ["A", "", "C", "D", "E", "F"].map(String::from).into(),
            levels: 2,
            codes: vec![0, 0, 0, 0, 0, 1, 0, 2, 2, 0, 2, 0],
            ..Items::default()
        });
        let embeddings = Embeddings {
            dim: 2,
            data: vec![1.0, 0.0, 1.0, 0.2, 1.0, -0.2, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0],
        };
        (catalog.unwrap(), embeddings)
    }

    #[test]
    fn levels_of_a_hand_made_catalog() {
        let (catalog, _) = catalog();
        let report = Report::of("hand", &catalog, None, &[7]);
        assert_eq!((report.items, report.sids), (6, 4));
        let Collisions {
            sids,
            items,
            largest,
        } = report.collisions;
        assert_eq!((sids, items, largest), (2, 4, 2));
        let [first, second] = &report.levels[..] else {
            panic!("two levels");
        };
        // Codes 0 and 2 of three; four items and two: (3/2)^(2/3) 3^(1/3).
        assert_eq!((first.codebook, first.used, first.prefixes), (7, 2, 2));
        let wanted = 1.5f64.powf(2.0 / 3.0) * 3.0f64.powf(1.0 / 3.0);
        assert!((first.perplexity - wanted).abs() < 1e-12);
        assert_eq!(
            first.children,
            Children {
                mean: 2.0,
                median: 2,
                max: 2,
                singletons: 0.0
            }
        );
        assert_eq!((second.codebook, second.used, second.prefixes), (3, 3, 4));
        assert_eq!(
            second.children,
            Children {
                mean: 2.0,
                median: 1,
                max: 3,
                singletons: 0.5
            }
        );
        assert!((perplexity(&[3, 3, 3]) - 3.0).abs() < 1e-12);
        assert_eq!(report.example.prefix, [0]);
        assert_eq!(report.example.items, 4);
        assert_eq!(report.example.shown[1].id, "b");
        assert_eq!(report.example.shown[1].title, None);
        let text = report.to_string();
        assert!(text.contains("2 of 7") && text.contains("0-2             D"));
    }

    #[test]
    fn fit_of_a_hand_made_catalog() {
        let (catalog, embeddings) = catalog();
        let fit = Report::of("hand", &catalog, Some(&embeddings), &[])
            .fit
            .unwrap();
        // Item f has no vector. Mean (0.6, 0); squares about it: 4 x 0.16 + 2.56 + 2 x 0.04 = 3.28. Prefix 0 keeps
        // 0.08 of them; SID 0-0 keeps 0.02.
        assert_eq!((fit.items, fit.sample), (5, 5));
        let [one, two] = &fit.depths[..] else {
            panic!("two depths");
        };
        assert!((one.explained - (1.0 - 0.08 / 3.28)).abs() < 1e-6);
        assert!((two.explained - (1.0 - 0.02 / 3.28)).abs() < 1e-6);
        assert_eq!(one.explained_at_random, 0.25);
        assert_eq!(two.explained_at_random, 0.75);
        // Of the four others, three share the prefix of a to d, none that of e.
        assert!((one.neighbours - 4.0 * 0.75 / 5.0).abs() < 1e-12);
        assert!((one.neighbours_at_random - one.neighbours).abs() < 1e-12);
        assert!((two.neighbours - 2.0 * 0.25 / 5.0).abs() < 1e-12);
    }

    #[test]
    fn neighbours_under_the_prefix_beat_chance_only_where_codes_follow_the_embeddings() {
        // Forty items in four tight bundles; codes are the bundles, or cut across them.
        let mut rng = crate::rng::Rng::new(2, crate::rng::Stream::Test, 0, 0);
        let mut data = vec![0.0; 44 * 4];
        for item in 0..44 {
            data[item * 4 + item % 4] = 1.0;
            for x in &mut data[item * 4..][..4] {
                *x += 0.01 * rng.normal();
            }
        }
        let embeddings = Embeddings { dim: 4, data };
        let fit = |code: fn(u32) -> u32| {
            let catalog = Catalog::new(Items {
                names: (0..44).map(|item| item.to_string()).collect(),
                levels: 1,
                codes: (0..44).map(code).collect(),
                ..Items::default()
            });
            let report = Report::of("bundles", &catalog.unwrap(), Some(&embeddings), &[]);
            report.fit.unwrap().depths.remove(0)
        };
        let (good, bad) = (fit(|item| item % 4), fit(|item| item / 4 % 4));
        assert_eq!(good.neighbours, 1.0);
        assert!(good.explained > 0.99);
        assert!(bad.neighbours < 0.4);
        assert!(bad.explained < 0.2);
        assert!((good.neighbours_at_random - 10.0 / 43.0).abs() < 1e-12);
    }
}
