//! Shaders as drivers receive them: every kernel in every form and with every mix of element types, checked by naga and by
//! rules of our own ([`lint`]), and translated into the languages of wgpu's back ends with the options that wgpu uses.

mod barriers;
#[cfg(test)]
mod declared;
pub mod dump;
pub mod lint;
pub mod manifest;
mod translate;

use crate::device::gpu::one_line;
use crate::device::{Form, Kernel, Type, shader};
use crate::kernels;
use anyhow::{Context, Result, anyhow};
use naga::valid::{Capabilities, ModuleInfo, SubgroupOperationSet, ValidationFlags, Validator};
use std::fmt::{self, Display, Formatter};
pub use translate::{Language, translate};

/// A text that a driver may be given.
#[derive(Clone, Copy)]
pub struct Variant {
    pub kernel: &'static Kernel,
    /// Its number, as [`Kernel::form_name`] takes it.
    form: usize,
    /// The bindings that hold f16, a bit each.
    pub halves: u32,
}

/// `matmul_nn/tiled`, with ` (f16: a c)` behind it where bindings hold f16.
impl Display for Variant {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.kernel.name, self.form_name())?;
        let halves = self.half_names();
        match halves.is_empty() {
            true => Ok(()),
            false => write!(f, " (f16: {})", halves.join(" ")),
        }
    }
}

impl Variant {
    /// Every one there is.
    pub fn all() -> Vec<Variant> {
        kernels::ALL.iter().flat_map(|k| Variant::of(k)).collect()
    }

    /// Those of one kernel: each form with each mix of f32 and f16 in what may hold either.
    pub fn of(kernel: &'static Kernel) -> Vec<Variant> {
        let bindings = kernel.bindings.iter().enumerate();
        let reals: u32 = bindings
            .map(|(i, b)| ((b.ty == Type::Real) as u32) << i)
            .sum();
        let mixes = (0..=reals).filter(|mix| mix & !reals == 0);
        let forms = |halves| {
            (0..=kernel.forms.len()).map(move |form| Variant {
                kernel,
                form,
                halves,
            })
        };
        mixes.flat_map(forms).collect()
    }

    pub fn form_name(&self) -> &'static str {
        self.kernel.form_name(self.form)
    }

    fn form(&self) -> Option<&'static Form> {
        self.form.checked_sub(1).map(|i| &self.kernel.forms[i])
    }

    pub fn source(&self) -> &'static str {
        self.kernel.text(self.form).0
    }

    pub fn entry(&self) -> &'static str {
        self.kernel.text(self.form).1
    }

    pub fn constants(&self) -> &'static [(&'static str, f64)] {
        self.kernel.text(self.form).2
    }

    /// The least subgroup size it works with; 0 if it has no subgroup operations.
    pub fn subgroup(&self) -> u32 {
        self.form().map_or(0, |form| form.subgroup)
    }

    /// The side of its cooperative matrices; 0 if it has none.
    pub fn cooperative(&self) -> u32 {
        self.form().map_or(0, |form| form.cooperative)
    }

    /// Whether any adapter runs it, one with default limits and no feature.
    pub fn is_core(&self) -> bool {
        self.halves == 0 && self.subgroup() == 0 && self.cooperative() == 0
    }

    /// Names of the bindings that hold f16.
    pub fn half_names(&self) -> Vec<&'static str> {
        let bindings = self.kernel.bindings.iter().enumerate();
        bindings
            .filter(|(i, _)| self.halves >> i & 1 == 1)
            .map(|(_, b)| b.name)
            .collect()
    }

    /// `matmul_nn.tiled.f16-a-c`: a name for a file, without the language's ending.
    pub fn stem(&self) -> String {
        let stem = format!("{}.{}", self.kernel.name, self.form_name());
        match self.half_names() {
            names if names.is_empty() => stem,
            names => format!("{stem}.f16-{}", names.join("-")),
        }
    }

    /// The WGSL that wgpu is given. Errors: an unknown include.
    pub fn text(&self) -> Result<String> {
        shader::text(self.source(), self.kernel.bindings, self.halves)
            .with_context(|| self.to_string())
    }

    /// The same as the language's standard has it, for other implementations: naga has subgroup operations unasked, and
    /// refuses the directive that asks for them. Errors: an unknown include.
    pub fn standard_text(&self) -> Result<String> {
        let directive = match self.subgroup() {
            0 => "",
            _ => "enable subgroups;\n",
        };
        Ok(format!("{directive}{}", self.text()?))
    }

    /// Features that a device must have been asked for, by their names in WebGPU or, where it has none, in wgpu.
    pub fn features(&self) -> Vec<&'static str> {
        let needs = [
            (self.halves != 0, "shader-f16"),
            (self.subgroup() > 0, "subgroups"),
            (
                self.cooperative() > 0,
                "wgpu-experimental-cooperative-matrix",
            ),
        ];
        needs
            .iter()
            .filter(|(needed, _)| *needed)
            .map(|&(_, name)| name)
            .collect()
    }

    /// Parsed and validated, with no more capabilities than its features bring; so it is valid for every back end that has
    /// them. Errors: what naga finds, in one line.
    pub fn module(&self) -> Result<Module> {
        let text = self.text()?;
        let capabilities = [
            (self.halves != 0, Capabilities::SHADER_FLOAT16),
            (self.subgroup() > 0, Capabilities::SUBGROUP),
            (self.cooperative() > 0, Capabilities::COOPERATIVE_MATRIX),
        ];
        let capabilities = capabilities.iter().filter(|(needed, _)| *needed);
        let capabilities = capabilities.map(|&(_, c)| c).collect();
        Module::of(&text, capabilities).with_context(|| self.to_string())
    }
}

