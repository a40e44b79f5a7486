//! The thread of a group member: polls the client library, carries out rebalances, commits.
//!
//! It polls always, also while nobody takes what was received: a member that does not poll is thrown out of its
//! group. While there is no room for long, the partitions are paused instead.

use std::sync::Arc;
use std::time::{Duration, Instant};

use logdrive_schemas::Partition;
use prometheus::IntCounter;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset, TopicPartitionList};

use super::Kafka;
use super::attributes::Columns;
use super::context::{GroupContext, Rebalance, assign, unassign};
use super::pending::Pending;
use super::shared::{Place, Shared};
use super::start::Start;
use crate::context::ConnectorContext;
use crate::source::{Budget, partition_of};

/// How long one poll waits for a message.
const POLL: Duration = Duration::from_millis(100);
/// How often the group is asked to note what is delivered.
const COMMIT_EVERY: Duration = Duration::from_millis(200);
/// How long there may be no room before partitions are paused. What they have prefetched is then fetched again.
const PAUSE_AFTER: Duration = Duration::from_secs(2);
/// How long after a broker's failure it is asked again where to begin.
const RETRY: Duration = Duration::from_secs(1);

/// A member of a consumer group.
pub(super) struct Member {
    consumer: BaseConsumer<GroupContext>,
    shared: Arc<Shared>,
    name: Arc<str>,
    start: Start,
    drain_timeout: Duration,
    messages: IntCounter,
    bytes: IntCounter,
    /// Chunks that are being filled.
    open: Opens,
    assigning: Option<Assigning>,
    held: Vec<Held>,
    committed: Instant,
    full_since: Option<Instant>,
    is_paused: bool,
}

/// Chunks that are being filled, at most one for a partition.
struct Opens {
    open: Vec<Open>,
    source: Arc<str>,
    columns: Option<Arc<Columns>>,
}

struct Open {
    topic: String,
    number: i32,
    partition: Partition,
    peer: Arc<str>,
    pending: Pending,
}

/// Partitions that are given to us, and not taken yet: it is not known where to begin.
struct Assigning {
    partitions: Vec<(String, i32)>,
    not_before: Instant,
}

/// Partitions that are taken away, and not given up yet.
struct Held {
    list: TopicPartitionList,
    partitions: Vec<Partition>,
    until: Instant,
}

impl Member {
    pub(super) fn new(
        consumer: BaseConsumer<GroupContext>,
        shared: Arc<Shared>,
        config: &Kafka,
        cx: &ConnectorContext,
    ) -> Self {
        let labels = &[&*cx.name];
        Self {
            consumer,
            shared,
            name: Arc::clone(&cx.name),
            start: config.start,
            drain_timeout: config.drain_timeout,
            messages: cx.metrics.source_messages.with_label_values(labels),
            bytes: cx.metrics.source_bytes.with_label_values(labels),
            open: Opens { open: Vec::new(), source: Arc::clone(&cx.name), columns: config.columns() },
            assigning: None,
            held: Vec::new(),
            committed: Instant::now(),
            full_since: None,
            is_paused: false,
        }
    }

    /// Runs until it is told to stop, or cannot go on; then leaves the group.
    pub(super) fn run(mut self) {
        while !self.shared.is_stopped() {
            let result = self.step();
            self.close_open();
            if let Err(error) = result {
                self.shared.fail(error.to_string());
                break;
            }
        }
        self.leave();
    }

    fn step(&mut self) -> KafkaResult<()> {
        self.carry_out_rebalances()?;
        if COMMIT_EVERY <= self.committed.elapsed() {
            self.committed = Instant::now();
            let due = self.shared.due();
            self.commit(&due, CommitMode::Async);
        }
        if self.shared.has_room() {
            self.full_since = None;
            self.pause(false)?;
            return self.gather();
        }
        let full_since = *self.full_since.get_or_insert_with(Instant::now);
        if full_since.elapsed() < PAUSE_AFTER {
            self.shared.wait_for_room(POLL / 2);
            return Ok(());
        }
        self.pause(true)?;
        // Events only; a message that was on its way is not lost.
        if let Some(message) = self.consumer.poll(POLL / 2).transpose()? {
            self.open.take(&message, &self.shared);
        }
        Ok(())
    }

