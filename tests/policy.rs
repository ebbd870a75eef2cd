//! Updates of the policy and whole steps of reinforcement learning: the same however a rollout is cut, and doing what they
//! are for.

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

use devices::{bare_gpu, cpu};
use folder::in_folder;
use steps::{CAUSAL, fine_tune, gradient, gradient_difference, update};
use train::{config, dataset, engine};
use vstar::config::Config;
use vstar::data::Dataset;
use vstar::decode::Decoded;
use vstar::decode::search::{Decoding, Searcher};
use vstar::device::Stream;
use vstar::device::lockstep::relative_error;
use vstar::forest::{Forest, NONE, Node};
use vstar::learn::context::Validation;
use vstar::learn::engine::{Engine, Room, Targets};
use vstar::learn::policy::StepFigures;
use vstar::learn::questions::Question;
use vstar::learn::rl::{self, Stepper};
use vstar::learn::rollout;
use vstar::learn::schedule::Limit;
use vstar::learn::sequences::push_tree;
use vstar::model::Model;
use vstar::model::checkpoint::Init;
use vstar::model::layout::parts;
use vstar::run::{Stage, State};

/// The first test users.
fn questions(data: &Dataset, range: std::ops::Range<usize>) -> Vec<Question<'_>> {
    let asked = data.test[range].iter();
    asked
        .map(|e| Question {
            history: &e.history,
            target: Some(e.target),
        })
        .collect()
}

/// One step with one update, in parts as the settings say.
fn step(
    engine: &Engine,
    config: &Config,
    data: &Dataset,
    asked: &[Question],
    (lr, value_only): (f32, bool),
) -> (Stepper, StepFigures) {
    let mut stepper = Stepper::new(engine, config, data).unwrap();
    engine.optimiser.resume(0, None).unwrap();
    let of = (asked, rollout::part(config), 0);
    let updates = (1, &update(lr), value_only);
    let submitted = stepper.submit(engine, data, of, None, updates).unwrap();
    let figures = stepper.wait(submitted).unwrap();
    assert!(figures.is_finite() && figures.updates == 1);
    (stepper, figures)
}

#[test]
fn a_policy_update_in_parts_has_the_same_gradient() {
    let data = dataset();
    let changes = ["rl.prompts=8", "rl.kl_beta=0"];
    let variants: [&[&str]; 6] = [
        &[],
        &["rl.loss=dapo", "rl.scale_rewards=none"],
        &[
            "rl.loss=dr_grpo",
            "rl.mask_zero_variance=true",
            "reward.semantic=0",
        ],
        &["rl.loss=gspo"],
        &["rl.decode=sample"],
        &["model.recompute=true"],
    ];
    for variant in variants {
        let one = config(&[&changes, variant].concat());
        let eight = config(&[&changes, variant, &["rl.accumulate=8"]].concat());
        let engine = engine(&cpu(), &one, &data);
        fine_tune(&engine, &data, CAUSAL, (30, 3e-3));
        let asked = questions(&data, 0..8);
        let (_, whole) = step(&engine, &one, &data, &asked, (0.0, false));
        assert!(whole.flat < 8.0, "{variant:?}");
        let whole_gradient = gradient(&engine);
        let (_, parts) = step(&engine, &eight, &data, &asked, (0.0, false));
        let off = gradient_difference(&whole_gradient, &gradient(&engine));
        assert!(off < 1e-5, "{variant:?}: the gradients differ by {off:.1e}");
        let figures = |f: &StepFigures| {
            [
                f.objective.sibling,
                f.value_loss,
                f.entropy,
                f.objective.ratio,
                f.reward_std as f32,
            ]
        };
        let off = relative_error(&figures(&whole), &figures(&parts));
        assert!(off < 1e-5, "{variant:?}: {off:.1e}");
        let exact = |f: &StepFigures| (f.candidates, f.flat, f.hits, f.nodes, f.decode_cost);
        assert_eq!(exact(&whole), exact(&parts), "{variant:?}");
        assert_eq!(whole.sibling_groups, parts.sibling_groups, "{variant:?}");
        assert!(
            (whole.objective.loss - parts.objective.loss).abs() < 1e-5,
            "{variant:?}"
        );
        // Weights per prompt are different when a prompt is missing.
        step(&engine, &eight, &data, &asked[1..], (0.0, false));
        assert!(gradient_difference(&whole_gradient, &gradient(&engine)) > 1e-2);
    }
}

