//! TOML as containerd's own parsers take it, each value with the line it stands on: go-toml 1 in containerd 1,
//! go-toml 2 in containerd 2. `toml_edit` reads the newest TOML, so what is too new for both is refused here.

use std::ops::Range;
use std::sync::Arc;

use indexmap::IndexMap;
use toml_edit::{Item, Table, TableLike};

use super::Version;

/// A place in a file below the root; no line where the file as a whole is meant.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Origin {
    #[serde(serialize_with = "shown")]
    pub file: Arc<str>,
    pub line: Option<usize>,
}

/// Paths are kept without a leading slash and shown with one.
fn shown<S: serde::Serializer>(file: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("/{file}"))
}

impl Origin {
    #[must_use]
    pub fn file(file: &str) -> Self {
        Self { file: file.into(), line: None }
    }

    #[must_use]
    pub fn line(file: &str, line: usize) -> Self {
        Self { file: file.into(), line: Some(line) }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "/{}:{line}", self.file),
            None => write!(f, "/{}", self.file),
        }
    }
}

/// A value and its place.
#[derive(Debug, Clone)]
pub struct Node {
    pub origin: Origin,
    pub value: Value,
}

#[derive(Debug, Clone)]
pub enum Value {
    Table(IndexMap<String, Node>),
    Array(Vec<Node>),
    Text(String),
    Integer(i64),
    Boolean(bool),
    /// A float or a time: no setting of ours takes one.
    Other(&'static str),
}

impl Node {
    #[must_use]
    pub fn table(&self) -> Option<&IndexMap<String, Node>> {
        match &self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    #[must_use]
    pub fn integer(&self) -> Option<i64> {
        match self.value {
            Value::Integer(number) => Some(number),
            _ => None,
        }
    }

    #[must_use]
    pub fn boolean(&self) -> Option<bool> {
        match self.value {
            Value::Boolean(truth) => Some(truth),
            _ => None,
        }
    }

    /// The texts of an array that holds nothing else.
    #[must_use]
    pub fn texts(&self) -> Option<Vec<&str>> {
        match &self.value {
            Value::Array(nodes) => nodes.iter().map(Node::text).collect(),
            _ => None,
        }
    }

    /// What is at a path of table keys.
    #[must_use]
    pub fn get(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, key| node.table()?.get(*key))
    }

    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self.value {
            Value::Table(_) => "a table",
            Value::Array(_) => "a list",
            Value::Text(_) => "a text",
            Value::Integer(_) => "a number",
            Value::Boolean(_) => "true or false",
            Value::Other(name) => name,
        }
    }

    /// A table without anything in it.
    #[must_use]
    pub fn empty_table(file: &str) -> Self {
        Self { origin: Origin::file(file), value: Value::Table(IndexMap::new()) }
    }
}

/// One file, read.
#[derive(Debug)]
pub struct Document {
    pub root: Node,
    /// Each `[table.header]` in the order of the file, with its line.
    pub headers: Vec<(Vec<String>, usize)>,
    /// The path of each inline table.
    pub inline: Vec<Vec<String>>,
}

/// Why a file is no TOML to a containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Syntax {
    pub line: Option<usize>,
    pub text: String,
}

/// Reads a file as this containerd would.
///
/// # Errors
/// What it would refuse as no TOML.
pub fn parse(file: &str, bytes: &[u8], version: Version) -> Result<Document, Syntax> {
    let at = |line, text: &str| Syntax { line: Some(line), text: text.to_owned() };
    let bytes = match bytes.strip_prefix(b"\xef\xbb\xbf") {
        Some(rest) if version.major < 2 => rest,
        Some(_) => return Err(at(1, "it begins with a byte order mark")),
        None => bytes,
    };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        at(before.iter().filter(|byte| **byte == b'\n').count() + 1, "not UTF-8")
    })?;
    let document = toml_edit::Document::parse(text.to_owned()).map_err(|error| Syntax {
        line: error.span().map(|span| line_of(text, span.start)),
        text: error.message().lines().next().unwrap_or("not TOML").to_owned(),
    })?;
    let mut reader =
        Reader { file: file.into(), text, version, headers: Vec::new(), inline: Vec::new(), problem: None };
    let root = reader.table(document.as_table(), &mut Vec::new(), 1);
    if let Some(problem) = reader.problem {
        return Err(problem);
    }
    reader.headers.sort_by_key(|(position, ..)| *position);
    let headers = reader.headers.into_iter().map(|(_, path, line)| (path, line)).collect();
    Ok(Document { root, headers, inline: reader.inline })
}

/// The line that an offset is on, counted from 1.
#[must_use]
pub fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

struct Reader<'t> {
    file: Arc<str>,
    text: &'t str,
    version: Version,
    headers: Vec<(usize, Vec<String>, usize)>,
    inline: Vec<Vec<String>>,
    problem: Option<Syntax>,
}

