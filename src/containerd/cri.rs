//! containerd's CRI as the kubelet speaks it: gRPC on containerd's socket, `runtime.v1` (1.6 and later).
//!
//! `h2` on a single-threaded tokio with `prost`, and the few lines that a unary call takes: 0.48 MiB and 18
//! crates more in the stripped program of 2.81 MiB. `tonic`'s channel on the same two: 0.70 MiB and 49 crates, for
//! reconnects, balancing and streams that one call after the other on a local socket has no use for. Neither
//! adds to the start: 21 system calls and a quarter of a millisecond, as before.
//!
//! The messages are derived from a few structs: only the fields that are read here, no protoc. The
//! runtime is made by [`Client::connect`] and not before.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use percent_encoding::percent_decode_str;
use prost::Message;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

/// `containerd.defaults.DefaultAddress`, which `ctr` uses too.
pub const SOCKET: &str = "/run/containerd/containerd.sock";
/// The namespace that CRI keeps its images in.
const NAMESPACE: &str = "k8s.io";
/// A verbose status with the whole configuration in it is some 20 KiB.
const LARGEST: usize = 16 << 20;
/// A listener whose queue is full is asked again after this long.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// What a call ended with (gRPC's status codes, those that mean something here).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// gRPC's 2; containerd says it of most things.
    Unknown,
    /// Nothing came before the deadline.
    DeadlineExceeded,
    NotFound,
    /// containerd runs without this service: its CRI plugin is off, or failed when it was loaded.
    Unimplemented,
    /// Nobody listens, or the connection broke off.
    Unavailable,
    Other(u32),
}

impl From<u32> for Code {
    fn from(number: u32) -> Self {
        match number {
            2 => Self::Unknown,
            4 => Self::DeadlineExceeded,
            5 => Self::NotFound,
            12 => Self::Unimplemented,
            14 => Self::Unavailable,
            other => Self::Other(other),
        }
    }
}

/// Why a call has no answer: containerd's own words, or ours where it did not come to say any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CriError {
    pub code: Code,
    pub message: String,
}

impl CriError {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    fn broken(error: impl fmt::Display) -> Self {
        Self::new(Code::Unavailable, error.to_string())
    }
}

impl fmt::Display for CriError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CriError {}

/// `Version`: what runs, and what it calls itself.
#[derive(Clone, PartialEq, Message)]
pub struct Version {
    #[prost(string, tag = "2")]
    pub runtime_name: String,
    #[prost(string, tag = "3")]
    pub runtime_version: String,
    #[prost(string, tag = "4")]
    pub runtime_api_version: String,
}

/// `Status`, as far as it is asked for here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CriStatus {
    pub runtime_ready: bool,
    /// Why not, in containerd's words.
    pub reason: String,
    /// The `config_path` that this running containerd has: 1.x says it, 2.x does not.
    pub config_path: Option<String>,
}

/// An image that is on the machine.
#[derive(Clone, PartialEq, Message)]
pub struct Image {
    /// The digest of its configuration.
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, repeated, tag = "2")]
    pub repo_tags: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    pub repo_digests: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {
    #[prost(bool, tag = "1")]
    verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<Condition>,
}

#[derive(Clone, PartialEq, Message)]
struct Condition {
    #[prost(string, tag = "1")]
    r#type: String,
    #[prost(bool, tag = "2")]
    status: bool,
    #[prost(string, tag = "3")]
    reason: String,
    #[prost(string, tag = "4")]
    message: String,
}

/// Of `PullImage`, `ImageStatus` and `RemoveImage` alike.
#[derive(Clone, PartialEq, Message)]
struct ImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct PullImageResponse {
    #[prost(string, tag = "1")]
    image_ref: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    image: Option<Image>,
}

/// `containerd.services.images.v1.Images/Delete`.
#[derive(Clone, PartialEq, Message)]
struct DeleteImageRequest {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bool, tag = "2")]
    sync: bool,
}

impl ImageRequest {
    fn of(image: &str) -> Self {
        Self { image: Some(ImageSpec { image: image.to_owned() }) }
    }
}

/// One connection. Every call ends by the deadline that the connection was made with.
pub struct Client {
    runtime: Runtime,
    sender: SendRequest<Bytes>,
    deadline: Instant,
}

