//! Lockstep: every launch runs on two devices from the same bits, and the first whose outputs differ is named. This
//! is how a user checks a GPU nobody here has seen.

use super::{
    Access, Choices, Counters, Device, DeviceInfo, DeviceRef, Launch, Memory, Reading, Slice,
    Stream, Type,
};
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Largest relative error (by norm, see [`relative_error`]) one launch may show.
pub const TOLERANCE: f64 = 2e-5;

/// Relative error of `got` against `want` by the Euclidean norm, in f64. Equal bits count as equal, so infinities and
/// mask constants may be compared; a NaN or infinity on one side only gives infinity.
pub fn relative_error(want: &[f32], got: &[f32]) -> f64 {
    assert_eq!(want.len(), got.len(), "compared slices differ in length");
    let (mut difference, mut norm) = (0.0f64, 0.0f64);
    for (&w, &g) in want.iter().zip(got) {
        if w.to_bits() != g.to_bits() {
            if !w.is_finite() || !g.is_finite() {
                return f64::INFINITY;
            }
            difference += (w as f64 - g as f64).powi(2);
        }
        // Mask constants (about -1e30) are equal on both sides; they must not drown the norm.
        if w.is_finite() && w.abs() < 1e29 {
            norm += (w as f64).powi(2);
        }
    }
    if difference == 0.0 {
        0.0
    } else {
        (difference / norm.max(1e-60)).sqrt()
    }
}

/// The worst relative error each kernel has shown, and how often it ran. `kernel/form` where there are several forms.
pub type Worst = BTreeMap<String, (f64, u64)>;

pub struct Lockstep {
    info: DeviceInfo,
    reference: DeviceRef,
    subject: DeviceRef,
    worst: Mutex<Worst>,
}

impl Lockstep {
    /// `subject` is held against `reference` (the CPU device). Both must be fresh: buffers are numbered alike.
    pub fn new(reference: DeviceRef, subject: DeviceRef) -> Self {
        let mut info = subject.info().clone();
        info.driver = format!("{}, in lockstep with the CPU", info.driver);
        Lockstep {
            info,
            reference,
            subject,
            worst: Mutex::default(),
        }
    }

    pub fn worst(&self) -> Worst {
        self.worst.lock().unwrap().clone()
    }
}

/// Integers must be equal: the fraction that differ. Floats by [`relative_error`].
fn difference(ty: Type, want: &[u32], got: &[u32]) -> f64 {
    match ty {
        Type::F32 => relative_error(bytemuck::cast_slice(want), bytemuck::cast_slice(got)),
        Type::U32 => {
            let wrong = want.iter().zip(got).filter(|(a, b)| a != b).count();
            wrong as f64 / want.len() as f64
        }
    }
}

/// The element that differs most, in words.
fn worst_element(ty: Type, want: &[u32], got: &[u32]) -> String {
    let size = |i: usize| match ty {
        Type::U32 => (want[i] != got[i]) as u32 as f64,
        Type::F32 => {
            let (w, g) = (f32::from_bits(want[i]), f32::from_bits(got[i]));
            let d = (w as f64 - g as f64).abs();
            if w.to_bits() == g.to_bits() {
                0.0
            } else if d.is_nan() {
                f64::INFINITY
            } else {
                d
            }
        }
    };
    let i = (0..want.len())
        .max_by(|&a, &b| size(a).total_cmp(&size(b)))
        .unwrap_or(0);
    match ty {
        Type::U32 => format!("element {i}: {} on the CPU, {} here", want[i], got[i]),
        Type::F32 => format!(
            "element {i}: {} on the CPU, {} here",
            f32::from_bits(want[i]),
            f32::from_bits(got[i])
        ),
    }
}

