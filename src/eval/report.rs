//! Every figure of an evaluation, as JSON and as a row of a table.

use anyhow::{Context, Result, ensure};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};

use super::bootstrap::{Bootstrap, Difference, Figure, Statistic, short};
use super::metrics::{Distance, Evaluation, coverage, cutoffs, gini};
use super::per_user::{Bucket, Credit, Gain, PerUser};

/// All figures of one system under one protocol. It serialises to a flat object, K the cutoffs, T the
/// top list's length (10, or the beam if narrower):
///
/// | key | value |
/// |---|---|
/// | `protocol`, `users`, `beam` | what was measured |
/// | `hr@K`, `ndcg@K`, `value_hr@K`, `value_ndcg@K` | SID level; `value_`: weighted by the target's worth |
/// | `item/hr@K`, .. | the same at item level |
/// | `prefix_hit@T/1` .. `prefix_hit@T/L` | share of users with the target's first l codes in the top list |
/// | `ild@T`, `ild_distance` | mean intra-list distance; `cosine` or `prefix` |
/// | `coverage@T`, `gini@T` | of the top lists over all SIDs: plain numbers, since a resample of users covers less than the sample and would give an interval below the figure |
/// | `invalid` | number of invalid SIDs in all lists |
/// | `head/users`, `head/hr@T`, `head/ndcg@T`, `torso/..`, `tail/..` | by the target's popularity |
///
/// A figure is `{"mean", "lo", "hi"}` (without resamples `{"mean"}`), or null where no user has it (an empty bucket, no worth
/// at all).
#[derive(Clone, Debug)]
pub struct Report {
    pub protocol: String,
    pub users: usize,
    pub beam: usize,
    /// Length of the top lists.
    pub top: usize,
    pub invalid: u64,
    pub coverage: f64,
    pub gini: f64,
    pub distance: Distance,
    /// Users by their target's bucket, in the order of [`Bucket::ALL`].
    pub bucket_users: [usize; 3],
    figures: Vec<(String, Option<Figure>)>,
}

impl Report {
    /// Computes every figure and its interval.
    pub fn new(protocol: &str, evaluation: &Evaluation, bootstrap: &Bootstrap) -> Self {
        let per_user = &evaluation.per_user;
        let (names, statistics): (Vec<_>, Vec<_>) = statistics(evaluation).into_iter().unzip();
        let figures = bootstrap.figures(&statistics);
        Report {
            protocol: protocol.to_string(),
            users: per_user.users(),
            beam: per_user.beam,
            top: evaluation.top,
            invalid: per_user.invalid_count(),
            coverage: coverage(&evaluation.exposure),
            gini: gini(&evaluation.exposure),
            distance: evaluation.distance,
            bucket_users: Bucket::ALL.map(|b| per_user.users_in(b)),
            figures: names.into_iter().zip(figures).collect(),
        }
    }

    /// The figure of that key (`hr@10`, `item/value_ndcg@5`); `None` if there is none or it is null.
    pub fn figure(&self, key: &str) -> Option<Figure> {
        self.figures.iter().find(|(name, _)| name == key)?.1
    }

    /// Sets the report's keys in `object`, over any that are there already.
    pub fn merge_into(&self, object: &mut Map<String, Value>) -> Result<()> {
        let Value::Object(own) =
            serde_json::to_value(self).context("evaluation: report to JSON")?
        else {
            unreachable!("a report serialises to an object");
        };
        object.extend(own);
        Ok(())
    }
}

/// Every figure that has an interval, by key.
fn statistics(evaluation: &Evaluation) -> Vec<(String, Statistic)> {
    let (per_user, top) = (&evaluation.per_user, evaluation.top);
    let mut all = Vec::new();
    for (level, credit) in [("", Credit::Sid), ("item/", Credit::Item)] {
        for k in cutoffs(per_user.beam) {
            for gain in Gain::ALL {
                let name = gain.name();
                let plain = per_user.ranking(gain, credit, k);
                let valued = per_user.valued(gain, credit, k);
                all.push((format!("{level}{name}@{k}"), plain));
                all.push((format!("{level}value_{name}@{k}"), valued));
            }
        }
    }
    for level in 1..=evaluation.levels {
        let key = format!("prefix_hit@{top}/{level}");
        all.push((key, per_user.prefix_hit(level)));
    }
    all.push((format!("ild@{top}"), per_user.intra_list_distance()));
    for bucket in Bucket::ALL {
        for gain in Gain::ALL {
            let key = format!("{}/{}@{top}", bucket.name(), gain.name());
            all.push((key, per_user.within(bucket, gain, Credit::Sid, top)));
        }
    }
    all
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let top = self.top;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("protocol", &self.protocol)?;
        map.serialize_entry("users", &self.users)?;
        map.serialize_entry("beam", &self.beam)?;
        map.serialize_entry("invalid", &self.invalid)?;
        for (key, figure) in &self.figures {
            map.serialize_entry(key, figure)?;
        }
        map.serialize_entry("ild_distance", self.distance.name())?;
        map.serialize_entry(&format!("coverage@{top}"), &self.coverage)?;
        map.serialize_entry(&format!("gini@{top}"), &self.gini)?;
        for (bucket, users) in Bucket::ALL.into_iter().zip(&self.bucket_users) {
            map.serialize_entry(&format!("{}/users", bucket.name()), users)?;
        }
        map.end()
    }
}

