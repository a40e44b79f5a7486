//! From tokio into the dataflow: one queue per source and worker.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use logdrive_schemas::Chunk;
use timely::scheduling::SyncActivator;

/// What a source tells a worker.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a tick is as rare as a chunk, and neither is often moved")]
pub(super) enum Ingest {
    /// Messages of this epoch.
    Chunk(u64, Chunk),
    /// There will be no more.
    End,
    /// There will be no more before this epoch.
    Tick(u64),
}

/// Wakes an operator from another thread, once the operator exists.
#[derive(Clone, Debug, Default)]
pub(super) struct Waker(Arc<Mutex<Option<SyncActivator>>>);

impl Waker {
    pub(super) fn set(&self, activator: SyncActivator) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(activator);
    }

    /// Wakes the operator; does nothing before it exists and after its worker has ended.
    pub(super) fn wake(&self) {
        if let Some(activator) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            activator.activate().ok();
        }
    }
}

/// The sending end. What waits here is bounded by the source's credits.
#[derive(Clone, Debug)]
pub(super) struct QueueSender {
    sender: Sender<Ingest>,
    waker: Waker,
}

impl QueueSender {
    /// False if the worker is gone.
    pub(super) fn send(&self, ingest: Ingest) -> bool {
        let sent = self.sender.send(ingest).is_ok();
        self.waker.wake();
        sent
    }
}

/// The receiving end, taken by the worker when it builds its dataflow.
#[derive(Debug)]
pub(super) struct QueueReceiver {
    pub(super) receiver: Receiver<Ingest>,
    pub(super) waker: Waker,
}

pub(super) fn queue() -> (QueueSender, QueueReceiver) {
    let (sender, receiver) = channel();
    let waker = Waker::default();
    (QueueSender { sender, waker: waker.clone() }, QueueReceiver { receiver, waker })
}
