//! Times of launches by timestamps: each launch in a pass of its own, which the GPU stamps at its ends.

use super::{Gpu, new_buffer};
use crate::device::Stream;
use crate::device::timing::{Clock, Times, plausible};
use anyhow::{Context, Result, anyhow};
use std::time::Instant;

/// Launches per set of timestamps: half of what a query set may hold.
const LAUNCHES: usize = 2048;

impl Gpu {
    /// Runs the stream; see [`crate::device::Device::time`].
    pub(super) fn time_by_timestamps(&self, stream: &Stream) -> Result<Times> {
        let mut times = Times {
            clock: Clock::Timestamps,
            launches: Vec::with_capacity(stream.launches.len()),
            wall: 0.0,
        };
        for launches in stream.launches.chunks(LAUNCHES) {
            let part = Stream {
                launches: launches.to_vec(),
                ..Stream::default()
            };
            let (seconds, wall) = self.stamped(&part)?;
            // Launches follow one another: stamps that add up to more than went by are wrong, and who knows which.
            let sound = seconds.iter().sum::<f64>() <= wall;
            let kept = |s: f64| plausible(s, wall).filter(|_| sound);
            times.launches.extend(seconds.into_iter().map(kept));
            times.wall += wall;
        }
        Ok(times)
    }

    /// Seconds between each launch's stamps, 0 where it had to run before, to be timed or for another's form to be
    /// measured; and of the rest by the host's clock.
    fn stamped(&self, stream: &Stream) -> Result<(Vec<f64>, f64)> {
        let mut state = self.state.lock().unwrap();
        let submitted = self.load(&mut state, stream)?;
        if submitted == stream.launches.len() {
            return Ok((vec![0.0; submitted], 0.0));
        }
        let count = 2 * (stream.launches.len() - submitted);
        let bytes = 8 * count;
        let queries = self.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("timestamps"),
            ty: wgpu::QueryType::Timestamp,
            count: count as u32,
        });
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let resolved = new_buffer(&self.device, "timestamps", bytes, usage);
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let staging = new_buffer(&self.device, "timestamps read back", bytes, usage);

        let pieces = self.pieces(&state, stream, submitted..stream.launches.len());
        let (mut rest, mut wall) = (&pieces[..], 0.0);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(state.pace.submission(rest));
            state.firsts.upload(&self.queue, now);
            let mut encoder = self.device.create_command_encoder(&Default::default());
            let mut slots = 0;
            for piece in now {
                let query = 2 * (piece.launch - submitted) as u32;
                let begins = piece.first == 0;
                if begins {
                    let mut pass = encoder.begin_compute_pass(&Default::default());
                    state.resolve(&mut pass, piece.launch);
                }
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: None,
                    timestamp_writes: (begins || piece.last).then_some(
                        wgpu::ComputePassTimestampWrites {
                            query_set: &queries,
                            beginning_of_pass_write_index: begins.then_some(query),
                            end_of_pass_write_index: piece.last.then_some(query + 1),
                        },
                    ),
                });
                state.encode(&mut pass, (stream, piece), &mut slots);
            }
            if later.is_empty() {
                encoder.resolve_query_set(&queries, 0..count as u32, &resolved, 0);
                encoder.copy_buffer_to_buffer(&resolved, 0, &staging, 0, bytes as u64);
            }
            let commands = encoder.finish();
            // What was submitted before must not count.
            self.wait()?;
            let started = Instant::now();
            self.queue.submit([commands]);
            self.wait()?;
            wall += started.elapsed().as_secs_f64();
            state.counters.submissions += 1;
            state.counters.dispatches += now.len() as u64;
            rest = later;
        }
        drop(state);

        let (sender, receiver) = std::sync::mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            let _ = sender.send(result);
        });
        self.wait()?;
        receiver
            .recv()
            .context("the GPU never answered for its timestamps")?
            .map_err(|e| anyhow!("{}: reading timestamps failed: {e}", self.info.name))?;
        let mapped = staging
            .get_mapped_range(..)
            .map_err(|e| anyhow!("{}: reading timestamps failed: {e:?}", self.info.name))?;
        let period = 1e-9 * self.queue.get_timestamp_period() as f64;
        let stamps: &[u64] = bytemuck::cast_slice(&mapped);
        let elapsed = stamps
            .chunks_exact(2)
            .map(|pair| period * (pair[1] as i64).wrapping_sub(pair[0] as i64) as f64);
        let seconds = std::iter::repeat_n(0.0, submitted).chain(elapsed).collect();
        Ok((seconds, wall))
    }
}
