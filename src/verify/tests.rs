#![allow(clippy::disallowed_methods, reason = "registries that fail on demand")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use anyhow::{Result, bail};

use super::*;
use crate::host::state::{CriState, UnitState};

/// For what is down at its end. A loaded machine gets its first answer in it, too.
const SHORT: Duration = Duration::from_millis(1500);
const LONG: Duration = Duration::from_secs(120);

/// A machine whose nth look is the nth of what it was given, and the last one from then on.
#[derive(Default)]
struct Fake {
    units: Vec<Vec<UnitState>>,
    cri: Vec<CriState>,
    addresses: Vec<Vec<(String, IpNetwork)>>,
    dead: Vec<(String, String)>,
    looks: AtomicUsize,
}

impl Fake {
    fn next<T: Clone>(&self, from: &[T]) -> Result<T> {
        let look = self.looks.fetch_add(1, Ordering::SeqCst);
        match from.get(look).or(from.last()) {
            Some(state) => Ok(state.clone()),
            None => bail!("run systemctl: not found"),
        }
    }
}

impl Machine for Fake {
    fn unit_states(&self, units: &[String], _: Instant) -> Result<Vec<UnitState>> {
        let states = self.next(&self.units)?;
        assert_eq!(states.len(), units.len(), "one call for all units");
        Ok(states)
    }

    fn cri(&self, _: Instant) -> Result<CriState> {
        self.next(&self.cri)
    }

    fn addresses(&self) -> Result<Vec<(String, IpNetwork)>> {
        self.next(&self.addresses)
    }

    fn pull(&self, wanted: &Wanted<'_>, _: Instant) -> Result<Pulled> {
        bail!("pull {} from {} with {}", wanted.image, wanted.host, wanted.certs_dir)
    }

    fn dead_caches(&self) -> Result<Vec<(String, String)>> {
        Ok(self.dead.clone())
    }
}

/// Answers the nth request with the nth status, and the last one from then on; 0: never.
fn server(statuses: &'static [u16]) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let n = counted.fetch_add(1, Ordering::SeqCst);
            let status = statuses[n.min(statuses.len() - 1)];
            thread::spawn(move || answer(stream.unwrap(), status));
        }
    });
    (address, requests)
}

fn answer(mut stream: TcpStream, status: u16) {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request);
    if status == 0 {
        thread::sleep(Duration::from_secs(60));
    }
    let _ = write!(
        stream,
        "HTTP/1.1 {status} X\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
}

/// An address on which nobody listens, and nobody comes to: the servers are on 127.0.0.1.
fn nobody() -> SocketAddr {
    SocketAddr::from(([127, 77, 0, 1], 1))
}

fn check(subject: &str, probe: Probe) -> Check {
    Check { subject: subject.to_owned(), probe }
}

fn prove_on(machine: &Fake, checks: &[Check], timeout: Duration) -> Vec<Row> {
    let report = run_on(machine, checks, timeout, progress(false).as_mut());
    assert_eq!(report.rows().len(), checks.len(), "a row for each check");
    report.rows().to_vec()
}

fn prove(probe: Probe, timeout: Duration) -> Row {
    prove_on(&Fake::default(), &[check("x.io", probe)], timeout).remove(0)
}

fn endpoint(address: SocketAddr) -> Probe {
    Probe::Endpoint { address, certificate: None }
}

fn upstream(address: SocketAddr, required: bool) -> Probe {
    Probe::Upstream { address, certificate: None, repository: Some("library/busybox".to_owned()), required }
}

#[test]
fn nothing_to_prove_takes_no_time() {
    let started = Instant::now();
    assert_eq!(prove_on(&Fake::default(), &[], LONG), []);
    assert!(started.elapsed() < LONG, "wanted an end before the deadline");
}

#[test]
fn registry_that_answers_is_up() {
    let row = prove(endpoint(server(&[200]).0), LONG);
    assert_eq!((row.state, row.got.as_str()), (State::Ok, "200"));
}

