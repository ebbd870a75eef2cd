//! What the device can do at most, measured before anything is compared with it, and once more after: on a machine that
//! others use too, the better of the two is nearer the truth.

use super::stopwatch::{Stopwatch, Summary};
use crate::device::{Buffer, Cost, Stream};
use crate::kernels::{copy, fma, rng};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Words copied: 64 MiB, more than most caches hold.
const COPIED: usize = 1 << 24;
/// Elements under multiply-adds.
const ELEMENTS: usize = 1 << 22;
/// The best of so many: a ceiling must not be what a busy moment left.
const LEAST_READINGS: usize = 10;

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ceilings {
    /// Of chains of fused multiply-adds in registers.
    pub operations_per_second: f64,
    /// Read and written, copying 64 MiB.
    pub bytes_per_second: f64,
    /// Of one more launch that does nothing.
    pub launch_seconds: f64,
    /// Of a submission and the wait for it.
    pub submission_seconds: f64,
}

impl Ceilings {
    pub fn measure(watch: &Stopwatch) -> Result<Ceilings> {
        let device = &watch.device;
        let words = Buffer::new(device, "copied", COPIED)?;
        let copied = Buffer::new(device, "copy", COPIED)?;
        let [units, gumbels] = [(); 2].map(|()| Buffer::new(device, "random", ELEMENTS));
        let (units, gumbels) = (units?, gumbels?);
        let mut stream = Stream::new();
        let draws = rng::Params {
            n: ELEMENTS as u32,
            key: 1,
            step: 0,
            document: 0,
        };
        rng::draw(&mut stream, draws, words.all(), units.all(), gumbels.all());
        device.run(&stream)?;
        let best = |stream: &Stream| -> Result<f64> {
            let reading = |_| Ok(watch.launches(stream)?.launches[0]);
            let readings: Result<Vec<_>> =
                (0..LEAST_READINGS.max(watch.repeat)).map(reading).collect();
            Ok(Summary::of(readings?)?.min)
        };

        stream.clear();
        copy::copy(&mut stream, words.all(), copied.all(), COPIED);
        let Cost { bytes, .. } = stream.launches[0].cost();
        let bytes_per_second = bytes as f64 / best(&stream)?;

        let mut rounds = 64;
        let operations_per_second = loop {
            stream.clear();
            fma::fma(&mut stream, units.all(), ELEMENTS, rounds, [0.75, 0.5]);
            let seconds = best(&stream)?;
            // So long that reading and writing the elements does not matter.
            if seconds > 0.01 || rounds >= 1 << 20 {
                break stream.launches[0].cost().operations as f64 / seconds;
            }
            rounds *= 2;
        };

        let (one, many) = (watch.nothing(1)?, watch.nothing(101)?);
        Ok(Ceilings {
            operations_per_second,
            bytes_per_second,
            launch_seconds: ((many - one) / 100.0).max(0.0),
            submission_seconds: one,
        })
    }

    /// The higher of each, the shorter times.
    pub fn best(self, other: Ceilings) -> Ceilings {
        let (a, b) = (self, other);
        Ceilings {
            operations_per_second: a.operations_per_second.max(b.operations_per_second),
            bytes_per_second: a.bytes_per_second.max(b.bytes_per_second),
            launch_seconds: a.launch_seconds.min(b.launch_seconds),
            submission_seconds: a.submission_seconds.min(b.submission_seconds),
        }
    }

    /// The larger of the shares of both ceilings that `cost` in `seconds` reaches, and which it is.
    pub fn share(&self, cost: Cost, seconds: f64) -> (f64, &'static str) {
        let operations = cost.operations as f64 / seconds / self.operations_per_second;
        let bytes = cost.bytes as f64 / seconds / self.bytes_per_second;
        match operations >= bytes {
            true => (operations, "fma"),
            false => (bytes, "copy"),
        }
    }
}

impl fmt::Display for Ceilings {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "fma {:.1} GFLOP/s, copy {:.2} GB/s, launch {:.3} us, submission {:.1} us",
            1e-9 * self.operations_per_second,
            1e-9 * self.bytes_per_second,
            1e6 * self.launch_seconds,
            1e6 * self.submission_seconds
        )
    }
}
