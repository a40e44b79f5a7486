//! From a stream of bytes to messages: what `tcp`, `unix` and `stdin` have in common.
//!
//! One connection holds the line that has begun and one read, both within `max_buffered_bytes`. While the buffer
//! behind the intake is full, nothing is read: the peer feels it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use logdrive_schemas::component::{ConfigError, Span};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::sleep;

use super::DRAIN_MAX;
use super::budget::HeldBytes;
use super::expand::{Compression, Expander, sniff};
use super::framing::{Framer, Framing};
use super::lines::Group;
use super::room::READ_MIN;
use super::server::{Common, Serve};
use super::tls::Connection;
use crate::source::{NotDurable, Received};

/// No single read is larger.
const READ_MAX: usize = 256 << 10;
/// The largest line that can be configured: a group of messages must stay below 64 MiB.
const LINE_BYTES_MAX: u64 = 16 << 20;
/// What each connection may hold without asking the budget.
const FREE_BYTES: usize = 2 * READ_MIN;
/// How much of what the peer has already sent is still read once the pipeline stops.
const DRAIN_BYTES_MAX: usize = 4 << 20;
/// Once the pipeline stops, a peer that sends nothing for this long has sent what it had. The system hands on what was
/// sent before in pieces, with a moment between them.
const DRAIN_QUIET: Duration = Duration::from_millis(50);

/// Bounds on one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamLimits {
    pub(crate) line_bytes_max: usize,
    pub(crate) buffered_bytes_max: usize,
    /// None: never.
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) compression: Compression,
    pub(crate) framing: Framing,
}

impl StreamLimits {
    /// Refuses limits that contradict each other.
    pub(crate) fn checked(
        line_bytes_max: u64,
        buffered_bytes_max: u64,
        idle_timeout: Duration,
        compression: Compression,
    ) -> Result<Self, ConfigError> {
        let invalid =
            |message: &str| Err(ConfigError::new("config::invalid_value", Span::default(), message));
        if line_bytes_max == 0 || line_bytes_max > LINE_BYTES_MAX {
            return invalid("`max_line_bytes` is not between 1B and 16MiB");
        }
        if buffered_bytes_max < 2 * line_bytes_max {
            return invalid("`max_buffered_bytes` is less than twice `max_line_bytes`");
        }
        Ok(Self {
            line_bytes_max: line_bytes_max as usize,
            buffered_bytes_max: usize::try_from(buffered_bytes_max).unwrap_or(usize::MAX),
            idle_timeout: Some(idle_timeout).filter(|idle| !idle.is_zero()),
            compression,
            framing: Framing::Newline,
        })
    }
}

/// What the connections of one source share.
pub(crate) struct Shared {
    pub(crate) limits: StreamLimits,
    pub(crate) common: Common,
}

impl Serve for Shared {
    async fn serve(&self, connection: &mut Connection, peer: &Arc<str>) {
        pump(connection, Arc::clone(peer), self).await;
    }
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The peer said that it is done: the last line is whole.
    Finished,
    /// Anything else: the last line may lack its rest, for the given reason.
    Broken(&'static str),
    /// Nobody takes messages any more.
    Stopped,
}

impl From<NotDurable> for End {
    fn from(_: NotDurable) -> Self {
        Self::Stopped
    }
}

/// Hands over every message of `reader` until it ends, breaks a limit or the pipeline stops.
pub(crate) async fn pump<R: AsyncRead + Unpin>(reader: R, peer: Arc<str>, shared: &Shared) {
    let mut stream = Stream {
        reader,
        shared,
        framer: Framer::new(shared.limits.framing, shared.limits.line_bytes_max),
        held: HeldBytes::none(&shared.common.budget),
        decoder_bytes: 0,
        read_bytes: READ_MIN,
        n_drained: 0,
        drain_until: None,
        peer,
    };
    let end = match shared.limits.compression {
        Compression::None => stream.plain().await,
        compression => stream.compressed(compression).await,
    };
    if let Err(end) | Ok(end) = end
        && stream.finish(end).await.is_err()
    {
        tracing::debug!(peer = %stream.peer, "The pipeline stopped before the last line was taken.");
    }
}

struct Stream<'a, R> {
    reader: R,
    shared: &'a Shared,
    framer: Framer,
    held: HeldBytes,
    /// What the decoder of a compressed stream occupies.
    decoder_bytes: usize,
    /// How much the next read asks for: grows while reads come back full.
    read_bytes: usize,
    /// How much was read since the pipeline began to stop.
    n_drained: usize,
    /// When the reading ends, set once the pipeline begins to stop: a peer that never falls quiet must not hold it.
    drain_until: Option<Instant>,
    peer: Arc<str>,
}

