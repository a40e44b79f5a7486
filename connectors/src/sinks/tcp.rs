//! Documents over one TCP connection, one a line.
//!
//! TCP has no acknowledgement by the program at the far end. What can be had is this: a flush returns only when the
//! far end's *kernel* has confirmed every byte and has not closed the connection. What that program had not read
//! when it died is lost, so the sink promises no more than best effort.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError, duration};
use logdrive_schemas::{Batch, Epoch};
use prometheus::IntCounter;
use schemars::JsonSchema;
use serde::Deserialize;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::http_auth::invalid;
use super::tcp_unsent::unconfirmed_bytes;
use crate::context::ConnectorContext;
use crate::document::Documents;
use crate::error::{BoxError, ConnectorError};
use crate::metrics::Metrics;
use crate::sink::{FlushPolicy, Guarantee, Reads, Sink, SinkConfig};

/// How much is handed to the kernel at once.
const WRITE_BYTES: usize = 256 << 10;
/// How much may be written between two flushes.
const FLUSH_BYTES: usize = 32 << 20;

/// Sends documents over one TCP connection, one JSON document a line.
///
/// Nobody confirms that the program at the far end has taken a document, only that its machine has: what it has not
/// read when it crashes is lost, and what was under way when the connection broke is sent again. Where that matters
/// use `http`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tcp {
    /// Where to connect to: `host:port`.
    pub endpoint: String,
    /// How long connecting may take.
    #[serde(default = "Tcp::connect_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub connect_timeout: Duration,
    /// How long the far end may take nothing at all before the connection counts as lost.
    #[serde(default = "Tcp::stall_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub stall_timeout: Duration,
    /// How often the far end is asked whether everything has arrived, so that sources may be told.
    #[serde(default = "Tcp::flush_interval_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub flush_interval: Duration,
}

impl Tcp {
    fn connect_timeout_default() -> Duration {
        Duration::from_secs(10)
    }

    fn stall_timeout_default() -> Duration {
        Duration::from_secs(120)
    }

    fn flush_interval_default() -> Duration {
        Duration::from_millis(500)
    }
}

impl Component for Tcp {
    const NAME: &'static str = "tcp";
    const EXAMPLE: &'static str = r#"
type: tcp
from: [events]
endpoint: "localhost:5045"
"#;
}

impl SinkConfig for Tcp {
    fn guarantee(&self) -> Guarantee {
        Guarantee::BestEffort
    }

    fn reads(&self) -> Reads {
        Reads::Document(Vec::new())
    }

    fn build(self, cx: &ConnectorContext) -> Result<Box<dyn Sink>, ConfigError> {
        let port = self.endpoint.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) || self.endpoint.starts_with(':') {
            return Err(invalid("`endpoint` must be `host:port`"));
        }
        if self.connect_timeout.is_zero() || self.stall_timeout < Duration::from_millis(1) {
            return Err(invalid("`connect_timeout` and `stall_timeout` must not be zero"));
        }
        let labels = &[&*cx.name];
        Ok(Box::new(TcpSink {
            stream: None,
            buffer: Vec::with_capacity(WRITE_BYTES + (16 << 10)),
            n_rows: 0,
            name: Arc::clone(&cx.name),
            rows: cx.metrics.sink_rows.with_label_values(labels),
            bytes: cx.metrics.sink_bytes.with_label_values(labels),
            metrics: Arc::clone(&cx.metrics),
            config: self,
        }))
    }
}

struct TcpSink {
    config: Tcp,
    stream: Option<TcpStream>,
    /// Whole lines that are not yet with the kernel.
    buffer: Vec<u8>,
    /// Rows since the last flush.
    n_rows: u64,
    name: Arc<str>,
    rows: IntCounter,
    bytes: IntCounter,
    metrics: Arc<Metrics>,
}

impl TcpSink {
    /// Appends rows of `batch` from `row` on until it is worth a write; returns the first row that is not in it.
    fn fill(&mut self, batch: &Batch, mut row: usize) -> usize {
        let documents = Documents::new(batch);
        while row < batch.num_rows() && self.buffer.len() < WRITE_BYTES {
            documents.write(row, &mut self.buffer);
            self.buffer.push(b'\n');
            row += 1;
        }
        row
    }

