//! From ranked lists of SIDs to what every metric needs (spec 7).

use anyhow::{Result, anyhow, bail, ensure};

use super::baseline::by_popularity;
use super::per_user::{Bucket, PerUser};

/// Stands in a ranked list for a sequence of codes that no item has. It takes up its rank, hits nothing
/// and is counted.
pub const INVALID: u32 = u32::MAX;

/// Metrics of whole lists (prefix hits, coverage, Gini, distance, buckets) look at this many ranks, or at
/// the beam if that is narrower.
pub const TOP: usize = 10;

const CUTOFFS: [usize; 6] = [1, 3, 5, 10, 20, 50];

/// The K of HR@K and NDCG@K: 1, 3, 5, 10, 20, 50 up to the beam; a beam narrower than [`TOP`] is a
/// cutoff itself.
pub fn cutoffs(beam: usize) -> Vec<usize> {
    let mut cutoffs: Vec<usize> = CUTOFFS.into_iter().filter(|&k| k <= beam).collect();
    if beam < TOP && !cutoffs.contains(&beam) {
        cutoffs.push(beam);
    }
    cutoffs
}

/// One vector per SID, row-major `[sids, dim]`.
#[derive(Clone, Copy, Debug)]
pub struct Embeddings<'a> {
    pub dim: usize,
    pub rows: &'a [f32],
}

/// The catalog as evaluation sees it: S SIDs of L codes, numbered `0..S`.
#[derive(Clone, Copy, Debug)]
pub struct SidInfo<'a> {
    /// L, codes per SID.
    pub levels: usize,
    /// `[S, L]`, the codes of each SID; no two rows are equal.
    pub codes: &'a [u32],
    /// `[S]`, items on each SID, at least 1.
    pub items: &'a [u32],
    /// `[S]`, training interactions with each SID.
    pub popularity: &'a [u64],
    /// What intra-list distance is measured by, if there is any.
    pub embeddings: Option<Embeddings<'a>>,
}

impl<'a> SidInfo<'a> {
    /// Number of SIDs, S.
    pub fn sids(&self) -> usize {
        self.items.len()
    }

    fn codes_of(&self, sid: u32) -> &'a [u32] {
        &self.codes[sid as usize * self.levels..][..self.levels]
    }

    /// Leading codes that two SIDs share, `0..=L`.
    fn shared_prefix(&self, a: u32, b: u32) -> usize {
        let pairs = self.codes_of(a).iter().zip(self.codes_of(b));
        pairs.take_while(|(x, y)| x == y).count()
    }

    fn check(&self) -> Result<()> {
        let sids = self.sids();
        ensure!(
            sids > 0 && self.levels > 0,
            "evaluation: the catalog has {sids} SIDs of {} codes; give at least one of each",
            self.levels
        );
        let shape = |what: &str, found: usize, expected: usize| {
            ensure!(
                found == expected,
                "evaluation: {what} has {found} entries; {sids} SIDs need {expected}"
            );
            Ok(())
        };
        shape("codes", self.codes.len(), sids * self.levels)?;
        shape("popularity", self.popularity.len(), sids)?;
        if let Some(e) = self.embeddings {
            shape("embeddings", e.rows.len(), sids * e.dim)?;
        }
        if let Some(sid) = self.items.iter().position(|&n| n == 0) {
            bail!("evaluation: SID {sid} has no items; drop it from the catalog");
        }
        Ok(())
    }
}

/// How far apart two SIDs of a list are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distance {
    /// `1 - cosine` of the SIDs' embeddings, in `[0, 2]`. A zero vector is orthogonal to everything.
    Cosine,
    /// `1 - shared leading codes / L`, in `[0, 1]`: used where there are no embeddings.
    Prefix,
}

impl Distance {
    pub fn name(self) -> &'static str {
        match self {
            Distance::Cosine => "cosine",
            Distance::Prefix => "prefix",
        }
    }
}

/// Takes in test users one at a time.
pub struct Evaluator<'a> {
    sids: SidInfo<'a>,
    buckets: Vec<Bucket>,
    /// `[S]`, reciprocal norms of the embeddings, 0 for a zero vector; empty without embeddings.
    scale: Vec<f64>,
    done: Evaluation,
}

