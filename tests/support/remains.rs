//! What interruptions must not change.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Everything a run left that must not depend on interruptions: checkpoints to the bit, records, figures.
pub fn remains(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    let without = |mut value: Value, keys: &[&str]| {
        let object = value.as_object_mut().unwrap();
        keys.iter().for_each(|key| drop(object.remove(*key)));
        value.to_string()
    };
    for entry in fs::read_dir(root.join("checkpoints")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_file() {
            out.insert(name, fs::read(path).unwrap());
            continue;
        }
        for file in fs::read_dir(&path).unwrap() {
            let file = file.unwrap().path();
            let inside = file.file_name().unwrap().to_str().unwrap();
            let mut bytes = fs::read(&file).unwrap();
            if inside == "state.json" {
                let state = serde_json::from_slice(&bytes).unwrap();
                bytes = without(state, &["elapsed_seconds"]).into();
            }
            out.insert(format!("{name}/{inside}"), bytes);
        }
    }
    let metrics = fs::read_to_string(root.join("metrics.jsonl")).unwrap();
    for (number, line) in metrics.lines().enumerate() {
        // A resumed process warms up anew: it makes pipelines and bind groups where the other had them.
        let passing = [
            "step_time",
            "device/pipelines_created",
            "device/bind_groups_created",
        ];
        let record = without(serde_json::from_str(line).unwrap(), &passing);
        out.insert(format!("metrics.jsonl:{number:03}"), record.into());
    }
    if let Ok(result) = fs::read(root.join("result.json")) {
        let mut result: Value = serde_json::from_slice(&result).unwrap();
        // A process that goes on in a later stage never had the buffers of those before.
        drop(result["memory"].as_object_mut().unwrap().remove("peak"));
        let result = without(result, &["seconds", "counters"]);
        out.insert("result.json".into(), result.into());
    }
    out
}
