//! What the benches share.

use std::sync::LazyLock;
use vstar::bench::stopwatch::Stopwatch;
use vstar::device::choose::{DeviceChoice, open};
use vstar::device::gpu::GpuOptions;
use vstar::device::tuning::Forms;

/// On the device that `VSTAR_DEVICE` names, as `--device` would (default: auto).
pub static WATCH: LazyLock<Stopwatch> = LazyLock::new(|| {
    let mut choice = DeviceChoice::default();
    if let Ok(device) = std::env::var("VSTAR_DEVICE") {
        choice.device = device;
    }
    let options = GpuOptions {
        forms: Forms::Measured,
        ..Default::default()
    };
    let device = open(&choice, options).expect("VSTAR_DEVICE");
    Stopwatch::new(device, 1).expect("a clock")
});
