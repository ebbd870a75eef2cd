//! Decoding histories with a model: a [`Decoder`] and the buffers the model runs in, sized once for a batch.

use super::{
    Capacity, DecodeConfig, DecodeModel, Decoded, Decoder, Method, Plan, Prefill, Prompt,
    PromptBuffers, TrieBuffers, Ved,
};
use crate::catalog::Catalog;
use crate::config::{Candidates, Config, EvalDecode, PromptAttention};
use crate::data::Dataset;
use crate::device::{ALIGN_WORDS, Buffer, Precision, Size, Slice, Stream};
use crate::kernels::gather::gather_rows;
use crate::model::activations::{Cache, LayerActs};
use crate::model::{Activations, Asked, Model};
use anyhow::Result;
use std::sync::Arc;

/// How to decode and how many prompts at once.
#[derive(Clone, Debug)]
pub struct Decoding {
    pub config: DecodeConfig,
    pub batch: usize,
}

fn ved(config: &Config, candidates: usize) -> Method {
    let v = &config.ved;
    Method::Ved(Ved {
        lambda: v.lambda as f32,
        beta: v.beta as f32,
        init_beam: v.init_beam,
        budget: v.budget,
        widen_c: v.widen_c as f32,
        widen_a: v.widen_a as f32,
        score_leaves: v.score_leaves,
        eta: v.eta as f32,
        round: v.round,
        candidates,
    })
}

impl Decoding {
    fn new(config: &Config, method: Method, batch: usize) -> Decoding {
        Decoding {
            config: DecodeConfig {
                method,
                renormalise: config.decode.renormalise,
                full_prompt: config.model.prompt_attention == PromptAttention::Full,
                seed: config.seed,
            },
            batch,
        }
    }

    /// As evaluations decode (`eval.decode`, `eval.beam`).
    pub fn evaluation(config: &Config, data: &Dataset) -> Decoding {
        let beam = match config.eval.beam {
            0 => data.beam,
            n => n,
        };
        let beam = beam.min(data.catalog.sids());
        let method = match config.eval.decode {
            EvalDecode::Beam => Method::Beam { width: beam },
            EvalDecode::Ved => ved(config, beam),
        };
        Self::new(config, method, config.eval.batch)
    }

    /// As reinforcement learning draws its candidates (`rl.decode`), `batch` prompts at once.
    pub fn rollout(config: &Config, data: &Dataset, batch: usize) -> Decoding {
        let group = config.rl.group.min(data.catalog.sids());
        let method = match config.rl.decode {
            Candidates::Beam => Method::Beam { width: group },
            Candidates::Ved => ved(config, group),
            Candidates::Sample => Method::Sample {
                count: group,
                temperature: config.rl.temperature as f32,
            },
        };
        Self::new(config, method, batch)
    }

    /// Candidates per prompt.
    pub fn width(&self) -> usize {
        match &self.config.method {
            Method::Beam { width } => *width,
            Method::Sample { count, .. } => *count,
            Method::Ved(v) => v.candidates,
        }
    }
}

/// A model in the buffers it decodes in.
struct Runner<'a> {
    model: &'a Model,
    /// Where tree nodes are run.
    acts: &'a Activations,
    /// Where prompts are run whose every activation is wanted later; their caches are those of `acts`. If `None`, they are
    /// run in `acts`.
    kept: Option<&'a Activations>,
    /// [B, H hd] the value block's queries at the prompts' ends.
    end_queries: Slice,
}

