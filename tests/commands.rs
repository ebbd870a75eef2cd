//! Training through the built program, and checkpoints that it refuses.

#[path = "support/program.rs"]
mod program;
#[path = "support/toy.rs"]
mod toy;

use program::{failure, success};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use vstar::config::Config;

const SHORT: &[&str] = &["sft.max_steps=4", "rl.steps=2", "eval.max_users=20"];

/// A folder with the toy data in `data`.
fn workplace() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    toy::write(&folder.path().join("data"));
    folder
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The arguments of a training run on the toy data.
fn train<'a>(data: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = [
        "train",
        "--data",
        text(data),
        "--out",
        text(out),
        "--device",
    ];
    [&fixed, more, toy::SETTINGS, SHORT].concat()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Runs the whole job on a device and checks what it leaves.
fn whole_job(device: &str) {
    let work = workplace();
    let [data, run] = ["data", "run"].map(|name| work.path().join(name));
    let printed = success(&train(&data, &run, &[device]));
    let result = read_json(&run.join("result.json"));
    for system in ["popularity", "SFT", "GRPO (beam)", "V-STAR"] {
        assert!(printed.contains(system), "{system}: {printed}");
        let figures = result["systems"][system].to_string();
        assert!(figures.contains("ndcg@10"), "{system}: {figures}");
    }
    let mut invalid = 0;
    count_invalid(&result["systems"], &mut invalid);
    assert_eq!(
        invalid, 4,
        "one count of invalid SIDs for each system: {result:#}"
    );
    assert_eq!(result["protocol"], "leave-one-out");
    assert_eq!(result["seed"], 1);
    let backend = result["device"]["backend"].as_str().unwrap();
    assert_eq!(backend == "cpu", device == "cpu", "{backend}");
    // The settings read back, and are those of the run.
    let config = Config::load(Some(&run.join("config.toml")), &[]).unwrap();
    assert_eq!((config.rl.steps, config.model.hidden_size), (2, 32));
    assert_eq!(Path::new(&config.data.path), data);
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    for stage in ["sft", "rl", "grpo"] {
        assert!(
            metrics.contains(&format!("{{\"stage\":\"{stage}\"")),
            "{stage}: {metrics}"
        );
    }
    // Every figure is documented, `name/1` as `name/..`.
    let formats = include_str!("../docs/formats.md");
    let documented = |key: &str| {
        let name = key.trim_start_matches("device/");
        formats.contains(&format!("`{}", name.trim_end_matches(char::is_numeric)))
    };
    assert!(!documented("prefix_miss@10/1"));
    for record in metrics.lines() {
        let record: Value = serde_json::from_str(record).unwrap();
        for key in record.as_object().unwrap().keys() {
            assert!(documented(key), "{key}");
        }
    }
    // The curves of it: loss, two metrics, three levels and coverage, and for reinforcement learning reward and entropy.
    let curves = fs::read_to_string(run.join("curves.svg")).unwrap();
    let document = roxmltree::Document::parse(&curves).unwrap();
    let lines = document
        .descendants()
        .filter(|n| n.has_tag_name("polyline") && n.attribute("stroke-width") == Some("2"));
    assert_eq!(lines.count(), 7 + 9 + 9);
    // The trained model answers a probe.
    let question = question(work.path());
    let answer = work.path().join("answer.safetensors");
    let probe = [
        "probe",
        "--input",
        text(&question),
        "--output",
        text(&answer),
    ];
    success(
        &[
            &probe[..],
            &["--model", text(&run), "--device", device, "--grad"],
        ]
        .concat(),
    );
    let bytes = fs::read(&answer).unwrap();
    let answer = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(answer.tensor("logits").unwrap().shape(), [1, 4, 14]);
    // A folder in use is refused and left alone.
    let before = files(&run);
    let message = failure(&train(&data, &run, &[device]));
    assert!(
        message.contains("is not empty") && message.contains("--resume"),
        "{message}"
    );
    assert_eq!(files(&run), before);
}

/// Adds up how many figures count invalid SIDs; each must be 0.
fn count_invalid(value: &Value, found: &mut usize) {
    for (key, value) in value.as_object().into_iter().flatten() {
        if key.contains("invalid") {
            assert_eq!(value.as_f64(), Some(0.0), "{key}");
            *found += 1;
        }
        count_invalid(value, found);
    }
}

/// A probe file of one document of four tokens.
fn question(folder: &Path) -> PathBuf {
    let (tokens, lengths) = ([1u32, 3, 7, 11], [4u32]);
    let view = |shape: Vec<usize>, words| {
        TensorView::new(Dtype::I32, shape, bytemuck::cast_slice(words)).unwrap()
    };
    let tensors = [
        ("tokens", view(vec![1, 4], &tokens[..])),
        ("lengths", view(vec![1], &lengths[..])),
    ];
    let path = folder.join("question.safetensors");
    fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    path
}

