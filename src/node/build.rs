//! From the profile as written to the model: defaults, then what only shows when values meet.

use std::time::Duration;

use ipnetwork::IpNetwork;
use serde_json::json;

use super::choices::{Secret, StorageForm};
use super::client::Fleet;
use super::form;
use super::upstream::{Defaults, all};
use super::values::Keyed;
use super::{
    AbsolutePath, Cache, Engine, Listen, Memory, Metrics, Node, Period, Schedule, SecretSource, Upstream,
    UpstreamHost, UpstreamPolicy, Verify,
};
use crate::profile::decode::{At, Decode, Decoder, PROBLEMS};
use crate::profile::record::set;
use crate::profile::{Loaded, Place, Problem, Problems};

const TIMEOUT: Duration = Duration::from_secs(60);
/// A registry at rest takes up to 45 MiB, and a pull needs some more.
const LEAST_MEMORY: u64 = 64 << 20;
const STORAGE: &str = "/var/lib/larder";

/// Where the data of a cache cannot be: other programs' places, and those that the units hide or that a boot
/// empties.
const NO_STORAGE: [&str; 17] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/home",
    "/lib",
    "/lib64",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/sys",
    "/tmp",
    "/usr",
    "/var/lib/larder/state",
    "/var/run",
    "/var/tmp",
];

impl Loaded {
    /// What the profile asks for, and the warnings.
    ///
    /// # Errors
    /// Everything that is wrong with the profile, warnings included.
    pub fn node(&self) -> Result<(Node, Problems), Problems> {
        let mut decoder = Decoder::default();
        let profile = form::Profile::decode(self.tree(), &mut decoder);
        let says = |key| self.tree().says(key) || decoder.is_meant(self.tree(), key);
        let blocks =
            Blocks { upstreams: says("upstreams"), cache: says("cache"), containerd: says("containerd") };
        let mut build = Build { loaded: self, blocks, problems: decoder.finish() };
        let node = profile.and_then(|profile| build.node(profile));
        let problems = self.problems(build.problems);
        match node {
            Some(node) if problems.errors() == 0 => Ok((node, problems)),
            _ => Err(problems),
        }
    }
}

/// The JSON Schema (draft 2020-12) of a whole profile. It takes what the parser takes, and refuses what a schema
/// can: rules between values are the parser's alone.
#[must_use]
pub fn schema() -> serde_json::Value {
    let mut schema = form::Profile::schema();
    set(&mut schema, "$schema", "https://json-schema.org/draft/2020-12/schema");
    set(&mut schema, "title", "Larder profile");
    set(&mut schema, "description", "What one machine of a registry-mirror fleet shall be");
    if let Some(upstream) = schema.pointer_mut("/properties/upstreams/additionalProperties") {
        set(upstream, "dependentRequired", json!({ "username": ["password"], "password": ["username"] }));
    }
    if let Some(addresses) = schema.pointer_mut("/properties/network/properties/addresses") {
        set(addresses, "minItems", 1);
    }
    if let Some(mirrors) =
        schema.pointer_mut("/properties/containerd/properties/mirrors/additionalProperties")
    {
        set(mirrors, "minItems", 1);
    }
    schema
}

/// Gathers problems while the model is put together from what could be decoded. A value that could not be has
/// been reported; nothing is concluded from its absence.
pub(super) struct Build<'a> {
    pub(super) loaded: &'a Loaded,
    blocks: Blocks,
    problems: Vec<Problem>,
}

/// Which blocks are written, right or wrong.
struct Blocks {
    upstreams: bool,
    cache: bool,
    containerd: bool,
}

