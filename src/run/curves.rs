//! `curves.svg`: how the figures of `metrics.jsonl` went, a row of charts for each, a column for each stage.

use super::metrics::Entry;
use super::state::Stage;
use crate::plot::{self, Chart, Line, Row};
use anyhow::Result;

/// Points of a line at most: each is the mean of a stretch of steps.
const POINTS: usize = 100;

/// What a row of charts shows.
struct Measure {
    title: &'static str,
    /// (key in the records, name of the line).
    figures: Vec<(String, String)>,
    /// The same thing in every stage.
    comparable: bool,
}

fn measures(entries: &[Entry]) -> Vec<Measure> {
    let measure = |title, keys: &[&str]| Measure {
        title,
        figures: match keys {
            [one] => vec![(one.to_string(), String::new())],
            several => several
                .iter()
                .map(|key| (key.to_string(), key.to_uppercase()))
                .collect(),
        },
        comparable: true,
    };
    let known = |key: &String| entries.iter().any(|e| e.figures.contains_key(key));
    let hits = (1..).map(|level| format!("prefix_hit@10/{level}"));
    let hits = hits.take_while(known).zip(1..);
    vec![
        Measure {
            // Fine-tuning and reinforcement learning do not minimise the same.
            comparable: false,
            ..measure("loss", &["loss"])
        },
        measure("reward", &["reward"]),
        measure("entropy", &["entropy"]),
        measure("validation", &["hr@10", "ndcg@10"]),
        Measure {
            figures: hits.map(|(key, l)| (key, format!("{l}"))).collect(),
            ..measure("hit@10 of the first codes:", &[])
        },
        measure("coverage@10", &["coverage@10"]),
    ]
}

/// The picture; none if there is nothing to draw.
///
/// # Errors
/// As [`plot::svg`].
pub fn svg(title: &str, entries: &[Entry]) -> Result<Option<String>> {
    let has = |stage: &Stage| entries.iter().any(|e| e.stage == *stage);
    let stages: Vec<Stage> = Stage::ALL.into_iter().filter(has).collect();
    let row = |measure: &Measure| Row {
        charts: stages.iter().map(|&s| chart(entries, s, measure)).collect(),
        shared: measure.comparable,
    };
    let rows: Vec<Row> = measures(entries).iter().map(row).collect();
    let drawn = |row: &Row| row.charts.iter().any(Option::is_some);
    let rows: Vec<Row> = rows.into_iter().filter(drawn).collect();
    match rows.is_empty() {
        true => Ok(None),
        false => plot::svg(title, &rows).map(Some),
    }
}

fn chart(entries: &[Entry], stage: Stage, measure: &Measure) -> Option<Chart> {
    let of_stage: Vec<&Entry> = entries.iter().filter(|e| e.stage == stage).collect();
    let line = |(key, name): &(String, String)| {
        let points: Vec<[f64; 2]> = of_stage
            .iter()
            .filter_map(|e| Some([e.step as f64, e.figures.get(key)?.as_f64()?]))
            .collect();
        (!points.is_empty()).then(|| Line {
            name: name.clone(),
            points: means(&points),
            band: Vec::new(),
        })
    };
    let lines: Vec<Line> = measure.figures.iter().filter_map(line).collect();
    (!lines.is_empty()).then(|| Chart {
        title: format!("{}: {}", stage.name(), measure.title),
        x_label: "steps".into(),
        lines,
    })
}

/// The means of stretches of points, as many as are seen apart.
fn means(points: &[[f64; 2]]) -> Vec<[f64; 2]> {
    let mean = |part: &[[f64; 2]]| {
        [0, 1].map(|i| part.iter().map(|p| p[i]).sum::<f64>() / part.len() as f64)
    };
    let stretch = points.len().div_ceil(POINTS).max(1);
    points.chunks(stretch).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn entry(stage: Stage, step: u64, figures: Value) -> Entry {
        let Value::Object(figures) = figures else {
            panic!("an object")
        };
        Entry {
            stage,
            step,
            figures,
        }
    }

    /// Lines and charts of a picture.
    fn drawn(entries: &[Entry]) -> (usize, usize) {
        let text = svg("a run", entries).unwrap().unwrap();
        let document = roxmltree::Document::parse(&text).unwrap();
        let lines = document.descendants().filter(|n| {
            let wide = n.attribute("stroke-width") == Some("2");
            n.has_tag_name("polyline") && wide
        });
        (lines.count(), text.matches("steps").count())
    }

    #[test]
    fn every_figure_of_a_stage_has_a_line() {
        let mut entries = Vec::new();
        for step in 1..=3 {
            entries.push(entry(Stage::Sft, step, json!({"loss": 1.0 / step as f64})));
        }
        assert_eq!(drawn(&entries), (1, 1));
        for step in [0, 2, 4] {
            let x = step as f64;
            let figures = json!({"loss": null, "reward": x, "entropy": 2.0 - x, "hr@10": x, "ndcg@10": x / 2.0,
                "coverage@10": x, "prefix_hit@10/1": x, "prefix_hit@10/2": x});
            entries.push(entry(Stage::Rl, step, figures));
        }
        // A loss that was never finite has none.
        assert_eq!(drawn(&entries), (1 + 7, 1 + 5));
        assert!(svg("nothing", &[]).unwrap().is_none());
    }

    #[test]
    fn many_steps_are_drawn_as_means() {
        let points: Vec<[f64; 2]> = (0..250).map(|i| [i as f64, (i % 3) as f64]).collect();
        let means = means(&points);
        assert_eq!(
            (means.len(), means[0], means[1]),
            (84, [1.0, 1.0], [4.0, 1.0])
        );
        assert_eq!(super::means(&points[..7]), points[..7]);
    }
}
