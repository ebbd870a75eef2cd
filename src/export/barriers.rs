//! Barriers that some invocations of a workgroup may never come to, because a condition was true for some only. HLSL's
//! compilers refuse them, on Metal they hang.
//!
//! What diverges: the invocation's own numbers; what is loaded from memory that shaders write (as FXC sees it, even where
//! all load the same word), from constant memory at a place that diverges, or from a variable that was given something
//! divergent or assigned where invocations had parted; results of subgroup and matrix operations; and what is computed from
//! any of these. `workgroupUniformLoad` never diverges. Naga has an analysis too, but it follows neither variables nor
//! calls. Members of a struct are told apart.

use naga::{
    AddressSpace, Arena, Binding, Block, BuiltIn, EntryPoint, Expression, Function, GlobalVariable,
    Handle, LocalVariable, Module, Statement, TypeInner,
};
use std::collections::HashMap;

/// The functions and entry points that hold such a barrier.
pub fn missed(module: &Module) -> Vec<&str> {
    let mut known = Known {
        module,
        facts: HashMap::new(),
        changed: true,
    };
    while known.changed {
        known.changed = false;
        known.walk_all();
    }
    known.walk_all()
}

/// A function, or an entry point by its number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Function(Handle<Function>),
    Entry(usize),
}

/// Which members of a value diverge, a bit each; all or none of what is no struct.
type Members = u64;
const ALL: Members = Members::MAX;

/// What may be found to diverge; there is only ever more of it.
#[derive(PartialEq, Eq, Hash)]
enum Fact {
    /// The argument of some call.
    Argument(Handle<Function>, u32),
    Result(Handle<Function>),
    Local(Place, Handle<LocalVariable>),
    Private(Handle<GlobalVariable>),
    /// The function holds a barrier, or calls one that does.
    Waits(Handle<Function>),
}

struct Known<'a> {
    module: &'a Module,
    facts: HashMap<Fact, Members>,
    changed: bool,
}

impl<'a> Known<'a> {
    fn learn(&mut self, fact: Fact, members: Members) {
        let known = self.facts.entry(fact).or_insert(0);
        self.changed |= members & !*known != 0;
        *known |= members;
    }

    fn fact(&self, fact: Fact) -> Members {
        self.facts.get(&fact).copied().unwrap_or(0)
    }

