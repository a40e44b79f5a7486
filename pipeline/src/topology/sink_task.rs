//! The task of one sink: gathers complete epochs, writes and flushes them, and lets go of what is durable.
//!
//! While the far end is down the rows that wait go to a queue on disk, so that the other sinks and the sources go on:
//! a row in that queue is durable, and its epoch is let go of. The queue is drained first when the far end is back,
//! also after a restart. Beyond the queue's budget the epochs are held, and the sources are slowed.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use logdrive_connectors::buffer::queue::DiskQueue;
use logdrive_connectors::document::Documents;
use logdrive_connectors::{ConnectorError, Metrics, Sink};
use logdrive_schemas::{Batch, Epoch, Origin};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::egress::{FromSink, ToSink};
use super::in_flight::Taken;
use super::late::Unsettled;
use super::seen::Seen;
use super::taps::RejectCounter;

/// How long a failed sink waits before it is tried again; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How long rows wait in memory for a sink that does not take them before they go to disk.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a waiting sink looks whether rows should go to disk.
const LOOK: Duration = Duration::from_millis(100);

/// What a sink's task needs.
pub(super) struct SinkTask {
    pub(super) name: Arc<str>,
    pub(super) sink: Box<dyn Sink>,
    pub(super) inbox: Inbox,
    pub(super) window: Window,
    pub(super) metrics: Arc<Metrics>,
    pub(super) seen: Seen,
}

/// Rows on their way to the sink, in memory and on disk.
pub(super) struct Window {
    pub(super) back: Arc<FromSink>,
    /// `None` if the sink may not spill.
    pub(super) queue: Option<DiskQueue>,
    /// How much may wait in memory before the queue is used.
    pub(super) memory_bytes: usize,
    /// What was refused after it was in the queue.
    unsettled: Unsettled,
    /// Where refused rows go if the sink itself reads the `rejects` stream.
    pub(super) own_rejects: PathBuf,
    pub(super) reject_counter: RejectCounter,
    /// Whether the sink's own refused rows may go to the `rejects` stream: not if it reads that stream.
    pub(super) rejects_flow: bool,
    /// Written, not flushed: written again if the sink fails.
    unflushed: Vec<Item>,
    /// The rows of `unflushed`, in bytes.
    unflushed_bytes: usize,
    oldest: Option<Instant>,
}

/// One batch on its way.
struct Item {
    epoch: u64,
    worker: usize,
    batch: Batch,
    place: Place,
    /// When it came to this task, also if it has been written in vain since.
    since: Instant,
}

/// Where else a batch lies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It was read from the disk queue.
    FromDisk,
    /// Nowhere: its epoch is held.
    Memory,
    /// It was put into the disk queue while it was being written, and its epoch is let go of.
    Spilled,
}

/// Complete epochs, as the workers deliver them.
pub(super) struct Inbox {
    receiver: mpsc::UnboundedReceiver<ToSink>,
    frontiers: Vec<u64>,
    open: BTreeMap<u64, Vec<(usize, Batch)>>,
    ready: VecDeque<Item>,
    ready_bytes: usize,
    draining: watch::Receiver<bool>,
    /// Told what does not wait here any more.
    taken: ToldTaken,
}

/// Who is told what does not wait for a sink any more.
pub(super) struct ToldTaken {
    pub(super) by_sinks: Arc<Taken>,
    /// The sink's number.
    pub(super) idx: usize,
    /// Whether rows come to it only when the other sinks have flushed: it reads what they refuse.
    pub(super) is_behind_others: bool,
}

impl Inbox {
    pub(super) fn new(
        receiver: mpsc::UnboundedReceiver<ToSink>,
        n_workers: usize,
        draining: watch::Receiver<bool>,
        taken: ToldTaken,
    ) -> Self {
        let inbox = Self {
            receiver,
            frontiers: vec![0; n_workers],
            open: BTreeMap::new(),
            ready: VecDeque::new(),
            ready_bytes: 0,
            draining,
            taken,
        };
        inbox.tell();
        inbox
    }

