//! Files of item embeddings, their rows in the order of the items. Ours is `embeddings.safetensors`: one f32 tensor,
//! `embedding` `[items, dim]`, with a fingerprint of the item ids, so that it is not taken for that of other items.
//! Any safetensors file with one two-dimensional float tensor is read too, and NumPy's `.npy`.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use super::npy;
use crate::catalog::Embeddings;
use crate::fingerprint::fnv1a;
use crate::floats;

/// Name of the file, beside `items.jsonl`.
pub const FILE: &str = "embeddings.safetensors";
const TENSOR: &str = "embedding";
/// Key of the fingerprint in the metadata.
const ITEMS: &str = "items";

/// Reads the embeddings of the items called `names`.
///
/// # Errors
/// The file cannot be read, is in neither format, holds anything but one finite float matrix with a row for each item,
/// or was made for other items; in one line.
pub fn read(path: &Path, names: &[String]) -> Result<Embeddings> {
    let shown = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("{shown}: cannot be read"))?;
    let file = if path.extension() == Some(OsStr::new("npy")) {
        npy::parse(&bytes).map(|array| (array, None))
    } else {
        tensor(&bytes)
    };
    let ((dtype, shape, values), made_for) = file.map_err(|error| anyhow!("{shown}: {error:#}"))?;
    ensure!(
        shape.len() == 2 && shape[0] == names.len() && shape[1] > 0,
        "{shown}: a matrix of {shape:?}, but should be [{}, dim], a row for each item",
        names.len()
    );
    ensure!(
        made_for.is_none_or(|made_for| made_for == fingerprint(names)),
        "{shown}: made for other items, or for these in another order: remove it, and make it anew with `vstar embed`"
    );
    let data = floats::decode(dtype, values)
        .with_context(|| format!("{shown}: values of type {dtype:?}: expected floats"))?;
    if let Some(at) = data.iter().position(|x| !x.is_finite()) {
        let name = &names[at / shape[1]];
        return Err(anyhow!("{shown}: the row of item {name:?} is not finite"));
    }
    Ok(Embeddings {
        dim: shape[1],
        data,
    })
}

/// Type, shape and bytes of a matrix.
type Matrix<'a> = (Dtype, Vec<usize>, &'a [u8]);

/// The one tensor of a safetensors file, and the fingerprint of the items it was made for, if it says.
fn tensor(bytes: &[u8]) -> Result<(Matrix<'_>, Option<String>)> {
    let no_file = |error| anyhow!("not a safetensors file ({error})");
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(no_file)?;
    let metadata = header.metadata().as_ref();
    let made_for = metadata.and_then(|all| all.get(ITEMS)).cloned();
    let file = SafeTensors::deserialize(bytes).map_err(no_file)?;
    let mut tensors = file.tensors();
    ensure!(
        tensors.len() == 1,
        "{} tensors: expected one, the embeddings",
        tensors.len()
    );
    let (_, tensor) = tensors.remove(0);
    let matrix = (tensor.dtype(), tensor.shape().into(), tensor.data());
    Ok((matrix, made_for))
}

/// The bytes of `embeddings.safetensors`; `made` says of what and how, for people. The same input gives the same bytes.
pub fn bytes(embeddings: &Embeddings, names: &[String], made: &[(&str, String)]) -> Vec<u8> {
    let mut metadata = Map::new();
    metadata.insert(ITEMS.into(), fingerprint(names).into());
    for (key, value) in made {
        metadata.insert((*key).into(), Value::from(&**value));
    }
    // By hand, because the library orders metadata at random.
    let header = json!({
        "__metadata__": metadata,
        TENSOR: {
            "dtype": "F32",
            "shape": [names.len(), embeddings.dim],
            "data_offsets": [0, size_of_val(&*embeddings.data)],
        },
    });
    let mut header = header.to_string();
    let padded = header.len().next_multiple_of(8);
    header.extend(std::iter::repeat_n(' ', padded - header.len()));
    let length = header.len() as u64;
    let values = embeddings.data.iter().flat_map(|x| x.to_le_bytes());
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend(values);
    bytes
}

/// FNV-1a (64 bits) of the ids in their order, each ended by a byte that no text holds.
fn fingerprint(names: &[String]) -> String {
    let ids = names.iter().flat_map(|name| name.bytes().chain([0xff]));
    format!("{:016x}", fnv1a(ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(all: &[&str]) -> Vec<String> {
        all.iter().map(|&name| name.into()).collect()
    }

    #[test]
    fn what_is_written_is_read_for_the_same_items_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let embeddings = Embeddings {
            dim: 3,
            data: vec![1.0, -2.0, 0.5, 0.0, 3.25, -0.0],
        };
        let made = [("source", "text".to_string()), ("seed", "7".into())];
        let bytes = bytes(&embeddings, &names(&["pen", "ink"]), &made);
        std::fs::write(&path, &bytes).unwrap();
        let back = read(&path, &names(&["pen", "ink"])).unwrap();
        assert_eq!((back.dim, back.data), (3, embeddings.data));
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["source"], "text");
        for others in [names(&["ink", "pen"]), names(&["penink", ""])] {
            let error = read(&path, &others).unwrap_err().to_string();
            assert!(error.contains("made for other items"), "{error}");
        }
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let error = read(&path, &names(&["pen", "ink"])).unwrap_err();
        assert!(error.to_string().contains("not a safetensors file"));
    }

    #[test]
    fn files_of_other_tools() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.safetensors");
        let write = |dtype, shape: &[usize], data: &[u8], copies: usize| {
            let view = safetensors::tensor::TensorView::new(dtype, shape.into(), data).unwrap();
            let views = (0..copies).map(|copy| (format!("t{copy}"), view.clone()));
            std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
            read(&path, &names(&["pen", "ink"])).map_err(|error| error.to_string())
        };
        // 1 and -2.
        let halves = [0x00, 0x3c, 0x00, 0xc0];
        assert_eq!(
            write(Dtype::F16, &[2, 1], &halves, 1).unwrap().data,
            [1.0, -2.0]
        );
        let brains = [0x80, 0x3f, 0x00, 0xc0];
        assert_eq!(
            write(Dtype::BF16, &[2, 1], &brains, 1).unwrap().data,
            [1.0, -2.0]
        );
        let refused = |answer: Result<Embeddings, String>, wanted: &str| {
            let error = answer.unwrap_err();
            assert!(error.contains(wanted), "{error}");
        };
        refused(write(Dtype::F16, &[1, 2], &halves, 1), "[1, 2]");
        refused(write(Dtype::F16, &[2], &halves, 1), "[2, dim]");
        refused(write(Dtype::I16, &[2, 1], &halves, 1), "I16");
        refused(write(Dtype::F16, &[2, 1], &halves, 2), "2 tensors");
        refused(
            write(Dtype::F16, &[2, 1], &[0, 0x3c, 0, 0x7c], 1),
            "\"ink\" is not finite",
        );
    }
}
