//! What shops write about an item, in the keys that public datasets have for it.

use serde::Deserialize;
use serde_json::Value;

/// A description of an item; keys that are not here are skipped. A value is a string or a list, nested or not, of
/// strings; anything else says nothing. Of two keys for the same the first that says something counts.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Described {
    title: Value,
    brand: Value,
    store: Value,
    categories: Value,
    category: Value,
    genres: Value,
    features: Value,
    feature: Value,
    description: Value,
}

impl Described {
    /// The title in one line; empty without one.
    pub fn title(&self) -> String {
        line(&[&self.title], " ")
    }

    /// What an encoder should read beside the title: brand, categories, features and description, a line each where
    /// they say anything.
    pub fn text(&self) -> String {
        let lines = [
            line(&[&self.brand, &self.store], ", "),
            line(&[&self.categories, &self.category, &self.genres], ", "),
            line(&[&self.features, &self.feature], " "),
            line(&[&self.description], " "),
        ];
        let said = lines.into_iter().filter(|line| !line.is_empty());
        said.collect::<Vec<_>>().join("\n")
    }

    /// With every text of it as `change` makes it.
    pub fn map(mut self, change: &impl Fn(&str) -> String) -> Described {
        let all = [
            &mut self.title,
            &mut self.brand,
            &mut self.store,
            &mut self.categories,
            &mut self.category,
            &mut self.genres,
            &mut self.features,
            &mut self.feature,
            &mut self.description,
        ];
        all.into_iter().for_each(|value| map(value, change));
        self
    }
}

/// What the first of `values` says that says anything, in one line.
fn line(values: &[&Value], separator: &str) -> String {
    let said = values.iter().map(|value| {
        let texts = strings(value).into_iter().map(|text| {
            let words: Vec<&str> = text.split_whitespace().collect();
            words.join(" ")
        });
        let texts: Vec<String> = texts.filter(|text| !text.is_empty()).collect();
        texts.join(separator)
    });
    let mut said = said.filter(|text| !text.is_empty());
    said.next().unwrap_or_default()
}

fn map(value: &mut Value, change: &impl Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = change(text),
        Value::Array(values) => values.iter_mut().for_each(|value| map(value, change)),
        _ => {}
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
