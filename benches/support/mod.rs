//! What the benches share.

use std::sync::LazyLock;
use vstar::bench::stopwatch::Stopwatch;
use vstar::device::choose::{DeviceChoice, open};
use vstar::device::gpu::GpuOptions;

/// On the device that `VSTAR_DEVICE` names, as `--device` would (default: auto).
pub static WATCH: LazyLock<Stopwatch> = LazyLock::new(|| {
    let mut choice = DeviceChoice::default();
    if let Ok(device) = std::env::var("VSTAR_DEVICE") {
        choice.device = device;
    }
    let device = open(&choice, GpuOptions::default()).expect("VSTAR_DEVICE");
    Stopwatch::new(device, 1).expect("a clock")
});
