//! State on its way into and out of checkpoints.

use std::collections::HashMap;
use std::sync::Arc;

use logdrive_schemas::chunk::Partition;

use super::Rules;
use super::events::{MessageId, Row};
use crate::detector::{Checkpoint, WorkerContext};

/// Marks the layout; another one is another word.
const MAGIC: u64 = u64::from_le_bytes(*b"velocty1");

/// Hands in an operator's state at every cut that its frontier passes.
#[derive(Debug)]
pub(super) struct Cuts {
    checkpoint: Arc<dyn Checkpoint>,
    operator: String,
    worker: usize,
    next: Option<u64>,
}

impl Cuts {
    pub(super) fn new(operator: String, cx: &WorkerContext) -> Self {
        Self { checkpoint: Arc::clone(&cx.checkpoint), operator, worker: cx.index, next: None }
    }

    /// The state is that of all epochs before `epoch`, and `state` writes it down.
    pub(super) fn pass(&mut self, epoch: u64, mut state: impl FnMut() -> Vec<u8>) {
        // Before anything is known the frontier is at zero; from there it jumps to the present.
        if epoch == 0 {
            return;
        }
        let mut next = *self.next.get_or_insert_with(|| self.checkpoint.next_cut(epoch));
        while next <= epoch && next < u64::MAX {
            self.checkpoint.put(&self.operator, self.worker, next, state());
            next = self.checkpoint.next_cut(next + 1).max(next + 1);
        }
        self.next = Some(next);
    }
}

/// The states that fit `rules`: which worker of how many wrote it, and how to read on.
pub(super) fn restored<'a>(states: &'a [Vec<u8>], rules: &Rules) -> Vec<(u64, u64, Reader<'a>)> {
    let open = |state: &'a Vec<u8>| {
        let mut reader = Reader { bytes: state, names: HashMap::new() };
        let fits = reader.u64()? == MAGIC && reader.u64()? == rules.fingerprint;
        let (worker, peers) = (reader.u64()?, reader.u64()?);
        fits.then_some((worker, peers, reader))
    };
    states.iter().filter_map(open).collect()
}

/// Appends to a state. Little-endian numbers; text with its length before it.
#[derive(Debug)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn new(rules: &Rules, cx: &WorkerContext) -> Self {
        let mut writer = Self(Vec::new());
        for word in [MAGIC, rules.fingerprint, cx.index as u64, cx.peers as u64] {
            writer.u64(word);
        }
        writer
    }

    pub(super) fn u64(&mut self, n: u64) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    pub(super) fn i64(&mut self, n: i64) {
        self.u64(n.cast_unsigned());
    }

    pub(super) fn text(&mut self, text: &str) {
        self.u64(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    pub(super) fn row(&mut self, row: &Row) {
        self.i64(row.at);
        self.text(&row.id.source);
        self.u64(row.id.partition.0);
        self.u64(row.id.offset);
        self.0.extend_from_slice(&row.value.to_le_bytes());
        self.u64(u64::from(row.tenant.is_some()));
        self.text(row.tenant.as_deref().unwrap_or_default());
        self.i64(row.received_at);
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Reads a state; `None` where it is shorter than it says.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    /// Texts that were read before, to share them.
    names: HashMap<&'a str, Arc<str>>,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.bytes.split_at_checked(len)?;
        self.bytes = tail;
        Some(head)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Option<i64> {
        self.u64().map(u64::cast_signed)
    }

    pub(super) fn text(&mut self) -> Option<Arc<str>> {
        let len = usize::try_from(self.u64()?).ok()?;
        let text = std::str::from_utf8(self.take(len)?).ok()?;
        Some(Arc::clone(self.names.entry(text).or_insert_with(|| text.into())))
    }

    pub(super) fn row(&mut self) -> Option<Row> {
        let at = self.i64()?;
        let id = MessageId { source: self.text()?, partition: Partition(self.u64()?), offset: self.u64()? };
        let value = i128::from_le_bytes(self.take(16)?.try_into().ok()?);
        let has_tenant = self.u64()? == 1;
        let tenant = self.text()?;
        let received_at = self.i64()?;
        Some(Row { at, id, value, tenant: has_tenant.then_some(tenant), received_at })
    }
}
