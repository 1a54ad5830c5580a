use super::*;

#[derive(Default)]
struct Bare(BTreeMap<String, bool>);

/// Folders with what is in each.
struct Folders(BTreeMap<&'static str, BTreeMap<&'static str, Held>>);

impl Present for Folders {
    fn has_pem(&self, _path: &str, _what: &str) -> bool {
        true
    }
    fn hosts(&self, certs_dir: &str) -> BTreeMap<String, bool> {
        let folders = self.0.get(certs_dir).into_iter().flatten();
        folders.map(|(name, held)| ((*name).to_owned(), *held != Held::Nothing(None))).collect()
    }
    fn held(&self, certs_dir: &str, host: &str) -> Result<Option<Held>, String> {
        let name = if host == ANY_OTHER { DEFAULT } else { host };
        Ok(self.0.get(certs_dir).and_then(|folders| folders.get(name)).cloned())
    }
}

impl Present for Bare {
    fn has_pem(&self, path: &str, _what: &str) -> bool {
        !path.contains("missing")
    }
    fn hosts(&self, _certs_dir: &str) -> BTreeMap<String, bool> {
        self.0.clone()
    }
    fn held(&self, _certs_dir: &str, _host: &str) -> Result<Option<Held>, String> {
        Ok(None)
    }
}

const V1: Version = Version::new(1, 7, 24);
const V2: Version = Version::new(2, 1, 9);

fn installed(version: Version, main: &str, imports: &[(&str, &str)]) -> Containerd {
    Containerd {
        major: Some(version.major),
        config: Some(main.to_owned()),
        imports: imports.iter().map(|(p, t)| ((*p).to_owned(), (*t).to_owned())).collect(),
        ..Containerd::default()
    }
}

fn made(version: Version, main: &str, imports: &[(&str, &str)]) -> Migration {
    let made = migration(&installed(version, main, imports), version, &Bare::default()).unwrap().unwrap();
    let after = |path: &str, text: &str| file(&made, path).unwrap_or_else(|| text.to_owned());
    let imports: Vec<_> = imports.iter().map(|(p, t)| ((*p).to_owned(), after(p, t))).collect();
    let again = Containerd {
        major: Some(version.major),
        config: Some(after(CONTAINERD_CONFIG, main)),
        imports,
        ..Containerd::default()
    };
    assert!(migration(&again, version, &Bare::default()).unwrap().is_none(), "a second one does nothing");
    made
}

fn refused(version: Version, main: &str, imports: &[(&str, &str)]) -> Vec<String> {
    migration(&installed(version, main, imports), version, &Bare::default()).unwrap_err()
}

fn file(made: &Migration, path: &str) -> Option<String> {
    match made.plan.resources.get(path)? {
        super::super::Resource::File { bytes, .. } => Some(String::from_utf8(bytes.clone()).unwrap()),
        _ => None,
    }
}

const MIRROR: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"http://m:5000\"]\n";

#[test]
fn nothing_to_migrate() {
    for text in ["version = 2\n", "", "[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors]\n"] {
        assert!(migration(&installed(V1, text, &[]), V1, &Bare::default()).unwrap().is_none(), "{text}");
    }
}

#[test]
fn one_mirror() {
    let made = made(V1, MIRROR, &[]);
    assert_eq!(
        file(&made, CONTAINERD_CONFIG).unwrap(),
        "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"
    );
    let hosts = file(&made, "etc/containerd/certs.d/docker.io/hosts.toml").unwrap();
    assert!(hosts.starts_with("# Made by `larder migrate`"), "{hosts}");
    assert!(made.hosts.iter().all(|host| host.same));
    assert_eq!(made.hosts[0].after, ["http://m:5000/v2", "https://registry-1.docker.io/v2"]);
}

#[test]
fn imports_are_edited_where_the_settings_are() {
    let path = "etc/containerd/conf.d/m.toml";
    let main = "version = 2\nimports = [\"conf.d/*.toml\"]\n";
    let on_2 = made(V2, main, &[(path, MIRROR)]);
    assert_eq!(file(&on_2, path).unwrap(), "version = 2\n");
    assert!(file(&on_2, CONTAINERD_CONFIG).unwrap().contains("config_path"));
    let on_1 = made(V1, main, &[(path, MIRROR)]);
    assert!(file(&on_1, path).unwrap().contains("config_path"), "1.x takes the whole section from there");
    let both =
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"a.io\"]\nendpoint = []\n";
    assert!(refused(V1, both, &[(path, MIRROR)])[0].starts_with("/etc/containerd/config.toml:2: "));
    assert_eq!(made(V2, both, &[(path, MIRROR)]).hosts.len(), 2);
    assert!(refused(V2, MIRROR, &[(path, MIRROR)])[0].contains("keep one of them"));
}

