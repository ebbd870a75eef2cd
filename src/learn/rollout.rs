//! Rollouts: from questions to candidates with rewards, packed with their prompts as one tree each (spec 3 to 5). All of
//! it happens on the device; the host sends the prompts and looks at nothing.

use super::engine::{Capacity, Engine, Input, TargetSlices};
use super::judge::Judge;
use super::questions::Question;
use super::teacher::Teacher;
use crate::config::Config;
use crate::data::Dataset;
use crate::decode::search::{self, Decoding, Searcher};
use crate::decode::{self, Decoded, Prefill, PromptBuffers};
use crate::device::{ALIGN_WORDS, Buffer, DeviceRef, Size, Slice, Stream, Word};
use crate::kernels::reduce;
use crate::kernels::tree::{self, FIGURES, MAX_LEVELS, Pack, PackParams, SIZES, SizesParams};
use crate::kernels::tree_tables::Shape;
use anyhow::{Result, ensure};

/// Prompts in one part of a step.
pub fn part(config: &Config) -> usize {
    config.rl.prompts.div_ceil(config.rl.accumulate)
}

/// The most nodes of a prompt's tree at each level: as many as there are candidates, or as the trie has.
pub fn widths(group: usize, data: &Dataset) -> Vec<usize> {
    let sizes = data.catalog.trie().level_sizes();
    sizes[1..].iter().map(|&n| n.min(group)).collect()
}

/// The nodes of such a tree, and those of them that may have children.
fn bounds(widths: &[usize]) -> (usize, usize) {
    let nodes = widths.iter().sum();
    (nodes, nodes - widths[widths.len() - 1])
}

/// The most a part of a step can need.
pub fn capacity(config: &Config, data: &Dataset) -> Result<Capacity> {
    let prompts = part(config);
    let decoding = Decoding::rollout(config, data, prompts);
    let (nodes, inner) = bounds(&widths(decoding.width(), data));
    let room = search::capacity(data, &decoding);
    Ok(Capacity {
        tokens: room.rows() + prompts * nodes,
        // The prompt's end and every node above the leaves.
        rows: prompts * (1 + inner),
        targets: prompts * nodes,
        slots: search::slots(data, &decoding)?,
    })
}

/// Where the tables of a part begin.
#[derive(Clone, Copy)]
struct Tables {
    scored: usize,
    starts: usize,
    tokens: usize,
    cand_node: usize,
    node_info: usize,
    node_row: usize,
    counts: usize,
    words: usize,
}

impl Tables {
    fn new(rows: usize, nodes: usize, entries: usize) -> Tables {
        let mut words = 0;
        let mut table = |len: usize| {
            words += len.next_multiple_of(ALIGN_WORDS);
            words - len.next_multiple_of(ALIGN_WORDS)
        };
        Tables {
            scored: table(rows),
            starts: table(rows + 1),
            tokens: table(nodes),
            cand_node: table(entries),
            node_info: table(4 * nodes),
            node_row: table(nodes),
            counts: table(3),
            words,
        }
    }
}

/// What one part is given, and what it keeps from its rollout to its updates.
struct Part {
    prompts: PromptBuffers,
    asked: Buffer,
    parent: Buffer,
    rewards: Buffer,
    steps: Buffer,
}

/// A part as the updates see it.
#[derive(Clone, Copy)]
pub struct Packed {
    pub input: Input,
    /// The first row of the trees, a multiple of 64; before it lie the prompts.
    pub tree_begin: usize,
    pub shape: Shape<Size>,
    pub cand_node: Slice,
    pub node_info: Slice,
    /// [K] the row of each node.
    pub node_row: Slice,
    /// [B, G] and [B, G, L].
    pub rewards: Slice,
    pub steps: Slice,
}

pub struct Rollout {
    pub searcher: Searcher,
    judge: Judge,
    teacher: Option<Teacher>,
    parts: Vec<Part>,
    /// The prompts of each part, as last uploaded.
    uploaded: Vec<Prefill>,
    tables: Buffer,
    at: Tables,
    sizes: Buffer,
    figures: Buffer,
    order: Buffer,
    group: usize,
    levels: usize,
    widths: Vec<usize>,
    /// Of the prompts of a part.
    batch: decode::Capacity,
}

