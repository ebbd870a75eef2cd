//! A decoder's buffers, the prefill every method starts with, and the read-back every method ends with.

use super::{
    Candidate, Capacity, DecodeConfig, DecodeModel, Decoded, Method, Plan, Prefill, Prompt,
    PromptBuffers, TrieBuffers,
};
use crate::device::{Buffer, DeviceRef, Size, Slice, Stream, Word, admit_loop};
use crate::forest::{Forest, ForestSize, PromptAttention, Row, Span};
use crate::kernels::candidates::{self, SUMMARY, candidates, picked_words};
use crate::kernels::compact::compact;
use crate::kernels::expand::{self, Expand, expand};
use crate::kernels::search::{RECORD, STATS, SearchSlices, search_begin};
use crate::kernels::ved_select;
use crate::model::backbone::{logit_rows, most_logits};
use crate::rng;
use anyhow::{Result, ensure};
use std::sync::Arc;

/// Logits are computed for so many words at a time at most (64 MiB).
const LOGIT_WORDS: usize = 1 << 24;

/// Search state and scratch of one decode method on one device.
pub struct Decoder {
    pub(super) device: DeviceRef,
    pub(super) trie: Arc<TrieBuffers>,
    pub(super) config: DecodeConfig,
    pub(super) plan: Plan,
    pub(super) buffers: Buffers,
    capacity: Capacity,
    /// Rows whose logits are computed at a time.
    chunk: usize,
    /// The prompts of the decode last recorded: their number, and what they fill.
    prompts: usize,
    size: ForestSize,
    forest: Forest,
}

/// See [`crate::kernels::search`] for the layouts.
pub(super) struct Buffers {
    tree: Buffer,
    stats: Buffer,
    rows: Buffer,
    /// How many of them a round of VED runs.
    active: Buffer,
    parent: Buffer,
    entry: Buffer,
    hidden: Buffer,
    value: Buffer,
    end_hidden: Buffer,
    end_value: Buffer,
    logits: Buffer,
    pub child_logp: Buffer,
    pub top_edge: Buffer,
    pub top_logp: Buffer,
    /// VED's tables of widening and exploration.
    pub table: Buffer,
    picked: Buffer,
    scores: Buffer,
}

impl Buffers {
    pub fn search(&self) -> SearchSlices {
        SearchSlices {
            tree: self.tree.all(),
            stats: self.stats.all(),
            rows: self.rows.all(),
            parent: self.parent.all(),
            entry: self.entry.all(),
        }
    }
}

/// Rows whose children [`Decoder::expand`] scores.
pub(super) struct Batch {
    pub hidden: Slice,
    pub value: Slice,
    pub rows: Size,
    /// Best children wanted per row.
    pub top: usize,
    /// Leaves have no children, so their logits are not computed.
    pub leaves: bool,
}

impl Decoder {
    /// Allocates everything decodes of up to `capacity` need. `vocab` and `hidden` are the model's.
    ///
    /// # Errors
    /// A configuration that cannot work (see [`Plan::new`]), or no room on the device.
    pub fn new(
        device: &DeviceRef,
        trie: Arc<TrieBuffers>,
        [vocab, hidden]: [usize; 2],
        capacity: Capacity,
        config: DecodeConfig,
    ) -> Result<Decoder> {
        let plan = Plan::new(&config.method, trie.level_sizes())?;
        let prompts = capacity.prompts;
        let (levels, goal) = (trie.levels(), plan.goal);
        let what = format!("decoding over {} codes of a prefix", trie.fanout());
        admit_loop(device, longest_loop(&trie, &plan, &config), &what)?;
        let rows = prompts * plan.rows();
        let nodes = prompts * plan.nodes;
        let slots = capacity.rows() + nodes;
        let (logp_rows, table) = match &config.method {
            Method::Ved(v) => {
                let [beta, c, a] = [v.beta, v.widen_c, v.widen_a].map(f64::from);
                (nodes, ved_select::table(plan.visits(), beta, c, a))
            }
            _ => (rows, vec![0.0]),
        };
        let new = |label: &str, words: usize| Buffer::new(device, label, words);
        // Samples are drawn without an order of the children.
        let best = match &config.method {
            Method::Sample { .. } => 0,
            _ => plan.widths.iter().copied().max().unwrap_or(0),
        };
        let tops = (nodes * trie.fanout().min(best)).max(1);
        let chunk = logit_rows(LOGIT_WORDS.min(most_logits(device)), vocab, hidden);
        let buffers = Buffers {
            tree: new("search tree", (prompts + nodes) * RECORD)?,
            stats: new("search stats", nodes * STATS)?,
            rows: new("search rows", rows * Row::WORDS)?,
            active: new("active rows", 1)?,
            parent: new("parent slots", slots)?,
            entry: new("search entries", 2 * rows.max(prompts))?,
            hidden: new("decoder hidden states", rows * hidden)?,
            value: new("decoder values", rows)?,
            end_hidden: new("prompt end states", prompts * hidden)?,
            end_value: new("prompt end values", prompts)?,
            logits: new("decoder logits", rows.min(chunk).max(1) * vocab)?,
            child_logp: new("child log-probs", logp_rows.max(prompts) * trie.fanout())?,
            top_edge: new("best children", tops)?,
            top_logp: new("best children's log-probs", tops)?,
            table: Buffer::with_f32(device, "VED tables", &table)?,
            picked: new("candidates", prompts * picked_words(levels, goal))?,
            scores: new("candidate scores", prompts * goal * (2 + levels))?,
        };
        Ok(Decoder {
            device: device.clone(),
            trie,
            config,
            plan,
            buffers,
            capacity,
            chunk,
            prompts: 0,
            size: ForestSize::default(),
            forest: Forest::new(),
        })
    }