    fn pause(&mut self, pause: bool) -> KafkaResult<()> {
        if self.is_paused != pause {
            let assignment = self.consumer.assignment()?;
            if pause {
                self.consumer.pause(&assignment)?
            } else {
                self.consumer.resume(&assignment)?
            }
            self.is_paused = pause;
            // What was just taken away must not start again.
            for held in self.held.iter().filter(|_| !pause) {
                self.consumer.pause(&held.list)?;
            }
        }
        Ok(())
    }

    /// Takes what the library has, up to one chunk's worth.
    fn gather(&mut self) -> KafkaResult<()> {
        let Budget { messages, bytes } = Budget::default();
        let (mut n_messages, mut n_bytes) = (0, 0);
        let mut wait = POLL;
        while n_messages < messages && n_bytes < bytes {
            match self.consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => {
                    n_messages += 1;
                    n_bytes += self.open.take(&message, &self.shared);
                }
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => return Err(error),
                // Told by the context; the library goes on by itself.
                Some(Err(_)) => {}
            }
            wait = Duration::ZERO;
        }
        self.messages.inc_by(n_messages as u64);
        self.bytes.inc_by(n_bytes as u64);
        Ok(())
    }

    fn close_open(&mut self) {
        for open in self.open.open.drain(..) {
            if let Some(chunk) = open.pending.finish() {
                self.shared.push(chunk);
            }
        }
    }

    fn carry_out_rebalances(&mut self) -> KafkaResult<()> {
        while let Some(rebalance) = self.consumer.context().next_rebalance() {
            match rebalance {
                Rebalance::Assign(partitions) => {
                    self.assigning = Some(Assigning { partitions, not_before: Instant::now() });
                }
                Rebalance::Revoke { partitions, lost } => self.revoke(&partitions, lost)?,
            }
        }
        if let Some(assigning) = self.assigning.take_if(|assigning| assigning.not_before <= Instant::now()) {
            self.assign(assigning)?;
        }
        let is_lost = self.consumer.assignment_lost();
        let is_over = |held: &mut Held| {
            is_lost || held.until <= Instant::now() || self.shared.is_drained(&held.partitions)
        };
        let given_up: Vec<Held> = self.held.extract_if(.., is_over).collect();
        given_up.into_iter().try_for_each(|held| self.give_up(held, is_lost))
    }

    fn assign(&mut self, assigning: Assigning) -> KafkaResult<()> {
        let list = match self.start.resolve(&self.consumer, &assigning.partitions) {
            Ok(list) => list,
            Err(error) => {
                tracing::warn!(source = %self.name, %error, "Cannot learn where to begin; asking again.");
                self.assigning = Some(Assigning { not_before: Instant::now() + RETRY, ..assigning });
                return Ok(());
            }
        };
        for elem in list.elements() {
            if let Offset::Offset(offset) = elem.offset() {
                let name = format!("{}/{}", elem.topic(), elem.partition());
                tracing::info!(source = %self.name, partition = %name, offset, "Kafka partition is ours.");
                let offset = u64::try_from(offset).unwrap_or(0);
                self.shared.begin(partition_of(&name), (elem.topic().to_owned(), elem.partition(), offset));
            }
        }
        // New partitions are not paused.
        self.pause(false)?;
        assign(&self.consumer, &list)
    }

    fn revoke(&mut self, partitions: &[(String, i32)], lost: bool) -> KafkaResult<()> {
        // What is taken away again before it was known where to begin is not begun.
        if let Some(assigning) = &mut self.assigning {
            assigning.partitions.retain(|partition| !partitions.contains(partition));
        }
        let mut list = TopicPartitionList::new();
        let mut ids = Vec::with_capacity(partitions.len());
        for (topic, number) in partitions {
            list.add_partition(topic, *number);
            ids.push(partition_of(&format!("{topic}/{number}")));
        }
        self.shared.hold(&ids);
        let held = Held { list, partitions: ids, until: Instant::now() + self.drain_timeout };
        if lost {
            return self.give_up(held, true);
        }
        // They may be gone already; then there is nothing to pause.
        self.consumer.pause(&held.list).ok();
        self.held.push(held);
        Ok(())
    }

    fn give_up(&mut self, held: Held, lost: bool) -> KafkaResult<()> {
        let n_partitions = held.partitions.len();
        if lost {
            tracing::warn!(source = %self.name, n_partitions, "Kafka partitions are lost.");
        } else {
            if !self.shared.is_drained(&held.partitions) {
                let waited = self.drain_timeout;
                tracing::warn!(source = %self.name, n_partitions, ?waited,
                    "Kafka partitions are given up before all is delivered; the next member repeats it.");
            }
            let due = self.shared.due_at_last(Some(&held.partitions));
            self.commit(&due, CommitMode::Sync);
            tracing::info!(source = %self.name, n_partitions, "Kafka partitions are given up.");
        }
        self.shared.give_up(&held.partitions);
        unassign(&self.consumer, &held.list)
    }

    fn commit(&self, due: &[Place], mode: CommitMode) {
        if due.is_empty() {
            return;
        }
        let mut list = TopicPartitionList::with_capacity(due.len());
        let result = due
            .iter()
            .try_for_each(|(topic, number, offset)| {
                let offset = Offset::Offset(i64::try_from(*offset).unwrap_or(i64::MAX));
                list.add_partition_offset(topic, *number, offset)
            })
            .and_then(|()| self.consumer.commit(&list, mode));
        if let Err(error) = result {
            tracing::warn!(source = %self.name, %error, "Kafka group has not noted what is delivered; asking again.");
            for (topic, number, _) in due {
                self.shared.answered(partition_of(&format!("{topic}/{number}")), None);
            }
        }
    }

    /// Commits what is delivered, and leaves the group so that it need not wait for us.
    fn leave(mut self) {
        for held in std::mem::take(&mut self.held) {
            if let Err(error) = self.give_up(held, self.consumer.assignment_lost()) {
                tracing::warn!(source = %self.name, %error, "Cannot give up Kafka partitions.");
            }
        }
        if self.assigning.is_some() {
            // Nothing of it is wanted, but librdkafka waits for an answer.
            assign(&self.consumer, &TopicPartitionList::new()).ok();
        }
        if !self.consumer.assignment_lost() {
            let due = self.shared.due_at_last(None);
            self.commit(&due, CommitMode::Sync);
        }
        self.consumer.context().close();
        // Dropping it says goodbye.
        drop(self.consumer);
    }
}

