//! The built program, run.

use std::process::{Command, Output};

fn vstar(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vstar"));
    command.env("VSTAR_CACHE", env!("CARGO_TARGET_TMPDIR"));
    command.args(arguments).output().unwrap()
}

#[track_caller]
pub fn success(arguments: &[&str]) -> String {
    let output = vstar(arguments);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {message}");
    String::from_utf8(output.stdout).unwrap()
}

/// The one line a failing run ends with. Not every test has runs that fail.
#[allow(dead_code)]
#[track_caller]
pub fn failure(arguments: &[&str]) -> String {
    let output = vstar(arguments);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    let line = message.strip_prefix("vstar: error: ").unwrap();
    line.trim_end().to_owned()
}