    /// Slots of the key/value cache a model needs for this decoder: the prompts', then M per prompt for tree nodes.
    pub fn slots(&self) -> usize {
        self.buffers.parent.len()
    }

    /// Widths, rounds, budget.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Packs `prompts` and uploads them to `to`, of this decoder's capacity, where their rows tell whoever runs trees behind
    /// them afterwards who attends to whom.
    ///
    /// # Errors
    /// No prompts, an empty prompt, or more than the capacity.
    pub fn upload(&mut self, prompts: &[Prompt], to: &PromptBuffers) -> Result<Prefill> {
        let tokens: usize = prompts.iter().map(|p| p.tokens.len()).sum();
        ensure!(
            !prompts.is_empty()
                && prompts.len() <= self.capacity.prompts
                && tokens <= self.capacity.tokens,
            "cannot decode {} prompts of {tokens} tokens: this decoder holds 1 to {} prompts of {} tokens together",
            prompts.len(),
            self.capacity.prompts,
            self.capacity.tokens
        );
        let attention = match self.config.full_prompt {
            true => PromptAttention::Full,
            false => PromptAttention::Causal,
        };
        self.forest.clear();
        for prompt in prompts {
            ensure!(
                !prompt.tokens.is_empty(),
                "prompt {} is empty: give it at least one token",
                prompt.document
            );
            self.forest.push_prompt(prompt.tokens, attention);
        }
        let documents = &self.forest.documents;
        let spans = documents.iter().zip(prompts);
        let spans: Vec<[u32; 3]> = spans
            .map(|(d, p)| [d.begin as u32, d.end as u32, p.document])
            .collect();
        let ends: Vec<u32> = documents.iter().map(|d| d.root() as u32).collect();
        let end_rows: Vec<Row> = ends.iter().map(|&e| self.forest.rows[e as usize]).collect();
        let filled = self.forest.size();
        let padded = tokens.next_multiple_of(self.capacity.grain());
        self.forest.rows.resize(padded, Row::INACTIVE);
        to.rows.write_u32(self.forest.row_words())?;
        to.spans.write_u32(spans.as_flattened())?;
        to.ends.write_u32(&ends)?;
        to.end_rows.write_u32(bytemuck::cast_slice(&end_rows))?;
        let prefill = self.most(to);
        Ok(Prefill {
            prompts: prompts.len(),
            size: ForestSize {
                rows: padded as u64,
                ..filled
            },
            ..prefill
        })
    }

    /// The largest batch that `at` holds, for a stream that is not run.
    pub fn most(&self, at: &PromptBuffers) -> Prefill {
        Prefill {
            prompts: self.capacity.prompts,
            rows: at.rows.all(),
            size: ForestSize::default(),
            parent: self.buffers.parent.all(),
            spans: at.spans.all(),
            ends: at.ends.all(),
            end_rows: at.end_rows.all(),
        }
        .taking(self.capacity.rows())
    }

    /// Where each prompt of the last upload lies.
    pub fn documents(&self) -> &[Span] {
        &self.forest.documents
    }