impl DecodeModel for Runner<'_> {
    fn vocab(&self) -> usize {
        self.model.architecture.vocab
    }

    fn hidden(&self) -> usize {
        self.model.architecture.hidden
    }

    fn prefill(&self, s: &mut Stream, prompts: &Prefill, hidden: Slice, value: Option<Slice>) {
        let (a, acts) = (&self.model.architecture, self.kept.unwrap_or(self.acts));
        let n = prompts.prompts;
        let pass = self
            .model
            .pass(prompts.rows, prompts.parent, prompts.tokens());
        s.forest = prompts.size;
        if self.kept.is_none() && value.is_none() {
            let asked = Asked {
                index: prompts.ends,
                records: prompts.end_rows,
                rows: n.into(),
                size: prompts.size.ends(n),
            };
            self.model.forward_at(s, &pass, acts, asked, hidden);
            return;
        }
        self.model.forward(s, &pass, acts, acts.hidden);
        gather_rows(s, acts.hidden, prompts.ends, hidden, n, a.hidden);
        if let Some(value) = value {
            self.model.value_keys(s, &pass, &acts.value_block);
            let (queries, at) = (self.end_queries, prompts.ends);
            gather_rows(s, acts.value_block.q, at, queries, n, a.q_width());
            let block = LayerActs {
                x_in: hidden,
                q: queries,
                ..self.acts.value_block
            };
            s.forest = prompts.size.ends(n);
            let ends = self.model.pass(prompts.end_rows, prompts.parent, n);
            self.model.value(s, &ends, &block, &self.acts.value, value);
        }
    }

    fn forward(
        &self,
        s: &mut Stream,
        rows: Slice,
        n: Size,
        parent: Slice,
        hidden: Slice,
        value: Option<Slice>,
    ) {
        let pass = self.model.pass(rows, parent, n);
        self.model.forward(s, &pass, self.acts, hidden);
        if let Some(value) = value {
            let block = LayerActs {
                x_in: hidden,
                ..self.acts.value_block
            };
            self.model.value_keys(s, &pass, &block);
            self.model.value(s, &pass, &block, &self.acts.value, value);
        }
    }

    fn logits(&self, s: &mut Stream, hidden: Slice, n: Size, logits: Slice) {
        self.model.logits(s, hidden, n, logits);
    }
}

/// See [`Searcher::upload`].
fn upload(
    decoder: &mut Decoder,
    catalog: &Catalog,
    (histories, first): (&[&[u32]], u32),
    to: &PromptBuffers,
) -> Result<Prefill> {
    let tokens: Vec<Vec<u32>> = histories
        .iter()
        .map(|items| catalog.prompt(items))
        .collect();
    let prompts: Vec<Prompt> = (first..)
        .zip(&tokens)
        .map(|(document, tokens)| Prompt { tokens, document })
        .collect();
    decoder.upload(&prompts, to)
}

/// Decodes batches of histories.
pub struct Searcher {
    pub decoder: Decoder,
    acts: Activations,
    /// Where [`Searcher::search`] puts prompts; another has buffers of its own for those run beside its passes.
    own: Option<PromptBuffers>,
    end_queries: Buffer,
    precision: Precision,
    stream: Stream,
    batch: usize,
    width: usize,
}

/// Slots of a cache that a decoder of these settings needs.
pub fn slots(data: &Dataset, decoding: &Decoding) -> Result<usize> {
    let trie = data.catalog.trie();
    let plan = Plan::new(&decoding.config.method, &trie.level_sizes())?;
    Ok(capacity(data, decoding).rows() + decoding.batch * plan.nodes)
}

/// The largest batch of these settings.
pub fn capacity(data: &Dataset, decoding: &Decoding) -> Capacity {
    let prompt = 1 + data.max_history * data.catalog.levels();
    Capacity {
        prompts: decoding.batch,
        tokens: decoding.batch * prompt,
    }
}

impl Searcher {
    /// For models of `model`'s shape on its device.
    pub fn new(model: &Model, data: &Dataset, decoding: &Decoding) -> Result<Searcher> {
        Self::build(model, data, decoding, None)
    }

    /// As [`Searcher::new`], for prompts that run in `prompts`, where training goes on with them; `tokens` rows may be
    /// run in the searcher's own buffers by others too ([`Searcher::scratch`]).
    pub fn beside(
        model: &Model,
        data: &Dataset,
        decoding: &Decoding,
        prompts: &Activations,
        tokens: usize,
    ) -> Result<Searcher> {
        Self::build(model, data, decoding, Some((prompts, tokens)))
    }

