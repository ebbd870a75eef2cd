//! Every setting of a run: defaults, below a TOML file, below `key=value` overrides.
//!
//! `settings` declares each setting once; reading, checking, writing and help all come from that
//! table. An error is one line that names the place (`file:line` or the command line), the key, the
//! value and what is allowed.

mod contradictions;
mod kinds;
mod settings;

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use toml::de::{DeTable, DeValue};

pub use settings::*;

impl Config {
    /// The defaults, overlaid with `file` and then with `overrides` (`key=value`, later ones win).
    ///
    /// Values of overrides are TOML, but texts need no quotes: `rl.decode=beam`.
    ///
    /// # Errors
    /// The first unknown key, value that is not allowed, or pair of settings that contradict each
    /// other.
    pub fn load(file: Option<&Path>, overrides: &[String]) -> Result<Config> {
        match file {
            None => Self::load_text("", "", overrides),
            Some(path) => {
                let name = path.display();
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the configuration {name}"))?;
                Self::load_text(&name.to_string(), &text, overrides)
            }
        }
    }

    /// As [`Config::load`], from the text of a file and the name to call it by in messages.
    pub fn load_text(name: &str, text: &str, overrides: &[String]) -> Result<Config> {
        let mut loader = Loader::default();
        loader.file(name, text)?;
        for text in overrides {
            loader.override_with(text)?;
        }
        match loader.config.contradiction() {
            None => Ok(loader.config),
            Some((keys, problem)) => bail!("{}{problem}", loader.place(keys)),
        }
    }

    /// The first setting that differs in `other`: `rl.lr = 0.1 there, 0.2`.
    pub fn difference(&self, other: &Config) -> Option<String> {
        let differs = |s: &&Setting| (s.get)(self) != (s.get)(other);
        let setting = SETTINGS.iter().find(differs)?;
        let [there, here] = [self, other].map(setting.get);
        Some(format!("{} = {there} there, {here}", setting.key))
    }

    /// The whole configuration as TOML, each setting under its doc and what it allows.
    /// [`Config::load`] reads it back to an equal configuration.
    pub fn resolved_toml(&self) -> String {
        let mut text = String::new();
        let mut current = "";
        for setting in SETTINGS {
            let (section, name) = setting.key.rsplit_once('.').unwrap_or(("", setting.key));
            if section != current {
                let about = SECTIONS.iter().find(|(known, _)| *known == section);
                let about = about.map_or("", |(_, about)| about);
                let _ = writeln!(text, "\n# {about}.\n[{section}]");
                current = section;
            }
            let (doc, allowed, value) = (setting.doc, (setting.allowed)(), (setting.get)(self));
            let _ = writeln!(text, "# {doc} ({allowed}).\n{name} = {value}");
        }
        text
    }
}

/// A configuration in the making, with the place each setting was given at.
#[derive(Default)]
struct Loader {
    config: Config,
    places: HashMap<&'static str, String>,
}

impl Loader {
    fn file(&mut self, name: &str, text: &str) -> Result<()> {
        let place = |offset: usize| {
            let line = 1 + text[..offset].matches('\n').count();
            format!("{name}:{line}: ")
        };
        let table = DeTable::parse(text).map_err(|error| {
            let place = place(error.span().map_or(0, |span| span.start));
            let problem = error.message().trim().replace('\n', ", ");
            anyhow::anyhow!("{place}not valid TOML: {problem}")
        })?;

        for (key, value) in table.get_ref() {
            let place_of_key = place(key.span().start);
            let entries = match value.get_ref() {
                DeValue::Table(entries) if is_section(key.get_ref()) => entries,
                other => {
                    let raw = &text[value.span()];
                    self.set(key.get_ref(), other, raw, place_of_key)?;
                    continue;
                }
            };
            for (name, value) in entries {
                let dotted = format!("{}.{}", key.get_ref(), name.get_ref());
                let raw = &text[value.span()];
                self.set(&dotted, value.get_ref(), raw, place(name.span().start))?;
            }
        }
        Ok(())
    }

    fn override_with(&mut self, text: &str) -> Result<()> {
        let place = String::from("command line: ");
        let Some((key, raw)) = text.split_once('=') else {
            bail!("{place}`{text}` is not a setting: write key=value, for example sft.lr=0.001");
        };
        let (key, raw) = (key.trim(), raw.trim());
        let quoted = raw.starts_with(['"', '\'']);
        let bare = || DeValue::String(raw.into());
        let value = match DeValue::parse(raw) {
            _ if is_text(key) && !quoted => bare(),
            Ok(value) => value.into_inner(),
            Err(_) => bare(),
        };
        self.set(key, &value, raw, place)
    }

    /// Sets one setting; `raw` is the value as written, `place` where, as a prefix of a message.
    fn set(&mut self, key: &str, value: &DeValue, raw: &str, place: String) -> Result<()> {
        let Some(setting) = find(key) else {
            if is_section(key) {
                let inside = |setting: &&Setting| setting.key.split('.').next() == Some(key);
                let example = SETTINGS.iter().find(inside).map_or(key, |first| first.key);
                bail!("{place}`{key}` is a section: give its settings, for example {example}");
            }
            bail!(
                "{place}unknown key `{key}`: the nearest known one is `{}`",
                nearest(key)
            );
        };
        if !(setting.set)(&mut self.config, value) {
            let raw = raw.split_whitespace().collect::<Vec<_>>().join(" ");
            bail!(
                "{place}{key} = {raw} is not allowed: expected {}",
                (setting.allowed)()
            );
        }
        self.places.insert(setting.key, place);
        Ok(())
    }

    /// Where the first of `keys` that was given, was given; nothing if all are defaults.
    fn place(&self, keys: &[&'static str]) -> &str {
        keys.iter()
            .find_map(|key| self.places.get(key))
            .map_or("", String::as_str)
    }
}

fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

fn is_section(key: &str) -> bool {
    SECTIONS.iter().any(|(section, _)| *section == key)
}

fn is_text(key: &str) -> bool {
    find(key).is_some_and(|setting| setting.text)
}

/// The known key or section that `key` most likely means: the right name in the wrong section, else
/// the fewest edits away.
fn nearest(key: &str) -> &'static str {
    // What is longer than any key is near none; edits cost the product of the lengths.
    let key = &*key.chars().take(100).collect::<String>();
    let name = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let keys = SETTINGS.iter().map(|setting| setting.key);
    let sections = SECTIONS.iter().map(|(section, _)| *section);
    keys.chain(sections)
        .min_by_key(|known| {
            let edits = strsim::damerau_levenshtein(key, known);
            (name(known) != name(key), edits)
        })
        .expect("there are settings")
}
