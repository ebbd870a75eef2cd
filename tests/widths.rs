//! Subgroups of other widths than the test adapter's own: lavapipe makes them as wide as its variable says, so what a shader
//! does on hardware whose subgroups have 4, 32 or 128 lanes can be run here.

use serde_json::Value;
use std::process::Command;

/// What the program prints with `--json` on a GPU whose subgroups have `lanes` lanes, if it can.
fn report(lanes: u64, arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_vstar"))
        .env("VSTAR_CACHE", env!("CARGO_TARGET_TMPDIR"))
        .env("LP_NATIVE_VECTOR_WIDTH", (32 * lanes).to_string())
        .args(arguments)
        .arg("--json")
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{lanes} lanes: {message}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Whether the adapter of the tests heeds the variable; of another one, that it does not is told.
fn is_there(lanes: u64, subject: &str) -> bool {
    let adapters = report(lanes, &["doctor"])["adapters"].clone();
    let named = |a: &&Value| a["name"] == subject;
    let adapter = adapters.as_array().unwrap().iter().find(named).unwrap();
    let has = [&adapter["subgroup_size_min"], &adapter["subgroup_size_max"]];
    let there = has.iter().all(|size| **size == lanes);
    if !there {
        assert!(!subject.contains("llvmpipe"), "{adapter}");
        println!("not tested: subgroups of {lanes}, {subject} has its own");
    }
    there
}

#[test]
fn subgroups_may_have_any_width() {
    // Products and attention ask for eight lanes.
    let narrow = ["log_softmax", "rmsnorm"];
    let wide = ["log_softmax", "rmsnorm", "matmul", "attention"];
    for (lanes, kernels) in [(4, &narrow[..]), (32, &wide[..]), (128, &wide[..])] {
        for kernel in kernels {
            let validated = report(lanes, &["validate", "--device", "gpu", "--kernel", kernel]);
            if !is_there(lanes, validated["device"]["name"].as_str().unwrap()) {
                return;
            }
            let checks = validated["checks"].as_array().unwrap().iter();
            let ran = checks.flat_map(|check| check["kernels"].as_object().unwrap().keys());
            let subgroup = ran.filter(|form| form.contains("/subgroup")).count();
            assert!(subgroup > 0, "{lanes} lanes, {kernel}: {validated}");
        }
    }
    // Too narrow for those.
    let validated = report(4, &["validate", "--device", "gpu", "--kernel", "matmul"]);
    let forms = validated["checks"].to_string();
    assert!(
        forms.contains("matmul_nt/") && !forms.contains("/subgroup"),
        "{forms}"
    );
}