/// The candidates of a rollout as the host packs them: the forest, the targets, and the target that is each candidate's
/// node at each level [B, G, 3].
fn packed(
    data: &Dataset,
    asked: &[Question],
    found: &[Decoded],
) -> (Forest, Targets, Vec<[usize; 3]>) {
    let (mut forest, mut targets) = (Forest::new(), Targets::default());
    let mut paths = Vec::new();
    for (question, found) in asked.iter().zip(found) {
        let mut nodes: Vec<Node> = Vec::new();
        let mut own: Vec<[usize; 3]> = Vec::new();
        for candidate in &found.candidates {
            let mut parent = NONE;
            own.push(std::array::from_fn(|l| {
                let token = candidate.tokens[l];
                let wanted = Node { token, parent };
                let node = nodes.iter().position(|n| *n == wanted);
                let node = node.unwrap_or_else(|| {
                    nodes.push(wanted);
                    nodes.len() - 1
                });
                parent = node as u32;
                node
            }));
        }
        let prompt = data.catalog.prompt(question.history);
        let known = (&mut forest, &mut targets);
        let rows = push_tree(&prompt, &nodes, CAUSAL, false, known);
        let target = |node: usize| rows[node].0 as usize;
        paths.extend(own.into_iter().map(|path| path.map(target)));
    }
    (forest, targets, paths)
}

/// Log-probs of the candidates of a rollout, [B, G].
fn candidate_log_probs(
    engine: &Engine,
    data: &Dataset,
    asked: &[Question],
    found: &[Decoded],
) -> Vec<f32> {
    let (forest, targets, paths) = packed(data, asked, found);
    let room = Room::new(engine).unwrap();
    let input = engine.upload(&room, &forest, &targets).unwrap();
    let mut s = Stream::new();
    engine.forward(&mut s, &input, engine.head.logp.all());
    engine.device().run(&s).unwrap();
    let logp = engine.head.logp.read_f32().unwrap();
    let sum = |path: &[usize; 3]| path.iter().map(|&n| logp[n]).sum();
    paths.iter().map(sum).collect()
}

#[test]
fn an_update_lowers_the_objective_and_favours_what_was_rewarded() {
    let data = dataset();
    for decode in ["rl.decode=ved", "rl.decode=beam"] {
        let config = config(&[decode, "rl.kl_beta=0", "rl.value_weight=0"]);
        for device in [cpu(), bare_gpu()] {
            let engine = engine(&device, &config, &data);
            fine_tune(&engine, &data, CAUSAL, (30, 3e-3));
            let fine_tuned = engine.model.weights.read().unwrap();
            let asked = questions(&data, 0..config.rl.prompts);
            let (mut stepper, first) = step(&engine, &config, &data, &asked, (2e-4, false));
            let (found, rewards) = stepper.rollout.read(&device, 0).unwrap();
            // The same rollout again, with the weights moved.
            let mut s = Stream::new();
            stepper.policy.record(
                &mut s,
                &engine,
                &stepper.rollout,
                None,
                (&update(0.0), None),
                (false, false),
            );
            device.run(&s).unwrap();
            let words = device.read(&stepper.policy.figures(&engine)).unwrap();
            let second = stepper.policy.parse(&words);
            let losses = [first.objective.loss, second.objective.loss];
            assert!(losses[1] < losses[0] - 1e-4, "{decode}: {losses:?}");
            let after = candidate_log_probs(&engine, &data, &asked, &found);
            engine.model.weights.write(&fine_tuned).unwrap();
            let before = candidate_log_probs(&engine, &data, &asked, &found);
            let logp: Vec<f32> = found
                .iter()
                .flat_map(|d| &d.candidates)
                .map(|c| c.logp)
                .collect();
            assert!(
                relative_error(&before, &logp) < 1e-5,
                "the decoder's log-probs"
            );
            let group = config.rl.group;
            let mut gain = 0.0;
            for (rewards, (after, before)) in rewards
                .chunks_exact(group)
                .zip(after.chunks_exact(group).zip(before.chunks_exact(group)))
            {
                let mean = rewards.iter().sum::<f32>() / group as f32;
                for (reward, (after, before)) in rewards.iter().zip(after.iter().zip(before)) {
                    gain += (reward - mean) * (after - before);
                }
            }
            assert!(gain > 0.0, "{decode}: rewarded candidates lost {gain}");
        }
    }
}