#[test]
fn registry_that_comes_up_meanwhile_is_up() {
    let (address, requests) = server(&[503, 503, 200]);
    let row = prove(endpoint(address), LONG);
    assert_eq!((row.state, requests.load(Ordering::SeqCst)), (State::Ok, 3));
}

#[test]
fn registry_that_listens_late_is_up() {
    // Not 127.0.0.1, where the port would be another server's before it is taken again.
    let address = TcpListener::bind("127.77.0.2:0").unwrap().local_addr().unwrap();
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        let listener = TcpListener::bind(address).unwrap();
        for stream in listener.incoming() {
            answer(stream.unwrap(), 200);
        }
    });
    assert_eq!(prove(endpoint(address), LONG).state, State::Ok);
}

#[test]
fn nobody_there_is_down_with_wanted_and_got() {
    let address = nobody();
    let row = prove(endpoint(address), SHORT);
    assert_eq!(row.state, State::Down);
    assert_eq!(
        row.to_string(),
        format!("x.io: wanted 200 from http://{address}/v2/, got connection refused")
    );
}

#[test]
fn registry_that_accepts_and_never_answers_is_down() {
    let row = prove(endpoint(server(&[0]).0), SHORT);
    assert_eq!((row.state, row.got.as_str()), (State::Down, "no answer within 1.5 s"));
}

#[test]
fn redirect_is_not_followed() {
    let row = prove(endpoint(server(&[301]).0), SHORT);
    assert_eq!((row.state, row.got.as_str()), (State::Down, "301"));
}

#[test]
fn something_else_than_http_is_down() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(b"220 mail.example.com ESMTP\r\n");
        }
    });
    let row = prove(endpoint(address), SHORT);
    assert_eq!(row.state, State::Down, "got {}", row.got);
}

#[test]
fn upstream_that_answers_is_good() {
    assert_eq!(prove(upstream(server(&[404]).0, true), LONG).state, State::Ok);
}

#[test]
fn upstream_with_a_hiccup_is_asked_again() {
    assert_eq!(prove(upstream(server(&[500, 404]).0, true), LONG).state, State::Ok);
}

#[test]
fn upstream_in_trouble_is_a_warning_or_down_as_the_profile_says() {
    let started = Instant::now();
    let row = prove(upstream(server(&[500]).0, false), LONG);
    assert_eq!(row.state, State::Warned);
    assert_eq!(row.got, "500: the cache gets nothing from its upstream");
    assert!(started.elapsed() < LONG, "wanted an end before the deadline");
    assert_eq!(prove(upstream(server(&[500]).0, true), SHORT).state, State::Down);
    assert_eq!(prove(upstream(server(&[0]).0, true), SHORT).state, State::Down);
}

#[test]
fn upstream_behind_a_dead_registry_is_skipped() {
    let row = prove(upstream(nobody(), true), SHORT);
    assert_eq!(
        (row.state, row.got.as_str()),
        (State::Skipped, "not asked, its cache is not up: connection refused")
    );
}

#[test]
fn upstream_without_a_known_repository_is_skipped() {
    let row = prove(
        Probe::Upstream { address: nobody(), certificate: None, repository: None, required: true },
        LONG,
    );
    assert_eq!(row.state, State::Skipped);
}

fn preflight(address: SocketAddr, required: bool) -> Probe {
    let login =
        direct::Login { username: "bot".to_owned(), password: zeroize::Zeroizing::new("s3cret".to_owned()) };
    let remote = format!("http://{address}");
    let question = direct::Question { remote, repository: None, tag: None, login: Some(login), ca: None };
    Probe::Preflight { question, required }
}

