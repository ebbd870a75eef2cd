//! What an ablation found: the table, its figures, the picture.

use super::{Ablation, BASELINE, FINE_TUNED, Run};
use crate::data::Dataset;
use crate::eval::bootstrap::Interval;
use crate::eval::metrics::TOP;
use crate::eval::per_user::{Credit, Gain, PerUser};
use crate::eval::report::{aligned, grouped};
use crate::eval::{Bootstrap, Difference, Figure, Statistic};
use crate::learn::comparison::bootstrap;
use crate::plot::{self, Chart, Line, Row};
use crate::run::{Entry, Stage, atomic_write};
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

/// What a finished run left.
struct Outcome<'a> {
    run: &'a Run,
    users: PerUser,
    /// Of its `result.json`.
    coverage: f64,
    decode_tokens: u64,
    /// [decode tokens, NDCG@10, coverage@10] of each validation.
    validations: Vec<[f64; 3]>,
}

impl Outcome<'_> {
    fn top(&self) -> usize {
        TOP.min(self.users.beam)
    }

    fn ranking(&self, gain: Gain) -> Statistic {
        self.users.ranking(gain, Credit::Sid, self.top())
    }
}

/// A system over its seeds.
struct System<'a> {
    name: &'static str,
    outcomes: Vec<Outcome<'a>>,
    /// By name; none where it is not defined.
    figures: [(&'static str, Option<Figure>); 4],
    /// Of NDCG, over other systems.
    over: Vec<(&'static str, Option<Difference>)>,
}

/// The comparison of a finished ablation.
pub struct Summary<'a> {
    ablation: &'a Ablation,
    data: &'a Dataset,
    systems: Vec<System<'a>>,
}

impl Ablation {
    /// Compares the runs.
    ///
    /// # Errors
    /// One is not done, or was evaluated on other users.
    pub fn summary<'a>(&'a self, data: &'a Dataset) -> Result<Summary<'a>> {
        let mut grouped: Vec<(&'static str, Vec<Outcome>)> = Vec::new();
        for run in &self.runs {
            let outcome = self.outcome(run)?;
            match grouped.iter_mut().find(|(name, _)| *name == run.system) {
                Some((_, outcomes)) => outcomes.push(outcome),
                None => grouped.push((run.system, vec![outcome])),
            }
        }
        let first = &grouped[0].1[0];
        for other in grouped.iter().flat_map(|(_, outcomes)| outcomes) {
            let alike = |a: &PerUser, b: &PerUser| a.target == b.target && a.beam == b.beam;
            ensure!(
                alike(&first.users, &other.users),
                "{} was evaluated on other users than {}: remove its folder, then resume",
                other.run.folder,
                first.run.folder
            );
        }
        let ndcg = |of: &[Outcome]| -> Vec<Statistic> {
            of.iter().map(|o| o.ranking(Gain::Ndcg)).collect()
        };
        let find = |name| grouped.iter().find(|(own, _)| *own == name);
        let baselines = [FINE_TUNED, BASELINE].into_iter().filter_map(|name| {
            let (_, outcomes) = find(name)?;
            Some((name, ndcg(outcomes)))
        });
        let baselines: Vec<_> = baselines.collect();
        let bootstrap = bootstrap(&self.config);
        let systems = grouped.into_iter().map(|(name, outcomes)| {
            let own = ndcg(&outcomes);
            let over = |(baseline, theirs): &(&'static str, Vec<Statistic>)| {
                Ok((*baseline, bootstrap.seed_difference(&own, theirs)?))
            };
            // Of a baseline: over those before it.
            let others = baselines.iter().take_while(|(other, _)| *other != name);
            let others = others.filter(|_| name != FINE_TUNED);
            Ok(System {
                name,
                over: others.map(over).collect::<Result<_>>()?,
                figures: figures(&bootstrap, &outcomes),
                outcomes,
            })
        });
        Ok(Summary {
            ablation: self,
            data,
            systems: systems.collect::<Result<_>>()?,
        })
    }

    fn outcome<'a>(&self, run: &'a Run) -> Result<Outcome<'a>> {
        let folder = self.folder(run);
        let path = folder.result_path();
        let shown = path.display();
        let text = std::fs::read(&path).with_context(|| format!("cannot read {shown}"))?;
        let result: Value =
            serde_json::from_slice(&text).with_context(|| format!("{shown} is not JSON"))?;
        let users = PerUser::load(&folder.test_users_path())?;
        let figures = &result["systems"][run.system];
        let coverage = figures[format!("coverage@{}", TOP.min(users.beam))].as_f64();
        let validation = |entry: &Entry| {
            let figure = |key| entry.figures.get(key).and_then(Value::as_f64);
            let [ndcg, coverage] = [figure("ndcg@10")?, figure("coverage@10")?];
            Some([figure("decode_tokens")?, ndcg, coverage])
        };
        let entries = folder.entries()?;
        let entries = entries.iter().filter(|entry| entry.stage == Stage::Rl);
        Ok(Outcome {
            run,
            users,
            coverage: coverage
                .with_context(|| format!("{shown} has no coverage of {}", run.system))?,
            decode_tokens: figures["train_decode_tokens"].as_u64().unwrap_or(0),
            validations: entries.filter_map(validation).collect(),
        })
    }
}