    /// Records a decode of `prompts`. `step` numbers it in draws.
    pub fn decode(
        &mut self,
        s: &mut Stream,
        model: &dyn DecodeModel,
        prompts: &Prefill,
        step: u32,
    ) {
        (self.prompts, self.size) = (prompts.prompts, prompts.size);
        self.prefill(s, model, prompts);
        self.levels(s, model, step);
        if let Method::Ved(ved) = &self.config.method {
            self.rounds(s, model, ved, step);
        }
        self.select(s);
    }

    /// Where a decode leaves `picked` and `scores` ([`crate::kernels::candidates`]).
    pub fn found(&self) -> [Slice; 2] {
        [&self.buffers.picked, &self.buffers.scores].map(Buffer::all)
    }

    /// Waits for the decode last recorded, which was run, and returns what it found for each prompt, in order.
    ///
    /// # Errors
    /// The device failed.
    pub fn read(&self) -> Result<Vec<Decoded>> {
        let (levels, goal, prompts) = (self.trie.levels(), self.plan.goal, self.prompts);
        let (words, floats) = (picked_words(levels, goal), goal * (2 + levels));
        let [picked, scores] = self.found();
        let found = [
            picked.first(prompts * words),
            scores.first(prompts * floats),
        ];
        let read = self.device.read(&found)?;
        let scores: &[f32] = bytemuck::cast_slice(&read[1]);
        let decoded = read[0].chunks_exact(words).zip(scores.chunks_exact(floats));
        Ok(decoded.map(|(p, s)| Decoded::parse(p, s, levels)).collect())
    }

    pub(super) fn prompts(&self) -> usize {
        self.prompts
    }

    /// The first slot of tree nodes.
    pub(super) fn slot_base(&self) -> u32 {
        self.capacity.rows() as u32
    }

    pub(super) fn key(&self) -> u32 {
        rng::key(self.config.seed, rng::Stream::Decode)
    }

    /// Whether prompts and nodes have values (VED).
    pub fn is_valued(&self) -> bool {
        matches!(self.config.method, Method::Ved(_))
    }

    /// Runs the prompts, plants a root at each one's end and scores its children.
    fn prefill(&self, s: &mut Stream, model: &dyn DecodeModel, prompts: &Prefill) {
        let (on, n) = (&self.buffers, prompts.prompts);
        let (hidden, value) = (on.end_hidden.all(), on.end_value.all());
        let wanted = self.is_valued().then_some(value);
        model.prefill(s, prompts, hidden, wanted);
        let (tree, stats, entry) = (on.tree.all(), on.stats.all(), on.entry.all());
        search_begin(s, prompts.spans, tree, stats, entry, n, self.plan.nodes);
        let batch = Batch {
            hidden,
            value,
            rows: n.into(),
            top: self.top(0),
            leaves: false,
        };
        self.expand(s, model, batch);
    }

    /// Best children wanted of each node at `depth`, whose children are the level below.
    pub(super) fn top(&self, depth: usize) -> usize {
        match self.config.method {
            Method::Sample { .. } => 0,
            _ => self.plan.widths[depth].min(self.trie.fanout()),
        }
    }

    /// Of the `n` rows the search wrote, moves the active ones to the front; their number.
    pub(super) fn compact(&self, s: &mut Stream, n: usize) -> Size {
        let on = &self.buffers;
        compact(s, on.rows.all(), on.entry.all(), on.active.all(), n);
        Size::held(Word::at(on.active.all(), 0), n)
    }

    /// Runs the first `n` rows the search wrote, nodes at most `depth` deep, and scores their children.
    pub(super) fn run_rows(
        &self,
        s: &mut Stream,
        model: &dyn DecodeModel,
        (rows, depth): (Size, usize),
        top: usize,
        leaves: bool,
    ) {
        let (on, n) = (&self.buffers, rows.max);
        let (prompts, each) = (self.prompts as u64, (n / self.prompts) as u64);
        s.forest = ForestSize {
            rows: n as u64,
            keys: self.size.keys + prompts * self.plan.nodes as u64,
            pairs: each * (self.size.keys + prompts * depth as u64),
        };
        let (hidden, value) = (on.hidden.all(), on.value.all());
        let wanted = self.is_valued().then_some(value);
        let (records, parent) = (on.rows.all(), on.parent.all());
        model.forward(s, records, rows, parent, hidden, wanted);
        let batch = Batch {
            hidden,
            value,
            rows,
            top,
            leaves,
        };
        self.expand(s, model, batch);
    }