#[test]
fn what_cannot_be_kept_the_same_is_refused() {
    let tls = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"h.io\".tls]\nca_file = \"/missing\"\n";
    assert!(refused(V1, tls, &[])[0].starts_with("/etc/containerd/config.toml:2: "));
    assert!(refused(V2, &MIRROR.replace("version = 2\n", ""), &[])[0].contains("containerd config migrate"));
    assert!(refused(V1, &MIRROR.replace("version = 2\n", ""), &[])[0].contains("reads nothing"));
}

#[test]
fn where_hosts_toml_decides_already_only_the_dead_settings_go() {
    let tls = "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry.configs.\"h.io\".tls]\nca_file = \"/c\"\n";
    let set = tls.replace("version = 3\n", "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n");
    let there = Bare([("h.io".to_owned(), true)].into());
    for (version, text) in [(Version::new(2, 2, 7), tls), (V2, &set)] {
        let made = migration(&installed(version, text, &[]), version, &there).unwrap().unwrap();
        assert!(file(&made, "etc/containerd/certs.d/h.io/hosts.toml").is_none());
        assert!(
            made.notes.iter().any(|note| note.contains("decides about h.io already")),
            "{:?}",
            made.notes
        );
        assert!(made.hosts.is_empty());
    }
    // Before 2.2 nothing was read where nothing is set.
    let made = migration(&installed(V2, tls, &[]), V2, &there).unwrap().unwrap();
    assert!(file(&made, "etc/containerd/certs.d/h.io/hosts.toml").is_some());
}

#[test]
fn files_that_were_not_read_before_are_shown() {
    let bare = Bare([("quay.io".to_owned(), true), ("m_5_".to_owned(), true)].into());
    let text = MIRROR.replace("docker.io", "m:5");
    let made = migration(&installed(V1, &text, &[]), V1, &bare).unwrap().unwrap();
    let quay = made.hosts.iter().find(|one| one.host == "quay.io").unwrap();
    assert!(!quay.same && quay.why[0].contains("certs.d/quay.io was not read before"), "{quay:?}");
    assert_eq!(quay.before, ["https://quay.io/v2"]);
    assert!(file(&made, "etc/containerd/certs.d/m_5_/hosts.toml").is_some());
}

// ---- config_path beside the older settings

const BESIDE: &str = r#"version = 2
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "/x/certs.d" # ours
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
endpoint = ["https://m.io:5000"]
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."quay.io"]
endpoint = ["https://m.io:5000/v2/quay"]
[plugins."io.containerd.grpc.v1.cri".registry.configs."m.io:5000".tls]
ca_file = "/ca"
"#;
const VERSIONS: [Version; 6] =
    [Version::new(1, 6, 20), V1, Version::new(2, 0, 11), V2, Version::new(2, 2, 7), Version::new(2, 3, 4)];

fn asks(urls: &[&str]) -> Held {
    Held::Hosts { asked: urls.iter().map(|url| (*url).to_owned()).collect(), fails: None }
}

fn with(
    version: Version,
    text: &str,
    there: Vec<(&'static str, Vec<(&'static str, Held)>)>,
) -> Result<Migration, Vec<String>> {
    let there =
        Folders(there.into_iter().map(|(dir, folders)| (dir, folders.into_iter().collect())).collect());
    migration(&installed(version, text, &[]), version, &there).map(|made| made.unwrap())
}

fn of<'m>(made: &'m Migration, host: &str) -> &'m Comparison {
    made.hosts.iter().find(|one| one.host == host).unwrap_or_else(|| panic!("{host}: {:#?}", made.hosts))
}

