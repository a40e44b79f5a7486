//! The `statsd` source: StatsD and DogStatsD over UDP or TCP.

mod aggregate;
pub mod line;
mod tcp;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use logdrive_schemas::MessageRange;
use logdrive_schemas::component::{Component, ConfigError, Span, bytes, duration};
use prometheus::IntCounter;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::Interest;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::net::counts::Counts;
use super::net::listen::Listen;
use super::net::tls::{Security, Tls};
use super::tcp::defaults;
use super::udp::receive::{self, Batch};
use super::udp::{DRAIN_CALLS_MAX, DROPS_INTERVAL, Drops, Udp};
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::source::{Intake, Listener, NotDurable, Received, SourceConfig, SourceKind};
use aggregate::Aggregate;

/// Documents are handed over in groups of about this size.
const GROUP_BYTES: usize = 1 << 20;
/// No datagram is longer.
const DATAGRAM_BYTES_MAX: usize = 64 << 10;
/// Gauges that are remembered from one interval to the next.
const GAUGES_MAX: usize = 100_000;
/// How often documents that were not aggregated are handed over.
const EACH_INTERVAL: Duration = Duration::from_millis(200);

/// How lines come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// In datagrams.
    #[default]
    Udp,
    /// Over connections, each line ended by LF or CRLF.
    Tcp,
}

/// Receives metrics of StatsD and DogStatsD over UDP or TCP: counters, gauges, timers, histograms, distributions and sets, with
/// sample rates and tags, one metric per line. They become rows of the schema `metric` with the tags under `labels`:
/// every `flush_interval` one row for each metric that came, or with `aggregate: false` one for each value.
///
/// The `value` of a counter is its sum, of a set how many different members came, of timers, histograms and
/// distributions the sum of the measurements, with `count`, `min`, `max` and `quantiles` (exact up to 64 measurements,
/// then within one part in a hundred). Lines that are no metrics, events and service checks among them, become rejects.
/// What was not yet written is lost when the process is killed, as datagrams are; what was written is on disk. Over TCP, too:
/// the protocol has no acknowledgement. But there nothing is dropped: while the buffer is full, connections are not read.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Statsd {
    /// Where to listen, such as `0.0.0.0:8125`.
    pub listen: Listen,
    /// `udp` or `tcp`.
    #[serde(default)]
    pub protocol: Protocol,
    /// Encrypts connections, with `protocol: tcp`. Not if not given.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// `false` makes a row of every value, with `sample_rate` if it stands for several; a gauge that was told how much it
    /// changes has `change`, a set `member`.
    #[serde(default = "Statsd::aggregate_default")]
    pub aggregate: bool,
    /// How often aggregated metrics are written.
    #[serde(default = "Statsd::flush_interval_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub flush_interval: Duration,
    /// Which quantiles of timers, histograms and distributions are written.
    #[serde(default = "Statsd::quantiles_default")]
    pub quantiles: Vec<f64>,
    /// The memory of an interval. When it is used up, everything is written at once.
    #[serde(default = "Statsd::max_state_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_state_bytes: u64,
    /// How much the kernel may hold of datagrams. Without the right to exceed `net.core.rmem_max`, that is the limit.
    #[serde(default = "Udp::receive_buffer_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub receive_buffer: u64,
    /// Connections beyond this many are closed at once.
    #[serde(default = "defaults::connections")]
    pub max_connections: usize,
    /// The same for one address (one /64 network with IPv6).
    #[serde(default = "defaults::connections_per_ip")]
    pub max_connections_per_ip: usize,
    /// A connection on which nothing arrives for this long is closed; `0s` never closes one.
    #[serde(default = "defaults::idle_timeout", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub idle_timeout: Duration,
}

impl Statsd {
    fn aggregate_default() -> bool {
        true
    }

    fn flush_interval_default() -> Duration {
        Duration::from_secs(10)
    }

    fn quantiles_default() -> Vec<f64> {
        vec![0.5, 0.9, 0.95, 0.99]
    }

    fn max_state_bytes_default() -> u64 {
        64 << 20
    }
}

impl Component for Statsd {
    const NAME: &'static str = "statsd";
    const EXAMPLE: &'static str = "type: statsd\nlisten: \"0.0.0.0:8125\"\nschema: metric\n";
}

