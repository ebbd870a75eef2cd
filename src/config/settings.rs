//! Every setting, declared once: name, type, default, allowed values and one-line doc.

use super::kinds::{Kind, choice};

choice! {
    /// How the interactions are split and evaluated (spec 7).
    Protocol {
        /// The one the data's format implies.
        Auto = "auto",
        LeaveOneOut = "leave-one-out",
        TimeSplit = "time-split",
    }
}
choice! {
    /// Which Hugging Face layout a from-scratch model takes (spec 2).
    Arch { Qwen2 = "qwen2", Llama = "llama", Qwen3 = "qwen3" }
}
choice! {
    /// What a prompt token may attend to (spec 3).
    PromptAttention { Causal = "causal", Full = "full" }
}
choice! {
    /// How passes store what they compute with.
    Precision { F32 = "f32", F16 = "f16" }
}
choice! {
    /// The learning rate after warm-up (spec 9).
    Schedule { Cosine = "cosine", Constant = "constant" }
}
choice! {
    /// Where the candidates of reinforcement learning come from (spec 4).
    Candidates { Ved = "ved", Beam = "beam", Sample = "sample" }
}
choice! {
    /// The form of the policy loss (spec 6).
    Loss { Grpo = "grpo", DrGrpo = "dr_grpo", Dapo = "dapo", Gspo = "gspo" }
}
choice! {
    /// What the group advantages are divided by (spec 6).
    ScaleRewards {
        /// The standard deviation of the prompt's own group.
        Group = "group",
        /// The standard deviation over the whole batch.
        Batch = "batch",
        None = "none",
    }
}
choice! {
    /// The decoder an evaluation uses (spec 4).
    EvalDecode { Beam = "beam", Ved = "ved" }
}

/// One row of the table of settings.
pub struct Setting {
    /// The dotted name: `sft.lr`.
    pub key: &'static str,
    /// One line: what it is, its unit, what special values mean.
    pub doc: &'static str,
    /// Takes a command-line value as it stands, without TOML quotes.
    pub(super) text: bool,
    pub(super) allowed: fn() -> String,
    pub(super) get: fn(&Config) -> String,
    /// False, and nothing changed, if the value is not allowed.
    pub(super) set: fn(&mut Config, &toml::de::DeValue) -> bool,
}

/// One row of [`SETTINGS`]; `$path` leads from the configuration to the field.
macro_rules! setting {
    ($key:expr, $doc:literal, $kind:ty, $range:expr, $($path:ident).+) => {
        Setting {
            key: $key,
            doc: $doc.trim_ascii(),
            text: <$kind as Kind>::TEXT,
            allowed: || <$kind as Kind>::allowed(&$range),
            get: |config| config.$($path).+.write(),
            set: |config, value| match <$kind as Kind>::read(value, &$range) {
                Some(value) => {
                    config.$($path).+ = value;
                    true
                }
                None => false,
            },
        }
    };
}

