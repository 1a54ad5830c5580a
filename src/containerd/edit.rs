//! Edits of containerd's `config.toml` that leave every other byte where it was: what goes is cut out of the
//! text itself, whole lines where it stands in lines of its own.
//!
//! A comment goes with what is taken out only when it stands directly above it, with no empty line between
//! and no deeper indented: that is the one that speaks of it. All others stay, also where what they spoke of
//! is gone.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use indexmap::IndexMap;
use toml_edit::{Document, DocumentMut, Item, Key, TableLike};

use super::document::line_of;
use super::legacy::{Key as Setting, Legacy, Tls};

/// The older settings of one file, each with its line.
#[derive(Debug, Default, Clone)]
pub struct Found {
    pub legacy: Legacy,
    /// From 1.
    pub lines: BTreeMap<Setting, usize>,
    /// What to cut out, each as a path of keys, and where it stands.
    pub cuts: Vec<Cut>,
    /// What works beside `config_path` too and stays: `configs.X.auth`, `auths`, `headers`.
    pub stays: Vec<Place>,
    /// What containerd reads nothing of.
    pub ignored: Vec<Place>,
    /// Settings of the wrong kind: containerd would not start with them.
    pub wrong: Vec<Place>,
}

/// A setting and its line, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub name: String,
    pub line: usize,
}

/// Something to cut out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    pub path: Vec<String>,
    pub place: Place,
}

/// Reads the older settings in the registry part of CRI's `section`.
///
/// # Errors
/// When the text is not TOML.
pub fn find(text: &str, section: &[&str]) -> Result<Found> {
    let document = Document::parse(text)?;
    let mut found = Found::default();
    let mut registry_path: Vec<String> = section.iter().map(|key| (*key).to_owned()).collect();
    registry_path.push("registry".to_owned());
    let mut at: Option<&dyn TableLike> = Some(document.as_table());
    for key in &registry_path {
        at = at.and_then(|table| table.get(key)?.as_table_like());
    }
    let Some(registry) = at else { return Ok(found) };
    let reader = Reader { text, path: registry_path };
    if let Some(mirrors) = registry.get("mirrors") {
        reader.mirrors(registry, mirrors, &mut found);
    }
    if let Some(configs) = registry.get("configs") {
        reader.configs(registry, configs, &mut found);
    }
    for key in ["auths", "headers"] {
        if let Some(item) = registry.get(key)
            && item.as_table_like().is_none_or(|table| !table.is_empty())
        {
            found.stays.push(reader.place(registry, key, item, &[key]));
        }
    }
    Ok(found)
}

struct Reader<'t> {
    text: &'t str,
    /// Of the registry table.
    path: Vec<String>,
}

impl Reader<'_> {
    fn mirrors(&self, registry: &dyn TableLike, item: &Item, found: &mut Found) {
        let Some(mirrors) = item.as_table_like() else {
            found.wrong.push(self.place(registry, "mirrors", item, &["mirrors"]));
            return;
        };
        if mirrors.is_empty() {
            return;
        }
        found.cuts.push(self.cut(registry, "mirrors", item, &["mirrors"]));
        for (host, item) in mirrors.iter() {
            let Some(mirror) = item.as_table_like() else {
                found.wrong.push(self.place(mirrors, host, item, &["mirrors", host]));
                continue;
            };
            let mut endpoints = Vec::new();
            for (key, item) in mirror.iter() {
                let name = ["mirrors", host, key];
                let texts = item.as_array().map(|array| array.iter().map(|one| one.as_str()).collect());
                match (key, texts) {
                    ("endpoint", Some(Some(texts))) => {
                        let texts: Vec<&str> = texts;
                        endpoints = texts.into_iter().map(str::to_owned).collect();
                    }
                    ("endpoint", _) => found.wrong.push(self.place(mirror, key, item, &name)),
                    _ => found.ignored.push(self.place(mirror, key, item, &name)),
                }
            }
            let line = self.place(mirrors, host, item, &[]).line;
            found.lines.insert(Setting::Mirror(host.to_owned()), line);
            found.legacy.mirrors.insert(host.to_owned(), endpoints);
        }
    }

    fn configs(&self, registry: &dyn TableLike, item: &Item, found: &mut Found) {
        let Some(configs) = item.as_table_like() else {
            found.wrong.push(self.place(registry, "configs", item, &["configs"]));
            return;
        };
        // A table that holds nothing but what goes, goes itself.
        let emptied = |item: &Item| {
            item.as_table_like().is_some_and(|config| config.len() == 1 && config.contains_key("tls"))
        };
        let all = !configs.is_empty() && configs.iter().all(|(_, item)| emptied(item));
        if all {
            found.cuts.push(self.cut(registry, "configs", item, &["configs"]));
        }
        for (host, item) in configs.iter() {
            let Some(config) = item.as_table_like() else {
                found.wrong.push(self.place(configs, host, item, &["configs", host]));
                continue;
            };
            if let Some(tls) = config.get("tls") {
                let place = self.place(config, "tls", tls, &["configs", host, "tls"]);
                found.lines.insert(Setting::Tls(host.to_owned()), place.line);
                match read_tls(tls) {
                    Some(read) => drop(found.legacy.tls.insert(host.to_owned(), read)),
                    None => found.wrong.push(place),
                }
                if !all && emptied(item) {
                    found.cuts.push(self.cut(configs, host, item, &["configs", host]));
                } else if !all {
                    found.cuts.push(self.cut(config, "tls", tls, &["configs", host, "tls"]));
                }
            }
            for (key, item) in config.iter().filter(|(key, _)| *key != "tls") {
                let place = self.place(config, key, item, &["configs", host, key]);
                if key == "auth" { found.stays.push(place) } else { found.ignored.push(place) }
            }
        }
    }

    fn cut(&self, parent: &dyn TableLike, key: &str, item: &Item, below: &[&str]) -> Cut {
        let path = self.path.iter().cloned().chain(below.iter().map(|key| (*key).to_owned())).collect();
        Cut { path, place: self.place(parent, key, item, below) }
    }

    fn place(&self, parent: &dyn TableLike, key: &str, item: &Item, below: &[&str]) -> Place {
        let mut name = "registry".to_owned();
        for key in below {
            let bare = key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
            name.push_str(&if bare { format!(".{key}") } else { format!(".{key:?}") });
        }
        let line = start_of(parent, key, item).map_or(1, |at| line_of(self.text, at));
        Place { name, line }
    }
}