/// What a system did for all test users: the input of a [`Report`](super::Report).
#[derive(Clone, Debug)]
pub struct Evaluation {
    pub per_user: PerUser,
    /// `[S]`, how often each SID was in a top list.
    pub exposure: Vec<u64>,
    /// L, codes per SID.
    pub levels: usize,
    /// Length of a top list: [`TOP`], or the beam if narrower.
    pub top: usize,
    pub distance: Distance,
}

impl<'a> Evaluator<'a> {
    /// For lists of at most `beam` SIDs. Errors on slices of the wrong length, an SID without items, an
    /// embedding that is not finite, and a beam of 0.
    pub fn new(sids: SidInfo<'a>, beam: usize) -> Result<Self> {
        sids.check()?;
        ensure!(beam > 0, "evaluation: the beam is 0; use at least 1");
        let scale = sids.embeddings.map_or(Ok(Vec::new()), reciprocal_norms)?;
        Ok(Evaluator {
            buckets: buckets(sids.popularity),
            scale,
            done: Evaluation {
                per_user: PerUser {
                    beam,
                    ..PerUser::default()
                },
                exposure: vec![0; sids.sids()],
                levels: sids.levels,
                top: TOP.min(beam),
                distance: match sids.embeddings {
                    Some(_) => Distance::Cosine,
                    None => Distance::Prefix,
                },
            },
            sids,
        })
    }

    /// Adds a test user: `ranked` holds SIDs, best first, each at most once, at most the beam of them,
    /// with [`INVALID`] for an invalid entry; `target` is the SID of the next item and `worth` (finite,
    /// not negative; 1 where items have no value) what that item is worth.
    pub fn add(&mut self, ranked: &[u32], target: u32, worth: f32) -> Result<()> {
        let user = self.done.per_user.users();
        self.check(ranked, target, worth)
            .map_err(|e| anyhow!("evaluation: test user {user}: {e}"))?;

        let valid = |&sid: &u32| sid != INVALID;
        let top = &ranked[..ranked.len().min(self.done.top)];
        let top: Vec<u32> = top.iter().copied().filter(valid).collect();
        for &sid in &top {
            self.done.exposure[sid as usize] += 1;
        }
        let prefix = top.iter().map(|&s| self.sids.shared_prefix(s, target));
        let prefix = prefix.max().unwrap_or(0);
        let distance = self.mean_distance(&top);

        let to = &mut self.done.per_user;
        to.target.push(target);
        let rank = ranked.iter().position(|&s| s == target);
        to.rank.push(rank.map(|r| r as u32));
        to.sharing.push(self.sids.items[target as usize]);
        to.worth.push(worth);
        to.bucket.push(self.buckets[target as usize]);
        to.prefix.push(prefix as u32);
        to.distance.push(distance);
        to.invalid
            .push(ranked.iter().filter(|s| !valid(s)).count() as u32);
        Ok(())
    }

    /// Everything added so far; errors if that is nobody.
    pub fn finish(self) -> Result<Evaluation> {
        ensure!(
            self.done.per_user.users() > 0,
            "evaluation: no test users; check the split and eval.max_users"
        );
        Ok(self.done)
    }

    fn check(&self, ranked: &[u32], target: u32, worth: f32) -> Result<()> {
        let (sids, beam) = (self.sids.sids(), self.done.per_user.beam);
        ensure!(
            (target as usize) < sids,
            "the target is SID {target} of a catalog of {sids}"
        );
        ensure!(
            worth.is_finite() && worth >= 0.0,
            "the target's worth is {worth}; a worth is finite and not negative"
        );
        ensure!(
            ranked.len() <= beam,
            "{} SIDs are ranked, more than the beam {beam}",
            ranked.len()
        );
        let mut sorted = ranked.to_vec();
        sorted.sort_unstable();
        for (i, &sid) in sorted.iter().enumerate().filter(|&(_, &s)| s != INVALID) {
            ensure!(
                (sid as usize) < sids,
                "SID {sid} is ranked, of a catalog of {sids}"
            );
            ensure!(
                i == 0 || sorted[i - 1] != sid,
                "SID {sid} is ranked twice; a list holds distinct SIDs"
            );
        }
        Ok(())
    }

