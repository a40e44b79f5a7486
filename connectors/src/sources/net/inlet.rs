//! Reading a protocol in which the peer is answered, and running such a connection.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::DRAIN_MAX;
use super::answers::Answers;
use super::budget::{ByteBudget, HeldBytes};
use super::room::{self, READ_MIN};
use super::stream::chargeable;
use crate::source::NotDurable;

/// No single read is larger.
const READ_MAX: usize = 128 << 10;

/// Why nothing more is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The peer said that it is done.
    Finished,
    /// The connection is gone, or nothing is to be said about its end.
    Lost,
    /// The peer broke the protocol or a limit.
    Refused(&'static str),
    /// The pipeline stops.
    Stopped,
}

impl From<NotDurable> for End {
    fn from(_: NotDurable) -> Self {
        Self::Stopped
    }
}

/// Reads within the budgets.
pub(crate) struct Inlet<R> {
    reader: R,
    /// Received and not yet looked at.
    pub(crate) buffer: BytesMut,
    held: HeldBytes,
    read_bytes: usize,
    idle_timeout: Option<Duration>,
    shutdown: CancellationToken,
}

impl<R: AsyncRead + Unpin> Inlet<R> {
    pub(crate) fn new(
        reader: R,
        budget: &Arc<ByteBudget>,
        idle_timeout: Option<Duration>,
        shutdown: &CancellationToken,
    ) -> Self {
        Self {
            reader,
            buffer: BytesMut::new(),
            held: HeldBytes::none(budget),
            read_bytes: READ_MIN,
            idle_timeout,
            shutdown: shutdown.clone(),
        }
    }

    /// Takes from the budget what the connection occupies besides the buffer. A connection that gets no memory is
    /// closed: its peer sends again what was not answered.
    pub(crate) fn hold(&mut self, besides: usize) -> Result<(), End> {
        let n_bytes = chargeable(self.buffer.capacity() + besides);
        if self.held.resize(n_bytes) { Ok(()) } else { Err(End::Refused("max_buffered_bytes_total")) }
    }

    /// Reads some bytes behind those that are in the buffer. A peer that waits for an answer is not idle.
    pub(crate) async fn read(&mut self, besides: usize, is_awaited: impl Fn() -> bool) -> Result<(), End> {
        room::make_room(&mut self.buffer, self.read_bytes, 0);
        if self.hold(besides).is_err() {
            room::release(&mut self.buffer);
            self.read_bytes = READ_MIN;
            self.hold(besides + READ_MIN)?;
        }
        let shutdown = self.shutdown.clone();
        let mut stopped = pin!(shutdown.cancelled());
        let mut silent = pin!(self.idle_timeout.map(sleep));
        let n = poll_fn(|cx| {
            // In pieces: what is read while the pipeline stops would have to be answered.
            if stopped.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(End::Stopped));
            }
            room::make_room(&mut self.buffer, READ_MIN, 0);
            if let Poll::Ready(read) = pin!(self.reader.read_buf(&mut self.buffer)).poll(cx) {
                return Poll::Ready(read.map_err(|_| End::Lost));
            }
            while let (Some(mut timer), Some(idle)) = (silent.as_mut().as_pin_mut(), self.idle_timeout)
                && timer.as_mut().poll(cx).is_ready()
            {
                if !is_awaited() {
                    return Poll::Ready(Err(End::Refused("idle_timeout")));
                }
                timer.reset(tokio::time::Instant::now() + idle);
            }
            room::release(&mut self.buffer);
            self.held.shrink(chargeable(self.buffer.capacity() + besides));
            Poll::Pending
        })
        .await?;
        if n < self.read_bytes / 4 {
            self.read_bytes = (self.read_bytes / 2).max(READ_MIN);
        } else if n >= self.read_bytes / 2 {
            self.read_bytes = (self.read_bytes * 4).min(READ_MAX);
        }
        if n == 0 { Err(End::Finished) } else { Ok(()) }
    }
}

/// Sends answers as they become due; `keep_alive` whenever a peer has waited for one that long. Ends when there is
/// nothing left to answer.
pub(crate) async fn write_answers<W: AsyncWrite + Unpin>(
    mut answers: Answers,
    mut writer: W,
    keep_alive: Option<(Duration, impl Fn() -> Option<Vec<u8>>)>,
    farewell: &[u8],
) -> Result<(), End> {
    let interval = keep_alive.as_ref().map(|(interval, _)| *interval);
    let mut due = interval.map(|interval| tokio::time::Instant::now() + interval);
    loop {
        let answer = tokio::select! {
            biased;
            answer = answers.next() => answer,
            () = sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {
                due = interval.map(|interval| tokio::time::Instant::now() + interval);
                let sign = keep_alive.as_ref().and_then(|(_, sign)| sign()).filter(|_| answers.is_awaited());
                if let Some(sign) = sign {
                    write(&mut writer, &sign).await?;
                }
                continue;
            }
        };
        let Some(answer) = answer else { break };
        let answer = answer.map_err(|error| {
            tracing::warn!(%error, "A connection is closed without an answer.");
            End::Lost
        })?;
        due = interval.map(|interval| tokio::time::Instant::now() + interval);
        write(&mut writer, &answer).await?;
    }
    write(&mut writer, farewell).await?;
    writer.shutdown().await.map_err(|_| End::Lost)
}

async fn write<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) -> Result<(), End> {
    writer.write_all(bytes).await.map_err(|_| End::Lost)?;
    writer.flush().await.map_err(|_| End::Lost)
}

/// Runs both halves of a connection. What was handed over is still answered after the peer has finished, and for a
/// while when the pipeline stops.
pub(crate) async fn run_halves(
    reading: impl Future<Output = End>,
    writing: impl Future<Output = Result<(), End>>,
    shutdown: &CancellationToken,
) -> End {
    let mut writing = pin!(writing);
    let mut drained = pin!(async {
        shutdown.cancelled().await;
        sleep(DRAIN_MAX).await;
    });
    let end = tokio::select! {
        biased;
        written = &mut writing => return written.err().unwrap_or(End::Finished),
        end = reading => end,
        // It may wait for a buffer that takes no more.
        () = &mut drained => return End::Stopped,
    };
    tokio::select! {
        biased;
        _ = writing => {}
        () = drained => {}
    }
    end
}
