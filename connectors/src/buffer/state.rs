//! What the writer of a buffer and its reader share, in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow::array::{Array, StructArray};
use arrow::buffer::Buffer;
use arrow::compute::concat;
use logdrive_schemas::{Chunk, MessageRange, Partition};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::record::Record;
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::source::Budget;

/// Records of at least this many bytes are handed out alone, as a view; smaller ones are copied together.
const COMBINE_BELOW: usize = 256 << 10;

/// How finely delivered bytes are given back, in bytes: one entry for each run of this size.
const SPAN_BYTES: u64 = 256 << 10;

/// How long the writer lets a reader that is nearly up with it catch up: less than a sender would notice, which has its
/// answer already.
const CATCH_UP: Duration = Duration::from_millis(50);

/// The state, and the signals that it changed.
pub(super) struct Shared {
    cx: ConnectorContext,
    bytes_max: u64,
    state: Mutex<State>,
    /// There is more to read, or it ended.
    pub(super) data: Notify,
    /// Something was delivered.
    pub(super) room: Notify,
    /// Something was handed out.
    taken: Notify,
    /// The source was dropped: the writer must let go of the folder.
    pub(super) closed: CancellationToken,
}

/// Guarded by [`Shared::lock`].
pub(super) struct State {
    /// Records to hand out next; the first may be handed out in part.
    memory: VecDeque<Record>,
    memory_bytes: usize,
    /// The next message to hand out.
    read: u64,
    /// The number after the last durable message.
    end: u64,
    /// Messages before this one are delivered.
    delivered: u64,
    spans: VecDeque<Span>,
    undelivered_bytes: u64,
    undelivered_messages: u64,
    /// About how much was not handed out, on disk and in memory.
    unread_bytes: u64,
    /// Whether waiting for the reader was in vain, and it has taken nothing since.
    stands_still: bool,
    outcome: Option<Outcome>,
}

/// A run of messages that is given back at once.
struct Span {
    end: u64,
    bytes: u64,
    messages: u64,
}

/// Why no more will come.
pub(super) enum Outcome {
    /// The listener ended; an error of its own is returned once everything is read.
    Ended(Option<ConnectorError>),
    /// The disk failed: nothing more is read, for what is promised may not be kept.
    Failed(ConnectorError),
}

impl Shared {
    /// The state of a buffer whose next message is `end`, holding up to `bytes_max` undelivered bytes.
    pub(super) fn new(cx: &ConnectorContext, bytes_max: u64, delivered: u64, end: u64) -> Self {
        Self {
            cx: cx.clone(),
            bytes_max,
            state: Mutex::new(State {
                memory: VecDeque::new(),
                memory_bytes: 0,
                read: delivered,
                end,
                delivered,
                spans: VecDeque::new(),
                undelivered_bytes: 0,
                undelivered_messages: 0,
                unread_bytes: 0,
                stands_still: false,
                outcome: None,
            }),
            data: Notify::new(),
            room: Notify::new(),
            taken: Notify::new(),
            closed: CancellationToken::new(),
        }
    }

    /// The state. A poisoned lock is taken all the same: no method leaves it half-changed.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the buffer is not full; false if the source was dropped.
    pub(super) async fn wait_for_room(&self) -> bool {
        loop {
            if self.closed.is_cancelled() {
                return false;
            }
            if self.lock().undelivered_bytes < self.bytes_max {
                return true;
            }
            tokio::select! {
                () = self.room.notified() => {}
                () = self.closed.cancelled() => return false,
            }
        }
    }

    /// Waits a moment, if that keeps `records` in memory: once one record has to be read from disk, all that follow do
    /// until the reader is up with the writer, and reading is dearer than waiting. Not for a reader that stands still or
    /// is far behind.
    pub(super) async fn wait_for_reader(&self, records: &[Record], memory_max: usize) {
        let deadline = Instant::now() + CATCH_UP;
        let bytes: usize = records.iter().map(Record::bytes).sum();
        let Some(first) = records.first().map(|record| record.first) else { return };
        let has_room = || {
            let state = self.lock();
            let fits = state.memory_end() == first && state.memory_bytes + bytes <= memory_max;
            fits || state.stands_still
                || state.read == state.end
                || 2 * memory_max as u64 <= state.unread_bytes
        };
        while !has_room() {
            tokio::select! {
                () = self.taken.notified() => {}
                () = sleep_until(deadline) => {
                    self.lock().stands_still = true;
                    return;
                }
                () = self.closed.cancelled() => return,
            }
        }
    }

