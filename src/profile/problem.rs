//! What is wrong with a profile, where, and the way out.

use std::fmt;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

use super::document::{Document, Documents, Hidden};
use super::tree::Place;

/// A report that nobody reads to its end helps nobody; the count goes on.
const SHOWN: usize = 200;
/// Two places farther apart than this are shown on their own.
const APART: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
}

/// One problem. It becomes readable within [`Problems`], which know the documents.
#[derive(Debug, Clone)]
pub struct Problem {
    pub(crate) severity: Severity,
    /// `None` where there is no file to point at.
    pub(crate) place: Option<Place>,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
    /// Other places that have to do with it, and what each is.
    pub(crate) related: Vec<(Place, String)>,
}

impl Problem {
    pub(crate) fn error(place: impl Into<Option<Place>>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            place: place.into(),
            message: message.into(),
            help: None,
            related: Vec::new(),
        }
    }

    pub(crate) fn warning(place: impl Into<Option<Place>>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(place, message) }
    }

    pub(crate) fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn related(mut self, place: Place, label: impl Into<String>) -> Self {
        self.related.push((place, label.into()));
        self
    }
}

/// Everything that was found, in the order of the files. Displays as text; serialises as a list.
#[derive(Debug, Clone, Default)]
pub struct Problems {
    list: Vec<Problem>,
    documents: Arc<Documents>,
}

impl Problems {
    pub(crate) fn new(mut list: Vec<Problem>, documents: Arc<Documents>) -> Self {
        list.sort_by_key(|problem| problem.place.map(|place| (place.file, place.start)));
        Self { list, documents }
    }

    #[must_use]
    pub fn errors(&self) -> usize {
        self.list.iter().filter(|problem| problem.severity == Severity::Error).count()
    }

    #[must_use]
    pub fn warnings(&self) -> usize {
        self.list.len() - self.errors()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The report, with colours where a terminal reads it.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for problem in self.list.iter().take(SHOWN) {
            out.push_str(&visible(&renderer.render(&[self.group(problem)])));
            out.push_str("\n\n");
        }
        if let Some(more) = self.list.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            out.push_str(&format!("... and {more} more\n\n"));
        }
        if !self.is_empty() {
            out.push_str(&self.summary());
            out.push('\n');
        }
        out
    }

    /// `error: 3 problems and 1 warning in profile.yaml`
    fn summary(&self) -> String {
        let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let mut files: Vec<u16> = self.list.iter().filter_map(|p| p.place.map(|place| place.file)).collect();
        files.dedup();
        let place = match files.as_slice() {
            [] => String::new(),
            [file] => format!(" in {}", self.documents.get(*file).name()),
            files => format!(" in {} files", files.len()),
        };
        match (self.errors(), self.warnings()) {
            (0, warnings) => format!("{}{place}", count(warnings, "warning")),
            (errors, 0) => format!("error: {}{place}", count(errors, "problem")),
            (errors, warnings) => {
                format!("error: {} and {}{place}", count(errors, "problem"), count(warnings, "warning"))
            }
        }
    }

    fn group<'a>(&'a self, problem: &'a Problem) -> Group<'a> {
        let (level, mark) = match problem.severity {
            Severity::Error => (Level::ERROR, ""),
            Severity::Warning => (Level::WARNING, "warning: "),
        };
        let Some(place) = problem.place else {
            let name = if mark.is_empty() { "error: " } else { mark };
            let title = level.no_name().primary_title(format!("{name}{}", problem.message));
            let group = Group::with_title(title);
            return match &problem.help {
                Some(help) => group.element(Level::HELP.message(plain(help))),
                None => group,
            };
        };
        let file = self.documents.get(place.file);
        let (line, column) = file.line_and_column(place.start);
        let title = format!("{}:{line}:{column}: {mark}{}", file.name(), problem.message);
        let mut group = Group::with_title(level.no_name().primary_title(title));
        for cluster in self.clusters(place, &problem.related) {
            group = group.element(self.snippet(&cluster, place));
        }
        match &problem.help {
            Some(help) => group.element(Level::HELP.message(plain(help))),
            None => group,
        }
    }

    /// The places, those near each other together, the problem's own first.
    fn clusters<'a>(&self, place: Place, related: &'a [(Place, String)]) -> Vec<Vec<Mark<'a>>> {
        let line = |place: Place| self.documents.get(place.file).line(place.start);
        let mut clusters: Vec<Vec<Mark<'a>>> = vec![vec![Mark { place, label: None }]];
        for (place, label) in related {
            let near = |mark: &Mark<'_>| {
                mark.place.file == place.file && line(mark.place).abs_diff(line(*place)) <= APART
            };
            let mark = Mark { place: *place, label: Some(label) };
            match clusters.iter_mut().find(|cluster| cluster.iter().any(near)) {
                Some(cluster) => cluster.push(mark),
                None => clusters.push(vec![mark]),
            }
        }
        clusters
    }

    /// The lines from the first to the last of `marks`, which are all in one file.
    fn snippet<'a>(
        &'a self,
        marks: &[Mark<'a>],
        primary: Place,
    ) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
        let start = marks.iter().map(|mark| mark.place.start).min().unwrap_or(primary.start);
        let end = marks.iter().map(|mark| mark.place.start).max().unwrap_or(primary.start);
        let owner = marks.first().map_or(primary.file, |mark| mark.place.file);
        let file = self.documents.get(owner);
        let Hidden { text, first_line, positions } = file.excerpt(start, end, marks.iter().map(|m| m.place));
        let is_primary = |mark: &Mark<'_>| mark.place == primary && mark.label.is_none();
        let elsewhere = !marks.iter().any(is_primary);
        let annotations: Vec<_> = marks
            .iter()
            .zip(positions)
            .map(|(mark, span)| {
                let kind = if is_primary(mark) { AnnotationKind::Primary } else { AnnotationKind::Context };
                kind.span(span).label(mark.label)
            })
            .collect();
        let path = elsewhere.then(|| file.name());
        Snippet::source(text).line_start(first_line).path(path).annotations(annotations)
    }
}

