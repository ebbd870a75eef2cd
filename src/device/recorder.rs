//! A device that keeps the streams it is given, for benches and for tests of what a step asks of a device.

use super::timing::Times;
use super::{
    Choices, Counters, Device, DeviceInfo, DeviceRef, Launch, Memory, Reading, Slice, Stream,
};
use anyhow::Result;
use std::sync::Mutex;

/// Runs everything on another device.
pub struct Recorder {
    device: DeviceRef,
    streams: Mutex<Vec<Stream>>,
}

impl Recorder {
    pub fn new(device: DeviceRef) -> Recorder {
        Recorder {
            device,
            streams: Mutex::default(),
        }
    }

    /// The streams run since the last call, in order. Their launches may be run again while what allocated their buffers
    /// is alive.
    pub fn take(&self) -> Vec<Stream> {
        std::mem::take(&mut *self.streams.lock().unwrap())
    }
}

impl Device for Recorder {
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
        self.streams.lock().unwrap().push(stream.clone());
        self.device.run(stream)
    }

    fn prepare(&self, streams: &mut dyn Iterator<Item = Stream>) -> Result<()> {
        self.device.prepare(streams)
    }

    fn time(&self, stream: &Stream) -> Result<Times> {
        self.device.time(stream)
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

    fn choices(&self) -> Choices {
        self.device.choices()
    }

    fn choose(&self, choices: &Choices) {
        self.device.choose(choices);
    }

    fn insist(&self, form: Option<&'static str>) {
        self.device.insist(form);
    }
}
