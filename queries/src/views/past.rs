//! What a checkpoint has of a view.

use logdrive_operators::WorkerContext;
use logdrive_operators::flow::{StateWriter, restored};

use super::health::Health;

/// What a checkpoint has of a view: the same for all workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Past {
    /// Nothing.
    None,
    /// It had stopped, and has no rows; whether it stays so.
    Stopped(bool),
    /// Its rows.
    Rows,
}

impl Past {
    /// Of a view with these operators that keep rows, and their fingerprints. What only some of them still had when the
    /// view stopped is nothing.
    pub(super) fn of(
        operators: impl IntoIterator<Item = (String, u64)>,
        max_bytes: u64,
        cx: &WorkerContext,
    ) -> Self {
        let mut past = Self::None;
        for (operator, fingerprint) in operators {
            for (_, _, mut state) in restored(&cx.checkpoint.restored(&operator), fingerprint) {
                let (Some(stopped), Some(limit)) = (state.u64(), state.u64()) else { continue };
                let stays = stopped == 1 && max_bytes <= limit;
                past = match past {
                    Self::Stopped(stayed) => Self::Stopped(stayed || stays),
                    _ if stopped == 1 => Self::Stopped(stays),
                    _ => Self::Rows,
                };
            }
        }
        past
    }

    /// Stops the view, if it had stopped and may not take more now.
    pub(super) fn stop_again(self, health: &Health) {
        if self == Self::Stopped(true) {
            health.stop("it had stopped before; a larger `max_bytes`, or another query, starts it anew");
        }
    }

    /// Begins the state of an operator that keeps rows with what [`Self::of`] reads.
    pub(super) fn write(
        fingerprint: u64,
        is_stopped: bool,
        max_bytes: u64,
        cx: &WorkerContext,
    ) -> StateWriter {
        let mut writer = StateWriter::new(fingerprint, cx);
        writer.u64(u64::from(is_stopped));
        writer.u64(max_bytes);
        writer
    }
}
