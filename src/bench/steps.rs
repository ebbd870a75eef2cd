//! Whole steps: fine-tuning, V-STAR, decoding alone; and what their parts take.
//!
//! The shapes are those of a PyTorch script users compare with: 4 layers, 4 heads, feed-forward 8/3 d, vocabulary 1,028,
//! batches of 32. Models are freshly initialised, so candidates share few prefixes: trained ones share more and cost less.

use super::report::{Entry, Report, time};
use super::stopwatch::{Stopwatch, Summary};
use super::workload::{FineTuning, LEVELS, Reinforcement, Search, Shape};
use crate::config::Config;
use crate::device::recorder::Recorder;
use crate::device::{Cost, DeviceRef, Kernel, Launch, Stream};
use crate::run::Progress;
use anyhow::{Result, ensure};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

/// What a launch belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Decode,
    Forward,
    Backward,
    Update,
}

impl Phase {
    pub const ALL: [Phase; 4] = [
        Phase::Decode,
        Phase::Forward,
        Phase::Backward,
        Phase::Update,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Phase::Decode => "decode",
            Phase::Forward => "forward",
            Phase::Backward => "backward",
            Phase::Update => "update",
        }
    }

    /// Of a launch after decoding; `None` where the launches before it tell (clearing a buffer, adding figures up).
    fn of(kernel: &Kernel) -> Option<Phase> {
        let gradients = [
            "attention_delta",
            "column_sum",
            "scatter_add_rows",
            "matmul_nn",
            "matmul_tn",
            "rmsnorm_weight",
            "target_",
            "token_order",
        ];
        match kernel.name {
            name if name == "fill" || name.starts_with("reduce") => None,
            name if name == "adamw" || name.starts_with("grad_norm") => Some(Phase::Update),
            name if name.contains("backward") => Some(Phase::Backward),
            name if gradients.iter().any(|start| name.starts_with(start)) => Some(Phase::Backward),
            _ => Some(Phase::Forward),
        }
    }
}

/// A step's launches, cut where the phase changes. Decoding ends with the candidates, or with the trees packed from them;
/// gradients that are cleared before anything else belong to the update.
pub fn phases(streams: &[Stream]) -> Vec<(Phase, Stream)> {
    let mut parts: Vec<(Phase, Stream)> = Vec::new();
    for stream in streams {
        let ends = |launch: &Launch| ["candidates", "tree_pack"].contains(&launch.kernel.name);
        let last = stream.launches.iter().rposition(ends);
        let (decoding, rest) = stream.launches.split_at(last.map_or(0, |at| at + 1));
        let mut phase = Phase::Update;
        let rest = rest.iter().map(|launch| {
            phase = Phase::of(launch.kernel).unwrap_or(phase);
            (phase, launch)
        });
        let decoding = decoding.iter().map(|launch| (Phase::Decode, launch));
        for (phase, launch) in decoding.chain(rest) {
            match parts.last_mut() {
                Some((last, part)) if *last == phase => part.launches.push(*launch),
                _ => parts.push((
                    phase,
                    Stream {
                        launches: vec![*launch],
                        ..Stream::default()
                    },
                )),
            }
        }
    }
    parts
}

/// The cost of whole streams: of V-STAR's, at most.
pub fn cost(streams: &[Stream]) -> Cost {
    let launches = streams.iter().flat_map(|s| &s.launches);
    launches.map(|launch| launch.cost()).sum()
}

/// A step that is measured, and what is known of it beforehand.
struct Step<'a> {
    name: String,
    prompts: usize,
    recorder: &'a Recorder,
    act: Box<dyn FnMut() -> Result<Figures> + 'a>,
}

