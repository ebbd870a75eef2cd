//! The GPU device: encodes streams with wgpu. Pipelines are made once per kernel, bind groups once per
//! (kernel, buffers); after the first step of a run nothing is created.

mod pipelines;
mod timing;

use super::stream::Launch;
use super::timing::{Times, by_wall_clock};
use super::{Counters, Device, DeviceInfo, Slice, Stream};
use anyhow::{Context, Result, anyhow, bail};
use pipelines::{BindGroupKey, Pipeline, bind_group_key};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Each launch's parameters take one slot of the uniform buffer (wgpu's default offset alignment).
const SLOT_BYTES: usize = 256;

/// How to open an adapter.
#[derive(Clone, Copy, Debug, Default)]
pub struct GpuOptions {
    /// Keep naga's bounds and loop checks in the shaders.
    pub checked: bool,
    /// Ask for wgpu's default limits and no features, as a stranger's GPU might offer, instead of the adapter's own.
    pub bare: bool,
    /// Bind each slice from its start to its buffer's end, so that a shader that overruns it writes to what lies behind
    /// it: the sentinels of a test buffer. A binding that ends with the slice would hide the fault, since drivers drop
    /// writes past a binding's end where wgpu asks for robust access (always, on Vulkan). For tests.
    pub exposed: bool,
    /// Ask for timestamps where the adapter has them, for [`Device::time`].
    pub timed: bool,
}

struct State {
    buffers: Vec<Option<wgpu::Buffer>>,
    free: Vec<u32>,
    pipelines: HashMap<&'static str, Pipeline>,
    bind_groups: HashMap<BindGroupKey, wgpu::BindGroup>,
    /// Parameter slots of the stream being run.
    uniforms: wgpu::Buffer,
    staging: wgpu::Buffer,
    counters: Counters,
    scratch: Vec<u8>,
}

pub struct Gpu {
    info: DeviceInfo,
    options: GpuOptions,
    device: wgpu::Device,
    queue: wgpu::Queue,
    /// First error wgpu reported outside a call that returns one.
    fault: Arc<Mutex<Option<String>>>,
    state: Mutex<State>,
}

fn new_buffer(
    device: &wgpu::Device,
    label: &str,
    bytes: usize,
    usage: wgpu::BufferUsages,
) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: bytes as u64,
        usage,
        mapped_at_creation: false,
    })
}

fn uniform_buffer(device: &wgpu::Device, slots: usize) -> wgpu::Buffer {
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
    new_buffer(device, "parameters", slots * SLOT_BYTES, usage)
}

fn staging_buffer(device: &wgpu::Device, bytes: usize) -> wgpu::Buffer {
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    new_buffer(device, "read-back", bytes, usage)
}

/// A wgpu error in one line: the first line that carries the cause.
fn one_line(error: &dyn std::fmt::Display) -> String {
    error
        .to_string()
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
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

impl Gpu {
    /// Opens `adapter`. Errors: the adapter lacks wgpu's default limits, or its driver refuses a device.
    pub fn open(adapter: &wgpu::Adapter, options: GpuOptions) -> Result<Gpu> {
        let info = describe(adapter);
        let mut limits = wgpu::Limits::default();
        if !options.bare {
            let own = adapter.limits();
            limits.max_buffer_size = own.max_buffer_size;
            limits.max_storage_buffer_binding_size = own.max_storage_buffer_binding_size;
        }
        let mut features = wgpu::Features::empty();
        if options.timed {
            features |= adapter.features() & wgpu::Features::TIMESTAMP_QUERY;
        }
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("vstar"),
            required_features: features,
            required_limits: limits,
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
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                note(format!("the device was lost: {}", one_line(&message)));
            }
        });
        let state = State {
            buffers: Vec::new(),
            free: Vec::new(),
            pipelines: HashMap::new(),
            bind_groups: HashMap::new(),
            uniforms: uniform_buffer(&device, 1024),
            staging: staging_buffer(&device, 64 * 1024),
            counters: Counters::default(),
            scratch: Vec::new(),
        };
        Ok(Gpu {
            info,
            options,
            device,
            queue,
            fault,
            state: Mutex::new(state),
        })
    }

    fn check(&self) -> Result<()> {
        match self.fault.lock().unwrap().take() {
            Some(text) => Err(anyhow!("{}: {text}", self.info.name)),
            None => Ok(()),
        }
    }

    /// Puts the parameters of launches in their slots, and makes what they need.
    fn load(&self, state: &mut State, launches: &[Launch]) -> Result<()> {
        let slots = launches.len();
        if (state.uniforms.size() as usize) < slots * SLOT_BYTES {
            state.uniforms = uniform_buffer(&self.device, slots.next_power_of_two());
            state.bind_groups.clear();
        }
        state.scratch.clear();
        state.scratch.resize(slots * SLOT_BYTES, 0);
        for (slot, launch) in state.scratch.chunks_exact_mut(SLOT_BYTES).zip(launches) {
            let bytes: &[u8] = bytemuck::cast_slice(launch.params());
            slot[..bytes.len()].copy_from_slice(bytes);
        }
        // Ordered on the queue: earlier submissions have read their slots before this copy lands.
        self.queue.write_buffer(&state.uniforms, 0, &state.scratch);
        state.counters.bytes_uploaded += state.scratch.len() as u64;
        for launch in launches {
            self.prepare(state, launch)?;
        }
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .map_err(|e| anyhow!("{}: waiting for the GPU failed: {e}", self.info.name))?;
        self.check()
    }
}

