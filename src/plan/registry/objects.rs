//! Registries whose data is in an object store: what the engine is told of it, where 2.x and 3.x differ, and
//! what their collector needs that one of a folder does not.

use anyhow::Result;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::super::{Content, Plan, UNIT_FOLDER};
use crate::facts::{Facts, Registry};
use crate::node::{Cache, Driver, ObjectStore};
use crate::template::{Json, ObjectsGc, render};

/// What 2.x would read past, without a word.
const ONLY_3: [&str; 4] = ["usedualstack", "accelerate", "usefipsendpoint", "loglevel"];
const CLASSES_OF_2: [&str; 3] = ["STANDARD", "REDUCED_REDUNDANCY", "NONE"];

/// What this engine would do otherwise than the profile says.
pub(super) fn check(store: &ObjectStore, registry: &Registry, refused: &mut Vec<String>) {
    if registry.major >= 3 {
        return;
    }
    let driver = store.driver.name();
    let way_out = "take it out, or install Distribution 3.x";
    if store.driver == Driver::Azure {
        // Its driver has no prefix there: the upstreams' data would lie in one heap.
        refused.push(
            "cache.storage.azure: Distribution 2.x keeps no upstreams apart in a container: install 3.x, and name it \
             in `cache.engine`"
                .to_owned(),
        );
    }
    for key in ONLY_3 {
        if store.settings.contains_key(key) {
            refused
                .push(format!("cache.storage.{driver}.{key}: Distribution 2.x does not know it: {way_out}"));
        }
    }
    if let Some(Value::String(class)) = store.settings.get("storageclass")
        && !CLASSES_OF_2.contains(&class.as_str())
    {
        let known = CLASSES_OF_2.join(", ");
        refused.push(format!(
            "cache.storage.s3.storageclass: Distribution 2.x does not know {class}: write one of {known}, or install \
             3.x"
        ));
    }
    let own = store.settings.contains_key("regionendpoint");
    if let Some(Value::Bool(forced)) = store.settings.get("forcepathstyle")
        && *forced != own
    {
        refused.push(format!(
            "cache.storage.s3.forcepathstyle: Distribution 2.x asks by path where `regionendpoint` is written, and \
             nowhere else: {way_out}"
        ));
    }
}

/// The driver's section for one upstream, secrets left out.
pub(super) fn settings(store: &ObjectStore, host: &str, registry: &Registry) -> Map<String, Value> {
    let mut settings = store.settings.clone();
    settings.insert("rootdirectory".to_owned(), store.folder(host).into());
    if registry.major < 3 {
        settings.remove("forcepathstyle");
    } else if settings.contains_key("regionendpoint") {
        // As 2.x does it; servers of one's own rarely have a name for each bucket.
        settings.entry("forcepathstyle").or_insert(true.into());
    }
    settings
}

/// A variable's name, and what Distribution shall read there.
pub(super) struct Variable {
    name: String,
    value: Secret,
}

enum Secret {
    Text(Zeroizing<String>),
    Map(Value),
}

impl Variable {
    pub(super) fn pair(&self) -> (&str, Json<'_>) {
        let value = match &self.value {
            Secret::Text(text) => Json::Text(text),
            Secret::Map(map) => Json::Map(map),
        };
        (&self.name, value)
    }
}

/// What goes into each registry's environment file. An absent secret is a problem that the facts have told.
pub(super) fn variables(cache: &Cache, facts: &Facts, refused: &mut Vec<String>) -> Vec<Variable> {
    let Some(store) = &cache.objects else { return Vec::new() };
    let mut variables = Vec::new();
    for (key, secret) in &facts.store_secrets {
        let value = if store.driver == Driver::Gcs {
            match serde_json::from_str::<Value>(secret) {
                Ok(map @ Value::Object(_)) => Secret::Map(map),
                _ => {
                    refused.push(
                        "cache.storage.gcs.keyfile: not the JSON of a service account's key: make one with `gcloud \
                         iam service-accounts keys create`"
                            .to_owned(),
                    );
                    continue;
                }
            }
        } else if let (Some((parent, key)), Some(Value::Object(section))) =
            (key.split_once('_'), key.split_once('_').and_then(|(parent, _)| store.settings.get(parent)))
        {
            // Distribution reads no variable for what is further in: it gets the whole section.
            let mut section = section.clone();
            section.insert(key.to_owned(), Value::from(secret.as_str()));
            variables.push(Variable { name: store.variable(parent), value: Secret::Map(section.into()) });
            continue;
        } else {
            Secret::Text(secret.clone())
        };
        variables.push(Variable { name: store.variable(key), value });
    }
    variables
}

/// The collector of a folder talks to nobody; this one has to reach the store, and shows who it is.
pub(super) fn drop_in(plan: &mut Plan) -> Result<()> {
    let text = render("the collector's drop-in", &ObjectsGc)?;
    plan.file(format!("{UNIT_FOLDER}/larder-gc@.service.d/50-objects.conf"), text, 0o644, Content::Ours);
    Ok(())
}
