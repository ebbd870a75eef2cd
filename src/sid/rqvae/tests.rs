use super::*;
use crate::device::cpu::Cpu;
use crate::kernels::harness::{devices, finite_difference, relative_error};
use std::sync::Arc;

const WIDTH: usize = 5;
const HIDDEN_SIZE: usize = 7;
const ROWS: usize = 6;
const CODES: [usize; 2] = [3, 4];

fn random(n: usize, scale: f32) -> Vec<f32> {
    let mut draws = Rng::new(4, rng::Stream::Test, 0, 0);
    (0..n).map(|_| scale * draws.normal()).collect()
}

fn small(device: &DeviceRef) -> RqVae {
    let items = random(ROWS * WIDTH, 1.0);
    let sizes = [HIDDEN_SIZE];
    let model = RqVae::with_sizes(device, &items, WIDTH, &sizes, &CODES, ROWS, 9).unwrap();
    // Everything at random, biases and codebooks too.
    let parameters = random(model.parameters.len(), 0.3);
    model.parameters.write_f32(&parameters).unwrap();
    let order: Vec<u32> = (0..ROWS as u32).collect();
    model.batch.index.write_u32(&order).unwrap();
    model
}

/// The loss in f64 as the head of the module states it, at parameters `p`; what stops gradients is taken at `stopped`.
struct Reference<'a> {
    model: &'a RqVae,
    items: Vec<f64>,
    stopped: Vec<f64>,
}

/// A chain of `y = W x + b` with SiLU between.
fn mlp(mlp: &Mlp, p: &[f64], x: &[f64]) -> Vec<f64> {
    let layers = mlp.layers();
    let mut x = x.to_vec();
    for (i, (weight, bias)) in layers.iter().enumerate() {
        if i > 0 {
            x.iter_mut().for_each(|x| *x /= 1.0 + (-*x).exp());
        }
        let rows = p[weight.offset..][..weight.len].chunks(x.len());
        let sums = rows.map(|row| row.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>());
        x = sums
            .zip(&p[bias.offset..])
            .map(|(sum, bias)| sum + bias)
            .collect();
    }
    x
}

impl Reference<'_> {
    fn centroid<'p>(&self, p: &'p [f64], level: usize, code: usize) -> &'p [f64] {
        &p[self.model.levels[level].codebook.offset + code * LATENT..][..LATENT]
    }

    fn codes(&self, z: &[f64]) -> Vec<usize> {
        let mut left = z.to_vec();
        let mut codes = Vec::new();
        for (level, &count) in CODES.iter().enumerate() {
            let distance = |code: usize| {
                let centroid = self.centroid(&self.stopped, level, code);
                left.iter()
                    .zip(centroid)
                    .map(|(r, c)| (r - c).powi(2))
                    .sum::<f64>()
            };
            let nearest = (0..count).min_by(|&a, &b| distance(a).total_cmp(&distance(b)));
            let nearest = nearest.unwrap();
            let centroid = self.centroid(&self.stopped, level, nearest);
            left.iter_mut().zip(centroid).for_each(|(r, c)| *r -= c);
            codes.push(nearest);
        }
        codes
    }

    fn loss(&self, p: &[f64]) -> f64 {
        let square =
            |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum() };
        let mut loss = 0.0;
        for x in self.items.chunks(WIDTH) {
            let z = mlp(&self.model.encoder, p, x);
            let z_stopped = mlp(&self.model.encoder, &self.stopped, x);
            let (mut r, mut r_stopped) = (z.clone(), z_stopped.clone());
            // q = z + sg(q - z).
            let mut q = z.clone();
            for (level, &code) in self.codes(&z_stopped).iter().enumerate() {
                let centroid = self.centroid(p, level, code);
                let stopped = self.centroid(&self.stopped, level, code);
                loss += square(&r_stopped, centroid) + BETA as f64 * square(&r, stopped);
                for j in 0..LATENT {
                    r[j] -= stopped[j];
                    r_stopped[j] -= stopped[j];
                }
            }
            for j in 0..LATENT {
                q[j] -= r_stopped[j];
            }
            loss += square(x, &mlp(&self.model.decoder, p, &q));
        }
        loss / 2.0
    }
}

