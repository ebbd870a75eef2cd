//! Histories as JSON lines, one question each: what `vstar recommend` is asked.

use std::io::{BufReader, Read};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::read;
use crate::catalog::Catalog;

/// One line.
#[derive(Debug, PartialEq)]
pub struct Question {
    /// Whatever the line says of the user.
    pub user: Option<Value>,
    /// Item indices, oldest first, at least one.
    pub items: Vec<u32>,
}

/// Histories from a stream, as many at a time as have arrived.
pub struct Histories<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    number: usize,
}

impl<R: Read> Histories<R> {
    /// Those of `reader`, which errors call stdin.
    pub fn new(reader: R) -> Self {
        Histories {
            reader: BufReader::with_capacity(1 << 20, reader),
            line: Vec::new(),
            number: 0,
        }
    }

    /// Waits for a line and takes the whole lines that have arrived with it, `most` at most. Nothing at the stream's
    /// end. The fault is that of the line after those returned.
    pub fn batch(
        &mut self,
        catalog: &Catalog,
        most: usize,
    ) -> (Vec<Question>, Option<anyhow::Error>) {
        let mut questions = Vec::new();
        while questions.len() < most && (questions.is_empty() || self.has_line()) {
            self.number += 1;
            let outcome = match read::next_line(&mut self.reader, &mut self.line) {
                Ok(false) => break,
                Ok(true) if self.line.trim_ascii().is_empty() => continue,
                Ok(true) => question(&self.line, catalog),
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
fn question(line: &[u8], catalog: &Catalog) -> Result<Question> {
    const FORM: &str = "expected {\"user\": .., \"items\": [..]} or an array of item ids";
    let value: Value = serde_json::from_slice(line)
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
        let read = |line: &str| question(line.as_bytes(), &catalog());
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
        let mut lines = Histories::new(Pieces(vec![
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
        let mut lines = Histories::new(&b"[\"a\"]\n\n[\"x\"]\n[\"b\"]\n"[..]);
        let (questions, fault) = lines.batch(&catalog(), 9);
        assert_eq!(questions.len(), 1);
        let fault = format!("{:#}", fault.unwrap());
        assert_eq!(fault, "stdin:3: item \"x\" is not in the catalog");
    }
}