impl Rollout {
    /// For the engine's model, whose buffers run the prompts. Errors: rewards that the data cannot give; SIDs of more
    /// than [`MAX_LEVELS`] tokens; out of memory.
    pub fn new(engine: &Engine, config: &Config, data: &Dataset) -> Result<Rollout> {
        let (device, prompts) = (engine.device(), part(config));
        let decoding = Decoding::rollout(config, data, prompts);
        let (room, batch) = (capacity(config, data)?, search::capacity(data, &decoding));
        let levels = data.catalog.levels();
        ensure!(
            levels <= MAX_LEVELS,
            "SIDs of {levels} tokens are too long for reinforcement learning, which takes at most {MAX_LEVELS}"
        );
        let reference = if config.rl.kl_beta > 0.0 {
            room.tokens
        } else {
            0
        };
        let searcher = Searcher::beside(&engine.model, data, &decoding, &engine.acts, reference)?;
        let group = decoding.width();
        let buffer = |label, words| Buffer::new(device, label, words);
        let parts = (0..config.rl.accumulate.min(config.rl.prompts)).map(|_| {
            Ok(Part {
                prompts: PromptBuffers::new(device, batch, room.tokens)?,
                asked: buffer("questions", prompts * (tree::ASKED + levels))?,
                parent: buffer("rollout parents", room.tokens)?,
                rewards: buffer("rewards", prompts * group)?,
                steps: buffer("step rewards", prompts * group * levels)?,
            })
        });
        let parts = parts.collect::<Result<Vec<Part>>>()?;
        let at = Tables::new(room.rows, room.targets, prompts * group * levels);
        Ok(Rollout {
            judge: Judge::new(device, config, data)?,
            teacher: Teacher::new(device, config, data, (parts.len(), prompts))?,
            tables: buffer("candidate tables", parts.len() * at.words + ALIGN_WORDS)?,
            sizes: buffer("tree sizes", prompts * SIZES)?,
            figures: buffer("rollout figures", prompts * (FIGURES + levels))?,
            order: buffer("token order", room.tokens)?,
            searcher,
            parts,
            uploaded: Vec::new(),
            at,
            group,
            levels,
            widths: widths(group, data),
            batch,
        })
    }

    /// G: candidates per prompt.
    pub fn group(&self) -> usize {
        self.group
    }

    pub fn levels(&self) -> usize {
        self.levels
    }

    /// Parts of a step, at most.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Whether the search has left the prompts' keys and values in the value head's block.
    pub fn is_valued(&self) -> bool {
        self.searcher.decoder.is_valued()
    }

    fn totals(&self) -> usize {
        self.parts.len() * self.at.words
    }

    /// Prompts of the questions last uploaded.
    pub fn prompts(&self) -> usize {
        self.uploaded.iter().map(|part| part.prompts).sum()
    }

    /// Prompts whose candidates' rewards differ, over all parts.
    pub fn varied(&self) -> Size {
        Size::held(Word::at(self.tables.all(), self.totals()), self.prompts())
    }

    /// Candidates of all prompts, over all parts.
    pub fn present(&self) -> Size {
        let word = Word::at(self.tables.all(), self.totals() + 1);
        Size::held(word, self.prompts() * self.group)
    }

    /// Uploads questions, in parts of `part`, each to where it stays until its updates: so one stream may run all parts.
    /// Their numbers name the prompts in draws.
    pub fn upload(&mut self, data: &Dataset, asked: &[Question], part: usize) -> Result<()> {
        self.uploaded.clear();
        let mut first = 0;
        for (to, asked) in self.parts.iter().zip(asked.chunks(part)) {
            let histories: Vec<&[u32]> = asked.iter().map(|q| q.history).collect();
            let (searcher, catalog) = (&mut self.searcher, &data.catalog);
            let uploaded = searcher.upload(catalog, &histories, first, &to.prompts)?;
            let mut words = Vec::new();
            for (document, question) in searcher.decoder.documents().iter().zip(asked) {
                let rows = document.begin..document.end;
                self.judge.ask(data, rows, question.target, &mut words);
            }
            to.asked.write_u32(&words)?;
            if let Some(teacher) = &mut self.teacher {
                teacher.upload(self.uploaded.len(), &histories)?;
            }
            self.uploaded.push(uploaded);
            first += asked.len() as u32;
        }
        ensure!(
            self.prompts() == asked.len(),
            "{} questions do not fit {} parts of {part}",
            asked.len(),
            self.parts.len()
        );
        Ok(())
    }

    /// The prompts of each part, as last uploaded.
    pub fn uploaded(&self) -> &[Prefill] {
        &self.uploaded
    }

    /// From now on records as if these had been uploaded: for streams that are not run.
    pub fn suppose(&mut self, uploaded: Vec<Prefill>) {
        self.uploaded = uploaded;
    }

