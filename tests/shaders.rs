//! `vstar shaders export` as a user meets it.

#[path = "support/program.rs"]
mod program;

use program::{failure, success};
use serde_json::Value;
use std::fs;
use std::path::Path;

fn export(language: &str, out: &Path, more: &[&str]) -> Value {
    let out = out.to_str().unwrap();
    let said = success(
        &[
            &["shaders", "export", "--lang", language, "--out", out],
            more,
        ]
        .concat(),
    );
    assert!(said.starts_with(out) && said.contains("shaders"), "{said}");
    let json = fs::read_to_string(Path::new(out).join("manifest.json")).unwrap();
    serde_json::from_str(&json).unwrap()
}

#[test]
fn every_language_has_what_its_manifest_says() {
    let folder = tempfile::tempdir().unwrap();
    for (language, begins) in [
        ("wgsl", ""),
        ("spirv", "\u{3}\u{2}#\u{7}"),
        ("hlsl", ""),
        ("msl", "// language: metal"),
    ] {
        let out = folder.path().join(language);
        let manifest = export(language, &out, &[]);
        let shaders = manifest["shaders"].as_array().unwrap();
        assert_eq!(fs::read_dir(&out).unwrap().count(), shaders.len() + 1);
        for shader in shaders {
            let file = out.join(shader["file"].as_str().unwrap());
            let bytes = fs::read(&file).unwrap();
            assert!(bytes.starts_with(begins.as_bytes()), "{}", file.display());
            if language != "spirv" {
                let text = String::from_utf8(bytes).unwrap();
                let entry = shader["entry"].as_str().unwrap();
                assert!(text.contains(&format!("{entry}(")), "{}", file.display());
            }
        }
        let product = shaders
            .iter()
            .find(|s| s["kernel"] == "matmul_nn" && s["form"] == "tiled");
        let product = product.unwrap();
        assert_eq!(product["workgroup_size"], serde_json::json!([64, 1, 1]));
        assert!(product["workgroup_bytes"].as_u64().unwrap() > 1000);
        assert_eq!(product["bindings"][3]["access"], "read_write");
        let left_out = manifest["left_out"].as_array().unwrap();
        assert_eq!(left_out.is_empty(), language != "hlsl");
    }
}

#[test]
fn f16_and_subgroups_are_said_and_fxc_gets_neither() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = export("hlsl", &folder.path().join("out"), &[]);
    let mut old = 0;
    for shader in manifest["shaders"].as_array().unwrap() {
        let features = shader["features"].as_array().unwrap();
        if shader["target"] == "cs_5_1" {
            old += 1;
            assert!(features.is_empty() && shader["core"] == true, "{shader}");
        }
        let bindings = shader["bindings"].as_array().unwrap();
        let half = bindings.iter().any(|b| b["type"] == "f16");
        assert_eq!(features.contains(&"shader-f16".into()), half, "{shader}");
        let subgroups = features.contains(&"subgroups".into());
        assert_eq!(shader["least_subgroup"] != 0, subgroups, "{shader}");
    }
    assert!(old > 50, "{old}");
}

#[test]
fn checks_are_there_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let size = |more: &[&str]| {
        let out = folder.path().join(format!("out{}", more.len()));
        export("msl", &out, more);
        fs::metadata(out.join("adamw.portable.metal"))
            .unwrap()
            .len()
    };
    assert!(size(&["--checked"]) > size(&[]));
}

#[test]
fn a_folder_that_is_there_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mine"), "kept").unwrap();
    let out = folder.path().to_str().unwrap();
    let line = failure(&["shaders", "export", "--lang", "wgsl", "--out", out]);
    assert!(line.contains("there already"), "{line}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
