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
use vstar::device::lockstep::relative_error;
use vstar::device::{Stream, read_f32};
use vstar::learn::context::Validation;
use vstar::learn::engine::Engine;
use vstar::learn::group::Groups;
use vstar::learn::judge::{Judge, Rewarded};
use vstar::learn::policy::{Batch, Policy, UpdateResult};
use vstar::learn::rl;
use vstar::model::Model;
use vstar::model::checkpoint::Init;
use vstar::model::layout::parts;
use vstar::run::{Stage, State};

/// A rollout: what was asked, what was found and what it is worth.
struct Rollout {
    prompts: Vec<Vec<u32>>,
    found: Vec<Decoded>,
    rewarded: Vec<Rewarded>,
}

/// Decodes for the first test users and rewards what was found.
fn rollout(engine: &Engine, config: &Config, data: &Dataset) -> Rollout {
    let asked = &data.test[..config.rl.prompts];
    let histories: Vec<&[u32]> = asked.iter().map(|e| &e.history[..]).collect();
    let decoding = Decoding::rollout(config, data, asked.len());
    let mut searcher = Searcher::new(&engine.model, data, &decoding).unwrap();
    let found = searcher.search(&engine.model, &data.catalog, &histories, 0, 0);
    let found = found.unwrap();
    let judge = Judge::new(config, data).unwrap();
    let pairs = asked.iter().zip(&found);
    Rollout {
        prompts: histories.iter().map(|h| data.catalog.prompt(h)).collect(),
        rewarded: pairs
            .map(|(e, d)| judge.reward(e.target, &d.candidates))
            .collect(),
        found,
    }
}

impl Rollout {
    fn groups(&self, range: std::ops::Range<usize>, config: &Config) -> Groups {
        let mut groups = Groups::default();
        for (prompt, found) in self.prompts[range.clone()].iter().zip(&self.found[range]) {
            let candidates = found.candidates.iter().map(|c| &c.tokens[..]);
            groups.push(prompt, candidates, config.rl.group, 3, CAUSAL);
        }
        groups
    }

    /// The rollout in parts of `part` prompts.
    fn batches(&self, part: usize, config: &Config) -> Vec<Batch> {
        let n = self.prompts.len();
        let range = |begin: usize| begin..(begin + part).min(n);
        let batch = |begin: usize| {
            let groups = self.groups(range(begin), config);
            Batch::new(groups, &self.rewarded[range(begin)], config.rl.group, 3)
        };
        (0..n).step_by(part).map(batch).collect()
    }
}

/// One update in parts of `part` prompts.
fn policy_step(
    engine: &mut Engine,
    config: &Config,
    rollout: &Rollout,
    (part, lr): (usize, f32),
) -> UpdateResult {
    let mut policy = Policy::new(engine, config, part, 3).unwrap();
    let batches = rollout.batches(part, config);
    let update = update(lr, 1);
    let result = policy
        .update(engine, None, &batches, &update, (true, false))
        .unwrap();
    assert!(result.finite);
    result
}

