//! The way to the far end: a connection, plain or secured, or datagrams.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{Protocol, Syslog};
use crate::sinks::tcp_unsent::unconfirmed_bytes;

/// How much is handed to the kernel at once.
pub(super) const SEND_BYTES: usize = 256 << 10;
/// The largest datagram of IPv4.
pub(super) const DATAGRAM_MAX: usize = 65_507;

/// The way to the far end.
pub(super) enum Link {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Udp(UdpSocket),
}

impl Link {
    pub(super) async fn open(
        config: &Syslog,
        host: &str,
        tls: Option<&Arc<ClientConfig>>,
    ) -> io::Result<Self> {
        if config.protocol == Protocol::Udp {
            let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for address in tokio::net::lookup_host(&config.endpoint).await? {
                let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any).await?;
                match socket.connect(address).await {
                    Ok(()) => return Ok(Self::Udp(socket)),
                    Err(error) => failed = error,
                }
            }
            return Err(failed);
        }
        let stream = TcpStream::connect(&config.endpoint).await?;
        let socket = SockRef::from(&stream);
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10))
            .with_retries(3);
        stream.set_nodelay(true)?;
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(config.stall_timeout))?;
        let Some(tls) = tls else { return Ok(Self::Tcp(stream)) };
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?;
        Ok(Self::Tls(Box::new(stream)))
    }

    /// Hands framed messages over.
    pub(super) async fn send(&mut self, messages: &[Vec<u8>], stall: Duration) -> io::Result<()> {
        let bytes = match self {
            Self::Udp(socket) => {
                for message in messages {
                    stalled(stall, socket.send(message)).await?;
                }
                return Ok(());
            }
            Self::Tcp(_) | Self::Tls(_) => messages.concat(),
        };
        let mut n_sent = 0;
        while n_sent < bytes.len() {
            let rest = &bytes[n_sent..];
            let n = match self {
                Self::Tcp(stream) => stalled(stall, stream.write(rest)).await?,
                Self::Tls(stream) => stalled(stall, stream.write(rest)).await?,
                Self::Udp(_) => rest.len(),
            };
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            n_sent += n;
        }
        match self {
            Self::Tls(stream) => stalled(stall, stream.flush()).await,
            Self::Tcp(_) | Self::Udp(_) => Ok(()),
        }
    }

    /// Waits until the machine at the far end has confirmed every byte and has not closed the connection.
    pub(super) async fn confirmed(&mut self, stall: Duration) -> io::Result<()> {
        let (mut pause, mut before) = (Duration::from_micros(200), usize::MAX);
        let mut progress = Instant::now();
        loop {
            self.still_open()?;
            let n_bytes = match self.descriptor() {
                Some(descriptor) => unconfirmed_bytes(descriptor)?,
                None => return Ok(()),
            };
            if n_bytes == 0 {
                // A reset may have come in between, and empties the queue.
                return self.still_open();
            }
            if n_bytes < before {
                (before, progress) = (n_bytes, Instant::now());
            } else if stall <= progress.elapsed() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the far end reads nothing"));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// `None` over UDP.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Tcp(stream) => Some(stream.as_fd()),
            Self::Tls(stream) => Some(stream.get_ref().0.as_fd()),
            Self::Udp(_) => None,
        }
    }

    /// What the far end says is of no interest, but for its end.
    fn still_open(&mut self) -> io::Result<()> {
        let mut scratch = [0; 4096];
        // A far end that talks without end does not keep us here: what it says next is read at the next look.
        for _ in 0..256 {
            let read = match self {
                Self::Tcp(stream) => stream.read(&mut scratch).now_or_never(),
                Self::Tls(stream) => stream.read(&mut scratch).now_or_never(),
                Self::Udp(socket) => return socket.take_error()?.map_or(Ok(()), Err),
            };
            match read {
                None => return Ok(()),
                Some(Ok(0)) => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the far end closed"));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) async fn close(self) -> io::Result<()> {
        match self {
            Self::Tcp(mut stream) => stream.shutdown().await,
            Self::Tls(mut stream) => stream.shutdown().await,
            Self::Udp(_) => Ok(()),
        }
    }
}

async fn stalled<T>(limit: Duration, doing: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let nothing = || io::Error::new(io::ErrorKind::TimedOut, "the far end reads nothing");
    tokio::time::timeout(limit, doing).await.unwrap_or_else(|_| Err(nothing()))
}
