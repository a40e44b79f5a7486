//! The `udp` source: lines in datagrams.
//!
//! Several sockets share the port, so that several tasks receive. What the kernel dropped because nobody read in
//! time is counted exactly: sent − received = `logdrive_source_kernel_dropped_total`. Nothing is ever answered, so
//! that nobody can be flooded by way of us.

pub(crate) mod receive;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError, Span, bytes};
use prometheus::IntCounter;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::net::accept::name_of;
use super::net::counts::Counts;
use super::net::datagram::{Datagrams, Split};
use super::net::listen::Listen;
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::source::{Intake, Listener, NotDurable, SourceConfig, SourceKind};
use receive::Batch;

const SOCKETS_MAX: usize = 64;
/// How often the kernel's drop counter is read.
pub(super) const DROPS_INTERVAL: Duration = Duration::from_millis(500);
/// How many calls still receive what has arrived once the pipeline stops.
pub(super) const DRAIN_CALLS_MAX: usize = 1024;
/// A group of messages is handed over at this size.
const GROUP_BYTES: usize = 1 << 20;

/// Receives lines in UDP datagrams. Datagrams that arrive faster than they are read are dropped by the kernel and
/// counted in `logdrive_source_kernel_dropped_total`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Udp {
    /// Where to listen, such as `0.0.0.0:5140`.
    pub listen: Listen,
    /// How many sockets share the port, 1 to 64: the kernel spreads peers over them. By default as many as there are
    /// cores, 4 at most.
    #[serde(default)]
    pub sockets: Option<usize>,
    /// How much the kernel may hold per socket. Without the right to exceed `net.core.rmem_max`, that is the limit.
    #[serde(default = "Udp::receive_buffer_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub receive_buffer: u64,
    /// `lines`: a datagram holds one message per line. `none`: it is one message.
    #[serde(default)]
    pub split: Split,
    /// A longer datagram loses its end; the message that was cut becomes a reject. At most `64KiB`, which none exceeds.
    #[serde(default = "Udp::max_datagram_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_datagram_bytes: u64,
}

impl Udp {
    pub(super) fn receive_buffer_default() -> u64 {
        8 << 20
    }

    fn max_datagram_bytes_default() -> u64 {
        64 << 10
    }
}

impl Component for Udp {
    const NAME: &'static str = "udp";
    const EXAMPLE: &'static str = "type: udp\nlisten: \"0.0.0.0:5140\"\n";
}

impl SourceConfig for Udp {
    fn build(self, cx: &ConnectorContext) -> Result<SourceKind, ConfigError> {
        let invalid =
            |message: &str| Err(ConfigError::new("config::invalid_value", Span::default(), message));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let n_sockets = self.sockets.unwrap_or(cores.min(4));
        if n_sockets == 0 || n_sockets > SOCKETS_MAX {
            return invalid("`sockets` is not between 1 and 64");
        }
        if self.max_datagram_bytes == 0 || self.max_datagram_bytes > 64 << 10 {
            return invalid("`max_datagram_bytes` is not between 1B and 64KiB");
        }
        if self.receive_buffer == 0 || self.receive_buffer > 1 << 30 {
            return invalid("`receive_buffer` is not between 1B and 1GiB");
        }
        let cx = cx.clone();
        Ok(SourceKind::Listener(Box::new(UdpLines { config: self, n_sockets, cx, sockets: Vec::new() })))
    }
}

struct UdpLines {
    config: Udp,
    n_sockets: usize,
    cx: ConnectorContext,
    sockets: Vec<UdpSocket>,
}

/// Sockets that share one port: the one that the first of them got.
pub(super) async fn open(
    listen: &Listen,
    n_sockets: usize,
    receive_buffer: u64,
    source: &str,
) -> Result<Vec<UdpSocket>, ConnectorError> {
    let refused = |e: io::Error| listen.refused(&e);
    let found = listen.resolve().await?;
    let addr = found.first().copied().ok_or_else(|| refused(io::ErrorKind::AddrNotAvailable.into()))?;
    let sockets = open_at(addr, n_sockets, receive_buffer, source).map_err(refused)?;
    let listen = sockets[0].local_addr().map_err(refused)?;
    tracing::info!(source, %listen, "Listening.");
    Ok(sockets)
}

fn open_at(
    mut addr: SocketAddr,
    n_sockets: usize,
    receive_buffer: u64,
    source: &str,
) -> io::Result<Vec<UdpSocket>> {
    let mut sockets = Vec::with_capacity(n_sockets);
    for _ in 0..n_sockets {
        let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::DGRAM, None)?;
        socket.set_nonblocking(true)?;
        if n_sockets > 1 {
            socket.set_reuse_port(true)?;
        }
        let size = receive_buffer as usize;
        if receive::force_receive_buffer(socket.as_fd(), size).is_err() {
            socket.set_recv_buffer_size(size)?;
        }
        // The kernel reports twice what was asked for, its own overhead included.
        if socket.recv_buffer_size()? < size {
            let got = socket.recv_buffer_size()?;
            tracing::warn!(
                source,
                got,
                wanted = size,
                "The receive buffer is smaller than configured; raise net.core.rmem_max."
            );
        }
        socket.bind(&addr.into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        addr = socket.local_addr()?;
        sockets.push(socket);
    }
    Ok(sockets)
}

