//! Whole runs: going on with the same bits, keeping the best, and steps that are not finite.

#[path = "support/devices.rs"]
mod devices;
#[path = "support/folder.rs"]
mod folder;
#[path = "support/remains.rs"]
mod remains;
#[path = "support/toy.rs"]
mod toy;
#[path = "support/train.rs"]
mod train;
#[path = "support/validated.rs"]
mod validated;

use devices::{cpu, whole_gpu};
use folder::in_folder;
use remains::remains;
use std::fs;
use std::path::Path;
use train::{config, dataset, engine};
use validated::fine_tune;
use vstar::config::Config;
use vstar::data::Dataset;
use vstar::device::DeviceRef;
use vstar::learn::job;
use vstar::model::checkpoint::Init;
use vstar::run::{Checkpoints, Stage, State};

const ALL: job::Stages = job::Stages {
    sft: true,
    rl: true,
    eval: true,
};

const INIT: Init = Init { seed: 1, std: 0.02 };

/// Runs the job in the folder, from its latest checkpoint if it has one.
fn run(device: &DeviceRef, root: &Path, config: &Config, data: &Dataset, stages: job::Stages) {
    let ran = in_folder(root, config, data, |context| {
        let latest = context.checkpoints.latest()?;
        job::run(device, context, stages, latest)
    });
    ran.unwrap();
}

/// Copies a run folder as it stood when the checkpoint of `stage` and `step` had just been written; the metrics, which
/// were ahead by then, stay whole. Every validation has its checkpoint, so the best of a stage is its latest one after
/// which nothing was worse.
fn interrupted(finished: &Path, to: &Path, stage: Stage, step: u64) {
    fs::create_dir_all(to.join("checkpoints")).unwrap();
    for file in ["config.toml", "metrics.jsonl"] {
        fs::copy(finished.join(file), to.join(file)).unwrap();
    }
    let mut written: Vec<(Stage, u64)> = Vec::new();
    for entry in fs::read_dir(finished.join("checkpoints")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let (of, at) = name.split_once('-').unwrap();
        let of = Stage::ALL.into_iter().find(|s| s.name() == of);
        if let (Some(of), Ok(at)) = (of, at.parse()) {
            written.push((of, at));
        }
    }
    written.retain(|at| *at <= (stage, step));
    written.sort_unstable();
    let checkpoints = Checkpoints::open(&to.join("checkpoints"), 100).unwrap();
    for (stage, step) in written {
        let name = format!("{}-{step:08}", stage.name());
        let [from, copy] = [finished, to].map(|root| root.join("checkpoints").join(&name));
        fs::create_dir(&copy).unwrap();
        for file in fs::read_dir(&from).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        }
        let state = State::load(&copy).unwrap();
        if state.best_metric.is_some() && state.bad_evaluations == 0 {
            checkpoints.mark_best(stage, step).unwrap();
        }
    }
}

/// Settings under which each stage writes a checkpoint every second step, and validates then at most.
const STEPS: &[&str] = &[
    "sft.max_steps=6",
    "sft.eval_every=1000",
    "sft.accumulate=2",
    "rl.steps=4",
    "rl.eval_every=2",
    "rl.updates=2",
    "rl.ref_sync_steps=3",
    "rl.ref_mix=0.5",
    "rl.warmup_steps=3",
    "run.checkpoint_every=2",
    "run.keep_checkpoints=100",
];

/// That the run folder `got` holds what `want` does.
fn same_remains(got: &Path, want: &Path) {
    let (got, want) = (remains(got), remains(want));
    let differing: Vec<&String> = want
        .keys()
        .filter(|n| got.get(*n) != want.get(*n))
        .collect();
    assert!(differing.is_empty(), "{differing:?}");
}

fn resumes_with_the_same_bits(device: DeviceRef, changes: &[&str], at: &[(Stage, u64)]) {
    let (data, config) = (dataset(), config(&[STEPS, changes].concat()));
    let temporary = tempfile::tempdir().unwrap();
    let straight = temporary.path().join("straight");
    run(&device, &straight, &config, &data, ALL);
    let want = remains(&straight);
    let names: Vec<&String> = want.keys().collect();
    assert!(want.contains_key("result.json"), "{names:?}");
    for &(stage, step) in at {
        let resumed = temporary.path().join(format!("{}-{step}", stage.name()));
        interrupted(&straight, &resumed, stage, step);
        assert!(remains(&resumed).len() < want.len());
        run(&device, &resumed, &config, &data, ALL);
        let got = remains(&resumed);
        assert_eq!(got.keys().collect::<Vec<_>>(), names);
        let differing: Vec<&&String> = names.iter().filter(|n| got[**n] != want[**n]).collect();
        assert!(differing.is_empty(), "{stage:?} {step}: {differing:?}");
    }
    // Another seed leaves other bits.
    let other = train::config(&[STEPS, changes, &["seed=2"]].concat());
    let elsewhere = temporary.path().join("elsewhere");
    run(&device, &elsewhere, &other, &data, ALL);
    let got = remains(&elsewhere);
    for file in [
        "model.safetensors",
        "first_moment.safetensors",
        "second_moment.safetensors",
    ] {
        for checkpoint in ["sft-00000006", "rl-00000004"] {
            let name = format!("{checkpoint}/{file}");
            assert_ne!(got[&name], want[&name], "{name}");
        }
    }
}

#[test]
fn an_interrupted_run_goes_on_with_the_same_bits() {
    let at = [
        (Stage::Sft, 2),
        (Stage::Sft, 6),
        (Stage::Rl, 2),
        (Stage::Rl, 4),
        (Stage::Grpo, 2),
    ];
    resumes_with_the_same_bits(cpu(), &[], &at);
}