    /// Walks all functions once; those with a barrier that is missed as far as is known.
    fn walk_all(&mut self) -> Vec<&'a str> {
        let module = self.module;
        let functions = module.functions.iter().map(|(handle, function)| {
            let name = function.name.as_deref().unwrap_or("a function");
            (Place::Function(handle), name, function)
        });
        let entries = module.entry_points.iter().enumerate();
        let entries = entries.map(|(i, e)| (Place::Entry(i), e.name.as_str(), &e.function));
        let mut missed = Vec::new();
        for (place, name, function) in functions.chain(entries) {
            let diverges = self.expressions(place, function);
            let mut walk = Walk {
                known: self,
                place,
                expressions: &function.expressions,
                diverges,
                missed: false,
            };
            walk.block(&function.body, false);
            if walk.missed {
                missed.push(name);
            }
        }
        missed
    }

    /// What diverges of each value of a function, by their handles' numbers.
    fn expressions(&self, place: Place, function: &Function) -> Vec<Members> {
        let mut diverges: Vec<Members> = Vec::with_capacity(function.expressions.len());
        let all_if = |condition: bool| if condition { ALL } else { 0 };
        // Operands come before what is made of them.
        for (_, expression) in function.expressions.iter() {
            let of = |e: &Handle<Expression>| diverges[e.index()];
            let any = |list: &[Handle<Expression>]| all_if(list.iter().any(|e| of(e) != 0));
            use Expression as E;
            let members = match expression {
                E::Literal(_)
                | E::Constant(_)
                | E::Override(_)
                | E::ZeroValue(_)
                | E::ArrayLength(_)
                | E::WorkGroupUniformLoadResult { .. } => 0,
                E::FunctionArgument(index) => self.argument(place, *index),
                // A pointer to a variable: not its value.
                E::GlobalVariable(_) | E::LocalVariable(_) => 0,
                E::Load { pointer } if of(pointer) != 0 => ALL,
                E::Load { pointer } => self.memory(place, &function.expressions, *pointer),
                E::Compose { ty, components } => match self.module.types[*ty].inner {
                    TypeInner::Struct { .. } => {
                        let bits = components.iter().enumerate();
                        bits.map(|(i, c)| bit(i as u32) & all_if(of(c) != 0))
                            .fold(0, |a, b| a | b)
                    }
                    _ => any(components),
                },
                E::Access { base, index } => any(&[*base, *index]),
                E::AccessIndex { base, index } => all_if(of(base) & bit(*index) != 0),
                E::Splat { value, .. } | E::Swizzle { vector: value, .. } => of(value),
                E::Unary { expr, .. } | E::As { expr, .. } => of(expr),
                E::Binary { left, right, .. } => any(&[*left, *right]),
                E::Select {
                    condition,
                    accept,
                    reject,
                } => any(&[*condition, *accept, *reject]),
                E::Relational { argument, .. } => of(argument),
                E::Math {
                    arg,
                    arg1,
                    arg2,
                    arg3,
                    ..
                } => {
                    let rest = [arg1, arg2, arg3].into_iter().flatten();
                    of(arg) | all_if(rest.into_iter().any(|e| of(e) != 0))
                }
                E::CallResult(function) => self.fact(Fact::Result(*function)),
                _ => ALL,
            };
            diverges.push(members);
        }
        diverges
    }

    fn argument(&self, place: Place, index: u32) -> Members {
        match place {
            Place::Function(function) => self.fact(Fact::Argument(function, index)),
            Place::Entry(entry) if is_own(&self.module.entry_points[entry], index as usize) => ALL,
            Place::Entry(_) => 0,
        }
    }

    /// What the memory behind a pointer may hold.
    fn memory(
        &self,
        place: Place,
        expressions: &Arena<Expression>,
        pointer: Handle<Expression>,
    ) -> Members {
        let (root, member) = target(expressions, pointer);
        let held = match root {
            Expression::LocalVariable(local) => self.fact(Fact::Local(place, *local)),
            Expression::GlobalVariable(global) => {
                match self.module.global_variables[*global].space {
                    AddressSpace::Uniform | AddressSpace::Immediate => 0,
                    AddressSpace::Storage { access }
                        if !access.contains(naga::StorageAccess::STORE) =>
                    {
                        0
                    }
                    AddressSpace::Private => self.fact(Fact::Private(*global)),
                    _ => ALL,
                }
            }
            _ => ALL,
        };
        match member {
            None => held,
            Some(member) if held & bit(member) != 0 => ALL,
            Some(_) => 0,
        }
    }
}

/// A member's bit; the last is that of all members past it.
fn bit(member: u32) -> Members {
    1 << member.min(Members::BITS - 1)
}

/// Whether an entry point's argument differs between the invocations of a workgroup.
fn is_own(entry: &EntryPoint, argument: usize) -> bool {
    !matches!(
        entry.function.arguments[argument].binding,
        Some(Binding::BuiltIn(
            BuiltIn::WorkGroupId
                | BuiltIn::WorkGroupSize
                | BuiltIn::NumWorkGroups
                | BuiltIn::NumSubgroups
                | BuiltIn::SubgroupSize
        ))
    )
}

/// The variable that a pointer leads into, and the member or element of it, if that is a constant.
fn target(
    expressions: &Arena<Expression>,
    mut pointer: Handle<Expression>,
) -> (&Expression, Option<u32>) {
    let mut member = None;
    loop {
        match &expressions[pointer] {
            Expression::Access { base, .. } => (pointer, member) = (*base, None),
            Expression::AccessIndex { base, index } => (pointer, member) = (*base, Some(*index)),
            found => return (found, member),
        }
    }
}

