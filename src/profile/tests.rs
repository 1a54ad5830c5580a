#![allow(clippy::disallowed_methods, reason = "a test may")]

use super::*;

fn text(text: &str) -> Source {
    Source::Text { name: "profile.yaml".to_owned(), text: text.to_owned() }
}

fn report(profile: &str) -> String {
    match load(&text(profile)).and_then(|loaded| loaded.node()) {
        Ok((_, warnings)) => warnings.to_string(),
        Err(problems) => problems.to_string(),
    }
}

/// A root with these files in it.
fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    root
}

fn layers(root: &tempfile::TempDir) -> Source {
    Source::Layers { root: root.path().to_owned() }
}

/// The report with the root cut from its paths.
fn of(root: &tempfile::TempDir, text: &str) -> String {
    text.replace(&format!("{}/", root.path().display()), "")
}

const BASE: &str = "version: 1
upstreams:
  docker.io: { port: 5000, restart: never }
  ghcr.io: { port: 5010 }
network:
  addresses: [10.0.20.10/24, 10.0.30.10/24]
cache: {}
";

#[test]
fn layers_merge_and_each_value_keeps_its_origin() {
    let root = root(&[
        ("usr/lib/larder/profile.yaml", BASE),
        ("etc/larder/profile.yaml", "upstreams:\n  docker.io: { port: 5001 }\nnetwork: null\n"),
        ("etc/larder/profile.d/20-b.yaml", "cache:\n  gc: \"Sun 03:00\"\n  restart: null\n"),
        ("etc/larder/profile.d/10-a.yaml", "cache: { gc: never, restart: daily }\ncontainerd: {}\n"),
        ("etc/larder/profile.d/.hidden.yaml", "nonsense"),
        ("etc/larder/profile.d/README", "nonsense"),
    ]);
    let loaded = load(&layers(&root)).unwrap();
    let (node, warnings) = loaded.node().unwrap();
    assert!(warnings.is_empty(), "{warnings}");
    let ports: Vec<_> = node.upstreams.iter().map(|u| (u.host.as_str(), u.port.get())).collect();
    assert_eq!(ports, [("docker.io", 5001), ("ghcr.io", 5010)]);
    assert_eq!(node.network, None);
    let got = of(&root, &loaded.config());
    let wanted = "\
version: 1                # usr/lib/larder/profile.yaml:1
upstreams:                # etc/larder/profile.yaml:1
  docker.io:              # etc/larder/profile.yaml:2
    port: 5001            # etc/larder/profile.yaml:2
    restart: never        # usr/lib/larder/profile.yaml:3
  ghcr.io:                # usr/lib/larder/profile.yaml:4
    port: 5010            # usr/lib/larder/profile.yaml:4
cache:                    # etc/larder/profile.d/20-b.yaml:1
  gc: \"Sun 03:00\"         # etc/larder/profile.d/20-b.yaml:2
containerd: {}            # etc/larder/profile.d/10-a.yaml:2
";
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(squeeze(&got), squeeze(wanted));
}

#[test]
fn a_clash_between_layers_names_both_files() {
    let root = root(&[
        ("usr/lib/larder/profile.yaml", BASE),
        ("etc/larder/profile.d/50.yaml", "upstreams:\n  quay.io: { port: 5010 }\n"),
    ]);
    let problems = load(&layers(&root)).unwrap().node().unwrap_err();
    let wanted = "\
etc/larder/profile.d/50.yaml:2:20: upstreams.quay.io.port: 5010 is already ghcr.io's (line 4)
  |
2 |   quay.io: { port: 5010 }
  |                    ^^^^
  |
 ::: usr/lib/larder/profile.yaml:4:20
  |
4 |   ghcr.io: { port: 5010 }
  |                    ---- first used here
  |
  = help: give every upstream a port of its own: 5020 is free

error: 1 problem in etc/larder/profile.d/50.yaml
";
    assert_eq!(of(&root, &problems.to_string()), wanted);
}

#[test]
fn problems_of_all_files_come_in_one_run() {
    let root = root(&[
        ("usr/lib/larder/profile.yaml", "version: 1\nversion: 1\n"),
        ("etc/larder/profile.yaml", "cache: { gc: wekly }\n"),
        ("etc/larder/profile.d/50.yaml", "ntework: {}\n"),
    ]);
    let problems = load(&layers(&root)).unwrap().node().unwrap_err();
    assert_eq!((problems.errors(), problems.warnings()), (4, 0), "{problems}");
    assert!(problems.to_string().ends_with("error: 4 problems in 3 files\n"), "{problems}");
}

