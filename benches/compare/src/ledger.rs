//! What arrived: every line exactly once, or not.
//!
//! One bit per line, so order does not matter and neither a loss nor a repetition can hide behind the other. One line
//! in 97 is parsed and compared with what was sent.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use memchr::{memchr_iter, memmem};
use serde::Serialize;
use serde_json::Value;

use crate::data::{self, ID_MARK};
use crate::expect::{Expectation, Fidelity, from_otlp};

const SAMPLE: u64 = 97;

/// When the lines are meant to be sent. Latency counts from then, whether or not the sender was on time: a product
/// that stops the sender does not look better for it.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// When line 0 is due.
    pub start: Instant,
    /// Lines a second.
    pub rate: f64,
}

impl Pace {
    /// When line `index` is due.
    pub fn due(&self, index: u64) -> Instant {
        self.start + Duration::from_secs_f64(index as f64 / self.rate)
    }
}

/// Counts, compares and times lines. Shared by all connections of a receiver.
pub struct Ledger {
    expectation: Expectation,
    total: u64,
    seen: Vec<AtomicU64>,
    unique: AtomicU64,
    repeated: AtomicU64,
    unknown: AtomicU64,
    bytes: AtomicU64,
    sampled: AtomicU64,
    wrong: AtomicU64,
    text_numbers: AtomicBool,
    example: Mutex<Option<String>>,
    pace: OnceLock<Pace>,
    delays: Mutex<Histogram<u64>>,
    begun: Instant,
    latest: AtomicU64,
}

/// What a ledger found.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Verdict {
    /// Lines that must arrive.
    pub wanted: u64,
    /// Different lines that arrived.
    pub arrived: u64,
    /// Lines that arrived again.
    pub repeated: u64,
    /// Lines without an id, or with one that must not arrive.
    pub unknown: u64,
    /// Lines that were compared in full.
    pub compared: u64,
    /// Those that were not right.
    pub wrong: u64,
    /// Whether numbers arrived as text.
    pub numbers_as_text: bool,
    /// Bytes that arrived.
    pub bytes: u64,
    /// What was wrong with the first wrong line.
    pub example: Option<String>,
}

impl Verdict {
    /// Every line once and right.
    pub fn is_right(&self) -> bool {
        self.arrived == self.wanted && self.repeated == 0 && self.unknown == 0 && self.wrong == 0
    }

    /// What is not right, for a person; nothing if all is.
    pub fn faults(&self) -> String {
        let mut faults = Vec::new();
        if self.arrived != self.wanted {
            faults.push(format!("{} of {} missing", self.wanted.saturating_sub(self.arrived), self.wanted));
        }
        for (count, what) in [(self.repeated, "twice"), (self.unknown, "unknown"), (self.wrong, "wrong")] {
            if count > 0 {
                faults.push(format!("{count} {what}"));
            }
        }
        faults.extend(self.example.clone().filter(|_| self.wrong > 0));
        faults.join(", ")
    }
}

impl Ledger {
    /// An empty ledger.
    pub fn new(expectation: Expectation) -> Self {
        let words = usize::try_from(expectation.lines / 64 + 1).expect("a bit per line fits into memory");
        Self {
            total: expectation.total(),
            expectation,
            seen: (0..words).map(|_| AtomicU64::new(0)).collect(),
            unique: AtomicU64::new(0),
            repeated: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            sampled: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            text_numbers: AtomicBool::new(false),
            example: Mutex::new(None),
            pace: OnceLock::new(),
            delays: Mutex::new(delays()),
            begun: Instant::now(),
            latest: AtomicU64::new(0),
        }
    }

    /// From now on latency is measured.
    pub fn set_pace(&self, pace: Pace) {
        self.pace.get_or_init(|| pace);
    }

    /// Different lines that arrived so far.
    pub fn arrived(&self) -> u64 {
        self.unique.load(Relaxed)
    }

    /// Whether line `index` has arrived.
    pub fn has(&self, index: u64) -> bool {
        let word = self.seen.get((index / 64) as usize);
        word.is_some_and(|word| word.load(Relaxed) >> (index % 64) & 1 == 1)
    }

