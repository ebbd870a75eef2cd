//! Opening an adapter: what is asked of it, and what it offers.

use super::forms::Selection;
use super::pace::{MAX_LAUNCH, Pace};
use super::pieces::Firsts;
use super::readback::Staging;
use super::resolve::{Patches, Resolver};
use super::{Gpu, State, loops, one_line, uniform_buffer};
use crate::device::tuning::{Forms, Offer};
use crate::device::{Counters, DeviceInfo, Memory};
use anyhow::{Context, Result, anyhow};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How to open an adapter.
#[derive(Clone, Copy, Debug)]
pub struct GpuOptions {
    /// Keep naga's bounds and loop checks in the shaders.
    pub checked: bool,
    /// Ask for wgpu's default limits and no features, as a stranger's GPU might offer, instead of the adapter's own.
    pub bare: bool,
    /// Bind each slice from its start to its buffer's end, so that a shader that overruns it writes to what lies behind
    /// it: the sentinels of a test buffer. A binding that ends with the slice would hide the fault, since drivers drop
    /// writes past a binding's end where wgpu asks for robust access (always, on Vulkan). For tests.
    pub exposed: bool,
    /// How to decide between the forms of a kernel.
    pub forms: Forms,
    /// Ask for timestamps where the adapter has them, for [`Device::time`].
    pub timed: bool,
    /// Features to do without, as if the adapter had not got them. For tests.
    pub without: wgpu::Features,
    /// The longest that a dispatch and a submission are to last (`device.max_launch_ms`), if there is a limit.
    pub max_launch: Option<Duration>,
    /// The most workgroups of a dispatch, where that is to be less than every adapter's limit. For tests.
    pub max_groups: Option<u32>,
    /// Bytes of the largest binding, where that is to be less than the adapter's limit. For tests.
    pub max_binding: Option<u64>,
}

impl GpuOptions {
    /// Everything the adapter has.
    pub const DEFAULT: GpuOptions = GpuOptions {
        checked: false,
        bare: false,
        exposed: false,
        forms: Forms::Fixed,
        timed: false,
        without: wgpu::Features::empty(),
        max_launch: Some(MAX_LAUNCH),
        max_groups: None,
        max_binding: None,
    };
}

impl Default for GpuOptions {
    fn default() -> GpuOptions {
        GpuOptions::DEFAULT
    }
}

/// What is known of an adapter before it is opened.
pub fn describe(adapter: &wgpu::Adapter) -> DeviceInfo {
    let about = adapter.get_info();
    DeviceInfo {
        software: about.device_type == wgpu::DeviceType::Cpu,
        name: about.name,
        backend: about.backend.to_string(),
        driver: format!("{} {}", about.driver, about.driver_info),
    }
}

/// Sides of the square cooperative matrices that add up in f32, as [`Offer`] holds them. They need subgroups that are not
/// too wide (`shaders/shared/matmul_cooperative.wgsl`).
fn cooperative(adapter: &wgpu::Adapter, has: wgpu::Features) -> [u32; 2] {
    use wgpu::CooperativeScalarType::{F16, F32};
    let needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SUBGROUP;
    if !has.contains(needed) || adapter.get_info().subgroup_max_size > 64 {
        return [0; 2];
    }
    [F32, F16].map(|operands| {
        let square = |p: &&wgpu::CooperativeMatrixProperties| {
            p.ab_type == operands
                && p.cr_type == F32
                && p.m_size == p.n_size
                && p.n_size == p.k_size
        };
        let offered = adapter.cooperative_matrix_properties();
        let sides = offered.iter().filter(square).map(|p| p.m_size);
        sides
            .filter(|side| [8, 16].contains(side))
            .fold(0, |a, b| a | b)
    })
}

impl Gpu {
    /// Opens `adapter`. Errors: the adapter lacks wgpu's default limits, or its driver refuses a device.
    pub fn open(adapter: &wgpu::Adapter, options: GpuOptions) -> Result<Gpu> {
        let info = describe(adapter);
        let has = adapter.features() - options.without;
        let mut limits = wgpu::Limits::default();
        let mut features = wgpu::Features::empty();
        let mut offer = Offer::default();
        let mut experimental = wgpu::ExperimentalFeatures::disabled();
        if !options.bare {
            if has.contains(wgpu::Features::SUBGROUP) {
                features |= wgpu::Features::SUBGROUP;
                offer.subgroup = adapter.get_info().subgroup_min_size;
            }
            features |= has & wgpu::Features::SHADER_F16;
            offer.cooperative = cooperative(adapter, has);
            if offer.cooperative != [0; 2] {
                features |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
                // SAFETY: the feature is used by `shaders/matmul_cooperative_*.wgsl` only, which run in uniform control
                // flow, read and write within their tiles, and are chosen only where they gave the right result.
                experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
            }
            let own = adapter.limits();
            limits.max_buffer_size = own.max_buffer_size;
            limits.max_storage_buffer_binding_size = own.max_storage_buffer_binding_size;
        }
        if let Some(bytes) = options.max_binding {
            limits.max_storage_buffer_binding_size = bytes;
        }
        if options.timed {
            features |= has & wgpu::Features::TIMESTAMP_QUERY;
        }
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("vstar"),
            required_features: features,
            required_limits: limits,
            experimental_features: experimental,
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        }))
        .map_err(|e| {
            anyhow!(
                "adapter `{}` refused a device: {} (try another with --device)",
                info.name,
                one_line(&e)
            )
        })?;
        let fault = Arc::new(Mutex::new(None::<String>));
        let note = {
            let fault = fault.clone();
            move |text: String| {
                fault.lock().unwrap().get_or_insert(text);
            }
        };
        device.on_uncaptured_error({
            let note = note.clone();
            Arc::new(move |e: wgpu::Error| note(one_line(&e)))
        });
        device.set_device_lost_callback(move |_, message| {
            note(format!("the device was lost: {}", one_line(&message)));
        });
        let state = State {
            buffers: Vec::new(),
            labels: Vec::new(),
            free: Vec::new(),
            layouts: HashMap::new(),
            pipelines: HashMap::new(),
            selection: Selection::new(&info, options),
            pace: Pace::new(options.max_launch, options.max_groups),
            firsts: Firsts::new(&device),
            bind_groups: HashMap::new(),
            uniforms: uniform_buffer(&device, 1024),
            staging: Staging::default(),
            counters: Counters::default(),
            memory: Memory::default(),
            scratch: Vec::new(),
            patches: Patches::default(),
            resolver: Resolver::new(&device),
        };
        let longest_loop = match info.software {
            true => loops::longest(&device, &queue).with_context(|| info.name.clone())?,
            false => u32::MAX,
        };
        Ok(Gpu {
            longest_loop,
            info,
            options,
            offer,
            device,
            queue,
            fault,
            state: Mutex::new(state),
        })
    }
}
