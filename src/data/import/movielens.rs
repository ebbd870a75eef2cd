//! MovieLens: ratings and movies, in the three layouts it has had.

use serde_json::json;

use super::super::described::Described;
use super::layout::{Kind, Layout};

const RATINGS_HEADER: &str = "userId,movieId,rating,timestamp";
const MOVIES_HEADER: &str = "movieId,title,genres";

/// The genres of 100K, in the order of its flags.
const GENRES: [&str; 19] = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
];

/// What a file of this name (without `.gz`) and first line is, if it is one of these.
pub(super) fn recognise(name: &str, line: &str) -> Option<(Layout, Kind)> {
    Some(match (name, line) {
        (_, RATINGS_HEADER) => (Layout::MovieLensCsv, Kind::Interactions),
        (_, MOVIES_HEADER) => (Layout::MovieLensCsv, Kind::Descriptions),
        ("ratings.dat", _) => (Layout::MovieLensDat, Kind::Interactions),
        ("movies.dat", _) => (Layout::MovieLensDat, Kind::Descriptions),
        ("u.data", _) => (Layout::MovieLens100k, Kind::Interactions),
        ("u.item", _) => (Layout::MovieLens100k, Kind::Descriptions),
        _ => return None,
    })
}

/// User, item and unix seconds of a rating.
pub(super) fn rating(line: &str, layout: Layout) -> Result<(&str, &str, i64), String> {
    let separator = match layout {
        Layout::MovieLensDat => "::",
        Layout::MovieLens100k => "\t",
        _ => ",",
    };
    let fields: Vec<&str> = line.split(separator).collect();
    let [user, item, _, time] = fields[..] else {
        return Err(format!(
            "{} fields separated by {separator:?} where user, item, rating and time were expected",
            fields.len()
        ));
    };
    match time.parse() {
        Ok(seconds) => Ok((user, item, seconds)),
        Err(_) => Err(format!("the time {time:?} is no number of seconds")),
    }
}

/// A movie and what is written about it: its title, and its genres as categories.
pub(super) fn description(line: &str, layout: Layout) -> Result<(String, Described), String> {
    let fields: Vec<String> = match layout {
        Layout::MovieLensDat => line.split("::").map(String::from).collect(),
        Layout::MovieLens100k => line.split('|').map(String::from).collect(),
        _ => {
            let mut record = csv::StringRecord::new();
            csv::ReaderBuilder::new()
                .has_headers(false)
                .from_reader(line.as_bytes())
                .read_record(&mut record)
                .map_err(|error| error.to_string())?;
            record.iter().map(String::from).collect()
        }
    };
    let genres: Vec<&str> = match (layout, &fields[..]) {
        (Layout::MovieLens100k, [_, _, _, _, _, flags @ ..]) if flags.len() == GENRES.len() => {
            (GENRES.into_iter().zip(flags))
                .filter(|(_, flag)| *flag == "1")
                .map(|(genre, _)| genre)
                .collect()
        }
        (Layout::MovieLensDat | Layout::MovieLensCsv, [_, _, genres]) => {
            let listed = genres.split('|');
            listed
                .filter(|name| *name != "(no genres listed)")
                .collect()
        }
        _ => {
            return Err(format!(
                "{} fields, which is not a movie with title and genres",
                fields.len()
            ));
        }
    };
    let described = json!({"title": fields[1], "genres": genres});
    let described = serde_json::from_value(described).map_err(|error| error.to_string())?;
    Ok((fields[0].clone(), described))
}