impl Client {
    /// Connects to a socket, waiting for nobody who does not listen.
    ///
    /// # Errors
    /// [`Code::Unavailable`] where nobody listens.
    pub fn connect(socket: &str, deadline: Instant) -> Result<Self, CriError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| CriError::broken(format!("speak CRI: {error}")))?;
        let refused = |error: &dyn fmt::Display| {
            CriError::new(Code::Unavailable, format!("containerd not running ({socket}: {error})"))
        };
        let sender = within(&runtime, deadline, async {
            let stream = loop {
                match UnixStream::connect(socket).await {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        tokio::time::sleep(BUSY_PAUSE).await;
                    }
                    result => break result.map_err(|error| refused(&said(&error)))?,
                }
            };
            let (sender, connection) =
                h2::client::handshake(stream).await.map_err(|error| refused(&error))?;
            // What breaks it is told to the calls that wait for it.
            tokio::spawn(async { drop(connection.await) });
            Ok(sender)
        })?;
        Ok(Self { runtime, sender, deadline })
    }

    /// # Errors
    /// [`CriError`].
    pub fn version(&self) -> Result<Version, CriError> {
        self.call("/runtime.v1.RuntimeService/Version", &Empty {}, false)
    }

    /// # Errors
    /// [`CriError`]; [`Code::Unimplemented`] where the CRI plugin is not up.
    pub fn status(&self) -> Result<CriStatus, CriError> {
        let request = StatusRequest { verbose: true };
        let answer: StatusResponse = self.call("/runtime.v1.RuntimeService/Status", &request, false)?;
        let conditions = answer.status.unwrap_or_default().conditions;
        let ready = conditions.iter().find(|condition| condition.r#type == "RuntimeReady");
        Ok(CriStatus {
            runtime_ready: ready.is_some_and(|condition| condition.status),
            reason: ready.map_or_else(String::new, |condition| {
                [&condition.reason, &condition.message].map(String::as_str).join(" ").trim().to_owned()
            }),
            config_path: answer.info.get("config").and_then(|config| config_path(config)),
        })
    }

    /// Pulls an image and returns its reference.
    ///
    /// # Errors
    /// [`CriError`] with what the registry said.
    pub fn pull(&self, image: &str) -> Result<String, CriError> {
        let path = "/runtime.v1.ImageService/PullImage";
        self.call(path, &ImageRequest::of(image), false).map(|answer: PullImageResponse| answer.image_ref)
    }

    /// The image of that name or id, where there is one.
    ///
    /// # Errors
    /// [`CriError`].
    pub fn image_status(&self, image: &str) -> Result<Option<Image>, CriError> {
        let path = "/runtime.v1.ImageService/ImageStatus";
        self.call(path, &ImageRequest::of(image), false).map(|answer: ImageStatusResponse| answer.image)
    }

    /// Removes an image under *all* its names.
    ///
    /// # Errors
    /// [`CriError`].
    pub fn remove_image(&self, image: &str) -> Result<(), CriError> {
        let path = "/runtime.v1.ImageService/RemoveImage";
        self.call(path, &ImageRequest::of(image), false).map(|_: Empty| ())
    }

    /// Takes one name off an image, by containerd's own API: CRI would remove all of them. One that is not
    /// there is fine.
    ///
    /// # Errors
    /// [`CriError`].
    pub fn remove_name(&self, name: &str) -> Result<(), CriError> {
        let request = DeleteImageRequest { name: name.to_owned(), sync: true };
        match self.call("/containerd.services.images.v1.Images/Delete", &request, true) {
            Ok(Empty {}) => Ok(()),
            Err(error) if error.code == Code::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn call<Q: Message, A: Message + Default>(
        &self,
        path: &str,
        question: &Q,
        namespaced: bool,
    ) -> Result<A, CriError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // containerd refuses the authority that gRPC makes of a socket's path.
        let mut request = Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            // It gives up what we have given up.
            .header("grpc-timeout", format!("{}m", left.as_millis().clamp(1, 99_999_999)));
        if namespaced {
            request = request.header("containerd-namespace", NAMESPACE);
        }
        let request = request.body(()).map_err(CriError::broken)?;
        let frame = frame(question);
        within(&self.runtime, self.deadline, async {
            let sender = self.sender.clone().ready().await.map_err(CriError::broken)?;
            A::decode(ask(sender, request, frame).await?).map_err(CriError::broken)
        })
    }
}

/// Runs `work` to its end or to the deadline.
fn within<T>(
    runtime: &Runtime,
    deadline: Instant,
    work: impl Future<Output = Result<T, CriError>>,
) -> Result<T, CriError> {
    runtime.block_on(async {
        tokio::time::timeout_at(deadline.into(), work)
            .await
            .unwrap_or_else(|_| Err(CriError::new(Code::DeadlineExceeded, "containerd: no answer in time")))
    })
}

/// A message with gRPC's five bytes before it: not compressed, and its length.
fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(length + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut frame);
    frame.freeze()
}

/// One unary call: the answer's message without its frame.
async fn ask(
    mut sender: SendRequest<Bytes>,
    request: Request<()>,
    question: Bytes,
) -> Result<Bytes, CriError> {
    let (answer, mut body) = sender.send_request(request, false).map_err(CriError::broken)?;
    body.send_data(question, true).map_err(CriError::broken)?;
    let answer = answer.await.map_err(CriError::broken)?;
    // An error may come without a body: its status is with the headers then.
    let headers = answer.headers().clone();
    let mut body = answer.into_body();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(CriError::broken)?;
        bytes.extend_from_slice(&chunk);
        if bytes.len() > LARGEST {
            return Err(CriError::broken(format!("containerd: an answer of more than {LARGEST} bytes")));
        }
        body.flow_control().release_capacity(chunk.len()).map_err(CriError::broken)?;
    }
    let trailers = body.trailers().await.map_err(CriError::broken)?;
    judge(trailers.as_ref().unwrap_or(&headers))?;
    match bytes.split_at_checked(5) {
        Some(([0, ..], _)) => Ok(bytes.split_off(5).freeze()),
        _ => Err(CriError::broken("containerd: an answer that is not gRPC")),
    }
}

fn judge(status: &HeaderMap) -> Result<(), CriError> {
    let text = |name: &str| status.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status").map(str::parse) {
        Some(Ok(0_u32)) => Ok(()),
        Some(Ok(number)) => {
            let message = percent_decode_str(text("grpc-message").unwrap_or_default()).decode_utf8_lossy();
            Err(CriError::new(number.into(), message))
        }
        _ => Err(CriError::broken("containerd: an answer without a gRPC status")),
    }
}

fn said(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// `registry.configPath` of the configuration that 1.x tells as JSON.
fn config_path(config: &str) -> Option<String> {
    let config: serde_json::Value = serde_json::from_str(config).ok()?;
    Some(config.get("registry")?.get("configPath")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests;
