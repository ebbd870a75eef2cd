//! A second model that judges candidates (`reward.teacher`): one with a token per item, so that a single pass over a
//! history says how likely each item is to follow. It reads the histories that the policy is asked about.

use super::context::attention;
use super::item_model::ItemModel;
use crate::catalog::Catalog;
use crate::config::Config;
use crate::data::Dataset;
use crate::device::{Buffer, DeviceRef, Size, Slice, Stream, Word};
use crate::forest::{Forest, ForestSize, PromptAttention, Row};
use crate::kernels::shares::{self, Shares};
use crate::model::activations::Cache;
use crate::model::{Activations, Asked, Model};
use anyhow::{Context, Result};
use std::path::Path;

/// The prompts of a part, in the teacher's tokens.
struct Prompts {
    rows: Buffer,
    parent: Buffer,
    /// Each prompt's last row, and those rows' records.
    ends: Buffer,
    end_rows: Buffer,
    /// One word: how many rows there are.
    count: Buffer,
    size: ForestSize,
}

pub struct Teacher {
    model: Model,
    acts: Activations,
    catalog: Catalog,
    attention: PromptAttention,
    /// The teacher's item of each of the policy's.
    items: Vec<u32>,
    forest: Forest,
    parts: Vec<Prompts>,
    /// [B, d] final hidden states at the prompts' ends.
    hidden: Buffer,
    /// [S, d] output embeddings of the policy's SIDs, the mean where several items share one.
    keys: Buffer,
    /// Whether what a history holds gets no share.
    skips_held: bool,
}

impl Teacher {
    /// None without a weight; for `parts` parts of up to `prompts` prompts.
    ///
    /// # Errors
    /// No model at `reward.teacher_model`, one with several tokens per item, one that lacks an item of this data; out of
    /// memory.
    pub fn new(
        device: &DeviceRef,
        config: &Config,
        data: &Dataset,
        (parts, prompts): (usize, usize),
    ) -> Result<Option<Teacher>> {
        if config.reward.teacher == 0.0 {
            return Ok(None);
        }
        let path = Path::new(&config.reward.teacher_model);
        let told = || format!("reward.teacher_model = {}", path.display());
        let teacher = Self::load(device, path, config, data, (parts, prompts));
        teacher.map(Some).with_context(told)
    }

    fn load(
        device: &DeviceRef,
        path: &Path,
        config: &Config,
        data: &Dataset,
        (parts, prompts): (usize, usize),
    ) -> Result<Teacher> {
        let longest = 1 + data.max_history;
        let own = ItemModel::load(device, path, data.catalog.names(), longest)?;
        let (tokens, d) = (prompts * longest, own.model.architecture.hidden);
        let new = |label, words| Buffer::new(device, label, words);
        let parts = (0..parts).map(|_| {
            Ok(Prompts {
                rows: new("teacher's rows", tokens * Row::WORDS)?,
                parent: new("teacher's parents", tokens)?,
                ends: new("teacher's ends", prompts)?,
                end_rows: new("teacher's end rows", prompts * Row::WORDS)?,
                count: new("teacher's row count", 1)?,
                size: ForestSize::default(),
            })
        });
        let rows = own.embeddings()?;
        let keys = data
            .catalog
            .sid_means(d, |item| &rows[item as usize * d..][..d]);
        let ItemModel {
            config: its,
            catalog,
            model,
            items,
        } = own;
        Ok(Teacher {
            acts: Activations::for_inference(&model, tokens, Cache::PerLayer(tokens))?,
            attention: attention(&its),
            forest: Forest::new(),
            parts: parts.collect::<Result<Vec<Prompts>>>()?,
            hidden: new("teacher's hidden states", prompts * d)?,
            keys: Buffer::with_f32(device, "teacher's output embeddings", &keys)?,
            skips_held: config.reward.repeat > 0.0,
            model,
            catalog,
            items,
        })
    }

    /// Uploads the histories of part `number`, which stay there until its rollout.
    pub fn upload(&mut self, number: usize, histories: &[&[u32]]) -> Result<()> {
        self.forest.clear();
        for history in histories {
            let items: Vec<u32> = history.iter().map(|&i| self.items[i as usize]).collect();
            let tokens = self.catalog.prompt(&items);
            self.forest.push_prompt(&tokens, self.attention);
        }
        let forest = &self.forest;
        self.model.check(&forest.rows)?;
        let ends: Vec<u32> = forest.documents.iter().map(|d| d.root() as u32).collect();
        let end_rows: Vec<Row> = ends.iter().map(|&e| forest.rows[e as usize]).collect();
        let to = &mut self.parts[number];
        to.rows.write_u32(forest.row_words())?;
        to.parent.write_u32(&forest.parent)?;
        to.ends.write_u32(&ends)?;
        to.end_rows.write_u32(bytemuck::cast_slice(&end_rows))?;
        to.count.write_u32(&[forest.len() as u32])?;
        to.size = forest.size();
        Ok(())
    }

    /// Records the teacher's pass over part `number`, and into `shares` [B, G] how much more it would give that part's
    /// candidates than the policy does; into `steps` [B, G, L] what it would give to their prefixes.
    pub fn record(
        &self,
        s: &mut Stream,
        number: usize,
        [picked, scores, asked, rows]: [Slice; 4],
        [shares, steps]: [Slice; 2],
        [prompts, group, levels]: [usize; 3],
    ) {
        let part = &self.parts[number];
        let tokens = Size::held(Word::at(part.count.all(), 0), self.acts.tokens);
        let pass = self.model.pass(part.rows.all(), part.parent.all(), tokens);
        let ends = Asked {
            index: part.ends.all(),
            records: part.end_rows.all(),
            rows: prompts.into(),
            size: part.size.ends(prompts),
        };
        let before = std::mem::replace(&mut s.forest, part.size);
        let queries = self.hidden.all();
        self.model.forward_at(s, &pass, &self.acts, ends, queries);
        s.forest = before;
        let on = Shares {
            picked,
            scores,
            asked,
            rows,
            queries,
            keys: self.keys.all(),
            shares,
            steps,
        };
        let params = shares::Params {
            prompts: prompts as u32,
            group: group as u32,
            levels: levels as u32,
            dim: self.model.architecture.hidden as u32,
            skip_held: self.skips_held as u32,
        };
        shares::shares(s, on, params);
    }
}
