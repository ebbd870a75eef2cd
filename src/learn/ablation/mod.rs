//! The paper's ablation: one fine-tuned model, and from it each system for each seed, all at the same number of decode
//! tokens. Each is a run folder of its own, so an interrupted ablation goes on where it stopped.

mod summary;

pub use summary::Summary;

use super::context::Context;
use super::job::{self, Stages, baseline};
use super::plan::Plan;
use crate::config::{Candidates, Config, MAX_SEED};
use crate::data::Dataset;
use crate::decode::{self, search::Decoding};
use crate::device::planner::Limits;
use crate::device::{Device, DeviceRef};
use crate::eval::report::grouped;
use crate::run::{Interrupt, RunFolder, atomic_write, write_folder};
use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};

/// A way to train by reinforcement learning.
struct System {
    name: &'static str,
    /// The beginning of its folders' names.
    folder: &'static str,
    /// Its settings, from V-STAR's.
    settings: fn(&Config) -> Config,
}

const FINE_TUNED: &str = "SFT";
const BASELINE: &str = "GRPO (beam)";

static SYSTEMS: [System; 5] = [
    System {
        name: BASELINE,
        folder: "grpo-beam",
        settings: baseline,
    },
    System {
        name: "GRPO (sample)",
        folder: "grpo-sample",
        settings: |vstar| {
            let mut config = baseline(vstar);
            config.rl.decode = Candidates::Sample;
            config
        },
    },
    System {
        name: "+ Sibling",
        folder: "sibling",
        settings: |vstar| {
            let mut config = baseline(vstar);
            config.rl.sibling_weight = vstar.rl.sibling_weight;
            config
        },
    },
    System {
        name: "+ VED",
        folder: "ved",
        settings: |vstar| {
            let mut config = vstar.clone();
            config.rl.sibling_weight = 0.0;
            config
        },
    },
    System {
        name: "V-STAR",
        folder: "vstar",
        settings: Config::clone,
    },
];

/// One run of an ablation.
pub struct Run {
    system: &'static str,
    /// The name of its folder.
    pub folder: String,
    config: Config,
    stages: Stages,
    /// Rollouts it takes to spend the tokens, if each spends all it may.
    steps: u64,
}

/// `sft             fine-tuning` or `vstar-1         96,000 decode tokens, 20 steps or more`.
impl Display for Run {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{:<15} ", self.folder)?;
        match self.stages {
            Stages { sft: true, .. } => write!(f, "fine-tuning"),
            Stages { rl: true, .. } => write!(
                f,
                "{} decode tokens, {} steps or more",
                grouped(self.config.rl.max_decode_tokens),
                self.steps
            ),
            _ => write!(f, "the model given"),
        }
    }
}

/// An ablation in its folder.
pub struct Ablation {
    root: PathBuf,
    /// What V-STAR is trained with.
    config: Config,
    what: Compared,
    systems: Vec<&'static System>,
    /// Decode tokens that each system may spend.
    decode_tokens: u64,
    /// Fine-tuning, then each system for each seed.
    pub runs: Vec<Run>,
}

const SETTINGS: &str = "settings.toml";
const SEEDS: &str = "ablation.json";

/// What an ablation compares, as `ablation.json` says it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Compared {
    pub seeds: Vec<u64>,
    /// Names of the systems' folders.
    pub systems: Vec<String>,
}

/// The systems there are, by the names of their folders.
fn system_names() -> impl Iterator<Item = &'static str> {
    SYSTEMS.iter().map(|system| system.folder)
}

const README: &str = "\
This folder holds an ablation of vstar: one fine-tuned model, and from it several systems for each seed, all trained with the
same number of decode tokens (tokens that the model runs while it searches for candidates).

settings.toml   the settings of V-STAR, from which those of the other systems follow
ablation.json   the seeds and the systems; with more of them written there, --resume trains those too
sft/            the fine-tuned model, where all others start
grpo-beam-S/    seed S: beam search, group advantages only
grpo-sample-S/  the same with independent samples
sibling-S/      beam search and sibling advantages
ved-S/          value-guided search, group advantages only
vstar-S/        value-guided search and sibling advantages
table.md        the comparison; there once all runs are done
result.json     its figures, for each seed too
plot.svg        validation over decode tokens: the mean of the seeds, and their range

Each folder is that of a run, and says what is in it; test_users.safetensors has what came of every test user.
Train one again:                     vstar train --config vstar-1/config.toml --stage rl (sft/: --stage sft)
Go on with an interrupted ablation:  vstar ablate --resume THIS_FOLDER
";

impl Ablation {
    /// Plans one that will be in the folder `root`, on data that fits the settings.
    ///
    /// # Errors
    /// No seeds, or one twice; no systems, or unknown ones; settings that leave nothing to compare.
    pub fn new(root: &Path, config: Config, what: Compared, data: &Dataset) -> Result<Ablation> {
        let seeds = &what.seeds;
        ensure!(
            !seeds.is_empty(),
            "--seeds names no seed: give --seeds 1,2,3"
        );
        for (at, seed) in seeds.iter().enumerate() {
            ensure!(
                *seed <= MAX_SEED,
                "--seeds: {seed} is too large: the largest seed is {MAX_SEED}"
            );
            ensure!(
                !seeds[..at].contains(seed),
                "--seeds names {seed} twice: give each seed once"
            );
        }
        for name in &what.systems {
            ensure!(
                system_names().any(|known| known == name),
                "--systems: there is no `{name}`: there are {}",
                system_names().collect::<Vec<_>>().join(", ")
            );
        }
        let named = |system: &&System| what.systems.iter().any(|name| name == system.folder);
        let systems: Vec<&System> = SYSTEMS.iter().filter(named).collect();
        ensure!(
            !systems.is_empty(),
            "--systems names no system: give --systems grpo-beam,vstar"
        );
        ensure!(
            config.rl.decode == Candidates::Ved,
            "rl.decode = {} is not V-STAR's, and an ablation varies it: leave it at ved",
            config.rl.decode
        );
        let decode_tokens = match config.rl.max_decode_tokens {
            0 => config.rl.last_step() as u64 * tokens_per_step(&config, data)?,
            tokens => tokens,
        };
        ensure!(
            decode_tokens > 0,
            "rl.steps = 0 leaves nothing to compare: give rl.steps=N"
        );
        let root = std::path::absolute(root)
            .with_context(|| format!("cannot use the folder {}", root.display()))?;
        let mut ablation = Ablation {
            root,
            config,
            what,
            systems,
            decode_tokens,
            runs: Vec::new(),
        };
        ablation.runs = ablation.plan(data)?;
        Ok(ablation)
    }

