//! `vstar validate`: is this GPU right?

use std::collections::BTreeMap;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde::Serialize;

use super::DeviceArgs;
use super::whole_steps::{HALF_STEPS, Step, WHOLE_STEPS};
use crate::device::choose::{NO_HARDWARE, adapters, choose_index};
use crate::device::gpu::{Gpu, GpuOptions, describe};
use crate::device::lockstep::{HALF_TOLERANCE, TOLERANCE, Worst};
use crate::device::trial::attempt;
use crate::device::tuning::Forms;
use crate::device::{DeviceInfo, DeviceRef, Precision};
use crate::export::dump::dump;
use crate::kernels::harness::{Harness, Met, lockstep_pair};
use crate::kernels::{self, Cases};
use crate::run::write_folder;

/// Check every kernel of this device against its twin on the CPU
///
/// Runs every kernel over many shapes, then a whole step of fine-tuning and one of reinforcement
/// learning in lockstep, and prints the worst relative error of each, and of each form of a kernel.
/// Everything is done twice: as the adapter offers, and under the least limits any adapter has, with
/// every access checked; and again with f16 where it is offered. Fails if any error is too large.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vstar validate --device gpu
  vstar validate --device llvmpipe --kernel attention
  vstar validate --dump launches")]
pub struct Args {
    /// Only the kernels whose name contains this; the whole steps are then left out
    #[arg(long, value_name = "PATTERN")]
    kernel: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Compare nothing: make this folder, of what another implementation of WebGPU needs to compare
    ///
    /// Inputs, shaders and the CPU's outputs of every kernel's launches, in every form; the whole steps
    /// are left out. `scripts/dawn-check` replays it. Needs no GPU.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["json", "device", "backend", "form"])]
    dump: Option<PathBuf>,

    #[command(flatten)]
    device: DeviceArgs,
}

/// How the adapter is opened for each of the two comparisons.
const OPENINGS: [(&str, GpuOptions); 2] = [
    (
        "with the adapter's own limits",
        GpuOptions {
            // A write out of bounds meets the sentinels around the buffers of the cases.
            exposed: true,
            ..GpuOptions::DEFAULT
        },
    ),
    (
        "under default limits, checked",
        GpuOptions {
            checked: true,
            bare: true,
            ..GpuOptions::DEFAULT
        },
    ),
];

/// For one comparison; software adapters are slow, but a GPU that hangs must be told from them.
const LIMIT: Duration = Duration::from_secs(900);

/// What was compared, whether it agreed, and the forms that could have been.
struct Compared {
    worst: Worst,
    outcome: Result<()>,
    met: Met,
    /// Whether there is f16 to compare too.
    halves: bool,
}

#[derive(Clone, Copy)]
enum Check {
    Kernel(&'static str, Cases),
    Step(&'static str, Step),
    /// One with f16.
    HalfStep(&'static str, Step),
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::Kernel(name, _) | Check::Step(name, _) | Check::HalfStep(name, _) => name,
        }
    }

    /// Runs it on a lockstep of the CPU and `adapter`.
    fn run(
        self,
        adapter: &wgpu::Adapter,
        (options, precision): (GpuOptions, Precision),
    ) -> Result<Compared> {
        let adapter = adapter.clone();
        attempt(LIMIT, move || {
            let pair = lockstep_pair(Arc::new(Gpu::open(&adapter, options)?));
            let device: DeviceRef = pair.clone();
            let (mut met, mut halves) = (Met::new(), false);
            let outcome = match self {
                Check::Kernel(_, cases) => {
                    let mut harness = Harness::with_precision(device.clone(), precision);
                    let outcome = cases(&mut harness);
                    met = harness.met();
                    halves = harness.has_reals() && device.has_halves();
                    outcome
                }
                Check::Step(_, step) | Check::HalfStep(_, step) => step(&device),
            };
            let worst = pair.worst();
            Ok(Compared {
                worst,
                outcome,
                met,
                halves,
            })
        })
    }
}

#[derive(Serialize)]
struct Report {
    device: DeviceInfo,
    tolerance: f64,
    /// Of outputs stored as f16; none where the adapter has no f16.
    half_tolerance: Option<f64>,
    checks: Vec<Row>,
    passed: usize,
    failed: usize,
}

/// What came of one check, both openings together.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    whole_step: bool,
    launches: u64,
    /// None where it is not finite, or nothing was compared.
    worst_relative_error: Option<f64>,
    /// By `kernel`, or `kernel/form` where there are several forms.
    kernels: BTreeMap<String, KernelRow>,
    passed: bool,
    error: Option<String>,
}

