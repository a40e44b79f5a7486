//! TLS for whatever listens on TCP.
//!
//! A handshake happens in the connection's own task, under a deadline, so that nobody waits for a slow peer. Files
//! that were replaced, as renewals do, are read again for the next connection.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use logdrive_schemas::component::{ConfigError, Span, duration};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::counts::Counts;

/// How often the files are looked at, at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the end of a connection may take to leave.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// Whether peers must show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// Who shows none is let in; who shows one that is not valid is not.
    Optional,
    /// Who shows none is not let in.
    #[default]
    Required,
}

/// TLS 1.2 and 1.3. Files that change are read again without a restart; while they are not valid, those before them
/// stay in use.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The server's certificate and those between it and its authority, as PEM.
    pub certificate: PathBuf,
    /// The certificate's private key, as PEM.
    pub key: PathBuf,
    /// The authorities that clients' certificates must come from, as PEM. Clients are not asked for one if not given.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
    /// `required` or `optional`; with `client_ca` alone.
    #[serde(default)]
    pub client_auth: Option<ClientAuth>,
    /// A peer that has not finished its handshake after this long is let go.
    #[serde(default = "Tls::handshake_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub handshake_timeout: Duration,
}

impl Tls {
    fn handshake_timeout_default() -> Duration {
        Duration::from_secs(10)
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()]
            .into_iter()
            .flatten()
            .map(AsRef::as_ref)
    }

    fn load(&self, protocols: &[&[u8]]) -> Result<ServerConfig, LoadError> {
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let certificates = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|e| LoadError::of(&self.key, e))?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| LoadError::of(&self.certificate, e))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut authorities = RootCertStore::empty();
                for certificate in self::certificates(path)? {
                    authorities.add(certificate).map_err(|e| LoadError::of(path, e))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(authorities.into(), provider);
                let verifier = match self.client_auth.unwrap_or_default() {
                    ClientAuth::Optional => verifier.allow_unauthenticated(),
                    ClientAuth::Required => verifier,
                };
                builder.with_client_cert_verifier(verifier.build().map_err(|e| LoadError::of(path, e))?)
            }
        };
        let mut server =
            builder.with_single_cert(certificates, key).map_err(|e| LoadError::of(&self.certificate, e))?;
        server.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok(server)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let found = CertificateDer::pem_file_iter(path).map_err(|e| LoadError::of(path, e))?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|e| LoadError::of(path, e))?;
    if found.is_empty() { Err(LoadError::of(path, "it holds no certificate")) } else { Ok(found) }
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
struct LoadError {
    path: String,
    why: String,
}

impl LoadError {
    fn of(path: &Path, why: impl ToString) -> Self {
        Self { path: path.display().to_string(), why: why.to_string() }
    }
}

/// What a file looks like from outside: another one is a change.
type Stamp = Option<(SystemTime, u64)>;

fn stamps(config: &Tls) -> Vec<Stamp> {
    let stamp = |path| std::fs::metadata(path).and_then(|meta| Ok((meta.modified()?, meta.len()))).ok();
    config.files().map(stamp).collect()
}

struct Loaded {
    server: Arc<ServerConfig>,
    stamps: Vec<Stamp>,
    looked_at: Instant,
}

/// How the connections of a listener are secured: with TLS, or not at all.
#[derive(Clone)]
pub struct Security(Option<Arc<Acceptor>>);

impl std::fmt::Debug for Security {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Security(TLS)" } else { "Security(none)" })
    }
}

struct Acceptor {
    config: Tls,
    /// What is offered to peers that choose a protocol by ALPN.
    protocols: &'static [&'static [u8]],
    loaded: Mutex<Loaded>,
}

impl Security {
    /// Reads the files.
    pub(crate) fn load(config: Option<&Tls>) -> Result<Self, ConfigError> {
        Self::load_for(config, &[])
    }

