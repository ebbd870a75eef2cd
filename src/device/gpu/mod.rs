//! The GPU device: encodes streams with wgpu. Pipelines are made once per form of a kernel, bind groups once per
//! (kernel, buffers), when a stream first needs them or is prepared.

mod forms;
mod loops;
mod open;
mod pace;
mod pieces;
mod pipelines;
mod readback;
mod resolve;
mod timing;

use super::timing::{Times, by_wall_clock};
use super::tuning::{Choices, Offer};
use super::{
    Counters, Device, DeviceInfo, LARGEST_BUFFER_WORDS, Launch, Memory, Reading, Slice, Stream,
    out_of_memory,
};
use anyhow::{Result, anyhow};
pub use forms::Measurement;
use forms::Selection;
pub use open::{GpuOptions, describe};
pub use pace::MAX_LAUNCH;
use pace::Pace;
use pieces::Firsts;
use pipelines::{BindGroupKey, Layout, PipelineKey, bind_group_key};
use readback::Staging;
use resolve::{Patches, Resolver};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Each launch's parameters take one slot of the uniform buffer (wgpu's default offset alignment).
const SLOT_BYTES: usize = 256;

struct State {
    buffers: Vec<Option<wgpu::Buffer>>,
    /// By buffer.
    labels: Vec<String>,
    free: Vec<u32>,
    layouts: HashMap<&'static str, Layout>,
    pipelines: HashMap<PipelineKey, wgpu::ComputePipeline>,
    selection: Selection,
    pace: Pace,
    firsts: Firsts,
    bind_groups: HashMap<BindGroupKey, wgpu::BindGroup>,
    /// Parameter slots of the stream being run.
    uniforms: wgpu::Buffer,
    staging: Staging,
    counters: Counters,
    memory: Memory,
    scratch: Vec<u8>,
    patches: Patches,
    resolver: Resolver,
}

pub struct Gpu {
    info: DeviceInfo,
    options: GpuOptions,
    offer: Offer,
    device: wgpu::Device,
    queue: wgpu::Queue,
    longest_loop: u32,
    /// First error wgpu reported outside a call that returns one.
    fault: Fault,
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
    let usage =
        wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
    new_buffer(device, "parameters", slots * SLOT_BYTES, usage)
}

