//! `vstar sid build` through the built program: from data without SIDs to a dataset that trains.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;
use vstar::catalog::Embeddings;
use vstar::data::{LoadOptions, Source, embeddings, jsonl, load, read};
use vstar::rng::{Rng, Stream};

const ITEMS: usize = 90;
const KINDS: usize = 9;
const DIM: usize = 6;

fn vstar(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vstar"));
    command.env("VSTAR_CACHE", env!("CARGO_TARGET_TMPDIR"));
    command.args(arguments).output().unwrap()
}

#[track_caller]
fn success(arguments: &[&str]) -> String {
    let output = vstar(arguments);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {message}");
    String::from_utf8(output.stdout).unwrap()
}

/// The one line a failing run ends with.
#[track_caller]
fn failure(arguments: &[&str]) -> String {
    let output = vstar(arguments);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {message}");
    let last = message.lines().last().unwrap();
    assert_eq!(message.matches("error:").count(), 1, "{message}");
    last.strip_prefix("vstar: error: ").unwrap().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Vectors of items of a few kinds, unequally many.
fn vectors(items: usize) -> Embeddings {
    let mut draws = Rng::new(1, Stream::Test, 0, 0);
    let centres: Vec<f32> = (0..KINDS * DIM).map(|_| 3.0 * draws.normal()).collect();
    let mut data = Vec::new();
    for _ in 0..items {
        let kind = draws.below(KINDS).min(draws.below(KINDS));
        data.extend((0..DIM).map(|j| centres[kind * DIM + j] + 0.5 * draws.normal()));
    }
    Embeddings { dim: DIM, data }
}

/// A folder with items, texts and timed interactions in `raw`, and embeddings beside it.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        let raw = place.path("raw");
        fs::create_dir(&raw).unwrap();
        let item = |i| {
            format!(
                "{{\"id\": \"i{i}\", \"title\": \"Item {i}\", \"text\": \"Kind {}\"}}\n",
                i % KINDS
            )
        };
        let mut draws = Rng::new(2, Stream::Test, 0, 0);
        let mut user = |u| {
            let items: Vec<String> = (0..8)
                .map(|_| format!("\"i{}\"", draws.below(ITEMS)))
                .collect();
            let items = items.join(", ");
            format!(
                "{{\"user\": {u}, \"items\": [{items}], \"times\": [1, 2, 3, 4, 5, 6, 7, {}]}}\n",
                8 + u
            )
        };
        fs::write(
            raw.join("items.jsonl"),
            (0..ITEMS).map(item).collect::<String>(),
        )
        .unwrap();
        fs::write(
            raw.join("interactions.jsonl"),
            (0..40).map(&mut user).collect::<String>(),
        )
        .unwrap();
        place.write("e.safetensors", &vectors(ITEMS), ITEMS);
        place
    }

    /// Writes embeddings of the first so many items.
    fn write(&self, name: &str, of: &Embeddings, items: usize) -> String {
        let names: Vec<String> = (0..items).map(|i| format!("i{i}")).collect();
        fs::write(self.path(name), embeddings::bytes(of, &names, &[])).unwrap();
        text(&self.path(name)).to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The arguments of a build from `raw` to `out`, small and on the CPU.
    fn arguments(&self, out: &str, more: &[&str]) -> Vec<String> {
        let fixed = ["sid", "build", "--device", "cpu"].map(String::from);
        let of = |option: &str, name: &str| [option.to_owned(), text(&self.path(name)).to_owned()];
        let mut arguments = fixed.to_vec();
        arguments.extend(of("--data", "raw"));
        arguments.extend(of("--out", out));
        if !more.contains(&"--embeddings") {
            arguments.extend(of("--embeddings", "e.safetensors"));
        }
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        arguments
    }

    #[track_caller]
    fn build(&self, out: &str, more: &[&str]) -> (Source, Value) {
        let arguments = self.arguments(out, more);
        success(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let record = fs::read(self.path(out).join("sid.json")).unwrap();
        (
            read(&self.path(out)).unwrap(),
            serde_json::from_slice(&record).unwrap(),
        )
    }

    #[track_caller]
    fn refuse(&self, more: &[&str]) -> String {
        let arguments = self.arguments("refused", more);
        let line = failure(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(!self.path("refused").exists());
        line
    }
}

fn distinct(source: &Source) -> usize {
    let sids = source.items.codes.chunks(source.items.levels);
    sids.collect::<HashSet<_>>().len()
}

#[test]
fn raw_data_becomes_a_dataset_that_trains() {
    let place = Place::new();
    let raw = text(&place.path("raw")).to_owned();
    let told = success(&["data", "--data", &raw]);
    assert!(told.contains("none yet: `vstar sid build`"), "{told}");
    let refused = failure(&["train", "--device", "cpu", "--data", &raw]);
    assert!(refused.contains("vstar sid build"), "{refused}");
    let (made, record) = place.build("sid", &["--levels", "2", "--codes", "8"]);
    let raw = read(&place.path("raw")).unwrap();
    assert_eq!((made.users, made.log), (raw.users, raw.log));
    assert_eq!(
        (made.items.titles, made.items.texts),
        (raw.items.titles, raw.items.texts)
    );
    assert_eq!(made.items.embeddings.unwrap().data, vectors(ITEMS).data);
    for (key, want) in [("method", "residual-kmeans"), ("collisions", "digit")] {
        assert_eq!(record[key].as_str(), Some(want));
    }
    // A digit was needed, and left none.
    assert!(record["collisions_before"]["items"].as_u64() > Some(0));
    assert_eq!(record["collisions_after"]["items"].as_u64(), Some(0));
    let data = text(&place.path("sid")).to_owned();
    assert!(success(&["data", "--data", &data]).contains("items"));
    let out = place.path("run");
    let mut train = vec![
        "train",
        "--device",
        "cpu",
        "--data",
        &data,
        "--out",
        text(&out),
    ];
    train.extend([
        "sft.max_steps=2",
        "rl.steps=2",
        "eval.max_users=10",
        "model.layers=1",
    ]);
    success(&train);
    assert!(out.join("result.json").is_file());
}

#[test]
fn kinds_are_told_apart_by_the_first_code() {
    let place = Place::new();
    let (made, record) = place.build("sid", &["--levels", "2", "--codes", "9,4"]);
    let first = |item: usize| made.items.codes[item * made.items.levels];
    // Pairs that are near have one first code far more often than others.
    let embeddings = vectors(ITEMS);
    let distance = |a: usize, b: usize| -> f32 {
        let pairs = embeddings
            .row(a as u32)
            .iter()
            .zip(embeddings.row(b as u32));
        pairs.map(|(a, b)| (a - b).powi(2)).sum()
    };
    let (mut near, mut far) = ([0, 0], [0, 0]);
    for a in 0..ITEMS {
        for b in 0..a {
            let of = if distance(a, b) < 8.0 {
                &mut near
            } else {
                &mut far
            };
            of[0] += (first(a) == first(b)) as u32;
            of[1] += 1;
        }
    }
    let share = |[same, all]: [u32; 2]| same as f64 / all as f64;
    assert!(share(near) > 0.6 && share(far) < 0.1, "{near:?} {far:?}");
    let errors: Vec<f64> = (0..2)
        .map(|l| record["levels"][l]["error"].as_f64().unwrap())
        .collect();
    assert!(errors[0] < 0.3 && errors[1] < errors[0], "{errors:?}");
}

#[test]
fn every_method_and_resolution_gives_what_it_says() {
    let place = Place::new();
    let small = ["--levels", "2", "--codes", "8"];
    let mut codes = BTreeMap::new();
    for method in ["residual-kmeans", "balanced", "rqvae", "random"] {
        for (resolution, levels) in [("digit", 3), ("nearest", 2), ("keep", 2)] {
            // 64 SIDs hold 90 items in no way.
            let sizes = if resolution == "nearest" { "24" } else { "8" };
            let out = format!("{method}-{resolution}");
            let more = [
                "--method",
                method,
                "--levels",
                "2",
                "--codes",
                sizes,
                "--collisions",
                resolution,
            ];
            let (made, _) = place.build(&out, &more);
            let digit_needed = method != "random" || resolution == "digit";
            assert_eq!(
                made.items.levels,
                if digit_needed { levels } else { 2 },
                "{out}"
            );
            assert_eq!(distinct(&made) == ITEMS, resolution != "keep", "{out}");
            codes.insert(out, made.items.codes);
        }
    }
    assert_ne!(codes["residual-kmeans-keep"], codes["balanced-keep"]);
    let mut sizes = [0; 8];
    for sid in codes["balanced-keep"].chunks(2) {
        sizes[sid[0] as usize] += 1;
    }
    // 90 / 8 and a tenth more; without a bound the kinds are unequal.
    assert!(sizes.iter().all(|&size| size <= 13), "{sizes:?}");
    let (atomic, _) = place.build("atomic", &["--method", "atomic"]);
    assert_eq!((atomic.items.levels, distinct(&atomic)), (1, ITEMS));

    let (again, _) = place.build(
        "again",
        &[&small[..], &["--method", "rqvae", "--collisions", "keep"]].concat(),
    );
    assert_eq!(again.items.codes, codes["rqvae-keep"], "the same seed");
    let (other, _) = place.build(
        "other",
        &[
            &small[..],
            &["--method", "rqvae", "--collisions", "keep", "--seed", "2"],
        ]
        .concat(),
    );
    assert_ne!(other.items.codes, codes["rqvae-keep"], "another seed");
}

#[test]
fn a_split_by_time_is_kept() {
    let place = Place::new();
    let row = |t: usize| {
        format!("{{\"user\": 1, \"history\": [\"i3\", \"i4\"], \"target\": \"i{t}\"}}\n")
    };
    fs::write(place.path("raw/valid.jsonl"), row(5)).unwrap();
    fs::write(place.path("raw/test.jsonl"), row(6)).unwrap();
    place.build("sid", &["--codes", "8"]);
    let data = load(Some(&place.path("sid")), LoadOptions::default()).unwrap();
    assert_eq!((data.valid[0].target, data.test[0].target), (5, 6));
    assert_eq!(data.test[0].history, [3, 4]);
    assert_eq!(data.train.len(), 40);
}

#[test]
fn what_cannot_be_built_is_one_line() {
    let place = Place::new();
    let short = place.write("short.safetensors", &vectors(ITEMS - 1), ITEMS - 1);
    let mut broken = vectors(ITEMS);
    broken.data[7 * DIM + 2] = f32::NAN;
    let broken = place.write("nan.safetensors", &broken, ITEMS);
    let few = ["--levels", "2", "--codes", "4"];
    for (more, wanted) in [
        (
            vec!["--embeddings", &short],
            "should be [90, dim], a row for each item",
        ),
        (
            vec!["--embeddings", &broken],
            "the row of item \"i7\" is not finite",
        ),
        (
            [&few[..], &["--collisions", "nearest"]].concat(),
            "more than the last level's 4",
        ),
        (
            [&few[..], &["--collisions", "digit"]].concat(),
            "items share an SID, more than the 4 codes",
        ),
        (
            [&few[..], &["--method", "random", "--collisions", "nearest"]].concat(),
            "share SIDs",
        ),
        (
            vec!["--codes", "8,8", "--levels", "3"],
            "--codes has 2 numbers for 3 levels",
        ),
        (vec!["--codes", "0"], "1 or more"),
        (
            vec!["--method", "atomic", "--levels", "1"],
            "leave out --levels",
        ),
    ] {
        let line = place.refuse(&more);
        assert!(line.contains(wanted), "{more:?}: {line}");
    }
    let out = text(&place.path("raw")).to_owned();
    let mut arguments = place.arguments("raw", &["--codes", "8"]);
    arguments.push("--seed=2".into());
    let line = failure(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(
        line.contains(&out) && line.contains("is there already"),
        "{line}"
    );

    // Without any embeddings.
    let (data, made) = (place.path("raw"), place.path("made"));
    let line = failure(&["sid", "build", "--data", text(&data), "--out", text(&made)]);
    assert!(line.contains("vstar embed"), "{line}");
    let mut source = read(&data).unwrap();
    source.items.embeddings = Some(vectors(ITEMS));
    let own = place.path("own");
    fs::create_dir(&own).unwrap();
    jsonl::write(&own, &source).unwrap();
    success(&[
        "sid",
        "build",
        "--device",
        "cpu",
        "--data",
        text(&own),
        "--out",
        text(&made),
        "--codes",
        "16",
    ]);
}
