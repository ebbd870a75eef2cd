//! Finding adapters and choosing the device a run uses.

use super::cpu::Cpu;
use super::gpu::{Gpu, GpuOptions};
use super::{DeviceInfo, DeviceRef};
use anyhow::{Result, bail};
use std::sync::Arc;

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct DeviceChoice {
    /// `auto`, `cpu`, `gpu`, an index of `vstar doctor`'s list, or part of an adapter's name.
    pub device: String,
    /// `auto`, `vulkan`, `metal` or `dx12`.
    pub backend: String,
}

impl Default for DeviceChoice {
    fn default() -> Self {
        DeviceChoice {
            device: "auto".into(),
            backend: "auto".into(),
        }
    }
}

fn backends(name: &str) -> Result<wgpu::Backends> {
    Ok(match name {
        "auto" => wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12,
        "vulkan" => wgpu::Backends::VULKAN,
        "metal" => wgpu::Backends::METAL,
        "dx12" => wgpu::Backends::DX12,
        other => bail!("--backend {other}: unknown; choose auto, vulkan, metal or dx12"),
    })
}

/// Every adapter of the backend, in wgpu's order.
pub fn adapters(backend: &str) -> Result<Vec<wgpu::Adapter>> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends(backend)?;
    let instance = wgpu::Instance::new(descriptor);
    Ok(pollster::block_on(
        instance.enumerate_adapters(wgpu::Backends::all()),
    ))
}

fn is_software(adapter: &wgpu::Adapter) -> bool {
    adapter.get_info().device_type == wgpu::DeviceType::Cpu
}

/// Discrete before integrated before the rest; software last.
fn rank(adapter: &wgpu::Adapter) -> u32 {
    match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

fn names(adapters: &[wgpu::Adapter]) -> String {
    if adapters.is_empty() {
        return "none found".into();
    }
    adapters
        .iter()
        .enumerate()
        .map(|(i, a)| format!("{i}: {}", a.get_info().name))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Why `auto` takes the CPU device.
pub const NO_HARDWARE: &str =
    "no hardware GPU found (a software adapter is used only with --device gpu)";

/// The adapter a choice names; `None` for the CPU device.
pub fn choose_adapter(choice: &DeviceChoice) -> Result<Option<wgpu::Adapter>> {
    if choice.device == "cpu" {
        return Ok(None);
    }
    let mut adapters = adapters(&choice.backend)?;
    let index = choose_index(&choice.device, &adapters)?;
    Ok(index.map(|i| adapters.swap_remove(i)))
}

/// Which of `adapters` the `--device` text names; `None` for the CPU device. Errors: it names none of them.
pub fn choose_index(device: &str, adapters: &[wgpu::Adapter]) -> Result<Option<usize>> {
    let best = (0..adapters.len()).min_by_key(|&i| rank(&adapters[i]));
    let index = match device {
        "cpu" => return Ok(None),
        "auto" => match best {
            Some(i) if !is_software(&adapters[i]) => i,
            _ => return Ok(None),
        },
        "gpu" => match best {
            Some(i) => i,
            None => bail!(
                "--device gpu: no adapter found; install a GPU driver (a software one: apt-get install \
                 mesa-vulkan-drivers) or use --device cpu"
            ),
        },
        text => {
            let found = match text.parse::<usize>() {
                Ok(i) => (i < adapters.len()).then_some(i),
                Err(_) => {
                    let wanted = text.to_lowercase();
                    adapters
                        .iter()
                        .position(|a| a.get_info().name.to_lowercase().contains(&wanted))
                }
            };
            match found {
                Some(i) => i,
                None => bail!(
                    "--device {text}: no such adapter ({}); use auto, cpu, gpu, an index or part of a name",
                    names(adapters)
                ),
            }
        }
    };
    Ok(Some(index))
}

/// Opens the chosen device.
pub fn open(choice: &DeviceChoice, options: GpuOptions) -> Result<DeviceRef> {
    Ok(match choose_adapter(choice)? {
        None => Arc::new(Cpu::new()),
        Some(adapter) => Arc::new(Gpu::open(&adapter, options)?),
    })
}

/// One line that says which device a run uses and why.
pub fn explain(choice: &DeviceChoice, info: &DeviceInfo) -> String {
    if choice.device == "auto" && info.backend == "cpu" {
        format!("{info}: {NO_HARDWARE}")
    } else {
        info.to_string()
    }
}
