//! The commands that check a device: `vstar doctor`, `vstar validate` and `vstar tune`.

use std::process::{Command, Output};

use serde_json::Value;

/// The program, without the folder for which Mesa asks on stderr where it has none.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vstar"));
    command.env_remove("XDG_RUNTIME_DIR");
    command.env("VSTAR_CACHE", env!("CARGO_TARGET_TMPDIR"));
    command.args(arguments);
    command
}

fn vstar(arguments: &[&str]) -> Output {
    program(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What a run that succeeds prints.
#[track_caller]
fn success(arguments: &[&str]) -> String {
    let output = vstar(arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[track_caller]
fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&success(arguments)).expect("JSON and nothing else")
}

/// The one line of a run that fails before it has done anything.
#[track_caller]
fn failure(arguments: &[&str]) -> String {
    let output = vstar(arguments);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert_eq!(text(&output.stdout), "");
    assert_eq!(message.lines().count(), 1, "{message}");
    message.strip_prefix("vstar: error: ").unwrap().to_owned()
}

#[test]
fn doctor_lists_every_adapter_and_tests_every_device() {
    let report = json(&["doctor", "--json"]);
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert!(report["host"]["threads"].as_u64().unwrap() > 0);
    let adapters = report["adapters"].as_array().unwrap();
    assert!(!adapters.is_empty(), "scripts/test installs an adapter");
    for (index, adapter) in adapters.iter().enumerate() {
        assert_eq!(adapter["index"], index);
        for field in ["name", "type", "backend", "driver"] {
            assert_ne!(adapter[field].as_str(), Some(""), "{field}");
        }
        // wgpu's default limits, below which no adapter is opened.
        let limits = &adapter["limits"];
        for (limit, least) in [
            ("storage_buffers_per_stage", 8),
            ("storage_binding_size", 128 << 20),
            ("buffer_size", 256 << 20),
            ("workgroup_memory", 16_384),
            ("invocations_per_workgroup", 256),
            ("workgroups_per_dimension", 65_535),
        ] {
            assert!(limits[limit].as_u64().unwrap() >= least, "{limit}");
        }
        assert_eq!(adapter["features"].as_object().unwrap().len(), 6);
    }
    let tests = report["self_tests"].as_array().unwrap();
    let tested: Vec<_> = tests.iter().map(|test| test["adapter"].as_u64()).collect();
    let devices: Vec<_> = (0..adapters.len() as u64).map(Some).chain([None]).collect();
    assert_eq!(tested, devices);
    for test in tests {
        assert_eq!(test["passed"], true, "{test}");
        assert!(test["round_trip_us"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(tests.last().unwrap()["name"], "cpu");
}

#[test]
fn doctor_tests_only_the_device_that_is_named() {
    let report = json(&["doctor", "--json", "--device", "cpu"]);
    assert_eq!(report["chosen"]["name"], "cpu");
    assert_eq!(report["chosen"]["adapter"], Value::Null);
    assert_eq!(report["self_tests"].as_array().unwrap().len(), 1);

    let listing = success(&["doctor", "--device", "gpu"]);
    let (_, tests) = listing.split_once("\nself-test\n").unwrap();
    assert_eq!(tests.lines().count(), 1, "{tests}");
    assert!(tests.contains(" PASS "), "{tests}");
}

#[test]
fn validate_compares_the_kernels_that_are_named() {
    let report = json(&["validate", "--kernel", "lerp", "--device", "gpu", "--json"]);
    assert_eq!(
        (&report["passed"], &report["failed"]),
        (&1.into(), &0.into())
    );
    let check = &report["checks"][0];
    assert_eq!(check["name"], "lerp");
    assert_eq!(check["worst_relative_error"], 0.0);
    // Twice: with the adapter's own limits, and with the least.
    let launches = check["launches"].as_u64().unwrap();
    assert!(launches >= 4 && launches.is_multiple_of(2), "{launches}");
    assert_eq!(check["kernels"]["lerp"]["launches"], launches);

    let table = success(&["validate", "--kernel", "lerp", "--device", "gpu"]);
    let rows: Vec<_> = table.lines().collect();
    let named = rows.iter().filter(|row| row.starts_with("lerp "));
    let named: Vec<Vec<_>> = named.map(|row| row.split_whitespace().collect()).collect();
    let launches = launches.to_string();
    assert_eq!(named[0], ["lerp", &launches, "0.0e0", "PASS"]);
    assert_eq!(named[1], ["lerp", &launches, "0.0e0", "-"]);
    assert_eq!(rows.last(), Some(&"1 passed, 0 failed"));
}

/// What can be said of `fill` without its twin: n words become the value, in fours where n is a multiple of 4.
#[test]
fn validate_dumps_launches_for_others_to_replay() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("dump");
    let arguments = ["validate", "--dump", out.to_str().unwrap(), "--kernel"];
    let said = success(&[&arguments[..], &["fill"]].concat());
    assert!(said.starts_with(out.to_str().unwrap()), "{said}");
    let read = |name: &str| std::fs::read(out.join(name)).unwrap();
    let manifest: Value = serde_json::from_slice(&read("manifest.json")).unwrap();
    let bytes = read(manifest["words"].as_str().unwrap());
    let word = |at: &Value| {
        let at = 4 * at.as_u64().unwrap() as usize;
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    };
    let shaders = manifest["shaders"].as_array().unwrap();
    let launches = manifest["launches"].as_array().unwrap();
    assert!(launches.len() > 5, "{launches:?}");
    for launch in launches {
        let (n, value) = (&launch["parameters"][0], &launch["parameters"][1]);
        let after = &launch["buffers"][0]["after"];
        assert_eq!((&after["words"], &after["times"]), (&1.into(), n));
        assert_eq!(&Value::from(word(&after["from"])), value);
        let runs = launch["runs"].as_array().unwrap();
        let form = |run: &Value| shaders[run["shader"].as_u64().unwrap() as usize]["form"].clone();
        let forms: Vec<_> = runs.iter().map(form).collect();
        match n.as_u64().unwrap() % 4 {
            0 => assert_eq!(forms, ["portable", "vec4"]),
            _ => assert_eq!(forms, ["portable"]),
        }
    }
    for shader in shaders {
        let text = String::from_utf8(read(shader["file"].as_str().unwrap())).unwrap();
        assert!(text.contains("fn main(") && !text.contains("//!include"));
    }

    let message = failure(&[&arguments[..], &["fill"]].concat());
    assert!(message.contains("is there already"), "{message}");
    let message = failure(&[&arguments[..], &["fulfil"]].concat());
    assert!(message.starts_with("--kernel fulfil: "), "{message}");
}

#[test]
fn tune_measures_every_form_and_keeps_the_choice() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["tune", "--device", "gpu"];
    let settings = [
        "model.layers=1",
        "model.hidden_size=16",
        "model.heads=2",
        "model.kv_heads=1",
        "sft.batch=3",
        "rl.prompts=2",
        "rl.group=4",
        "ved.init_beam=2",
    ];
    let mut command = program(&[&arguments[..], &settings[..]].concat());
    let output = command.env("VSTAR_CACHE", folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    for form in ["portable", "tiled", "tiled_small", "thin", "direct"] {
        let found = |line: &str| line.starts_with("matmul_") || line.starts_with("attention");
        let named = |line: &str| line.contains(&format!("  {form} "));
        let shown = table.lines().any(|line| found(line) && named(line));
        assert!(shown, "{form}: {table}");
    }
    let kept: Vec<_> = folder.path().read_dir().unwrap().collect();
    let file = std::fs::read_to_string(kept[0].as_ref().unwrap().path()).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    let chosen = table
        .lines()
        .filter(|line| line.ends_with("chosen"))
        .count();
    assert_eq!(file["choices"].as_object().unwrap().len(), chosen);
}

#[test]
fn one_form_can_be_named() {
    let arguments = [
        "validate",
        "--kernel",
        "log_softmax",
        "--device",
        "gpu",
        "--json",
    ];
    let report = json(&[&arguments[..], &["--form", "direct"]].concat());
    let kernels = report["checks"][0]["kernels"].as_object().unwrap();
    assert!(kernels.contains_key("log_softmax/direct"), "{kernels:?}");
    assert!(!kernels.contains_key("log_softmax/portable"), "{kernels:?}");
    let message = failure(&["validate", "--device", "gpu", "--form", "round"]);
    assert!(
        message.starts_with("--form round: unknown; there are portable, "),
        "{message}"
    );
}

#[test]
fn a_kernel_that_is_not_there_is_answered_with_those_that_are() {
    let message = failure(&["validate", "--kernel", "fulfil", "--device", "gpu"]);
    assert!(message.starts_with("--kernel fulfil: "), "{message}");
    assert!(message.contains(" fill, "), "{message}");
}

#[test]
fn the_cpu_is_not_compared_with_itself() {
    let message = failure(&["validate", "--device", "cpu"]);
    assert!(message.contains("proves nothing"), "{message}");
    assert!(message.contains("--device gpu"), "{message}");
}

#[test]
fn an_unknown_device_is_answered_with_the_known() {
    for command in ["doctor", "validate"] {
        for device in ["no such device", "99"] {
            let message = failure(&[command, "--device", device]);
            let start = format!("--device {device}: no such adapter (0: ");
            assert!(message.starts_with(&start), "{message}");
        }
    }
}

/// As on a machine without any driver: Vulkan's loader is sent to a file that is not there.
#[cfg(target_os = "linux")]
#[test]
fn without_an_adapter_doctor_tests_the_cpu_and_gpu_is_refused() {
    let without = |arguments: &[&str]| {
        let nowhere = "/nowhere/driver.json";
        let mut command = program(arguments);
        command.env("VK_DRIVER_FILES", nowhere);
        command.env("VK_ICD_FILENAMES", nowhere);
        command.output().unwrap()
    };
    let output = without(&["doctor", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["adapters"], serde_json::json!([]));
    assert_eq!(report["chosen"]["name"], "cpu");
    assert_eq!(report["self_tests"][0]["passed"], true);

    for command in ["doctor", "validate"] {
        let output = without(&[command, "--device", "gpu"]);
        assert_eq!(output.status.code(), Some(1));
        let message = text(&output.stderr);
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.contains("mesa-vulkan-drivers"), "{message}");
    }
}