#[test]
fn without_siblings_a_beam_search_step_is_grpo() {
    let data = dataset();
    let grpo = [
        "rl.decode=beam",
        "rl.sibling_weight=0",
        "rl.value_weight=0",
        "rl.kl_beta=0",
    ];
    let config = config(&grpo);
    let engine = engine(&cpu(), &config, &data);
    let (b, g) = (config.rl.prompts, config.rl.group);
    let asked = questions(&data, 0..b);
    let (stepper, _) = step(&engine, &config, &data, &asked, (0.0, false));
    let (found, rewards) = stepper.rollout.read(engine.device(), 0).unwrap();
    let got = gradient(&engine);

    // GRPO by its formula: at ratio 1, dLoss/dlog-prob of each candidate's token is -A / (B G L).
    let (forest, targets, paths) = packed(&data, &asked, &found);
    let mut weights = vec![0.0; targets.len()];
    for (paths, rewards) in paths.chunks_exact(g).zip(rewards.chunks_exact(g)) {
        let rewards = rewards.iter().map(|&r| r as f64);
        let mean = rewards.clone().sum::<f64>() / g as f64;
        let squares: f64 = rewards.clone().map(|r| (r - mean).powi(2)).sum();
        let deviation = (squares / (g - 1) as f64).sqrt();
        for (path, reward) in paths.iter().zip(rewards) {
            let advantage = (reward - mean) / (deviation + 1e-4);
            for &node in path {
                weights[node] -= advantage / (b * g * 3) as f64;
            }
        }
    }
    let weights: Vec<f32> = weights.into_iter().map(|w| w as f32).collect();
    let room = Room::new(&engine).unwrap();
    let input = engine.upload(&room, &forest, &targets).unwrap();
    engine.head.g.write_f32(&weights).unwrap();
    let mut s = Stream::new();
    Model::clear(&mut s, &engine.optimiser.gradient);
    engine.forward(&mut s, &input, engine.head.logp.all());
    engine.backward_head(&mut s, &input);
    engine.backward_backbone(&mut s, &input);
    engine.device().run(&s).unwrap();
    let want = gradient(&engine);
    let off = gradient_difference(&want, &got);
    assert!(off < 1e-4, "the gradient is off by {off:.1e}");

    let with_siblings = train::config(&[&grpo[..], &["rl.sibling_weight=1"]].concat());
    step(&engine, &with_siblings, &data, &asked, (0.0, false));
    assert!(gradient_difference(&want, &gradient(&engine)) > 1e-2);
}

#[test]
fn a_detached_value_loss_leaves_the_backbone_alone() {
    let data = dataset();
    let backbone = |changes: &[&str]| {
        let config = config(&[&["rl.kl_beta=0"], changes].concat());
        let engine = engine(&cpu(), &config, &data);
        let asked = questions(&data, 0..config.rl.prompts);
        step(&engine, &config, &data, &asked, (0.0, false));
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let (value, backbone): (Vec<_>, Vec<_>) = gradient(&engine)
            .into_iter()
            .partition(|(name, _)| name.starts_with("value_head."));
        let learns = value.iter().flat_map(|(_, g)| g).any(|&g| g != 0.0);
        let backbone: Vec<_> = backbone.iter().flat_map(|(_, g)| bits(g)).collect();
        (backbone, learns)
    };
    let (none, learns) = backbone(&["rl.value_weight=0"]);
    assert!(!learns);
    let (detached, learns) = backbone(&["value.detach=true"]);
    assert!(learns && detached == none);
    let (attached, learns) = backbone(&["value.detach=false"]);
    assert!(learns && attached != none);
}

#[test]
fn while_the_value_head_warms_up_the_backbone_rests() {
    let (data, config) = (dataset(), config(&["rl.kl_beta=0"]));
    for value_only in [true, false] {
        let engine = engine(&cpu(), &config, &data);
        let asked = questions(&data, 0..config.rl.prompts);
        let before = engine.model.weights.read().unwrap();
        // The update decays weights too, which must not reach a resting backbone either.
        step(&engine, &config, &data, &asked, (1e-3, value_only));
        let after = engine.model.weights.read().unwrap();
        let moved = |head: bool| {
            let [a, b] = [&before, &after].map(|blocks| parts(engine.layout(), blocks));
            let of = a
                .zip(b)
                .filter(|((name, ..), _)| name.starts_with("value_head.") == head);
            of.filter(|((_, _, a), (_, _, b))| a != b).count()
        };
        assert!(moved(true) > 10);
        assert_eq!(
            moved(false) == 0,
            value_only,
            "{} tensors moved",
            moved(false)
        );
    }
}

