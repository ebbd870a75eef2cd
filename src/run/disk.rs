//! Writing so that a crash leaves the old or the new, never a part.
//!
//! Everything is written under a hidden temporary name beside its destination, flushed to the disk,
//! and renamed. A temporary left by a crash is overwritten by the next write.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Replaces the file `path` by `bytes`, durably: whoever reads it sees the old or the new content.
///
/// # Errors
/// The file cannot be written; `path` is then as it was.
pub fn atomic_write(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = partial(path);
    let write = || -> std::io::Result<()> {
        // Made anew: not written through a link that somebody else put there.
        let _ = fs::remove_file(&partial);
        let mut file = File::create_new(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        sync_folder(parent(path))
    };
    write()
        .inspect_err(|_| drop(fs::remove_file(&partial)))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// That [`write_folder`] may make `path`, for who has much to do before.
///
/// # Errors
/// It is taken by anything but an empty folder.
pub fn ensure_free(path: &Path) -> Result<()> {
    let taken = fs::read_dir(path).is_ok_and(|mut inside| inside.next().is_some());
    ensure!(
        !taken && !path.is_file(),
        "{} is there already: name another folder, or remove it",
        path.display()
    );
    Ok(())
}

/// Makes the folder `path`, durably: `fill` writes into a temporary folder that becomes `path` when all is there.
///
/// # Errors
/// `path` is taken by anything but an empty folder, `fill` fails, or the disk does. There is no new folder then.
pub fn write_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let shown = path.display();
    ensure_free(path)?;
    // `.` has no name to put another beside.
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let partial = partial(path);
    let prepare = || -> std::io::Result<()> {
        fs::create_dir_all(parent(path))?;
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        fs::create_dir(&partial)
    };
    let put_in_place = || -> std::io::Result<()> {
        sync_tree(&partial)?;
        if path.exists() {
            fs::remove_dir(path)?;
        }
        fs::rename(&partial, path)?;
        sync_folder(parent(path))
    };
    prepare().with_context(|| format!("cannot make {shown}"))?;
    fill(&partial)
        .and_then(|()| put_in_place().with_context(|| format!("cannot write {shown}")))
        .inspect_err(|_| drop(fs::remove_dir_all(&partial)))
}

/// The temporary name under which `path` is prepared.
pub(super) fn partial(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial"))
}

/// The folder that `path` is in, `.` for a bare name.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Flushes every file and folder under `folder`, itself included.
pub(super) fn sync_tree(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            // Opened for writing, because Windows flushes no file that is open for reading only.
            File::options().write(true).open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(folder)
}

/// Makes renames within `folder` durable. Windows has no such call: its renames are journalled.
pub(super) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}
