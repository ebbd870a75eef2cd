//! RQ-VAE: an autoencoder whose latent vector is quantised level by level (Lee et al., "Autoregressive image generation
//! using residual quantization", 2022; for semantic IDs TIGER, arXiv 2305.05065).
//!
//! `z = encoder(x)`, `r_0 = z`, `code_l = nearest centroid of r_l`, `r_(l+1) = r_l - c_(code_l)`, `q = z - r_L`. The loss of
//! an item is half of `|x - decoder(q)|^2 + sum_l |sg(r_l) - c|^2 + beta |r_l - sg(c)|^2`, where sg stops gradients: in the
//! second term only centroids move, in the third only the encoder, and centroids taken from a residual are constants to
//! it. The decoder's gradient goes straight through from q to z (van den Oord et al., "VQ-VAE", 2017).
//!
//! Codebooks begin as residual k-means of the latent vectors. A code that an epoch did not use goes where a random row of
//! its last batch is.

use anyhow::Result;

use super::kmeans::{KMeans, Rule};
use super::mlp::{Mlp, Place, Plan};
use super::search::Search;
use crate::device::{Buffer, DeviceRef, Stream, read_f32};
use crate::kernels::add::add;
use crate::kernels::embedding::{self, Shard};
use crate::kernels::fill::fill_f32;
use crate::kernels::gather::gather_rows;
use crate::kernels::residual::{Lookup, residual};
use crate::kernels::scale::scale;
use crate::kernels::token_order::{Tokens, token_order};
use crate::kernels::{adamw, grad_norm};
use crate::rng::{self, Rng};

/// Numbers in a latent vector.
pub const LATENT: usize = 32;
/// Layers between embedding and latent vector, those no wider than twice the embedding.
const HIDDEN: [usize; 3] = [512, 256, 128];
/// The weight of the commitment loss.
const BETA: f32 = 0.25;
/// Times that every item is seen.
pub const EPOCHS: usize = 300;
/// Items of a step.
const BATCH: usize = 1024;
/// Rounds of the k-means that codebooks begin with.
const FIRST_ROUNDS: usize = 10;
/// Adam without decay, which would draw centroids to the origin; the rate falls to 0 by a cosine.
const ADAM: adamw::Hyper = adamw::Hyper {
    lr: 1e-3,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.0,
};

/// Tell draws of this model from each other and from those of clustering, which have the number of the level.
const INITIAL: u32 = 1 << 16;
const TRAINING: u32 = INITIAL + 1;

/// The model, its optimiser, and a batch.
pub struct RqVae {
    device: DeviceRef,
    width: usize,
    seed: u64,
    items: Buffer,
    encoder: Mlp,
    decoder: Mlp,
    levels: Vec<Level>,
    parameters: Buffer,
    gradient: Buffer,
    moments: [Buffer; 2],
    partials: Buffer,
    norm: Buffer,
    search: Search,
    batch: Batch,
}

/// One level's codebook, and a batch on it.
struct Level {
    codes: usize,
    /// [codes, latent].
    codebook: Place,
    code: Buffer,
    order: Buffer,
    /// What the level leaves of its input: [rows, latent] and, squared, [rows].
    residual: Buffer,
    square: Buffer,
}

struct Batch {
    rows: usize,
    /// Which items, and 0, 1, ..
    index: Buffer,
    identity: Buffer,
    x: Buffer,
    quantised: Buffer,
    d_output: Buffer,
    d_latent: Buffer,
    scaled: Buffer,
    /// -1 and beta.
    factors: Buffer,
    /// Squared errors of the reconstruction.
    square: Buffer,
    unused: Buffer,
}

/// What an epoch saw.
#[derive(Clone, Debug)]
pub struct Epoch {
    /// Mean over items of the reconstruction's squared error.
    pub reconstruction: f64,
    /// Codes each level used.
    pub used: Vec<usize>,
}

/// Items as the model codes them.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// [items, levels].
    pub codes: Vec<u32>,
    /// [levels][items, latent]: what each level quantised.
    pub latents: Vec<Vec<f32>>,
    /// By level: squared error over items.
    pub errors: Vec<f64>,
    /// Squared error of the reconstruction, over items.
    pub reconstruction: f64,
}