    /// Every epoch before it is complete.
    fn complete(&self) -> u64 {
        self.frontiers.iter().copied().min().unwrap_or(u64::MAX)
    }

    fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Waits for something new. Cancel-safe.
    async fn changed(&mut self) {
        tokio::select! {
            message = self.receiver.recv() => match message {
                Some(message) => self.take(message),
                // The workers are gone without having said so: nothing more comes, nothing more is complete.
                None => std::future::pending().await,
            },
            // The sender lives as long as the runtime.
            _ = self.draining.changed() => {}
        }
        while let Ok(message) = self.receiver.try_recv() {
            self.take(message);
        }
    }

    fn take(&mut self, message: ToSink) {
        match message {
            ToSink::Batch { epoch, worker, batch } => {
                self.open.entry(epoch).or_default().push((worker, *batch))
            }
            ToSink::Frontier { worker, epoch } => {
                self.frontiers[worker] = epoch;
                let complete = self.complete();
                while let Some(entry) = self.open.first_entry().filter(|entry| *entry.key() < complete) {
                    let (epoch, since) = (*entry.key(), Instant::now());
                    for (worker, batch) in entry.remove() {
                        self.ready_bytes += batch.bytes();
                        self.ready.push_back(Item { epoch, worker, batch, place: Place::Memory, since });
                    }
                }
                self.tell();
            }
        }
    }

    fn tell(&self) {
        let ToldTaken { by_sinks, idx, is_behind_others } = &self.taken;
        // What waits for the others to flush does not wait for this one.
        let nothing_waits = || if *is_behind_others { u64::MAX } else { self.complete() };
        by_sinks.tell(*idx, self.ready.front().map_or_else(nothing_waits, |item| item.epoch));
    }

    fn put_back(&mut self, item: Item) {
        self.ready_bytes += item.batch.bytes();
        self.ready.push_front(item);
    }

    fn pop(&mut self) -> Option<Item> {
        let item = self.ready.pop_front()?;
        self.ready_bytes -= item.batch.bytes();
        self.tell();
        Some(item)
    }
}

impl Window {
    pub(super) fn new(
        back: Arc<FromSink>,
        queue: Option<DiskQueue>,
        memory_bytes: usize,
        sunk: watch::Receiver<u64>,
        own_rejects: PathBuf,
        reject_counter: RejectCounter,
        rejects_flow: bool,
    ) -> Self {
        Self {
            back,
            queue,
            memory_bytes,
            unsettled: Unsettled::new(sunk),
            own_rejects,
            reject_counter,
            rejects_flow,
            unflushed: Vec::new(),
            unflushed_bytes: 0,
            oldest: None,
        }
    }

    /// Puts everything that waits on disk, if it waits too long or is too much, and lets go of its epochs.
    fn spill_if_needed(&mut self, inbox: &mut Inbox) -> Result<(), ConnectorError> {
        let in_memory = self.holds() || !inbox.ready.is_empty();
        let Some(queue) = self.queue.as_mut().filter(|queue| !queue.is_full()) else { return Ok(()) };
        let written = self.unflushed.iter().find(|item| item.place == Place::Memory);
        let too_long =
            written.or(inbox.ready.front()).is_some_and(|oldest| oldest.since.elapsed() > PATIENCE);
        let too_much = self.unflushed_bytes + inbox.ready_bytes > self.memory_bytes;
        // What lies on disk already must stay in front of what comes behind it.
        let behind = !queue.is_empty();
        if !in_memory || !(too_long || too_much || behind || inbox.is_draining()) {
            return Ok(());
        }
        let (mut last, mut n_spilled) = (None, 0);
        for item in self.unflushed.iter_mut().filter(|item| item.place == Place::Memory) {
            queue.push(Epoch(item.epoch), &item.batch)?;
            item.place = Place::Spilled;
            last = Some(item.epoch);
            n_spilled += 1;
        }
        while let Some(item) = inbox.pop() {
            queue.push(Epoch(item.epoch), &item.batch)?;
            last = Some(item.epoch);
        }
        queue.sync()?;
        // The sink has these; rows in memory are only written once all of the queue is read.
        queue.skip(n_spilled);
        if let Some(last) = last {
            self.back.release(last + 1);
        }
        Ok(())
    }