#[test]
fn the_baseline_may_spend_what_reinforcement_learning_spent() {
    let (data, config) = (dataset(), config(&[STEPS, &["rl.lr=0"]].concat()));
    let temporary = tempfile::tempdir().unwrap();
    let [straight, resumed] = ["straight", "resumed"].map(|name| temporary.path().join(name));
    run(&cpu(), &straight, &config, &data, ALL);
    // Equal validations: the best checkpoint is not the last, up to which tokens count.
    let best = fs::read_to_string(straight.join("checkpoints/best-rl")).unwrap();
    assert_eq!(best, "rl-00000002\n");
    interrupted(&straight, &resumed, Stage::Grpo, 2);
    run(&cpu(), &resumed, &config, &data, ALL);
    same_remains(&resumed, &straight);
}

#[test]
fn a_gpu_run_goes_on_with_the_same_bits() {
    let small = [
        "eval.max_users=16",
        "sft.eval_users=16",
        "rl.eval_users=16",
        "eval.baselines=false",
    ];
    resumes_with_the_same_bits(whole_gpu(), &small, &[(Stage::Sft, 4), (Stage::Rl, 2)]);
}

#[test]
fn an_f16_run_goes_on_with_the_same_bits() {
    let small = [
        "precision=f16",
        "eval.max_users=16",
        "sft.eval_users=16",
        "rl.eval_users=16",
        "eval.baselines=false",
    ];
    resumes_with_the_same_bits(cpu(), &small, &[(Stage::Sft, 4), (Stage::Rl, 2)]);
}

#[test]
fn a_regularised_run_goes_on_with_the_same_bits() {
    let recipe = [
        "sft.dropout=0.2",
        "sft.label_smoothing=0.1",
        "sft.random_crop=0.5",
        "sft.ema=0.9",
        "rl.ema=0.8",
        "rl.sft_weight=0.5",
        "eval.baselines=false",
    ];
    resumes_with_the_same_bits(cpu(), &recipe, &[(Stage::Sft, 4), (Stage::Rl, 2)]);
}

/// Where a stage ends by decode tokens, its learning rates follow from what they bought so far, which lags behind what is
/// under way.
#[test]
fn a_stage_of_tokens_has_the_same_bits_however_often_it_is_saved() {
    let tokens = [
        "rl.max_decode_tokens=1200",
        "rl.schedule=cosine",
        "rl.eval_every=0",
        "ved.score_leaves=false",
        "eval.baselines=false",
    ];
    let data = dataset();
    let temporary = tempfile::tempdir().unwrap();
    let model = |name: &str, change: &str| {
        let config = config(&[STEPS, &tokens, &[change]].concat());
        let root = temporary.path().join(name);
        run(&cpu(), &root, &config, &data, ALL);
        let steps = fs::read_to_string(root.join("metrics.jsonl")).unwrap();
        let steps = steps.lines().filter(|line| line.contains("\"lr\"")).count();
        let last = Checkpoints::open(&root.join("checkpoints"), 100)
            .unwrap()
            .latest();
        let last = last.unwrap().unwrap();
        (steps, fs::read(last.join("model.safetensors")).unwrap())
    };
    let often = model("often", "run.checkpoint_every=1");
    assert!(often.0 > 6 + 4, "{} steps", often.0);
    assert!(often == model("once", "run.checkpoint_every=1000"));
    assert!(often != model("other", "rl.max_decode_tokens=1300"));
}

#[test]
fn a_stage_alone_goes_on_with_the_same_bits() {
    let data = dataset();
    let temporary = tempfile::tempdir().unwrap();
    // A checkpoint from elsewhere: no value head, and nothing of this program beside it.
    let init = temporary.path().join("init");
    fs::create_dir(&init).unwrap();
    let model = engine(&cpu(), &config(&[]), &data).model;
    model.save(&init).unwrap();
    drop_value_head(&init.join("model.safetensors"));
    let from = format!("model.init={}", init.display());
    let config = config(&[STEPS, &[&from]].concat());
    let rl = job::Stages {
        sft: false,
        rl: true,
        eval: false,
    };
    let straight = temporary.path().join("straight");
    run(&cpu(), &straight, &config, &data, rl);
    let resumed = temporary.path().join("resumed");
    interrupted(&straight, &resumed, Stage::Rl, 2);
    run(&cpu(), &resumed, &config, &data, rl);
    same_remains(&resumed, &straight);
}

/// Rewrites a model file without its `value_head.*` tensors.
fn drop_value_head(path: &Path) {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept = file
        .iter()
        .filter(|(name, _)| !name.starts_with("value_head."));
    fs::write(path, safetensors::serialize(kept, None).unwrap()).unwrap();
}

#[test]
fn fine_tuning_stops_early_and_keeps_the_best() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("run");
    let metrics = [0.1, 0.4, 0.2, 0.3, 0.9];
    let ran = fine_tune(&cpu(), &root, &["sft.patience=2"], |step, _| {
        metrics[step as usize - 1]
    });
    let (state, model) = ran.unwrap();
    assert_eq!((state.step, state.best_metric), (4, Some(0.4)));
    let checkpoints = Checkpoints::open(&root.join("checkpoints"), 2).unwrap();
    let best = checkpoints.best(Stage::Sft).unwrap().unwrap();
    assert!(best.ends_with("sft-00000002"), "{}", best.display());
    let weights = model.weights.read().unwrap();
    model.restore(&best, INIT).unwrap();
    assert!(model.weights.read().unwrap() == weights);
    let latest = checkpoints.latest().unwrap().unwrap();
    assert!(latest.ends_with("sft-00000004"), "{}", latest.display());
    model.restore(&latest, INIT).unwrap();
    assert!(model.weights.read().unwrap() != weights);
}
