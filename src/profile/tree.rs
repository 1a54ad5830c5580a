//! YAML text to a tree in which every key and value knows its place.
//!
//! One pass over granit's events, and a gate at once: what a profile has no use for and other YAML readers take
//! in different ways (aliases, tags, merge keys, duplicate keys, a second document) is refused here, and depth
//! and size are bounded before anything is built from them.

use std::ops::Range;

use granit_parser::{Event, Parser, ScalarStyle, Span};
use indexmap::IndexMap;
use indexmap::map::Entry as Slot;

use super::document::Document;
use super::problem::Problem;
use super::{scalar, secret, syntax};

/// The format itself is six deep.
const DEPTH: usize = 16;
/// A thousand upstreams with all their keys are some 12,000 values.
const VALUES: usize = 100_000;
/// More duplicates and the like than this tell nobody anything.
const PROBLEMS: usize = 1_000;

/// Bytes `start..end` of the source with the number `file`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub(crate) file: u16,
    pub(crate) start: u32,
    pub(crate) end: u32,
}

/// A value and where it is written.
#[derive(Debug)]
pub struct Value {
    pub(crate) place: Place,
    pub(crate) kind: Kind,
}

impl Value {
    /// Taken away, or never there.
    pub(crate) fn is_null(&self) -> bool {
        matches!(self.kind, Kind::Null)
    }

    pub(crate) fn is_map(&self) -> bool {
        matches!(self.kind, Kind::Map(_))
    }

    pub(crate) fn is_list(&self) -> bool {
        matches!(self.kind, Kind::List(_))
    }

    pub(crate) fn is_secret(&self) -> bool {
        matches!(self.kind, Kind::Text { secret: true, .. })
    }

    /// Is it a map with this key, whatever its value?
    pub(crate) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Is it a map in which this key has a value, whatever that is?
    pub(crate) fn says(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !value.is_null())
    }

    /// The value of a map's key.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        match &self.kind {
            Kind::Map(fields) => fields.get(key).map(|field| &field.value),
            _ => None,
        }
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// What a boolean without quotes means to those YAML readers that take it for one.
    pub(crate) fn plain_boolean(&self) -> Option<bool> {
        match &self.kind {
            Kind::Text { text, plain: true, .. } => scalar::boolean(text),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// `null` or `~`: takes away what a lower layer says.
    Null,
    /// Nothing after the colon, which says nothing of what was meant.
    Empty,
    /// Any scalar. `plain`: without quotes, so that other readers may take it for a number or the like.
    /// `secret`: never to be shown.
    Text {
        text: Box<str>,
        plain: bool,
        secret: bool,
    },
    List(Vec<Value>),
    Map(Map),
    /// Reported already.
    Refused,
}

pub(crate) type Map = IndexMap<Box<str>, Field>;

#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) key: Place,
    pub(crate) value: Value,
}

/// Reads one file; `None` where it is empty. `Err` is what stops the reading; everything else goes to
/// `problems`. What is secret is hidden in the document from here on.
pub(crate) fn parse(
    file: u16,
    document: &mut Document,
    problems: &mut Vec<Problem>,
) -> Result<Option<Value>, Problem> {
    let mut builder = Builder {
        file,
        open: Vec::new(),
        root: None,
        values: 0,
        secrets: Vec::new(),
        value_start: 0,
        problems,
    };
    if document.is_broken() {
        return Ok(None);
    }
    let result = builder.run(document.text());
    let (root, mut secrets) = (builder.root, builder.secrets);
    if result.is_err() {
        // What the parser stumbled over may be a secret without its quotes.
        secrets.extend(secret::in_broken_text(document.text()));
    }
    document.hide(secrets);
    result.map(|()| root)
}

/// A collection whose end has not been seen.
enum Open {
    List { place: Place, items: Vec<Value>, secret: bool },
    Map { place: Place, fields: Map, key: Key, secret: bool },
}

/// What a map waits for.
enum Key {
    /// The next key.
    None,
    /// The value of this key.
    Some { name: Box<str>, place: Place, secret: bool },
    /// The value of a key that is refused.
    Refused { secret: bool },
}