#[derive(Serialize)]
struct KernelRow {
    launches: u64,
    worst_relative_error: f64,
}

impl Row {
    /// In `form`, or else in every form: the kernels' cases in each, the whole steps in the usual ones.
    fn of(check: Check, adapter: &wgpu::Adapter, form: Option<&'static str>) -> Row {
        let mut kernels: BTreeMap<_, KernelRow> = BTreeMap::new();
        let mut errors = Vec::new();
        let halves = matches!(check, Check::HalfStep(..));
        for (how, options) in OPENINGS {
            // f16 is no default feature.
            if halves && options.bare {
                continue;
            }
            let first = form.map_or(Forms::Fixed, Forms::Named);
            let mut left = vec![(first, Precision::F32)];
            while let Some((forms, precision)) = left.pop() {
                let options = GpuOptions { forms, ..options };
                let compared = check
                    .run(adapter, (options, precision))
                    .unwrap_or_else(|error| Compared {
                        worst: Worst::new(),
                        outcome: Err(error),
                        met: Met::new(),
                        halves: false,
                    });
                match compared.outcome {
                    Err(error) => errors.push(format!("{how}: {error:#}")),
                    Ok(()) if compared.worst.is_empty() => {
                        errors.push(format!("{how}: nothing was compared"));
                    }
                    Ok(()) => {}
                }
                for (kernel, (error, launches)) in compared.worst {
                    let row = kernels.entry(kernel).or_insert(KernelRow {
                        launches: 0,
                        worst_relative_error: 0.0,
                    });
                    row.launches += launches;
                    row.worst_relative_error = row.worst_relative_error.max(error);
                }
                if precision == Precision::F16 {
                    continue;
                }
                if compared.halves {
                    left.push((forms, Precision::F16));
                }
                if forms == Forms::Fixed {
                    let met = compared.met.into_iter();
                    let possible = met.filter(|&(_, bare)| bare || !options.bare);
                    left.extend(possible.map(|(name, _)| (Forms::Named(name), precision)));
                }
            }
        }
        let worst = kernels.values().map(|k| k.worst_relative_error);
        Row {
            name: check.name(),
            whole_step: !matches!(check, Check::Kernel(..)),
            launches: kernels.values().map(|k| k.launches).sum(),
            worst_relative_error: worst.reduce(f64::max).filter(|error| error.is_finite()),
            kernels,
            passed: errors.is_empty(),
            error: (!errors.is_empty()).then(|| errors.join("; ")),
        }
    }

    fn write(&self, out: &mut impl Write, width: usize) -> Result<()> {
        let error = match self.worst_relative_error {
            Some(error) => format!("{error:.1e}"),
            None => "-".into(),
        };
        let verdict = if self.passed { "PASS" } else { "FAIL" };
        write!(
            out,
            "{:width$}  {:>8}  {error:>11}  {verdict}",
            self.name, self.launches
        )?;
        if let Some(message) = &self.error {
            let lines: Vec<_> = message.lines().map(str::trim).collect();
            write!(out, "  {}", lines.join(" "))?;
        }
        writeln!(out)?;
        Ok(out.flush()?)
    }
}

/// Compares.
///
/// # Errors
/// There is no GPU to compare, no kernel of that name, or some comparison fails; with `--dump` a folder that is there
/// already, or the disk.
pub fn run(args: Args) -> Result<()> {
    let mut checks = select(args.kernel.as_deref())?;
    if let Some(folder) = &args.dump {
        return write_dump(folder, &checks);
    }
    let form = args.device.form_name()?;
    let adapter = subject(&args.device)?;
    let halves = adapter.features().contains(wgpu::Features::SHADER_F16);
    if !halves {
        checks.retain(|check| !matches!(check, Check::HalfStep(..)));
    }
    let device = describe(&adapter);
    let width = checks
        .iter()
        .map(|check| check.name().len())
        .max()
        .unwrap_or(0)
        .max(6);
    let mut out = stdout().lock();
    if !args.json {
        writeln!(
            out,
            "{device} against the CPU, tolerance {TOLERANCE:.0e}, of f16 {HALF_TOLERANCE:.0e}"
        )?;
        if !halves {
            writeln!(out, "this adapter has no f16 (SHADER_F16)")?;
        }
        writeln!(out, "{:width$}  launches  worst error", "kernel")?;
    }
    let mut rows = Vec::new();
    for check in checks {
        let row = Row::of(check, &adapter, form);
        if !args.json {
            row.write(&mut out, width)?;
        }
        rows.push(row);
    }
    let failed = rows.iter().filter(|row| !row.passed).count();
    let passed = rows.len() - failed;
    let first = rows
        .iter()
        .find_map(|row| Some(format!("{} {}", row.name, row.error.as_ref()?)));
    if args.json {
        let report = Report {
            device,
            tolerance: TOLERANCE,
            half_tolerance: halves.then_some(HALF_TOLERANCE),
            checks: rows,
            passed,
            failed,
        };
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write_forms(&mut out, &rows)?;
        writeln!(out, "{passed} passed, {failed} failed")?;
    }
    match first {
        Some(first) => bail!(
            "{failed} of {} checks failed, first {first}",
            passed + failed
        ),
        None => Ok(()),
    }
}

