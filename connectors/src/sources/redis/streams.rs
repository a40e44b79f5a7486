//! Streams as a log: chunks of what the reader has, and acknowledgements of what is delivered.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use arrow::buffer::Buffer;
use async_trait::async_trait;
use logdrive_schemas::{Chunk, MessageRange, Partition, Position};
use redis::aio::MultiplexedConnection;
use redis::{Client, RedisError, RedisResult, cmd};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::entries::{EntryId, Lot, attributes};
use super::reader::{Live, Reader};
use super::{Redis, Start};
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::redis::{connect, failed};
use crate::source::{Budget, Source};
use crate::sources::net::counts::Counts;
use crate::storage;

/// Lots that may wait to be handed out.
const LOTS_WAITING: usize = 2;
/// Acknowledgements that are sent at once.
const ACKS_AT_ONCE: usize = 1000;

/// Entries that were handed out and are not acknowledged, ascending.
struct Unacknowledged {
    stream: usize,
    /// The names that some of them are pending under.
    claimed_as: BTreeSet<Arc<str>>,
    entries: VecDeque<(u64, EntryId)>,
}

/// The source over all connections.
pub(super) struct Streams {
    config: Redis,
    client: Client,
    cx: ConnectorContext,
    counts: Counts,
    keys: Arc<[String]>,
    /// Known from the first connection on.
    consumer: Option<Arc<str>>,
    live: Live,
    lots: Option<mpsc::Receiver<RedisResult<Lot>>>,
    reader: JoinSet<()>,
    /// What is handed out next.
    front: Option<Lot>,
    /// For each stream, the last entry of the own consumer that was handed out.
    handed_out: BTreeMap<usize, EntryId>,
    unacknowledged: HashMap<Partition, Unacknowledged>,
    /// Delivered, and the server has yet to be told.
    acks: Vec<VecDeque<EntryId>>,
    acknowledging: Option<MultiplexedConnection>,
}

impl Streams {
    pub(super) fn new(config: Redis, client: Client, cx: &ConnectorContext) -> Self {
        let keys: Arc<[String]> = config.keys.clone().into();
        Self {
            counts: Counts::new(cx),
            acks: vec![VecDeque::new(); keys.len()],
            keys,
            consumer: None,
            live: Live::default(),
            lots: None,
            reader: JoinSet::new(),
            front: None,
            handed_out: BTreeMap::new(),
            unacknowledged: HashMap::new(),
            acknowledging: None,
            client,
            cx: cx.clone(),
            config,
        }
    }

    fn failed(&self, error: RedisError) -> ConnectorError {
        let kind = if error.is_io_error() || error.is_timeout() { "disconnected" } else { "answer" };
        self.cx.metrics.source_errors.with_label_values(&[&*self.cx.name, kind]).inc();
        failed(&self.config.endpoint, error)
    }

