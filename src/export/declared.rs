//! The shaders' own declarations against the host's.

use super::*;
use crate::device::{Access, PORTABLE};
use naga::{AddressSpace, Scalar, ScalarKind, StorageAccess, TypeInner};
use std::collections::BTreeSet;

/// As a host declares it; `Real` for f16.
fn scalar_type(scalar: Scalar) -> Type {
    match (scalar.kind, scalar.width) {
        (ScalarKind::Float, 2) => Type::Real,
        (ScalarKind::Float, _) => Type::F32,
        _ => Type::U32,
    }
}

/// Parameter names, types and offsets; binding names, numbers, access and element types; override constants. Of every form
/// with every mix of element types.
fn check(kernel: &'static Kernel) {
    for variant in Variant::of(kernel) {
        check_variant(&variant);
    }
    let mut names = BTreeSet::from([PORTABLE]);
    names.extend(kernel.forms.iter().map(|form| form.name));
    let count = 1 + kernel.forms.len();
    assert_eq!(names.len(), count, "{}: form names", kernel.name);
}

fn check_variant(variant: &Variant) {
    let (kernel, name) = (variant.kernel, variant.to_string());
    let module = variant.module().unwrap_or_else(|e| panic!("{e:#}"));
    module.entry(variant.entry()).unwrap();
    let module = &module.module;
    let mut storage = Vec::new();
    for (_, global) in module.global_variables.iter() {
        let ty = &module.types[global.ty];
        let bound = global.binding.as_ref().map(|b| (b.group, b.binding));
        match global.space {
            AddressSpace::Uniform if bound == Some((1, 0)) => {
                let TypeInner::Scalar(scalar) = ty.inner else {
                    panic!("{name}: the first workgroup's number is no scalar")
                };
                assert_eq!(scalar_type(scalar), Type::U32, "{name}: first workgroup");
            }
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
                Type::Real if variant.halves >> i & 1 == 0 => Type::F32,
                ty => ty,
            };
            ((0, 1 + i as u32), b.name.to_string(), b.access, ty)
        })
        .collect();
    assert_eq!(storage, host, "{name}: bindings");
    for (constant, _) in variant.constants() {
        let mut overrides = module.overrides.iter();
        assert!(
            overrides.any(|(_, o)| o.name.as_deref() == Some(constant)),
            "{name}: override {constant}"
        );
    }
}

#[test]
fn shaders_and_host_declare_the_same() {
    for kernel in kernels::ALL {
        check(kernel);
    }
}

#[test]
#[should_panic(expected = "parameters")]
fn a_swapped_parameter_is_noticed() {
    let fill = &kernels::fill::FILL;
    let swapped = fill
        .source
        .replace("n: u32, value: u32", "value: u32, n: u32");
    check(Box::leak(Box::new(Kernel {
        source: Box::leak(swapped.into_boxed_str()),
        ..kernels::fill::FILL
    })));
}