impl Reader<'_> {
    fn node(&self, line: usize, value: Value) -> Node {
        Node { origin: Origin { file: Arc::clone(&self.file), line: Some(line) }, value }
    }

    fn line(&self, span: Option<Range<usize>>, otherwise: usize) -> usize {
        span.map_or(otherwise, |span| line_of(self.text, span.start))
    }

    fn refuse(&mut self, line: usize, text: &str) {
        self.problem.get_or_insert_with(|| Syntax { line: Some(line), text: text.to_owned() });
    }

    fn table(&mut self, table: &Table, path: &mut Vec<String>, otherwise: usize) -> Node {
        let line = self.line(table.span(), otherwise);
        let header = !path.is_empty() && !table.is_dotted() && !table.is_implicit();
        if header && let Some(span) = table.span() {
            self.header(self.text.get(span).unwrap_or_default().to_owned(), line);
            self.headers.push((table.position().map_or(0, usize_of), path.clone(), line));
        }
        let children = self.children(table, path, line);
        // A table that only its sub-tables have made is where the first of them is.
        let first = children.values().filter_map(|child| child.origin.line).min();
        let line = if header || path.is_empty() { line } else { first.unwrap_or(line) };
        self.node(line, Value::Table(children))
    }

    fn children(
        &mut self,
        table: &dyn TableLike,
        path: &mut Vec<String>,
        line: usize,
    ) -> IndexMap<String, Node> {
        let mut children = IndexMap::new();
        for (key, item) in table.iter() {
            let line = self.line(table.key(key).and_then(toml_edit::Key::span), line);
            path.push(key.to_owned());
            if let Some(node) = self.item(item, path, line) {
                children.insert(key.to_owned(), node);
            }
            path.pop();
        }
        children
    }

    fn item(&mut self, item: &Item, path: &mut Vec<String>, line: usize) -> Option<Node> {
        match item {
            Item::None => None,
            Item::Value(value) => Some(self.value(value, path, line)),
            Item::Table(table) => Some(self.table(table, path, line)),
            Item::ArrayOfTables(tables) => {
                let nodes = tables.iter().map(|table| {
                    let line = self.line(table.span(), line);
                    if let Some(span) = table.span() {
                        self.header(self.text.get(span).unwrap_or_default().to_owned(), line);
                    }
                    let children = self.children(table, path, line);
                    self.node(line, Value::Table(children))
                });
                let nodes = nodes.collect();
                Some(self.node(line, Value::Array(nodes)))
            }
        }
    }

    fn value(&mut self, value: &toml_edit::Value, path: &mut Vec<String>, line: usize) -> Node {
        let read = match value {
            toml_edit::Value::String(text) => {
                let raw = value.span().and_then(|span| self.text.get(span)).unwrap_or_default();
                if self.version.major < 2 && has_escape(raw, &['e', 'x']) {
                    self.refuse(line, "invalid escape in a text");
                } else if has_escape(raw, &['x']) {
                    self.refuse_newer(line, "an escape by \\x");
                }
                Value::Text(text.value().clone())
            }
            toml_edit::Value::Integer(number) => Value::Integer(*number.value()),
            toml_edit::Value::Boolean(truth) => Value::Boolean(*truth.value()),
            toml_edit::Value::Float(_) => Value::Other("a float"),
            toml_edit::Value::Datetime(_) => Value::Other("a time"),
            toml_edit::Value::Array(array) => {
                let nodes = array.iter().map(|element| {
                    let line = self.line(element.span(), line);
                    self.value(element, path, line)
                });
                Value::Array(nodes.collect())
            }
            toml_edit::Value::InlineTable(table) => {
                if !table.is_dotted()
                    && let Some(span) = table.span()
                {
                    self.inline.push(path.clone());
                    self.inline_table(table, span, line);
                }
                Value::Table(self.children(table, path, line))
            }
        };
        self.node(line, read)
    }

    /// go-toml 1 takes every bracket in a header for the end or a new one, quoted or not.
    fn header(&mut self, header: String, line: usize) {
        let inner = header.trim_start_matches('[').trim_end_matches(']');
        if self.version.major < 2 && inner.contains(['[', ']']) {
            self.refuse(
                line,
                "containerd 1 cannot read a bracket in a table header, such as an IPv6 address",
            );
        }
    }

    /// TOML 1.1: go-toml has it from 2.4 on, and a distribution may build an older containerd with that.
    fn refuse_newer(&mut self, line: usize, what: &str) {
        if self.version < Version::new(2, 4, 0) {
            self.refuse(
                line,
                &format!("{what}, which is TOML 1.1 and read by some builds of this containerd only"),
            );
        }
    }

    /// Before TOML 1.1 an inline table ends on its line, without a trailing comma. go-toml 1 did not mind lines.
    fn inline_table(&mut self, table: &toml_edit::InlineTable, span: Range<usize>, line: usize) {
        let mut values = Vec::new();
        collect_spans(table, &mut values);
        let mut from = span.start;
        for value in values.iter().chain(std::iter::once(&(span.end..span.end))) {
            let between = self.text.get(from..value.start).unwrap_or_default();
            if between.contains('\n') && self.version.major >= 2 {
                self.refuse_newer(line, "an inline table over more than one line");
            }
            if value.start == span.end && !values.is_empty() && between.contains(',') {
                if self.version.major < 2 {
                    self.refuse(line, "a trailing comma in an inline table");
                } else {
                    self.refuse_newer(line, "a trailing comma in an inline table");
                }
            }
            from = value.end;
        }
    }
}

fn collect_spans(table: &toml_edit::InlineTable, spans: &mut Vec<Range<usize>>) {
    for (_, value) in table.iter() {
        match value {
            toml_edit::Value::InlineTable(inner) if inner.is_dotted() => collect_spans(inner, spans),
            value => spans.extend(value.span()),
        }
    }
}

fn usize_of(position: isize) -> usize {
    usize::try_from(position).unwrap_or_default()
}

/// Whether a basic string has one of these escapes.
fn has_escape(raw: &str, wanted: &[char]) -> bool {
    if !raw.starts_with('"') {
        return false;
    }
    let mut escaped = false;
    for character in raw.chars() {
        if escaped && wanted.contains(&character) {
            return true;
        }
        escaped = character == '\\' && !escaped;
    }
    false
}
