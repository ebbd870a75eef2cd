use std::process::ExitCode;

use clap::Parser;
use vstar::cli::{Cli, finish};

fn main() -> ExitCode {
    finish(Cli::parse().run())
}
