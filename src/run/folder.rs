//! The run folder: one folder that says what was asked, what happened and what came of it.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::checkpoint::Checkpoints;
use super::curves;
use super::disk::{atomic_write, partial};
use super::metrics::{Entry, Metrics};
use super::state::{Stage, State};
use crate::calendar;
use crate::config::Config;

const CONFIG: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";
const CHECKPOINTS: &str = "checkpoints";
const CURVES: &str = "curves.svg";
const TEST_USERS: &str = "test_users.safetensors";
const RESULT: &str = "result.json";
const README_FILE: &str = "README.txt";
const LOCK: &str = ".lock";

const README: &str = "\
This folder holds one run of vstar.

config.toml     every setting of the run; `vstar train --config` reads it
metrics.jsonl   one JSON object for every step, written as the run goes on
curves.svg      its figures over the steps of each stage; there once the run is done
checkpoints/    <stage>-<step>/: model, optimiser and state.json, the latest few;
                best-sft and best-rl name the best checkpoint of each stage
result.json     every final figure, with protocol, seed and device; there once the run is done
.lock           held by the process that works here

Go on with an interrupted run:   vstar train --resume THIS_FOLDER
Evaluate its best model:         vstar eval --model THIS_FOLDER
";

/// An existing run folder.
#[derive(Debug)]
pub struct RunFolder {
    root: PathBuf,
    /// Held by the process that works in it; the system lets go of it when the process ends, however it ends.
    _hold: Option<File>,
}

impl RunFolder {
    /// A free name for a run of today: `runs/<UTC time>-<data set>`.
    pub fn default_path(dataset: &str) -> PathBuf {
        free_path(dataset, SystemTime::now(), |path| !path.exists())
    }

    /// Makes the folder of a new run, with its `config.toml` and `README.txt`, and takes hold of it.
    ///
    /// # Errors
    /// The path is taken by anything but an empty folder, or cannot be written, or another process has hold of it.
    pub fn create(root: &Path, config: &Config) -> Result<RunFolder> {
        let shown = root.display();
        // What a run leaves that ended before it had its configuration.
        let (readme, config_path) = (root.join(README_FILE), root.join(CONFIG));
        let begun = |path: &Path| {
            path == root.join(LOCK)
                || path == partial(&readme)
                || path == partial(&config_path)
                || path == readme && fs::read(path).is_ok_and(|text| text == README.as_bytes())
        };
        match fs::read_dir(root) {
            Ok(entries) => {
                let mut paths = entries.flatten().map(|entry| entry.path());
                if !paths.all(|path| begun(&path)) {
                    bail!(
                        "the run folder {shown} is not empty: give another --out, or go on with that run by --resume {shown}"
                    );
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot use the run folder {shown}"));
            }
        }
        fs::create_dir_all(root).with_context(|| format!("cannot make the run folder {shown}"))?;
        let folder = RunFolder::held(root)?;
        atomic_write(&root.join(README_FILE), README.as_bytes())?;
        // Last, because it is what makes the folder a run folder.
        atomic_write(&root.join(CONFIG), config.resolved_toml().as_bytes())?;
        Ok(folder)
    }

    /// The folder of a run, whether there is one or not.
    pub fn at(root: &Path) -> RunFolder {
        RunFolder {
            root: root.to_owned(),
            _hold: None,
        }
    }

    /// Takes hold of the folder for this process alone.
    fn held(root: &Path) -> Result<RunFolder> {
        let shown = root.display();
        let file = File::create(root.join(LOCK))
            .with_context(|| format!("cannot write in the run folder {shown}"))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => bail!(
                "the run folder {shown} is in use by another process: wait until that has ended, or give another --out"
            ),
            // Some network file systems have no locks.
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {}
            outcome => outcome.with_context(|| format!("cannot take hold of {shown}"))?,
        }
        Ok(RunFolder {
            root: root.to_owned(),
            _hold: Some(file),
        })
    }

    /// The folder of an earlier run, to go on with it: takes hold of it.
    ///
    /// # Errors
    /// It is no run folder, cannot be written, or another process has hold of it.
    pub fn resume(root: &Path) -> Result<RunFolder> {
        RunFolder::open(root)?;
        RunFolder::held(root)
    }

    /// The folder of an earlier run, to read from it.
    pub fn open(root: &Path) -> Result<RunFolder> {
        let folder = RunFolder::at(root);
        if !folder.config_path().is_file() {
            bail!("{} is not a run folder: it has no {CONFIG}", root.display());
        }
        Ok(folder)
    }