/// How invocations may part in a block.
#[derive(Clone, Copy, Default, PartialEq)]
struct Parting {
    /// Some may have returned.
    returned: bool,
    /// Some may have left the innermost loop or switch, or this round of the loop.
    left: bool,
}

impl std::ops::BitOrAssign for Parting {
    fn bitor_assign(&mut self, other: Parting) {
        self.returned |= other.returned;
        self.left |= other.left;
    }
}

struct Walk<'a, 'b> {
    known: &'a mut Known<'b>,
    place: Place,
    expressions: &'a Arena<Expression>,
    diverges: Vec<Members>,
    missed: bool,
}

impl Walk<'_, '_> {
    fn of(&self, expression: Handle<Expression>) -> Members {
        self.diverges[expression.index()]
    }

    fn diverges(&self, expression: Handle<Expression>) -> bool {
        self.of(expression) != 0
    }

    /// What diverges goes where a pointer leads.
    fn write(&mut self, pointer: Handle<Expression>, members: Members) {
        let (root, member) = target(self.expressions, pointer);
        let members = match member {
            Some(member) if members != 0 => bit(member),
            _ => members,
        };
        match root {
            Expression::LocalVariable(local) => {
                self.known.learn(Fact::Local(self.place, *local), members);
            }
            Expression::GlobalVariable(global) => {
                self.known.learn(Fact::Private(*global), members);
            }
            _ => {}
        }
    }

    fn wait(&mut self, apart: bool) {
        self.missed |= apart;
        if let Place::Function(function) = self.place {
            self.known.learn(Fact::Waits(function), ALL);
        }
    }

    /// Walks a block that only some invocations may be in (`apart`); how they may have parted at its end.
    fn block(&mut self, block: &Block, apart: bool) -> Parting {
        let mut parting = Parting::default();
        for statement in block.iter() {
            let here = apart || parting != Parting::default();
            parting |= self.statement(statement, here);
        }
        parting
    }

    fn statement(&mut self, statement: &Statement, here: bool) -> Parting {
        let mut parting = Parting::default();
        match statement {
            Statement::ControlBarrier(_) => self.wait(here),
            Statement::WorkGroupUniformLoad { .. } => self.wait(here),
            Statement::Return { value } => {
                parting.returned = here;
                if let (Place::Function(function), Some(value)) = (self.place, value) {
                    let members = if here { ALL } else { self.of(*value) };
                    self.known.learn(Fact::Result(function), members);
                }
            }
            Statement::Kill => parting.returned = here,
            Statement::Break | Statement::Continue => parting.left = here,
            Statement::Store { pointer, value } => {
                let apart = here || self.diverges(*pointer);
                let members = if apart { ALL } else { self.of(*value) };
                self.write(*pointer, members);
            }
            Statement::Call {
                function,
                arguments,
                ..
            } => {
                for (i, &argument) in arguments.iter().enumerate() {
                    let members = self.of(argument);
                    self.known
                        .learn(Fact::Argument(*function, i as u32), members);
                    // What a callee does with a pointer is not followed.
                    self.write(argument, ALL);
                }
                if self.known.fact(Fact::Waits(*function)) != 0 {
                    self.wait(here);
                }
            }
            Statement::Block(inner) => parting = self.block(inner, here),
            Statement::If {
                condition,
                accept,
                reject,
            } => {
                let inside = here || self.diverges(*condition);
                parting = self.block(accept, inside);
                parting |= self.block(reject, inside);
            }
            Statement::Switch { selector, cases } => {
                let inside = here || self.diverges(*selector);
                for case in cases {
                    parting.returned |= self.block(&case.body, inside).returned;
                }
            }
            Statement::Loop {
                body,
                continuing,
                break_if,
            } => {
                let ends = break_if.is_some_and(|condition| self.diverges(condition));
                let missed = self.missed;
                let mut round = self.block(body, here);
                round |= self.block(continuing, here || round != Parting::default());
                // Those who have parted in one round are apart in the next.
                if !here && (ends || round != Parting::default()) {
                    self.missed = missed;
                    self.block(body, true);
                    self.block(continuing, true);
                }
                parting.returned = round.returned;
            }
            _ => {}
        }
        parting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether some invocations may miss a barrier of an entry point with this body.
    fn parts(body: &str) -> bool {
        let text = format!(
            "@group(0) @binding(0) var<uniform> n: u32;
             @group(0) @binding(1) var<storage, read> given: array<u32>;
             @group(0) @binding(2) var<storage, read_write> found: array<u32>;
             var<workgroup> words: array<u32, 64>;
             var<private> own: u32;
             struct Pair {{ mine: u32, ours: u32 }}
             fn next(x: Pair, lane: u32) -> Pair {{ return Pair(x.mine + lane, x.ours + 1u); }}
             fn wait() {{ workgroupBarrier(); }}
             fn twice(x: u32) -> u32 {{ return 2u * x; }}
             fn thrice(x: u32) -> u32 {{ return 3u * x; }}
             @compute @workgroup_size(64)
             fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>) {{
                 {body}
             }}"
        );
        !missed(&naga::front::wgsl::parse_str(&text).unwrap()).is_empty()
    }

