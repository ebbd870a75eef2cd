//! What a node of a search costs, beside a token of plain decoding: one new token per prompt and pass, by sampling.

use super::report::{Entry, Report, time};
use super::steps::cost;
use super::stopwatch::{Stopwatch, Summary};
use super::workload::{Search, Shape};
use crate::config::{Candidates, Config};
use crate::device::recorder::Recorder;
use crate::device::{Cost, DeviceRef, Stream};
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

/// A search that has been recorded.
struct Recorded {
    name: String,
    /// Without the roots, whose pass is the prompts'.
    nodes: usize,
    cost: Cost,
    /// See [`after_prefill`].
    parts: [Stream; 2],
    /// Holds the buffers.
    _search: Search,
    /// Seconds of both parts.
    readings: Vec<[f64; 2]>,
}

impl Recorded {
    fn new(device: &DeviceRef, shape: &Shape, name: String, config: &Config) -> Result<Recorded> {
        let recorder = Arc::new(Recorder::new(device.clone()));
        let recording: DeviceRef = recorder.clone();
        let mut search = Search::new(&recording, shape, config)?;
        let found = search.run()?;
        let stream = recorder.take().remove(0);
        Ok(Recorded {
            name: format!("{name} d {} prompts {}", shape.hidden, shape.prompts),
            nodes: found.iter().map(|d| d.cost - 1).sum(),
            parts: after_prefill(&stream),
            cost: cost(&[stream]),
            _search: search,
            readings: Vec::new(),
        })
    }

    fn entry(self) -> Result<Entry> {
        let of = |seconds: fn(&[f64; 2]) -> f64| {
            Summary::of(self.readings.iter().map(|r| Some(seconds(r))))
        };
        let searched = of(|r| r[1])?.median;
        Ok(Entry::new(&self.name, of(|r| r[0] + r[1])?, self.cost)
            .with("nodes", self.nodes as f64)
            .with("prefill_seconds", of(|r| r[0])?.median)
            .with("search_seconds", searched)
            .with("us_per_node", 1e6 * searched / self.nodes as f64))
    }
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

/// Decodes by every one of [`methods`], in turns: what slows the machine for a while slows all of them.
pub fn run(watch: &Stopwatch, shape: &Shape) -> Result<Report> {
    let mut report = Report::begin("decode", watch)?;
    let new = |(name, config)| Recorded::new(&watch.device, shape, name, &config);
    let mut searches: Vec<_> = methods().into_iter().map(new).collect::<Result<_>>()?;
    let mut progress = Progress::new();
    progress.stage("decode", 0, watch.repeat as u64);
    for turn in 1..=watch.repeat {
        for search in &mut searches {
            let [prefill, rest] = &search.parts;
            let seconds = [watch.whole(prefill)?, watch.whole(rest)?];
            search.readings.push(seconds);
        }
        progress.step(turn as u64, &[]);
    }
    progress.finish();
    report.entries = searches
        .into_iter()
        .map(Recorded::entry)
        .collect::<Result<_>>()?;
    report.end(watch)
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
