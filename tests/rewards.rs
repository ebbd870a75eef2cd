//! Rewards that need more than the target: what the history holds, what another model says.

#[path = "support/devices.rs"]
mod devices;
#[path = "support/program.rs"]
mod program;
#[path = "support/teacher.rs"]
mod teacher;
#[path = "support/toy.rs"]
mod toy;
#[path = "support/train.rs"]
mod train;

use devices::{bare_gpu, cpu};
use program::{failure, success};
use serde_json::Value;
use std::path::Path;
use train::{config, dataset, engine};
use vstar::config::Config;
use vstar::data::Dataset;
use vstar::decode::Decoded;
use vstar::device::DeviceRef;
use vstar::learn::questions::Question;
use vstar::learn::rl::Stepper;
use vstar::learn::rollout;
use vstar::model::optimiser::Update;

/// Weights stay.
const RESTING: Update = Update {
    lr: 0.0,
    beta1: 0.9,
    beta2: 0.98,
    eps: 1e-8,
    weight_decay: 0.0,
    clip_norm: 1.0,
};

/// Questions with and without targets.
fn questions(data: &Dataset, count: usize) -> Vec<Question<'_>> {
    let examples = data.test[..count].iter().enumerate();
    examples
        .map(|(i, e)| Question {
            history: &e.history,
            target: (i % 2 == 0).then_some(e.target),
        })
        .collect()
}

/// One rollout: what was found, and its rewards.
fn rewards(
    device: &DeviceRef,
    (config, data): (&Config, &Dataset),
    asked: &[Question],
) -> Vec<(Decoded, Vec<f32>)> {
    let engine = engine(device, config, data);
    let mut stepper = Stepper::new(&engine, config, data).unwrap();
    let of = (asked, rollout::part(config), 4);
    let submitted = stepper.submit(&engine, data, of, None, (1, &RESTING, false));
    assert!(stepper.wait(submitted.unwrap()).unwrap().is_finite());
    let (found, rewards) = stepper.rollout.read(device, 0).unwrap();
    let group = stepper.rollout.group();
    let rewards = rewards.chunks_exact(group).map(<[f32]>::to_vec);
    found.into_iter().zip(rewards).collect()
}

#[test]
fn what_the_history_holds_is_punished() {
    let data = dataset();
    let settings = [
        "reward.rule=0",
        "reward.rank=0",
        "reward.semantic=0",
        "reward.repeat=2",
        "rl.group=48",
        "rl.kl_beta=0",
    ];
    let config = config(&settings);
    let asked = questions(&data, config.rl.prompts);
    for device in [cpu(), bare_gpu()] {
        let mut punished = 0;
        let rewards = rewards(&device, (&config, &data), &asked);
        for ((found, rewards), question) in rewards.iter().zip(&asked) {
            for (candidate, &reward) in found.candidates.iter().zip(rewards) {
                let sid = |item: u32| data.catalog.item_sid(item) == candidate.sid;
                let held = question.history.iter().any(|&item| sid(item));
                let missed = !question.target.is_some_and(sid);
                let want = if held && missed { -2.0 } else { 0.0 };
                assert_eq!(reward, want, "{candidate:?}");
                punished += (want < 0.0) as usize;
            }
        }
        assert!(punished > 2, "{punished}");
    }
}

/// The teacher's log-prob of every item after a history, asked for by its own command.
fn scores(run: &Path, folder: &Path, data: &Dataset, history: &[u32]) -> Vec<f64> {
    let names = history.iter().map(|&item| data.catalog.name(item));
    let line = serde_json::to_string(&names.collect::<Vec<_>>()).unwrap();
    let asked = folder.join("history.jsonl");
    std::fs::write(&asked, line).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vstar"));
    command.args(["recommend", "--device", "cpu", "--top-k", "60", "--model"]);
    command.arg(run).stdin(std::fs::File::open(&asked).unwrap());
    let answer: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    let mut scores = vec![f64::NAN; data.catalog.items()];
    for item in answer["items"].as_array().unwrap() {
        let number = data.catalog.item_of_name(item["item"].as_str().unwrap());
        scores[number.unwrap() as usize] = item["score"].as_f64().unwrap();
    }
    scores
}

