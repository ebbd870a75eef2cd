//! Run folders used in this process.

use anyhow::Result;
use std::path::Path;
use std::time::Instant;
use vstar::config::Config;
use vstar::data::Dataset;
use vstar::learn::context::Context;
use vstar::run::{Progress, RunFolder, State};

/// Opens the run folder at `root`, making it if it is new, and does something in it.
pub fn in_folder<T>(
    root: &Path,
    config: &Config,
    data: &Dataset,
    act: impl FnOnce(Context) -> Result<T>,
) -> Result<T> {
    let folder = match RunFolder::open(root) {
        Ok(folder) => folder,
        Err(_) => RunFolder::create(root, config)?,
    };
    let checkpoints = folder.checkpoints(config.run.keep_checkpoints)?;
    let state = checkpoints
        .latest()?
        .map(|latest| State::load(&latest))
        .transpose()?;
    act(Context {
        config,
        data,
        checkpoints,
        metrics: folder.metrics(state.as_ref())?,
        folder: &folder,
        progress: Progress::new(),
        started: Instant::now(),
        elapsed_before: 0.0,
    })
}
