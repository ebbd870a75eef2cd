//! `vstar doctor`: what is there to compute on, and does it work?

use std::io::{Write, stdout};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde::Serialize;

use super::DeviceArgs;
use crate::device::choose::{NO_HARDWARE, adapters, choose_index};
use crate::device::cpu::Cpu;
use crate::device::gpu::{Gpu, GpuOptions};
use crate::device::report::{AdapterReport, Host};
use crate::device::trial::attempt;
use crate::device::{Buffer, DeviceRef, Stream};
use crate::kernels::fill::fill_u32;
use crate::kernels::harness::{Harness, lockstep_pair};
use crate::kernels::matmul::{Dims, Form, matmul};
use crate::kernels::{Cases, column_sum, log_softmax, swiglu};

/// List the adapters found, and test every device
///
/// Shows backends, limits, features, drivers and memory, what `--device auto` would take, and the
/// outcome of a self-test of about a second a device: each one found, or only the one that --device
/// names. Fails if the device that would be used fails its test.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vstar doctor
  vstar doctor --device gpu --json")]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    device: DeviceArgs,
}

/// A self-test takes about a second; a driver that compiles slowly gets some more.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct Report {
    version: &'static str,
    host: Host,
    adapters: Vec<AdapterReport>,
    chosen: Chosen,
    self_tests: Vec<SelfTest>,
}

/// What `--device` comes to.
#[derive(Serialize)]
struct Chosen {
    asked: String,
    backend: String,
    /// The adapter's index; none for the CPU device.
    adapter: Option<usize>,
    name: String,
    why: &'static str,
}

#[derive(Serialize)]
struct SelfTest {
    /// The adapter's index; none for the CPU device.
    adapter: Option<usize>,
    name: String,
    passed: bool,
    error: Option<String>,
    #[serde(flatten)]
    measured: Option<Measured>,
}

#[derive(Serialize)]
struct Measured {
    /// Until the device is ready.
    open_ms: f64,
    /// Upload, one small launch, and its result back on the host; the median of some.
    round_trip_us: f64,
    /// Iterations after which its shaders' loops end, where there is such a limit.
    longest_loop: Option<u32>,
}

/// Lists and tests.
///
/// # Errors
/// `--device` names nothing, or what it names fails its self-test.
pub fn run(args: Args) -> Result<()> {
    let choice = args.device.choice();
    let found = adapters(&choice.backend)?;
    let adapter = choose_index(&choice.device, &found)?;
    let reports: Vec<_> = (0..)
        .zip(&found)
        .map(|(i, a)| AdapterReport::new(i, a))
        .collect();
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        host: Host::new(),
        chosen: Chosen {
            adapter,
            name: adapter.map_or("cpu".into(), |i| reports[i].name.clone()),
            why: match (choice.device.as_str(), adapter) {
                ("auto", None) => NO_HARDWARE,
                ("auto", Some(_)) => "the best hardware GPU found",
                _ => "asked for by --device",
            },
            asked: choice.device,
            backend: choice.backend,
        },
        adapters: reports,
        self_tests: Vec::new(),
    };
    let mut out = stdout().lock();
    if !args.json {
        // Before any driver is asked to do something: should one crash, the list is there.
        write_listing(&mut out, &report)?;
    }
    let everything = report.chosen.asked == "auto";
    let devices = (0..found.len()).map(Some).chain([None]);
    for device in devices.filter(|&device| everything || device == adapter) {
        let test = self_test(device, &found);
        if !args.json {
            write_test(&mut out, &test)?;
        }
        report.self_tests.push(test);
    }
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    }
    let used = report
        .self_tests
        .iter()
        .find(|test| test.adapter == adapter);
    if let Some(SelfTest {
        name,
        error: Some(error),
        ..
    }) = used
    {
        bail!("{name} fails its self-test: {error} (choose another with --device)");
    }
    Ok(())
}

fn write_listing(out: &mut impl Write, report: &Report) -> Result<()> {
    let Chosen {
        asked, name, why, ..
    } = &report.chosen;
    writeln!(out, "vstar     {}", report.version)?;
    writeln!(out, "host      {}", report.host)?;
    writeln!(out, "device    {asked}: {name}, {why}")?;
    writeln!(out, "adapters  {}", report.adapters.len())?;
    for adapter in &report.adapters {
        writeln!(out, "{adapter}")?;
    }
    writeln!(out, "self-test")?;
    Ok(out.flush()?)
}

