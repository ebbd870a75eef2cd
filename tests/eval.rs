//! Evaluation against hand-computed cases. (The bootstrap's own tests are beside it.)

use serde_json::{Map, Value, json};
use vstar::eval::bootstrap::Interval;
use vstar::eval::metrics::{buckets, coverage, cutoffs, gini};
use vstar::eval::*;
use vstar::rng::{Rng, Stream};

const LEVELS: usize = 3;
const CODES: [u32; 18] = [0, 0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 1, 1, 1, 2, 0, 0];
const ITEMS: [u32; 6] = [1, 2, 1, 4, 1, 1];
const POPULARITY: [u64; 6] = [6, 3, 2, 1, 0, 0];

fn catalog() -> SidInfo<'static> {
    SidInfo {
        levels: LEVELS,
        codes: &CODES,
        items: &ITEMS,
        popularity: &POPULARITY,
        embeddings: None,
    }
}

type User = (&'static [u32], u32, f32);

/// A hit on a collision at rank 0; a hit on a bigger collision at rank 2, behind an invalid entry; a
/// short list that misses; an empty list for a target without worth.
const USERS: [User; 4] = [
    (&[1, 0, 2], 1, 2.0),
    (&[0, INVALID, 3, 1, 2], 3, 1.0),
    (&[3, 0], 4, 5.0),
    (&[], 0, 0.0),
];

fn evaluate(sids: SidInfo<'_>, beam: usize, users: &[User]) -> Evaluation {
    let mut evaluator = Evaluator::new(sids, beam).unwrap();
    for &(ranked, target, worth) in users {
        evaluator.add(ranked, target, worth).unwrap();
    }
    evaluator.finish().unwrap()
}

fn report(users: &[User]) -> Report {
    Report::new(
        "time-split",
        &evaluate(catalog(), 5, users),
        &Bootstrap::new(1),
    )
}

#[track_caller]
fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-12, "{a} against {b}");
}

#[test]
fn every_figure_of_the_hand_computed_case() {
    let report = report(&USERS);
    for (key, expected) in [
        ("hr@1", 1.0 / 4.0),
        ("hr@3", 2.0 / 4.0),
        ("hr@5", 2.0 / 4.0),
        ("ndcg@1", 1.0 / 4.0),
        ("ndcg@3", (1.0 + 0.5) / 4.0),
        ("value_hr@1", 2.0 / 8.0),
        ("value_hr@3", 3.0 / 8.0),
        ("value_ndcg@3", (2.0 + 0.5) / 8.0),
        ("item/hr@1", 0.5 / 4.0),
        ("item/hr@3", (0.5 + 0.25) / 4.0),
        ("item/ndcg@3", (0.5 + 0.5 * 0.25) / 4.0),
        ("item/value_hr@3", (2.0 * 0.5 + 0.25) / 8.0),
        ("item/value_ndcg@3", (2.0 * 0.5 + 0.5 * 0.25) / 8.0),
        ("prefix_hit@5/1", 3.0 / 4.0),
        ("prefix_hit@5/2", 2.0 / 4.0),
        ("prefix_hit@5/3", 2.0 / 4.0),
        // Pairs share (2 + 1 + 1) / 3, (2 + 1 + 1) / 6 and 0 / 1 codes of 3; the empty list has no pair.
        ("ild@5", (5.0 / 9.0 + 7.0 / 9.0 + 1.0) / 3.0),
        ("head/hr@5", 0.0),
        ("torso/hr@5", 1.0),
        ("tail/hr@5", 0.5),
        ("tail/ndcg@5", 0.25),
    ] {
        let figure = report.figure(key).unwrap_or_else(|| panic!("no {key}"));
        assert!(
            (figure.mean - expected).abs() < 1e-12,
            "{key}: {figure:?}, not {expected}"
        );
        let Interval { lo, hi } = figure.interval.unwrap();
        assert!(lo <= figure.mean && figure.mean <= hi, "{key}: {figure:?}");
    }
    assert_eq!(report.invalid, 1);
    assert_eq!(report.bucket_users, [1, 1, 2]);
    close(report.coverage, 4.0 / 6.0);
    // Exposure 3 2 2 2 0 0.
    close(report.gini, 21.0 / 54.0);
    assert_eq!(
        report.figure("hr@10"),
        None,
        "a beam of 5 says nothing about 10"
    );
}

