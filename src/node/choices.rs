//! Values of the profile that are spelt in more than one way.

use serde_json::{Value as Json, json};
use zeroize::Zeroizing;

use super::form::Mirror;
use super::storage::StoreForm;
use super::values::refusal;
use super::{
    AbsolutePath, ContainerRuntime, CredentialName, Engine, EnvName, Image, ImageSource, InterfaceMatch,
    InterfaceName, MacAddress, RemoteUrl, SecretSource,
};
use crate::profile::decode::{At, Decode, Decoder};
use crate::profile::record::{keyword, record, set};
use crate::profile::{Problem, Value};

/// A name, a MAC address, or `auto`.
#[derive(Debug)]
pub struct InterfaceForm(pub InterfaceMatch);

record! {
    /// An interface by its address.
    struct InterfaceMac {
        /// The interface's MAC address.
        #[required = "mac: \"52:54:00:12:34:56\""]
        mac: MacAddress,
    }
}

impl Decode for InterfaceForm {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        if value.is_map() {
            return InterfaceMac::decode(value, decoder)?.mac.map(|mac| Self(InterfaceMatch::Mac(mac)));
        }
        decoder.parse(value, |text| match text {
            "auto" => Ok(Self(InterfaceMatch::Auto)),
            _ => match InterfaceName::parse(text) {
                Ok(name) => Ok(Self(InterfaceMatch::Name(name))),
                Err(message) => Err(refusal(value, message)),
            },
        })
    }

    fn schema() -> Json {
        json!({ "oneOf": [InterfaceName::schema(), InterfaceMac::schema()] })
    }
}

/// The registry program.
#[derive(Debug)]
pub struct EngineForm(pub Engine);

record! {
    /// The registry program: a binary, or an image with what runs it.
    struct EngineMap {
        /// The registry binary.
        #[otherwise = "a container"]
        #[example = "/usr/local/bin/registry"]
        binary: AbsolutePath,
        /// What runs the image.
        #[otherwise = "a binary"]
        #[example = "podman"]
        container: ContainerRuntime,
        /// The registry's image by its name, or `file:` and the path of an archive.
        #[otherwise = "a binary"]
        image: At<Image>,
    }
}

keyword!(ContainerRuntime {
    "podman" => ContainerRuntime::Podman,
    "docker" => ContainerRuntime::Docker,
});

impl Decode for EngineForm {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        if !value.is_map() {
            return decoder.parse(value, |text| match text {
                "auto" => Ok(Self(Engine::Auto)),
                _ => Err(Problem::error(value.place(), "wanted `auto` or a map")
                    .help("write `auto`, or `{ binary: /usr/local/bin/registry }`")),
            });
        }
        let EngineMap { binary, container, image } = EngineMap::decode(value, decoder)?;
        match (binary, container, image) {
            (Some(binary), None, None) => Some(Self(Engine::Binary(binary))),
            (Some(_), _, _) => {
                let problem = decoder.problem(value.place(), "two engines at once");
                decoder.push(problem.help("write either `binary`, or `container` and `image`"));
                None
            }
            (None, Some(runtime), Some(image)) => match ImageSource::parse(image.value) {
                Ok(image) => Some(Self(Engine::Container { runtime, image })),
                Err(message) => {
                    let problem = decoder.problem(image.place, message);
                    decoder.push(problem);
                    None
                }
            },
            (None, Some(_), None) if !value.has("image") => {
                decoder.missing("image", value, "image: \"registry:3\"");
                None
            }
            (None, None, Some(_)) if !value.has("container") => {
                decoder.missing("container", value, "container: podman");
                None
            }
            (None, None, None) if !value.has("binary") => {
                decoder.missing("binary", value, "binary: /usr/local/bin/registry");
                None
            }
            _ => None,
        }
    }

    fn schema() -> Json {
        let mut map = EngineMap::schema();
        set(&mut map, "minProperties", 1);
        set(&mut map, "not", json!({ "required": ["binary", "container"] }));
        set(&mut map, "dependentRequired", json!({ "container": ["image"], "image": ["container"] }));
        json!({ "oneOf": [{ "const": "auto" }, map] })
    }
}

/// Where the data is.
#[derive(Debug)]
pub enum StorageForm {
    Folder(AbsolutePath),
    Objects(StoreForm),
}