#[test]
fn the_whole_job_runs_on_the_cpu() {
    whole_job("cpu");
}

#[test]
fn the_whole_job_runs_on_a_gpu() {
    whole_job("gpu");
}

#[test]
fn a_run_is_resumed_by_its_folder_alone() {
    let work = workplace();
    let [data, run] = ["data", "run"].map(|name| work.path().join(name));
    success(&train(&data, &run, &["cpu", "--stage", "sft"]));
    assert!(!run.join("result.json").exists());
    let printed = success(&["train", "--resume", text(&run), "--device", "cpu"]);
    assert!(printed.contains("V-STAR"), "{printed}");
    assert!(run.join("result.json").exists());
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let sft = metrics
        .lines()
        .filter(|line| line.contains("\"stage\":\"sft\""));
    assert_eq!(sft.count(), 4, "{metrics}");
}

type Tensors = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

/// A checkpoint folder copied from `from` with its tensors changed.
fn altered(from: &Path, to: &Path, change: impl Fn(&mut Tensors)) {
    fs::create_dir_all(to).unwrap();
    fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let own = |(name, view): (String, TensorView)| {
        (
            name,
            view.dtype(),
            view.shape().to_vec(),
            view.data().to_vec(),
        )
    };
    let mut tensors: Tensors = file.tensors().into_iter().map(own).collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(to.join("model.safetensors"), bytes).unwrap();
}

const NORM: &str = "model.layers.1.input_layernorm.weight";

fn norm(tensors: &mut Tensors) -> &mut (String, Dtype, Vec<usize>, Vec<u8>) {
    tensors.iter_mut().find(|t| t.0 == NORM).unwrap()
}