    /// Scores the children of the entries' nodes, as many rows at a time as logits have room.
    fn expand(&self, s: &mut Stream, model: &dyn DecodeModel, batch: Batch) {
        let (on, width, vocab) = (&self.buffers, model.hidden(), model.vocab());
        let (fanout, top) = (self.trie.fanout(), batch.top);
        let keep = self.is_valued();
        let lambda = match &self.config.method {
            Method::Ved(ved) => ved.lambda,
            _ => 0.0,
        };
        let chunk = if batch.leaves {
            batch.rows.max
        } else {
            self.chunk
        };
        for from in (0..batch.rows.max).step_by(chunk) {
            let counted = batch.rows.part(from, chunk);
            let logits = on.logits.all();
            if !batch.leaves {
                model.logits(s, batch.hidden.skip(from * width), counted, logits);
            }
            let slices = Expand {
                logits,
                value: keep.then_some(batch.value),
                entry: on.entry.all(),
                trie: self.trie.words(),
                child_logp: on.child_logp.all(),
                stats: on.stats.all(),
                top_edge: on.top_edge.all(),
                top_logp: on.top_logp.all(),
            };
            let params = expand::Params {
                rows: counted.max as u32,
                vocab: vocab as u32,
                fanout: fanout as u32,
                tokens_at: self.trie.tokens_at(),
                top: top as u32,
                keep: keep as u32,
                renormalise: self.config.renormalise as u32,
                valued: 0,
                lambda,
                first: from as u32,
            };
            expand(s, slices, params, counted);
        }
    }

    fn select(&self, s: &mut Stream) {
        let on = &self.buffers;
        let (eta, score_leaves) = match &self.config.method {
            Method::Ved(ved) => (ved.eta, ved.score_leaves),
            _ => (0.0, false),
        };
        let slices = candidates::Candidates {
            tree: on.tree.all(),
            stats: on.stats.all(),
            child_logp: on.child_logp.all(),
            trie: self.trie.words(),
            picked: on.picked.all(),
            scores: on.scores.all(),
        };
        let params = candidates::Params {
            prompts: self.prompts as u32,
            nodes: self.plan.nodes as u32,
            levels: self.trie.levels() as u32,
            tokens_at: self.trie.tokens_at(),
            fanout: self.trie.fanout() as u32,
            first_leaf: self.trie.first_leaf(),
            goal: self.plan.goal as u32,
            ordered: !self.is_valued() as u32,
            score_leaves: score_leaves as u32,
            eta,
        };
        candidates(s, slices, params);
    }
}

impl Decoded {
    /// From one prompt's words of `picked` and `scores` (see [`crate::kernels::candidates`]).
    fn parse(picked: &[u32], scores: &[f32], levels: usize) -> Decoded {
        let (summary, list) = picked.split_at(SUMMARY + levels + 1);
        let candidates = list
            .chunks_exact(1 + levels)
            .zip(scores.chunks_exact(2 + levels))
            .take(summary[0] as usize)
            .map(|(words, floats)| Candidate {
                sid: words[0],
                tokens: words[1..].to_vec(),
                logp: floats[0],
                value: floats[1],
                level_logp: floats[2..].to_vec(),
            })
            .collect();
        Decoded {
            candidates,
            searched: summary[1] as usize,
            cost: summary[2] as usize,
            dead_ends: summary[3] as usize,
            nodes_per_depth: summary[SUMMARY..].iter().map(|&n| n as usize).collect(),
        }
    }
}

/// Iterations of an invocation's loops in the kernels that order children and candidates, at most.
fn longest_loop(trie: &TrieBuffers, plan: &Plan, config: &DecodeConfig) -> u64 {
    let [fanout, last] = [trie.fanout(), trie.last_fanout()].map(|n| n as u64);
    let [goal, nodes, budget] = [plan.goal, plan.nodes, plan.budget].map(|n| n as u64);
    // Each lane of 64 counts, for its children, those before them.
    let expand = fanout.div_ceil(64) * (fanout + 2);
    // Twice for each candidate, every lane of 64 looks at its nodes and at its children of the nodes that were run, at what the
    // lanes have found, and for that among the candidates; beams are ordered as they are.
    let children = if plan.settles { fanout } else { last }.div_ceil(64);
    let lane = nodes.div_ceil(64) + nodes + budget * children + 16 + goal;
    let candidates = match config.method {
        Method::Ved(_) => 2 * goal * (lane + 2 * trie.levels() as u64),
        _ => 0,
    };
    expand.max(candidates)
}
