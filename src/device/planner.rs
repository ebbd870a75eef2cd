//! A device that only counts: whatever allocates on it as it would on a real one learns what that takes. So a plan of a
//! run's memory is made by the run's own constructors and cannot drift from them.

use super::{Counters, Device, DeviceInfo, Memory, Reading, Slice, Stream};
use anyhow::Result;
use std::sync::Mutex;

#[derive(Default)]
struct State {
    /// (label, bytes) of each buffer that is alive.
    buffers: Vec<Option<(String, u64)>>,
    memory: Memory,
}

/// Buffers without memory: writes are forgotten, reads give zeros, streams do nothing.
pub struct Planner {
    info: DeviceInfo,
    limits: Limits,
    state: Mutex<State>,
}

/// What of a device decides how large the buffers are that are made on it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// [`Device::max_buffer_words`].
    pub buffer_words: usize,
    /// [`Device::longest_loop`].
    pub longest_loop: u32,
}

impl Limits {
    pub fn of(device: &dyn Device) -> Limits {
        Limits {
            buffer_words: device.max_buffer_words(),
            longest_loop: device.longest_loop(),
        }
    }
}

impl Planner {
    /// For a device with these limits.
    pub fn new(limits: Limits) -> Self {
        Planner {
            limits,
            info: DeviceInfo {
                name: "plan".into(),
                backend: "plan".into(),
                driver: "counts only".into(),
                software: true,
            },
            state: Mutex::default(),
        }
    }

    /// Label and bytes of each buffer that is alive.
    pub fn buffers(&self) -> Vec<(String, u64)> {
        let state = self.state.lock().unwrap();
        state.buffers.iter().flatten().cloned().collect()
    }
}

impl Device for Planner {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn max_buffer_words(&self) -> usize {
        self.limits.buffer_words
    }

    fn longest_loop(&self) -> u32 {
        self.limits.longest_loop
    }

    fn allocate(&self, label: &str, words: usize) -> Result<u32> {
        let mut state = self.state.lock().unwrap();
        let bytes = 4 * words as u64;
        state.memory.take(bytes);
        state.buffers.push(Some((label.to_string(), bytes)));
        Ok((state.buffers.len() - 1) as u32)
    }

    fn label(&self, buffer: u32) -> String {
        let state = self.state.lock().unwrap();
        let buffer = state.buffers[buffer as usize].as_ref();
        buffer.expect("buffer is alive").0.clone()
    }

    fn release(&self, buffer: u32) {
        let mut state = self.state.lock().unwrap();
        if let Some((_, bytes)) = state.buffers[buffer as usize].take() {
            state.memory.give(bytes);
        }
    }

    fn write(&self, _: Slice, _: &[u32]) -> Result<()> {
        Ok(())
    }

    fn begin_reading(&self, from: &[Slice]) -> Result<Reading> {
        let zeros = from.iter().map(|slice| vec![0; slice.len as usize]);
        Ok(Reading::here(zeros.collect()))
    }

    fn run(&self, _: &Stream) -> Result<()> {
        Ok(())
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }

    fn memory(&self) -> Memory {
        self.state.lock().unwrap().memory
    }
}
