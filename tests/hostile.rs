//! Hostile input: the seeds of `fuzz/seeds`, changes of them, and inputs too long for a file of seeds, through the functions
//! that libFuzzer calls (`fuzz/src/targets.rs`). `scripts/fuzz` searches further. Alone in its program, as it counts what
//! every thread holds.

#[path = "support/peak.rs"]
mod peak;
#[path = "../fuzz/src/targets.rs"]
mod targets;

use std::fs;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;

use flate2::Compression;
use flate2::write::GzEncoder;
use targets::{TARGETS, imported, memory};
use tempfile::TempDir;
use vstar::catalog::{Catalog, Items};
use vstar::data::histories::Histories;
use vstar::rng::{Rng, Stream};

#[global_allocator]
static ALLOCATOR: peak::Peak = peak::Peak;

/// What is counted is of one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Changes of each seed that are tried.
const CHANGES: u32 = 250;

/// Runs the target called `name`, which may neither panic nor hold more memory than its input is worth.
#[track_caller]
fn survives(name: &str, folder: &Path, bytes: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let (outcome, held) =
        peak::of(|| catch_unwind(AssertUnwindSafe(|| target(folder, bytes))).is_ok());
    let start = &bytes[..bytes.len().min(8192)];
    assert!(outcome, "{name} panics at \"{}\"", start.escape_ascii());
    assert!(
        held <= memory(bytes.len()),
        "{name} holds {held} bytes for {} bytes \"{}\"",
        bytes.len(),
        start.escape_ascii()
    );
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let files = fs::read_dir(folder.join(name)).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// What stands in for a piece of a file.
const EXTREMES: [&str; 12] = [
    "0",
    "-1",
    "1e300",
    "1e-300",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "1152921504606846976",
    "18446744073709551616",
    "null",
    "\"../../x\"",
    "\n====\n",
];

/// One of `seeds`, changed in a few places.
fn changed(rng: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[rng.below(seeds.len())].clone();
    for _ in 0..=rng.below(4) {
        let at = rng.below(bytes.len() + 1);
        let end = (at + rng.below(24)).min(bytes.len());
        match rng.below(7) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => bytes[at..end].iter_mut().for_each(|byte| *byte ^= 1),
            3 => bytes[at..end].fill(rng.below(256) as u8),
            4 => {
                let again = bytes[at..end].repeat(1 + rng.below(3));
                drop(bytes.splice(at..at, again));
            }
            5 => {
                let other = &seeds[rng.below(seeds.len())];
                bytes.truncate(at);
                bytes.extend(&other[rng.below(other.len())..]);
            }
            _ => {
                // A number, if there is one behind `at`.
                let digit = |from: usize| bytes[from..].iter().position(u8::is_ascii_digit);
                let from = digit(at).map_or(at, |first| at + first);
                let digits = bytes[from..].iter().take_while(|b| b.is_ascii_digit());
                let end = from + digits.count();
                let extreme = EXTREMES[rng.below(EXTREMES.len())];
                drop(bytes.splice(from..end, extreme.bytes()));
            }
        }
    }
    bytes
}

#[test]
fn seeds_and_changes_of_them() {
    let _alone = ALONE.lock();
    let root = tempfile::tempdir().unwrap();
    for (number, (name, _)) in TARGETS.iter().enumerate() {
        let folder = root.path().join(name);
        fs::create_dir(&folder).unwrap();
        let seeds = seeds(name);
        for seed in &seeds {
            survives(name, &folder, seed);
        }
        for change in 0..CHANGES * seeds.len() as u32 {
            let mut rng = Rng::new(1, Stream::Test, number as u32, change);
            survives(name, &folder, &changed(&mut rng, &seeds));
        }
    }
    // Whatever ids and paths they held, nothing lies beside the targets' folders.
    let mut found: Vec<_> = fs::read_dir(root.path()).unwrap().flatten().collect();
    found.retain(|entry| !TARGETS.iter().any(|(name, _)| entry.file_name() == *name));
    assert!(found.is_empty(), "{found:?}");
}

fn gzip(text: impl Read, length: u64) -> Vec<u8> {
    let mut zip = GzEncoder::new(Vec::new(), Compression::fast());
    std::io::copy(&mut text.take(length), &mut zip).unwrap();
    zip.finish().unwrap()
}