/// Writes the kernels' launches to a folder.
fn write_dump(folder: &Path, checks: &[Check]) -> Result<()> {
    let cases = checks.iter().filter_map(|check| match *check {
        Check::Kernel(name, cases) => Some((name, cases)),
        _ => None,
    });
    let cases: Vec<_> = cases.collect();
    write_folder(folder, |partial| {
        let written = dump(partial, &cases)?;
        let runs = written.launches.iter().map(|launch| launch.runs.len());
        writeln!(
            stdout(),
            "{}: {} launches of {} kernels' cases in {} shaders, {} runs",
            folder.display(),
            written.launches.len(),
            cases.len(),
            written.shaders.len(),
            runs.sum::<usize>()
        )?;
        Ok(())
    })
}

/// Every kernel form that ran, with its worst error in the cases and in the whole steps.
fn write_forms(out: &mut impl Write, rows: &[Row]) -> Result<()> {
    let mut forms: BTreeMap<&str, (u64, [Option<f64>; 2])> = BTreeMap::new();
    for row in rows {
        for (form, run) in &row.kernels {
            let (launches, worst) = forms.entry(form).or_default();
            *launches += run.launches;
            let worst = &mut worst[row.whole_step as usize];
            *worst = Some(worst.unwrap_or(0.0).max(run.worst_relative_error));
        }
    }
    let width = forms.keys().map(|form| form.len()).max().unwrap_or(0);
    let width = width.max("kernel form".len());
    writeln!(
        out,
        "\n{:width$}  launches  worst in cases  in whole steps",
        "kernel form"
    )?;
    for (form, (launches, worst)) in forms {
        let [cases, steps] = worst.map(|w| w.map_or("-".into(), |error| format!("{error:.1e}")));
        writeln!(
            out,
            "{form:width$}  {launches:>8}  {cases:>14}  {steps:>14}"
        )?;
    }
    Ok(writeln!(out)?)
}

/// The kernels whose name contains the pattern; all of them, and the whole steps, without one.
fn select(pattern: Option<&str>) -> Result<Vec<Check>> {
    let matching = |name: &str| pattern.is_none_or(|pattern| name.contains(pattern));
    let kernels = kernels::CASES.iter().filter(|(name, _)| matching(name));
    let mut checks: Vec<_> = kernels
        .map(|&(name, cases)| Check::Kernel(name, cases))
        .collect();
    match pattern {
        None => {
            let whole = WHOLE_STEPS.iter();
            checks.extend(whole.map(|&(name, step)| Check::Step(name, step)));
            let halves = HALF_STEPS.iter();
            checks.extend(halves.map(|&(name, step)| Check::HalfStep(name, step)));
        }
        Some(pattern) => {
            let known: Vec<_> = kernels::CASES.iter().map(|(name, _)| *name).collect();
            ensure!(
                !checks.is_empty(),
                "--kernel {pattern}: no kernel's name contains it; there are {}",
                known.join(", ")
            );
        }
    }
    Ok(checks)
}

/// The adapter to check. The CPU device is none: it would only be compared with itself.
fn subject(args: &DeviceArgs) -> Result<wgpu::Adapter> {
    let choice = args.choice();
    ensure!(
        choice.device != "cpu",
        "--device cpu: the CPU is what a GPU is compared with, and comparing it with itself proves nothing; choose a \
         GPU, or a software adapter with --device gpu"
    );
    let mut found = adapters(&choice.backend)?;
    match choose_index(&choice.device, &found)? {
        Some(index) => Ok(found.swap_remove(index)),
        None => bail!("nothing to validate: {NO_HARDWARE}; `vstar doctor` lists the adapters"),
    }
}

#[cfg(test)]
mod tests;
