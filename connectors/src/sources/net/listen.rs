//! Addresses to listen on.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use tokio::net::{TcpListener, TcpSocket};

use crate::error::ConnectorError;

/// Connections that wait to be accepted. When a fleet reconnects they come all at once, and one that finds no place tries
/// again only after a second; the system lowers this to its own limit (`net.core.somaxconn`).
const BACKLOG: u32 = 65_535;

/// `host:port` to listen on. Port 0 lets the system choose; the log line `Listening.` says which.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct Listen(String);

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
        if port.is_none_or(|port| port.parse::<u16>().is_err()) {
            let message = format!("`{text}` is no address, write it like `0.0.0.0:5044`");
            return Err(serde::de::Error::custom(message));
        }
        Ok(Self(text))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Listen {
    /// The addresses that the name stands for.
    pub(crate) async fn resolve(&self) -> Result<Vec<SocketAddr>, ConnectorError> {
        let found = tokio::net::lookup_host(&self.0).await.map_err(|e| self.refused(&e))?;
        Ok(found.collect())
    }

    /// Binds a TCP socket for a source, to the first of the addresses that can be bound, and says to which.
    pub(crate) async fn tcp(&self, source: &str) -> Result<TcpListener, ConnectorError> {
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in self.resolve().await? {
            match listen(address) {
                Ok(socket) => {
                    let listen = socket.local_addr().map_err(|e| self.refused(&e))?;
                    tracing::info!(source, %listen, "Listening.");
                    return Ok(socket);
                }
                Err(error) => failed = error,
            }
        }
        Err(self.refused(&failed))
    }

    /// An address that cannot be bound is a refusal: the pipeline does not start without it.
    pub(crate) fn refused(&self, error: &io::Error) -> ConnectorError {
        ConnectorError::refused(&self.0, format!("cannot listen: {error}"))
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // An address is free again as soon as its listener is gone, as everywhere.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
