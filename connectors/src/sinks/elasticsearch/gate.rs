//! How many requests may be under way: one more after a round of answers that went well, fewer when the far end says
//! that it has too much to do, or becomes slow.
//!
//! Slow means that its queue grows, not that a request was large: what is compared is time per byte, with the best
//! that was seen. That best is forgotten slowly, since the far end may have changed for good.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::Notify;

/// Quicker than this is never slow.
const SLOW_MIN: Duration = Duration::from_secs(1);
/// How much longer than at its best.
const SLOW_FACTOR: f64 = 3.0;
/// What the best is worth after one more request.
const FORGETTING: f64 = 1.01;
/// Smaller requests take as long as this many bytes: what they cost is the round trip.
const BYTES_MIN: usize = 1 << 20;

/// Lets requests pass, as many at once as the far end has shown that it can take.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    freed: Notify,
    max: usize,
    gauge: IntGauge,
}

#[derive(Debug)]
struct State {
    limit: usize,
    n_inside: usize,
    /// Good answers since the limit last changed.
    n_good: usize,
    /// Answers to requests that passed before the limit was lowered say nothing new.
    n_ignored: usize,
    /// Seconds per byte.
    best: Option<f64>,
}

impl Gate {
    /// A gate that lets `max` pass until it learns better.
    pub(super) fn new(max: usize, gauge: IntGauge) -> Self {
        gauge.set(i64::try_from(max).unwrap_or(i64::MAX));
        let state = State { limit: max, n_inside: 0, n_good: 0, n_ignored: 0, best: None };
        Self { state: Mutex::new(state), freed: Notify::new(), max, gauge }
    }

    /// Waits for a place, which is free again when the pass is dropped.
    pub(super) async fn enter(&self) -> Pass<'_> {
        loop {
            let freed = self.freed.notified();
            {
                let mut state = self.lock();
                if state.n_inside < state.limit {
                    state.n_inside += 1;
                    return Pass(self);
                }
            }
            freed.await;
        }
    }

    /// The far end did what it was asked to, with a request of so many bytes, in this time.
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    pub(super) fn answered(&self, n_bytes: usize, took: Duration) {
        let mut state = self.lock();
        let cost = took.as_secs_f64() / n_bytes.max(BYTES_MIN) as f64;
        let best = state.best.map_or(cost, |best| (best * FORGETTING).min(cost));
        state.best = Some(best);
        if state.n_ignored > 0 {
            state.n_ignored -= 1;
        } else if SLOW_MIN < took && best * SLOW_FACTOR < cost {
            let limit = state.limit - state.limit.div_ceil(4);
            self.set(&mut state, limit);
        } else {
            state.n_good += 1;
            if state.limit <= state.n_good {
                let limit = state.limit + 1;
                self.set(&mut state, limit);
                state.n_ignored = 0;
                drop(state);
                self.freed.notify_one();
            }
        }
    }

    /// The far end has too much to do.
    pub(super) fn narrow(&self) {
        let mut state = self.lock();
        let limit = state.limit / 2;
        self.set(&mut state, limit);
    }

    fn set(&self, state: &mut State, limit: usize) {
        state.limit = limit.clamp(1, self.max);
        state.n_good = 0;
        state.n_ignored = state.n_inside.saturating_sub(1);
        self.gauge.set(i64::try_from(state.limit).unwrap_or(i64::MAX));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A few numbers, each of which may be wrong for a while.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place inside.
#[derive(Debug)]
pub(super) struct Pass<'a>(&'a Gate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.lock().n_inside -= 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn gate(max: usize) -> Gate {
        Gate::new(max, IntGauge::new("limit", "limit").unwrap())
    }

    fn quick(gate: &Gate) {
        gate.answered(1000, Duration::from_millis(10));
    }

    #[test]
    fn it_halves_and_recovers_by_one_a_round() {
        let gate = gate(4);
        let passes: Vec<_> = (0..4).map(|_| gate.enter().now_or_never().expect("four fit")).collect();
        assert!(gate.enter().now_or_never().is_none());
        gate.narrow();
        drop(passes);
        let two: Vec<_> = (0..2).map(|_| gate.enter().now_or_never().expect("two fit")).collect();
        assert!(gate.enter().now_or_never().is_none());
        // Three answers to what passed before it was narrowed, then a round of two.
        for n in 0..5 {
            assert!(gate.enter().now_or_never().is_none(), "{n}");
            quick(&gate);
        }
        let third = gate.enter().now_or_never();
        assert!(third.is_some() && gate.enter().now_or_never().is_none());
        for _ in 0..10 {
            gate.narrow();
        }
        drop((two, third));
        let one = gate.enter().now_or_never();
        assert!(one.is_some(), "at least one always passes");
    }

    #[test]
    fn it_becomes_narrower_when_the_far_end_becomes_slow_and_not_when_requests_become_large() {
        let gate = gate(8);
        for _ in 0..20 {
            gate.answered(1 << 20, Duration::from_millis(500));
        }
        gate.answered(8 << 20, Duration::from_secs(4));
        assert_eq!(gate.gauge.get(), 8);
        gate.answered(1 << 20, Duration::from_millis(1600));
        assert_eq!(gate.gauge.get(), 6);
        gate.answered(1 << 20, Duration::from_millis(1600));
        assert_eq!(gate.gauge.get(), 4);
        // A far end that is slow for good is at its best after a while.
        for _ in 0..300 {
            gate.answered(1 << 20, Duration::from_millis(1600));
        }
        assert_eq!(gate.gauge.get(), 8);
    }
}