#[test]
fn no_layer_and_unreadable_ones_are_said() {
    let empty = root(&[]);
    let got = load(&layers(&empty)).unwrap_err().to_string();
    assert!(got.contains("error: read the profile: there is none"), "{got}");
    let folder = root(&[("etc/larder/profile.yaml/x", "")]);
    let got = load(&layers(&folder)).unwrap_err().to_string();
    assert!(got.contains("etc/larder/profile.yaml: is a directory"), "{got}");
    let got = load(&Source::File("/nonexistent/profile.yaml".into())).unwrap_err().to_string();
    assert!(got.contains("read /nonexistent/profile.yaml: No such file"), "{got}");
    let yml = root(&[("etc/larder/profile.yaml", BASE), ("etc/larder/profile.d/a.yml", "x")]);
    let (_, warnings) = load(&layers(&yml)).unwrap().node().unwrap();
    assert!(warnings.to_string().contains("a.yml is not read"), "{warnings}");
}

#[test]
fn no_link_leads_out_of_the_root() {
    let outside = root(&[("profile.yaml", BASE)]);
    let inside = root(&[("etc/larder/x", "")]);
    let link = inside.path().join("etc/larder/profile.yaml");
    std::os::unix::fs::symlink(outside.path().join("profile.yaml"), link).unwrap();
    let got = load(&layers(&inside)).unwrap_err().to_string();
    assert!(got.contains("there is none"), "wanted the link to end inside, got {got}");
}

#[test]
fn a_clear_password_needs_a_private_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let profile = "version: 1\nupstreams:\n  docker.io: { port: 5000, username: bot, password: hunter2 }\n\
                   cache: { listen: 127.0.0.1 }\n";
    let root = root(&[("profile.yaml", profile)]);
    let path = root.path().join("profile.yaml");
    for (mode, wanted) in [(0o644, false), (0o640, true), (0o600, true)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let result = load(&Source::File(path.clone())).unwrap().node();
        assert_eq!(result.is_ok(), wanted, "{mode:o}");
        if let Err(problems) = result {
            assert!(problems.to_string().contains("in clear"), "{problems}");
        }
    }
}

#[test]
fn secrets_are_shown_nowhere() {
    for profile in [
        "version: 1\nupstreams:\n  docker.io: { prot: 1, username: x, password: hunter2 }\n",
        "version: 1\nupstreams:\n  docker.io: { pasword: hunter2, port: 1 }\n",
        "version: 1\nupstreams:\n  docker.io:\n    password: hunter2\n    password: hunter2\n",
        "version: 1\nupstreams:\n  docker.io: { password: { value: hunter2 } }\n",
        "version: 1\nupstreams:\n  docker.io: { password: [hunter2] }\n",
        "version: 1\nupstreams:\n  docker.io:\n    password: >\n      a\n      hunter2\n    port: x\n",
        "version: 1\nupstreams:\n  docker.io:\n    password: \"a\n      hunter2\n",
        "version: 1\nupstreams:\n  docker.io:\n    password: @hunter2\n",
        "version: 1\nupstreams:\n  docker.io:\n    password: a: hunter2\n",
        "version: 1\nupstreams:\n  docker.io:\n    password: *hunter2\n",
        "version: 1\nupstreams:\n  docker.io:\n    password: &hunter2 x\n",
        "version: 1\nupstreams:\n  docker.io:\n    password: !hunter2 x\n",
        "version: 1\nupstreams:\n  docker.io: { remote: \"https://u:hunter2@x.io\" }\n",
        "version: 1\nupstreams:\n  docker.io: { ca: \"https://u:hunter2@x.io\", gc: \"a://u:hunter2@x\" }\n",
        "version: 1\ncontainerd: { mirrors: { x.io: [{ headers: { a: hunter2, b: [hunter2] } }] } }\n",
        "version: 1\ncache: { storage: { s3: { secretkey: hunter2 } } }\n",
        "version: 1\nupstreams:\n  docker.io: {password:hunter2, port:5000}\n",
        "version: 1\nupstreams:\n  docker.io:\n    password:hunter2\n    port: 1\n",
        "version: 1\nhunter2_password: hunter2\n",
    ] {
        let loaded = load(&text(profile));
        let got = match &loaded {
            Err(problems) => problems.to_string(),
            Ok(loaded) => format!("{}{}", loaded.node().unwrap_err(), loaded.config()),
        };
        let got = got.replace("hunter2_password", "");
        assert!(!got.contains("hunter2"), "{profile}\n{got}");
    }
}

#[test]
fn config_can_be_read_again() {
    let profile = "version: 1\nupstreams:\n  docker.io: { port: 5000, gc: \"22:22\", probe: 'library/busybox' }\n\
                   network:\n  addresses: [10.0.20.10/24, \"fd00:20::10/64\"]\n  routes:\n  - to: default\n    via: \
                   10.0.20.1\ncache: {}\ncontainerd: { caches: [] }\n";
    let loaded = load(&text(profile)).unwrap();
    let again = load(&text(&loaded.config())).unwrap_or_else(|e| panic!("{e}\n{}", loaded.config()));
    assert_eq!(again.node().unwrap().0, loaded.node().unwrap().0, "{}", loaded.config());
}

