//! Rules of our own, for what naga accepts and some driver or adapter does not.

use super::{Module, Variant, barriers};
use anyhow::Result;
use naga::{AddressSpace, Expression, GlobalVariable, Handle, ScalarKind, Statement, TypeInner};
use std::collections::{BTreeSet, HashMap};

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
    broken.extend(compared_with_itself(&module.module));
    // Forms with matrix operations store in rounds, but an element of `c` is one invocation's.
    if variant.cooperative() == 0 {
        broken.extend(unordered(&module.module));
    }
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

/// Every function of a module, entry points too.
fn functions(module: &naga::Module) -> impl Iterator<Item = &naga::Function> {
    let entries = module.entry_points.iter().map(|e| &e.function);
    module.functions.iter().map(|(_, f)| f).chain(entries)
}

/// A value compared with itself, which is how to ask for a NaN where numbers are what they are: Metal compiles with fast math,
/// which takes every float for equal to itself. Shaders look at the bits.
fn compared_with_itself(module: &naga::Module) -> Option<String> {
    let same = |function: &naga::Function, left, right| {
        let place = |handle| match function.expressions[handle] {
            Expression::Load { pointer } => pointer,
            _ => handle,
        };
        left == right || place(left) == place(right)
    };
    let found = functions(module).any(|function| {
        function.expressions.iter().any(|(_, e)| match *e {
            Expression::Binary { op, left, right } => {
                use naga::BinaryOperator::*;
                let compares = [Equal, NotEqual, Less, LessEqual, Greater, GreaterEqual];
                compares.contains(&op) && same(function, left, right)
            }
            _ => false,
        })
    });
    found.then(|| "a value compared with itself".into())
}

/// Storage that is read behind a barrier that orders workgroup memory only (`workgroupBarrier`), and written before it: on
/// Metal one invocation may then not see what another wrote.
fn unordered(module: &naga::Module) -> Vec<String> {
    let mut order = Order {
        module,
        written: HashMap::new(),
        broken: BTreeSet::new(),
    };
    for entry in &module.entry_points {
        order.block(&entry.function, &entry.function.body);
    }
    let name =
        |name: String| format!("`{name}` written and read around a barrier that does not order it");
    order.broken.into_iter().map(name).collect()
}

/// What a walk along the statements knows.
struct Order<'a> {
    module: &'a naga::Module,
    /// Storage that was written, and whether a barrier followed that does not order it.
    written: HashMap<Handle<GlobalVariable>, bool>,
    broken: BTreeSet<String>,
}

impl Order<'_> {
    fn block(&mut self, function: &naga::Function, block: &naga::Block) {
        for statement in block.iter() {
            match statement {
                Statement::Emit(range) => {
                    for handle in range.clone() {
                        if let Expression::Load { pointer } = function.expressions[handle] {
                            self.load(function, pointer);
                        }
                    }
                }
                Statement::Store { pointer, .. } => {
                    if let Some(variable) = self.storage(function, *pointer) {
                        self.written.insert(variable, false);
                    }
                }
                Statement::ControlBarrier(flags) if flags.contains(naga::Barrier::STORAGE) => {
                    self.written.clear();
                }
                Statement::ControlBarrier(_) => {
                    self.written.values_mut().for_each(|behind| *behind = true);
                }
                Statement::Call { function, .. } => {
                    let called = &self.module.functions[*function];
                    self.block(called, &called.body);
                }
                Statement::Block(inner) => self.block(function, inner),
                // One after the other: what either writes is written.
                Statement::If { accept, reject, .. } => {
                    self.block(function, accept);
                    self.block(function, reject);
                }
                Statement::Switch { cases, .. } => {
                    for case in cases {
                        self.block(function, &case.body);
                    }
                }
                // Twice, because the second round reads what the first wrote.
                Statement::Loop {
                    body, continuing, ..
                } => {
                    for _ in 0..2 {
                        self.block(function, body);
                        self.block(function, continuing);
                    }
                }
                _ => {}
            }
        }
    }

    fn load(&mut self, function: &naga::Function, pointer: Handle<Expression>) {
        if let Some(variable) = self.storage(function, pointer)
            && self.written.get(&variable) == Some(&true)
        {
            let name = self.module.global_variables[variable].name.clone();
            self.broken.insert(name.unwrap_or_default());
        }
    }

    /// The storage that a pointer points into.
    fn storage(
        &self,
        function: &naga::Function,
        mut pointer: Handle<Expression>,
    ) -> Option<Handle<GlobalVariable>> {
        loop {
            match function.expressions[pointer] {
                Expression::Access { base, .. } | Expression::AccessIndex { base, .. } => {
                    pointer = base;
                }
                Expression::GlobalVariable(variable) => {
                    let space = self.module.global_variables[variable].space;
                    return matches!(space, AddressSpace::Storage { .. }).then_some(variable);
                }
                _ => return None,
            }
        }
    }
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

    fn parsed(text: &str) -> naga::Module {
        naga::front::wgsl::parse_str(text).unwrap()
    }

    #[test]
    fn comparisons_that_fast_math_decides_are_refused() {
        let asks = |condition: &str| {
            let text =
                format!("fn f(y: f32) -> bool {{ var x = y; let z = x; return {condition}; }}");
            compared_with_itself(&parsed(&text)).is_some()
        };
        for refused in ["x != x", "z == z", "!(y <= y)"] {
            assert!(asks(refused), "{refused}");
        }
        for taken in ["x != y", "z + 1.0 == z", "(bitcast<u32>(x) & 1u) == 1u"] {
            assert!(!asks(taken), "{taken}");
        }
    }

    #[test]
    fn storage_is_ordered_by_barriers_of_its_own() {
        let of = |barrier: &str, load: &str| {
            let text = format!(
                "@group(0) @binding(0) var<storage, read_write> y: array<u32, 64>;
                 @group(0) @binding(1) var<storage, read_write> z: array<u32, 64>;
                 var<workgroup> w: u32;
                 @compute @workgroup_size(64)
                 fn main(@builtin(local_invocation_index) i: u32) {{
                     if i < 63u {{ y[i] = i; }}
                     {barrier}
                     z[i] = {load};
                 }}"
            );
            unordered(&parsed(&text))
        };
        let broken = of("workgroupBarrier();", "y[63u - i]");
        assert!(broken.len() == 1 && broken[0].contains("`y`"), "{broken:?}");
        assert!(of("storageBarrier();", "y[63u - i]").is_empty());
        assert!(of("storageBarrier(); workgroupBarrier();", "y[63u - i]").is_empty());
        assert!(of("workgroupBarrier();", "w").is_empty());
        assert!(of("", "y[i]").is_empty());
        // Read before it is written, but for the next round of a loop.
        let round = "z[i] = y[i]; y[i] = 1u; workgroupBarrier();";
        assert!(of(round, "w").is_empty());
        let rounds = format!("for (var k = 0u; k < 9u; k++) {{ {round} }}");
        assert_eq!(of(&rounds, "w").len(), 1);
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
