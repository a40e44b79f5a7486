//! The task that writes a disk buffer: takes whatever waits in the intake, appends it with one write, syncs once, then
//! answers all senders and makes the messages available. The next group gathers while the sync runs, so the more
//! arrives, the more one sync covers.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until};
use tracing::error;

use super::Released;
use super::blocks::Frames;
use super::disk::Sizes;
use super::record::Record;
use super::state::{Outcome, Shared};
use super::store::Store;
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::source::{Ack, NotDurable, Received};

/// Less than this waits for more, in bytes, until [`SYNC_INTERVAL`] has passed since the last sync.
const SYNC_BYTES_MIN: usize = 256 << 10;
/// How long that is at most.
const SYNC_INTERVAL: Duration = Duration::from_millis(5);

/// What is written with one sync.
pub(super) struct Group {
    store: Store,
    cx: ConnectorContext,
    received: Vec<Received>,
    frames: Frames,
}

impl Group {
    /// A writer at the end of `store`.
    pub(super) fn new(store: Store, cx: &ConnectorContext) -> Self {
        Self { store, cx: cx.clone(), received: Vec::new(), frames: Frames::default() }
    }

    /// Appends, syncs, and answers if that failed. The senders of what is returned wait for their answer.
    fn commit(&mut self) -> Result<(Vec<Record>, Vec<Ack>), ConnectorError> {
        let group = self.store.next();
        let key = self.store.identity().key;
        let now = now_micros();
        let (mut next, mut records, mut acks) = (group, Vec::new(), Vec::new());
        let size = |r: &Received| r.bytes() + r.messages.len() * 10 + (1 << 10);
        self.frames.begin(self.received.iter().map(size).sum());
        for mut received in self.received.drain(..) {
            let ack = received.ack.take();
            if received.messages.is_empty() {
                acks.extend(ack);
                continue;
            }
            let record = Record::new(&received, next, now);
            let written = record.and_then(|r| r.write(key, group, self.frames.buffer()).map(|()| r));
            match written {
                Ok(record) => {
                    next = record.end();
                    records.push(record);
                    acks.extend(ack);
                }
                Err(reason) => {
                    error!(source = %self.cx.name, reason, "A listener handed over messages that cannot be.");
                    answer(ack, Err(NotDurable(reason.into())));
                }
            }
        }
        let result = if records.is_empty() {
            Ok(())
        } else {
            self.store.append_group(&mut self.frames, next).and_then(|()| self.store.sync())
        };
        if let Err(error) = result {
            for ack in acks {
                answer(Some(ack), Err(NotDurable(error.to_string())));
            }
            return Err(error);
        }
        self.cx.metrics.buffer_commits.with_label_values(&[&self.cx.name]).inc();
        Ok((records, acks))
    }
}

/// Writes until the listener has ended, the source is dropped or the disk fails.
pub(super) async fn write_groups(
    shared: Arc<Shared>,
    mut messages: mpsc::Receiver<Received>,
    released: Released,
    mut group: Group,
    sizes: Sizes,
    listening: JoinHandle<Result<(), ConnectorError>>,
) {
    let mut synced_at = Instant::now();
    while shared.wait_for_room().await {
        let first = tokio::select! {
            first = messages.recv() => first,
            () = shared.closed.cancelled() => return,
        };
        let Some(first) = first else {
            shared.finish(Outcome::Ended(listener_error(listening).await));
            return;
        };
        let weight = gather(&shared, &mut messages, &released, &mut group, sizes, first, synced_at).await;
        let committed = spawn_blocking(move || {
            let result = group.commit();
            (group, result)
        });
        match committed.await {
            Ok((returned, Ok((records, acks)))) => {
                group = returned;
                for ack in acks {
                    answer(Some(ack), Ok(()));
                }
                shared.wait_for_reader(&records, sizes.memory).await;
                shared.publish(records, sizes.memory);
                released.release(weight);
                synced_at = Instant::now();
            }
            Ok((_, Err(error))) => return shared.finish(Outcome::Failed(error)),
            Err(error) => {
                let error = ConnectorError::storage("buffer", std::io::Error::other(error));
                return shared.finish(Outcome::Failed(error));
            }
        }
    }
}

/// Puts `first` and what waits behind it into the group; returns what they count for in the intake.
async fn gather(
    shared: &Shared,
    messages: &mut mpsc::Receiver<Received>,
    released: &Released,
    group: &mut Group,
    sizes: Sizes,
    first: Received,
    synced_at: Instant,
) -> u32 {
    let (mut bytes, mut weight) = (0, 0);
    let mut next = Some(first);
    while let Some(received) = next.take() {
        let n_bytes = received.bytes();
        bytes += n_bytes;
        weight += released.weight(n_bytes);
        let awaited = received.ack.is_some();
        group.received.push(received);
        if sizes.group <= bytes {
            break;
        }
        next = messages.try_recv().ok();
        if next.is_none() && !awaited && bytes < SYNC_BYTES_MIN {
            // A trickle that nobody waits for an answer to shares its syncs.
            next = tokio::select! {
                received = messages.recv() => received,
                () = sleep_until(synced_at + SYNC_INTERVAL) => None,
                () = shared.closed.cancelled() => None,
            };
        }
    }
    weight
}

/// What the listener returned.
pub(super) async fn listener_error(
    listening: JoinHandle<Result<(), ConnectorError>>,
) -> Option<ConnectorError> {
    match listening.await {
        Ok(result) => result.err(),
        Err(error) => Some(ConnectorError::refused("listener", error.to_string())),
    }
}

/// Answers a sender that may be gone.
pub(super) fn answer(ack: Option<Ack>, result: Result<(), NotDurable>) {
    if let Some(ack) = ack {
        // A sender that no longer waits is no error.
        drop(ack.send(result));
    }
}

/// Now, in microseconds since the Unix epoch.
pub(super) fn now_micros() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX)
}
