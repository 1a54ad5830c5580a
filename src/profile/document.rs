//! The texts of a profile, and what must not be shown of them.

use std::ops::Range;
use std::sync::OnceLock;

use zeroize::Zeroizing;

use super::tree::Place;

/// One file, or standard input.
#[derive(Debug, Default)]
pub struct Document {
    name: String,
    text: Zeroizing<String>,
    /// The permission bits, where it is a file.
    mode: Option<u32>,
    /// Not a text at all.
    broken: bool,
    /// Byte ranges that hold secrets, in order.
    secrets: Vec<Range<usize>>,
    /// Where each line starts.
    lines: OnceLock<Vec<usize>>,
}

/// Lines of a source with its secrets taken out.
pub(crate) struct Hidden {
    pub(crate) text: String,
    pub(crate) first_line: usize,
    /// Where each place asked for is in `text`.
    pub(crate) positions: Vec<Range<usize>>,
}

/// A part of the text that was copied or hidden: where it was, and where it is now.
struct Piece {
    was: Range<usize>,
    is: Range<usize>,
    hidden: bool,
}

/// Bytes of an excerpt: a hundred lines of a profile have less.
const LONG: usize = 16 << 10;

/// What stands for the value of a secret.
const HIDDEN: &str = "(hidden)";

impl Document {
    pub(crate) fn new(name: String, text: String, mode: Option<u32>) -> Self {
        // A byte order mark is no part of the text, nor of its columns.
        let text = match text.strip_prefix('\u{feff}') {
            Some(rest) => rest.to_owned(),
            None => text,
        };
        Self { name, text: Zeroizing::new(text), mode, ..Self::default() }
    }

    /// A text that is there to be shown, not to be parsed.
    pub(crate) fn broken(name: String, text: String) -> Self {
        Self { broken: true, ..Self::new(name, text, None) }
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn is_world_readable(&self) -> bool {
        self.mode.is_some_and(|mode| mode & 0o004 != 0)
    }

    /// Hides what is between the end of a key and the end of its value.
    pub(crate) fn hide(&mut self, mut secrets: Vec<Range<usize>>) {
        secrets.sort_by_key(|range| (range.start, range.end));
        self.secrets = secrets;
    }

    fn lines(&self) -> &[usize] {
        self.lines.get_or_init(|| {
            let breaks = self.text.bytes().enumerate().filter(|(_, b)| *b == b'\n');
            std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect()
        })
    }

    /// From 1.
    pub(crate) fn line(&self, offset: u32) -> usize {
        self.lines().partition_point(|start| *start <= offset as usize)
    }

    /// Both from 1, the column in characters.
    pub(crate) fn line_and_column(&self, offset: u32) -> (usize, usize) {
        let before = self.line_range(offset).start..(offset as usize).min(self.text.len());
        let column = self.text.get(before).map_or(0, |text| text.chars().count());
        (self.line(offset), column + 1)
    }

    /// Without its line break.
    fn line_range(&self, offset: u32) -> Range<usize> {
        let line = self.line(offset);
        let start = line.checked_sub(1).and_then(|index| self.lines().get(index)).copied().unwrap_or(0);
        let end = self.lines().get(line).map_or(self.text.len(), |next| next - 1);
        start..end.max(start)
    }

    /// Of very long lines, only what is around `from` is worth showing.
    fn narrow(&self, lines: Range<usize>, from: u32) -> Range<usize> {
        if lines.len() <= LONG {
            return lines;
        }
        let from = (from as usize).clamp(lines.start, lines.end);
        let start = boundary(&self.text, from.saturating_sub(LONG / 2).max(lines.start));
        start..boundary(&self.text, (start + LONG).min(lines.end))
    }

    /// The lines from the one of `from` to the one of `to`.
    pub(crate) fn excerpt(&self, from: u32, to: u32, places: impl Iterator<Item = Place>) -> Hidden {
        let lines = self.narrow(self.line_range(from).start..self.line_range(to).end, from);
        let mut text = String::new();
        let mut pieces: Vec<Piece> = Vec::new();
        let mut at = lines.start;
        let copy = |text: &mut String, pieces: &mut Vec<_>, range: Range<usize>| {
            let start = text.len();
            text.push_str(self.text.get(range.clone()).unwrap_or_default());
            pieces.push(Piece { was: range, is: start..text.len(), hidden: false });
        };
        for secret in self.secrets.iter().filter(|s| s.end > lines.start && s.start < lines.end) {
            if secret.end <= at {
                continue;
            }
            copy(&mut text, &mut pieces, at..secret.start.max(at));
            let was = secret.start.max(at)..secret.end;
            let hidden = self.text.get(was.start..was.end.min(lines.end)).unwrap_or_default();
            if hidden.trim_start().starts_with(':') {
                text.push_str(": ");
            }
            let start = text.len();
            text.push_str(HIDDEN);
            pieces.push(Piece { was, is: start..text.len(), hidden: true });
            // Keeps the numbers of the lines that follow.
            text.extend(hidden.chars().filter(|c| *c == '\n'));
            at = secret.end;
        }
        if at < lines.end {
            copy(&mut text, &mut pieces, at..lines.end);
        }
        let moved = |offset: usize| {
            let piece = pieces.iter().find(|piece| piece.was.contains(&offset)).or_else(|| pieces.last());
            piece.map_or(0, |Piece { was, is, hidden }| {
                if *hidden { is.start } else { (is.start + offset.saturating_sub(was.start)).min(is.end) }
            })
        };
        let positions = places
            .map(|place| {
                let line_end = self.line_range(place.start).end;
                let start = (place.start as usize).min(self.text.len());
                let end = (place.end as usize).min(line_end).max(start);
                let (start, end) = (moved(start), moved(end));
                // At least one character wide, and on boundaries whatever the place says.
                let start = boundary(&text, start);
                let end = boundary(&text, end);
                let one = text.get(start..).and_then(|rest| rest.chars().next()).filter(|c| *c != '\n');
                start..end.max(start + one.map_or(0, char::len_utf8))
            })
            .collect();
        Hidden { text, first_line: self.line(from), positions }
    }
}

/// The last character boundary that is not after `at`.
pub(super) fn boundary(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// All documents of a profile, by number.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    files: Vec<Document>,
    /// Stands for a document that is not there.
    none: Document,
}

impl Documents {
    /// The number of the new source.
    pub(crate) fn add(&mut self, source: Document) -> u16 {
        self.files.push(source);
        u16::try_from(self.files.len() - 1).unwrap_or(u16::MAX)
    }

    pub(crate) fn numbers(&self) -> Range<u16> {
        0..u16::try_from(self.files.len()).unwrap_or(u16::MAX)
    }

    pub(crate) fn get(&self, file: u16) -> &Document {
        self.files.get(usize::from(file)).unwrap_or(&self.none)
    }

    pub(crate) fn get_mut(&mut self, file: u16) -> Option<&mut Document> {
        self.files.get_mut(usize::from(file))
    }
}
