//! Raw files with one thing wrong, or with what only looks wrong.

#[path = "support/raw.rs"]
mod raw;

use std::fs;
use std::path::Path;

use raw::{Count, REVIEW_2014, REVIEW_2018, Raw, core, lines, log};
use vstar::data::import::import;

#[test]
fn bad_lines_are_refused_by_file_and_line() {
    let good = lines(&log(4), REVIEW_2014);
    let reviews = |line: &str| Raw::new().write("reviews.json.gz", good.clone() + "\n" + line);
    let k = core(1);
    reviews("{\"reviewerID\": \"1\", \"asin\": \"2\"}").refused(
        &k,
        &[
            "reviews.json.gz:702: ",
            "a review without \"unixReviewTime\"",
        ],
    );
    reviews("{\"reviewerID\": \"1\", \"asi").refused(&k, &["reviews.json.gz:702: ", "cut short"]);
    reviews("{\"reviewerID\": \"1\", \"asin\": \"2\", \"unixReviewTime\": \"soon\"}").refused(
        &k,
        &[
            "reviews.json.gz:702: ",
            "\"unixReviewTime\" is \"soon\", where a whole number",
        ],
    );
    reviews("{\"reviewerID\": null, \"asin\": \"2\", \"unixReviewTime\": 1}").refused(
        &k,
        &[
            "reviews.json.gz:702: ",
            "\"reviewerID\" is null, where a text",
        ],
    );

    let meta = |text: &[u8]| {
        Raw::new()
            .write("reviews.json", &good)
            .write("meta.json", text)
    };
    meta(b"{'asin': '0'}\n{'asin': '1', 'title': 'x\n")
        .refused(&k, &["meta.json:2: ", "column 26", "cut short"]);
    meta(b"{'asin': '0'}\n{'title': 'x'}\n").refused(&k, &["meta.json:2: ", "no \"asin\""]);
    meta(b"{\"asin\": \"0\"}\n\n{\"asin\": \"\xe9\"}\n")
        .refused(&k, &["meta.json:3: ", "not UTF-8"]);
    meta(b"").refused(&k, &["meta.json: the file is empty"]);

    let csv = |line| {
        let text = format!("userId,movieId,rating,timestamp\n1,2,3,4\n{line}\n");
        Raw::new().write("ratings.csv", text)
    };
    csv("1,2,3").refused(&k, &["ratings.csv:3: ", "3 fields"]);
    csv("1,2,3,noon").refused(&k, &["ratings.csv:3: ", "\"noon\""]);
    csv("1,5,3,4")
        .write("movies.csv", "movieId,title,genres\n1,x\n")
        .refused(&k, &["movies.csv:2: ", "2 fields"]);

    let whole = Raw::new().write("reviews.json.gz", &good);
    let bytes = fs::read(whole.path("reviews.json.gz")).unwrap();
    fs::write(whole.path("reviews.json.gz"), &bytes[..bytes.len() / 2]).unwrap();
    whole.refused(&k, &["reviews.json.gz:", "the gzip file is cut short"]);
    let mut damaged = bytes.clone();
    let last = damaged.len() - 8;
    damaged[last] ^= 1;
    fs::write(whole.path("reviews.json.gz"), &damaged).unwrap();
    whole.refused(&k, &["reviews.json.gz:", "damaged"]);
    // Two members in one file, as splitting tools leave, are one text.
    fs::write(whole.path("reviews.json.gz"), [&bytes[..], &bytes].concat()).unwrap();
    assert_eq!(whole.import(&k).unwrap().1.steps[0].interactions, 1400);
}

/// What Python prints that is no JSON, texts that were cut within a character, and two keys for the same.
#[test]
fn what_python_prints_is_read_wherever_it_is() {
    let log = log(7);
    let printed = REVIEW_2014.replace('"', "'");
    let odd = REVIEW_2018
        .replace("5.0", "NaN")
        .replace("true", r#"true, "x": "\ud83d""#);
    let meta = r#"{"asin": "0", "title": "A \ud83d\ude00", "price": NaN, "brand": "", "store": "S", "category": ["C"], "categories": []}
{"asin": "1", "title": "<span class='x'>B&eacute;</span>", "brand": "\n by\n   N", "description": ["\ud83d"]}
{"asin": "2", "title": "var aPageStart = (new Date()).getTime();"}
"#;
    let mut logs = Vec::new();
    for form in [REVIEW_2014, &printed, &odd] {
        let raw = Raw::new()
            .write("reviews.json.gz", lines(&log, form))
            .write("meta.json", meta);
        let (source, _) = raw.import(&core(5)).unwrap();
        assert_eq!(source.items.titles[..3], ["A 😀", "Bé", ""], "{form}");
        assert_eq!(source.items.texts[..3], ["S\nC", "by N\n\u{fffd}", ""]);
        logs.push(source.log);
    }
    assert!(logs.iter().all(|log| *log == logs[0]));
}

#[test]
fn files_people_have_that_are_not_read_are_called_what_they_are() {
    let refused = |path: &Path, wanted: &str| {
        let error = import(&[path.into()], &core(1), "", "", &mut Count::default()).unwrap_err();
        assert!(format!("{error:#}").contains(wanted), "{error:#}");
    };
    let raw = Raw::new()
        .write("ml-1m.zip", b"PK\x03\x04....")
        .write("ratings_Toy.csv", "A1,B1,5.0,1400000000\n")
        .write(
            "Toy.csv",
            "user_id,parent_asin,rating,timestamp\nA1,B1,5.0,1\n",
        );
    refused(&raw.path("ml-1m.zip"), "unpack it first");
    refused(&raw.path("ratings_Toy.csv"), "take the reviews");
    refused(&raw.path("Toy.csv"), "take the reviews");
    raw.refused(&core(1), &["no interactions here", "unpack it first"]);
    fs::write(raw.path("head.json.gz"), b"\x1f\x8bgarbage").unwrap();
    refused(&raw.path("head.json.gz"), "cut short");
    fs::write(raw.path("head.json.gz"), b"\x1f\x8bgarbage beyond a header").unwrap();
    refused(&raw.path("head.json.gz"), "damaged");
    #[cfg(unix)]
    refused(Path::new("/dev/null"), "no regular file");
}

#[test]
fn files_that_do_not_belong_are_refused() {
    Raw::new().refused(&core(1), &["no interactions here", "MovieLens ratings"]);
    Raw::new()
        .write("reviews.json", lines(&log(5), REVIEW_2014))
        .write("ratings.dat", "1::2::3::4\n")
        .refused(
            &core(1),
            &[
                "ratings.dat is MovieLens dat",
                "reviews.json is Amazon 2014",
            ],
        );
    let raw = Raw::new().write("notes.txt", "hello\n");
    let paths = [raw.path("notes.txt")];
    let error = import(&paths, &core(1), "", "", &mut Count::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("notes.txt:1: in no known layout"),
        "{error}"
    );
    Raw::new()
        .write("ratings.dat", "1::2::3::4\n")
        .refused(&core(1), &["1 interactions are too few"]);
}