/// An error of wgpu or naga in one line.
pub fn one_line(error: &dyn std::fmt::Display) -> String {
    error
        .to_string()
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The first error wgpu has reported on its own.
type Fault = Arc<Mutex<Option<String>>>;

fn check(fault: &Fault, name: &str) -> Result<()> {
    match fault.lock().unwrap().take() {
        Some(text) => Err(anyhow!("{name}: {text}")),
        None => Ok(()),
    }
}

/// Waits for a submission, or for everything submitted.
fn wait(
    device: &wgpu::Device,
    (fault, name): (&Fault, &str),
    submission_index: Option<wgpu::SubmissionIndex>,
) -> Result<()> {
    let waited = device.poll(wgpu::PollType::Wait {
        submission_index,
        timeout: None,
    });
    if waited.is_err() {
        // What is submitted to a device that was lost in between counts as never submitted. That it was lost is told once
        // there is nothing more to wait for.
        let _ = device.poll(wgpu::PollType::wait_indefinitely());
    }
    // A lost device says so there; what comes of it here says less.
    check(fault, name)?;
    waited.map_err(|e| anyhow!("{name}: waiting for the GPU failed: {e}"))?;
    Ok(())
}

impl Gpu {
    /// Loses the device, as a driver that resets it would. For tests.
    pub fn lose(&self) {
        self.device.destroy();
    }

    fn check(&self) -> Result<()> {
        check(&self.fault, &self.info.name)
    }

    /// Makes room for the parameters of the stream's launches and for what fills them in. Bind groups bind that room: where
    /// it moves, those there are are made anew.
    fn reserve(&self, state: &mut State, stream: &Stream) {
        let slots = stream.launches.len();
        let moved = (state.uniforms.size() as usize) < slots * SLOT_BYTES;
        if moved {
            state.uniforms = uniform_buffer(&self.device, slots.next_power_of_two());
            for key in std::mem::take(&mut state.bind_groups).into_keys() {
                self.bind(state, key);
            }
        }
        state.patches.collect(stream);
        let (patches, buffers) = (&state.patches, &state.buffers);
        let room = (&state.uniforms, moved);
        let made = state.resolver.reserve(&self.device, patches, buffers, room);
        state.counters.bind_groups_created += made;
    }

    /// Puts the parameters of launches in their slots, and makes what they need. The first launches may have run by then, for
    /// forms to be measured or launches to be timed; returns the number of those.
    fn load(&self, state: &mut State, stream: &Stream) -> Result<usize> {
        self.reserve(state, stream);
        let slots = stream.launches.len();
        state.scratch.clear();
        state.scratch.resize(slots * SLOT_BYTES, 0);
        for (slot, launch) in state
            .scratch
            .chunks_exact_mut(SLOT_BYTES)
            .zip(&stream.launches)
        {
            let bytes: &[u8] = bytemuck::cast_slice(launch.params());
            slot[..bytes.len()].copy_from_slice(bytes);
        }
        // Ordered on the queue: earlier submissions have read their slots before this copy lands.
        self.queue.write_buffer(&state.uniforms, 0, &state.scratch);
        let patched = state.resolver.upload(&self.queue, &state.patches);
        let submitted = self.select(state, stream)?;
        state.counters.dispatches += state.patches.segments.len() as u64;
        state.counters.bytes_uploaded += (state.scratch.len() + patched) as u64;
        Ok(submitted)
    }

    /// Waits for everything submitted.
    fn wait(&self) -> Result<()> {
        wait(&self.device, (&self.fault, &self.info.name), None)
    }
}

impl Device for Gpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn max_buffer_words(&self) -> usize {
        let limits = self.device.limits();
        let bytes = limits
            .max_buffer_size
            .min(limits.max_storage_buffer_binding_size);
        (bytes as usize / 4).min(LARGEST_BUFFER_WORDS)
    }

    fn longest_loop(&self) -> u32 {
        self.longest_loop
    }

    fn allocate(&self, label: &str, words: usize) -> Result<u32> {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC;
        let buffer = new_buffer(&self.device, label, words * 4, usage);
        if pollster::block_on(scope.pop()).is_some() {
            return Err(out_of_memory(&self.info.name, label, words));
        }
        self.check()?;
        let mut state = self.state.lock().unwrap();
        state.memory.take(4 * words as u64);
        Ok(match state.free.pop() {
            Some(id) => {
                state.buffers[id as usize] = Some(buffer);
                state.labels[id as usize] = label.into();
                id
            }
            None => {
                state.buffers.push(Some(buffer));
                state.labels.push(label.into());
                (state.buffers.len() - 1) as u32
            }
        })
    }

    fn label(&self, buffer: u32) -> String {
        self.state.lock().unwrap().labels[buffer as usize].clone()
    }

    fn release(&self, buffer: u32) {
        let mut state = self.state.lock().unwrap();
        state
            .bind_groups
            .retain(|(_, slices), _| slices.iter().all(|s| s.buffer != buffer));
        state.resolver.forget(buffer);
        if let Some(gone) = state.buffers[buffer as usize].take() {
            state.memory.give(gone.size());
        }
        state.free.push(buffer);
    }

    fn write(&self, to: Slice, data: &[u32]) -> Result<()> {
        let to = to.words();
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

    fn begin_reading(&self, from: &[Slice]) -> Result<Reading> {
        Gpu::begin_reading(self, from)
    }

    fn run(&self, stream: &Stream) -> Result<()> {
        if stream.launches.is_empty() {
            return Ok(());
        }
        let mut state = self.state.lock().unwrap();
        let state = &mut *state;
        let submitted = self.load(state, stream)?;
        self.submit(state, stream, submitted..stream.launches.len());
        self.check()
    }

    fn prepare(&self, streams: &mut dyn Iterator<Item = Stream>) -> Result<()> {
        for stream in streams {
            let mut state = self.state.lock().unwrap();
            self.reserve(&mut state, &stream);
            for launch in &stream.launches {
                self.expect(&mut state, launch)?;
                self.bind(&mut state, bind_group_key(launch));
            }
        }
        self.check()
    }

    fn time(&self, stream: &Stream) -> Result<Times> {
        let has = self.device.features();
        match has.contains(wgpu::Features::TIMESTAMP_QUERY) {
            true => self.time_by_timestamps(stream),
            false => by_wall_clock(self, stream),
        }
    }

    fn has_halves(&self) -> bool {
        let features = self.device.features();
        features.contains(wgpu::Features::SHADER_F16)
    }

    fn counters(&self) -> Counters {
        self.state.lock().unwrap().counters
    }

    fn memory(&self) -> Memory {
        self.state.lock().unwrap().memory
    }

    fn form(&self, launch: &Launch) -> &'static str {
        let state = self.state.lock().unwrap();
        self.selected(&state, launch)
    }

    fn choices(&self) -> Choices {
        self.state.lock().unwrap().selection.choices()
    }

    fn choose(&self, choices: &Choices) {
        self.state.lock().unwrap().selection.set(choices);
    }

    fn insist(&self, form: Option<&'static str>) {
        self.state.lock().unwrap().selection.insist(form);
    }
}