#[async_trait]
impl Listener for UdpLines {
    async fn bind(&mut self) -> Result<(), ConnectorError> {
        let Udp { listen, receive_buffer, .. } = &self.config;
        self.sockets = open(listen, self.n_sockets, *receive_buffer, &self.cx.name).await?;
        Ok(())
    }

    async fn run(self: Box<Self>, intake: Intake) -> Result<(), ConnectorError> {
        let Self { config, cx, sockets, .. } = *self;
        let counts = Arc::new(Counts::new(&cx));
        let tasks = TaskTracker::new();
        for socket in sockets {
            let mut socket = Socket {
                drops: Drops::new(cx.metrics.source_dropped.with_label_values(&[&*cx.name])),
                socket,
                split: config.split,
                datagram_bytes_max: config.max_datagram_bytes as usize,
                counts: Arc::clone(&counts),
                intake: intake.clone(),
            };
            let shutdown = cx.shutdown.clone();
            tasks.spawn(async move {
                if socket.run(&shutdown).await.is_err() {
                    tracing::debug!("The pipeline stopped before the last datagrams were taken.");
                }
                socket.drops.read(&socket.socket);
            });
        }
        tasks.close();
        tasks.wait().await;
        Ok(())
    }
}

/// One of the sockets that share the port.
struct Socket {
    socket: UdpSocket,
    split: Split,
    datagram_bytes_max: usize,
    counts: Arc<Counts>,
    intake: Intake,
    drops: Drops,
}

impl Socket {
    async fn run(&mut self, shutdown: &CancellationToken) -> Result<(), NotDurable> {
        let mut batch = Batch::new(self.datagram_bytes_max);
        let mut ticks = tokio::time::interval(DROPS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut n_drain_calls = 0;
        loop {
            if shutdown.is_cancelled() {
                // What has arrived is taken, nothing is waited for.
                n_drain_calls += 1;
                let received = receive::receive(self.socket.as_fd(), &mut batch);
                if received.is_err() || n_drain_calls > DRAIN_CALLS_MAX {
                    return Ok(());
                }
                self.hand_over(&batch, &mut ticks).await?;
                continue;
            }
            let fd = self.socket.as_fd();
            let received = tokio::select! {
                biased;
                _ = ticks.tick() => {
                    self.drops.read(&self.socket);
                    continue;
                }
                () = shutdown.cancelled() => continue,
                received = self.socket.async_io(Interest::READABLE, || receive::receive(fd, &mut batch)) => received,
            };
            match received {
                Ok(()) => self.hand_over(&batch, &mut ticks).await?,
                Err(error) => {
                    // No memory, an interface that went away: it may come back.
                    tracing::warn!(%error, "Datagrams could not be received.");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Hands over one group for each run of datagrams from the same peer.
    async fn hand_over(&mut self, batch: &Batch, ticks: &mut Interval) -> Result<(), NotDurable> {
        let mut idx = 0;
        while idx < batch.len() {
            let peer = batch.datagram(idx).peer;
            let mut group = Datagrams::new(self.split);
            while idx < batch.len() && group.len() < GROUP_BYTES {
                let datagram = batch.datagram(idx);
                if datagram.peer != peer {
                    break;
                }
                group.push(datagram.payload, datagram.truncated);
                idx += 1;
            }
            let Some(received) = group.into_received(peer.map(name_of), &self.counts) else { continue };
            let mut sent = pin!(self.intake.send(received));
            loop {
                tokio::select! {
                    biased;
                    sent = &mut sent => break sent?,
                    // The kernel drops while we wait; the metric shows it.
                    _ = ticks.tick() => self.drops.read(&self.socket),
                }
            }
        }
        Ok(())
    }
}

/// What the kernel dropped at one socket.
pub(super) struct Drops {
    metric: IntCounter,
    last: u32,
}

impl Drops {
    pub(super) fn new(metric: IntCounter) -> Self {
        Self { metric, last: 0 }
    }

    /// Adds what was dropped since the last call. The kernel's counter wraps.
    pub(super) fn read(&mut self, socket: &UdpSocket) {
        match receive::n_dropped(socket.as_fd()) {
            Ok(now) => {
                self.metric.inc_by(u64::from(now.wrapping_sub(self.last)));
                self.last = now;
            }
            Err(error) => tracing::debug!(%error, "The kernel does not say what it dropped."),
        }
    }
}
