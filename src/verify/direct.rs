//! An upstream asked by ourselves, as its registry will ask it: `GET /v2/`, the challenge, the token, and a question
//! that costs the upstream nothing. A pull-through cache turns whatever its upstream says against it into a 404 or a
//! 500; only the upstream itself tells wrong credentials, a rate limit and a dead network apart.
//!
//! No proxy: the registries' units have no environment but ours, and ours names none.

use std::fmt;
use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::CertificateError;
use serde::{Deserialize, Serialize};
use ureq::config::{Config, RedirectAuthHeaders};
use ureq::http::{HeaderMap, Uri};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Connector, NextTimeout, TcpConnector};
use ureq::{Agent, Error, ResponseExt as _};
use zeroize::Zeroizing;

use super::http::{Method, ZERO_DIGEST};
use crate::host::names;

mod challenge;
pub(crate) mod tls;
#[cfg(test)]
mod tests;

use challenge::Challenge;

/// A connection over the Internet takes a tenth of a second.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const RESOLVE_LIMIT: Duration = Duration::from_secs(5);
/// A token, or the errors that an upstream tells.
const LONGEST_BODY: u64 = 64 << 10;
/// Without all of these, a registry says 404 of an image that is in one of the forms left out.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// What an upstream is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Its own URL.
    pub remote: String,
    /// One that it is known to have.
    pub repository: Option<String>,
    /// Of an image in that repository.
    pub tag: Option<String>,
    pub login: Option<Login>,
    /// Trusted besides the machine's own authorities: PEM.
    pub ca: Option<Arc<str>>,
}

/// Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    pub username: String,
    pub password: Zeroizing<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let remote = self.remote.trim_end_matches('/');
        match (&self.repository, &self.tag) {
            (Some(repository), Some(tag)) => write!(f, "{repository}:{tag} of {remote}"),
            (Some(repository), None) => write!(f, "{repository} of {remote}"),
            (None, _) => write!(f, "an answer of {remote}/v2/"),
        }
    }
}

/// Why an upstream gives nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// It refuses the credentials of the profile.
    Credentials,
    /// It serves nobody without credentials, and there are none.
    Unauthorized,
    /// It knows who asks, and does not serve them.
    Forbidden,
    NotFound,
    RateLimit,
    ServerError,
    /// It says something that no registry says there.
    Unexpected,
    Dns,
    Refused,
    /// No way to it, or a connection that broke.
    Network,
    Timeout,
    TlsAuthority,
    TlsName,
    TlsExpired,
    Tls,
}

impl Cause {
    /// Whether the next question may find it well. A refusal is final: asking again could lock the account, or
    /// make a limit longer.
    #[must_use]
    pub fn may_pass(self) -> bool {
        matches!(self, Self::ServerError | Self::Dns | Self::Refused | Self::Network)
    }

    /// Whether the upstream did answer: it is up, and whoever hangs hangs by himself.
    #[must_use]
    pub fn is_answer(self) -> bool {
        matches!(
            self,
            Self::Credentials | Self::Unauthorized | Self::Forbidden | Self::NotFound | Self::RateLimit
        )
    }
}

/// How many pulls are left, as Docker Hub counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Allowance {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Seconds after which the upstream wants to be asked again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

impl Allowance {
    fn read(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        // `100;w=21600`.
        let count = |name: &str| text(name).and_then(|value| value.split(';').next()?.trim().parse().ok());
        let retry_after = text("retry-after").and_then(|value| match value.trim().parse() {
            Ok(seconds) => Some(seconds),
            Err(_) => {
                let at = httpdate(value)?;
                Some(at.duration_since(std::time::SystemTime::now()).unwrap_or_default().as_secs())
            }
        });
        Self { remaining: count("ratelimit-remaining"), limit: count("ratelimit-limit"), retry_after }
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 5.6.7).
fn httpdate(text: &str) -> Option<std::time::SystemTime> {
    let mut words = text.split_whitespace().skip(1);
    let (day, month, year, time) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|name| *name == month)? + 1;
    humantime::parse_rfc3339(&format!("{year}-{month:02}-{day:0>2}T{time}Z")).ok()
}

