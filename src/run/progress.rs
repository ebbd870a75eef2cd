//! Progress on stderr: a bar on a terminal, plain lines when piped.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Shortest time between two plain lines of a stage, beside its first and last.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows how far a run is: stage, step, rate, time left and the latest values.
pub struct Progress {
    terminal: bool,
    stage: Option<Stage>,
}

struct Stage {
    name: String,
    first: u64,
    step: u64,
    total: u64,
    started: Instant,
    values: Vec<(String, f64)>,
    /// On a terminal only.
    bar: Option<ProgressBar>,
    /// When the last plain line was printed and for which step.
    printed: Option<(Instant, u64)>,
}

impl Progress {
    /// A bar if stderr is a terminal, else plain lines.
    pub fn new() -> Progress {
        Progress {
            terminal: stderr().is_terminal(),
            stage: None,
        }
    }

    /// Ends the stage before, if any, and begins one of `total` steps, `done` of them in an earlier
    /// part of the run.
    pub fn stage(&mut self, name: &str, done: u64, total: u64) {
        self.finish();
        let style = ProgressStyle::with_template("{msg} {wide_bar}")
            .expect("the template is valid")
            .progress_chars("=> ");
        let bar = self.terminal.then(|| {
            let bar = ProgressBar::new(total).with_style(style);
            bar.set_position(done);
            bar
        });
        self.stage = Some(Stage {
            name: name.to_owned(),
            first: done,
            step: done,
            total,
            started: Instant::now(),
            values: Vec::new(),
            bar,
            printed: None,
        });
    }

    /// The stage will have `total` steps, as it looks now.
    pub fn expect(&mut self, total: u64) {
        if let Some(stage) = &mut self.stage {
            stage.total = total.max(stage.step);
            if let Some(bar) = &stage.bar {
                bar.set_length(stage.total);
            }
        }
    }

    /// Step `step` (from 1) is done. Values stay on show until given anew, so that a validation's
    /// metric is seen until the next one.
    pub fn step(&mut self, step: u64, values: &[(&str, f64)]) {
        let Some(stage) = &mut self.stage else {
            return;
        };
        stage.update(step, values);
        let line = stage.line(stage.started.elapsed());
        match &stage.bar {
            Some(bar) => {
                bar.set_position(step);
                bar.set_message(line);
            }
            None => {
                let due = stage
                    .printed
                    .is_none_or(|(when, _)| when.elapsed() >= LINE_INTERVAL);
                if due || step == stage.total {
                    stage.printed = Some((Instant::now(), step));
                    print(&line);
                }
            }
        }
    }

    /// Prints a line of its own, above the bar if there is one.
    pub fn note(&self, text: &str) {
        match self.stage.as_ref().and_then(|stage| stage.bar.as_ref()) {
            Some(bar) => bar.println(text),
            None => print(text),
        }
    }

    /// Ends the stage; its last line stays.
    pub fn finish(&mut self) {
        let Some(stage) = self.stage.take() else {
            return;
        };
        if let Some(bar) = &stage.bar {
            bar.finish_and_clear();
        }
        let shown = stage.printed.is_some_and(|(_, step)| step == stage.step);
        if stage.step > stage.first && !shown {
            print(&stage.line(stage.started.elapsed()));
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Progress::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Stage {
    fn update(&mut self, step: u64, values: &[(&str, f64)]) {
        self.step = step;
        for &(name, value) in values {
            match self.values.iter_mut().find(|(known, _)| known == name) {
                Some((_, shown)) => *shown = value,
                None => self.values.push((name.to_owned(), value)),
            }
        }
    }

    /// `sft 120/3000  4.1 steps/s  ETA 11m42s  loss 3.212  ndcg@10 0.0312`
    fn line(&self, elapsed: Duration) -> String {
        let mut line = format!("{} {}/{}", self.name, self.step, self.total);
        let done = self.step.saturating_sub(self.first) as f64;
        let rate = done / elapsed.as_secs_f64();
        if rate.is_finite() && rate > 0.0 {
            let _ = match rate {
                1.0.. => write!(line, "  {rate:.1} steps/s"),
                _ => write!(line, "  {:.1} s/step", 1.0 / rate),
            };
            if self.step < self.total {
                let left = (self.total - self.step) as f64 / rate;
                let _ = write!(line, "  ETA {}", duration(left as u64));
            }
        }
        for (name, value) in &self.values {
            let _ = write!(line, "  {name} {}", significant(*value));
        }
        line
    }
}

/// A failing stderr is no reason to lose a run.
fn print(line: &str) {
    let _ = writeln!(stderr(), "{line}");
}

/// `1h02m`, `11m42s` or `9s`.
fn duration(seconds: u64) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest:02}s"),
        _ => format!("{hours}h{minutes:02}m"),
    }
}

/// Four digits, those before the point included.
fn significant(value: f64) -> String {
    let magnitude = value.abs();
    if !value.is_finite() || magnitude >= 1e6 || (magnitude > 0.0 && magnitude < 1e-4) {
        return format!("{value:.3e}");
    }
    let before_point = match magnitude {
        1.0.. => magnitude.log10() as usize + 1,
        _ => 0,
    };
    format!("{value:.*}", 4_usize.saturating_sub(before_point))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(first: u64) -> Stage {
        Stage {
            name: "sft".into(),
            first,
            step: first,
            total: 3000,
            started: Instant::now(),
            values: Vec::new(),
            bar: None,
            printed: None,
        }
    }

    #[test]
    fn a_line_shows_rate_time_left_and_latest_values() {
        let mut stage = stage(20);
        stage.update(30, &[("loss", 5.5), ("ndcg@10", 0.03125)]);
        stage.update(120, &[("loss", 3.2123)]);
        assert_eq!(
            stage.line(Duration::from_secs(25)),
            "sft 120/3000  4.0 steps/s  ETA 12m00s  loss 3.212  ndcg@10 0.0312"
        );
        stage.update(3000, &[]);
        assert_eq!(
            stage.line(Duration::from_secs(5960)),
            "sft 3000/3000  2.0 s/step  loss 3.212  ndcg@10 0.0312"
        );
    }

    #[test]
    fn what_is_expected_may_change() {
        let mut progress = Progress {
            terminal: false,
            stage: Some(stage(0)),
        };
        progress.step(50, &[]);
        let total = |progress: &mut Progress, expected| {
            progress.expect(expected);
            progress.stage.as_ref().map(|stage| stage.total)
        };
        assert_eq!(total(&mut progress, 400), Some(400));
        // Never less than is done.
        assert_eq!(total(&mut progress, 20), Some(50));
    }

    #[test]
    fn a_stage_without_a_step_has_no_rate() {
        assert_eq!(stage(20).line(Duration::from_secs(1)), "sft 20/3000");
        assert_eq!(stage(20).line(Duration::ZERO), "sft 20/3000");
    }

    #[test]
    fn durations_and_numbers_are_short() {
        assert_eq!([9, 702, 3725].map(duration), ["9s", "11m42s", "1h02m"]);
        assert_eq!(
            [0.0, -1.5, 12.3456, 99_999.9, 2e-5, f64::NAN].map(significant),
            ["0.0000", "-1.500", "12.35", "100000", "2.000e-5", "NaN"]
        );
    }
}
