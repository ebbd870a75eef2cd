//! `vstar bench`: how fast is it here, and how fast could it be?

use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::Result;
use clap::builder::{RangedU64ValueParser, TypedValueParser};
use clap::{Subcommand, value_parser};

use super::DeviceArgs;
use crate::bench::report::Report;
use crate::bench::stopwatch::Stopwatch;
use crate::bench::workload::{LEVELS, Shape};
use crate::bench::{compare, decode, kernels, scaling, steps};
use crate::config::Config;
use crate::device::Precision;
use crate::device::choose;
use crate::device::gpu::GpuOptions;
use crate::learn::job;

/// Measure kernels, steps or decoding, and compare two measurements
///
/// Times are printed beside what the work costs at least (docs/performance.md) and what this device
/// can do at most: a copy and a loop of multiply-adds are measured first. Models and data are random.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vstar bench kernels --kernel matmul --device gpu
  vstar bench steps --hidden 128 --hidden 256 --json before.json
  vstar bench compare before.json after.json")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Kernels(Kernels),
    Steps(Steps),
    Decode(Decode),
    Compare(Compare),
}

/// Every kernel in every form, at the sizes it has in whole steps
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vstar bench kernels --device gpu
  vstar bench kernels --kernel attention --hidden 256 --repeat 50")]
struct Kernels {
    /// Only what has this in its name (KERNEL/FORM/SIZES)
    #[arg(
        long,
        value_name = "PATTERN",
        default_value = "",
        hide_default_value = true
    )]
    kernel: String,

    /// Width of the model
    #[arg(long, value_name = "D", default_value_t = 128, value_parser = width())]
    hidden: u64,

    /// Documents of a fine-tuning step, and prompts of a rollout
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = batch())]
    batch: u64,

    #[command(flatten)]
    common: Common,
}

/// Fine-tuning, V-STAR and decoding, whole and by part
///
/// Per step: time, tokens per second, what decoding, forward pass, backward pass and update take, and
/// what a warm step asks of the device.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vstar bench steps --device cpu --hidden 256
  vstar bench steps --history 66 rl.kl_beta=0
  vstar bench steps --scaling --json scaling.json")]
struct Steps {
    /// Width of the model; may be given several times [default: 128 and 256]
    #[arg(long, value_name = "D", value_parser = width())]
    hidden: Vec<u64>,

    /// Documents of a fine-tuning step, and prompts of a rollout
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = batch())]
    batch: u64,

    /// Items of a prompt, three tokens each; documents have one item more
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = value_parser!(u64).range(1..=1024))]
    history: u64,

    /// Instead, time per token against every size, beside the operations predicted
    #[arg(long, conflicts_with_all = ["hidden", "history", "settings"])]
    scaling: bool,

    /// With --scaling, leave sizes above this out
    #[arg(
        long,
        value_name = "SIZE",
        requires = "scaling",
        default_value_t = 32_768
    )]
    largest: usize,

    #[command(flatten)]
    common: Common,

    /// Settings of the V-STAR step, for example rl.kl_beta=0
    #[arg(value_name = "key=value", value_parser = super::setting)]
    settings: Vec<String>,
}

/// Cost per node of beam search and of VED, beside plain decoding
///
/// Plain decoding runs one new token per prompt and pass. VED is run at budgets that double.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vstar bench decode --device gpu --batch 64 --hidden 256")]
struct Decode {
    /// Width of the model
    #[arg(long, value_name = "D", default_value_t = 256, value_parser = width())]
    hidden: u64,

    /// Prompts decoded together
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = batch())]
    batch: u64,

    #[command(flatten)]
    common: Common,
}

/// Ratios of the times of two reports
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vstar bench compare before.json after.json")]
struct Compare {
    /// What `--json` wrote
    a: PathBuf,
    /// What is compared with it
    b: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Readings per figure, after one to warm up
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = value_parser!(u64).range(1..=10_000))]
    repeat: u64,

    /// Storage of activations and of the operands of products
    #[arg(long, default_value = "f32", value_parser = ["f32", "f16"])]
    precision: String,

    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    #[command(flatten)]
    device: DeviceArgs,
}

fn batch() -> RangedU64ValueParser {
    value_parser!(u64).range(1..=4096)
}

/// Four heads of even width.
fn width() -> impl TypedValueParser<Value = u64> {
    value_parser!(u64).range(8..=1024).try_map(|hidden| {
        let fits = hidden.is_multiple_of(8);
        fits.then_some(hidden).ok_or("a width is a multiple of 8")
    })
}

impl Common {
    fn watch(&self) -> Result<Stopwatch> {
        let options = GpuOptions {
            timed: true,
            ..self.device.options()?
        };
        let device = choose::open(&self.device.choice(), options)?;
        Stopwatch::new(device, self.repeat as usize)
    }

    fn precision(&self) -> Precision {
        match self.precision.as_str() {
            "f16" => Precision::F16,
            _ => Precision::F32,
        }
    }

    fn show(&self, report: &Report, table: String) -> Result<()> {
        let mut out = stdout().lock();
        write!(out, "{report}\n{table}")?;
        if let Some(path) = &self.json {
            report.save(path)?;
            writeln!(out, "figures   {}", path.display())?;
        }
        Ok(())
    }
}

/// The default shape but for its width, its batches and its precision.
fn shape(hidden: u64, batch: u64, common: &Common) -> Shape {
    Shape {
        precision: common.precision(),
        hidden: hidden as usize,
        documents: batch as usize,
        prompts: batch as usize,
        ..Shape::default()
    }
}

/// Measures or compares.
///
/// # Errors
/// No such device or kernel, no room on the device, or reports that cannot be read or compared.
pub fn run(args: Args) -> Result<()> {
    match args.what {
        What::Kernels(args) => {
            let shape = shape(args.hidden, args.batch, &args.common);
            let report = kernels::run(&args.common.watch()?, &shape, &args.kernel)?;
            args.common.show(&report, kernels::table(&report))
        }
        What::Steps(args) if args.scaling => {
            let base = shape(128, args.batch, &args.common);
            let report = scaling::run(&args.common.watch()?, &base, args.largest)?;
            args.common.show(&report, scaling::table(&report))
        }
        What::Steps(args) => {
            let widths = match args.hidden.as_slice() {
                [] => vec![128, 256],
                given => given.to_vec(),
            };
            let history = args.history as usize;
            let config = Config::load(None, &args.settings)?;
            // Either way of asking for it.
            let precision = args.common.precision().max(job::precision(&config));
            let of = |&hidden| Shape {
                history,
                precision,
                tokens: LEVELS * (history + 1),
                ..shape(hidden, args.batch, &args.common)
            };
            let shapes: Vec<_> = widths.iter().map(of).collect();
            let report = steps::run(&args.common.watch()?, &shapes, &config)?;
            args.common.show(&report, steps::table(&report))
        }
        What::Decode(args) => {
            let shape = shape(args.hidden, args.batch, &args.common);
            let report = decode::run(&args.common.watch()?, &shape)?;
            args.common.show(&report, decode::table(&report))
        }
        What::Compare(args) => {
            let (a, b) = (Report::load(&args.a)?, Report::load(&args.b)?);
            write!(stdout().lock(), "{}", compare::table(&a, &b)?)?;
            Ok(())
        }
    }
}
