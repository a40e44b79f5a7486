//! State on its way into and out of checkpoints.

use std::collections::HashMap;
use std::sync::Arc;

use super::changes::Changes;
use crate::detector::{Checkpoint, WorkerContext};

/// Marks the layout; another one is another word.
const MAGIC: u64 = u64::from_le_bytes(*b"logdrvs1");

/// Hands in an operator's state at every cut that its frontier passes.
#[derive(Debug)]
pub struct Cuts {
    checkpoint: Arc<dyn Checkpoint>,
    operator: String,
    worker: usize,
    next: Option<u64>,
}

impl Cuts {
    /// For the instance of `operator` that runs on the worker of `cx`.
    #[must_use]
    pub fn new(operator: String, cx: &WorkerContext) -> Self {
        Self { checkpoint: Arc::clone(&cx.checkpoint), operator, worker: cx.index, next: None }
    }

    /// The state is that of all epochs before `epoch`, and `state` writes it down, whole.
    pub fn pass(&mut self, epoch: u64, mut state: impl FnMut() -> Vec<u8>) {
        let (checkpoint, operator, worker) =
            (Arc::clone(&self.checkpoint), self.operator.clone(), self.worker);
        self.each(epoch, |cut| checkpoint.put(&operator, worker, cut, state()));
    }

    /// The state is that of all epochs before `epoch`, and `changes` says what changed in it since it was asked last: at
    /// a cut.
    pub fn pass_changes(&mut self, epoch: u64, mut changes: impl FnMut(u64) -> Changes) {
        let (checkpoint, operator, worker) =
            (Arc::clone(&self.checkpoint), self.operator.clone(), self.worker);
        self.each(epoch, |cut| checkpoint.put_changes(&operator, worker, cut, changes(cut)));
    }

    fn each(&mut self, epoch: u64, mut hand_in: impl FnMut(u64)) {
        // Before anything is known the frontier is at zero; from there it jumps to the present.
        if epoch == 0 {
            return;
        }
        let mut next = *self.next.get_or_insert_with(|| self.checkpoint.next_cut(epoch));
        while next <= epoch && next < u64::MAX {
            if self.checkpoint.wants(next, epoch) {
                hand_in(next);
            }
            next = self.checkpoint.next_cut(next + 1).max(next + 1);
        }
        self.next = Some(next);
    }
}

/// The fingerprint that a state was written with, if it is one.
#[must_use]
pub fn fingerprint_of(state: &[u8]) -> Option<u64> {
    let mut reader = StateReader { bytes: state, names: HashMap::new() };
    if reader.u64()? == MAGIC { reader.u64() } else { None }
}

/// The states that fit `fingerprint`: which worker of how many wrote it, and how to read on.
#[must_use]
pub fn restored(states: &[Vec<u8>], fingerprint: u64) -> Vec<(u64, u64, StateReader<'_>)> {
    let open = |state| {
        let mut reader = StateReader { bytes: state, names: HashMap::new() };
        let fits = reader.u64()? == MAGIC && reader.u64()? == fingerprint;
        let (worker, peers) = (reader.u64()?, reader.u64()?);
        fits.then_some((worker, peers, reader))
    };
    states.iter().filter_map(|state| open(state.as_slice())).collect()
}

/// Appends to a state. Little-endian numbers; text and bytes with their length before them.
#[derive(Debug)]
pub struct StateWriter(Vec<u8>);

impl StateWriter {
    /// Begins a state that only an operator with this `fingerprint` will read.
    #[must_use]
    pub fn new(fingerprint: u64, cx: &WorkerContext) -> Self {
        let mut writer = Self(Vec::new());
        for word in [MAGIC, fingerprint, cx.index as u64, cx.peers as u64] {
            writer.u64(word);
        }
        writer
    }

    /// Appends a number.
    pub fn u64(&mut self, n: u64) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    /// Appends a number.
    pub fn i64(&mut self, n: i64) {
        self.u64(n.cast_unsigned());
    }

    /// Appends a number.
    pub fn i128(&mut self, n: i128) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    /// Appends text.
    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Appends bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.u64(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// The state.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Reads a state; `None` where it is shorter than it says.
#[derive(Debug)]
pub struct StateReader<'a> {
    bytes: &'a [u8],
    /// Texts that were read before, to share them.
    names: HashMap<&'a str, Arc<str>>,
}

impl<'a> StateReader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.bytes.split_at_checked(len)?;
        self.bytes = tail;
        Some(head)
    }

    /// Reads a number.
    pub fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    /// Reads a number.
    pub fn i64(&mut self) -> Option<i64> {
        self.u64().map(u64::cast_signed)
    }

    /// Reads a number.
    pub fn i128(&mut self) -> Option<i128> {
        self.take(16)?.try_into().ok().map(i128::from_le_bytes)
    }

    /// Reads text.
    pub fn text(&mut self) -> Option<Arc<str>> {
        let text = std::str::from_utf8(self.bytes()?).ok()?;
        Some(Arc::clone(self.names.entry(text).or_insert_with(|| text.into())))
    }

    /// Reads bytes.
    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u64()?).ok()?;
        self.take(len)
    }
}
