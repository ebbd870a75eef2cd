//! Learning rates by step (spec 9).

use crate::config::Schedule;

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
}
