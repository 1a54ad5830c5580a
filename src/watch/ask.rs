//! The cheap question, put to every endpoint at once. One thread and one poll(2), for it is asked every few seconds
//! for as long as the machine runs.
//!
//! First `GET /`: a Distribution registry (2.8 and 3.1) says there that it is alive and its store is well, and keeps no
//! record of it; `GET /v2/` is two lines in its log each time. Whoever says anything else there is asked `GET /v2/`.
//!
//! `https` is asked in the clear. A TLS server says no to that, in whatever words, which is enough to see that somebody
//! is there who answers; Go's keeps no record of it, as it does of a connection that ends without a word.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, getsockopt, socket, sockopt,
};
use nix::unistd::{read, write};

/// An endpoint is on the same network, and its answer is a constant.
const ATTEMPT: Duration = Duration::from_secs(1);
/// One in use is asked again until it answers: a registry that is restarted is back within a second.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(200);
/// Open at a time.
const MOST: usize = 256;
/// `HTTP/1.1 200`.
const STATUS_LINE: usize = 12;
/// Distribution's has some 120 bytes.
const LONGEST_HEAD: usize = 4096;

/// One endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// `http://HOST:PORT`. Of `https` any answer is good.
    pub url: &'a str,
    /// In use: it is worth to ask again.
    pub patient: bool,
}

/// Who answered 200, and why the others did not.
#[must_use]
pub fn ask(questions: &[Question]) -> BTreeMap<String, Result<(), String>> {
    let names = resolve(questions);
    let mut works: Vec<Work> = questions.iter().map(|question| Work::new(question, &names)).collect();
    loop {
        let now = Instant::now();
        let mut open = works.iter().filter(|work| work.descriptor().is_some()).count();
        for work in &mut works {
            if open < MOST && work.begin(now) {
                open += 1;
            }
        }
        let Some(next) = works.iter().filter_map(|work| work.next(now)).min() else { break };
        let mut waiting: Vec<(usize, PollFd)> = Vec::with_capacity(open);
        for (index, work) in works.iter().enumerate() {
            if let Some((fd, flags)) = work.descriptor() {
                waiting.push((index, PollFd::new(fd.as_fd(), flags)));
            }
        }
        let (indices, mut fds): (Vec<usize>, Vec<PollFd>) = waiting.into_iter().unzip();
        let left = next.saturating_duration_since(now) + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        // Interrupted or not: whatever is ready is looked at.
        let _ = poll(&mut fds, timeout);
        let ready: Vec<usize> = indices
            .into_iter()
            .zip(&fds)
            .filter(|(_, fd)| fd.any().unwrap_or(false))
            .map(|(index, _)| index)
            .collect();
        for index in ready {
            if let Some(work) = works.get_mut(index) {
                work.advance();
            }
        }
        let now = Instant::now();
        works.iter_mut().for_each(|work| work.give_up(now));
    }
    works
        .into_iter()
        .map(|work| {
            let answer = match work.stage {
                Stage::Good => Ok(()),
                _ => Err(work.why),
            };
            (work.url.to_owned(), answer)
        })
        .collect()
}

enum Stage {
    /// Asks from then on.
    Waiting(Instant),
    Connecting(OwnedFd),
    /// Asked; what has come of the answer.
    Reading(OwnedFd, Vec<u8>),
    Good,
    Bad,
}

struct Work<'a> {
    url: &'a str,
    authority: &'a str,
    addresses: Vec<SocketAddr>,
    attempts: usize,
    patient: bool,
    /// Nothing was said at `/` that says enough.
    in_full: bool,
    begun: Option<Instant>,
    /// Of this attempt.
    ends: Instant,
    stage: Stage,
    why: String,
}

impl<'a> Work<'a> {
    fn new(question: &Question<'a>, names: &BTreeMap<String, Vec<SocketAddr>>) -> Self {
        let authority = authority(question.url);
        let addresses = match authority.parse() {
            Ok(address) => vec![address],
            Err(_) => names.get(authority).cloned().unwrap_or_default(),
        };
        let now = Instant::now();
        let known = !addresses.is_empty();
        Self {
            url: question.url,
            authority,
            addresses,
            attempts: 0,
            patient: question.patient,
            in_full: false,
            begun: None,
            ends: now,
            stage: if known { Stage::Waiting(now) } else { Stage::Bad },
            why: "its name leads to no address".to_owned(),
        }
    }