    /// Sends refused rows to the `rejects` stream, at the epoch that is held for them or at the newest one. A sink of
    /// that stream has a file of its own for what it refuses.
    fn reject(&mut self, rejects: Batch, held: Option<(u64, usize)>) -> Result<(), ConnectorError> {
        self.reject_counter.count(&rejects);
        let rejects = unordered(rejects);
        if self.rejects_flow {
            match held {
                Some((epoch, worker)) => {
                    self.back.reject(epoch, worker, rejects);
                    // Among them may be rows from disk, which wait for more than this flush.
                    self.unsettled.refused_at(epoch);
                }
                None => self.unsettled.refused(self.back.reject_late(rejects)),
            }
            return Ok(());
        }
        let mut lines = Vec::new();
        let documents = Documents::new(&rejects);
        for idx in 0..rejects.num_rows() {
            documents.write(idx, &mut lines);
            lines.push(b'\n');
        }
        logdrive_connectors::storage::append(&self.own_rejects, &lines)
            .map_err(|e| ConnectorError::storage(&self.own_rejects, e))
    }

    /// A place to hold the rejects of a flush: an epoch that is still held.
    fn held(&self) -> Option<(u64, usize)> {
        self.unflushed.iter().find(|item| item.place == Place::Memory).map(|item| (item.epoch, item.worker))
    }

    fn holds(&self) -> bool {
        self.unflushed.iter().any(|item| item.place == Place::Memory)
    }

    /// Everything written is durable.
    fn flushed(&mut self) -> Result<(), ConnectorError> {
        let n_on_disk = self.unflushed.iter().filter(|item| item.place != Place::Memory).count();
        self.unsettled.flushed(n_on_disk);
        self.settle()?;
        let in_memory = self.unflushed.iter().filter(|item| item.place == Place::Memory);
        if let Some(last) = in_memory.map(|item| item.epoch).max() {
            self.back.release(last + 1);
        }
        self.unflushed.clear();
        self.unflushed_bytes = 0;
        self.oldest = None;
        Ok(())
    }

    /// Takes what is flushed out of the queue, unless rejects of it are still on their way.
    fn settle(&mut self) -> Result<(), ConnectorError> {
        let n_settled = self.unsettled.settled();
        match self.queue.as_mut().filter(|_| n_settled > 0) {
            Some(queue) => queue.pop_first(n_settled),
            None => Ok(()),
        }
    }

    /// Nothing more is written: lets go of everything, and waits for the last rejects to arrive.
    async fn end(&mut self) -> Result<(), ConnectorError> {
        self.back.release(u64::MAX);
        self.settle()?;
        while self.unsettled.n_batches() > 0 && self.unsettled.changed().await {
            self.settle()?;
        }
        Ok(())
    }
}

