//! Values of the profile that are more than text.

use serde_json::{Value as Json, json};

use super::{Calendar, Capability, Mtu, Order, Period, Port, Renderer, Text, UpstreamPolicy};
use crate::profile::decode::{At, Decode, Decoder};
use crate::profile::record::{keyword, nullable, record};
use crate::profile::suggest::nearest;
use crate::profile::{Problem, Value};

impl<T: Text> Decode for T {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        decoder.parse(value, |text| T::parse(text).map_err(|message| refusal(value, message)))
    }

    fn schema() -> Json {
        json!({ "type": "string", "pattern": T::PATTERN, "examples": T::EXAMPLES, "title": T::DESCRIPTION })
    }
}

/// What a type says of a text that it does not take; nothing of it where that is a secret.
pub(super) fn refusal(value: &Value, message: String) -> Problem {
    if value.is_secret() {
        return Problem::error(value.place(), "credentials have no place here")
            .help("they go into `username` and `password`");
    }
    Problem::error(value.place(), message)
}

/// A map from a kind of name to a kind of value, in the profile's order.
#[derive(Debug)]
pub struct Keyed<K, V> {
    pub entries: Vec<(At<K>, V)>,
    /// Is there anything in it, right or wrong?
    pub is_written: bool,
}

impl<K: Text, V: Decode> Decode for Keyed<K, V> {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        let fields = decoder.map(value)?;
        let mut entries = Vec::with_capacity(fields.len());
        for (name, field) in fields {
            if field.value.is_null() {
                continue;
            }
            let key = K::parse(name);
            if let Err(message) = &key {
                let problem = decoder.problem(field.key, message);
                decoder.push(problem);
            }
            let value = decoder.field(name, field);
            if let (Ok(key), Some(value)) = (key, value) {
                entries.push((At { value: key, place: field.key }, value));
            }
        }
        Some(Self { entries, is_written: fields.values().any(|field| !field.value.is_null()) })
    }

    fn schema() -> Json {
        let value = nullable(V::schema());
        json!({
            "type": "object",
            "propertyNames": { "pattern": K::PATTERN, "title": K::DESCRIPTION, "examples": K::EXAMPLES },
            "additionalProperties": value,
        })
    }
}

/// The version of the profile's format: 1.
#[derive(Debug)]
pub struct Version;

impl Decode for Version {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        match decoder.number(value, "the number 1")? {
            1 => Some(Self),
            other => {
                let message = format!("wanted 1, got {other}: this version of larder reads format 1 only");
                let problem = decoder.problem(value.place, message);
                decoder.push(problem);
                None
            }
        }
    }

    fn schema() -> Json {
        json!({ "type": "integer", "const": 1 })
    }
}

/// Makes a number type with a range decodable.
macro_rules! ranged {
    ($type:ty, $wanted:literal) => {
        impl Decode for $type {
            fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
                let wanted = format!(concat!($wanted, " from {} to {}"), Self::MIN, Self::MAX);
                match Self::new(decoder.number(value, &wanted)?) {
                    Ok(number) => Some(number),
                    Err(message) => {
                        let problem = decoder.problem(value.place, message);
                        decoder.push(problem);
                        None
                    }
                }
            }

            fn schema() -> Json {
                json!({ "type": "integer", "minimum": Self::MIN, "maximum": Self::MAX })
            }
        }
    };
}

ranged!(Port, "a port");
ranged!(Mtu, "an MTU");
ranged!(Downloads, "a number");

/// How many layers are downloaded at once.
#[derive(Debug)]
pub struct Downloads(pub u32);

impl Downloads {
    const MIN: u32 = 1;
    const MAX: u32 = 1000;

    fn new(number: u64) -> Result<Self, String> {
        match u32::try_from(number) {
            Ok(number) if (Self::MIN..=Self::MAX).contains(&number) => Ok(Self(number)),
            _ => Err(format!("wanted a number from 1 to 1000, got {number}")),
        }
    }
}

keyword!(Renderer {
    "auto" => Renderer::Auto,
    "networkd" => Renderer::Networkd,
    "netplan" => Renderer::Netplan,
    "networkmanager" => Renderer::NetworkManager,
    "ifupdown" => Renderer::Ifupdown,
});

keyword!(UpstreamPolicy {
    "warn" => UpstreamPolicy::Warn,
    "require" => UpstreamPolicy::Require,
});

keyword!(Order {
    "listed" => Order::Listed,
    "spread" => Order::Spread,
});

keyword!(Capability {
    "pull" => Capability::Pull,
    "resolve" => Capability::Resolve,
    "push" => Capability::Push,
});

/// When a registry is restarted, and whether it has to need it.
#[derive(Debug, Clone, Default)]
pub struct RestartForm {
    pub at: Option<At<ScheduleForm>>,
    pub always: Option<bool>,
}

record! {
    /// When a registry is restarted.
    #[written = "{ at: hourly, always: true }"]
    struct RestartMap {
        /// When.
        #[default = "hourly"]
        at: At<ScheduleForm>,
        /// `true`: also one that is small and well.
        #[default = "false"]
        always: bool,
    }
}

impl Decode for RestartForm {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        if value.is_map() {
            let RestartMap { at, always } = RestartMap::decode(value, decoder)?;
            return Some(Self { at, always });
        }
        Some(Self { at: Some(At::<ScheduleForm>::decode(value, decoder)?), always: None })
    }

    fn schema() -> Json {
        json!({ "oneOf": [ScheduleForm::schema(), RestartMap::schema()] })
    }
}

/// `never`, a period's name, or a calendar expression.
#[derive(Debug, Clone)]
pub enum ScheduleForm {
    Never,
    Every(Period),
    Calendar(Calendar),
}

impl Decode for ScheduleForm {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        if value.plain_boolean() == Some(false) {
            let problem = decoder.problem(value.place, "wanted a schedule, got a boolean");
            decoder.push(problem.help("did you mean `never`?"));
            return None;
        }
        decoder.parse(value, |text| {
            Ok(match text {
                "never" => Self::Never,
                "hourly" => Self::Every(Period::Hourly),
                "daily" => Self::Every(Period::Daily),
                "weekly" => Self::Every(Period::Weekly),
                "monthly" => Self::Every(Period::Monthly),
                _ => Self::Calendar(Calendar::parse(text).map_err(|message| {
                    let problem = refusal(value, message);
                    match nearest(text, ["never", "hourly", "daily", "weekly", "monthly"]) {
                        Some(word) => problem.help(format!("did you mean `{word}`?")),
                        None => problem,
                    }
                })?),
            })
        })
    }

    fn schema() -> Json {
        json!({
            "type": "string", "pattern": Calendar::PATTERN, "examples": ["weekly", "never", "Sun 03:00"],
            "title": "A schedule: `never`, `hourly`, `daily`, `weekly`, `monthly`, or a systemd calendar expression \
                      (systemd.time(7)) in quotes",
        })
    }
}
