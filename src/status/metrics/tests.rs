use std::collections::BTreeSet;

use super::super::{
    Cache, CertificateState, Endpoint, Evicted, FileSystem, Health, Job, Place, Pulls, Registry, Scrub,
    Store, Unit, Verification,
};
use super::*;

fn unit(name: &str) -> Unit {
    Unit { unit: name.to_owned(), state: "active (running)".to_owned(), well: true }
}

/// Everything that there can be.
fn whole(host: &str) -> Status {
    let at = Some(Time(1_795_000_000));
    let registry = Registry {
        unit: unit("larder-registry@ghcr.io.service"),
        health: Health::Up,
        why: None,
        address: Some("10.0.20.10:5010".to_owned()),
        remote: Some("https://ghcr.io".to_owned()),
        since: at,
        restarts: 2,
        memory: Some(21 << 20),
    };
    let job =
        |name: &str| Job { unit: unit(name), last: at, next: Some(Time(1_795_003_600)), succeeded: true };
    let upstream = Upstream {
        host: host.to_owned(),
        registry: Some(registry),
        jobs: [("gc".to_owned(), job("larder-gc@ghcr.io.timer"))].into(),
        store: Some(Store {
            bytes: 7 << 30,
            blobs: 100,
            images: 9,
            budget: Some(10 << 30),
            share: Some(0.7),
            oldest_use: at,
            scanned: at,
        }),
        pulls: Some(Pulls {
            hits: 90,
            misses: 10,
            hit_bytes: 900,
            miss_bytes: 100,
            hit_rate: Some(0.9),
            last: at,
            since: at,
        }),
        evicted: Some(Evicted { images: 3, bytes: 5, last: Vec::new() }),
        scrub: Some(Scrub { ended: Time(1_795_000_000), blobs: 100, bytes: 7, broken: 1, removed: 1 }),
        endpoints: vec![
            Endpoint {
                url: "http://10.0.20.10:5010".to_owned(),
                place: Place::Out { since: Time(1), why: "silent".to_owned(), answering: false },
            },
            Endpoint { url: "https://ghcr.io".to_owned(), place: Place::In { since: None } },
        ],
    };
    Status {
        version: 2,
        at: Time(1_795_000_001),
        well: false,
        unwell: Vec::new(),
        cache: Some(Cache {
            bytes: 7 << 30,
            budget: Some(10 << 30),
            share: Some(0.7),
            file_systems: vec![FileSystem { path: "/var/lib/larder".to_owned(), bytes: 100, free: 50 }],
            certificate: Some(CertificateState {
                path: "/etc/ssl/cache.pem".to_owned(),
                not_after: at,
                why: None,
            }),
            units: vec![unit("larder-access.service")],
        }),
        watch: Some(unit("larder-watch.timer")),
        upstreams: vec![upstream],
        drift: Some(Vec::new()),
        drift_unknown: None,
        left_alone: Vec::new(),
        verification: Some(Verification {
            at: "2026-11-21T15:08:03Z".to_owned(),
            ok: 9,
            skipped: 0,
            warned: 1,
            down: 0,
        }),
    }
}