fn read_tls(item: &Item) -> Option<Tls> {
    let mut tls = Tls::default();
    for (key, item) in item.as_table_like()?.iter() {
        let text = || item.as_str().map(str::to_owned);
        match key {
            "ca_file" => tls.ca_file = text()?,
            "cert_file" => tls.cert_file = text()?,
            "key_file" => tls.key_file = text()?,
            "insecure_skip_verify" => tls.insecure_skip_verify = item.as_bool()?,
            _ => {}
        }
    }
    Some(tls)
}

/// Where an item begins: its header, or its key; a table that has neither begins where its first one does.
fn start_of(parent: &dyn TableLike, key: &str, item: &Item) -> Option<usize> {
    if let Some(table) = item.as_table()
        && (table.is_implicit() || table.is_dotted())
    {
        return table.iter().filter_map(|(key, item)| start_of(table, key, item)).min();
    }
    match item {
        Item::Table(table) => table.span().map(|span| span.start),
        _ => parent.get_key_value(key)?.0.span().map(|span| span.start),
    }
}

/// The text without what stands at these paths.
///
/// # Errors
/// When what is left would not be what was there but for that: the text is then of a form that is better
/// edited by hand.
pub fn take_out(text: &str, paths: &[Vec<String>]) -> Result<String> {
    let document = Document::parse(text)?;
    let mut lines = Vec::new();
    let mut inline: IndexMap<Vec<String>, Range<usize>> = IndexMap::new();
    for path in paths {
        locate(document.as_table(), path, &mut lines, &mut inline)
            .with_context(|| format!("take out {}: it is not there", path.join(".")))?;
    }
    let mut texts = Vec::new();
    values(document.as_item(), &mut texts);
    let mut edits =
        tidy(text, lines, &texts).into_iter().map(|range| (range, String::new())).collect::<Vec<_>>();
    if !inline.is_empty() {
        // What stands within braces is written anew, that one value alone.
        let mut edited: DocumentMut = text.parse()?;
        for path in paths {
            remove(edited.as_table_mut(), path);
        }
        for (path, range) in inline {
            let mut at: Option<&Item> = Some(edited.as_item());
            for key in &path {
                at = at.and_then(|item| item.get(key));
            }
            let value = at.and_then(Item::as_value).context("take out: no value")?;
            let mut value = value.clone();
            value.decor_mut().clear();
            edits.push((range, value.to_string()));
        }
    }
    edits.sort_by_key(|(range, _)| std::cmp::Reverse(range.start));
    let mut edited = text.to_owned();
    for (range, replacement) in edits {
        edited.replace_range(range, &replacement);
    }
    check(text, &edited, paths)?;
    Ok(edited)
}

/// Reads both again: nothing else may have gone, changed or come.
fn check(before: &str, after: &str, paths: &[Vec<String>]) -> Result<()> {
    let mut wanted: toml::Table = toml::from_str(before)?;
    let got: toml::Table = toml::from_str(after).context("read back the edited text")?;
    for path in paths {
        let Some((last, folders)) = path.split_last() else { continue };
        let mut at = Some(&mut wanted);
        for key in folders {
            at = at.and_then(|table| table.get_mut(key)?.as_table_mut());
        }
        at.and_then(|table| table.remove(last));
    }
    ensure!(
        without_empty(wanted) == without_empty(got),
        "take out {}: the file's form is not understood",
        paths.iter().map(|path| path.join(".")).collect::<Vec<_>>().join(", ")
    );
    Ok(())
}

/// A table that was there only as part of a header's name goes with that header.
fn without_empty(table: toml::Table) -> toml::Table {
    let mut kept = toml::Table::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => {
                let inner = without_empty(inner);
                if !inner.is_empty() {
                    kept.insert(key, toml::Value::Table(inner));
                }
            }
            value => drop(kept.insert(key, value)),
        }
    }
    kept
}

