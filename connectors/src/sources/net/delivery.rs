//! Handing over what one request brought, in groups, and waiting until all of it is durable.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use logdrive_schemas::MessageRange;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::counts::Counts;
use crate::source::{Intake, NotDurable, Received};

/// How long a request waits, and for what.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) intake: Intake,
    pub(crate) counts: Arc<Counts>,
    /// For a place in the buffer.
    pub(crate) full_timeout: Duration,
    /// Until its data is durable.
    pub(crate) ack_timeout: Duration,
}

/// Why it is not, or may not be, durable. It may be sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Undelivered {
    /// The buffer is full.
    Full,
    NotDurable(String),
}

/// What one request has handed over.
pub(crate) struct Delivery<'a> {
    way: &'a Way,
    peer: &'a Arc<str>,
    acks: Vec<oneshot::Receiver<Result<(), NotDurable>>>,
}

impl<'a> Delivery<'a> {
    pub(crate) fn new(way: &'a Way, peer: &'a Arc<str>) -> Self {
        Self { way, peer, acks: Vec::new() }
    }

    /// Hands a group over.
    pub(crate) async fn send(
        &mut self,
        data: impl Into<Bytes>,
        messages: Vec<MessageRange>,
    ) -> Result<(), Undelivered> {
        if messages.is_empty() {
            return Ok(());
        }
        let counted = messages.clone();
        let (ack, acked) = oneshot::channel();
        let peer = Some(Arc::clone(self.peer));
        let received = Received { data: data.into(), messages, peer, attributes: None, ack: Some(ack) };
        match timeout(self.way.full_timeout, self.way.intake.send(received)).await {
            Ok(Ok(())) => self.way.counts.received(&counted),
            Ok(Err(error)) => return Err(Undelivered::NotDurable(error.to_string())),
            Err(_) => {
                self.way.counts.refused("buffer_full", self.peer);
                return Err(Undelivered::Full);
            }
        }
        self.acks.push(acked);
        Ok(())
    }

    /// Returns once everything is durable.
    pub(crate) async fn durable(self) -> Result<(), Undelivered> {
        let deadline = Instant::now() + self.way.ack_timeout;
        for acked in self.acks {
            match timeout_at(deadline, acked).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => return Err(Undelivered::NotDurable(error.to_string())),
                Ok(Err(_)) => return Err(Undelivered::NotDurable("the buffer gave no answer".into())),
                Err(_) => return Err(Undelivered::NotDurable("the buffer takes too long".into())),
            }
        }
        Ok(())
    }
}
