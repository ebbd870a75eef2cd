//! Whole steps on one device, to be read beside another framework's:
//! `cargo bench --bench steps -- [--device D] [--repeat N] [WIDTH ..]`.
//!
//! The shapes are those of a PyTorch script users compare with: 4 layers, 4 heads, feed-forward 8/3 d, vocabulary 1,028,
//! batches of 32. Three lines per width, medians of N runs (5) after one to warm up:
//! - `sft`: one fine-tuning step over documents of 36 tokens, every token scored;
//! - `rl`: one V-STAR step as `vstar train` does it with its defaults, from 34-token prompts to updated weights (decoding
//!   G = 16 candidates by VED, then reference, policy, value head, backward, AdamW), and its cost in sft steps;
//! - `ved`: decoding of the same prompts with 17 forwarded nodes each (the first tree, complete SIDs not run).
//!
//! The model is freshly initialised, so candidates share few prefixes: trained ones share more and cost less.
//! Per line: milliseconds per prompt, tokens run per prompt, and what one step asks of the device after warm-up
//! (submissions, launches, pipelines and bind groups created, KiB up and down). Times of two programs compare only if taken alternately on a quiet machine.

use std::time::Instant;
use vstar::catalog::{Catalog, Items};
use vstar::config::Config;
use vstar::data::{Dataset, Protocol};
use vstar::decode::search::{Decoding, Searcher};
use vstar::device::choose::{self, DeviceChoice};
use vstar::device::gpu::GpuOptions;
use vstar::device::tuning::Forms;
use vstar::device::{Counters, DeviceRef};
use vstar::forest::{Forest, PromptAttention};
use vstar::learn::engine::{Capacity, Engine, Targets};
use vstar::learn::rl::Stepper;
use vstar::learn::rollout::{self, Question};
use vstar::learn::sft::Trainer;
use vstar::model::checkpoint::Init;
use vstar::model::optimiser::Update;
use vstar::model::{Architecture, Family, Model};
use vstar::rng::{Rng, Stream};

const DOCUMENTS: usize = 32;
const TOKENS: usize = 36;
const LEVELS: usize = 3;
const CODES: u32 = 342;
/// Items of history in a prompt: 1 + 3 x 11 tokens.
const HISTORY: usize = 11;
const ITEMS: usize = 4096;
/// Two special tokens and the codes of every level.
const VOCAB: usize = 2 + LEVELS * CODES as usize;

const UPDATE: Update = Update {
    lr: 1e-4,
    beta1: 0.9,
    beta2: 0.98,
    eps: 1e-8,
    weight_decay: 0.05,
    clip_norm: 1.0,
};

fn model(device: &DeviceRef, hidden: usize) -> Model {
    let architecture = Architecture {
        family: Family::Llama,
        vocab: VOCAB,
        hidden,
        intermediate: hidden * 8 / 3 / 32 * 32,
        layers: 4,
        heads: 4,
        kv_heads: 4,
        head_dim: hidden / 4,
        rope_theta: 1e4,
        eps: 1e-6,
        tied: true,
        qkv_bias: false,
        max_positions: 256,
    };
    let init = Init { seed: 1, std: 0.02 };
    Model::initialised(device, &architecture, 64, init).expect("model")
}

/// Items with random codes.
fn dataset() -> Dataset {
    let mut rng = Rng::new(1, Stream::Test, 0, 0);
    let mut codes: Vec<u32> = (0..ITEMS * LEVELS)
        .map(|_| rng.below(CODES as usize) as u32)
        .collect();
    // The codebooks are as large as the largest codes.
    codes[..LEVELS].fill(CODES - 1);
    let catalog = Catalog::new(Items {
        names: (0..ITEMS).map(|i| i.to_string()).collect(),
        levels: LEVELS,
        codes,
        ..Items::default()
    })
    .expect("catalog");
    assert_eq!(catalog.vocab_size(), VOCAB);
    Dataset {
        name: "random".into(),
        catalog,
        protocol: Protocol::LeaveOneOut,
        users: Vec::new(),
        train: Vec::new(),
        valid: Vec::new(),
        test: Vec::new(),
        max_history: HISTORY,
        beam: 10,
        warnings: Vec::new(),
    }
}

fn histories() -> Vec<Vec<u32>> {
    let mut rng = Rng::new(2, Stream::Test, 0, 0);
    let mut history = || (0..HISTORY).map(|_| rng.below(ITEMS) as u32).collect();
    (0..DOCUMENTS).map(|_| history()).collect()
}

/// Takes the times of steps.
struct Meter<'a> {
    device: &'a DeviceRef,
    repeat: usize,
}

/// Medians, and what the last run asked of the device.
struct Measured {
    seconds: f64,
    counters: [u64; 5],
}

impl Meter<'_> {
    fn measure(&self, mut f: impl FnMut()) -> Measured {
        f();
        let read = |c: Counters| {
            let created = c.pipelines_created + c.bind_groups_created;
            [
                c.submissions,
                c.launches,
                created,
                c.bytes_uploaded,
                c.bytes_read_back,
            ]
        };
        let (mut whole, mut counters) = (Vec::new(), [0; 5]);
        for _ in 0..self.repeat {
            let before = read(self.device.counters());
            let started = Instant::now();
            f();
            whole.push(started.elapsed().as_secs_f64());
            let after = read(self.device.counters());
            counters = std::array::from_fn(|i| after[i] - before[i]);
        }
        let median = |mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        Measured {
            seconds: median(whole),
            counters,
        }
    }
}

