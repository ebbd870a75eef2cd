//! Where the numbers of another framework lie: beside the repository, not in it.

use std::io::Write;
use std::path::PathBuf;

/// The folder, if this machine has it; a line that says so if not, past the capture of the tests' output.
pub fn folder() -> Option<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/oracle");
    if folder.is_dir() {
        return Some(folder);
    }
    let line = "no folder ../shared/oracle: the comparisons with another framework were not made";
    let _ = writeln!(std::io::stderr(), "{line}");
    None
}
