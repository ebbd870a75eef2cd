//! Rules of our own, for what naga accepts and some driver or adapter does not.

use super::{Module, Variant, barriers};
use anyhow::Result;
use naga::{AddressSpace, Handle, ScalarKind, TypeInner};

/// What every adapter has, by wgpu's default limits.
pub const MAX_STORAGE_BUFFERS: usize = 8;
pub const MAX_WORKGROUP_BYTES: u32 = 16 * 1024;
pub const MAX_INVOCATIONS: u32 = 256;

/// The rules that a variant breaks, a line each; empty if none.
///
/// # Errors
/// No such entry point.
pub fn broken_rules(variant: &Variant, module: &Module) -> Result<Vec<String>> {
    let size = module.entry(variant.entry())?.workgroup_size;
    let mut broken = limits(
        variant.kernel.bindings.len(),
        module.workgroup_bytes(),
        size,
    );
    broken.extend(types(&module.module));
    broken.extend(unset(&variant.text()?));
    let missed = barriers::missed(&module.module);
    broken.extend(
        missed
            .iter()
            .map(|f| format!("a barrier in {f} that not all invocations come to")),
    );
    Ok(broken)
}

/// Limits hold for every form: what a kernel has to spare on one adapter is not worth a second text.
fn limits(buffers: usize, bytes: u32, size: [u32; 3]) -> Vec<String> {
    let invocations = size.iter().product::<u32>();
    let over = [
        (buffers > MAX_STORAGE_BUFFERS)
            .then(|| format!("{buffers} storage buffers: there may be {MAX_STORAGE_BUFFERS}")),
        (bytes > MAX_WORKGROUP_BYTES).then(|| {
            format!("{bytes} bytes of workgroup memory: there may be {MAX_WORKGROUP_BYTES}")
        }),
        (invocations > MAX_INVOCATIONS).then(|| {
            format!("{invocations} invocations in a workgroup: there may be {MAX_INVOCATIONS}")
        }),
    ];
    over.into_iter().flatten().collect()
}

/// Float atomics are an extension on every back end and add in no fixed order; f16 among immediates is laid out differently
/// by HLSL.
fn types(module: &naga::Module) -> Vec<String> {
    let mut broken = Vec::new();
    for (_, ty) in module.types.iter() {
        if let TypeInner::Atomic(scalar) = ty.inner
            && scalar.kind == ScalarKind::Float
        {
            broken.push("a float atomic".to_string());
        }
    }
    for (_, variable) in module.global_variables.iter() {
        if variable.space == AddressSpace::Immediate && holds_f16(module, variable.ty) {
            broken.push("f16 in immediates".to_string());
        }
    }
    broken
}

/// Variables that a loop declares without a value. They begin every round as zero, but Dawn's SPIR-V makes them so in the
/// first only. Shaders have one statement a line.
fn unset(text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    // Of every block that is open, whether it is run again and again.
    let mut repeated = vec![false];
    for line in text.lines() {
        let code = line.split("//").next().unwrap_or_default().trim();
        let within = repeated.last().copied().unwrap_or_default();
        if within && code.starts_with("var ") && !code.contains('=') {
            broken.push(format!("`{code}` in a loop, without a value"));
        }
        let begins = ["for ", "while ", "loop "]
            .iter()
            .any(|word| code.contains(word));
        for bracket in code.chars() {
            match bracket {
                '{' => repeated.push(within || begins),
                '}' => drop(repeated.pop()),
                _ => {}
            }
        }
    }
    broken
}

fn holds_f16(module: &naga::Module, ty: Handle<naga::Type>) -> bool {
    match &module.types[ty].inner {
        TypeInner::Scalar(s)
        | TypeInner::Vector { scalar: s, .. }
        | TypeInner::Matrix { scalar: s, .. } => s.kind == ScalarKind::Float && s.width == 2,
        TypeInner::Array { base, .. } => holds_f16(module, *base),
        TypeInner::Struct { members, .. } => members.iter().any(|m| holds_f16(module, m.ty)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn limits_are_those_of_any_adapter() {
        assert!(limits(8, 16_384, [16, 16, 1]).is_empty());
        let broken = limits(9, 16_388, [257, 1, 1]);
        assert_eq!(broken.len(), 3, "{broken:?}");
        assert!(broken[0].contains("9 storage buffers"), "{broken:?}");
    }

    #[test]
    fn float_atomics_and_f16_immediates_are_refused() {
        let of = |text: &str| types(&naga::front::wgsl::parse_str(text).unwrap());
        let float = "@group(0) @binding(0) var<storage, read_write> sum: atomic<f32>;";
        assert_eq!(of(float), ["a float atomic"]);
        let whole = "@group(0) @binding(0) var<storage, read_write> sum: atomic<u32>;";
        assert!(of(whole).is_empty());
        let half = "enable f16; struct P { a: u32, b: array<vec2<f16>, 2> } var<immediate> p: P;";
        assert_eq!(of(half), ["f16 in immediates"]);
        let single = "struct P { a: u32, b: vec2<f32> } var<immediate> p: P;";
        assert!(of(single).is_empty());
    }

    #[test]
    fn variables_of_a_loop_have_a_value() {
        let loops = "fn f() {\n    var a: u32;\n    for (var i = 0u; i < 4u; i++) {\n        if a > i {\n            var b: u32;\n        }\n        var c = 0u; // var d: u32;\n    }\n    var e: u32;\n}\n";
        assert_eq!(unset(loops), ["`var b: u32;` in a loop, without a value"]);
    }

    #[test]
    fn no_kernel_breaks_a_rule() {
        for variant in Variant::all() {
            let module = variant.module().unwrap_or_else(|e| panic!("{e:#}"));
            let broken = broken_rules(&variant, &module).unwrap();
            assert!(broken.is_empty(), "{variant}: {broken:?}");
        }
    }
}
