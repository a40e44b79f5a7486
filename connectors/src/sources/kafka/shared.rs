//! Between the thread that speaks with Kafka and the source: chunks that wait, and how far each partition is.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use logdrive_schemas::{Chunk, Partition, Position};
use prometheus::IntGaugeVec;
use rdkafka::Statistics;
use tokio::sync::Notify;

use super::Isolation;
use super::pending::{size, split};
use crate::context::ConnectorContext;
use crate::source::Budget;

/// Bytes of chunks that may wait; then the client library is not asked for more.
const QUEUE_BYTES: usize = 8 << 20;

/// Chunks that wait, and how far each partition is.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Told when there is room, or when the thread is to stop.
    room: Condvar,
    /// Told when there is a chunk, or when there will be none.
    ready: Notify,
    isolation: Isolation,
    source: Arc<str>,
    lag: IntGaugeVec,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    tenures: HashMap<Partition, Tenure>,
    failed: Option<String>,
    /// Nothing more is handed out.
    ended: bool,
    stopped: bool,
}

/// From when a partition is given to us until it is taken away.
struct Tenure {
    topic: String,
    number: i32,
    /// Behind the last message that was handed out.
    handed_out: u64,
    /// Everything before it is delivered. Only grows: what is delivered late, from an earlier tenure, must not take
    /// the group back.
    delivered: u64,
    /// What the group was last asked to note.
    asked: u64,
    /// What the group has noted.
    committed: u64,
    /// Taken away, and held until what was handed out is delivered.
    held: bool,
}

/// A partition and an offset in it, as Kafka names them.
pub(super) type Place = (String, i32, u64);

