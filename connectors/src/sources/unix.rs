//! The `unix` source: lines or datagrams over a Unix domain socket.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{BufMut, BytesMut};
use logdrive_schemas::component::{Component, ConfigError, Span, bytes, duration};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::net::{UnixDatagram, UnixListener};
use tokio_util::task::TaskTracker;

use super::net::accept::accept_failed;
use super::net::budget::{ByteBudget, Gate};
use super::net::counts::Counts;
use super::net::datagram::{Datagrams, Split};
use super::net::expand::Compression;
use super::net::server::Common;
use super::net::stream::{Shared, StreamLimits, pump};
use super::tcp::defaults;
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::source::{Intake, Listener, NotDurable, SourceConfig, SourceKind};

/// How many datagrams that have arrived are still taken once the pipeline stops.
const DRAIN_DATAGRAMS_MAX: usize = 1024;

/// What kind of socket it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UnixMode {
    /// Datagrams, each split into lines. A sender waits while the receiver is behind; nothing is dropped.
    Datagram,
    /// Connections that carry lines, as with `tcp`.
    #[default]
    Stream,
}

/// Receives lines over a Unix domain socket.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unix {
    /// The socket's path. A socket that is left over from an earlier run is replaced; a file of another kind, or a
    /// socket that somebody listens on, is an error.
    pub path: PathBuf,
    /// `stream` or `datagram`.
    #[serde(default)]
    pub mode: UnixMode,
    /// Who may send, as octal digits like those of `chmod`: `"0660"`. Whatever the umask leaves if not given.
    #[serde(default)]
    pub permissions: Option<String>,
    /// A longer line becomes a reject that holds its first `max_line_bytes` bytes; the next line is read as usual.
    #[serde(default = "defaults::line_bytes", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_line_bytes: u64,
    /// Connections beyond this many are closed at once.
    #[serde(default = "defaults::connections")]
    pub max_connections: usize,
    /// A connection on which nothing arrives for this long is closed; `0s` never closes one.
    #[serde(default = "defaults::idle_timeout", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub idle_timeout: Duration,
    /// The memory of one connection, at least twice `max_line_bytes`.
    #[serde(default = "defaults::buffered_bytes", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_buffered_bytes: u64,
    /// The memory of all connections beyond 16 KiB each.
    #[serde(default = "defaults::buffered_bytes_total", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_buffered_bytes_total: u64,
    /// How a stream is compressed. One that expands more than a hundredfold is cut off.
    #[serde(default)]
    pub compression: Compression,
}

impl Component for Unix {
    const NAME: &'static str = "unix";
    const EXAMPLE: &'static str = "type: unix\npath: /run/logdrive.sock\npermissions: \"0660\"\n";
}

impl SourceConfig for Unix {
    fn build(self, cx: &ConnectorContext) -> Result<SourceKind, ConfigError> {
        let limits = StreamLimits::checked(
            self.max_line_bytes,
            self.max_buffered_bytes,
            self.idle_timeout,
            self.compression,
        )?;
        let permissions = self.permissions.as_deref().map(parse_permissions).transpose()?;
        let cx = cx.clone();
        Ok(SourceKind::Listener(Box::new(UnixSocket { config: self, limits, permissions, cx, socket: None })))
    }
}

fn parse_permissions(text: &str) -> Result<u32, ConfigError> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(|| {
        let message = format!("`{text}` are no permissions, write them like `\"0660\"`");
        ConfigError::new("config::invalid_value", Span::default(), message)
    })
}

enum Socket {
    Datagram(UnixDatagram),
    Stream(UnixListener),
}

struct UnixSocket {
    config: Unix,
    limits: StreamLimits,
    permissions: Option<u32>,
    cx: ConnectorContext,
    socket: Option<Socket>,
}

impl UnixSocket {
    fn open(&self) -> io::Result<Socket> {
        let path = &self.config.path;
        remove_stale(path)?;
        let socket = match self.config.mode {
            UnixMode::Datagram => Socket::Datagram(UnixDatagram::bind(path)?),
            UnixMode::Stream => Socket::Stream(UnixListener::bind(path)?),
        };
        if let Some(mode) = self.permissions {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        }
        Ok(socket)
    }
}

