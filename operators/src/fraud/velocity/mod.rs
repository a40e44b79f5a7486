//! `velocity`: too much of something per key in a sliding window of event time.
//!
//! ```text
//! batches ─ input ─ exchange by key ─ retain ─► live rows, a differential collection ─ reduce ─► violations ─ notify
//! ```
//!
//! `input` evaluates the expressions on whole batches. `retain` takes rows in epoch order, keeps those that a window
//! may still need, and retracts the others, so the collection is always the live rows. `reduce` looks for violations
//! among all live rows of a key whose rows changed: a row that comes late, but within the lateness, changes the
//! windows that it falls into, wherever they are. `notify` says each new violation once, with a cool-down.
//!
//! Three operators have state (`input`, `retain`, `notify`); `reduce` is computed anew from the rows of `retain`.

mod config;
mod events;
mod input;
mod notify;
mod retain;
mod state;
mod windows;

use std::sync::Arc;

use differential_dataflow::operators::arrange::arrangement::arrange_core;
use differential_dataflow::trace::implementations::{ContainerChunker, ValBatcher, ValBuilder, ValSpine};
use logdrive_schemas::Severity;
use timely::dataflow::channels::pact::Pipeline;

pub use self::config::Velocity;
use self::events::{Key, Reader, Row};
use self::windows::Violation;
use crate::detector::{Detector, WorkerContext};
use crate::flow::BatchStream;

/// The version of the algorithm, as findings name it.
const VERSION: u32 = 1;

/// A change of a differential collection.
type Change<D> = ((Key, D), u64, isize);

/// What the detector was configured to do; times in microseconds.
#[derive(Clone, Debug)]
struct Rules {
    name: Arc<str>,
    /// Reads events from batches.
    reader: Reader,
    measure: Measure,
    /// In units of [`windows::UNIT`].
    threshold: i128,
    window: i64,
    lateness: i64,
    cooldown: i64,
    severity: Severity,
    max_rows_per_key: usize,
    max_rows: usize,
    /// Changes when old state does not fit any more.
    fingerprint: u64,
}

impl Rules {
    /// Of the violations of a key in each step of this length only the first one counts, which bounds how many there
    /// are for a key that stays above the threshold.
    fn step(&self) -> i64 {
        (self.cooldown / 16).max(1)
    }

    fn operator(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }
}

/// What is measured in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    Count,
    Distinct,
    Sum,
}

impl Measure {
    fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Distinct => "distinct",
            Self::Sum => "sum",
        }
    }
}

#[derive(Debug)]
struct VelocityDetector {
    rules: Arc<Rules>,
    reads: Vec<String>,
}

impl Detector for VelocityDetector {
    fn reads(&self) -> Vec<String> {
        self.reads.clone()
    }

    fn operators(&self) -> Vec<String> {
        [input::PART, retain::PART, notify::PART].map(|part| self.rules.operator(part)).to_vec()
    }

    fn fingerprints(&self) -> Vec<(String, u64)> {
        self.operators().into_iter().map(|operator| (operator, self.rules.fingerprint)).collect()
    }

    fn attach<'scope>(
        &self,
        input: BatchStream<'scope>,
        cx: &WorkerContext,
    ) -> (BatchStream<'scope>, BatchStream<'scope>) {
        let (events, rejects) = input::attach(input, &self.rules, cx);
        let (rows, bars) = retain::attach(events, &self.rules, cx);
        // `retain` has exchanged by a seeded hash of the key; differential's own exchange would not be seeded.
        let live = arrange_core::<
            _,
            _,
            ContainerChunker<Vec<Change<Row>>>,
            ValBatcher<Key, Row, u64, isize>,
            ValBuilder<Key, Row, u64, isize>,
            ValSpine<Key, Row, u64, isize>,
        >(rows, Pipeline, &self.rules.operator("live"));
        let rules = Arc::clone(&self.rules);
        let violations = live
            .reduce_abelian::<_, ValBuilder<_, _, _, _>, ValSpine<Key, Violation, u64, isize>, _, _>(
                &self.rules.operator("windows"),
                move |_, rows, out| {
                    let rows = rows.iter().map(|(row, _)| *row);
                    out.extend(windows::violations(&rules, rows).into_iter().map(|v| (v, 1)));
                },
                |batch, key, changes| {
                    batch.clear();
                    batch.extend(changes.drain(..).map(|(v, time, diff)| ((Key::clone(key), v), time, diff)));
                },
            )
            .as_collection(|key, violation| (Key::clone(key), violation.clone()));
        let findings = notify::attach(violations.inner, bars, &self.rules, cx);
        (findings, rejects)
    }
}