    fn descriptor(&self) -> Option<(&OwnedFd, PollFlags)> {
        match &self.stage {
            Stage::Connecting(fd) => Some((fd, PollFlags::POLLOUT)),
            Stage::Reading(fd, _) => Some((fd, PollFlags::POLLIN)),
            _ => None,
        }
    }

    /// When something has to be done even if nothing comes.
    fn next(&self, now: Instant) -> Option<Instant> {
        match self.stage {
            // Due already: it waits for its turn.
            Stage::Waiting(at) => Some(if at <= now { now + PAUSE } else { at }),
            Stage::Connecting(_) | Stage::Reading(..) => Some(self.ends),
            Stage::Good | Stage::Bad => None,
        }
    }

    fn last(&self) -> Option<Instant> {
        self.begun.map(|begun| begun + if self.patient { PATIENCE } else { ATTEMPT })
    }

    /// Starts an attempt that is due; whether a descriptor is open now.
    fn begin(&mut self, now: Instant) -> bool {
        if !matches!(self.stage, Stage::Waiting(at) if at <= now) {
            return false;
        }
        self.begun.get_or_insert(now);
        self.ends = self.last().map_or(now, |last| last.min(now + ATTEMPT));
        self.attempts += 1;
        match self.address().map(open) {
            Some(Ok(fd)) => {
                self.stage = Stage::Connecting(fd);
                true
            }
            Some(Err(errno)) => {
                self.fail(words(errno), now);
                false
            }
            None => {
                self.stage = Stage::Bad;
                false
            }
        }
    }

    /// A name with several addresses: another one with each attempt.
    fn address(&self) -> Option<SocketAddr> {
        self.addresses.get(self.attempts % self.addresses.len().max(1)).copied()
    }

    fn fail(&mut self, why: String, now: Instant) {
        self.why = why;
        let again = now + PAUSE;
        self.stage = match self.last() {
            Some(last) if self.patient && again < last => Stage::Waiting(again),
            _ => Stage::Bad,
        };
    }

    /// Asks once more in the time of this attempt.
    fn ask_in_full(&mut self) {
        self.in_full = true;
        self.stage = match self.address().map(open) {
            Some(Ok(fd)) => Stage::Connecting(fd),
            Some(Err(errno)) => return self.fail(words(errno), Instant::now()),
            None => Stage::Bad,
        };
    }

    fn give_up(&mut self, now: Instant) {
        if now < self.ends {
            return;
        }
        match self.stage {
            Stage::Connecting(_) => self.fail("no connection within 1 s".to_owned(), now),
            Stage::Reading(..) => {
                // Another try asks where everyone has to answer.
                self.in_full = true;
                self.fail("no answer within 1 s".to_owned(), now);
            }
            _ => {}
        }
    }

    /// Its descriptor is ready for what it waits for.
    fn advance(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Bad) {
            Stage::Connecting(fd) => match self.send(&fd) {
                Ok(()) => self.stage = Stage::Reading(fd, Vec::new()),
                Err(errno) => self.fail(words(errno), Instant::now()),
            },
            Stage::Reading(fd, mut answer) => {
                let mut buffer = [0; 256];
                match read(&fd, &mut buffer) {
                    // A TLS server's no.
                    Ok(_) | Err(Errno::ECONNRESET | Errno::EPIPE) if self.is_https() => {
                        self.stage = Stage::Good
                    }
                    Ok(0) if !self.in_full => self.ask_in_full(),
                    Ok(0) => self.fail("connection closed without an answer".to_owned(), Instant::now()),
                    Ok(count) => {
                        answer.extend(buffer.iter().take(count));
                        let judged = if self.in_full { judge(&answer) } else { is_alive(&answer) };
                        match judged {
                            None => self.stage = Stage::Reading(fd, answer),
                            Some(Ok(())) => self.stage = Stage::Good,
                            Some(Err(_)) if !self.in_full => self.ask_in_full(),
                            Some(Err(why)) => self.fail(why, Instant::now()),
                        }
                    }
                    Err(Errno::EAGAIN | Errno::EINTR) => self.stage = Stage::Reading(fd, answer),
                    Err(errno) => self.fail(words(errno), Instant::now()),
                }
            }
            other => self.stage = other,
        }
    }

    fn is_https(&self) -> bool {
        self.url.starts_with("https:")
    }

    /// Sends the question.
    fn send(&self, fd: &OwnedFd) -> nix::Result<()> {
        match getsockopt(fd, sockopt::SocketError)? {
            0 => {}
            errno => return Err(Errno::from_raw(errno)),
        }
        let request = format!(
            "{} HTTP/1.1\r\nHost: {}\r\nUser-Agent: larder-watch/{}\r\nConnection: close\r\n\r\n",
            if self.in_full { "GET /v2/" } else { "GET /" },
            self.authority,
            env!("CARGO_PKG_VERSION")
        );
        write(fd, request.as_bytes()).map(drop)
    }
}

