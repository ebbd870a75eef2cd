//! `vstar eval`: the figures of a trained model.

use std::io::{Write, stdout};
use std::time::Instant;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::trained;
use crate::decode::search::{Decoding, Searcher};
use crate::eval::report::{Report, Row, table};
use crate::eval::system::{SidTables, evaluate};
use crate::learn::comparison;
use crate::learn::job::limited;
use crate::run::Progress;

/// Evaluate a model on the test users of a data set
///
/// Prints HR and NDCG with 95% intervals, worth-weighted HR, coverage, diversity, the number of invalid
/// codes and the tokens decoded; --json adds every cutoff, the same on items, the hit rate per
/// level and popularity buckets.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vstar eval --model runs/office
  vstar eval --model runs/office --data data/office eval.beam=50 eval.decode=ved")]
pub struct Args {
    /// Print JSON, with every figure
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    trained: trained::Args,
}

/// Evaluates.
pub fn run(args: Args) -> Result<()> {
    let started = Instant::now();
    let trained = args.trained.load()?;
    let (config, data, model) = (&trained.config, &trained.data, &trained.model);
    let mut progress = Progress::new();
    progress.note(&trained.about());
    for warning in &data.warnings {
        progress.note(&format!("warning {warning}"));
    }
    let examples = limited(&data.test, config.eval.max_users);
    let mut searcher = Searcher::new(model, data, &Decoding::evaluation(config, data))?;
    let tables = SidTables::new(data);
    progress.stage("test", 0, examples.len() as u64);
    let (evaluation, decode_tokens) =
        evaluate(model, data, &tables, &mut searcher, &examples, |done| {
            progress.step(done as u64, &[]);
            Ok(())
        })?;
    progress.finish();
    let report = Report::new(
        &data.protocol.to_string(),
        &evaluation,
        &comparison::bootstrap(config),
    );
    let name = trained.name();
    let mut out = stdout().lock();
    if args.json {
        let mut figures = Map::new();
        report.merge_into(&mut figures)?;
        figures.insert("decode_tokens".into(), decode_tokens.into());
        // As in a run's result.json.
        let result = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "data": data.name,
            "protocol": data.protocol.to_string(),
            "seed": config.seed,
            "device": model.device.info(),
            "parameters": model.architecture.parameters(),
            "seconds": started.elapsed().as_secs_f64(),
            "counters": model.device.counters(),
            "systems": Map::from_iter([(name, Value::Object(figures))]),
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&result)?)?;
    } else {
        let row = Row {
            name: &name,
            report: &report,
            decode_tokens,
        };
        write!(out, "{}", table(&[row])?)?;
    }
    Ok(out.flush()?)
}
