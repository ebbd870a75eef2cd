//! Reading, checking and writing configurations.

use std::path::PathBuf;

use vstar::config::{Candidates, Config, SETTINGS};

/// A configuration file in a folder of its own, removed at the end.
struct File {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn file(text: &str) -> File {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, text).unwrap();
    File {
        _folder: folder,
        path,
    }
}

fn strings(overrides: &[&str]) -> Vec<String> {
    overrides.iter().map(|text| text.to_string()).collect()
}

fn load(text: &str, overrides: &[&str]) -> anyhow::Result<Config> {
    Config::load(Some(&file(text).path), &strings(overrides))
}

/// The one line that `load` fails with, without the folder of the file.
#[track_caller]
fn error(text: &str, overrides: &[&str]) -> String {
    let file = file(text);
    let error = Config::load(Some(&file.path), &strings(overrides)).unwrap_err();
    let line = format!("{error:#}");
    assert!(!line.contains('\n'), "more than one line: {line}");
    line.replace(&file.path.display().to_string(), "run.toml")
}

#[test]
fn the_defaults_are_allowed() {
    assert_eq!(Config::load(None, &[]).unwrap(), Config::default());
    assert_eq!(load("", &[]).unwrap(), Config::default());
}

#[test]
fn a_file_wins_over_defaults_and_the_command_line_over_the_file() {
    let text = "seed = 7\n[sft]\nlr = 1\nbatch = 8\n[rl]\ndecode = 'beam'\n";
    let config = load(
        text,
        &["sft.batch=16", "rl.decode=sample", "sft.batch = 32"],
    )
    .unwrap();
    let mut expected = Config {
        seed: 7,
        ..Config::default()
    };
    expected.sft.lr = 1.0;
    expected.sft.batch = 32;
    expected.rl.decode = Candidates::Sample;
    assert_eq!(config, expected);
}

#[test]
fn dotted_keys_in_a_file_are_the_same_as_sections() {
    let dotted = load("sft.lr = 0.5\nsft.batch = 0x10", &[]).unwrap();
    assert_eq!((dotted.sft.lr, dotted.sft.batch), (0.5, 16));
}

#[test]
fn texts_on_the_command_line_need_no_quotes() {
    for (given, expected) in [
        ("data.path=/a b/c", "/a b/c"),
        ("data.path=2026", "2026"),
        ("data.path=true", "true"),
        ("data.path=\"q=1\"", "q=1"),
        ("data.path=C:\\x", "C:\\x"),
        ("data.path=", ""),
    ] {
        let config = Config::load(None, &strings(&[given])).unwrap();
        assert_eq!(config.data.path, expected, "{given}");
    }
    let config = Config::load(None, &strings(&["value.level_weights=[0.1, 1]"])).unwrap();
    assert_eq!(config.value.level_weights, [0.1, 1.0]);
}

#[test]
fn the_resolved_configuration_loads_back_to_itself() {
    let overrides = [
        "seed=9223372036854775807",
        "data.path=a \"quoted\" \\ name\twith a tab",
        "sft.lr=1.2345678901234567e-5",
        "rl.kl_beta=0",
        "rl.loss=gspo",
        "model.arch=qwen3",
        "model.rms_norm_eps=1e-20",
        "value.level_weights=[0.1, 0.30000000000000004]",
        "eval.baselines=false",
    ];
    for config in [
        Config::default(),
        Config::load(None, &strings(&overrides)).unwrap(),
    ] {
        let text = config.resolved_toml();
        assert_eq!(load(&text, &[]).unwrap(), config, "{text}");
    }
}

#[test]
fn the_resolved_configuration_explains_every_setting() {
    let text = Config::default().resolved_toml();
    for setting in SETTINGS {
        let name = setting.key.rsplit('.').next().unwrap();
        assert!(text.contains(&format!("\n{name} = ")), "{}", setting.key);
        assert!(!setting.doc.is_empty(), "{} has no doc", setting.key);
        assert!(
            text.contains(&format!("# {} (", setting.doc)),
            "{}",
            setting.key
        );
    }
}

#[test]
fn every_setting_refuses_another_type() {
    for setting in SETTINGS {
        let message = error(&format!("{} = 1979-05-27", setting.key), &[]);
        let expected = format!("run.toml:1: {} = 1979-05-27 is not allowed", setting.key);
        assert!(message.starts_with(&expected), "{message}");
    }
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    for (given, nearest) in [
        ("sft.epcohs=1", "sft.epochs"),
        ("rl.epochs=1", "sft.epochs"),
        ("rl.sibling_wieght=0", "rl.sibling_weight"),
        ("sead=1", "seed"),
        ("modle=1", "model"),
        ("layers=3", "model.layers"),
        ("eval.decode.x=1", "eval.decode"),
    ] {
        let key = given.split('=').next().unwrap();
        assert_eq!(
            error("", &[given]),
            format!("command line: unknown key `{key}`: the nearest known one is `{nearest}`")
        );
    }
    assert_eq!(
        error("seed = 1\n\n[sft]\nlr = 1\nwarm_up_steps = 2\n", &[]),
        "run.toml:5: unknown key `sft.warm_up_steps`: the nearest known one is `sft.warmup_steps`"
    );
    assert_eq!(
        error("seed = 1\n[sfft]\nlr = 1\n", &[]),
        "run.toml:2: unknown key `sfft`: the nearest known one is `sft`"
    );
}

