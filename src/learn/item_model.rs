//! A model with one token per item, of another run: what a teacher is, and what item embeddings can be taken from.

use super::job;
use super::trained_on::other_catalog;
use crate::catalog::Catalog;
use crate::config::Config;
use crate::device::{DeviceRef, Precision};
use crate::model::Model;
use crate::model::checkpoint::Init;
use crate::run::locate_model;
use anyhow::{Context, Result, ensure};
use std::path::Path;

pub struct ItemModel {
    pub config: Config,
    pub catalog: Catalog,
    pub model: Model,
    /// Its item of each of those asked about.
    pub items: Vec<u32>,
}

impl ItemModel {
    /// That of a run or of a checkpoint in one, for prompts of up to `positions` tokens; it has to know the items `names`.
    ///
    /// # Errors
    /// No model there, one whose data is not known or not there, one with several tokens per item, one that lacks an item.
    pub fn load(
        device: &DeviceRef,
        path: &Path,
        names: &[String],
        positions: usize,
    ) -> Result<ItemModel> {
        let located = locate_model(path)?;
        let of_run = located
            .config
            .context("there is no run here that says what data its model was made for")?;
        let config = Config::load(Some(&of_run), &[])?;
        let data = job::load_data(&config)?;
        other_catalog(&located.checkpoint, Some(&of_run), &config, &data)?;
        ensure!(
            data.catalog.levels() == 1,
            "it spells an item in {} tokens: one with a token per item is needed (`vstar sid build --method atomic`)",
            data.catalog.levels()
        );
        let find = |name: &String| {
            let found = data.catalog.item_of_name(name);
            found.with_context(|| format!("it does not know item {name:?}"))
        };
        let items = names.iter().map(find).collect::<Result<Vec<u32>>>()?;
        let init = Init {
            seed: config.seed,
            std: config.model.init_std as f32,
        };
        let (checkpoint, precision) = (&located.checkpoint, Precision::F32);
        Ok(ItemModel {
            model: job::load_model(device, checkpoint, &data, positions, precision, init)?,
            config,
            catalog: data.catalog,
            items,
        })
    }

    /// [items, d] the output embeddings of the items asked about.
    pub fn embeddings(&self) -> Result<Vec<f32>> {
        let output = self.model.output_embeddings()?;
        let rows: Vec<&[f32]> = output.chunks(self.model.architecture.hidden).collect();
        let token = |&item: &u32| self.catalog.sid_tokens(self.catalog.item_sid(item))[0];
        let own = self.items.iter().map(|item| rows[token(item) as usize]);
        Ok(own.collect::<Vec<_>>().concat())
    }
}