/// Removes a socket that nobody listens on.
fn remove_stale(path: &std::path::Path) -> io::Result<()> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
    }
    let probe = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    // Whatever answers, even "wrong type", is alive; only a refusal says that nobody is there.
    match probe.connect(&socket2::SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens there")),
    }
}

#[async_trait]
impl Listener for UnixSocket {
    async fn bind(&mut self) -> Result<(), ConnectorError> {
        let listen = self.config.path.display().to_string();
        let socket =
            self.open().map_err(|e| ConnectorError::refused(&listen, format!("cannot listen: {e}")))?;
        tracing::info!(source = %self.cx.name, listen, "Listening.");
        self.socket = Some(socket);
        Ok(())
    }

    async fn run(self: Box<Self>, intake: Intake) -> Result<(), ConnectorError> {
        let Self { config, limits, cx, socket, .. } = *self;
        let path = config.path.clone();
        match socket {
            Some(Socket::Datagram(socket)) => run_datagram(&socket, &config, &cx, &intake).await,
            Some(Socket::Stream(socket)) => run_stream(socket, &config, limits, &cx, intake).await,
            None => return Err(ConnectorError::refused(path.display().to_string(), "not bound")),
        }
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::debug!(%error, path = %path.display(), "The socket's file could not be removed.");
        }
        Ok(())
    }
}

async fn run_stream(
    socket: UnixListener,
    config: &Unix,
    limits: StreamLimits,
    cx: &ConnectorContext,
    intake: Intake,
) {
    let gate = Gate::new(config.max_connections, config.max_connections);
    let peer: Arc<str> = config.path.display().to_string().into();
    let shared = Arc::new(Shared {
        limits,
        common: Common {
            budget: ByteBudget::new(config.max_buffered_bytes_total),
            counts: Arc::new(Counts::new(cx)),
            intake,
            shutdown: cx.shutdown.clone(),
        },
    });
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.common.shutdown.cancelled() => break,
            accepted = socket.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                accept_failed(&error, &shared.common.counts).await;
                continue;
            }
        };
        let slot = match gate.enter(None) {
            Ok(slot) => slot,
            Err(full) => {
                shared.common.counts.refused(full.reason(), &peer);
                continue;
            }
        };
        let (shared, peer) = (Arc::clone(&shared), Arc::clone(&peer));
        tasks.spawn(async move {
            shared.common.counts.connections.inc();
            pump(stream, peer, &shared).await;
            shared.common.counts.connections.dec();
            drop(slot);
        });
    }
    drop(socket);
    tasks.close();
    tasks.wait().await;
}

async fn run_datagram(socket: &UnixDatagram, config: &Unix, cx: &ConnectorContext, intake: &Intake) {
    let counts = Counts::new(cx);
    let peer: Arc<str> = config.path.display().to_string().into();
    let line_bytes_max = config.max_line_bytes as usize;
    // One byte more than allowed shows that a datagram was longer.
    let mut buffer = BytesMut::with_capacity(line_bytes_max + 1);
    let mut n_drained = 0;
    while n_drained < DRAIN_DATAGRAMS_MAX {
        buffer.clear();
        let room = &mut (&mut buffer).limit(line_bytes_max + 1);
        let received = tokio::select! {
            biased;
            // What has arrived is taken even while the pipeline stops.
            received = socket.recv_buf(room) => received,
            () = cx.shutdown.cancelled() => return,
        };
        let sent = match received {
            Ok(n) => {
                let mut datagrams = Datagrams::new(Split::Lines);
                datagrams.push(&buffer[..n.min(line_bytes_max)], n > line_bytes_max);
                send(datagrams, &peer, &counts, intake).await
            }
            Err(error) => {
                accept_failed(&error, &counts).await;
                Ok(())
            }
        };
        if sent.is_err() {
            return;
        }
        n_drained += usize::from(cx.shutdown.is_cancelled());
    }
}

async fn send(
    datagrams: Datagrams,
    peer: &Arc<str>,
    counts: &Counts,
    intake: &Intake,
) -> Result<(), NotDurable> {
    match datagrams.into_received(Some(Arc::clone(peer)), counts) {
        Some(received) => intake.send(received).await,
        None => Ok(()),
    }
}