impl Decode for StorageForm {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        if value.is_map() {
            return StoreForm::decode(value, decoder).map(Self::Objects);
        }
        AbsolutePath::decode(value, decoder).map(Self::Folder)
    }

    fn schema() -> Json {
        let mut options = vec![AbsolutePath::schema()];
        if let Some(Json::Array(drivers)) = StoreForm::schema().get("oneOf") {
            options.extend(drivers.iter().cloned());
        }
        json!({ "oneOf": options })
    }
}

/// A secret: the text itself, or where it is.
#[derive(Debug)]
pub struct Secret(pub SecretSource);

const SECRET_KEYS: [&str; 3] = ["file", "credential", "env"];

impl Decode for Secret {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        if value.is_list() {
            return decoder.wrong(value, "text, or `{ file: PATH }`");
        }
        if !value.is_map() {
            return decoder.parse(value, |text| {
                if text.is_empty() || text.chars().any(char::is_control) {
                    return Err(Problem::error(value.place(), "wanted one line of text"));
                }
                Ok(Self(SecretSource::Literal(Zeroizing::new(text.to_owned()))))
            });
        }
        let (key, field) = decoder.one_key(value, &SECRET_KEYS)?;
        Some(Self(match key {
            "file" => SecretSource::File(decoder.field::<AbsolutePath>(key, field)?.as_path().to_owned()),
            "credential" => {
                SecretSource::Credential(decoder.field::<CredentialName>(key, field)?.to_string())
            }
            _ => SecretSource::Env(decoder.field::<EnvName>(key, field)?.to_string()),
        }))
    }

    fn schema() -> Json {
        let one = |key: &str, mut schema: Json, about: &str| {
            set(&mut schema, "description", about);
            json!({
                "type": "object", "properties": { key: schema }, "required": [key], "additionalProperties": false,
            })
        };
        json!({ "title": "A secret: the text itself, or where it is: `{ file: PATH }`, `{ credential: NAME }` (systemd's) or `{ env: NAME }` (of `larder apply`)", "examples": [{ "file": "/etc/larder/secrets/NAME" }], "oneOf": [
            { "type": "string", "minLength": 1, "description": "The secret itself." },
            one("file", AbsolutePath::schema(), "A file that holds the secret."),
            one("credential", CredentialName::schema(), "A systemd credential."),
            one("env", EnvName::schema(), "An environment variable of `larder apply`."),
        ] })
    }
}

/// An endpoint's URL.
#[derive(Debug, Clone)]
pub struct MirrorUrl(pub RemoteUrl);

impl Decode for MirrorUrl {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        decoder.parse(value, |text| match RemoteUrl::parse(text) {
            Ok(url) => Ok(Self(url)),
            // containerd would drop them without a word.
            Err(_) if value.is_secret() => {
                Err(Problem::error(value.place(), "credentials have no place here")
                    .help("they go into `containerd.auth`, under the mirror's host"))
            }
            Err(message) => {
                let problem = Problem::error(value.place(), message);
                Err(match text.contains("://") || RemoteUrl::parse(&format!("https://{text}")).is_err() {
                    true => problem,
                    false => problem.help(format!("write `https://{text}`")),
                })
            }
        })
    }

    fn schema() -> Json {
        let mut schema = RemoteUrl::schema();
        set(
            &mut schema,
            "title",
            "A URL: http or https, host, optional port, optional path; no credentials in it",
        );
        set(&mut schema, "examples", json!(["https://mirror.gcr.io"]));
        schema
    }
}

/// A URL alone, or with what goes with it.
#[derive(Debug)]
pub struct MirrorForm(pub Mirror);

impl Decode for MirrorForm {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        if value.is_map() {
            return Mirror::decode(value, decoder).map(Self);
        }
        let url = At::<MirrorUrl>::decode(value, decoder)?;
        Some(Self(Mirror { url: Some(url), ..Mirror::default() }))
    }

    fn schema() -> Json {
        let mut map = Mirror::schema();
        if let Some(capabilities) = map.pointer_mut("/properties/capabilities") {
            set(capabilities, "minItems", 1);
            set(capabilities, "uniqueItems", true);
        }
        if let Some(client) = map.pointer_mut("/properties/client") {
            set(client, "minItems", 2);
            set(client, "maxItems", 2);
        }
        json!({ "oneOf": [MirrorUrl::schema(), map] })
    }
}
