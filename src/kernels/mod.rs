//! Kernels. An op lives under its one name: `shaders/NAME.wgsl` and `src/kernels/NAME.rs` (formula, shapes,
//! parameters, launch, CPU twin, tests).

pub mod adamw;
pub mod add;
pub mod advantage;
pub mod attention;
pub mod beam;
pub mod candidates;
pub mod centroids;
pub mod column_sum;
pub mod compact;
pub mod copy;
pub mod dropout;
pub mod embedding;
pub mod expand;
pub mod fill;
pub mod fma;
pub mod gather;
pub mod grad_norm;
pub mod half_test;
pub mod harness;
mod lanes;
pub mod lerp;
pub mod log_softmax;
pub mod math;
pub mod matmul;
mod matmul_cpu;
mod matmul_forms;
pub mod matmul_softmax;
mod matmul_tile;
pub mod nearest;
pub mod objective;
pub mod reduce;
pub mod residual;
pub mod reward;
pub mod rmsnorm;
pub mod rng;
pub mod rope;
pub mod rows;
pub mod sample;
pub mod scale;
pub mod search;
pub mod shares;
pub mod silu;
pub mod swiglu;
pub mod target_gradient;
pub mod td;
pub mod token_order;
pub mod tree;
pub mod tree_tables;
pub mod ved_select;

use crate::device::{Kernel, PORTABLE};
use anyhow::Result;
use harness::Harness;

/// Every kernel in every form, for `vstar validate` and the tests that compare shaders with their host side.
pub static ALL: &[&Kernel] = &[
    &adamw::ADAMW,
    &add::ADD,
    &advantage::ADVANTAGE,
    &attention::BACKWARD_KEY_VALUE,
    &attention::BACKWARD_QUERY,
    &attention::DELTA,
    &attention::FORWARD,
    &beam::BEAM,
    &candidates::CANDIDATES,
    &centroids::CENTROIDS,
    &column_sum::COLUMN_SUM,
    &compact::COMPACT,
    &copy::COPY,
    &dropout::DROPOUT,
    &dropout::DROPOUT_ADD,
    &embedding::EMBEDDING,
    &embedding::EMBEDDING_BACKWARD,
    &expand::EXPAND,
    &fill::FILL,
    &fma::FMA,
    &gather::GATHER_ROWS,
    &gather::SCATTER_ADD_ROWS,
    &grad_norm::FINISH,
    &grad_norm::PARTIAL,
    &lerp::LERP,
    &log_softmax::LOG_SOFTMAX,
    &matmul::NN,
    &matmul::NT,
    &matmul::TN,
    &matmul_softmax::NN,
    &matmul_softmax::TN,
    &nearest::NEAREST,
    &objective::OBJECTIVE,
    &reduce::COLUMNS,
    &reduce::DOT,
    &residual::RESIDUAL,
    &reward::REWARD,
    &rmsnorm::BACKWARD,
    &rmsnorm::BACKWARD_IN_PLACE,
    &rmsnorm::FORWARD,
    &rmsnorm::WEIGHT_PARTIAL,
    &rmsnorm::WEIGHT_SUM,
    &rng::RNG,
    &rope::BACKWARD,
    &rope::FORWARD,
    &sample::SAMPLE,
    &scale::SCALE,
    &search::SEARCH_BEGIN,
    &shares::SHARES,
    &silu::SILU,
    &silu::SILU_BACKWARD,
    &swiglu::SWIGLU,
    &swiglu::SWIGLU_BACKWARD,
    &target_gradient::ADD,
    &target_gradient::SCALE,
    &td::TD,
    &token_order::TOKEN_ORDER,
    &tree::TREE_PACK,
    &tree::TREE_SIZES,
    &ved_select::VED_SELECT,
];

/// The names of all forms that some kernel has, the portable one first.
pub fn form_names() -> Vec<&'static str> {
    let mut names: Vec<_> = ALL
        .iter()
        .flat_map(|kernel| kernel.forms.iter().map(|form| form.name))
        .collect();
    names.sort_unstable();
    names.dedup();
    names.insert(0, PORTABLE);
    names
}

/// Runs an op on odd shapes and random data.
pub type Cases = fn(&mut Harness) -> Result<()>;

/// Every op's cases, for `vstar validate` and the lockstep tests.
pub static CASES: &[(&str, Cases)] = &[
    ("adamw", adamw::cases),
    ("add", add::cases),
    ("advantage", advantage::cases),
    ("attention", attention::cases),
    ("beam", beam::cases),
    ("candidates", candidates::cases),
    ("centroids", centroids::cases),
    ("column_sum", column_sum::cases),
    ("compact", compact::cases),
    ("copy", copy::cases),
    ("dropout", dropout::cases),
    ("embedding", embedding::cases),
    ("expand", expand::cases),
    ("fill", fill::cases),
    ("fma", fma::cases),
    ("gather", gather::cases),
    ("grad_norm", grad_norm::cases),
    ("lerp", lerp::cases),
    ("log_softmax", log_softmax::cases),
    ("matmul", matmul::cases),
    ("matmul_softmax", matmul_softmax::cases),
    ("nearest", nearest::cases),
    ("objective", objective::cases),
    ("reduce", reduce::cases),
    ("residual", residual::cases),
    ("reward", reward::cases),
    ("rmsnorm", rmsnorm::cases),
    ("rng", rng::cases),
    ("rope", rope::cases),
    ("sample", sample::cases),
    ("scale", scale::cases),
    ("search", search::cases),
    ("shares", shares::cases),
    ("silu", silu::cases),
    ("swiglu", swiglu::cases),
    ("target_gradient", target_gradient::cases),
    ("td", td::cases),
    ("token_order", token_order::cases),
    ("tree", tree::cases),
    ("ved_select", ved_select::cases),
];

