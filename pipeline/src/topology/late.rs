//! Rows that a sink refuses after they were in its disk queue.
//!
//! Their epoch was let go of when they went to disk, so they leave on the `rejects` stream at a newer one. Until every
//! sink of that stream has them, the batches they came in stay in the queue: after a crash they are written, and
//! refused, again.

use std::collections::VecDeque;

use tokio::sync::{oneshot, watch};

/// What was read from the disk queue and flushed, and waits for rejects to arrive before it is taken out.
#[derive(Debug)]
pub(super) struct Unsettled {
    /// Every epoch before it has left every sink.
    sunk: watch::Receiver<u64>,
    /// What was refused since the last flush.
    refused: Vec<oneshot::Receiver<u64>>,
    /// The same at epochs that are known: settled when `sunk` is here.
    settled_at: u64,
    flushed: VecDeque<Flushed>,
}

#[derive(Debug)]
struct Flushed {
    n_batches: usize,
    /// The epochs of its rejects that are not known yet.
    refused: Vec<oneshot::Receiver<u64>>,
    /// Settled when `sunk` is here.
    settled_at: u64,
}

impl Unsettled {
    pub(super) fn new(sunk: watch::Receiver<u64>) -> Self {
        Self { sunk, refused: Vec::new(), settled_at: 0, flushed: VecDeque::new() }
    }

    /// Rows were refused that leave at the epoch which the receiver gives.
    pub(super) fn refused(&mut self, epoch: oneshot::Receiver<u64>) {
        self.refused.push(epoch);
    }

    /// Rows were refused that leave at this epoch.
    pub(super) fn refused_at(&mut self, epoch: u64) {
        self.settled_at = self.settled_at.max(epoch.saturating_add(1));
    }

    /// The sink failed: what was refused since the last flush will be refused again.
    pub(super) fn failed(&mut self) {
        self.refused.clear();
        self.settled_at = 0;
    }

    /// The next `n_batches` of the queue are flushed.
    pub(super) fn flushed(&mut self, n_batches: usize) {
        let (refused, settled_at) = (std::mem::take(&mut self.refused), std::mem::take(&mut self.settled_at));
        if n_batches > 0 {
            self.flushed.push_back(Flushed { n_batches, refused, settled_at });
        }
    }

    /// Takes out what is settled, in batches.
    pub(super) fn settled(&mut self) -> usize {
        let sunk = *self.sunk.borrow_and_update();
        let mut n_batches = 0;
        while let Some(flushed) = self.flushed.pop_front_if(|flushed| flushed.is_settled(sunk)) {
            n_batches += flushed.n_batches;
        }
        n_batches
    }

    /// Flushed, but still in the queue, in batches.
    pub(super) fn n_batches(&self) -> usize {
        self.flushed.iter().map(|flushed| flushed.n_batches).sum()
    }

    /// Waits for rejects to arrive somewhere. False if that will not happen any more.
    pub(super) async fn changed(&mut self) -> bool {
        self.sunk.changed().await.is_ok()
    }
}

impl Flushed {
    fn is_settled(&mut self, sunk: u64) -> bool {
        self.refused.retain_mut(|epoch| match epoch.try_recv() {
            Ok(epoch) => {
                self.settled_at = self.settled_at.max(epoch.saturating_add(1));
                false
            }
            Err(_) => true,
        });
        self.refused.is_empty() && self.settled_at <= sunk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_stay_until_their_rejects_have_arrived_and_keep_their_order() {
        let (sunk, watched) = watch::channel(7);
        let mut unsettled = Unsettled::new(watched);
        unsettled.flushed(2);
        assert_eq!(unsettled.settled(), 2, "nothing was refused");

        let (told, epoch) = oneshot::channel();
        unsettled.refused(epoch);
        unsettled.flushed(3);
        unsettled.flushed(1);
        assert_eq!((unsettled.settled(), unsettled.n_batches()), (0, 4), "the epoch is not known");
        told.send(9).unwrap();
        sunk.send_replace(9);
        assert_eq!(unsettled.settled(), 0, "epoch 9 is not behind 9");
        sunk.send_replace(10);
        assert_eq!((unsettled.settled(), unsettled.n_batches()), (4, 0));
    }

    #[test]
    fn a_known_epoch_holds_batches_as_one_that_is_told_does() {
        let (sunk, watched) = watch::channel(4);
        let mut unsettled = Unsettled::new(watched);
        unsettled.refused_at(4);
        unsettled.flushed(1);
        assert_eq!(unsettled.settled(), 0, "epoch 4 is not behind 4");
        sunk.send_replace(5);
        assert_eq!(unsettled.settled(), 1);
        unsettled.flushed(1);
        assert_eq!(unsettled.settled(), 1, "a flush asks for its own rejects only");
    }

    #[test]
    fn what_a_failed_sink_refused_does_not_hold_anything() {
        let (_sunk, watched) = watch::channel(0);
        let mut unsettled = Unsettled::new(watched);
        let (_told, epoch) = oneshot::channel();
        unsettled.refused(epoch);
        unsettled.refused_at(7);
        unsettled.failed();
        unsettled.flushed(1);
        assert_eq!(unsettled.settled(), 1);
    }
}
