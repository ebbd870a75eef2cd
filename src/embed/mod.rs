//! Item embeddings from what a dataset holds: titles and texts, training sequences, or a matrix of someone else's
//! encoder. Validation and test items are never read.

mod matrix;
pub mod neighbours;
mod ppmi;
mod svd;
mod tfidf;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use rayon::prelude::*;

use crate::catalog::Embeddings;
use crate::data::{Corpus, embeddings};
use matrix::Csr;
use neighbours::normalise;
use svd::Svd;

/// Steps of the longest source.
pub const STEPS: u64 = svd::PASSES;

/// What embeddings are made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Titles and texts: TF-IDF, decomposed; rows are U S.
    Text,
    /// Co-occurrence in training sequences: positive PMI, decomposed; rows are U sqrt(S), as Levy & Goldberg advise.
    Interactions,
    /// A matrix in a file that [`embeddings::read`] reads.
    File(PathBuf),
}

impl From<&str> for Source {
    fn from(text: &str) -> Source {
        match text {
            "text" => Source::Text,
            "interactions" => Source::Interactions,
            path => Source::File(path.into()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Source::Text => f.write_str("text"),
            Source::Interactions => f.write_str("interactions"),
            Source::File(path) => path.display().fmt(f),
        }
    }
}

/// The embeddings of one source: rows of length 1, or of zeros where it says nothing of an item.
#[derive(Clone, Debug)]
pub struct Part {
    pub embeddings: Embeddings,
    /// Terms or contexts, and the share of their matrix's squared norm that is kept; not for a file.
    pub decomposed: Option<(usize, f64)>,
    pub zero_rows: usize,
}

/// Embeds the items of `corpus` by one source, in at most `dim` dimensions (a file keeps its own). `step` is called
/// with the number of steps done, at most [`STEPS`].
///
/// # Errors
/// The data has nothing of the kind, or the file is not for it.
pub fn part(
    corpus: &Corpus,
    source: &Source,
    dim: usize,
    seed: u64,
    step: impl FnMut(u64),
) -> Result<Part> {
    let items = &corpus.items;
    let count = items.names.len();
    let decompose = |matrix: &Csr| {
        let rank = dim.min(matrix.rows()).min(matrix.cols);
        svd::randomised(matrix, rank, seed, step)
    };
    match source {
        Source::Text => {
            let matrix = tfidf::matrix(count, &items.titles, &items.texts);
            ensure!(
                matrix.cols > 0,
                "{}: the items have no titles or texts with a word in common: embed from interactions or a file",
                corpus.name
            );
            let svd = decompose(&matrix);
            Ok(Part::of_svd(&svd, matrix.cols, |singular| singular))
        }
        Source::Interactions => {
            let matrix = ppmi::matrix(count, &corpus.train);
            ensure!(
                !matrix.value.is_empty(),
                "{}: no two items stand near each other in a training sequence: embed from text or a file",
                corpus.name
            );
            let svd = decompose(&matrix);
            Ok(Part::of_svd(&svd, matrix.cols, f64::sqrt))
        }
        Source::File(path) => Ok(Part::new(embeddings::read(path, &items.names)?, None)),
    }
}

impl Part {
    fn of_svd(svd: &Svd, columns: usize, scale: fn(f64) -> f64) -> Part {
        let scales: Vec<f64> = svd.singular.iter().map(|&s| scale(s)).collect();
        let rows = svd.u.data.chunks_exact(scales.len());
        let scaled = rows.flat_map(|row| row.iter().zip(&scales).map(|(u, s)| (u * s) as f32));
        let embeddings = Embeddings {
            dim: scales.len(),
            data: scaled.collect(),
        };
        Part::new(embeddings, Some((columns, svd.explained)))
    }

    /// Embeddings of length 1, or 0, that are there.
    pub fn given(embeddings: Embeddings) -> Part {
        let rows = embeddings.data.par_chunks_exact(embeddings.dim);
        Part {
            zero_rows: rows.filter(|row| is_zero(row)).count(),
            embeddings,
            decomposed: None,
        }
    }