    /// Reads the files; peers may choose among `protocols` by ALPN.
    ///
    /// # Errors
    /// If a file cannot be used, or the keys contradict each other.
    pub fn load_for(config: Option<&Tls>, protocols: &'static [&'static [u8]]) -> Result<Self, ConfigError> {
        let invalid = |message: String| ConfigError::new("config::invalid_value", Span::default(), message);
        let Some(config) = config else { return Ok(Self(None)) };
        if config.client_auth.is_some() && config.client_ca.is_none() {
            return Err(invalid("`tls.client_auth` needs `tls.client_ca`".into()));
        }
        if config.handshake_timeout.is_zero() {
            return Err(invalid("`tls.handshake_timeout` is 0".into()));
        }
        let stamps = stamps(config);
        let server = config.load(protocols).map_err(|e| invalid(format!("`tls` cannot be used: {e}")))?;
        let loaded = Loaded { server: Arc::new(server), stamps, looked_at: Instant::now() };
        Ok(Self(Some(Arc::new(Acceptor { config: config.clone(), protocols, loaded: Mutex::new(loaded) }))))
    }

    /// What does the next handshake, if connections are secured.
    pub async fn acceptor(&self) -> Option<TlsAcceptor> {
        Some(TlsAcceptor::from(self.0.as_ref()?.server().await))
    }

    /// Does the handshake. `None` if it fails, which is counted, or the pipeline stops.
    pub(crate) async fn open(
        &self,
        stream: TcpStream,
        peer: &str,
        counts: &Counts,
        shutdown: &CancellationToken,
    ) -> Option<Connection> {
        let Some(acceptor) = &self.0 else { return Some(Connection::Plain(stream)) };
        let server = acceptor.server().await;
        let handshake = TlsAcceptor::from(server).accept(stream);
        let done = tokio::select! {
            () = shutdown.cancelled() => return None,
            done = tokio::time::timeout(acceptor.config.handshake_timeout, handshake) => done,
        };
        match done {
            Ok(Ok(stream)) => return Some(Connection::Tls(Box::new(stream))),
            Ok(Err(error)) => counts.failed("tls_handshake", peer, &error),
            Err(elapsed) => counts.failed("tls_handshake_timeout", peer, &elapsed),
        }
        None
    }
}

impl Acceptor {
    /// The configuration for the next connection.
    async fn server(self: &Arc<Self>) -> Arc<ServerConfig> {
        {
            let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            if loaded.looked_at.elapsed() < LOOK_INTERVAL {
                return Arc::clone(&loaded.server);
            }
            // The others go on with what there is.
            loaded.looked_at = Instant::now();
        }
        let this = Arc::clone(self);
        if tokio::task::spawn_blocking(move || this.look()).await.is_err() {
            tracing::debug!("The runtime stops.");
        }
        Arc::clone(&self.loaded.lock().unwrap_or_else(PoisonError::into_inner).server)
    }

    /// Reads the files again if they have changed.
    fn look(&self) {
        let found = stamps(&self.config);
        if found == self.loaded.lock().unwrap_or_else(PoisonError::into_inner).stamps {
            return;
        }
        let read = self.config.load(self.protocols);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.stamps = found;
        match read {
            Ok(server) => {
                loaded.server = Arc::new(server);
                tracing::info!(certificate = %self.config.certificate.display(), "Certificates were read again.");
            }
            Err(error) => tracing::error!(%error, "New certificates cannot be used; the old ones stay."),
        }
    }
}

/// A connection, secured or not.
pub(crate) enum Connection {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection {
    /// Tells the peer that this is the end, which it could not tell from an attack otherwise.
    pub(crate) async fn close(self) {
        if let Self::Tls(mut stream) = self
            && let Ok(Err(error)) = tokio::time::timeout(CLOSE_MAX, stream.shutdown()).await
        {
            tracing::debug!(%error, "A connection was lost before it was closed.");
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, from),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, from),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