impl RqVae {
    /// A new model of `items` [n, width] with codebooks of `codes`, which begin as residual k-means.
    ///
    /// # Errors
    /// A device without memory for it.
    pub fn new(
        device: &DeviceRef,
        items: &[f32],
        width: usize,
        codes: &[usize],
        seed: u64,
    ) -> Result<RqVae> {
        let hidden = HIDDEN.into_iter().filter(|&size| size <= 2 * width);
        let hidden: Vec<usize> = hidden.collect();
        let model = RqVae::with_sizes(device, items, width, &hidden, codes, BATCH, seed)?;
        model.begin_codebooks()?;
        Ok(model)
    }

    fn with_sizes(
        device: &DeviceRef,
        items: &[f32],
        width: usize,
        hidden: &[usize],
        codes: &[usize],
        batch: usize,
        seed: u64,
    ) -> Result<RqVae> {
        let rows = batch.min(items.len() / width);
        let mut sizes = vec![width];
        sizes.extend(hidden);
        sizes.push(LATENT);
        let mut plan = Plan::default();
        let encoder = Mlp::new(device, &mut plan, &sizes, rows)?;
        sizes.reverse();
        let decoder = Mlp::new(device, &mut plan, &sizes, rows)?;
        let room = |label, words| Buffer::new(device, label, words);
        let level = |&codes: &usize| {
            Ok(Level {
                codes,
                codebook: plan.place(codes * LATENT),
                code: room("codes", rows)?,
                order: room("items by code", rows)?,
                residual: room("residuals", rows * LATENT)?,
                square: room("squared distances", rows)?,
            })
        };
        let levels: Vec<Level> = codes.iter().map(level).collect::<Result<_>>()?;
        let words = plan.words;
        let mut parameters = vec![0.0; words];
        let mut draws = Rng::new(seed, rng::Stream::SemanticIds, INITIAL, 0);
        encoder.initialise(&mut parameters, &mut draws);
        decoder.initialise(&mut parameters, &mut draws);
        let identity: Vec<u32> = (0..rows as u32).collect();
        let most = codes.iter().copied().max().unwrap_or(0);
        Ok(RqVae {
            device: device.clone(),
            width,
            seed,
            items: Buffer::with_f32(device, "embeddings", items)?,
            encoder,
            decoder,
            levels,
            parameters: Buffer::with_f32(device, "parameters", &parameters)?,
            gradient: room("gradient", words)?,
            moments: [
                room("first moments", words)?,
                room("second moments", words)?,
            ],
            partials: room("partial sums", grad_norm::partial_count(words))?,
            norm: Buffer::with_f32(device, "gradient norm", &grad_norm::START)?,
            search: Search::new(device, rows, most, LATENT)?,
            batch: Batch {
                rows,
                index: room("batch", rows)?,
                identity: Buffer::with_u32(device, "rows", &identity)?,
                x: room("inputs", rows * width)?,
                quantised: room("quantised", rows * LATENT)?,
                d_output: room("gradient of outputs", rows * width)?,
                d_latent: room("gradient of latents", rows * LATENT)?,
                scaled: room("scaled residuals", rows * LATENT)?,
                factors: Buffer::with_f32(device, "factors", &[-1.0, BETA])?,
                square: room("squared errors", rows)?,
                unused: room("unused squares", rows)?,
            },
        })
    }