    fn new(mut embeddings: Embeddings, decomposed: Option<(usize, f64)>) -> Part {
        let rows = embeddings.data.par_chunks_exact_mut(embeddings.dim);
        rows.for_each(normalise);
        Part {
            decomposed,
            ..Part::given(embeddings)
        }
    }
}

fn is_zero(row: &[f32]) -> bool {
    row.iter().all(|&x| x == 0.0)
}

/// The parts side by side, each times its weight.
pub fn concatenate(parts: &[(Part, f32)]) -> Embeddings {
    let dim = parts.iter().map(|(part, _)| part.embeddings.dim).sum();
    let items = parts.first().map_or(0, |(part, _)| {
        part.embeddings.data.len() / part.embeddings.dim
    });
    let mut data = Vec::with_capacity(items * dim);
    for item in 0..items as u32 {
        for (part, weight) in parts {
            data.extend(part.embeddings.row(item).iter().map(|x| weight * x));
        }
    }
    Embeddings { dim, data }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Items;
    use crate::data::Protocol;
    use crate::rng::{Rng, Stream};

    /// Two kinds of items, told apart by title and by who buys them; item 0 is never bought.
    fn corpus() -> Corpus {
        let mut rng = Rng::new(4, Stream::Test, 0, 0);
        let title = |item: u32| format!("{} no {}", ["pencil", "teapot"][item as usize % 2], item);
        let mut sequence = |user: u32| -> Vec<u32> {
            (0..6)
                .map(|_| 2 + user % 2 + 2 * rng.below(9) as u32)
                .collect()
        };
        Corpus {
            name: "two kinds".into(),
            items: Items {
                names: (0..20).map(|item| item.to_string()).collect(),
                titles: (0..20).map(title).collect(),
                ..Items::default()
            },
            protocol: Protocol::LeaveOneOut,
            users: Vec::new(),
            train: (0..60).map(&mut sequence).collect(),
            valid: Vec::new(),
            test: Vec::new(),
            max_history: 20,
            beam: 20,
            warnings: Vec::new(),
        }
    }

    fn make(corpus: &Corpus, source: Source, seed: u64) -> Part {
        part(corpus, &source, 4, seed, |_| ()).unwrap()
    }

    #[test]
    fn both_sources_find_the_kinds() {
        let corpus = corpus();
        for (source, zeros) in [(Source::Text, 0), (Source::Interactions, 2)] {
            let part = make(&corpus, source.clone(), 1);
            assert_eq!((part.embeddings.dim, part.zero_rows), (4, zeros));
            let neighbours = neighbours::Neighbours::new(&part.embeddings);
            for item in 2..20 {
                for (other, _) in neighbours.nearest(item, 5) {
                    assert_eq!(item % 2, other % 2, "{source}: {item} {other}");
                }
                let length: f32 = part.embeddings.row(item).iter().map(|x| x * x).sum();
                assert!((length - 1.0).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn a_seed_gives_the_same_bits() {
        let corpus = corpus();
        let data = |seed| make(&corpus, Source::Text, seed).embeddings.data;
        assert_eq!(data(1), data(1));
        assert_ne!(data(1), data(2));
    }

    #[test]
    fn parts_stand_side_by_side_with_their_weights() {
        let corpus = corpus();
        let text = make(&corpus, Source::Text, 1);
        let bought = make(&corpus, Source::Interactions, 1);
        let both = concatenate(&[(text.clone(), 1.0), (bought.clone(), 0.5)]);
        assert_eq!(both.dim, 8);
        assert_eq!(both.row(3)[..4], *text.embeddings.row(3));
        let halved = bought.embeddings.row(3).iter().map(|x| 0.5 * x);
        assert_eq!(both.row(3)[4..], halved.collect::<Vec<_>>());
        // What no sequence holds keeps its text.
        assert_eq!(both.row(0)[4..], [0.0; 4]);
        assert!(both.row(0)[..4].iter().any(|&x| x != 0.0));
    }

    #[test]
    fn data_without_such_a_source_is_refused() {
        let mut corpus = corpus();
        corpus.items.titles = Vec::new();
        corpus.train = vec![vec![3], vec![2, 2]];
        let refused = |source, wanted: &str| {
            let error = part(&corpus, &source, 4, 0, |_| ()).unwrap_err();
            assert!(error.to_string().contains(wanted), "{error}");
        };
        refused(Source::Text, "no titles or texts");
        refused(Source::Interactions, "no two items");
        refused(Source::from("nowhere.npy"), "nowhere.npy: cannot be read");
    }
}
