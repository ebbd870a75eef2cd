//! The systems that a run evaluated: their table and `result.json`.

use super::context::Context;
use crate::config::Config;
use crate::eval::bootstrap::Bootstrap;
use crate::eval::metrics::Evaluation;
use crate::eval::per_user::{Credit, Gain, PerUser};
use crate::eval::report::{Report, Row, compare, table};
use crate::model::Model;
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// One system on the test users.
pub struct System {
    pub name: &'static str,
    pub evaluation: Evaluation,
    pub report: Report,
    /// Backbone tokens that decoding ran in the evaluation, and in training where there was any.
    pub decode_tokens: u64,
    pub train_decode_tokens: Option<u64>,
}

/// The resamples behind the intervals of these settings.
pub fn bootstrap(config: &Config) -> Bootstrap {
    Bootstrap {
        seed: config.seed,
        resamples: config.eval.bootstrap as u32,
    }
}

/// What differences are told of: key, gain, whether weighted by worth.
const MEASURES: [(&str, Gain, bool); 3] = [
    ("ndcg@10", Gain::Ndcg, false),
    ("hr@10", Gain::Hr, false),
    ("value_hr@10", Gain::Hr, true),
];

/// What V-STAR is compared with, and the key of the comparison in `result.json`.
const BASELINES: [(&str, &str); 2] = [
    ("SFT", "vstar_over_sft"),
    ("GRPO (beam)", "vstar_over_grpo"),
];

/// The table, and the paired differences of V-STAR over its baselines, as lines and by their keys.
pub fn summary<'a>(config: &Config, systems: &'a [System]) -> Result<(String, Map<String, Value>)> {
    let row = |s: &'a System| Row {
        name: s.name,
        report: &s.report,
        decode_tokens: s.decode_tokens,
    };
    let rows: Vec<Row> = systems.iter().map(row).collect();
    let mut text = table(&rows)?;
    let mut differences = Map::new();
    let find = |name| systems.iter().find(|s| s.name == name);
    for (baseline, name) in BASELINES {
        let (Some(ours), Some(other)) = (find("V-STAR"), find(baseline)) else {
            continue;
        };
        let top = other.report.top;
        let mut of_baseline = Map::new();
        for (key, gain, valued) in MEASURES {
            let metric = |p: &PerUser| match valued {
                true => p.valued(gain, Credit::Sid, top),
                false => p.ranking(gain, Credit::Sid, top),
            };
            let [ours, other] = [ours, other].map(|s| &s.evaluation.per_user);
            if let Some(difference) = compare(&bootstrap(config), ours, other, metric)? {
                let how = match difference.absolute.interval {
                    Some(_) => " (paired bootstrap)",
                    None => "",
                };
                let _ = writeln!(text, "V-STAR over {baseline}, {key}: {difference}{how}");
                of_baseline.insert(key.into(), serde_json::to_value(difference)?);
            }
        }
        differences.insert(name.into(), of_baseline.into());
    }
    for s in systems {
        if let Some(tokens) = s.train_decode_tokens {
            let _ = writeln!(text, "{} spent {tokens} decode tokens in training", s.name);
        }
    }
    Ok((text, differences))
}

/// `result.json` of a run: every figure of every system.
pub fn result(context: &Context, model: &Model, systems: &[System]) -> Result<Map<String, Value>> {
    let figures = |s: &System| {
        let mut object = Map::new();
        s.report.merge_into(&mut object)?;
        object.insert("decode_tokens".into(), s.decode_tokens.into());
        object.insert("train_decode_tokens".into(), json!(s.train_decode_tokens));
        Ok((s.name.to_string(), Value::Object(object)))
    };
    let figures = systems.iter().map(figures);
    let figures = figures.collect::<Result<Map<_, _>>>()?;
    let device = &model.device;
    let entries = [
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("data", json!(context.data.name)),
        ("protocol", json!(context.data.protocol.to_string())),
        ("seed", json!(context.config.seed)),
        ("device", json!(device.info())),
        ("parameters", json!(model.architecture.parameters())),
        ("seconds", json!(context.seconds())),
        ("counters", json!(device.counters())),
        ("memory", json!(device.memory())),
        ("systems", json!(figures)),
    ];
    let entries = entries.into_iter();
    Ok(entries.map(|(key, value)| (key.into(), value)).collect())
}