    /// Makes durable records available. They are kept in memory only if they follow what is there, up to
    /// `memory_max` bytes; otherwise they will be read from disk.
    pub(super) fn publish(&self, records: Vec<Record>, memory_max: usize) {
        let mut state = self.lock();
        for record in records {
            state.account(&record, self.bytes_max);
            if state.memory.is_empty() && state.read == state.end {
                // Numbers may have been left out.
                state.read = record.first;
            }
            state.end = record.end();
            if state.memory_end() == record.first && state.memory_bytes + record.bytes() <= memory_max {
                state.push(record);
            }
        }
        self.show(&state);
        drop(state);
        self.data.notify_one();
    }

    /// Counts a run of messages before `end` that an earlier process left.
    pub(super) fn found(&self, end: u64, bytes: u64, messages: u64) {
        let mut state = self.lock();
        if state.delivered < end {
            state.unread_bytes += bytes;
            state.undelivered_bytes += bytes;
            state.undelivered_messages += messages;
            state.spans.push_back(Span { end, bytes, messages });
            self.show(&state);
        }
    }

    /// Everything before `upto` is delivered. Returns how far that is, and whether it is everything there is.
    pub(super) fn delivered(&self, upto: u64) -> (u64, bool) {
        let mut state = self.lock();
        state.delivered = state.delivered.max(upto);
        while let Some(span) = state.spans.pop_front_if(|span| span.end <= upto) {
            state.undelivered_bytes -= span.bytes;
            state.undelivered_messages -= span.messages;
        }
        self.show(&state);
        self.room.notify_one();
        (state.delivered, state.end <= state.delivered)
    }

    /// Says that no more will come.
    pub(super) fn finish(&self, outcome: Outcome) {
        self.lock().outcome.get_or_insert(outcome);
        self.data.notify_one();
    }

    /// The next chunk, if it is in memory.
    pub(super) fn take(&self, partition: Partition, budget: Budget) -> Option<Chunk> {
        let (pieces, peer) = self.lock().take(budget)?;
        self.taken.notify_one();
        Some(chunk(&self.cx.name, partition, pieces, peer))
    }

    fn show(&self, state: &State) {
        let labels = [&*self.cx.name];
        let gauge = |n| i64::try_from(n).unwrap_or(i64::MAX);
        self.cx.metrics.buffer_bytes.with_label_values(&labels).set(gauge(state.undelivered_bytes));
        self.cx.metrics.buffer_messages.with_label_values(&labels).set(gauge(state.undelivered_messages));
    }
}

/// What a reader is to do if nothing is in memory.
pub(super) enum Next {
    /// Read from disk, from the first number to before the second.
    Disk(u64, u64),
    /// Wait for data.
    Wait,
    /// Return this.
    Stop(ConnectorError),
}

impl State {
    /// What to do now that there is nothing in memory.
    pub(super) fn next(&mut self) -> Next {
        let failed = matches!(self.outcome, Some(Outcome::Failed(_)));
        if !failed && self.memory.is_empty() && self.read < self.end {
            return Next::Disk(self.read, self.end);
        }
        match self.outcome.replace(Outcome::Ended(None)) {
            None => {
                self.outcome = None;
                Next::Wait
            }
            Some(Outcome::Ended(error)) => Next::Stop(error.unwrap_or(ConnectorError::End)),
            Some(Outcome::Failed(error)) => {
                // It stays failed, whoever asks again.
                let again = ConnectorError::refused("buffer", "it failed before");
                self.outcome = Some(Outcome::Failed(again));
                Next::Stop(error)
            }
        }
    }

