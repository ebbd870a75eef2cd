//! Two reports of the same bench, entry by entry.

use super::report::{Report, time};
use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Time of `b` over that of `a`, for every entry that both have, and their geometric mean.
///
/// # Errors
/// They are of different benches, or have no entry in common.
pub fn table(a: &Report, b: &Report) -> Result<String> {
    ensure!(
        a.bench == b.bench,
        "the reports are of different benches: {} and {}",
        a.bench,
        b.bench
    );
    let of_b: BTreeMap<&str, f64> = b
        .entries
        .iter()
        .map(|e| (e.name.as_str(), e.seconds.median))
        .collect();
    let common: Vec<_> = a
        .entries
        .iter()
        .filter_map(|e| Some((e, *of_b.get(e.name.as_str())?)))
        .collect();
    ensure!(!common.is_empty(), "the reports have no entry in common");
    let width = common.iter().map(|(e, _)| e.name.len()).max().unwrap_or(0);
    let mut text = format!("A  {}\nB  {}\n", a.device, b.device);
    let _ = writeln!(text, "\n{:width$}          A          B     B/A", "");
    let mut logs = 0.0;
    for (entry, second) in &common {
        let first = entry.seconds.median;
        let ratio = second / first;
        logs += ratio.ln();
        let _ = writeln!(
            text,
            "{:width$} {:>10} {:>10}  {ratio:>6.3}",
            entry.name,
            time(first),
            time(*second)
        );
    }
    let mean = (logs / common.len() as f64).exp();
    let _ = writeln!(
        text,
        "geometric mean of {} entries: {mean:.3}",
        common.len()
    );
    let alone = [(a, "A"), (b, "B")].map(|(r, name)| (r.entries.len() - common.len(), name));
    for (count, name) in alone.into_iter().filter(|(count, _)| *count > 0) {
        let _ = writeln!(text, "{count} entries are in {name} only");
    }
    Ok(text)
}
