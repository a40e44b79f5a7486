//! The clock of the dataflow: epochs in milliseconds, derived from the wall clock and never going back.
//!
//! What enters during an epoch reaches the sinks' far ends when the epoch is over. So an epoch ends 10 ms after it
//! began if something entered, and after 100 ms if nothing did.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use logdrive_schemas::Epoch;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// How long an epoch lasts if nothing enters.
const IDLE: Duration = Duration::from_millis(100);
/// How long an epoch lasts if something does.
const BUSY: Duration = Duration::from_millis(10);

/// How much of a source may wait for the sinks, per worker and millisecond of an epoch: rows go on when their epoch is
/// over, so that this is three epochs of half a gigabyte a second, which is more than a worker makes columns of.
const BACKLOG_BYTES: u64 = 3 << 19;

/// Now, in microseconds since the Unix epoch.
#[must_use]
pub fn now_micros() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
}

/// The current epoch, shared by all sources. A clock that is set back only makes epochs longer.
#[derive(Debug)]
pub(super) struct Epochs {
    current: AtomicU64,
    ticks: watch::Sender<u64>,
    entered: Notify,
    /// How long an epoch lasts if something enters.
    busy: Duration,
}

impl Epochs {
    /// Starts at the wall clock, or behind `after`, the last epoch that an earlier process used. A pipeline with state
    /// has longer epochs: each costs it an update.
    pub(super) fn new(after: u64, has_state: bool) -> Arc<Self> {
        let current = wall().max(after + 1);
        Arc::new(Self {
            current: AtomicU64::new(current),
            ticks: watch::Sender::new(current),
            entered: Notify::new(),
            busy: if has_state { IDLE } else { BUSY },
        })
    }

    /// The current epoch, for something that enters now.
    pub(super) fn stamp(&self) -> u64 {
        self.entered.notify_one();
        self.current.load(Ordering::Acquire)
    }

    /// The current epoch, for one who only looks.
    pub(super) fn current(&self) -> u64 {
        self.current.load(Ordering::Acquire)
    }

    /// How much of a source may wait for the sinks, in bytes, so that it is not slower for it.
    pub(super) fn backlog_max_bytes(&self, n_workers: usize) -> u64 {
        let epoch_ms = u64::try_from(self.busy.as_millis()).unwrap_or(u64::MAX);
        BACKLOG_BYTES.saturating_mul(epoch_ms).saturating_mul(n_workers as u64)
    }

    /// Told of every new epoch.
    pub(super) fn ticks(&self) -> watch::Receiver<u64> {
        self.ticks.subscribe()
    }

    /// Ticks until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let began = Instant::now();
            let over = async {
                tokio::select! {
                    () = self.entered.notified() => sleep_until(began + self.busy).await,
                    () = sleep_until(began + IDLE) => {}
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = over => {}
            }
            // Always at least one further, so that progress never stops with the wall clock.
            let next = wall().max(self.current.load(Ordering::Acquire) + 1);
            self.current.store(next, Ordering::Release);
            self.ticks.send_replace(next);
        }
    }
}

/// Now, in the unit of epochs.
fn wall() -> u64 {
    u64::try_from(now_micros() / Epoch::UNIT_US).unwrap_or(0)
}
