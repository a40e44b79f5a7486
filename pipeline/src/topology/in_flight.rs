//! What one source has given and what has not arrived yet: how much memory that takes, and what may be committed.
//!
//! Two limits. What waits for the sinks (the backlog) is kept small: memory that is used again and again stays in the
//! caches, and more of it makes nothing faster. What the sinks have taken and not made durable yet may be much more:
//! they gather rows for a file or a request.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use logdrive_schemas::{Partition, Position};
use tokio::sync::watch;

/// Messages on their way, oldest first.
#[derive(Debug)]
pub(super) struct InFlight {
    messages: VecDeque<Chunk>,
    /// How many of them, from the oldest, wait for no sink any more.
    n_taken: usize,
    /// How many of them have left the sinks' memory.
    n_sunk: usize,
    backlog: u64,
    bytes: u64,
    limits: Limits,
}

/// A chunk on its way.
#[derive(Debug)]
struct Chunk {
    epoch: u64,
    end: Position,
    bytes: u64,
}

/// How much of one source may be on its way, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Received, and not taken by every sink.
    pub(super) backlog: u64,
    /// Received, and not out of memory.
    pub(super) bytes: u64,
}

impl InFlight {
    pub(super) fn new(limits: Limits) -> Self {
        Self { messages: VecDeque::new(), n_taken: 0, n_sunk: 0, backlog: 0, bytes: 0, limits }
    }

    /// Whether `bytes` more may enter. What is larger than a limit may enter alone.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let fits = |used: u64, limit: u64| used == 0 || used + bytes <= limit;
        fits(self.backlog, self.limits.backlog) && fits(self.bytes, self.limits.bytes)
    }

    /// Messages up to `end` enter at `epoch`.
    pub(super) fn push(&mut self, epoch: u64, end: Position, bytes: u64) {
        self.messages.push_back(Chunk { epoch, end, bytes });
        self.backlog += bytes;
        self.bytes += bytes;
    }

    /// What is in memory, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The epoch of the oldest messages.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.messages.front().map(|chunk| chunk.epoch)
    }

    /// Everything has come as far as `reached` says. Returns where each partition may be committed, if that changed.
    pub(super) fn progress(&mut self, reached: Reached) -> HashMap<Partition, u64> {
        let before = |n: usize, epoch: u64| {
            let more = self.messages.range(n..).take_while(|chunk| chunk.epoch < epoch);
            more.fold((n, 0), |(n, bytes), chunk| (n + 1, bytes + chunk.bytes))
        };
        let (n_taken, taken) = before(self.n_taken, reached.taken);
        let (n_sunk, sunk) = before(self.n_sunk, reached.sunk);
        (self.n_taken, self.n_sunk) = (n_taken, n_sunk);
        self.backlog -= taken;
        self.bytes -= sunk;
        let n_delivered = self.messages.partition_point(|chunk| chunk.epoch < reached.delivered);
        self.n_taken -= n_delivered;
        self.n_sunk -= n_delivered;
        self.messages.drain(..n_delivered).map(|chunk| (chunk.end.partition, chunk.end.offset)).collect()
    }
}

/// How far everything is: epochs before which …
#[derive(Clone, Copy, Debug)]
pub(super) struct Reached {
    /// … nothing waits for a sink.
    pub(super) taken: u64,
    /// … nothing is in a sink's memory.
    pub(super) sunk: u64,
    /// … everything is delivered and in a checkpoint.
    pub(super) delivered: u64,
}

/// Told how far everything is.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    pub(super) taken: watch::Receiver<u64>,
    pub(super) sunk: watch::Receiver<u64>,
    pub(super) delivered: watch::Receiver<u64>,
}

impl Progress {
    /// Waits until something is further than when it was last looked at. False if nobody tells any more. Cancel-safe.
    pub(super) async fn changed(&mut self) -> bool {
        let changed = tokio::select! {
            changed = self.delivered.changed() => changed,
            changed = self.sunk.changed() => changed,
            changed = self.taken.changed() => changed,
        };
        changed.is_ok()
    }

    /// How far everything is now. What is delivered is sunk, and what is sunk is taken, whoever is told first.
    pub(super) fn reached(&mut self) -> Reached {
        let delivered = *self.delivered.borrow_and_update();
        let sunk = delivered.max(*self.sunk.borrow_and_update());
        Reached { taken: sunk.max(*self.taken.borrow_and_update()), sunk, delivered }
    }
}

/// How far the sinks have taken what came to them.
#[derive(Debug)]
pub(super) struct Taken {
    sinks: Vec<AtomicU64>,
    all: watch::Sender<u64>,
}

impl Taken {
    pub(super) fn new(n_sinks: usize) -> Arc<Self> {
        let sinks = (0..n_sinks).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { sinks, all: watch::Sender::new(0) })
    }

    /// Told how far the slowest sink is.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.all.subscribe()
    }

    /// Nothing of an epoch before `epoch` waits for this sink. If something waits again, what comes later is not taken
    /// before it is.
    pub(super) fn tell(&self, sink: usize, epoch: u64) {
        self.sinks[sink].store(epoch, Ordering::Release);
        let all = self.sinks.iter().map(|sink| sink.load(Ordering::Acquire)).min().unwrap_or(u64::MAX);
        self.all.send_if_modified(|old| std::mem::replace(old, all.max(*old)) < all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(partition: u64, offset: u64) -> Position {
        Position { partition: Partition(partition), offset }
    }

    #[test]
    fn room_comes_back_step_by_step() {
        let mut messages = InFlight::new(Limits { backlog: 10, bytes: 20 });
        assert!(messages.has_room(1_000));
        messages.push(1, at(0, 5), 6);
        messages.push(1, at(1, 7), 4);
        assert!(!messages.has_room(1));
        let nothing = messages.progress(Reached { taken: 1, sunk: 1, delivered: 1 });
        assert!(nothing.is_empty() && !messages.has_room(1));

        // Taken: the backlog is free again, the memory is not.
        messages.progress(Reached { taken: 2, sunk: 0, delivered: 0 });
        assert!(messages.has_room(10) && !messages.has_room(11));
        messages.push(2, at(0, 9), 10);
        messages.progress(Reached { taken: 3, sunk: 0, delivered: 0 });
        assert!(!messages.has_room(1));
        messages.progress(Reached { taken: 3, sunk: 2, delivered: 0 });
        assert_eq!((messages.bytes(), messages.has_room(10)), (10, true));

        // Positions come once, each partition's last.
        let ends = messages.progress(Reached { taken: 3, sunk: 2, delivered: 2 });
        assert_eq!(ends, HashMap::from([(Partition(0), 5), (Partition(1), 7)]));
        assert_eq!(messages.oldest(), Some(2));
        let ends = messages.progress(Reached { taken: 3, sunk: 3, delivered: 3 });
        assert_eq!(ends, HashMap::from([(Partition(0), 9)]));
        assert!(messages.is_empty() && messages.bytes() == 0 && messages.has_room(1));
    }

    #[test]
    fn the_slowest_sink_counts() {
        let taken = Taken::new(2);
        let told = taken.subscribe();
        taken.tell(0, 7);
        assert_eq!(*told.borrow(), 0);
        taken.tell(1, 5);
        taken.tell(1, 4);
        assert_eq!(*told.borrow(), 5);
        taken.tell(0, u64::MAX);
        assert_eq!(*told.borrow(), 5);
        taken.tell(1, 9);
        assert_eq!(*told.borrow(), 9);
        taken.tell(0, 9);
        taken.tell(1, 11);
        assert_eq!(*told.borrow(), 9);
    }
}
