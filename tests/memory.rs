//! What a run is said to need and what it takes; and ways to need less that change nothing else.

#[path = "support/devices.rs"]
mod devices;
#[path = "support/folder.rs"]
mod folder;
#[path = "support/steps.rs"]
mod steps;
#[path = "support/toy.rs"]
mod toy;
#[path = "support/train.rs"]
mod train;

use devices::{bare_gpu, cpu, gpu};
use folder::in_folder;
use steps::{
    CAUSAL, Outcome, both_ways, fine_tune, gradient, gradient_difference, sft_step, update,
};
use train::{config, dataset, engine};
use vstar::device::gpu::GpuOptions;
use vstar::device::planner::Limits;
use vstar::device::{DeviceRef, MAX_BUFFER_WORDS, TooLarge};
use vstar::forest::{Forest, PromptAttention};
use vstar::learn::engine::{Capacity, Engine, Options, Targets};
use vstar::learn::head::Head;
use vstar::learn::job::{self, Stages};
use vstar::learn::plan::Plan;
use vstar::learn::sequences::{Window, push_window, windows};
use vstar::learn::sft::Trainer;
use vstar::model::checkpoint::Init;
use vstar::model::{Architecture, Model};

const MOST: Limits = Limits {
    buffer_words: MAX_BUFFER_WORDS,
    longest_loop: u32::MAX,
};

const ALL: Stages = Stages {
    sft: true,
    rl: true,
    eval: true,
};

#[test]
fn a_run_takes_what_was_planned() {
    let data = dataset();
    for device in [cpu(), bare_gpu()] {
        for change in ["rl.kl_beta=0.02", "rl.accumulate=3", "model.recompute=true"] {
            let steps = ["sft.max_steps=2", "rl.steps=2", "rl.max_steps=2"];
            let config = config(&[&steps[..], &[change]].concat());
            let planned = Plan::new(&config, &data, ALL, MOST).unwrap().peak as f64;
            let fresh: DeviceRef = match device.info().backend.as_str() {
                "cpu" => cpu(),
                _ => bare_gpu(),
            };
            let temporary = tempfile::tempdir().unwrap();
            let root = temporary.path().join("run");
            in_folder(&root, &config, &data, |context| {
                job::run(&fresh, context, ALL, None)
            })
            .unwrap();
            let taken = fresh.memory().peak as f64;
            let ratio = taken / planned;
            assert!(
                (0.9..1.1).contains(&ratio),
                "{change}: {taken} of {planned}"
            );
        }
    }
}

#[test]
fn a_run_that_does_not_fit_is_told_what_would() {
    let (data, config) = (dataset(), config(&[]));
    let plan = Plan::new(&config, &data, ALL, MOST).unwrap();
    let mut info = cpu().info().clone();
    let admit = |plan, info: &_| Plan::admit(plan, &config, &data, ALL, (info, MOST));
    admit(Ok(plan.clone()), &info).unwrap();
    let huge = Plan {
        peak: u64::MAX - 1,
        ..plan.clone()
    };
    let error = admit(Ok(huge.clone()), &info).unwrap_err().to_string();
    assert!(
        error.contains("it would fit with sft.accumulate="),
        "{error}"
    );
    assert!(error.contains("model.recompute="), "{error}");
    info.software = false;
    admit(Ok(huge), &info).expect("a GPU speaks for itself");
    let half = Plan::settings_that_fit(&config, &data, ALL, (plan.peak / 2, MOST)).unwrap();
    let settings: Vec<&str> = half.split(' ').collect();
    let smaller = Plan::new(&train::config(&settings), &data, ALL, MOST).unwrap();
    assert!(smaller.peak <= plan.peak / 2, "{half}");
    assert_eq!(
        Plan::settings_that_fit(&config, &data, ALL, (1000, MOST)),
        None
    );
    let wide = train::config(&[
        "model.hidden_size=65536",
        "model.heads=512",
        "model.layers=1",
    ]);
    let error = Plan::new(&wide, &data, ALL, MOST).unwrap_err();
    assert!(error.is::<TooLarge>(), "{error:#}");
}

/// A driver that ends loops has the vocabulary in shards, whose logits are a buffer more.
#[test]
fn a_plan_knows_of_loops_that_end() {
    let data = dataset();
    let model = tempfile::tempdir().unwrap();
    let config = config(&[]);
    let architecture = Architecture {
        vocab: 40_000,
        ..job::architecture(&config, &data)
    };
    let init = Init { seed: 1, std: 0.02 };
    let made = Model::initialised(&cpu(), &architecture, 32, job::precision(&config), init);
    made.unwrap().save(model.path()).unwrap();
    let config = train::config(&[&format!("model.init={}", model.path().display())]);
    let ending = Limits {
        longest_loop: 65_535,
        ..MOST
    };
    let logits = |limits| Plan::new(&config, &data, ALL, limits).unwrap().kinds[4];
    assert!(logits(ending) > logits(MOST));
}

