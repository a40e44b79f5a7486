//! Letting TCP connections in, or not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::budget::{Gate, Slot};
use super::counts::Counts;
use super::tls::{Connection, Security};

/// After this long without a sign of life the system probes an idle peer.
const KEEPALIVE_IDLE: Duration = Duration::from_mins(1);
/// A peer that takes nothing of an answer, or does not confirm what it took, is gone after this long.
const UNANSWERED_MAX: Duration = Duration::from_mins(1);
/// How long to wait when the process has no file descriptors left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Where connections over TCP come in.
pub(crate) struct Door {
    pub(crate) socket: TcpListener,
    pub(crate) gate: Arc<Gate>,
    pub(crate) security: Security,
    pub(crate) counts: Arc<Counts>,
    /// Cancelled when nobody is let in any more.
    pub(crate) shutdown: CancellationToken,
}

impl Door {
    /// Has every connection that there is room for served in a task of its own, its handshake included. Returns once
    /// `shutdown` is cancelled and all of them have ended.
    pub(crate) async fn serve_all<S, F>(self, serve: S)
    where
        S: Fn(Connection, Arc<str>) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let Self { socket, gate, security, counts, shutdown } = self;
        let serve = Arc::new(serve);
        let tasks = TaskTracker::new();
        while let Some(admitted) = accept_tcp(&socket, &gate, &counts, &shutdown).await {
            let (serve, security) = (Arc::clone(&serve), security.clone());
            let (counts, shutdown) = (Arc::clone(&counts), shutdown.clone());
            tasks.spawn(async move {
                let Admitted { stream, peer, slot: _slot } = admitted;
                counts.connections.inc();
                if let Some(connection) = security.open(stream, &peer, &counts, &shutdown).await {
                    serve(connection, peer).await;
                }
                counts.connections.dec();
            });
        }
        drop(socket);
        tasks.close();
        tasks.wait().await;
    }
}

/// A connection that was let in.
struct Admitted {
    stream: TcpStream,
    peer: Arc<str>,
    slot: Slot,
}

/// The next connection that there is room for; those without are closed and counted. `None` once `shutdown` is
/// cancelled.
async fn accept_tcp(
    listener: &TcpListener,
    gate: &Arc<Gate>,
    counts: &Counts,
    shutdown: &CancellationToken,
) -> Option<Admitted> {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        let (stream, addr) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                accept_failed(&error, counts).await;
                continue;
            }
        };
        let peer = name_of(addr);
        match gate.enter(Some(addr.ip())) {
            Ok(slot) => {
                watch(&stream);
                return Some(Admitted { stream, peer, slot });
            }
            Err(full) => counts.refused(full.reason(), &peer),
        }
    }
}

/// What to do when no connection could be accepted: the fault of the peer, or of a system without resources.
pub(crate) async fn accept_failed(error: &std::io::Error, counts: &Counts) {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        counts.refused("accept_failed", &error.to_string());
        tokio::time::sleep(EXHAUSTED_PAUSE).await;
    }
}

/// A peer's name as it is kept with its messages.
pub(crate) fn name_of(addr: SocketAddr) -> Arc<str> {
    SocketAddr::new(addr.ip().to_canonical(), addr.port()).to_string().into()
}

/// Lets the system find out that a peer is gone.
fn watch(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(Duration::from_secs(10)).with_retries(6);
    let set = socket
        .set_tcp_keepalive(&keepalive)
        .and_then(|()| socket.set_tcp_user_timeout(Some(UNANSWERED_MAX)))
        .and_then(|()| stream.set_nodelay(true));
    if let Err(error) = set {
        tracing::debug!(%error, "A socket option was refused.");
    }
}
