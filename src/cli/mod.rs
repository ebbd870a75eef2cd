//! The command line: one file per command, each with its arguments and a `run`.

mod ablate;
mod bench;
mod data;
mod doctor;
mod embed;
mod eval;
mod probe;
mod recommend;
mod shaders;
mod sid;
mod train;
mod trained;
mod tune;
mod validate;
mod whole_steps;

use std::fmt::{self, Display, Formatter};
use std::io::{ErrorKind, Write, stderr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand, ValueEnum};

use crate::config::Config;
use crate::device::DeviceRef;
use crate::device::choose::{self, DeviceChoice};
use crate::device::gpu::GpuOptions;
use crate::device::tuning::Forms;
use crate::kernels;
use crate::run::Interrupted;

/// Trains a generative recommender with V-STAR on any GPU, or on the CPU
///
/// Takes interactions to a trained recommender: supervised fine-tuning, then V-STAR reinforcement
/// learning (value-guided decoding and Sibling-GRPO, arXiv 2602.10699), then a comparison with
/// baselines. Without any argument `vstar train` does all of it on a small built-in shop.
#[derive(Debug, Parser)]
#[command(name = "vstar", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  vstar train                          the whole job on the built-in shop
  vstar train --data DIR rl.steps=500  on your own data, with a setting changed
  vstar ablate --data DIR              what each part of V-STAR is worth there, at equal cost
  vstar train --help                   every option, and every setting with its default
  vstar doctor                         the GPUs found, and which one would be used";

#[derive(Debug, Subcommand)]
enum Command {
    Train(train::Args),
    Ablate(ablate::Args),
    Eval(eval::Args),
    Recommend(recommend::Args),
    Data(data::Args),
    Embed(embed::Args),
    Sid(sid::Args),
    Shaders(shaders::Args),
    Probe(probe::Args),
    Validate(validate::Args),
    Tune(tune::Args),
    Doctor(doctor::Args),
    Bench(bench::Args),
}

impl Cli {
    /// Runs the command that was given.
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Train(args) => train::run(args),
            Command::Ablate(args) => ablate::run(args),
            Command::Eval(args) => eval::run(args),
            Command::Recommend(args) => recommend::run(args),
            Command::Data(args) => data::run(&args),
            Command::Embed(args) => embed::run(args),
            Command::Sid(args) => sid::run(args),
            Command::Shaders(args) => shaders::run(args),
            Command::Probe(args) => probe::run(args),
            Command::Validate(args) => validate::run(args),
            Command::Tune(args) => tune::run(args),
            Command::Doctor(args) => doctor::run(args),
            Command::Bench(args) => bench::run(args),
        }
    }
}

/// Which device to compute on; the same for every command that computes.
#[derive(Clone, Debug, clap::Args)]
pub struct DeviceArgs {
    /// auto, cpu, gpu, an adapter's index, or a part of its name
    ///
    /// `auto` takes a hardware GPU if there is one, else the CPU. A software adapter is used only
    /// where `gpu` finds nothing else, or by its index or name. `vstar doctor` lists the adapters.
    #[arg(long, default_value = "auto", value_name = "auto|cpu|gpu|INDEX|NAME")]
    pub device: String,

    /// The graphics interface to reach a GPU by
    #[arg(long, value_enum, default_value_t)]
    pub backend: Backend,

    /// Run kernels in the form of this name where it fits, instead of the fastest
    ///
    /// `vstar tune` shows the forms. The results agree up to rounding.
    #[arg(long, value_name = "NAME")]
    pub form: Option<String>,
}

impl DeviceArgs {
    /// What was asked for.
    pub fn choice(&self) -> DeviceChoice {
        DeviceChoice {
            device: self.device.clone(),
            backend: self.backend.name().into(),
        }
    }

    /// Opens the chosen device.
    pub fn open(&self) -> Result<DeviceRef> {
        choose::open(&self.choice(), self.options()?)
    }

    /// Opens the chosen device as `config` wants it.
    pub fn open_for(&self, config: &Config) -> Result<DeviceRef> {
        let most = config.device.max_launch_ms as u64;
        let options = GpuOptions {
            max_launch: (most > 0).then(|| Duration::from_millis(most)),
            ..self.options()?
        };
        choose::open(&self.choice(), options)
    }

    /// As commands open a GPU. Errors: as [`DeviceArgs::form_name`].
    fn options(&self) -> Result<GpuOptions> {
        Ok(GpuOptions {
            forms: self.form_name()?.map_or(Forms::Measured, Forms::Named),
            ..Default::default()
        })
    }

