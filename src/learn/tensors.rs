//! Reading the tensors of a probe file, with errors that name the tensor.

use crate::model::checkpoint::to_f32;
use anyhow::{Context, Result, bail, ensure};
use safetensors::{Dtype, SafeTensors};

/// A named output: name, shape, values.
pub type Output = (String, Vec<usize>, Vec<f32>);

/// The shape of a tensor of the input. Errors: missing.
pub fn shape_of(inputs: &SafeTensors, name: &str) -> Result<Vec<usize>> {
    let view = inputs
        .tensor(name)
        .with_context(|| format!("tensor `{name}` is missing"))?;
    Ok(view.shape().to_vec())
}

/// An integer tensor of the input and its shape. Errors: missing, of another type or number of dimensions.
pub fn integers(inputs: &SafeTensors, name: &str, rank: usize) -> Result<(Vec<usize>, Vec<i64>)> {
    let view = inputs
        .tensor(name)
        .with_context(|| format!("tensor `{name}` is missing"))?;
    ensure!(
        view.shape().len() == rank,
        "tensor `{name}` has shape {:?}: expected {rank} dimensions",
        view.shape()
    );
    let data = view.data();
    let values = match view.dtype() {
        Dtype::I32 => data
            .chunks_exact(4)
            .map(|b| i32::from_le_bytes(b.try_into().unwrap()) as i64)
            .collect(),
        Dtype::I64 => data
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
            .collect(),
        other => bail!("tensor `{name}` has type {other:?}: expected I32 or I64"),
    };
    Ok((view.shape().to_vec(), values))
}

/// A float tensor of the input. Errors: missing, or of another type or shape.
pub fn floats(inputs: &SafeTensors, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let view = inputs
        .tensor(name)
        .with_context(|| format!("tensor `{name}` is missing"))?;
    ensure!(
        view.shape() == shape,
        "tensor `{name}` has shape {:?}: expected {shape:?}",
        view.shape()
    );
    to_f32(name, &view)
}