    /// Whether all lines are there.
    pub fn is_complete(&self) -> bool {
        self.arrived() >= self.total
    }

    /// When the latest new line arrived.
    pub fn latest(&self) -> Instant {
        self.begun + Duration::from_nanos(self.latest.load(Relaxed))
    }

    /// The latencies in microseconds.
    pub fn delays(&self) -> Histogram<u64> {
        self.delays.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What arrived.
    pub fn verdict(&self) -> Verdict {
        Verdict {
            wanted: self.total,
            arrived: self.arrived(),
            repeated: self.repeated.load(Relaxed),
            unknown: self.unknown.load(Relaxed),
            compared: self.sampled.load(Relaxed),
            wrong: self.wrong.load(Relaxed),
            numbers_as_text: self.text_numbers.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            example: self.example.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    fn fault(&self, what: String) {
        self.wrong.fetch_add(1, Relaxed);
        self.example.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
    }

    fn compare(&self, index: u64, found: &Value) {
        self.sampled.fetch_add(1, Relaxed);
        match self.expectation.check(index, found) {
            Ok(Fidelity::Kept) => {}
            Ok(Fidelity::NumbersAsText) => self.text_numbers.store(true, Relaxed),
            Err(why) => self.fault(format!("line {index}: {why}")),
        }
    }
}

/// An empty histogram of microseconds, up to an hour, to three digits.
pub fn delays() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("the bounds are in order")
}

/// One connection's part of the ledger: what it counts is added once per read, not once per line.
pub struct Page<'a> {
    ledger: &'a Ledger,
    finder: memmem::Finder<'static>,
    arrival: Instant,
    /// Microseconds.
    delays: Vec<u64>,
    unique: u64,
}

impl<'a> Page<'a> {
    /// An empty page.
    pub fn new(ledger: &'a Ledger) -> Self {
        Self {
            ledger,
            finder: memmem::Finder::new(ID_MARK),
            arrival: Instant::now(),
            delays: Vec::new(),
            unique: 0,
        }
    }

