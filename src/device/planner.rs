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
    max_buffer_words: usize,
    state: Mutex<State>,
}

impl Planner {
    /// For a device whose buffers may be as large as this.
    pub fn new(max_buffer_words: usize) -> Self {
        Planner {
            max_buffer_words,
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
        self.max_buffer_words
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
