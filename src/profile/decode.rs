//! From the tree to typed values, all problems at once; and the same types as a JSON Schema.
//!
//! [`Decode`] does both, so that what a type takes and what the schema says of it stand side by side. A value
//! that cannot be decoded is reported and becomes `None`; the walk goes on with its neighbours.

use serde_json::{Value as Json, json};

use super::problem::Problem;
use super::scalar::{self, Meaning};
use super::suggest::nearest;
use super::tree::{Field, Kind, Map, Place, Value};

/// More than anybody reads; bounds the memory that a hostile file can take.
pub(crate) const PROBLEMS: usize = 1_000;

/// A value as the profile spells it.
pub trait Decode: Sized {
    /// `None`: reported to `decoder`.
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self>;

    /// The JSON Schema of what [`decode`](Self::decode) takes. It may take more, where a schema cannot say it,
    /// never less.
    fn schema() -> Json;
}

/// A value and its place.
#[derive(Debug, Clone, Copy)]
pub struct At<T> {
    pub value: T,
    pub place: Place,
}

impl<T: Decode> Decode for At<T> {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        T::decode(value, decoder).map(|inner| Self { value: inner, place: value.place })
    }

    fn schema() -> Json {
        T::schema()
    }
}

/// A list that knows whether all of its items could be decoded.
#[derive(Debug)]
pub struct List<T> {
    pub items: Vec<T>,
    pub whole: bool,
}

impl<T: Decode> Decode for List<T> {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        let written = if let Kind::List(items) = &value.kind { items.len() } else { 0 };
        Vec::decode(value, decoder).map(|items: Vec<T>| Self { whole: items.len() == written, items })
    }

    fn schema() -> Json {
        Vec::<T>::schema()
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        let items = match &value.kind {
            Kind::List(items) => items,
            Kind::Text { text, secret: false, .. } => {
                return decoder.refuse(value, "a list", format!("write `[{}]`", clean(text)));
            }
            _ => return decoder.wrong(value, "a list"),
        };
        let mut list = Self::new();
        for (index, item) in items.iter().enumerate() {
            list.extend(decoder.within(Step::Index(index), |decoder| T::decode(item, decoder)));
        }
        Some(list)
    }

    fn schema() -> Json {
        json!({ "type": "array", "items": T::schema() })
    }
}

impl Decode for bool {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        let Kind::Text { text, plain, .. } = &value.kind else {
            return decoder.wrong(value, "true or false");
        };
        match (&**text, plain, scalar::boolean(text)) {
            ("true", true, _) => Some(true),
            ("false", true, _) => Some(false),
            (_, _, Some(meant)) => decoder.refuse(
                value,
                "true or false",
                format!("write {meant}, which every YAML reader takes for it"),
            ),
            _ => decoder.wrong(value, "true or false"),
        }
    }

    fn schema() -> Json {
        json!({ "type": "boolean" })
    }
}

/// One step from the top of a profile to a value.
#[derive(Clone, Copy)]
pub(crate) enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// Goes through a tree and gathers what is wrong with it.
#[derive(Default)]
pub struct Decoder<'a> {
    path: Vec<Step<'a>>,
    problems: Vec<Problem>,
    /// What unknown keys were probably meant to be: nothing is concluded from the absence of these.
    meant: Vec<(Place, &'static str)>,
}

impl<'a> Decoder<'a> {
    /// What was wrong.
    #[must_use]
    pub fn finish(self) -> Vec<Problem> {
        self.problems
    }

    /// Was a key of the map `value` probably meant to be `key`?
    pub(crate) fn is_meant(&self, value: &Value, key: &str) -> bool {
        self.meant.iter().any(|(place, word)| *place == value.place && *word == key)
    }

    /// `upstreams.ghcr.io.port: message`, where the walk is now.
    pub(crate) fn problem(&self, place: Place, message: impl std::fmt::Display) -> Problem {
        let mut path = String::new();
        for step in &self.path {
            match step {
                Step::Key(key) if path.is_empty() => path.push_str(&clean(key)),
                Step::Key(key) => path.extend([".", &clean(key)]),
                Step::Index(index) => path.push_str(&format!("[{index}]")),
            }
        }
        let colon = if path.is_empty() { "" } else { ": " };
        Problem::error(place, format!("{path}{colon}{message}"))
    }

