//! The kernels' cases as files, for another implementation of WebGPU to replay: the words that each launch reads, those it
//! is to write, and its shader in every form that fits. The CPU device says what is right, so no GPU is needed.
//! `docs/formats.md` describes the folder; `scripts/dawn-check` replays it.

use super::manifest::{Shader, write_file, write_variant};
use super::translate::Language;
use super::{Variant, manifest};
use crate::device::cpu::Cpu;
use crate::device::lockstep::{HALF_TOLERANCE, TOLERANCE};
use crate::device::tuning::{Offer, bits};
use crate::device::{
    Access, Counters, Device, DeviceInfo, Kernel, Launch, Memory, Precision, Reading, Slice, Stream,
};
use crate::kernels::Cases;
use crate::kernels::harness::Harness;
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// The file of words.
const WORDS: &str = "words.bin";

/// An adapter that runs every form there is.
const EVERYTHING: Offer = Offer {
    subgroup: u32::MAX,
    cooperative: [u32::MAX; 2],
};

/// `manifest.json`.
#[derive(Serialize)]
pub struct Manifest {
    pub version: &'static str,
    /// The file of 32-bit words, little-endian, that the launches' buffers are parts of.
    pub words: &'static str,
    pub tolerance: Tolerance,
    pub shaders: Vec<manifest::Shader>,
    pub launches: Vec<Launched>,
}

/// By how much an output may differ, relatively and by the Euclidean norm. Integers must be equal.
#[derive(Serialize)]
pub struct Tolerance {
    pub f32: f64,
    pub f16: f64,
}

/// One launch, in each of its forms.
#[derive(Serialize, PartialEq, Eq, Hash, Clone)]
pub struct Launched {
    /// The cases it is one of.
    pub case: &'static str,
    /// The words of the uniform struct.
    pub parameters: Vec<u32>,
    /// In the order of the shader's bindings.
    pub buffers: Vec<Contents>,
    pub runs: Vec<Run>,
}

/// What a buffer holds.
#[derive(Serialize, PartialEq, Eq, Hash, Clone)]
pub struct Contents {
    pub before: Place,
    /// None where it is only read.
    pub after: Option<Place>,
}

/// A part of the file of words, so many times over.
#[derive(Serialize, PartialEq, Eq, Hash, Clone, Copy)]
pub struct Place {
    pub from: usize,
    pub words: usize,
    pub times: usize,
}

/// The launch in one form.
#[derive(Serialize, PartialEq, Eq, Hash, Clone)]
pub struct Run {
    /// Index among the manifest's shaders.
    pub shader: usize,
    /// Workgroups.
    pub groups: u32,
}