#[test]
fn a_teacher_rewards_what_its_own_scores_would_give_more() {
    let folder = tempfile::tempdir().unwrap();
    let run = teacher::make(folder.path());
    let named = format!("reward.teacher_model={}", run.display());
    let data = dataset();
    let settings = [
        "reward.rule=0",
        "reward.rank=0",
        "reward.semantic=0",
        "reward.teacher=3",
        "rl.kl_beta=0",
        "rl.accumulate=1",
        &named,
    ];
    let plain = config(&settings);
    let asked = questions(&data, plain.rl.prompts);
    let scores: Vec<Vec<f64>> = asked
        .iter()
        .map(|q| scores(&run, folder.path(), &data, q.history))
        .collect();
    // Two items of one SID count as one with their mean score.
    let score = |scores: &[f64], sid: u32| {
        let items = data.catalog.items_of(sid);
        items.iter().map(|&item| scores[item as usize]).sum::<f64>() / items.len() as f64
    };
    let skipping = config(&[&settings[..], &["reward.repeat=1e-9"]].concat());
    for device in [cpu(), bare_gpu()] {
        for (config, skips) in [(&plain, false), (&skipping, true)] {
            let rewards = rewards(&device, (config, &data), &asked);
            let mut differ = false;
            for (((found, rewards), question), scores) in rewards.iter().zip(&asked).zip(&scores) {
                let held = |sid: u32| {
                    let mut history = question.history.iter();
                    skips && history.any(|&item| data.catalog.item_sid(item) == sid)
                };
                let candidates = found.candidates.iter().map(|c| c.sid);
                let weight = |sid| {
                    if held(sid) {
                        0.0
                    } else {
                        score(scores, sid).exp()
                    }
                };
                let weights: Vec<f64> = candidates.map(weight).collect();
                let own = found.candidates.iter().map(|c| (c.logp as f64).exp());
                let own: Vec<f64> = own.collect();
                let total = |weights: &[f64]| weights.iter().sum::<f64>();
                let totals = (total(&weights), total(&own));
                for ((&weight, own), &reward) in weights.iter().zip(own).zip(rewards) {
                    let want = 3.0 * (weight / totals.0 - own / totals.1);
                    assert!(
                        (reward as f64 - want).abs() < 1e-4,
                        "{reward} is not {want}"
                    );
                    differ |= want.abs() > 0.05;
                }
            }
            assert!(differ, "nothing to see");
        }
    }
}

#[test]
fn a_teacher_that_cannot_teach_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let run = teacher::make(folder.path());
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, out) = (at("toy"), at("out"));
    let train = |out: &str, more: &[&str]| {
        let command = ["train", "--data", &data, "--device", "cpu", "--out", out];
        let short = ["sft.epochs=1", "rl.steps=1", "eval.baselines=false"];
        let all = [&command[..], &short, toy::SETTINGS, more].concat();
        all.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let refused = |more: &[&str]| {
        let all = train(&at("refused"), more);
        failure(&all.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let line = refused(&["reward.teacher=1"]);
    assert!(line.contains("reward.teacher_model"), "{line}");
    let missing = format!("reward.teacher_model={}", at("nowhere"));
    let line = refused(&["reward.teacher=1", &missing]);
    assert!(line.contains("there is no model folder"), "{line}");
    let line = refused(&["rl.open_prompts=0.5", "reward.repeat=0"]);
    assert!(line.contains("rl.open_prompts"), "{line}");
    // A teacher of other items, and one whose items have several tokens.
    let named = format!("reward.teacher_model={}", run.display());
    let items = std::fs::read_to_string(Path::new(&data).join("items.jsonl")).unwrap();
    let renamed = items.replace("\"item 7\"", "\"item seven\"");
    std::fs::write(Path::new(&data).join("items.jsonl"), renamed).unwrap();
    let log = std::fs::read_to_string(Path::new(&data).join("interactions.jsonl")).unwrap();
    let log = log.replace("\"item 7\"", "\"item seven\"");
    std::fs::write(Path::new(&data).join("interactions.jsonl"), log).unwrap();
    let line = refused(&["reward.teacher=1", &named]);
    assert!(line.contains("does not know item \"item seven\""), "{line}");
    let all = train(&out, &["rl.steps=0"]);
    success(&all.iter().map(String::as_str).collect::<Vec<_>>());
    let own = format!("reward.teacher_model={out}");
    let line = refused(&["reward.teacher=1", &own]);
    assert!(line.contains("3 tokens"), "{line}");
}