    #[test]
    fn a_barrier_that_some_never_reach_is_found() {
        for body in [
            "if lane > n { return; } workgroupBarrier();",
            "if lane > n { return; } wait();",
            "if lane > n { workgroupBarrier(); }",
            "if lane > n { if n > 3u { return; } } workgroupBarrier();",
            "let x = twice(lane); if x > n { return; } workgroupBarrier();",
            "own = lane; if own > n { return; } workgroupBarrier();",
            "var x = n; if lane > 3u { x = 1u; } if x > n { return; } workgroupBarrier();",
            "if given[lane] > n { return; } workgroupBarrier();",
            "var x = next(Pair(1u, 2u), lane); if x.mine > n { return; } workgroupBarrier();",
            "var x = Pair(1u, 2u); if lane > n { x.ours = 3u; } if x.ours > n { return; } workgroupBarrier();",
            "if found[0] > n { return; } workgroupBarrier();",
            "if words[0] > n { return; } workgroupBarrier();",
            "for (var i = 0u; i < n; i++) { if lane > i { break; } workgroupBarrier(); }",
            "for (var i = 0u; i < n; i++) { workgroupBarrier(); if lane > i { continue; } }",
            "for (var i = 0u; i < n; i++) { workgroupBarrier(); if lane > i { break; } }",
            "for (var i = lane; i < n; i += 64u) { workgroupBarrier(); }",
            "loop { if lane > n { return; } break; } workgroupBarrier();",
            "switch lane { case 0u: { return; } default: {} } workgroupBarrier();",
        ] {
            assert!(parts(body), "{body}");
        }
    }

    #[test]
    fn a_barrier_that_all_reach_is_none() {
        for body in [
            "if group.x > n { return; } workgroupBarrier();",
            "workgroupBarrier(); if lane > n { return; }",
            "for (var i = 0u; i < n; i++) { workgroupBarrier(); }",
            "for (var i = lane; i < n; i += 64u) { words[i % 64u] = i; } workgroupBarrier();",
            "for (var i = lane; i < n; i++) { if i > 5u { break; } } workgroupBarrier();",
            "switch n { case 0u: { return; } default: {} } workgroupBarrier();",
            "for (var i = 0u; i < n; i++) { if i > 5u { break; } wait(); }",
            "let x = twice(lane); if thrice(n) > 4u { return; } workgroupBarrier();",
            "if given[group.x] > n { return; } workgroupBarrier();",
            "var x = next(Pair(1u, 2u), lane); while x.ours < n { x = next(x, lane); workgroupBarrier(); }",
            "var x = Pair(1u, 2u); x.mine = lane; if x.ours > n { return; } workgroupBarrier();",
            "own = n; if own > 3u { return; } workgroupBarrier();",
            "if workgroupUniformLoad(&words[0]) > n { return; } workgroupBarrier();",
        ] {
            assert!(!parts(body), "{body}");
        }
    }
}
