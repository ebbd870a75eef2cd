//! Raw files of every layout made into datasets.

#[path = "support/raw.rs"]
mod raw;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use raw::{REVIEW_2014, REVIEW_2018, REVIEW_2023, Raw, core, lines, log};
use vstar::data::import::{Options, Window};
use vstar::data::{LoadOptions, Log, Protocol, Sequence, Source, load_corpus, read};
use vstar::rng::{Rng, Stream};

/// The raw files of each layout: name of the layout, interactions, descriptions of items 0 and 1.
fn layouts(log: &[(usize, usize, i64)]) -> Vec<(&'static str, Raw)> {
    let movie = |title: &[u8]| {
        let mut line = b"0|".to_vec();
        line.extend(title);
        line.extend(b"|01-Jan-1995||http://x|0|1|0|0|0|1|0|0|0|0|0|0|0|0|0|0|0|0|0\n");
        line
    };
    let csv = "userId,movieId,rating,timestamp\n".to_owned() + &lines(log, "{u},{i},3.5,{t}");
    vec![
        (
            "Amazon 2014",
            Raw::new()
                .write("reviews_Toy_5.json.gz", lines(log, REVIEW_2014))
                .write(
                    "meta_Toy.json.gz",
                    "{'asin': '0', 'title': 'Tom &amp; \"J\\'s\"', 'price': None, 'categories': [['A', 'B']]}\n\
                     {'asin': '99', 'title': 'of no use'}\n\
                     {'asin': '1', 'brand': \"O'N\", 'description': 'of\\n it'}\n\
                     {'asin': '1', 'title': 'a second one'}\n",
                ),
        ),
        (
            "Amazon 2018",
            Raw::new()
                .write("Toy_5.json", lines(log, REVIEW_2018))
                .write(
                    "meta_Toy.json",
                    "{\"asin\": \"0\", \"title\": \"Tom &amp; \\\"J's\\\"\", \"category\": [\"A\", \"B\"]}\n\
                     {\"asin\": \"1\", \"brand\": \"O'N\", \"description\": [\"of\\n\", \"it\"], \"title\": null}\n",
                ),
        ),
        (
            "Amazon 2023",
            Raw::new()
                .write("Toy.jsonl.gz", lines(log, REVIEW_2023))
                .write(
                    "meta_Toy.jsonl.gz",
                    "{\"parent_asin\": \"0\", \"title\": \"Tom &amp; \\\"J's\\\"\", \"store\": null, \"categories\": [\"A\", \"B\"]}\n\
                     {\"parent_asin\": \"1\", \"store\": \"O'N\", \"features\": [\"of\"], \"description\": [\"it\"]}\n",
                ),
        ),
        (
            "MovieLens csv",
            Raw::new()
                .write("ratings.csv", csv)
                .write("movies.csv", "movieId,title,genres\n0,\"Tom & \"\"J's\"\"\",A|B\n1,,(no genres listed)\n")
                .write("tags.csv", "userId,movieId,tag,timestamp\n1,2,x,3\n"),
        ),
        (
            "MovieLens dat",
            Raw::new()
                .write("ratings.dat.gz", lines(log, "{u}::{i}::5::{t}"))
                .write("movies.dat", b"0::Tom & \"J's\" \xe9::A|B\n1::::\n")
                .write("users.dat", "1::F::1::10::48067\n"),
        ),
        (
            "MovieLens 100K",
            Raw::new()
                .write("u.data", lines(log, "{u}\t{i}\t3\t{t}"))
                .write("u.item", movie(b"Tom & \"J's\" \xe9"))
                .write("README", "read me"),
        ),
    ]
}

#[test]
fn every_layout_gives_the_same_interactions() {
    let log = log(0);
    let mut first: Option<Log> = None;
    for (layout, raw) in layouts(&log) {
        let (source, card) = raw.import(&core(5)).unwrap();
        assert_eq!(card.sources[0].layout, layout);
        let title = source.items.titles[0].trim_end_matches(" é");
        assert_eq!(title, "Tom & \"J's\"", "{layout}");
        let [text, other] = [0, 1].map(|item| &*source.items.texts[item]);
        match layout {
            "MovieLens 100K" => assert_eq!(text, "Action, Comedy"),
            _ => assert_eq!(text, "A, B", "{layout}"),
        }
        match layout {
            "Amazon 2014" | "Amazon 2018" => assert_eq!(other, "O'N\nof it"),
            "Amazon 2023" => assert_eq!(other, "O'N\nof\nit"),
            _ => assert_eq!(other, ""),
        }
        assert_eq!(source.items.titles[1], "", "{layout}");
        assert_eq!(card.items_without_title, card.items - 1);
        let described = if layout == "MovieLens 100K" { 1 } else { 2 };
        assert_eq!(card.items_without_metadata, card.items - described);
        assert_eq!(
            first.get_or_insert(source.log.clone()),
            &source.log,
            "{layout}"
        );
    }
    let (other, _) = layouts(&self::log(1))[0].1.import(&core(5)).unwrap();
    assert_ne!(first.unwrap(), other.log);
}