    /// Trains for an epoch, of `epochs` in all.
    pub fn epoch(&self, epoch: usize, epochs: usize) -> Result<Epoch> {
        let (rows, count) = (self.batch.rows, self.items.len() / self.width);
        let mut draws = Rng::new(self.seed, rng::Stream::SemanticIds, TRAINING, epoch as u32);
        let mut order: Vec<u32> = (0..count as u32).collect();
        draws.shuffle(&mut order);
        let mut uses: Vec<Vec<u32>> = self.levels.iter().map(|l| vec![0; l.codes]).collect();
        // Those left over come first or not in another epoch.
        let steps = count / rows;
        let mut error = 0.0;
        for (step, index) in order.chunks_exact(rows).enumerate() {
            let done = (epoch * steps + step) as f32 / (epochs * steps) as f32;
            let lr = 0.5 * ADAM.lr * (1.0 + (std::f32::consts::PI * done).cos());
            let mut s = Stream::new();
            self.record_gradient(&mut s);
            self.record_update(&mut s, lr);
            self.batch.index.write_u32(index)?;
            self.device.run(&s)?;
            let mut read = vec![self.batch.square.all()];
            read.extend(self.levels.iter().map(|level| level.code.all()));
            let read = self.device.read(&read)?;
            error += sum(bytemuck::cast_slice(&read[0]));
            for (uses, codes) in uses.iter_mut().zip(&read[1..]) {
                codes.iter().for_each(|&code| uses[code as usize] += 1);
            }
        }
        if epoch + 1 < epochs {
            self.revive(&uses, &mut draws)?;
        }
        let used = |uses: &Vec<u32>| uses.iter().filter(|&&n| n > 0).count();
        Ok(Epoch {
            reconstruction: error / (steps * rows) as f64,
            used: uses.iter().map(used).collect(),
        })
    }

    /// Codes of all items.
    pub fn encode(&self) -> Result<Encoded> {
        let (rows, count) = (self.batch.rows, self.items.len() / self.width);
        let levels = self.levels.len();
        let mut encoded = Encoded {
            codes: vec![0; count * levels],
            latents: vec![Vec::with_capacity(count * LATENT); levels],
            errors: vec![0.0; levels],
            reconstruction: 0.0,
        };
        let all: Vec<u32> = (0..count as u32).collect();
        for index in all.chunks(rows) {
            self.batch.index.write_u32(index)?;
            let mut s = Stream::new();
            self.record_forward(&mut s, index.len());
            self.device.run(&s)?;
            let mut input = self.encoder.output();
            for (l, level) in self.levels.iter().enumerate() {
                let (words, of) = (index.len() * LATENT, index.len());
                let read = [
                    input.first(words),
                    level.code.first(of),
                    level.square.first(of),
                ];
                let read = self.device.read(&read)?;
                encoded.latents[l].extend(bytemuck::cast_slice::<u32, f32>(&read[0]));
                for (&item, &code) in index.iter().zip(&read[1]) {
                    encoded.codes[item as usize * levels + l] = code;
                }
                encoded.errors[l] += sum(bytemuck::cast_slice(&read[2]));
                input = &level.residual;
            }
            let square = read_f32(&self.device, self.batch.square.first(index.len()))?;
            encoded.reconstruction += sum(&square);
        }
        Ok(encoded)
    }

    /// [codes, latent] of a level.
    pub fn codebook(&self, level: usize) -> Result<Vec<f32>> {
        read_f32(
            &self.device,
            self.levels[level].codebook.of(&self.parameters),
        )
    }

    /// Residual k-means of the latent vectors that the encoder makes of the items.
    fn begin_codebooks(&self) -> Result<()> {
        let latents = self.encode()?.latents.swap_remove(0);
        let most = self
            .levels
            .iter()
            .map(|level| level.codes)
            .max()
            .unwrap_or(0);
        let mut means = KMeans::new(&self.device, &latents, LATENT, most)?;
        for (l, level) in self.levels.iter().enumerate() {
            let rule = Rule {
                clusters: level.codes,
                slack: None,
                most_rounds: FIRST_ROUNDS,
                seed: self.seed,
                level: l as u32,
            };
            let clustering = means.cluster(&rule, &mut |_, _| ())?;
            self.write_codebook(level, &clustering.centroids)?;
            means.descend();
        }
        Ok(())
    }

    fn write_codebook(&self, level: &Level, centroids: &[f32]) -> Result<()> {
        let to = level.codebook.of(&self.parameters);
        self.device.write(to, bytemuck::cast_slice(centroids))
    }

