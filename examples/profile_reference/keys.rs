//! The JSON Schema as what a reader looks up: blocks, and the keys in them, in the order of the code.

use std::collections::BTreeMap;

use serde_json::Value;

/// Between a key's meaning and what is so without it: `larder::profile::record` writes it.
const BY_DEFAULT: &str = " By default: ";

/// The map at one place of the profile.
#[derive(Debug)]
pub struct Block {
    /// `cache.memory`, `upstreams.NAME`, `network.routes[]`; empty at the top.
    pub path: String,
    /// What it is for.
    pub about: String,
    pub keys: Vec<Key>,
}

#[derive(Debug)]
pub struct Key {
    pub name: String,
    /// What it takes.
    pub kind: String,
    pub need: Need,
    pub about: String,
    /// As the schema has it.
    pub example: Value,
}

/// What is so without a key.
#[derive(Debug)]
pub enum Need {
    Required,
    /// Exactly one of its block.
    OneOf,
    Default(Value),
    /// In words.
    Otherwise(String),
}

/// Every block of a profile's schema.
pub fn blocks(schema: &Value) -> Vec<Block> {
    let mut out = Vec::new();
    block("", schema, &[schema], &mut out);
    out
}

/// `key: value`, its maps in the order of their blocks.
pub fn line(blocks: &[Block], key: &Key) -> String {
    format!("{}: {}", key.name, flow(blocks, &key.example, false))
}

fn block(path: &str, whole: &Value, options: &[&Value], out: &mut Vec<Block>) {
    let at = out.len();
    let about = split(whole).0;
    out.push(Block { path: path.to_owned(), about, keys: Vec::new() });
    for option in options {
        for name in names(option) {
            let Some(schema) = option["properties"].get(&name) else { continue };
            let key = Key {
                kind: kind(schema),
                need: need(option, &name, schema, options.len() > 1),
                about: split(schema).0,
                example: example(schema),
                name: name.clone(),
            };
            out[at].keys.push(key);
            let dot = if path.is_empty() { "" } else { "." };
            within(&format!("{path}{dot}{name}"), schema, schema, out);
        }
    }
}

/// The blocks of a value: itself, its items, what its names stand for.
fn within(path: &str, whole: &Value, schema: &Value, out: &mut Vec<Block>) {
    if schema.get("properties").is_some() {
        return block(path, whole, &[schema], out);
    }
    if schema["additionalProperties"].is_object() {
        return within(&format!("{path}.NAME"), whole, &schema["additionalProperties"], out);
    }
    if schema["items"].is_object() {
        return within(&format!("{path}[]"), whole, &schema["items"], out);
    }
    // What has a title is explained once, with all of its forms.
    let options = schema["oneOf"].as_array().filter(|_| schema.get("title").is_none());
    let maps: Vec<&Value> =
        options.into_iter().flatten().filter(|option| option.get("properties").is_some()).collect();
    if !maps.is_empty() {
        block(path, whole, &maps, out);
    }
}

fn names(schema: &Value) -> Vec<String> {
    match schema["x-order"].as_array() {
        Some(order) => order.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect(),
        None => {
            schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
        }
    }
}

fn need(option: &Value, name: &str, schema: &Value, is_one_of: bool) -> Need {
    let is_required = option["required"].as_array().is_some_and(|names| names.iter().any(|one| one == name));
    match (is_required, schema.get("default"), split(schema).1) {
        (true, ..) if is_one_of => Need::OneOf,
        (true, ..) => Need::Required,
        (_, Some(default), _) => Need::Default(default.clone()),
        (.., words) => Need::Otherwise(words),
    }
}

/// What it means, and what is so without it.
fn split(schema: &Value) -> (String, String) {
    let text = schema["description"].as_str().unwrap_or_default();
    let (about, words) = text.split_once(BY_DEFAULT).unwrap_or((text, ""));
    (about.to_owned(), words.trim_end_matches('.').to_owned())
}

