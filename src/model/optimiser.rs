//! AdamW over a model's blocks, with the global gradient norm and clipping (spec 9).

use super::layout::{Layout, Weights};
use crate::device::{Buffer, DeviceRef, Precision, Size, Slice, Stream};
use crate::kernels::scale::scale;
use crate::kernels::{adamw, grad_norm};
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// Partial sums of the gradient norm.
const MAX_PARTIALS: usize = 1 << 16;

/// Finite steps after which the loss scale is doubled.
const GROWTH: u32 = 1000;

/// What gradients are multiplied by on their way through activations of f16, which has no room for small ones.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    pub factor: f32,
    /// Finite steps since it last moved.
    pub calm: f32,
}

impl LossScale {
    /// Among the words of [`Optimiser::norm`].
    pub fn read(norm: &[u32]) -> LossScale {
        LossScale {
            factor: f32::from_bits(norm[grad_norm::LOSS_SCALE]),
            calm: f32::from_bits(norm[grad_norm::CALM]),
        }
    }

    /// Too large for some models; a few steps halve it.
    const START: LossScale = LossScale {
        factor: 65_536.0,
        calm: 0.0,
    };
}

/// f32 moments and the gradient of one model.
pub struct Optimiser {
    pub gradient: Weights,
    pub first_moment: Weights,
    pub second_moment: Weights,
    partials: Buffer,
    /// What [`grad_norm::finish`] wrote last; it counts the updates too, and holds the loss scale.
    pub norm: Buffer,
    precision: Precision,
    decayed: Vec<bool>,
    sizes: Vec<usize>,
}

/// Settings of one update.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    pub lr: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
    /// Largest global norm; 0: no clipping.
    pub clip_norm: f32,
}

impl Optimiser {
    /// For a model of that precision.
    pub fn new(device: &DeviceRef, layout: &Layout, precision: Precision) -> Result<Optimiser> {
        let made = Optimiser {
            precision,
            gradient: Weights::zeros(device, layout, "gradients")?,
            first_moment: Weights::zeros(device, layout, "first moments")?,
            second_moment: Weights::zeros(device, layout, "second moments")?,
            partials: Buffer::new(device, "gradient-norm partial sums", MAX_PARTIALS)?,
            norm: Buffer::new(device, "gradient norm", grad_norm::WORDS)?,
            decayed: layout.blocks.iter().map(|b| b.decayed).collect(),
            sizes: layout.blocks.iter().map(|b| b.words).collect(),
        };
        made.resume(0, None)?;
        Ok(made)
    }

    /// Records the global norm of the gradient and one AdamW update of `weights`; a gradient that is not finite leaves
    /// everything as it was (the finite flag in [`Optimiser::norm`] says so).
    pub fn step(&self, s: &mut Stream, weights: &Weights, update: &Update) {
        let partials = self.partials.all();
        let mut count = 0;
        for (gradient, &n) in self.gradient.blocks.iter().zip(&self.sizes) {
            count += grad_norm::partial(s, gradient.all(), partials, count, n);
        }
        let betas = [update.beta1, update.beta2];
        let growth = match self.precision {
            Precision::F32 => 0,
            Precision::F16 => GROWTH,
        };
        let (clip, norm) = (update.clip_norm, self.norm());
        grad_norm::finish(s, partials, count, clip, betas, growth, norm);
        for (i, &n) in self.sizes.iter().enumerate() {
            let hyper = adamw::Hyper {
                lr: update.lr,
                beta1: update.beta1,
                beta2: update.beta2,
                eps: update.eps,
                weight_decay: if self.decayed[i] {
                    update.weight_decay
                } else {
                    0.0
                },
            };
            adamw::step(
                s,
                weights.blocks[i].all(),
                self.gradient.blocks[i].all(),
                self.first_moment.blocks[i].all(),
                self.second_moment.blocks[i].all(),
                self.norm(),
                hyper,
                n,
            );
        }
        weights.refresh(s);
    }

    /// Tells the device how many updates were made, and the loss scale if one was kept: a run is resumed.
    pub fn resume(&self, updates: u64, loss_scale: Option<LossScale>) -> Result<()> {
        let mut words = grad_norm::START;
        words[grad_norm::APPLIED] = updates as f32;
        if self.is_scaled() {
            let scale = loss_scale.unwrap_or(LossScale::START);
            words[grad_norm::LOSS_SCALE] = scale.factor;
            words[grad_norm::CALM] = scale.calm;
        }
        self.norm.write_f32(&words)
    }

    /// Whether there is a loss scale.
    pub fn is_scaled(&self) -> bool {
        self.precision == Precision::F16
    }

    /// `x` [n] times the loss scale: itself where nothing is scaled, else written to `to`.
    pub fn scaled(&self, s: &mut Stream, x: Slice, to: Slice, n: Size) -> Slice {
        match self.precision {
            Precision::F32 => x,
            Precision::F16 => {
                scale(s, x, self.norm(), grad_norm::LOSS_SCALE, to, n);
                to
            }
        }
    }

    /// Forgets the moments: a new stage begins.
    pub fn reset(&self) -> Result<()> {
        self.resume(0, None)?;
        for moment in [&self.first_moment, &self.second_moment] {
            moment.write(&self.sizes.iter().map(|&n| vec![0.0; n]).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    pub fn norm(&self) -> Slice {
        self.norm.all()
    }
}
