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

/// The devices that have f16: the CPU device, and the GPU with all it offers unless it lacks that, which is told.
#[allow(dead_code)]
pub fn with_halves() -> Vec<DeviceRef> {
    let gpu = gpu(GpuOptions::default());
    if !gpu.has_halves() {
        println!("not tested: {} has no f16", gpu.info());
        return vec![cpu()];
    }
    vec![cpu(), gpu]
}

/// A GPU under wgpu's default limits and without features, as a stranger's might be.
#[allow(dead_code)]
pub fn bare_gpu() -> DeviceRef {
    gpu(GpuOptions {
        bare: true,
        ..Default::default()
    })
}

/// As [`bare_gpu`], but given work whole, however long it lasts: what it is asked for does not depend on how fast it is.
#[allow(dead_code)]
pub fn whole_gpu() -> DeviceRef {
    gpu(GpuOptions {
        bare: true,
        max_launch: None,
        ..Default::default()
    })
}

/// A GPU opened so.
pub fn gpu(options: GpuOptions) -> DeviceRef {
    let choice = DeviceChoice {
        device: "gpu".into(),
        ..Default::default()
    };
    open(&choice, options).expect("GPU tests need an adapter")
}
