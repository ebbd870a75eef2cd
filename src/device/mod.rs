//! Devices, buffers and streams.
//!
//! A [`Stream`] is a list of launches; a [`Device`] runs it: [`gpu`] encodes it with wgpu, [`cpu`] calls each
//! kernel's twin on threads, [`lockstep`] does both and names the first launch whose outputs differ. Everything
//! above this room (model, decoders, trainer) is written once, against streams.

pub mod audit;
pub mod choose;
pub mod cost;
pub mod cpu;
pub mod gpu;
pub mod lockstep;
pub mod planner;
pub mod recorder;
pub mod report;
pub mod shader;
pub mod size;
pub mod slice;
pub mod stream;
pub mod threads;
pub mod timing;
pub mod trial;
pub mod tuning;

use anyhow::{Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Instant;
use timing::Times;

pub use cost::Cost;
pub use size::{Size, Word};
pub use slice::Slice;
pub use stream::{
    Access, Args, Binding, Form, Grid, Home, Kernel, Launch, PORTABLE, Param, Precision, Pushed,
    Stream, Type,
};

pub use tuning::Choices;

/// Slices start on multiples of this many words: 256 bytes, wgpu's default storage-binding alignment.
pub const ALIGN_WORDS: usize = 64;

/// The largest binding wgpu guarantees (128 MiB), in words. What can be cut up is, so that no buffer is larger; a single
/// tensor that is, other than a table of the vocabulary, needs a device with larger bindings
/// ([`Device::max_buffer_words`]).
pub const MAX_BUFFER_WORDS: usize = 128 * 1024 * 1024 / 4;

/// The largest buffer of any device: its elements are counted in u32, as f16 too.
pub const LARGEST_BUFFER_WORDS: usize = 1 << 30;

/// What a person needs to know about the device a result came from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// `cpu`, or the adapter's name.
    pub name: String,
    /// `cpu`, `vulkan`, `metal`, `dx12`.
    pub backend: String,
    /// Driver name and version, or the number of threads.
    pub driver: String,
    /// Whether the arithmetic runs on the host's processor (the CPU device or a software adapter).
    pub software: bool,
}

impl std::fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        if self.backend == "cpu" {
            write!(f, "CPU device ({})", self.driver)
        } else {
            write!(f, "{} ({}, {})", self.name, self.backend, self.driver)
        }
    }
}

/// Bytes of buffers.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Memory {
    pub now: u64,
    pub peak: u64,
}

impl Memory {
    pub(crate) fn take(&mut self, bytes: u64) {
        self.now += bytes;
        self.peak = self.peak.max(self.now);
    }

    pub(crate) fn give(&mut self, bytes: u64) {
        self.now -= bytes;
    }
}

/// Work done since the device was made; differences give a step's share.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Counters {
    pub submissions: u64,
    /// Launches, the pieces they were cut in, and what fills in their parameters; but not what was run to be timed.
    pub dispatches: u64,
    pub bytes_uploaded: u64,
    pub bytes_read_back: u64,
    pub pipelines_created: u64,
    pub bind_groups_created: u64,
}

impl std::ops::Sub for Counters {
    type Output = Counters;

    fn sub(self, before: Counters) -> Counters {
        Counters {
            submissions: self.submissions - before.submissions,
            dispatches: self.dispatches - before.dispatches,
            bytes_uploaded: self.bytes_uploaded - before.bytes_uploaded,
            bytes_read_back: self.bytes_read_back - before.bytes_read_back,
            pipelines_created: self.pipelines_created - before.pipelines_created,
            bind_groups_created: self.bind_groups_created - before.bind_groups_created,
        }
    }
}

/// Something that owns buffers and runs streams. All buffers are arrays of 32-bit words.
pub trait Device: Send + Sync {
    fn info(&self) -> &DeviceInfo;

    /// The largest buffer it can bind whole, at least [`MAX_BUFFER_WORDS`] unless a test asks for less.
    fn max_buffer_words(&self) -> usize {
        LARGEST_BUFFER_WORDS
    }