/// The paired difference `system - baseline` of one metric, as in
/// `compare(&bootstrap, &vstar, &sft, |p| p.valued(Gain::Hr, Credit::Sid, 10))`.
/// Errors if the two were not evaluated on the same users in the same order.
pub fn compare(
    bootstrap: &Bootstrap,
    system: &PerUser,
    baseline: &PerUser,
    metric: impl Fn(&PerUser) -> Statistic,
) -> Result<Option<Difference>> {
    ensure!(
        system.target == baseline.target && system.worth == baseline.worth,
        "paired difference: the systems were evaluated on different users; use one split for both"
    );
    bootstrap.difference(&metric(system), &metric(baseline))
}

/// A system in a comparison.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    pub name: &'a str,
    pub report: &'a Report,
    /// Backbone tokens run after prefill, over all test users.
    pub decode_tokens: u64,
}

/// Systems side by side: a Markdown table, aligned for the terminal too (120 columns with names of up to
/// 12 characters), and a line that says what was measured. Errors unless all rows have the same
/// protocol, users and top list.
pub fn table<'a>(rows: &[Row<'a>]) -> Result<String> {
    let first = rows.first().context("comparison table: no systems")?;
    let measured = |r: &Row<'a>| (&r.report.protocol, r.report.users, r.report.top);
    for row in rows {
        ensure!(
            measured(row) == measured(first),
            "comparison table: {} is {:?} (protocol, users, top) and {} is {:?}; evaluate them alike",
            row.name,
            measured(row),
            first.name,
            measured(first)
        );
    }
    let Report {
        protocol,
        users,
        top,
        distance,
        ..
    } = first.report;
    let mut cells = vec![vec![
        "system".to_string(),
        format!("HR@{top}"),
        format!("NDCG@{top}"),
        format!("value HR@{top}"),
        format!("cov@{top}"),
        format!("ILD@{top}"),
        "invalid".to_string(),
        "decode tokens".to_string(),
    ]];
    for row in rows {
        let figure = |key: &str| row.report.figure(&format!("{key}@{top}"));
        let show = |key: &str| figure(key).map_or("-".to_string(), |f| f.to_string());
        cells.push(vec![
            row.name.to_string(),
            show("hr"),
            show("ndcg"),
            show("value_hr"),
            short(row.report.coverage),
            figure("ild").map_or("-".to_string(), |f| short(f.mean)),
            row.report.invalid.to_string(),
            grouped(row.decode_tokens),
        ]);
    }
    let mut text = aligned(&cells);
    let known = rows.iter().flat_map(|row| &row.report.figures);
    let intervals = match known
        .filter_map(|(_, figure)| *figure)
        .any(|f| f.interval.is_some())
    {
        true => " and 95% interval (bootstrap)",
        false => "",
    };
    text += &format!(
        "\nmean{intervals} over {} test examples, {protocol}; cov: share of all SIDs shown; \
         ILD: {} distance\n",
        grouped(*users as u64),
        distance.name(),
    );
    Ok(text)
}

/// A Markdown table from a header row and body rows; the first column flush left, the others right.
pub fn aligned(cells: &[Vec<String>]) -> String {
    let columns = cells[0].len();
    let width = |c: usize| cells.iter().map(|row| row[c].chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
    let mut text = String::new();
    for (i, row) in cells.iter().enumerate() {
        for (c, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            text += &match c {
                0 => format!("| {cell:<width$} |"),
                _ => format!(" {cell:>width$} |"),
            };
        }
        text.push('\n');
        if i == 0 {
            for (c, &width) in widths.iter().enumerate() {
                text += &match c {
                    0 => format!("|{}|", "-".repeat(width + 2)),
                    _ => format!("{}:|", "-".repeat(width + 1)),
                };
            }
            text.push('\n');
        }
    }
    text
}

/// `1234567` as `1,234,567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
