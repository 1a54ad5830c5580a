use super::*;

#[derive(Default)]
struct Bare(BTreeMap<String, bool>);

impl Present for Bare {
    fn has_pem(&self, path: &str, _what: &str) -> bool {
        !path.contains("missing")
    }
    fn hosts(&self, _certs_dir: &str) -> BTreeMap<String, bool> {
        self.0.clone()
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
    let beside = MIRROR.replace(
        "version = 2\n",
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/x\"\n",
    );
    assert!(refused(V1, &beside, &[])[0].starts_with("/etc/containerd/config.toml:3: config_path"));
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