    /// Iterations after which all loops of an invocation end, whatever their conditions say: no limit but with an old
    /// software driver (`gpu/loops.rs`).
    fn longest_loop(&self) -> u32 {
        u32::MAX
    }

    /// A zeroed buffer of `words` words (1 ..= [`Device::max_buffer_words`]); its number.
    fn allocate(&self, label: &str, words: usize) -> Result<u32>;

    fn release(&self, buffer: u32);

    /// What a buffer was labelled when it was allocated.
    fn label(&self, buffer: u32) -> String;

    /// Copies `data` to the start of `to` (at most its length); visible to streams run later.
    fn write(&self, to: Slice, data: &[u32]) -> Result<()>;

    /// Begins to read the words of each slice as all that was submitted leaves them; what is submitted later does not
    /// change them.
    fn begin_reading(&self, from: &[Slice]) -> Result<Reading>;

    /// Waits for everything submitted and returns the words of each slice, in one round trip.
    fn read(&self, from: &[Slice]) -> Result<Vec<Vec<u32>>> {
        self.begin_reading(from)?.wait()
    }

    /// Runs the launches in order. Returns once they are submitted; [`Device::read`] waits for them.
    fn run(&self, stream: &Stream) -> Result<()>;

    /// Makes what these streams will need to run, without running them: afterwards, running one makes nothing. A device
    /// that makes nothing for a stream does not ask for them, so that nobody records them.
    fn prepare(&self, _streams: &mut dyn Iterator<Item = Stream>) -> Result<()> {
        Ok(())
    }

    /// Runs the launches in order, waits for them, and says how long each took. Slower than [`Device::run`].
    fn time(&self, stream: &Stream) -> Result<Times> {
        timing::by_wall_clock(self, stream)
    }

    /// Whether launches may bind f16 slices ([`Slice::halves`]).
    fn has_halves(&self) -> bool {
        true
    }

    fn counters(&self) -> Counters;

    /// Bytes of the buffers that are alive, and the most there were.
    fn memory(&self) -> Memory;

    /// The form in which this device runs a launch: the kernel's own text unless it is a GPU that chose another.
    fn form(&self, _launch: &Launch) -> &'static str {
        PORTABLE
    }

    /// What was chosen so far, to be kept with a run: another choice may sum in another order. Empty on a CPU.
    fn choices(&self) -> Choices {
        Choices::default()
    }

    /// Makes these choices; what they do not cover is still measured. Those that no longer fit are ignored.
    fn choose(&self, _choices: &Choices) {}

    /// From now on runs every launch that the form of this name fits in that form; `None`: as chosen. For measurements.
    fn insist(&self, _form: Option<&'static str>) {}
}

/// Words on their way to the host.
pub struct Reading(State);

/// The words of each slice, and when they had been written.
pub type Arrived = (Vec<Vec<u32>>, Instant);

enum State {
    Here(Arrived),
    Pending(Box<dyn FnOnce() -> Result<Arrived> + Send>),
}

impl Reading {
    /// Words that are here.
    pub fn here(words: Vec<Vec<u32>>) -> Self {
        Reading(State::Here((words, Instant::now())))
    }

    /// Words that `wait` waits for.
    pub fn pending(wait: impl FnOnce() -> Result<Arrived> + Send + 'static) -> Self {
        Reading(State::Pending(Box::new(wait)))
    }

    /// The words of each slice. Errors: the device failed.
    pub fn wait(self) -> Result<Vec<Vec<u32>>> {
        Ok(self.wait_timed()?.0)
    }

    /// As [`Reading::wait`], and when the words had been written, as far as the host was told.
    pub fn wait_timed(self) -> Result<Arrived> {
        match self.0 {
            State::Here(arrived) => Ok(arrived),
            State::Pending(wait) => wait(),
        }
    }
}

/// A shared device.
pub type DeviceRef = Arc<dyn Device>;