fn sft(meter: &Meter, hidden: usize) -> Measured {
    let tokens = DOCUMENTS * TOKENS;
    let capacity = Capacity {
        tokens,
        rows: tokens,
        targets: tokens,
        slots: 0,
    };
    let mut engine = Engine::new(model(meter.device, hidden), capacity, false).expect("buffers");
    let mut trainer = Trainer::new(&engine, 1).expect("buffers");
    let mut rng = Rng::new(1, Stream::Test, 0, 0);
    let mut document = || {
        let tokens = (0..TOKENS).map(|_| 2 + rng.below(VOCAB - 2) as u32);
        tokens.collect::<Vec<u32>>()
    };
    let documents: Vec<Vec<u32>> = (0..DOCUMENTS).map(|_| document()).collect();
    let pack = |documents: &Vec<Vec<u32>>, forest: &mut Forest, targets: &mut Targets| {
        for document in documents {
            let first = forest.len() as u32;
            forest.push_prompt(document, PromptAttention::Causal);
            for (t, &next) in document.iter().enumerate().skip(1) {
                targets.push(first + t as u32 - 1, next);
            }
        }
    };
    meter.measure(|| {
        let result = trainer.step(&mut engine, std::slice::from_ref(&documents), pack, &UPDATE);
        assert!(result.expect("step").finite);
    })
}

/// A V-STAR step; also returns the tokens run per prompt by decoding and by the update.
fn rl(meter: &Meter, data: &Dataset, hidden: usize) -> (Measured, [f64; 2]) {
    let config = Config::default();
    let capacity = rollout::capacity(&config, data).expect("capacity");
    let engine = Engine::new(model(meter.device, hidden), capacity, false).expect("buffers");
    let reference = model(meter.device, hidden);
    let mut stepper = Stepper::new(&engine, &config, data).expect("buffers");
    let histories = histories();
    let mut targets = Rng::new(3, Stream::Test, 0, 0);
    let asked: Vec<Question> = histories
        .iter()
        .map(|history| Question {
            history,
            target: targets.below(ITEMS) as u32,
        })
        .collect();
    let (mut step, mut tokens) = (0, [0.0; 2]);
    let measured = meter.measure(|| {
        step += 1;
        let of = (asked.as_slice(), asked.len(), step);
        let submitted = stepper.submit(&engine, data, of, Some(&reference), (1, &UPDATE, false));
        let figures = stepper.wait(submitted.expect("step")).expect("figures");
        assert!(figures.is_finite());
        let prompts = (DOCUMENTS * (1 + HISTORY * LEVELS)) as f64;
        tokens =
            [figures.decode_cost as f64, figures.nodes].map(|n| (prompts + n) / DOCUMENTS as f64);
    });
    (measured, tokens)
}

fn ved(meter: &Meter, data: &Dataset, hidden: usize) -> Measured {
    let mut config = Config::default();
    config.ved.score_leaves = false;
    config.ved.budget = 1 + (LEVELS - 1) * config.ved.init_beam;
    config.rl.group = config.ved.init_beam;
    let model = model(meter.device, hidden);
    let decoding = Decoding::rollout(&config, data, DOCUMENTS);
    let mut searcher = Searcher::new(&model, data, &decoding).expect("decoder");
    let histories = histories();
    let asked: Vec<&[u32]> = histories.iter().map(Vec::as_slice).collect();
    meter.measure(|| {
        let found = searcher.search(&model, &data.catalog, &asked, 1, 0);
        let found = found.expect("candidates");
        assert!(found.iter().all(|d| d.cost == config.ved.budget));
    })
}

fn report(hidden: usize, name: &str, measured: &Measured, remarks: String) {
    let [submissions, launches, created, up, down] = measured.counters;
    println!(
        "d {hidden:4}  {name:3} {:8.3} ms/prompt  {remarks}; {submissions} submissions, {launches} launches, {created} \
         created, {} KiB up, {} KiB down",
        1e3 * measured.seconds / DOCUMENTS as f64,
        up.div_ceil(1024),
        down.div_ceil(1024),
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let mut choice = DeviceChoice {
        device: "cpu".into(),
        ..Default::default()
    };
    let (mut widths, mut repeat) = (Vec::new(), 5);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--device" => choice.device = rest.next().expect("--device D").clone(),
            "--repeat" => {
                let count = rest.next().and_then(|n| n.parse().ok());
                repeat = count.filter(|&n| n > 0).expect("--repeat N");
            }
            width => widths.push(width.parse().expect("a width, for example 256")),
        }
    }
    if widths.is_empty() {
        widths = vec![128, 256];
    }
    let options = GpuOptions {
        forms: Forms::Measured,
        ..Default::default()
    };
    let device = &choose::open(&choice, options).expect("device");
    println!("{}", device.info());
    let (meter, data) = (Meter { device, repeat }, dataset());
    for hidden in widths {
        let fine_tuning = sft(&meter, hidden);
        let rate = (DOCUMENTS * TOKENS) as f64 / fine_tuning.seconds;
        let remarks = format!("{TOKENS} tokens/prompt, {rate:.0} tokens/s");
        report(hidden, "sft", &fine_tuning, remarks);
        let (step, [decoded, trained]) = rl(&meter, &data, hidden);
        let remarks = format!(
            "{:.2} x sft: {decoded:.0} tokens/prompt decoded, {trained:.0} trained",
            step.seconds / fine_tuning.seconds,
        );
        report(hidden, "rl", &step, remarks);
        let search = ved(&meter, &data, hidden);
        let remarks = format!(
            "{:.2} x sft: {} + 17 tokens/prompt",
            search.seconds / fine_tuning.seconds,
            1 + HISTORY * LEVELS
        );
        report(hidden, "ved", &search, remarks);
    }
}
