//! The program as a user meets it: usage, help and errors.

use std::path::Path;
use std::process::{Command, Output};

use vstar::config::{Config, SETTINGS};
use vstar::run::RunFolder;

const COMMANDS: [&str; 9] = [
    "train",
    "eval",
    "recommend",
    "data",
    "embed",
    "sid",
    "probe",
    "validate",
    "doctor",
];

fn vstar(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vstar"));
    command.args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The one line of a run that fails, which must print nothing else.
#[track_caller]
fn failure(arguments: &[&str]) -> String {
    let output = vstar(arguments);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert_eq!(stdout(&output), "");
    assert_eq!(message.lines().count(), 1, "{message}");
    let message = message.strip_prefix("vstar: error: ");
    message
        .expect("the program's name first")
        .trim_end()
        .to_owned()
}

/// The message of a run that is refused for its usage.
#[track_caller]
fn usage(arguments: &[&str]) -> String {
    let output = vstar(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    assert_eq!(stdout(&output), "");
    stderr(&output)
}

#[test]
fn help_lists_the_commands_and_each_explains_itself() {
    let output = vstar(&["--help"]);
    assert!(output.status.success());
    let help = stdout(&output);
    for command in COMMANDS {
        assert!(
            help.contains(&format!("\n  {command} ")),
            "{command}: {help}"
        );
        let output = vstar(&[command, "--help"]);
        assert!(output.status.success(), "{command}");
        assert!(stdout(&output).contains(&format!("Usage: vstar {command}")));
    }
}

#[test]
fn the_long_help_of_train_has_every_setting() {
    let help = stdout(&vstar(&["train", "--help"]));
    for setting in SETTINGS {
        assert!(help.contains(setting.doc), "{}", setting.key);
    }
    let short = stdout(&vstar(&["train", "-h"]));
    assert!(short.lines().count() < 60, "{short}");
}

#[test]
fn wrong_usage_exits_with_2() {
    for (arguments, named) in [
        (&[][..], "Usage: vstar"),
        (&["trian"], "train"),
        (&["train", "--sed", "1"], "--seed"),
        (&["train", "--seed", "one"], "--seed"),
        (&["train", "--stage", "most"], "sft"),
        (&["train", "--backend", "opengl"], "vulkan"),
        (&["train", "steps"], "key=value"),
        (&["train", "--resume", "a", "--out", "b"], "--out"),
        (&["train", "--resume", "a", "--seed", "1"], "--seed"),
        (&["train", "--resume", "a", "--config", "b"], "--config"),
        (&["eval"], "--model"),
        (&["embed", "--data", "a", "--out", "b"], "--from"),
        (&["sid"], "report"),
        (&["recommend", "--model", "a", "--top-k", "0"], "--top-k"),
        (&["probe", "--model", "a", "--input", "b"], "--output"),
    ] {
        let message = usage(arguments);
        assert!(message.contains(named), "{arguments:?}: {message}");
    }
}

#[test]
fn settings_of_all_sources_are_checked_before_anything_is_done() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("run.toml");
    std::fs::write(&file, "[sft]\nbatch = 0\n").unwrap();
    let file = file.to_str().unwrap();
    let out = temporary.path().join("out");
    let out_text = out.to_str().unwrap();
    assert_eq!(
        failure(&["train", "--out", out_text, "--config", file]),
        format!(
            "{file}:2: sft.batch = 0 is not allowed: expected a whole number from 1 to 1048576"
        )
    );
    assert_eq!(
        failure(&["train", "--out", out_text, "rl.stpes=3"]),
        "command line: unknown key `rl.stpes`: the nearest known one is `rl.steps`"
    );
    assert_eq!(
        failure(&["train", "--out", out_text, "--seed", "18446744073709551615"]),
        "command line: seed = 18446744073709551615 is not allowed: expected a whole number from 0 to 9223372036854775807"
    );
    assert!(!out.exists());
}

#[test]
fn only_a_run_folder_can_be_resumed() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().to_str().unwrap();
    assert_eq!(
        failure(&["train", "--resume", root]),
        format!("{root} is not a run folder: it has no config.toml")
    );
    // Its configuration is checked like any other.
    let run = temporary.path().join("run");
    let folder = RunFolder::create(&run, &Config::default()).unwrap();
    std::fs::write(folder.config_path(), "sead = 1\n").unwrap();
    drop(folder);
    let message = failure(&["train", "--resume", run.to_str().unwrap()]);
    assert!(
        message.ends_with("config.toml:1: unknown key `sead`: the nearest known one is `seed`"),
        "{message}"
    );
}

#[test]
fn a_missing_model_is_named() {
    let missing = Path::new("no").join("such-model");
    let missing = missing.to_str().unwrap();
    for command in ["eval", "recommend"] {
        assert_eq!(
            failure(&[command, "--model", missing]),
            format!("there is no model folder {missing}")
        );
    }
}