/// Every per-user quantity that a figure is made of moves that figure.
#[test]
fn a_changed_list_changes_the_figures() {
    let base = report(&USERS);
    let changed = |user: usize, ranked: &'static [u32], keys: &[&str]| {
        let mut users = USERS;
        users[user].0 = ranked;
        let other = report(&users);
        for key in keys {
            assert_ne!(
                base.figure(key).unwrap().mean,
                other.figure(key).unwrap().mean,
                "user {user}, {key}"
            );
        }
        other
    };
    changed(
        0,
        &[0, 1, 2],
        &["hr@1", "ndcg@3", "value_ndcg@3", "item/ndcg@5"],
    );
    // An invalid entry takes up its rank: without it the target moves up.
    let cleaned = changed(1, &[0, 3, 1, 2], &["ndcg@3", "tail/ndcg@5"]);
    assert_eq!(cleaned.invalid, 0);
    close(cleaned.figure("hr@3").unwrap().mean, 0.5);
    changed(2, &[5, 0], &["prefix_hit@5/1"]);
    changed(3, &[0, 1], &["hr@1", "head/hr@5", "ild@5"]);
}

#[test]
fn whole_list_metrics_stop_at_ten_and_cutoffs_at_the_beam() {
    assert_eq!(cutoffs(50), [1, 3, 5, 10, 20, 50]);
    assert_eq!(cutoffs(20), [1, 3, 5, 10, 20]);
    assert_eq!(cutoffs(49), [1, 3, 5, 10, 20]);
    assert_eq!(cutoffs(8), [1, 3, 5, 8]);
    assert_eq!(cutoffs(1), [1]);

    let sids = 30;
    let codes: Vec<u32> = (0..sids).collect();
    let (items, popularity) = (vec![1; 30], vec![1; 30]);
    let wide = SidInfo {
        levels: 1,
        codes: &codes,
        items: &items,
        popularity: &popularity,
        embeddings: None,
    };
    let mut evaluator = Evaluator::new(wide, 20).unwrap();
    let ranked: Vec<u32> = (0..20).collect();
    evaluator.add(&ranked, 10, 1.0).unwrap();
    let done = evaluator.finish().unwrap();
    let report = Report::new("leave-one-out", &done, &Bootstrap::new(0));
    let mean = |key| report.figure(key).unwrap().mean;
    assert_eq!((mean("hr@10"), mean("hr@20")), (0.0, 1.0));
    close(mean("ndcg@20"), 1.0 / 12f64.log2());
    assert_eq!(
        mean("prefix_hit@10/1"),
        0.0,
        "rank 10 is outside the top ten"
    );
    assert_eq!(report.coverage, 10.0 / 30.0);
    assert_eq!(done.exposure.iter().sum::<u64>(), 10);
}

#[test]
#[should_panic(expected = "beyond the beam")]
fn a_cutoff_beyond_the_beam_is_not_answered() {
    evaluate(catalog(), 5, &USERS)
        .per_user
        .ranking(Gain::Hr, Credit::Sid, 10);
}

#[test]
fn cosine_distance_equals_the_mean_over_pairs() {
    let dim = 7;
    let mut rng = Rng::new(3, Stream::Test, 0, 0);
    let mut rows: Vec<f32> = (0..6 * dim).map(|_| rng.normal()).collect();
    rows[2 * dim..3 * dim].fill(0.0);
    let sids = SidInfo {
        embeddings: Some(Embeddings { dim, rows: &rows }),
        ..catalog()
    };
    let list = [5, 2, 0, 3, 1];
    let mut evaluator = Evaluator::new(sids, 5).unwrap();
    evaluator.add(&list, 0, 1.0).unwrap();
    let done = evaluator.finish().unwrap();

    let row = |s: u32| {
        rows[s as usize * dim..][..dim]
            .iter()
            .map(|&x| f64::from(x))
    };
    let dot = |a, b| row(a).zip(row(b)).map(|(x, y)| x * y).sum::<f64>();
    let mut expected = 0.0;
    for (i, &a) in list.iter().enumerate() {
        for &b in &list[i + 1..] {
            let norms = (dot(a, a) * dot(b, b)).sqrt();
            let cosine = if norms > 0.0 { dot(a, b) / norms } else { 0.0 };
            expected += (1.0 - cosine) / 10.0;
        }
    }
    close(done.per_user.distance[0].unwrap(), expected);
    assert_eq!(done.distance, Distance::Cosine);
    let by_prefix = evaluate(catalog(), 5, &[(&[5, 2, 0, 3, 1], 0, 1.0)]);
    assert_ne!(done.per_user.distance, by_prefix.per_user.distance);
}

