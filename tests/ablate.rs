//! `vstar ablate` through the built program.

#[path = "support/program.rs"]
mod program;
#[path = "support/toy.rs"]
mod toy;

use program::{failure, success};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Short stages with a checkpoint and a validation at every step, all kept.
const SHORT: &[&str] = &[
    "sft.max_steps=4",
    "rl.steps=3",
    "rl.eval_every=1",
    "rl.schedule=cosine",
    "eval.max_users=20",
    "run.checkpoint_every=1",
    "run.keep_checkpoints=100",
];

const SYSTEMS: [(&str, &str); 5] = [
    ("GRPO (beam)", "grpo-beam"),
    ("GRPO (sample)", "grpo-sample"),
    ("+ Sibling", "sibling"),
    ("+ VED", "ved"),
    ("V-STAR", "vstar"),
];

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A folder with the toy data in `data`, and where an ablation of it goes.
fn workplace() -> (TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let [data, out] = ["data", "ablation"].map(|name| folder.path().join(name));
    fs::create_dir(&data).unwrap();
    toy::write(&data);
    (folder, data, out)
}

fn ablate<'a>(data: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["ablate", "--device", "cpu", "--data", text(data)];
    let out = ["--out", text(out)];
    [&fixed, &out[..], toy::SETTINGS, SHORT, more].concat()
}

/// The weights of a run's best checkpoint.
fn best(run: &Path) -> Vec<u8> {
    let checkpoints = run.join("checkpoints");
    let name = fs::read_to_string(checkpoints.join("best-rl")).unwrap();
    fs::read(checkpoints.join(name.trim()).join("model.safetensors")).unwrap()
}

/// Everything an ablation is to leave; then an interruption of it, which leaves the same.
#[test]
fn an_ablation_compares_at_equal_tokens_and_goes_on_with_the_same_figures() {
    let (work, data, out) = workplace();
    let printed = success(&ablate(&data, &out, &["--seeds", "1,4"]));
    let table = fs::read_to_string(out.join("table.md")).unwrap();
    assert!(printed.contains(&table), "{printed}\n{table}");
    let plan = printed.lines().filter(|line| line.starts_with("plan "));
    assert_eq!(plan.count(), 1 + 2 * SYSTEMS.len(), "{printed}");

    let result = read_json(&out.join("result.json"));
    let tokens = result["decode_tokens"].as_u64().unwrap();
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value}"));
    for (name, folder) in SYSTEMS {
        let system = &result["systems"][name];
        assert!(table.contains(&format!("| {name} ")), "{name}: {table}");
        let mut mean = 0.0;
        for (run, seed) in system["runs"].as_array().unwrap().iter().zip([1, 4]) {
            let folder = out.join(format!("{folder}-{seed}"));
            assert_eq!(run["seed"], seed);
            // The last step spends the last of the tokens.
            let metrics = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
            let records = metrics
                .lines()
                .map(|line| serde_json::from_str(line).unwrap());
            let spent: Vec<u64> = records
                .map(|record: Value| number(&record["decode_tokens"]) as u64)
                .collect();
            let [.., before, last] = spent[..] else {
                panic!("{name}: {metrics}")
            };
            assert!(
                before < tokens && tokens <= last,
                "{name}: {spent:?} of {tokens}"
            );
            assert_eq!(run["train_decode_tokens"], last);
            mean += number(&run["ndcg@10"]) / 2.0;
            let own = read_json(&folder.join("result.json"));
            assert_eq!(own["systems"][name]["ndcg@10"]["mean"], run["ndcg@10"]);
            assert!(folder.join("curves.svg").is_file());
        }
        let figure = &system["ndcg@10"];
        assert!((number(&figure["mean"]) - mean).abs() < 1e-12, "{name}");
        assert!(number(&figure["lo"]) <= mean && mean <= number(&figure["hi"]));
        let over = |baseline: &str| system[format!("ndcg@10 over {baseline}")].is_object();
        assert_eq!(
            (over("SFT"), over("GRPO (beam)")),
            (true, name != "GRPO (beam)")
        );
    }
    let weights = SYSTEMS.map(|(_, folder)| best(&out.join(format!("{folder}-1"))));
    for (at, one) in weights.iter().enumerate() {
        assert!(
            !weights[..at].contains(one),
            "{:?} is as one before",
            SYSTEMS[at]
        );
    }
    let picture = fs::read_to_string(out.join("plot.svg")).unwrap();
    let picture = roxmltree::Document::parse(&picture).unwrap();
    let count = |tag: &str, key: &str, value: &str| {
        let nodes = picture.descendants().filter(|n| n.has_tag_name(tag));
        nodes.filter(|n| n.attribute(key) == Some(value)).count()
    };
    assert_eq!(count("polyline", "stroke-width", "2"), 2 * SYSTEMS.len());
    assert_eq!(count("polygon", "opacity", "0.15"), 2 * SYSTEMS.len());

    // A run's settings train it again.
    let again = work.path().join("again");
    let config = out.join("vstar-4/config.toml");
    let train = [
        "train",
        "--device",
        "cpu",
        "--stage",
        "rl",
        "--out",
        text(&again),
    ];
    success(&[&train[..], &["--config", text(&config)]].concat());
    assert_eq!(best(&again), best(&out.join("vstar-4")));
    assert_ne!(best(&again), best(&out.join("vstar-1")));

    interrupt(&out);
    let before = fs::metadata(out.join("sft/result.json"))
        .unwrap()
        .modified();
    let resume = ["ablate", "--device", "cpu", "--resume", text(&out)];
    let printed = success(&resume);
    assert_eq!(
        printed.matches(", done").count(),
        1 + 2 * SYSTEMS.len() - 2,
        "{printed}"
    );
    assert_eq!(read_json(&out.join("result.json")), result);
    assert_eq!(fs::read_to_string(out.join("table.md")).unwrap(), table);
    let after = fs::metadata(out.join("sft/result.json"))
        .unwrap()
        .modified();
    assert_eq!(before.unwrap(), after.unwrap());
    // Evaluations that are not those of the runs would be seen.
    let [one, other] =
        ["vstar-1", "grpo-beam-1"].map(|f| out.join(f).join("test_users.safetensors"));
    fs::copy(&other, &one).unwrap();
    success(&resume);
    assert_ne!(read_json(&out.join("result.json")), result);

    // Runs of other settings are not gone on with.
    let settings = out.join("settings.toml");
    let changed = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, changed.replace("\ngroup = 8", "\ngroup = 7")).unwrap();
    let message = failure(&resume);
    let place = out.join("sft/config.toml");
    assert_eq!(
        message,
        format!(
            "{}: a run of another ablation: rl.group = 8 there, 7 here: give another --out",
            place.display()
        )
    );
}