#[test]
fn a_policy_update_in_parts_has_the_same_gradient() {
    let data = dataset();
    let changes = ["rl.prompts=8", "rl.kl_beta=0"];
    let variants: [&[&str]; 5] = [
        &[],
        &["rl.loss=dapo", "rl.scale_rewards=none"],
        &[
            "rl.loss=dr_grpo",
            "rl.mask_zero_variance=true",
            "reward.semantic=0",
        ],
        &["rl.loss=gspo"],
        &["rl.decode=sample"],
    ];
    for variant in variants {
        let one = config(&[&changes, variant].concat());
        let eight = config(&[&changes, variant, &["rl.accumulate=8"]].concat());
        let mut engine = engine(&cpu(), &one, &data);
        fine_tune(&mut engine, &data, CAUSAL, (30, 3e-3));
        let rollout = rollout(&engine, &one, &data);
        assert!(rollout.rewarded.iter().any(|r| !r.is_flat()), "{variant:?}");
        let whole = policy_step(&mut engine, &one, &rollout, (8, 0.0));
        let whole_gradient = gradient(&engine);
        let parts = policy_step(&mut engine, &eight, &rollout, (1, 0.0));
        let off = gradient_difference(&whole_gradient, &gradient(&engine));
        assert!(off < 1e-5, "{variant:?}: the gradients differ by {off:.1e}");
        let (w, p) = (whole.metrics, parts.metrics);
        let figures = |m: &vstar::learn::policy::PolicyMetrics| {
            [
                m.objective.sibling,
                m.value_loss,
                m.entropy,
                m.objective.ratio,
            ]
        };
        assert!(
            relative_error(&figures(&w), &figures(&p)) < 1e-5,
            "{variant:?}"
        );
        assert!(
            (w.objective.loss - p.objective.loss).abs() < 1e-5,
            "{variant:?}"
        );
        // Weights per prompt are different when a prompt is missing.
        let fewer = Rollout {
            prompts: rollout.prompts[1..].to_vec(),
            found: rollout.found[1..].to_vec(),
            rewarded: rollout.rewarded.into_iter().skip(1).collect(),
        };
        policy_step(&mut engine, &eight, &fewer, (1, 0.0));
        assert!(gradient_difference(&whole_gradient, &gradient(&engine)) > 1e-2);
    }
}

/// Log-probs of the candidates of a rollout, [B, G].
fn candidate_log_probs(engine: &mut Engine, rollout: &Rollout, config: &Config) -> Vec<f32> {
    let groups = rollout.groups(0..rollout.prompts.len(), config);
    engine.upload(&groups.forest, &groups.targets).unwrap();
    let mut s = Stream::new();
    engine.forward(&mut s, &engine.model, engine.head.logp.all());
    engine.device().run(&s).unwrap();
    let logp = read_f32(engine.device(), engine.head.logp.all()).unwrap();
    let candidates = groups.cand_node.chunks_exact(3);
    candidates
        .map(|nodes| nodes.iter().map(|&n| logp[n as usize]).sum())
        .collect()
}

