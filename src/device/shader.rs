//! Shader text as a driver gets it: element types named, includes expanded.

use super::{Binding, Type};
use anyhow::{Result, anyhow};
use std::fmt::Write;

/// Text that shaders may include with a line `//!include NAME`.
const INCLUDES: &[(&str, &str)] = &[
    ("dropout", include_str!("../../shaders/shared/dropout.wgsl")),
    ("eight", include_str!("../../shaders/shared/eight.wgsl")),
    ("grid", include_str!("../../shaders/shared/grid.wgsl")),
    ("grow", include_str!("../../shaders/shared/grow.wgsl")),
    ("keys", include_str!("../../shaders/shared/keys.wgsl")),
    ("matmul", include_str!("../../shaders/shared/matmul.wgsl")),
    (
        "matmul_cooperative",
        include_str!("../../shaders/shared/matmul_cooperative.wgsl"),
    ),
    (
        "matmul_plain",
        include_str!("../../shaders/shared/matmul_plain.wgsl"),
    ),
    (
        "matmul_scalar",
        include_str!("../../shaders/shared/matmul_scalar.wgsl"),
    ),
    (
        "matmul_softmax",
        include_str!("../../shaders/shared/matmul_softmax.wgsl"),
    ),
    (
        "matmul_store",
        include_str!("../../shaders/shared/matmul_store.wgsl"),
    ),
    (
        "norm_vector",
        include_str!("../../shaders/shared/norm_vector.wgsl"),
    ),
    ("asked", include_str!("../../shaders/shared/asked.wgsl")),
    ("paths", include_str!("../../shaders/shared/paths.wgsl")),
    ("rng", include_str!("../../shaders/shared/rng.wgsl")),
    ("rows", include_str!("../../shaders/shared/rows.wgsl")),
    ("search", include_str!("../../shaders/shared/search.wgsl")),
    ("settled", include_str!("../../shaders/shared/settled.wgsl")),
    ("sigmoid", include_str!("../../shaders/shared/sigmoid.wgsl")),
    (
        "sigmoid4",
        include_str!("../../shaders/shared/sigmoid4.wgsl"),
    ),
    ("tile", include_str!("../../shaders/shared/tile.wgsl")),
    (
        "tile_gradients",
        include_str!("../../shaders/shared/tile_gradients.wgsl"),
    ),
    (
        "tile_lists",
        include_str!("../../shaders/shared/tile_lists.wgsl"),
    ),
    ("total", include_str!("../../shaders/shared/total.wgsl")),
    ("walk", include_str!("../../shaders/shared/walk.wgsl")),
];

/// The text of a shader, its directives first, whose bindings of [`Type::Real`] hold f16 where `halves` has their bit, else
/// f32: `x_t` is the element type of `x`. Errors: an unknown include.
pub fn text(source: &str, bindings: &[Binding], halves: u32) -> Result<String> {
    let expanded = expand_includes(source)?;
    let directive = |line: &&str| line.starts_with("enable ") || line.starts_with("diagnostic(");
    let mut text = String::new();
    if halves != 0 {
        text.push_str("enable f16;\n");
    }
    for line in expanded.lines().filter(directive) {
        let _ = writeln!(text, "{line}");
    }
    for (i, binding) in bindings.iter().enumerate() {
        if binding.ty == Type::Real {
            let ty = if halves >> i & 1 == 1 { "f16" } else { "f32" };
            let _ = writeln!(text, "alias {}_t = {ty};", binding.name);
        }
    }
    for line in expanded.lines().filter(|line| !directive(line)) {
        let _ = writeln!(text, "{line}");
    }
    Ok(text)
}

/// Replaces each `//!include NAME` line by the text of `shaders/shared/NAME.wgsl`, which may include others. Errors: an
/// unknown name.
fn expand_includes(source: &str) -> Result<String> {
    let mut out = String::with_capacity(source.len() + 1024);
    for line in source.lines() {
        match line.strip_prefix("//!include ") {
            Some(name) => {
                let (_, text) = INCLUDES
                    .iter()
                    .find(|(known, _)| *known == name.trim())
                    .ok_or_else(|| anyhow!("unknown include `{}`", name.trim()))?;
                out.push_str(&expand_includes(text)?);
            }
            None => out.push_str(line),
        }
        out.push('\n');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn includes_are_replaced_and_unknown_ones_are_errors() {
        let text = expand_includes("//!include grid\nfn main() {}\n").unwrap();
        assert!(text.contains("fn group_number") && text.contains("fn main"));
        let error = expand_includes("//!include nowhere\n").unwrap_err();
        assert!(error.to_string().contains("nowhere"));
    }
}
