//! A multilayer perceptron with SiLU between its layers, forward and backward.

use anyhow::Result;

use crate::device::{ALIGN_WORDS, Buffer, DeviceRef, Slice, Stream};
use crate::kernels::column_sum::column_sum;
use crate::kernels::matmul::{Dims, Form, linear, matmul};
use crate::kernels::silu;
use crate::rng::Rng;

/// Hands out places in a buffer.
#[derive(Default)]
pub struct Plan {
    /// Handed out so far.
    pub words: usize,
}

/// A place in a buffer of parameters, and in those of their gradient and moments.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub offset: usize,
    pub len: usize,
}

impl Plan {
    pub fn place(&mut self, len: usize) -> Place {
        let offset = self.words;
        self.words += len.next_multiple_of(ALIGN_WORDS);
        Place { offset, len }
    }
}

impl Place {
    pub fn of(self, buffer: &Buffer) -> Slice {
        buffer.slice(self.offset, self.len)
    }
}

/// `y = W x + b`.
struct Layer {
    inputs: usize,
    outputs: usize,
    /// [outputs, inputs].
    weight: Place,
    /// [outputs].
    bias: Place,
    /// [rows, outputs]: y.
    output: Buffer,
    /// [rows, outputs]: SiLU of y; none after the last layer.
    active: Option<Buffer>,
}

/// The layers, with room for the activations of a batch.
pub struct Mlp {
    layers: Vec<Layer>,
    /// Gradients of a layer's output and of its activation, wide enough for any layer.
    gradients: [Buffer; 2],
}

impl Mlp {
    /// Layers between vectors of these `sizes`, for up to `rows` of them.
    pub fn new(device: &DeviceRef, plan: &mut Plan, sizes: &[usize], rows: usize) -> Result<Mlp> {
        let widest = sizes.iter().copied().max().unwrap_or(0);
        let room = |words| Buffer::new(device, "activations", words);
        let layer = |(i, ends): (usize, &[usize])| {
            let (inputs, outputs) = (ends[0], ends[1]);
            Ok(Layer {
                inputs,
                outputs,
                weight: plan.place(inputs * outputs),
                bias: plan.place(outputs),
                output: room(rows * outputs)?,
                active: match i + 2 < sizes.len() {
                    true => Some(room(rows * outputs)?),
                    false => None,
                },
            })
        };
        Ok(Mlp {
            layers: sizes
                .windows(2)
                .enumerate()
                .map(layer)
                .collect::<Result<_>>()?,
            gradients: [room(rows * widest)?, room(rows * widest)?],
        })
    }

    /// Weights of standard deviation `1 / sqrt(inputs)` and biases of 0, into `parameters`.
    pub fn initialise(&self, parameters: &mut [f32], draws: &mut Rng) {
        for layer in &self.layers {
            let deviation = (layer.inputs as f32).sqrt().recip();
            for weight in &mut parameters[layer.weight.offset..][..layer.weight.len] {
                *weight = deviation * draws.normal();
            }
        }
    }

    /// [rows, outputs of the last layer] from `x` [rows, inputs of the first].
    pub fn forward(&self, s: &mut Stream, parameters: &Buffer, x: Slice, rows: usize) -> Slice {
        let mut x = x;
        for layer in &self.layers {
            let dims = Dims {
                m: rows,
                n: layer.outputs,
                k: layer.inputs,
            };
            let (weight, bias) = (layer.weight.of(parameters), layer.bias.of(parameters));
            let output = layer.output.all();
            linear(s, x, weight, Some(bias), output, dims);
            x = output;
            if let Some(active) = &layer.active {
                silu::forward(s, output, active.all(), rows * layer.outputs);
                x = active.all();
            }
        }
        x
    }

    /// Weight and bias of each layer.
    #[cfg(test)]
    pub fn layers(&self) -> Vec<(Place, Place)> {
        self.layers.iter().map(|l| (l.weight, l.bias)).collect()
    }

    /// What [`Mlp::forward`] made last.
    pub fn output(&self) -> &Buffer {
        &self.layers[self.layers.len() - 1].output
    }

    /// Writes the gradients of weights and biases into `gradient`, and that of the input into `dx` if there is one, from the
    /// gradient `dy` of what [`Mlp::forward`] made of `x` last.
    pub fn backward(
        &self,
        s: &mut Stream,
        [parameters, gradient]: [&Buffer; 2],
        x: Slice,
        dy: Slice,
        dx: Option<Slice>,
        rows: usize,
    ) {
        let [of_output, of_active] = &self.gradients;
        let mut dy = dy;
        for (i, layer) in self.layers.iter().enumerate().rev() {
            let below = i.checked_sub(1).map(|i| &self.layers[i]);
            let input = below.map_or(x, |below| below.activation().all());
            let (outputs, inputs) = (layer.outputs, layer.inputs);
            let d_weight = layer.weight.of(gradient);
            let dims = Dims {
                m: outputs,
                n: inputs,
                k: rows,
            };
            matmul(s, Form::TN, dy, input, d_weight, dims, false);
            column_sum(s, dy, layer.bias.of(gradient), rows, outputs, false);
            let Some(d_input) = below.map(|_| of_active.all()).or(dx) else {
                return;
            };
            let dims = Dims {
                m: rows,
                n: inputs,
                k: outputs,
            };
            let weight = layer.weight.of(parameters);
            matmul(s, Form::NN, dy, weight, d_input, dims, false);
            if let Some(below) = below {
                let count = rows * inputs;
                silu::backward(s, below.output.all(), d_input, of_output.all(), count);
                dy = of_output.all();
            }
        }
    }
}

impl Layer {
    fn activation(&self) -> &Buffer {
        self.active.as_ref().expect("it has a layer above")
    }
}