fn open(address: SocketAddr) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, SockType::Stream, flags, SockProtocol::Tcp)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
        Err(errno) => Err(errno),
    }
}

/// Whether this is how Distribution says at `/` that it is alive (`alive` in its registry/registry.go), once the head
/// is there.
fn is_alive(answer: &[u8]) -> Option<Result<(), String>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let alive = match response.parse(answer) {
        Ok(httparse::Status::Partial) if answer.len() < LONGEST_HEAD => return None,
        Ok(httparse::Status::Partial) | Err(_) => false,
        Ok(httparse::Status::Complete(_)) => {
            let says = |name: &str, value: &[u8]| {
                response
                    .headers
                    .iter()
                    .any(|header| header.name.eq_ignore_ascii_case(name) && header.value == value)
            };
            response.code == Some(200) && says("cache-control", b"no-cache") && says("content-length", b"0")
        }
    };
    Some(if alive { Ok(()) } else { Err("it says something else at /".to_owned()) })
}

/// What the first bytes of the answer say, once there are enough.
fn judge(answer: &[u8]) -> Option<Result<(), String>> {
    let line = answer.get(..STATUS_LINE)?;
    let status = line.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5));
    Some(match status.map(String::from_utf8_lossy).as_deref() {
        Some("200") => Ok(()),
        Some(status) if status.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err(format!("it answers {status}"))
        }
        _ => Err("what answers there speaks no HTTP".to_owned()),
    })
}

fn words(errno: Errno) -> String {
    errno.desc().to_lowercase()
}

fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// The addresses of the names in the questions, all looked up at once. The system's resolver takes longer than
/// any time-out of ours when its server is away: who has not answered by then is left behind.
fn resolve(questions: &[Question]) -> BTreeMap<String, Vec<SocketAddr>> {
    let names: std::collections::BTreeSet<&str> = questions
        .iter()
        .map(|question| authority(question.url))
        .filter(|authority| authority.parse::<SocketAddr>().is_err())
        .collect();
    let (found, answers) = mpsc::channel();
    for name in names {
        let (found, name) = (found.clone(), name.to_owned());
        let look_up = move || {
            let addresses = name.to_socket_addrs().map(Iterator::collect).unwrap_or_default();
            let _ = found.send((name, addresses));
        };
        let _ = std::thread::Builder::new().stack_size(256 << 10).spawn(look_up);
    }
    drop(found);
    let deadline = Instant::now() + ATTEMPT;
    let mut resolved = BTreeMap::new();
    while let Ok((name, addresses)) = answers.recv_timeout(deadline.saturating_duration_since(Instant::now()))
    {
        resolved.insert(name, addresses);
    }
    resolved
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Answers each connection with `reply`, or with nothing at all; its URL.
    fn endpoint(reply: Option<&'static str>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                match reply {
                    Some(reply) => {
                        let _ = connection.read(&mut [0; 1024]);
                        let _ = connection.write_all(reply.as_bytes());
                    }
                    None => held.push(connection),
                }
            }
        });
        url
    }

    fn refused() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    }

    #[test]
    fn all_are_asked_at_once_and_each_gets_its_answer() {
        let urls = [
            endpoint(Some("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")),
            endpoint(Some("HTTP/1.1 503 Service Unavailable\r\n\r\n")),
            endpoint(Some("SSH-2.0-OpenSSH_9.2\r\n")),
            endpoint(Some("")),
            endpoint(None),
            refused(),
        ];
        let questions: Vec<_> = urls.iter().map(|url| Question { url, patient: true }).collect();
        let started = Instant::now();
        let answers = ask(&questions);
        // One after the other they would take ten.
        assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
        let said: Vec<_> =
            urls.iter().map(|url| answers[url].as_ref().map_or_else(String::as_str, |()| "200")).collect();
        assert_eq!(
            said,
            [
                "200",
                "it answers 503",
                "what answers there speaks no HTTP",
                "connection closed without an answer",
                "no answer within 1 s",
                "connection refused",
            ]
        );
    }

    #[test]
    fn a_registry_that_is_alive_is_asked_once_and_leaves_no_line_in_its_log() {
        const ALIVE: &str = "HTTP/1.1 200 OK\r\nCache-Control: no-cache\r\nContent-Length: 0\r\n\r\n";
        let asked = |at_root: &'static str, at_v2: &'static str| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let (lines, seen) = mpsc::channel();
            std::thread::spawn(move || {
                for connection in listener.incoming() {
                    let mut connection = connection.unwrap();
                    let mut request = [0; 1024];
                    let count = connection.read(&mut request).unwrap();
                    let line = String::from_utf8_lossy(&request[..count]).lines().next().unwrap().to_owned();
                    let reply = if line == "GET / HTTP/1.1" { at_root } else { at_v2 };
                    let _ = lines.send(line);
                    let _ = connection.write_all(reply.as_bytes());
                }
            });
            let good = ask(&[Question { url: &url, patient: false }])[&url].is_ok();
            (good, seen.try_iter().collect::<Vec<_>>())
        };
        let both = ["GET / HTTP/1.1".to_owned(), "GET /v2/ HTTP/1.1".to_owned()];
        let once = both[..1].to_vec();
        let (ok, bad) = ("HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 503 Service Unavailable\r\n\r\n");
        assert_eq!(asked(ALIVE, bad), (true, once), "Distribution");
        assert_eq!(
            asked(ok, bad),
            (false, both.to_vec()),
            "somebody's front page before a registry that is down"
        );
        assert_eq!(asked(bad, ok), (true, both.to_vec()), "a registry of another make");
        assert_eq!(asked("", ok), (true, both.to_vec()), "one that hangs up at /");
    }

    #[test]
    fn of_https_any_answer_is_good_and_silence_is_not() {
        let https = |url: String| url.replace("http:", "https:");
        let urls = [
            https(endpoint(Some("HTTP/1.0 400 Bad Request\r\n\r\n"))),
            https(endpoint(Some("\u{15}\u{3}\u{1}\0\u{2}\u{2}F"))),
            https(endpoint(Some(""))),
            https(endpoint(None)),
            https(refused()),
        ];
        let questions: Vec<_> = urls.iter().map(|url| Question { url, patient: false }).collect();
        let answers = ask(&questions);
        let said: Vec<_> =
            urls.iter().map(|url| answers[url].as_ref().map_or_else(String::as_str, |()| "good")).collect();
        assert_eq!(said, ["good", "good", "good", "no answer within 1 s", "connection refused"]);
    }

    #[test]
    fn one_that_comes_back_within_the_round_is_well() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let url = format!("http://{address}");
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(500));
            let listener = TcpListener::bind(address).unwrap();
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let _ = connection.read(&mut [0; 1024]);
                let _ = connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            }
        });
        assert_eq!(ask(&[Question { url: &url, patient: true }])[&url], Ok(()));
    }

    #[test]
    fn names_are_looked_up() {
        let url = endpoint(Some("HTTP/1.1 200 OK\r\n\r\n")).replace("127.0.0.1", "localhost");
        let nowhere = "http://nowhere.invalid:5000".to_owned();
        let answers =
            ask(&[Question { url: &url, patient: true }, Question { url: &nowhere, patient: false }]);
        assert_eq!(answers[&url], Ok(()));
        assert_eq!(answers[&nowhere], Err("its name leads to no address".to_owned()));
    }

    #[test]
    fn more_than_may_be_open_at_a_time() {
        let url = endpoint(Some("HTTP/1.1 200 OK\r\n\r\n"));
        let urls: Vec<String> = (0..400).map(|n| format!("{url}/{n}")).collect();
        let questions: Vec<_> = urls.iter().map(|url| Question { url, patient: true }).collect();
        let answers = ask(&questions);
        let bad: Vec<_> = answers.iter().filter(|(_, answer)| answer.is_err()).collect();
        assert!(bad.is_empty(), "{} bad, {:?}", bad.len(), bad.first());
    }
}