#[test]
fn beside_config_path_what_is_written_counts_on_every_version() {
    for version in VERSIONS {
        let made = with(version, BESIDE, vec![]).unwrap();
        assert_eq!(
            made.down.as_deref(),
            Some(
                "config_path (/etc/containerd/config.toml:3) and registry.mirrors (/etc/containerd/config.toml:4) beside each other"
            )
        );
        assert_eq!(
            file(&made, CONTAINERD_CONFIG).unwrap(),
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/x/certs.d\" # ours\n",
            "{version}"
        );
        let docker = of(&made, "docker.io");
        assert!(docker.before.is_empty() && docker.same, "{docker:?}");
        assert_eq!(docker.written, ["https://m.io:5000/v2, ca /ca", "https://registry-1.docker.io/v2"]);
        assert_eq!(docker.after, docker.written, "{version}");
        assert!(file(&made, "x/certs.d/docker.io/hosts.toml").unwrap().contains("/ca"));
    }
}

#[test]
fn tls_alone_takes_cri_down_on_containerd_1() {
    let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/x\"\n\
                [plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"m.io\".tls]\nca_file = \"/ca\"\n";
    let made = with(V1, text, vec![]).unwrap();
    assert!(made.down.unwrap().contains("configs (/etc/containerd/config.toml:4)"));
    assert!(with(V2, text, vec![]).unwrap().down.is_none());
}

#[test]
fn a_hosts_toml_that_is_there_stays_and_replaces_the_mirror() {
    let quay = asks(&["https://elsewhere.io/v2", "https://quay.io/v2"]);
    let docker = asks(&["https://m.io:5000/v2, ca /ca", "https://registry-1.docker.io/v2"]);
    let made =
        with(V1, BESIDE, vec![("/x/certs.d", vec![("quay.io", quay), ("docker.io", docker)])]).unwrap();
    assert!(file(&made, "x/certs.d/quay.io/hosts.toml").is_none());
    assert!(file(&made, "x/certs.d/docker.io/hosts.toml").is_none());
    assert!(file(&made, "x/certs.d/m.io:5000/hosts.toml").is_some());
    assert!(of(&made, "docker.io").same);
    let quay = of(&made, "quay.io");
    assert!(!quay.same);
    assert_eq!(quay.written[0], "https://m.io:5000/v2/quay, ca /ca");
    assert_eq!(quay.after[0], "https://elsewhere.io/v2");
    assert!(!made.notes.iter().any(|note| note.contains("without what")), "{:?}", made.notes);
    assert_eq!(quay.why, ["/x/certs.d/quay.io/hosts.toml stays, and replaces registry.mirrors.\"quay.io\""]);
}

#[test]
fn tls_settings_that_a_hosts_toml_leaves_out_are_named() {
    let there = vec![("ghcr.io", asks(&["https://m.io:5000/v2", "https://ghcr.io/v2"]))];
    let made = with(V1, BESIDE, vec![("/x/certs.d", there)]).unwrap();
    let wanted = "/x/certs.d/ghcr.io/hosts.toml asks https://m.io:5000/v2 without what registry.configs.\"m.io:5000\".tls says";
    assert!(made.notes.iter().any(|note| note.starts_with(wanted)), "{:?}", made.notes);
}

#[test]
fn what_a_killed_run_wrote_changes_nothing() {
    let text =
        BESIDE.replace("\"docker.io\"", "\"*\"").replace("https://m.io:5000\"", "http://localhost:5000\"");
    let whole = with(V1, &text, vec![]).unwrap();
    let hosts = |made: &Migration| -> Vec<String> { made.hosts.iter().map(|one| one.host.clone()).collect() };
    assert!(hosts(&whole).contains(&"localhost:5000".to_owned()));
    let there = vec![("_default", asks(&["http://localhost:5000/v2", "https://HOST/v2"]))];
    let rest = with(V1, &text, vec![("/x/certs.d", there)]).unwrap();
    assert_eq!(hosts(&rest), hosts(&whole));
    assert!(rest.hosts.iter().all(|one| one.same));
    assert!(file(&rest, "x/certs.d/_default/hosts.toml").is_none());
    assert!(file(&rest, "x/certs.d/localhost:5000/hosts.toml").is_some());
}

#[test]
fn what_containerd_takes_nothing_of_is_written_anew() {
    let broken = Held::Nothing(Some("/x/certs.d/quay.io/hosts.toml:1: no TOML".to_owned()));
    let made = with(V1, BESIDE, vec![("/x/certs.d", vec![("quay.io", broken)])]).unwrap();
    assert!(of(&made, "quay.io").same && file(&made, "x/certs.d/quay.io/hosts.toml").is_some());
    assert!(made.notes.iter().any(|note| note.contains("no TOML: it is kept aside")), "{:?}", made.notes);
    let certificates = Held::Certificates(vec!["https://quay.io/v2, ca /c".to_owned()]);
    let reasons = with(V1, BESIDE, vec![("/x/certs.d", vec![("quay.io", certificates)])]).unwrap_err();
    assert!(
        reasons[0].starts_with("/etc/containerd/config.toml:6: registry.mirrors.\"quay.io\": "),
        "{reasons:?}"
    );
}

