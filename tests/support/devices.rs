//! The devices that tests compare.

use std::sync::Arc;
use vstar::device::DeviceRef;
use vstar::device::choose::{DeviceChoice, open};
use vstar::device::cpu::Cpu;
use vstar::device::gpu::GpuOptions;

/// The CPU device.
pub fn cpu() -> DeviceRef {
    Arc::new(Cpu::new())
}

/// A GPU with all it offers, f16 among it.
#[allow(dead_code)]
pub fn own_gpu() -> DeviceRef {
    let choice = DeviceChoice {
        device: "gpu".into(),
        ..Default::default()
    };
    open(&choice, GpuOptions::default()).expect("GPU tests need an adapter")
}

/// A GPU under wgpu's default limits and without features, as a stranger's might be.
pub fn bare_gpu() -> DeviceRef {
    let choice = DeviceChoice {
        device: "gpu".into(),
        ..Default::default()
    };
    let options = GpuOptions {
        bare: true,
        ..Default::default()
    };
    open(&choice, options).expect("GPU tests need an adapter")
}