/// A shader as naga sees it.
pub struct Module {
    pub module: naga::Module,
    pub info: ModuleInfo,
}

impl Module {
    /// Errors: what naga finds, in one line.
    fn of(text: &str, capabilities: Capabilities) -> Result<Module> {
        let parsed = naga::front::wgsl::parse_str(text);
        let module = parsed.map_err(|e| anyhow!("{}", one_line(&e.emit_to_string(text))))?;
        let info = Validator::new(ValidationFlags::all(), capabilities)
            .subgroup_operations(SubgroupOperationSet::all())
            .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
            .validate(&module)
            .map_err(|e| anyhow!("{}", one_line(&e.emit_to_string(text))))?;
        Ok(Module { module, info })
    }

    /// Bytes of workgroup memory, each variable on its own alignment of 16.
    pub fn workgroup_bytes(&self) -> u32 {
        let variables = self.module.global_variables.iter();
        variables
            .filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup)
            .map(|(_, v)| {
                let size = self.module.types[v.ty].inner.size(self.module.to_ctx());
                size.next_multiple_of(16)
            })
            .sum()
    }

    /// Errors: no such entry point.
    pub fn entry(&self, name: &str) -> Result<&naga::EntryPoint> {
        let mut entries = self.module.entry_points.iter();
        entries
            .find(|entry| entry.name == name)
            .with_context(|| format!("no entry point {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::PORTABLE;
    use std::collections::BTreeSet;

    #[test]
    fn every_mix_of_every_form_is_there_once() {
        let all = Variant::all();
        let stems: BTreeSet<String> = all.iter().map(Variant::stem).collect();
        assert_eq!(stems.len(), all.len());
        let of = |name: &str| all.iter().filter(|v| v.kernel.name == name).count();
        let matmul = &kernels::matmul::NN;
        // a, b, bias and c may each hold f16.
        assert_eq!(of("matmul_nn"), 16 * (1 + matmul.forms.len()));
        assert_eq!(of("td"), 1);
        let portable = all
            .iter()
            .filter(|v| v.form_name() == PORTABLE && v.is_core());
        assert_eq!(portable.count(), kernels::ALL.len());
    }

    #[test]
    fn what_naga_finds_is_one_line() {
        let text = "@compute @workgroup_size(1)\nfn main() { let x: u32 = 1.5; }\n";
        let Err(error) = Module::of(text, Capabilities::empty()) else {
            panic!("it is valid")
        };
        let line = error.to_string();
        assert!(!line.contains('\n') && line.contains("u32"), "{line}");
    }
}