#[test]
fn what_is_too_deep_or_too_long() {
    let _alone = ALONE.lock();
    let try_with = |name: &str, parts: &[&[u8]]| {
        let folder = TempDir::new().unwrap();
        survives(name, folder.path(), &parts.concat());
    };
    let deep = |opening: &str| opening.repeat(100_000).into_bytes();
    let million = |of: &str| of.repeat(1_000_000).into_bytes();
    let items = b"{\"id\": \"a\", \"sid\": [0]}\n====\n";
    for brackets in [deep("["), deep("{\"a\":")] {
        try_with("jsonl", &[b"{\"id\": ", &brackets]);
        try_with("jsonl", &[items, b"{\"user\": ", &brackets]);
        try_with("letter", &[&brackets, b"\n====\n", &brackets]);
        try_with("amazon", &[b"0", &brackets]);
        try_with("amazon", &[b"0{'asin': ", &brackets]);
        try_with("config", &[b"a = ", &brackets]);
        try_with("config", &[b"====\nseed=", &brackets]);
        try_with("architecture", &[&brackets]);
        try_with("histories", &[&brackets]);
        try_with("run", &[b"x = ", &brackets, b"====\n", &brackets]);
        let header = [&(brackets.len() as u64).to_le_bytes(), &*brackets].concat();
        try_with("embeddings", &[b"====\n", &header]);
    }
    try_with("config", &[&deep("a={a=")]);
    try_with("config", &[&deep("a."), b"a = 1"]);
    try_with("config", &[&deep("[a."), b"a = 1"]);
    try_with("config", &[&million("a"), b" = 1"]);
    try_with("config", &[b"====\n", &million("a"), b"=1"]);
    try_with(
        "jsonl",
        &[
            b"{\"id\": 1, \"sid\": [",
            &million("0,"),
            b"0]}\n====\n{\"user\":1,\"items\":[1,1,1]}",
        ],
    );
    try_with(
        "jsonl",
        &[
            items,
            b"{\"user\": 1, \"items\": [",
            &million("\"a\","),
            b"\"a\"]}",
        ],
    );
    try_with(
        "letter",
        &[
            b"{\"u\": [0]}====\n{\"0\": [",
            &million("\"<a_0>\","),
            b"\"<b_0>\"]}",
        ],
    );
    try_with("amazon", &[b"0", &million("[],")]);
    try_with(
        "amazon",
        &[b"0{\"asin\": \"a\", \"title\": [", &million("[],"), b"1]}"],
    );
    try_with(
        "movielens",
        &[b"0userId,movieId,rating,timestamp\n", &million("1,1,1,1\n")],
    );
    try_with("histories", &[b"[", &million("0,"), b"0]"]);
    // Of a line without end no more is held than the longest line may have.
    let endless = [b"{\"id\": \"", &*"a".repeat(17 << 20).into_bytes()].concat();
    try_with("jsonl", &[&endless]);
    try_with("amazon", &[b"0", &endless]);
}

#[test]
fn gzip_is_streamed() {
    let _alone = ALONE.lock();
    let import = |bytes: &[u8]| {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("a.json"), bytes).unwrap();
        let (made, held) = peak::of(|| imported(folder.path(), 0));
        assert!(held < 80 << 20, "{held} bytes");
        format!("{:#}", made.map(|_| ()).unwrap_err())
    };
    // A line without end, lines without anything.
    let error = import(&gzip(std::io::repeat(b'a'), 1 << 29));
    assert!(
        error.ends_with("a.json:1: a line of 16 MiB: expected one record a line"),
        "{error}"
    );
    let error = import(&gzip(std::io::repeat(b'\n'), 1 << 28));
    assert!(error.ends_with("a.json: the file is empty"), "{error}");
}

#[test]
fn a_stream_without_end_is_refused() {
    let _alone = ALONE.lock();
    let items = Items {
        names: vec!["a".into()],
        levels: 1,
        codes: vec![0],
        ..Items::default()
    };
    let catalog = Catalog::new(items).unwrap();
    let mut stream = Histories::new(std::io::repeat(b'['));
    let ((questions, fault), held) = peak::of(|| stream.batch(&catalog, 9));
    assert!(questions.is_empty());
    let fault = format!("{:#}", fault.unwrap());
    assert_eq!(
        fault,
        "stdin:1: a line of 16 MiB: expected one record a line"
    );
    assert!(held < 80 << 20, "{held} bytes");
}
