//! Runs that are killed at random moments, gone on with, and compared with one that was left alone.
//!
//!     VSTAR_KILLS=100 cargo test --release --test kill -- --nocapture

#[path = "support/remains.rs"]
mod remains;
#[path = "support/toy.rs"]
mod toy;

use remains::remains;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vstar::rng::{Rng, Stream};

/// Checkpoints, validations, both stages and the final evaluation in every second or so.
const SETTINGS: [&str; 6] = [
    "sft.ema=0.9",
    "sft.patience=0",
    "rl.eval_every=4",
    "run.checkpoint_every=2",
    "run.keep_checkpoints=3",
    "eval.baselines=false",
];

fn vstar(arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vstar"));
    command.env("VSTAR_CACHE", env!("CARGO_TARGET_TMPDIR"));
    command.args(arguments);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Whether it is done within `limit`; killed if not.
fn ends(mut child: Child, limit: Duration) -> bool {
    let start = Instant::now();
    while start.elapsed() < limit {
        if child.try_wait().unwrap().is_some() {
            let output = child.wait_with_output().unwrap();
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{message}");
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    false
}

#[test]
fn a_run_killed_at_any_moment_goes_on_with_the_same_bits() {
    kill(12, &["--device", "cpu"], &["sft.epochs=8", "rl.steps=24"]);
}

/// In one form, because forms are measured: a run that is killed before its first checkpoint may choose others. Not cut, because
/// how work is cut is measured too, and records count it.
#[test]
fn a_run_on_a_gpu_killed_at_any_moment_goes_on_with_the_same_bits() {
    let device = ["--device", "gpu", "--form", "direct"];
    let settings = ["sft.epochs=4", "rl.steps=10", "device.max_launch_ms=0"];
    kill(6, &device, &settings);
}

/// Kills runs `kills` times, or as often as is asked for.
fn kill(kills: usize, device: &[&str], length: &[&str]) {
    let kills = std::env::var("VSTAR_KILLS").map_or(kills, |n| n.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("toy");
    std::fs::create_dir(&data).unwrap();
    toy::write(&data);
    let start = |out: &Path| {
        let (data, out) = (data.to_str().unwrap(), out.to_str().unwrap());
        let begin = ["train", "--data", data, "--out", out];
        vstar(&[&begin[..], device, toy::SETTINGS, &SETTINGS, length].concat())
    };
    let alone = folder.path().join("alone");
    let began = Instant::now();
    assert!(ends(start(&alone), Duration::from_secs(600)));
    let whole = began.elapsed();
    let want = remains(&alone);

    let mut rng = Rng::new(1, Stream::Test, 0, 0);
    let (mut killed, mut runs) = (0, 0);
    while killed < kills {
        runs += 1;
        let out = folder.path().join(format!("killed-{runs}"));
        loop {
            // Before its configuration is there, a folder is none to go on with, and free.
            let child = match out.join("config.toml").exists() {
                true => vstar(&[&["train", "--resume", out.to_str().unwrap()], device].concat()),
                false => start(&out),
            };
            if ends(child, whole.mul_f32(0.6 * rng.uniform())) {
                break;
            }
            killed += 1;
        }
        let got = remains(&out);
        let files = want.keys().chain(got.keys());
        let differ: Vec<&String> = files
            .filter(|name| want.get(*name) != got.get(*name))
            .collect();
        assert!(differ.is_empty(), "run {runs}: {differ:?}");
        std::fs::remove_dir_all(out).unwrap();
    }
    println!("{device:?}: killed {killed} times in {runs} runs of {whole:.1?}");
}