#[test]
fn damaged_checkpoints_are_refused_in_one_line() {
    let work = workplace();
    let [data, run] = ["data", "run"].map(|name| work.path().join(name));
    success(&train(&data, &run, &["cpu", "--stage", "sft"]));
    let good = run.join("checkpoints/sft-00000004");
    let question = question(work.path());
    let bad = work.path().join("bad");
    let answer = work.path().join("answer.safetensors");
    let probe = |model: &Path| -> Vec<String> {
        let arguments = [
            "probe",
            "--device",
            "cpu",
            "--input",
            text(&question),
            "--output",
            text(&answer),
            "--model",
            text(model),
        ];
        arguments.map(String::from).to_vec()
    };
    let refused = |file: &str, wanted: &[&str]| {
        let arguments = probe(&bad);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let message = failure(&arguments);
        // The folder itself where there is no file to blame.
        let file = match file {
            "" => text(&bad).to_owned(),
            file => text(&bad.join(file)).to_owned(),
        };
        for part in wanted.iter().chain([&file.as_str()]) {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
        assert!(!answer.exists(), "{message}");
        assert_eq!(
            files(work.path()),
            ["bad", "data", "question.safetensors", "run"]
        );
    };
    let weights = "model.safetensors";

    altered(&good, &bad, |tensors| tensors.retain(|t| t.0 != NORM));
    refused(weights, &[NORM, "is missing"]);
    altered(&good, &bad, |tensors| {
        let mut extra = norm(tensors).clone();
        extra.0 = "model.layers.2.input_layernorm.weight".into();
        tensors.push(extra);
    });
    refused(
        weights,
        &["model.layers.2.input_layernorm.weight", "does not belong"],
    );
    altered(&good, &bad, |tensors| norm(tensors).2 = vec![2, 16]);
    refused(weights, &[NORM, "[2, 16]", "[32]"]);
    altered(&good, &bad, |tensors| {
        norm(tensors).3[12..16].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    refused(weights, &[NORM, "NaN", "element 3"]);
    altered(&good, &bad, |tensors| norm(tensors).1 = Dtype::I32);
    refused(weights, &[NORM, "I32"]);
    // One value-head tensor missing is damage; all missing is a backbone from elsewhere.
    altered(&good, &bad, |tensors| {
        tensors.retain(|t| t.0 != "value_head.fc2.bias")
    });
    refused(weights, &["value_head.fc2.bias", "is missing"]);

    let whole = fs::read(good.join(weights)).unwrap();
    for length in [0, 5, 700] {
        fs::write(bad.join(weights), &whole[..length]).unwrap();
        refused(
            weights,
            &[&format!("{length} bytes are too few"), "cut short"],
        );
    }
    fs::write(bad.join(weights), &whole[..whole.len() - 1]).unwrap();
    refused(weights, &["not a safetensors file"]);
    fs::remove_file(bad.join(weights)).unwrap();
    refused("", &["holds neither model.safetensors nor"]);

    altered(&good, &bad, |_| ());
    let config = fs::read_to_string(good.join("config.json")).unwrap();
    let change = |from: &str, to: &str| {
        let changed = config.replace(from, to);
        assert_ne!(changed, config, "{from}");
        fs::write(bad.join("config.json"), changed).unwrap();
    };
    change("{\n", "{{\n");
    refused("config.json", &["not valid JSON"]);
    change("\"model_type\": \"llama\"", "\"model_type\": \"gpt2\"");
    refused("config.json", &["gpt2"]);
    change("\"hidden_size\": 32", "\"hidden_size\": \"32\"");
    refused("config.json", &["hidden_size"]);
    change("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3");
    refused("config.json", &["3 key/value heads"]);
    change("\"hidden_size\": 32", "\"hidden_size\": 64");
    refused(
        weights,
        &["model.embed_tokens.weight", "[14, 32]", "[14, 64]"],
    );
    // Sizes that nothing in the file stands for are not allocated for.
    change(
        "\"num_hidden_layers\": 2",
        "\"num_hidden_layers\": 2147483647",
    );
    refused(weights, &["bytes are too few for", "config.json"]);
    change("\"rms_norm_eps\": 1e-6", "\"rms_norm_eps\": -1.0");
    refused("config.json", &["rms_norm_eps", "above 0"]);
    fs::remove_file(bad.join("config.json")).unwrap();
    refused("config.json", &["cannot read"]);

    // Whole again, and without a value head, it answers.
    for keep in ["", "model."] {
        altered(&good, &bad, |tensors| {
            tensors.retain(|t| t.0.starts_with(keep))
        });
        let arguments = probe(&bad);
        success(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        fs::remove_file(&answer).unwrap();
    }
}

#[test]
fn training_refuses_what_cannot_work_and_leaves_nothing() {
    let work = workplace();
    let [data, run, larger] = ["data", "run", "larger"].map(|name| work.path().join(name));
    success(&train(&data, &run, &["cpu", "--stage", "sft"]));
    // More codes than the model has tokens.
    fs::create_dir(&larger).unwrap();
    let items = fs::read_to_string(data.join("items.jsonl")).unwrap();
    fs::write(
        larger.join("items.jsonl"),
        items.replacen("\"sid\": [0, 0, 0]", "\"sid\": [0, 0, 9]", 1),
    )
    .unwrap();
    fs::copy(
        data.join("interactions.jsonl"),
        larger.join("interactions.jsonl"),
    )
    .unwrap();

    let out = work.path().join("out");
    let init = format!(
        "model.init={}",
        run.join("checkpoints/sft-00000004").display()
    );
    let nowhere = format!("model.init={}", work.path().join("nowhere").display());
    let cases: [(&Path, &[&str], &[&str]); 6] = [
        (
            &larger,
            &["cpu", &init],
            &["sft-00000004", "vocabulary of 14", "needs 20"],
        ),
        (&data, &["cpu", "--stage", "rl"], &["model.init"]),
        (&data, &["cpu", "--stage", "eval"], &["model.init"]),
        (
            &data,
            &["cpu", &nowhere],
            &["there is no model folder", "nowhere"],
        ),
        (
            &data,
            &["cpu", "rl.sibling_wieght=0"],
            &[
                "`rl.sibling_wieght`",
                "nearest known one is `rl.sibling_weight`",
            ],
        ),
        (&data, &["no such adapter"], &["no such adapter"]),
    ];
    for (data, arguments, wanted) in cases {
        let message = failure(&train(data, &out, arguments));
        for part in wanted {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
        assert!(!out.exists(), "{arguments:?} leaves {:?}", files(&out));
    }
    let message = failure(&["train", "--resume", text(&data)]);
    assert!(message.contains("is not a run folder"), "{message}");
    assert_eq!(files(&data), ["interactions.jsonl", "items.jsonl"]);

    // The same model serves the stage that needs it.
    let arguments = train(&data, &out, &["cpu", "--stage", "rl", &init]);
    success(&arguments);
    assert!(out.join("checkpoints/best-rl").exists());
    let evaluation = work.path().join("evaluation");
    let printed = success(&train(
        &data,
        &evaluation,
        &["cpu", "--stage", "eval", &init],
    ));
    assert!(
        printed.contains("SFT") && !printed.contains("V-STAR"),
        "{printed}"
    );
    assert!(evaluation.join("result.json").exists());
}