/// Figures of a step by name.
type Figures = Vec<(&'static str, f64)>;

/// Times steps, then their phases; adds what a step asks of the device once it is warm.
fn measure(watch: &Stopwatch, mut step: Step) -> Result<Entry> {
    let mut last = (Vec::new(), watch.device.counters());
    let readings = watch.repeat(|| {
        step.recorder.take();
        let before = watch.device.counters();
        let started = Instant::now();
        let figures = (step.act)()?;
        let seconds = started.elapsed().as_secs_f64();
        last = (figures, watch.device.counters() - before);
        Ok(Some(seconds))
    })?;
    let streams = step.recorder.take();
    let seconds = Summary::of(readings)?;
    let mut entry = Entry::new(step.name, seconds, cost(&streams));
    entry = entry.with("ms_per_prompt", 1e3 * seconds.median / step.prompts as f64);
    let (figures, asked) = last;
    for (name, value) in figures {
        entry = entry.with(name, value);
    }
    for (name, value) in [
        ("submissions", asked.submissions),
        ("dispatches", asked.dispatches),
        (
            "created",
            asked.pipelines_created + asked.bind_groups_created,
        ),
        ("bytes_up", asked.bytes_uploaded),
        ("bytes_down", asked.bytes_read_back),
    ] {
        entry = entry.with(name, value as f64);
    }
    let parts = phases(&streams);
    for phase in Phase::ALL {
        if parts.iter().all(|part| part.0 != phase) {
            continue;
        }
        let readings = watch.repeat(|| {
            let own = parts.iter().filter(|part| part.0 == phase);
            own.map(|part| watch.whole(&part.1))
                .sum::<Result<f64>>()
                .map(Some)
        })?;
        entry = entry.with(
            format!("{}_seconds", phase.name()),
            Summary::of(readings)?.median,
        );
    }
    Ok(entry)
}

/// Steps of each shape.
pub fn run(watch: &Stopwatch, shapes: &[Shape], config: &Config) -> Result<Report> {
    let mut report = Report::begin("steps", watch)?;
    let mut progress = Progress::new();
    progress.stage("steps", 0, 3 * shapes.len() as u64);
    let mut done = 0;
    for shape in shapes {
        for kind in 0..3 {
            report.entries.push(match kind {
                0 => sft(watch, shape)?,
                1 => rl(watch, shape, config)?,
                _ => ved(watch, shape)?,
            });
            done += 1;
            progress.step(done, &[]);
        }
    }
    progress.finish();
    report.end(watch)
}

fn recording(watch: &Stopwatch) -> (Arc<Recorder>, DeviceRef) {
    let recorder = Arc::new(Recorder::new(watch.device.clone()));
    (recorder.clone(), recorder)
}

fn sft(watch: &Stopwatch, shape: &Shape) -> Result<Entry> {
    let (recorder, device) = recording(watch);
    let mut step = FineTuning::new(&device, shape)?;
    let tokens = step.tokens() as f64;
    let entry = measure(
        watch,
        Step {
            name: format!("sft d {}", shape.hidden),
            prompts: shape.documents,
            recorder: &recorder,
            act: Box::new(|| {
                step.step()?;
                Ok(vec![("tokens", tokens)])
            }),
        },
    )?;
    let rate = tokens / entry.seconds.median;
    Ok(entry.with("tokens_per_second", rate))
}

fn rl(watch: &Stopwatch, shape: &Shape, config: &Config) -> Result<Entry> {
    let (recorder, device) = recording(watch);
    let mut step = Reinforcement::new(&device, shape, config)?;
    let prompts = (shape.prompts * shape.prompt()) as f64;
    let entry = measure(
        watch,
        Step {
            name: format!("rl d {}", shape.hidden),
            prompts: shape.prompts,
            recorder: &recorder,
            act: Box::new(|| {
                let done = step.step()?;
                Ok(vec![
                    ("decode_tokens", prompts + done.decoded as f64),
                    ("trained_tokens", done.trained as f64),
                ])
            }),
        },
    )?;
    let tokens = entry.figures["decode_tokens"] + entry.figures["trained_tokens"];
    let rate = tokens / entry.seconds.median;
    Ok(entry.with("tokens_per_second", rate))
}

/// The first tree alone, complete SIDs run too: 25 nodes a prompt, whatever the trie.
fn ved(watch: &Stopwatch, shape: &Shape) -> Result<Entry> {
    let mut config = Config::default();
    config.ved.budget = 1 + LEVELS * config.ved.init_beam;
    config.rl.group = config.ved.init_beam;
    let (recorder, device) = recording(watch);
    let mut search = Search::new(&device, shape, &config)?;
    let tokens = (shape.prompts * (shape.prompt() + config.ved.budget)) as f64;
    let entry = measure(
        watch,
        Step {
            name: format!("ved d {}", shape.hidden),
            prompts: shape.prompts,
            recorder: &recorder,
            act: Box::new(|| {
                let found = search.run()?;
                ensure!(
                    found.iter().all(|d| d.cost == config.ved.budget),
                    "a budget was not spent"
                );
                Ok(vec![("decode_tokens", tokens)])
            }),
        },
    )?;
    let rate = tokens / entry.seconds.median;
    Ok(entry.with("tokens_per_second", rate))
}

/// A line per step, then its parts.
pub fn table(report: &Report) -> String {
    let mut text = String::new();
    let mut fine_tuning: Option<&Entry> = None;
    for entry in &report.entries {
        let figure = |name: &str| entry.figures.get(name).copied().unwrap_or(0.0);
        let seconds = entry.seconds;
        let (reached, ceiling) = report.ceilings.share(entry.cost(), seconds.median);
        let _ = write!(
            text,
            "\n{:10} {:8.3} ms/prompt  {:>9} ({} .. {})  {:>7.0} tokens/s  {:.1} GFLOP/s, {:.0}% of {ceiling}",
            entry.name,
            figure("ms_per_prompt"),
            time(seconds.median),
            time(seconds.min),
            time(seconds.p90),
            figure("tokens_per_second"),
            1e-9 * entry.operations as f64 / seconds.median,
            100.0 * reached,
        );
        match fine_tuning {
            _ if entry.name.starts_with("sft") => fine_tuning = Some(entry),
            Some(sft) => {
                let ratio = figure("ms_per_prompt") / sft.figures["ms_per_prompt"];
                let _ = write!(text, "  {ratio:.2} x sft");
            }
            None => {}
        }
        let part = |phase: Phase| {
            let seconds = figure(&format!("{}_seconds", phase.name()));
            (seconds > 0.0).then(|| format!("{} {}", phase.name(), time(seconds)))
        };
        let parts: Vec<_> = Phase::ALL.into_iter().filter_map(part).collect();
        let _ = write!(text, "\n           {}", parts.join(", "));
        let (decoded, trained) = (figure("decode_tokens"), figure("trained_tokens"));
        if decoded > 0.0 {
            let _ = write!(
                text,
                "; tokens decoded {decoded:.0}, trained on {trained:.0}"
            );
        }
        let _ = writeln!(
            text,
            "; {} submissions, {} dispatches, {} created, {:.0} KiB up, {:.0} KiB down",
            figure("submissions"),
            figure("dispatches"),
            figure("created"),
            (figure("bytes_up") / 1024.0).ceil(),
            (figure("bytes_down") / 1024.0).ceil(),
        );
    }
    text
}
