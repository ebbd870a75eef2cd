//! Amazon reviews and item metadata, as published in 2014, 2018 and 2023: one object a line, JSON but for the metadata of
//! 2014, whose lines are printed Python dicts. Either may be in any of them: who keeps a part of a dump does it in Python.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::super::described::Described;
use super::super::read::json_message;
use super::layout::{Kind, Layout};
use super::python;

/// A review, as far as it is of use here.
pub(super) struct Review<'a> {
    pub user: Cow<'a, str>,
    pub item: Cow<'a, str>,
    /// Unix seconds.
    pub time: i64,
}

/// Reviews of 2014 and 2018.
#[derive(Deserialize)]
struct InSeconds<'a> {
    #[serde(rename = "reviewerID", borrow)]
    user: Cow<'a, str>,
    #[serde(rename = "asin", borrow)]
    item: Cow<'a, str>,
    #[serde(rename = "unixReviewTime")]
    seconds: i64,
}

/// Reviews of 2023.
#[derive(Deserialize)]
struct InMilliseconds<'a> {
    #[serde(rename = "user_id", borrow)]
    user: Cow<'a, str>,
    #[serde(rename = "parent_asin", borrow)]
    item: Cow<'a, str>,
    #[serde(rename = "timestamp")]
    milliseconds: i64,
}

/// What a file with this first line is, if it is one of these.
pub(super) fn recognise(line: &str) -> Option<(Layout, Kind)> {
    // The values are skipped: a line may be long.
    let keys: HashSet<String> = match serde_json::from_str::<HashMap<Cow<str>, IgnoredAny>>(line) {
        Ok(entries) => entries.into_keys().map(Cow::into_owned).collect(),
        Err(_) => match python::parse(line).ok()? {
            Value::Object(entries) => entries.into_iter().map(|(key, _)| key).collect(),
            _ => return None,
        },
    };
    let has = |key| keys.contains(key);
    let printed = line.trim_start().starts_with("{'") || line.trim_start().starts_with("{u'");
    let is_review = has("reviewerID") || has("user_id");
    let layout = match (has("parent_asin"), has("asin")) {
        (true, _) => Layout::Amazon2023,
        // The reviews of the two differ only in what is not read; `verified` came later.
        (false, true) if printed || has("reviewerID") && !has("verified") => Layout::Amazon2014,
        (false, true) => Layout::Amazon2018,
        _ => return None,
    };
    Some((
        layout,
        match is_review {
            true => Kind::Interactions,
            false => Kind::Descriptions,
        },
    ))
}

/// The object in a line: JSON, or what Python prints, which may be a dict, or JSON but for a `NaN` or half a character.
fn record(line: &str) -> Result<Value, String> {
    serde_json::from_str(line).or_else(|_| python::parse(line))
}

/// The review in a line.
pub(super) fn review(line: &str, layout: Layout) -> Result<Review<'_>, String> {
    let plain = match layout {
        Layout::Amazon2023 => serde_json::from_str(line).map(|review: InMilliseconds| Review {
            user: review.user,
            item: review.item,
            time: review.milliseconds.div_euclid(1000),
        }),
        _ => serde_json::from_str(line).map(|review: InSeconds| Review {
            user: review.user,
            item: review.item,
            time: review.seconds,
        }),
    };
    plain.or_else(|_| unusual_review(line, layout))
}

/// The review in a line that is not plain JSON, or what it lacks.
fn unusual_review(line: &str, layout: Layout) -> Result<Review<'static>, String> {
    let record = record(line)?;
    let ([user, item, time], unit) = match layout {
        Layout::Amazon2023 => (["user_id", "parent_asin", "timestamp"], 1000),
        _ => (["reviewerID", "asin", "unixReviewTime"], 1),
    };
    let wrong = |key: &str, wanted: &str| match record.get(key) {
        None => format!("a review without {key:?}"),
        Some(found) => format!("{key:?} is {found}, where {wanted} was expected"),
    };
    let id = |key| match record.get(key).and_then(Value::as_str) {
        Some(id) => Ok(Cow::Owned(id.to_owned())),
        None => Err(wrong(key, "a text")),
    };
    let instant = record.get(time).and_then(Value::as_i64);
    Ok(Review {
        user: id(user)?,
        item: id(item)?,
        time: instant
            .ok_or_else(|| wrong(time, "a whole number"))?
            .div_euclid(unit),
    })
}

/// The item that a line of metadata is about, and what it says.
pub(super) fn description(line: &str, layout: Layout) -> Result<(String, Described), String> {
    let value = record(line)?;
    let key = match layout {
        Layout::Amazon2023 => "parent_asin",
        _ => "asin",
    };
    let Some(Value::String(item)) = value.get(key) else {
        return Err(format!("no {key:?}, which names the item"));
    };
    let item = item.clone();
    let described = serde_json::from_value(value).map_err(|error| json_message(&error))?;
    Ok((item, described))
}
