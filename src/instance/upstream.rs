//! Whether the upstream answers, asked as the registry will ask it when it starts.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::credentials::Login;
use crate::host::environment;
use crate::verify::direct::{self, Cause, Direct, Question};

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// It speaks.
    Well,
    /// It speaks of a rate limit, or of trouble of its own.
    Unwell(String),
    /// No, and at once: refused, no such name, a broken certificate.
    Failed(String),
    /// Nothing within the limit.
    Silent(String),
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Well => f.write_str("well"),
            Self::Unwell(why) | Self::Failed(why) | Self::Silent(why) => f.write_str(why),
        }
    }
}

/// The upstream, and what is trusted for it besides the system's.
#[derive(Debug, Clone)]
pub(super) struct Upstream {
    pub(super) remote: String,
    pub(super) ca: Option<Arc<str>>,
}

/// `GET /v2/`, which is what Distribution asks before it listens, and the token of whoever has no credentials.
pub(super) fn ask(upstream: &Upstream, limit: Duration) -> Answer {
    // Whoever gave the unit a proxy knows of a way that we do not.
    let proxies = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];
    if proxies.iter().any(|name| environment(name).is_some()) {
        return Answer::Well;
    }
    let question = Question {
        remote: upstream.remote.clone(),
        repository: None,
        tag: None,
        login: None,
        ca: upstream.ca.clone(),
    };
    let answer = Direct::default().ask(&question, limit);
    match answer.cause {
        None => Answer::Well,
        Some(Cause::RateLimit | Cause::ServerError) => Answer::Unwell(answer.text),
        Some(Cause::Timeout) => Answer::Silent(answer.text),
        Some(
            Cause::Dns
            | Cause::Refused
            | Cause::Network
            | Cause::TlsAuthority
            | Cause::TlsName
            | Cause::TlsExpired
            | Cause::Tls,
        ) => Answer::Failed(answer.text),
        Some(
            Cause::Credentials | Cause::Unauthorized | Cause::Forbidden | Cause::NotFound | Cause::Unexpected,
        ) => Answer::Well,
    }
}

/// Whether these credentials are none any more.
pub(super) fn refuses(upstream: &Upstream, login: &Login, limit: Duration) -> bool {
    if login.password.is_empty() {
        return true;
    }
    let question = Question {
        remote: upstream.remote.clone(),
        repository: None,
        tag: None,
        login: Some(direct::Login { username: (*login.username).clone(), password: login.password.clone() }),
        ca: upstream.ca.clone(),
    };
    Direct::default().ask(&question, limit).cause == Some(Cause::Credentials)
}

/// What came within `patience` of a question that may take up to `limit`; `None`: nothing yet.
pub(super) fn within(patience: Duration, upstream: &Upstream, limit: Duration) -> Option<Answer> {
    let (tell, told) = mpsc::channel();
    let upstream = upstream.clone();
    thread::spawn(move || {
        let _ = tell.send(ask(&upstream, limit));
    });
    match told.recv_timeout(patience) {
        Ok(answer) => Some(answer),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => Some(Answer::Failed("nobody could ask".to_owned())),
    }
}