#[test]
fn an_update_lowers_the_objective_and_favours_what_was_rewarded() {
    let data = dataset();
    for decode in ["rl.decode=ved", "rl.decode=beam"] {
        let config = config(&[decode, "rl.kl_beta=0", "rl.value_weight=0"]);
        for device in [cpu(), bare_gpu()] {
            let mut engine = engine(&device, &config, &data);
            fine_tune(&mut engine, &data, CAUSAL, (30, 3e-3));
            let rollout = rollout(&engine, &config, &data);
            let before = candidate_log_probs(&mut engine, &rollout, &config);
            let mut policy = Policy::new(&engine, &config, config.rl.prompts, 3).unwrap();
            let batches = rollout.batches(config.rl.prompts, &config);
            let losses = [1, 2].map(|step| {
                let flags = (step == 1, false);
                let result = policy.update(&mut engine, None, &batches, &update(2e-4, step), flags);
                result.unwrap().metrics.objective.loss
            });
            assert!(losses[1] < losses[0] - 1e-4, "{decode}: {losses:?}");
            let after = candidate_log_probs(&mut engine, &rollout, &config);
            let mut gain = 0.0;
            for (b, rewarded) in rollout.rewarded.iter().enumerate() {
                let mean = rewarded.rewards.iter().sum::<f32>() / rewarded.rewards.len() as f32;
                for (g, reward) in rewarded.rewards.iter().enumerate() {
                    let at = b * config.rl.group + g;
                    gain += (reward - mean) * (after[at] - before[at]);
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
    let mut engine = engine(&cpu(), &config, &data);
    let rollout = rollout(&engine, &config, &data);
    policy_step(&mut engine, &config, &rollout, (config.rl.prompts, 0.0));
    let got = gradient(&engine);

    // GRPO by its formula: at ratio 1, dLoss/dlog-prob of each candidate's token is -A / (B G L).
    let (b, g) = (config.rl.prompts, config.rl.group);
    let groups = rollout.groups(0..b, &config);
    let mut weights = vec![0.0; groups.nodes()];
    for (candidates, rewarded) in groups.cand_node.chunks_exact(g * 3).zip(&rollout.rewarded) {
        let rewards = rewarded.rewards.iter().map(|&r| r as f64);
        let mean = rewards.clone().sum::<f64>() / g as f64;
        let squares: f64 = rewards.clone().map(|r| (r - mean).powi(2)).sum();
        let deviation = (squares / (g - 1) as f64).sqrt();
        for (nodes, reward) in candidates.chunks_exact(3).zip(rewards) {
            let advantage = (reward - mean) / (deviation + 1e-4);
            for &node in nodes {
                weights[node as usize] -= advantage / (b * g * 3) as f64;
            }
        }
    }
    let weights: Vec<f32> = weights.into_iter().map(|w| w as f32).collect();
    engine.upload(&groups.forest, &groups.targets).unwrap();
    engine.head.g.write_f32(&weights).unwrap();
    let mut s = Stream::new();
    Model::clear(&mut s, &engine.optimiser.gradient);
    engine.forward(&mut s, &engine.model, engine.head.logp.all());
    engine.backward_head(&mut s);
    engine.backward_backbone(&mut s);
    engine.device().run(&s).unwrap();
    let want = gradient(&engine);
    let off = gradient_difference(&want, &got);
    assert!(off < 1e-4, "the gradient is off by {off:.1e}");

    let with_siblings = train::config(&[&grpo[..], &["rl.sibling_weight=1"]].concat());
    policy_step(&mut engine, &with_siblings, &rollout, (b, 0.0));
    assert!(gradient_difference(&want, &gradient(&engine)) > 1e-2);
}

#[test]
fn a_detached_value_loss_leaves_the_backbone_alone() {
    let data = dataset();
    let backbone = |changes: &[&str]| {
        let config = config(&[&["rl.kl_beta=0"], changes].concat());
        let mut engine = engine(&cpu(), &config, &data);
        let rollout = rollout(&engine, &config, &data);
        policy_step(&mut engine, &config, &rollout, (config.rl.prompts, 0.0));
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
        let mut engine = engine(&cpu(), &config, &data);
        let rollout = rollout(&engine, &config, &data);
        let before = engine.model.weights.read().unwrap();
        let mut policy = Policy::new(&engine, &config, config.rl.prompts, 3).unwrap();
        let batches = rollout.batches(config.rl.prompts, &config);
        // The update decays weights too, which must not reach a resting backbone either.
        let flags = (true, value_only);
        let result = policy.update(&mut engine, None, &batches, &update(1e-3, 1), flags);
        assert!(result.unwrap().finite);
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

#[test]
fn rollouts_that_are_not_finite_are_skipped_and_end_the_run() {
    let data = dataset();
    let config = config(&["rl.eval_every=1", "run.checkpoint_every=1"]);
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("run");
    let mut engine = engine(&cpu(), &config, &data);
    let first = temporary.path().join("first");
    std::fs::create_dir(&first).unwrap();
    engine.model.save(&first).unwrap();
    let limit = rl::Limit {
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
        rl::run(&mut context, &config, &mut engine, start, &mut validate)
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
    let mut engine = engine(&cpu(), config, data);
    let first = temporary.path().join("first");
    std::fs::create_dir(&first)?;
    engine.model.save(&first)?;
    let before = engine.model.weights.read()?;
    let limit = rl::Limit {
        steps: Some(2),
        decode_tokens: None,
    };
    in_folder(&root, config, data, |mut context| {
        let start = (State::start(Stage::Rl), limit, origin.unwrap_or(&first));
        rl::run(&mut context, config, &mut engine, start, &mut no_validation)
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