/// A type's name, and what is to be said of it once.
fn titled(schema: &Value) -> Option<(String, String)> {
    let title = schema["title"].as_str()?;
    let (name, rest) = title.split_once(": ").unwrap_or((title, ""));
    let mut letters = name.chars();
    let first = letters.next()?.to_ascii_lowercase();
    Some((format!("{first}{}", letters.as_str()), rest.to_owned()))
}

/// The types that take more words than their name, by name.
pub fn kinds(schema: &Value) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut left = vec![schema];
    while let Some(schema) = left.pop() {
        if schema.is_object() && schema.get("properties").is_none() {
            out.extend(titled(schema).filter(|(_, rest)| !rest.is_empty()));
        }
        match schema {
            Value::Object(fields) => left.extend(fields.values()),
            Value::Array(items) => left.extend(items),
            _ => {}
        }
    }
    out
}

/// What a value of it is, in words.
pub fn kind(schema: &Value) -> String {
    if let Some((name, _)) = titled(schema) {
        return name;
    }
    if let Some(only) = schema.get("const") {
        return format!("`{}`", flow(&[], only, false));
    }
    if let Some(words) = schema["enum"].as_array() {
        let words = words.iter().filter(|word| !word.is_null());
        return words.map(|word| format!("`{}`", flow(&[], word, false))).collect::<Vec<_>>().join(", ");
    }
    if let Some(options) = schema["oneOf"].as_array() {
        let mut kinds: Vec<String> =
            options.iter().filter(|option| option["type"] != "null").map(kind).collect();
        kinds.dedup();
        return kinds.join(", or ");
    }
    let types = &schema["type"];
    let is =
        |name: &str| types == name || types.as_array().is_some_and(|all| all.iter().any(|one| one == name));
    if is("boolean") {
        "`true` or `false`".to_owned()
    } else if is("integer") {
        format!("a number from {} to {}", schema["minimum"], schema["maximum"])
    } else if is("array") {
        format!("a list; each: {}", kind(&schema["items"]))
    } else if schema["additionalProperties"].is_object() {
        let name = kind(&schema["propertyNames"]);
        format!("a map; each key: {name}; each value: {}", kind(&schema["additionalProperties"]))
    } else if is("object") {
        "a map".to_owned()
    } else {
        "text".to_owned()
    }
}

/// A value that it takes.
fn example(schema: &Value) -> Value {
    let written = schema["examples"].get(0).or_else(|| schema.get("const"));
    if let Some(example) = written {
        return example.clone();
    }
    let default = schema.get("default");
    if let Some(words) = schema["enum"].as_array() {
        return words
            .iter()
            .find(|word| !word.is_null() && Some(*word) != default)
            .cloned()
            .unwrap_or_default();
    }
    if schema["type"].as_array().is_some_and(|types| types.iter().any(|one| one == "boolean")) {
        return Value::Bool(default != Some(&Value::Bool(true)));
    }
    Value::Null
}

/// YAML in one line; `inside` braces or brackets more has to be quoted.
pub fn flow(blocks: &[Block], value: &Value, inside: bool) -> String {
    match value {
        Value::Array(items) => {
            format!("[{}]", items.iter().map(|item| flow(blocks, item, true)).collect::<Vec<_>>().join(", "))
        }
        Value::Object(fields) if fields.is_empty() => "{}".to_owned(),
        Value::Object(fields) => {
            let rank =
                |name: &str| blocks.iter().flat_map(|block| &block.keys).position(|key| key.name == name);
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| rank(name));
            let fields = fields.iter().map(|(key, value)| format!("{key}: {}", flow(blocks, value, true)));
            format!("{{ {} }}", fields.collect::<Vec<_>>().join(", "))
        }
        Value::String(text) => {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._~+-".contains(c);
            let is_url = !inside && text.starts_with("https://");
            let is_plain = text.chars().all(|c| is_plain(c) || (is_url && c == ':'));
            match serde_yaml::from_str::<Value>(text) {
                Ok(read) if is_plain && read == *value => text.clone(),
                _ => value.to_string(),
            }
        }
        other => other.to_string(),
    }
}
