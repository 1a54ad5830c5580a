#![allow(clippy::disallowed_methods, reason = "a test may")]

use proptest::prelude::*;

use super::*;

const V1_6: Version = Version::new(1, 6, 20);
const V1_7: Version = Version::new(1, 7, 24);
const V2_0: Version = Version::new(2, 0, 11);
const V2_1: Version = Version::new(2, 1, 9);
const V2_2: Version = Version::new(2, 2, 7);
const V2_3: Version = Version::new(2, 3, 4);
const V2_4: Version = Version::new(2, 4, 0);
const ALL: [Version; 7] = [V1_6, V1_7, V2_0, V2_1, V2_2, V2_3, V2_4];
const DIR: &str = "/etc/containerd/certs.d";

/// A tree below /etc/containerd; `config.toml` first.
fn read(version: Version, files: &[(&str, &str)]) -> Effective {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join("etc/containerd").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    Effective::read(&Root::open(dir.path()).unwrap(), version).unwrap()
}

fn v1(body: &str) -> String {
    format!("[plugins.cri.registry]\n{body}\n")
}

fn v2(body: &str) -> String {
    format!("version = 2\n[plugins.\"{V2}\".registry]\n{body}\n")
}

fn v3(body: &str) -> String {
    format!("version = 3\n[plugins.\"{V3}\".registry]\n{body}\n")
}

fn path(text: &str) -> String {
    format!("config_path = {text:?}")
}

fn texts(notes: &[Note]) -> Vec<String> {
    notes.iter().map(ToString::to_string).collect()
}

fn set(effective: &Effective) -> (&str, Option<String>) {
    (&effective.config_path.value, effective.config_path.origin.as_ref().map(ToString::to_string))
}

fn main_line(line: usize) -> Option<String> {
    Some(format!("/{MAIN}:{line}"))
}

#[test]
fn without_a_file_the_built_in_default_counts() {
    for version in ALL {
        let effective = read(version, &[]);
        let wanted = if version < V2_2 { "" } else { DOCKER_TOO };
        assert_eq!(set(&effective), (wanted, None), "{version}");
        assert!(effective.is_up() && effective.main.is_none(), "{version}");
    }
}

#[test]
fn each_containerd_reads_the_versions_of_its_time() {
    let ids = [V1, V2, V3];
    // Per containerd: for no version, 1, 2, 3 and 4, the id whose config_path counts; `-` none, `!` fatal.
    for (version, wanted) in [
        (V1_6, "0 0 1 1 1"),
        (Version::new(1, 6, 39), "0 0 1 ! !"),
        (V1_7, "0 0 1 ! !"),
        (Version::new(1, 7, 10), "0 0 1 1 1"),
        (V2_0, "2 2 1 2 !"),
        (V2_1, "2 2 1 2 !"),
        (V2_2, "2 2 1 2 !"),
        (V2_3, "0 0 1 1 2"),
    ] {
        let found = ["", "version = 1\n", "version = 2\n", "version = 3\n", "version = 4\n"].map(|header| {
            // In a file with another id than the version's, that id has no effect or stops containerd.
            let reads = |id: &str| {
                let text = format!("{header}[plugins.\"{id}\".registry]\nconfig_path = \"/{id}\"\n");
                let effective = read(version, &[("config.toml", &text)]);
                (effective.fatal.is_empty(), effective.config_path.value == format!("/{id}"))
            };
            let results = ids.map(reads);
            if results.iter().skip(1).all(|(starts, _)| !starts) {
                return "!".to_owned();
            }
            results
                .iter()
                .position(|(starts, counts)| *starts && *counts)
                .map_or("-".to_owned(), |at| at.to_string())
        });
        assert_eq!(found.join(" "), wanted, "{version}");
    }
}

