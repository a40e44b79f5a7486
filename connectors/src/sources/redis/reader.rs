//! Reading streams, in a task of its own: a read that was given up would leave entries pending that nobody has seen.
//!
//! First what the consumer has pending from before, then what is new, and from time to time what is pending with
//! consumers that are gone. What is taken over is pending under a name that is used once: so what is pending under a
//! consumer's own name always ascends, and an offset below another means that it was delivered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use logdrive_schemas::Partition;
use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Value, cmd};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::entries::{Entry, EntryId, Found, Lot, items, streams, text};
use crate::source::partition_of;

/// Entries that are asked for at once.
const COUNT: usize = 1000;
/// How long a read waits for new entries.
const BLOCK: Duration = Duration::from_secs(1);
/// What the names of consumers that take over begin with, behind the source's own.
const CLAIM: &str = "~claim-";

/// No entry comes behind it.
const NOWHERE: &str = "18446744073709551615-18446744073709551614";

/// The consumers that this process has entries under.
pub(super) type Live = Arc<Mutex<BTreeSet<Arc<str>>>>;

/// Whoever reads.
pub(super) struct Reader {
    pub(super) streams: Arc<[String]>,
    pub(super) group: String,
    pub(super) consumer: Arc<str>,
    pub(super) field: Option<String>,
    pub(super) claim_idle: Duration,
    /// Waits for entries.
    pub(super) reading: MultiplexedConnection,
    /// Asks for everything else.
    pub(super) asking: MultiplexedConnection,
    /// For each stream, the last entry that was handed out before the connection was lost.
    pub(super) handed_out: BTreeMap<usize, EntryId>,
    pub(super) live: Live,
    pub(super) lots: mpsc::Sender<RedisResult<Lot>>,
}

/// Why reading ends: nobody takes anything any more, or an error.
enum End {
    Unwanted,
    Failed(redis::RedisError),
}

impl From<redis::RedisError> for End {
    fn from(error: redis::RedisError) -> Self {
        Self::Failed(error)
    }
}

impl Reader {
    pub(super) async fn run(mut self) {
        if let Err(End::Failed(error)) = self.read().await {
            // Nobody may be left to hear it.
            self.lots.send(Err(error)).await.ok();
        }
    }

    async fn read(&mut self) -> Result<(), End> {
        for stream in 0..self.streams.len() {
            self.read_pending(stream).await?;
        }
        let mut looked = Instant::now();
        loop {
            let mut command = self.command(COUNT);
            command.arg("BLOCK").arg(BLOCK.as_millis() as u64).arg("STREAMS").arg(&self.streams[..]);
            let answer =
                command.arg(vec![">"; self.streams.len()]).query_async::<Value>(&mut self.reading).await?;
            for (name, entries) in streams(answer) {
                if let Some(stream) = self.streams.iter().position(|stream| *stream == name) {
                    let found = Found::read(entries, self.field.as_deref());
                    self.hand_over(stream, None, self.partition(stream, &self.consumer), found).await?;
                }
            }
            if looked.elapsed() >= self.claim_idle / 4 {
                looked = Instant::now();
                self.show_life().await?;
                for stream in 0..self.streams.len() {
                    self.take_over(stream).await?;
                }
            }
        }
    }

    fn command(&self, count: usize) -> redis::Cmd {
        let mut command = cmd("XREADGROUP");
        command.arg("GROUP").arg(&self.group).arg(&*self.consumer).arg("COUNT").arg(count);
        command
    }

    /// The entries that a consumer was the first to receive: they ascend, whoever delivers them at last.
    fn partition(&self, stream: usize, consumer: &str) -> Partition {
        partition_of(&format!("{} {} {consumer}", self.streams[stream], self.group))
    }

    /// What was received and not acknowledged, but for what was handed out by this process.
    async fn read_pending(&mut self, stream: usize) -> Result<(), End> {
        let mut after = self.handed_out.get(&stream).copied().unwrap_or(EntryId::FIRST);
        loop {
            let mut command = self.command(COUNT);
            command.arg("STREAMS").arg(&self.streams[stream]).arg(after.to_string());
            let answer = command.query_async::<Value>(&mut self.reading).await?;
            let entries = streams(answer).into_iter().next().map_or(Value::Nil, |(_, entries)| entries);
            let found = Found::read(entries, self.field.as_deref());
            let ids = found.entries.iter().map(|entry| entry.id).chain(found.deleted.iter().copied());
            let Some(last) = ids.max() else { return Ok(()) };
            after = last;
            self.hand_over(stream, None, self.partition(stream, &self.consumer), found).await?;
        }
    }

    /// Hands entries over; while nobody takes them the server still hears of this consumer. Entries that were deleted
    /// are no longer anybody's.
    async fn hand_over(
        &mut self,
        stream: usize,
        claimed_as: Option<&Arc<str>>,
        partition: Partition,
        found: Found,
    ) -> Result<(), End> {
        if !found.deleted.is_empty() {
            let mut command = cmd("XACK");
            command.arg(&self.streams[stream]).arg(&self.group);
            found.deleted.iter().for_each(|id| {
                command.arg(id.to_string());
            });
            command.query_async::<i64>(&mut self.asking).await?;
        }
        for (partition, entries) in runs(partition, found.entries) {
            let lot = Lot { stream, claimed_as: claimed_as.cloned(), partition, entries };
            loop {
                tokio::select! {
                    permit = self.lots.reserve() => {
                        permit.map_err(|_| End::Unwanted)?.send(Ok(lot));
                        break;
                    }
                    () = tokio::time::sleep(self.claim_idle / 4) => {}
                }
                self.show_life().await?;
            }
        }
        Ok(())
    }