    /// The name in the group: as configured, or made up once.
    fn consumer(&mut self) -> Result<Arc<str>, ConnectorError> {
        if let Some(consumer) = &self.consumer {
            return Ok(Arc::clone(consumer));
        }
        let path = self.cx.state_dir.join("consumer");
        let name = match (&self.config.consumer, std::fs::read_to_string(&path)) {
            (Some(name), _) => name.clone(),
            (None, Ok(name)) if !name.is_empty() => name,
            (None, Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ConnectorError::storage(&path, error));
            }
            (None, _) => {
                let name = format!("logdrive-{:016x}", rand::random::<u64>());
                storage::replace(&path, name.as_bytes()).map_err(|e| ConnectorError::storage(&path, e))?;
                name
            }
        };
        let name: Arc<str> = name.into();
        self.consumer = Some(Arc::clone(&name));
        Ok(name)
    }

    async fn make_groups(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        for key in &*self.keys {
            let start = match self.config.start {
                Start::Earliest => "0",
                Start::Latest => "$",
            };
            let mut command = cmd("XGROUP");
            command.arg("CREATE").arg(key).arg(&self.config.group).arg(start).arg("MKSTREAM");
            match command.query_async::<()>(connection).await {
                Err(error) if error.code() != Some("BUSYGROUP") => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// A chunk of what waits in front.
    fn chunk(&mut self, budget: Budget) -> Option<Chunk> {
        let mut lot = self.front.take()?;
        let (mut data, mut messages, mut offsets, mut ids) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        while let Some(entry) = lot.entries.front() {
            let is_full =
                messages.len() >= budget.messages || data.len() + entry.message.len() > budget.bytes;
            if is_full && !messages.is_empty() {
                break;
            }
            let Some(entry) = lot.entries.pop_front() else { break };
            // A value is at most 512 MiB, and a chunk of more than one is bounded by the budget.
            let start = u32::try_from(data.len()).expect("chunks are bounded");
            let len = u32::try_from(entry.message.len()).expect("values are bounded by the protocol");
            data.extend_from_slice(&entry.message);
            messages.push(MessageRange { start, len });
            offsets.push(entry.id.offset().unwrap_or(0));
            ids.push(entry.id);
        }
        let next_offset = offsets.last()? + 1;
        if lot.claimed_as.is_none()
            && let Some(last) = ids.last().filter(|id| id.offset().is_some())
        {
            self.handed_out.insert(lot.stream, *last);
        }
        let key = &self.keys[lot.stream];
        let unacknowledged = self.unacknowledged.entry(lot.partition).or_insert_with(|| Unacknowledged {
            stream: lot.stream,
            claimed_as: BTreeSet::new(),
            entries: VecDeque::new(),
        });
        unacknowledged.claimed_as.extend(lot.claimed_as.clone());
        unacknowledged.entries.extend(offsets.iter().copied().zip(ids.iter().copied()));
        self.counts.received(&messages);
        let known = || attributes(ids.iter().map(|id| (key.as_str(), Some(id.to_string()))));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let chunk = Chunk {
            source: Arc::clone(&self.cx.name),
            partition: lot.partition,
            data: Buffer::from_vec(data),
            messages,
            offsets,
            received_at: i64::try_from(now.as_micros()).unwrap_or(i64::MAX),
            peer: Some(self.config.endpoint.as_str().into()),
            attributes: self.config.metadata.as_ref().map(|_| known()),
            next_offset,
        };
        self.front = Some(lot).filter(|lot| !lot.entries.is_empty());
        Some(chunk)
    }

    async fn acknowledge(&mut self) -> RedisResult<()> {
        for (key, ids) in self.keys.iter().zip(&mut self.acks) {
            while !ids.is_empty() {
                let connection = match &mut self.acknowledging {
                    Some(connection) => connection,
                    none => none.insert(connect(&self.client, self.config.timeout).await?),
                };
                let n = ids.len().min(ACKS_AT_ONCE);
                let mut command = cmd("XACK");
                command.arg(key).arg(&self.config.group);
                ids.iter().take(n).for_each(|id| {
                    command.arg(id.to_string());
                });
                if let Err(error) = command.query_async::<i64>(connection).await {
                    self.acknowledging = None;
                    return Err(error);
                }
                ids.drain(..n);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Source for Streams {
    async fn connect(&mut self, _delivered: &[Position]) -> Result<(), ConnectorError> {
        // What was received and not handed out is pending at the server and is read again.
        (self.lots, self.front) = (None, None);
        self.reader.abort_all();
        while self.reader.join_next().await.is_some() {}
        let consumer = self.consumer()?;
        let opened = async {
            let mut asking = connect(&self.client, self.config.timeout).await?;
            let reading = connect(&self.client, self.config.timeout).await?;
            self.make_groups(&mut asking).await?;
            RedisResult::Ok((asking, reading))
        };
        let (asking, reading) = opened.await.map_err(|error| self.failed(error))?;
        {
            let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            live.clear();
            live.extend(self.unacknowledged.values().flat_map(|u| u.claimed_as.clone()));
        }
        let (sender, receiver) = mpsc::channel(LOTS_WAITING);
        let reader = Reader {
            streams: Arc::clone(&self.keys),
            group: self.config.group.clone(),
            consumer,
            field: self.config.field.clone(),
            claim_idle: self.config.claim_idle,
            reading,
            asking,
            handed_out: self.handed_out.clone(),
            live: Arc::clone(&self.live),
            lots: sender,
        };
        self.reader.spawn(reader.run());
        self.lots = Some(receiver);
        Ok(())
    }

    async fn recv(&mut self, budget: Budget) -> Result<Chunk, ConnectorError> {
        loop {
            if self.cx.shutdown.is_cancelled() {
                return Err(ConnectorError::End);
            }
            if let Some(chunk) = self.chunk(budget) {
                return Ok(chunk);
            }
            let Some(lots) = &mut self.lots else {
                return Err(ConnectorError::disconnected(&self.config.endpoint, "not connected"));
            };
            let received = tokio::select! {
                biased;
                () = self.cx.shutdown.cancelled() => return Err(ConnectorError::End),
                received = lots.recv() => received,
            };
            match received {
                Some(Ok(lot)) => self.front = Some(lot),
                Some(Err(error)) => {
                    self.lots = None;
                    return Err(self.failed(error));
                }
                None => self.lots = None,
            }
        }
    }

    async fn commit(&mut self, upto: Position) -> Result<(), ConnectorError> {
        if let Some(handed_out) = self.unacknowledged.get_mut(&upto.partition) {
            while let Some((_, id)) = handed_out.entries.pop_front_if(|(offset, _)| *offset < upto.offset) {
                self.acks[handed_out.stream].push_back(id);
            }
        }
        self.acknowledge().await.map_err(|error| self.failed(error))?;
        // Names that nothing is pending under any more need show no life. What comes of them still is another lot.
        let waits = self.front.as_ref().map(|lot| lot.partition);
        let live = Arc::clone(&self.live);
        self.unacknowledged.retain(|partition, u| {
            let is_over = u.entries.is_empty() && waits != Some(*partition);
            if is_over {
                live.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .retain(|name| !u.claimed_as.contains(name));
            }
            !is_over
        });
        Ok(())
    }

    /// They are kept by the server.
    fn wants_positions_kept(&self) -> bool {
        false
    }
}