/// `76 of 100 pulls left, asks to wait 30s`
impl fmt::Display for Allowance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut mark = "";
        if let Some(remaining) = self.remaining {
            match self.limit {
                Some(limit) => write!(f, "{remaining} of {limit} pulls left")?,
                None => write!(f, "{remaining} pulls left")?,
            }
            mark = ", ";
        }
        if let Some(seconds) = self.retry_after {
            write!(f, "{mark}asks to wait {}", humantime::format_duration(Duration::from_secs(seconds)))?;
        }
        Ok(())
    }
}

/// What an upstream said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// `None`: it serves what it was asked for.
    pub cause: Option<Cause>,
    /// One line.
    pub text: String,
    pub allowance: Allowance,
}

impl Answer {
    fn new(cause: impl Into<Option<Cause>>, text: impl Into<String>, allowance: Allowance) -> Self {
        let mut text = text.into();
        let said = allowance.to_string();
        if !said.is_empty() {
            text.push_str(", ");
            text.push_str(&said);
        }
        Self { cause: cause.into(), text, allowance }
    }

    fn fault(cause: Cause, text: impl Into<String>) -> Self {
        Self::new(cause, text, Allowance::default())
    }
}

/// Asks upstreams; may be shared between threads.
#[derive(Debug, Default)]
pub struct Direct {
    trusted: tls::Trusted,
}

impl Direct {
    /// Asks once; takes no longer than `limit`.
    #[must_use]
    pub fn ask(&self, question: &Question, limit: Duration) -> Answer {
        let trust = if question.remote.starts_with("https:") || question.ca.is_some() {
            self.trusted.config(question.ca.as_deref()).map(Some)
        } else {
            Ok(None)
        };
        let trust = match trust {
            Ok(trust) => trust,
            Err(error) => return Answer::fault(Cause::Tls, format!("{error:#}")),
        };
        let deadline = Instant::now() + limit;
        let asking = Asking { trusted: &self.trusted, agent: agent(trust), question, deadline };
        asking.ask().unwrap_or_else(|answer| *answer)
    }
}

fn agent(trust: Option<Arc<rustls::ClientConfig>>) -> Agent {
    let config = Agent::config_builder()
        .proxy(None)
        // Go follows ten, and keeps the credentials on the same host only.
        .max_redirects(10)
        .max_redirects_will_error(false)
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .http_status_as_error(false)
        .max_idle_connections(1)
        .max_idle_connections_per_host(1)
        .max_response_header_size(16 << 10)
        .input_buffer_size(16 << 10)
        .output_buffer_size(4 << 10)
        .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
        .build();
    match trust {
        Some(trust) => Agent::with_parts(config, TcpConnector::default().chain(tls::Tls(trust)), Names),
        None => Agent::with_parts(config, TcpConnector::default(), Names),
    }
}

/// One question under way.
struct Asking<'a> {
    trusted: &'a tls::Trusted,
    agent: Agent,
    question: &'a Question,
    deadline: Instant,
}

/// Errors are large, and rare.
type Step<T> = Result<T, Box<Answer>>;

fn stop<T>(answer: Answer) -> Step<T> {
    Err(Box::new(answer))
}

struct Response {
    status: u16,
    headers: HeaderMap,
    body: Zeroizing<Vec<u8>>,
    /// Where the last of the redirects led.
    uri: Uri,
}

