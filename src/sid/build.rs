//! From embeddings to semantic IDs, by one of five methods.

use std::fmt;

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use serde::Serialize;

use super::collisions::{self, LastLevel};
use super::kmeans::{KMeans, Rule};
use super::random;
use super::report::perplexity;
use super::rqvae::{self, RqVae};
use crate::catalog::{Collisions, Embeddings};
use crate::device::DeviceRef;

/// Where SIDs come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// k-means of the embeddings, then of what each level left
    ResidualKmeans,
    /// The same with clusters of bounded size
    Balanced,
    /// An autoencoder with a residual quantiser (RQ-VAE)
    Rqvae,
    /// Codes drawn at random: a control
    Random,
    /// One level, a code of its own for each item: a control
    Atomic,
}

/// What becomes of items on one SID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Resolution {
    /// One more code numbers them
    Digit,
    /// All but the nearest take the nearest free code of the last level
    Nearest,
    /// They share it
    Keep,
}

/// What to make.
#[derive(Clone, Debug, Serialize)]
pub struct Options {
    pub method: Method,
    /// Codes of each level; of [`Method::Atomic`], none.
    pub codes: Vec<usize>,
    pub collisions: Resolution,
    pub seed: u64,
}

/// How far a build is.
pub struct Tick<'a> {
    pub stage: &'a str,
    /// 0 as the stage begins.
    pub done: usize,
    pub total: usize,
    pub figures: &'a [(&'a str, f64)],
}

impl<'a> Tick<'a> {
    fn begin(stage: &'a str, total: usize) -> Self {
        Tick {
            stage,
            done: 0,
            total,
            figures: &[],
        }
    }
}

/// What hears of it.
pub type Watch<'a> = &'a mut dyn FnMut(&Tick);

/// SIDs, and what came of making them.
#[derive(Clone, Debug)]
pub struct Built {
    pub levels: usize,
    /// [items, levels].
    pub codes: Vec<u32>,
    pub figures: Figures,
}

/// What is kept of a build beside its SIDs.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// As the method made them; a digit is not among them.
    pub levels: Vec<LevelFigures>,
    /// RQ-VAE: squared error of the reconstruction, as a share of the embeddings' variance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconstruction_error: Option<f64>,
    /// Items on SIDs that others have too, as the method made them.
    pub collisions_before: Collisions,
    pub collisions_after: Collisions,
}

/// One level.
#[derive(Clone, Debug, Serialize)]
pub struct LevelFigures {
    pub codes: usize,
    pub used: usize,
    /// Exponential of the entropy of the codes' shares of the items.
    pub perplexity: f64,
    /// What this level and those before it leave of the variance: of the embeddings, or of RQ-VAE's latent vectors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
}

/// How far above the mean a cluster of [`Method::Balanced`] may be.
const SLACK: f64 = 0.1;
/// Name of the stage that trains an autoencoder.
const RQVAE: &str = "rq-vae";
/// Most rounds of k-means on a level.
const ROUNDS: usize = 100;

/// What a method makes.
struct Quantised {
    /// [items, levels].
    codes: Vec<u32>,
    /// [levels], if there is something to be near to.
    errors: Vec<f64>,
    reconstruction: Option<f64>,
    last: Option<LastLevel>,
}

impl Quantised {
    fn of(codes: Vec<u32>) -> Quantised {
        Quantised {
            codes,
            errors: Vec::new(),
            reconstruction: None,
            last: None,
        }
    }
}

/// Makes SIDs of `items` items, whose `embeddings` all methods but [`Method::Random`] and [`Method::Atomic`] need.
///
/// # Errors
/// No embeddings where they are needed, more of them than a buffer holds, too few codes to resolve the collisions, or a
/// device that fails.
pub fn build(
    device: &DeviceRef,
    items: usize,
    embeddings: Option<&Embeddings>,
    options: &Options,
    watch: Watch,
) -> Result<Built> {
    let sizes = match options.method {
        Method::Atomic => vec![items],
        _ => options.codes.clone(),
    };
    let points = || match embeddings {
        Some(embeddings) => Ok(Points::new(embeddings)),
        None => bail!("the items have no embeddings: give --embeddings, which `vstar embed` makes"),
    };
    let made = match options.method {
        Method::ResidualKmeans => residual_kmeans(device, &points()?, options, None, watch)?,
        Method::Balanced => residual_kmeans(device, &points()?, options, Some(SLACK), watch)?,
        Method::Rqvae => rqvae(device, &points()?, options, watch)?,
        Method::Random => Quantised::of(random::codes(items, &sizes, options.seed)),
        Method::Atomic => Quantised::of((0..items as u32).collect()),
    };
    let levels = sizes.len();
    let figures = |(l, &codes): (usize, &usize)| LevelFigures {
        error: made.errors.get(l).copied(),
        ..use_of(made.codes.iter().skip(l).step_by(levels), codes)
    };
    let figures: Vec<_> = sizes.iter().enumerate().map(figures).collect();
    let before = collisions::count(&made.codes, levels);
    let (codes, levels) = resolve(made.codes, &sizes, options.collisions, made.last)?;
    Ok(Built {
        figures: Figures {
            levels: figures,
            reconstruction_error: made.reconstruction,
            collisions_before: before,
            collisions_after: collisions::count(&codes, levels),
        },
        levels,
        codes,
    })
}

