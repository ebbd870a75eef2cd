//! libFuzzer over the target that `VSTAR_FUZZ` names; `scripts/fuzz` builds and runs it. One program for all of them,
//! because it is the crate under test that takes the time to build.

#![no_main]

#[path = "../../tests/support/peak.rs"]
mod peak;
mod targets;

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use targets::{TARGETS, Target, memory};

#[global_allocator]
static ALLOCATOR: peak::Peak = peak::Peak;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("VSTAR_FUZZ").expect("VSTAR_FUZZ names a target");
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    found.expect("VSTAR_FUZZ names a known target").1
});

/// The target's folder; `scripts/fuzz` sets TMPDIR and removes it.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(std::process::id().to_string());
    std::fs::create_dir(&folder).expect("a folder to work in");
    folder
});

fuzz_target!(|bytes: &[u8]| {
    let (target, folder) = (*TARGET, &*FOLDER);
    let ((), held) = peak::of(|| target(folder, bytes));
    assert!(held <= memory(bytes.len()), "{held} bytes held");
});
