//! What a node of a search costs, beside a token of plain decoding: one new token per prompt and pass, by sampling.

use super::report::{Entry, Report, time};
use super::steps::cost;
use super::stopwatch::{Stopwatch, Summary};
use super::workload::{Search, Shape};
use crate::config::{Candidates, Config};
use crate::device::recorder::Recorder;
use crate::device::{DeviceRef, Stream};
use crate::run::Progress;
use anyhow::Result;
use std::fmt::Write;
use std::sync::Arc;

/// Nodes per prompt, each twice the one before.
const BUDGETS: [usize; 4] = [25, 50, 100, 200];
/// Beams that spend about the same.
const BEAMS: [usize; 3] = [8, 16, 32];

/// Splits a decode where its prompts have been run and their children scored: the passes after that are the search's.
fn after_prefill(stream: &Stream) -> [Stream; 2] {
    let expanded = |launch: &crate::device::Launch| launch.kernel.name == "expand";
    let begun = |launch: &crate::device::Launch| launch.kernel.name == "search_begin";
    let launches = &stream.launches;
    let begin = launches.iter().position(begun).unwrap_or(0);
    let scored = launches[begin..]
        .iter()
        .position(expanded)
        .map_or(0, |at| at + 1);
    let (prefill, search) = launches.split_at(begin + scored);
    [prefill, search].map(|part| Stream {
        launches: part.to_vec(),
        ..Stream::default()
    })
}

fn measure(watch: &Stopwatch, shape: &Shape, name: String, config: &Config) -> Result<Entry> {
    let recorder = Arc::new(Recorder::new(watch.device.clone()));
    let device: DeviceRef = recorder.clone();
    let mut search = Search::new(&device, shape, config)?;
    let found = search.run()?;
    // Without the root, whose pass is the prompt's.
    let nodes: usize = found.iter().map(|d| d.cost - 1).sum();
    let stream = recorder.take().remove(0);
    let [prefill, rest] = after_prefill(&stream);
    let readings = watch.repeat(|| {
        let before = watch.whole(&prefill)?;
        Ok((before, watch.whole(&rest)?))
    })?;
    let whole = Summary::of(readings.iter().map(|r| Some(r.0 + r.1)))?;
    let prefilled = Summary::of(readings.iter().map(|r| Some(r.0)))?;
    let searched = Summary::of(readings.iter().map(|r| Some(r.1)))?;
    Ok(Entry::new(name, whole, cost(&[stream]))
        .with("nodes", nodes as f64)
        .with("prefill_seconds", prefilled.median)
        .with("search_seconds", searched.median)
        .with("us_per_node", 1e6 * searched.median / nodes as f64))
}

/// Plain decoding first, then beams, then VED at budgets that double; by name.
pub fn methods() -> Vec<(String, Config)> {
    let mut plain = Config::default();
    plain.rl.decode = Candidates::Sample;
    plain.rl.group = 1;
    let beam = |width: usize| {
        let mut config = Config::default();
        config.rl.decode = Candidates::Beam;
        config.rl.group = width;
        (format!("beam {width}"), config)
    };
    let ved = |budget: usize| {
        let mut config = Config::default();
        config.ved.budget = budget;
        (format!("ved {budget}"), config)
    };
    let plain = std::iter::once(("plain".to_string(), plain));
    let methods = plain.chain(BEAMS.map(beam)).chain(BUDGETS.map(ved));
    methods.collect()
}

/// Decodes by every one of [`methods`].
pub fn run(watch: &Stopwatch, shape: &Shape) -> Result<Report> {
    let mut report = Report::begin("decode", watch)?;
    let cases = methods();
    let mut progress = Progress::new();
    progress.stage("decode", 0, cases.len() as u64);
    for (number, (name, config)) in (1..).zip(cases) {
        let name = format!("{name} d {} prompts {}", shape.hidden, shape.prompts);
        report.entries.push(measure(watch, shape, name, &config)?);
        progress.step(number, &[]);
    }
    progress.finish();
    Ok(report)
}

/// A line per method; VED also against half its budget.
pub fn table(report: &Report) -> String {
    let mut text = String::from(
        "\nmethod                       nodes    prefill     search    us/node  of plain  of half the budget\n",
    );
    let plain = report.entries[0].figures["us_per_node"];
    let mut half: Option<f64> = None;
    for entry in &report.entries {
        let figure = |name: &str| entry.figures[name];
        let _ = write!(
            text,
            "{:26} {:>7} {:>10} {:>10} {:>10.2} {:>9.2}",
            entry.name,
            figure("nodes"),
            time(figure("prefill_seconds")),
            time(figure("search_seconds")),
            figure("us_per_node"),
            figure("us_per_node") / plain,
        );
        if entry.name.starts_with("ved") {
            if let Some(half) = half {
                let _ = write!(text, "  {:.2}", entry.seconds.median / half);
            }
            half = Some(entry.seconds.median);
        }
        text.push('\n');
    }
    text
}