impl SourceConfig for Statsd {
    fn build(self, cx: &ConnectorContext) -> Result<SourceKind, ConfigError> {
        let invalid =
            |message: &str| Err(ConfigError::new("config::invalid_value", Span::default(), message));
        if self.flush_interval < Duration::from_millis(10) {
            return invalid("`flush_interval` is less than 10ms");
        }
        if self.quantiles.iter().any(|quantile| !(0.0..=1.0).contains(quantile)) {
            return invalid("`quantiles` are not all between 0 and 1");
        }
        if self.receive_buffer == 0 || self.receive_buffer > 1 << 30 {
            return invalid("`receive_buffer` is not between 1B and 1GiB");
        }
        if self.max_state_bytes < 1 << 16 {
            return invalid("`max_state_bytes` is less than 64KiB");
        }
        if self.tls.is_some() && self.protocol == Protocol::Udp {
            return invalid("`tls` needs `protocol: tcp`");
        }
        let security = Security::load(self.tls.as_ref())?;
        Ok(SourceKind::Listener(Box::new(StatsdServer {
            config: self,
            security,
            cx: cx.clone(),
            socket: None,
        })))
    }
}

struct StatsdServer {
    config: Statsd,
    security: Security,
    cx: ConnectorContext,
    socket: Option<Socket>,
}

enum Socket {
    Udp(UdpSocket),
    Tcp(TcpListener),
}

#[async_trait]
impl Listener for StatsdServer {
    async fn bind(&mut self) -> Result<(), ConnectorError> {
        let Statsd { listen, receive_buffer, protocol, .. } = &self.config;
        self.socket = match protocol {
            Protocol::Udp => {
                super::udp::open(listen, 1, *receive_buffer, &self.cx.name).await?.pop().map(Socket::Udp)
            }
            Protocol::Tcp => Some(Socket::Tcp(listen.tcp(&self.cx.name).await?)),
        };
        Ok(())
    }

    async fn run(self: Box<Self>, intake: Intake) -> Result<(), ConnectorError> {
        let Self { config, security, cx, socket } = *self;
        let socket = socket.ok_or_else(|| ConnectorError::refused(config.listen.to_string(), "not bound"))?;
        let each = cx.metrics.source_errors.with_label_values(&[&*cx.name, "no_metric"]);
        let mut receiver = Receiver {
            aggregate: config.aggregate.then(|| {
                Aggregate::new(config.quantiles.clone(), config.max_state_bytes as usize, GAUGES_MAX)
            }),
            interval: if config.aggregate { config.flush_interval } else { EACH_INTERVAL },
            data: Vec::new(),
            messages: Vec::new(),
            counts: Arc::new(Counts::new(&cx)),
            no_metric: each,
            intake,
        };
        let received = match socket {
            Socket::Udp(socket) => {
                let mut drops = Drops::new(cx.metrics.source_dropped.with_label_values(&[&*cx.name]));
                let received = receiver.datagrams(&socket, &mut drops, &cx.shutdown).await;
                drops.read(&socket);
                received
            }
            Socket::Tcp(socket) => {
                let (lines, serving) = tcp::receive(socket, security, &config, &cx);
                tokio::join!(receiver.lines(lines), serving).0
            }
        };
        if received.is_err() {
            tracing::debug!("The pipeline stopped before the last metrics were taken.");
        }
        Ok(())
    }
}

struct Receiver {
    /// `None`: every value is a row.
    aggregate: Option<Aggregate>,
    interval: Duration,
    /// Documents, and lines that are none, on their way.
    data: Vec<u8>,
    messages: Vec<MessageRange>,
    counts: Arc<Counts>,
    no_metric: IntCounter,
    intake: Intake,
}

impl Receiver {
    /// When what is aggregated is written.
    fn flushes(&self) -> Interval {
        let mut flushes = interval(self.interval);
        flushes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        flushes.reset();
        flushes
    }

    /// Takes the lines of connections until all have ended.
    async fn lines(&mut self, mut lines: mpsc::Receiver<Received>) -> Result<(), NotDurable> {
        let mut flushes = self.flushes();
        loop {
            let received = tokio::select! {
                biased;
                _ = flushes.tick() => {
                    self.write().await?;
                    continue;
                }
                received = lines.recv() => received,
            };
            let Some(received) = received else { return self.write().await };
            for at in &received.messages {
                self.line(&received.data[at.start as usize..(at.start + at.len) as usize]);
                self.write_if_full().await?;
            }
            if self.data.len() >= GROUP_BYTES {
                self.hand_over().await?;
            }
        }
    }

