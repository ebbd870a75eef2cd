//! What an evaluation keeps of every test user, and the statistics that are sums over users.

use super::bootstrap::Statistic;

/// Which SIDs a target belongs to, by training interactions. Most popular SIDs first: the head is the
/// first third of all interactions, the torso the second, the tail the rest and whatever was never seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bucket {
    Head,
    Torso,
    Tail,
}

impl Bucket {
    pub const ALL: [Bucket; 3] = [Bucket::Head, Bucket::Torso, Bucket::Tail];

    pub fn name(self) -> &'static str {
        match self {
            Bucket::Head => "head",
            Bucket::Torso => "torso",
            Bucket::Tail => "tail",
        }
    }
}

/// What a target at 0-based rank `r < K` earns; beyond K it earns nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gain {
    /// Hit rate: 1. With one target per user it equals recall.
    Hr,
    /// NDCG: `1 / log2(r + 2)`. With one target per user the ideal DCG is 1.
    Ndcg,
}

impl Gain {
    pub const ALL: [Gain; 2] = [Gain::Hr, Gain::Ndcg];

    pub fn name(self) -> &'static str {
        match self {
            Gain::Hr => "hr",
            Gain::Ndcg => "ndcg",
        }
    }
}

/// What a hit on an SID that several items share is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credit {
    /// The SID was found: 1.
    Sid,
    /// The item was found, picked blindly among those on the SID: `1 / items on it`.
    Item,
}

/// One entry per test user, in the order they were added.
#[derive(Clone, Debug, Default)]
pub struct PerUser {
    /// The target SID.
    pub target: Vec<u32>,
    /// 0-based rank of the target SID; `None` if it is not in the list.
    pub rank: Vec<Option<u32>>,
    /// Number of items on the target SID.
    pub sharing: Vec<u32>,
    /// Worth of the target item.
    pub worth: Vec<f32>,
    /// Popularity bucket of the target SID.
    pub bucket: Vec<Bucket>,
    /// Most leading codes that any SID of the top list shares with the target, `0..=L`.
    pub prefix: Vec<u32>,
    /// Mean pairwise distance within the top list; `None` with fewer than two valid SIDs in it.
    pub distance: Vec<Option<f64>>,
    /// Invalid entries in the whole list.
    pub invalid: Vec<u32>,
    /// Length that lists were asked for: no metric looks further.
    pub beam: usize,
}

impl PerUser {
    pub fn users(&self) -> usize {
        self.target.len()
    }

    /// HR@k or NDCG@k.
    ///
    /// # Panics
    /// This and the other `k` here: if `k` is beyond the beam, where hits are unknown, not absent.
    pub fn ranking(&self, gain: Gain, credit: Credit, k: usize) -> Statistic {
        Statistic::mean(self.gains(gain, credit, k))
    }

    /// Value-weighted HR@k or NDCG@k: `sum(worth * gain) / sum(worth)`.
    pub fn valued(&self, gain: Gain, credit: Credit, k: usize) -> Statistic {
        let worth: Vec<f64> = self.worth.iter().map(|&w| w.into()).collect();
        self.weighted(gain, credit, k, worth)
    }

    /// HR@k or NDCG@k over the users whose target is in `bucket`.
    pub fn within(&self, bucket: Bucket, gain: Gain, credit: Credit, k: usize) -> Statistic {
        let member = |&b: &Bucket| if b == bucket { 1.0 } else { 0.0 };
        self.weighted(gain, credit, k, self.bucket.iter().map(member).collect())
    }

    /// Share of users whose top list holds an SID that starts with the target's first `level` codes.
    pub fn prefix_hit(&self, level: usize) -> Statistic {
        let hit = |&p: &u32| if p as usize >= level { 1.0 } else { 0.0 };
        Statistic::mean(self.prefix.iter().map(hit).collect())
    }

    /// Mean intra-list distance, over the users for whom it is defined.
    pub fn intra_list_distance(&self) -> Statistic {
        let distance = self.distance.iter().map(|d| d.unwrap_or(0.0)).collect();
        let defined = |d: &Option<f64>| if d.is_some() { 1.0 } else { 0.0 };
        Statistic::ratio(distance, self.distance.iter().map(defined).collect())
    }

    /// Number of users whose target is in `bucket`.
    pub fn users_in(&self, bucket: Bucket) -> usize {
        self.bucket.iter().filter(|&&b| b == bucket).count()
    }

    /// Invalid entries over all lists.
    pub fn invalid_count(&self) -> u64 {
        self.invalid.iter().map(|&n| u64::from(n)).sum()
    }

    fn gains(&self, gain: Gain, credit: Credit, k: usize) -> Vec<f64> {
        assert!(k <= self.beam, "K = {k} is beyond the beam {}", self.beam);
        let one = |(rank, &sharing): (&Option<u32>, &u32)| {
            let Some(rank) = rank.filter(|&r| (r as usize) < k) else {
                return 0.0;
            };
            let gain = match gain {
                Gain::Hr => 1.0,
                Gain::Ndcg => 1.0 / (f64::from(rank) + 2.0).log2(),
            };
            match credit {
                Credit::Sid => gain,
                Credit::Item => gain / f64::from(sharing),
            }
        };
        self.rank.iter().zip(&self.sharing).map(one).collect()
    }

    fn weighted(&self, gain: Gain, credit: Credit, k: usize, weight: Vec<f64>) -> Statistic {
        let gains = self.gains(gain, credit, k);
        let weighted = gains.iter().zip(&weight).map(|(g, w)| g * w).collect();
        Statistic::ratio(weighted, weight)
    }
}
