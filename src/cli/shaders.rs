//! `vstar shaders`: the kernels' texts, for other compilers.

use crate::export::Language;
use crate::export::manifest::{self, Manifest};
use crate::run::write_folder;
use anyhow::Result;
use clap::Subcommand;
use std::io::{Write, stdout};
use std::path::PathBuf;

/// Shaders as drivers receive them
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Shaders,
}

#[derive(Debug, Subcommand)]
enum Shaders {
    Export(ExportArgs),
}

/// Write every kernel in every form, as a driver receives it
///
/// Each file is one kernel in one form with one mix of f32 and f16; manifest.json says of each its entry
/// point, workgroup, bindings, parameters and the features it needs. Before it is written each is
/// validated with no more capabilities than those features bring, and held to the rules of
/// docs/portability.md; the first that fails ends the export.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vstar shaders export --lang spirv --out spirv
  vstar shaders export --lang hlsl --checked --out hlsl")]
struct ExportArgs {
    /// The language
    #[arg(long, value_enum, value_name = "LANGUAGE")]
    lang: Language,

    /// Folder to make
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Keep bounds and loop checks, which training leaves out
    #[arg(long)]
    checked: bool,
}

/// Runs the subcommand that was given.
///
/// # Errors
/// A shader that is not valid or breaks a rule; a folder that is there already; the disk.
pub fn run(args: Args) -> Result<()> {
    match args.command {
        Shaders::Export(args) => export(&args),
    }
}

fn export(args: &ExportArgs) -> Result<()> {
    let mut written: Option<Manifest> = None;
    write_folder(&args.out, |folder| {
        written = Some(manifest::export(folder, args.lang, args.checked)?);
        Ok(())
    })?;
    if let Some(manifest) = written {
        let core = manifest.shaders.iter().filter(|s| s.core).count();
        writeln!(
            stdout(),
            "{}: {} shaders, {core} of them for any adapter, {} left out",
            args.out.display(),
            manifest.shaders.len(),
            manifest.left_out.len()
        )?;
    }
    Ok(())
}
