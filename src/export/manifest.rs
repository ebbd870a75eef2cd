//! What lies in a folder of exported shaders, for those who feed it to other compilers.

use super::translate::{Language, Translated, translate};
use super::{Variant, lint};
use crate::device::{Access, Type};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// `manifest.json`.
#[derive(Serialize)]
pub struct Manifest {
    pub version: &'static str,
    pub language: &'static str,
    /// With bounds and loop checks.
    pub checked: bool,
    pub shaders: Vec<Shader>,
    /// Variants that the language cannot express.
    pub left_out: Vec<LeftOut>,
}

#[derive(Serialize)]
pub struct Shader {
    pub file: String,
    pub kernel: &'static str,
    pub form: &'static str,
    /// The entry point's name in the file.
    pub entry: String,
    /// Version of the language, or what a compiler is to aim at (`cs_5_1`).
    pub target: String,
    /// Override constants that a pipeline is to be given. Only WGSL has them; elsewhere they are put in.
    pub constants: BTreeMap<&'static str, f64>,
    /// Features without which no device runs it.
    pub features: Vec<&'static str>,
    /// Runs on every adapter: default limits, no feature.
    pub core: bool,
    /// The least subgroup it works with; 0 if it has no subgroup operations.
    pub least_subgroup: u32,
    pub workgroup_size: [u32; 3],
    pub workgroup_bytes: u32,
    /// Of the uniform struct at binding 0, all of 4 bytes.
    pub parameters: Vec<Parameter>,
    /// Storage buffers at binding 1 and on.
    pub bindings: Vec<BoundBuffer>,
}

#[derive(Serialize)]
pub struct Parameter {
    pub name: &'static str,
    #[serde(rename = "type")]
    pub ty: &'static str,
    pub offset: usize,
}

#[derive(Serialize)]
pub struct BoundBuffer {
    pub binding: u32,
    pub name: &'static str,
    pub access: &'static str,
    #[serde(rename = "type")]
    pub ty: &'static str,
}

#[derive(Serialize)]
pub struct LeftOut {
    pub kernel: &'static str,
    pub form: &'static str,
    pub f16: Vec<&'static str>,
    pub reason: &'static str,
}

/// Writes every variant into `folder`, with a manifest.
///
/// # Errors
/// A variant that naga refuses or that breaks one of our rules; the disk.
pub fn export(folder: &Path, language: Language, checked: bool) -> Result<Manifest> {
    let mut manifest = Manifest {
        version: env!("CARGO_PKG_VERSION"),
        language: language.ending(),
        checked,
        shaders: Vec::new(),
        left_out: Vec::new(),
    };
    for variant in Variant::all() {
        match language.lacks(&variant) {
            Some(reason) => manifest.left_out.push(LeftOut {
                kernel: variant.kernel.name,
                form: variant.form_name(),
                f16: variant.half_names(),
                reason,
            }),
            None => {
                let written = write_variant(folder, &variant, language, checked)?;
                manifest.shaders.extend(written);
            }
        }
    }
    let json = serde_json::to_string_pretty(&manifest)? + "\n";
    write_file(&folder.join("manifest.json"), json.as_bytes())?;
    Ok(manifest)
}

/// Writes one variant into `folder`; what there is to say of each of its files.
///
/// # Errors
/// As [`export`].
pub(super) fn write_variant(
    folder: &Path,
    variant: &Variant,
    language: Language,
    checked: bool,
) -> Result<Vec<Shader>> {
    let module = variant.module()?;
    let broken = lint::broken_rules(variant, &module)?;
    ensure!(broken.is_empty(), "{variant}: {}", broken.join("; "));
    let size = module.entry(variant.entry())?.workgroup_size;
    let workgroup = (size, module.workgroup_bytes());
    let mut shaders = Vec::new();
    for translated in translate(variant, &module, language, checked)? {
        let file = format!("{}.{}", variant.stem(), translated.ending);
        write_file(&folder.join(&file), &translated.bytes)?;
        shaders.push(described(variant, translated, workgroup, file));
    }
    Ok(shaders)
}

pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn described(
    variant: &Variant,
    translated: Translated,
    (workgroup_size, workgroup_bytes): ([u32; 3], u32),
    file: String,
) -> Shader {
    let type_name = |ty: Type, half: bool| match ty {
        Type::U32 => "u32",
        Type::Real if half => "f16",
        Type::F32 | Type::Real => "f32",
    };
    let parameters = variant.kernel.params.iter().map(|p| Parameter {
        name: p.name,
        ty: type_name(p.ty, false),
        offset: p.offset,
    });
    let bindings = variant.kernel.bindings.iter().enumerate();
    let bindings = bindings.map(|(i, b)| BoundBuffer {
        binding: 1 + i as u32,
        name: b.name,
        access: match b.access {
            Access::In => "read",
            Access::Out => "read_write",
        },
        ty: type_name(b.ty, variant.halves >> i & 1 == 1),
    });
    Shader {
        file,
        kernel: variant.kernel.name,
        form: variant.form_name(),
        entry: translated.entry,
        constants: translated.constants.iter().copied().collect(),
        target: translated.target,
        features: variant.features(),
        core: variant.is_core(),
        least_subgroup: variant.subgroup(),
        workgroup_size,
        workgroup_bytes,
        parameters: parameters.collect(),
        bindings: bindings.collect(),
    }
}
