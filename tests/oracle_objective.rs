//! The objective and the value loss against numbers made with an independent framework, on every device.

#[path = "support/oracle.rs"]
mod oracle_files;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::path::Path;
use std::sync::Arc;
use vstar::device::choose::{DeviceChoice, open};
use vstar::device::cpu::Cpu;
use vstar::device::gpu::GpuOptions;
use vstar::device::lockstep::Lockstep;
use vstar::device::{DeviceRef, lockstep};
use vstar::learn::oracle;

const TOLERANCE: f64 = 1e-5;

type Answers = Vec<(String, Vec<usize>, Vec<f32>)>;
type Question = fn(&DeviceRef, &SafeTensors) -> anyhow::Result<Answers>;

fn bytes(root: &Path, file: &str) -> Vec<u8> {
    let path = root.join(file);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn gpu() -> DeviceRef {
    let choice = DeviceChoice {
        device: "gpu".into(),
        ..Default::default()
    };
    open(&choice, GpuOptions::default()).expect("GPU tests need an adapter")
}

/// The CPU device, a GPU, and the two in lockstep.
fn devices() -> Vec<DeviceRef> {
    let lockstep = Lockstep::new(Arc::new(Cpu::new()), gpu());
    vec![Arc::new(Cpu::new()), gpu(), Arc::new(lockstep)]
}

fn values(tensors: &SafeTensors, name: &str) -> Vec<f32> {
    let view = tensors.tensor(name).unwrap();
    let words = view.data().chunks_exact(4);
    words
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

fn compare(file: &str, outputs: &[&str], question: Question) {
    let Some(root) = oracle_files::folder() else {
        return;
    };
    for folder in ["qwen2", "llama"] {
        let bytes = bytes(&root, &format!("{folder}/{file}"));
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        for device in devices() {
            let answers = question(&device, &tensors).unwrap();
            let names: Vec<&str> = answers.iter().map(|a| a.0.as_str()).collect();
            assert_eq!(names, outputs);
            for (name, shape, got) in &answers {
                assert_eq!(shape, tensors.tensor(name).unwrap().shape(), "{name}");
                let want = values(&tensors, name);
                let error = lockstep::relative_error(&want, got);
                let info = device.info();
                assert!(
                    error <= TOLERANCE,
                    "{folder}, {info}, {name}: off by {error:.1e}"
                );
                let mut corrupted = got.clone();
                corrupted[got.len() / 2] += 1e-3 * want.iter().fold(1e-6, |m, w| w.abs().max(m));
                assert!(lockstep::relative_error(&want, &corrupted) > TOLERANCE);
            }
        }
    }
}

#[test]
fn objective_matches_the_oracle() {
    let outputs = [
        "group_advantage",
        "sibling_advantage",
        "kl",
        "loss_grpo",
        "loss_sibling",
        "loss_total",
        "dloss_dlogp",
    ];
    compare("objective.safetensors", &outputs, oracle::objective);
}

#[test]
fn value_loss_matches_the_oracle() {
    let outputs = ["step_reward", "td_target", "loss", "dloss_dvalue"];
    compare("value.safetensors", &outputs, oracle::value);
}

/// Type and shape of a tensor.
type Form = (Dtype, Vec<usize>);

/// The file with one tensor replaced by zeros, or dropped where there is no replacement.
fn altered(file: &[u8], name: &str, with: Option<Form>) -> Vec<u8> {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let zeros = vec![0u8; 1 << 16];
    let views = tensors.iter().filter_map(|(n, view)| match &with {
        _ if n != name => Some((n, view)),
        None => None,
        Some((dtype, shape)) => {
            let size = shape.iter().product::<usize>() * 4;
            let view = TensorView::new(*dtype, shape.clone(), &zeros[..size]).unwrap();
            Some((n, view))
        }
    });
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn bad_inputs_are_named() {
    let device: DeviceRef = Arc::new(Cpu::new());
    let Some(root) = oracle_files::folder() else {
        return;
    };
    let objective = bytes(&root, "qwen2/objective.safetensors");
    let value = bytes(&root, "qwen2/value.safetensors");
    type Case<'a> = (&'a [u8], Question, &'a str, Option<Form>, &'a str);
    let cases: [Case; 7] = [
        (
            &objective,
            oracle::objective,
            "rewards",
            None,
            "`rewards` is missing",
        ),
        (
            &objective,
            oracle::objective,
            "logp_ref",
            Some((Dtype::F32, vec![5, 16, 2])),
            "`logp_ref` has shape [5, 16, 2]: expected [5, 16, 3]",
        ),
        (
            &objective,
            oracle::objective,
            "candidates",
            Some((Dtype::F32, vec![5, 16, 3])),
            "`candidates` has type F32: expected I32",
        ),
        (
            &objective,
            oracle::objective,
            "candidates",
            Some((Dtype::I32, vec![5, 48])),
            "expected 3 dimensions",
        ),
        (
            &value,
            oracle::value,
            "target",
            Some((Dtype::I32, vec![5, 2])),
            "`target` has shape [5, 2]: expected [5, 3]",
        ),
        (
            &value,
            oracle::value,
            "hyper.gamma",
            None,
            "`hyper.gamma` is missing",
        ),
        (
            &value,
            oracle::value,
            "item_embedding",
            Some((Dtype::F32, vec![5, 15, 12])),
            "`item_embedding` has shape [5, 15, 12]: expected [5, 16, 12]",
        ),
    ];
    for (file, question, name, with, message) in cases {
        let file = altered(file, name, with);
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let error = question(&device, &tensors).unwrap_err().to_string();
        assert!(error.contains(message) && !error.contains('\n'), "{error}");
    }
}