#[test]
fn upstream_itself_in_trouble_is_a_warning_or_down_as_the_profile_says() {
    let row = prove(preflight(server(&[503]).0, false), LONG);
    assert_eq!((row.state, row.got.as_str()), (State::Warned, "503: it fails"));
    assert_eq!(row.detail.and_then(|detail| detail.cause), Some(direct::Cause::ServerError));
    assert_eq!(prove(preflight(server(&[503]).0, true), LONG).state, State::Down);
    assert_eq!(prove(preflight(server(&[503, 200]).0, true), LONG).state, State::Ok);
}

#[test]
fn refused_credentials_are_down_whatever_the_profile_says() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let says =
                "HTTP/1.1 401 x\r\nWWW-Authenticate: Basic\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
            let _ = stream.write_all(says.as_bytes());
        }
    });
    let row = prove(preflight(address, false), LONG);
    assert_eq!((row.state, row.got.as_str()), (State::Down, "401: it refuses the credentials of `bot`"));
    let json = serde_json::to_value(&row).unwrap();
    assert_eq!((&json["cause"], &json["check"]), (&"credentials".into(), &"preflight".into()), "got {json}");
}

#[test]
fn a_rate_limit_is_not_asked_again() {
    let (address, requests) = server(&[429]);
    assert_eq!(prove(preflight(address, false), LONG).state, State::Warned);
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

#[test]
fn checks_run_beside_each_other() {
    // None of these answers before all of them were asked.
    const ALL: usize = 64;
    let barrier = Arc::new(Barrier::new(ALL));
    let meet = |_| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, barrier) = (listener.local_addr().unwrap(), Arc::clone(&barrier));
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            barrier.wait();
            answer(stream, 200);
        });
        check("x.io", endpoint(address))
    };
    let checks: Vec<_> = (0..ALL).map(meet).collect();
    let rows = prove_on(&Fake::default(), &checks, LONG);
    assert!(rows.iter().all(|row| row.state == State::Ok), "got {rows:?}");
}

#[test]
fn dead_endpoints_do_not_keep_the_others_from_being_asked() {
    // More than there are workers, all of them before the one that is up. They come up once it was asked.
    let late = TcpListener::bind("127.77.0.3:0").unwrap().local_addr().unwrap();
    let up = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut checks: Vec<_> = (0..200).map(|_| check("late.io", endpoint(late))).collect();
    checks.push(check("x.io", endpoint(up.local_addr().unwrap())));
    thread::spawn(move || {
        answer(up.accept().unwrap().0, 200);
        for stream in TcpListener::bind(late).unwrap().incoming() {
            thread::spawn(|| answer(stream.unwrap(), 200));
        }
    });
    let rows = prove_on(&Fake::default(), &checks, LONG);
    assert!(rows.iter().all(|row| row.state == State::Ok), "got {rows:?}");
}

#[test]
fn rows_are_in_the_order_of_the_checks() {
    let (slow, _) = server(&[503, 503, 200]);
    let (fast, _) = server(&[200]);
    let rows = prove_on(
        &Fake { cri: vec![CriState::Ok], ..Fake::default() },
        &[
            check("slow.io", endpoint(slow)),
            check("containerd", Probe::Cri),
            check("fast.io", endpoint(fast)),
        ],
        LONG,
    );
    let subjects: Vec<&str> = rows.iter().map(|row| row.subject.as_str()).collect();
    assert_eq!(subjects, ["slow.io", "containerd", "fast.io"]);
}

fn unit(load: &str, active: &str, sub: &str) -> UnitState {
    UnitState {
        load: load.to_owned(),
        active: active.to_owned(),
        sub: sub.to_owned(),
        ..UnitState::default()
    }
}

fn restarting() -> UnitState {
    UnitState { restarts: 3, result: "exit-code".to_owned(), ..unit("loaded", "activating", "auto-restart") }
}

fn service() -> Probe {
    Probe::Unit { unit: "larder-registry@x.io.service".to_owned() }
}

fn timer() -> Probe {
    Probe::Timer { unit: "larder-gc@x.io.timer".to_owned() }
}

