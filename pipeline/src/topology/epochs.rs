//! The clock of the dataflow: epochs of 100 ms, derived from the wall clock and never going back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The length of an epoch.
pub const EPOCH: Duration = Duration::from_millis(100);

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
}

impl Epochs {
    /// Starts at the wall clock, or behind `after`, the last epoch that an earlier process used.
    pub(super) fn new(after: u64) -> Arc<Self> {
        let current = wall().max(after + 1);
        Arc::new(Self { current: AtomicU64::new(current), ticks: watch::Sender::new(current) })
    }

    pub(super) fn current(&self) -> u64 {
        self.current.load(Ordering::Acquire)
    }

    /// Told of every new epoch.
    pub(super) fn ticks(&self) -> watch::Receiver<u64> {
        self.ticks.subscribe()
    }

    /// Ticks until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut interval = tokio::time::interval(EPOCH);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = interval.tick() => {
                    // Always at least one further, so that progress never stops with the wall clock.
                    let next = wall().max(self.current() + 1);
                    self.current.store(next, Ordering::Release);
                    self.ticks.send_replace(next);
                }
            }
        }
    }
}

fn wall() -> u64 {
    u64::try_from(now_micros()).unwrap_or(0) / 100_000
}
