//! `config_path` with the older settings beside it: containerd runs without CRI, and asks nobody. There is
//! nothing to keep the same, so what is written counts: a hosts.toml that is there stays, and the mirrors say
//! the rest.

use std::collections::{BTreeMap, BTreeSet};

use super::{ANY_OTHER, Comparison, Held, Present, folder_name, host_of, same_as, shown};
use crate::containerd::Version;
use crate::containerd::legacy::{self, DEFAULT, Key, Legacy, Tree};

const WILDCARD: &str = "*";

/// Who decides about which host.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// The older settings without those that a hosts.toml replaces.
    wanted: Legacy,
    /// By the registry host, or [`ANY_OTHER`].
    stays: BTreeMap<String, Held>,
    /// There is a `_default` of the operator's.
    default: bool,
    folders: BTreeMap<String, bool>,
    pub notes: Vec<String>,
}

impl Beside {
    /// # Errors
    /// What can neither stay nor be replaced.
    pub(super) fn read(
        legacy: &Legacy,
        dir: &str,
        present: &dyn Present,
    ) -> Result<Self, Vec<(Option<Key>, String)>> {
        let folders = present.hosts(dir);
        let mut beside = Self { wanted: legacy.clone(), folders, ..Self::default() };
        let all = legacy.mirrors.get(WILDCARD);
        let mut hosts = legacy.named_hosts();
        // What has a folder is not looked up in `_default`, whatever is in that folder.
        let with_folder = beside.folders.keys().map(|name| host_of(name));
        hosts.extend(with_folder.filter(|host| all.is_some() && legacy::is_image_host(host)));
        let mut reasons = Vec::new();
        for host in [ANY_OTHER.to_owned()].into_iter().chain(hosts) {
            match present.held(dir, &host) {
                Ok(None) => {}
                Ok(Some(held)) => {
                    let wrong = beside.decide(legacy, dir, host, held);
                    reasons.extend(wrong);
                }
                Err(reason) => reasons.push((key_of(legacy, &host), reason)),
            }
        }
        for name in beside.folders.keys() {
            let host = if name == DEFAULT { ANY_OTHER.to_owned() } else { host_of(name) };
            let Ok(Some(Held::Hosts { asked, .. })) = present.held(dir, &host) else { continue };
            // Without a word behind the URL, there is nothing about its TLS.
            let bare = asked.iter().filter(|one| !one.contains(", ")).filter_map(|one| {
                let authority = one.strip_prefix("https://")?.split('/').next()?;
                legacy.tls.get(authority).filter(|tls| !tls.is_empty()).map(|_| (one, authority))
            });
            beside.notes.extend(bare.map(|(url, authority)| {
                format!(
                    "{dir}/{name}/hosts.toml asks {url} without what registry.configs.{authority:?}.tls says, and that \
                     goes: write it there if it is meant"
                )
            }));
        }
        if beside.default {
            let own = beside.wanted.named_hosts().into_iter().filter(|host| is_said(&beside.wanted, host));
            beside.notes.extend(own.map(|host| {
                format!("{dir}/{DEFAULT} says nothing about {host}: that gets a folder of its own")
            }));
        }
        if reasons.is_empty() { Ok(beside) } else { Err(reasons) }
    }

    fn decide(
        &mut self,
        legacy: &Legacy,
        dir: &str,
        host: String,
        held: Held,
    ) -> Option<(Option<Key>, String)> {
        let key = if host == ANY_OTHER { WILDCARD } else { &host };
        match held {
            Held::Nothing(why) => {
                let refused = why.filter(|_| is_said(legacy, &host));
                self.notes.extend(refused.map(|why| format!("{why}: it is kept aside, and written anew")));
                if let Some(all) = self.wanted.mirrors.get(WILDCARD).cloned() {
                    self.wanted.mirrors.entry(key.to_owned()).or_insert(all);
                }
            }
            Held::Certificates(_) if is_said(legacy, &host) => {
                let folder = self.folder(&host);
                return Some((
                    key_of(legacy, &host),
                    format!(
                        "{dir}/{folder} holds certificates, which containerd does not look at beside the hosts.toml \
                         that this becomes: write that hosts.toml, with `ca` and `client`, and migrate again"
                    ),
                ));
            }
            Held::Certificates(ref asked) | Held::Hosts { ref asked, .. } => {
                // One that says the same is perhaps of a run that was killed: what follows from it is still wanted.
                if !is_said(legacy, &host) || !same_as(&written(legacy, &host), asked) {
                    self.default |= host == ANY_OTHER;
                    self.wanted.mirrors.shift_remove(key);
                }
                self.stays.insert(host, held);
            }
        }
        None
    }