    /// What follows arrived now.
    pub fn arrive(&mut self, bytes: usize) {
        self.arrival = Instant::now();
        self.ledger.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Takes the whole lines of `text`; returns how many bytes they were.
    pub fn lines(&mut self, text: &[u8]) -> usize {
        let mut start = 0;
        for end in memchr_iter(b'\n', text) {
            self.line(&text[start..end]);
            start = end + 1;
        }
        self.settle();
        start
    }

    /// Takes one JSON document. [`Page::settle`] must follow.
    pub fn line(&mut self, line: &[u8]) {
        if line.is_empty() {
            return;
        }
        let Some(index) = self.finder.find(line).and_then(|at| data::index_of(&line[at + ID_MARK.len()..]))
        else {
            self.ledger.unknown.fetch_add(1, Relaxed);
            return;
        };
        if self.mark(index) && index % SAMPLE == 0 {
            match serde_json::from_slice(line) {
                Ok(found) => self.ledger.compare(index, &found),
                Err(error) => self.ledger.fault(format!("line {index} is no JSON: {error}")),
            }
        }
    }

    /// Takes a body of OTLP in JSON. All ids are counted; one body in 16 is parsed.
    pub fn otlp(&mut self, body: &[u8], parse: bool) {
        let found: Vec<usize> = self.finder.find_iter(body).collect();
        for at in found {
            if let Some(index) = data::index_of(&body[at + ID_MARK.len()..]) {
                self.mark(index);
            }
        }
        if parse {
            match serde_json::from_slice::<Value>(body) {
                Ok(body) => self.records(&body),
                Err(error) => self.ledger.fault(format!("a body is no JSON: {error}")),
            }
        }
        self.settle();
    }

    fn records(&self, body: &Value) {
        match body {
            Value::Object(fields) => match from_otlp(body) {
                Some(record) => {
                    let text = record.to_string();
                    let id = self.finder.find(text.as_bytes());
                    if let Some(index) =
                        id.and_then(|at| data::index_of(&text.as_bytes()[at + ID_MARK.len()..]))
                    {
                        self.ledger.compare(index, &record);
                    }
                }
                None => fields.values().for_each(|field| self.records(field)),
            },
            Value::Array(items) => items.iter().for_each(|item| self.records(item)),
            _ => {}
        }
    }

    /// Whether the line is new.
    fn mark(&mut self, index: u64) -> bool {
        let known = index < self.ledger.expectation.lines && self.ledger.expectation.wants(index);
        let Some(word) = self.ledger.seen.get((index / 64) as usize).filter(|_| known) else {
            self.ledger.unknown.fetch_add(1, Relaxed);
            return false;
        };
        let bit = 1 << (index % 64);
        if word.fetch_or(bit, Relaxed) & bit != 0 {
            self.ledger.repeated.fetch_add(1, Relaxed);
            return false;
        }
        self.unique += 1;
        if let Some(pace) = self.ledger.pace.get() {
            let delay = self.arrival.saturating_duration_since(pace.due(index)).as_micros();
            self.delays.push(u64::try_from(delay).unwrap_or(u64::MAX));
        }
        true
    }

    /// Makes what was taken visible to all.
    pub fn settle(&mut self) {
        if self.unique == 0 {
            return;
        }
        let arrival = self.arrival.saturating_duration_since(self.ledger.begun).as_nanos();
        self.ledger.latest.fetch_max(u64::try_from(arrival).unwrap_or(u64::MAX), Relaxed);
        if !self.delays.is_empty() {
            let mut all = self.ledger.delays.lock().unwrap_or_else(PoisonError::into_inner);
            self.delays.drain(..).for_each(|delay| all.saturating_record(delay));
        }
        self.ledger.unique.fetch_add(self.unique, Relaxed);
        self.unique = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Format;
    use crate::expect::Shape;

    fn text(indices: &[u64]) -> Vec<u8> {
        let mut out = Vec::new();
        for index in indices {
            data::line(Format::Json, *index, &mut out);
            out.push(b'\n');
        }
        out
    }

    fn ledger() -> Ledger {
        Ledger::new(Expectation { format: Format::Json, shape: Shape::Same, lines: 200 })
    }

    #[test]
    fn every_line_once_in_any_order_is_right() {
        let ledger = ledger();
        let mut page = Page::new(&ledger);
        let indices: Vec<u64> = (0..200).rev().collect();
        let text = text(&indices);
        page.arrive(text.len());
        let cut = text.len() / 2;
        let taken = page.lines(&text[..cut]);
        page.lines(&text[taken..]);
        assert!(ledger.is_complete());
        let verdict = ledger.verdict();
        assert!(verdict.is_right(), "{verdict:?}");
        assert_eq!(verdict.compared, 3);
    }

    #[test]
    fn a_repetition_does_not_hide_a_loss() {
        let ledger = ledger();
        let mut indices: Vec<u64> = (0..199).collect();
        indices.push(5);
        Page::new(&ledger).lines(&text(&indices));
        let verdict = ledger.verdict();
        assert!(!verdict.is_right() && !ledger.is_complete());
        assert_eq!((verdict.arrived, verdict.repeated), (199, 1));
        assert_eq!(verdict.faults(), "1 of 200 missing, 1 twice");
    }

    #[test]
    fn a_changed_value_and_a_strange_line_are_found() {
        let ledger = ledger();
        let sent = String::from_utf8(text(&[0, 1])).expect("text");
        let changed = sent.replacen("\"status\":", "\"status\":1", 1) + "{\"strange\":true}\n";
        Page::new(&ledger).lines(changed.as_bytes());
        let verdict = ledger.verdict();
        assert_eq!((verdict.arrived, verdict.wrong, verdict.unknown), (2, 1, 1));
    }

    #[test]
    fn latency_counts_from_the_intended_time() {
        let ledger = ledger();
        ledger.set_pace(Pace { start: Instant::now() - Duration::from_secs(1), rate: 1000.0 });
        let mut page = Page::new(&ledger);
        page.arrive(0);
        page.lines(&text(&[0, 100]));
        let delays = ledger.delays();
        assert_eq!(delays.len(), 2);
        assert!(delays.max() >= 1_000_000 && delays.min() >= 890_000 && delays.min() < 990_000, "{delays:?}");
    }
}
