//! Lockstep: every launch runs on two devices from the same bits, and the first whose outputs differ is named. This
//! is how a user checks a GPU nobody here has seen.

use super::{
    Access, Choices, Counters, Device, DeviceInfo, DeviceRef, Launch, Memory, Reading, Slice,
    Stream, Type,
};
use anyhow::{Result, bail};
use half::f16;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Largest relative error (by norm, see [`relative_error`]) one launch may show.
pub const TOLERANCE: f64 = 2e-5;

/// The same for outputs stored as f16, which GPUs may round either way: one unit in the last place.
pub const HALF_TOLERANCE: f64 = 1.0 / 1024.0;

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

/// What the words of an output hold.
pub(super) enum Elements {
    Integers,
    Floats,
    Halves,
}

impl Elements {
    pub(super) fn of(ty: Type, slice: Slice) -> Elements {
        match (ty, slice.half) {
            (Type::U32, _) => Elements::Integers,
            (_, false) => Elements::Floats,
            (_, true) => Elements::Halves,
        }
    }

    fn tolerance(&self) -> f64 {
        match self {
            Elements::Halves => HALF_TOLERANCE,
            _ => TOLERANCE,
        }
    }

    /// As numbers.
    pub(super) fn floats(&self, words: &[u32]) -> Vec<f32> {
        match self {
            Elements::Integers => words.iter().map(|&w| w as f32).collect(),
            Elements::Halves => widened(words),
            _ => bytemuck::cast_slice(words).to_vec(),
        }
    }

    /// Integers must be equal: the fraction that differ. Floats by [`relative_error`].
    fn difference(&self, want: &[u32], got: &[u32]) -> f64 {
        match self {
            Elements::Integers => {
                let wrong = want.iter().zip(got).filter(|(a, b)| a != b).count();
                wrong as f64 / want.len() as f64
            }
            _ => relative_error(&self.floats(want), &self.floats(got)),
        }
    }

    /// The element that differs most.
    fn worst(&self, want: &[u32], got: &[u32]) -> String {
        if let Elements::Integers = self {
            let i = want.iter().zip(got).position(|(w, g)| w != g).unwrap_or(0);
            return format!("element {i}: {} on the CPU, {} here", want[i], got[i]);
        }
        let (want, got) = (self.floats(want), self.floats(got));
        let size = |i: usize| {
            let d = (want[i] as f64 - got[i] as f64).abs();
            match want[i].to_bits() == got[i].to_bits() {
                true => 0.0,
                false if d.is_nan() => f64::INFINITY,
                false => d,
            }
        };
        let worst = (0..want.len()).max_by(|&a, &b| size(a).total_cmp(&size(b)));
        let i = worst.unwrap_or(0);
        format!("element {i}: {} on the CPU, {} here", want[i], got[i])
    }
}

/// Words that hold two f16 each, as f32.
pub fn widened(words: &[u32]) -> Vec<f32> {
    let halves: &[u16] = bytemuck::cast_slice(words);
    halves.iter().map(|&h| f16::from_bits(h).to_f32()).collect()
}

impl Device for Lockstep {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn max_buffer_words(&self) -> usize {
        self.subject.max_buffer_words()
    }

    fn longest_loop(&self) -> u32 {
        self.subject.longest_loop()
    }

    fn allocate(&self, label: &str, words: usize) -> Result<u32> {
        let id = self.reference.allocate(label, words)?;
        let other = self.subject.allocate(label, words)?;
        assert_eq!(id, other, "lockstep devices number buffers alike");
        Ok(id)
    }

    fn label(&self, buffer: u32) -> String {
        self.subject.label(buffer)
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
                let elements = Elements::of(binding.ty, *slice);
                let error = elements.difference(want, got);
                let mut worst = self.worst.lock().unwrap();
                let entry = worst.entry(name.clone()).or_insert((0.0, 0));
                entry.0 = entry.0.max(error);
                entry.1 += (nth == 0) as u64;
                if error > elements.tolerance() {
                    bail!(
                        "launch {number} of {}: kernel {name}, output `{}` differs by {error:.1e} ({})",
                        stream.launches.len(),
                        binding.name,
                        elements.worst(want, got)
                    );
                }
                // Go on from the reference's bits, so that each launch answers for itself alone.
                self.subject.write(*slice, want)?;
            }
        }
        Ok(())
    }

    fn has_halves(&self) -> bool {
        self.subject.has_halves()
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
