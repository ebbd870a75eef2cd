//! How long launches take: by the GPU's own timestamps where it has them, else by the wall clock.

use super::{Args, Cost, Device, Grid, Kernel, Slice, Stream};
use crate::{bindings, params};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// What measured a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// The GPU's, written before and after each launch.
    Timestamps,
    /// The host's, around a launch and the wait for it, less those of a launch that does nothing.
    Wall,
}

/// The times of a stream's launches.
#[derive(Clone, Debug)]
pub struct Times {
    pub clock: Clock,
    /// Seconds, in order; `None` for a reading that cannot be right: zero, negative, or longer than the whole took.
    pub launches: Vec<Option<f64>>,
    /// Seconds by the host's clock for everything, from submission to the end.
    pub wall: f64,
}

impl Times {
    /// Seconds of all launches whose reading was kept.
    pub fn sum(&self) -> f64 {
        self.launches.iter().flatten().sum()
    }
}

/// A reading that can be right: more than nothing, and not more than `most`.
pub(super) fn plausible(seconds: f64, most: f64) -> Option<f64> {
    (seconds > 0.0 && seconds <= most).then_some(seconds)
}

params! {
    Nothing { n: u32 }
}

static NOTHING: Kernel = Kernel {
    name: "nothing",
    source: "
struct Params { n: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;
@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) lane: u32) {
    if lane < p.n { y[lane] = 0u; }
}",
    entry: "main",
    constants: &[],
    forms: &[],
    params: Nothing::FIELDS,
    bindings: bindings![y: Out U32],
    twin: |_: &Args| {},
    cost: |_| Cost::default(),
};

/// Records a launch of one workgroup that does nothing to `y`.
pub fn nothing(s: &mut Stream, y: Slice) {
    s.push(&NOTHING, &Nothing { n: 0 }, &[y], Grid(1));
}

/// Runs the launches one by one and waits for each.
pub fn by_wall_clock<D: Device + ?Sized>(device: &D, stream: &Stream) -> Result<Times> {
    let started = Instant::now();
    let mut one = Stream::new();
    let mut wait = |launch| -> Result<f64> {
        one.clear();
        one.launches.push(launch);
        let started = Instant::now();
        device.run(&one)?;
        device.read(&[one.launches[0].slices[0].first(1)])?;
        Ok(started.elapsed().as_secs_f64())
    };
    let mut floor = f64::INFINITY;
    if let Some(first) = stream.launches.first() {
        let mut idle = Stream::new();
        nothing(&mut idle, first.slices[0]);
        for _ in 0..9 {
            floor = floor.min(wait(idle.launches[0])?);
        }
    }
    let mut launches = Vec::with_capacity(stream.launches.len());
    for &launch in &stream.launches {
        launches.push(plausible(wait(launch)? - floor, f64::INFINITY));
    }
    Ok(Times {
        clock: Clock::Wall,
        launches,
        wall: started.elapsed().as_secs_f64(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::choose::{DeviceChoice, open};
    use crate::device::cpu::Cpu;
    use crate::device::gpu::GpuOptions;
    use crate::device::{Buffer, DeviceRef, Size, Word};
    use crate::kernels::fill::{self, FILL, fill_u32};
    use std::sync::Arc;

    #[test]
    fn readings_that_cannot_be_right_are_discarded() {
        assert_eq!(plausible(0.0, 1.0), None);
        assert_eq!(plausible(-1e-9, 1.0), None);
        assert_eq!(plausible(1.5, 1.0), None);
        assert_eq!(plausible(f64::NAN, 1.0), None);
        assert_eq!(plausible(0.5, 1.0), Some(0.5));
    }

    /// Each device, and whether it has nothing but the host's clock.
    fn devices() -> [(DeviceRef, bool); 3] {
        let choice = DeviceChoice {
            device: "gpu".into(),
            ..Default::default()
        };
        let options = |timed| GpuOptions {
            timed,
            ..Default::default()
        };
        let gpu = |timed| open(&choice, options(timed)).expect("GPU tests need an adapter");
        [
            (Arc::new(Cpu::new()), true),
            (gpu(true), false),
            (gpu(false), true),
        ]
    }

    /// A timed launch runs over the length that the launch before it wrote.
    #[test]
    fn timed_launches_see_what_the_device_knows() {
        for (device, _) in devices() {
            let [count, y] = [64, 100].map(|words| Buffer::new(&device, "y", words).unwrap());
            let mut s = Stream::new();
            fill_u32(&mut s, count.all(), 30);
            let size = Size::held(Word::at(count.all(), 5), 100);
            let params = fill::Params { n: 100, value: 7 };
            s.push(&FILL, &params, &[y.all()], Grid::cover(100, 256))
                .size("n", size);
            fill_u32(&mut s, count.all(), 0);
            assert_eq!(device.time(&s).unwrap().launches.len(), 3);
            let filled = y.read_u32().unwrap().iter().filter(|&&w| w == 7).count();
            assert_eq!(filled, 30);
        }
    }

    #[test]
    fn timed_launches_are_run() {
        for (device, wall) in devices() {
            // More launches than a set of timestamps holds.
            let n = if wall { 30 } else { 2100 };
            let y = Buffer::new(&device, "y", 64 * n).unwrap();
            let mut s = Stream::new();
            for i in 0..n {
                fill_u32(&mut s, y.slice(64 * i, 64), i as u32);
            }
            let times = device.time(&s).unwrap();
            assert_eq!(times.launches.len(), n);
            assert!(times.sum() <= times.wall);
            assert!(!wall || times.clock == Clock::Wall);
            let want: Vec<u32> = (0..64 * n as u32).map(|i| i / 64).collect();
            assert_eq!(y.read_u32().unwrap(), want);
        }
    }
}
