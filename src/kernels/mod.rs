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
pub mod columns;
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
    &columns::COLUMNS,
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
    ("columns", columns::cases),
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
    use crate::device::Access;
    use crate::device::cpu::Cpu;
    use crate::device::recorder::Recorder;
    use std::collections::BTreeSet;
    use std::sync::Arc;

    #[test]
    fn kernel_names_are_unique() {
        let names: BTreeSet<_> = ALL.iter().map(|k| k.name).collect();
        assert_eq!(names.len(), ALL.len());
    }

    /// Kernels that only move or set words.
    const MOVERS: [&str; 6] = [
        "columns",
        "copy",
        "embedding",
        "fill",
        "gather_rows",
        "search_begin",
    ];

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
}
