use std::process::ExitCode;

use clap::Parser;
use vstar::cli::{Cli, finish};

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    quiet_mesa();
    finish(Cli::parse().run())
}

/// Mesa's drivers write two lines to stderr where XDG_RUNTIME_DIR is not set (in containers, say), and then use the
/// temporary folder, which is what they are told here.
#[cfg(target_os = "linux")]
fn quiet_mesa() {
    const NAME: &str = "XDG_RUNTIME_DIR";
    if std::env::var_os(NAME).is_none() {
        // SAFETY: first thing in main, so no other thread reads the environment.
        unsafe { std::env::set_var(NAME, std::env::temp_dir()) };
    }
}
