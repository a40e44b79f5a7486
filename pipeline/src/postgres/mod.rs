//! The PostgreSQL protocol: psql, Grafana, drivers and tools read live views, and follow their changes.

mod access;
mod checked;
mod connection;
mod encode;
mod error;
mod handler;
mod parameter;
mod rows;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use logdrive_connectors::server_tls::Security;
use pgwire::api::{ClientInfo as _, DefaultClient, NoopHandler, PgWireConnectionState};
use pgwire::messages::PgWireFrontendMessage;
use pgwire::tokio::server::{MaybeTls, PgWireMessageServerCodec, process_error, process_message};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::codec::Framed;

pub(crate) use access::Verifier;

use self::checked::Checked;
use crate::config::postgres::PostgresPlan;
use crate::topology::View;

/// How many connections beyond the limit are answered at a time, to say so and to take requests to stop.
const SURPLUS: usize = 16;
/// How long they may take.
const SURPLUS_TIME: Duration = Duration::from_secs(5);

/// Listens until the pipeline's process ends; returns the bound address.
///
/// # Errors
/// If the address cannot be bound.
pub async fn serve(plan: PostgresPlan, view: View) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(plan.config.listen).await?;
    let bound = listener.local_addr()?;
    let connections = Arc::default();
    let access = Arc::new(access::Access::new(&plan.config, &connections));
    let handler = Arc::new(handler::Handler { view, config: plan.config });
    tokio::spawn(accept(listener, plan.security, Parts { access, handler, connections }));
    Ok(bound)
}

/// What all connections share.
#[derive(Clone)]
struct Parts {
    access: Arc<access::Access>,
    handler: Arc<handler::Handler>,
    connections: Arc<connection::Connections>,
}

async fn accept(listener: TcpListener, security: Security, parts: Parts) {
    let seats = Arc::new(Semaphore::new(parts.handler.config.max_connections));
    let surplus = Arc::new(Semaphore::new(SURPLUS));
    let open = parts.handler.view.metrics.reader_connections.with_label_values(&["postgres"]);
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of file descriptors, as a rule: others must close first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (seat, is_full) = match Arc::clone(&seats).try_acquire_owned() {
            Ok(seat) => (seat, false),
            Err(_) => match Arc::clone(&surplus).try_acquire_owned() {
                Ok(seat) => (seat, true),
                Err(_) => continue,
            },
        };
        let (security, parts, open) = (security.clone(), parts.clone(), open.clone());
        tokio::spawn(async move {
            open.inc();
            let served = serve_one(stream, security, parts, is_full);
            let limit = if is_full { SURPLUS_TIME } else { Duration::MAX };
            if let Ok(Err(error)) = tokio::time::timeout(limit, served).await {
                tracing::debug!(%peer, %error, "A connection of a PostgreSQL client broke.");
            }
            open.dec();
            drop(seat);
        });
    }
}

/// How long a client may take to say who it is.
const STARTUP_TIME: Duration = Duration::from_secs(30);
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const GSS_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];
/// What a client says first that begins with the handshake of TLS.
const TLS_HANDSHAKE: u8 = 0x16;

async fn serve_one(stream: TcpStream, security: Security, parts: Parts, is_full: bool) -> io::Result<()> {
    let deadline = Instant::now() + STARTUP_TIME;
    let peer = stream.peer_addr()?;
    stream.set_nodelay(true)?;
    let (stream, first, is_secure) = timeout_at(deadline, secured(stream, &security)).await??;
    let mut client = DefaultClient::new(peer, is_secure);
    client.set_state(PgWireConnectionState::AwaitingStartup);
    let mut socket = Framed::new(Checked::new(stream, &first), PgWireMessageServerCodec::new(client));
    let door = Arc::new(access::Door { access: Arc::clone(&parts.access), is_full });
    let (simple, extended) =
        (Arc::clone(&parts.handler), Arc::new(handler::Extended(Arc::clone(&parts.handler))));
    let (copy, canceller) = (Arc::new(NoopHandler), Arc::new(connection::Canceller(parts.connections)));
    loop {
        let is_starting = matches!(
            socket.state(),
            PgWireConnectionState::AwaitingStartup | PgWireConnectionState::AuthenticationInProgress
        );
        let next = if is_starting { timeout_at(deadline, socket.next()).await? } else { socket.next().await };
        let Some(message) = next else { return Ok(()) };
        let message = message?;
        let is_last =
            matches!(message, PgWireFrontendMessage::Terminate(_) | PgWireFrontendMessage::CancelRequest(_));
        let is_extended = message.is_extended_query();
        let (door, simple, extended) = (Arc::clone(&door), Arc::clone(&simple), Arc::clone(&extended));
        let (copy, canceller) = (Arc::clone(&copy), Arc::clone(&canceller));
        let done = process_message(message, &mut socket, door, simple, extended, copy, canceller).await;
        if let Err(error) = done {
            let is_fatal = error.is_fatal();
            process_error(&mut socket, error, is_extended).await?;
            if is_fatal {
                return Ok(());
            }
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Secures a connection if the client asks for it and there are certificates. Also what was read of the message behind.
async fn secured(mut stream: TcpStream, security: &Security) -> io::Result<(MaybeTls, Vec<u8>, bool)> {
    let acceptor = security.acceptor().await;
    let mut first = [0; 8];
    if let Some(acceptor) = &acceptor
        && stream.peek(&mut first[..1]).await? == 1
        && first[0] == TLS_HANDSHAKE
    {
        let stream = acceptor.accept(stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"postgresql") {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "TLS at once needs the protocol `postgresql`",
            ));
        }
        return Ok((MaybeTls::Tls(Box::new(stream)), Vec::new(), true));
    }
    // Each is asked for once, at most.
    for _ in 0..3 {
        stream.read_exact(&mut first).await?;
        match (first, &acceptor) {
            (TLS_REQUEST, Some(acceptor)) => {
                stream.write_all(b"S").await?;
                let stream = acceptor.accept(stream).await?;
                return Ok((MaybeTls::Tls(Box::new(stream)), Vec::new(), true));
            }
            (TLS_REQUEST, None) | (GSS_REQUEST, _) => stream.write_all(b"N").await?,
            _ => return Ok((MaybeTls::Plain(stream), first.to_vec(), false)),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a client asks again and again how it may be secured"))
}