    /// The form that was asked for. Errors: no kernel has a form of that name.
    fn form_name(&self) -> Result<Option<&'static str>> {
        let Some(asked) = &self.form else {
            return Ok(None);
        };
        let known = kernels::form_names();
        match known.iter().find(|name| *name == asked) {
            Some(name) => Ok(Some(name)),
            None => bail!("--form {asked}: unknown; there are {}", known.join(", ")),
        }
    }
}

impl Backend {
    fn name(self) -> &'static str {
        match self {
            Backend::Auto => "auto",
            Backend::Vulkan => "vulkan",
            Backend::Metal => "metal",
            Backend::Dx12 => "dx12",
        }
    }
}

/// The graphics interfaces to reach a GPU by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// Whichever the adapter offers
    #[default]
    Auto,
    Vulkan,
    Metal,
    Dx12,
}

/// Checks the form of a `key=value` argument; what it says is checked by [`Config::load`].
fn setting(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some(_) => Ok(text.to_owned()),
        None => Err("a setting is written key=value, for example sft.lr=0.001".into()),
    }
}

/// Every setting with its doc and default, for the long help.
fn settings_help() -> String {
    format!(
        "Settings, with their defaults, as in a --config file (on the command line: rl.steps=500):\n\n{}",
        Config::default().resolved_toml()
    )
}

/// A run that ended before its time, and can be gone on with.
#[derive(Debug)]
struct Unfinished {
    error: anyhow::Error,
    command: String,
}

impl Unfinished {
    /// `error` ended a run of `command` in the folder `root`.
    fn error(error: anyhow::Error, command: &str, root: &Path) -> anyhow::Error {
        let command = format!("vstar {command} --resume {}", root.display());
        Unfinished { error, command }.into()
    }
}

impl Display for Unfinished {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{:#}; to go on: {}", self.error, self.command)
    }
}

impl std::error::Error for Unfinished {}

/// The exit code of the program, after showing an error as one line on stderr.
///
/// A reader of stdout that has gone (`vstar recommend | head`) is no error.
pub fn finish(outcome: Result<()>) -> ExitCode {
    match outcome {
        Err(error) if !is_broken_pipe(&error) => {
            let _ = writeln!(stderr(), "vstar: error: {}", one_line(&error));
            exit_code(&error)
        }
        _ => ExitCode::SUCCESS,
    }
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    let cause = error
        .downcast_ref()
        .map_or(error, |u: &Unfinished| &u.error);
    match cause.downcast_ref::<Interrupted>() {
        Some(interrupted) => interrupted.exit_code().into(),
        None => ExitCode::FAILURE,
    }
}

/// Longest error shown; what files hold may be quoted in one.
const MAX_ERROR: usize = 2_000;

/// An error as one line that any terminal may show: it quotes files and arguments, which may hold anything.
fn one_line(error: &anyhow::Error) -> String {
    let chain = format!("{error:#}");
    let lines: Vec<_> = chain.lines().map(str::trim).collect();
    let mut line = String::new();
    for character in lines.join(" ").chars() {
        if line.len() > MAX_ERROR {
            return line + " ..";
        }
        match character.is_control() {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
    }
    line
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let kind = match cause.downcast_ref::<serde_json::Error>() {
            // Keeps its cause to itself.
            Some(json) => json.io_error_kind(),
            None => cause.downcast_ref().map(std::io::Error::kind),
        };
        kind == Some(ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_error_is_one_line() {
        let error = anyhow!("first\n  second").context("what was done");
        assert_eq!(one_line(&error), "what was done: first second");
        let error = anyhow!("unknown key `\u{1b}[2J\r`");
        assert_eq!(one_line(&error), "unknown key `\\u{1b}[2J\\r`");
        let long = one_line(&anyhow!("ü".repeat(1 << 20)));
        assert!(long.len() < 2 * MAX_ERROR && long.ends_with(".."));
    }

    #[test]
    fn a_broken_pipe_is_told_from_other_errors() {
        let closed = || std::io::Error::from(ErrorKind::BrokenPipe);
        let missing = std::io::Error::from(ErrorKind::NotFound);
        let wrapped = Err::<(), _>(closed()).context("cannot write").unwrap_err();
        assert!(is_broken_pipe(&wrapped));
        assert!(is_broken_pipe(&serde_json::Error::io(closed()).into()));
        assert!(!is_broken_pipe(&missing.into()));
        assert!(!is_broken_pipe(&anyhow!("broken pipe")));
    }
}
