//! The cheap question, put to every endpoint at once: `GET /v2/`, or less. One thread and one poll(2), for it is asked
//! every few seconds for as long as the machine runs.

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

/// One endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// `http://HOST:PORT`. Of `https` only the connection is tried.
    pub url: &'a str,
    /// In use: it is worth to ask again.
    pub patient: bool,
    /// `OPTIONS *` instead: Go's server, and so every Distribution registry, answers that by itself and keeps no
    /// record of it; `GET /v2/` is two lines in the registry's log each time.
    pub lightly: bool,
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
    lightly: bool,
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
            lightly: question.lightly,
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
        // A name with several addresses: another one each time.
        let address = self.addresses.get(self.attempts % self.addresses.len().max(1)).copied();
        self.attempts += 1;
        match address.map(open) {
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

    fn fail(&mut self, why: String, now: Instant) {
        self.why = why;
        let again = now + PAUSE;
        self.stage = match self.last() {
            Some(last) if self.patient && again < last => Stage::Waiting(again),
            _ => Stage::Bad,
        };
    }

    fn give_up(&mut self, now: Instant) {
        if now < self.ends {
            return;
        }
        match self.stage {
            Stage::Connecting(_) => self.fail("no connection within 1 s".to_owned(), now),
            Stage::Reading(..) => self.fail("no answer within 1 s".to_owned(), now),
            _ => {}
        }
    }

    /// Its descriptor is ready for what it waits for.
    fn advance(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Bad) {
            Stage::Connecting(fd) => match self.send(&fd) {
                Ok(true) => self.stage = Stage::Reading(fd, Vec::new()),
                Ok(false) => self.stage = Stage::Good,
                Err(errno) => self.fail(words(errno), Instant::now()),
            },
            Stage::Reading(fd, mut answer) => {
                let mut buffer = [0; 256];
                match read(&fd, &mut buffer) {
                    Ok(0) => self.fail("connection closed without an answer".to_owned(), Instant::now()),
                    Ok(count) => {
                        answer.extend(buffer.iter().take(count));
                        match judge(&answer, self.lightly) {
                            None => self.stage = Stage::Reading(fd, answer),
                            Some(Ok(())) => self.stage = Stage::Good,
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

    /// Sends the question; false where the connection is all that can be tried.
    fn send(&self, fd: &OwnedFd) -> nix::Result<bool> {
        match getsockopt(fd, sockopt::SocketError)? {
            0 => {}
            errno => return Err(Errno::from_raw(errno)),
        }
        if self.url.starts_with("https:") {
            return Ok(false);
        }
        let request = format!(
            "{} HTTP/1.1\r\nHost: {}\r\nUser-Agent: larder-watch/{}\r\nConnection: close\r\n\r\n",
            if self.lightly { "OPTIONS *" } else { "GET /v2/" },
            self.authority,
            env!("CARGO_PKG_VERSION")
        );
        write(fd, request.as_bytes()).map(|_| true)
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

/// What the first bytes of the answer say, once there are enough.
fn judge(answer: &[u8], lightly: bool) -> Option<Result<(), String>> {
    let line = answer.get(..STATUS_LINE)?;
    let status = line.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5));
    Some(match status.map(String::from_utf8_lossy).as_deref() {
        Some("200") => Ok(()),
        // Who takes no such question answers all the same.
        Some(status) if lightly && status.bytes().all(|byte| byte.is_ascii_digit()) => Ok(()),
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
        let questions: Vec<_> =
            urls.iter().map(|url| Question { url, patient: true, lightly: false }).collect();
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
    fn lightly_any_answer_will_do() {
        let urls = [endpoint(Some("HTTP/1.1 405 Method Not Allowed\r\n\r\n")), endpoint(None), refused()];
        let questions: Vec<_> =
            urls.iter().map(|url| Question { url, patient: false, lightly: true }).collect();
        let answers = ask(&questions);
        assert_eq!(urls.map(|url| answers[&url].is_ok()), [true, false, false]);
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
        assert_eq!(ask(&[Question { url: &url, patient: true, lightly: false }])[&url], Ok(()));
    }

    #[test]
    fn names_are_looked_up() {
        let url = endpoint(Some("HTTP/1.1 200 OK\r\n\r\n")).replace("127.0.0.1", "localhost");
        let nowhere = "http://nowhere.invalid:5000".to_owned();
        let answers = ask(&[
            Question { url: &url, patient: true, lightly: false },
            Question { url: &nowhere, patient: false, lightly: false },
        ]);
        assert_eq!(answers[&url], Ok(()));
        assert_eq!(answers[&nowhere], Err("its name leads to no address".to_owned()));
    }

    #[test]
    fn more_than_may_be_open_at_a_time() {
        let url = endpoint(Some("HTTP/1.1 200 OK\r\n\r\n"));
        let urls: Vec<String> = (0..400).map(|n| format!("{url}/{n}")).collect();
        let questions: Vec<_> =
            urls.iter().map(|url| Question { url, patient: true, lightly: false }).collect();
        let answers = ask(&questions);
        let bad: Vec<_> = answers.iter().filter(|(_, answer)| answer.is_err()).collect();
        assert!(bad.is_empty(), "{} bad, {:?}", bad.len(), bad.first());
    }
}
