//! From a variant to what each of wgpu's back ends hands to its driver: the same writer, the same options. They follow
//! wgpu-hal 30: `vulkan/device.rs` (`compile_stage`), `dx12/device.rs` (`create_pipeline_layout`, `load_shader`) and
//! `metal/device.rs` (`load_shader`).

use super::{Module, Variant};
use crate::device::Access;
use anyhow::{Context, Result, anyhow};
use naga::ShaderStage::Compute;
use naga::back::{hlsl, msl, pipeline_constants, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::ModuleInfo;
use std::collections::BTreeMap;

/// A language that a driver, or a browser, takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Language {
    /// What wgpu or a browser is given
    Wgsl,
    /// What Vulkan's drivers are given
    Spirv,
    /// What FXC and DXC are given for DX12
    Hlsl,
    /// What Metal is given
    Msl,
}

impl Language {
    /// The ending of a file.
    pub fn ending(self) -> &'static str {
        match self {
            Language::Wgsl => "wgsl",
            Language::Spirv => "spv",
            Language::Hlsl => "hlsl",
            Language::Msl => "metal",
        }
    }

    /// Why the language has no such thing, if it has not.
    pub fn lacks(self, variant: &Variant) -> Option<&'static str> {
        match self {
            Language::Hlsl if variant.cooperative() > 0 => {
                Some("HLSL has no cooperative matrices: no DX12 adapter is given this form")
            }
            _ => None,
        }
    }
}

/// A variant in a language.
pub struct Translated {
    pub bytes: Vec<u8>,
    /// What the entry point is called there.
    pub entry: String,
    /// Override constants that are still to be given.
    pub constants: &'static [(&'static str, f64)],
    /// Version of the language, or what a compiler must be told to aim at.
    pub target: String,
    /// What the file's name ends in.
    pub ending: &'static str,
}

/// Translates a validated variant; `checked` with bounds and loop checks, as `vstar validate` runs it the second time,
/// else without, as training does. Two texts in HLSL where FXC takes it too. Errors: what the back end cannot express.
pub fn translate(
    variant: &Variant,
    module: &Module,
    language: Language,
    checked: bool,
) -> Result<Vec<Translated>> {
    let write = || match language {
        Language::Wgsl => Ok(vec![Translated {
            bytes: variant.standard_text()?.into_bytes(),
            entry: variant.entry().into(),
            constants: variant.constants(),
            target: "WGSL".into(),
            ending: language.ending(),
        }]),
        Language::Spirv => Ok(vec![spirv(
            variant,
            with_constants(variant, module)?,
            checked,
        )?]),
        Language::Hlsl => {
            let old = (variant.is_core(), hlsl::ShaderModel::V5_1, "fxc.hlsl");
            let models = [old, (true, hlsl::ShaderModel::V6_2, "dxc.hlsl")].into_iter();
            let models = models.filter(|(taken, ..)| *taken);
            models
                .map(|(_, model, ending)| {
                    let constant = with_constants(variant, module)?;
                    hlsl(variant, constant, (model, ending), checked)
                })
                .collect()
        }
        Language::Msl => Ok(vec![msl(
            variant,
            with_constants(variant, module)?,
            checked,
        )?]),
    };
    write().with_context(|| format!("{variant} as {}", language.ending()))
}

/// The module with its override constants put in.
type Constant<'a> = (
    std::borrow::Cow<'a, naga::Module>,
    std::borrow::Cow<'a, ModuleInfo>,
);

fn with_constants<'a>(variant: &Variant, module: &'a Module) -> Result<Constant<'a>> {
    let constants = variant.constants().iter();
    let constants = constants.map(|&(name, value)| (name.to_string(), value));
    let entry = Some((Compute, variant.entry()));
    let values = constants.collect();
    pipeline_constants::process_overrides(&module.module, &module.info, entry, &values)
        .map_err(|e| anyhow!("{e}"))
}

fn policies(checked: bool) -> BoundsCheckPolicies {
    let policy = match checked {
        true => BoundsCheckPolicy::Restrict,
        false => BoundsCheckPolicy::Unchecked,
    };
    BoundsCheckPolicies {
        index: policy,
        buffer: policy,
        image_load: policy,
        binding_array: BoundsCheckPolicy::Unchecked,
    }
}

/// The parameters' binding, the buffers' in their order, and that of the first workgroup's number (`shared/grid.wgsl`); of
/// buffers, whether they are written to.
fn bindings(variant: &Variant) -> impl Iterator<Item = (naga::ResourceBinding, Option<bool>)> {
    let binding = |binding| naga::ResourceBinding { group: 0, binding };
    let first = naga::ResourceBinding {
        group: 1,
        binding: 0,
    };
    let buffers = variant.kernel.bindings.iter().enumerate();
    let buffers = buffers.map(move |(i, b)| (binding(1 + i as u32), Some(b.access == Access::Out)));
    let parameters = std::iter::once((binding(0), None));
    parameters.chain(buffers).chain([(first, None)])
}

