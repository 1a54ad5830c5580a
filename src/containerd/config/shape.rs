//! Types: Go's decoders take no value of another one.

use super::Note;
use crate::containerd::document::Node;

#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    Text,
    Integer,
    Boolean,
    Texts,
    Table,
}

impl Shape {
    pub(super) fn fits(self, node: &Node) -> bool {
        match self {
            Self::Text => node.text().is_some(),
            Self::Integer => node.integer().is_some(),
            Self::Boolean => node.boolean().is_some(),
            Self::Texts => node.texts().is_some(),
            Self::Table => node.table().is_some(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Integer => "a number",
            Self::Boolean => "true or false",
            Self::Texts => "a list of texts",
            Self::Table => "a table",
        }
    }
}

/// The top level (containerd's `config.go`, `Config`).
pub(super) const TOP: [(&str, Shape); 18] = [
    ("version", Shape::Integer),
    ("root", Shape::Text),
    ("state", Shape::Text),
    ("temp", Shape::Text),
    ("plugin_dir", Shape::Text),
    ("grpc", Shape::Table),
    ("ttrpc", Shape::Table),
    ("debug", Shape::Table),
    ("metrics", Shape::Table),
    ("disabled_plugins", Shape::Texts),
    ("required_plugins", Shape::Texts),
    ("plugins", Shape::Table),
    ("oom_score", Shape::Integer),
    ("cgroup", Shape::Table),
    ("proxy_plugins", Shape::Table),
    ("timeouts", Shape::Table),
    ("imports", Shape::Texts),
    ("stream_processors", Shape::Table),
];

/// Go's decoders take no value of another type.
pub(super) fn shapes(node: &Node, wanted: &[(&str, Shape)], notes: &mut Vec<Note>) {
    for (key, shape) in wanted {
        if let Some(node) = node.get(&[key]).filter(|node| !shape.fits(node)) {
            let text = format!("{key}: wanted {}, got {}", shape.name(), node.type_name());
            notes.push(Note::new(&node.origin, text));
        }
    }
}

pub(super) fn shapes_of_table(node: &Node, wanted: &[(&str, Shape)], notes: &mut Vec<Note>) {
    if node.table().is_none() {
        notes.push(Note::new(&node.origin, format!("wanted a table, got {}", node.type_name())));
    }
    shapes(node, wanted, notes);
}
