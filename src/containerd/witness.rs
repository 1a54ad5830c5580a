//! A listener on loopback that containerd is sent to: what it asks there is evidence, and no configuration.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// One request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    /// With its query.
    pub target: String,
    /// `containerd/1.7.24`
    pub user_agent: String,
}

impl Asked {
    /// The path without the query, and the query.
    #[must_use]
    pub fn path_and_query(&self) -> (&str, &str) {
        self.target.split_once('?').unwrap_or((&self.target, ""))
    }
}

/// What a request is answered with; the body is always empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    NotFound,
    /// The same method and headers, at this URL.
    GoTo(String),
}

/// It listens until it is dropped.
pub struct Witness {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Milliseconds for which the end of a witness can go unseen.
const SLICE: u8 = 20;
/// A client on loopback has its request ready.
const PATIENCE: Duration = Duration::from_secs(3);
/// Go's own limit is 1 MiB; containerd's requests have a few hundred bytes.
const LARGEST: usize = 64 << 10;
const STACK: usize = 128 << 10;
/// The first byte of a TLS handshake.
const TLS: u8 = 0x16;

impl Witness {
    /// Listens on a free port of 127.0.0.1 and answers each request as `answer` says.
    ///
    /// # Errors
    /// When there is no port, or no thread.
    pub fn listen(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Result<Self> {
        let context = "listen on 127.0.0.1";
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context(context)?;
        listener.set_nonblocking(true).context(context)?;
        let address = listener.local_addr().context(context)?;
        let (asked, end) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (log, ended) = (Arc::clone(&asked), Arc::clone(&end));
        let answer = Arc::new(answer);
        let work = move || {
            while !ended.load(Ordering::Relaxed) {
                let _ =
                    poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], PollTimeout::from(SLICE));
                while let Ok((stream, _)) = listener.accept() {
                    let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                    // Each has its own: a client may open a connection that it says nothing on.
                    let talk = move || drop(talk(stream, &log, answer.as_ref()));
                    let _ = thread::Builder::new().stack_size(STACK).spawn(talk);
                }
            }
        };
        let thread = thread::Builder::new().stack_size(STACK).spawn(work).context(context)?;
        Ok(Self { address, asked, end, thread: Some(thread) })
    }

    /// `http://127.0.0.1:PORT`
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every request so far, in their order.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn talk(
    mut stream: TcpStream,
    log: &Mutex<Vec<Asked>>,
    answer: &(impl Fn(&Asked) -> Answer + ?Sized),
) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let reply = match read(&mut stream)? {
        Some(asked) => {
            let reply = match answer(&asked) {
                Answer::NotFound => "404 Not Found\r\n".to_owned(),
                Answer::GoTo(url) => format!("307 Temporary Redirect\r\nLocation: {url}\r\n"),
            };
            log.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
            reply
        }
        // A Go client that tried TLS first takes this for "speak HTTP to me".
        None => "400 Bad Request\r\n".to_owned(),
    };
    write!(stream, "HTTP/1.1 {reply}Content-Length: 0\r\nConnection: close\r\n\r\n")?;
    stream.shutdown(Shutdown::Write)?;
    // Closing with something unread would take the answer back.
    while stream.read(&mut [0; 1024])? > 0 {}
    Ok(())
}

/// The head of a request; `None` for what is not HTTP.
fn read(stream: &mut TcpStream) -> std::io::Result<Option<Asked>> {
    let mut head = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        head.extend(chunk.iter().take(count));
        if head.first() == Some(&TLS) || head.len() > LARGEST {
            return Ok(None);
        }
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&head) {
            Ok(httparse::Status::Partial) => {}
            Err(_) => return Ok(None),
            Ok(httparse::Status::Complete(_)) => {
                let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
                let agent = request.headers.iter().find(|h| h.name.eq_ignore_ascii_case("user-agent"));
                return Ok(Some(Asked {
                    method: text(request.method),
                    target: text(request.path),
                    user_agent: agent.map_or_else(String::new, |header| {
                        String::from_utf8_lossy(header.value).into_owned()
                    }),
                }));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a client")]
mod tests {
    use super::*;

    fn say(witness: &Witness, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(witness.address).unwrap();
        stream.write_all(request).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply.lines().next().unwrap_or_default().to_owned()
    }

    #[test]
    fn hears_and_answers() {
        let witness = Witness::listen(|asked| match asked.path_and_query() {
            ("/a", _) => Answer::NotFound,
            (path, query) => Answer::GoTo(format!("http://x{path}?{query}")),
        })
        .unwrap();
        let silent = TcpStream::connect(witness.address).unwrap();
        let head = b"HEAD /a?ns=b HTTP/1.1\r\nHost: x\r\nUser-Agent: containerd/1.7.24\r\n\r\n";
        assert_eq!(say(&witness, head), "HTTP/1.1 404 Not Found");
        assert_eq!(say(&witness, b"GET /b HTTP/1.1\r\n\r\n"), "HTTP/1.1 307 Temporary Redirect");
        assert_eq!(say(&witness, b"\x16\x03\x01\x02\x00"), "HTTP/1.1 400 Bad Request");
        assert_eq!(say(&witness, b"what is this\r\n\r\n"), "HTTP/1.1 400 Bad Request");
        drop(silent);
        let asked = witness.asked();
        assert_eq!(asked.len(), 2);
        assert_eq!(asked[0].path_and_query(), ("/a", "ns=b"));
        assert_eq!((asked[0].method.as_str(), asked[0].user_agent.as_str()), ("HEAD", "containerd/1.7.24"));
    }
}