    /// Hands the buffer to the kernel.
    async fn send(&mut self) -> Result<(), ConnectorError> {
        let Some(stream) = &mut self.stream else { return Err(self.lost("not connected")) };
        let mut n_sent = 0;
        while n_sent < self.buffer.len() {
            let write = stream.write(&self.buffer[n_sent..]);
            match tokio::time::timeout(self.config.stall_timeout, write).await {
                Ok(Ok(0)) => return Err(self.lost("the connection takes nothing more")),
                Ok(Ok(n_bytes)) => n_sent += n_bytes,
                Ok(Err(error)) => return Err(self.lost(error)),
                Err(_) => return Err(self.lost("the far end reads nothing")),
            }
        }
        self.bytes.inc_by(n_sent as u64);
        self.buffer.clear();
        Ok(())
    }

    /// Waits until the far end has confirmed every byte.
    async fn confirmed(&mut self) -> Result<(), ConnectorError> {
        let (mut pause, mut before) = (Duration::from_micros(200), usize::MAX);
        let mut progress = Instant::now();
        loop {
            let Some(stream) = &self.stream else { return Err(self.lost("not connected")) };
            if let Err(error) = still_open(stream) {
                return Err(self.lost(error));
            }
            let n_bytes = match unconfirmed_bytes(stream.as_fd()) {
                Ok(0) => break,
                Ok(n_bytes) => n_bytes,
                Err(error) => return Err(self.lost(error)),
            };
            if n_bytes < before {
                (before, progress) = (n_bytes, Instant::now());
            } else if self.config.stall_timeout <= progress.elapsed() {
                return Err(self.lost("the far end reads nothing"));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        // A reset may have come between the look at the connection and the look at its queue, and empties it.
        let Some(stream) = &self.stream else { return Err(self.lost("not connected")) };
        still_open(stream).map_err(|error| self.lost(error))
    }

    fn lost(&self, source: impl Into<BoxError>) -> ConnectorError {
        self.metrics.sink_errors.with_label_values(&[&*self.name, "disconnected"]).inc();
        ConnectorError::disconnected(&self.config.endpoint, source)
    }
}

/// Whether the far end has neither closed nor reset the connection. What it says otherwise is of no interest.
fn still_open(stream: &TcpStream) -> io::Result<()> {
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    let mut scratch = [0; 4096];
    // A far end that talks without end does not keep us here: what it says next is read at the next look.
    for _ in 0..256 {
        let socket = SockRef::from(stream);
        match io::Read::read(&mut &*socket, &mut scratch) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the far end closed")),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[async_trait]
impl Sink for TcpSink {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        self.stream = None;
        self.buffer.clear();
        self.n_rows = 0;
        let connecting = TcpStream::connect(&self.config.endpoint);
        let stream = match tokio::time::timeout(self.config.connect_timeout, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(self.lost(error)),
            Err(_) => return Err(self.lost("connecting took too long")),
        };
        let socket = SockRef::from(&stream);
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10))
            .with_retries(3);
        let options = stream
            .set_nodelay(true)
            .and_then(|()| socket.set_tcp_keepalive(&keepalive))
            .and_then(|()| socket.set_tcp_user_timeout(Some(self.config.stall_timeout)));
        options.map_err(|error| self.lost(error))?;
        self.stream = Some(stream);
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        let mut row = 0;
        while row < batch.num_rows() {
            row = self.fill(batch, row);
            // Also what is little: the far end need not wait for a flush, which only asks whether it arrived.
            self.send().await?;
        }
        self.n_rows += batch.num_rows() as u64;
        Ok(None)
    }

    async fn flush(&mut self, _upto: Epoch) -> Result<Option<Batch>, ConnectorError> {
        self.confirmed().await?;
        self.rows.inc_by(std::mem::take(&mut self.n_rows));
        // One huge document must not be remembered by the memory it took.
        self.buffer.shrink_to(WRITE_BYTES * 2);
        Ok(None)
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy { bytes_max: FLUSH_BYTES, age_max: self.config.flush_interval }
    }

    async fn close(&mut self) -> Result<(), ConnectorError> {
        if let Some(mut stream) = self.stream.take() {
            stream.shutdown().await.map_err(|error| self.lost(error))?;
        }
        Ok(())
    }
}
