//! Reading a request's body within its bounds.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_ENCODING, EXPECT, HeaderMap};
use tokio::time::{Instant, timeout_at};

use crate::sources::net::budget::{ByteBudget, HeldBytes};
use crate::sources::net::expand::{ExpandError, Expander};

/// Room for one step of expansion.
const STEP_BYTES: usize = 64 << 10;
/// How much of a refused body is still taken, and for how long.
const DISCARD_BYTES_MAX: usize = 64 << 20;
const DISCARD_TIME_MAX: Duration = Duration::from_secs(1);

/// Bounds on one body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimits {
    /// As it comes over the wire.
    pub(crate) bytes_max: u64,
    /// After expansion.
    pub(crate) expanded_bytes_max: u64,
    /// For all of it.
    pub(crate) timeout: Duration,
}

/// Why a body is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyError {
    /// The chunks make no sense, or the connection was lost.
    Broken,
    Expand(ExpandError),
    /// All requests together hold as much as they may.
    NoMemory,
    Slow,
    TooLarge,
    UnknownEncoding,
}

impl BodyError {
    /// The reason in the metric.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Broken => "malformed_body",
            Self::Expand(error) => error.reason(),
            Self::NoMemory => "max_buffered_bytes_total",
            Self::Slow => "body_timeout",
            Self::TooLarge => "body_too_large",
            Self::UnknownEncoding => "unknown_encoding",
        }
    }
}

/// A body, and its share of the memory that all requests may hold.
pub(crate) struct HeldBody {
    pub(crate) data: BytesMut,
    pub(crate) held: HeldBytes,
}

/// Reads all of `body` and expands it.
pub(crate) async fn read(
    headers: &HeaderMap,
    mut body: Incoming,
    limits: BodyLimits,
    budget: &Arc<ByteBudget>,
) -> Result<HeldBody, BodyError> {
    let read = read_all(headers, &mut body, limits, budget).await;
    // A peer that is still sending sees its connection reset instead of the answer. One that waits for leave to
    // send is not sending.
    if read.is_err() && !headers.contains_key(EXPECT) {
        discard(&mut body).await;
    }
    read
}

/// Takes a little more of a body that nobody wants.
async fn discard(body: &mut Incoming) {
    let deadline = Instant::now() + DISCARD_TIME_MAX;
    let mut n_bytes = 0;
    while n_bytes < DISCARD_BYTES_MAX
        && let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await
    {
        n_bytes += frame.data_ref().map_or(0, Bytes::len);
    }
}

async fn read_all(
    headers: &HeaderMap,
    body: &mut Incoming,
    limits: BodyLimits,
    budget: &Arc<ByteBudget>,
) -> Result<HeldBody, BodyError> {
    let mut expander = expander_of(headers)?;
    if body.size_hint().lower() > limits.bytes_max {
        return Err(BodyError::TooLarge);
    }
    let deadline = Instant::now() + limits.timeout;
    let mut reading = Reading { data: BytesMut::new(), held: HeldBytes::none(budget), limits };
    let mut n_received = 0;
    loop {
        let frame = timeout_at(deadline, body.frame()).await.map_err(|_| BodyError::Slow)?;
        let Some(frame) = frame else { break };
        // Trailers carry nothing for us.
        let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
        n_received += data.len() as u64;
        if n_received > limits.bytes_max {
            return Err(BodyError::TooLarge);
        }
        match &mut expander {
            Some(expander) => reading.expand(expander, &data)?,
            None => reading.append(&data)?,
        }
    }
    if let Some(expander) = &expander {
        expander.finish().map_err(BodyError::Expand)?;
    }
    Ok(HeldBody { data: reading.data, held: reading.held })
}

/// Expands what a protocol compresses inside a body, within the same bounds.
pub(crate) fn expand(
    data: &[u8],
    mut expander: Expander,
    limits: BodyLimits,
    budget: &Arc<ByteBudget>,
) -> Result<HeldBody, BodyError> {
    let mut reading = Reading { data: BytesMut::new(), held: HeldBytes::none(budget), limits };
    reading.expand(&mut expander, data)?;
    expander.finish().map_err(BodyError::Expand)?;
    Ok(HeldBody { data: reading.data, held: reading.held })
}

/// The one layer of compression that a request may have.
fn expander_of(headers: &HeaderMap) -> Result<Option<Expander>, BodyError> {
    let mut values = headers.get_all(CONTENT_ENCODING).iter();
    let Some(encoding) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(BodyError::UnknownEncoding);
    }
    match encoding.as_bytes().trim_ascii().to_ascii_lowercase().as_slice() {
        b"" | b"identity" => Ok(None),
        b"deflate" => Ok(Some(Expander::zlib())),
        b"gzip" | b"x-gzip" => Ok(Some(Expander::gzip())),
        b"zstd" => Ok(Some(Expander::zstd())),
        _ => Err(BodyError::UnknownEncoding),
    }
}

struct Reading {
    data: BytesMut,
    held: HeldBytes,
    limits: BodyLimits,
}

impl Reading {
    /// Makes room for `n_bytes` more, besides `other_bytes`, if there is memory for it.
    fn reserve(&mut self, n_bytes: usize, other_bytes: usize) -> Result<(), BodyError> {
        let needed = self.data.len() + n_bytes;
        let capacity = if needed <= self.data.capacity() {
            self.data.capacity()
        } else {
            needed.max(2 * self.data.len())
        };
        if !self.held.resize(capacity + other_bytes) {
            return Err(BodyError::NoMemory);
        }
        self.data.reserve(capacity - self.data.len());
        Ok(())
    }

    fn append(&mut self, data: &[u8]) -> Result<(), BodyError> {
        self.reserve(data.len(), 0)?;
        self.data.extend_from_slice(data);
        Ok(())
    }

    fn expand(&mut self, expander: &mut Expander, mut data: &[u8]) -> Result<(), BodyError> {
        loop {
            self.reserve(STEP_BYTES, expander.memory())?;
            let start = self.data.len();
            self.data.resize(start + STEP_BYTES, 0);
            let step = expander.step(data, &mut self.data[start..]);
            self.data.truncate(start + step.map_or(0, |s| s.produced));
            let step = step.map_err(BodyError::Expand)?;
            if self.data.len() as u64 > self.limits.expanded_bytes_max {
                return Err(BodyError::TooLarge);
            }
            data.advance(step.consumed);
            if data.is_empty() && step.produced < STEP_BYTES {
                return Ok(());
            }
        }
    }
}
