//! Takes times, and makes figures of them.

use crate::device::timing::{Clock, Times, by_wall_clock, nothing};
use crate::device::{Buffer, DeviceRef, Stream};
use crate::kernels::fma;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Of several readings of one thing, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    /// Nine in ten were at most this.
    pub p90: f64,
    /// Readings kept.
    pub samples: usize,
    /// Readings that could not be right.
    pub discarded: usize,
}

impl Summary {
    /// Errors: no reading can be right.
    pub fn of(readings: impl IntoIterator<Item = Option<f64>>) -> Result<Summary> {
        let readings: Vec<_> = readings.into_iter().collect();
        let mut kept: Vec<f64> = readings.iter().copied().flatten().collect();
        kept.sort_by(f64::total_cmp);
        let last = kept.len().checked_sub(1);
        let last = last.context("no reading of the clock can be right")?;
        Ok(Summary {
            median: kept[kept.len() / 2],
            min: kept[0],
            p90: kept[(9 * last).div_ceil(10)],
            samples: kept.len(),
            discarded: readings.len() - kept.len(),
        })
    }
}

/// A device and how its launches are timed.
pub struct Stopwatch {
    pub device: DeviceRef,
    /// Readings per figure.
    pub repeat: usize,
    pub clock: Clock,
    /// What the clock gave for a long launch, over what the host's clock gave.
    pub agreement: f64,
    /// Whether the device's own way to time launches agrees.
    trusted: bool,
    spare: Buffer,
}

/// Below, the GPU's clock has missed most of the work.
const LEAST_AGREEMENT: f64 = 0.5;

impl Stopwatch {
    /// Compares the device's own timestamps, if it has any, with the host's clock, and takes them if they agree.
    pub fn new(device: DeviceRef, repeat: usize) -> Result<Stopwatch> {
        let spare = Buffer::new(&device, "spare", fma::BLOCK * 256)?;
        let mut stream = Stream::new();
        let mut rounds = 64;
        // Until it takes so long that a submission does not matter.
        let times = loop {
            stream.clear();
            fma::fma(&mut stream, spare.all(), spare.len(), rounds, [0.75, 0.5]);
            let times = device.time(&stream)?;
            if times.wall > 0.03 || rounds >= 1 << 24 {
                break times;
            }
            rounds *= 2;
        };
        let agreement = times.sum() / times.wall;
        let trusted = agreement >= LEAST_AGREEMENT;
        Ok(Stopwatch {
            device,
            repeat,
            clock: if trusted { times.clock } else { Clock::Wall },
            agreement,
            trusted,
            spare,
        })
    }

    /// Seconds of each launch.
    pub fn launches(&self, stream: &Stream) -> Result<Times> {
        match self.trusted {
            true => self.device.time(stream),
            false => by_wall_clock(&*self.device, stream),
        }
    }

    /// Seconds by the host's clock from submission to the end.
    pub fn whole(&self, stream: &Stream) -> Result<f64> {
        let started = Instant::now();
        self.device.run(stream)?;
        self.device.read(&[self.spare.first(1)])?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Seconds of a submission of `n` launches that do nothing; the least of some.
    pub fn nothing(&self, n: usize) -> Result<f64> {
        let mut stream = Stream::new();
        for _ in 0..n {
            nothing(&mut stream, self.spare.all());
        }
        let mut least = f64::INFINITY;
        for _ in 0..20 {
            least = least.min(self.whole(&stream)?);
        }
        Ok(least)
    }

    /// The readings of `act`, after one to warm up.
    pub fn repeat<T>(&self, mut act: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
        act()?;
        (0..self.repeat).map(|_| act()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_leaves_wrong_readings_out() {
        let readings = (1..=10).map(|i| Some(i as f64)).chain([None, None]);
        let summary = Summary::of(readings).unwrap();
        let figures = (summary.min, summary.median, summary.p90);
        assert_eq!(figures, (1.0, 6.0, 10.0));
        assert_eq!((summary.samples, summary.discarded), (10, 2));
        assert!(Summary::of([None]).is_err());
    }
}
