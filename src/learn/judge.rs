//! The rewards of decoded candidates, from the settings and the data (spec 5).

use super::rewards::{self, Embeddings, Group, Weights};
use crate::config::Config;
use crate::data::Dataset;
use crate::decode::Candidate;
use crate::eval::system::SidTables;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;

/// What a candidate and its prefixes are worth.
pub struct Rewarded {
    /// [candidates]
    pub rewards: Vec<f32>,
    /// [candidates, L] step rewards, for the value head only.
    pub steps: Vec<f32>,
    /// Whether the target is among the candidates.
    pub hit: bool,
}

impl Rewarded {
    /// Whether all candidates got the same reward: nothing to learn for the policy.
    pub fn is_flat(&self) -> bool {
        self.rewards.windows(2).all(|w| w[0] == w[1])
    }
}

/// Everything the rewards of a run depend on.
pub struct Judge<'a> {
    data: &'a Dataset,
    tables: SidTables,
    weights: Weights,
    level_weights: Vec<f32>,
    max_count: u32,
    /// Worth per item.
    worth: Vec<f32>,
}

impl<'a> Judge<'a> {
    /// Errors: a semantic reward without item embeddings; a worth table that cannot be read or names unknown items.
    pub fn new(config: &Config, data: &'a Dataset) -> Result<Judge<'a>> {
        let r = &config.reward;
        if r.semantic > 0.0 && data.catalog.embeddings().is_none() {
            bail!("reward.semantic = {} needs item embeddings, which this data has not: set it to 0", r.semantic);
        }
        let tables = SidTables::new(data);
        Ok(Judge {
            data,
            max_count: tables.popularity.iter().max().map_or(0, |&n| n as u32),
            tables,
            weights: Weights {
                rule: r.rule,
                rank: r.rank,
                semantic: r.semantic,
                novelty: r.novelty,
                value: r.value,
            },
            level_weights: rewards::level_weights(&config.value.level_weights, data.catalog.levels()),
            worth: match r.value_table.as_str() {
                "" => data.catalog.worth().to_vec(),
                path => worth_table(Path::new(path), data)?,
            },
        })
    }

    /// Rewards of one prompt's candidates, given the item that followed.
    pub fn reward(&self, target: u32, candidates: &[Candidate]) -> Rewarded {
        let catalog = &self.data.catalog;
        let target_sid = catalog.item_sid(target);
        let target_tokens = catalog.sid_tokens(target_sid);
        let tokens: Vec<u32> = candidates.iter().flat_map(|c| c.tokens.iter().copied()).collect();
        let logp: Vec<f32> = candidates.iter().map(|c| c.logp).collect();
        let counts: Vec<u32> = candidates
            .iter()
            .map(|c| self.tables.popularity[c.sid as usize] as u32)
            .collect();
        let embedding = |sid: u32| match &self.tables.embeddings {
            Some((dim, rows)) => &rows[sid as usize * dim..][..*dim],
            None => &[],
        };
        let vectors: Vec<f32> = candidates.iter().flat_map(|c| embedding(c.sid).to_vec()).collect();
        let embeddings = Embeddings {
            candidates: &vectors,
            target: embedding(target_sid),
        };
        let group = Group {
            candidates: &tokens,
            target: target_tokens,
            logp: &logp,
            embeddings,
            counts: &counts,
            max_count: self.max_count,
            worth: self.worth[target as usize],
        };
        Rewarded {
            rewards: rewards::total(&group, &self.weights),
            steps: rewards::step_rewards(&tokens, target_tokens, embeddings, &self.level_weights),
            hit: candidates.iter().any(|c| c.sid == target_sid),
        }
    }
}

/// A user's worth per item: a JSON object from item name to number; items it does not name are worth 0.
fn worth_table(path: &Path, data: &Dataset) -> Result<Vec<f32>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let table: BTreeMap<String, f32> = serde_json::from_str(&text)
        .with_context(|| format!("{shown}: expected a JSON object from item to number"))?;
    let mut worth = vec![0.0; data.catalog.items()];
    for (name, value) in table {
        let item = data
            .catalog
            .item_of_name(&name)
            .with_context(|| format!("{shown}: item `{name}` is not in the catalog"))?;
        if !(value.is_finite() && value >= 0.0) {
            bail!("{shown}: item `{name}` has worth {value}: expected 0 or more");
        }
        worth[item as usize] = value;
    }
    Ok(worth)
}