    /// Lets the server know that the consumers of this process live: others take over from those that it has not heard
    /// of. Asking for what is pending behind the last possible entry but one gives nothing; the last one means `>`.
    async fn show_life(&mut self) -> RedisResult<()> {
        let mut consumers = vec![Arc::clone(&self.consumer)];
        consumers.extend(self.live.lock().unwrap_or_else(PoisonError::into_inner).iter().map(Arc::clone));
        for consumer in consumers {
            let mut command = cmd("XREADGROUP");
            command.arg("GROUP").arg(&self.group).arg(&*consumer).arg("COUNT").arg(1).arg("STREAMS");
            command.arg(&self.streams[..]).arg(vec![NOWHERE; self.streams.len()]);
            command.query_async::<Value>(&mut self.asking).await?;
        }
        Ok(())
    }

    /// Takes over what is pending with consumers that were not heard of, some of it at a time.
    async fn take_over(&mut self, stream: usize) -> Result<(), End> {
        let (key, group) = (self.streams[stream].clone(), self.group.clone());
        let mut command = cmd("XINFO");
        let answer =
            command.arg("CONSUMERS").arg(&key).arg(&group).query_async::<Value>(&mut self.asking).await?;
        for (name, n_pending, idle) in items(answer).into_iter().filter_map(consumer) {
            let is_ours = *name == *self.consumer
                || self.live.lock().unwrap_or_else(PoisonError::into_inner).contains(&*name);
            if is_ours || idle < self.claim_idle {
                continue;
            }
            if n_pending == 0 {
                // Such a name is never used again.
                if name.contains(CLAIM) {
                    let mut command = cmd("XGROUP");
                    command.arg("DELCONSUMER").arg(&key).arg(&group).arg(&name);
                    command.query_async::<i64>(&mut self.asking).await?;
                }
                continue;
            }
            let mut command = cmd("XPENDING");
            command.arg(&key).arg(&group).arg("-").arg("+").arg(COUNT).arg(&name);
            let pending = command.query_async::<Value>(&mut self.asking).await?;
            let id = |entry| items(entry).into_iter().next().and_then(text);
            let ids: Vec<_> = items(pending).into_iter().filter_map(id).collect();
            if ids.is_empty() {
                continue;
            }
            let claim: Arc<str> = format!("{}{CLAIM}{:016x}", self.consumer, rand::random::<u64>()).into();
            self.live.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(&claim));
            let mut command = cmd("XCLAIM");
            // Whoever is faster has them: they are not idle any more.
            command.arg(&key).arg(&group).arg(&*claim).arg(self.claim_idle.as_millis() as u64).arg(&ids);
            let claimed = command.query_async::<Value>(&mut self.asking).await?;
            let mut found = Found::read(claimed, self.field.as_deref());
            if found.entries.is_empty() {
                self.live.lock().unwrap_or_else(PoisonError::into_inner).remove(&claim);
            } else {
                tracing::info!(stream = key, from = name, n = found.entries.len(), "Taken over.");
            }
            // Taken over from the consumer that was the first to receive them, without a gap: they keep their identity,
            // and a sink may know that it has them. Of others one that comes later may lie before them, and would be
            // taken for one that was delivered.
            let is_first = !name.contains(CLAIM);
            let n_known = if is_first { n_without_gap(&ids, &found.entries) } else { 0 };
            let others = Found { entries: found.entries.split_off(n_known), deleted: Vec::new() };
            self.hand_over(stream, Some(&claim), self.partition(stream, &name), found).await?;
            self.hand_over(stream, Some(&claim), Partition(rand::random()), others).await?;
        }
        Ok(())
    }
}

/// Name, number of pending entries, and how long it was not heard of.
fn consumer(value: Value) -> Option<(String, i64, Duration)> {
    let (mut name, mut n_pending, mut idle) = (None, 0, Duration::ZERO);
    let mut parts = items(value).into_iter();
    while let (Some(key), Some(value)) = (parts.next(), parts.next()) {
        match (text(key)?.as_str(), value) {
            ("name", value) => name = text(value),
            ("pending", Value::Int(n)) => n_pending = n,
            ("idle", Value::Int(millis)) => idle = Duration::from_millis(u64::try_from(millis).unwrap_or(0)),
            _ => {}
        }
    }
    Some((name?, n_pending, idle))
}

/// How many entries are the first of those that were asked for.
fn n_without_gap(ids: &[String], entries: &[Entry]) -> usize {
    let asked = ids.iter().map(|id| EntryId::parse(id));
    entries.iter().zip(asked).take_while(|(entry, asked)| Some(entry.id) == *asked).count()
}

/// Entries by partition. One whose identifier is no offset has a partition of its own: then nothing is known of it that
/// was delivered before, but nothing is taken for it either.
fn runs(own: Partition, entries: Vec<Entry>) -> Vec<(Partition, VecDeque<Entry>)> {
    let mut runs: Vec<(Partition, VecDeque<Entry>)> = Vec::new();
    for entry in entries {
        match runs.last_mut() {
            Some((partition, run)) if *partition == own && entry.id.offset().is_some() => {
                run.push_back(entry)
            }
            _ => {
                let partition = if entry.id.offset().is_some() { own } else { Partition(rand::random()) };
                runs.push((partition, VecDeque::from([entry])));
            }
        }
    }
    runs
}
