//! Which items and semantic IDs a checkpoint was trained on. Tokens mean nothing to a model whose codes were made anew, and
//! nothing else would tell: the figures are merely bad.

use crate::config::Config;
use crate::data::Dataset;
use crate::run::State;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// What a person should know before trusting a model of `checkpoint` on `data`: that it was trained on other items or
/// semantic IDs. None where they are the same, or where the checkpoint does not say.
///
/// # Errors
/// They are not the same though the run of the checkpoint, with the configuration `of_run`, names the folder that `config`
/// names: what is in it has changed since.
pub fn other_catalog(
    checkpoint: &Path,
    of_run: Option<&Path>,
    config: &Config,
    data: &Dataset,
) -> Result<Option<String>> {
    let trained_on = State::of(checkpoint)?.and_then(|state| state.catalog);
    if trained_on.is_none_or(|catalog| catalog == data.catalog.fingerprint()) {
        return Ok(None);
    }
    let fault = format!(
        "{} was trained on other items or semantic IDs than {} has now",
        checkpoint.display(),
        data.name
    );
    let of_run = of_run
        .map(|path| Config::load(Some(path), &[]))
        .transpose()?;
    if of_run.is_some_and(|of_run| folder(&of_run) == folder(config)) {
        bail!("{fault}: bring its data back, or train anew");
    }
    Ok(Some(fault))
}

/// The folder of the dataset, from wherever it is named.
fn folder(config: &Config) -> PathBuf {
    let path = Path::new(&config.data.path);
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
