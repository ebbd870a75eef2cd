//! Run folders used in this process.

use anyhow::Result;
use std::path::Path;
use vstar::config::Config;
use vstar::data::Dataset;
use vstar::learn::context::Context;
use vstar::run::{Interrupt, RunFolder};

/// Opens the run folder at `root`, making it if it is new, and does something in it.
pub fn in_folder<T>(
    root: &Path,
    config: &Config,
    data: &Dataset,
    act: impl FnOnce(Context) -> Result<T>,
) -> Result<T> {
    let folder = match RunFolder::resume(root) {
        Ok(folder) => folder,
        Err(_) => RunFolder::create(root, config)?,
    };
    act(Context::open(config, data, &folder, Interrupt::default())?.0)
}
