//! Serving HTTP/1.1 and HTTP/2 on one port: which of them a connection speaks is seen from its first bytes.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::DRAIN_MAX;
use super::counts::Counts;
use super::tls::Connection;

/// A request's head may be this long.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Requests that one HTTP/2 connection may have open.
const STREAMS_MAX: u32 = 100;
/// An HTTP/2 peer that says nothing is asked this often whether it is there, and has this long to answer.
const PING_INTERVAL: Duration = Duration::from_mins(1);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The names of the protocols in TLS.
pub(crate) const PROTOCOLS: &[&[u8]] = &[b"h2", b"http/1.1"];

/// What all connections share.
#[derive(Clone)]
pub(crate) struct Web {
    server: Arc<auto::Builder<TokioExecutor>>,
    header_timeout: Duration,
    counts: Arc<Counts>,
    shutdown: CancellationToken,
}

impl Web {
    pub(crate) fn new(header_timeout: Duration, counts: &Arc<Counts>, shutdown: &CancellationToken) -> Self {
        let mut server = auto::Builder::new(TokioExecutor::new());
        server
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .max_buf_size(HEAD_BYTES_MAX)
            .half_close(true);
        server
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        let (counts, shutdown) = (Arc::clone(counts), shutdown.clone());
        Self { server: Arc::new(server), header_timeout, counts, shutdown }
    }

    /// Serves one connection. Once the pipeline stops, requests in progress are still answered, for a while.
    pub(crate) async fn serve<A, F, B>(&self, stream: Connection, peer: &str, answer: A)
    where
        A: Fn(Request<Incoming>) -> F,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
        let n_begun = Arc::new(AtomicUsize::new(0));
        let n_in_progress = Arc::new(AtomicUsize::new(0));
        let answer = service_fn(|request| {
            n_begun.fetch_add(1, Ordering::Relaxed);
            let n_in_progress = Arc::clone(&n_in_progress);
            let answer = answer(request);
            async move {
                n_in_progress.fetch_add(1, Ordering::Relaxed);
                let answer = answer.await;
                n_in_progress.fetch_sub(1, Ordering::Relaxed);
                Ok::<_, Infallible>(answer)
            }
        });
        let mut connection = std::pin::pin!(self.server.serve_connection(TokioIo::new(stream), answer));
        // Until the protocol is known, nobody else looks at the clock.
        let silent = async {
            sleep(self.header_timeout).await;
            if n_begun.load(Ordering::Relaxed) > 0 {
                std::future::pending::<()>().await;
            }
        };
        let ended = tokio::select! {
            biased;
            ended = &mut connection => ended,
            () = silent => return self.counts.refused("header_timeout", peer),
            () = self.shutdown.cancelled() => {
                // Without a request there is at most an answer that is on its way, or a head that is incomplete.
                let busy = n_in_progress.load(Ordering::Relaxed) > 0;
                connection.as_mut().graceful_shutdown();
                match timeout(if busy { DRAIN_MAX } else { DRAIN_MAX / 20 }, connection).await {
                    Ok(ended) => ended,
                    Err(_) => return,
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, %peer, "A connection was lost.");
        }
    }
}
