//! Blocks of the profile as Rust types: one definition that is decoded, checked for unknown and missing keys, and
//! described in the JSON Schema.

use serde_json::{Value as Json, json};

/// Adds `null`, which takes a key away, to what a schema lets through.
pub(crate) fn nullable(mut schema: Json) -> Json {
    if let Some(kind) = schema.get("type").cloned() {
        set(&mut schema, "type", json!([kind, "null"]));
    }
    for list in ["enum", "oneOf", "anyOf"] {
        if let Some(Json::Array(options)) = schema.get_mut(list) {
            options.push(if list == "enum" { Json::Null } else { json!({ "type": "null" }) });
        }
    }
    schema
}

pub(crate) fn set(schema: &mut Json, key: &str, value: impl Into<Json>) {
    if let Some(object) = schema.as_object_mut() {
        object.insert(key.to_owned(), value.into());
    }
}

/// A doc comment as one line.
pub(crate) fn description(lines: &[&str]) -> Json {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ").into()
}

/// A text of ours as JSON: a default or an example as a profile writes it.
pub(crate) fn written(yaml: &str) -> Json {
    serde_yaml::from_str(yaml).unwrap_or_else(|_| yaml.into())
}

/// Completes the schema of one key.
pub(crate) fn annotate(schema: &mut Json, name: &str, about: &About) {
    let mut text = description(about.doc);
    if let (Some(words), Some(doc)) = (about.otherwise, text.as_str()) {
        text = format!("{doc}{BY_DEFAULT}{words}.").into();
    }
    set(schema, "description", text);
    if let Some(default) = about.default {
        set(schema, "default", written(default));
    }
    let required = about.required.map(written).and_then(|line| line.get(name).cloned());
    if let Some(example) = about.example.map(written).or(required) {
        set(schema, "examples", json!([example]));
    }
}

/// Between what a key means and what is so without it, in a description.
pub(crate) const BY_DEFAULT: &str = " By default: ";

/// What is written about one key.
pub(crate) struct About<'a> {
    pub(crate) doc: &'a [&'a str],
    /// A line with the key.
    pub(crate) required: Option<&'a str>,
    /// A value, as YAML.
    pub(crate) default: Option<&'a str>,
    /// Words, for what no value says.
    pub(crate) otherwise: Option<&'a str>,
    /// A value, as YAML.
    pub(crate) example: Option<&'a str>,
}

/// A map with these keys and no others, `written` like that in short. A field with `#[required = "an example"]` must be
/// there. Without an optional one its `#[default = "a value"]` counts, or what `#[otherwise = "words"]` say.
/// `#[example = "a value"]` is for the reader of the schema, where the type's own example does not fit.
macro_rules! record {
    (
        $(#[doc = $doc:literal])*
        $(#[written = $written:literal])?
        $visibility:vis struct $name:ident {
            $(
                $(#[doc = $about:literal])*
                $(#[required = $required:literal])?
                $(#[default = $default:literal])?
                $(#[otherwise = $otherwise:literal])?
                $(#[example = $example:literal])?
                $field:ident: $type:ty,
            )*
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug, Default)]
        $visibility struct $name {
            $( $(#[doc = $about])* pub $field: Option<$type>, )*
        }

        impl $crate::profile::decode::Decode for $name {
            fn decode<'a>(
                value: &'a $crate::profile::Value,
                decoder: &mut $crate::profile::decode::Decoder<'a>,
            ) -> Option<Self> {
                const KEYS: &[&'static str] = &[$(stringify!($field)),*];
                let mut record = Self::default();
                let fields = decoder.record(value, [$($written)?].first().copied())?;
                for (key, field) in fields {
                    match &**key {
                        $( stringify!($field) => record.$field = decoder.field(key, field), )*
                        _ => decoder.unknown(key, field.key, value, KEYS),
                    }
                }
                $($(
                    if fields.get(stringify!($field)).is_none_or(|field| field.value.is_null()) {
                        decoder.missing(stringify!($field), value, $required);
                    }
                )?)*
                Some(record)
            }

            fn schema() -> serde_json::Value {
                let mut properties = serde_json::Map::new();
                let mut required: Vec<&str> = Vec::new();
                $({
                    let about = $crate::profile::record::About {
                        doc: &[$($about),*],
                        required: [$($required)?].first().copied(),
                        default: [$($default)?].first().copied(),
                        otherwise: [$($otherwise)?].first().copied(),
                        example: [$($example)?].first().copied(),
                    };
                    let mut schema = <$type as $crate::profile::decode::Decode>::schema();
                    if about.required.is_none() {
                        schema = $crate::profile::record::nullable(schema);
                    }
                    required.extend(about.required.map(|_| stringify!($field)));
                    $crate::profile::record::annotate(&mut schema, stringify!($field), &about);
                    properties.insert(stringify!($field).to_owned(), schema);
                })*
                let mut schema = serde_json::json!({
                    "type": "object", "properties": properties, "additionalProperties": false,
                    "x-order": [$(stringify!($field)),*],
                });
                if !required.is_empty() {
                    $crate::profile::record::set(&mut schema, "required", required);
                }
                for example in [$($written)?] {
                    let example = $crate::profile::record::written(example);
                    $crate::profile::record::set(&mut schema, "examples", serde_json::json!([example]));
                }
                schema
            }
        }
    };
}

/// An enum that a profile spells as one of these words.
macro_rules! keyword {
    ($type:ty { $($word:literal => $variant:expr,)* }) => {
        impl $crate::profile::decode::Decode for $type {
            fn decode<'a>(
                value: &'a $crate::profile::Value,
                decoder: &mut $crate::profile::decode::Decoder<'a>,
            ) -> Option<Self> {
                match decoder.word(value, &[$($word),*])? {
                    $( $word => Some($variant), )*
                    _ => None,
                }
            }

            fn schema() -> serde_json::Value {
                serde_json::json!({ "enum": [$($word),*] })
            }
        }
    };
}

pub(crate) use {keyword, record};