/// The k-core of the first interactions of each pair, by set operations.
fn reference(log: &[(usize, usize, i64)], k: usize) -> Vec<(usize, usize, i64)> {
    let mut rows = log.to_vec();
    rows.sort();
    rows.dedup_by_key(|row| (row.0, row.1));
    loop {
        let users = |user| rows.iter().filter(|row| row.0 == user).count();
        let items = |item| rows.iter().filter(|row| row.1 == item).count();
        let strong: Vec<_> = (rows.iter().copied())
            .filter(|row| users(row.0) >= k && items(row.1) >= k)
            .collect();
        if strong.len() == rows.len() {
            return rows;
        }
        rows = strong;
    }
}

/// What a source holds, by external ids.
fn rows(source: &Source) -> Vec<(usize, usize, i64)> {
    let Log::Sequences(sequences) = &source.log else {
        panic!("whole sequences");
    };
    let row = |s: &Sequence, at: usize| {
        let item = &source.items.names[s.items[at] as usize];
        let user = &source.users[s.user as usize];
        (user.parse().unwrap(), item.parse().unwrap(), s.times[at])
    };
    let mut rows: Vec<_> = (sequences.iter())
        .flat_map(|s| (0..s.items.len()).map(move |at| row(s, at)))
        .collect();
    rows.sort();
    rows
}

#[test]
fn what_is_left_is_the_k_core_of_the_firsts_in_the_window() {
    let log = log(2);
    let raw = || Raw::new().write("reviews.json", lines(&log, REVIEW_2014));
    let mut sizes = Vec::new();
    for k in [1, 3, 5, 7] {
        let (source, card) = raw().import(&core(k)).unwrap();
        assert_eq!(rows(&source), reference(&log, k as usize), "k {k}");
        assert_eq!(card.steps[0].interactions, 700);
        let last = card.steps.last().unwrap();
        assert_eq!(last.interactions as usize, rows(&source).len());
        assert_eq!((last.users, last.items), (card.users, card.items));
        sizes.push(card.interactions);
    }
    assert!(sizes.is_sorted_by(|a, b| a > b), "{sizes:?}");

    let day = |n: i64| 1_400_000_000 + 86_400 * n;
    let window = Window {
        from: Some(day(10)),
        until: Some(day(35)),
    };
    let (source, card) = raw().import(&Options { window, ..core(3) }).unwrap();
    let inside: Vec<_> = (log.iter().copied())
        .filter(|row| (day(10)..day(35)).contains(&row.2))
        .collect();
    assert_eq!(rows(&source), reference(&inside, 3));
    assert_eq!(card.steps[1].interactions as usize, inside.len());
    assert_eq!(card.times, [day(10), day(34)]);
    let window = Window {
        from: Some(day(60)),
        until: None,
    };
    raw().refused(
        &Options { window, ..core(1) },
        &["no interactions are left of 700"],
    );
    raw().refused(&core(40), &["lower --k-core"]);
}

#[test]
fn the_order_of_a_file_does_not_matter_but_the_seed_does() {
    let log = log(3);
    let mut shuffled = log.clone();
    Rng::new(1, Stream::Test, 0, 0).shuffle(&mut shuffled);
    let import = |log: &[_], seed| {
        let raw = Raw::new().write("reviews.json", lines(log, REVIEW_2014));
        raw.import(&Options { seed, ..core(3) }).unwrap().0
    };
    let source = import(&log, 7);
    assert_eq!(import(&shuffled, 7).log, source.log);
    assert_eq!(import(&shuffled, 7).items.names, source.items.names);
    let other = import(&log, 8);
    assert_ne!(other.log, source.log);
    assert_eq!(rows(&other), rows(&source));
}

fn vstar(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vstar"));
    command.args(arguments).output().unwrap()
}

