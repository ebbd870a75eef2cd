//! What candidates are worth, from the settings and the data (spec 5): the tables that [`crate::kernels::reward`] reads.

use crate::config::Config;
use crate::data::Dataset;
use crate::device::{Buffer, DeviceRef, Slice, Stream};
use crate::eval::system::SidTables;
use crate::forest::NONE;
use crate::kernels::reward::{self, Reward, Weights};
use crate::kernels::tree::ASKED;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;

/// Everything the rewards of a run depend on.
pub struct Judge {
    weights: Weights,
    /// Level weights, then the novelty of each SID.
    sids: Buffer,
    /// [S, D] mean embedding of each SID's items; one word without embeddings.
    embeddings: Buffer,
    dim: usize,
    levels: usize,
    /// Worth per item.
    worth: Vec<f32>,
}

impl Judge {
    /// Errors: a semantic reward without item embeddings; a worth table that cannot be read or names unknown items; out
    /// of memory.
    pub fn new(device: &DeviceRef, config: &Config, data: &Dataset) -> Result<Judge> {
        let r = &config.reward;
        if r.semantic > 0.0 && data.catalog.embeddings().is_none() {
            bail!(
                "reward.semantic = {} needs item embeddings, which this data has not: set it to 0",
                r.semantic
            );
        }
        let tables = SidTables::new(data);
        let levels = data.catalog.levels();
        let mut sids = level_weights(&config.value.level_weights, levels);
        sids.extend(novelty(&tables.popularity));
        let (dim, embeddings) = match &tables.embeddings {
            Some((dim, rows)) => (*dim, rows.as_slice()),
            None => (0, [0.0].as_slice()),
        };
        Ok(Judge {
            weights: Weights {
                rule: r.rule as f32,
                rank: r.rank as f32,
                semantic: r.semantic as f32,
                repeat: r.repeat as f32,
                novelty: r.novelty as f32,
                value: r.value as f32,
                teacher: r.teacher as f32,
            },
            sids: Buffer::with_f32(device, "level weights and novelty", &sids)?,
            embeddings: Buffer::with_f32(device, "SID embeddings", embeddings)?,
            dim,
            levels,
            worth: match r.value_table.as_str() {
                "" => data.catalog.worth().to_vec(),
                path => worth_table(Path::new(path), data)?,
            },
        })
    }

    /// Appends what [`crate::kernels::tree`] wants to know of a question: the rows of its prompt, and the item that
    /// followed, if it is known.
    pub fn ask(
        &self,
        data: &Dataset,
        rows: std::ops::Range<usize>,
        target: Option<u32>,
        to: &mut Vec<u32>,
    ) {
        let sid = target.map(|item| data.catalog.item_sid(item));
        let worth = target.map_or(0.0, |item| self.worth[item as usize]);
        let wanted = sid.unwrap_or(NONE);
        let words: [u32; ASKED] = [rows.start as u32, rows.end as u32, wanted, worth.to_bits()];
        to.extend(words);
        match sid {
            Some(sid) => to.extend(data.catalog.sid_tokens(sid)),
            None => to.resize(to.len() + self.levels, NONE),
        }
    }

    /// Records the rewards of `prompts` prompts with up to `group` candidates each; a teacher's shares stand in `rewards`.
    pub fn record(
        &self,
        s: &mut Stream,
        [picked, scores, asked, rows]: [Slice; 4],
        [rewards, steps]: [Slice; 2],
        prompts: usize,
        group: usize,
    ) {
        let on = Reward {
            picked,
            scores,
            asked,
            rows,
            sids: self.sids.all(),
            embeddings: self.embeddings.all(),
            rewards,
            steps,
        };
        let params = reward::Params {
            prompts: prompts as u32,
            group: group as u32,
            levels: self.levels as u32,
            dim: self.dim as u32,
            rule: self.weights.rule,
            rank: self.weights.rank,
            semantic: self.weights.semantic,
            repeat: self.weights.repeat,
            novelty: self.weights.novelty,
            value: self.weights.value,
            teacher: self.weights.teacher,
        };
        reward::reward(s, on, params);
    }
}

/// Negative log-popularity, scaled into [0, 1]: 1 for an SID never seen in training, 0 for the most popular one.
fn novelty(counts: &[u64]) -> impl Iterator<Item = f32> + '_ {
    let max = counts.iter().copied().max().unwrap_or(0);
    let most = (max as f64).ln_1p().max(f64::MIN_POSITIVE);
    let popularity = counts
        .iter()
        .map(move |&count| (count as f64).ln_1p() / most);
    popularity.map(|p| (1.0 - p) as f32)
}

/// Step-reward weights of L levels: `points`, spread evenly over [1, L], interpolated linearly. The points themselves
/// if there are L of them; the last one for a single level.
fn level_weights(points: &[f64], levels: usize) -> Vec<f32> {
    assert!(!points.is_empty(), "no level weights");
    let last = points.len() - 1;
    (0..levels)
        .map(|l| {
            let at = match levels {
                1 => last as f64,
                _ => l as f64 * last as f64 / (levels - 1) as f64,
            };
            let below = (at as usize).min(last.saturating_sub(1));
            let above = (below + 1).min(last);
            let share = at - below as f64;
            ((1.0 - share) * points[below] + share * points[above]) as f32
        })
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((*g as f64 - w).abs() < 1e-6, "{got:?} is not {want:?}");
        }
    }

    #[test]
    fn novelty_runs_from_never_seen_to_most_popular() {
        let novelty = |counts| novelty(counts).collect::<Vec<f32>>();
        assert_close(&novelty(&[0, 9, 99]), &[1.0, 0.5, 0.0]);
        assert_eq!(novelty(&[0]), [1.0]);
    }

    #[test]
    fn level_weights_interpolate() {
        let points = [0.3, 0.5, 1.0];
        assert_close(&level_weights(&points, 3), &points);
        assert_close(&level_weights(&points, 1), &[1.0]);
        assert_close(&level_weights(&points, 2), &[0.3, 1.0]);
        let four = [0.3, 1.3 / 3.0, 2.0 / 3.0, 1.0];
        assert_close(&level_weights(&points, 4), &four);
        assert_close(&level_weights(&points, 5), &[0.3, 0.4, 0.5, 0.75, 1.0]);
        assert_close(&level_weights(&[0.7], 3), &[0.7, 0.7, 0.7]);
    }
}
