//! Weights in files: `config.json` + `model.safetensors` in Hugging Face's names, so that checkpoints of the supported
//! families load unchanged and what is saved loads there. The value head lies beside them under `value_head.*`.

use super::architecture::Architecture;
use super::backbone::Model;
use super::layout::{Layout, for_each_part_mut, parts};
use crate::device::{DeviceRef, Precision};
use crate::floats;
use crate::rng::{Rng, Stream};
use anyhow::{Context, Result, anyhow, bail, ensure};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The values of a tensor of any float type as f32. Errors: another type.
pub fn to_f32(name: &str, view: &TensorView) -> Result<Vec<f32>> {
    let dtype = view.dtype();
    floats::decode(dtype, view.data())
        .with_context(|| format!("tensor {name:?} has type {dtype:?}: expected a float type"))
}

/// The safetensors files of a checkpoint directory: one, or the shards its index lists.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let single = dir.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = dir.join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).with_context(|| {
        format!(
            "{}: holds neither model.safetensors nor model.safetensors.index.json",
            dir.display()
        )
    })?;
    let value: serde_json::Value = serde_json::from_str(&text)
        .with_context(|| format!("{}: not valid JSON", index.display()))?;
    let map = value["weight_map"]
        .as_object()
        .with_context(|| format!("{}: no `weight_map`", index.display()))?;
    let names: BTreeSet<&str> = map.values().filter_map(|v| v.as_str()).collect();
    ensure!(!names.is_empty(), "{}: names no file", index.display());
    ensure!(
        names.iter().all(|n| !n.contains(['/', '\\']) && *n != ".."),
        "{}: a shard lies outside the directory",
        index.display()
    );
    Ok(names.into_iter().map(|n| dir.join(n)).collect())
}

/// The shape of the model in a checkpoint directory.
///
/// # Errors
/// A `config.json` that cannot be used, or one of a model that the files of weights are too small for: memory is asked for
/// by its sizes.
pub fn architecture(dir: &Path) -> Result<Architecture> {
    let architecture = Architecture::load(&dir.join("config.json"))?;
    let files = weight_files(dir)?;
    let mut bytes = 0;
    for file in &files {
        let size = std::fs::metadata(file).map(|file| file.len());
        bytes += size.with_context(|| format!("{}: cannot read the weights", file.display()))?;
    }
    let needed = architecture.parameters();
    ensure!(
        needed as u64 <= bytes / 2,
        "{}: {bytes} bytes are too few for the {needed} parameters that config.json asks for: the file is cut short, or of \
         another model",
        files[0].display()
    );
    Ok(architecture)
}

/// Standard deviations of fresh weights.
#[derive(Clone, Copy, Debug)]
pub struct Init {
    pub seed: u64,
    pub std: f32,
}

/// Fresh values of one tensor: norms 1, biases 0, matrices normal; those that write into the residual stream are scaled
/// down by sqrt(2 layers), as in GPT-2.
fn initialise(name: &str, layers: usize, number: usize, init: Init, values: &mut [f32]) {
    if name.ends_with("norm.weight") {
        values.fill(1.0);
    } else if name.ends_with(".bias") {
        values.fill(0.0);
    } else {
        let residual = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
        let scale = if residual {
            init.std / (2.0 * layers as f32).sqrt()
        } else {
            init.std
        };
        let mut rng = Rng::new(init.seed, Stream::Init, number as u32, 0);
        values.iter_mut().for_each(|v| *v = scale * rng.normal());
    }
}

fn empty_blocks(layout: &Layout) -> Vec<Vec<f32>> {
    layout.blocks.iter().map(|b| vec![0.0; b.words]).collect()
}

impl Model {
    /// A fresh model; the same seed gives the same weights on every device.
    pub fn initialised(
        device: &DeviceRef,
        architecture: &Architecture,
        positions: usize,
        precision: Precision,
        init: Init,
    ) -> Result<Model> {
        let model = Model::new(device, architecture, positions, precision)?;
        let mut blocks = empty_blocks(&model.layout);
        let mut number = 0;
        for_each_part_mut(&model.layout, &mut blocks, |name, _, values| {
            initialise(name, architecture.layers, number, init, values);
            number += 1;
            Ok(())
        })?;
        model.weights.write(&blocks)?;
        Ok(model)
    }

    /// Loads a checkpoint directory. Errors: as [`architecture`] and [`Model::restore`].
    pub fn load(
        device: &DeviceRef,
        dir: &Path,
        positions: usize,
        precision: Precision,
        init: Init,
    ) -> Result<Model> {
        let architecture = architecture(dir)?;
        let model = Model::new(device, &architecture, positions, precision)
            .with_context(|| dir.display().to_string())?;
        model.restore(dir, init)?;
        Ok(model)
    }