/// SPIR-V that any Vulkan takes; 1.4 where matrix operations need it.
fn spirv(variant: &Variant, (module, info): Constant, checked: bool) -> Result<Translated> {
    let lang_version = match (variant.cooperative(), variant.subgroup()) {
        (0, 0) => (1, 0),
        (0, _) => (1, 3),
        _ => (1, 4),
    };
    let options = spv::Options {
        lang_version,
        flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
        bounds_check_policies: policies(checked),
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: checked,
        emit_int_div_checks: checked,
        ..spv::Options::default()
    };
    let pipeline = spv::PipelineOptions {
        shader_stage: Compute,
        entry_point: variant.entry().into(),
    };
    let words = spv::write_vec(&module, &info, &options, Some(&pipeline))?;
    Ok(Translated {
        bytes: words.iter().flat_map(|word| word.to_le_bytes()).collect(),
        entry: variant.entry().into(),
        constants: &[],
        target: format!("SPIR-V {}.{}", lang_version.0, lang_version.1),
        ending: Language::Spirv.ending(),
    })
}

/// For shader model 5.1, which FXC takes, or 6.2, which DXC takes.
fn hlsl(
    variant: &Variant,
    (module, info): Constant,
    (model, ending): (hlsl::ShaderModel, &'static str),
    checked: bool,
) -> Result<Translated> {
    let mut next = [0u32; 3];
    let binding_map = bindings(variant).map(|(binding, written)| {
        let kind = written.map_or(0, |written| 1 + written as usize);
        next[kind] += 1;
        let target = hlsl::BindTarget {
            register: next[kind] - 1,
            restrict_indexing: written.is_none(),
            ..hlsl::BindTarget::default()
        };
        (binding, target)
    });
    let options = hlsl::Options {
        shader_model: model,
        binding_map: binding_map.collect(),
        fake_missing_bindings: false,
        special_constants_binding: Some(hlsl::BindTarget {
            space: 1,
            ..hlsl::BindTarget::default()
        }),
        zero_initialize_workgroup_memory: false,
        restrict_indexing: checked,
        force_loop_bounding: checked,
        ..hlsl::Options::default()
    };
    let pipeline = hlsl::PipelineOptions {
        entry_point: Some((Compute, variant.entry().into())),
    };
    let mut text = String::new();
    let mut writer = hlsl::Writer::new(&mut text, &options, &pipeline);
    let mut reflection = writer.write(&module, &info, None)?;
    let entry = reflection.entry_point_names.pop();
    let entry = entry.context("no entry point was written")?;
    Ok(Translated {
        bytes: text.into_bytes(),
        entry: entry.map_err(|e| anyhow!("{e}"))?,
        constants: &[],
        target: format!("cs_{}", model.to_str()),
        ending,
    })
}

/// Metal 2.4, the version of macOS 12, or 3.0 where matrix operations need it.
fn msl(variant: &Variant, (module, info): Constant, checked: bool) -> Result<Translated> {
    let lang_version = if variant.cooperative() > 0 {
        (3, 0)
    } else {
        (2, 4)
    };
    let resources = bindings(variant)
        .enumerate()
        .map(|(slot, (binding, written))| {
            let target = msl::BindTarget {
                buffer: Some(slot as msl::Slot),
                mutable: written == Some(true),
                ..msl::BindTarget::default()
            };
            (binding, target)
        });
    let resources = msl::EntryPointResources {
        resources: resources.collect(),
        immediates_buffer: None,
        sizes_buffer: Some(2 + variant.kernel.bindings.len() as msl::Slot),
    };
    let options = msl::Options {
        lang_version,
        per_entry_point_map: BTreeMap::from([(variant.entry().into(), resources)]),
        fake_missing_bindings: false,
        bounds_check_policies: policies(checked),
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: checked,
        emit_int_div_checks: checked,
        ..msl::Options::default()
    };
    let pipeline = msl::PipelineOptions {
        entry_point: Some((Compute, variant.entry().into())),
        ..msl::PipelineOptions::default()
    };
    let (text, mut written) = msl::write_string(&module, &info, &options, &pipeline)?;
    let entry = written.entry_point_names.pop();
    let entry = entry.context("no entry point was written")?;
    Ok(Translated {
        bytes: text.into_bytes(),
        entry: entry.map_err(|e| anyhow!("{e}"))?,
        constants: &[],
        target: format!("Metal {}.{}", lang_version.0, lang_version.1),
        ending: Language::Msl.ending(),
    })
}
