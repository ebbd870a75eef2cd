//! What reinforcement learning asks the policy: what follows a history.

use crate::config::Config;
use crate::data::Dataset;
use crate::rng::{self, Rng};
use anyhow::{Result, ensure};

/// A history and the item that followed it, if it is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Question<'a> {
    pub history: &'a [u32],
    pub target: Option<u32>,
}

/// Where a run's questions come from.
pub struct Questions<'a> {
    data: &'a Dataset,
    /// The training sequences of two items or more.
    usable: Vec<u32>,
    seed: u64,
    /// Share of the questions that nobody knows the answer of.
    open: f32,
}

impl<'a> Questions<'a> {
    /// Errors: no training sequence to ask about.
    pub fn new(data: &'a Dataset, config: &Config) -> Result<Questions<'a>> {
        let usable: Vec<u32> = (0..data.train.len() as u32)
            .filter(|&i| data.train[i as usize].len() >= 2)
            .collect();
        ensure!(
            !usable.is_empty(),
            "reinforcement learning needs training sequences of two items or more"
        );
        Ok(Questions {
            data,
            usable,
            seed: config.seed,
            open: config.rl.open_prompts as f32,
        })
    }

    /// The questions of a step: a training sequence and a place in it, both drawn uniformly; or the whole of it, an open
    /// question: fine-tuning has never gone on from there, so that the policy is as it will be in use.
    pub fn draw(&self, count: usize, step: u64) -> Vec<Question<'a>> {
        let one = |i: usize| {
            let mut rng = Rng::new(self.seed, rng::Stream::Prompts, step as u32, i as u32);
            let sequence = &self.data.train[self.usable[rng.below(self.usable.len())] as usize];
            let open = self.open > 0.0 && rng.uniform() < self.open;
            let at = match open {
                true => sequence.len(),
                false => 1 + rng.below(sequence.len() - 1),
            };
            let history = &sequence[at.saturating_sub(self.data.max_history)..at];
            Question {
                history,
                target: sequence.get(at).copied(),
            }
        };
        (0..count).map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{self, LoadOptions};

    fn draw<'a>(data: &'a Dataset, count: usize, settings: &[&str]) -> Vec<Question<'a>> {
        let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
        let config = Config::load(None, &settings).unwrap();
        let questions = Questions::new(data, &config).unwrap();
        assert_eq!(questions.draw(9, 4), questions.draw(9, 4));
        questions.draw(count, 5)
    }

    #[test]
    fn a_question_goes_on_as_its_sequence_did() {
        let data = data::load(None, LoadOptions::default()).unwrap();
        for asked in draw(&data, 200, &[]) {
            let stretch = [asked.history, asked.target.as_slice()].concat();
            assert!(asked.history.len() <= data.max_history);
            let holds = |s: &Vec<u32>| s.windows(stretch.len()).any(|window| window == stretch);
            assert!(data.train.iter().any(holds));
        }
    }

    #[test]
    fn open_questions_are_whole_sequences() {
        let data = data::load(None, LoadOptions::default()).unwrap();
        let drawn = draw(&data, 500, &["rl.open_prompts=0.5", "reward.repeat=1"]);
        let open = drawn.iter().filter(|d| d.target.is_none());
        assert!((200..300).contains(&open.clone().count()));
        let whole = |d: &Question| {
            let ends = |sequence: &Vec<u32>| sequence.ends_with(d.history);
            data.train.iter().any(ends)
        };
        assert!(open.clone().all(whole));
    }
}
