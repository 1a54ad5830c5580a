//! systemd's calendar expressions, far enough to catch a mistake on a machine without systemd.

use std::fmt;

use super::{Text, at_most, only, wanted};

text_type!(
    /// A systemd calendar expression (systemd.time(7), "Calendar Events"); its shape is checked here, its
    /// meaning by `systemd-analyze calendar` where that can be had.
    Calendar
);

/// systemd.time(7): what stands for a whole expression, and may be followed by a time zone.
pub(crate) const WORDS: [&str; 10] = [
    "minutely",
    "hourly",
    "daily",
    "weekly",
    "monthly",
    "quarterly",
    "semiannually",
    "biannually",
    "yearly",
    "annually",
];

const DAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

impl Text for Calendar {
    const DESCRIPTION: &'static str = "A systemd calendar expression (systemd.time(7)), in quotes";
    const PATTERN: &'static str = "^[A-Za-z0-9 *,./:~+_@-]+$";
    const EXAMPLES: &'static [&'static str] = &["Sun 03:00", "*-*-01 04:30:00"];

    fn parse(text: &str) -> Result<Self, String> {
        wanted(
            "a calendar expression such as `daily` or \"Sun 03:00\" (see man systemd.time)",
            expression(text),
        )?;
        Ok(Self(text.to_owned()))
    }
}

fn expression(text: &str) -> Result<(), String> {
    only(text, |c| c.is_ascii_alphanumeric() || " *,./:~+_@-".contains(c))?;
    at_most(text, 200)?;
    if text != text.trim() || text.is_empty() {
        return Err("got nothing or a space at an end".to_owned());
    }
    let mut words = text.split(' ').filter(|word| !word.is_empty()).peekable();
    let Some(&first) = words.peek() else { return Err("got nothing".to_owned()) };
    if WORDS.iter().any(|word| first.eq_ignore_ascii_case(word)) {
        words.next();
    } else {
        let mut any = words.next_if(|word| is_weekdays(word)).is_some();
        if let Some(word) = words.next_if(|word| is_date(word)) {
            date(word)?;
            any = true;
        }
        if let Some(word) = words.next_if(|word| word.contains(':')) {
            time(word)?;
            any = true;
        }
        if !any {
            return Err(format!("got `{first}`"));
        }
    }
    let zone = |word: &&str| word.starts_with(|c: char| c.is_ascii_uppercase()) && !word.contains(':');
    words.next_if(zone);
    match words.next() {
        None => Ok(()),
        Some(word) => Err(format!("got `{word}` where it makes no sense")),
    }
}

/// `Mon..Fri,Sun`; systemd also knows the range as `Mon-Fri`.
fn is_weekdays(word: &str) -> bool {
    let is_day = |day: &str| {
        let day = day.to_ascii_lowercase();
        DAYS.iter().any(|full| day == *full || (day.len() == 3 && full.starts_with(&day)))
    };
    word.strip_suffix(',').unwrap_or(word).split(',').all(|part| {
        let (from, to) = part.split_once("..").or_else(|| part.split_once('-')).unwrap_or((part, part));
        is_day(from) && is_day(to)
    })
}

fn is_date(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit() || c == '*')
        && word.contains(['-', '~'])
        && !word.contains(':')
}

/// `year-month-day`, `month-day`; `~` counts days from the month's end.
fn date(word: &str) -> Result<(), String> {
    let parts: Vec<&str> = word.split(['-', '~']).collect();
    let (year, month, day) = match parts.as_slice() {
        [month, day] => (None, month, day),
        [year, month, day] => (Some(year), month, day),
        _ => return Err(format!("got `{word}` for a date")),
    };
    if let Some(year) = year {
        component(year, 0, 9999, "year")?;
    }
    component(month, 1, 12, "month")?;
    component(day, 1, 31, "day")
}

/// `hour:minute` or `hour:minute:second`.
fn time(word: &str) -> Result<(), String> {
    let parts: Vec<&str> = word.split(':').collect();
    let (hour, minute, second) = match parts.as_slice() {
        [hour, minute] => (hour, minute, "0"),
        [hour, minute, second] => (hour, minute, *second),
        _ => return Err(format!("got `{word}` for a time")),
    };
    component(hour, 0, 23, "hour")?;
    component(minute, 0, 59, "minute")?;
    component(second, 0, 59, "second")
}

/// `*`, `5`, `1..7`, `0/15`, and several of them with commas between.
fn component(text: &str, min: u32, max: u32, name: &str) -> Result<(), String> {
    let bad = || format!("got `{text}` for the {name} ({min} to {max})");
    let number = |text: &str| {
        let whole = text.split_once('.').map_or(text, |(whole, _)| whole);
        let number = whole.parse::<u32>().ok().filter(|_| whole.bytes().all(|b| b.is_ascii_digit()));
        number.filter(|number| (min..=max).contains(number)).ok_or_else(bad)
    };
    for part in text.split(',') {
        let (value, step) = match part.split_once('/') {
            Some((value, step)) => (value, Some(step)),
            None => (part, None),
        };
        if value != "*" {
            let (from, to) = value.split_once("..").unwrap_or((value, value));
            if number(from)? > number(to)? {
                return Err(bad());
            }
        }
        let is_step = |step: &str| step.parse::<f64>().is_ok_and(|step| step > 0.0);
        if !step.is_none_or(is_step) {
            return Err(bad());
        }
    }
    Ok(())
}