#[test]
fn a_file_without_a_version_loses_cri_on_2_0_to_2_2() {
    let text = v1(&path(DIR));
    for version in [V2_0, V2_1] {
        let effective = read(version, &[("config.toml", &text)]);
        assert_eq!(set(&effective), ("", None), "{version}");
        let ignored = texts(&effective.ignored);
        assert!(
            ignored[0].starts_with("/etc/containerd/config.toml:2: registry.config_path: lost: "),
            "{version}: {ignored:?}"
        );
    }
    assert_eq!(set(&read(V2_3, &[("config.toml", &text)])), (DIR, main_line(2)));
}

#[test]
fn the_newest_version_that_a_containerd_takes() {
    for (version, text, wanted) in [
        (V2_1, "version = 4\n", "version = 4: containerd 2.1.9 takes 3 at most and does not start"),
        (V2_3, "version = 5\n", "version = 5: containerd 2.3.4 takes 4 at most and does not start"),
        (V1_7, "version = 3\n", "version = 3: containerd 1.7.24 takes 2 at most and does not start"),
    ] {
        let effective = read(version, &[("config.toml", text)]);
        assert_eq!(texts(&effective.fatal), [format!("/etc/containerd/config.toml:1: {wanted}")]);
    }
}

#[test]
fn what_stops_containerd() {
    for (what, text, line) in [
        ("no TOML", "version = = 2\n", 1),
        ("a table twice", "version = 2\n[plugins]\n[plugins]\n", 3),
        ("config_path is a list", &*v2("config_path = [\"/a\"]"), 3),
        ("mirrors is a list", &*v2("mirrors = []"), 3),
        ("endpoint is a text", &*v2("mirrors.\"x\".endpoint = \"http://a\""), 3),
        ("version is a text", "version = \"2\"\n", 1),
        ("imports is a text", "version = 2\nimports = \"x\"\n", 2),
        ("a missing import", "version = 2\nimports = [\"x.toml\"]\n", 2),
        ("an import that is a folder", "version = 2\nimports = [\"/etc\"]\n", 2),
        ("a bad pattern", "version = 2\nimports = [\"[*\"]\n", 2),
        ("a plugin by its short name", "version = 2\ndisabled_plugins = [\"cri\"]\n", 2),
    ] {
        for version in ALL {
            let effective = read(version, &[("config.toml", text)]);
            let found: Vec<_> = effective.fatal.iter().map(|note| note.origin.line).collect();
            assert_eq!(found, [Some(line)], "{what} on {version}: {:?}", texts(&effective.fatal));
        }
    }
}

#[test]
fn what_only_containerd_1_or_2_stumbles_over() {
    let bracket = v2("[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"[::1]:5000\"]");
    let mark = format!("\u{feff}{}", v2(""));
    let short = "version = 2\n[plugins.cri]\n";
    for (what, text, one, two) in [
        ("a bracket", &*bracket, false, true),
        ("a mark", &*mark, true, false),
        ("a short id", short, false, true),
    ] {
        for version in ALL {
            let wanted = if version.major == 1 { one } else { two };
            let effective = read(version, &[("config.toml", text)]);
            assert_eq!(
                effective.fatal.is_empty(),
                wanted,
                "{what} on {version}: {:?}",
                texts(&effective.fatal)
            );
        }
    }
}

#[test]
fn toml_of_another_time() {
    // Per containerd, whether it starts.
    for (what, body, wanted) in [
        ("a newline in an inline table", "timeouts = { a = \"1s\",\n b = \"1s\" }", "yynnnny"),
        ("a trailing comma", "timeouts = { a = \"1s\", }", "nnnnnny"),
        ("escape e", "root = \"\\e\"", "nnyyyyy"),
        ("escape x", "root = \"\\x41\"", "nnnnnny"),
        ("no escape", "root = '\\x41'\nstate = \"\\\\x\"", "yyyyyyy"),
    ] {
        let text = format!("version = 2\n{body}\n");
        let starts =
            |version| if read(version, &[("config.toml", &text)]).fatal.is_empty() { 'y' } else { 'n' };
        assert_eq!(ALL.map(starts).iter().collect::<String>(), wanted, "{what}");
    }
}