    pub(crate) fn push(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS {
            self.problems.push(problem);
        }
    }

    /// Reports `wanted …, got …`, with the way out where the value shows one.
    pub(crate) fn wrong<T>(&mut self, value: &Value, wanted: &str) -> Option<T> {
        let help = match &value.kind {
            Kind::Empty => Some("write a value, or take the key out"),
            Kind::Map(fields) if fields.keys().any(|key| is_half_ipv6(key)) => {
                Some("put quotes around an IPv6 address")
            }
            _ => None,
        };
        self.refuse(value, wanted, help.map(str::to_owned))
    }

    /// Reports `wanted …, got …`.
    fn refuse<T>(&mut self, value: &Value, wanted: &str, help: impl Into<Option<String>>) -> Option<T> {
        if matches!(value.kind, Kind::Refused) {
            return None;
        }
        let problem = self.problem(value.place, format!("wanted {wanted}, got {}", shown(value)));
        self.push(match help.into() {
            Some(help) => problem.help(help),
            None => problem,
        });
        None
    }

    /// Runs `read` one step further in.
    pub(crate) fn within<T>(&mut self, step: Step<'a>, read: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(step);
        let result = read(self);
        self.path.pop();
        result
    }

    /// The fields of a map.
    pub(crate) fn map(&mut self, value: &'a Value) -> Option<&'a Map> {
        match &value.kind {
            Kind::Map(fields) => Some(fields),
            Kind::Empty => {
                self.refuse(value, "a map", "write `{}` for an empty one, or take the key out".to_owned())
            }
            _ => self.wrong(value, "a map"),
        }
    }

    /// The fields of a map that is written like `example`.
    pub(crate) fn record(&mut self, value: &'a Value, example: Option<&str>) -> Option<&'a Map> {
        match (example, &value.kind) {
            (None, _) | (_, Kind::Map(_)) => self.map(value),
            (Some(example), _) => self.refuse(value, "a map", format!("write `{example}`")),
        }
    }

    /// The value of one key; a `null` is an absent key.
    pub(crate) fn field<T: Decode>(&mut self, key: &'a str, field: &'a Field) -> Option<T> {
        if matches!(field.value.kind, Kind::Null) {
            return None;
        }
        self.within(Step::Key(key), |decoder| T::decode(&field.value, decoder))
    }

    /// Reports a key of the map `value` that is none of `allowed`.
    pub(crate) fn unknown(&mut self, key: &str, place: Place, value: &Value, allowed: &[&'static str]) {
        if self.problems.len() >= PROBLEMS {
            return;
        }
        let problem = self.problem(place, format!("unknown key `{}`", clean(key)));
        let head =
            key.split_once(':').and_then(|(head, _)| allowed.iter().find(|word| **word == head).copied());
        let help = match nearest(key, allowed.iter().copied()) {
            _ if head.is_some() => {
                self.meant.extend(head.map(|word| (value.place, word)));
                "put a space after the colon".to_owned()
            }
            Some(word) => {
                self.meant.push((value.place, word));
                format!("did you mean `{word}`?")
            }
            None => format!("known here: {}", allowed.join(", ")),
        };
        self.push(problem.help(help));
    }

    /// Reports a missing key of the map `value`.
    pub(crate) fn missing(&mut self, key: &str, value: &Value, example: &str) {
        if self.is_meant(value, key) {
            return;
        }
        let problem = self.problem(value.place, format!("no `{key}`"));
        self.push(problem.help(format!("write `{example}`")));
    }

    /// For what is spelt as a map with exactly one of the keys `allowed`.
    pub(crate) fn one_key(
        &mut self,
        value: &'a Value,
        allowed: &[&'static str],
    ) -> Option<(&'a str, &'a Field)> {
        let mut found: Option<(&str, &Field)> = None;
        for (key, field) in self.map(value)? {
            match found {
                _ if !allowed.contains(&&**key) => self.unknown(key, field.key, value, allowed),
                None => found = Some((key, field)),
                Some((first, at)) => {
                    let problem = self.problem(field.key, format!("`{key}` beside `{first}`"));
                    self.push(problem.related(at.key, "first here").help("keep one of them"));
                }
            }
        }
        if found.is_none() && self.map(value)?.is_empty() {
            self.wrong::<()>(value, &format!("one of {}", words(allowed)));
        }
        found
    }

    /// Text that every YAML reader takes for text, made into something else by `parse`.
    pub(crate) fn parse<T>(
        &mut self,
        value: &'a Value,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<T> {
        let Kind::Text { text, plain, secret } = &value.kind else { return self.wrong(value, "text") };
        match parse(text) {
            Ok(parsed) if !*plain || scalar::meaning(text).is_none() => Some(parsed),
            // Quotes are all that is missing.
            Ok(_) if *secret => self.refuse(value, "text", "put quotes around it".to_owned()),
            Ok(_) => self.refuse(value, "text", format!("put quotes around it: \"{}\"", clean(text))),
            Err(mut problem) => {
                problem.message = self.problem(value.place, problem.message).message;
                problem.place = Some(value.place);
                self.push(problem);
                None
            }
        }
    }

    /// Any scalar's text, for what is checked against a list of words.
    pub(crate) fn word(&mut self, value: &'a Value, allowed: &[&str]) -> Option<&'a str> {
        match &value.kind {
            Kind::Text { text, .. } if allowed.contains(&&**text) => Some(text),
            Kind::Text { text, .. } => {
                let near = nearest(text, allowed.iter().copied());
                self.refuse(value, &words(allowed), near.map(|word| format!("did you mean `{word}`?")))
            }
            _ => self.wrong(value, &words(allowed)),
        }
    }

    /// A whole number that is one to every YAML reader.
    pub(crate) fn number(&mut self, value: &'a Value, wanted: &str) -> Option<u64> {
        let Kind::Text { text, plain, secret: false } = &value.kind else { return self.wrong(value, wanted) };
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if *plain && digits && (&**text == "0" || !text.starts_with('0')) {
            // Too large for any range here is out of range, whatever it is.
            return Some(text.parse().unwrap_or(u64::MAX));
        }
        let help = match (digits, plain) {
            (true, false) => Some(format!("take the quotes away: {}", clean(text))),
            (true, true) => {
                let decimal = text.trim_start_matches('0');
                Some(format!("a leading zero makes it octal to some YAML readers: write {decimal}"))
            }
            _ if scalar::meaning(text) == Some(Meaning::Number) => {
                Some("write it in plain digits".to_owned())
            }
            _ => None,
        };
        self.refuse(value, wanted, help)
    }
}

/// What is left of an IPv6 address whose last colon YAML took for a key's.
fn is_half_ipv6(key: &str) -> bool {
    key.contains(':') && key.bytes().all(|b| b.is_ascii_hexdigit() || b == b':')
}

/// `` `warn` or `require` ``
fn words(allowed: &[&str]) -> String {
    let quoted: Vec<String> = allowed.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

/// A value as a message names it. Secrets are named by their kind alone.
fn shown(value: &Value) -> String {
    match &value.kind {
        Kind::Null => "null".to_owned(),
        Kind::Empty | Kind::Refused => "nothing".to_owned(),
        Kind::List(_) => "a list".to_owned(),
        Kind::Map(_) => "a map".to_owned(),
        Kind::Text { text, plain: true, secret: true } => match scalar::meaning(text) {
            Some(meaning) => meaning.name(text).to_owned(),
            None => "something else".to_owned(),
        },
        Kind::Text { secret: true, .. } => "something else".to_owned(),
        Kind::Text { text, plain, .. } => match scalar::meaning(text).filter(|_| *plain) {
            Some(meaning) => format!("`{}`, {}", clean(text), meaning.name(text)),
            None if *plain => format!("`{}`", clean(text)),
            None => format!("the text \"{}\"", clean(text)),
        },
    }
}

/// `text` short and without anything that could move a terminal's cursor.
fn clean(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    let dots = if short.len() < text.len() { "…" } else { "" };
    format!("{}{dots}", short.escape_debug())
}
