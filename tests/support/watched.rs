//! A device that does with every stream what a test wants done.

use anyhow::Result;
use vstar::device::{
    Counters, Device, DeviceInfo, DeviceRef, Launch, Memory, Reading, Slice, Stream,
};

/// Another device, and what running a stream on it is.
pub struct Watched<F> {
    pub device: DeviceRef,
    pub run: F,
}

impl<F: Fn(&DeviceRef, &Stream) -> Result<()> + Send + Sync> Device for Watched<F> {
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    fn max_buffer_words(&self) -> usize {
        self.device.max_buffer_words()
    }

    fn longest_loop(&self) -> u32 {
        self.device.longest_loop()
    }

    fn allocate(&self, label: &str, words: usize) -> Result<u32> {
        self.device.allocate(label, words)
    }

    fn label(&self, buffer: u32) -> String {
        self.device.label(buffer)
    }

    fn release(&self, buffer: u32) {
        self.device.release(buffer);
    }

    fn write(&self, to: Slice, data: &[u32]) -> Result<()> {
        self.device.write(to, data)
    }

    fn begin_reading(&self, from: &[Slice]) -> Result<Reading> {
        self.device.begin_reading(from)
    }

    fn run(&self, stream: &Stream) -> Result<()> {
        (self.run)(&self.device, stream)
    }

    fn prepare(&self, streams: &mut dyn Iterator<Item = Stream>) -> Result<()> {
        self.device.prepare(streams)
    }

    fn has_halves(&self) -> bool {
        self.device.has_halves()
    }

    fn counters(&self) -> Counters {
        self.device.counters()
    }

    fn memory(&self) -> Memory {
        self.device.memory()
    }

    fn form(&self, launch: &Launch) -> &'static str {
        self.device.form(launch)
    }
}
