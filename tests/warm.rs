//! What a warm run asks of a GPU: two submissions a step, however it is cut, and nothing made, whatever the next batch.

#[path = "support/devices.rs"]
mod devices;
#[path = "support/folder.rs"]
mod folder;
#[path = "support/program.rs"]
mod program;
#[path = "support/teacher.rs"]
mod teacher;
#[path = "support/toy.rs"]
mod toy;
#[path = "support/train.rs"]
mod train;
#[path = "support/watched.rs"]
mod watched;

use devices::{cpu, whole_gpu};
use folder::in_folder;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use train::{config, dataset, engine};
use vstar::config::Config;
use vstar::data::Dataset;
use vstar::decode::search::{Decoding, Searcher};
use vstar::device::{Counters, DeviceRef, Stream};
use vstar::forest::{Forest, PromptAttention};
use vstar::learn::engine::{Engine, Targets};
use vstar::learn::head::Head;
use vstar::learn::questions::Question;
use vstar::learn::rl::Stepper;
use vstar::learn::rollout;
use vstar::learn::sequences::{Window, push_window, windows};
use vstar::learn::sft::Trainer;
use vstar::learn::{job, mixing};
use vstar::model::optimiser::Update;
use watched::Watched;

const UPDATE: Update = Update {
    lr: 1e-4,
    beta1: 0.9,
    beta2: 0.98,
    eps: 1e-8,
    weight_decay: 0.01,
    clip_norm: 1.0,
};

const CAUSAL: PromptAttention = PromptAttention::Causal;

fn made(c: Counters) -> u64 {
    c.pipelines_created + c.bind_groups_created
}

/// The first test users, with at most `items` of their histories.
fn questions(data: &Dataset, count: usize, items: usize) -> Vec<Question<'_>> {
    let asked = data.test[..count].iter();
    asked
        .map(|e| Question {
            history: &e.history[..items.min(e.history.len())],
            target: Some(e.target),
        })
        .collect()
}

/// What steps of reinforcement learning ask for of a GPU that has none of their buffers yet, whose questions have histories of these lengths at most; `prepared`
/// after the first.
fn reinforce(
    device: &DeviceRef,
    (config, data): (&Config, &Dataset),
    items: &[usize],
    prepared: bool,
) -> Vec<Counters> {
    let mut capacity = rollout::capacity(config, data).unwrap();
    if config.rl.sft_weight > 0.0 {
        capacity = capacity.max(mixing::capacity(config, data).unwrap());
    }
    let model = engine(device, config, data).model;
    let stages = job::Stages {
        sft: false,
        rl: true,
        eval: false,
    };
    let engine = Engine::new(model, capacity, job::options(config, stages)).unwrap();
    let reference = engine.model.same_shape().unwrap();
    let mut stepper = Stepper::new(&engine, config, data).unwrap();
    let part = rollout::part(config);
    let step = |(number, &items): (usize, &usize)| {
        let asked = questions(data, config.rl.prompts, items);
        let of = (asked.as_slice(), part, number as u32);
        let resting = number < config.rl.value_warmup_steps;
        let (updates, reference) = (config.rl.updates, Some(&reference));
        let all = (updates, &UPDATE, resting);
        let submitted = stepper.submit(&engine, data, of, reference, all).unwrap();
        if prepared && number == 0 {
            let prepared = stepper.prepare(&engine, reference, (updates, &UPDATE));
            prepared.unwrap();
        }
        let counters = submitted.counters;
        assert!(stepper.wait(submitted).unwrap().is_finite());
        counters
    };
    items.iter().enumerate().map(step).collect()
}

