//! Lines over TCP: each connection hands its lines over, in a queue that is bounded, to the one task that adds them up.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::mpsc::Receiver;

use super::{DATAGRAM_BYTES_MAX, Statsd};
use crate::context::ConnectorContext;
use crate::source::{Intake, Received};
use crate::sources::net::accept::Door;
use crate::sources::net::budget::{ByteBudget, Gate};
use crate::sources::net::counts::Counts;
use crate::sources::net::expand::Compression;
use crate::sources::net::framing::Framing;
use crate::sources::net::server::Common;
use crate::sources::net::stream::{Shared, StreamLimits, pump};
use crate::sources::net::tls::Security;

/// Groups of lines that wait; each is one read of a connection at most.
const QUEUE: usize = 16;
/// The memory of one connection.
const BUFFERED_BYTES: usize = 4 * DATAGRAM_BYTES_MAX;
/// The memory of all connections beyond 16 KiB each.
const BUFFERED_BYTES_TOTAL: u64 = 64 << 20;

/// Lines of all connections, and the work of receiving them, which ends once the pipeline stops and all have ended.
pub(super) fn receive(
    socket: TcpListener,
    security: Security,
    config: &Statsd,
    cx: &ConnectorContext,
) -> (Receiver<Received>, impl Future<Output = ()> + use<>) {
    let (intake, lines) = Intake::channel(QUEUE);
    // What is counted as received is what they are added up to.
    let counts = Arc::new(Counts::of_connections(cx));
    let shared = Arc::new(Shared {
        limits: StreamLimits {
            line_bytes_max: DATAGRAM_BYTES_MAX,
            buffered_bytes_max: BUFFERED_BYTES,
            idle_timeout: Some(config.idle_timeout).filter(|idle| !idle.is_zero()),
            compression: Compression::None,
            framing: Framing::Newline,
        },
        common: Common {
            budget: ByteBudget::new(BUFFERED_BYTES_TOTAL),
            counts: Arc::clone(&counts),
            intake,
            shutdown: cx.shutdown.clone(),
        },
    });
    let gate = Gate::new(config.max_connections, config.max_connections_per_ip);
    let door = Door { socket, gate, security, counts, shutdown: cx.shutdown.clone() };
    let serving = door.serve_all(move |mut connection, peer| {
        let shared = Arc::clone(&shared);
        async move {
            pump(&mut connection, peer, &shared).await;
            connection.close().await;
        }
    });
    (lines, serving)
}
