//! Dates of the Gregorian calendar, in UTC.
//!
//! Years are counted from March, so that the leap day is the last one; a cycle is 400 years of 146,097 days. Day 719,468
//! after 0000-03-01 is 1970-01-01.

const CYCLE: i64 = 146_097;
const EPOCH: i64 = 719_468;
const DAY: i64 = 86_400;

/// Year, month and day of a number of seconds since 1970.
pub fn date(seconds: i64) -> [i64; 3] {
    let days = seconds.div_euclid(DAY) + EPOCH;
    let (cycle, day_of_cycle) = (days.div_euclid(CYCLE), days.rem_euclid(CYCLE));
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524
        - day_of_cycle / 146_096)
        / 365;
    let day_of_year = day_of_cycle - days_before(year_of_cycle);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    [
        400 * cycle + year_of_cycle + i64::from(month <= 2),
        month,
        day,
    ]
}

/// Seconds from 1970 to the beginning of a day written `YYYY-MM-DD`; none for anything else.
pub fn parse(text: &str) -> Option<i64> {
    let numbers: Vec<&str> = text.split('-').collect();
    let [year, month, day] = numbers[..] else {
        return None;
    };
    let digits = |text: &str, count: usize| {
        let all = text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
        all.then(|| text.parse::<i64>().ok()).flatten()
    };
    let wanted = [digits(year, 4)?, digits(month, 2)?, digits(day, 2)?];
    let [year, month, day] = wanted;
    let year_from_march = year - i64::from(month <= 2);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = year_from_march.div_euclid(400) * CYCLE
        + days_before(year_from_march.rem_euclid(400))
        + day_of_year
        - EPOCH;
    // A day that does not exist is another one.
    (date(days * DAY) == wanted).then_some(days * DAY)
}

/// Days of a cycle before the year `year` of it.
fn days_before(year: i64) -> i64 {
    365 * year + year / 4 - year / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_seconds_are_each_others_inverse() {
        // Reference values: `date -u -d YYYY-MM-DD +%s`.
        for (text, seconds) in [
            ("1970-01-01", 0),
            ("1969-12-31", -86_400),
            ("2000-02-29", 951_782_400),
            ("2016-10-01", 1_475_280_000),
            ("2100-03-01", 4_107_542_400),
        ] {
            assert_eq!(parse(text), Some(seconds), "{text}");
            assert_eq!(parse(text).map(date), Some(date(seconds + 86_399)));
        }
        for day in (-800_000..800_000).step_by(97) {
            let [year, month, date] = date(day * DAY);
            if (0..=9_999).contains(&year) {
                let text = format!("{year:04}-{month:02}-{date:02}");
                assert_eq!(parse(&text), Some(day * DAY), "{text}");
            }
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in [
            "2023-02-29",
            "2100-02-29",
            "2020-13-01",
            "2020-00-10",
            "2020-1-1",
            "2020",
            "",
            "2020-01-01x",
            "-001-01-01",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