/// SIDs without collisions, as far as the rule says, and their length.
fn resolve(
    mut codes: Vec<u32>,
    sizes: &[usize],
    rule: Resolution,
    last: Option<LastLevel>,
) -> Result<(Vec<u32>, usize)> {
    let levels = sizes.len();
    let shared = collisions::count(&codes, levels);
    if shared.items == 0 || rule == Resolution::Keep {
        return Ok((codes, levels));
    }
    if rule == Resolution::Digit {
        let most = sizes.iter().copied().max().unwrap_or(0);
        return Ok((collisions::digit(&codes, levels, most)?, levels + 1));
    }
    let Some(last) = last else {
        bail!(
            "{} items share SIDs that are not near to anything: give --codes or --levels more, or --collisions digit",
            shared.items
        );
    };
    collisions::move_to_nearest(&mut codes, levels, &last)?;
    Ok((codes, levels))
}

/// How a level's codes are used.
fn use_of<'a>(of_items: impl Iterator<Item = &'a u32>, codes: usize) -> LevelFigures {
    let mut counts = vec![0; codes];
    of_items.for_each(|&code| counts[code as usize] += 1);
    LevelFigures {
        codes,
        used: counts.iter().filter(|&&count| count > 0).count(),
        perplexity: perplexity(&counts),
        error: None,
    }
}

/// Embeddings about their mean.
struct Points {
    width: usize,
    /// [items, width].
    data: Vec<f32>,
    /// Sum of squares.
    variance: f64,
}

impl Points {
    fn new(embeddings: &Embeddings) -> Points {
        let Embeddings { dim: width, data } = embeddings.centred();
        Points {
            width,
            variance: data.iter().map(|&x| (x as f64).powi(2)).sum(),
            data,
        }
    }

    fn share(&self, error: f64) -> f64 {
        share(error, self.variance)
    }
}

/// `error / variance`; nothing is left of what does not vary.
fn share(error: f64, variance: f64) -> f64 {
    if variance > 0.0 {
        error / variance
    } else {
        0.0
    }
}

fn residual_kmeans(
    device: &DeviceRef,
    points: &Points,
    options: &Options,
    slack: Option<f64>,
    watch: Watch,
) -> Result<Quantised> {
    let (width, levels) = (points.width, options.codes.len());
    let most = options.codes.iter().copied().max().unwrap_or(0);
    let mut means = KMeans::new(device, &points.data, width, most)?;
    let mut made = Quantised::of(vec![0; points.data.len() / width * levels]);
    for (level, &clusters) in options.codes.iter().enumerate() {
        let rule = Rule {
            clusters,
            slack,
            most_rounds: ROUNDS,
            seed: options.seed,
            level: level as u32,
        };
        let stage = format!("level {}", level + 1);
        watch(&Tick::begin(&stage, ROUNDS));
        let clustering = means.cluster(&rule, &mut |done, error| {
            watch(&Tick {
                stage: &stage,
                done,
                total: ROUNDS,
                figures: &[("error", points.share(error))],
            })
        })?;
        let places = made.codes.iter_mut().skip(level).step_by(levels);
        places
            .zip(&clustering.code)
            .for_each(|(place, &code)| *place = code);
        made.errors.push(points.share(clustering.error()));
        if level + 1 == levels {
            made.last = Some(LastLevel {
                width,
                points: means.points()?,
                centroids: clustering.centroids,
            });
        }
        means.descend();
    }
    Ok(made)
}

fn rqvae(
    device: &DeviceRef,
    points: &Points,
    options: &Options,
    watch: Watch,
) -> Result<Quantised> {
    // Of variance 1, so that one learning rate serves all embeddings.
    let scale = (points.data.len() as f64 / points.variance.max(f64::MIN_POSITIVE)).sqrt();
    let items: Vec<f32> = points
        .data
        .iter()
        .map(|&x| (x as f64 * scale) as f32)
        .collect();
    watch(&Tick::begin(RQVAE, rqvae::EPOCHS));
    let model = RqVae::new(device, &items, points.width, &options.codes, options.seed)?;
    let names: Vec<String> = (1..=options.codes.len())
        .map(|l| format!("used {l}"))
        .collect();
    for epoch in 0..rqvae::EPOCHS {
        let seen = model.epoch(epoch, rqvae::EPOCHS)?;
        let mut figures = vec![("error", seen.reconstruction / points.width as f64)];
        let used = names.iter().zip(&seen.used);
        figures.extend(used.map(|(name, &used)| (name.as_str(), used as f64)));
        watch(&Tick {
            stage: RQVAE,
            done: epoch + 1,
            total: rqvae::EPOCHS,
            figures: &figures,
        });
    }
    let mut encoded = model.encode()?;
    ensure!(
        encoded.reconstruction.is_finite(),
        "RQ-VAE diverged: check the embeddings, or take another --method"
    );
    let variance = Points::new(&Embeddings {
        dim: rqvae::LATENT,
        data: encoded.latents[0].clone(),
    })
    .variance;
    let errors = encoded.errors.iter().map(|&error| share(error, variance));
    Ok(Quantised {
        errors: errors.collect(),
        reconstruction: Some(encoded.reconstruction / items.len() as f64),
        last: Some(LastLevel {
            width: rqvae::LATENT,
            points: encoded.latents.pop().expect("there is a level"),
            centroids: model.codebook(options.codes.len() - 1)?,
        }),
        codes: encoded.codes,
    })
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (number, level) in (1..).zip(&self.levels) {
            let LevelFigures {
                codes,
                used,
                perplexity,
                error,
            } = level;
            write!(
                f,
                "level {number}     {used} of {codes} codes used, perplexity {perplexity:.1}"
            )?;
            if let Some(error) = error {
                write!(f, ", {error:.4} of the variance left")?;
            }
            writeln!(f)?;
        }
        if let Some(error) = self.reconstruction_error {
            writeln!(f, "decoded     {error:.4} of the variance left")?;
        }
        let (before, after) = (&self.collisions_before, &self.collisions_after);
        writeln!(
            f,
            "collisions  {} items on {} SIDs, {} at most; {} items now",
            before.items, before.sids, before.largest, after.items
        )
    }
}
