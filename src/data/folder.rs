//! A data folder: which files it holds, and in which format they are.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail, ensure};

pub(super) enum Format {
    Letter,
    MiniOneRec,
    Jsonl,
}

/// The names of the files in a data folder.
pub(super) struct Folder {
    dir: PathBuf,
    files: Vec<String>,
}

impl Folder {
    pub(super) fn open(dir: &Path) -> Result<Folder> {
        let unreadable =
            |error| anyhow!("{}: cannot read this data folder ({error})", dir.display());
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(unreadable)? {
            files.extend(entry.map_err(unreadable)?.file_name().into_string());
        }
        files.sort();
        Ok(Folder {
            dir: dir.into(),
            files,
        })
    }

    /// Its files, by name.
    pub(super) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.files.iter().map(|name| self.dir.join(name))
    }

    /// The dataset's name: that of the folder.
    pub(super) fn name(&self) -> String {
        let whole = self.dir.canonicalize().unwrap_or_else(|_| self.dir.clone());
        let name = whole.file_name().map(|name| name.to_string_lossy());
        name.map_or_else(|| "data".into(), Into::into)
    }

    /// The file called `kind` or `*.kind`, if there is one; two are an error.
    pub(super) fn find(&self, kind: &str) -> Result<Option<PathBuf>> {
        let suffix = format!(".{kind}");
        let fits = |name: &&String| *name == kind || name.ends_with(&suffix);
        let found: Vec<&String> = self.files.iter().filter(fits).collect();
        ensure!(
            found.len() < 2,
            "{}: both {} and {} could be the dataset's {kind}: keep one dataset in a folder",
            self.dir.display(),
            found[0],
            found[1]
        );
        Ok(found.first().map(|name| self.dir.join(name)))
    }

    /// [`Folder::find`] for a file the format cannot do without.
    pub(super) fn need(&self, kind: &str, because: &str) -> Result<PathBuf> {
        let Some(path) = self.find(kind)? else {
            bail!(
                "{}: no {kind} (or *.{kind}), which must stand beside {because}",
                self.dir.display()
            );
        };
        Ok(path)
    }

    /// The one format whose telling file is here.
    pub(super) fn format(&self) -> Result<Format> {
        let mut found = Vec::new();
        for (kind, format) in [
            ("inter.json", Format::Letter),
            ("info.txt", Format::MiniOneRec),
            ("items.jsonl", Format::Jsonl),
        ] {
            if let Some(path) = self.find(kind)? {
                found.push((path, format));
            }
        }
        match found.len() {
            0 => bail!(
                "{}: no dataset here: looked for *.inter.json (LETTER), *.info.txt (MiniOneRec) and items.jsonl (JSONL)",
                self.dir.display()
            ),
            1 => Ok(found.remove(0).1),
            _ => bail!(
                "{}: two datasets here, {} and {}: keep one dataset in a folder",
                self.dir.display(),
                file_name(&found[0].0),
                file_name(&found[1].0)
            ),
        }
    }
}

/// The last part of a path, for messages.
pub(super) fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}
