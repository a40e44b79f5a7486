//! One connection of a shipper: events are collected into groups, and each group is answered once it is durable.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::AsyncRead;

use super::frames::{Frame, FrameLimits, Frames};
use crate::sources::net::answers::{Deliveries, answers};
use crate::sources::net::collect::Collect;
use crate::sources::net::inlet::{End, Inlet, run_halves, write_answers};
use crate::sources::net::server::{Common, Serve};
use crate::sources::net::tls::Connection;

/// A group of events is handed over at this size, although the window goes on.
const GROUP_BYTES: usize = 1 << 20;

/// What the connections of one source share.
pub(super) struct Shared {
    pub(super) message_bytes_max: usize,
    pub(super) limits: FrameLimits,
    pub(super) unanswered_bytes_max: u64,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) keep_alive: Duration,
    pub(super) common: Common,
}

impl Serve for Shared {
    async fn serve(&self, connection: &mut Connection, peer: &Arc<str>) {
        let (reader, writer) = tokio::io::split(connection);
        let Common { budget, counts, intake, shutdown } = &self.common;
        let (deliveries, answers) = answers(self.unanswered_bytes_max, intake, counts, peer);
        // Version 1 knows no answer that acknowledges nothing.
        let understands_zero = AtomicBool::new(false);
        let session = Session {
            inlet: Inlet::new(reader, budget, self.idle_timeout, shutdown),
            deliveries,
            frames: Frames::new(self.limits),
            collect: Collect::new(self.message_bytes_max),
            understands_zero: &understands_zero,
            window: 0,
            window_left: 0,
            last: None,
            held: 0,
        };
        let sign = || understands_zero.load(Ordering::Relaxed).then(|| acknowledgement(2, 0));
        let writing = write_answers(answers, writer, Some((self.keep_alive, sign)), b"");
        if let End::Refused(reason) = run_halves(session.run(), writing, shutdown).await {
            counts.refused(reason, peer);
        }
    }
}

fn acknowledgement(version: u8, sequence: u32) -> Vec<u8> {
    [&[b'0' + version, b'A'][..], &sequence.to_be_bytes()].concat()
}

struct Session<'a, R> {
    inlet: Inlet<R>,
    deliveries: Deliveries<'a>,
    frames: Frames,
    collect: Collect,
    understands_zero: &'a AtomicBool,
    /// Events per window. Stays as it is until the peer says another.
    window: u32,
    window_left: u32,
    /// Version and sequence number of the last event that was not handed over.
    last: Option<(u8, u32)>,
    /// What was taken from the budget for it, besides what is read into.
    held: usize,
}

impl<R: AsyncRead + Unpin> Session<'_, R> {
    async fn run(mut self) -> End {
        loop {
            if let Err(end) = self.turn().await {
                return end;
            }
        }
    }

    fn memory(&self) -> usize {
        self.collect.memory() + self.frames.memory()
    }

    async fn turn(&mut self) -> Result<(), End> {
        let memory = self.memory();
        self.held = memory;
        let deliveries = &self.deliveries;
        self.inlet.read(memory, || deliveries.is_awaited()).await?;
        let mut at = 0;
        loop {
            let step = self.frames.step(&self.inlet.buffer[at..], &mut self.collect);
            let (n, frame) = step.map_err(|error| End::Refused(error.reason()))?;
            at += n;
            self.hold()?;
            match frame {
                Some(Frame::Window { version, count }) => {
                    self.understands_zero.store(version == 2, Ordering::Relaxed);
                    // What came before a window that was not filled belongs to it no more.
                    self.hand_over(true).await?;
                    (self.window, self.window_left) = (count, count);
                }
                Some(Frame::Event { version, sequence }) => self.event(version, sequence).await?,
                None if n == 0 => break,
                None => {}
            }
        }
        self.inlet.buffer.clear();
        Ok(())
    }

    /// Takes from the budget what events need that expanded: little that came may be much that is held.
    fn hold(&mut self) -> Result<(), End> {
        let memory = self.memory();
        if memory > self.held {
            self.inlet.hold(memory)?;
            self.held = memory;
        }
        Ok(())
    }

    async fn event(&mut self, version: u8, sequence: u32) -> Result<(), End> {
        if self.window == 0 {
            return Err(End::Refused("event_without_window"));
        }
        self.last = Some((version, sequence));
        self.window_left -= 1;
        if self.window_left == 0 {
            self.window_left = self.window;
            self.hand_over(true).await?;
        } else if self.collect.complete_bytes() >= GROUP_BYTES {
            // Some senders of version 1 take any answer for that of their window.
            self.hand_over(version == 2).await?;
        }
        Ok(())
    }

    /// Hands over what was collected, to be answered or not.
    async fn hand_over(&mut self, answered: bool) -> Result<(), End> {
        let Some((version, sequence)) = self.last.take() else { return Ok(()) };
        let answer = if answered { acknowledgement(version, sequence) } else { Vec::new() };
        Ok(self.deliveries.hand_over(self.collect.take(), answer).await?)
    }
}
