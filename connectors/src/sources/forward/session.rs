//! One connection: frames are taken apart into groups of messages, and a chunk is answered once all of it is durable.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncRead;

use super::frames::{Frame, Shape};
use super::handshake::{Handshake, Keys, acknowledgement};
use super::msgpack::{Malformed, Scan};
use crate::sources::net::answers::{Deliveries, answers};
use crate::sources::net::collect::Collect;
use crate::sources::net::inlet::{End, Inlet, run_halves, write_answers};
use crate::sources::net::server::{Common, Serve};
use crate::sources::net::tls::Connection;

/// A group of messages is handed over at this size, although the frame goes on.
const GROUP_BYTES: usize = 1 << 20;
/// At least so much is made room for while a frame is not complete.
const ROOM_BYTES: usize = 128 << 10;

/// What the connections of one source share.
pub(super) struct Shared {
    pub(super) shape: Shape,
    pub(super) keys: Option<Keys>,
    pub(super) message_bytes_max: usize,
    pub(super) frame_bytes_max: usize,
    pub(super) unanswered_bytes_max: u64,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) common: Common,
}

impl Serve for Shared {
    async fn serve(&self, connection: &mut Connection, peer: &Arc<str>) {
        let (reader, writer) = tokio::io::split(connection);
        let Common { budget, counts, intake, shutdown } = &self.common;
        let (deliveries, answers) = answers(self.unanswered_bytes_max, intake, counts, peer);
        let session = Session {
            shared: self,
            inlet: Inlet::new(reader, budget, self.idle_timeout, shutdown),
            deliveries,
            collect: Collect::new(self.message_bytes_max),
            scratch: Vec::new(),
            scan: Scan::default(),
            handshake: self.keys.as_ref().map(Handshake::new),
            peer,
        };
        let writing = write_answers(answers, writer, None::<(Duration, fn() -> Option<Vec<u8>>)>, b"");
        if let End::Refused(reason) = run_halves(session.run(), writing, shutdown).await {
            counts.refused(reason, peer);
        }
    }
}

struct Session<'a, R> {
    shared: &'a Shared,
    inlet: Inlet<R>,
    deliveries: Deliveries<'a>,
    collect: Collect,
    /// The message that is being written.
    scratch: Vec<u8>,
    /// Of the frame that has begun.
    scan: Scan,
    /// Until the peer has shown that it may send.
    handshake: Option<Handshake<'a>>,
    peer: &'a Arc<str>,
}

impl<R: AsyncRead + Unpin> Session<'_, R> {
    async fn run(mut self) -> End {
        if let Some(handshake) = &self.handshake
            && let Err(error) = self.deliveries.answer(handshake.hello()).await
        {
            return error.into();
        }
        loop {
            if let Err(end) = self.turn().await {
                return end;
            }
        }
    }

    fn memory(&self) -> usize {
        self.collect.memory() + self.scratch.capacity()
    }

    async fn turn(&mut self) -> Result<(), End> {
        let memory = self.memory();
        let missing = self.scan.at_least().saturating_sub(self.inlet.buffer.len());
        if missing > 0 && !self.inlet.buffer.is_empty() {
            // Twice as much each time, so that a long frame is copied no more than twice.
            let room = self.inlet.buffer.len().max(ROOM_BYTES).min(missing);
            self.inlet.buffer.reserve(room);
        }
        let deliveries = &self.deliveries;
        self.inlet.read(memory, || deliveries.is_awaited()).await?;
        loop {
            let max = self.shared.frame_bytes_max;
            let end = self.scan.end(&self.inlet.buffer, max).map_err(|error| match error {
                Malformed::Long => End::Refused("frame_too_long"),
                Malformed::Broken | Malformed::Deep => End::Refused("malformed_frame"),
            })?;
            let Some(end) = end else { return Ok(()) };
            self.scan = Scan::default();
            // Away from the buffer, which is read into again only after it is handled.
            let frame = self.inlet.buffer.split_to(end);
            self.handle(&frame).await?;
        }
    }

    async fn handle(&mut self, bytes: &[u8]) -> Result<(), End> {
        if let Some(handshake) = &self.handshake {
            let (answer, ok) = handshake.answer(bytes).ok_or(End::Refused("no_handshake"))?;
            self.deliveries.answer(answer).await?;
            if !ok {
                return Err(End::Refused("authentication"));
            }
            self.handshake = None;
            return Ok(());
        }
        let shared = self.shared;
        let frame = Frame::read(bytes, &shared.shape).map_err(|error| End::Refused(error.reason()))?;
        let Some(mut frame) = frame else { return Ok(()) };
        self.inlet.hold(bytes.len() + frame.memory() + self.memory())?;
        while frame.next(&shared.shape, &mut self.scratch, &mut self.collect) {
            if self.collect.complete_bytes() >= GROUP_BYTES {
                self.inlet.hold(bytes.len() + frame.memory() + self.memory())?;
                self.deliveries.hand_over(self.collect.take(), Vec::new()).await?;
            }
        }
        shared.common.counts.rejected("malformed_event", frame.n_malformed(), self.peer);
        // One event may have been large.
        self.scratch = Vec::new();
        let answer = frame.chunk().map(acknowledgement).unwrap_or_default();
        Ok(self.deliveries.hand_over(self.collect.take(), answer).await?)
    }
}