    /// From the batch's items to their reconstruction's error, in the first `rows` rows.
    fn record_forward(&self, s: &mut Stream, rows: usize) {
        let batch = &self.batch;
        let (x, identity) = (batch.x.all(), batch.identity.all());
        gather_rows(s, self.items.all(), batch.index.all(), x, rows, self.width);
        let latent = self.encoder.forward(s, &self.parameters, x, rows);
        let mut input = latent;
        for level in &self.levels {
            let (codebook, code) = (level.codebook.of(&self.parameters), level.code.all());
            self.search
                .record(s, input, codebook, code, (rows, level.codes));
            let of = Lookup {
                table: codebook,
                index: code,
            };
            let (left, square) = (level.residual.all(), level.square.all());
            residual(s, input, of, left, square, rows, LATENT);
            input = left;
        }
        let quantised = batch.quantised.all();
        let left = Lookup {
            table: input,
            index: identity,
        };
        residual(s, latent, left, quantised, batch.unused.all(), rows, LATENT);
        let output = self.decoder.forward(s, &self.parameters, quantised, rows);
        let wanted = Lookup {
            table: x,
            index: identity,
        };
        let d_output = batch.d_output.all();
        residual(
            s,
            output,
            wanted,
            d_output,
            batch.square.all(),
            rows,
            self.width,
        );
    }

    /// The gradient of the loss summed over the batch.
    fn record_gradient(&self, s: &mut Stream) {
        let batch = &self.batch;
        let rows = batch.rows;
        self.record_forward(s, rows);
        let buffers = [&self.parameters, &self.gradient];
        let (d_latent, d_output) = (batch.d_latent.all(), batch.d_output.all());
        let quantised = batch.quantised.all();
        self.decoder
            .backward(s, buffers, quantised, d_output, Some(d_latent), rows);
        let (scaled, factors) = (batch.scaled.all(), batch.factors.all());
        for level in &self.levels {
            let (left, code, order) = (level.residual.all(), level.code.all(), level.order.all());
            let d_codebook = level.codebook.of(&self.gradient);
            let tokens = Tokens::plain(code, rows);
            fill_f32(s, d_codebook, 0.0);
            scale(s, left, factors, 0, scaled, rows * LATENT);
            token_order(s, tokens, order);
            let d_codebook = Shard::whole(d_codebook);
            embedding::backward(s, scaled, None, tokens, order, d_codebook, LATENT);
            scale(s, left, factors, 1, scaled, rows * LATENT);
            add(s, scaled, d_latent, rows * LATENT);
        }
        self.encoder
            .backward(s, buffers, batch.x.all(), d_latent, None, rows);
    }

    fn record_update(&self, s: &mut Stream, lr: f32) {
        let (words, norm) = (self.parameters.len(), self.norm.all());
        let (gradient, partials) = (self.gradient.all(), self.partials.all());
        let count = grad_norm::partial(s, gradient, partials, 0, words);
        grad_norm::finish(s, partials, count, 0.0, [ADAM.beta1, ADAM.beta2], 0, norm);
        let [first, second] = [&self.moments[0], &self.moments[1]].map(Buffer::all);
        let hyper = adamw::Hyper { lr, ..ADAM };
        adamw::step(
            s,
            self.parameters.all(),
            gradient,
            first,
            second,
            norm,
            hyper,
            words,
        );
    }

    /// Moves codes that `uses` [levels][codes] does not count to inputs of their level.
    fn revive(&self, uses: &[Vec<u32>], draws: &mut Rng) -> Result<()> {
        let mut input = self.encoder.output();
        for (level, uses) in self.levels.iter().zip(uses) {
            if uses.contains(&0) {
                let inputs = input.read_f32()?;
                let mut centroids = read_f32(&self.device, level.codebook.of(&self.parameters))?;
                let dead = centroids.chunks_exact_mut(LATENT).zip(uses);
                for (centroid, _) in dead.filter(|(_, uses)| **uses == 0) {
                    let row = draws.below(self.batch.rows);
                    centroid.copy_from_slice(&inputs[row * LATENT..][..LATENT]);
                }
                self.write_codebook(level, &centroids)?;
            }
            input = &level.residual;
        }
        Ok(())
    }
}

fn sum(values: &[f32]) -> f64 {
    values.iter().map(|&value| value as f64).sum()
}

#[cfg(test)]
mod tests;
