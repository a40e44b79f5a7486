//! How many requests may be under way: one more after each that went well, half as many when the far end has too
//! much to do.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Lets requests pass, as many at once as the far end has shown that it can take.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    freed: Notify,
    max: usize,
}

#[derive(Debug)]
struct State {
    limit: usize,
    n_inside: usize,
}

impl Gate {
    /// A gate that lets `max` pass until it learns better.
    pub(super) fn new(max: usize) -> Self {
        Self { state: Mutex::new(State { limit: max, n_inside: 0 }), freed: Notify::new(), max }
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

    /// The far end did what it was asked to.
    pub(super) fn widen(&self) {
        let mut state = self.lock();
        state.limit = (state.limit + 1).min(self.max);
        drop(state);
        self.freed.notify_one();
    }

    /// The far end has too much to do.
    pub(super) fn narrow(&self) {
        let mut state = self.lock();
        state.limit = (state.limit / 2).max(1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Two numbers cannot be left half-changed.
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

    #[test]
    fn it_halves_and_recovers_one_by_one() {
        let gate = Gate::new(4);
        let passes: Vec<_> = (0..4).map(|_| gate.enter().now_or_never().expect("four fit")).collect();
        assert!(gate.enter().now_or_never().is_none());
        gate.narrow();
        drop(passes);
        let two: Vec<_> = (0..2).map(|_| gate.enter().now_or_never().expect("two fit")).collect();
        assert!(gate.enter().now_or_never().is_none());
        gate.widen();
        let third = gate.enter().now_or_never();
        assert!(third.is_some() && gate.enter().now_or_never().is_none());
        for _ in 0..10 {
            gate.narrow();
        }
        drop((two, third));
        let one = gate.enter().now_or_never();
        assert!(one.is_some(), "at least one always passes");
    }
}
