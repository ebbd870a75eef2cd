//! `vstar recommend`: histories in, items out.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::io::{BufWriter, Write, stderr, stdin, stdout};

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use super::trained;
use crate::config::EvalDecode;
use crate::data::Dataset;
use crate::data::histories::{Histories, Question};
use crate::decode::Decoded;
use crate::decode::search::{Decoding, Searcher};

/// Recommend items for histories: JSON lines on stdin, JSON lines on stdout
///
/// A line in is {"user": anything, "items": ["id", ...]} or just the array: a history of items, oldest
/// first, of which the model sees the latest. A line out, for each in the same order, is {"user": ..,
/// "items": [{"item": "id", "title": .., "sid": [..], "score": ..}, ...]}, best first. Items that
/// share a code come by popularity. The score is the code's log-probability, or its value where
/// eval.decode is ved. Lines that wait are decoded together, up to eval.batch of them (fewer where
/// the beam is widened); blank ones are skipped. The first bad line, such as one with an unknown
/// item, ends the run with an error, once the lines before it are answered.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vstar recommend --model runs/office --top-k 5 < histories.jsonl > items.jsonl
  echo '[\"B002VPE1WK\"]' | vstar recommend --model runs/office")]
pub struct Args {
    /// Items per history; the beam is widened to fit
    #[arg(long, value_name = "K", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1024))]
    top_k: u32,

    /// Leave out items that are in the history; a list may then be shorter
    #[arg(long)]
    exclude_seen: bool,

    #[command(flatten)]
    trained: trained::Args,
}

/// One line out.
#[derive(Serialize)]
struct Answer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a Value>,
    items: Vec<Recommended<'a>>,
}

#[derive(Serialize)]
struct Recommended<'a> {
    item: &'a str,
    title: Option<&'a str>,
    sid: &'a [u32],
    score: f32,
}

/// Recommends.
///
/// # Errors
/// A line that is no history, once those before it are answered.
pub fn run(args: Args) -> Result<()> {
    let mut trained = args.trained.load()?;
    for warning in &trained.data.warnings {
        let _ = writeln!(stderr(), "warning {warning}");
    }
    let (k, data) = (args.top_k as usize, &trained.data);
    // Every code has an item, so K codes hold K items, beside those that are left out.
    let left_out = if args.exclude_seen {
        data.max_history
    } else {
        0
    };
    let eval = &mut trained.config.eval;
    let protocol = if eval.beam == 0 { data.beam } else { eval.beam };
    eval.beam = protocol.max(k + left_out);
    // Fewer at once, so that a wider beam needs no more memory than an evaluation.
    eval.batch = (eval.batch * protocol / eval.beam).max(1);
    let decoding = Decoding::evaluation(&trained.config, data);
    let mut searcher = Searcher::new(&trained.model, data, &decoding)?;
    let shelf = Shelf {
        data,
        counts: data.item_counts(),
        top_k: k,
        exclude_seen: args.exclude_seen,
        valued: trained.config.eval.decode == EvalDecode::Ved,
    };
    let mut lines = Histories::new(stdin().lock());
    let mut out = BufWriter::new(stdout().lock());
    let mut answered = 0;
    loop {
        let (questions, fault) = lines.batch(&data.catalog, searcher.batch());
        if !questions.is_empty() {
            let histories: Vec<&[u32]> = questions
                .iter()
                .map(|q| &q.items[q.items.len().saturating_sub(data.max_history)..])
                .collect();
            let decoded =
                searcher.search(&trained.model, &data.catalog, &histories, 0, answered)?;
            for (question, found) in questions.iter().zip(&decoded) {
                let answer = shelf.answer(question, found);
                writeln!(out, "{}", serde_json::to_string(&answer)?)?;
            }
            out.flush()?;
            answered += questions.len() as u32;
        }
        match fault {
            Some(fault) => return Err(fault),
            None if questions.is_empty() => return Ok(()),
            None => {}
        }
    }
}

/// From codes to items.
struct Shelf<'a> {
    data: &'a Dataset,
    /// Training interactions per item.
    counts: Vec<u32>,
    top_k: usize,
    exclude_seen: bool,
    /// Whether candidates are ranked by value and not by log-probability.
    valued: bool,
}

impl Shelf<'_> {
    fn answer<'a>(&'a self, question: &'a Question, found: &Decoded) -> Answer<'a> {
        let catalog = &self.data.catalog;
        let seen: HashSet<u32> = match self.exclude_seen {
            true => question.items.iter().copied().collect(),
            false => HashSet::new(),
        };
        let mut items = Vec::with_capacity(self.top_k);
        for candidate in &found.candidates {
            let mut sharing = catalog.items_of(candidate.sid).to_vec();
            sharing.retain(|item| !seen.contains(item));
            sharing.sort_by_key(|&item| Reverse(self.counts[item as usize]));
            items.extend(sharing.iter().map(|&item| Recommended {
                item: catalog.name(item),
                title: catalog.title(item),
                sid: catalog.item_codes(item),
                score: match self.valued {
                    true => candidate.value,
                    false => candidate.logp,
                },
            }));
        }
        items.truncate(self.top_k);
        Answer {
            user: question.user.as_ref(),
            items,
        }
    }
}
