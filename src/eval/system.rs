//! Evaluating a model on a dataset: decode every example, look the candidates up, score the ranked lists.

use super::baseline::popularity_ranking;
use super::metrics::{Embeddings, Evaluation, Evaluator, INVALID, SidInfo};
use crate::data::{Dataset, Example};
use crate::decode::search::Searcher;
use crate::model::Model;
use anyhow::Result;

/// What the metrics know of each SID, in the order of the catalog's SIDs.
pub struct SidTables {
    levels: usize,
    codes: Vec<u32>,
    items: Vec<u32>,
    /// Training interactions with the SID's items.
    pub popularity: Vec<u64>,
    /// Mean item embedding of each SID, and its width.
    pub embeddings: Option<(usize, Vec<f32>)>,
}

impl SidTables {
    pub fn new(data: &Dataset) -> SidTables {
        let catalog = &data.catalog;
        let counts = data.item_counts();
        let sids = 0..catalog.sids() as u32;
        let means =
            |e: &crate::catalog::Embeddings| (e.dim, catalog.sid_means(e.dim, |item| e.row(item)));
        let embeddings = catalog.embeddings().map(means);
        SidTables {
            levels: catalog.levels(),
            codes: sids
                .clone()
                .flat_map(|s| catalog.sid_codes(s).to_vec())
                .collect(),
            items: sids
                .clone()
                .map(|s| catalog.items_of(s).len() as u32)
                .collect(),
            popularity: sids
                .map(|s| {
                    let items = catalog.items_of(s).iter();
                    items.map(|&i| counts[i as usize] as u64).sum()
                })
                .collect(),
            embeddings,
        }
    }

    fn info(&self) -> SidInfo<'_> {
        SidInfo {
            levels: self.levels,
            codes: &self.codes,
            items: &self.items,
            popularity: &self.popularity,
            embeddings: self
                .embeddings
                .as_ref()
                .map(|(dim, rows)| Embeddings { dim: *dim, rows }),
        }
    }
}

/// Decodes and scores every example. Returns the evaluation and the backbone tokens run after prefill; `progress` hears
/// how many examples are done. Errors: the device's, or that of `progress`, which ends it.
pub fn evaluate(
    model: &Model,
    data: &Dataset,
    tables: &SidTables,
    searcher: &mut Searcher,
    examples: &[Example],
    mut progress: impl FnMut(usize) -> Result<()>,
) -> Result<(Evaluation, u64)> {
    let catalog = &data.catalog;
    let beam = searcher.beam();
    let mut evaluator = Evaluator::new(tables.info(), beam)?;
    let (mut tokens, mut done) = (0, 0);
    for batch in examples.chunks(searcher.batch()) {
        let histories: Vec<&[u32]> = batch.iter().map(|e| e.history.as_slice()).collect();
        let decoded = searcher.search(model, catalog, &histories, 0, done as u32)?;
        for (example, found) in batch.iter().zip(&decoded) {
            tokens += found.cost as u64;
            let ranked: Vec<u32> = found
                .candidates
                .iter()
                // Looked up anew, so that the count of invalid SIDs is a measurement.
                .map(|c| catalog.sid_of_tokens(&c.tokens).unwrap_or(INVALID))
                .collect();
            let worth = catalog.worth()[example.target as usize];
            evaluator.add(&ranked, catalog.item_sid(example.target), worth)?;
        }
        done += batch.len();
        progress(done)?;
    }
    Ok((evaluator.finish()?, tokens))
}

/// The popularity baseline on the same examples.
pub fn baseline_evaluation(
    data: &Dataset,
    tables: &SidTables,
    examples: &[Example],
    beam: usize,
) -> Result<Evaluation> {
    let ranking = popularity_ranking(&tables.popularity, beam);
    let mut evaluator = Evaluator::new(tables.info(), beam)?;
    for example in examples {
        let worth = data.catalog.worth()[example.target as usize];
        evaluator.add(&ranking, data.catalog.item_sid(example.target), worth)?;
    }
    evaluator.finish()
}
