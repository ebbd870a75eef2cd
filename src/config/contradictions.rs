//! Settings that are each allowed but do not go together.

use super::{Config, ScaleRewards};

/// A rule that spans several settings.
struct Rule {
    broken: bool,
    keys: &'static [&'static str],
    problem: String,
}

impl Config {
    /// The keys and the description of the first rule that the configuration breaks.
    pub(super) fn contradiction(&self) -> Option<(&'static [&'static str], String)> {
        let rules = self.model_rules().into_iter();
        rules
            .chain(self.training_rules())
            .find(|rule| rule.broken)
            .map(|rule| (rule.keys, rule.problem))
    }

    /// The shape of a model made from scratch; a checkpoint brings its own.
    fn model_rules(&self) -> [Rule; 3] {
        let model = &self.model;
        let (hidden, heads, kv_heads) = (model.hidden_size, model.heads, model.kv_heads);
        let from_scratch = model.init.is_empty();
        let head_dim = hidden / heads;
        [
            Rule {
                broken: from_scratch && hidden % heads != 0,
                keys: &["model.heads", "model.hidden_size"],
                problem: format!(
                    "model.heads = {heads} does not divide model.hidden_size = {hidden}: change one"
                ),
            },
            Rule {
                broken: from_scratch && head_dim % 2 != 0,
                keys: &["model.heads", "model.hidden_size"],
                problem: format!(
                    "model.hidden_size = {hidden} over model.heads = {heads} gives heads of odd width {head_dim}, which rotary positions cannot use: change one"
                ),
            },
            Rule {
                broken: from_scratch && heads % kv_heads != 0,
                keys: &["model.kv_heads", "model.heads"],
                problem: format!(
                    "model.kv_heads = {kv_heads} does not divide model.heads = {heads}: change one"
                ),
            },
        ]
    }

    fn training_rules(&self) -> [Rule; 10] {
        let (sft, rl, reward) = (&self.sft, &self.rl, &self.reward);
        let rewards = [
            reward.rule,
            reward.rank,
            reward.semantic,
            reward.repeat,
            reward.novelty,
            reward.value,
            reward.teacher,
        ];
        let without_target = [reward.repeat, reward.novelty, reward.teacher];
        [
            Rule {
                broken: sft.accumulate > sft.batch,
                keys: &["sft.accumulate", "sft.batch"],
                problem: format!(
                    "sft.accumulate = {} is more parts than the sft.batch = {} documents: lower it",
                    sft.accumulate, sft.batch
                ),
            },
            Rule {
                broken: rl.accumulate > rl.prompts,
                keys: &["rl.accumulate", "rl.prompts"],
                problem: format!(
                    "rl.accumulate = {} is more parts than the rl.prompts = {} prompts: lower it",
                    rl.accumulate, rl.prompts
                ),
            },
            Rule {
                broken: sft.min_lr > sft.lr,
                keys: &["sft.min_lr", "sft.lr"],
                problem: format!(
                    "sft.min_lr = {:?} is above sft.lr = {:?}: lower it",
                    sft.min_lr, sft.lr
                ),
            },
            Rule {
                broken: rl.min_lr > rl.lr,
                keys: &["rl.min_lr", "rl.lr"],
                problem: format!(
                    "rl.min_lr = {:?} is above rl.lr = {:?}: lower it",
                    rl.min_lr, rl.lr
                ),
            },
            Rule {
                broken: rl.ref_sync_steps > 0 && rl.kl_beta == 0.0,
                keys: &["rl.ref_sync_steps", "rl.kl_beta"],
                problem: format!(
                    "rl.ref_sync_steps = {} has no reference to update, as rl.kl_beta = 0 loads none: set it to 0",
                    rl.ref_sync_steps
                ),
            },
            Rule {
                broken: rl.value_warmup_steps > 0 && rl.value_weight == 0.0,
                keys: &["rl.value_warmup_steps", "rl.value_weight"],
                problem: format!(
                    "rl.value_warmup_steps = {} would train nothing, as rl.value_weight = 0: set it to 0",
                    rl.value_warmup_steps
                ),
            },
            Rule {
                broken: rl.accumulate > 1 && rl.scale_rewards == ScaleRewards::Batch,
                keys: &["rl.accumulate", "rl.scale_rewards"],
                problem: format!(
                    "rl.accumulate = {} runs a batch in parts, whose common deviation rl.scale_rewards = batch needs at once: set one of them to its default",
                    rl.accumulate
                ),
            },
            Rule {
                broken: reward.teacher > 0.0 && reward.teacher_model.is_empty(),
                keys: &["reward.teacher", "reward.teacher_model"],
                problem: format!(
                    "reward.teacher = {:?} needs a model that teaches: name its run folder, reward.teacher_model = DIR",
                    reward.teacher
                ),
            },
            Rule {
                broken: rl.open_prompts > 0.0 && without_target.iter().all(|weight| *weight == 0.0),
                keys: &["rl.open_prompts", "reward.repeat"],
                problem: format!(
                    "rl.open_prompts = {:?} asks for rewards that need no target: set one above 0, for example reward.repeat = 1",
                    rl.open_prompts
                ),
            },
            Rule {
                broken: rewards.iter().all(|weight| *weight == 0.0),
                keys: &["reward.rule", "reward.rank"],
                problem: "every weight in [reward] is 0, which leaves nothing to learn from: set one above 0, for example reward.rule = 1".into(),
            },
        ]
    }
}