    /// Removes the folder of a run that failed before anything came of it: it holds no record and no checkpoint.
    /// Only what a run makes is removed, so files of anyone else keep the folder.
    pub fn discard_unused(self) -> Result<()> {
        // Nobody can remove an open file everywhere.
        drop(self._hold);
        let metrics = self.root.join(METRICS);
        let recorded = fs::metadata(&metrics).is_ok_and(|file| file.len() > 0);
        let checkpoints = self.root.join(CHECKPOINTS);
        if recorded || fs::read_dir(&checkpoints).is_ok_and(|mut inside| inside.next().is_some()) {
            return Ok(());
        }
        let remove = || -> std::io::Result<()> {
            for file in [METRICS, README_FILE, CONFIG, LOCK] {
                let path = self.root.join(file);
                if path.exists() {
                    fs::remove_file(path)?;
                }
            }
            if checkpoints.exists() {
                fs::remove_dir(&checkpoints)?;
            }
            if fs::read_dir(&self.root)?.next().is_none() {
                fs::remove_dir(&self.root)?;
            }
            Ok(())
        };
        remove().with_context(|| format!("cannot remove the unused {}", self.root.display()))
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `config.toml`, the resolved configuration, for [`Config::load`].
    pub fn config_path(&self) -> PathBuf {
        self.root.join(CONFIG)
    }

    /// `result.json`, there once the run is done.
    pub fn result_path(&self) -> PathBuf {
        self.root.join(RESULT)
    }

    /// The run's checkpoints, of which the latest `keep` stay.
    pub fn checkpoints(&self, keep: usize) -> Result<Checkpoints> {
        Checkpoints::open(&self.root.join(CHECKPOINTS), keep)
    }

    /// `metrics.jsonl`: empty for a new run, cut back to where `resumed` stands for another.
    pub fn metrics(&self, resumed: Option<&State>) -> Result<Metrics> {
        let path = self.root.join(METRICS);
        match resumed {
            None => Metrics::create(&path),
            Some(state) => Metrics::resume(&path, state.stage, state.step),
        }
    }

    /// `test_users.safetensors`: what an ablation keeps of every test user.
    pub fn test_users_path(&self) -> PathBuf {
        self.root.join(TEST_USERS)
    }

    /// The records of `metrics.jsonl`.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        Metrics::read(&self.root.join(METRICS))
    }

    /// Draws `metrics.jsonl` in `curves.svg`, if there is anything in it.
    pub fn draw_curves(&self, title: &str) -> Result<()> {
        match curves::svg(title, &self.entries()?)? {
            Some(svg) => atomic_write(&self.root.join(CURVES), svg.as_bytes()),
            None => Ok(()),
        }
    }

    /// Writes `result.json`.
    pub fn write_result(&self, result: &Value) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(result)?;
        text.push(b'\n');
        atomic_write(&self.result_path(), &text)
    }
}

/// A model on disk, and the configuration it was trained with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The folder with the weights.
    pub checkpoint: PathBuf,
    /// The `config.toml` of its run; none for a checkpoint from elsewhere.
    pub config: Option<PathBuf>,
}

/// Finds the model that `--model DIR` means: in a run folder the best of the last stage that has one
/// (the baseline's aside), else the latest; any other folder is a checkpoint itself.
///
/// # Errors
/// There is no such folder, or the run has no checkpoint yet.
pub fn locate_model(folder: &Path) -> Result<Located> {
    let shown = folder.display();
    if !folder.is_dir() {
        bail!("there is no model folder {shown}");
    }
    let Ok(run) = RunFolder::open(folder) else {
        // <run>/checkpoints/<checkpoint>: the run's configuration is two folders up.
        let run = folder.join("..").join("..");
        let inside = fs::canonicalize(folder.join(".."))
            .is_ok_and(|parent| parent.file_name().is_some_and(|name| name == CHECKPOINTS));
        let run = RunFolder::open(&run).ok().filter(|_| inside);
        return Ok(Located {
            checkpoint: folder.to_owned(),
            config: run.map(|run| run.config_path()),
        });
    };
    let checkpoints = Checkpoints::reading(&run.root.join(CHECKPOINTS));
    let mut found = None;
    for stage in Stage::ALL.into_iter().rev() {
        if found.is_none() && stage != Stage::Grpo {
            found = checkpoints.best(stage)?;
        }
    }
    if found.is_none() {
        found = checkpoints.latest().ok().flatten();
    }
    Ok(Located {
        checkpoint: found.with_context(|| format!("the run {shown} has no checkpoint yet"))?,
        config: Some(run.config_path()),
    })
}

/// The first free name of a run that begins at `now`. A clock may go backwards, and may stand before 1970: the name is all
/// that depends on it.
fn free_path(dataset: &str, now: SystemTime, free: impl Fn(&Path) -> bool) -> PathBuf {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let base = format!("{}-{dataset}", timestamp(since.as_secs()));
    let numbered = (2..).map(|number| format!("{base}-{number}"));
    std::iter::once(base.clone())
        .chain(numbered)
        .map(|name| Path::new("runs").join(name))
        .find(|path| free(path))
        .expect("one of endless names is free")
}

/// `yyyymmdd-hhmmss` in UTC of a number of seconds since 1970.
fn timestamp(seconds: u64) -> String {
    let [year, month, day] = calendar::date(seconds as i64);
    let second = seconds % 86_400;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_clock_that_goes_backwards_takes_no_ones_name() {
        let second = |s| UNIX_EPOCH + Duration::from_secs(s);
        let before = UNIX_EPOCH - Duration::from_secs(7);
        let mut taken: Vec<PathBuf> = Vec::new();
        let names = [
            second(59),
            second(1),
            second(59),
            before,
            before,
            second(59),
        ]
        .map(|now| {
            let path = free_path("toy", now, |path| !taken.contains(&path.to_owned()));
            taken.push(path.clone());
            path.to_str().unwrap().replace('\\', "/")
        });
        assert_eq!(
            names,
            [
                "runs/19700101-000059-toy",
                "runs/19700101-000001-toy",
                "runs/19700101-000059-toy-2",
                "runs/19700101-000000-toy",
                "runs/19700101-000000-toy-2",
                "runs/19700101-000059-toy-3",
            ]
        );
    }

    #[test]
    fn timestamps_follow_the_calendar() {
        // Reference values: `date -u -d @SECONDS +%Y%m%d-%H%M%S`.
        for (seconds, expected) in [
            (0, "19700101-000000"),
            (951_782_399, "20000228-235959"),
            (951_782_400, "20000229-000000"),
            (951_868_800, "20000301-000000"),
            (1_735_689_599, "20241231-235959"),
            (4_107_542_400, "21000301-000000"),
        ] {
            assert_eq!(timestamp(seconds), expected);
        }
    }
}