#[test]
fn values_that_are_not_allowed_name_place_key_value_and_range() {
    assert_eq!(
        error("[rl]\ngroup = 1\n", &[]),
        "run.toml:2: rl.group = 1 is not allowed: expected a whole number from 2 to 1024"
    );
    assert_eq!(
        error("", &["sft.lr=-0.1"]),
        "command line: sft.lr = -0.1 is not allowed: expected a number from 0.0 to 10.0"
    );
    assert_eq!(
        error("", &["rl.loss=ppo"]),
        "command line: rl.loss = ppo is not allowed: expected \"grpo\" or \"dr_grpo\" or \"dapo\" or \"gspo\""
    );
    assert_eq!(
        error("[value]\nlevel_weights = [\n 1.0,\n 'x'\n]", &[]),
        "run.toml:2: value.level_weights = [ 1.0, 'x' ] is not allowed: expected a non-empty list, each a number from 0.0 to 1000000.0"
    );
    for refused in [
        "sft.lr=nan",
        "sft.lr=inf",
        "sft.lr=fast",
        "sft.lr=",
        "sft.batch=1.5",
        "sft.batch=0",
        "sft.batch=99999999999999999999",
        "seed=-1",
        "seed=9223372036854775808",
        "rl.mask_zero_variance=1",
        "value.level_weights=[]",
        "value.level_weights=1",
        "data.protocol=Auto",
    ] {
        let message = error("", &[refused]);
        assert!(
            message.contains("is not allowed: expected "),
            "{refused}: {message}"
        );
    }
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_its_line() {
    let message = error("seed = 1\nsft = {\n", &[]);
    assert!(message.starts_with("run.toml:"), "{message}");
    let message = error("seed = 1\n[sft]\nlr 3\n", &[]);
    assert!(
        message.starts_with("run.toml:3: not valid TOML: "),
        "{message}"
    );
    let message = error("seed = 1\nseed = 2\n", &[]);
    assert!(
        message.starts_with("run.toml:2: not valid TOML: "),
        "{message}"
    );
}

#[test]
fn sections_and_values_are_not_confused() {
    assert_eq!(
        error("seed = 1\nsft = 3\n", &[]),
        "run.toml:2: `sft` is a section: give its settings, for example sft.epochs"
    );
    assert!(error("[seed]\nx = 1\n", &[]).starts_with("run.toml:1: seed = "));
    let message = error("", &["just-a-word"]);
    assert!(
        message.contains("`just-a-word` is not a setting"),
        "{message}"
    );
}

#[test]
fn a_missing_file_is_named() {
    let message = Config::load(Some("no/such.toml".as_ref()), &[]).unwrap_err();
    assert!(format!("{message:#}").contains("cannot read the configuration no/such.toml"));
}

#[test]
fn settings_that_contradict_each_other_are_refused_where_they_were_given() {
    assert_eq!(
        error("[model]\nheads = 3\n", &[]),
        "run.toml:2: model.heads = 3 does not divide model.hidden_size = 128: change one"
    );
    // The model of a checkpoint has its own shape, so these settings do not count.
    assert!(load("[model]\nheads = 3\ninit = 'there'\n", &[]).is_ok());
    for (overrides, named) in [
        (
            &["model.hidden_size=12", "model.kv_heads=2"][..],
            "odd width 3",
        ),
        (&["model.kv_heads=3"], "model.kv_heads = 3"),
        (&["sft.batch=4", "sft.accumulate=5"], "sft.accumulate = 5"),
        (&["rl.accumulate=33"], "rl.accumulate = 33"),
        (
            &["rl.accumulate=2", "rl.scale_rewards=batch"],
            "rl.scale_rewards = batch",
        ),
        (&["sft.min_lr=0.1"], "sft.min_lr = 0.1"),
        (&["rl.min_lr=0.1"], "rl.min_lr = 0.1"),
        (
            &["rl.ref_sync_steps=5", "rl.kl_beta=0"],
            "rl.ref_sync_steps = 5",
        ),
        (
            &["rl.value_warmup_steps=5", "rl.value_weight=0"],
            "rl.value_warmup_steps = 5",
        ),
        (
            &["reward.rule=0", "reward.rank=0"],
            "every weight in [reward] is 0",
        ),
    ] {
        let message = error("", overrides);
        assert!(
            message.starts_with("command line: ") && message.contains(named),
            "{message}"
        );
    }
}

#[test]
fn derived_settings() {
    let mut config = Config::default();
    assert_eq!(config.model.feed_forward_size(), 320);
    config.model.hidden_size = 8;
    assert_eq!(config.model.feed_forward_size(), 32);
    config.model.intermediate_size = 77;
    assert_eq!(config.model.feed_forward_size(), 77);
    assert_eq!(config.rl.last_step(), 200);
    config.rl.max_steps = 3;
    assert_eq!(config.rl.last_step(), 3);
    config.rl.max_steps = 300;
    assert_eq!(config.rl.last_step(), 200);
}