struct Mark<'a> {
    place: Place,
    label: Option<&'a str>,
}

/// The renderer takes what moves a cursor out of the lines that it shows, but for the eight-bit controls, and shows
/// characters that nobody sees as they are.
fn visible(text: &str) -> String {
    let hidden = |c: char| {
        matches!(c, '\u{80}'..='\u{9f}' | '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    text.chars().map(|c| if hidden(c) { '\u{fffd}' } else { c }).collect()
}

/// `help` and labels are shown as they are, so nothing in them may move the cursor.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Problems {}

/// A place as a reader counts: from 1, columns in characters.
#[derive(Serialize)]
struct Shown<'a> {
    file: &'a str,
    line: usize,
    column: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'a str>,
}

impl<'a> Shown<'a> {
    fn new(file: &'a Document, place: Place, label: Option<&'a str>) -> Self {
        let (line, column) = file.line_and_column(place.start);
        Self { file: file.name(), line, column, label }
    }
}

impl Serialize for Problems {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer
            .collect_seq(self.list.iter().map(|problem| InDocuments { problem, documents: &self.documents }))
    }
}

struct InDocuments<'a> {
    problem: &'a Problem,
    documents: &'a Documents,
}

impl Serialize for InDocuments<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let shown = |place: Place, label| Shown::new(self.documents.get(place.file), place, label);
        let related: Vec<_> =
            self.problem.related.iter().map(|(place, label)| shown(*place, Some(label.as_str()))).collect();
        let mut out = serializer.serialize_struct("Problem", 5)?;
        out.serialize_field("severity", &self.problem.severity)?;
        out.serialize_field("message", &self.problem.message)?;
        out.serialize_field("place", &self.problem.place.map(|place| shown(place, None)))?;
        out.serialize_field("related", &related)?;
        out.serialize_field("help", &self.problem.help)?;
        out.end()
    }
}
