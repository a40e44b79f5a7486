//! How far event time has come: the least of the partitions that are not idle.
//!
//! Every worker computes the same watermark for each epoch, from what all of them saw in the epochs before.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use logdrive_operators::flow::{StateReader, StateWriter};
use logdrive_schemas::Epoch;
use serde::{Deserialize, Serialize};

/// How far ahead of the clock, beyond the lateness, a row may be: one hour in microseconds.
const AHEAD_US: i64 = 3_600_000_000;

/// The watermark at the end of all input: every window is complete.
pub(super) const END: i64 = i64::MAX;

/// What one worker saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Mark {
    /// The newest event time of a partition's rows.
    Newest(Arc<str>, u64, i64),
    /// Time went on.
    Clock,
    /// No more rows will come on this worker.
    End,
}

/// What is known of one partition.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The newest event time, in microseconds.
    newest: i64,
    /// The last epoch with rows.
    epoch: u64,
}

/// The watermark and what it comes from.
#[derive(Clone, Debug)]
pub(super) struct Watermark {
    /// How late a row may be, in microseconds.
    lateness: i64,
    /// After how many epochs without rows a partition no longer counts.
    idle: u64,
    partitions: BTreeMap<(Arc<str>, u64), Seen>,
    /// How many workers may still have rows.
    n_open: usize,
    at: i64,
}

impl Watermark {
    pub(super) fn new(lateness: Duration, idle: Duration, n_workers: usize) -> Self {
        let lateness = i64::try_from(lateness.as_micros()).unwrap_or(i64::MAX);
        let idle = u64::try_from(idle.as_micros()).unwrap_or(u64::MAX) / Epoch::UNIT_US.unsigned_abs();
        Self { lateness, idle, partitions: BTreeMap::new(), n_open: n_workers, at: i64::MIN }
    }

    /// Rows before this are late.
    pub(super) fn at(&self) -> i64 {
        self.at
    }

    /// The partition that holds it back at an epoch, if one does.
    pub(super) fn held_back_by(&self, epoch: u64) -> Option<(&str, u64)> {
        let active = self.partitions.iter().filter(|(_, seen)| self.is_active(seen, epoch));
        let slowest = active.min_by_key(|(_, seen)| seen.newest);
        slowest.map(|((source, partition), _)| (&**source, *partition))
    }

    fn is_active(&self, seen: &Seen, epoch: u64) -> bool {
        epoch.saturating_sub(seen.epoch) <= self.idle
    }

    /// Rows behind this are too far ahead of the clock to be believed: they would make all others late.
    pub(super) fn latest(&self, epoch: u64) -> i64 {
        clock(epoch).saturating_add(self.lateness).saturating_add(AHEAD_US)
    }

    /// Takes in the marks of an epoch of all workers.
    pub(super) fn advance(&mut self, epoch: u64, marks: impl IntoIterator<Item = Mark>) {
        for mark in marks {
            match mark {
                Mark::Newest(source, partition, newest) => {
                    let seen = self.partitions.entry((source, partition)).or_insert(Seen { newest, epoch });
                    seen.newest = seen.newest.max(newest);
                    seen.epoch = seen.epoch.max(epoch);
                }
                Mark::Clock => {}
                // The last worker's comes at its last row or later, so behind all rows.
                Mark::End => self.n_open = self.n_open.saturating_sub(1),
            }
        }
        let active = self.partitions.values().filter(|seen| self.is_active(seen, epoch));
        let reached = match active.map(|seen| seen.newest).min() {
            Some(newest) => Some(newest),
            // All are idle: event time goes on with the clock, from the newest row.
            None => self
                .partitions
                .values()
                .map(|seen| {
                    let idle_for = clock(epoch).saturating_sub(clock(seen.epoch.saturating_add(self.idle)));
                    seen.newest.saturating_add(idle_for)
                })
                .max(),
        };
        if let Some(reached) = reached {
            self.at = self.at.max(reached.saturating_sub(self.lateness));
        }
        if self.n_open == 0 {
            self.at = END;
        }
    }

    pub(super) fn encode(&self, writer: &mut StateWriter) {
        writer.i64(self.at);
        writer.u64(self.partitions.len() as u64);
        for ((source, partition), seen) in &self.partitions {
            writer.text(source);
            writer.u64(*partition);
            writer.i64(seen.newest);
            writer.u64(seen.epoch);
        }
    }

    /// Takes in what [`Self::encode`] wrote on some worker.
    pub(super) fn restore(&mut self, state: &mut StateReader<'_>) -> Option<()> {
        self.at = self.at.max(state.i64()?);
        for _ in 0..state.u64()? {
            let key = (state.text()?, state.u64()?);
            let (newest, epoch) = (state.i64()?, state.u64()?);
            let seen = self.partitions.entry(key).or_insert(Seen { newest, epoch });
            seen.newest = seen.newest.max(newest);
            seen.epoch = seen.epoch.max(epoch);
        }
        Some(())
    }
}

/// The clock at an epoch, in microseconds.
fn clock(epoch: u64) -> i64 {
    i64::try_from(epoch).unwrap_or(i64::MAX).saturating_mul(Epoch::UNIT_US)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn newest(source: &str, at: i64) -> Mark {
        Mark::Newest(source.into(), 0, at * SECOND)
    }

    #[test]
    fn the_slowest_partition_holds_it_back_until_it_is_idle() {
        let mut watermark = Watermark::new(Duration::from_secs(5), Duration::from_secs(60), 2);
        assert_eq!(watermark.at(), i64::MIN);
        watermark.advance(1_000, [newest("a", 100), newest("b", 50)]);
        assert_eq!(watermark.at(), 45 * SECOND);
        watermark.advance(2_000, [newest("a", 200)]);
        assert_eq!(watermark.at(), 45 * SECOND);
        // `b` has been silent for longer than a minute.
        watermark.advance(61_100, [newest("a", 300)]);
        assert_eq!(watermark.at(), 295 * SECOND);
        // It never goes back.
        watermark.advance(61_200, [newest("b", 60)]);
        assert_eq!(watermark.at(), 295 * SECOND);
    }

    #[test]
    fn silence_moves_it_on_with_the_clock() {
        let mut watermark = Watermark::new(Duration::from_secs(5), Duration::from_secs(60), 2);
        watermark.advance(1_000, [newest("a", 100)]);
        watermark.advance(61_000, [Mark::Clock]);
        assert_eq!(watermark.at(), 95 * SECOND);
        watermark.advance(71_000, [Mark::Clock]);
        assert_eq!(watermark.at(), 105 * SECOND);
        watermark.advance(71_100, [Mark::End]);
        assert_eq!(watermark.at(), 105 * SECOND + 100_000);
        watermark.advance(71_200, [Mark::End]);
        assert_eq!(watermark.at(), END);
    }
}
