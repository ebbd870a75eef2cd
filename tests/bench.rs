//! `vstar bench`: every part runs on the CPU and on a GPU, prints and saves what it should, and compares. Nothing here
//! depends on how fast anything is.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn vstar(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vstar"));
    command.env("VSTAR_CACHE", env!("CARGO_TARGET_TMPDIR"));
    command.arg("bench").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn success(arguments: &[&str]) -> String {
    let output = vstar(arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// The one line of a run that fails.
#[track_caller]
fn failure(arguments: &[&str]) -> String {
    let output = vstar(arguments);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    message.strip_prefix("vstar: error: ").unwrap().to_owned()
}

/// A tiny run on a device: what it prints, and its report.
#[track_caller]
fn measured(device: &str, arguments: &[&str]) -> (String, Value) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    let file = file.to_str().unwrap();
    let common = ["--device", device, "--repeat", "1", "--json", file];
    let printed = success(&[arguments, &common].concat());
    let report: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    check(&report, device);
    assert!(printed.starts_with("device    "), "{printed}");
    assert!(printed.contains("ceilings  fma "), "{printed}");
    (printed, report)
}

/// What every report holds.
#[track_caller]
fn check(report: &Value, device: &str) {
    assert_eq!(report["format"], "vstar bench 1");
    assert_eq!(report["device"]["backend"] == "cpu", device == "cpu");
    assert_eq!(report["seed"], 1);
    assert!(report["command"].as_array().unwrap().len() > 3);
    for ceiling in [
        "operations_per_second",
        "bytes_per_second",
        "submission_seconds",
    ] {
        assert!(
            report["ceilings"][ceiling].as_f64().unwrap() > 0.0,
            "{ceiling}"
        );
    }
    let entries = report["entries"].as_array().unwrap();
    assert!(!entries.is_empty());
    let mut names: Vec<_> = entries
        .iter()
        .map(|e| e["name"].as_str().unwrap())
        .collect();
    for entry in entries {
        let seconds = &entry["seconds"];
        let [min, median, p90] = ["min", "median", "p90"].map(|k| seconds[k].as_f64().unwrap());
        assert!(0.0 < min && min <= median && median <= p90, "{entry}");
        assert!(entry["bytes"].as_u64().unwrap() > 0, "{entry}");
    }
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count, "names are unique");
}

fn names(report: &Value) -> Vec<&str> {
    let entries = report["entries"].as_array().unwrap();
    entries
        .iter()
        .map(|e| e["name"].as_str().unwrap())
        .collect()
}

const TINY: [&str; 4] = ["--hidden", "8", "--batch", "2"];

#[test]
fn every_kernel_is_measured() {
    let (printed, report) = measured("cpu", &[&["kernels"], &TINY[..]].concat());
    let names = names(&report);
    for kernel in vstar::kernels::ALL {
        // The ceilings' own.
        let elsewhere = ["copy", "fma"].contains(&kernel.name);
        let found = names
            .iter()
            .any(|n| n.contains(&format!(" {}/", kernel.name)));
        assert!(found || elsewhere, "{}", kernel.name);
    }
    for step in ["sft", "rl", "other"] {
        assert!(
            printed.contains(&format!("\n{step}: launches one by one take ")),
            "{printed}"
        );
    }
    assert!(names.contains(&"other matmul_nt/portable/m 512 n 512 k 512 start 0"));
}

#[test]
fn kernels_are_measured_on_a_gpu() {
    let arguments = [&["kernels", "--kernel", "rmsnorm"], &TINY[..]].concat();
    let (printed, report) = measured("gpu", &arguments);
    assert!(names(&report).iter().all(|name| name.contains("rmsnorm")));
    assert!(printed.contains(" readings, "), "{printed}");
    let known = ["timestamps", "wall"];
    assert!(known.contains(&report["clock"].as_str().unwrap()));
}

#[test]
fn steps_are_split() {
    for device in ["cpu", "gpu"] {
        let (printed, report) = measured(device, &[&["steps"], &TINY[..]].concat());
        assert_eq!(names(&report), ["sft d 8", "rl d 8", "ved d 8"]);
        let figures = |i: usize, name: &str| report["entries"][i]["figures"][name].as_f64();
        for phase in ["forward_seconds", "backward_seconds", "update_seconds"] {
            assert!(
                figures(0, phase) > Some(0.0) && figures(1, phase) > Some(0.0),
                "{phase}"
            );
        }
        assert_eq!(figures(0, "decode_seconds"), None);
        assert!(figures(1, "decode_seconds") > Some(0.0));
        assert_eq!(figures(2, "forward_seconds"), None);
        assert_eq!(figures(0, "tokens"), Some(72.0));
        // On a GPU, reading the figures back is one more.
        let read_back = (device == "gpu") as u8 as f64;
        assert_eq!(figures(0, "submissions"), Some(1.0 + read_back));
        assert_eq!(figures(0, "created"), Some(0.0));
        assert!(printed.contains(" x sft\n"), "{printed}");
    }
}

