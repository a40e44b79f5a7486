//! `mode: memory`: senders are answered when their messages are delivered.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use logdrive_schemas::{Chunk, Partition, Position};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};
use tracing::error;

use super::record::Record;
use super::state::{Next, Outcome, Shared};
use super::writer::{answer, listener_error, now_micros};
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::source::{Ack, Budget, Intake, Listener, NotDurable, Received, Source};

/// Senders that wait, with the number after their last message.
type Waiting = Arc<Mutex<VecDeque<(u64, Ack)>>>;

/// A listener with a queue behind it.
pub(super) struct MemoryBuffer {
    cx: ConnectorContext,
    bytes_max: u64,
    partition: Partition,
    listener: Option<Box<dyn Listener>>,
    listening: Option<AbortHandle>,
    shared: Arc<Shared>,
    waiting: Waiting,
}

impl MemoryBuffer {
    pub(super) fn new(listener: Box<dyn Listener>, bytes_max: u64, cx: &ConnectorContext) -> Self {
        Self {
            cx: cx.clone(),
            bytes_max,
            partition: Partition(rand::random()),
            listener: Some(listener),
            listening: None,
            shared: Arc::new(Shared::new(cx, bytes_max, 0, 0)),
            waiting: Waiting::default(),
        }
    }
}

#[async_trait]
impl Source for MemoryBuffer {
    async fn connect(&mut self, _delivered: &[Position]) -> Result<(), ConnectorError> {
        let Some(mut listener) = self.listener.take() else {
            return Err(ConnectorError::refused(&*self.cx.name, "its listener has ended"));
        };
        if let Err(error) = listener.bind().await {
            self.listener = Some(listener);
            return Err(error);
        }
        let (intake, messages, released) = Intake::bounded(&self.cx, self.bytes_max);
        let listening = tokio::spawn(listener.run(intake));
        self.listening = Some(listening.abort_handle());
        let (shared, waiting) = (Arc::clone(&self.shared), Arc::clone(&self.waiting));
        let name = Arc::clone(&self.cx.name);
        tokio::spawn(keep(shared, messages, released, waiting, listening, name));
        Ok(())
    }

    async fn recv(&mut self, budget: Budget) -> Result<Chunk, ConnectorError> {
        loop {
            if let Some(chunk) = self.shared.take(self.partition, budget) {
                return Ok(chunk);
            }
            let next = self.shared.lock().next();
            match next {
                Next::Stop(error) => return Err(error),
                Next::Disk(..) | Next::Wait => self.shared.data.notified().await,
            }
        }
    }

    async fn commit(&mut self, upto: Position) -> Result<(), ConnectorError> {
        self.shared.delivered(upto.offset);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((_, ack)) = waiting.pop_front_if(|(end, _)| *end <= upto.offset) {
            answer(Some(ack), Ok(()));
        }
        Ok(())
    }

    fn wants_positions_kept(&self) -> bool {
        false
    }
}

impl Drop for MemoryBuffer {
    fn drop(&mut self) {
        self.shared.closed.cancel();
        if let Some(listening) = &self.listening {
            listening.abort();
        }
    }
}

/// Numbers what is received.
async fn keep(
    shared: Arc<Shared>,
    mut messages: mpsc::Receiver<Received>,
    released: super::Released,
    waiting: Waiting,
    listening: JoinHandle<Result<(), ConnectorError>>,
    source: Arc<str>,
) {
    let mut next = 0;
    while shared.wait_for_room().await {
        let received = tokio::select! {
            received = messages.recv() => received,
            () = shared.closed.cancelled() => return,
        };
        let Some(mut received) = received else {
            shared.finish(Outcome::Ended(listener_error(listening).await));
            return;
        };
        released.release(released.weight(received.bytes()));
        let ack = received.ack.take();
        if received.messages.is_empty() {
            answer(ack, Ok(()));
            continue;
        }
        match Record::new(&received, next, now_micros()) {
            Ok(record) => {
                next = record.end();
                if let Some(ack) = ack {
                    waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back((next, ack));
                }
                shared.publish(vec![record], usize::MAX);
            }
            Err(reason) => {
                error!(%source, reason, "A listener handed over messages that cannot be.");
                answer(ack, Err(NotDurable(reason.into())));
            }
        }
    }
}
