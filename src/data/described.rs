//! What shops write about an item, in the keys that public datasets have for it.

use serde::Deserialize;
use serde_json::Value;

/// A description of an item; keys that are not here are skipped. A value is a string or a list, nested or not, of
/// strings.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Described {
    #[serde(default)]
    pub title: String,
    #[serde(default)]
    brand: Value,
    #[serde(default)]
    categories: Value,
    #[serde(default)]
    description: Value,
}

impl Described {
    /// What an encoder should read beside the title: brand, categories and description, a line each where they say
    /// anything.
    pub fn text(&self) -> String {
        let lines = [
            strings(&self.brand).join(", "),
            strings(&self.categories).join(", "),
            strings(&self.description).join(" "),
        ];
        let lines: Vec<&str> = (lines.iter().map(|line| line.trim()))
            .filter(|line| !line.is_empty())
            .collect();
        lines.join("\n")
    }
}

/// The strings in a value, in order.
fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(values) => values.iter().flat_map(strings).collect(),
        _ => Vec::new(),
    }
}