impl Asking<'_> {
    fn ask(&self) -> Step<Answer> {
        let login = self.question.login.as_ref();
        let base = format!("{}/v2/", self.question.remote.trim_end_matches('/'));
        let first = self.send(Method::Get, &base, None)?;
        let authorization = match first.status {
            401 => self.authorize(&first)?,
            403 | 429 | 500.. => return stop(self.refusal(&first, "")),
            _ => None,
        };
        let unasked = login.filter(|_| authorization.is_none()).map_or(String::new(), |login| {
            format!(", and asks nobody for credentials: those of `{}` are not used", login.username)
        });
        let Some(repository) = &self.question.repository else {
            return match (&authorization, first.status) {
                // A token was granted. It is for nothing, and so opens nothing that could be asked for.
                (Some(Authorization::Bearer(_)), _) => {
                    Ok(Answer::new(None, "it takes the credentials", Allowance::read(&first.headers)))
                }
                (Some(basic), _) => {
                    let answer = self.send(Method::Get, &base, Some(basic))?;
                    if answer.status == 200 {
                        Ok(Answer::new(None, "200", Allowance::read(&answer.headers)))
                    } else {
                        stop(self.refusal(&answer, ""))
                    }
                }
                (None, 200) => {
                    Ok(Answer::new(None, format!("200{unasked}"), Allowance::read(&first.headers)))
                }
                (None, 404) => stop(Answer::fault(Cause::NotFound, "404: there is no registry at this URL")),
                (None, _) => stop(self.refusal(&first, "")),
            };
        };
        let authorization = authorization.as_ref();
        let mut absent = String::new();
        if let Some(tag) = &self.question.tag {
            let url = format!("{base}{repository}/manifests/{tag}");
            let answer = self.send(Method::Head, &url, authorization)?;
            match answer.status {
                200 => {
                    return Ok(Answer::new(None, format!("200{unasked}"), Allowance::read(&answer.headers)));
                }
                // A tag may go; that is nothing against the upstream.
                404 => absent = format!(": it answers, and has no {repository}:{tag}"),
                _ => return stop(self.denial(&answer, authorization, repository)),
            }
        }
        // Whoever has no such repository says so in the body: 404 alone would be the answer without it, too.
        let answer =
            self.send(Method::Get, &format!("{base}{repository}/blobs/{ZERO_DIGEST}"), authorization)?;
        if answer.status == 404 && !says(&answer.body, "NAME_UNKNOWN") {
            let text = format!("404{absent}{unasked}");
            return Ok(Answer::new(None, text, Allowance::read(&answer.headers)));
        }
        stop(self.denial(&answer, authorization, repository))
    }

    /// What an answer that is none means, of a question about `repository`.
    fn denial(&self, answer: &Response, authorization: Option<&Authorization>, repository: &str) -> Answer {
        let login = self.question.login.as_ref();
        if let (401, Some(Authorization::Bearer(_)), Some(login)) = (answer.status, authorization, login) {
            // The token server has taken the credentials: they are right, and do not open this.
            return Answer::fault(
                Cause::Forbidden,
                format!(
                    "401: it takes the credentials of `{}`, which do not open {repository}",
                    login.username
                ),
            );
        }
        self.refusal(answer, &format!(" {repository}"))
    }

    /// What an answer that is none means. `what` is what was asked for, with a space before it.
    fn refusal(&self, response: &Response, what: &str) -> Answer {
        let status = response.status;
        let allowance = Allowance::read(&response.headers);
        let (cause, text) = match (status, &self.question.login) {
            (401, Some(login)) => {
                (Cause::Credentials, format!("401: it refuses the credentials of `{}`", login.username))
            }
            (401, None) => (Cause::Unauthorized, "401: it serves nobody without credentials".to_owned()),
            (403, Some(login)) => (
                Cause::Forbidden,
                format!("403: it forbids{} to `{}`", or(what, " this node"), login.username),
            ),
            (403, None) => {
                (Cause::Forbidden, format!("403: it forbids{}", or(what, " what it was asked for")))
            }
            (404, _) => (Cause::NotFound, format!("404: it has no repository{what}")),
            (429, _) => (Cause::RateLimit, "429: its rate limit".to_owned()),
            (500.., _) => (Cause::ServerError, format!("{status}: it fails")),
            _ => (Cause::Unexpected, format!("{status}: no registry answers like this")),
        };
        Answer::new(cause, text, allowance)
    }

    /// Meets the challenge of a 401.
    fn authorize(&self, response: &Response) -> Step<Option<Authorization>> {
        let values =
            response.headers.get_all("www-authenticate").iter().filter_map(|value| value.to_str().ok());
        match Challenge::read(values) {
            Some(Challenge::Basic) => match &self.question.login {
                Some(login) => Ok(Some(Authorization::Basic(basic(login)))),
                None => stop(self.refusal(response, "")),
            },
            Some(Challenge::Bearer { realm, service }) => {
                self.token(&realm, service.as_deref(), &response.uri).map(Some)
            }
            None => stop(Answer::fault(
                Cause::Unexpected,
                "401 without a challenge: Distribution cannot tell what it wants",
            )),
        }
    }

    /// A token for what will be asked (distribution's docs, "Token Authentication Specification").
    fn token(&self, realm: &str, service: Option<&str>, asked: &Uri) -> Step<Authorization> {
        let server = realm.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
        let Some(server) = server else {
            return stop(Answer::fault(Cause::Unexpected, "its challenge names no token server"));
        };
        let login = self.question.login.as_ref();
        if login.is_some() && asked.scheme_str() == Some("https") && !realm.starts_with("https:") {
            return stop(Answer::fault(
                Cause::Unexpected,
                format!("it wants the credentials sent in the clear, to {server}"),
            ));
        }
        let mut url = realm.to_owned();
        let mut add = |name: &str, value: &str| {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(name);
            url.push('=');
            url.extend(percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC));
        };
        if let Some(service) = service {
            add("service", service);
        }
        if let Some(repository) = &self.question.repository {
            add("scope", &format!("repository:{repository}:pull"));
        }
        if let Some(login) = login {
            add("account", &login.username);
        }
        let authorization = login.map(|login| Authorization::Basic(basic(login)));
        let response = self.send(Method::Get, &url, authorization.as_ref())?;
        let at = if asked.host() == Some(server.as_str()) {
            "its token server".to_owned()
        } else {
            format!("its token server {server}")
        };
        let allowance = Allowance::read(&response.headers);
        let refused = |cause, text| stop(Answer::new(cause, text, allowance));
        let status = response.status;
        match (status, login) {
            (200, _) => {}
            (401 | 403, Some(login)) => {
                let text = format!("{status}: {at} refuses the credentials of `{}`", login.username);
                return refused(Cause::Credentials, text);
            }
            (401 | 403, None) => {
                return refused(
                    Cause::Unauthorized,
                    format!("{status}: {at} serves nobody without credentials"),
                );
            }
            (429, _) => return refused(Cause::RateLimit, format!("429: the rate limit of {at}")),
            (500.., _) => return refused(Cause::ServerError, format!("{status}: {at} fails")),
            _ => return refused(Cause::Unexpected, format!("{status}: {at} gives no token")),
        }
        #[derive(Deserialize)]
        struct Token {
            token: Option<Zeroizing<String>>,
            access_token: Option<Zeroizing<String>>,
        }
        let token: Option<Token> = serde_json::from_slice(&response.body).ok();
        match token.and_then(|token| token.token.or(token.access_token)) {
            Some(token) => Ok(Authorization::Bearer(Zeroizing::new(format!("Bearer {}", token.as_str())))),
            None => stop(Answer::fault(Cause::Unexpected, format!("200: {at} gives no token"))),
        }
    }

    fn send(&self, method: Method, url: &str, authorization: Option<&Authorization>) -> Step<Response> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return stop(Answer::fault(Cause::Timeout, "no answer in time"));
        }
        // A token server may speak TLS where the upstream does not.
        let encrypted = match (url.starts_with("https:"), self.question.remote.starts_with("http:")) {
            (true, true) => {
                self.trusted.config(self.question.ca.as_deref()).ok().map(|trust| agent(Some(trust)))
            }
            _ => None,
        };
        let agent = encrypted.as_ref().unwrap_or(&self.agent);
        let request = match method {
            Method::Get => agent.get(url),
            Method::Head => agent.head(url),
        };
        let mut request =
            request.header("accept", if matches!(method, Method::Head) { MANIFESTS } else { "*/*" });
        if let Some(Authorization::Basic(value) | Authorization::Bearer(value)) = authorization {
            request = request.header("authorization", value.as_str());
        }
        let sent = request
            .config()
            .timeout_resolve(Some(RESOLVE_LIMIT.min(left)))
            .timeout_connect(Some(CONNECT_LIMIT.min(left)))
            .timeout_global(Some(left))
            .build()
            .call();
        let read = sent.and_then(|response| {
            let (status, uri) = (response.status().as_u16(), response.get_uri().clone());
            let (parts, body) = response.into_parts();
            let mut bytes = Zeroizing::new(Vec::new());
            if matches!(method, Method::Get) {
                body.into_reader().take(LONGEST_BODY).read_to_end(&mut bytes)?;
            }
            Ok(Response { status, headers: parts.headers, body: bytes, uri })
        });
        read.or_else(|error| stop(fault(&error, host_of(url))))
    }
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?']).next().unwrap_or(rest)
}

