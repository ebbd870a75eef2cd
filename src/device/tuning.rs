//! Which form of a kernel runs a launch: by a fixed rule, or by measurement.
//!
//! Launches are sorted into shape classes: kernel, integer parameters rounded up to powers of two, and the forms that
//! fit. The choice for a class is kept in memory, and in a file per adapter, driver and program version in the user's
//! cache folder. The file is only a hint: one that cannot be read, or names what does not exist, is ignored.

use super::stream::{Home, Launch};
use super::{DeviceInfo, Kernel, Param, Type};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// How a GPU decides between the forms of a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forms {
    /// The first form that was written for this kind of adapter: the same in every process.
    #[default]
    Fixed,
    /// The fastest, measured when a shape class first occurs; known choices come from the cache file.
    Measured,
    /// Measured anew, whatever the cache file says; it is overwritten.
    Remeasured,
    /// The form of this name where it fits, else as `Fixed`.
    Named(&'static str),
}

/// A name of a form for each shape class, by the class's text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Choices(pub BTreeMap<String, String>);

/// Integer parameters a class looks at.
const LOOKED_AT: usize = 8;

/// A shape class, cheap to make and to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Class {
    kernel: &'static str,
    /// Forms to choose from, one bit each.
    pub candidates: u32,
    /// Bindings that hold f16, one bit each.
    halves: u32,
    /// For each integer parameter, bits needed to count to it.
    sizes: [u8; LOOKED_AT],
}

impl Class {
    /// `offered`: the forms the adapter can run, one bit each.
    pub fn of(launch: &Launch, offered: u32) -> Class {
        let mut sizes = [0; LOOKED_AT];
        for (size, (_, word)) in sizes.iter_mut().zip(integers(launch)) {
            *size = (u32::BITS - word.saturating_sub(1).leading_zeros()) as u8;
        }
        Class {
            kernel: launch.kernel.name,
            candidates: launch.kernel.fitting(launch.params()) & offered,
            halves: launch.halves(),
            sizes,
        }
    }

    /// For example `matmul_nt m 2048 n 1024 k 256 start 1: portable tiled vec4`.
    pub fn text(&self, kernel: &Kernel) -> String {
        let mut text = kernel.name.to_string();
        let names = kernel.params.iter().filter(|p| is_looked_at(p));
        for (param, size) in names.zip(self.sizes) {
            let _ = write!(text, " {} {}", param.name, 1u64 << size);
        }
        for binding in bits(self.halves) {
            let _ = write!(text, " {} f16", kernel.bindings[binding].name);
        }
        text.push(':');
        for form in bits(self.candidates) {
            let _ = write!(text, " {}", kernel.form_name(form));
        }
        text
    }
}

/// Integer parameters that do not matter to the time: where something begins, and what random numbers are drawn from.
const OVERLOOKED: [&str; 4] = ["first", "key", "step", "site"];

fn is_looked_at(param: &Param) -> bool {
    param.ty == Type::U32 && !OVERLOOKED.contains(&param.name)
}

fn integers(launch: &Launch) -> impl Iterator<Item = (&'static str, u32)> {
    let declared = launch.kernel.params.iter().zip(launch.params());
    declared
        .filter(|(param, _)| is_looked_at(param))
        .map(|(param, &word)| (param.name, word))
}

/// The numbers of the bits that are set.
pub fn bits(set: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |i| set >> i & 1 == 1)
}

/// What an adapter has for forms that need more than every adapter has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Offer {
    /// The least size of a subgroup; 0 if there are no subgroup operations.
    pub subgroup: u32,
    /// Sides of the cooperative matrices with f32 sums, a power of two each, added up: with f32 and with f16 operands.
    pub cooperative: [u32; 2],
}

impl Offer {
    /// The forms of `kernel` it can run where the bindings `halves` hold f16.
    pub fn forms(&self, kernel: &Kernel, halves: u32) -> u32 {
        let sides = match halves & 3 {
            0 => self.cooperative[0],
            3 => self.cooperative[1],
            _ => 0,
        };
        let runs = |(i, form): (usize, &super::Form)| {
            let runs = form.subgroup <= self.subgroup
                && (form.cooperative == 0 || form.cooperative & sides != 0);
            (runs as u32) << (i + 1)
        };
        1 | kernel.forms.iter().enumerate().map(runs).sum::<u32>()
    }
}

/// The choice without a measurement.
pub fn fixed(kernel: &Kernel, candidates: u32, software: bool) -> usize {
    let home = match software {
        true => Home::Software,
        false => Home::Hardware,
    };
    bits(candidates)
        .filter(|&form| form > 0)
        .find(|&form| [home, Home::Any].contains(&kernel.forms[form - 1].home))
        .unwrap_or(0)
}

/// The form of that name among `candidates`.
pub fn named(kernel: &Kernel, candidates: u32, name: &str) -> Option<usize> {
    bits(candidates).find(|&form| kernel.form_name(form) == name)
}

/// The cache file of one adapter.
#[derive(Serialize, Deserialize, PartialEq)]
struct File {
    version: String,
    adapter: String,
    backend: String,
    driver: String,
    choices: Choices,
}

impl File {
    fn new(info: &DeviceInfo, choices: Choices) -> File {
        File {
            version: env!("CARGO_PKG_VERSION").into(),
            adapter: info.name.clone(),
            backend: info.backend.clone(),
            driver: info.driver.clone(),
            choices,
        }
    }
}

