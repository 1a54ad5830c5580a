use super::*;
use crate::status::{Health, Job, Pulls, Registry, Store, Unit};

const NOW: u64 = 1_795_000_000;

fn upstream(host: &str, health: Health, port: u16) -> Upstream {
    let unit = |name: String| Unit { unit: name, state: "active (running)".to_owned(), well: true };
    let job = |name: &str, last: u64, next: u64| {
        let unit = unit(format!("larder-{name}@{host}.timer"));
        (
            name.to_owned(),
            Job { unit, last: Some(Time(NOW - last)), next: Some(Time(NOW + next)), succeeded: true },
        )
    };
    Upstream {
        host: host.to_owned(),
        registry: Some(Registry {
            unit: unit(format!("larder-registry@{host}.service")),
            health,
            why: None,
            address: Some(format!("[fd00:20:0:1:aaaa:bbbb:cccc:dddd]:{port}")),
            remote: None,
            since: Some(Time(NOW - 60)),
            restarts: 0,
            memory: Some(22 << 20),
        }),
        jobs: [job("gc", 200_000, 400_000), job("restart", 3_000, 600)].into(),
        store: Some(Store {
            bytes: 12_345_678_901,
            share: Some(0.4),
            budget: Some(30 << 30),
            ..Store::default()
        }),
        pulls: Some(Pulls {
            hits: 97,
            misses: 3,
            hit_rate: Some(0.97),
            last: Some(Time(NOW - 120)),
            ..Pulls::default()
        }),
        ..Upstream::default()
    }
}

fn status(upstreams: Vec<Upstream>) -> Status {
    Status {
        version: 2,
        at: Time(NOW),
        well: true,
        unwell: Vec::new(),
        cache: Some(Cache {
            bytes: 12_345_678_901,
            budget: Some(30 << 30),
            share: Some(0.38),
            ..Cache::default()
        }),
        watch: None,
        upstreams,
        drift: None,
        drift_unknown: None,
        left_alone: Vec::new(),
        verification: None,
    }
}

#[test]
fn a_table_fits_a_hundred_columns() {
    let mut longest = "registry.with-quite-a-long-name.".repeat(5);
    longest.push_str("example.com:5000");
    let text = table(&status(vec![
        upstream("docker.io", Health::Up, 5000),
        upstream("registry.access.redhat.com", Health::Starting, 65535),
        upstream(&longest, Health::Silent, 5020),
    ]));
    let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or_default();
    assert!(widest <= 100, "{widest} columns:\n{text}");
    let row = text.lines().find(|line| line.starts_with("docker.io")).unwrap_or_default();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(
        cells,
        ["docker.io", "up", "5000", "11.4GiB", "40%", "97%", "2m", "2d/4d", "50m/10m"],
        "{text}"
    );
    assert!(text.contains("registry.access.redhat.com"), "whole where there is room:\n{text}");
}

#[test]
fn one_upstream_is_told_in_full() {
    let one = upstream("ghcr.io", Health::Up, 5010);
    let text = detail(&status(vec![one.clone()]), &one);
    for wanted in
        ["health     up\n", "size       11.4GiB of 30.0GiB (40%)", "gc         last 2d ago", "next in 4d ("]
    {
        assert!(text.contains(wanted), "wanted {wanted:?}, got\n{text}");
    }
}

#[test]
fn sizes_have_three_figures() {
    for (size, wanted) in [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.0KiB"),
        (10_737_418_239, "9.9GiB"),
        (200 << 30, "200GiB"),
        (u64::MAX, "16383PiB"),
    ] {
        assert_eq!(bytes(size), wanted);
    }
}

#[test]
fn nothing_here_says_so() {
    let text = table(&Status { cache: None, ..status(Vec::new()) });
    assert_eq!(text, "nothing of larder's runs here: see `larder apply`\n");
}
