//! Reading back: slices are copied into a staging buffer behind all that was submitted before; the host maps it when it
//! wants the words, which may be while later work runs.

use super::{Gpu, State, new_buffer};
use crate::device::{Reading, Slice};
use anyhow::{Context, Result, anyhow};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Staging buffers that no read-back is using.
pub(super) type Staging = Arc<Mutex<Vec<wgpu::Buffer>>>;

/// Smallest staging buffer made: a step's figures fit.
const SMALLEST: usize = 4096;

impl Gpu {
    /// A free staging buffer of at least so many bytes.
    fn staging(&self, state: &State, bytes: usize) -> wgpu::Buffer {
        let mut free = state.staging.lock().unwrap();
        let fits = |b: &wgpu::Buffer| b.size() as usize >= bytes;
        let best = (0..free.len())
            .filter(|&i| fits(&free[i]))
            .min_by_key(|&i| free[i].size());
        match best {
            Some(i) => free.swap_remove(i),
            None => {
                // One that is too small will not be wanted again.
                free.pop();
                let size = bytes.next_power_of_two().max(SMALLEST);
                let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                new_buffer(&self.device, "read-back", size, usage)
            }
        }
    }

    /// The words at these bytes of a buffer, as all that was submitted leaves them.
    pub(super) fn words(&self, buffer: &wgpu::Buffer, bytes: Range<u64>) -> Result<Vec<u32>> {
        let length = bytes.end - bytes.start;
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let staging = new_buffer(&self.device, "words", length as usize, usage);
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, bytes.start, &staging, 0, length);
        self.queue.submit([encoder.finish()]);
        // An error is the read's below.
        staging.map_async(wgpu::MapMode::Read, .., |_| ());
        self.wait()?;
        let view = staging.slice(..).get_mapped_range();
        let view = view.map_err(|e| anyhow!("{}: reading back failed: {e:?}", self.info.name))?;
        Ok(bytemuck::cast_slice(&view).to_vec())
    }

    pub(super) fn begin_reading(&self, from: &[Slice]) -> Result<Reading> {
        let from: Vec<Slice> = from.iter().map(|s| s.words()).collect();
        let mut state = self.state.lock().unwrap();
        let state = &mut *state;
        let total: usize = from.iter().map(|s| 4 * s.len as usize).sum();
        let staging = self.staging(state, total);
        state.counters.bytes_read_back += total as u64;
        state.counters.submissions += 1;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let mut at = 0;
        for slice in &from {
            let buffer = state.buffers[slice.buffer as usize].as_ref();
            let buffer = buffer.expect("buffer is alive");
            let (offset, bytes) = (4 * slice.offset as u64, 4 * slice.len as u64);
            encoder.copy_buffer_to_buffer(buffer, offset, &staging, at, bytes);
            at += bytes;
        }
        let submission = self.queue.submit([encoder.finish()]);
        let (sender, receiver) = std::sync::mpsc::channel();
        staging
            .slice(..total as u64)
            .map_async(wgpu::MapMode::Read, move |result| {
                let _ = sender.send((result, Instant::now()));
            });
        let lengths: Vec<usize> = from.iter().map(|s| s.len as usize).collect();
        let (device, fault) = (self.device.clone(), self.fault.clone());
        let (name, free) = (self.info.name.clone(), state.staging.clone());
        Ok(Reading::pending(move || {
            let failed = |e: &dyn std::fmt::Debug| anyhow!("{name}: reading back failed: {e:?}");
            super::wait(&device, (&fault, &name), Some(submission))?;
            let answer = receiver.recv();
            let (mapped, when) = answer.context("the GPU never answered a read-back")?;
            mapped.map_err(|e| failed(&e))?;
            let view = staging.slice(..total as u64);
            let mapped = view.get_mapped_range().map_err(|e| failed(&e))?;
            let mut at = 0;
            let words = |len: usize| {
                let mut words = vec![0u32; len];
                bytemuck::cast_slice_mut::<u32, u8>(&mut words)
                    .copy_from_slice(&mapped[at..at + 4 * len]);
                at += 4 * len;
                words
            };
            let out = lengths.into_iter().map(words).collect();
            drop(mapped);
            staging.unmap();
            free.lock().unwrap().push(staging);
            Ok((out, when))
        }))
    }
}

#[cfg(test)]
mod tests {
    use crate::device::gpu::forms::tests::gpu;
    use crate::device::tuning::Forms;
    use crate::device::{Buffer, DeviceRef};

    /// Nothing looks at the device between its loss and the read-back, whose submission it never takes.
    #[test]
    fn reading_from_a_lost_device_says_that_it_is_lost() {
        let gpu = gpu(Forms::Fixed);
        let device: DeviceRef = gpu.clone();
        let buffer = Buffer::with_f32(&device, "x", &[1.0]).unwrap();
        assert_eq!(buffer.read_f32().unwrap(), [1.0]);
        gpu.lose();
        let error = buffer.read_f32().unwrap_err().to_string();
        assert!(error.contains("the device was lost"), "{error}");
    }
}