/// The reference runs prompts and trees at once and its last layer for the scored rows only; the policy prompts first, all
/// rows. With the same weights they say the same.
#[test]
fn a_reference_of_the_same_weights_gives_the_policys_log_probs() {
    let data = dataset();
    for decode in ["ved", "beam"] {
        let config = config(&[&format!("rl.decode={decode}"), "rl.kl_beta=0.1"]);
        let engine = engine(&bare_gpu(), &config, &data);
        let asked = questions(&data, 0..config.rl.prompts);
        let reference = engine.model.same_shape().unwrap();
        let kl = |scale: f32| {
            let mut blocks = engine.model.weights.read().unwrap();
            blocks.iter_mut().flatten().for_each(|w| *w *= scale);
            reference.weights.write(&blocks).unwrap();
            let mut stepper = Stepper::new(&engine, &config, &data).unwrap();
            let of = (asked.as_slice(), rollout::part(&config), 0);
            let updates = (1, &update(0.0), false);
            let submitted = stepper.submit(&engine, &data, of, Some(&reference), updates);
            stepper.wait(submitted.unwrap()).unwrap().objective.kl
        };
        let (same, other) = (kl(1.0), kl(1.5));
        assert!(same.abs() < 1e-6, "{decode}: KL {same:.1e}");
        assert!(other > 1e-4, "{decode}: KL {other:.1e}");
    }
}

/// A beam on its own finishes its prompts' last layer at their ends only; a rollout, which keeps them, everywhere.
#[test]
fn a_beam_finds_the_same_whether_its_prompts_are_kept_or_not() {
    let (data, config) = (dataset(), config(&["rl.decode=beam", "rl.kl_beta=0"]));
    let engine = engine(&bare_gpu(), &config, &data);
    let asked = questions(&data, 0..config.rl.prompts);
    let (stepper, _) = step(&engine, &config, &data, &asked, (0.0, false));
    let (kept, _) = stepper.rollout.read(engine.device(), 0).unwrap();
    let decoding = Decoding::rollout(&config, &data, asked.len());
    let mut searcher = Searcher::new(&engine.model, &data, &decoding).unwrap();
    let mut search = |skipped: usize| {
        let histories: Vec<&[u32]> = asked.iter().map(|q| &q.history[skipped..]).collect();
        let model = &engine.model;
        searcher
            .search(model, &data.catalog, &histories, 0, 0)
            .unwrap()
    };
    let scores = |found: &[Decoded]| -> Vec<f32> {
        let candidates = found.iter().flat_map(|d| &d.candidates);
        candidates.map(|c| c.logp).collect()
    };
    let off = relative_error(&scores(&search(0)), &scores(&kept));
    assert!(off < 1e-6, "log-probs are off by {off:.1e}");
    let off = relative_error(&scores(&search(1)), &scores(&kept));
    assert!(off > 1e-6, "other prompts have the same log-probs");
}