impl Build<'_> {
    pub(super) fn error(&mut self, place: Place, message: impl Into<String>, help: impl Into<String>) {
        self.report(Problem::error(place, message).help(help));
    }

    /// Whether nothing has been found wrong so far.
    pub(super) fn is_clean(&self) -> bool {
        self.problems.iter().all(|problem| !problem.is_error())
    }

    /// A secret that is written down where everybody can read it.
    pub(super) fn in_clear(&mut self, path: &str, secret: &At<Secret>) {
        if matches!(secret.value.0, SecretSource::Literal(_)) && self.loaded.is_world_readable(secret.place) {
            let key = path.rsplit('.').next().unwrap_or(path);
            let message = format!("{path}: in clear, in a file that anybody on this machine can read");
            let help = format!(
                "write `{key}: {{ file: /etc/larder/secrets/NAME }}`, or make the profile's mode 0600"
            );
            self.error(secret.place, message, help);
        }
    }

    pub(super) fn report(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS {
            self.problems.push(problem);
        }
    }

    fn node(&mut self, profile: form::Profile) -> Option<Node> {
        let form::Profile { version: _, upstreams, network, mut cache, containerd, verify } = profile;
        let network = network.map(|network| self.network(network.value));
        let own: Option<&[At<IpNetwork>]> =
            network.as_ref().and_then(|network| network.addresses.whole.then_some(&*network.addresses.items));
        let listen = cache.as_ref().map(|cache| self.listen(&cache.value, network.is_some(), own));
        self.missing_blocks(cache.as_ref(), containerd.as_ref(), upstreams.as_ref());
        let (gc, scrub, restart) = match &cache {
            Some(cache) => (cache.value.gc.clone(), cache.value.scrub.clone(), cache.value.restart.clone()),
            None => (None, None, None),
        };
        let restart = restart.unwrap_or_default();
        // Of the nodes that share a store one is enough, and which is not for this one to say.
        let shared = cache.as_ref().and_then(|cache| cache.value.storage.as_ref());
        let shared = shared.is_some_and(|storage| matches!(storage.value, StorageForm::Objects(_)));
        let defaults = Defaults {
            scrub: all(scrub, if shared { Schedule::Never } else { Schedule::Every(Period::Monthly) }),
            gc: all(gc, if shared { Schedule::Never } else { Schedule::Every(Period::Weekly) }),
            restart: all(restart.at, Schedule::Every(Period::Hourly)),
            restart_always: restart.always.unwrap_or(false),
        };
        let forms = upstreams.map_or_else(Vec::new, |upstreams| upstreams.value.entries);
        if let Some(cache) = cache.as_ref().filter(|_| shared) {
            self.beyond_reach(&cache.value, &forms);
        }
        self.ports(&forms);
        self.sizes(&forms, cache.as_ref().and_then(|cache| cache.value.max_size));
        if let Some(listen) = listen {
            let access_is_said = match &cache {
                Some(cache) => cache.value.access.is_some(),
                None => false,
            };
            self.loops(&forms, listen, own.unwrap_or_default(), access_is_said);
            self.open_credentials(&forms, listen, access_is_said);
        }
        let metrics = match (&mut cache, listen) {
            (Some(cache), Some(listen)) => self.metrics(cache.value.metrics.take(), listen, &forms),
            _ => Metrics::default(),
        };
        let count = forms.len();
        let upstreams: Vec<Upstream> =
            forms.into_iter().filter_map(|(host, form)| self.upstream(host, form, &defaults)).collect();
        let is_whole = upstreams.len() == count;
        let is_https = match &cache {
            Some(cache) => cache.value.tls.is_some(),
            None => false,
        };
        let cache = match (cache, listen) {
            (Some(cache), Some(listen)) => Some(self.cache(cache.value, listen, metrics)?),
            _ => None,
        };
        let containerd = match containerd {
            Some(containerd) => {
                let own = own.unwrap_or_default();
                Some(self.containerd(
                    containerd,
                    &Fleet { upstreams: &upstreams, is_whole, listen, own, is_https },
                )?)
            }
            None => None,
        };
        let network = match network {
            Some(network) => Some(network.finish()?),
            None => None,
        };
        let verify = Verify {
            timeout: verify.as_ref().and_then(|v| v.timeout).map_or(TIMEOUT, |timeout| timeout.value),
            upstreams: verify.and_then(|verify| verify.upstreams).unwrap_or(UpstreamPolicy::Warn),
        };
        is_whole.then_some(Node { upstreams, network, cache, containerd, verify })
    }

    /// Blocks that make no sense without another.
    fn missing_blocks(
        &mut self,
        cache: Option<&At<form::Cache>>,
        containerd: Option<&At<form::Containerd>>,
        upstreams: Option<&At<Keyed<UpstreamHost, form::Upstream>>>,
    ) {
        let has_upstreams = match upstreams {
            Some(upstreams) => upstreams.value.is_written,
            None => self.blocks.upstreams,
        };
        let example = "write `upstreams: { docker.io: { port: 5000 } }`";
        for (name, place) in [("cache", cache.map(|c| c.place)), ("containerd", containerd.map(|c| c.place))]
        {
            if let Some(place) = place.filter(|_| !has_upstreams) {
                self.error(place, format!("{name}: there are no upstreams"), example);
            }
        }
        if let (Some(upstreams), false) = (upstreams, self.blocks.cache || self.blocks.containerd) {
            let message = "upstreams: nothing here uses them: there is neither `cache` nor `containerd`";
            self.report(
                Problem::warning(upstreams.place, message).help(
                    "write `cache: {}` or `containerd: {}`; without `upstreams` this warning goes away",
                ),
            );
        }
        if let Some(containerd) = containerd {
            let names_caches = match &containerd.value.caches {
                Some(caches) => !caches.value.items.is_empty() || !caches.value.whole,
                None => self.loaded.tree().get("containerd").is_some_and(|block| block.says("caches")),
            };
            let block = self.loaded.tree().get("containerd");
            let names_mirrors = block.is_some_and(|block| block.says("mirrors"));
            if !names_caches && !names_mirrors && !self.blocks.cache {
                let message =
                    "containerd: there is no cache to pull through: this node is none, and none is named";
                self.error(
                    containerd.place,
                    message,
                    "write `caches: [10.0.20.10]`, or `cache: {}` beside `containerd`",
                );
            }
        }
    }

    fn cache(&mut self, form: form::Cache, listen: Listen, metrics: Metrics) -> Option<Cache> {
        let access = self.access(form.access);
        let tls = Self::tls(form.tls);
        let engine = form.engine.map_or(Engine::Auto, |engine| engine.value.0);
        let (storage, objects) = match form.storage {
            None => (AbsolutePath::parse(STORAGE).ok()?, None),
            Some(At { value: StorageForm::Folder(path), place }) => {
                self.storage_folder(place, &path);
                (path, None)
            }
            Some(At { value: StorageForm::Objects(store), place }) => {
                (AbsolutePath::parse(STORAGE).ok()?, Some(self.object_store(place, store)?))
            }
        };
        let max_size = form.max_size.map(|size| size.value);
        let memory = form.memory.map_or_else(Memory::default, |memory| self.memory(memory));
        Some(Cache {
            listen,
            engine,
            storage,
            objects,
            max_size,
            memory,
            tls: tls?,
            metrics,
            access: access?,
        })
    }

    fn memory(&mut self, memory: At<form::Memory>) -> Memory {
        let form::Memory { high, max } = memory.value;
        for (key, size) in [("high", high), ("max", max)] {
            if let Some(size) = size.filter(|size| size.value.get() < LEAST_MEMORY) {
                let message = format!("cache.memory.{key}: a registry does not live on less than 64MiB");
                self.error(size.place, message, format!("write `{key}: 512MiB`"));
            }
        }
        if let (Some(high), Some(max)) = (high, max)
            && high.value.get() > max.value.get()
        {
            let problem = Problem::error(high.place, "cache.memory.high: it is above `max`");
            self.report(problem.related(max.place, "the bound").help("write less than `max`"));
        }
        if high.is_none() && max.is_none() {
            self.error(memory.place, "cache.memory: neither `high` nor `max`", "write `high: 512MiB`");
        }
        Memory { high: high.map(|size| size.value), max: max.map(|size| size.value) }
    }

    fn storage_folder(&mut self, place: Place, path: &AbsolutePath) {
        let help = "write a folder below /var/lib, /srv or a mount of its own";
        if let Some(root) = NO_STORAGE.iter().find(|root| path.as_path().starts_with(root)) {
            self.error(place, format!("cache.storage: no data can be kept in {root}"), help);
        } else if path.as_str() == "/" {
            self.error(place, "cache.storage: the root folder is not for the caches alone", help);
        }
    }
}