impl SinkTask {
    /// Runs until every worker has said that nothing more comes and everything is durable.
    ///
    /// # Errors
    /// What the pipeline cannot go on after: a refused configuration, a failed disk.
    pub(super) async fn run(mut self) -> Result<(), ConnectorError> {
        let mut connected = false;
        // Rows were not taken; only rows that are taken show that the sink is well again.
        let mut stuck = false;
        let mut pause = RETRY_MIN;
        loop {
            let result = if connected { self.step().await } else { self.reconnect().await };
            match result {
                Ok(true) => {
                    stuck &= !connected || !self.window.unflushed.is_empty();
                    connected = true;
                    if !stuck {
                        self.up(true);
                        pause = RETRY_MIN;
                    }
                }
                Ok(false) => {
                    self.sink.close().await.ok();
                    return self.window.end().await;
                }
                Err(e @ (ConnectorError::Refused { .. } | ConnectorError::Storage { .. })) => return Err(e),
                Err(error) => {
                    self.up(false);
                    stuck |= std::mem::replace(&mut connected, false);
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    warn!(sink = %self.name, %error, cause, "Sink failed; trying again.");
                    let kind =
                        if matches!(error, ConnectorError::Busy { .. }) { "busy" } else { "disconnected" };
                    self.metrics.sink_errors.with_label_values(&[&*self.name, kind]).inc();
                    let wait = match error {
                        ConnectorError::Busy { after: Some(after), .. } => after.min(RETRY_MAX),
                        _ => pause,
                    };
                    pause = (pause * 2).min(RETRY_MAX);
                    if !self.wait(wait).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn up(&self, up: bool) {
        self.metrics.sink_up.with_label_values(&[&self.name]).set(i64::from(up));
    }

    /// Waits before the next attempt, spilling meanwhile. False if the pipeline ends and everything is on disk.
    async fn wait(&mut self, pause: Duration) -> Result<bool, ConnectorError> {
        let until = Instant::now() + pause;
        while Instant::now() < until {
            self.window.spill_if_needed(&mut self.inbox)?;
            self.show_queue();
            let nothing_held = !self.window.holds() && self.inbox.ready.is_empty();
            if self.inbox.complete() == u64::MAX && nothing_held {
                info!(sink = %self.name, "Sink is down; what it has not taken waits on disk.");
                self.window.end().await?;
                return Ok(false);
            }
            tokio::select! {
                () = self.inbox.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        Ok(true)
    }

    /// Connects. What was not flushed will be written again.
    async fn reconnect(&mut self) -> Result<bool, ConnectorError> {
        let Self { sink, inbox, window, seen, .. } = self;
        patiently(sink.connect(), inbox, window).await?;
        seen.failed();
        // What lies on disk is read from there again, and stays in front of what is only in memory.
        for item in window.unflushed.drain(..).rev().filter(|item| item.place == Place::Memory) {
            inbox.put_back(item);
        }
        (window.unflushed_bytes, window.oldest) = (0, None);
        window.unsettled.failed();
        if let Some(queue) = &mut window.queue {
            queue.rewind();
            queue.skip(window.unsettled.n_batches());
        }
        Ok(true)
    }

    /// One step: write what is there, flush if it is time, else wait. False at the end.
    async fn step(&mut self) -> Result<bool, ConnectorError> {
        self.window.settle()?;
        self.show_queue();
        if let Some(item) = self.next()? {
            let epoch = item.epoch;
            self.write(item).await?;
            // A flush ends an epoch, never cuts it: what a sink remembers as written is a position, and the rest of
            // the epoch may have lower ones.
            if self.next_epoch() != Some(epoch) {
                self.seen.epoch_ended();
                if self.sink.flush_policy().bytes_max <= self.window.unflushed_bytes {
                    self.flush().await?;
                }
            }
            return Ok(true);
        }
        if self.inbox.complete() == u64::MAX {
            self.flush().await?;
            return Ok(false);
        }
        let due = self.window.oldest.map(|oldest| oldest + self.sink.flush_policy().age_max);
        if due.is_some_and(|due| self.inbox.is_draining() || due <= Instant::now()) {
            self.flush().await?;
            return Ok(true);
        }
        match due {
            Some(due) => tokio::select! {
                () = self.inbox.changed() => {}
                () = tokio::time::sleep_until(due) => {}
            },
            None => self.inbox.changed().await,
        }
        Ok(true)
    }

    /// The next batch: from disk while there is something; once all of that is written, from memory.
    fn next(&mut self) -> Result<Option<Item>, ConnectorError> {
        if self.window.queue.as_ref().is_some_and(|queue| !queue.is_empty()) {
            // Behind a queue nothing need wait in memory and hold its epoch.
            self.window.spill_if_needed(&mut self.inbox)?;
        }
        if let Some(queue) = &mut self.window.queue
            && let Some((epoch, batch)) = queue.read()?
        {
            let since = Instant::now();
            return Ok(Some(Item { epoch: epoch.0, worker: 0, batch, place: Place::FromDisk, since }));
        }
        Ok(self.inbox.pop())
    }

    /// The epoch of the next batch.
    fn next_epoch(&self) -> Option<u64> {
        let on_disk = self.window.queue.as_ref().and_then(DiskQueue::next_epoch);
        on_disk.map(|epoch| epoch.0).or_else(|| self.inbox.ready.front().map(|item| item.epoch))
    }

    async fn write(&mut self, item: Item) -> Result<(), ConnectorError> {
        let Self { sink, inbox, window, seen, .. } = self;
        window.oldest.get_or_insert_with(Instant::now);
        window.unflushed_bytes += item.batch.bytes();
        // Kept before the attempt: a failed write is written again.
        let whole = item.batch.clone();
        window.unflushed.push(item);
        let fresh = match seen.fresh(&whole) {
            None => Some(whole),
            Some(mask) => {
                let n_repeated = mask.len() - mask.true_count();
                self.metrics.sink_duplicates.with_label_values(&[&self.name]).inc_by(n_repeated as u64);
                whole.filter(&mask).expect("every column type can be filtered")
            }
        };
        let Some(batch) = fresh else { return Ok(()) };
        seen.wrote(&batch);
        if let Some(rejects) = patiently(sink.write(&batch), inbox, window).await? {
            // The epoch may have been spilled and let go of while the write ran.
            let held = window.unflushed.last().filter(|item| item.place == Place::Memory);
            window.reject(rejects, held.map(|item| (item.epoch, item.worker)))?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), ConnectorError> {
        let Some(upto) = self.window.unflushed.iter().map(|item| item.epoch).max() else { return Ok(()) };
        let started = Instant::now();
        let Self { sink, inbox, window, .. } = self;
        if let Some(rejects) = patiently(sink.flush(Epoch(upto)), inbox, window).await? {
            window.reject(rejects, window.held())?;
        }
        self.window.flushed()?;
        self.seen.flushed();
        self.metrics
            .sink_flush_seconds
            .with_label_values(&[&self.name])
            .observe(started.elapsed().as_secs_f64());
        Ok(())
    }

    fn show_queue(&self) {
        if let Some(queue) = &self.window.queue {
            let bytes = i64::try_from(queue.bytes()).unwrap_or(i64::MAX);
            self.metrics.sink_queue_bytes.with_label_values(&[&self.name]).set(bytes);
        }
    }
}

/// A sink refuses rows late and out of order: whoever takes the rejects must know them by identity, not by position.
fn unordered(rejects: Batch) -> Batch {
    let origin = Origin { ordered: false, ..Origin::clone(rejects.origin()) };
    let (original, offsets) = (rejects.original().clone(), rejects.offsets().clone());
    let layout = Arc::clone(rejects.layout());
    Batch::new(rejects.rows().clone(), original, offsets, Arc::new(origin), layout)
        .expect("it has the same rows")
}

/// Waits for the far end, taking in what arrives and spilling it if it takes too long.
async fn patiently<T>(
    operation: impl Future<Output = Result<T, ConnectorError>>,
    inbox: &mut Inbox,
    window: &mut Window,
) -> Result<T, ConnectorError> {
    tokio::pin!(operation);
    let started = Instant::now();
    loop {
        tokio::select! {
            biased;
            result = &mut operation => return result,
            () = inbox.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        if started.elapsed() > PATIENCE {
            window.spill_if_needed(inbox)?;
        }
    }
}