impl Opens {
    /// Puts a message into its chunk; returns its length in bytes.
    fn take(&mut self, message: &BorrowedMessage<'_>, shared: &Shared) -> usize {
        let (topic, number) = (message.topic(), message.partition());
        let is_its = |open: &Open| open.number == number && open.topic == topic;
        // Messages come in runs, so the last one is nearly always right.
        let idx = match self.open.last() {
            Some(last) if is_its(last) => self.open.len() - 1,
            _ => self.open.iter().position(is_its).unwrap_or_else(|| {
                let peer: Arc<str> = format!("{topic}/{number}").into();
                let partition = partition_of(&peer);
                let pending = Pending::new(&self.source, &peer, partition, self.columns.as_ref());
                self.open.push(Open { topic: topic.to_owned(), number, partition, peer, pending });
                self.open.len() - 1
            }),
        };
        let its = &mut self.open[idx];
        let Ok(offset) = u64::try_from(message.offset()) else { return 0 };
        let n_bytes = message.payload_len();
        if its.pending.is_full(n_bytes, Budget::default()) {
            let next = Pending::new(&self.source, &its.peer, its.partition, self.columns.as_ref());
            if let Some(chunk) = std::mem::replace(&mut its.pending, next).finish() {
                shared.push(chunk);
            }
        }
        its.pending.push(message, offset);
        n_bytes
    }
}