    fn build(
        model: &Model,
        data: &Dataset,
        decoding: &Decoding,
        beside: Option<(&Activations, usize)>,
    ) -> Result<Searcher> {
        let (device, a) = (&model.device, &model.architecture);
        let trie = data.catalog.trie();
        let trie = TrieBuffers::new(
            device,
            trie.child_begin(),
            trie.child_token(),
            trie.first_leaf(),
        )?;
        let capacity = capacity(data, decoding);
        let decoder = Decoder::new(
            device,
            Arc::new(trie),
            [a.vocab, a.hidden],
            capacity,
            decoding.config.clone(),
        )?;
        let nodes = decoding.batch * decoder.plan().rows().max(1);
        let (tokens, cache) = match beside {
            Some((prompts, tokens)) => (tokens.max(nodes), Cache::Of(prompts)),
            None => (capacity.rows().max(nodes), Cache::PerLayer(decoder.slots())),
        };
        let own = match beside {
            Some(_) => None,
            None => Some(PromptBuffers::new(device, capacity, capacity.rows())?),
        };
        Ok(Searcher {
            acts: Activations::for_inference(model, tokens, cache)?,
            own,
            end_queries: Buffer::new(
                device,
                "end queries",
                model.precision.words(decoding.batch * a.q_width()),
            )?,
            precision: model.precision,
            decoder,
            stream: Stream::new(),
            batch: decoding.batch,
            width: decoding.width(),
        })
    }

    /// Most histories per call of [`Searcher::search`].
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Candidates per history.
    pub fn beam(&self) -> usize {
        self.width
    }

    /// Backbone tokens one history costs at most, after prefill.
    pub fn budget(&self) -> usize {
        self.decoder.plan().budget
    }

    /// The buffers that tree nodes run in: free between decodes.
    pub fn scratch(&self) -> &Activations {
        &self.acts
    }

    /// Uploads histories (items, oldest first) as prompts, to `to`; the documents from `first` on name them in draws.
    pub fn upload(
        &mut self,
        catalog: &Catalog,
        histories: &[&[u32]],
        first: u32,
        to: &PromptBuffers,
    ) -> Result<Prefill> {
        upload(&mut self.decoder, catalog, (histories, first), to)
    }

    /// Records a decode of uploaded prompts. If there is `kept`, they run in it, and it thereafter holds what a forward pass
    /// over them leaves.
    pub fn record(
        &mut self,
        s: &mut Stream,
        model: &Model,
        kept: Option<&Activations>,
        prompts: &Prefill,
        step: u32,
    ) {
        let runner = Runner {
            model,
            acts: &self.acts,
            kept,
            end_queries: self.precision.of(self.end_queries.all()),
        };
        self.decoder.decode(s, &runner, prompts, step);
    }

    /// Makes what [`Searcher::search`] will need, for batches of any size.
    pub fn prepare(&mut self, model: &Model) -> Result<()> {
        let own = self.own.as_ref().expect("a searcher with prompts");
        let most = self.decoder.most(own);
        let fewer = (1..most.prompts).map(|prompts| Prefill { prompts, ..most });
        let halved = |&rows: &usize| (rows > ALIGN_WORDS).then(|| rows.div_ceil(2));
        let shorter = std::iter::successors(Some(most.tokens()), halved);
        let shorter = shorter.map(|rows| most.taking(rows));
        let mut streams = fewer.chain(shorter).map(|prompts| {
            let mut s = Stream::new();
            self.record(&mut s, model, None, &prompts, 0);
            s
        });
        model.device.prepare(&mut streams)
    }

    /// Candidates for each history (items, oldest first). `step` and the documents from `first` on name the prompts in
    /// draws.
    pub fn search(
        &mut self,
        model: &Model,
        catalog: &Catalog,
        histories: &[&[u32]],
        step: u32,
        first: u32,
    ) -> Result<Vec<Decoded>> {
        let own = self.own.as_ref().expect("a searcher with prompts");
        let prompts = upload(&mut self.decoder, catalog, (histories, first), own)?;
        let mut s = std::mem::take(&mut self.stream);
        s.clear();
        self.record(&mut s, model, None, &prompts, step);
        let ran = model.device.run(&s);
        self.stream = s;
        ran?;
        self.decoder.read()
    }
}