#[test]
fn what_takes_cri_down() {
    let mirrors = format!("{}\n[plugins.\"{V2}\".registry.mirrors.\"*\"]\nendpoint = []", path(DIR));
    let tls = format!("{}\n[plugins.\"{V2}\".registry.configs.\"h:5\".tls]\nca_file = \"/x\"", path(DIR));
    let auth = format!("{}\n[plugins.\"{V2}\".registry.configs.\"h:5\".auth]\nusername = \"u\"", path(DIR));
    let empty = format!("{}\n[plugins.\"{V2}\".registry.mirrors]", path(DIR));
    let headers = format!("{}\n[plugins.\"{V2}\".registry.headers]\nX = [\"y\"]", path(DIR));
    let disabled = format!("version = 2\ndisabled_plugins = [{V2:?}]\n");
    let timeout = format!("version = 2\n[plugins.\"{V2}\"]\nimage_pull_progress_timeout = \"5\"\n");
    for (what, text, lines, only_on) in [
        ("mirrors", &*v2(&mirrors), &[5][..], None),
        ("tls", &*v2(&tls), &[4], Some(1)),
        ("auth", &*v2(&auth), &[], None),
        ("no mirror", &*v2(&empty), &[], None),
        ("headers", &*v2(&headers), &[], None),
        ("disabled", &*disabled, &[2], None),
    ] {
        for version in ALL {
            let effective = read(version, &[("config.toml", text)]);
            let wanted = if only_on.is_none_or(|major| major == version.major) { lines } else { &[] };
            let found: Vec<_> = effective.cri_down.iter().filter_map(|note| note.origin.line).collect();
            assert_eq!(found, wanted, "{what} on {version}: {:?}", texts(&effective.cri_down));
            assert!(effective.fatal.is_empty(), "{what} on {version}: containerd itself starts");
        }
    }
    let down = |version| !read(version, &[("config.toml", &timeout)]).cri_down.is_empty();
    assert_eq!(ALL.map(down), [false, true, true, true, true, true, true], "progress timeout");
}

#[test]
fn dockers_package_has_cri_switched_off_in_a_file_without_version() {
    for version in ALL {
        let effective = read(version, &[("config.toml", "disabled_plugins = [\"cri\"]\n")]);
        assert_eq!(effective.fatal, [], "{version}");
        assert_eq!(effective.cri_down.len(), 1, "{version}");
    }
}

#[test]
fn mirrors_alone_on_2_2() {
    let text = v2("[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"a\"]\nendpoint = []");
    let down = [(2, 1, 9), (2, 2, 0), (2, 2, 1), (2, 2, 2), (2, 3, 4)]
        .map(|(a, b, c)| !read(Version::new(a, b, c), &[("config.toml", &text)]).cri_down.is_empty());
    assert_eq!(down, [false, true, true, false, false]);
}

#[test]
fn containerd_2_ignores_tls() {
    let text = v2("configs.\"h\".tls.ca_file = \"/x\"");
    let effective = read(V2_1, &[("config.toml", &text)]);
    assert!(
        texts(&effective.ignored)[0]
            .starts_with("/etc/containerd/config.toml:3: registry.configs.\"h\".tls: ")
    );
    assert!(effective.configs["h"].tls.is_none());
    let tls = read(V1_7, &[("config.toml", &text)]).configs["h"].tls.clone().unwrap();
    assert_eq!((tls.value.ca_file.as_str(), tls.origin.map(|at| at.to_string())), ("/x", main_line(3)));
}

