//! `vstar embed` and `vstar sid report` as a user meets them: what they read, what they write and what they refuse.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const KINDS: [&str; 2] = ["Pencil, graphite", "Teapot, cast iron"];
const ITEMS: usize = 24;
const USERS: usize = 40;

/// Items with titles and without SIDs in two kinds; each user buys one kind.
struct Data(TempDir);

impl Data {
    fn new() -> Data {
        let data = Data(tempfile::tempdir().unwrap());
        let items = (0..ITEMS)
            .map(|item| format!(r#"{{"id": {item}, "title": "{} {item}"}}"#, KINDS[item % 2]));
        data.write("items.jsonl", items);
        data.sequences(|_| ());
        data
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn write(&self, file: &str, lines: impl Iterator<Item = String>) {
        let lines: Vec<String> = lines.collect();
        fs::write(self.path(file), lines.join("\n")).unwrap();
    }

    /// Writes the interactions, changed: eight items of a user's kind, from a place of their own.
    fn sequences(&self, change: impl Fn(&mut [usize])) {
        let rows = (0..USERS).map(|user| {
            let mut items: Vec<usize> = (0..8)
                .map(|at| (user % 2 + 2 * (user * 5 + at * at)) % ITEMS)
                .collect();
            change(&mut items);
            format!(r#"{{"user": "u{user}", "items": {items:?}}}"#)
        });
        self.write("interactions.jsonl", rows);
    }

    fn embed(&self, arguments: &[&str]) -> Output {
        let folder = self.0.path().to_str().unwrap();
        let out = self.path("made.safetensors");
        let common = ["embed", "--data", folder, "--out", out.to_str().unwrap()];
        vstar(&[&common, arguments].concat())
    }

    /// The bytes of the file that a run writes.
    #[track_caller]
    fn made(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.embed(arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        let bytes = fs::read(self.path("made.safetensors")).unwrap();
        fs::remove_file(self.path("made.safetensors")).unwrap();
        bytes
    }

    /// A run is refused in one line that holds `wanted`, and writes nothing.
    #[track_caller]
    fn refused(&self, arguments: &[&str], wanted: &str) {
        let output = self.embed(arguments);
        refused(&output, wanted);
        assert!(!self.path("made.safetensors").exists());
    }
}

fn vstar(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vstar"));
    command.args(arguments).output().unwrap()
}

/// What a run complains of; the lines before show its progress.
fn stderr(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let errors = text.lines().filter(|line| !line.contains("steps/s"));
    errors.collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn refused(output: &Output, wanted: &str) {
    let message = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains(wanted), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn held_out_items_change_nothing_and_training_items_do() {
    let data = Data::new();
    let from = ["--from", "interactions", "--dim", "6"];
    let before = data.made(&from);
    // The last item is test, the one before validation.
    data.sequences(|items| items[6..].reverse());
    assert_eq!(data.made(&from), before);
    data.sequences(|items| items[6..].fill(0));
    assert_eq!(data.made(&from), before);
    data.sequences(|items| items[5] = 0);
    assert_ne!(data.made(&from), before);

    // The same of a time split, whose questions stand in files of their own.
    data.sequences(|_| ());
    let question = |target: usize| {
        let row = format!(r#"{{"user": "u1", "history": [1, {target}], "target": {target}}}"#);
        for file in ["valid.jsonl", "test.jsonl"] {
            fs::write(data.path(file), &row).unwrap();
        }
    };
    question(2);
    let before = data.made(&from);
    question(8);
    assert_eq!(data.made(&from), before);
    data.sequences(|items| items[7] = 0);
    assert_ne!(data.made(&from), before);
}

#[test]
fn a_seed_gives_the_same_file_with_any_number_of_threads() {
    let data = Data::new();
    let made = |threads: &str, seed: &str| {
        let out = data.path("made.safetensors");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vstar"));
        command.env("RAYON_NUM_THREADS", threads);
        command.args([
            "embed",
            "--from",
            "text",
            "--from",
            "interactions",
            "--dim",
            "5",
        ]);
        command.args(["--seed", seed, "--data"]).arg(data.0.path());
        assert!(
            command
                .arg("--out")
                .arg(&out)
                .output()
                .unwrap()
                .status
                .success()
        );
        fs::read(out).unwrap()
    };
    let one = made("1", "3");
    assert_eq!(one, made("3", "3"));
    assert_ne!(one, made("1", "4"));
}

#[test]
fn what_is_made_is_shown_and_is_the_datasets_from_then_on() {
    let data = Data::new();
    let output = data.embed(&[
        "--from",
        "text",
        "--from",
        "interactions",
        "--weights",
        "1,0.5",
        "--dim",
        "5",
    ]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("text: 5 dimensions explain"), "{text}");
    assert!(text.contains("24 items in 10 dimensions"), "{text}");
    let near: Vec<&str> = text
        .lines()
        .skip_while(|line| !line.starts_with("near"))
        .collect();
    let kind = |line: &str| KINDS.iter().position(|kind| line.contains(kind)).unwrap();
    for lines in near.chunks(4) {
        assert!(
            lines.iter().all(|line| kind(line) == kind(lines[0])),
            "{lines:?}"
        );
    }
    fs::rename(
        data.path("made.safetensors"),
        data.path("embeddings.safetensors"),
    )
    .unwrap();
    let corpus = vstar::data::load_corpus(Some(data.0.path()), Default::default()).unwrap();
    let embeddings = corpus.items.embeddings.unwrap();
    assert_eq!(embeddings.dim, 10);
    // Text and interactions, of length 1 and 1/2.
    let square: f32 = embeddings.row(5).iter().map(|x| x * x).sum();
    assert!((square - 1.25).abs() < 1e-5, "{square}");
}

/// A model of the data that spells items so, trained for a moment: its run.
fn trained(data: &Data, name: &str, spelt: &[&str]) -> String {
    let at = |name: &str| data.path(name).to_str().unwrap().to_owned();
    let (folder, built, run) = (data.0.path().to_str().unwrap(), at(name), at("run"));
    let build = [
        "sid", "build", "--data", folder, "--device", "cpu", "--out", &built,
    ];
    let small = [
        "model.layers=1",
        "model.hidden_size=64",
        "model.heads=2",
        "model.kv_heads=2",
    ];
    let train = [
        "train", "--data", &built, "--stage", "sft", "--device", "cpu", "--out", &run,
    ];
    let steps = ["sft.epochs=12", "sft.eval_every=1000", "sft.lr=0.003"];
    for arguments in [
        [&build[..], spelt].concat(),
        [&train[..], &small, &steps].concat(),
    ] {
        let output = vstar(&arguments);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    run
}

#[test]
fn what_a_model_has_learnt_of_items_is_a_source() {
    let data = Data::new();
    let run = trained(&data, "atomic", &["--method", "atomic"]);
    let output = data.embed(&["--from", &run, "--from", "text", "--weights", "2,1"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains(&format!("{run}: 64 dimensions")),
        "{text}{}",
        stderr(&output)
    );
    fs::rename(
        data.path("made.safetensors"),
        data.path("embeddings.safetensors"),
    )
    .unwrap();
    let corpus = vstar::data::load_corpus(Some(data.0.path()), Default::default()).unwrap();
    let embeddings = corpus.items.embeddings.unwrap();
    let learnt = |item: u32| &embeddings.row(item)[..64];
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    // Each is of length 2, and nearer to those that the same users buy.
    let mut sums = [0.0; 2];
    for a in 0..ITEMS as u32 {
        assert!((dot(learnt(a), learnt(a)) - 4.0).abs() < 1e-4);
        for b in (0..ITEMS as u32).filter(|&b| b != a) {
            sums[(a % 2 == b % 2) as usize] += dot(learnt(a), learnt(b));
        }
    }
    assert!(sums[1] > 0.0 && sums[0] < -100.0, "{sums:?}");

    let other = Data::new();
    let items = (0..ITEMS).map(|item| format!(r#"{{"id": {}, "title": "{item}"}}"#, item + 100));
    other.write("items.jsonl", items);
    other.sequences(|items| items.iter_mut().for_each(|item| *item += 100));
    other.refused(&["--from", &run], "it does not know item \"100\"");
    let short = trained(
        &other,
        "random",
        &["--method", "random", "--levels", "2", "--codes", "8"],
    );
    other.refused(&["--from", &short], "it spells an item in 2 tokens");
    other.refused(
        &["--from", other.0.path().to_str().unwrap()],
        "no run here that says what data",
    );
}

#[test]
fn bad_sources_are_refused_in_one_line() {
    let data = Data::new();
    data.refused(
        &["--from", "text", "--weights", "1,2"],
        "2 numbers for 1 sources",
    );
    data.refused(&["--from", "text", "--weights", "0"], "above 0");
    data.refused(&["--from", "text", "--dim", "0"], "--dim 0");
    data.refused(&["--from", "nowhere.npy"], "nowhere.npy: cannot be read");
    let short = data.path("short.npy");
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }";
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend([0; 8]);
    fs::write(&short, bytes).unwrap();
    let wanted = "a matrix of [1, 2], but should be [24, dim]";
    data.refused(&["--from", short.to_str().unwrap()], wanted);
    let titles = (0..ITEMS).map(|item| format!(r#"{{"id": {item}}}"#));
    data.write("items.jsonl", titles);
    data.refused(&["--from", "text"], "no titles or texts");
}

#[test]
fn a_report_is_text_json_and_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report");
    let out = out.to_str().unwrap();
    let output = vstar(&["sid", "report", "--out", out, "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let read = |file: &str| fs::read_to_string(Path::new(out).join(file)).unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        read("report.json")
    );
    let json: serde_json::Value = serde_json::from_str(&read("report.json")).unwrap();
    assert_eq!(json["items"], 2058);
    assert_eq!(json["levels"].as_array().unwrap().len(), 3);
    assert!(json["fit"]["depths"][0]["explained"].as_f64().unwrap() > 0.5);
    assert!(read("report.txt").contains("2058 distinct"));
    roxmltree::Document::parse(&read("tree.svg")).unwrap();
}

#[test]
fn a_report_refuses_what_it_cannot_tell_of() {
    let data = Data::new();
    let folder = data.0.path().to_str().unwrap();
    let output = vstar(&["sid", "report", "--data", folder]);
    refused(&output, "vstar sid build");
    let made = data.path("made.safetensors");
    assert!(data.embed(&["--from", "text"]).status.success());
    // For the items of this dataset, not for the built-in shop's.
    let output = vstar(&["sid", "report", "--embeddings", made.to_str().unwrap()]);
    refused(&output, "a matrix of [24, ");
}
