//! Time per token against each size of a fine-tuning step, beside the operations that the formula predicts.

use super::formula;
use super::report::{Entry, Report};
use super::stopwatch::{Stopwatch, Summary};
use super::workload::{FineTuning, Shape};
use crate::device::Cost;
use crate::run::Progress;
use anyhow::Result;
use std::fmt::Write;
use std::time::Instant;

/// The sizes: one at a time leaves the base.
const AXES: [(&str, &[usize]); 5] = [
    ("d", &[64, 128, 256, 512]),
    ("layers", &[2, 4, 8]),
    ("batch", &[8, 32, 128]),
    ("vocabulary", &[1_028, 4_100, 32_768]),
    ("prompt", &[16, 36, 128, 512]),
];

/// More than this over the trend is marked.
const LIMIT: f64 = 2.0;

fn with(base: &Shape, axis: &str, value: usize) -> Shape {
    let mut shape = *base;
    match axis {
        "d" => shape.hidden = value,
        "layers" => shape.layers = value,
        "batch" => shape.documents = value,
        "vocabulary" => shape.codes = (value - 2) / super::workload::LEVELS,
        _ => shape.tokens = value,
    }
    shape
}

/// Fine-tuning steps around `base`, each size on its own; those above `largest` are left out.
pub fn run(watch: &Stopwatch, base: &Shape, largest: usize) -> Result<Report> {
    let mut report = Report::begin("scaling", watch)?;
    let rows: Vec<(&str, usize)> = AXES
        .iter()
        .flat_map(|(axis, values)| values.iter().map(move |&v| (*axis, v)))
        .filter(|&(_, value)| value <= largest)
        .collect();
    let mut progress = Progress::new();
    progress.stage("scaling", 0, rows.len() as u64);
    for (number, &(axis, value)) in (1..).zip(&rows) {
        report
            .entries
            .push(row(watch, &with(base, axis, value), axis, value)?);
        progress.step(number, &[]);
    }
    progress.finish();
    report.end(watch)
}

fn row(watch: &Stopwatch, shape: &Shape, axis: &str, value: usize) -> Result<Entry> {
    let mut step = FineTuning::new(&watch.device, shape)?;
    let readings = watch.repeat(|| {
        let started = Instant::now();
        step.step()?;
        Ok(Some(started.elapsed().as_secs_f64()))
    })?;
    let work = formula::fine_tuning(&shape.letters(), step.engine.layout(), &step.sizes(), false);
    let cost = Cost {
        operations: work.operations(),
        bytes: work.bytes(),
    };
    let seconds = Summary::of(readings)?;
    Ok(Entry::new(format!("{axis} {value}"), seconds, cost).with("tokens", step.tokens() as f64))
}

/// Time over what the trend gives. The trend is the time per predicted operation, in the middle of all rows.
fn over_trend(report: &Report) -> Vec<f64> {
    let pace = |e: &Entry| e.seconds.median / e.operations as f64;
    let mut paces: Vec<f64> = report.entries.iter().map(pace).collect();
    paces.sort_by(f64::total_cmp);
    let middle = paces[paces.len() / 2];
    report.entries.iter().map(|e| pace(e) / middle).collect()
}

/// The table, and how many rows are over the limit.
pub fn table(report: &Report) -> String {
    let mut text = String::from(
        "\nsize               tokens    time/token  operations/token  GFLOP/s  time over trend\n",
    );
    let over = over_trend(report);
    for (entry, &over) in report.entries.iter().zip(&over) {
        let tokens = entry.figures["tokens"];
        let _ = writeln!(
            text,
            "{:16} {:>8} {:>10.2} us  {:>13.2} M  {:>8.1}  {over:>6.2}{}",
            entry.name,
            tokens,
            1e6 * entry.seconds.median / tokens,
            1e-6 * entry.operations as f64 / tokens,
            1e-9 * entry.operations as f64 / entry.seconds.median,
            if over > LIMIT { "  OVER" } else { "" },
        );
    }
    let count = over.iter().filter(|&&ratio| ratio > LIMIT).count();
    let _ = writeln!(text, "{count} rows over {LIMIT} times the trend");
    text
}