/// An embedding, and logits of 64 rows, that are larger than what every adapter binds: where no more than that is asked for,
/// and where it is.
#[test]
fn a_vocabulary_of_more_than_one_least_binding_works() {
    let (data, config) = (
        dataset(),
        config(&["model.layers=1", "model.hidden_size=64"]),
    );
    let vocab = 600_000;
    let architecture = Architecture {
        vocab,
        ..job::architecture(&config, &data)
    };
    assert!(vocab * architecture.hidden > MAX_BUFFER_WORDS);
    let init = Init { seed: 1, std: 0.02 };
    let capacity = Capacity {
        tokens: 64,
        rows: 64,
        targets: 64,
        slots: 0,
    };
    let losses = |device: &DeviceRef| -> Vec<f64> {
        let precision = job::precision(&config);
        let model = Model::initialised(device, &architecture, 32, precision, init).unwrap();
        let engine = Engine::new(model, capacity, Options::default()).unwrap();
        let mut trainer = Trainer::new(&engine, 1).unwrap();
        // The last tokens there are.
        let pack = |window: &Window, forest: &mut Forest, targets: &mut Targets| {
            let items = &data.train[window.sequence as usize];
            push_window(&data.catalog, items, *window, CAUSAL, (forest, targets));
            let tokens = targets.tokens.iter_mut();
            tokens.for_each(|token| *token = vocab as u32 - 1 - *token);
        };
        let document = documents(&data)[0];
        let step = |_| {
            let stepped = trainer.step(&engine, &[document], pack, &update(0.01));
            stepped.unwrap().loss
        };
        (0..3).map(step).collect()
    };
    let want = losses(&cpu());
    assert!((want[0] - (vocab as f64).ln()).abs() < 0.1, "{want:?}");
    assert!(want[2] < want[1] && want[1] < want[0] - 0.1, "{want:?}");
    let bare = bare_gpu();
    assert_eq!(bare.max_buffer_words(), MAX_BUFFER_WORDS);
    for gpu in [bare, gpu(GpuOptions::default())] {
        for (want, got) in want.iter().zip(losses(&gpu)) {
            assert!((want - got).abs() < 1e-3 * want, "{want} {got}");
        }
    }
}

/// Documents of a step.
fn documents(data: &vstar::data::Dataset) -> Vec<Window> {
    windows(&data.train, 7, CAUSAL)[..9].to_vec()
}

#[test]
fn recomputed_activations_are_the_same_bits() {
    let data = dataset();
    let losses = |recompute: &str| {
        let config = config(&[recompute]);
        let engine = engine(&cpu(), &config, &data);
        fine_tune(&engine, &data, CAUSAL, (3, 1e-3))
    };
    assert_eq!(
        losses("model.recompute=false"),
        losses("model.recompute=true")
    );
    for arch in ["model.arch=qwen2", "model.arch=qwen3"] {
        let gradient_with = |recompute: &str| {
            let config = config(&[arch, recompute]);
            let engine = engine(&cpu(), &config, &data);
            let parts = [documents(&data)];
            sft_step(&engine, &data, &parts, CAUSAL, &update(0.0));
            gradient(&engine)
        };
        let kept = gradient_with("model.recompute=false");
        assert_eq!(kept, gradient_with("model.recompute=true"), "{arch}");
    }
}

/// Log-probs and gradient with logits in chunks of at most `words`, by the way of fine-tuning and by that of a policy.
fn with_chunks(device: &DeviceRef, words: usize) -> [Outcome; 2] {
    let (data, config) = (dataset(), config(&["model.tie_embeddings=false"]));
    let mut engine: Engine = engine(device, &config, &data);
    engine.head = Head::with_chunks(device, &engine.model, engine.capacity(), words).unwrap();
    let (mut forest, mut targets) = (Forest::new(), Targets::default());
    for w in documents(&data) {
        let items = &data.train[w.sequence as usize];
        let into = (&mut forest, &mut targets);
        push_window(&data.catalog, items, w, PromptAttention::Causal, into);
    }
    assert!(targets.rows.len() > 130, "several chunks of 64 rows");
    both_ways(&engine, (&forest, &targets), 0.0)
}

#[test]
fn logits_in_chunks_give_the_same_gradient() {
    for device in [cpu(), bare_gpu()] {
        let [whole, again] = with_chunks(&device, 1 << 24);
        assert_eq!(whole.0, again.0);
        assert_eq!(gradient_difference(&whole.1, &again.1), 0.0);
        // 64 rows of the toy's vocabulary and not 128.
        for (logp, chunked) in with_chunks(&device, 64 * 30) {
            assert_eq!(logp, whole.0);
            let off = gradient_difference(&whole.1, &chunked);
            assert!(off < 1e-6, "the gradient is off by {off:.1e}");
        }
    }
}