/// The end of one probe on a machine whose unit goes through `states`.
fn prove_unit(probe: Probe, states: &[UnitState], timeout: Duration) -> Row {
    let machine = Fake { units: states.iter().map(|state| vec![state.clone()]).collect(), ..Fake::default() };
    prove_on(&machine, &[check("x.io", probe)], timeout).remove(0)
}

#[test]
fn unit_that_comes_up_is_good() {
    let row = prove_unit(service(), &[restarting(), unit("loaded", "active", "running")], LONG);
    assert_eq!((row.state, row.got.as_str()), (State::Ok, "active (running)"));
}

#[test]
fn unit_that_is_pending_at_the_deadline_is_down_with_what_it_does() {
    let row = prove_unit(service(), &[restarting()], SHORT);
    assert_eq!(row.state, State::Down);
    assert_eq!(
        row.to_string(),
        "x.io: wanted larder-registry@x.io.service active, \
         got activating (auto-restart), 3 restarts, last result exit-code"
    );
}

#[test]
fn queued_restart_is_waited_for() {
    let queued = UnitState { job: true, ..unit("loaded", "active", "running") };
    assert_eq!(prove_unit(service(), std::slice::from_ref(&queued), SHORT).state, State::Down);
    assert_eq!(prove_unit(service(), &[queued, unit("loaded", "active", "running")], LONG).state, State::Ok);
}

#[test]
fn units_must_be_good_at_the_same_time() {
    let (up, down) = (unit("loaded", "active", "running"), restarting());
    let machine = Fake {
        units: vec![vec![up.clone(), down.clone()], vec![down.clone(), up.clone()], vec![down, up]],
        ..Fake::default()
    };
    let rows = prove_on(&machine, &[check("a.io", service()), check("b.io", service())], SHORT);
    let states: Vec<State> = rows.iter().map(|row| row.state).collect();
    assert_eq!(states, [State::Down, State::Ok]);
}

#[test]
fn unit_that_cannot_start_ends_early_and_so_does_its_endpoint() {
    for state in ["not-found", "masked", "bad-setting"] {
        let machine = Fake { units: vec![vec![unit(state, "inactive", "dead")]], ..Fake::default() };
        let started = Instant::now();
        let checks = [check("x.io", service()), check("x.io", endpoint(nobody()))];
        let rows = prove_on(&machine, &checks, LONG);
        let got: Vec<_> = rows.iter().map(|row| (row.state, row.got.as_str())).collect();
        assert_eq!(got, [(State::Down, state), (State::Down, "connection refused")]);
        assert!(started.elapsed() < LONG, "wanted an end before the deadline");
    }
}

#[test]
fn failed_unit_without_a_job_ends_early_but_gets_its_chance() {
    let failed = unit("loaded", "failed", "failed");
    let started = Instant::now();
    assert_eq!(prove_unit(service(), std::slice::from_ref(&failed), LONG).state, State::Down);
    assert!(started.elapsed() < LONG, "wanted an end before the deadline");
    assert_eq!(prove_unit(service(), &[failed, unit("loaded", "active", "running")], LONG).state, State::Ok);
}

#[test]
fn timer_is_good_when_it_will_elapse() {
    let idle = unit("loaded", "active", "waiting");
    let armed = UnitState { next_elapse: Some("Sun 03:07".to_owned()), ..idle.clone() };
    assert_eq!(prove_unit(timer(), &[armed], LONG).got, "next Sun 03:07");
    assert_eq!(prove_unit(timer(), &[idle], SHORT).got, "active (waiting), will not elapse again");
}

#[test]
fn machine_without_systemd_says_so() {
    let row = prove(service(), SHORT);
    assert_eq!((row.state, row.got.as_str()), (State::Down, "unknown state, run systemctl: not found"));
}