/// Leaves a finished ablation as if it had been stopped in `ved-1` after its first step, with `vstar-4` not begun.
fn interrupt(out: &Path) {
    for file in ["result.json", "table.md", "plot.svg"] {
        fs::remove_file(out.join(file)).unwrap();
    }
    fs::remove_dir_all(out.join("vstar-4")).unwrap();
    let run = out.join("ved-1");
    for file in ["result.json", "test_users.safetensors", "curves.svg"] {
        fs::remove_file(run.join(file)).unwrap();
    }
    let checkpoints = run.join("checkpoints");
    for entry in fs::read_dir(&checkpoints).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("rl-00000001") {
            fs::remove_dir_all(path).unwrap();
        }
    }
    fs::write(checkpoints.join("best-rl"), "rl-00000001\n").unwrap();
}

#[test]
fn a_model_given_is_not_fine_tuned() {
    let (work, data, out) = workplace();
    let run = work.path().join("run");
    let train = [
        "train",
        "--device",
        "cpu",
        "--stage",
        "sft",
        "--data",
        text(&data),
    ];
    success(&[&train, &["--out", text(&run)][..], toy::SETTINGS, SHORT].concat());
    let given = format!("model.init={}", text(&run));
    let more = ["--seeds", "2", &given, "rl.max_decode_tokens=100"];
    let printed = success(&ablate(&data, &out, &more));
    assert!(printed.contains("the model given"), "{printed}");
    assert!(printed.contains("one seed"), "{printed}");
    let result = read_json(&out.join("result.json"));
    assert_eq!(result["decode_tokens"], 100);
    let checkpoints = out.join("sft/checkpoints");
    assert_eq!(fs::read_dir(checkpoints).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_compared_is_refused_and_leaves_nothing() {
    let (_work, data, out) = workplace();
    for (more, expected) in [
        (
            &["--seeds", "3,1,3"][..],
            "--seeds names 3 twice: give each seed once",
        ),
        (
            &["--seeds", ""],
            "--seeds names no seed: give --seeds 1,2,3",
        ),
        (&["--seeds", "1,x"], "`x` is not a whole number"),
        (&["--systems", " , "], "--systems names no system"),
        (
            &["--systems", "vstar,grpo"],
            "there is no `grpo`: there are grpo-beam, grpo-sample, sibling, ved, vstar",
        ),
        (&["--seeds", "9223372036854775808"], "is too large"),
        (&["rl.decode=beam"], "rl.decode = beam is not V-STAR's"),
        (&["rl.steps=0"], "rl.steps = 0 leaves nothing to compare"),
    ] {
        let message = failure(&ablate(&data, &out, more));
        assert!(message.contains(expected), "{more:?}: {message}");
        assert!(!out.exists(), "{more:?}");
    }
    fs::create_dir(&out).unwrap();
    fs::write(out.join("thesis.tex"), "mine").unwrap();
    let message = failure(&ablate(&data, &out, &[]));
    assert!(
        message.contains("is there already: name another folder"),
        "{message}"
    );
    let message = failure(&["ablate", "--resume", text(&out)]);
    assert!(message.contains("holds no ablation"), "{message}");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
}
