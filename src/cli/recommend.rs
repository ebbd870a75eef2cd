//! `vstar recommend`: histories in, items out.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::io::{BufRead, BufReader, BufWriter, Read, Write, stdin, stdout};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use super::trained;
use crate::catalog::Catalog;
use crate::config::EvalDecode;
use crate::data::Dataset;
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

/// One line in.
#[derive(Debug, PartialEq)]
struct Question {
    user: Option<Value>,
    /// Item indices, oldest first.
    items: Vec<u32>,
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
    let mut lines = Lines::new(stdin().lock());
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

/// Histories from a stream, as many at a time as have arrived.
struct Lines<R> {
    reader: BufReader<R>,
    number: usize,
}

impl<R: Read> Lines<R> {
    fn new(reader: R) -> Self {
        Lines {
            reader: BufReader::with_capacity(1 << 20, reader),
            number: 0,
        }
    }

    /// Waits for a line and takes the whole lines that have arrived with it, `most` at most. Nothing at the stream's
    /// end. The fault is that of the line after those returned.
    fn batch(&mut self, catalog: &Catalog, most: usize) -> (Vec<Question>, Option<anyhow::Error>) {
        let mut questions = Vec::new();
        let mut line = String::new();
        while questions.len() < most && (questions.is_empty() || self.has_line()) {
            line.clear();
            self.number += 1;
            let outcome = match self.reader.read_line(&mut line) {
                Ok(0) => break,
                Ok(_) if line.trim().is_empty() => continue,
                Ok(_) => question(&line, catalog),
                Err(error) => Err(error.into()),
            };
            match outcome {
                Ok(question) => questions.push(question),
                Err(fault) => {
                    let fault = fault.context(format!("stdin:{}", self.number));
                    return (questions, Some(fault));
                }
            }
        }
        (questions, None)
    }

    /// Whether the next line can be read without waiting.
    fn has_line(&self) -> bool {
        self.reader.buffer().contains(&b'\n')
    }
}

/// Reads one line.
fn question(line: &str, catalog: &Catalog) -> Result<Question> {
    const FORM: &str = "expected {\"user\": .., \"items\": [..]} or an array of item ids";
    let value: Value = serde_json::from_str(line)
        .map_err(|error| anyhow::anyhow!("not valid JSON (column {}): {FORM}", error.column()))?;
    let (user, ids) = match value {
        Value::Array(ids) => (None, ids),
        Value::Object(mut object) => {
            let user = object.remove("user");
            let Some(Value::Array(ids)) = object.remove("items") else {
                bail!("`items` is no array: {FORM}");
            };
            if let Some(key) = object.keys().next() {
                bail!("unknown key `{key}`: {FORM}");
            }
            (user, ids)
        }
        _ => bail!("{FORM}"),
    };
    ensure!(
        !ids.is_empty(),
        "the history is empty: there is nothing to recommend from"
    );
    let find = |id: &Value| {
        let name = match id {
            Value::String(name) => name.clone(),
            Value::Number(number) => number.to_string(),
            other => bail!("{other} is no item id (a string or an integer)"),
        };
        let item = catalog.item_of_name(&name);
        item.with_context(|| format!("item {name:?} is not in the catalog"))
    };
    Ok(Question {
        user,
        items: ids.iter().map(find).collect::<Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Items;
    use serde_json::json;
    use std::io;

    fn catalog() -> Catalog {
        Catalog::new(Items {
            names: ["a", "b", "7"].map(String::from).into(),
            levels: 1,
            codes: vec![0, 1, 2],
            ..Items::default()
        })
        .unwrap()
    }

    #[test]
    fn lines_have_two_forms() {
        let read = |line| question(line, &catalog());
        let items = vec![1, 0, 2];
        let got = read(r#"{"items": ["b", "a", 7], "user": {"id": 3}}"#).unwrap();
        let user = Some(json!({"id": 3}));
        assert_eq!(
            got,
            Question {
                user,
                items: items.clone()
            }
        );
        let got = read(r#"["b", "a", "7"]"#).unwrap();
        assert_eq!(got, Question { user: None, items });
        for (line, wanted) in [
            ("[\"a\"", "not valid JSON (column 4)"),
            ("3", "expected {"),
            ("[]", "empty"),
            ("{\"user\": 3}", "`items` is no array"),
            ("{\"items\": [\"a\"], \"k\": 1}", "unknown key `k`"),
            ("[\"a\", \"c\"]", "item \"c\" is not in the catalog"),
            ("[[1]]", "[1] is no item id"),
        ] {
            let error = format!("{:#}", read(line).unwrap_err());
            assert!(error.contains(wanted), "{line}: {error}");
        }
    }

    /// Hands out one piece per read, as a pipe does.
    struct Pieces(Vec<&'static [u8]>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0);
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    #[test]
    fn a_batch_is_what_has_arrived() {
        let catalog = catalog();
        let mut lines = Lines::new(Pieces(vec![
            b"[\"a\"]\n[\"b\"]\n[\"",
            b"a\"]\n",
            b"[\"a\"]\n\n",
            b"\n[\"a\"]\n[\"b\"]\n[\"a\"]\n[\"b\"]",
        ]));
        let mut sizes = Vec::new();
        loop {
            let (questions, fault) = lines.batch(&catalog, 3);
            assert!(fault.is_none());
            sizes.push(questions.len());
            if questions.is_empty() {
                break;
            }
        }
        assert_eq!(sizes, [2, 1, 1, 3, 1, 0]);
    }

    #[test]
    fn a_fault_has_its_line_and_leaves_those_before_it() {
        let mut lines = Lines::new(&b"[\"a\"]\n\n[\"x\"]\n[\"b\"]\n"[..]);
        let (questions, fault) = lines.batch(&catalog(), 9);
        assert_eq!(questions.len(), 1);
        let fault = format!("{:#}", fault.unwrap());
        assert_eq!(fault, "stdin:3: item \"x\" is not in the catalog");
    }
}