#[test]
fn address_must_be_on_its_interface_with_its_prefix() {
    let network = |text: &str| text.parse::<IpNetwork>().unwrap();
    let prove = |found: &[(&str, &str)], interface: Option<&str>| {
        let found = found.iter().map(|(name, address)| ((*name).to_owned(), network(address))).collect();
        let machine = Fake { addresses: vec![found], ..Fake::default() };
        let probe =
            Probe::Address { address: network("10.0.20.10/24"), interface: interface.map(str::to_owned) };
        let row = prove_on(&machine, &[check("network", probe)], Duration::from_millis(50)).remove(0);
        (row.state, row.got)
    };
    let down = |got: &str| (State::Down, got.to_owned());
    let good = (State::Ok, "10.0.20.10/24 on eth0".to_owned());
    assert_eq!(prove(&[("lo", "127.0.0.1/8"), ("eth0", "10.0.20.10/24")], Some("eth0")), good);
    assert_eq!(prove(&[("eth0", "10.0.20.10/24")], None), good);
    assert_eq!(prove(&[("eth1", "10.0.20.10/24")], Some("eth0")), down("10.0.20.10/24 on eth1"));
    assert_eq!(prove(&[("eth0", "10.0.20.10/32")], Some("eth0")), down("10.0.20.10/32 on eth0"));
    assert_eq!(prove(&[("eth0", "10.0.2.15/24")], Some("eth0")), down("10.0.2.15/24 on eth0"));
    assert_eq!(prove(&[("lo", "127.0.0.1/8")], Some("eth0")), down("no address on eth0"));
    assert_eq!(prove(&[("lo", "127.0.0.1/8")], None), down("no interface has it"));
}

#[test]
fn cri_in_all_its_states() {
    let prove = |states: &[CriState]| {
        let machine = Fake { cri: states.to_vec(), ..Fake::default() };
        prove_on(&machine, &[check("containerd", Probe::Cri)], SHORT).remove(0).state
    };
    let away = CriState::NotRunning("no such file or directory".to_owned());
    let unwell = CriState::Unwell { status: "error".to_owned(), error: "no cni".to_owned() };
    assert_eq!(prove(&[CriState::Ok]), State::Ok);
    assert_eq!(prove(&[away.clone(), unwell.clone(), CriState::Ok]), State::Ok);
    assert_eq!(prove(&[unwell]), State::Down);
    assert_eq!(prove(&[CriState::NotInstalled]), State::Down);
    assert_eq!(prove(&[away]), State::Down);
}

#[test]
fn progress_says_what_is_waited_for() {
    #[derive(Default)]
    struct Seen {
        shown: Vec<(usize, usize, String)>,
        cleared: bool,
    }
    impl Progress for Seen {
        fn show(&mut self, ended: usize, total: usize, waiting: &str) {
            self.shown.push((ended, total, waiting.to_owned()));
        }
        fn clear(&mut self) {
            self.cleared = true;
        }
    }
    let checks = [check("x.io", endpoint(server(&[200]).0)), check("y.io", endpoint(nobody()))];
    let mut seen = Seen::default();
    let report = run_on(&Fake::default(), &checks, SHORT, &mut seen);
    assert_eq!(report.down(), 1);
    assert_eq!(seen.shown.last(), Some(&(1, 2, "y.io: connection refused".to_owned())));
    assert!(seen.cleared, "wanted the line cleared");
}

#[test]
fn a_cache_that_is_out_is_a_warning() {
    let machine = Fake { dead: vec![("http://a:5000".to_owned(), "silent".to_owned())], ..Fake::default() };
    let row = prove_on(&machine, &[check("containerd", Probe::Caches)], LONG).remove(0);
    assert_eq!(row.state, State::Warned);
    assert_eq!(
        row.to_string(),
        "containerd: wanted every cache in use, got out: http://a:5000: silent; see `larder status`"
    );
    assert_eq!(prove(Probe::Caches, LONG).state, State::Ok);
}