fn write_test(out: &mut impl Write, test: &SelfTest) -> Result<()> {
    let verdict = if test.passed { "PASS" } else { "FAIL" };
    let index = test.adapter.map_or("cpu".into(), |i| i.to_string());
    let detail = match (&test.error, &test.measured) {
        (Some(error), _) => error.lines().map(str::trim).collect::<Vec<_>>().join(" "),
        (None, Some(measured)) => {
            let [open, trip] = [measured.open_ms, measured.round_trip_us];
            let ends = |most| format!(", its driver ends loops after {most} iterations");
            let loops = measured.longest_loop.map(ends).unwrap_or_default();
            format!("opened in {open:.0} ms, round trip {trip:.0} us{loops}")
        }
        (None, None) => String::new(),
    };
    match test.adapter {
        Some(_) => writeln!(out, "  {index:<3} {verdict}  {}: {detail}", test.name)?,
        None => writeln!(out, "  {index:<3} {verdict}  {detail}")?,
    }
    Ok(out.flush()?)
}

/// Tests one of the adapters, or the CPU device.
fn self_test(adapter: Option<usize>, found: &[wgpu::Adapter]) -> SelfTest {
    let name = adapter.map_or("cpu".into(), |i| found[i].get_info().name);
    let outcome = match adapter.map(|i| found[i].clone()) {
        None => attempt(LIMIT, || measure(|| Ok(Arc::new(Cpu::new())))),
        Some(adapter) => attempt(LIMIT, move || {
            let open = || -> Result<DeviceRef> {
                Ok(Arc::new(Gpu::open(&adapter, GpuOptions::default())?))
            };
            let measured = measure(open)?;
            compare(open()?)?;
            Ok(measured)
        }),
    };
    let (error, measured) = match outcome {
        Ok(measured) => (None, Some(measured)),
        Err(error) => (Some(format!("{error:#}")), None),
    };
    SelfTest {
        adapter,
        name,
        passed: error.is_none(),
        error,
        measured,
    }
}

/// Opens the device, asks it something whose answer is known, and times it.
fn measure(open: impl Fn() -> Result<DeviceRef>) -> Result<Measured> {
    let start = Instant::now();
    let device = open()?;
    let open_ms = 1e3 * start.elapsed().as_secs_f64();
    check_product(&device)?;
    Ok(Measured {
        open_ms,
        round_trip_us: round_trip_us(&device)?,
        longest_loop: Some(device.longest_loop()).filter(|&most| most < u32::MAX),
    })
}

/// A matrix product of small integers, which f32 holds exactly: right to the bit on any device.
fn check_product(device: &DeviceRef) -> Result<()> {
    let (m, n, k) = (67, 45, 129);
    let element = |i: usize| (i * 7919 % 17) as i32 - 8;
    let matrix = |label, len: usize| {
        let values: Vec<f32> = (0..len).map(|i| element(i) as f32).collect();
        Buffer::with_f32(device, label, &values)
    };
    let a = matrix("a", m * k)?;
    let b = matrix("b", n * k)?;
    let c = Buffer::new(device, "c", m * n)?;
    let mut stream = Stream::new();
    matmul(
        &mut stream,
        Form::NT,
        a.all(),
        b.all(),
        c.all(),
        Dims { m, n, k },
        false,
    );
    device.run(&stream)?;
    for (i, got) in c.read_f32()?.into_iter().enumerate() {
        let (row, column) = (i / n, i % n);
        let want: i32 = (0..k)
            .map(|l| element(row * k + l) * element(column * k + l))
            .sum();
        ensure!(
            got == want as f32,
            "a matrix product is wrong: row {row}, column {column} is {got}, and should be {want}"
        );
    }
    Ok(())
}

/// The median time of an upload, a small launch and its result, in microseconds.
fn round_trip_us(device: &DeviceRef) -> Result<f64> {
    let y = Buffer::new(device, "y", 64)?;
    let mut stream = Stream::new();
    let mut times = Vec::new();
    // The first makes the pipeline.
    for turn in 0..34u32 {
        stream.clear();
        fill_u32(&mut stream, y.all(), turn);
        let start = Instant::now();
        device.run(&stream)?;
        let got = y.read_u32()?;
        times.push(1e6 * start.elapsed().as_secs_f64());
        ensure!(
            got == [turn; 64],
            "a buffer set to {turn} holds {:?}",
            got[0]
        );
    }
    let warm = &mut times[1..];
    warm.sort_by(f64::total_cmp);
    Ok(warm[warm.len() / 2])
}

/// A few kernels in lockstep with the CPU; `vstar validate` does it with all.
fn compare(device: DeviceRef) -> Result<()> {
    let mut harness = Harness::new(lockstep_pair(device));
    for cases in SELF_TEST {
        cases(&mut harness)?;
    }
    Ok(())
}

/// Sums in workgroup memory, exponentials and logarithms: what a GPU is most likely to get wrong, and quickly tested.
const SELF_TEST: [Cases; 3] = [column_sum::cases, log_softmax::cases, swiglu::cases];
