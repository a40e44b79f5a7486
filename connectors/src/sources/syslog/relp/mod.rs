//! A RELP server: a message is answered with `200 OK` once it is durable, so that its sender may forget it.
//!
//! Transactions are answered in their order. A message that cannot be made durable is not answered: the connection is
//! closed, and the sender sends it again over the next one.

pub mod frames;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use self::frames::{Frame, Frames};
use super::super::net::answers::{Deliveries, answers};
use super::super::net::collect::Collect;
use super::super::net::inlet::{End, Inlet, run_halves, write_answers};
use super::super::net::server::{Common, Serve};
use super::super::net::tls::Connection;

/// A group of messages is handed over at this size.
const GROUP_BYTES: usize = 1 << 20;
/// Messages without a byte are answered, too; no more than this many at once.
const GROUP_TXNRS_MAX: usize = 64 << 10;

/// What the connections of one source share.
pub(super) struct Relp {
    pub(super) message_bytes_max: usize,
    pub(super) unanswered_bytes_max: u64,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) common: Common,
}

impl Serve for Relp {
    async fn serve(&self, connection: &mut Connection, peer: &Arc<str>) {
        let (reader, writer) = tokio::io::split(connection);
        let Common { budget, counts, intake, shutdown } = &self.common;
        let inlet = Inlet::new(reader, budget, self.idle_timeout, shutdown);
        let (deliveries, answers) = answers(self.unanswered_bytes_max, intake, counts, peer);
        let session = Session {
            inlet,
            deliveries,
            frames: Frames::default(),
            collect: Collect::new(self.message_bytes_max),
            answer: String::new(),
            n_txnrs: 0,
            open: false,
        };
        let none = None::<(Duration, fn() -> Option<Vec<u8>>)>;
        let writing = write_answers(answers, writer, none, b"0 serverclose 0\n");
        if let End::Refused(reason) = run_halves(session.run(), writing, shutdown).await {
            counts.refused(reason, peer);
        }
    }
}

struct Session<'a, R> {
    inlet: Inlet<R>,
    deliveries: Deliveries<'a>,
    frames: Frames,
    collect: Collect,
    /// The answers to the messages that are collected.
    answer: String,
    n_txnrs: usize,
    /// The peer has introduced itself.
    open: bool,
}

impl<R: tokio::io::AsyncRead + Unpin> Session<'_, R> {
    async fn run(mut self) -> End {
        loop {
            if let Err(end) = self.turn().await {
                return end;
            }
        }
    }

    async fn turn(&mut self) -> Result<(), End> {
        let deliveries = &self.deliveries;
        self.inlet.read(self.collect.memory(), || deliveries.is_awaited()).await?;
        let mut at = 0;
        while at < self.inlet.buffer.len() {
            let step = self.frames.step(&self.inlet.buffer[at..], &mut self.collect);
            let (n, frame) = step.map_err(|error| End::Refused(error.reason()))?;
            at += n;
            match frame {
                Some(Frame::Syslog { txnr }) if self.open => {
                    self.respond(txnr, "200 OK");
                    self.n_txnrs += 1;
                    if self.collect.complete_bytes() >= GROUP_BYTES || self.n_txnrs >= GROUP_TXNRS_MAX {
                        self.hand_over().await?;
                    }
                }
                Some(Frame::Other { txnr, command, data }) => self.other(txnr, &command, &data).await?,
                Some(Frame::Syslog { .. }) => return Err(End::Refused("malformed_frame")),
                None => {}
            }
        }
        self.inlet.buffer.clear();
        self.inlet.hold(self.collect.memory())?;
        self.hand_over().await
    }

    async fn other(&mut self, txnr: u32, command: &str, data: &[u8]) -> Result<(), End> {
        match command {
            "open" if !self.open => {
                let commands =
                    data.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"commands="));
                let has_syslog = |list: &[u8]| list.split(|byte| *byte == b',').any(|name| name == b"syslog");
                if !commands.is_some_and(has_syslog) {
                    self.respond(txnr, "500 the command syslog is needed");
                    self.hand_over().await?;
                    return Err(End::Refused("malformed_frame"));
                }
                self.open = true;
                let version = env!("CARGO_PKG_VERSION");
                let offer =
                    format!("200 OK\nrelp_version=0\nrelp_software=logdrive,{version}\ncommands=syslog");
                self.respond(txnr, &offer);
            }
            "close" => {
                self.respond(txnr, "");
                self.hand_over().await?;
                return Err(End::Finished);
            }
            _ => self.respond(txnr, "500 unknown command"),
        }
        self.n_txnrs += 1;
        Ok(())
    }

    /// Adds a response to those that are sent once what was collected is durable.
    fn respond(&mut self, txnr: u32, text: &str) {
        let space = if text.is_empty() { "" } else { " " };
        writeln!(self.answer, "{txnr} rsp {}{space}{text}", text.len()).expect("a string takes all");
    }

    async fn hand_over(&mut self) -> Result<(), End> {
        self.n_txnrs = 0;
        if self.answer.is_empty() {
            return Ok(());
        }
        let answer = std::mem::take(&mut self.answer).into_bytes();
        Ok(self.deliveries.hand_over(self.collect.take(), answer).await?)
    }
}
