//! Decoding histories with a model: a [`Decoder`] and the buffers the model runs in, sized once for a batch.

use super::{
    Capacity, DecodeConfig, DecodeModel, Decoded, Decoder, Method, Prompt, TrieBuffers, Ved,
};
use crate::catalog::Catalog;
use crate::config::{Candidates, Config, EvalDecode, PromptAttention};
use crate::data::Dataset;
use crate::device::{Slice, Stream};
use crate::model::layer::Pass;
use crate::model::value_head::At;
use crate::model::{Activations, Model};
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
    fn width(&self) -> usize {
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
    acts: &'a Activations,
}

impl DecodeModel for Runner<'_> {
    fn vocab(&self) -> usize {
        self.model.architecture.vocab
    }

    fn hidden(&self) -> usize {
        self.model.architecture.hidden
    }

    fn forward(
        &self,
        s: &mut Stream,
        rows: Slice,
        n: usize,
        parent: Slice,
        hidden: Slice,
        value: Option<Slice>,
    ) {
        let pass = Pass {
            rows,
            parent,
            ..self.model.pass(self.acts, n)
        };
        self.model.forward(s, &pass, self.acts, hidden);
        if let Some(value) = value {
            self.model
                .value(s, &pass, self.acts, hidden, At::All, value);
        }
    }

    fn logits(&self, s: &mut Stream, hidden: Slice, n: usize, logits: Slice) {
        self.model.logits(s, hidden, n, logits);
    }
}

/// Decodes batches of histories.
pub struct Searcher {
    decoder: Decoder,
    acts: Activations,
    stream: Stream,
    batch: usize,
    width: usize,
}

impl Searcher {
    /// For models of `model`'s shape on its device.
    pub fn new(model: &Model, data: &Dataset, decoding: &Decoding) -> Result<Searcher> {
        let (device, a) = (&model.device, &model.architecture);
        let trie = data.catalog.trie();
        let trie = TrieBuffers::new(
            device,
            trie.child_begin(),
            trie.child_token(),
            trie.first_leaf(),
        )?;
        let prompt = 1 + data.max_history * data.catalog.levels();
        let capacity = Capacity {
            prompts: decoding.batch,
            tokens: decoding.batch * prompt,
        };
        let decoder = Decoder::new(
            device,
            Arc::new(trie),
            [a.vocab, a.hidden],
            capacity,
            decoding.config.clone(),
        )?;
        let rows = decoding.batch * decoder.plan().rows();
        let tokens = capacity.tokens.max(rows);
        Ok(Searcher {
            acts: Activations::for_inference(device, a, tokens, decoder.slots())?,
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
        let tokens: Vec<Vec<u32>> = histories
            .iter()
            .map(|items| catalog.prompt(items))
            .collect();
        let prompts: Vec<Prompt> = (first..)
            .zip(&tokens)
            .map(|(document, tokens)| Prompt { tokens, document })
            .collect();
        let runner = Runner {
            model,
            acts: &self.acts,
        };
        self.stream.clear();
        self.decoder
            .decode(&mut self.stream, &runner, &prompts, step)?;
        model.device.run(&self.stream)?;
        self.decoder.read()
    }
}