impl Shared {
    pub(super) fn new(cx: &ConnectorContext, isolation: Isolation) -> Self {
        Self {
            state: Mutex::default(),
            room: Condvar::new(),
            ready: Notify::new(),
            isolation,
            source: Arc::clone(&cx.name),
            lag: cx.metrics.kafka_lag.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next chunk; an error if there will be none. Cancel-safe.
    pub(super) async fn recv(&self, budget: Budget) -> Result<Chunk, String> {
        loop {
            let ready = self.ready.notified();
            if let Some(received) = self.take(budget) {
                return received;
            }
            ready.await;
        }
    }

    fn take(&self, budget: Budget) -> Option<Result<Chunk, String>> {
        let mut state = self.state();
        if let Some(reason) = &state.failed {
            return Some(Err(reason.clone()));
        }
        let mut chunk = state.chunks.pop_front().filter(|_| !state.ended)?;
        state.bytes -= size(&chunk);
        if let Some(rest) = split(&mut chunk, budget) {
            state.bytes += size(&rest);
            state.chunks.push_front(rest);
        }
        if let Some(tenure) = state.tenures.get_mut(&chunk.partition) {
            tenure.handed_out = tenure.handed_out.max(chunk.next_offset);
        }
        self.room.notify_one();
        Some(Ok(chunk))
    }

    /// Lets a chunk wait, unless its partition was taken away.
    pub(super) fn push(&self, chunk: Chunk) {
        let mut state = self.state();
        if state.tenures.get(&chunk.partition).is_some_and(|tenure| !tenure.held) {
            state.bytes += size(&chunk);
            state.chunks.push_back(chunk);
            self.ready.notify_one();
        }
    }

    pub(super) fn has_room(&self) -> bool {
        let state = self.state();
        state.bytes < QUEUE_BYTES && !state.ended
    }

    /// Waits until there is room or the thread is to stop, but not longer than `limit`.
    pub(super) fn wait_for_room(&self, limit: Duration) {
        let state = self.state();
        let full = |state: &mut State| (QUEUE_BYTES <= state.bytes || state.ended) && !state.stopped;
        drop(self.room.wait_timeout_while(state, limit, full));
    }

    /// Nothing more can be received.
    pub(super) fn fail(&self, reason: String) {
        self.state().failed = Some(reason);
        self.ready.notify_one();
    }

    /// Nothing more is handed out; what was, may still be delivered.
    pub(super) fn end(&self) {
        self.state().ended = true;
    }

    /// Asks the thread to stop.
    pub(super) fn stop(&self) {
        self.state().stopped = true;
        self.room.notify_one();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Everything before `upto` is delivered. Ignored for partitions that are not ours any more.
    pub(super) fn delivered(&self, upto: Position) {
        if let Some(tenure) = self.state().tenures.get_mut(&upto.partition) {
            tenure.delivered = tenure.delivered.max(upto.offset);
        }
    }

    /// A partition is ours from `offset` on, which the group has noted.
    pub(super) fn begin(&self, partition: Partition, (topic, number, offset): Place) {
        let tenure = Tenure {
            topic,
            number,
            handed_out: offset,
            delivered: offset,
            asked: offset,
            committed: offset,
            held: false,
        };
        self.state().tenures.insert(partition, tenure);
    }

    /// Partitions are taken away: what waits from them is dropped, what was handed out may still be delivered.
    pub(super) fn hold(&self, partitions: &[Partition]) {
        let mut state = self.state();
        for partition in partitions {
            if let Some(tenure) = state.tenures.get_mut(partition) {
                tenure.held = true;
            }
        }
        state.chunks.retain(|chunk| !partitions.contains(&chunk.partition));
        state.bytes = state.chunks.iter().map(size).sum();
    }

    /// Whether everything is delivered that was handed out from these.
    pub(super) fn is_drained(&self, partitions: &[Partition]) -> bool {
        let state = self.state();
        let mut tenures = partitions.iter().filter_map(|partition| state.tenures.get(partition));
        tenures.all(|tenure| tenure.handed_out <= tenure.delivered)
    }

    /// Partitions are gone.
    pub(super) fn give_up(&self, partitions: &[Partition]) {
        let mut state = self.state();
        for partition in partitions {
            if let Some(tenure) = state.tenures.remove(partition) {
                let labels: [&str; 3] = [&self.source, &tenure.topic, &tenure.number.to_string()];
                // There is none if the partition was given to us so shortly that nothing was known of it.
                self.lag.remove_label_values(&labels).ok();
            }
        }
    }

    /// What the group should note and was not asked to yet.
    pub(super) fn due(&self) -> Vec<Place> {
        self.ask(|_, tenure| tenure.asked < tenure.delivered)
    }

    /// What the group has not noted of these partitions, or of all, whether it was asked to or not.
    pub(super) fn due_at_last(&self, partitions: Option<&[Partition]>) -> Vec<Place> {
        self.ask(|partition, tenure| {
            tenure.committed < tenure.delivered && partitions.is_none_or(|of| of.contains(&partition))
        })
    }

    fn ask(&self, is_due: impl Fn(Partition, &Tenure) -> bool) -> Vec<Place> {
        let mut state = self.state();
        let tenures = state.tenures.iter_mut().filter(|(partition, tenure)| is_due(**partition, tenure));
        let ask = |(_, tenure): (&Partition, &mut Tenure)| {
            tenure.asked = tenure.delivered;
            (tenure.topic.clone(), tenure.number, tenure.delivered)
        };
        tenures.map(ask).collect()
    }

    /// The group has noted an offset, or has not: then it is asked again.
    pub(super) fn answered(&self, partition: Partition, noted: Option<u64>) {
        if let Some(tenure) = self.state().tenures.get_mut(&partition) {
            match noted {
                Some(offset) => tenure.committed = tenure.committed.max(offset),
                None => tenure.asked = tenure.committed,
            }
        }
    }

    /// Shows how far we are behind.
    pub(super) fn show_lag(&self, statistics: &Statistics) {
        for tenure in self.state().tenures.values().filter(|tenure| !tenure.held) {
            let topic = statistics.topics.get(&tenure.topic);
            let Some(partition) = topic.and_then(|topic| topic.partitions.get(&tenure.number)) else {
                continue;
            };
            let end = match self.isolation {
                Isolation::ReadCommitted if partition.ls_offset >= 0 => partition.ls_offset,
                _ => partition.hi_offset,
            };
            // Negative: not known yet.
            if end >= 0 {
                let delivered = i64::try_from(tenure.delivered).unwrap_or(i64::MAX);
                let labels: [&str; 3] = [&self.source, &tenure.topic, &tenure.number.to_string()];
                self.lag.with_label_values(&labels).set((end - delivered).max(0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::super::pending::Pending;
    use super::super::pending::tests::message;
    use super::*;
    use crate::metrics::Metrics;

    const P: Partition = Partition(1);

    fn shared() -> Shared {
        let cx = ConnectorContext {
            name: "in".into(),
            state_dir: "unused".into(),
            metrics: Arc::new(Metrics::new()),
            shutdown: CancellationToken::new(),
        };
        Shared::new(&cx, Isolation::ReadCommitted)
    }

    fn chunk(partition: Partition, offsets: std::ops::Range<u64>) -> Chunk {
        let mut pending = Pending::new(&"in".into(), &"t/0".into(), partition, None);
        offsets.for_each(|offset| pending.push(&message("abc"), offset));
        pending.finish().unwrap()
    }

    fn begin(shared: &Shared, offset: u64) {
        shared.begin(P, ("t".into(), 0, offset));
    }

    fn next(shared: &Shared) -> Option<u64> {
        shared.take(Budget::default()).map(|chunk| chunk.unwrap().next_offset)
    }

    fn delivered(shared: &Shared, offset: u64) {
        shared.delivered(Position { partition: P, offset });
    }

    #[test]
    fn a_partition_is_held_until_what_was_handed_out_is_delivered_and_the_rest_is_dropped() {
        let shared = shared();
        begin(&shared, 5);
        shared.push(chunk(P, 5..8));
        shared.push(chunk(P, 8..9));
        assert_eq!(next(&shared), Some(8));
        shared.hold(&[P]);
        shared.push(chunk(P, 9..10));
        assert_eq!(next(&shared), None, "what waited is dropped, what comes is not taken");
        delivered(&shared, 7);
        assert!(!shared.is_drained(&[P]));
        delivered(&shared, 8);
        assert!(shared.is_drained(&[P]));
        assert_eq!(shared.due_at_last(Some(&[P])), [("t".into(), 0, 8)]);
        shared.give_up(&[P]);
        delivered(&shared, 9);
        assert!(shared.due().is_empty(), "it is not ours any more");
    }

    #[test]
    fn a_partition_that_comes_back_does_not_take_the_group_back() {
        let shared = shared();
        begin(&shared, 0);
        shared.push(chunk(P, 0..10));
        assert_eq!(next(&shared), Some(10));
        shared.give_up(&[P]);
        // Another member delivered up to 7, and crashed. What we had in flight arrives now.
        begin(&shared, 7);
        delivered(&shared, 4);
        assert!(shared.due().is_empty(), "the group is further");
        shared.push(chunk(P, 7..9));
        assert_eq!(next(&shared), Some(9));
        delivered(&shared, 10);
        delivered(&shared, 9);
        assert_eq!(shared.due(), [("t".into(), 0, 10)]);
        shared.hold(&[P]);
        assert!(shared.is_drained(&[P]));
    }

    #[test]
    fn a_commit_that_failed_is_asked_for_again() {
        let shared = shared();
        begin(&shared, 3);
        delivered(&shared, 4);
        assert_eq!(shared.due(), [("t".into(), 0, 4)]);
        assert!(shared.due().is_empty());
        assert_eq!(shared.due_at_last(None), [("t".into(), 0, 4)], "no answer yet");
        shared.answered(P, None);
        assert_eq!(shared.due(), [("t".into(), 0, 4)]);
        shared.answered(P, Some(4));
        shared.answered(P, None);
        assert!(shared.due().is_empty());
    }
}
