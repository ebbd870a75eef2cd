//! `checkpoints/<stage>-<step>/`: written whole, the latest few and each stage's best kept.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::disk::{atomic_write, partial, sync_folder, sync_tree};
use super::state::{Stage, State};

/// The checkpoints of a run.
///
/// A checkpoint is a folder with `state.json` and whatever the writer puts there. Its name orders
/// it: by stage, then by step. The best of a stage is named by a pointer file, `best-<stage>`.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// The checkpoints under `folder`, which is made if missing, of which the latest `keep` (at
    /// least one) stay beside the best. What an interrupted [`save`](Self::save) left is cleared up, or done.
    pub fn open(folder: &Path, keep: usize) -> Result<Checkpoints> {
        let checkpoints = Checkpoints {
            folder: folder.to_owned(),
            keep: keep.max(1),
        };
        fs::create_dir_all(folder)
            .and_then(|()| checkpoints.clear_up())
            .with_context(|| format!("cannot prepare {}", folder.display()))?;
        let latest = checkpoints.latest()?;
        if let Some(state) = latest.and_then(|latest| State::load(&latest).ok()) {
            checkpoints.settle(&state)?;
        }
        Ok(checkpoints)
    }

    /// The checkpoints under `folder` for reading, with nothing made or cleared up.
    pub(super) fn reading(folder: &Path) -> Checkpoints {
        Checkpoints {
            folder: folder.to_owned(),
            keep: 1,
        }
    }

    /// Saves a checkpoint named after `state`'s stage and step, replacing one of that name, marks it
    /// if it is the best, and removes those that need not be kept. `write` fills the folder it is given with everything but
    /// the state.
    ///
    /// Returns the checkpoint's folder.
    ///
    /// # Errors
    /// `write` fails or the disk does; the checkpoints are then as before.
    pub fn save(&self, state: &State, write: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.path(state.stage, state.step);
        let partial = partial(&path);
        self.fill(&partial, state, write)
            .and_then(|()| Ok(self.put_in_place(&partial, &path)?))
            .inspect_err(|_| drop(fs::remove_dir_all(&partial)))
            .with_context(|| format!("cannot save the checkpoint {}", path.display()))?;
        self.settle(state)?;
        Ok(path)
    }

    /// What remains to be done once the checkpoint of `state` is in place.
    fn settle(&self, state: &State) -> Result<()> {
        if state.best_step == Some(state.step) {
            self.mark_best(state.stage, state.step)?;
        }
        self.prune()
            .with_context(|| format!("cannot remove old checkpoints of {}", self.shown()))
    }

    /// Points `best-<stage>` at the checkpoint of `stage` and `step`, which must exist.
    pub fn mark_best(&self, stage: Stage, step: u64) -> Result<()> {
        let path = self.path(stage, step);
        if !path.is_dir() {
            bail!("no checkpoint {} to mark as the best", path.display());
        }
        atomic_write(
            &self.pointer(stage),
            format!("{}\n", name(stage, step)).as_bytes(),
        )
    }

    /// The checkpoint marked as the best of `stage`, if one is.
    pub fn best(&self, stage: Stage) -> Result<Option<PathBuf>> {
        let pointer = self.pointer(stage);
        match fs::read_to_string(&pointer) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", pointer.display())),
            Ok(text) => {
                // A name and nothing else: not a path that leads out of the run.
                let named = parse(text.trim()).map(|(stage, step)| self.path(stage, step));
                match named.filter(|path| path.is_dir()) {
                    None => bail!("{} names a missing checkpoint", pointer.display()),
                    found => Ok(found),
                }
            }
        }
    }

    /// The checkpoint of the latest stage and step, if there is any.
    pub fn latest(&self) -> Result<Option<PathBuf>> {
        let checkpoints = self
            .list()
            .with_context(|| format!("cannot list {}", self.shown()))?;
        Ok(checkpoints
            .last()
            .map(|&(stage, step)| self.path(stage, step)))
    }

    fn fill(
        &self,
        partial: &Path,
        state: &State,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        remove_if_there(partial)?;
        fs::create_dir(partial)?;
        write(partial)?;
        state.save(partial)?;
        Ok(sync_tree(partial)?)
    }

    /// Folders cannot be swapped in one step everywhere, so a checkpoint of the same name is first
    /// moved aside; `clear_up` moves it back if the run ends in between.
    fn put_in_place(&self, partial: &Path, path: &Path) -> std::io::Result<()> {
        let aside = aside(path);
        let replaces = path.exists();
        if replaces {
            remove_if_there(&aside)?;
            fs::rename(path, &aside)?;
        }
        if let Err(error) = fs::rename(partial, path) {
            if replaces {
                fs::rename(&aside, path)?;
            }
            return Err(error);
        }
        sync_folder(&self.folder)?;
        remove_if_there(&aside)
    }

    fn clear_up(&self) -> std::io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            let name = name.to_string_lossy();
            if let Some(replaced) = name.strip_suffix(ASIDE).and_then(|n| n.strip_prefix('.')) {
                let original = self.folder.join(replaced);
                if original.exists() {
                    fs::remove_dir_all(path)?;
                } else {
                    fs::rename(path, original)?;
                }
            } else if name.starts_with('.') && name.ends_with(".partial") {
                if entry.file_type()?.is_dir() {
                    fs::remove_dir_all(path)?;
                } else {
                    fs::remove_file(path)?;
                }
            }
        }
        Ok(())
    }

    fn prune(&self) -> Result<()> {
        let mut best = Vec::new();
        for stage in Stage::ALL {
            best.extend(self.best(stage)?);
        }
        let checkpoints = self.list()?;
        let old = checkpoints.len().saturating_sub(self.keep);
        for &(stage, step) in &checkpoints[..old] {
            let path = self.path(stage, step);
            if !best.contains(&path) {
                // Never half a checkpoint under its name.
                let partial = partial(&path);
                remove_if_there(&partial)?;
                fs::rename(path, &partial)?;
                fs::remove_dir_all(partial)?;
            }
        }
        Ok(())
    }

    /// Every checkpoint, in order.
    fn list(&self) -> std::io::Result<Vec<(Stage, u64)>> {
        let mut checkpoints = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            checkpoints.extend(parse(&entry?.file_name().to_string_lossy()));
        }
        checkpoints.sort_unstable();
        Ok(checkpoints)
    }

    fn path(&self, stage: Stage, step: u64) -> PathBuf {
        self.folder.join(name(stage, step))
    }

    fn pointer(&self, stage: Stage) -> PathBuf {
        self.folder.join(format!("best-{}", stage.name()))
    }

    fn shown(&self) -> std::path::Display<'_> {
        self.folder.display()
    }
}

const ASIDE: &str = ".replaced";

fn aside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}{ASIDE}"))
}

fn name(stage: Stage, step: u64) -> String {
    format!("{}-{step:08}", stage.name())
}

fn parse(name: &str) -> Option<(Stage, u64)> {
    let (stage, step) = name.split_once('-')?;
    let parsed = (Stage::from_name(stage)?, step.parse().ok()?);
    (self::name(parsed.0, parsed.1) == name).then_some(parsed)
}

fn remove_if_there(folder: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