impl Device for Lockstep {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&self, label: &str, words: usize) -> Result<u32> {
        let id = self.reference.allocate(label, words)?;
        let other = self.subject.allocate(label, words)?;
        assert_eq!(id, other, "lockstep devices number buffers alike");
        Ok(id)
    }

    fn release(&self, buffer: u32) {
        self.reference.release(buffer);
        self.subject.release(buffer);
    }

    fn write(&self, to: Slice, data: &[u32]) -> Result<()> {
        self.reference.write(to, data)?;
        self.subject.write(to, data)
    }

    fn begin_reading(&self, from: &[Slice]) -> Result<Reading> {
        self.subject.begin_reading(from)
    }

    fn run(&self, stream: &Stream) -> Result<()> {
        for (number, launch) in stream.launches.iter().enumerate() {
            let one = Stream {
                launches: vec![*launch],
                ..Stream::default()
            };
            self.reference.run(&one)?;
            self.subject.run(&one)?;
            let outputs: Vec<(usize, Slice)> = launch
                .slices()
                .iter()
                .enumerate()
                .filter(|(i, _)| launch.kernel.bindings[*i].access == Access::Out)
                .map(|(i, &s)| (i, s))
                .collect();
            let slices: Vec<Slice> = outputs.iter().map(|o| o.1).collect();
            let want = self.reference.read(&slices)?;
            let got = self.subject.read(&slices)?;
            let name = match launch.kernel.forms {
                [] => launch.kernel.name.to_string(),
                _ => format!("{}/{}", launch.kernel.name, self.subject.form(launch)),
            };
            let compared = outputs.iter().zip(&want).zip(&got);
            for (nth, (((i, slice), want), got)) in compared.enumerate() {
                let binding = &launch.kernel.bindings[*i];
                let error = difference(binding.ty, want, got);
                let mut worst = self.worst.lock().unwrap();
                let entry = worst.entry(name.clone()).or_insert((0.0, 0));
                entry.0 = entry.0.max(error);
                entry.1 += (nth == 0) as u64;
                if error > TOLERANCE {
                    bail!(
                        "launch {number} of {}: kernel {name}, output `{}` differs by {error:.1e} ({})",
                        stream.launches.len(),
                        binding.name,
                        worst_element(binding.ty, want, got)
                    );
                }
                // Go on from the reference's bits, so that each launch answers for itself alone.
                self.subject.write(*slice, want)?;
            }
        }
        Ok(())
    }

    fn counters(&self) -> Counters {
        self.subject.counters()
    }

    fn memory(&self) -> Memory {
        self.subject.memory()
    }

    fn form(&self, launch: &Launch) -> &'static str {
        self.subject.form(launch)
    }

    fn choices(&self) -> Choices {
        self.subject.choices()
    }

    fn choose(&self, choices: &Choices) {
        self.subject.choose(choices);
    }

    fn insist(&self, form: Option<&'static str>) {
        self.subject.insist(form);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Buffer, Grid, Kernel};
    use crate::kernels::harness::{devices, lockstep_pair};

    #[test]
    fn one_corrupted_element_fails_the_comparison() {
        let want: Vec<f32> = (0..1000).map(|i| (i as f32).sin()).collect();
        assert_eq!(relative_error(&want, &want), 0.0);
        let mut got = want.clone();
        got[500] += 0.01;
        assert!(relative_error(&want, &got) > TOLERANCE);
        got[500] = f32::NAN;
        assert_eq!(relative_error(&want, &got), f64::INFINITY);
    }

    /// Same shader, a twin that is wrong in one element.
    static BROKEN: Kernel = Kernel {
        name: "broken",
        twin: |args| {
            let p: crate::kernels::fill::Params = args.params();
            let y = args.u32_mut(0);
            y.fill(p.value);
            y[1] = 0;
        },
        forms: &[],
        ..crate::kernels::fill::FILL
    };

    #[test]
    fn a_kernel_that_differs_from_its_twin_is_named() {
        let device: DeviceRef = lockstep_pair(devices::bare_gpu());
        let y = Buffer::new(&device, "y", 8).unwrap();
        let mut stream = Stream::new();
        crate::kernels::fill::fill_f32(&mut stream, y.all(), 2.0);
        let params = crate::kernels::fill::Params { n: 8, value: 7 };
        stream.push(&BROKEN, &params, &[y.all()], Grid(1));
        let error = device.run(&stream).unwrap_err().to_string();
        assert!(
            error.contains("launch 1 of 2")
                && error.contains("broken")
                && error.contains("element 1"),
            "{error}"
        );
    }
}
