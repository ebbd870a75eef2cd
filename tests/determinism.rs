//! The same seed gives the same bits: on any number of threads, whatever stands beside a document in a batch, and however
//! many users are decoded at once.

#[path = "support/devices.rs"]
mod devices;
#[path = "support/remains.rs"]
mod remains;
#[path = "support/toy.rs"]
mod toy;
#[path = "support/train.rs"]
mod train;

use devices::{bare_gpu, cpu};
use remains::remains;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use train::{config, dataset, engine};
use vstar::data::Dataset;
use vstar::decode::search::{Decoding, Searcher};
use vstar::device::{DeviceRef, Stream};
use vstar::forest::{Forest, PromptAttention};
use vstar::learn::engine::{Engine, Room, Targets};
use vstar::learn::sequences::{Window, push_window, windows};

fn run(data: &Path, out: &Path, threads: usize, seed: u64) -> BTreeMap<String, Vec<u8>> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vstar"));
    command.env("RAYON_NUM_THREADS", threads.to_string());
    command.args(["train", "--device", "cpu", "--data", data.to_str().unwrap()]);
    command.args(["--out", out.to_str().unwrap(), "--seed", &seed.to_string()]);
    command.args(toy::SETTINGS).args([
        "sft.epochs=3",
        "sft.dropout=0.1",
        "rl.steps=5",
        "rl.eval_every=2",
    ]);
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut left = remains(out);
    // It says how many threads there were.
    left.remove("result.json");
    left
}

#[test]
fn a_run_leaves_the_same_bits_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("toy");
    std::fs::create_dir(&data).unwrap();
    toy::write(&data);
    let run = |threads: usize, seed: u64| {
        run(
            &data,
            &folder.path().join(format!("{threads}-{seed}")),
            threads,
            seed,
        )
    };
    let want = run(1, 1);
    for threads in [2, 3, 7] {
        let got = run(threads, 1);
        let differ: Vec<&String> = want
            .keys()
            .filter(|name| got.get(*name) != want.get(*name))
            .collect();
        assert!(
            differ.is_empty() && got.len() == want.len(),
            "{threads} threads: {differ:?}"
        );
    }
    assert_ne!(run(2, 2), want);
}

/// Log-probs of the targets of each document, packed in this order.
fn log_probs(engine: &Engine, data: &Dataset, documents: &[Window]) -> Vec<Vec<u32>> {
    let (mut forest, mut targets, mut counts) = (Forest::new(), Targets::default(), Vec::new());
    for &window in documents {
        let items = &data.train[window.sequence as usize];
        push_window(
            &data.catalog,
            items,
            window,
            PromptAttention::Causal,
            (&mut forest, &mut targets),
        );
        counts.push(targets.len());
    }
    let room = Room::new(engine).unwrap();
    let input = engine.upload(&room, &forest, &targets).unwrap();
    let mut s = Stream::new();
    let logp = engine.head.logp.first(targets.len());
    engine.forward(&mut s, &input, engine.head.logp.all());
    engine.device().run(&s).unwrap();
    let all = engine.device().read(&[logp]).unwrap().remove(0);
    let begins = std::iter::once(0).chain(counts.iter().copied());
    begins
        .zip(&counts)
        .map(|(begin, &end)| all[begin..end].to_vec())
        .collect()
}

#[test]
fn a_document_has_the_same_log_probs_whatever_stands_beside_it() {
    let (data, config) = (dataset(), config(&[]));
    for device in [cpu(), bare_gpu()] {
        let engine = engine(&device, &config, &data);
        let documents: Vec<Window> =
            windows(&data.train, 7, PromptAttention::Causal)[..13].to_vec();
        let want = log_probs(&engine, &data, &documents);
        let reversed: Vec<Window> = documents.iter().rev().copied().collect();
        let mut got = log_probs(&engine, &data, &reversed);
        got.reverse();
        assert!(got == want, "{}: reversed", device.info());
        for (document, want) in documents.iter().zip(&want) {
            let alone = log_probs(&engine, &data, &[*document]);
            assert!(alone[0] == *want, "{}: alone", device.info());
        }
        // Another document has others.
        assert_ne!(want[0], want[1]);
    }
}

#[test]
fn a_search_finds_the_same_however_many_prompts_it_has() {
    let data = dataset();
    let found = |device: &DeviceRef, decode: &str, batch: usize| {
        let config = config(&[&format!("rl.decode={decode}")]);
        let model = engine(device, &config, &data).model;
        let decoding = Decoding::rollout(&config, &data, batch);
        let mut searcher = Searcher::new(&model, &data, &decoding).unwrap();
        let histories: Vec<&[u32]> = data.test[..12].iter().map(|e| &e.history[..]).collect();
        let mut out: Vec<(u32, u32)> = Vec::new();
        for (number, part) in histories.chunks(batch).enumerate() {
            let first = (number * batch) as u32;
            let decoded = searcher
                .search(&model, &data.catalog, part, 3, first)
                .unwrap();
            let candidates = decoded.iter().flat_map(|d| &d.candidates);
            out.extend(candidates.map(|c| (c.sid, c.logp.to_bits())));
        }
        out
    };
    for device in [cpu(), bare_gpu()] {
        for decode in ["ved", "beam", "sample"] {
            let want = found(&device, decode, 12);
            for batch in [1, 5] {
                assert!(
                    found(&device, decode, batch) == want,
                    "{}, {decode}, {batch} at once",
                    device.info()
                );
            }
        }
    }
}