impl<R: AsyncRead + Unpin> Stream<'_, R> {
    async fn plain(&mut self) -> Result<End, End> {
        loop {
            self.reserve().await?;
            if self.read(None).await? == 0 {
                return Ok(End::Finished);
            }
            self.hand_over_lines().await?;
        }
    }

    async fn compressed(&mut self, compression: Compression) -> Result<End, End> {
        let mut input = Vec::with_capacity(READ_MIN);
        let mut known = Some(compression).filter(|c| *c != Compression::Auto);
        while known.is_none() {
            // A stream that ends before it shows what it is, is too short to be compressed.
            let ended = self.read(Some(&mut input)).await? == 0;
            known = sniff(&input).or(ended.then_some(Compression::None));
        }
        let mut expander = match known {
            Some(Compression::Gzip) => Expander::gzip(),
            Some(Compression::Zstd) => Expander::zstd(),
            _ => {
                self.framer.buffer().extend_from_slice(&input);
                drop(input);
                self.hand_over_lines().await?;
                return self.plain().await;
            }
        };
        loop {
            self.expand(&mut expander, &input).await?;
            input.clear();
            if self.read(Some(&mut input)).await? == 0 {
                return expander.finish().map(|()| End::Finished).map_err(|e| End::Broken(e.reason()));
            }
        }
    }

    /// Expands all of `input`, handing over as it goes: never more than one read's worth is held expanded.
    async fn expand(&mut self, expander: &mut Expander, mut input: &[u8]) -> Result<(), End> {
        loop {
            self.read_bytes = READ_MAX / 4;
            self.decoder_bytes = expander.memory();
            self.reserve().await?;
            let buffer = self.framer.buffer();
            let start = buffer.len();
            buffer.resize(buffer.capacity(), 0);
            let room = buffer.len() - start;
            let step = expander.step(input, &mut buffer[start..]);
            buffer.truncate(start + step.map_or(0, |s| s.produced));
            let step = step.map_err(|e| End::Broken(e.reason()))?;
            input = &input[step.consumed..];
            self.hand_over_lines().await?;
            if input.is_empty() && step.produced < room {
                return Ok(());
            }
        }
    }

    /// Makes room for the next read within the budgets. Where there is none left, the line that has begun is given
    /// up, so that the connection never waits for memory that others may never give back.
    async fn reserve(&mut self) -> Result<(), End> {
        let left = self.shared.limits.buffered_bytes_max.saturating_sub(self.framer.pending());
        let mut want = self.read_bytes.min(left);
        if !self.hold(want) {
            want = READ_MIN;
            self.framer.release();
            if !self.hold(want) {
                self.cut("max_buffered_bytes_total").await?;
                self.framer.release();
                if !self.hold(want) {
                    return Err(End::Broken("max_buffered_bytes_total"));
                }
            }
        }
        self.framer.make_room(want);
        Ok(())
    }

    /// Takes what a read of `want` bytes needs from the budget.
    fn hold(&mut self, want: usize) -> bool {
        let capacity = self.framer.capacity().max(self.framer.room_for(want));
        self.held.resize(chargeable(capacity + self.decoder_bytes))
    }

    /// Reads into `into`, or else into the lines' buffer; 0 at the end. While the peer is silent, the connection
    /// holds no more than the line that has begun.
    async fn read(&mut self, mut into: Option<&mut Vec<u8>>) -> Result<usize, End> {
        let shared = self.shared;
        let stopping = shared.common.shutdown.is_cancelled();
        if stopping {
            let until = *self.drain_until.get_or_insert_with(|| Instant::now() + DRAIN_MAX);
            if self.n_drained >= DRAIN_BYTES_MAX || Instant::now() >= until {
                return Err(End::Broken("shutdown"));
            }
        }
        let mut stopped = pin!(async {
            shared.common.shutdown.cancelled().await;
            sleep(DRAIN_QUIET).await;
        });
        let mut silent = pin!(shared.limits.idle_timeout.map(sleep));
        let read = poll_fn(|cx| {
            let read = match &mut into {
                Some(into) => pin!(self.reader.read_buf(*into)).poll(cx),
                None => {
                    self.framer.make_room(READ_MIN);
                    pin!(self.reader.read_buf(self.framer.buffer())).poll(cx)
                }
            };
            if let Poll::Ready(read) = read {
                return Poll::Ready(read.map_err(|_| End::Broken("connection_lost")));
            }
            // Stopping: what was sent before is read, nothing new is waited for.
            if stopped.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(End::Broken("shutdown")));
            }
            if let Some(silent) = silent.as_mut().as_pin_mut()
                && silent.poll(cx).is_ready()
            {
                return Poll::Ready(Err(End::Broken("idle_timeout")));
            }
            self.framer.release();
            self.held.shrink(chargeable(self.framer.capacity() + self.decoder_bytes));
            Poll::Pending
        });
        let n = read.await?;
        if stopping {
            self.n_drained += n;
        }
        if n < self.read_bytes / 4 {
            self.read_bytes = (self.read_bytes / 2).max(READ_MIN);
        } else if n >= self.read_bytes / 2 {
            self.read_bytes = (self.read_bytes * 4).min(READ_MAX);
        }
        Ok(n)
    }

    async fn hand_over_lines(&mut self) -> Result<(), End> {
        if let Some(group) = self.framer.take() {
            self.hand_over(group).await?;
        }
        if self.framer.is_lost() { Err(End::Broken("malformed_frame")) } else { Ok(()) }
    }

    async fn hand_over(&self, group: Group) -> Result<(), End> {
        self.shared.common.counts.rejected("line_too_long", group.n_too_long, &self.peer);
        self.shared.common.counts.received(&group.messages);
        let peer = Some(Arc::clone(&self.peer));
        let received =
            Received { data: group.data, messages: group.messages, peer, attributes: None, ack: None };
        Ok(self.shared.common.intake.send(received).await?)
    }

    /// Gives up the line that has begun.
    async fn cut(&mut self, reason: &'static str) -> Result<(), End> {
        match self.framer.cut() {
            Some(group) => {
                self.shared.common.counts.rejected(reason, 1, &self.peer);
                self.hand_over(group).await
            }
            None => Ok(()),
        }
    }

    async fn finish(&mut self, end: End) -> Result<(), End> {
        match end {
            End::Finished => {
                if let Some(group) = self.framer.finish() {
                    self.hand_over(group).await?;
                }
                // A frame that announced more than came.
                self.cut("line_cut_off").await
            }
            End::Broken(reason) => {
                if !matches!(reason, "shutdown" | "connection_lost") {
                    self.shared.common.counts.refused(reason, &self.peer);
                }
                self.cut("line_cut_off").await
            }
            End::Stopped => Err(End::Stopped),
        }
    }
}

/// What a connection that occupies `n_bytes` takes from the budget that all share.
pub(crate) fn chargeable(n_bytes: usize) -> usize {
    if n_bytes <= FREE_BYTES { 0 } else { n_bytes }
}