    fn plan(&self, data: &Dataset) -> Result<Vec<Run>> {
        let given = !self.config.model.init.is_empty();
        let mut config = self.config.clone();
        config.eval.baselines = false;
        let mut runs = vec![Run {
            system: FINE_TUNED,
            folder: "sft".into(),
            config: config.clone(),
            stages: stages(!given, false),
            steps: 0,
        }];
        if !given {
            let sft = self.root.join("sft");
            let path = sft.to_str();
            config.model.init = path
                .with_context(|| format!("{} is not valid UTF-8: rename it", sft.display()))?
                .into();
        }
        config.rl.max_decode_tokens = self.decode_tokens;
        // Nothing else may end a stage.
        config.rl.max_steps = 0;
        config.rl.patience = 0;
        for &seed in &self.what.seeds {
            config.seed = seed;
            for system in &self.systems {
                let config = (system.settings)(&config);
                let steps = self.decode_tokens.div_ceil(tokens_per_step(&config, data)?);
                runs.push(Run {
                    system: system.name,
                    folder: format!("{}-{seed}", system.folder),
                    config,
                    stages: stages(false, true),
                    steps,
                });
            }
        }
        Ok(runs)
    }

    /// Makes its folder.
    ///
    /// # Errors
    /// It is taken by anything but an empty folder, or cannot be written.
    pub fn create(&self) -> Result<()> {
        write_folder(&self.root, |folder| {
            atomic_write(&folder.join("README.txt"), README.as_bytes())?;
            let settings = self.config.resolved_toml();
            atomic_write(&folder.join(SETTINGS), settings.as_bytes())?;
            atomic_write(&folder.join(SEEDS), &serde_json::to_vec_pretty(&self.what)?)
        })
    }

    /// Settings of the one in the folder `root`, and what it compares.
    ///
    /// # Errors
    /// There is none.
    pub fn begun(root: &Path) -> Result<(Config, Compared)> {
        let path = root.join(SEEDS);
        if !path.is_file() {
            bail!("{} holds no ablation: it has no {SEEDS}", root.display());
        }
        let shown = path.display();
        let text = std::fs::read(&path).with_context(|| format!("cannot read {shown}"))?;
        let what: Compared = serde_json::from_slice(&text)
            .with_context(|| format!("{shown} does not name an ablation's seeds and systems"))?;
        Ok((Config::load(Some(&root.join(SETTINGS)), &[])?, what))
    }

    /// Refuses runs of other settings in the folder, and runs that do not fit the device's memory.
    pub fn check(&self, data: &Dataset, device: &dyn Device) -> Result<()> {
        for run in &self.runs {
            let path = self.folder(run).config_path();
            if !path.is_file() {
                continue;
            }
            let there = Config::load(Some(&path), &[])?;
            if let Some(difference) = there.difference(&run.config) {
                bail!(
                    "{}: a run of another ablation: {difference} here: give another --out",
                    path.display()
                );
            }
        }
        // Seeds do not change sizes.
        for run in self.runs.iter().take(1 + self.systems.len()) {
            let mut config = run.config.clone();
            // The fine-tuned model is not there yet.
            config.model.init = self.config.model.init.clone();
            let limits = Limits::of(device);
            let plan = Plan::new(&config, data, run.stages, limits);
            Plan::admit(plan, &config, data, run.stages, (device.info(), limits))?;
        }
        Ok(())
    }

    /// Does a run, or what is left of it; one that is done is left alone.
    pub fn complete(
        &self,
        run: &Run,
        device: &DeviceRef,
        data: &Dataset,
        interrupt: &Interrupt,
    ) -> Result<()> {
        if self.is_done(run) {
            return Ok(());
        }
        let (folder, config) = (self.folder(run), &run.config);
        let folder = match folder.config_path().is_file() {
            true => RunFolder::resume(folder.root())?,
            false => RunFolder::create(folder.root(), config)?,
        };
        let (context, latest) = Context::open(config, data, &folder, interrupt.clone())?;
        job::run_system(device, context, run.stages, latest, run.system)
    }

    /// Whether a run is done.
    pub fn is_done(&self, run: &Run) -> bool {
        self.folder(run).result_path().is_file()
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn folder(&self, run: &Run) -> RunFolder {
        RunFolder::at(&self.root.join(&run.folder))
    }
}

fn stages(sft: bool, rl: bool) -> Stages {
    Stages {
        sft,
        rl,
        eval: true,
    }
}

/// Backbone tokens that decoding may run in a rollout of all prompts.
fn tokens_per_step(config: &Config, data: &Dataset) -> Result<u64> {
    let decoding = Decoding::rollout(config, data, config.rl.prompts);
    let sizes = data.catalog.trie().level_sizes();
    let budget = decode::Plan::new(&decoding.config.method, &sizes)?.budget;
    Ok((config.rl.prompts * budget) as u64)
}