#[test]
fn a_step_is_submitted_whole() {
    let (data, gpu) = (dataset(), whole_gpu());
    let small = ["rl.prompts=8", "rl.updates=2"];
    let [whole, parts] = ["rl.accumulate=1", "rl.accumulate=8"].map(|cut| {
        let config = config(&[&small[..], &[cut]].concat());
        let steps = reinforce(&gpu, (&config, &data), &[6; 3], false);
        for (number, c) in steps.iter().enumerate() {
            assert_eq!(c.submissions, 2, "{cut}: {c:?}");
            assert!(c.bytes_read_back <= 4096, "{cut}: {c:?}");
            assert_eq!(made(*c) == 0, number > 0, "{cut}: {c:?}");
        }
        steps[1]
    });
    assert!(parts.dispatches > 6 * whole.dispatches, "{parts:?}");
}

#[test]
fn steps_make_nothing_wherever_their_trees_begin() {
    let (data, gpu) = (dataset(), whole_gpu());
    let folder = tempfile::tempdir().unwrap();
    let taught = format!(
        "reward.teacher_model={}",
        teacher::make(folder.path()).display()
    );
    let variants: [&[&str]; 6] = [
        &["rl.updates=2"],
        &["rl.accumulate=3", "reward.teacher=1", &taught],
        &["rl.sft_weight=0.1", "rl.ema=0.9", "sft.dropout=0.1"],
        &["rl.decode=beam", "rl.value_warmup_steps=1"],
        &["rl.accumulate=3"],
        &["model.recompute=true", "model.arch=qwen3"],
    ];
    for variant in variants {
        let config = config(&[&["rl.prompts=40"], variant].concat());
        let of = (&config, &data);
        let steps = |prepared| reinforce(&gpu, of, &[3, 1, 6, 4], prepared);
        let later: Vec<u64> = steps(true)[1..].iter().map(|&c| made(c)).collect();
        assert_eq!(later, [0; 3], "{variant:?}");
        let later: Vec<u64> = steps(false)[1..].iter().map(|&c| made(c)).collect();
        assert!(later[0] > 0 && later[1] > 0, "{variant:?}: {later:?}");
    }
}

/// Recording steps that are not run costs time: a device that makes nothing for them does not ask for them.
#[test]
fn nothing_is_recorded_for_a_device_that_prepares_nothing() {
    let mut recorded = 0;
    let mut streams = (0..3).map(|_| {
        recorded += 1;
        Stream::new()
    });
    cpu().prepare(&mut streams).unwrap();
    assert_eq!(streams.len(), 3);
    whole_gpu().prepare(&mut streams).unwrap();
    assert_eq!(recorded, 3);
}

/// What steps of fine-tuning ask for, on so many documents each, in parts; `prepared` after the first.
fn fine_tune(
    device: &DeviceRef,
    documents: &[usize],
    parts: usize,
    prepared: bool,
) -> Vec<Counters> {
    let (data, config) = (dataset(), config(&["model.tie_embeddings=false"]));
    let mut engine = engine(device, &config, &data);
    // Logits of 64 rows at a time, so that long parts have more chunks of them.
    engine.head = Head::with_chunks(device, &engine.model, engine.capacity(), 64 * 30).unwrap();
    let pack = |part: &&[Window], forest: &mut Forest, targets: &mut Targets| {
        for &w in *part {
            let items = &data.train[w.sequence as usize];
            push_window(&data.catalog, items, w, CAUSAL, (forest, targets));
        }
    };
    let windows = windows(&data.train, 7, CAUSAL);
    let mut trainer = Trainer::new(&engine, parts).unwrap();
    let step = |(number, &count): (usize, &usize)| {
        let documents: Vec<Window> = windows.iter().copied().cycle().take(count).collect();
        let parts: Vec<&[Window]> = documents.chunks(count.div_ceil(parts)).collect();
        let submitted = trainer.submit(&engine, &parts, pack, &UPDATE);
        let submitted = submitted.unwrap();
        if prepared && number == 0 {
            trainer.prepare(&engine, &UPDATE).unwrap();
        }
        let counters = submitted.counters;
        assert!(submitted.wait().unwrap().finite);
        counters
    };
    documents.iter().enumerate().map(step).collect()
}