#[test]
fn the_wildcard_and_default() {
    let text = BESIDE.replace("\"docker.io\"", "\"*\"");
    let made = with(
        V1,
        &text,
        vec![("/x/certs.d", vec![("ghcr.io", asks(&["https://ghcr.io/v2"])), ("a.io", Held::Nothing(None))])],
    )
    .unwrap();
    assert!(file(&made, "x/certs.d/_default/hosts.toml").is_some());
    assert!(of(&made, ANY_OTHER).same && of(&made, "a.io").same, "an empty folder hides _default");
    assert!(of(&made, "ghcr.io").why[0].ends_with("replaces registry.mirrors.\"*\""));
    // Theirs stays, and nothing hides it but what is named.
    let made = with(V1, &text, vec![("/x/certs.d", vec![("_default", asks(&["https://d.io/v2"]))])]).unwrap();
    assert!(file(&made, "x/certs.d/_default/hosts.toml").is_none());
    let hosts: Vec<_> = made.hosts.iter().map(|one| one.host.as_str()).collect();
    assert_eq!(hosts, ["m.io:5000", "quay.io", ANY_OTHER]);
    assert!(!of(&made, ANY_OTHER).same);
}

#[test]
fn two_folders_become_one_where_nothing_is_lost() {
    let text = BESIDE.replace("/x/certs.d", "/x/certs.d:/y");
    let quay = || vec![("quay.io", asks(&["https://quay.io/v2"]))];
    let set = |made: &Migration| {
        let text = file(made, CONTAINERD_CONFIG).unwrap();
        text.lines().nth(2).unwrap().to_owned()
    };
    let first = "config_path = \"/x/certs.d\" # ours";
    let second = "config_path = \"/y\" # ours";
    let cases = [
        (vec![], first),
        (vec![("/x/certs.d", quay())], first),
        (vec![("/y", quay())], second),
        (vec![("/x/certs.d", quay()), ("/y", quay())], first),
        (vec![("/x/certs.d", quay()), ("/y", vec![("ghcr.io", Held::Nothing(None))])], first),
    ];
    for (there, wanted) in cases {
        for version in VERSIONS {
            let made = with(version, &text, there.clone()).unwrap();
            assert_eq!(set(&made), wanted);
            assert!(made.notes.iter().any(|note| note.contains("becomes")), "{:?}", made.notes);
        }
    }
    let there = vec![("/x/certs.d", quay()), ("/y", vec![("ghcr.io", asks(&[]))])];
    let reasons = with(V1, &text, there).unwrap_err();
    assert!(reasons[0].starts_with("/etc/containerd/config.toml:3: config_path = "), "{reasons:?}");
    assert!(reasons[0].contains("/y/ghcr.io would no longer be read: move"), "{reasons:?}");
    let relative = BESIDE.replace("/x/certs.d", "certs.d");
    assert!(with(V1, &relative, vec![]).unwrap_err()[0].contains("name one"));
}

#[test]
fn the_built_in_config_path_of_2_2_0_is_beside_them_too() {
    let made = with(Version::new(2, 2, 0), MIRROR, vec![]).unwrap();
    assert!(made.down.unwrap().starts_with("config_path (built into containerd 2.2.0)"));
    assert!(with(Version::new(2, 2, 2), MIRROR, vec![]).unwrap().down.is_none());
}

#[test]
fn a_drop_in_may_have_set_config_path() {
    let path = "etc/containerd/conf.d/m.toml";
    let drop_in = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/x\"\n";
    let made = made(V2, MIRROR, &[(path, drop_in)]);
    assert_eq!(
        made.down.as_deref(),
        Some(
            "config_path (/etc/containerd/conf.d/m.toml:3) and registry.mirrors (/etc/containerd/config.toml:2) beside each other"
        )
    );
    assert!(file(&made, path).is_none());
    assert!(file(&made, CONTAINERD_CONFIG).unwrap().contains("config_path = \"/x\""));
    // containerd 1 takes CRI's section from the drop-in alone: the mirrors have no effect.
    assert!(refused(V1, MIRROR, &[(path, drop_in)])[0].contains("bring the two together"));
}