/// The folder for files that may be lost: `VSTAR_CACHE`, else `vstar` in the system's own place for them.
fn cache_folder() -> Option<PathBuf> {
    let path = |name: &str| {
        let value = std::env::var_os(name).filter(|value| !value.is_empty());
        value.map(PathBuf::from)
    };
    path("VSTAR_CACHE").or_else(|| {
        let system = match std::env::consts::OS {
            "windows" => path("LOCALAPPDATA"),
            "macos" => path("HOME").map(|home| home.join("Library/Caches")),
            _ => path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache"))),
        };
        Some(system?.join("vstar"))
    })
}

/// Where the choices for this adapter are kept, if the system has a place for such files.
pub fn cache_file(info: &DeviceInfo) -> Option<PathBuf> {
    let text = format!("{} {} {}", info.name, info.backend, info.driver);
    // FNV-1a: names of adapters are no file names.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ byte as u64).wrapping_mul(0x100_0000_01b3)
    });
    Some(cache_folder()?.join(format!("tuning-{hash:016x}.json")))
}

/// The choices kept in a file; none if it cannot be read or is of another adapter, driver or version.
pub fn load(file: &Path, info: &DeviceInfo) -> Choices {
    let read = || -> Option<Choices> {
        let text = std::fs::read_to_string(file).ok()?;
        let mut kept: File = serde_json::from_str(&text).ok()?;
        let choices = std::mem::take(&mut kept.choices);
        (kept == File::new(info, Choices::default())).then_some(choices)
    };
    read().unwrap_or_default()
}

/// Keeps choices in a file, beside those for other classes that it holds. Errors: it cannot be written.
pub fn save(file: &Path, info: &DeviceInfo, choices: &Choices) -> Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut all = load(file, info);
    all.0.extend(choices.0.clone());
    let text = serde_json::to_string_pretty(&File::new(info, all))?;
    crate::run::atomic_write(file, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;
    use crate::device::{Buffer, DeviceRef, Stream};
    use crate::kernels::matmul::{self, Dims, Form, matmul};
    use std::sync::Arc;

    fn launch(m: usize, n: usize, k: usize) -> Launch {
        let device: DeviceRef = Arc::new(Cpu::new());
        let buffer = || Buffer::new(&device, "operand", m * n * k).unwrap();
        let (a, b, c) = (buffer(), buffer(), buffer());
        let mut stream = Stream::new();
        let dims = Dims { m, n, k };
        matmul(
            &mut stream,
            Form::NT,
            a.all(),
            b.all(),
            c.all(),
            dims,
            false,
        );
        stream.launches[0]
    }

    fn offer(subgroup: u32) -> Offer {
        Offer {
            subgroup,
            ..Offer::default()
        }
    }

    #[test]
    fn cooperative_matrices_are_for_the_operands_they_were_offered_for() {
        let names = |cooperative, halves| -> Vec<&str> {
            let offer = Offer {
                subgroup: 32,
                cooperative,
            };
            let forms = bits(offer.forms(&matmul::NN, halves));
            let names = forms.map(|form| matmul::NN.form_name(form));
            names.filter(|name| name.starts_with("coop")).collect()
        };
        assert!(names([0, 0], 0b1011).is_empty());
        assert_eq!(names([8, 16], 0b0011), ["cooperative"]);
        assert_eq!(names([8, 16], 0b1000), ["cooperative_small"]);
        assert!(names([8, 16], 0b0010).is_empty());
        assert_eq!(names([0, 24], 0b1011), ["cooperative", "cooperative_small"]);
    }

    #[test]
    fn a_class_is_a_power_of_two_and_the_forms_that_fit() {
        let class = |m, n, k, subgroup| {
            let launch = launch(m, n, k);
            Class::of(&launch, offer(subgroup).forms(launch.kernel, 0)).text(launch.kernel)
        };
        let usual = class(100, 65, 64, 8);
        assert_eq!(
            usual,
            "matmul_nt m 128 n 128 k 64 start 1: portable subgroup tiled tiled_small"
        );
        assert_eq!(class(128, 128, 33 + 3, 32), usual);
        assert_ne!(class(129, 65, 64, 8), usual);
        // No subgroups of 8, or no vectors of 4: other forms, another class.
        let without = "matmul_nt m 128 n 128 k 64 start 1: portable tiled tiled_small";
        assert_eq!(class(100, 65, 64, 4), without);
        assert_eq!(class(100, 65, 63, 8), without);
    }

    #[test]
    fn the_fixed_choice_suits_the_adapter() {
        let name = |subgroup, software| {
            let candidates = offer(subgroup).forms(&matmul::NT, 0);
            matmul::NT.form_name(fixed(&matmul::NT, candidates & !0b10, software))
        };
        assert_eq!(name(8, true), "subgroup");
        assert_eq!(name(0, true), "portable");
        assert_eq!(name(32, false), "thin");
    }

    #[test]
    fn a_file_of_something_else_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep/tuning.json");
        let info = DeviceInfo {
            name: "adapter".into(),
            backend: "vulkan".into(),
            driver: "1".into(),
            software: false,
        };
        assert_eq!(load(&file, &info), Choices::default());
        let choices = Choices([("fill n 1: portable".into(), "portable".into())].into());
        save(&file, &info, &choices).unwrap();
        assert_eq!(load(&file, &info), choices);
        let more = Choices([("fill n 2: portable".into(), "portable".into())].into());
        save(&file, &info, &more).unwrap();
        assert_eq!(load(&file, &info).0.len(), 2);
        let other = DeviceInfo {
            driver: "2".into(),
            ..info.clone()
        };
        assert_eq!(load(&file, &other), Choices::default());
        for text in ["", "{}", "[1]", "\u{fffd}"] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(load(&file, &info), Choices::default());
        }
    }
}