#[test]
fn keys_that_containerd_does_not_know_are_named() {
    let text = v2(
        "configs.\"h\".max_concurrent_downloads = 1\nmirrors.\"a\".rewrite = {}\ncredHelper = \"x\"\n[registry]\n",
    );
    for version in ALL {
        let effective = read(version, &[("config.toml", &text)]);
        let lines: Vec<_> = effective.ignored.iter().filter_map(|note| note.origin.line).collect();
        assert_eq!(lines, [5, 4, 3, 6], "{version}: {:?}", texts(&effective.ignored));
    }
    let text = format!("version = 3\n[plugins.\"{TRANSFER}\"]\nconfig_path = \"/x\"\n");
    assert!(texts(&read(V2_1, &[("config.toml", &text)]).ignored)[0].contains("is read by nothing"));
}

#[test]
fn a_drop_in_replaces_on_1_and_is_merged_on_2() {
    let main = format!("imports = [\"/etc/containerd/conf.d/*.toml\"]\n{}", v2(&path(DIR)));
    let other = format!("version = 2\n[plugins.\"{V2}\".containerd]\nsnapshotter = \"native\"\n");
    for version in ALL {
        let effective = read(version, &[("config.toml", &main), ("conf.d/10.toml", &other)]);
        if version.major == 1 {
            assert_eq!(set(&effective), ("", None), "{version}");
            assert_eq!(
                texts(&effective.ignored),
                [
                    "/etc/containerd/config.toml:4: registry.config_path: lost: containerd 1 takes the whole CRI section of \
                  /etc/containerd/conf.d/10.toml:2 in place of this file's"
                ],
                "{version}"
            );
        } else {
            assert_eq!(set(&effective), (DIR, main_line(4)), "{version}");
        }
    }
}

#[test]
fn the_last_drop_in_wins_even_with_nothing() {
    let main = format!("imports = [\"/etc/containerd/conf.d/*.toml\"]\n{}", v2(&path("/main")));
    for version in ALL {
        for (last, wanted) in [("/b", "/b"), ("", if version < V2_2 { "" } else { DOCKER_TOO })] {
            let files = [
                ("config.toml", &*main),
                ("conf.d/b.toml", &*v2(&path(last))),
                ("conf.d/a.toml", &*v2(&path("/a"))),
            ];
            assert_eq!(read(version, &files).config_path.value, wanted, "{version}");
        }
    }
}

#[test]
fn mirrors_in_the_main_file_and_config_path_in_a_drop_in() {
    let mirrors = v2("[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"a\"]\nendpoint = []");
    let main = format!("imports = [\"x.toml\"]\n{mirrors}");
    for version in ALL {
        let effective = read(version, &[("config.toml", &main), ("x.toml", &v2(&path(DIR)))]);
        assert_eq!(effective.cri_down.is_empty(), version.major == 1, "{version}");
        assert_eq!(effective.config_path.value, DIR, "{version}");
    }
}

#[test]
fn versions_of_main_file_and_drop_in_mix_badly() {
    let import = "imports = [\"x.toml\"]\n";
    // Main file, drop-in; per containerd what config_path is: `m`ain's, the `d`rop-in's, none or fatal.
    for (main, drop_in, wanted) in [
        (v2(&path("m")), v2(&path("d")), "d d d d d d d"),
        (v3(&path("m")), v2(&path("d")), "d d d d d d d"),
        (v3(&path("m")), v3(&path("d")), "- ! d d d d d"),
        (v2(&path("m")), v3(&path("d")), "m ! d d d ! d"),
        (v2(&path("m")), format!("[plugins.\"{V2}\".registry]\n{}\n", path("d")), "d d d d d d d"),
        (v3(&path("m")), format!("[plugins.\"{V3}\".registry]\n{}\n", path("d")), "- ! d d d d d"),
        (v1(&path("m")), v2(&path("d")), "! ! d d d d d"),
    ] {
        let main = format!("{import}{main}");
        let found = ALL.map(|version| {
            let effective = read(version, &[("config.toml", &main), ("x.toml", &drop_in)]);
            match (effective.fatal.is_empty(), effective.config_path.value.as_str()) {
                (false, _) => "!".to_owned(),
                (true, "" | DOCKER_TOO) => "-".to_owned(),
                (true, path) => path.to_owned(),
            }
        });
        assert_eq!(found.join(" "), wanted, "{main}\n{drop_in}");
    }
}