/// Writes the launches of these cases into `folder`, with f32 and with f16.
///
/// # Errors
/// A shader that is not valid or breaks a rule; a case that fails on the CPU; the disk.
pub fn dump(folder: &Path, cases: &[(&'static str, Cases)]) -> Result<Manifest> {
    let device = Arc::new(Recording::default());
    for &(case, run) in cases {
        device.records.lock().unwrap().case = case;
        let mut harness = Harness::new(device.clone());
        run(&mut harness).with_context(|| format!("{case} on the CPU"))?;
        if harness.has_reals() {
            run(&mut Harness::with_precision(device.clone(), Precision::F16))
                .with_context(|| format!("{case} on the CPU, with f16"))?;
        }
    }
    let records = std::mem::take(&mut *device.records.lock().unwrap());
    let manifest = Manifest {
        version: env!("CARGO_PKG_VERSION"),
        words: WORDS,
        tolerance: Tolerance {
            f32: TOLERANCE,
            f16: HALF_TOLERANCE,
        },
        shaders: records.shaders(folder)?,
        launches: records.launches,
    };
    let words = records.words.all.iter().flat_map(|word| word.to_le_bytes());
    write_file(&folder.join(WORDS), &words.collect::<Vec<u8>>())?;
    let json = serde_json::to_string(&manifest)? + "\n";
    write_file(&folder.join("manifest.json"), json.as_bytes())?;
    Ok(manifest)
}

/// Words of many buffers, of which equal ones are kept once, and one that is the same word all over as that word.
#[derive(Default)]
struct Words {
    all: Vec<u32>,
    /// Where some words begin, by their hash.
    known: HashMap<u64, usize>,
}

impl Words {
    fn place(&mut self, words: &[u32]) -> Place {
        let uniform = words.iter().all(|word| *word == words[0]);
        let (words, times) = match uniform {
            true => (&words[..1], words.len()),
            false => (words, 1),
        };
        Place {
            from: self.find(words),
            words: words.len(),
            times,
        }
    }

    fn find(&mut self, words: &[u32]) -> usize {
        let mut hasher = DefaultHasher::new();
        words.hash(&mut hasher);
        let next = self.all.len();
        let from = *self.known.entry(hasher.finish()).or_insert(next);
        if self.all[from..].starts_with(words) {
            return from;
        }
        self.all.extend_from_slice(words);
        next
    }
}

/// What was recorded.
#[derive(Default)]
struct Records {
    /// The cases being run.
    case: &'static str,
    words: Words,
    variants: Vec<Variant>,
    /// Index of a variant, by kernel, form and halves.
    known: BTreeMap<(&'static str, usize, u32), usize>,
    launches: Vec<Launched>,
    /// Of the launches: what has no reals is run a second time with f16.
    met: HashSet<Launched>,
}

impl Records {
    /// A launch, its parameters as the device filled them in, and its buffers before and after.
    fn add(&mut self, launch: &Launch, parameters: Vec<u32>, [before, after]: [&[Vec<u32>]; 2]) {
        let (kernel, halves) = (launch.kernel, launch.halves());
        let forms = kernel.fitting(launch.params()) & EVERYTHING.forms(kernel, halves);
        let runs = bits(forms).map(|form| Run {
            shader: self.shader(kernel, form, halves),
            groups: launch.groups(form).0,
        });
        let runs = runs.collect();
        let bindings = kernel.bindings.iter().zip(before).zip(after);
        let buffers = bindings.map(|((binding, before), after)| Contents {
            before: self.words.place(before),
            after: (binding.access == Access::Out).then(|| self.words.place(after)),
        });
        let launched = Launched {
            case: self.case,
            buffers: buffers.collect(),
            parameters,
            runs,
        };
        if self.met.insert(launched.clone()) {
            self.launches.push(launched);
        }
    }

    fn shader(&mut self, kernel: &'static Kernel, form: usize, halves: u32) -> usize {
        let next = self.variants.len();
        let index = self.known.entry((kernel.name, form, halves));
        let index = *index.or_insert(next);
        if index == next {
            self.variants.push(Variant {
                kernel,
                form,
                halves,
            });
        }
        index
    }

    /// Writes the variants, in their order.
    fn shaders(&self, folder: &Path) -> Result<Vec<Shader>> {
        let written = self
            .variants
            .iter()
            .map(|variant| write_variant(folder, variant, Language::Wgsl, true));
        let written: Vec<_> = written.collect::<Result<_>>()?;
        Ok(written.into_iter().flatten().collect())
    }
}

/// The CPU device, with a record of every launch.
#[derive(Default)]
struct Recording {
    cpu: Cpu,
    records: Mutex<Records>,
}

impl Device for Recording {
    fn info(&self) -> &DeviceInfo {
        self.cpu.info()
    }

    fn allocate(&self, label: &str, words: usize) -> Result<u32> {
        self.cpu.allocate(label, words)
    }

    fn label(&self, buffer: u32) -> String {
        self.cpu.label(buffer)
    }

    fn release(&self, buffer: u32) {
        self.cpu.release(buffer);
    }

    fn write(&self, to: Slice, data: &[u32]) -> Result<()> {
        self.cpu.write(to, data)
    }

    fn begin_reading(&self, from: &[Slice]) -> Result<Reading> {
        self.cpu.begin_reading(from)
    }

    fn run(&self, stream: &Stream) -> Result<()> {
        for launch in &stream.launches {
            let one = Stream {
                launches: vec![*launch],
                ..Stream::default()
            };
            let parameters = self.cpu.resolved(launch).params().to_vec();
            let before = self.cpu.read(launch.slices())?;
            self.cpu.run(&one)?;
            let after = self.cpu.read(launch.slices())?;
            let mut records = self.records.lock().unwrap();
            records.add(launch, parameters, [&before, &after]);
        }
        Ok(())
    }

    fn counters(&self) -> Counters {
        self.cpu.counters()
    }

    fn memory(&self) -> Memory {
        self.cpu.memory()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{ALL, CASES};
    use std::collections::BTreeSet;

    /// Every form of every kernel is there, with a launch that it would fail if it did nothing; what the manifest points at
    /// is there too, and all of it is not too much.
    #[test]
    fn every_form_has_a_launch_that_can_fail() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = dump(folder.path(), CASES).unwrap();
        let words = std::fs::read(folder.path().join(manifest.words)).unwrap();
        assert!(words.len() < 100 << 20, "{} bytes", words.len());
        let mut proven = BTreeSet::new();
        for launch in &manifest.launches {
            for contents in &launch.buffers {
                for place in [Some(contents.before), contents.after].iter().flatten() {
                    assert!(4 * (place.from + place.words) <= words.len());
                }
            }
            let moves = |c: &Contents| c.after.is_some_and(|after| after != c.before);
            let moves = launch.buffers.iter().any(moves);
            for run in &launch.runs {
                let shader = &manifest.shaders[run.shader];
                assert_eq!(shader.bindings.len(), launch.buffers.len());
                assert!(folder.path().join(&shader.file).is_file());
                if moves {
                    proven.insert((shader.kernel, shader.form));
                }
            }
        }
        for kernel in ALL {
            for form in 0..=kernel.forms.len() {
                let name = (kernel.name, kernel.form_name(form));
                assert!(proven.contains(&name), "{name:?}");
            }
        }
    }
}
