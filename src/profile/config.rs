//! The merged profile, and where each value of it comes from.

use serde_json::{Value as Json, json};

use super::document::Documents;
use super::scalar;
use super::tree::{Kind, Value};

/// Renders `tree` as YAML that can be read again, but for its secrets.
pub(super) fn render(tree: &Value, documents: &Documents) -> String {
    let mut out = Printer { lines: Vec::new(), documents };
    if let Kind::Map(fields) = &tree.kind {
        for (key, field) in fields {
            out.value(0, &format!("{}:", quoted(key, true)), &field.value, true);
        }
    }
    let width = out.lines.iter().map(|(text, _)| text.chars().count()).max().unwrap_or(0).min(60);
    let mut rendered = String::new();
    for (text, origin) in out.lines {
        rendered.push_str(&format!("{text:width$}  # {origin}\n"));
    }
    rendered
}

struct Printer<'a> {
    lines: Vec<(String, String)>,
    documents: &'a Documents,
}

impl Printer<'_> {
    fn value(&mut self, depth: usize, head: &str, value: &Value, in_map: bool) {
        let document = self.documents.get(value.place.file);
        let origin = format!("{}:{}", document.name(), document.line(value.place.start));
        let indent = "  ".repeat(depth);
        let text = match &value.kind {
            // Taken away, by whichever layer.
            Kind::Null => return,
            Kind::Empty | Kind::Refused => "null".to_owned(),
            Kind::Text { secret: true, .. } => "\"(hidden)\"".to_owned(),
            Kind::Text { text, plain, .. } => quoted(text, *plain),
            Kind::List(items) if items.is_empty() => "[]".to_owned(),
            Kind::Map(fields) if fields.values().all(|field| field.value.is_null()) => "{}".to_owned(),
            Kind::List(_) | Kind::Map(_) => String::new(),
        };
        let space = if text.is_empty() { "" } else { " " };
        self.lines.push((format!("{indent}{head}{space}{text}"), origin));
        match &value.kind {
            Kind::List(items) => {
                for item in items {
                    self.value(depth + 1, "-", item, false);
                }
            }
            Kind::Map(fields) => {
                let depth = depth + if in_map { 1 } else { 2 };
                for (key, field) in fields {
                    self.value(depth, &format!("{}:", quoted(key, true)), &field.value, true);
                }
            }
            _ => {}
        }
    }
}

/// `tree` as a list of its values, each with its path and its origin.
pub(super) fn list(tree: &Value, documents: &Documents) -> Json {
    let mut list = Vec::new();
    values(tree, documents, &mut Vec::new(), &mut list);
    list.into()
}

fn values(value: &Value, documents: &Documents, path: &mut Vec<Json>, list: &mut Vec<Json>) {
    let mut inner = |step: Json, value: &Value| {
        path.push(step);
        values(value, documents, path, list);
        path.pop();
    };
    let leaf = match &value.kind {
        Kind::Null => return,
        Kind::Map(fields) if !fields.is_empty() => {
            return fields.iter().for_each(|(key, field)| inner((&**key).into(), &field.value));
        }
        Kind::List(items) if !items.is_empty() => {
            return items.iter().enumerate().for_each(|(index, item)| inner(index.into(), item));
        }
        Kind::Map(_) => json!({}),
        Kind::List(_) => json!([]),
        Kind::Empty | Kind::Refused => Json::Null,
        Kind::Text { secret: true, .. } => "(hidden)".into(),
        Kind::Text { text, plain, .. } => match (&**text, plain, text.parse::<u64>()) {
            ("true", true, _) => true.into(),
            ("false", true, _) => false.into(),
            (_, true, Ok(number)) => number.into(),
            (text, _, _) => text.into(),
        },
    };
    let document = documents.get(value.place.file);
    let line = document.line(value.place.start);
    list.push(json!({ "path": path, "value": leaf, "file": document.name(), "line": line }));
}

/// As a YAML scalar that every reader takes for the same. What had no quotes keeps none where that is safe.
fn quoted(text: &str, plain: bool) -> String {
    let safe = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._/@+-:".contains(c))
        && !text.ends_with(':')
        && !text.contains("::");
    let other = scalar::meaning(text).is_some() || scalar::is_null(text);
    if safe && (plain || !other) { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}