#[test]
fn config_is_a_list_for_programs() {
    let profile = "version: 1\nupstreams:\n  a.io:\n    port: 5000\n    password: hunter2\ncache: {}\n\
                   containerd: { caches: [10.0.20.10], fallback: true, order: null }\n";
    let got = load(&text(profile)).unwrap().config_json();
    let at = |path: serde_json::Value, value: serde_json::Value, line: u32| serde_json::json!({ "path": path, "value": value, "file": "profile.yaml", "line": line });
    let wanted = serde_json::json!([
        at(["version"].into(), 1.into(), 1),
        at(["upstreams", "a.io", "port"].into(), 5000.into(), 4),
        at(["upstreams", "a.io", "password"].into(), "(hidden)".into(), 5),
        at(["cache"].into(), serde_json::json!({}), 6),
        at(serde_json::json!(["containerd", "caches", 0]), "10.0.20.10".into(), 7),
        at(["containerd", "fallback"].into(), true.into(), 7),
    ]);
    assert_eq!(got, wanted);
}

#[test]
fn hostile_texts_cost_little_to_refuse() {
    // Of this thread alone: whatever else the machine does is not counted.
    let cpu = || {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        std::time::Duration::from(now)
    };
    let start = cpu();
    for (profile, wanted) in [
        ("[".repeat(100_000), "YAML"),
        (format!("a: {}", "{a: ".repeat(50_000)), "deep"),
        ("- ".repeat(100_000), "deep"),
        (format!("a: &a [x]\n{}", "b: [*a,*a,*a]\n".repeat(1000)), "alias"),
        ("a,".repeat(200_000), "wanted a map"),
        (format!("[{}]", "a,".repeat(200_000)), "more than 100000 values"),
        ("\u{0}".to_owned(), "YAML"),
        ("version: 1\n\u{feff}cache: {}\n".to_owned(), ""),
        ("\u{feff}version: 2\n".to_owned(), "profile.yaml:1:10"),
        ("version: 1\r\ncache: 5\r\n".to_owned(), "profile.yaml:2:8"),
        (
            format!(
                "{{version: 1, upstreams: {{{}}}, cache: {{}}}}",
                (0..25_000).map(|n| format!("h{n}.io: {{port: 5000}}, ")).collect::<String>()
            ),
            "and 800 more",
        ),
        ((0..50_000).map(|n| format!("k{n}: 1\n")).collect(), "and 800 more"),
    ] {
        let got = report(&profile);
        assert!(got.contains(wanted), "wanted {wanted:?}, got {}", got.get(..500).unwrap_or(&got));
    }
    let took = cpu().saturating_sub(start);
    assert!(took.as_secs() < 20, "wanted less than 20 s of CPU, got {took:?}");
}

#[test]
fn problems_serialise_with_their_places() {
    let problems =
        load(&text("version: 1\nupstreams:\n  a.io: { port: 5000 }\n  b.io: { port: 5000 }\ncache: {}\n"))
            .unwrap()
            .node()
            .unwrap_err();
    let wanted = serde_json::json!([{
        "severity": "error",
        "message": "upstreams.b.io.port: 5000 is already a.io's (line 3)",
        "place": { "file": "profile.yaml", "line": 4, "column": 17 },
        "related": [{ "file": "profile.yaml", "line": 3, "column": 17, "label": "first used here" }],
        "help": "give every upstream a port of its own: 5010 is free",
    }]);
    assert_eq!(serde_json::to_value(&problems).unwrap(), wanted);
}

mod nothing_panics {
    use super::*;
    use proptest::prelude::*;

    const EXAMPLE: &str = include_str!("../../templates/profile.example.yaml");

    fn swallow(profile: &str) {
        if let Ok(loaded) = load(&text(profile)) {
            let _ = loaded.config();
        }
        let _ = report(profile);
    }

    proptest! {
        #[test]
        fn on_any_text(profile in any::<String>()) {
            swallow(&profile);
        }

        #[test]
        fn on_yaml_characters(profile in "[a-c0-9{}\\[\\]:,&*!|>'\"%@#?<~ \\n\\t\\\\é-]{0,80}") {
            swallow(&profile);
        }

        #[test]
        fn on_a_mutated_example(
            cuts in prop::collection::vec((0..EXAMPLE.len(), 0..40_usize, "[a-z{}\\[\\]:,&*!|'\"\\n -]{0,3}"), 1..6)
        ) {
            let mut profile = EXAMPLE.to_owned();
            for (at, length, with) in cuts {
                let start = document::boundary(&profile, at);
                let end = document::boundary(&profile, start + length);
                profile.replace_range(start..end, &with);
            }
            swallow(&profile);
        }
    }
}
