//! What is read from outside, each behind a function that takes bytes: for libFuzzer (`main.rs` beside this file) and for
//! `tests/hostile.rs`, which feeds the same seeds and changes of them in every test run.
//!
//! Whatever the bytes are, a target returns: no panic, no memory beyond a multiple of the bytes, and nothing written but
//! in the folder it is given. It panics where something it read contradicts itself.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use vstar::catalog::{Catalog, Items};
use vstar::config::Config;
use vstar::data::histories::Histories;
use vstar::data::import::{Card, Options, Watch, Window, import};
use vstar::data::stats::Stats;
use vstar::data::{LoadOptions, Protocol, Source, embeddings, jsonl, load_corpus, read};
use vstar::device::cpu::Cpu;
use vstar::device::{DeviceRef, Precision};
use vstar::eval::PerUser;
use vstar::model::checkpoint::{Init, load_blocks};
use vstar::model::{Architecture, Model};
use vstar::run::{RunFolder, State, locate_model};

/// Reads bytes, with a folder to work in.
pub type Target = fn(&Path, &[u8]);

/// Every target by its name, which is that of its folder of seeds.
pub const TARGETS: [(&str, Target); 11] = [
    ("jsonl", own_jsonl),
    ("letter", letter),
    ("minionerec", minionerec),
    ("amazon", amazon),
    ("movielens", movielens),
    ("config", config),
    ("architecture", architecture),
    ("checkpoint", checkpoint),
    ("embeddings", embedding_files),
    ("histories", histories),
    ("run", run_folder),
];

/// Where a target reads several files, a line of this stands between their contents.
const BETWEEN: &[u8] = b"====\n";

/// Bytes a target may hold at once for an input of so many: what libraries and buffers take, and room for each byte.
pub fn memory(input: usize) -> usize {
    (4 << 20) + 300 * input
}

/// The pieces of `bytes` between separators.
fn parts(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut parts, mut rest) = (Vec::new(), bytes);
    while let Some(at) = rest.windows(BETWEEN.len()).position(|part| part == BETWEEN) {
        parts.push(&rest[..at]);
        rest = &rest[at + BETWEEN.len()..];
    }
    parts.push(rest);
    parts
}

/// Makes the files called `names` from the parts of `bytes`; there is none where a part is empty or missing.
fn files(folder: &Path, names: &[&str], bytes: &[u8]) {
    let parts = parts(bytes);
    for (at, name) in names.iter().enumerate() {
        let path = folder.join(name);
        match parts.get(at) {
            Some(part) if !part.is_empty() => std::fs::write(path, part).unwrap(),
            _ => drop(std::fs::remove_file(path)),
        }
    }
}

/// What was read, if anything was; else the error must begin with a file in `folder`. (What it quotes of that file may have
/// any character; the command line shows it as one line.)
fn placed<T>(folder: &Path, outcome: anyhow::Result<T>) -> Option<T> {
    let error = match outcome {
        Ok(value) => return Some(value),
        Err(error) => format!("{error:#}"),
    };
    assert!(error.starts_with(folder.to_str().unwrap()), "{error}");
    None
}

/// A dataset: read, cut by its protocol, described, made into a catalog.
fn dataset(folder: &Path, names: &[&str], bytes: &[u8]) {
    files(folder, names, bytes);
    if let Some(corpus) = placed(folder, load_corpus(Some(folder), LoadOptions::default())) {
        let _ = Stats::of(&corpus);
        let _ = corpus.into_dataset();
    }
}

/// Writes a dataset and reads it back: the same items and interactions.
fn round_trip(folder: &Path, source: &Source) {
    let out = folder.join("out");
    let _ = std::fs::remove_dir_all(&out);
    std::fs::create_dir(&out).unwrap();
    jsonl::write(&out, source).unwrap();
    let back = read(&out).unwrap();
    let seen = |source: &Source| {
        let Items { names, titles, .. } = source.items.clone();
        (names, titles, source.items.codes.clone())
    };
    assert_eq!(seen(&back), seen(source));
}

fn own_jsonl(folder: &Path, bytes: &[u8]) {
    let names = [
        "items.jsonl",
        "interactions.jsonl",
        "valid.jsonl",
        "test.jsonl",
        "embeddings.safetensors",
    ];
    dataset(folder, &names, bytes);
    if let Ok(source) = read(folder) {
        round_trip(folder, &source);
    }
}

fn letter(folder: &Path, bytes: &[u8]) {
    dataset(folder, &["inter.json", "index.json", "item.json"], bytes);
}

fn minionerec(folder: &Path, bytes: &[u8]) {
    let names = [
        "info.txt",
        "index.json",
        "valid.csv",
        "test.csv",
        "train.csv",
        "item.json",
    ];
    dataset(folder, &names, bytes);
}

struct Unwatched;

impl Watch for Unwatched {
    fn total(&mut self, _: u64) {}
    fn file(&mut self, _: &str) {}
    fn read(&mut self, _: u64) {}
}

