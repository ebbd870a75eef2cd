//! `embeddings.safetensors`: one f32 tensor, `embedding` `[items, dim]`, its rows in the order of the items.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::catalog::Embeddings;

/// Name of the file, beside `items.jsonl`.
pub const FILE: &str = "embeddings.safetensors";
const TENSOR: &str = "embedding";

/// Reads the embeddings of `items` items.
///
/// # Errors
/// The file cannot be read, or its tensor is missing or of another shape or type; in one line.
pub fn read(path: &Path, items: usize) -> Result<Embeddings> {
    let shown = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("{shown}: cannot be read"))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| anyhow!("{shown}: not a safetensors file ({error})"))?;
    let tensor = (file.tensor(TENSOR)).map_err(|_| anyhow!("{shown}: no tensor {TENSOR:?}"))?;
    let shape = tensor.shape();
    ensure!(
        tensor.dtype() == Dtype::F32 && shape.len() == 2 && shape[0] == items && shape[1] > 0,
        "{shown}: {TENSOR:?} is {:?} {shape:?}, but should be F32 [{items}, dim], a row for each item",
        tensor.dtype()
    );
    Ok(Embeddings {
        dim: shape[1],
        data: bytemuck::pod_collect_to_vec(tensor.data()),
    })
}

/// Writes what [`read`] reads.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, embeddings: &Embeddings) -> Result<()> {
    let shape = vec![embeddings.data.len() / embeddings.dim, embeddings.dim];
    let data = bytemuck::cast_slice(&embeddings.data);
    let tensor = TensorView::new(Dtype::F32, shape, data)?;
    safetensors::serialize_to_file([(TENSOR, tensor)], None, path)
        .with_context(|| format!("{}: cannot be written", path.display()))
}
