//! Printed Python values, which some dumps have in place of JSON: `{'asin': 'B1', 'also': ["it's", 2], 'price': None}`, and
//! what Python's own JSON has that others' has not: `NaN`, and halves of surrogate pairs.

use serde_json::{Map, Number, Value};

/// Deepest nesting accepted.
const MAX_DEPTH: usize = 64;

/// Parses a dict, list, tuple, string, number, `True`, `False`, `None` or any JSON.
///
/// # Errors
/// Anything else; the message has the column, from 1.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut parser = Parser { text, at: 0 };
    let value = parser.value(0)?;
    match parser.peek() {
        None => Ok(value),
        Some(_) => Err(parser.wanted("the end of the line")),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    /// The next character that is not blank, not taken yet.
    fn peek(&mut self) -> Option<char> {
        self.at = self.text.len() - self.rest().trim_start().len();
        self.rest().chars().next()
    }

    /// Takes `wanted` if it is next.
    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += if found { wanted.len_utf8() } else { 0 };
        found
    }

    fn need(&mut self, wanted: char) -> Result<(), String> {
        match self.take(wanted) {
            true => Ok(()),
            false => Err(self.wanted(&format!("{wanted:?}"))),
        }
    }

    fn wanted(&self, what: &str) -> String {
        let column = self.text[..self.at].chars().count() + 1;
        match self.rest().chars().next() {
            Some(found) => format!("expected {what} at column {column}, found {found:?}"),
            None => {
                format!("expected {what} at column {column}, but the line ends: it is cut short")
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > MAX_DEPTH {
            return Err(self.wanted("less nesting"));
        }
        match self.peek() {
            Some('{') => self.dict(depth),
            Some('[') => self.sequence('[', ']', depth),
            Some('(') => self.sequence('(', ')', depth),
            Some('\'' | '"') => Ok(Value::String(self.string()?)),
            Some('u') if self.rest()[1..].starts_with(['\'', '"']) => {
                self.at += 1;
                Ok(Value::String(self.string()?))
            }
            _ => self.word(),
        }
    }

    fn dict(&mut self, depth: usize) -> Result<Value, String> {
        let mut map = Map::new();
        self.need('{')?;
        while !self.take('}') {
            let key = match self.value(depth + 1)? {
                Value::String(key) => key,
                other => other.to_string(),
            };
            self.need(':')?;
            map.insert(key, self.value(depth + 1)?);
            if !self.take(',') {
                self.need('}')?;
                break;
            }
        }
        Ok(Value::Object(map))
    }

    fn sequence(&mut self, open: char, close: char, depth: usize) -> Result<Value, String> {
        let mut values = Vec::new();
        self.need(open)?;
        while !self.take(close) {
            values.push(self.value(depth + 1)?);
            if !self.take(',') {
                self.need(close)?;
                break;
            }
        }
        Ok(Value::Array(values))
    }

    /// A number or a constant. Numbers JSON has not (`nan`, `inf`) are null.
    fn word(&mut self) -> Result<Value, String> {
        let length = self
            .rest()
            .find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c)))
            .unwrap_or(self.rest().len());
        let word = &self.rest()[..length];
        let value = match word {
            "True" | "true" => Value::Bool(true),
            "False" | "false" => Value::Bool(false),
            "None" | "null" => Value::Null,
            _ => match (word.parse::<i64>(), word.parse::<f64>()) {
                (Ok(number), _) => number.into(),
                (_, Ok(number)) => Number::from_f64(number).map_or(Value::Null, Value::Number),
                _ => return Err(self.wanted("a Python value")),
            },
        };
        self.at += length;
        Ok(value)
    }

    fn string(&mut self) -> Result<String, String> {
        let quote = self.rest().chars().next().expect("a quote was seen");
        self.at += 1;
        let mut string = String::new();
        loop {
            let plain = self.rest().find([quote, '\\']);
            let Some(length) = plain else {
                self.at = self.text.len();
                return Err(self.wanted(&format!("{quote:?}")));
            };
            string.push_str(&self.text[self.at..self.at + length]);
            self.at += length + 1;
            if self.text[..self.at].ends_with(quote) {
                return Ok(string);
            }
            self.escape(&mut string)?;
        }
    }

    /// The number that so many hexadecimal digits from byte `start` on say.
    fn hexadecimal(&self, start: usize, digits: usize) -> Option<u32> {
        (self.text.get(start..start + digits))
            .filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|code| u32::from_str_radix(code, 16).ok())
    }

    /// What follows a backslash.
    fn escape(&mut self, string: &mut String) -> Result<(), String> {
        let Some(kind) = self.rest().chars().next() else {
            return Err(self.wanted("an escape"));
        };
        let digits = match kind {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        let start = self.at + kind.len_utf8();
        let plain = match kind {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'b' => '\u{8}',
            'f' => '\u{c}',
            '\\' | '\'' | '"' | '/' => kind,
            'x' | 'u' | 'U' => {
                let Some(code) = self.hexadecimal(start, digits) else {
                    return Err(self.wanted(&format!("\\{kind} and {digits} hexadecimal digits")));
                };
                let second = match kind {
                    'u' if self.text[start + digits..].starts_with("\\u") => {
                        self.hexadecimal(start + digits + 2, 4)
                    }
                    _ => None,
                };
                if let Some(character) = second.and_then(|second| of_pair(code, second)) {
                    string.push(character);
                    self.at = start + digits + 6;
                    return Ok(());
                }
                // Half of a pair by itself, as some texts were cut, is no character.
                char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            // As Python does: an escape it does not know is left as it is.
            other => {
                string.push('\\');
                other
            }
        };
        string.push(plain);
        self.at = start + digits;
        Ok(())
    }
}

/// The character that two halves of a surrogate pair make.
fn of_pair(first: u32, second: u32) -> Option<char> {
    match (first, second) {
        (0xd800..0xdc00, 0xdc00..0xe000) => {
            char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_those_python_printed() {
        for (text, wanted) in [
            (
                r#"{'asin': 'B1', "t": "it's", 'p': 3.5, 'n': -2, 'r': {'T & G': 7}}"#,
                json!({"asin": "B1", "t": "it's", "p": 3.5, "n": -2, "r": {"T & G": 7}}),
            ),
            (
                r"['a\'b', u'\xe9\u20ac\U0001F600', 'c\\', '\n\d', '']",
                json!(["a'b", "é€😀", "c\\", "\n\\d", ""]),
            ),
            (
                "[True, False, None, nan, (1,), [], {}, 1e3,]",
                json!([true, false, null, null, [1], [], {}, 1000.0]),
            ),
            (" 'ü' ", json!("ü")),
            (
                r#"{"a": [true, false, null, NaN, Infinity, -Infinity], "b\/": "\b\f"}"#,
                json!({"a": [true, false, null, null, null, null], "b/": "\u{8}\u{c}"}),
            ),
            // A pair, its halves alone, and in the wrong order.
            (
                r#"["\ud83d\ude00", "\ud83d", "\ude00\ud83d", '\ud83dx', u'\ud83d\u00e9']"#,
                json!([
                    "😀",
                    "\u{fffd}",
                    "\u{fffd}\u{fffd}",
                    "\u{fffd}x",
                    "\u{fffd}é"
                ]),
            ),
        ] {
            assert_eq!(parse(text).unwrap(), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_none_is_refused_with_its_column() {
        for (text, wanted) in [
            ("{'a': 'b", "at column 9, but the line ends"),
            ("{'a' 1}", "expected ':' at column 6, found '1'"),
            ("['ü', x]", "a Python value at column 7"),
            ("[1, 2", "expected ']' at column 6"),
            ("[1] 2", "the end of the line at column 5"),
            (r"'\x4g'", "2 hexadecimal digits"),
            ("", "a Python value at column 1"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse(&deep).unwrap_err().contains("less nesting"));
    }
}
