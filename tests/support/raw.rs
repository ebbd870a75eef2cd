//! A folder of raw files, and what it gives.
#![allow(dead_code)] // Not every test uses all of it.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;
use vstar::data::import::{Card, Options, Watch, Window, import};
use vstar::data::{Protocol, Source};
use vstar::rng::{Rng, Stream};

pub const LEAVE_ONE_OUT: Options = Options {
    k_core: 1,
    window: Window {
        from: None,
        until: None,
    },
    split: Protocol::LeaveOneOut,
    seed: 1,
};

pub fn core(k_core: u32) -> Options {
    Options {
        k_core,
        ..LEAVE_ONE_OUT
    }
}

/// Adds up what it is told.
#[derive(Default)]
pub struct Count {
    pub total: u64,
    pub read: u64,
}

impl Watch for Count {
    fn total(&mut self, bytes: u64) {
        self.total += bytes;
    }
    fn file(&mut self, _: &str) {}
    fn read(&mut self, bytes: u64) {
        self.read += bytes;
    }
}

/// A folder for raw files.
pub struct Raw(pub TempDir);

impl Raw {
    pub fn new() -> Raw {
        Raw(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    /// Writes a file, compressed if its name says so.
    pub fn write(self, file: &str, text: impl AsRef<[u8]>) -> Raw {
        let mut bytes = text.as_ref().to_vec();
        if file.ends_with(".gz") {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(&bytes).unwrap();
            bytes = encoder.finish().unwrap();
        }
        fs::write(self.path(file), bytes).unwrap();
        self
    }

    pub fn import(&self, options: &Options) -> anyhow::Result<(Source, Card)> {
        let mut count = Count::default();
        let made = import(&[self.0.path().into()], options, "toy", "", &mut count);
        if made.is_ok() {
            assert_eq!(count.read, count.total, "all that was announced is read");
        }
        made
    }

    /// The files are refused, in one line that holds every part of `wanted`.
    #[track_caller]
    pub fn refused(&self, options: &Options, wanted: &[&str]) {
        let error = self.import(options).expect_err("bad files were accepted");
        let text = format!("{error:#}");
        assert_eq!(text.lines().count(), 1, "{text}");
        for part in wanted {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }
}

/// User, item and time of random interactions, some of them repeated, many of the same instant.
pub fn log(seed: u32) -> Vec<(usize, usize, i64)> {
    let mut rng = Rng::new(21, Stream::Test, seed, 0);
    (0..700)
        .map(|_| {
            let item = rng.below(40) * rng.below(40) / 40;
            (
                rng.below(60),
                item,
                1_400_000_000 + 86_400 * rng.below(50) as i64,
            )
        })
        .collect()
}

/// A line for each row; `{u}`, `{i}`, `{t}` and `{ms}` stand for user, item, seconds and milliseconds.
pub fn lines(log: &[(usize, usize, i64)], form: &str) -> String {
    let mut text = String::new();
    for (user, item, time) in log {
        let line = form
            .replace("{u}", &user.to_string())
            .replace("{i}", &item.to_string())
            .replace("{ms}", &format!("{time}789"))
            .replace("{t}", &time.to_string());
        writeln!(text, "{line}").unwrap();
    }
    text
}

pub const REVIEW_2014: &str = r#"{"reviewerID": "{u}", "asin": "{i}", "overall": 5.0, "reviewText": "a\"é", "unixReviewTime": {t}}"#;
pub const REVIEW_2018: &str = r#"{"overall": 5.0, "verified": true, "reviewerID": "{u}", "asin": "{i}", "unixReviewTime": {t}}"#;
pub const REVIEW_2023: &str =
    r#"{"rating": 5.0, "asin": "x", "parent_asin": "{i}", "user_id": "{u}", "timestamp": {ms}}"#;