/// What is said of a system, in the order of the table.
fn figures(bootstrap: &Bootstrap, outcomes: &[Outcome]) -> [(&'static str, Option<Figure>); 4] {
    let over_seeds = |statistic: &dyn Fn(&Outcome) -> Statistic| {
        let statistics: Vec<Statistic> = outcomes.iter().map(statistic).collect();
        bootstrap.seed_mean(&statistics)
    };
    let coverage: Vec<f64> = outcomes.iter().map(|o| o.coverage).collect();
    let coverage = Figure {
        mean: mean(&coverage),
        interval: Some(range(&coverage)),
    };
    [
        ("hr", over_seeds(&|o| o.ranking(Gain::Hr))),
        ("ndcg", over_seeds(&|o| o.ranking(Gain::Ndcg))),
        ("coverage", Some(coverage)),
        ("ild", over_seeds(&|o| o.users.intra_list_distance())),
    ]
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn range(values: &[f64]) -> Interval {
    Interval {
        lo: values.iter().copied().fold(f64::INFINITY, f64::min),
        hi: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    }
}

impl Summary<'_> {
    fn top(&self) -> usize {
        self.systems[0].outcomes[0].top()
    }

    /// The comparison as text, a Markdown table with remarks.
    pub fn table(&self) -> String {
        let (top, seeds) = (self.top(), &self.ablation.what.seeds);
        let heads = ["HR", "NDCG", "coverage", "ILD"].map(|name| format!("{name}@{top}"));
        let mut head = vec!["system".to_string()];
        head.extend(heads);
        head.push("decode tokens".into());
        let mut cells = vec![head];
        for system in &self.systems {
            let mut row = vec![system.name.to_string()];
            let shown = |figure: &Option<Figure>| figure.map_or("-".into(), |f| f.to_string());
            row.extend(system.figures.iter().map(|(_, figure)| shown(figure)));
            let spent = system.outcomes.iter().map(|o| o.decode_tokens);
            row.push(grouped(spent.sum::<u64>() / system.outcomes.len() as u64));
            cells.push(row);
        }
        let mut text = aligned(&cells);
        let users = self.systems[0].outcomes[0].users.users();
        let drawn = match (self.ablation.config.eval.bootstrap, seeds.len()) {
            (0, _) => "",
            (_, 1) => " and 95% interval (one seed: the intervals say nothing of other seeds)",
            _ => " and 95% interval (bootstrap over users and seeds, both drawn anew)",
        };
        text += &format!(
            "\nmean over seeds {seeds:?}{drawn}; {} test examples, {}\n\
             coverage: share of all SIDs shown, with the range of the seeds; decode tokens: of training, mean of the seeds\n\n",
            grouped(users as u64),
            self.data.protocol,
        );
        for System { name, over, .. } in &self.systems {
            for (baseline, difference) in over {
                let difference = difference.map_or("undefined".into(), |d| d.to_string());
                text += &format!("{name} over {baseline}, NDCG@{top}: {difference}\n");
            }
        }
        text
    }

    /// Every figure.
    fn result(&self) -> Result<Value> {
        let top = self.top();
        let mut systems = Map::new();
        for system in &self.systems {
            let mut entry = Map::new();
            for (name, figure) in &system.figures {
                entry.insert(format!("{name}@{top}"), json!(figure));
            }
            for (baseline, difference) in &system.over {
                let key = format!("ndcg@{top} over {baseline}");
                entry.insert(key, json!(difference));
            }
            let run = |o: &Outcome| {
                let mut run = Map::new();
                run.insert("run".into(), json!(o.run.folder));
                run.insert("seed".into(), json!(o.run.config.seed));
                let measures = [
                    ("hr", o.ranking(Gain::Hr).value()),
                    ("ndcg", o.ranking(Gain::Ndcg).value()),
                    ("coverage", Some(o.coverage)),
                    ("ild", o.users.intra_list_distance().value()),
                ];
                for (name, value) in measures {
                    run.insert(format!("{name}@{top}"), json!(value));
                }
                run.insert("train_decode_tokens".into(), json!(o.decode_tokens));
                Value::Object(run)
            };
            let runs: Vec<Value> = system.outcomes.iter().map(run).collect();
            entry.insert("runs".into(), runs.into());
            systems.insert(system.name.into(), entry.into());
        }
        Ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "data": self.data.name,
            "protocol": self.data.protocol.to_string(),
            "users": self.systems[0].outcomes[0].users.users(),
            "seeds": self.ablation.what.seeds,
            "decode_tokens": self.ablation.decode_tokens,
            "systems": systems,
        }))
    }

    /// Validation over decode tokens.
    fn plot(&self) -> Result<String> {
        let chart = |title: &str, measure: usize| {
            let lines = self.systems.iter().filter_map(|system| {
                let line = over_seeds(system, measure);
                (!line.points.is_empty()).then_some(line)
            });
            Some(Chart {
                title: title.into(),
                x_label: "decode tokens".into(),
                lines: lines.collect(),
            })
        };
        let rows = [Row {
            charts: vec![chart("NDCG@10", 1), chart("coverage@10", 2)],
            shared: false,
        }];
        plot::svg(&format!("Validation on {}", self.data.name), &rows)
    }

    /// Writes `table.md`, `plot.svg` and, last, `result.json`.
    pub fn write(&self) -> Result<()> {
        let root = self.ablation.root();
        atomic_write(&root.join("table.md"), self.table().as_bytes())?;
        atomic_write(&root.join("plot.svg"), self.plot()?.as_bytes())?;
        let result = serde_json::to_string_pretty(&self.result()?)? + "\n";
        atomic_write(&root.join("result.json"), result.as_bytes())
    }
}

/// The mean and the range of the seeds at each validation, the last of which may be missing for a seed that spent the
/// tokens in fewer steps.
fn over_seeds(system: &System, measure: usize) -> Line {
    let curves: Vec<&[[f64; 3]]> = system.outcomes.iter().map(|o| &o.validations[..]).collect();
    let common = curves.iter().map(|c| c.len()).min().unwrap_or(0);
    let at =
        |i: usize, column: usize| -> Vec<f64> { curves.iter().map(|c| c[i][column]).collect() };
    let band = |i| {
        let Interval { lo, hi } = range(&at(i, measure));
        [lo, hi]
    };
    Line {
        name: system.name.into(),
        points: (0..common)
            .map(|i| [mean(&at(i, 0)), mean(&at(i, measure))])
            .collect(),
        band: (0..common).map(band).collect(),
    }
}