enum Authorization {
    Basic(Zeroizing<String>),
    Bearer(Zeroizing<String>),
}

fn basic(login: &Login) -> Zeroizing<String> {
    let pair = Zeroizing::new(format!("{}:{}", login.username, login.password.as_str()));
    Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())))
}

/// What is made of an answer before anything is believed of it, for `crate::fuzz`.
pub(crate) fn read_any(text: &str) {
    let _ = challenge::Challenge::read(text.lines());
    let _ = says(text.as_bytes(), "MANIFEST_UNKNOWN");
}

/// Whether a registry's error body has this code.
fn says(body: &[u8], code: &str) -> bool {
    #[derive(Deserialize)]
    struct Body {
        errors: Vec<Said>,
    }
    #[derive(Deserialize)]
    struct Said {
        code: String,
    }
    serde_json::from_slice::<Body>(body).is_ok_and(|body| body.errors.iter().any(|said| said.code == code))
}

/// Why nothing came. The text of an error never has what was sent.
fn fault(error: &Error, host: &str) -> Answer {
    let tls = |error: &(dyn std::error::Error + 'static)| {
        let error = error.downcast_ref::<rustls::Error>()?;
        let (cause, text) = match error {
            // A bad signature: an authority of the same name is trusted, with another key.
            rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ) => (
                Cause::TlsAuthority,
                "TLS: its certificate is of an authority that nobody here trusts: set the upstream's `ca`"
                    .to_owned(),
            ),
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => (Cause::TlsName, format!("TLS: its certificate is not for {host}")),
            rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => {
                (Cause::TlsExpired, "TLS: its certificate has expired, or the clock here is wrong".to_owned())
            }
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            ) => (
                Cause::TlsExpired,
                "TLS: its certificate is not valid yet: is the clock here right?".to_owned(),
            ),
            rustls::Error::InvalidMessage(_) => {
                (Cause::Tls, "TLS: what answers there speaks none".to_owned())
            }
            other => (Cause::Tls, format!("TLS: {other}")),
        };
        Some(Answer::fault(cause, text))
    };
    match error {
        Error::Timeout(ureq::Timeout::Resolve) => Answer::fault(
            Cause::Dns,
            format!("DNS: no answer for {host} within {} s", RESOLVE_LIMIT.as_secs()),
        ),
        Error::Timeout(ureq::Timeout::Connect) => Answer::fault(
            Cause::Timeout,
            format!("no connection to {host} within {} s", CONNECT_LIMIT.as_secs()),
        ),
        Error::Timeout(_) => Answer::fault(Cause::Timeout, format!("no answer from {host} in time")),
        Error::HostNotFound => Answer::fault(Cause::Dns, format!("DNS: {host} is not found")),
        Error::Tls(why) => Answer::fault(Cause::Tls, format!("TLS: {why}")),
        Error::Io(io) => {
            if let Some(answer) = io.get_ref().and_then(|inner| tls(inner)) {
                return answer;
            }
            match io.kind() {
                ErrorKind::ConnectionRefused => {
                    Answer::fault(Cause::Refused, format!("{host} refuses the connection"))
                }
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                    Answer::fault(Cause::Network, format!("{host} closed the connection without an answer"))
                }
                ErrorKind::TimedOut => {
                    Answer::fault(Cause::Timeout, format!("no answer from {host} in time"))
                }
                _ => Answer::fault(Cause::Network, format!("{host}: {io}")),
            }
        }
        other => Answer::fault(Cause::Unexpected, format!("{host}: {other}")),
    }
}

/// The machine's own resolver: the registry's knows the same names.
#[derive(Debug)]
struct Names;

impl Resolver for Names {
    fn resolve(&self, uri: &Uri, _: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.host().ok_or(Error::HostNotFound)?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let deadline = Instant::now() + (*timeout.after).min(RESOLVE_LIMIT);
        let mut found = self.empty();
        match names::lookup(host, port, deadline) {
            // No more than a connection's time allows to try.
            Ok(addresses) => addresses.into_iter().take(8).for_each(|address| found.push(address)),
            Err(_) if Instant::now() >= deadline => return Err(Error::Timeout(ureq::Timeout::Resolve)),
            Err(_) => return Err(Error::HostNotFound),
        }
        Ok(found)
    }
}
