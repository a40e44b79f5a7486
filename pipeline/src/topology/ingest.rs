//! The task of one source: receives chunks, stamps them with epochs, hands them to workers, and commits what is
//! delivered.
//!
//! Epochs grow with offsets: within a partition a later message never has an earlier epoch. Exactly-once sinks rest
//! on that (see ARCHITECTURE.md).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{Array as _, StructArray};
use logdrive_connectors::{Budget, ConnectorError, Metrics, Source};
use logdrive_schemas::{Chunk, Epoch, Partition, Position};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::epochs::Epochs;
use super::in_flight::{InFlight, Progress};
use super::positions::Positions;
use super::queue::{Ingest, QueueSender};
use super::watchdog::Pulse;
use crate::checkpoint::Checkpoints;

/// How long a source waits before it tries to connect again; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What a source task needs.
pub(super) struct IngestTask {
    pub(super) name: Arc<str>,
    /// Connected.
    pub(super) source: Box<dyn Source>,
    pub(super) queues: Vec<QueueSender>,
    pub(super) epochs: Arc<Epochs>,
    pub(super) checkpoints: Arc<Checkpoints>,
    /// The source's number in the plan.
    pub(super) idx: usize,
    pub(super) pulse: Arc<Pulse>,
    pub(super) progress: Progress,
    pub(super) positions: Positions,
    pub(super) in_flight: InFlight,
    /// Per partition, the offset behind what was sent to the workers.
    pub(super) sent: HashMap<Partition, u64>,
    pub(super) metrics: Arc<Metrics>,
    /// Cancelled when the pipeline is to stop.
    pub(super) shutdown: CancellationToken,
    /// How many sources still have something to say; the one that brings it to zero starts the drain.
    pub(super) n_active: Arc<AtomicUsize>,
    /// Told that nothing more comes: sinks flush at once.
    pub(super) draining: watch::Sender<bool>,
}

/// Why receiving ended.
enum Ended {
    /// The source has no more, or the pipeline stops.
    Drained,
    /// The workers are gone.
    Aborted,
}

