//! What a bench found, as it is printed, saved and compared.

use super::ceilings::Ceilings;
use super::stopwatch::{Stopwatch, Summary};
use super::workload::SEED;
use crate::device::timing::Clock;
use crate::device::{Cost, DeviceInfo};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// The schema's name; another schema gets another.
const FORMAT: &str = "vstar bench 1";

/// One run of `vstar bench`. `docs/performance.md` describes the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub format: String,
    pub version: String,
    /// `kernels`, `steps`, `scaling` or `decode`.
    pub bench: String,
    /// As it was typed.
    pub command: Vec<String>,
    pub device: DeviceInfo,
    pub seed: u64,
    /// Readings per figure.
    pub repeat: usize,
    pub clock: Clock,
    /// The clock's reading of a long launch over the host's.
    pub clock_agreement: f64,
    pub ceilings: Ceilings,
    pub entries: Vec<Entry>,
}

/// One thing that was timed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Unique in a report; the same thing has the same name in every report.
    pub name: String,
    pub seconds: Summary,
    pub operations: u64,
    pub bytes: u64,
    /// Whatever else belongs to it, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<String, f64>,
}

impl Entry {
    pub fn new(name: impl Into<String>, seconds: Summary, cost: Cost) -> Entry {
        Entry {
            name: name.into(),
            seconds,
            operations: cost.operations,
            bytes: cost.bytes,
            figures: BTreeMap::new(),
        }
    }

    pub fn cost(&self) -> Cost {
        Cost {
            operations: self.operations,
            bytes: self.bytes,
        }
    }

    /// Adds a figure.
    pub fn with(mut self, name: impl Into<String>, value: f64) -> Entry {
        self.figures.insert(name.into(), value);
        self
    }
}

impl Report {
    /// Measures the ceilings; entries are yet to come.
    pub fn begin(bench: &str, watch: &Stopwatch) -> Result<Report> {
        Ok(Report {
            format: FORMAT.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            bench: bench.into(),
            command: std::env::args().collect(),
            device: watch.device.info().clone(),
            seed: SEED,
            repeat: watch.repeat,
            clock: watch.clock,
            clock_agreement: watch.agreement,
            ceilings: Ceilings::measure(watch)?,
            entries: Vec::new(),
        })
    }

    /// Measures the ceilings once more and keeps the better ones.
    pub fn end(mut self, watch: &Stopwatch) -> Result<Report> {
        self.ceilings = self.ceilings.best(Ceilings::measure(watch)?);
        Ok(self)
    }

    /// Writes the report. Errors name the file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads a report. Errors name the file: it is not there, no report, or of another schema.
    pub fn load(path: &Path) -> Result<Report> {
        let name = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        let value: serde_json::Value =
            serde_json::from_str(&text).with_context(|| format!("{name}: not valid JSON"))?;
        let format = value["format"].as_str();
        ensure!(
            format == Some(FORMAT),
            "{name}: not a report of `vstar bench --json` ({})",
            match format {
                Some(other) => format!("its format is `{other}`, this program reads `{FORMAT}`"),
                None => "it has no `format`".into(),
            }
        );
        serde_json::from_value(value).with_context(|| format!("{name}: not a whole report"))
    }
}

/// The head of what is printed.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let clock = match self.clock {
            Clock::Timestamps => "timestamps",
            Clock::Wall => "wall clock",
        };
        writeln!(f, "device    {}", self.device)?;
        writeln!(
            f,
            "clock     {clock}, {:.0}% of the host's clock over a long launch",
            100.0 * self.clock_agreement
        )?;
        write!(f, "ceilings  {}", self.ceilings)
    }
}

/// Seconds in the unit that suits them.
pub fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} us", 1e6 * s),
        s if s < 1.0 => format!("{:.2} ms", 1e3 * s),
        s => format!("{s:.2} s"),
    }
}