    /// Where the trees of a part may begin.
    pub fn beginnings(&self) -> impl Iterator<Item = usize> + use<> {
        self.batch.beginnings()
    }

    /// Records the rollout of part `number`: decoding, rewards, packing. The prompts run in the engine's own buffers, where
    /// a forward pass may go on with them. `sums` gets the parts' [`FIGURES`], added up over the prompts.
    pub fn record(
        &mut self,
        s: &mut Stream,
        engine: &Engine,
        (number, step): (usize, u32),
        sums: Slice,
    ) {
        let (part, prompts) = (&self.parts[number], self.uploaded[number]);
        let n = prompts.prompts;
        self.searcher
            .record(s, &engine.model, Some(&engine.acts), &prompts, step);
        let [picked, scores] = self.searcher.decoder.found();
        let (rewards, steps) = (part.rewards.all(), part.steps.all());
        let asked = part.asked.all();
        let judged = [picked, scores, asked, prompts.rows];
        if let Some(teacher) = &self.teacher {
            let sizes = [n, self.group, self.levels];
            teacher.record(s, number, judged, [rewards, steps], sizes);
        }
        self.judge
            .record(s, judged, [rewards, steps], n, self.group);
        let sizes = self.sizes.all();
        let params = SizesParams {
            prompts: n as u32,
            group: self.group as u32,
            levels: self.levels as u32,
        };
        tree::sizes(s, picked, rewards, sizes, params);
        let on = Pack {
            picked,
            asked,
            rewards,
            sizes,
            tables: self.tables.all(),
            rows: prompts.rows,
            parent: part.parent.all(),
            figures: self.figures.all(),
        };
        let base = number * self.at.words;
        let at = |offset: usize| (base + offset) as u32;
        let params = PackParams {
            prompts: n as u32,
            group: self.group as u32,
            levels: self.levels as u32,
            tree_begin: prompts.tokens() as u32,
            begin_totals: (number == 0) as u32,
            scored: at(self.at.scored),
            starts: at(self.at.starts),
            tokens: at(self.at.tokens),
            cand_node: at(self.at.cand_node),
            node_info: at(self.at.node_info),
            node_row: at(self.at.node_row),
            counts: at(self.at.counts),
            totals: (self.parts.len() * self.at.words) as u32,
        };
        tree::pack(s, on, params);
        let figures = self.figures.all();
        reduce::columns(s, figures, sums, n, FIGURES + self.levels);
    }

    /// Part `number` of the last rollout.
    pub fn packed(&self, number: usize) -> Packed {
        let (part, prompts) = (&self.parts[number], &self.uploaded[number]);
        let (at, n) = (self.at, prompts.prompts);
        let base = number * at.words;
        let table = |offset: usize| self.tables.all().skip(base + offset);
        let count = |index: usize, max: usize| {
            Size::held(Word::at(self.tables.all(), base + at.counts + index), max)
        };
        let (nodes, inner) = bounds(&self.widths);
        let (nodes, tree_begin) = (n * nodes, prompts.tokens());
        let trees = prompts.size.trees(n, &self.widths);
        let scored = prompts.size.scored(n, &self.widths);
        Packed {
            input: Input {
                rows: prompts.rows,
                parent: part.parent.all(),
                order: self.order.all(),
                targets: TargetSlices {
                    rows: table(at.scored),
                    starts: table(at.starts),
                    tokens: table(at.tokens),
                },
                tokens: count(0, tree_begin + nodes),
                scored: count(2, n * (1 + inner)),
                count: count(1, nodes),
                size: prompts.size.and(trees),
                trees,
                scored_size: scored,
                dropout: None,
            },
            tree_begin,
            shape: Shape {
                prompts: n,
                group: self.group,
                levels: self.levels,
                nodes: count(1, nodes),
            },
            cand_node: table(at.cand_node),
            node_info: table(at.node_info),
            node_row: table(at.node_row),
            rewards: part.rewards.all(),
            steps: part.steps.all(),
        }
    }

    /// Waits for the last rollout; what its last part found, and the rewards [B, G], for those who want to look.
    pub fn read(&self, device: &DeviceRef, number: usize) -> Result<(Vec<Decoded>, Vec<f32>)> {
        let found = self.searcher.decoder.read()?;
        let rewards = &self.parts[number].rewards;
        let rewards = rewards.first(self.uploaded[number].prompts * self.group);
        Ok((found, crate::device::read_f32(device, rewards)?))
    }
}
