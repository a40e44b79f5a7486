//! An HTTP/1.1 server written down to the bytes, because it must be able to break the protocol.

use std::collections::HashMap;
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A request; the body is unpacked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
    /// The length of the body on the wire.
    pub(crate) n_bytes: usize,
}

/// What the server does about a request.
#[derive(Clone, Debug)]
pub(crate) enum Reaction {
    /// Answers properly.
    Answer { status: u16, headers: Vec<(&'static str, String)>, body: Vec<u8> },
    /// Closes the connection in the middle of the answer.
    Cut { body: Vec<u8> },
    /// Closes the connection without a word.
    Close,
    /// Says nothing until the client goes.
    Silence,
}

impl Reaction {
    pub(crate) fn status(status: u16) -> Self {
        Self::Answer { status, headers: Vec::new(), body: Vec::new() }
    }

    pub(crate) fn json(status: u16, body: &serde_json::Value) -> Self {
        let headers = vec![("Content-Type", "application/json".to_owned())];
        Self::Answer { status, headers, body: body.to_string().into_bytes() }
    }
}

/// The server. It stops when dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// The most requests that were under way at once.
    pub(crate) at_once_max: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Server {
    pub(crate) async fn start(react: impl FnMut(&Request) -> Reaction + Send + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), react).await
    }

    pub(crate) async fn start_at(
        address: SocketAddr,
        react: impl FnMut(&Request) -> Reaction + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let react = Arc::new(Mutex::new(react));
        let (at_once, at_once_max) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let max = Arc::clone(&at_once_max);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (react, at_once, max) = (Arc::clone(&react), Arc::clone(&at_once), Arc::clone(&max));
                connections.spawn(async move {
                    let mut stream = stream;
                    let mut rest = Vec::new();
                    while let Some(request) = read(&mut stream, &mut rest).await {
                        max.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        let reaction = (react.lock().unwrap())(&request);
                        // Others get a chance to be under way too.
                        tokio::task::yield_now().await;
                        at_once.fetch_sub(1, Ordering::SeqCst);
                        if !answer(&mut stream, reaction).await {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, at_once_max, _task: task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn read(stream: &mut TcpStream, rest: &mut Vec<u8>) -> Option<Request> {
    let head_len = loop {
        if let Some(at) = rest.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(rest).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(rest.drain(..head_len).collect()).unwrap();
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap().split(' ');
    let mut request = Request {
        method: first.next().unwrap().into(),
        target: first.next().unwrap().into(),
        ..Request::default()
    };
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').unwrap();
        request.headers.insert(name.to_lowercase(), value.trim().into());
    }
    request.n_bytes = request.headers.get("content-length").map_or(0, |n| n.parse().unwrap());
    while rest.len() < request.n_bytes {
        if stream.read_buf(rest).await.ok()? == 0 {
            return None;
        }
    }
    request.body = rest.drain(..request.n_bytes).collect();
    if request.headers.get("content-encoding").is_some_and(|e| e == "gzip") {
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&*request.body).read_to_end(&mut unpacked).unwrap();
        request.body = unpacked;
    }
    Some(request)
}

/// Whether the connection goes on.
async fn answer(stream: &mut TcpStream, reaction: Reaction) -> bool {
    let head = |status: u16, length: usize| format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n");
    match reaction {
        Reaction::Answer { status, headers, body } => {
            let mut answer = head(status, body.len());
            for (name, value) in headers {
                answer.push_str(&format!("{name}: {value}\r\n"));
            }
            answer.push_str("\r\n");
            stream.write_all(answer.as_bytes()).await.is_ok() && stream.write_all(&body).await.is_ok()
        }
        Reaction::Cut { body } => {
            let answer = head(200, body.len()) + "\r\n";
            let half = &body[..body.len() / 2];
            let _sent = stream.write_all(&[answer.as_bytes(), half].concat()).await;
            false
        }
        Reaction::Close => false,
        Reaction::Silence => {
            let mut scratch = [0; 16];
            let _gone = stream.read(&mut scratch).await;
            false
        }
    }
}
