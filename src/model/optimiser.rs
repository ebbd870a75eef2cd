//! AdamW over a model's blocks, with the global gradient norm and clipping (spec 9).

use super::layout::{Layout, Weights};
use crate::device::{Buffer, DeviceRef, Slice, Stream};
use crate::kernels::{adamw, grad_norm};
use anyhow::Result;

/// Partial sums of the gradient norm.
const MAX_PARTIALS: usize = 1 << 16;

/// f32 moments and the gradient of one model.
pub struct Optimiser {
    pub gradient: Weights,
    pub first_moment: Weights,
    pub second_moment: Weights,
    partials: Buffer,
    /// What [`grad_norm::finish`] wrote last; it counts the updates too.
    pub norm: Buffer,
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
    pub fn new(device: &DeviceRef, layout: &Layout) -> Result<Optimiser> {
        Ok(Optimiser {
            gradient: Weights::zeros(device, layout, "gradients")?,
            first_moment: Weights::zeros(device, layout, "first moments")?,
            second_moment: Weights::zeros(device, layout, "second moments")?,
            partials: Buffer::new(device, "gradient-norm partial sums", MAX_PARTIALS)?,
            norm: Buffer::new(device, "gradient norm", grad_norm::WORDS)?,
            decayed: layout.blocks.iter().map(|b| b.decayed).collect(),
            sizes: layout.blocks.iter().map(|b| b.words).collect(),
        })
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
        grad_norm::finish(s, partials, count, update.clip_norm, betas, self.norm());
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
    }

    /// Tells the device how many updates were made: a run is resumed.
    pub fn set_applied(&self, updates: u64) -> Result<()> {
        let mut words = [0.0; grad_norm::WORDS];
        words[grad_norm::APPLIED] = updates as f32;
        self.norm.write_f32(&words)
    }

    /// Forgets the moments: a new stage begins.
    pub fn reset(&self) -> Result<()> {
        self.set_applied(0)?;
        for moment in [&self.first_moment, &self.second_moment] {
            moment.write(&self.sizes.iter().map(|&n| vec![0.0; n]).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    pub fn norm(&self) -> Slice {
        self.norm.all()
    }
}
