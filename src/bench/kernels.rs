//! Every kernel, in every form, at the sizes it has in whole steps.

use super::report::{Entry, Report, time};
use super::singles::{clustering, draws, square, teaching};
use super::stopwatch::{Stopwatch, Summary};
use super::workload::{FineTuning, Reinforcement, Search, Shape};
use crate::config::{Candidates, Config};
use crate::device::recorder::Recorder;
use crate::device::{Cost, Device, DeviceRef, Kernel, Launch, Param, Stream, Type};
use crate::model::Family;
use crate::run::Progress;
use anyhow::{Result, ensure};
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

/// The steps whose launches are timed.
const STEPS: [&str; 3] = ["sft", "rl", "other"];

/// Launches of one kernel that cost the same.
pub struct Case {
    /// `KERNEL/FORM/SIZES`; unique within the step.
    pub name: String,
    /// One of `sft`, `rl` and, for what is in neither, `other`.
    pub step: &'static str,
    /// Such launches in the step.
    pub launches: u64,
    pub cost: Cost,
    launch: Launch,
    /// Run before each reading, where the launch needs the state it was recorded in.
    before: Option<Stream>,
    form: &'static str,
    /// Whether the device takes this form by itself.
    chosen: bool,
}

impl Case {
    /// So many readings.
    pub fn readings(&self, watch: &Stopwatch, count: usize) -> Result<Vec<Option<f64>>> {
        let _insisting = Insisting::on(&*watch.device, self.form);
        let mut stream = Stream::new();
        if self.before.is_none() {
            // One more, to warm up.
            stream.launches = vec![self.launch; count + 1];
            return Ok(watch.launches(&stream)?.launches.split_off(1));
        }
        stream.launches.push(self.launch);
        let once = || {
            self.prepare(watch)?;
            Ok(watch.launches(&stream)?.launches[0])
        };
        (0..count).map(|_| once()).collect()
    }

    /// Brings the device to the state the launch needs.
    pub fn prepare(&self, watch: &Stopwatch) -> Result<()> {
        match &self.before {
            Some(before) => watch.whole(before).map(drop),
            None => Ok(()),
        }
    }

    /// Runs the launch and waits for it.
    pub fn run(&self, watch: &Stopwatch) -> Result<()> {
        let _insisting = Insisting::on(&*watch.device, self.form);
        let mut stream = Stream::new();
        stream.launches.push(self.launch);
        watch.whole(&stream).map(drop)
    }
}

/// While it lives, the device runs launches in one form.
struct Insisting<'a>(&'a dyn Device);

impl<'a> Insisting<'a> {
    fn on(device: &'a dyn Device, form: &'static str) -> Self {
        device.insist(Some(form));
        Insisting(device)
    }
}

impl Drop for Insisting<'_> {
    fn drop(&mut self) {
        self.0.insist(None);
    }
}

/// The cases of a device, and what holds their buffers.
pub struct Cases {
    pub list: Vec<Case>,
    _alive: Vec<Box<dyn Any + Send + Sync>>,
}

/// Launches of whole steps: of fine-tuning and of V-STAR with the default settings at a `shape`, a product of two square
/// matrices, and whatever kernels are in neither.
pub fn cases(device: &DeviceRef, shape: &Shape, pattern: &str) -> Result<Cases> {
    let recorder = Arc::new(Recorder::new(device.clone()));
    let recording: DeviceRef = recorder.clone();
    let mut config = Config::default();
    let mut list = Vec::new();
    let mut alive: Vec<Box<dyn Any + Send + Sync>> = Vec::new();

    let mut sft = FineTuning::new(&recording, shape)?;
    sft.step()?;
    collect(device, &mut list, STEPS[0], &recorder.take());
    alive.push(Box::new(sft));

    let mut rl = Reinforcement::new(&recording, shape, &config)?;
    rl.step()?;
    collect(device, &mut list, STEPS[1], &recorder.take());
    alive.push(Box::new(rl));

    let heads = Shape {
        family: Family::Qwen3,
        layers: 1,
        dropout: true,
        ..*shape
    };
    let mut sft = FineTuning::new(&recording, &heads)?;
    sft.step()?;
    alive.push(Box::new(sft));
    config.rl.decode = Candidates::Sample;
    let mut search = Search::new(&recording, &heads, &config)?;
    search.run()?;
    alive.push(Box::new(search));
    config.rl.decode = Candidates::Beam;
    let mut search = Search::new(&recording, &heads, &config)?;
    search.run()?;
    alive.push(Box::new(search));
    let buffers = draws(&recording)?;
    alive.push(Box::new(buffers));
    let buffers = clustering(&recording)?;
    alive.push(Box::new(buffers));
    let buffers = teaching(&recording)?;
    alive.push(Box::new(buffers));
    let mut others = Vec::new();
    collect(device, &mut others, STEPS[2], &recorder.take());
    let known = |name: &str, list: &[Case]| list.iter().any(|case| case.launch.kernel.name == name);
    others.retain(|case| !known(case.launch.kernel.name, &list));
    list.extend(others);

    let buffers = square(&recording)?;
    alive.push(Box::new(buffers));
    collect(device, &mut list, STEPS[2], &recorder.take());

    list.retain(|case| case.name.contains(pattern));
    ensure!(
        !list.is_empty(),
        "no kernel is called `{pattern}`; `vstar bench kernels` lists all"
    );
    Ok(Cases {
        list,
        _alive: alive,
    })
}

