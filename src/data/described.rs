//! What shops write about an item, in the keys that public datasets have for it.

use serde::Deserialize;
use serde_json::Value;

/// A description of an item; keys that are not here are skipped. A value is a string or a list, nested or not, of
/// strings; anything else says nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Described {
    title: Value,
    #[serde(alias = "store")]
    brand: Value,
    #[serde(alias = "category", alias = "genres")]
    categories: Value,
    #[serde(alias = "feature")]
    features: Value,
    description: Value,
}

impl Described {
    /// The title in one line; empty without one.
    pub fn title(&self) -> String {
        let title = strings(&self.title).join(" ");
        title.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// What an encoder should read beside the title: brand, categories, features and description, a line each where
    /// they say anything.
    pub fn text(&self) -> String {
        let lines = [
            strings(&self.brand).join(", "),
            strings(&self.categories).join(", "),
            strings(&self.features).join(" "),
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