    async fn datagrams(
        &mut self,
        socket: &UdpSocket,
        drops: &mut Drops,
        shutdown: &CancellationToken,
    ) -> Result<(), NotDurable> {
        let mut batch = Batch::new(DATAGRAM_BYTES_MAX);
        let mut ticks = interval(DROPS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut flushes = self.flushes();
        while !shutdown.is_cancelled() {
            let fd = socket.as_fd();
            let received = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                _ = ticks.tick() => {
                    drops.read(socket);
                    continue;
                }
                _ = flushes.tick() => {
                    self.write().await?;
                    continue;
                }
                received = socket.async_io(Interest::READABLE, || receive::receive(fd, &mut batch)) => received,
            };
            match received {
                Ok(()) => self.take(&batch).await?,
                Err(error) => {
                    // No memory, an interface that went away: it may come back.
                    tracing::warn!(%error, "Datagrams could not be received.");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        // What has arrived is taken, nothing is waited for.
        for _ in 0..DRAIN_CALLS_MAX {
            if receive::receive(socket.as_fd(), &mut batch).is_err() {
                break;
            }
            self.take(&batch).await?;
        }
        self.write().await
    }

    async fn take(&mut self, batch: &Batch) -> Result<(), NotDurable> {
        for idx in 0..batch.len() {
            let datagram = batch.datagram(idx);
            for text in datagram.payload.split(|byte| *byte == b'\n') {
                self.line(text.trim_ascii_end());
                self.write_if_full().await?;
            }
            if self.data.len() >= GROUP_BYTES {
                self.hand_over().await?;
            }
        }
        Ok(())
    }

    fn line(&mut self, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        let (data, messages) = (&mut self.data, &mut self.messages);
        match (line::parse(text), &mut self.aggregate) {
            (None, _) => {
                // As it came: what is behind the source makes a reject of it.
                self.no_metric.inc();
                put(text, data, messages);
            }
            // What was measured at a time of its own belongs to no interval.
            (Some(line), Some(aggregate)) if line.at.is_none() => aggregate.add(&line),
            (Some(line), _) => aggregate::write_each(&line, now(), |row| put(row, data, messages)),
        }
    }

    async fn write_if_full(&mut self) -> Result<(), NotDurable> {
        match self.aggregate.as_ref().is_some_and(Aggregate::is_full) {
            true => self.write().await,
            false => Ok(()),
        }
    }

    /// Hands over everything that came.
    async fn write(&mut self) -> Result<(), NotDurable> {
        if let Some(aggregate) = self.aggregate.as_mut().filter(|aggregate| !aggregate.is_empty()) {
            let (data, messages) = (&mut self.data, &mut self.messages);
            aggregate.write(now(), |row| put(row, data, messages));
        }
        self.hand_over().await
    }

    async fn hand_over(&mut self) -> Result<(), NotDurable> {
        let data = bytes::Bytes::from(std::mem::take(&mut self.data));
        let messages = std::mem::take(&mut self.messages);
        // In groups: what an interval brings can be more than may be handed over at once.
        let mut rest = messages.as_slice();
        while let Some(first) = rest.first() {
            let start = first.start as usize;
            let n = rest.partition_point(|m| ((m.start + m.len) as usize) <= start + GROUP_BYTES).max(1);
            let (group, others) = rest.split_at(n);
            rest = others;
            let end = group.last().map_or(start, |m| (m.start + m.len) as usize);
            let moved = |m: &MessageRange| MessageRange { start: m.start - start as u32, len: m.len };
            let messages: Vec<_> = group.iter().map(moved).collect();
            self.counts.received(&messages);
            let data = data.slice(start..end);
            self.intake.send(Received { data, messages, peer: None, attributes: None, ack: None }).await?;
        }
        Ok(())
    }
}

fn put(message: &[u8], data: &mut Vec<u8>, messages: &mut Vec<MessageRange>) {
    messages.push(MessageRange { start: data.len() as u32, len: message.len() as u32 });
    data.extend_from_slice(message);
}

fn now() -> u64 {
    u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0)
}