/// Makes a dataset from the raw files in `input`. The lowest bit of `choice` is the split, the next is in the k-core.
pub fn imported(input: &Path, choice: u8) -> anyhow::Result<(Source, Card)> {
    let options = Options {
        k_core: 1 + u32::from(choice >> 1 & 1),
        window: Window::default(),
        split: [Protocol::LeaveOneOut, Protocol::TimeSplit][usize::from(choice & 1)],
        seed: 1,
    };
    import(&[input.into()], &options, "x", "", &mut Unwatched)
}

/// Raw files. The first byte is not of the files but the choice for [`imported`].
fn raw(folder: &Path, names: &[&str], bytes: &[u8]) {
    let Some((&choice, bytes)) = bytes.split_first() else {
        return;
    };
    let input = folder.join("raw");
    std::fs::create_dir_all(&input).unwrap();
    files(&input, names, bytes);
    if let Some((source, card)) = placed(folder, imported(&input, choice)) {
        round_trip(folder, &source);
        assert!(!card.to_string().is_empty());
        serde_json::to_vec(&card).unwrap();
    }
}

/// Amazon's files are told apart by what is in them, gzip too.
fn amazon(folder: &Path, bytes: &[u8]) {
    raw(folder, &["a.json", "b.json", "c.jsonl"], bytes);
}

fn movielens(folder: &Path, bytes: &[u8]) {
    let names = [
        "ratings.csv",
        "movies.csv",
        "ratings.dat",
        "movies.dat",
        "u.data",
        "u.item",
    ];
    raw(folder, &names, bytes);
}

/// The text of a file, then `key=value` settings, a line each.
fn config(_: &Path, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (file, overrides) = text.split_once("====\n").unwrap_or((&text, ""));
    let overrides: Vec<String> = overrides.lines().map(String::from).collect();
    if let Ok(config) = Config::load_text("c", file, &overrides) {
        let back = Config::load_text("", &config.resolved_toml(), &[]).unwrap();
        assert_eq!(back, config);
    }
}

fn architecture(folder: &Path, bytes: &[u8]) {
    let path = folder.join("config.json");
    std::fs::write(&path, bytes).unwrap();
    if let Some(architecture) = placed(folder, Architecture::load(&path)) {
        let _ = architecture.parameters();
        std::fs::write(&path, architecture.to_json().to_string()).unwrap();
        assert_eq!(Architecture::load(&path).unwrap(), architecture);
    }
}

static DEVICE: LazyLock<DeviceRef> = LazyLock::new(|| Arc::new(Cpu::new()));

fn checkpoint(folder: &Path, bytes: &[u8]) {
    let names = [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "shard.safetensors",
    ];
    files(folder, &names, bytes);
    let init = Init { seed: 1, std: 0.1 };
    let model = Model::load(&DEVICE, folder, 8, Precision::F32, init);
    if let Some(model) = placed(folder, model) {
        let moments = load_blocks(&model.layout, &folder.join("model.safetensors"));
        placed(folder, moments);
    }
}

/// NumPy's file, then safetensors.
fn embedding_files(folder: &Path, bytes: &[u8]) {
    let names = ["e.npy", "e.safetensors"];
    files(folder, &names, bytes);
    let items = ["pen", "ink"].map(String::from);
    for name in names {
        placed(folder, embeddings::read(&folder.join(name), &items));
    }
}

static CATALOG: LazyLock<Catalog> = LazyLock::new(|| {
    let items = Items {
        names: ["pen", "ink", "7"].map(String::from).into(),
        levels: 1,
        codes: vec![0, 1, 2],
        ..Items::default()
    };
    Catalog::new(items).unwrap()
});

/// Lines as `vstar recommend` gets them.
fn histories(_: &Path, bytes: &[u8]) {
    let mut histories = Histories::new(bytes);
    loop {
        let (questions, fault) = histories.batch(&CATALOG, 3);
        for question in &questions {
            assert!(!question.items.is_empty());
            serde_json::to_vec(&question.user).unwrap();
        }
        if let Some(fault) = &fault {
            assert!(format!("{fault:#}").starts_with("stdin:"));
        }
        if fault.is_some() || questions.is_empty() {
            return;
        }
    }
}

/// What `--resume` and `--model` read.
fn run_folder(folder: &Path, bytes: &[u8]) {
    let checkpoint = folder.join("checkpoints/rl-00000001");
    std::fs::create_dir_all(&checkpoint).unwrap();
    let names = [
        "config.toml",
        "metrics.jsonl",
        "checkpoints/best-rl",
        "checkpoints/rl-00000001/state.json",
        "test_users.safetensors",
    ];
    files(folder, &names, bytes);
    if let Ok(found) = locate_model(folder) {
        let found = found.checkpoint.canonicalize().unwrap();
        assert!(found.starts_with(folder.canonicalize().unwrap()));
    }
    let _ = PerUser::load(&folder.join("test_users.safetensors"));
    let run = RunFolder::at(folder);
    let _ = run.entries();
    let _ = run.draw_curves("x");
    if let Ok(state) = State::load(&checkpoint) {
        let _ = run.metrics(Some(&state));
        let _ = state.after(1);
    }
}