/// Declares a kernel's parameter struct once: the `repr(C)` Pod the host fills and the list the shader is checked
/// against. Fields are 4-byte scalars, so WGSL's uniform layout and `repr(C)` agree.
#[macro_export]
macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($field:ident : $ty:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name { $(pub $field: $ty),+ }

        impl $name {
            pub const FIELDS: &'static [$crate::device::Param] = &[
                $($crate::device::Param {
                    name: stringify!($field),
                    ty: $crate::params!(@ty $ty),
                    offset: std::mem::offset_of!($name, $field),
                }),+
            ];
        }
    };
    (@ty u32) => { $crate::device::Type::U32 };
    (@ty f32) => { $crate::device::Type::F32 };
}

/// Declares a binding list: `bindings![x: In F32, y: Out F32]`.
#[macro_export]
macro_rules! bindings {
    ($($name:ident : $access:ident $ty:ident),+ $(,)?) => {
        &[$($crate::device::Binding {
            name: stringify!($name),
            access: $crate::device::Access::$access,
            ty: $crate::device::Type::$ty,
        }),+]
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;
    use crate::device::recorder::Recorder;
    use crate::device::shader;
    use crate::device::{Access, Binding, Form, Grid, Type};
    use naga::{AddressSpace, Scalar, ScalarKind, StorageAccess, TypeInner};
    use std::collections::BTreeSet;
    use std::sync::Arc;

    /// As a host declares it; `Real` for f16.
    fn scalar_type(scalar: Scalar) -> Type {
        match (scalar.kind, scalar.width) {
            (ScalarKind::Float, 2) => Type::Real,
            (ScalarKind::Float, _) => Type::F32,
            _ => Type::U32,
        }
    }

    /// The shader's own declarations against the host's: parameter names, types and offsets; binding names, numbers,
    /// access and element types; workgroup size and memory within the default limits. Every form, with f32 and with f16
    /// in what may hold either.
    fn check(kernel: &Kernel) {
        let real = |b: &Binding| b.ty == Type::Real;
        let bindings = kernel.bindings.iter().enumerate();
        let halves: u32 = bindings.map(|(i, b)| (real(b) as u32) << i).sum();
        for halves in BTreeSet::from([0, halves]) {
            let (source, entry) = (kernel.source, kernel.entry);
            let portable = Form::direct(source, |_| true, |_| Grid(1));
            let portable = Form {
                name: PORTABLE,
                entry,
                constants: kernel.constants,
                ..portable
            };
            for form in std::iter::once(&portable).chain(kernel.forms) {
                check_text(kernel, form, halves);
            }
        }
        let mut names: Vec<_> = kernel.forms.iter().map(|form| form.name).collect();
        names.push(PORTABLE);
        names.sort();
        names.dedup();
        assert_eq!(
            names.len(),
            1 + kernel.forms.len(),
            "{}: form names",
            kernel.name
        );
    }

    fn check_text(kernel: &Kernel, form: &Form, halves: u32) {
        let (entry, constants) = (form.entry, form.constants);
        let name = format!("{}/{}", kernel.name, form.name);
        let source = shader::text(form.source, kernel.bindings, halves).unwrap();
        let module = naga::front::wgsl::parse_str(&source)
            .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&source)));
        naga::valid::Validator::new(
            naga::valid::ValidationFlags::all(),
            [
                (form.subgroup > 0, naga::valid::Capabilities::SUBGROUP),
                (halves > 0, naga::valid::Capabilities::SHADER_FLOAT16),
                (
                    form.cooperative > 0,
                    naga::valid::Capabilities::COOPERATIVE_MATRIX,
                ),
            ]
            .into_iter()
            .filter(|(needed, _)| *needed)
            .map(|(_, capability)| capability)
            .collect(),
        )
        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .validate(&module)
        .unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let mut storage = Vec::new();
        let mut workgroup_bytes = 0;
        for (_, global) in module.global_variables.iter() {
            let ty = &module.types[global.ty];
            let bound = global.binding.as_ref().map(|b| (b.group, b.binding));
            match global.space {
                AddressSpace::Uniform => {
                    assert_eq!(bound, Some((0, 0)), "{name}: parameters at binding 0");
                    let TypeInner::Struct { members, .. } = &ty.inner else {
                        panic!("{name}: parameters are no struct")
                    };
                    let declared: Vec<_> = members
                        .iter()
                        .map(|m| {
                            let TypeInner::Scalar(s) = module.types[m.ty].inner else {
                                panic!("{name}: parameter {:?} is no scalar", m.name)
                            };
                            (m.name.clone().unwrap(), scalar_type(s), m.offset as usize)
                        })
                        .collect();
                    let host: Vec<_> = kernel
                        .params
                        .iter()
                        .map(|p| (p.name.to_string(), p.ty, p.offset))
                        .collect();
                    assert_eq!(declared, host, "{name}: parameters");
                }
                AddressSpace::Storage { access } => {
                    let TypeInner::Array { base, .. } = ty.inner else {
                        panic!("{name}: storage is no array")
                    };
                    let scalar = match module.types[base].inner {
                        TypeInner::Scalar(s) | TypeInner::Vector { scalar: s, .. } => s,
                        ref other => panic!("{name}: element type {other:?}"),
                    };
                    let access = if access.contains(StorageAccess::STORE) {
                        Access::Out
                    } else {
                        Access::In
                    };
                    let binding = global.name.clone().unwrap();
                    storage.push((bound.unwrap(), binding, access, scalar_type(scalar)));
                }
                AddressSpace::WorkGroup => {
                    workgroup_bytes += ty.inner.size(module.to_ctx());
                }
                _ => {}
            }
        }
        storage.sort_by_key(|s| s.0);
        let host: Vec<_> = kernel
            .bindings
            .iter()
            .enumerate()
            .map(|(i, b)| {
                let ty = match b.ty {
                    Type::Real if halves == 0 => Type::F32,
                    ty => ty,
                };
                ((0, 1 + i as u32), b.name.to_string(), b.access, ty)
            })
            .collect();
        assert_eq!(storage, host, "{name}: bindings");
        assert!(host.len() <= 8, "{name}: more than 8 storage buffers");
        assert!(workgroup_bytes <= 16_384, "{name}: workgroup memory");
        let entry = module
            .entry_points
            .iter()
            .find(|e| e.name == entry)
            .unwrap_or_else(|| panic!("{name}: no entry point {entry}"));
        assert!(
            entry.workgroup_size.iter().product::<u32>() <= 256,
            "{name}"
        );
        for (constant, _) in constants {
            assert!(
                module
                    .overrides
                    .iter()
                    .any(|(_, o)| o.name.as_deref() == Some(constant)),
                "{name}: override {constant}"
            );
        }
    }

    #[test]
    fn shaders_and_host_declare_the_same() {
        for kernel in ALL {
            check(kernel);
        }
        let mut names: Vec<_> = ALL.iter().map(|k| k.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), ALL.len(), "kernel names are unique");
    }

    /// Kernels that only move or set words.
    const MOVERS: [&str; 5] = ["copy", "embedding", "fill", "gather_rows", "search_begin"];

    #[test]
    fn every_launch_has_a_floor() {
        let recorder = Arc::new(Recorder::new(Arc::new(Cpu::new())));
        let mut met = BTreeSet::new();
        for (_, cases) in CASES {
            cases(&mut Harness::new(recorder.clone())).unwrap();
            for launch in recorder.take().iter().flat_map(|s| &s.launches) {
                let (kernel, cost) = (launch.kernel, launch.cost());
                met.insert(kernel.name);
                assert!(cost.bytes > 0, "{kernel:?}");
                let moves = MOVERS.contains(&kernel.name);
                assert_eq!(cost.operations == 0, moves, "{kernel:?} {launch:?}");
                // The cases bind slices of the sizes a launch needs; what is added to is moved twice.
                let bindings = kernel.bindings.iter().zip(launch.slices());
                let most: u64 = bindings
                    .map(|(b, slice)| (4 + 4 * (b.access == Access::Out) as u64) * slice.len as u64)
                    .sum();
                // A row of the rotary table or of the embedding is read by every row that needs it.
                let again = kernel.name.starts_with("rope") || kernel.name == "embedding";
                assert!(cost.bytes <= most || again, "{kernel:?}: {cost:?}, {most}");
            }
        }
        let all: BTreeSet<_> = ALL.iter().map(|kernel| kernel.name).collect();
        assert_eq!(met, all);
    }

    #[test]
    fn the_cases_reach_every_form() {
        let mut harness = Harness::new(Arc::new(Cpu::new()));
        for (name, cases) in CASES {
            let outcome = cases(&mut harness);
            outcome.unwrap_or_else(|error| panic!("{name}: {error:#}"));
        }
        for kernel in ALL {
            for form in kernel.forms {
                let reached = harness.has_met(kernel.name, form.name);
                assert!(reached, "{}/{} is not tested", kernel.name, form.name);
            }
        }
    }

    #[test]
    #[should_panic(expected = "parameters")]
    fn a_swapped_parameter_is_noticed() {
        let swapped = fill::FILL
            .source
            .replace("n: u32, value: u32", "value: u32, n: u32");
        check(&Kernel {
            source: Box::leak(swapped.into_boxed_str()),
            ..fill::FILL
        });
    }
}
