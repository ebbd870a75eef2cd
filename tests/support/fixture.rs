//! Small datasets in the formats that are read, to be changed.

use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use vstar::data::{Dataset, LoadOptions, Protocol, load};

/// A copy of a fixture that a test may change.
pub struct Copy(pub TempDir);

// Not every test needs all of these.
#[allow(dead_code)]
impl Copy {
    pub fn of(fixture: &str) -> Copy {
        let copy = Copy(tempfile::tempdir().unwrap());
        copy.add(fixture)
    }

    /// Puts the files of another fixture beside those already there.
    pub fn add(self, fixture: &str) -> Copy {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data");
        for file in fs::read_dir(from.join(fixture)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), self.path(file.file_name().to_str().unwrap())).unwrap();
        }
        self
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    pub fn write(self, file: &str, text: &str) -> Copy {
        fs::write(self.path(file), text).unwrap();
        self
    }

    pub fn remove(self, file: &str) -> Copy {
        fs::remove_file(self.path(file)).unwrap();
        self
    }

    /// Replaces the one occurrence of `from` in a file.
    pub fn edit(self, file: &str, from: &str, to: &str) -> Copy {
        let text = fs::read_to_string(self.path(file)).unwrap();
        assert_eq!(text.matches(from).count(), 1, "{from:?} in {file}");
        self.write(file, &text.replace(from, to))
    }

    /// Cuts a file before the one occurrence of `from`.
    pub fn cut(self, file: &str, from: &str) -> Copy {
        let text = fs::read_to_string(self.path(file)).unwrap();
        assert_eq!(text.matches(from).count(), 1, "{from:?} in {file}");
        self.write(file, text.split(from).next().unwrap())
    }

    pub fn load_with(&self, options: LoadOptions) -> anyhow::Result<Dataset> {
        load(Some(self.0.path()), options)
    }

    pub fn load(&self) -> Dataset {
        self.load_with(LoadOptions::default()).unwrap()
    }

    /// The dataset is refused, in one line that holds every part of `wanted`.
    #[track_caller]
    pub fn refused(&self, wanted: &[&str]) {
        self.refused_with(LoadOptions::default(), wanted);
    }

    #[track_caller]
    pub fn refused_with(&self, options: LoadOptions, wanted: &[&str]) {
        let error = self
            .load_with(options)
            .expect_err("a broken dataset was accepted");
        let text = format!("{error:#}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(
            text.starts_with(self.0.path().to_str().unwrap()),
            "names no file: {text}"
        );
        for part in wanted {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }
}

pub fn jsonl_time_split() -> Copy {
    Copy::of("jsonl")
        .write(
            "valid.jsonl",
            "{\"user\": \"ann\", \"history\": [\"pen\"], \"target\": 7}\n",
        )
        .write(
            "test.jsonl",
            "\n{\"user\": \"eve\", \"history\": [\"ink\", 7], \"target\": \"cup\"}\n",
        )
}

pub fn protocol(protocol: Protocol) -> LoadOptions {
    LoadOptions {
        protocol: Some(protocol),
        ..LoadOptions::default()
    }
}