#[test]
fn rollouts_that_are_not_finite_are_skipped_and_end_the_run() {
    let data = dataset();
    let config = config(&["rl.eval_every=1"]);
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("run");
    let engine = engine(&cpu(), &config, &data);
    let first = temporary.path().join("first");
    std::fs::create_dir(&first).unwrap();
    engine.model.save(&first).unwrap();
    let limit = Limit {
        steps: Some(9),
        decode_tokens: None,
    };
    // Validations: before the first step, then after each. The third poisons the weights of step 3 on.
    let mut validations = 0;
    let mut validate = |model: &Model| {
        validations += 1;
        if validations == 3 {
            let mut weights = model.weights.read()?;
            weights.last_mut().expect("blocks")[0] = f32::NAN;
            model.weights.write(&weights)?;
        }
        no_validation(model)
    };
    let ran = in_folder(&root, &config, &data, |mut context| {
        let start = (State::start(Stage::Rl), limit, first.as_path());
        rl::run(&mut context, &config, &engine, start, &mut validate)
    });
    let message = format!("{:#}", ran.unwrap_err());
    assert!(
        message.starts_with("rl step 5: loss or gradient not finite in 3 steps"),
        "{message}"
    );
    assert_eq!(message.lines().count(), 1, "{message}");
    let metrics = std::fs::read_to_string(root.join("metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["step"], last["loss"].is_null()),
        (&4.into(), true),
        "{metrics}"
    );
}

fn no_validation(_: &Model) -> anyhow::Result<Validation> {
    Ok(Validation {
        hr10: 0.0,
        value_hr10: 0.0,
        coverage10: 0.0,
        prefix_hit10: vec![0.0; 3],
        ndcg10: 0.0,
        metric: 0.0,
    })
}

/// Two steps of reinforcement learning in a new folder; the records of the two, and whether the weights moved.
fn two_steps(
    config: &Config,
    data: &Dataset,
    origin: Option<&std::path::Path>,
) -> anyhow::Result<(Vec<serde_json::Value>, bool)> {
    let temporary = tempfile::tempdir()?;
    let root = temporary.path().join("run");
    let engine = engine(&cpu(), config, data);
    let first = temporary.path().join("first");
    std::fs::create_dir(&first)?;
    engine.model.save(&first)?;
    let before = engine.model.weights.read()?;
    let limit = Limit {
        steps: Some(2),
        decode_tokens: None,
    };
    in_folder(&root, config, data, |mut context| {
        let start = (State::start(Stage::Rl), limit, origin.unwrap_or(&first));
        rl::run(&mut context, config, &engine, start, &mut no_validation)
    })?;
    // The first of equal validations is the best: the last step's, there being no other.
    let best = root.join("checkpoints/rl-00000002");
    let init = Init { seed: 1, std: 0.02 };
    engine.model.restore(&best, init)?;
    let moved = engine.model.weights.read()? != before;
    let metrics = std::fs::read_to_string(root.join("metrics.jsonl"))?;
    let records = metrics.lines().skip(1).map(serde_json::from_str);
    Ok((records.collect::<Result<_, _>>()?, moved))
}

#[test]
fn every_loss_and_decoder_takes_steps() {
    let data = dataset();
    let mut variants: Vec<Vec<String>> = Vec::new();
    for loss in ["grpo", "dr_grpo", "dapo", "gspo"] {
        for decode in ["ved", "beam", "sample"] {
            variants.push(vec![
                format!("rl.loss={loss}"),
                format!("rl.decode={decode}"),
            ]);
        }
    }
    let others = [
        "rl.updates=2",
        "rl.scale_rewards=batch",
        "rl.scale_rewards=none",
        "rl.mask_zero_variance=true",
        "rl.ref_sync_steps=1",
        "rl.value_warmup_steps=1",
        "ved.score_leaves=false",
        "decode.renormalise=true",
        "model.prompt_attention=full",
        "rl.accumulate=3",
        "model.arch=qwen3",
        "model.arch=qwen2",
        "reward.value=1",
        "reward.novelty=1",
        "reward.repeat=1",
    ];
    variants.extend(others.map(|setting| vec![setting.to_string()]));
    for variant in variants {
        let changes: Vec<&str> = variant.iter().map(String::as_str).collect();
        let (records, moved) = two_steps(&config(&changes), &data, None).unwrap();
        assert_eq!(records.len(), 2, "{variant:?}");
        assert!(moved, "{variant:?}");
        for record in records {
            for key in ["loss", "reward", "kl", "entropy", "value_loss", "grad_norm"] {
                assert!(record[key].is_f64(), "{variant:?}: {key} in {record}");
            }
            assert!(record["decode_tokens"].as_f64() > Some(0.0), "{variant:?}");
        }
    }
}

#[test]
fn the_reference_is_loaded_only_where_it_counts() {
    let data = dataset();
    let nowhere = std::path::Path::new("no/such/model");
    two_steps(&config(&["rl.kl_beta=0"]), &data, Some(nowhere)).unwrap();
    let error = two_steps(&config(&["rl.kl_beta=0.02"]), &data, Some(nowhere)).unwrap_err();
    assert!(format!("{error:#}").contains("no/such/model"), "{error:#}");
}