#[test]
fn buckets_are_thirds_of_interactions() {
    use Bucket::*;
    assert_eq!(
        buckets(&POPULARITY),
        [Head, Torso, Tail, Tail, Tail, Tail],
        "the head's SID takes half of all"
    );
    assert_eq!(
        buckets(&[1, 1, 1, 1, 1, 1]),
        [Head, Head, Torso, Torso, Tail, Tail]
    );
    assert_eq!(buckets(&[1, 9, 0]), [Tail, Head, Tail]);
    assert_eq!(
        buckets(&[0, 0]),
        [Tail, Tail],
        "nothing seen, nothing popular"
    );
}

#[test]
fn coverage_and_gini_at_their_extremes() {
    close(coverage(&[0, 3, 0, 1]), 0.5);
    close(gini(&[4, 4, 4]), 0.0);
    close(gini(&[0, 0, 0, 9]), 0.75);
    close(gini(&[0, 0]), 0.0);
    assert!(gini(&[1, 2, 3]) < gini(&[1, 1, 4]));
}

#[test]
fn popularity_baseline_breaks_ties_by_number() {
    let popularity = [2, 7, 0, 7, 2];
    assert_eq!(popularity_ranking(&popularity, 3), [1, 3, 0]);
    assert_eq!(popularity_ranking(&popularity, 9), [1, 3, 0, 4, 2]);
}

#[test]
fn bad_input_is_refused_in_one_line() {
    let refused = |ranked: &[u32], target, worth| {
        let mut evaluator = Evaluator::new(catalog(), 3).unwrap();
        evaluator.add(&[0], 0, 1.0).unwrap();
        let error = evaluator.add(ranked, target, worth).unwrap_err();
        let text = error.to_string();
        assert!(!text.contains('\n') && error.chain().count() == 1);
        assert!(text.starts_with("evaluation: test user 1: "), "{text}");
        // The refused user left nothing behind.
        let done = evaluator.finish().unwrap();
        assert_eq!(done.per_user.users(), 1);
        assert_eq!(done.exposure.iter().sum::<u64>(), 1);
        text
    };
    assert!(refused(&[0, 1, 0], 0, 1.0).contains("SID 0 is ranked twice"));
    assert!(refused(&[0, 6], 0, 1.0).contains("SID 6 is ranked, of a catalog of 6"));
    assert!(refused(&[0, 1, 2, 3], 0, 1.0).contains("more than the beam 3"));
    assert!(refused(&[0], 6, 1.0).contains("the target is SID 6"));
    assert!(refused(&[0], 0, f32::NAN).contains("worth is NaN"));
    assert!(refused(&[0], 0, -1.0).contains("worth is -1"));

    let bad = |change: fn(&mut SidInfo<'static>)| {
        let mut sids = catalog();
        change(&mut sids);
        Evaluator::new(sids, 3).err().unwrap().to_string()
    };
    assert!(bad(|s| s.codes = &CODES[1..]).contains("codes has 17 entries; 6 SIDs need 18"));
    assert!(bad(|s| s.popularity = &[1]).contains("popularity has 1"));
    assert!(bad(|s| s.items = &[1, 1, 0, 1, 1, 1]).contains("SID 2 has no items"));
    let embed = |dim, rows| Some(Embeddings { dim, rows });
    let sids = |embeddings| SidInfo {
        embeddings,
        ..catalog()
    };
    let error = |e| Evaluator::new(sids(e), 3).err().unwrap().to_string();
    assert!(error(embed(1, &[1.0; 5])).contains("embeddings has 5"));
    assert!(error(embed(0, &[])).contains("dimension 0"));
    let infinite = [1.0, 1.0, 1.0, f32::INFINITY, 1.0, 1.0];
    assert!(error(embed(1, &infinite)).contains("SID 3 is not finite"));
    assert!(Evaluator::new(catalog(), 0).is_err());
    let nobody = Evaluator::new(catalog(), 3).unwrap().finish();
    assert!(nobody.unwrap_err().to_string().contains("no test users"));
    // Several invalid entries are no repetition.
    let twice = evaluate(catalog(), 3, &[(&[INVALID, INVALID, 0], 0, 1.0)]);
    assert_eq!(twice.per_user.invalid_count(), 2);
    assert_eq!(twice.per_user.rank, [Some(2)]);
}