/// Adds the launches of a step, those that cost the same together, in every form that they can be run in.
fn collect(device: &DeviceRef, list: &mut Vec<Case>, step: &'static str, streams: &[Stream]) {
    // Where each kind of launch is met first, and how often in all.
    let mut kinds: BTreeMap<_, ((&Stream, usize), u64)> = BTreeMap::new();
    for stream in streams {
        for (at, launch) in stream.launches.iter().enumerate() {
            let cost = launch.cost();
            let kind = (launch.kernel.name, cost.operations, cost.bytes);
            kinds.entry(kind).or_insert(((stream, at), 0)).1 += 1;
        }
    }
    let mut met = BTreeSet::new();
    for ((stream, at), launches) in kinds.into_values() {
        let launch = stream.launches[at];
        let (cost, mut sizes) = (launch.cost(), sizes(&launch));
        if !met.insert((launch.kernel.name, sizes.clone())) {
            let _ = write!(sizes, " ({} operations)", cost.operations);
        }
        let before = grows(launch.kernel).then(|| Stream {
            launches: stream.launches[..at].to_vec(),
            ..Stream::default()
        });
        let chosen = device.form(&launch);
        for form in forms(device, &launch) {
            list.push(Case {
                name: format!("{}/{form}/{sizes}", launch.kernel.name),
                step,
                launches,
                cost,
                launch,
                before: before.clone(),
                form,
                chosen: form == chosen,
            });
        }
    }
}

/// Kernels that go on from the tree they find: a second launch has other work than the first.
fn grows(kernel: &Kernel) -> bool {
    ["beam", "sample", "ved_select"].contains(&kernel.name)
}

/// The first few integers of the parameters.
fn sizes(launch: &Launch) -> String {
    let fields = launch.kernel.params.iter().zip(launch.params());
    let integers = fields.filter(|(field, _)| field.ty == Type::U32);
    let text = |(field, value): (&Param, &u32)| format!("{} {value}", field.name);
    integers.take(4).map(text).collect::<Vec<_>>().join(" ")
}

/// The forms that the device can run a launch in; runs it in each, since a driver may refuse one.
fn forms(device: &DeviceRef, launch: &Launch) -> Vec<&'static str> {
    let kernel = launch.kernel;
    if kernel.forms.is_empty() {
        return vec![kernel.form_name(0)];
    }
    let names = (0..=kernel.forms.len()).map(|form| kernel.form_name(form));
    let mut stream = Stream::new();
    stream.launches.push(*launch);
    let runs = |name: &&'static str| {
        let _insisting = Insisting::on(&**device, name);
        device.form(launch) == *name && device.run(&stream).is_ok()
    };
    names.filter(runs).collect()
}

