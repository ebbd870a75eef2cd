//! `vstar tune`: which form of each kernel is fastest on this adapter.

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};

use super::whole_steps::Steps;
use super::{DeviceArgs, train};
use crate::config::Config;
use crate::device::choose::{NO_HARDWARE, choose_adapter};
use crate::device::gpu::{Gpu, GpuOptions, Measurement};
use crate::device::tuning::{self, Forms};
use crate::device::{Device, DeviceRef};
use crate::learn::job;

/// Measure the forms of every kernel on this adapter and keep the choice
///
/// Takes a step of fine-tuning, one of reinforcement learning and one of decoding with the settings and
/// data given, and times each form of a kernel that fits on each shape that occurs. Other commands
/// measure what they need when they need it; this one measures all anew, and shows it. The choice is
/// kept in the user's cache folder (VSTAR_CACHE names another); losing it costs time only.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "\
Examples:
  vstar tune --device gpu
  vstar tune --data data/office model.hidden_size=256",
    after_long_help = super::settings_help()
)]
pub struct Args {
    /// Folder with the data set; the built-in shop if not given
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// TOML file with settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Settings that win over the file's, for example model.hidden_size=256
    #[arg(value_name = "key=value", value_parser = super::setting)]
    overrides: Vec<String>,
}

impl Args {
    fn resolve(&self) -> Result<Config> {
        let mut overrides = Vec::new();
        if let Some(data) = &self.data {
            overrides.push(format!("data.path={}", train::absolute(data)?));
        }
        overrides.extend_from_slice(&self.overrides);
        let mut config = Config::load(self.config.as_deref(), &overrides)?;
        if self.config.is_none() && config.data.path.is_empty() {
            config = Config::load_text("assets/shop.toml", train::SHOP, &overrides)?;
        }
        // An untrained model hits no target; how near its candidates come still tells them apart.
        config.reward.semantic = 1.0;
        Ok(config)
    }
}

/// Measures.
///
/// # Errors
/// There is no GPU, or a step fails.
pub fn run(args: Args) -> Result<()> {
    let config = args.resolve()?;
    let Some(adapter) = choose_adapter(&args.device.choice())? else {
        bail!("nothing to tune: the CPU device has one form of each kernel, and {NO_HARDWARE}");
    };
    let forms = args.device.form_name()?;
    let options = GpuOptions {
        forms: forms.map_or(Forms::Remeasured, Forms::Named),
        ..Default::default()
    };
    let gpu = Arc::new(Gpu::open(&adapter, options)?);
    let device: DeviceRef = gpu.clone();
    let mut out = stdout().lock();
    writeln!(out, "device  {}", gpu.info())?;
    out.flush()?;
    let steps = Steps {
        documents: config.sft.batch,
        part: config.sft.batch.div_ceil(config.sft.accumulate),
        data: job::load_data(&config)?,
        config,
    };
    type Taken = fn(&Steps, &DeviceRef) -> Result<()>;
    let taken: [(&str, Taken); 3] = [
        ("sft", Steps::fine_tune),
        ("rl", Steps::reinforce),
        ("eval", Steps::decode),
    ];
    for (name, step) in taken {
        let started = Instant::now();
        step(&steps, &device)?;
        let first = started.elapsed().as_secs_f64();
        let started = Instant::now();
        step(&steps, &device)?;
        let second = started.elapsed().as_secs_f64();
        writeln!(out, "{name:7} first {first:.2} s, then {second:.2} s")?;
        out.flush()?;
    }
    write_table(&mut out, &gpu.measurements())?;
    if let Some(path) = tuning::cache_file(gpu.info()) {
        writeln!(out, "kept    {}", path.display())?;
    }
    Ok(())
}

/// One line per shape class and form; the chosen one is marked.
fn write_table(out: &mut impl Write, measurements: &[Measurement]) -> Result<()> {
    let shape = |m: &Measurement| {
        let shape = m.class.strip_prefix(m.kernel).unwrap_or(&m.class);
        let end = shape.find(':').unwrap_or(shape.len());
        shape[..end].trim().to_string()
    };
    let width = |text: &dyn Fn(&Measurement) -> usize| measurements.iter().map(text).max();
    let kernels = width(&|m| m.kernel.len()).unwrap_or(0).max(6);
    let shapes = width(&|m| shape(m).len()).unwrap_or(0).max(14);
    writeln!(
        out,
        "\n{:kernels$}  {:shapes$}  form           time (us)   GFLOP/s      GB/s",
        "kernel", "shape at most"
    )?;
    for m in measurements {
        let rate = |amount: u64| match amount {
            0 => "-".into(),
            n => format!("{:.1}", n as f64 / m.seconds / 1e9),
        };
        writeln!(
            out,
            "{:kernels$}  {:shapes$}  {:13} {:>10.1}  {:>8}  {:>8}  {}",
            m.kernel,
            shape(m),
            m.form,
            1e6 * m.seconds,
            rate(m.cost.operations),
            rate(m.cost.bytes),
            if m.chosen { "chosen" } else { "" }
        )?;
    }
    Ok(writeln!(out)?)
}