impl State {
    /// Encodes a launch that was loaded as number `i`.
    fn dispatch(&self, pass: &mut wgpu::ComputePass, i: usize, launch: &Launch) {
        let key = bind_group_key(launch);
        pass.set_pipeline(&self.pipelines[launch.kernel.name].pipeline);
        pass.set_bind_group(0, &self.bind_groups[&key], &[(i * SLOT_BYTES) as u32]);
        let [x, y, z] = launch.grid.dimensions();
        pass.dispatch_workgroups(x, y, z);
    }
}

impl Device for Gpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&self, label: &str, words: usize) -> Result<u32> {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC;
        let buffer = new_buffer(&self.device, label, words * 4, usage);
        if pollster::block_on(scope.pop()).is_some() {
            bail!(
                "{}: out of device memory for `{label}` ({} MiB): lower the batch size, the history length or the \
                 model's width",
                self.info.name,
                words >> 18
            );
        }
        self.check()?;
        let mut state = self.state.lock().unwrap();
        Ok(match state.free.pop() {
            Some(id) => {
                state.buffers[id as usize] = Some(buffer);
                id
            }
            None => {
                state.buffers.push(Some(buffer));
                (state.buffers.len() - 1) as u32
            }
        })
    }

    fn release(&self, buffer: u32) {
        let mut state = self.state.lock().unwrap();
        state
            .bind_groups
            .retain(|(_, slices), _| slices.iter().all(|s| s.buffer != buffer));
        state.buffers[buffer as usize] = None;
        state.free.push(buffer);
    }

    fn write(&self, to: Slice, data: &[u32]) -> Result<()> {
        assert!(data.len() <= to.len as usize);
        let mut state = self.state.lock().unwrap();
        state.counters.bytes_uploaded += 4 * data.len() as u64;
        let buffer = state.buffers[to.buffer as usize]
            .as_ref()
            .expect("buffer is alive");
        self.queue
            .write_buffer(buffer, 4 * to.offset as u64, bytemuck::cast_slice(data));
        self.check()
    }

    fn read(&self, from: &[Slice]) -> Result<Vec<Vec<u32>>> {
        let mut state = self.state.lock().unwrap();
        let total: usize = from.iter().map(|s| 4 * s.len as usize).sum();
        if (state.staging.size() as usize) < total {
            state.staging = staging_buffer(&self.device, total.next_power_of_two());
        }
        state.counters.bytes_read_back += total as u64;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let mut at = 0;
        for slice in from {
            let buffer = state.buffers[slice.buffer as usize]
                .as_ref()
                .expect("buffer is alive");
            let bytes = 4 * slice.len as u64;
            encoder.copy_buffer_to_buffer(
                buffer,
                4 * slice.offset as u64,
                &state.staging,
                at,
                bytes,
            );
            at += bytes;
        }
        self.queue.submit([encoder.finish()]);
        let view = state.staging.slice(..total as u64);
        let (sender, receiver) = std::sync::mpsc::channel();
        view.map_async(wgpu::MapMode::Read, move |result| {
            let _ = sender.send(result);
        });
        self.wait()?;
        receiver
            .recv()
            .context("the GPU never answered a read-back")?
            .map_err(|e| anyhow!("{}: reading back failed: {e}", self.info.name))?;
        let mapped = view
            .get_mapped_range()
            .map_err(|e| anyhow!("{}: reading back failed: {e:?}", self.info.name))?;
        let mut out = Vec::with_capacity(from.len());
        let mut at = 0;
        for slice in from {
            let bytes = 4 * slice.len as usize;
            let mut words = vec![0u32; slice.len as usize];
            bytemuck::cast_slice_mut::<u32, u8>(&mut words)
                .copy_from_slice(&mapped[at..at + bytes]);
            out.push(words);
            at += bytes;
        }
        drop(mapped);
        state.staging.unmap();
        Ok(out)
    }

    fn run(&self, stream: &Stream) -> Result<()> {
        if stream.launches.is_empty() {
            return Ok(());
        }
        let mut state = self.state.lock().unwrap();
        self.load(&mut state, &stream.launches)?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for (i, launch) in stream.launches.iter().enumerate() {
                state.dispatch(&mut pass, i, launch);
            }
        }
        self.queue.submit([encoder.finish()]);
        state.counters.submissions += 1;
        state.counters.launches += stream.launches.len() as u64;
        self.check()
    }

    fn time(&self, stream: &Stream) -> Result<Times> {
        let has = self.device.features();
        match has.contains(wgpu::Features::TIMESTAMP_QUERY) {
            true => self.time_by_timestamps(stream),
            false => by_wall_clock(self, stream),
        }
    }

    fn counters(&self) -> Counters {
        self.state.lock().unwrap().counters
    }
}