    /// Puts the weights of a checkpoint directory into a model of its shape. A checkpoint without any `value_head.*`
    /// tensor gets a fresh value head. Errors name the file and the tensor: missing, extra, misshapen, of a wrong type,
    /// or not finite.
    pub fn restore(&self, dir: &Path, init: Init) -> Result<()> {
        let mut found: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
        let mut files = String::new();
        for file in weight_files(dir)? {
            let bytes = std::fs::read(&file)
                .with_context(|| format!("{}: cannot read the weights", file.display()))?;
            let tensors = SafeTensors::deserialize(&bytes).map_err(|e| {
                anyhow::anyhow!("{}: not a safetensors file: {e:?}", file.display())
            })?;
            for (name, view) in tensors.tensors() {
                let values = to_f32(&name, &view).with_context(|| file.display().to_string())?;
                found.insert(name, (view.shape().to_vec(), values));
            }
            files = file.display().to_string();
        }
        let fresh_value = !found.keys().any(|k| k.starts_with("value_head."));
        let mut blocks = empty_blocks(&self.layout);
        let mut number = 0;
        for_each_part_mut(&self.layout, &mut blocks, |name, shape, values| {
            number += 1;
            if fresh_value && name.starts_with("value_head.") {
                initialise(name, self.architecture.layers, number, init, values);
                return Ok(());
            }
            let (got, data) = found
                .remove(name)
                .with_context(|| format!("{files}: tensor `{name}` is missing"))?;
            ensure!(
                got == shape,
                "{files}: tensor `{name}` has shape {got:?}, config.json asks for {shape:?}"
            );
            check_finite(name, &data).with_context(|| files.to_string())?;
            values.copy_from_slice(&data);
            Ok(())
        })?;
        // Copies that some exporters write beside what they can be derived from.
        found.retain(|name, _| {
            !(name.ends_with("rotary_emb.inv_freq")
                || self.architecture.tied && name == "lm_head.weight")
        });
        if let Some(name) = found.keys().next() {
            bail!(
                "{files}: tensor {name:?} does not belong to a {} of this shape",
                self.architecture.family.name()
            );
        }
        self.weights.write(&blocks)
    }

    /// Writes `config.json` and `model.safetensors` into an existing directory.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let config = serde_json::to_string_pretty(&self.architecture.to_json())?;
        let path = dir.join("config.json");
        std::fs::write(&path, config + "\n").with_context(|| path.display().to_string())?;
        save_blocks(
            &self.layout,
            &self.weights.read()?,
            &dir.join("model.safetensors"),
        )
    }
}

/// Errors: a value that is not finite, by its tensor's name and its place.
fn check_finite(name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => bail!("tensor `{name}` holds {} at element {i}", values[i]),
        None => Ok(()),
    }
}

/// Writes host blocks as a safetensors file under Hugging Face's names. Errors: a value that is not finite, so that what
/// was kept before stays the last; the disk's.
pub fn save_blocks(layout: &Layout, blocks: &[Vec<f32>], path: &Path) -> Result<()> {
    let parts: Vec<_> = parts(layout, blocks).collect();
    let views = parts
        .iter()
        .map(|(name, shape, values)| {
            check_finite(name, values)?;
            let data: &[u8] = bytemuck::cast_slice(values);
            Ok((
                name.to_string(),
                TensorView::new(Dtype::F32, shape.to_vec(), data)?,
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata = Some([("format".to_string(), "pt".to_string())].into());
    safetensors::serialize_to_file(views, metadata, path)
        // Its text has that of its cause.
        .map_err(|error| anyhow!("cannot write {}: {error}", path.display()))
}

/// Reads what [`save_blocks`] wrote. Errors name the file and the tensor.
pub fn load_blocks(layout: &Layout, path: &Path) -> Result<Vec<Vec<f32>>> {
    let bytes = std::fs::read(path).with_context(|| format!("{}: cannot read", path.display()))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| anyhow::anyhow!("{}: not a safetensors file: {e:?}", path.display()))?;
    let mut blocks = empty_blocks(layout);
    for_each_part_mut(layout, &mut blocks, |name, shape, values| {
        let view = file
            .tensor(name)
            .with_context(|| format!("{}: tensor `{name}` is missing", path.display()))?;
        ensure!(
            view.shape() == shape,
            "{}: tensor `{name}` has shape {:?}, expected {shape:?}",
            path.display(),
            view.shape()
        );
        let data = to_f32(name, &view).with_context(|| path.display().to_string())?;
        values.copy_from_slice(&data);
        Ok(())
    })?;
    Ok(blocks)
}