impl IngestTask {
    /// Runs until the source has ended and everything it gave is delivered, or the workers are gone.
    ///
    /// # Errors
    /// What the pipeline cannot go on after: a refused configuration, a failed disk.
    pub(super) async fn run(mut self) -> Result<(), ConnectorError> {
        let result = self.receive().await;
        if self.n_active.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.draining.send_replace(true);
        }
        if let Ended::Aborted = result? {
            return Ok(());
        }
        self.drain().await?;
        for queue in &self.queues {
            queue.send(Ingest::End);
        }
        self.pulse.told(self.idx, u64::MAX);
        info!(source = %self.name, "Source ended; everything it gave is delivered.");
        Ok(())
    }

    /// Connects again. False if there is no more, or the pipeline is to stop.
    async fn connect(&mut self) -> Result<bool, ConnectorError> {
        let mut pause = RETRY_MIN;
        loop {
            let delivered = self.positions.all();
            match self.source.connect(&delivered).await {
                Ok(()) => return Ok(true),
                Err(e @ (ConnectorError::Refused { .. } | ConnectorError::Storage { .. })) => return Err(e),
                Err(ConnectorError::End) => return Ok(false),
                Err(error) => warn!(source = %self.name, %error, "Cannot connect; trying again."),
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return Ok(false),
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_MAX),
            }
        }
    }

    async fn receive(&mut self) -> Result<Ended, ConnectorError> {
        let mut ticks = self.epochs.ticks();
        let mut progress = self.progress.clone();
        let mut pending: Option<Chunk> = None;
        let mut next_worker = 0;
        // A source with a log of its own stops at once; the buffer behind a listener is told by the same token and
        // ends by itself once it has given what it holds.
        let stops_at_once = self.source.wants_positions_kept();
        let budget = Budget::default();
        loop {
            if let Some(chunk) = pending.take_if(|chunk| self.in_flight.has_room(chunk.bytes() as u64)) {
                let epoch = self.epochs.stamp();
                self.in_flight.push(epoch, chunk.end(), chunk.bytes() as u64);
                self.show_credits();
                self.checkpoints.sent(&self.name, chunk.end(), epoch);
                if !chunk.messages.is_empty() {
                    if !self.queues[next_worker].send(Ingest::Chunk(epoch, chunk)) {
                        return Ok(Ended::Aborted);
                    }
                    next_worker = (next_worker + 1) % self.queues.len();
                }
            }
            tokio::select! {
                biased;
                () = self.shutdown.cancelled(), if stops_at_once => return Ok(Ended::Drained),
                changed = ticks.changed() => {
                    if changed.is_err() || !self.tick(*ticks.borrow_and_update()) {
                        return Ok(Ended::Aborted);
                    }
                }
                told = progress.changed() => {
                    if !told { return Ok(Ended::Aborted); }
                    self.take_back().await?;
                }
                received = self.source.recv(budget), if pending.is_none() => match received {
                    Ok(chunk) => pending = Some(self.without_repetitions(chunk)),
                    Err(ConnectorError::End) => return Ok(Ended::Drained),
                    Err(e @ (ConnectorError::Refused { .. } | ConnectorError::Storage { .. })) => return Err(e),
                    Err(error) => {
                        warn!(source = %self.name, %error, "Source interrupted; connecting again.");
                        if !self.connect().await? {
                            return Ok(Ended::Drained);
                        }
                    }
                },
            }
        }
    }

    /// A source that was interrupted may be read again from what is delivered. What is on its way already stays out;
    /// the chunk then ends where that did, so that no position ever falls back.
    fn without_repetitions(&mut self, mut chunk: Chunk) -> Chunk {
        let sent = self.sent.entry(chunk.partition).or_default();
        let n_repeated = chunk.offsets.partition_point(|offset| offset < sent);
        *sent = chunk.next_offset.max(*sent);
        chunk.next_offset = *sent;
        if 0 < n_repeated {
            debug!(source = %self.name, n_repeated, "Messages came again.");
            chunk.messages.drain(..n_repeated);
            chunk.offsets.drain(..n_repeated);
            let rest = |attributes: StructArray| attributes.slice(n_repeated, attributes.len() - n_repeated);
            chunk.attributes = chunk.attributes.map(rest);
        }
        chunk
    }

    /// Waits until everything in flight is delivered. Epochs go on, or nothing would ever be complete.
    async fn drain(&mut self) -> Result<(), ConnectorError> {
        let mut ticks = self.epochs.ticks();
        let mut progress = self.progress.clone();
        loop {
            self.take_back().await?;
            if self.in_flight.is_empty() {
                return self.positions.write();
            }
            tokio::select! {
                changed = ticks.changed() => {
                    if changed.is_err() || !self.tick(*ticks.borrow_and_update()) {
                        return Ok(());
                    }
                }
                told = progress.changed() => if !told { return Ok(()) },
            }
        }
    }

    fn tick(&self, epoch: u64) -> bool {
        let lag = self.in_flight.oldest().map_or(0, |oldest| epoch.saturating_sub(oldest));
        let lag = lag as f64 * Epoch::UNIT_US as f64 / 1e6;
        self.metrics.lag_seconds.with_label_values(&[&self.name]).set(lag);
        let told = self.queues.iter().all(|queue| queue.send(Ingest::Tick(epoch)));
        self.pulse.told(self.idx, epoch);
        told
    }

    fn show_credits(&self) {
        let used = i64::try_from(self.in_flight.bytes()).unwrap_or(i64::MAX);
        self.metrics.in_flight_bytes.with_label_values(&[&self.name]).set(used);
    }

    /// Takes back the credits of epochs that are done with, and commits the last position of each partition whose epoch
    /// is delivered.
    async fn take_back(&mut self) -> Result<(), ConnectorError> {
        let ends = self.in_flight.progress(self.progress.reached());
        self.show_credits();
        for (partition, offset) in ends {
            let position = Position { partition, offset };
            self.positions.set(position)?;
            // A far end that cannot be told now is told by a later commit; nothing is lost by waiting.
            match self.source.commit(position).await {
                Err(e @ ConnectorError::Storage { .. }) => {
                    error!(source = %self.name, error = %e, "Cannot record what is delivered.");
                    return Err(e);
                }
                Err(error) => warn!(source = %self.name, %error, "Commit failed."),
                Ok(()) => {}
            }
        }
        Ok(())
    }
}
