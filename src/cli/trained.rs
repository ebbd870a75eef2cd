//! A trained model with its data and settings, as `vstar eval` and `vstar recommend` take them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::DeviceArgs;
use crate::config::Config;
use crate::data::Dataset;
use crate::learn::job;
use crate::learn::trained_on::other_catalog;
use crate::model::Model;
use crate::model::checkpoint::Init;
use crate::run::locate_model;

/// Which model, on which data, with which settings.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run folder (its best model is taken) or checkpoint folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,

    /// Folder with the data set; that of the model's run if not given
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Settings that win over those of the model's run, for example eval.beam=50
    #[arg(value_name = "key=value", value_parser = super::setting)]
    overrides: Vec<String>,
}

/// A model that is ready to run.
pub struct Trained {
    /// The folder its weights came from.
    pub checkpoint: PathBuf,
    pub config: Config,
    pub data: Dataset,
    pub model: Model,
}

impl Args {
    /// Loads it.
    ///
    /// # Errors
    /// No model there; settings, data or a device that cannot be used; nothing that says which data to take; a model
    /// that was not made for this data, which is a warning of the data where it is not that of the model's run.
    pub fn load(&self) -> Result<Trained> {
        let located = locate_model(&self.model)?;
        let mut overrides = Vec::new();
        if let Some(dir) = &self.data {
            overrides.push(format!("data.path={}", utf8(dir)?));
        }
        overrides.extend_from_slice(&self.overrides);
        let names_data = |text: &String| text.trim_start().starts_with("data.path");
        if located.config.is_none() && !overrides.iter().any(names_data) {
            bail!(
                "{}: a checkpoint outside its run does not say what data it was made for: give --data DIR",
                self.model.display()
            );
        }
        let config = Config::load(located.config.as_deref(), &overrides)?;
        let mut data = job::load_data(&config)?;
        let of_run = located.config.as_deref();
        data.warnings
            .extend(other_catalog(&located.checkpoint, of_run, &config, &data)?);
        let device = self.device.open_for(&config)?;
        let init = Init {
            seed: config.seed,
            std: config.model.init_std as f32,
        };
        let positions = job::positions(&data);
        let precision = job::tried_precision(&device, &config)?;
        Ok(Trained {
            model: job::load_model(
                &device,
                &located.checkpoint,
                &data,
                positions,
                precision,
                init,
            )?,
            checkpoint: located.checkpoint,
            config,
            data,
        })
    }
}

impl Trained {
    /// The name of the checkpoint's folder, such as `rl-000150`.
    pub fn name(&self) -> String {
        let whole = self.checkpoint.canonicalize();
        let path = whole.as_ref().unwrap_or(&self.checkpoint);
        path.file_name()
            .map_or("model".into(), |name| name.to_string_lossy().into())
    }

    /// What runs where, in one line.
    pub fn about(&self) -> String {
        format!(
            "{} on {}, {}",
            self.checkpoint.display(),
            self.data.name,
            self.model.device.info()
        )
    }
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not valid UTF-8: rename it", path.display()))
}