#[track_caller]
fn success(arguments: &[&str]) -> String {
    let output = vstar(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn failure(arguments: &[&str]) -> String {
    let output = vstar(arguments);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    message.lines().last().unwrap_or_default().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_command_makes_a_folder_with_a_card_that_is_read_again_but_not_trained_on() {
    let raw = Raw::new()
        .write("Toy.jsonl.gz", lines(&log(6), REVIEW_2023))
        .write(
            "meta_Toy.jsonl",
            "{\"parent_asin\": \"3\", \"title\": \"Three\"}\n",
        );
    let [toy, again, time] = ["toy", "again", "time"].map(|name| raw.path(name));
    let printed = success(&["data", "import", text(raw.0.path()), "--out", text(&toy)]);
    assert!(printed.contains("see card.md"), "{printed}");
    let card: serde_json::Value =
        serde_json::from_slice(&fs::read(toy.join("card.json")).unwrap()).unwrap();
    let shown = fs::read_to_string(toy.join("card.md")).unwrap();
    for part in [
        "# toy\n",
        "LICENCE: fill in",
        "    vstar data import ",
        "| Toy.jsonl.gz | ",
        " | Amazon 2023 |",
        "| read | 60 | ",
        "| 5-core, round 1 | ",
        "- times: 2014-05-13 to ",
        &format!("- items: {}\n", card["items"]),
    ] {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
    let source = read(&toy).unwrap();
    assert_eq!(rows(&source), reference(&log(6), 5));
    let three = source.items.names.iter().position(|name| name == "3");
    assert_eq!(source.items.titles[three.unwrap()], "Three");

    let message = failure(&[
        "train",
        "--data",
        text(&toy),
        "--out",
        text(&raw.path("run")),
    ]);
    assert!(message.contains("no semantic IDs"), "{message}");
    assert!(message.contains("`vstar sid build`"), "{message}");
    assert!(!raw.path("run").exists());

    // Our own format is a source too; nothing is left to filter, so the same comes out.
    success(&["data", "import", text(&toy), "--out", text(&again)]);
    for file in ["items.jsonl", "interactions.jsonl"] {
        let [was, is] = [&toy, &again].map(|folder| fs::read(folder.join(file)).unwrap());
        assert_eq!(was, is, "{file}");
    }
    // SIDs may be made of interactions that another split tests.
    let [sids, without] = ["sids", "without"].map(|name| raw.path(name));
    let build = ["sid", "build", "--data", text(&toy), "--method", "random"];
    success(&[&build[..], &["--device", "cpu", "--out", text(&sids)]].concat());
    success(&["data", "import", text(&sids), "--out", text(&without)]);
    let [was, is] = [&toy, &without].map(|folder| fs::read(folder.join("items.jsonl")).unwrap());
    assert_eq!(was, is);
    let reviews = raw.path("Toy.jsonl.gz");
    let both = ["data", "import", text(&toy), text(&reviews)];
    let message = failure(&[&both[..], &["--out", text(&raw.path("both"))]].concat());
    assert!(message.contains("import it by itself"), "{message}");

    let narrower = ["--k-core", "7", "--split", "time", "--out", text(&time)];
    success(&[&["data", "import", text(&toy)][..], &narrower].concat());
    let corpus = load_corpus(Some(&time), LoadOptions::default()).unwrap();
    assert_eq!(corpus.protocol, Protocol::TimeSplit);
    assert!(
        corpus
            .test
            .iter()
            .all(|example| example.history.len() <= 10)
    );
    let message = failure(&["data", "import", text(&time), "--out", text(&raw.path("x"))]);
    assert!(message.contains("has a time split already"), "{message}");
    fs::remove_file(time.join("valid.jsonl")).unwrap();
    fs::remove_file(time.join("test.jsonl")).unwrap();
    let untimed = fs::read_to_string(time.join("interactions.jsonl")).unwrap();
    let untimed: String = (untimed.lines())
        .map(|line| line.split(",\"times\"").next().unwrap().to_owned() + "}\n")
        .collect();
    fs::write(time.join("interactions.jsonl"), untimed).unwrap();
    let message = failure(&["data", "import", text(&time), "--out", text(&raw.path("x"))]);
    assert!(message.contains("has no times"), "{message}");

    let message = failure(&["data", "import", text(raw.0.path()), "--out", text(&toy)]);
    assert!(message.contains("is there already"), "{message}");
    let nothing = raw.path("nothing");
    let arguments = ["data", "import", text(&reviews), "--k-core", "99"];
    failure(&[&arguments[..], &["--out", text(&nothing)]].concat());
    assert!(!nothing.exists() && !raw.path(".nothing.partial").exists());
}
