//! Where a stage of reinforcement learning ends, and learning rates by step (spec 9).

use crate::config::{Rl, Schedule};
use crate::run::State;

/// Linear warm-up from 0, then constant, or a cosine from `peak` to `floor`.
#[derive(Clone, Copy, Debug)]
pub struct LearningRate {
    pub schedule: Schedule,
    pub peak: f64,
    pub floor: f64,
    pub warmup: u64,
    /// Steps of the whole schedule.
    pub total: u64,
}

impl LearningRate {
    /// The rate of step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f32 {
        if step < self.warmup {
            return (self.peak * (step + 1) as f64 / self.warmup as f64) as f32;
        }
        match self.schedule {
            Schedule::Constant => self.peak as f32,
            Schedule::Cosine => {
                let left = self.total.saturating_sub(self.warmup).max(1) as f64;
                let done = ((step - self.warmup) as f64 / left).min(1.0);
                let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
                (self.floor + (self.peak - self.floor) * cosine) as f32
            }
        }
    }
}

/// Where a stage ends: after a number of steps, or of decode tokens.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub steps: Option<u64>,
    pub decode_tokens: Option<u64>,
}

impl Limit {
    /// That of these settings.
    pub fn of(rl: &Rl) -> Limit {
        match rl.max_decode_tokens {
            0 => Limit {
                steps: Some(rl.last_step() as u64),
                decode_tokens: None,
            },
            tokens => Limit {
                steps: (rl.max_steps > 0).then_some(rl.max_steps as u64),
                decode_tokens: Some(tokens),
            },
        }
    }

    pub(super) fn reached(&self, state: &State) -> bool {
        self.steps.is_some_and(|n| state.step >= n)
            || self.decode_tokens.is_some_and(|n| state.decode_tokens >= n)
    }

    /// Steps that the tokens buy if each of a step's prompts decodes as many as those of the first `steps` did, `tokens`
    /// together; `most` a step while there are none.
    pub(super) fn bought(&self, (tokens, steps): (u64, u64), most: u64) -> Option<u64> {
        let [tokens, steps] = match steps {
            0 => [most, 1],
            _ => [tokens, steps],
        };
        let all = |n: u64| (n as u128 * steps as u128).div_ceil(tokens.max(1) as u128);
        self.decode_tokens
            .map(|n| u64::try_from(all(n)).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_and_decays() {
        let rate = LearningRate {
            schedule: Schedule::Cosine,
            peak: 1.0,
            floor: 0.1,
            warmup: 10,
            total: 110,
        };
        assert_eq!(rate.at(0), 0.1);
        assert_eq!(rate.at(9), 1.0);
        assert_eq!(rate.at(10), 1.0);
        assert!((rate.at(60) - 0.55).abs() < 1e-6);
        assert!((rate.at(110) - 0.1).abs() < 1e-6);
        assert!((rate.at(500) - 0.1).abs() < 1e-6);
        let constant = LearningRate {
            schedule: Schedule::Constant,
            warmup: 0,
            ..rate
        };
        assert_eq!(constant.at(0), 1.0);
        assert_eq!(constant.at(1000), 1.0);
    }

    #[test]
    fn tokens_buy_steps_by_what_steps_took() {
        let limit = Limit {
            steps: None,
            decode_tokens: Some(1000),
        };
        assert_eq!(limit.bought((0, 0), 300), Some(4));
        assert_eq!(limit.bought((150, 3), 300), Some(20));
        // Dearer than they may be, or for nothing: no reason to divide by 0.
        assert_eq!(limit.bought((0, 3), 300), Some(3000));
        assert_eq!(limit.bought((0, 0), 0), Some(1000));
        let most = Limit {
            decode_tokens: Some(u64::MAX),
            ..limit
        };
        assert_eq!(most.bought((7, 7), 300), Some(u64::MAX));
        let by_steps = Limit {
            steps: Some(5),
            decode_tokens: None,
        };
        assert_eq!(by_steps.bought((150, 3), 300), None);
    }
}
