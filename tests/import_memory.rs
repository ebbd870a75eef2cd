//! What an import holds in memory. Alone in its program: it counts what every thread asks for.

#[path = "support/peak.rs"]
mod peak;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use vstar::data::Protocol;
use vstar::data::import::{Card, Options, Watch, Window, import};

#[global_allocator]
static ALLOCATOR: peak::Peak = peak::Peak;

struct Unwatched;

impl Watch for Unwatched {
    fn total(&mut self, _: u64) {}
    fn file(&mut self, _: &str) {}
    fn read(&mut self, _: u64) {}
}

/// The card of an import, and the bytes it held at most.
fn card_and_peak(folder: &Path, k_core: u32) -> (Card, usize) {
    let options = Options {
        k_core,
        window: Window::default(),
        split: Protocol::LeaveOneOut,
        seed: 1,
    };
    let (made, held) =
        peak::of(|| import(&[folder.into()], &options, "toy", "", &mut Unwatched).unwrap());
    (made.1, held)
}

const ONCE: usize = 60_000;
const KEEN: usize = 500;

#[test]
fn memory_is_that_of_what_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let create = |name: &str| BufWriter::new(File::create(folder.path().join(name)).unwrap());
    let words = "word ".repeat(200);
    // Users with one review each, and some with ten, of a few of many items; all reviews and descriptions are long.
    let mut reviews = create("reviews.json");
    for number in 0..ONCE + 10 * KEEN {
        let (user, item) = match number.checked_sub(ONCE) {
            None => (number, 1_000 + number % 5_000),
            Some(keen) => (ONCE + keen % KEEN, keen / KEEN),
        };
        writeln!(
            reviews,
            r#"{{"reviewerID": "reader {user}", "asin": "book {item}", "reviewText": "{words}", "unixReviewTime": 5}}"#
        )
        .unwrap();
    }
    let mut books = create("meta.json");
    for item in 0..6_000 {
        writeln!(books, "{{'asin': 'book {item}', 'description': '{words}'}}").unwrap();
    }
    drop((reviews, books));
    let bytes: u64 = (folder.path().read_dir().unwrap())
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!(bytes > 70 << 20);

    // Reading takes a few buffers; counting, at most 40 bytes an id, or 60 while a table grows.
    let (card, held) = card_and_peak(folder.path(), 5);
    assert_eq!((card.users, card.items), (KEEN, 10));
    let counting = 60 * (ONCE + KEEN + 5_010);
    assert!(held < counting + (1 << 20), "{held} bytes for {bytes}");

    // All are kept: what they take is seen.
    let (card, all) = card_and_peak(folder.path(), 1);
    assert_eq!(card.users, ONCE + KEEN);
    let kept = 16 * (ONCE + 10 * KEEN) + 1_000 * 5_000;
    assert!(all > held + kept, "{all} bytes and {held}");
}