/// Times every case; `pattern` selects by name.
pub fn run(watch: &Stopwatch, shape: &Shape, pattern: &str) -> Result<Report> {
    let mut report = Report::begin("kernels", watch)?;
    let cases = cases(&watch.device, shape, pattern)?;
    let mut progress = Progress::new();
    progress.stage("kernels", 0, cases.list.len() as u64);
    for (number, case) in (1..).zip(&cases.list) {
        let seconds = Summary::of(case.readings(watch, watch.repeat)?)?;
        let name = format!("{} {}", case.step, case.name);
        let mut entry = Entry::new(name, seconds, case.cost);
        entry = entry.with("launches", case.launches as f64);
        if !case.chosen {
            entry = entry.with("alternative", 1.0);
        }
        report.entries.push(entry);
        progress.step(number, &[]);
    }
    progress.finish();
    report.end(watch)
}

/// Launches with less of a step's time than this are left out of the table, unless they are the slowest of their kernel.
const LEAST_SHARE: f64 = 0.005;

/// A table for each step.
pub fn table(report: &Report) -> String {
    let mut text = String::new();
    for step in STEPS {
        let rows: Vec<Row> = report
            .entries
            .iter()
            .filter_map(|e| Row::of(e, step))
            .collect();
        let total: f64 = rows
            .iter()
            .filter(|r| !r.alternative)
            .map(Row::seconds)
            .sum();
        if rows.is_empty() {
            continue;
        }
        let width = rows.iter().map(|r| r.kernel.len()).max().unwrap_or(0);
        let forms = rows.iter().map(|r| r.form.len()).max().unwrap_or(0);
        let _ = writeln!(
            text,
            "\n{step}: launches one by one take {}\n{:width$}  {:forms$}  launches  share       median          min ..    p90   GFLOP/s     GB/s  of ceiling  sizes",
            time(total),
            "kernel",
            "form"
        );
        let mut sorted: Vec<&Row> = rows.iter().collect();
        sorted.sort_by(|a, b| b.seconds().total_cmp(&a.seconds()));
        let (mut left, mut left_seconds) = (0, 0.0);
        for (i, row) in sorted.iter().enumerate() {
            let share = row.seconds() / total;
            let first = sorted[..i].iter().all(|other| other.kernel != row.kernel);
            if share < LEAST_SHARE && !first {
                if !row.alternative {
                    left += 1;
                    left_seconds += row.seconds();
                }
                continue;
            }
            let (s, cost) = (row.entry.seconds, row.entry.cost());
            let (reached, ceiling) = report.ceilings.share(cost, s.median);
            let rate = |amount: u64| 1e-9 * amount as f64 / s.median;
            let _ = writeln!(
                text,
                "{:width$}  {:forms$}  {:>8}  {:>4.1}%  {:>11}  {:>11} .. {:>9}  {:>8.2}  {:>7.2}  {:>4.0}% {ceiling:<4}  {}",
                row.kernel,
                row.form,
                row.launches,
                100.0 * share,
                time(s.median),
                time(s.min),
                time(s.p90),
                rate(cost.operations),
                rate(cost.bytes),
                100.0 * reached,
                row.sizes
            );
        }
        if left > 0 {
            let share = 100.0 * left_seconds / total;
            let _ = writeln!(text, "{left} smaller sizes, {share:.1}% together");
        }
    }
    let discarded: usize = report.entries.iter().map(|e| e.seconds.discarded).sum();
    let kept: usize = report.entries.iter().map(|e| e.seconds.samples).sum();
    let _ = writeln!(text, "\n{kept} readings, {discarded} discarded");
    text
}

/// An entry taken apart.
struct Row<'a> {
    entry: &'a Entry,
    kernel: &'a str,
    /// In brackets if the device does not take it by itself.
    form: String,
    sizes: &'a str,
    launches: u64,
    alternative: bool,
}

impl<'a> Row<'a> {
    fn of(entry: &'a Entry, step: &str) -> Option<Row<'a>> {
        let mut parts = entry.name.strip_prefix(step)?.trim_start().splitn(3, '/');
        let alternative = entry.figures.contains_key("alternative");
        Some(Row {
            entry,
            kernel: parts.next()?,
            form: match alternative {
                true => format!("({})", parts.next()?),
                false => parts.next()?.into(),
            },
            sizes: parts.next()?,
            launches: entry.figures.get("launches").map_or(0, |&n| n as u64),
            alternative,
        })
    }

    /// Of all its launches.
    fn seconds(&self) -> f64 {
        self.entry.seconds.median * self.launches as f64
    }
}