#[test]
fn the_gradient_is_that_of_the_loss() {
    for device in [Arc::new(Cpu::new()) as DeviceRef, devices::unchecked_gpu()] {
        let model = small(&device);
        let mut s = Stream::new();
        model.record_gradient(&mut s);
        device.run(&s).unwrap();
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
        let parameters = wide(model.parameters.read_f32().unwrap());
        let reference = Reference {
            model: &model,
            items: wide(model.items.read_f32().unwrap()),
            stopped: parameters.clone(),
        };
        let used: std::collections::BTreeSet<_> = model.levels[1]
            .code
            .read_u32()
            .unwrap()
            .into_iter()
            .collect();
        assert!(used.len() > 1, "one code says nothing of the others");
        let want = finite_difference(|p| reference.loss(p), &parameters);
        let mut got = model.gradient.read_f32().unwrap();
        let error = relative_error(&want, &got);
        assert!(error < 1e-5, "{}: {error:e}", device.info());
        // A codebook's part alone would be noticed.
        let codebook = model.levels[1].codebook;
        got[codebook.offset..][..codebook.len]
            .iter_mut()
            .for_each(|g| *g *= 1.01);
        assert!(relative_error(&want, &got) > 1e-5);
    }
}

/// Items of `kinds` kinds, a few numbers each.
fn kinds(kinds: usize, items: usize) -> Vec<f32> {
    let mut draws = Rng::new(6, rng::Stream::Test, 0, 0);
    let centres: Vec<f32> = (0..kinds * WIDTH).map(|_| draws.normal()).collect();
    (0..items * WIDTH)
        .map(|i| centres[i / WIDTH % kinds * WIDTH + i % WIDTH] + 0.05 * draws.normal())
        .collect()
}

fn trained(items: &[f32], epochs: usize, seed: u64) -> (RqVae, Vec<Epoch>) {
    let device: DeviceRef = Arc::new(Cpu::new());
    let model = RqVae::with_sizes(&device, items, WIDTH, &[16], &[4, 4], 64, seed).unwrap();
    model.begin_codebooks().unwrap();
    let seen = (0..epochs)
        .map(|epoch| model.epoch(epoch, epochs).unwrap())
        .collect();
    (model, seen)
}

#[test]
fn learns_to_reconstruct_and_tells_kinds_apart() {
    let items = kinds(8, 320);
    let (model, seen) = trained(&items, 60, 1);
    let variance = items.iter().map(|x| x * x).sum::<f32>() as f64 / 320.0;
    assert!(seen[0].reconstruction > 0.5 * variance);
    let encoded = model.encode().unwrap();
    assert!(encoded.reconstruction / 320.0 < 0.2 * variance, "{seen:?}");
    // Most items of a kind share their codes; all items do not.
    let code = |item: usize| &encoded.codes[2 * item..][..2];
    let alike = (0..320)
        .filter(|&item| code(item) == code(item % 8))
        .count();
    assert!(alike > 240, "{alike}");
    let distinct: std::collections::BTreeSet<_> = encoded.codes.chunks(2).collect();
    assert!(distinct.len() > 5);
    // A residual is what its level left.
    let codebook = model.codebook(0).unwrap();
    for item in [0, 77, 319] {
        for j in 0..LATENT {
            let left = encoded.latents[0][item * LATENT + j]
                - codebook[code(item)[0] as usize * LATENT + j];
            assert_eq!(encoded.latents[1][item * LATENT + j], left);
        }
    }
}

#[test]
fn a_seed_fixes_every_bit() {
    let items = kinds(8, 100);
    let bits = |seed| trained(&items, 3, seed).0.parameters.read_u32().unwrap();
    assert_eq!(bits(1), bits(1));
    assert_ne!(bits(1), bits(2));
}

#[test]
fn unused_codes_move_to_items() {
    let items = kinds(8, 100);
    let (model, _) = trained(&items, 1, 1);
    let before = model.codebook(0).unwrap();
    let mut draws = Rng::new(1, rng::Stream::Test, 0, 0);
    model
        .revive(&[vec![5, 0, 9, 50], vec![1; 4]], &mut draws)
        .unwrap();
    let (after, inputs) = (
        model.codebook(0).unwrap(),
        model.encoder.output().read_f32().unwrap(),
    );
    let centroid = |book: &[f32], code: usize| book[code * LATENT..][..LATENT].to_vec();
    for code in [0, 2, 3] {
        assert_eq!(centroid(&before, code), centroid(&after, code));
    }
    assert!(
        inputs
            .chunks(LATENT)
            .any(|input| input == centroid(&after, 1))
    );
    assert_ne!(centroid(&before, 1), centroid(&after, 1));
}
