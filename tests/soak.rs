//! Many steps of reinforcement learning, with validations and checkpoints: memory stays flat, and nothing is made anew.
//!
//!     VSTAR_SOAK=2000 cargo test --release --test soak -- --nocapture

#[path = "support/devices.rs"]
mod devices;
#[path = "support/folder.rs"]
mod folder;
#[path = "support/toy.rs"]
mod toy;
#[path = "support/train.rs"]
mod train;
#[path = "support/watched.rs"]
mod watched;

use devices::{bare_gpu, cpu};
use folder::in_folder;
use serde_json::Value;
use std::fs;
use std::sync::{Arc, Mutex};
use train::{config, dataset};
use vstar::device::{DeviceRef, Stream};
use vstar::learn::job;
use watched::Watched;

/// Steps of a test run; a soak has thousands.
const STEPS: usize = 60;

/// Growth that is none: the allocator's own.
const FLAT: f64 = 1.02;

/// Lavapipe of Mesa 22 keeps a kilobyte or two of every launch; the same program on that of Mesa 25 is flat
/// (docs/reliability.md).
fn driver_leaks(info: &str) -> bool {
    info.contains("llvmpipe Mesa 22.")
}

/// What was there when a stream was run.
#[derive(Clone, Copy)]
struct Sample {
    /// Bytes of the process that are in memory; 0 where the system does not say.
    resident: u64,
    /// Bytes of the device's buffers.
    device: u64,
    /// Pipelines and bind groups made so far.
    made: u64,
}

fn sample(device: &DeviceRef) -> Sample {
    let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = pages.split(' ').nth(1).map_or(0, |n| n.parse().unwrap());
    let counters = device.counters();
    Sample {
        resident: 4096 * pages,
        device: device.memory().now,
        made: counters.pipelines_created + counters.bind_groups_created,
    }
}

fn most(samples: &[Sample], of: fn(&Sample) -> u64) -> f64 {
    samples.iter().map(of).max().unwrap() as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn soak(device: DeviceRef, steps: usize) {
    let info = device.info().to_string();
    let settings = [
        "sft.max_steps=3".to_string(),
        format!("rl.steps={steps}"),
        "rl.ref_sync_steps=7".into(),
        "rl.sft_weight=0.5".into(),
        "rl.ema=0.9".into(),
        format!("rl.eval_every={}", (steps / 10).max(1)),
        "run.checkpoint_every=10".into(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let (data, config) = (dataset(), config(&settings));
    let samples = Arc::new(Mutex::new(Vec::new()));
    let taken = samples.clone();
    let run = move |device: &DeviceRef, stream: &Stream| {
        taken.lock().unwrap().push(sample(device));
        device.run(stream)
    };
    let device: DeviceRef = Arc::new(Watched { device, run });
    let stages = job::Stages {
        sft: true,
        rl: true,
        eval: false,
    };
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("run");
    in_folder(&root, &config, &data, |context| {
        job::run(&device, context, stages, None)
    })
    .unwrap();
    let samples = samples.lock().unwrap();
    let (early, late) = (
        &samples[samples.len() / 4..samples.len() / 2],
        &samples[samples.len() * 3 / 4..],
    );
    let growth = most(late, |s| s.resident) / most(early, |s| s.resident).max(1.0);
    let buffers = most(late, |s| s.device) / most(early, |s| s.device);
    let metrics = fs::read_to_string(root.join("metrics.jsonl")).unwrap();
    let records = metrics
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let times: Vec<f64> = records
        .filter(|r| r["stage"] == "rl")
        .filter_map(|r| r["step_time"].as_f64())
        .collect();
    assert_eq!(times.len(), steps);
    let quarter = steps / 4;
    let slower =
        median(times[3 * quarter..].to_vec()) / median(times[quarter..2 * quarter].to_vec());
    println!(
        "{info}: {steps} steps; last quarter to second: host memory {growth:.4} ({:.0} MiB), buffers {buffers:.4} ({:.1} MiB), \
         step time {slower:.3}; {} things made in the last three quarters",
        most(late, |s| s.resident) / 1048576.0,
        most(late, |s| s.device) / 1048576.0,
        late[late.len() - 1].made - early[0].made
    );
    assert!(
        growth <= FLAT || driver_leaks(&info),
        "{info}: host memory grew by {growth}"
    );
    assert_eq!(buffers, 1.0, "{info}");
    assert_eq!(late[late.len() - 1].made, early[0].made, "{info}");
}

#[test]
fn memory_stays_flat() {
    let steps = std::env::var("VSTAR_SOAK").map_or(STEPS, |n| n.parse().unwrap());
    soak(cpu(), steps);
    soak(bare_gpu(), steps);
}