    /// Mean distance over all pairs of `list`; `None` with no pair.
    fn mean_distance(&self, list: &[u32]) -> Option<f64> {
        if list.len() < 2 {
            return None;
        }
        let pairs = (list.len() * (list.len() - 1) / 2) as f64;
        let similarity = match self.sids.embeddings {
            Some(embeddings) => self.sum_of_cosines(embeddings, list),
            None => self.sum_of_prefixes(list),
        };
        // Rounding may put equal vectors a hair beyond cosine 1.
        Some((1.0 - similarity / pairs).max(0.0))
    }

    /// Over all pairs i < j, in linear time: unit vectors u have `|sum u|^2 = sum |u|^2 + 2 sum u_i u_j`.
    fn sum_of_cosines(&self, embeddings: Embeddings<'_>, list: &[u32]) -> f64 {
        let mut sum = vec![0.0; embeddings.dim];
        let mut own = 0.0;
        for &sid in list {
            let scale = self.scale[sid as usize];
            if scale > 0.0 {
                own += 1.0;
            }
            let row = &embeddings.rows[sid as usize * embeddings.dim..][..embeddings.dim];
            for (total, &x) in sum.iter_mut().zip(row) {
                *total += f64::from(x) * scale;
            }
        }
        (sum.iter().map(|x| x * x).sum::<f64>() - own) / 2.0
    }

    fn sum_of_prefixes(&self, list: &[u32]) -> f64 {
        let mut shared = 0;
        for (i, &a) in list.iter().enumerate() {
            for &b in &list[i + 1..] {
                shared += self.sids.shared_prefix(a, b);
            }
        }
        shared as f64 / self.sids.levels as f64
    }
}

fn reciprocal_norms(embeddings: Embeddings<'_>) -> Result<Vec<f64>> {
    ensure!(
        embeddings.dim > 0,
        "evaluation: the embeddings have dimension 0; give none instead"
    );
    let rows = embeddings.rows.chunks_exact(embeddings.dim).enumerate();
    rows.map(|(sid, row)| {
        let norm = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
        ensure!(
            norm.is_finite(),
            "evaluation: the embedding of SID {sid} is not finite; mend the embeddings file"
        );
        Ok(if norm > 0.0 { norm.sqrt().recip() } else { 0.0 })
    })
    .collect()
}

/// The [`Bucket`] of every SID. The SID that crosses a third belongs to the bucket it started in, and
/// one without interactions is always tail; equally popular SIDs are ordered by number.
pub fn buckets(popularity: &[u64]) -> Vec<Bucket> {
    let total: u64 = popularity.iter().sum();
    let mut buckets = vec![Bucket::Tail; popularity.len()];
    let mut before = 0;
    for sid in by_popularity(popularity) {
        let sid = sid as usize;
        // Comparing strictly leaves SIDs without interactions, where before = total, in the tail.
        buckets[sid] = match (3 * before < total, 3 * before < 2 * total) {
            (true, _) => Bucket::Head,
            (false, true) => Bucket::Torso,
            (false, false) => Bucket::Tail,
        };
        before += popularity[sid];
    }
    buckets
}

/// Share of all SIDs that were in anyone's top list.
pub fn coverage(exposure: &[u64]) -> f64 {
    exposure.iter().filter(|&&n| n > 0).count() as f64 / exposure.len() as f64
}

/// Gini coefficient of exposure over all SIDs: 0 if all are shown equally often (or nothing is shown at
/// all), `(S - 1) / S` if one takes everything. With x ascending and i from 1:
/// `sum((2i - S - 1) x_i) / (S sum(x))`.
pub fn gini(exposure: &[u64]) -> f64 {
    let total: u64 = exposure.iter().sum();
    if total == 0 {
        return 0.0;
    }
    let mut sorted = exposure.to_vec();
    sorted.sort_unstable();
    let n = sorted.len() as f64;
    let weighted = sorted.iter().enumerate();
    let weighted: f64 = weighted
        .map(|(i, &x)| (2.0 * i as f64 + 1.0 - n) * x as f64)
        .sum();
    weighted / (n * total as f64)
}
