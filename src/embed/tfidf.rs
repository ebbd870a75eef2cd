//! Titles and texts as a sparse matrix of TF-IDF weights: words, and character n-grams, which see what two spellings,
//! model numbers or unspaced scripts have in common.

use std::collections::HashMap;

use super::matrix::Csr;

/// Terms in fewer items than this relate no two of them.
const MIN_ITEMS: u32 = 2;
/// Most terms kept of a kind: those in most items.
const MAX_TERMS: usize = 1 << 17;
/// Lengths of character n-grams.
const NGRAMS: std::ops::RangeInclusive<usize> = 3..=5;

/// `[items, terms]`: the words of title and text, and beside them the n-grams of the title (of the text where there is
/// no title), either part of length 1. `texts` and `titles` have an entry per item, or none.
pub fn matrix(items: usize, titles: &[String], texts: &[String]) -> Csr {
    let of = |all: &[String], item: usize| all.get(item).map_or("", |text| text).to_lowercase();
    let (mut by_word, mut by_ngram) = (Terms::default(), Terms::default());
    for item in 0..items {
        let (title, text) = (of(titles, item), of(texts, item));
        by_word.item(|add| words(&title).chain(words(&text)).for_each(add));
        let named = if words(&title).next().is_some() {
            &title
        } else {
            &text
        };
        by_ngram.item(|add| words(named).for_each(|word| ngrams(word, &mut *add)));
    }
    by_word.weights().beside(&by_ngram.weights())
}

/// The runs of letters and digits.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
}

/// The n-grams of a word with a space on either side; the whole of it where it is shorter than n.
fn ngrams(word: &str, mut add: impl FnMut(&str)) {
    let padded = format!(" {word} ");
    let ends: Vec<usize> = padded
        .char_indices()
        .map(|(at, c)| at + c.len_utf8())
        .collect();
    for n in NGRAMS {
        let count = (ends.len() + 1).saturating_sub(n);
        for first in 0..count {
            let begin = if first == 0 { 0 } else { ends[first - 1] };
            add(&padded[begin..ends[first + n - 1]]);
        }
    }
}

/// How often each term occurs in each item. Terms are numbered as they appear.
#[derive(Default)]
struct Terms {
    index: HashMap<String, u32>,
    /// Per item, (term, count) by rising term.
    counts: Vec<Vec<(u32, u32)>>,
}

impl Terms {
    /// The next item: `each` hands over its terms.
    fn item(&mut self, each: impl FnOnce(&mut dyn FnMut(&str))) {
        let index = &mut self.index;
        let mut terms = Vec::new();
        each(&mut |term| {
            let next = index.len() as u32;
            terms.push(match index.get(term) {
                Some(&known) => known,
                None => *index.entry(term.into()).or_insert(next),
            });
        });
        terms.sort_unstable();
        let runs = terms.chunk_by(|a, b| a == b);
        self.counts
            .push(runs.map(|run| (run[0], run.len() as u32)).collect());
    }

    /// `[items, terms kept]`, rows of length 1: (1 + ln tf)(1 + ln((1 + n) / (1 + df))), with tf the count in the item,
    /// df the items that have the term and n all items.
    fn weights(self) -> Csr {
        let n = self.counts.len() as f64;
        let mut items = vec![0u32; self.index.len()];
        for &(term, _) in self.counts.iter().flatten() {
            items[term as usize] += 1;
        }
        let mut kept: Vec<u32> = (0..items.len() as u32)
            .filter(|&term| items[term as usize] >= MIN_ITEMS)
            .collect();
        kept.sort_by_key(|&term| (std::cmp::Reverse(items[term as usize]), term));
        kept.truncate(MAX_TERMS);
        kept.sort_unstable();
        let mut column = vec![None; items.len()];
        for (at, &term) in kept.iter().enumerate() {
            column[term as usize] = Some(at as u32);
        }
        let weight = |&(term, tf): &(u32, u32)| {
            let df = items[term as usize] as f64;
            let idf = 1.0 + ((1.0 + n) / (1.0 + df)).ln();
            column[term as usize].map(|at| (at, ((1.0 + (tf as f64).ln()) * idf) as f32))
        };
        let rows = self.counts.iter();
        let mut matrix = Csr::from_rows(
            kept.len(),
            rows.map(|row| row.iter().filter_map(weight).collect()),
        );
        matrix.normalise_rows();
        matrix
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.into()).collect()
    }

    fn grams(word: &str) -> Vec<String> {
        let mut found = Vec::new();
        ngrams(word, |gram| found.push(gram.to_string()));
        found
    }

    #[test]
    fn words_and_ngrams_of_any_script() {
        let found: Vec<&str> = words("crème-brûlée no. 5, 東京!").collect();
        assert_eq!(found, ["crème", "brûlée", "no", "5", "東京"]);
        assert_eq!(grams("né5"), [" né", "né5", "é5 ", " né5", "né5 ", " né5 "]);
        assert_eq!(grams("5"), [" 5 "]);
    }

    #[test]
    fn weights_of_a_worked_example() {
        // "red" is in all three items, twice in the first; "ink" in two; "pen" in one, so it is not kept.
        let titles = strings(&["Red RED ink", "red pen", ""]);
        let texts = strings(&["", "", "ink, red."]);
        let matrix = matrix(3, &titles, &texts);
        let (red, ink): (f64, f64) = (1.0, 1.0 + (4.0f64 / 3.0).ln());
        let twice = (1.0 + 2.0f64.ln()) * red;
        let wanted = [
            vec![twice / twice.hypot(ink), ink / twice.hypot(ink)],
            vec![1.0, 0.0],
            vec![red / red.hypot(ink), ink / red.hypot(ink)],
        ];
        for (item, wanted) in wanted.iter().enumerate() {
            let mut found = [0.0; 2];
            let (word_part, ngram_part): (Vec<_>, Vec<_>) =
                matrix.row(item).partition(|&(column, _)| column < 2);
            for (column, weight) in word_part {
                found[column] = weight as f64;
            }
            for (found, wanted) in found.iter().zip(wanted) {
                assert!((found - wanted).abs() < 1e-6, "{item}: {found} {wanted}");
            }
            let square: f32 = ngram_part.iter().map(|(_, weight)| weight * weight).sum();
            assert!((square - 1.0).abs() < 1e-6);
        }
        // " re", "red", "ed " and the longer ones of red and ink; none of pen, which is in one item.
        assert_eq!(matrix.cols, 2 + 6 + 6);
    }

    #[test]
    fn an_item_without_text_is_an_empty_row() {
        let matrix = matrix(3, &strings(&["blue ink", "--", "blue"]), &[]);
        assert_eq!(matrix.row(1).count(), 0);
        assert!(matrix.row(0).count() > 0);
    }
}
