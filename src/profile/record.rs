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

/// A map with these keys and no others, `written` like that in short. A field with `#[required = "an example"]` must be there.
macro_rules! record {
    (
        $(#[doc = $doc:literal])*
        $(#[written = $written:literal])?
        $visibility:vis struct $name:ident {
            $(
                $(#[doc = $about:literal])*
                $(#[required = $example:literal])?
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
                        decoder.missing(stringify!($field), value, $example);
                    }
                )?)*
                Some(record)
            }

            fn schema() -> serde_json::Value {
                let mut properties = serde_json::Map::new();
                let mut required: Vec<&str> = Vec::new();
                $({
                    let example: Option<&str> = [$($example)?].first().copied();
                    let schema = <$type as $crate::profile::decode::Decode>::schema();
                    let mut schema = match example {
                        Some(_) => schema,
                        None => $crate::profile::record::nullable(schema),
                    };
                    required.extend(example.map(|_| stringify!($field)));
                    let about = $crate::profile::record::description(&[$($about),*]);
                    $crate::profile::record::set(&mut schema, "description", about);
                    properties.insert(stringify!($field).to_owned(), schema);
                })*
                let mut schema = serde_json::json!({
                    "type": "object", "properties": properties, "additionalProperties": false,
                });
                if !required.is_empty() {
                    $crate::profile::record::set(&mut schema, "required", required);
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