fn remove(table: &mut dyn TableLike, path: &[String]) {
    match path {
        [] => {}
        [last] => drop(table.remove(last)),
        [first, rest @ ..] => {
            if let Some(inner) = table.get_mut(first).and_then(Item::as_table_like_mut) {
                remove(inner, rest);
            }
        }
    }
}

fn locate(
    root: &dyn TableLike,
    path: &[String],
    lines: &mut Vec<Range<usize>>,
    inline: &mut IndexMap<Vec<String>, Range<usize>>,
) -> Option<()> {
    let mut table = root;
    for (depth, name) in path.iter().enumerate() {
        let (key, item) = table.get_key_value(name)?;
        if depth + 1 == path.len() {
            spans(key, item, lines);
            return Some(());
        }
        if let Item::Value(value) = item {
            inline.insert(path.get(..=depth)?.to_vec(), value.span()?);
            return Some(());
        }
        table = item.as_table_like()?;
    }
    None
}

/// Every header with its keys, and every key, of an item.
fn spans(key: &Key, item: &Item, lines: &mut Vec<Range<usize>>) {
    match item {
        Item::None => {}
        Item::Value(value) => {
            if let (Some(key), Some(value)) = (key.span(), value.span()) {
                lines.push(key.start..value.end);
            }
        }
        Item::ArrayOfTables(tables) => tables.iter().for_each(|table| table_spans(table, lines)),
        Item::Table(table) => table_spans(table, lines),
    }
}

fn table_spans(table: &toml_edit::Table, lines: &mut Vec<Range<usize>>) {
    let header = (!table.is_implicit() && !table.is_dotted()).then(|| table.span()).flatten();
    let mut own = header;
    let mut below = Vec::new();
    for (name, item) in table.iter() {
        let mut inner = Vec::new();
        if let Some((key, _)) = table.get_key_value(name) {
            spans(key, item, &mut inner);
        }
        let in_body = item.is_value() || item.as_table().is_some_and(toml_edit::Table::is_dotted);
        match &mut own {
            // From the header to the last of its keys, with what stands between.
            Some(own) if in_body => own.end = inner.iter().map(|span| span.end).fold(own.end, usize::max),
            _ => below.extend(inner),
        }
    }
    lines.extend(own);
    lines.extend(below);
}

/// Where the values are: a text of several lines may look like a comment.
fn values(item: &Item, found: &mut Vec<Range<usize>>) {
    match item {
        Item::None => {}
        Item::Value(value) => found.extend(value.span()),
        Item::Table(table) => table.iter().for_each(|(_, item)| values(item, found)),
        Item::ArrayOfTables(tables) => {
            tables.iter().flat_map(toml_edit::Table::iter).for_each(|(_, item)| values(item, found));
        }
    }
}

/// Whole lines, with the comments that belong to them, and no two empty lines where there was one.
fn tidy(text: &str, spans: Vec<Range<usize>>, values: &[Range<usize>]) -> Vec<Range<usize>> {
    let starts: Vec<usize> =
        std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let line = |n: usize| -> &str {
        let start = starts.get(n).copied().unwrap_or(text.len());
        let end = starts.get(n + 1).copied().unwrap_or(text.len());
        text.get(start..end).unwrap_or_default()
    };
    let number = |offset: usize| starts.partition_point(|start| *start <= offset).saturating_sub(1);
    let indent = |n: usize| line(n).len() - line(n).trim_start().len();
    let blank = |n: usize| line(n).trim().is_empty();
    let count = if text.ends_with('\n') { starts.len() - 1 } else { starts.len() };

    let mut gone = vec![false; count];
    let mut mark = |from: usize, to: usize| {
        gone.iter_mut().take(to).skip(from).for_each(|gone| *gone = true);
    };
    for span in spans {
        let (mut first, last) = (number(span.start), number(span.end.saturating_sub(1)));
        let depth = indent(first);
        while let Some(above) = first.checked_sub(1)
            && line(above).trim_start().starts_with('#')
            && indent(above) <= depth
            && !values.iter().any(|value| starts.get(above).is_some_and(|start| value.contains(start)))
        {
            first = above;
        }
        mark(first, last + 1);
    }
    let is_gone = |gone: &[bool], n: usize| gone.get(n).copied().unwrap_or(false);
    // Empty lines between two parts that go, and those above where empty lines follow too.
    let mut n = 0;
    while n < count {
        if is_gone(&gone, n) {
            n += 1;
            continue;
        }
        let mut end = n;
        while end < count && blank(end) && !is_gone(&gone, end) {
            end += 1;
        }
        let below = (end..count).find(|line| !is_gone(&gone, *line));
        if end > n && is_gone(&gone, end) && below.is_none_or(blank) {
            gone.iter_mut().take(end).skip(n).for_each(|gone| *gone = true);
        }
        n = end.max(n + 1);
    }
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for n in (0..count).filter(|n| is_gone(&gone, *n)) {
        let start = starts.get(n).copied().unwrap_or(text.len());
        let end = start + line(n).len();
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

#[cfg(test)]
mod tests;