#[cfg(test)]
mod tests {
    use super::forms::tests::gpu;
    use super::*;
    use crate::device::tuning::Forms;
    use crate::device::{Buffer, DeviceRef, Grid, Size, Word};
    use crate::kernels::fill;
    use crate::kernels::matmul::{Dims, Form, matmul};

    fn made(gpu: &Gpu) -> u64 {
        let c = gpu.counters();
        c.pipelines_created + c.bind_groups_created
    }

    #[test]
    fn a_prepared_stream_makes_nothing_and_is_measured_when_it_runs() {
        let gpu = gpu(Forms::Remeasured);
        let device: DeviceRef = gpu.clone();
        let [a, b, c] = [64; 3].map(|n| Buffer::new(&device, "operand", n).unwrap());
        let dims = Dims { m: 8, n: 8, k: 8 };
        let mut stream = Stream::new();
        matmul(&mut stream, Form::NN, a.all(), b.all(), c.all(), dims, true);
        gpu.prepare(&mut [stream.clone()].into_iter()).unwrap();
        let (before, counters) = (made(&gpu), gpu.counters());
        assert!(before > 1 && counters.submissions == 0 && counters.dispatches == 0);
        assert!(gpu.measurements().is_empty() && gpu.choices().0.is_empty());
        gpu.run(&stream).unwrap();
        assert_eq!(made(&gpu), before);
        assert!(!gpu.measurements().is_empty());
    }

    /// A stream that is longer than any before it moves the parameters; what was made for others is there still.
    #[test]
    fn what_was_made_outlasts_a_longer_stream() {
        let gpu = gpu(Forms::Fixed);
        let device: DeviceRef = gpu.clone();
        let [y, counts, other] = [100; 3].map(|n| Buffer::new(&device, "words", n).unwrap());
        let stream = |to: &Buffer, launches: u32| {
            let mut s = Stream::new();
            for value in 1..=launches {
                let params = fill::Params { n: 100, value };
                s.push(&fill::FILL, &params, &[to.all()], Grid(1))
                    .size("n", Size::held(Word::at(counts.all(), 0), 100));
            }
            s
        };
        counts.write_u32(&[70]).unwrap();
        gpu.run(&stream(&y, 1)).unwrap();
        gpu.run(&stream(&other, 3000)).unwrap();
        let before = made(&gpu);
        gpu.run(&stream(&y, 2)).unwrap();
        assert_eq!(made(&gpu), before);
        let filled = |b: &Buffer, value| {
            b.read_u32()
                .unwrap()
                .iter()
                .filter(|&&w| w == value)
                .count()
        };
        assert_eq!(
            [filled(&y, 2), filled(&y, 1), filled(&other, 3000)],
            [70, 0, 70]
        );
    }
}
