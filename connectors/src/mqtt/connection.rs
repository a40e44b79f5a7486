//! One connection to a broker.

use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt as _};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::codec::Framed;

use super::packet::{Codec, Connected, Incoming, Outgoing, PacketError};
use super::settings::Settings;

/// How long connecting may take, and how long a broker may read nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no connection, or no longer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The broker ended it.
    #[error("the broker closed the connection{0}")]
    Closed(String),
    /// The network.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Bytes that are no packet.
    #[error("{0}")]
    Packet(#[from] PacketError),
    /// The broker does not want this client.
    #[error("the broker refused: {0}")]
    Refused(String),
    /// The broker is silent.
    #[error("the broker {0}")]
    Silent(&'static str),
    /// What was received cannot be kept, so that it is not acknowledged.
    #[error("what was received cannot be kept: {0}")]
    NotKept(String),
}

impl Trouble {
    /// A short word for metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Closed(_) | Self::Io(_) => "lost",
            Self::NotKept(_) => "not_kept",
            Self::Packet(_) => "protocol",
            Self::Refused(_) => "refused",
            Self::Silent(_) => "silent",
        }
    }
}

/// What packets travel over.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection that the broker has accepted. Dropping it closes it without a word.
pub(crate) struct Connection {
    framed: Framed<Box<dyn Io>, Codec>,
}

impl Connection {
    /// Connects and introduces the client.
    pub(crate) async fn open(settings: &Settings) -> Result<(Self, Connected), Trouble> {
        timeout(PATIENCE, Self::connect(settings)).await.unwrap_or(Err(Trouble::Silent("does not answer")))
    }

    async fn connect(settings: &Settings) -> Result<(Self, Connected), Trouble> {
        let endpoint = &settings.endpoint;
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10))
            .with_retries(3);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        let io: Box<dyn Io> = match &settings.tls {
            None => Box::new(stream),
            Some(config) => {
                let name = ServerName::try_from(endpoint.host.clone()).map_err(std::io::Error::other)?;
                Box::new(TlsConnector::from(Arc::clone(config)).connect(name, stream).await?)
            }
        };
        let mut framed = Framed::new(io, Codec::new(settings.version, settings.packet_max));
        framed.send(Outgoing::Connect(Box::new(settings.clone()))).await?;
        let mut connection = Self { framed };
        match connection.next().await? {
            Incoming::Connected(Connected { refused: Some(reason), .. }) => Err(Trouble::Refused(reason)),
            Incoming::Connected(connected) => Ok((connection, connected)),
            _ => Err(PacketError("the broker speaks before it has answered".into()).into()),
        }
    }

    /// Waits for the next packet. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Incoming, Trouble> {
        match self.framed.next().await {
            None => Err(Trouble::Closed(String::new())),
            Some(Ok(Incoming::Disconnect(reason))) => Err(Trouble::Closed(format!(": {reason}"))),
            Some(packet) => Ok(packet?),
        }
    }

    /// Takes a packet to be sent with the next [`Self::flush`] at the latest. Not cancel-safe.
    pub(crate) async fn feed(&mut self, packet: Outgoing) -> Result<(), Trouble> {
        Ok(timeout(PATIENCE, self.framed.feed(packet))
            .await
            .map_err(|_| Trouble::Silent("reads nothing"))??)
    }

    /// Sends what was fed. Not cancel-safe.
    pub(crate) async fn flush(&mut self) -> Result<(), Trouble> {
        let flushed = timeout(PATIENCE, SinkExt::<Outgoing>::flush(&mut self.framed)).await;
        Ok(flushed.map_err(|_| Trouble::Silent("reads nothing"))??)
    }
}
