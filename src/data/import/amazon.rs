//! Amazon reviews and item metadata, as published in 2014, 2018 and 2023: one object a line, JSON but for the metadata of
//! 2014, whose lines are printed Python dicts.

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
    let json = serde_json::from_str::<HashMap<Cow<str>, IgnoredAny>>(line);
    let is_json = json.is_ok();
    let keys: HashSet<String> = match json {
        Ok(entries) => entries.into_keys().map(Cow::into_owned).collect(),
        Err(_) => match python::parse(line).ok()? {
            Value::Object(entries) => entries.into_iter().map(|(key, _)| key).collect(),
            _ => return None,
        },
    };
    let has = |key| keys.contains(key);
    let layout = match (has("parent_asin"), has("asin"), is_json) {
        (true, _, true) => Layout::Amazon2023,
        // The reviews of the two differ only in what is not read; `verified` came later.
        (false, true, true) if has("reviewerID") && !has("verified") => Layout::Amazon2014,
        (false, true, true) => Layout::Amazon2018,
        (false, true, false) => Layout::Amazon2014,
        _ => return None,
    };
    let is_review = is_json && (has("reviewerID") || has("user_id"));
    Some((
        layout,
        match is_review {
            true => Kind::Interactions,
            false => Kind::Descriptions,
        },
    ))
}

/// The review in a line.
pub(super) fn review(line: &str, layout: Layout) -> Result<Review<'_>, String> {
    let review = match layout {
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
    review.map_err(|error| json_message(&error))
}

/// The item that a line of metadata is about, and what it says.
pub(super) fn description(line: &str, layout: Layout) -> Result<(String, Described), String> {
    let value = match layout {
        Layout::Amazon2014 => python::parse(line)?,
        _ => serde_json::from_str(line).map_err(|error| json_message(&error))?,
    };
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