struct Builder<'a> {
    file: u16,
    open: Vec<Open>,
    root: Option<Value>,
    values: usize,
    secrets: Vec<Range<usize>>,
    /// Where the last key ended: what a secret value's tag and anchor come after.
    value_start: usize,
    problems: &'a mut Vec<Problem>,
}

impl Builder<'_> {
    fn run(&mut self, text: &str) -> Result<(), Problem> {
        let options = granit_parser::options! {
            disallow_directives: true,
            emit_anchor_events: true,
            emit_unresolved_aliases: true,
            flow_nesting_limit: 4 * DEPTH,
            block_nesting_limit: 4 * DEPTH,
        };
        for event in Parser::new_from_str_with_options(text, options) {
            match event {
                Ok((event, span)) => {
                    if !self.event(event, &span)? {
                        break;
                    }
                }
                Err(error) => {
                    let at = error.marker().byte_offset().unwrap_or(0);
                    return Err(syntax::explain(&error.info(), text, self.place(at, at)));
                }
            }
        }
        Ok(())
    }

    fn place(&self, start: usize, end: usize) -> Place {
        let clip = |offset| u32::try_from(offset).unwrap_or(u32::MAX);
        Place { file: self.file, start: clip(start), end: clip(end) }
    }

    fn span(&self, span: &Span) -> Place {
        let range = span.byte_range().unwrap_or_default();
        self.place(range.start, range.end)
    }

    fn problem(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS {
            self.problems.push(problem);
        }
    }

    /// `false` once nothing more is to be read.
    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<bool, Problem> {
        let place = self.span(span);
        if event.tag().is_some() {
            let tag = span.tag_span().map_or(place, |tag| self.span(&tag));
            self.problem(Problem::error(tag, "a YAML tag: a profile has none").help("take it out"));
        }
        match event {
            Event::Scalar(text, style, _, _) => self.scalar(&text, style, place)?,
            Event::SequenceStart(..) => {
                let (place, secret) = self.start(place)?;
                self.open.push(Open::List { place, items: Vec::new(), secret });
            }
            Event::MappingStart(..) => {
                let (place, secret) = self.start(place)?;
                self.open.push(Open::Map { place, fields: Map::new(), key: Key::None, secret });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let (place, kind) = match self.open.pop() {
                    Some(Open::List { place, items, .. }) => (place, Kind::List(items)),
                    Some(Open::Map { place, fields, .. }) => (place, Kind::Map(fields)),
                    None => return Ok(true),
                };
                self.add(Value { place, kind })?;
            }
            Event::Anchor(..) => {
                let problem = Problem::error(place, "a YAML anchor: a profile has none");
                self.problem(problem.help("take it out; a value that starts with `&` needs quotes"));
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => self.alias(place)?,
            Event::DocumentStart(..) if self.root.is_some() => {
                let problem = Problem::error(place, "a second YAML document: a profile is one");
                self.problem(problem.help("take the `---` out, or put what follows into a file of its own"));
                return Ok(false);
            }
            _ => {}
        }
        Ok(true)
    }

    fn alias(&mut self, place: Place) -> Result<(), Problem> {
        if self.is_secret() {
            self.hide(place);
        }
        let problem = Problem::error(place, "a YAML alias: a profile has none");
        self.problem(problem.help("write the value out; a value that starts with `*` needs quotes"));
        if let Some(Open::Map { key: key @ Key::None, .. }) = self.open.last_mut() {
            *key = Key::Refused { secret: false };
            return Ok(());
        }
        self.add(Value { place, kind: Kind::Refused })
    }

    /// Where a collection is shown, and whether all in it is secret. Its key stands for it: a block has no first
    /// character of its own.
    fn start(&self, place: Place) -> Result<(Place, bool), Problem> {
        if self.open.len() >= DEPTH {
            return Err(Problem::error(place, format!("nested more than {DEPTH} deep")));
        }
        match self.open.last() {
            Some(Open::Map { key: Key::None, .. }) => {
                Err(Problem::error(place, "a list or map as a key: a key is text")
                    .help("put quotes around a text that starts with `[` or `{`"))
            }
            Some(Open::Map { key: Key::Some { place: key, .. }, .. }) => Ok((*key, self.is_secret())),
            _ => Ok((place, self.is_secret())),
        }
    }

    /// Is the next value one that must not be shown?
    fn is_secret(&self) -> bool {
        match self.open.last() {
            None => false,
            Some(Open::List { secret, .. }) => *secret,
            Some(Open::Map { key: Key::Some { secret, .. } | Key::Refused { secret }, .. }) => *secret,
            Some(Open::Map { secret, .. }) => *secret,
        }
    }

    fn hide(&mut self, value: Place) {
        let start = match self.open.last() {
            Some(Open::Map { .. }) => self.value_start,
            _ => value.start as usize,
        };
        self.secrets.push(start..value.end as usize);
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, place: Place) -> Result<(), Problem> {
        let plain = style == ScalarStyle::Plain;
        if let Some(Open::Map { key: Key::None, .. }) = self.open.last() {
            self.key(text, plain, place);
            return Ok(());
        }
        let kind = match text {
            _ if plain && place.start == place.end => Kind::Empty,
            text if plain && scalar::is_null(text) => Kind::Null,
            _ => {
                let secret = self.is_secret() || secret::is_url_with_credentials(text);
                if secret {
                    self.hide(place);
                }
                Kind::Text { text: text.into(), plain, secret }
            }
        };
        self.add(Value { place, kind })
    }

    fn key(&mut self, text: &str, plain: bool, place: Place) {
        self.value_start = place.end as usize;
        // `password:hunter2`, without the space that would make it a key and a value.
        let head = text.split_once(':').map(|(head, _)| head).filter(|head| secret::is_secret(head, false));
        let shown = head.map(|head| format!("{head}:(hidden)"));
        if let Some(head) = head {
            self.secrets.push(place.start as usize + head.len()..place.end as usize);
        }
        let text = shown.as_deref().unwrap_or(text);
        let Some(Open::Map { fields, key, secret, .. }) = self.open.last_mut() else { return };
        let secret = secret::is_secret(text, *secret);
        let problem = match fields.get(text) {
            _ if plain && text == "<<" => Problem::error(place, "a YAML merge key: a profile has none")
                .help("write the values out, or put what machines share into a layer"),
            _ if place.start == place.end => Problem::error(place, "a value without a key"),
            None => {
                *key = Key::Some { name: text.into(), place, secret };
                return;
            }
            Some(first) => Problem::error(place, format!("`{}` is here twice", text.escape_debug()))
                .related(first.key, "first here")
                .help("keep one of them"),
        };
        *key = Key::Refused { secret };
        self.problem(problem);
    }

    fn add(&mut self, value: Value) -> Result<(), Problem> {
        self.values += 1;
        if self.values > VALUES {
            return Err(Problem::error(value.place, format!("more than {VALUES} values in one file")));
        }
        match self.open.last_mut() {
            None => self.root = Some(value),
            Some(Open::List { items, .. }) => items.push(value),
            Some(Open::Map { fields, key, .. }) => {
                if let Key::Some { name, place, .. } = std::mem::replace(key, Key::None) {
                    fields.entry(name).or_insert(Field { key: place, value });
                }
            }
        }
        Ok(())
    }
}

/// Lays `upper` over `lower`: maps merge, everything else replaces. A `null` stays as a `null`, which every
/// reader takes for an absent key.
pub(crate) fn merge(lower: &mut Value, upper: Value) {
    match (&mut lower.kind, upper.kind) {
        (Kind::Map(fields), Kind::Map(over)) => {
            lower.place = upper.place;
            for (name, field) in over {
                match fields.entry(name) {
                    Slot::Vacant(slot) => {
                        slot.insert(field);
                    }
                    Slot::Occupied(mut slot) => {
                        slot.get_mut().key = field.key;
                        merge(&mut slot.get_mut().value, field.value);
                    }
                }
            }
        }
        (kind, over) => {
            *kind = over;
            lower.place = upper.place;
        }
    }
}
