//! The CPU device: runs each launch's twin; the twins share it out among [`threads`].

use super::stream::MAX_BINDINGS;
use super::timing::{Clock, Times, plausible};
use super::{
    Access, Args, Counters, Device, DeviceInfo, Launch, Memory as Bytes, Reading, Slice, Stream,
    Word, out_of_memory, threads,
};
use anyhow::Result;
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::sync::Mutex;
use std::time::Instant;

/// 64-byte chunks, so that every buffer (and every aligned slice) starts on a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

struct Memory {
    lines: Vec<Line>,
    words: usize,
    label: String,
}

#[derive(Default)]
struct State {
    buffers: Vec<Option<Memory>>,
    free: Vec<u32>,
    counters: Counters,
    held: Bytes,
    /// f16 operands of the launch being run, as f32; by binding.
    widened: [Vec<f32>; MAX_BINDINGS],
}

impl State {
    fn word(&self, word: Word) -> u32 {
        let memory = self.buffers[word.buffer as usize].as_ref();
        let lines = &memory.expect("buffer is alive").lines;
        lines[word.offset as usize / 16].0[word.offset as usize % 16]
    }

    /// Where a slice of words lies.
    fn pointer(&mut self, slice: Slice) -> *mut u32 {
        debug_assert!(!slice.half);
        let memory = self.buffers[slice.buffer as usize]
            .as_mut()
            .expect("buffer is alive");
        assert!((slice.offset + slice.len) as usize <= memory.words);
        // SAFETY: in bounds by the assertion above.
        unsafe {
            memory
                .lines
                .as_mut_ptr()
                .cast::<u32>()
                .add(slice.offset as usize)
        }
    }

    /// The elements of an f16 slice.
    fn halves(&mut self, slice: Slice) -> &mut [f16] {
        let pointer = self.pointer(slice.words()).cast();
        // SAFETY: words hold two elements each, `&mut self` makes the view exclusive, and every pattern is an f16.
        unsafe { std::slice::from_raw_parts_mut(pointer, slice.len as usize) }
    }

    /// What the twin sees of binding `index`: twins compute in f32, so halves are widened for them.
    fn operand(&mut self, launch: &Launch, index: usize) -> (*mut u32, usize) {
        let slice = launch.slices()[index];
        if !slice.half {
            return (self.pointer(slice), slice.len as usize);
        }
        let mut widened = std::mem::take(&mut self.widened[index]);
        widened.resize(slice.len as usize, 0.0);
        self.halves(slice).convert_to_f32_slice(&mut widened);
        let pointer = widened.as_mut_ptr().cast();
        self.widened[index] = widened;
        (pointer, slice.len as usize)
    }

    /// Rounds what the twin wrote to f16 outputs.
    fn narrow(&mut self, launch: &Launch) {
        let bindings = launch.kernel.bindings.iter().zip(launch.slices());
        for (index, (binding, &slice)) in bindings.enumerate() {
            if slice.half && binding.access == Access::Out {
                let widened = std::mem::take(&mut self.widened[index]);
                self.halves(slice).convert_from_f32_slice(&widened);
                self.widened[index] = widened;
            }
        }
    }
}

pub struct Cpu {
    info: DeviceInfo,
    state: Mutex<State>,
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Cpu {
    pub fn new() -> Self {
        Cpu {
            info: DeviceInfo {
                name: "cpu".into(),
                backend: "cpu".into(),
                driver: format!("{} threads", threads::count()),
                software: true,
            },
            state: Mutex::default(),
        }
    }

    /// The launch with its parameters as they would be if it ran now.
    pub fn resolved(&self, launch: &Launch) -> Launch {
        let state = self.state.lock().unwrap();
        launch.resolved(|word| state.word(word))
    }

    /// Calls the twins in order, and `after` after each.
    fn execute(&self, stream: &Stream, mut after: impl FnMut()) {
        let mut state = self.state.lock().unwrap();
        state.counters.submissions += 1;
        state.counters.dispatches += stream.launches.len() as u64;
        for launch in &stream.launches {
            let launch = &launch.resolved(|word| state.word(word));
            let mut memory = [(std::ptr::null_mut(), 0); MAX_BINDINGS];
            let bound = &mut memory[..launch.slices().len()];
            for (index, memory) in bound.iter_mut().enumerate() {
                *memory = state.operand(launch, index);
            }
            // SAFETY: pointers are valid while the lock is held; `Stream::push` checked the aliasing.
            (launch.kernel.twin)(&unsafe { Args::new(launch, memory) });
            state.narrow(launch);
            after();
        }
    }
}

impl Device for Cpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&self, label: &str, words: usize) -> Result<u32> {
        let count = words.div_ceil(16);
        let mut lines = Vec::new();
        lines
            .try_reserve_exact(count)
            .map_err(|_| out_of_memory(&self.info.name, label, words))?;
        lines.resize(count, Line([0; 16]));
        let memory = Some(Memory {
            lines,
            words,
            label: label.into(),
        });
        let mut state = self.state.lock().unwrap();
        state.held.take(4 * words as u64);
        Ok(match state.free.pop() {
            Some(id) => {
                state.buffers[id as usize] = memory;
                id
            }
            None => {
                state.buffers.push(memory);
                (state.buffers.len() - 1) as u32
            }
        })
    }

    fn label(&self, buffer: u32) -> String {
        let state = self.state.lock().unwrap();
        let memory = state.buffers[buffer as usize].as_ref();
        memory.expect("buffer is alive").label.clone()
    }

    fn release(&self, buffer: u32) {
        let mut state = self.state.lock().unwrap();
        if let Some(memory) = state.buffers[buffer as usize].take() {
            state.held.give(4 * memory.words as u64);
        }
        state.free.push(buffer);
    }

    fn write(&self, to: Slice, data: &[u32]) -> Result<()> {
        let to = to.words();
        assert!(data.len() <= to.len as usize);
        let mut state = self.state.lock().unwrap();
        state.counters.bytes_uploaded += 4 * data.len() as u64;
        let pointer = state.pointer(to);
        // SAFETY: `pointer` is valid for `to.len` words and the lock is held.
        unsafe { std::slice::from_raw_parts_mut(pointer, data.len()) }.copy_from_slice(data);
        Ok(())
    }

    fn begin_reading(&self, from: &[Slice]) -> Result<Reading> {
        let mut state = self.state.lock().unwrap();
        let words = from
            .iter()
            .map(|slice| {
                let slice = slice.words();
                state.counters.bytes_read_back += 4 * slice.len as u64;
                let pointer = state.pointer(slice);
                // SAFETY: as in `write`.
                unsafe { std::slice::from_raw_parts(pointer, slice.len as usize) }.to_vec()
            })
            .collect();
        Ok(Reading::here(words))
    }

    fn run(&self, stream: &Stream) -> Result<()> {
        self.execute(stream, || ());
        Ok(())
    }

    fn time(&self, stream: &Stream) -> Result<Times> {
        let started = Instant::now();
        let (mut last, mut launches) = (started, Vec::with_capacity(stream.launches.len()));
        self.execute(stream, || {
            let now = Instant::now();
            launches.push(plausible((now - last).as_secs_f64(), f64::INFINITY));
            last = now;
        });
        Ok(Times {
            clock: Clock::Wall,
            launches,
            wall: started.elapsed().as_secs_f64(),
        })
    }

    fn counters(&self) -> Counters {
        self.state.lock().unwrap().counters
    }

    fn memory(&self) -> Bytes {
        self.state.lock().unwrap().held
    }
}