#[test]
fn fine_tuning_is_submitted_whole_and_makes_nothing_for_other_documents() {
    let gpu = whole_gpu();
    for parts in [1, 8] {
        let documents = [parts, 1, 30 * parts, parts + 1];
        let steps = fine_tune(&gpu, &documents, parts, true);
        for (number, c) in steps.iter().enumerate() {
            assert_eq!(c.submissions, 2, "{parts} parts: {c:?}");
            assert_eq!(made(*c) == 0, number > 0, "{parts} parts: {c:?}");
        }
        let unprepared = fine_tune(&gpu, &documents, parts, false);
        assert!(made(unprepared[2]) > 0, "{parts} parts");
    }
}

#[test]
fn a_prepared_search_makes_nothing_for_a_batch_of_any_size() {
    let (data, device) = (dataset(), whole_gpu());
    for decode in ["eval.decode=beam", "eval.decode=ved"] {
        let config = config(&[decode]);
        let searching = |prepared: bool| {
            let model = engine(&device, &config, &data).model;
            let decoding = Decoding::evaluation(&config, &data);
            let mut searcher = Searcher::new(&model, &data, &decoding).unwrap();
            if prepared {
                searcher.prepare(&model).unwrap();
            }
            let before = device.counters();
            for count in [16, 1, 9, 15] {
                let asked = &data.test[..count];
                let histories: Vec<&[u32]> = asked.iter().map(|e| &e.history[..]).collect();
                let found = searcher.search(&model, &data.catalog, &histories, 0, 0);
                assert_eq!(found.unwrap().len(), count);
            }
            made(device.counters() - before)
        };
        assert_eq!(searching(true), 0, "{decode}");
        assert!(searching(false) > 0, "{decode}");
    }
}

/// A whole job, with validations, a reference that moves and a value head that warms up: nothing makes anything but the
/// first step of each stage.
#[test]
fn a_run_is_warm_after_the_first_step_of_a_stage() {
    let settings = [
        "sft.epochs=2",
        "sft.accumulate=2",
        "sft.eval_users=9",
        "rl.prompts=20",
        "rl.accumulate=2",
        "rl.updates=2",
        "rl.steps=5",
        "rl.eval_every=3",
        "rl.value_warmup_steps=2",
        "rl.ref_sync_steps=2",
        "run.log_every=1",
    ];
    let (data, config) = (dataset(), config(&settings));
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("run");
    let stages = job::Stages {
        sft: true,
        rl: true,
        eval: true,
    };
    // By stream that was run.
    let counts = Arc::new(Mutex::new(Vec::new()));
    let seen = counts.clone();
    let run = move |gpu: &DeviceRef, stream: &Stream| {
        let before = gpu.counters();
        let ran = gpu.run(stream);
        seen.lock().unwrap().push(made(gpu.counters() - before));
        ran
    };
    let device = whole_gpu();
    let device: DeviceRef = Arc::new(Watched { device, run });
    in_folder(&root, &config, &data, |context| {
        job::run(&device, context, stages, None)
    })
    .unwrap();
    let made = counts.lock().unwrap();
    assert_eq!(made.iter().filter(|&&n| n > 0).count(), 3, "{made:?}");
    let metrics = std::fs::read_to_string(root.join("metrics.jsonl")).unwrap();
    let mut steps = BTreeMap::<String, usize>::new();
    for line in metrics.lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let (step, stage) = (record["step"].as_u64().unwrap(), &record["stage"]);
        if step > 0 {
            let asked = |name: &str| record[format!("device/{name}")].as_u64().unwrap();
            let made = asked("pipelines_created") + asked("bind_groups_created");
            assert_eq!(made == 0, step > 1, "{record}");
            assert_eq!(asked("submissions"), 2, "{record}");
            *steps.entry(stage.to_string()).or_default() += 1;
        }
    }
    assert!(
        steps.len() == 3 && steps.values().all(|&n| n > 3),
        "{steps:?}"
    );
}