#[test]
fn a_v3_drop_in_loses_what_a_v2_main_file_says() {
    let main = format!("imports = [\"x.toml\"]\n{}", v2(&path(DIR)));
    for version in [V2_0, V2_1] {
        let effective = read(version, &[("config.toml", &main), ("x.toml", "version = 3\n")]);
        assert_eq!(set(&effective), ("", None));
        assert_eq!(
            texts(&effective.ignored),
            [format!(
                "/etc/containerd/config.toml:4: registry.config_path: lost: /etc/containerd/x.toml:1 makes containerd \
                 {version} read all as version 3"
            )]
        );
    }
}

#[test]
fn imports_of_imports_and_in_circles() {
    let main = format!("imports = [\"sub/a.toml\"]\n{}", v2(""));
    let first = format!("imports = [\"b.toml\", \"../config.toml\", \"*none*\"]\n{}", v2(&path("/a")));
    for version in ALL {
        let files = [("config.toml", &*main), ("sub/a.toml", &*first), ("sub/b.toml", &*v2(&path("/b")))];
        let effective = read(version, &files);
        assert_eq!(set(&effective), ("/b", Some("/etc/containerd/sub/b.toml:3".to_owned())), "{version}");
        let paths: Vec<_> = effective.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, [MAIN, "etc/containerd/sub/a.toml", "etc/containerd/sub/b.toml"], "{version}");
    }
}

#[test]
fn a_relative_pattern_starts_at_the_root_on_1_6() {
    let main = "version = 2\nimports = [\"conf.d/*\"]\n";
    for version in ALL {
        let effective = read(version, &[("config.toml", main), ("conf.d/a.toml", &v2(&path("/a")))]);
        assert_eq!(effective.files.len(), if version == V1_6 { 1 } else { 2 }, "{version}");
    }
}

#[test]
fn only_a_star_makes_a_pattern() {
    let main = "version = 2\nimports = [\"?.toml\"]\n";
    for version in ALL {
        let effective = read(version, &[("config.toml", main), ("a.toml", &v2(&path("/a")))]);
        assert_eq!(effective.fatal.len(), 1, "{version}");
    }
}

#[test]
fn who_pulls() {
    let auth = v2("configs.\"h\".auth.username = \"u\"");
    let headers = v2("headers.X = [\"y\"]");
    let downloads = format!("version = 2\n[plugins.\"{V2}\"]\nmax_concurrent_downloads = 4\n");
    for (what, text, wanted) in [
        ("nothing", "version = 2\n", true),
        ("auth", &auth, false),
        ("headers", &headers, true),
        ("downloads", &downloads, false),
    ] {
        for version in ALL {
            let transfer = read(version, &[("config.toml", text)]).pull == Pull::Transfer;
            assert_eq!(transfer, wanted && version >= V2_1, "{what} on {version}");
        }
    }
    let two = v2(&path("/a:/b"));
    assert_eq!(read(V2_0, &[("config.toml", &two)]).directories(), ["/a", "/b"]);
    assert_eq!(read(V2_1, &[("config.toml", &two)]).directories(), ["/a:/b"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_are_a_panic(main in any::<Vec<u8>>(), patch in ".*", at in 0..200_usize) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("etc/containerd");
        std::fs::create_dir_all(&folder).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let mut near = format!("imports = [\"*.toml\"]\n{}", v2("config_path = \"/x\"\n[plugins.\"a.b.c.d\"]\nx = { y = 1 }"));
        let at = (0..=at.min(near.len())).rev().find(|at| near.is_char_boundary(*at)).unwrap();
        near.insert_str(at, &patch);
        for bytes in [main, near.into_bytes()] {
            std::fs::write(folder.join("config.toml"), bytes).unwrap();
            for version in ALL {
                let _ = Effective::read(&root, version).unwrap();
            }
        }
    }
}
