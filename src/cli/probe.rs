//! `vstar probe`: answers to another framework's questions.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::DeviceArgs;
use crate::device::{DeviceRef, Precision};
use crate::learn::tensors::Output;
use crate::learn::{oracle, probe};
use crate::model::Model;
use crate::model::checkpoint::Init;
use crate::run::{atomic_write, locate_model};

/// Compute what an oracle file asks, for comparison with another framework
///
/// Reads the inputs of a forward, tree, objective or value file in safetensors form, and writes the
/// outputs under the names they have there, as f32.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vstar probe --model checkpoint --input tree.safetensors --output answer.safetensors --grad")]
pub struct Args {
    /// Run folder (its best model is taken) or checkpoint folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,

    /// The questions, a safetensors file
    #[arg(long, value_name = "FILE")]
    input: PathBuf,

    /// The answers, a safetensors file to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,

    /// Answer with gradients too
    #[arg(long)]
    grad: bool,

    #[command(flatten)]
    device: DeviceArgs,
}

/// Answers.
pub fn run(args: Args) -> Result<()> {
    let shown = args.input.display();
    let bytes = std::fs::read(&args.input).with_context(|| format!("cannot read {shown}"))?;
    let inputs = SafeTensors::deserialize(&bytes)
        .map_err(|error| anyhow!("{shown}: not a safetensors file: {error:?}"))?;
    let device = args.device.open()?;
    let outputs = answer(&args, &device, &inputs)?;
    let views = outputs
        .iter()
        .map(|(name, shape, values)| {
            let data = bytemuck::cast_slice(values);
            Ok((name, TensorView::new(Dtype::F32, shape.clone(), data)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let answer = safetensors::serialize(views, None)?;
    atomic_write(&args.output, &answer)?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{}: {} tensors from {}",
        args.output.display(),
        outputs.len(),
        device.info()
    )?;
    Ok(())
}

/// Answers the kind of question that the file is, by the inputs it holds.
fn answer(args: &Args, device: &DeviceRef, inputs: &SafeTensors) -> Result<Vec<Output>> {
    let has = |name| inputs.tensor(name).is_ok();
    let shown = || args.input.display().to_string();
    if has("candidates") && has("rewards") {
        return oracle::objective(device, inputs).with_context(shown);
    }
    if has("candidates") && has("value") {
        return oracle::value(device, inputs).with_context(shown);
    }
    let ask = match (has("tokens"), has("node_token")) {
        (true, _) => probe::forward,
        (_, true) => probe::tree,
        _ => bail!(
            "{}: no question this program answers: expected the inputs of a forward (tokens), tree (node_token), \
             objective (candidates, rewards) or value (candidates, value) file",
            shown()
        ),
    };
    let positions = probe::positions(inputs).with_context(shown)?;
    let checkpoint = locate_model(&args.model)?.checkpoint;
    let init = Init { seed: 0, std: 0.02 };
    let model = Model::load(device, &checkpoint, positions, Precision::F32, init)?;
    ask(model, inputs, args.grad).with_context(shown)
}
