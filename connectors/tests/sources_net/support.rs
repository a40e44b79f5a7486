//! Starting a source, collecting what it hands over, and a client for raw HTTP.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use logdrive_connectors::{
    ConnectorContext, ConnectorError, Intake, NotDurable, Received, SOURCES, SourceKind,
};
use logdrive_schemas::component::{Limits, Node};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Nothing in these tests takes nearly as long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A source that runs.
pub(crate) struct Running {
    pub(crate) cx: ConnectorContext,
    run: JoinHandle<Result<(), ConnectorError>>,
}

impl Running {
    /// Stops the source as the runtime does.
    pub(crate) async fn stop(self) {
        self.cx.shutdown.cancel();
        let stopped = tokio::time::timeout(DEADLINE, self.run).await;
        stopped.expect("the source stops").unwrap().unwrap();
    }

    pub(crate) fn refused(&self, reason: &str) -> u64 {
        self.cx.metrics.source_connections_refused.with_label_values(&["in", reason]).get()
    }

    pub(crate) fn rejects(&self, reason: &str) -> u64 {
        self.cx.metrics.source_rejects.with_label_values(&["in", reason]).get()
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.cx.metrics.source_dropped.with_label_values(&["in"]).get()
    }

    pub(crate) fn messages(&self) -> u64 {
        self.cx.metrics.source_messages.with_label_values(&["in"]).get()
    }

    pub(crate) fn connections(&self) -> i64 {
        self.cx.metrics.source_connections.with_label_values(&["in"]).get()
    }
}

/// Builds a source from YAML, `type` included.
pub(crate) async fn start(yaml: &str, intake: Intake) -> Result<Running, ConnectorError> {
    let mut node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
    let kind = node.take("type").expect("a type");
    let entry = SOURCES.iter().find(|s| Some(s.name) == kind.as_str()).expect("a known source");
    let cx = ConnectorContext {
        name: "in".into(),
        state_dir: std::env::temp_dir(),
        metrics: Arc::default(),
        shutdown: CancellationToken::new(),
    };
    let Ok(SourceKind::Listener(mut listener)) = (entry.build)(&node, &cx) else {
        panic!("no listener: {yaml}")
    };
    listener.bind().await?;
    Ok(Running { cx, run: tokio::spawn(listener.run(intake)) })
}

/// A source that listens on a port of 127.0.0.1 (`PORT` in the YAML), and its address.
pub(crate) async fn start_on_port(yaml: &str, intake: &Intake) -> (Running, SocketAddr) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    loop {
        // Below the ports that the system gives to clients; one that is taken is skipped.
        let offset = std::process::id() as usize * 37 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 12_000 + (offset % 20_000) as u16;
        if let Ok(running) = start(&yaml.replace("PORT", &port.to_string()), intake.clone()).await {
            return (running, SocketAddr::from(([127, 0, 0, 1], port)));
        }
    }
}

/// What a source handed over, and confirmed as durable.
#[derive(Clone, Default)]
pub(crate) struct Collected(Arc<Mutex<Vec<Vec<u8>>>>);

impl Collected {
    /// Takes whatever comes.
    pub(crate) fn all() -> (Self, Intake) {
        Self::answering(|| Ok(()))
    }

    /// Takes whatever comes and answers each group like this.
    pub(crate) fn answering(answer: impl Fn() -> Result<(), NotDurable> + Send + 'static) -> (Self, Intake) {
        let (intake, mut received) = Intake::channel(4);
        let collected = Self::default();
        let into = collected.clone();
        tokio::spawn(async move {
            while let Some(group) = received.recv().await {
                into.0.lock().unwrap().extend(messages_of(&group));
                if let Some(ack) = group.ack {
                    // The peer may have gone.
                    drop(ack.send(answer()));
                }
            }
        });
        (collected, intake)
    }

    pub(crate) fn now(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Waits for that many messages.
    pub(crate) async fn until(&self, n_messages: usize) -> Vec<Vec<u8>> {
        eventually(|| self.len() >= n_messages).await;
        self.now()
    }
}

pub(crate) fn messages_of(group: &Received) -> Vec<Vec<u8>> {
    let of = |m: &logdrive_schemas::MessageRange| {
        group.data[m.start as usize..(m.start + m.len) as usize].to_vec()
    };
    group.messages.iter().map(of).collect()
}

/// Receives the next group within the deadline.
pub(crate) async fn next(received: &mut Receiver<Received>) -> Received {
    tokio::time::timeout(DEADLINE, received.recv())
        .await
        .expect("something arrives")
        .expect("the source runs")
}

/// Polls until a condition holds.
#[track_caller]
pub(crate) fn eventually(mut holds: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let at = std::panic::Location::caller();
    async move {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < DEADLINE, "never true: {at}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

pub(crate) fn lines(messages: &[Vec<u8>]) -> Vec<String> {
    messages.iter().map(|m| String::from_utf8_lossy(m).into_owned()).collect()
}

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

/// Sends one request with a body and reads the answer.
pub(crate) async fn request(addr: SocketAddr, method_and_path: &str, headers: &str, body: &[u8]) -> Answer {
    let head = format!(
        "{method_and_path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    exchange(addr, &[head.as_bytes(), body].concat()).await
}

/// Sends these bytes and reads until the server closes.
pub(crate) async fn exchange(addr: SocketAddr, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    // A server that refuses answers before it has read everything, and then resets.
    let (_, _) = tokio::time::timeout(DEADLINE, async {
        tokio::join!(writer.write_all(bytes), reader.read_to_end(&mut answer))
    })
    .await
    .expect("an answer in time");
    answer_of(&answer)
}

pub(crate) fn answer_of(bytes: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_lowercase(), body: body.into() }
}

/// The most that the process has occupied since [`reset_peak`], in bytes.
pub(crate) fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// Makes what the process occupies now its peak. Where the kernel refuses that, it
/// stays what it was.
pub(crate) fn reset_peak() -> usize {
    std::fs::write("/proc/self/clear_refs", "5").ok();
    peak()
}

pub(crate) fn gzip(text: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}
