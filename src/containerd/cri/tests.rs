#![allow(clippy::disallowed_methods, reason = "a containerd that fails on demand")]

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};

use http::Response;
use tokio::net::UnixListener;

use super::*;

/// What the fake answers one call with.
#[derive(Clone)]
enum Answer {
    Message(Vec<u8>),
    /// Of an error: its number and text, percent-encoded.
    Status(u32, &'static str),
    /// The stream is held, and nothing comes.
    Silence,
    /// The connection goes.
    Hangup,
    /// No frame of gRPC's.
    Garbage,
}

type Asked = Arc<Mutex<Vec<String>>>;

/// A containerd on a socket in `folder` that gives each call the next of `answers`.
fn fake(folder: &Path, answers: Vec<Answer>) -> (String, Asked) {
    let path = folder.join("containerd.sock");
    let asked = Asked::default();
    let (socket, log) = (path.clone(), asked.clone());
    let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut answers = VecDeque::from(answers);
            let (stream, _) = UnixListener::from_std(listener).unwrap().accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let mut held = Vec::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let header = |name: &str| {
                    request.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned()
                };
                log.lock().unwrap().push(format!(
                    "{} {} {}",
                    request.uri(),
                    header("content-type"),
                    header("containerd-namespace")
                ));
                let head = Response::builder().header("content-type", "application/grpc");
                match answers.pop_front().unwrap() {
                    Answer::Message(bytes) => {
                        let mut stream = respond.send_response(head.body(()).unwrap(), false).unwrap();
                        let mut framed = vec![0];
                        framed.extend((bytes.len() as u32).to_be_bytes());
                        framed.extend(bytes);
                        stream.send_data(framed.into(), false).unwrap();
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", "0".parse().unwrap());
                        stream.send_trailers(trailers).unwrap();
                    }
                    Answer::Status(number, text) => {
                        let head = head.header("grpc-status", number).header("grpc-message", text);
                        respond.send_response(head.body(()).unwrap(), true).unwrap();
                    }
                    Answer::Garbage => {
                        let head = head.header("grpc-status", 0);
                        respond.send_response(head.body(()).unwrap(), true).unwrap();
                    }
                    Answer::Silence => held.push(respond),
                    Answer::Hangup => return,
                }
            }
        });
    });
    (path.to_str().unwrap().to_owned(), asked)
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn calls_one_after_the_other() {
    let folder = folder();
    let version = Version {
        runtime_name: "containerd".to_owned(),
        runtime_version: "1.7.24".to_owned(),
        runtime_api_version: "v1".to_owned(),
    };
    let status = StatusResponse {
        status: Some(RuntimeStatus {
            conditions: vec![Condition {
                r#type: "RuntimeReady".to_owned(),
                status: true,
                ..Condition::default()
            }],
        }),
        info: [("config".to_owned(), r#"{"registry":{"configPath":"/x"}}"#.to_owned())].into(),
    };
    let (socket, asked) = fake(
        folder.path(),
        vec![
            Answer::Message(version.encode_to_vec()),
            Answer::Message(status.encode_to_vec()),
            Answer::Message(PullImageResponse { image_ref: "sha256:1".to_owned() }.encode_to_vec()),
            Answer::Message(Vec::new()),
            Answer::Status(5, "image \"a\": not found"),
        ],
    );
    let client = Client::connect(&socket, later()).unwrap();
    assert_eq!(client.version().unwrap(), version);
    let status = client.status().unwrap();
    assert_eq!((status.runtime_ready, status.config_path.as_deref()), (true, Some("/x")));
    assert_eq!(client.pull("a").unwrap(), "sha256:1");
    assert_eq!(client.image_status("a").unwrap(), None);
    client.remove_name("a").unwrap();
    assert_eq!(
        asked.lock().unwrap().last().unwrap(),
        "http://localhost/containerd.services.images.v1.Images/Delete application/grpc k8s.io"
    );
}

#[test]
fn containerds_own_words() {
    let folder = folder();
    let answers = vec![
        Answer::Status(12, "unknown service runtime.v1.RuntimeService"),
        Answer::Status(2, "failed to pull%0Aunexpected%20status"),
    ];
    let (socket, _) = fake(folder.path(), answers);
    let client = Client::connect(&socket, later()).unwrap();
    assert_eq!(client.status().unwrap_err().code, Code::Unimplemented);
    let error = client.pull("a").unwrap_err();
    assert_eq!(
        (error.code, error.to_string().as_str()),
        (Code::Unknown, "failed to pull\nunexpected status")
    );
}

#[test]
fn nobody_listens() {
    let folder = folder();
    let socket = folder.path().join("none");
    let error = Client::connect(socket.to_str().unwrap(), later()).err().unwrap();
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.to_string().ends_with("none: no such file or directory)"), "{error}");
}

#[test]
fn silence_ends_with_the_deadline() {
    let folder = folder();
    let (socket, _) = fake(folder.path(), vec![Answer::Silence]);
    let client = Client::connect(&socket, Instant::now() + Duration::from_millis(300)).unwrap();
    assert_eq!(client.status().unwrap_err().code, Code::DeadlineExceeded);
}

#[test]
fn a_listener_that_is_no_containerd() {
    let folder = folder();
    let path = folder.path().join("sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let deadline = Instant::now() + Duration::from_millis(300);
    let error = match Client::connect(path.to_str().unwrap(), deadline) {
        Ok(client) => client.version().unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.code, Code::DeadlineExceeded);
}

#[test]
fn a_containerd_that_dies_or_raves() {
    for answer in [Answer::Hangup, Answer::Garbage] {
        let folder = folder();
        let (socket, _) = fake(folder.path(), vec![answer]);
        let client = Client::connect(&socket, later()).unwrap();
        assert_eq!(client.version().unwrap_err().code, Code::Unavailable);
    }
}

#[test]
fn config_path_of_a_verbose_status() {
    let config = r#"{"containerd":{},"registry":{"configPath":"/etc/containerd/certs.d","mirrors":null}}"#;
    assert_eq!(config_path(config).as_deref(), Some("/etc/containerd/certs.d"));
    assert_eq!(["{}", "", r#"{"registry":{}}"#].map(config_path), [None, None, None]);
}