/// The lines that matter of the grammar (OpenMetrics 1.0, "ABNF"): each family in one piece, its TYPE first, UNIT and
/// HELP once, the unit at the end of the name, `_total` at a counter's samples, labels quoted, `# EOF` at the end.
fn check(text: &str) -> Result<BTreeSet<String>, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("no # EOF at the end")?;
    let (mut family, mut kind) = (String::new(), String::new());
    let (mut seen, mut names) = (BTreeSet::new(), BTreeSet::new());
    for line in body.lines() {
        let fail = |why: &str| Err(format!("{why}: {line}"));
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (keyword, name, value) = (words.next(), words.next(), words.next());
            let (Some(keyword), Some(name), Some(value)) = (keyword, name, value) else {
                return fail("three words");
            };
            match keyword {
                "TYPE" => {
                    (family, kind) = (name.to_owned(), value.to_owned());
                    if !seen.insert(family.clone()) {
                        return fail("a family twice");
                    }
                }
                "UNIT" if name == family && name.ends_with(&format!("_{value}")) => {}
                "HELP" if name == family && !value.contains(['\n', '"', '\\']) => {}
                _ => return fail("no metadata of this family"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').ok_or(line)?;
        let name = series.split('{').next().unwrap();
        let wanted = if kind == "counter" { format!("{family}_total") } else { family.clone() };
        if name != wanted || value.parse::<u64>().is_err() {
            return fail("a sample of another family, or no number");
        }
        if !series.ends_with('}') && series != name {
            return fail("labels without an end");
        }
        if !names.insert(series.to_owned()) {
            return fail("a sample twice");
        }
    }
    Ok(names)
}

#[test]
fn every_family_is_written_by_the_grammar() {
    let text = text(&whole("ghcr.io"));
    let samples = check(&text).unwrap_or_else(|why| panic!("{why}\nin\n{text}"));
    let named: BTreeSet<String> =
        samples.iter().map(|series| series.split('{').next().unwrap().to_owned()).collect();
    assert_eq!(named, names().into_iter().collect::<BTreeSet<_>>(), "some family was not filled");
    for line in [
        "larder_store_bytes{upstream=\"ghcr.io\"} 7516192768",
        "larder_hits_total{upstream=\"ghcr.io\"} 90",
        "larder_endpoint_in_use{upstream=\"ghcr.io\",endpoint=\"http://10.0.20.10:5010\"} 0",
        "larder_endpoint_in_use{upstream=\"ghcr.io\",endpoint=\"https://ghcr.io\"} 1",
        "larder_verification_timestamp_seconds 1795273683",
        "# UNIT larder_hit_bytes bytes",
    ] {
        assert!(text.lines().any(|got| got == line), "wanted {line}, got\n{text}");
    }
}

#[test]
fn a_hostile_label_stays_one() {
    let text = text(&whole("a\"b\\c\nlarder_well 1\nd"));
    assert!(text.contains("upstream=\"a\\\"b\\\\c\\nlarder_well 1\\nd\""), "{text}");
    check(&text).unwrap_or_else(|why| panic!("{why}\nin\n{text}"));
}

#[test]
fn nothing_here_is_a_text_too() {
    let status = Status {
        version: 2,
        at: Time(1),
        well: true,
        unwell: Vec::new(),
        cache: None,
        watch: None,
        upstreams: Vec::new(),
        drift: None,
        drift_unknown: None,
        left_alone: Vec::new(),
        verification: None,
    };
    let text = text(&status);
    assert_eq!(check(&text).map(|samples| samples.len()), Ok(3), "{text}");
}

/// The dashboard and the alerts name nothing that is not printed. Run with the real parsers in `tests/metrics`.
#[test]
fn dashboard_and_alerts_name_what_is_printed() {
    let known: BTreeSet<String> = names().into_iter().collect();
    let files = [
        ("the dashboard", include_str!("../../../packaging/grafana/larder.json")),
        ("the alerts", include_str!("../../../packaging/prometheus/larder.rules.yml")),
    ];
    for (file, text) in files {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        // `larder` itself is a folder, a tag and a prefix.
        let named: BTreeSet<&str> = words.filter(|word| word.starts_with("larder_")).collect();
        assert!(named.len() > 5, "{file} names {named:?} only");
        let unknown: Vec<&&str> = named.iter().filter(|name| !known.contains(**name)).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?} is not among what `larder status --metrics` prints");
    }
}

#[test]
fn the_dashboard_is_one_that_grafana_takes() {
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../../../packaging/grafana/larder.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "an id twice");
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(!title.is_empty() && panel["gridPos"]["w"].as_u64().unwrap() <= 24, "{title}");
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
}

/// Runs a program with `input`; what it said, or nothing where there is no such program.
#[allow(clippy::disallowed_methods, reason = "a test may")]
fn run(program: &[&str], input: &str) -> Option<(Option<i32>, String)> {
    use std::process::{Command, Stdio};
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        not_run(&format!("no {} here", program[0]));
        return None;
    };
    // One that does not read it closes its end.
    let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes());
    let done = child.wait_with_output().unwrap();
    let said = [done.stdout, done.stderr].concat();
    Some((done.status.code(), String::from_utf8_lossy(&said).into_owned()))
}

/// Past the test harness, which shows what a passing test prints to nobody.
fn not_run(why: &str) {
    std::io::Write::write_all(&mut std::io::stderr(), format!("NOT RUN: {why}\n").as_bytes()).unwrap();
}

#[test]
fn the_reference_parser_of_openmetrics_takes_it() {
    const PARSE: &str = "import sys
try:
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
except ImportError:
    sys.exit(77)
families = list(parse(sys.stdin.read()))
names = {s.labels['upstream'] for f in families for s in f.samples if 'upstream' in s.labels}
assert names == {'gh\\x22cr\\\\.io\\n'}, names
print(sum(len(f.samples) for f in families))
";
    let text = text(&whole("gh\"cr\\.io\n"));
    match run(&["/usr/bin/python3", "-c", PARSE], &text) {
        None => {}
        Some((Some(77), _)) => not_run("no python3-prometheus-client here"),
        Some((code, said)) => {
            let samples = text.lines().filter(|line| !line.starts_with('#')).count();
            assert_eq!((code, said.trim()), (Some(0), samples.to_string().as_str()), "{text}");
        }
    }
}

/// What node_exporter's textfile collector reads it with.
#[test]
fn prometheus_reads_the_text_and_the_alerts() {
    // 3: it would name some things differently.
    if let Some((code, said)) = run(&["promtool", "check", "metrics"], &text(&whole("ghcr.io"))) {
        assert!(matches!(code, Some(0 | 3)), "{code:?}: {said}");
    }
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/prometheus/larder.rules.yml");
    if let Some((code, said)) = run(&["promtool", "check", "rules", rules], "") {
        assert_eq!(code, Some(0), "{said}");
    }
}
