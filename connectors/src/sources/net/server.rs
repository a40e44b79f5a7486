//! A source that listens at one address over TCP: what is alike whatever its connections speak.

use std::sync::Arc;

use async_trait::async_trait;
use logdrive_schemas::component::ConfigError;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::accept::Door;
use super::budget::{ByteBudget, Gate};
use super::counts::Counts;
use super::listen::Listen;
use super::tls::{Connection, Security, Tls};
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::source::{Intake, Listener};

/// What the connections of one source share, whatever they speak.
pub(crate) struct Common {
    pub(crate) budget: Arc<ByteBudget>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) intake: Intake,
    pub(crate) shutdown: CancellationToken,
}

/// Serves the connections of one source.
pub(crate) trait Serve: Send + Sync + 'static {
    /// Serves one until it ends.
    fn serve(&self, connection: &mut Connection, peer: &Arc<str>) -> impl Future<Output = ()> + Send;
}

/// Where connections come in, and how many.
pub(crate) struct Entrance {
    pub(crate) listen: Listen,
    pub(crate) connections_max: usize,
    /// The same for one address.
    pub(crate) connections_per_ip_max: usize,
    /// The memory of all connections.
    pub(crate) buffered_bytes_max: u64,
}

/// The source. What serves its connections is made when it runs.
pub(crate) struct TcpServer<M> {
    entrance: Entrance,
    security: Security,
    cx: ConnectorContext,
    socket: Option<TcpListener>,
    make: M,
}

impl<M> TcpServer<M> {
    /// Reads certificates, and opens nothing.
    pub(crate) fn new<S>(
        entrance: Entrance,
        tls: Option<&Tls>,
        cx: &ConnectorContext,
        make: M,
    ) -> Result<Self, ConfigError>
    where
        M: FnOnce(Common) -> S,
    {
        Ok(Self { entrance, security: Security::load(tls)?, cx: cx.clone(), socket: None, make })
    }
}

#[async_trait]
impl<S: Serve, M: FnOnce(Common) -> S + Send> Listener for TcpServer<M> {
    async fn bind(&mut self) -> Result<(), ConnectorError> {
        self.socket = Some(self.entrance.listen.tcp(&self.cx.name).await?);
        Ok(())
    }

    async fn run(self: Box<Self>, intake: Intake) -> Result<(), ConnectorError> {
        let Self { entrance, security, cx, socket, make } = *self;
        let not_bound = || ConnectorError::refused(entrance.listen.to_string(), "not bound");
        let socket = socket.ok_or_else(not_bound)?;
        let gate = Gate::new(entrance.connections_max, entrance.connections_per_ip_max);
        let counts = Arc::new(Counts::new(&cx));
        let server = Arc::new(make(Common {
            budget: ByteBudget::new(entrance.buffered_bytes_max),
            counts: Arc::clone(&counts),
            intake,
            shutdown: cx.shutdown.clone(),
        }));
        let door = Door { socket, gate, security, counts, shutdown: cx.shutdown };
        door.serve_all(move |mut connection, peer| {
            let server = Arc::clone(&server);
            async move {
                server.serve(&mut connection, &peer).await;
                connection.close().await;
            }
        })
        .await;
        Ok(())
    }
}