/// Whether `what` may take so many iterations of an invocation's loops. Errors: where they would end early, and give wrong
/// numbers.
pub fn admit_loop(device: &DeviceRef, iterations: u64, what: &str) -> Result<()> {
    let most = device.longest_loop();
    ensure!(
        iterations <= most as u64,
        "{}: its driver ends the loops of a shader after {most} iterations, and {what} may take {iterations}: update the \
         driver (Mesa 22 ends them, Mesa 25 does not), or use --device cpu",
        device.info()
    );
    Ok(())
}

/// A buffer for which there is no memory.
fn out_of_memory(device: &str, label: &str, words: usize) -> anyhow::Error {
    anyhow!(
        "{device}: out of memory for `{label}` ({} MiB): lower the batch size, the history length or the model's width \
         (vstar train --dry-run shows what takes how much)",
        words.div_ceil(1 << 18)
    )
}

/// A buffer that would not fit one binding.
#[derive(Debug)]
pub struct TooLarge {
    label: String,
    words: usize,
    most: usize,
}

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(
            f,
            "buffer `{}` needs {} MiB, more than the {} MiB one binding may hold on this device: use a smaller batch, \
             vocabulary or model, or another device",
            self.label,
            self.words.div_ceil(1 << 18),
            self.most >> 18
        )
    }
}

impl std::error::Error for TooLarge {}

/// An owned allocation; freed when dropped.
pub struct Buffer {
    device: DeviceRef,
    id: u32,
    words: usize,
}

impl Buffer {
    /// A zeroed buffer. Errors: larger than one binding may be, or out of memory (naming `label` and the size).
    pub fn new(device: &DeviceRef, label: &str, words: usize) -> Result<Buffer> {
        let words = words.max(1);
        let most = device.max_buffer_words();
        if words > most {
            return Err(TooLarge {
                label: label.into(),
                words,
                most,
            }
            .into());
        }
        let id = device.allocate(label, words)?;
        Ok(Buffer {
            device: device.clone(),
            id,
            words,
        })
    }

    /// A buffer holding `data`.
    pub fn with_f32(device: &DeviceRef, label: &str, data: &[f32]) -> Result<Buffer> {
        let buffer = Buffer::new(device, label, data.len())?;
        buffer.write_f32(data)?;
        Ok(buffer)
    }

    /// A buffer holding `data`.
    pub fn with_u32(device: &DeviceRef, label: &str, data: &[u32]) -> Result<Buffer> {
        let buffer = Buffer::new(device, label, data.len())?;
        buffer.write_u32(data)?;
        Ok(buffer)
    }

    /// The whole buffer.
    pub fn all(&self) -> Slice {
        self.first(self.words)
    }

    /// The first `len` words.
    pub fn first(&self, len: usize) -> Slice {
        self.slice(0, len)
    }

    /// `len` words from `offset`, a multiple of [`ALIGN_WORDS`].
    pub fn slice(&self, offset: usize, len: usize) -> Slice {
        assert!(
            offset.is_multiple_of(ALIGN_WORDS),
            "slice offset {offset} is not aligned"
        );
        assert!(
            offset + len <= self.words,
            "slice {offset}+{len} of a buffer of {} words",
            self.words
        );
        Slice {
            buffer: self.id,
            offset: offset as u32,
            len: len as u32,
            half: false,
        }
    }

    pub fn device(&self) -> &DeviceRef {
        &self.device
    }

    pub fn len(&self) -> usize {
        self.words
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    pub fn write_f32(&self, data: &[f32]) -> Result<()> {
        self.write_u32(bytemuck::cast_slice(data))
    }

    pub fn write_u32(&self, data: &[u32]) -> Result<()> {
        self.device.write(self.first(data.len()), data)
    }

    pub fn read_f32(&self) -> Result<Vec<f32>> {
        read_f32(&self.device, self.all())
    }

    pub fn read_u32(&self) -> Result<Vec<u32>> {
        Ok(self.device.read(&[self.all()])?.remove(0))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.device.release(self.id);
    }
}

/// Reads one slice as f32.
pub fn read_f32(device: &DeviceRef, slice: Slice) -> Result<Vec<f32>> {
    Ok(bytemuck::cast_vec(device.read(&[slice])?.remove(0)))
}