    /// Whether the disk failed, so that not even what is in memory may go on.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.outcome, Some(Outcome::Failed(_)))
    }

    /// Adds records read from disk.
    pub(super) fn refill(&mut self, records: Vec<Record>) {
        for record in records {
            // Numbers may have been left out: what is handed out next is what is there.
            if self.memory.is_empty() {
                self.read = self.read.max(record.first);
            }
            self.push(record);
        }
    }

    fn memory_end(&self) -> u64 {
        self.memory.back().map_or(self.read, Record::end)
    }

    fn push(&mut self, record: Record) {
        self.memory_bytes += record.bytes();
        self.memory.push_back(record);
    }

    fn account(&mut self, record: &Record, bytes_max: u64) {
        let (bytes, messages) = (record.payload() as u64, record.messages.len() as u64);
        self.unread_bytes += bytes;
        self.undelivered_bytes += bytes;
        self.undelivered_messages += messages;
        let span_bytes = SPAN_BYTES.min(bytes_max / 8);
        match self.spans.back_mut().filter(|span| span.bytes < span_bytes) {
            Some(span) => {
                span.end = record.end();
                span.bytes += bytes;
                span.messages += messages;
            }
            None => self.spans.push_back(Span { end: record.end(), bytes, messages }),
        }
    }

    /// Takes up to `budget` from memory: one large record or several small ones.
    fn take(&mut self, budget: Budget) -> Option<(Vec<Record>, Option<Arc<str>>)> {
        let mut pieces: Vec<Record> = Vec::new();
        let (mut bytes, mut messages) = (0, 0);
        while let Some(record) = self.memory.front() {
            if pieces.first().is_some_and(|first| !have_same_attributes(first, record)) {
                break;
            }
            let skip = usize::try_from(self.read.saturating_sub(record.first)).unwrap_or(usize::MAX);
            let rest = &record.messages[skip.min(record.messages.len())..];
            let Some(head) = rest.first() else {
                self.drop_front();
                continue;
            };
            let fits = |m: &&MessageRange| {
                bytes + (m.start + m.len - head.start) as usize <= budget.bytes.min(i32::MAX as usize)
            };
            let mut n = rest.iter().take(budget.messages.saturating_sub(messages)).take_while(fits).count();
            if pieces.is_empty() {
                n = n.max(1);
            }
            let Some(last) = n.checked_sub(1).map(|last| rest[last]) else { break };
            let size = (last.start + last.len - head.start) as usize;
            if !pieces.is_empty() && COMBINE_BELOW <= size {
                break;
            }
            let range = head.start as usize..(last.start + last.len) as usize;
            let messages_rebased =
                rest[..n].iter().map(|m| MessageRange { start: m.start - head.start, len: m.len });
            let piece = Record {
                first: record.first + skip as u64,
                received_at: record.received_at,
                peer: record.peer.clone(),
                messages: messages_rebased.collect(),
                attributes: record.attributes.as_ref().map(|a| a.slice(skip, n)),
                data: record.data.slice(range),
            };
            bytes += size;
            messages += n;
            self.read = piece.end();
            self.unread_bytes = self.unread_bytes.saturating_sub(size as u64);
            let whole = n == rest.len();
            pieces.push(piece);
            if whole {
                self.drop_front();
            }
            if !whole || COMBINE_BELOW <= size {
                break;
            }
        }
        if self.read == self.end {
            self.unread_bytes = 0;
        }
        let peer = pieces.first()?.peer.clone();
        self.stands_still = false;
        let peer = peer.filter(|peer| pieces.iter().all(|p| p.peer.as_ref() == Some(peer)));
        Some((pieces, peer))
    }

    fn drop_front(&mut self) {
        if let Some(record) = self.memory.pop_front() {
            self.memory_bytes -= record.bytes();
        }
    }
}

/// Whether two records fit into one chunk; not if the configuration changed between them.
fn have_same_attributes(a: &Record, b: &Record) -> bool {
    match (&a.attributes, &b.attributes) {
        (None, None) => true,
        (Some(a), Some(b)) => a.data_type() == b.data_type(),
        _ => false,
    }
}

/// The attributes of all pieces, which have the same.
fn joined_attributes(pieces: &[Record]) -> Option<StructArray> {
    let all: Vec<&dyn Array> = pieces.iter().filter_map(|p| p.attributes.as_ref().map(|a| a as _)).collect();
    if all.is_empty() {
        return None;
    }
    // Attributes are an addition: that they are too large for one array must not stop the messages.
    concat(&all).ok()?.as_any().downcast_ref::<StructArray>().cloned()
}

/// One record becomes a view, several are copied together. The time of arrival is that of the first; the sender is
/// named if all have the same.
fn chunk(source: &Arc<str>, partition: Partition, mut pieces: Vec<Record>, peer: Option<Arc<str>>) -> Chunk {
    let (received_at, next_offset) = (pieces[0].received_at, pieces[pieces.len() - 1].end());
    let offsets = pieces.iter().flat_map(|p| p.first..p.end()).collect();
    let (data, messages, attributes) = if pieces.len() == 1 {
        let piece = pieces.remove(0);
        (Buffer::from(piece.data), piece.messages, piece.attributes)
    } else {
        let mut data = Vec::with_capacity(pieces.iter().map(|p| p.data.len()).sum());
        let mut messages = Vec::with_capacity(pieces.iter().map(|p| p.messages.len()).sum());
        for piece in &pieces {
            let base = u32::try_from(data.len()).expect("a chunk is bounded by i32::MAX");
            messages
                .extend(piece.messages.iter().map(|m| MessageRange { start: base + m.start, len: m.len }));
            data.extend_from_slice(&piece.data);
        }
        (Buffer::from_vec(data), messages, joined_attributes(&pieces))
    };
    let source = Arc::clone(source);
    Chunk { source, partition, data, messages, offsets, received_at, peer, attributes, next_offset }
}