#[test]
fn the_report_is_flat_json_with_null_for_what_nobody_has() {
    // Only the tail has a target, and it is worth nothing.
    let report = report(&[(&[0, 1], 4, 0.0)]);
    let mut object = Map::new();
    object.insert("seed".to_string(), json!(7));
    object.insert("users".to_string(), json!("overwritten"));
    report.merge_into(&mut object).unwrap();
    assert_eq!(object["seed"], 7);
    assert_eq!(object["users"], 1);
    assert_eq!(object["protocol"], "time-split");
    assert_eq!(object["hr@5"], json!({"mean": 0.0, "lo": 0.0, "hi": 0.0}));
    assert_eq!(object["value_hr@5"], Value::Null);
    assert_eq!(object["head/hr@5"], Value::Null);
    assert_eq!(object["head/users"], 0);
    assert_eq!(object["tail/users"], 1);
    assert_eq!(object["ild_distance"], "prefix");
    assert_eq!(object["coverage@5"], json!(2.0 / 6.0));
    assert!(object.contains_key("gini@5") && object.contains_key("invalid"));
    assert!(object.contains_key("item/value_ndcg@3") && object.contains_key("prefix_hit@5/3"));
}

#[test]
fn the_table_is_aligned_markdown_of_at_most_120_columns() {
    let (a, b) = (report(&USERS), report(&[USERS[0]; 4]));
    let row = |name, report, decode_tokens| Row {
        name,
        report,
        decode_tokens,
    };
    let text = table(&[
        row("popularity", &a, 0),
        row("V-STAR (VED)", &b, 12_345_678),
    ])
    .unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0],
        "| system       |              HR@5 |            NDCG@5 |        value HR@5 | cov@5 | ILD@5 \
         | invalid | decode tokens |"
    );
    for line in &lines[..4] {
        assert_eq!(line.len(), lines[0].len());
        assert_eq!(line.matches('|').count(), 9);
    }
    assert!(lines[0].len() <= 120);
    assert!(lines[2].contains("| .5000 .0000-1.000 |"), "{text}");
    assert!(lines[3].contains("| 1.000 1.000-1.000 |"), "{text}");
    assert!(
        lines[3].ends_with("| .5000 | .5556 |       0 |    12,345,678 |"),
        "{text}"
    );
    assert!(lines[5].contains("over 4 test examples, time-split"));

    let fewer = report(&USERS[..3]);
    let error = table(&[row("a", &a, 0), row("b", &fewer, 0)]).unwrap_err();
    assert!(error.to_string().contains("evaluate them alike"));
}

#[test]
fn systems_are_compared_on_the_same_users_only() {
    let sids = catalog();
    let better = [(&[1u32][..], 1, 2.0), (&[3], 3, 1.0)];
    let worse = [(&[0u32, 1][..], 1, 2.0), (&[3], 3, 1.0)];
    let swapped = [better[1], better[0]];
    let [better, worse, swapped] =
        [better, worse, swapped].map(|users| evaluate(sids, 5, &users).per_user);
    let bootstrap = Bootstrap::new(2);
    let ndcg = |p: &PerUser| p.ranking(Gain::Ndcg, Credit::Sid, 5);
    let difference = compare(&bootstrap, &better, &worse, ndcg).unwrap().unwrap();
    close(difference.absolute.mean, (1.0 - 1.0 / 3f64.log2()) / 2.0);
    let error = compare(&bootstrap, &better, &swapped, ndcg).unwrap_err();
    assert!(error.to_string().contains("different users"));
}