/// Declares the structs, their defaults and the table from one list of
/// `name: type = default, allowed;` rows.
macro_rules! settings {
    (
        top { $(#[doc = $top_doc:literal] $top:ident: $top_kind:ty = $top_default:expr, $top_range:expr;)+ }
        $(
            #[doc = $section_doc:literal]
            $section:ident: $Section:ident {
                $(#[doc = $doc:literal] $name:ident: $kind:ty = $default:expr, $range:expr;)+
            }
        )+
    ) => {
        /// Every setting of a run. Read one with [`Config::load`].
        #[derive(Clone, Debug, PartialEq)]
        pub struct Config {
            $(#[doc = $top_doc] pub $top: $top_kind,)+
            $(#[doc = $section_doc] pub $section: $Section,)+
        }

        impl Default for Config {
            fn default() -> Self {
                Config {
                    $($top: $top_default,)+
                    $($section: $Section { $($name: $default,)+ },)+
                }
            }
        }

        $(
            #[doc = $section_doc]
            #[derive(Clone, Debug, PartialEq)]
            pub struct $Section {
                $(#[doc = $doc] pub $name: $kind,)+
            }
        )+

        /// The sections of the file and what each is about, in the order of [`SETTINGS`].
        pub const SECTIONS: &[(&str, &str)] =
            &[$((stringify!($section), $section_doc.trim_ascii()),)+];

        /// Every setting, those outside any section first.
        pub static SETTINGS: &[Setting] = &[
            $(setting!(stringify!($top), $top_doc, $top_kind, $top_range, $top),)+
            $($(setting!(
                concat!(stringify!($section), ".", stringify!($name)),
                $doc, $kind, $range, $section.$name
            ),)+)+
        ];
    };
}

/// TOML's integers are signed, so half of the 64-bit seeds cannot be written.
pub const MAX_SEED: u64 = i64::MAX as u64;
/// More tokens than any run decodes, whose sums are far from overflow.
const MANY_TOKENS: u64 = 1_000_000_000_000_000;
/// More steps, users or tokens than any run has, and still a 32-bit count.
const MANY: usize = 1_000_000_000;
/// "Above 0" for divisors and rates: below any useful value, far from underflow.
const TINY: f64 = 1e-20;

settings! {
    top {
        /// Seed of every random draw: initialisation, order of the data, decoding, bootstrap
        seed: u64 = 1, 0..=MAX_SEED;
        /// Storage of activations, their gradients and the operands of products; sums and weights stay f32
        precision: Precision = Precision::F32, ..;
    }

    /// The interactions and how they are split
    data: Data {
        /// Folder with the data set; empty = the built-in shop
        path: String = String::new(), ..;
        /// Split and evaluation protocol; auto = the one the data's format implies
        protocol: Protocol = Protocol::Auto, ..;
        /// Items of history in a prompt, the latest ones; 0 = the protocol's own number
        max_history: usize = 0, 0..=10_000;
    }

    /// The backbone; all but the last three is ignored where a checkpoint is given
    model: Model {
        /// Hugging Face layout of a model made from scratch
        arch: Arch = Arch::Llama, ..;
        /// Decoder layers
        layers: usize = 4, 1..=256;
        /// Width of the hidden states
        hidden_size: usize = 128, 4..=65_536;
        /// Query heads; must divide hidden_size into heads of even width
        heads: usize = 4, 1..=1024;
        /// Key and value heads; must divide heads
        kv_heads: usize = 4, 1..=1024;
        /// Width of the feed-forward layer; 0 = 8/3 of hidden_size, rounded down to a multiple of 32
        intermediate_size: usize = 0, 0..=262_144;
        /// Base of the rotary position frequencies
        rope_theta: f64 = 10_000.0, 1.0..=1e9;
        /// Added to the mean square in every RMSNorm
        rms_norm_eps: f64 = 1e-6, TINY..=0.1;
        /// Use the input embedding as the output matrix
        tie_embeddings: bool = true, ..;
        /// Standard deviation of the initial weights
        init_std: f64 = 0.02, TINY..=10.0;
        /// What a prompt token may attend to: the tokens before it, or the whole prompt
        prompt_attention: PromptAttention = PromptAttention::Causal, ..;
        /// Backward passes compute activations anew instead of keeping them: less memory, more time
        recompute: bool = false, ..;
        /// Checkpoint folder to start from (config.json, model.safetensors); empty = from scratch
        init: String = String::new(), ..;
    }

    /// Supervised fine-tuning
    sft: Sft {
        /// Passes over the training histories
        epochs: usize = 30, 0..=MANY;
        /// Steps after which to stop at the latest; 0 = no limit
        max_steps: usize = 0, 0..=MANY;
        /// Documents (history windows) per optimiser step
        batch: usize = 64, 1..=1_048_576;
        /// Parts that a step's batch is run in: less memory, the same gradient
        accumulate: usize = 1, 1..=65_536;
        /// Highest learning rate, reached at the end of warm-up
        lr: f64 = 2e-3, 0.0..=10.0;
        /// Learning rate at the end of a cosine schedule
        min_lr: f64 = 0.0, 0.0..=10.0;
        /// Learning rate after warm-up
        schedule: Schedule = Schedule::Cosine, ..;
        /// Steps of linear warm-up from 0
        warmup_steps: usize = 50, 0..=MANY;
        /// Share of activations dropped: of embedded tokens, and of what layers add to the residual stream
        dropout: f64 = 0.0, 0.0..=0.95;
        /// Share of each target spread over the whole vocabulary
        label_smoothing: f64 = 0.0, 0.0..=0.95;
        /// Share of the documents of an epoch that are cut to a random stretch of their items
        random_crop: f64 = 0.0, 0.0..=1.0;
        /// Decay of a moving average of the weights, which is then validated and kept; 0 = the last weights are
        ema: f64 = 0.0, 0.0..=0.999_999;
        /// Decoupled weight decay (AdamW), not applied to norms and biases
        weight_decay: f64 = 0.05, 0.0..=10.0;
        /// Largest global gradient norm; 0 = no clipping
        clip_norm: f64 = 1.0, 0.0..=1e9;
        /// AdamW's decay of the first moment
        beta1: f64 = 0.9, 0.0..=0.999_999;
        /// AdamW's decay of the second moment
        beta2: f64 = 0.98, 0.0..=0.999_999;
        /// AdamW's addition to the denominator
        adam_eps: f64 = 1e-8, TINY..=1.0;
        /// Steps between validations; 0 = one at the end of every epoch
        eval_every: usize = 0, 0..=MANY;
        /// Validation users per validation, evenly spread over them; 0 = all
        eval_users: usize = 1000, 0..=MANY;
        /// Validations without a better NDCG@10 before stopping early; 0 = never stop early
        patience: usize = 3, 0..=MANY;
        /// Longest document in tokens, longer histories slide; 0 = the longest prompt of an evaluation and its target
        window: usize = 0, 0..=1_048_576;
    }

    /// Reinforcement learning: V-STAR and its ablations
    rl: Rl {
        /// Decay of a moving average of the weights, which is then validated and kept; 0 = the last weights are
        ema: f64 = 0.0, 0.0..=0.999_999;
        /// Rollouts, each followed by `updates` optimiser steps
        steps: usize = 200, 0..=MANY;
        /// Rollouts after which to stop at the latest, the schedule still being that of `steps`; 0 = no further limit
        max_steps: usize = 0, 0..=MANY;
        /// Backbone tokens of decoding that end the stage and its schedule, in the place of `steps`; 0 = `steps` does
        max_decode_tokens: u64 = 0, 0..=MANY_TOKENS;
        /// Prompts per rollout
        prompts: usize = 32, 1..=65_536;
        /// Share of prompts that are whole training sequences: what follows is not known, so the rewards that need no target decide
        open_prompts: f64 = 0.0, 0.0..=1.0;
        /// Candidates per prompt (G)
        group: usize = 16, 2..=1024;
        /// Where candidates come from: value-guided decoding, beam search or independent samples
        decode: Candidates = Candidates::Ved, ..;
        /// Highest learning rate, reached at the end of warm-up
        lr: f64 = 2e-4, 0.0..=10.0;
        /// Learning rate at the end of a cosine schedule
        min_lr: f64 = 0.0, 0.0..=10.0;
        /// Learning rate after warm-up
        schedule: Schedule = Schedule::Constant, ..;
        /// Steps of linear warm-up from 0
        warmup_steps: usize = 10, 0..=MANY;
        /// Decoupled weight decay (AdamW), not applied to norms and biases
        weight_decay: f64 = 0.0, 0.0..=10.0;
        /// Largest global gradient norm; 0 = no clipping
        clip_norm: f64 = 1.0, 0.0..=1e9;
        /// AdamW's decay of the first moment
        beta1: f64 = 0.9, 0.0..=0.999_999;
        /// AdamW's decay of the second moment
        beta2: f64 = 0.98, 0.0..=0.999_999;
        /// AdamW's addition to the denominator
        adam_eps: f64 = 1e-8, TINY..=1.0;
        /// Parts that a step's prompts are run in: less memory, the same gradient
        accumulate: usize = 1, 1..=65_536;
        /// Optimiser steps on each rollout
        updates: usize = 1, 1..=1024;
        /// Form of the policy loss
        loss: Loss = Loss::Grpo, ..;
        /// What advantages are divided by: the group's deviation, the batch's, or nothing; with nothing, siblings' neither
        scale_rewards: ScaleRewards = ScaleRewards::Group, ..;
        /// The probability ratio is clipped below at 1 - clip_low
        clip_low: f64 = 0.2, 0.0..=1.0;
        /// The probability ratio is clipped above at 1 + clip_high
        clip_high: f64 = 0.2, 0.0..=100.0;
        /// Weight of the divergence from the reference model; 0 = the reference is not loaded
        kl_beta: f64 = 0.02, 0.0..=1000.0;
        /// Steps between updates of the reference from the policy; 0 = never
        ref_sync_steps: usize = 0, 0..=MANY;
        /// Share of the policy in an updated reference
        ref_mix: f64 = 1.0, 0.0..=1.0;
        /// Weight of the sibling loss; 0 = plain group advantages
        sibling_weight: f64 = 1.0, 0.0..=1000.0;
        /// Weight of the value loss
        value_weight: f64 = 0.5, 0.0..=1000.0;
        /// Weight of fine-tuning's loss over as many training documents as prompts, in every update
        sft_weight: f64 = 0.0, 0.0..=1000.0;
        /// Leave out the groups whose rewards are all equal
        mask_zero_variance: bool = false, ..;
        /// Temperature of decode = "sample"
        temperature: f64 = 1.0, 0.001..=1000.0;
        /// First steps that train the value head alone
        value_warmup_steps: usize = 0, 0..=MANY;
        /// Steps between validations; 0 = only at the end
        eval_every: usize = 50, 0..=MANY;
        /// Validation users per validation, evenly spread over them; 0 = all
        eval_users: usize = 1000, 0..=MANY;
        /// Validations without improvement before stopping early; 0 = never stop early
        patience: usize = 0, 0..=MANY;
    }

    /// Weights of the rewards that are added up for a candidate
    reward: Reward {
        /// 1 for the target, else 0
        rule: f64 = 1.0, 0.0..=1e6;
        /// Penalty of a miss by its rank, in groups with a hit
        rank: f64 = 1.0, 0.0..=1e6;
        /// Cosine of the item embeddings of candidate and target
        semantic: f64 = 0.0, 0.0..=1e6;
        /// Penalty of a miss that the history holds already
        repeat: f64 = 0.0, 0.0..=1e6;
        /// Rarity of the candidate (negative log-popularity)
        novelty: f64 = 0.0, 0.0..=1e6;
        /// How much more of a prompt another model, with one token per item, would give the candidate than the policy does
        teacher: f64 = 0.0, 0.0..=1e6;
        /// Run folder of that model, which gives nothing to what a history holds where reward.repeat is above 0
        teacher_model: String = String::new(), ..;
        /// Worth of the target on a hit
        value: f64 = 0.0, 0.0..=1e6;
        /// JSON file, item to worth; empty = the worth that the data set brings
        value_table: String = String::new(), ..;
    }

    /// The value head
    value: Value {
        /// Keep the value loss's gradient out of the backbone
        detach: bool = false, ..;
        /// Discount from one level to the next
        gamma: f64 = 0.99, 0.0..=1.0;
        /// Step reward per level, interpolated linearly where the code has another number of levels
        level_weights: Vec<f64> = vec![0.3, 0.5, 1.0], 0.0..=1e6;
    }

    /// Value-guided efficient decoding
    ved: Ved {
        /// Weight of the entropy beside the value of a node
        lambda: f64 = 0.1, 0.0..=1e6;
        /// Weight of exploration when descending
        beta: f64 = 1.0, 0.0..=1e6;
        /// Width of the beam search that makes the first tree
        init_beam: usize = 8, 1..=1024;
        /// Tokens run per prompt after prefill, never exceeded; 0 = twice the first tree's cost
        budget: usize = 0, 0..=1_048_576;
        /// Widening: a node visited N times may have widen_c N^widen_a children
        widen_c: f64 = 2.0, TINY..=1e6;
        /// Widening exponent
        widen_a: f64 = 0.5, 0.0..=1.0;
        /// Run complete codes too, so that they have a value of their own; if not, a prefix that a single code begins with is complete
        score_leaves: bool = true, ..;
        /// Weight of the log-probability in the score of a complete code that is not run
        eta: f64 = 0.1, 0.0..=1e6;
        /// Leaves selected per round and prompt
        round: usize = 4, 1..=1024;
    }

    /// All decoders
    decode: Decode {
        /// Renormalise the policy over the legal children
        renormalise: bool = false, ..;
    }

    /// Evaluation
    eval: Eval {
        /// Beam width; 0 = the protocol's own
        beam: usize = 0, 0..=1024;
        /// Test users, evenly spread over them; 0 = all
        max_users: usize = 0, 0..=MANY;
        /// Users decoded at once
        batch: usize = 128, 1..=65_536;
        /// Bootstrap resamples behind the 95% intervals; 0 = no intervals
        bootstrap: usize = 1000, 0..=1_000_000;
        /// Decoder of the final evaluation
        decode: EvalDecode = EvalDecode::Beam, ..;
        /// Add popularity, and GRPO with beam search at equal decode tokens, to the final table
        baselines: bool = true, ..;
    }

    /// The GPU
    device: OnGpu {
        /// Longest that what a GPU is given at once is to last, in milliseconds, or its driver may think it hung; 0 = no limit
        max_launch_ms: usize = 250, 0..=600_000;
    }

    /// The run folder
    run: Run {
        /// Latest checkpoints kept, beside the best of each stage
        keep_checkpoints: usize = 2, 1..=1_000_000;
        /// Steps between checkpoints; 0 = only at the ends of stages
        checkpoint_every: usize = 100, 0..=MANY;
        /// Steps between records of metrics.jsonl
        log_every: usize = 1, 1..=MANY;
    }
}

impl Model {
    /// Width of the feed-forward layer, the default of 8/3 of the hidden size filled in.
    pub fn feed_forward_size(&self) -> usize {
        match self.intermediate_size {
            0 => (self.hidden_size * 8 / 3 / 32 * 32).max(32),
            size => size,
        }
    }
}

impl Rl {
    /// Rollouts to do: `steps`, cut off at `max_steps`.
    pub fn last_step(&self) -> usize {
        match self.max_steps {
            0 => self.steps,
            limit => self.steps.min(limit),
        }
    }
}