    fn folder(&self, host: &str) -> String {
        if host == ANY_OTHER { DEFAULT.to_owned() } else { folder_name(host, &self.folders) }
    }

    /// What the older settings say of hosts without a hosts.toml.
    ///
    /// # Errors
    /// As [`Legacy::tree`].
    pub(super) fn tree(&self, version: Version) -> Result<Tree, Vec<(Key, String)>> {
        let mut tree = self.wanted.tree(version)?;
        // A file that only spells out what holds anyway would hide their `_default`.
        tree.hosts.retain(|host, _| {
            let stays = self.stays.contains_key(if host == DEFAULT { ANY_OTHER } else { host });
            !stays && (!self.default || is_said(&self.wanted, host))
        });
        Ok(tree)
    }

    /// What is written beside what will be asked.
    pub(super) fn compare(&self, legacy: &Legacy, tree: &Tree, dir: &str) -> Vec<Comparison> {
        let all = legacy.mirrors.contains_key(WILDCARD);
        let replaced = self.stays.keys().filter(|host| all || is_said(legacy, host));
        let mut hosts: BTreeSet<&str> = replaced.map(String::as_str).collect();
        hosts.extend(tree.hosts.keys().map(|host| if host == DEFAULT { ANY_OTHER } else { host.as_str() }));
        let last = hosts.take(ANY_OTHER);
        hosts.into_iter().chain(last).map(|host| self.compare_one(host, legacy, tree, dir)).collect()
    }

    fn compare_one(&self, host: &str, legacy: &Legacy, tree: &Tree, dir: &str) -> Comparison {
        let mut why = Vec::new();
        let written = written(legacy, host);
        let folder = self.folder(host);
        let setting =
            key_of(legacy, host).map_or("registry.mirrors.\"*\"".to_owned(), |key| super::name_of(&key));
        let after = match self.stays.get(host) {
            None => shown(&tree.endpoints(host)),
            Some(Held::Hosts { asked, fails }) => {
                why.push(format!("{dir}/{folder}/hosts.toml stays, and replaces {setting}"));
                why.extend(fails.iter().map(|reason| format!("no image of it can be pulled: {reason}")));
                asked.clone()
            }
            Some(Held::Certificates(asked)) => {
                why.push(format!("the certificates in {dir}/{folder} stay, and that folder hides {setting}"));
                asked.clone()
            }
            Some(Held::Nothing(_)) => Vec::new(),
        };
        let same = same_as(&written, &after);
        Comparison { host: host.to_owned(), before: Vec::new(), written, after, same, why }
    }
}

/// Whom the older settings mean. Those of TLS are meant, too, on a containerd that ignores them.
fn written(legacy: &Legacy, host: &str) -> Vec<String> {
    match legacy.endpoints(host, Version::OLDEST) {
        Ok(asked) => shown(&asked),
        Err(reason) => vec![reason],
    }
}

/// Whether the older settings name this host.
fn is_said(legacy: &Legacy, host: &str) -> bool {
    key_of(legacy, host).is_some()
}

fn key_of(legacy: &Legacy, host: &str) -> Option<Key> {
    let tls =
        |host: &str| legacy.tls.get(host).filter(|tls| !tls.is_empty()).map(|_| Key::Tls(host.to_owned()));
    let key = if host == ANY_OTHER { WILDCARD } else { host };
    let mirror = legacy.mirrors.contains_key(key).then(|| Key::Mirror(key.to_owned()));
    let docker = (host == legacy::DOCKER).then(|| tls(legacy::DOCKER_REGISTRY)).flatten();
    mirror.or_else(|| tls(host)).or(docker)
}
