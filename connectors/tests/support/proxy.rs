//! The bad network: a TCP proxy that delays, chokes, breaks and swallows what goes through it, as told. It can take
//! TLS off on the way, for servers that speak none.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::{SockRef, Socket};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto};

/// What is wrong with the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Everything arrives later.
    Latency(Duration),
    /// Bytes a second, each way of each connection.
    Bandwidth(usize),
    /// Connections are reset, also new ones once something is sent.
    Reset,
    /// Connections stay and nothing arrives, in either direction. Those that were there never work again.
    HalfOpen,
    /// Connections are reset as soon as they are made.
    Refuse,
}

/// Everything that can be wrong. Resets follow half-open connections, so that who waits on one for minutes gets away.
pub(crate) const FAULTS: [Fault; 5] = [
    Fault::Latency(Duration::from_millis(300)),
    Fault::Bandwidth(40_000),
    Fault::HalfOpen,
    Fault::Reset,
    Fault::Refuse,
];

impl Fault {
    fn number(self) -> usize {
        match self {
            Self::None => 0,
            Self::Latency(_) => 1,
            Self::Bandwidth(_) => 2,
            Self::Reset => 3,
            Self::HalfOpen => 4,
            Self::Refuse => 5,
        }
    }
}

/// The proxy. It ends, with all connections, when dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    fault: watch::Sender<Fault>,
    harm: Harm,
    _task: JoinSet<()>,
}

/// How often each fault has done something: delayed or choked a piece, broken or swallowed a connection.
#[derive(Clone, Default)]
struct Harm(Arc<[AtomicUsize; 6]>);

impl Harm {
    fn done(&self, fault: Fault) {
        self.0[fault.number()].fetch_add(1, Ordering::Relaxed);
    }
}

impl Proxy {
    pub(crate) async fn start(upstream: SocketAddr, tls: Option<TlsAcceptor>) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), upstream, tls).await
    }

    pub(crate) async fn start_at(
        address: SocketAddr,
        upstream: SocketAddr,
        tls: Option<TlsAcceptor>,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (fault, watched) = watch::channel(Fault::None);
        let harm = Harm::default();
        let counted = harm.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let (watched, counted) = (watched.clone(), counted.clone());
                connections.spawn(connection(client, upstream, tls.clone(), watched, counted));
            }
        });
        Self { address, fault, harm, _task: task }
    }

    pub(crate) fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// How often a fault has done something so far.
    pub(crate) fn harmed(&self, fault: Fault) -> usize {
        self.harm.0[fault.number()].load(Ordering::Relaxed)
    }
}

/// What takes TLS off, with this certificate and its key.
pub(crate) fn tls(certificate: &Path, key: &Path) -> TlsAcceptor {
    let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn connection(
    client: TcpStream,
    upstream: SocketAddr,
    tls: Option<TlsAcceptor>,
    fault: watch::Receiver<Fault>,
    harm: Harm,
) {
    let mut ends: Vec<Socket> = vec![SockRef::from(&client).try_clone().unwrap()];
    let going = async {
        if *fault.borrow() == Fault::Refuse {
            harm.done(Fault::Refuse);
            return true;
        }
        let Ok(server) = TcpStream::connect(upstream).await else { return true };
        ends.push(SockRef::from(&server).try_clone().unwrap());
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        match tls {
            None => forward(client, server, &fault, &harm).await,
            Some(tls) => match tls.accept(client).await {
                Ok(client) => forward(client, server, &fault, &harm).await,
                Err(_) => false,
            },
        }
    };
    if going.await {
        for end in &ends {
            end.set_linger(Some(Duration::ZERO)).ok();
        }
    }
}

/// Whether it is to end with a reset.
async fn forward<C>(client: C, server: TcpStream, fault: &watch::Receiver<Fault>, harm: &Harm) -> bool
where
    C: AsyncRead + AsyncWrite,
{
    let (client_read, client_write) = split(client);
    let (server_read, server_write) = split(server);
    let mut watched = fault.clone();
    let ends = [Fault::Reset, Fault::Refuse];
    tokio::select! {
        (one, two) = async {
            tokio::join!(
                pump(client_read, server_write, fault.clone(), harm),
                pump(server_read, client_write, fault.clone(), harm),
            )
        } => one || two,
        fault = until(&mut watched, &ends) => {
            harm.done(fault);
            true
        }
    }
}

/// Moves bytes until one end closes. Whether it broke.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut fault: watch::Receiver<Fault>,
    harm: &Harm,
) -> bool {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let max = match *fault.borrow() {
            Fault::Bandwidth(bytes) => (bytes / 10).clamp(1, buffer.len()),
            _ => buffer.len(),
        };
        let read = tokio::select! {
            read = from.read(&mut buffer[..max]) => read,
            fault = until(&mut fault, &[Fault::HalfOpen]) => {
                harm.done(fault);
                std::future::pending().await
            }
        };
        let n = match read {
            Ok(0) => {
                to.shutdown().await.ok();
                return false;
            }
            Ok(n) => n,
            Err(_) => return true,
        };
        let now = *fault.borrow();
        harm.done(now);
        match now {
            Fault::Latency(delay) => tokio::time::sleep(delay).await,
            Fault::Bandwidth(bytes) => {
                tokio::time::sleep(Duration::from_secs_f64(n as f64 / bytes as f64)).await;
            }
            Fault::HalfOpen => std::future::pending().await,
            Fault::None | Fault::Reset | Fault::Refuse => {}
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return true;
        }
    }
}

/// Until the fault is one of these; for ever, if the proxy is gone.
async fn until(fault: &mut watch::Receiver<Fault>, these: &[Fault]) -> Fault {
    let found = fault.wait_for(|fault| these.contains(fault)).await.map(|fault| *fault);
    match found {
        Ok(found) => found,
        Err(_) => std::future::pending().await,
    }
}