#[test]
fn scaling_prints_predicted_operations() {
    let arguments = ["steps", "--scaling", "--largest", "8", "--batch", "2"];
    let (printed, report) = measured("cpu", &arguments);
    assert_eq!(
        names(&report),
        ["layers 2", "layers 4", "layers 8", "batch 8"]
    );
    assert!(printed.contains("operations/token"), "{printed}");
    assert!(
        printed.contains(" rows over 2 times the trend\n"),
        "{printed}"
    );
}

#[test]
fn searches_are_compared_with_plain_decoding() {
    for device in ["cpu", "gpu"] {
        let (printed, report) = measured(device, &[&["decode"], &TINY[..]].concat());
        let names = names(&report);
        assert_eq!(names[0], "plain d 8 prompts 2");
        assert_eq!(names.len(), 8);
        let nodes = |i: usize| report["entries"][i]["figures"]["nodes"].as_f64().unwrap();
        // Two prompts, two levels; a beam of 8 beside it; VED with all of its budget but the root.
        assert_eq!((nodes(0), nodes(1), nodes(4)), (4.0, 32.0, 48.0));
        assert!(printed.contains("of half the budget"), "{printed}");
    }
}

/// A report of a real run, to be changed.
fn saved(folder: &Path) -> (String, Value) {
    let (_, report) = measured("cpu", &[&["decode"], &TINY[..]].concat());
    let path = folder.join("a.json").to_str().unwrap().to_owned();
    std::fs::write(&path, report.to_string()).unwrap();
    (path, report)
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name).to_str().unwrap().to_owned();
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn reports_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let (a, mut report) = saved(folder.path());
    let same = success(&["compare", &a, &a]);
    assert!(
        same.ends_with("geometric mean of 8 entries: 1.000\n"),
        "{same}"
    );

    // One entry takes four times as long, another is gone.
    let median = report["entries"][0]["seconds"]["median"].as_f64().unwrap();
    report["entries"][0]["seconds"]["median"] = (4.0 * median).into();
    report["entries"].as_array_mut().unwrap().remove(7);
    let b = write(folder.path(), "b.json", &report.to_string());
    let slower = success(&["compare", &a, &b]);
    assert!(slower.contains("   4.000\n"), "{slower}");
    let mean = 4f64.powf(1.0 / 7.0);
    let lines = format!("geometric mean of 7 entries: {mean:.3}\n1 entries are in A only\n");
    assert!(slower.ends_with(&lines), "{slower}");
    let faster = success(&["compare", &b, &a]);
    assert!(faster.contains("   0.250\n"), "{faster}");
}

#[test]
fn reports_that_cannot_be_compared_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (a, mut report) = saved(folder.path());
    let compare = |b: &str| failure(&["compare", &a, b]);

    let message = compare("/nowhere/b.json");
    assert!(
        message.starts_with("cannot read /nowhere/b.json: "),
        "{message}"
    );
    let broken = write(folder.path(), "broken.json", "{\"format\": ");
    let message = compare(&broken);
    assert!(
        message.starts_with(&format!("{broken}: not valid JSON: ")),
        "{message}"
    );
    let other = write(folder.path(), "other.json", "{\"format\": \"other 7\"}");
    let message = compare(&other);
    assert!(message.contains("its format is `other 7`"), "{message}");
    let none = write(folder.path(), "none.json", "[]");
    assert!(compare(&none).contains("it has no `format`"));
    let part = write(
        folder.path(),
        "part.json",
        "{\"format\": \"vstar bench 1\"}",
    );
    let message = compare(&part);
    assert!(
        message.starts_with(&format!("{part}: not a whole report: missing field")),
        "{message}"
    );

    report["bench"] = "steps".into();
    let steps = write(folder.path(), "steps.json", &report.to_string());
    let message = compare(&steps);
    assert_eq!(
        message,
        "the reports are of different benches: decode and steps\n"
    );
    report["bench"] = "decode".into();
    report["entries"] = Value::Array(Vec::new());
    let empty = write(folder.path(), "empty.json", &report.to_string());
    assert_eq!(compare(&empty), "the reports have no entry in common\n");
}

#[test]
fn bad_arguments_are_answered_in_a_line() {
    let message = failure(&["kernels", "--device", "no such device"]);
    assert!(
        message.starts_with("--device no such device: no such adapter"),
        "{message}"
    );
    let arguments = [
        &["kernels", "--kernel", "fulfil", "--device", "cpu"],
        &TINY[..],
    ]
    .concat();
    let message = failure(&arguments);
    assert!(
        message.starts_with("no kernel is called `fulfil`"),
        "{message}"
    );
    for (arguments, problem) in [
        (["steps", "--hidden", "12"], "a width is a multiple of 8"),
        (["decode", "--repeat", "0"], "0 is not in 1..="),
        (["steps", "--largest", "8"], "--scaling"),
    ] {
        let output = vstar(&arguments);
        assert_eq!(output.status.code(), Some(2));
        assert!(
            text(&output.stderr).contains(problem),
            "{}",
            text(&output.stderr)
        );
    }
}
