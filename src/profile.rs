//! The profile as written: one read of its layers, one tree in which every value knows the file and the place
//! it came from, and problems that show both.
//!
//! This module knows YAML, layers and places, but not what a profile says; that is [`crate::node`]'s.
//!
//! serde is not used for reading: it stops at its first error, loses the place inside untagged enums and knows
//! nothing of two files. A walk over the tree ([`decode`]) reports everything at once and describes itself to
//! the JSON Schema.

use std::path::PathBuf;
use std::sync::Arc;

mod config;
pub mod decode;
mod document;
mod problem;
mod read;
pub(crate) mod record;
mod scalar;
mod secret;
pub mod suggest;
mod syntax;
mod tree;

pub use problem::{Problem, Problems, Severity};
pub use tree::{Place, Value};

use document::Documents;
use tree::Kind;

/// Where a profile comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// That file alone.
    File(PathBuf),
    /// Standard input alone.
    Stdin,
    /// The layers below `root`: `usr/lib/larder/profile.yaml` < `etc/larder/profile.yaml` <
    /// `etc/larder/profile.d/*.yaml` in name order.
    Layers { root: PathBuf },
    /// A text that is there already.
    Text { name: String, text: String },
}

/// The layers, merged.
#[derive(Debug)]
pub struct Loaded {
    documents: Arc<Documents>,
    tree: Value,
    /// What did not stop the reading; [`crate::node`] reports it with its own.
    problems: Vec<Problem>,
}

/// Reads a profile and merges its layers. Problems that still leave a tree to look at (duplicate keys, say) wait
/// for [`Loaded::node`], so that one run shows them all.
///
/// # Errors
/// No profile, a file that cannot be read, or text that is no YAML.
pub fn load(source: &Source) -> Result<Loaded, Problems> {
    let mut documents = Documents::default();
    let mut problems = Vec::new();
    read::read(source, &mut documents, &mut problems);
    let mut tree: Option<Value> = None;
    let mut broken = problems.iter().any(|problem| problem.severity == Severity::Error);
    for file in documents.numbers() {
        let Some(document) = documents.get_mut(file) else { continue };
        match tree::parse(file, document, &mut problems) {
            Ok(None) => {}
            Ok(Some(layer)) => match &mut tree {
                None => tree = Some(layer),
                Some(lower) => tree::merge(lower, layer),
            },
            Err(problem) => {
                broken = true;
                problems.push(problem);
            }
        }
    }
    if documents.numbers().is_empty() && !broken {
        problems.push(
            Problem::error(None, "read the profile: there is none")
                .help("write /etc/larder/profile.yaml, or name a file with `--profile FILE`"),
        );
        broken = true;
    }
    let documents = Arc::new(documents);
    if broken {
        return Err(Problems::new(problems, documents));
    }
    let start = Place { file: 0, start: 0, end: 0 };
    let tree = tree.unwrap_or(Value { place: start, kind: Kind::Map(tree::Map::new()) });
    Ok(Loaded { documents, tree, problems })
}

impl Loaded {
    /// The merged profile as YAML, each value with the file and line it came from; secrets are hidden.
    #[must_use]
    pub fn config(&self) -> String {
        config::render(&self.tree, &self.documents)
    }

    /// What [`Self::config`] says, for programs: a list of values, each with its path, file and line.
    #[must_use]
    pub fn config_json(&self) -> serde_json::Value {
        config::list(&self.tree, &self.documents)
    }

    pub(crate) fn tree(&self) -> &Value {
        &self.tree
    }

    /// Can anybody on the machine read the file that `place` is in?
    pub(crate) fn is_world_readable(&self, place: Place) -> bool {
        self.documents.get(place.file).is_world_readable()
    }

    /// Number of the line, from 1, for messages that name a second place in passing.
    pub(crate) fn line(&self, place: Place) -> usize {
        self.documents.get(place.file).line(place.start)
    }

    /// These problems and those that waited since the reading.
    pub(crate) fn problems(&self, mut problems: Vec<Problem>) -> Problems {
        problems.extend(self.problems.iter().cloned());
        Problems::new(problems, Arc::clone(&self.documents))
    }
}

#[cfg(test)]
mod tests;
