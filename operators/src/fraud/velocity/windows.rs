//! Violations: the rows of one key at which the window's value is at or above the threshold.

use std::collections::HashMap;
use std::sync::Arc;

use logdrive_schemas::Finding;

use super::events::{MessageId, Row};
use super::{Measure, Rules};

/// Values are whole numbers of millionths, so that a sum does not depend on the order of its parts.
pub(super) const UNIT: i128 = 1_000_000;

/// `value` in units; `None` if it is not a number. What is out of all range is cut off, so that sums cannot overflow.
pub(super) fn units(value: f64) -> Option<i128> {
    (!value.is_nan()).then(|| (value.clamp(-1e24, 1e24) * UNIT as f64).round() as i128)
}

/// A row that takes its window to the threshold, or keeps it there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Violation {
    /// The row's event time: the window's end.
    pub(super) at: i64,
    /// The row's message.
    pub(super) id: MessageId,
    /// The window's value, in units.
    pub(super) value: i128,
    /// Rows in the window.
    pub(super) n_rows: usize,
    pub(super) tenant: Option<Arc<str>>,
    pub(super) received_at: i64,
    /// The last rows in the window, oldest first.
    pub(super) evidence: Vec<MessageId>,
}

/// The first violation in each step of event time, given the live rows of a key in order.
///
/// The window of a row holds the rows at or before it, in order, whose time is after the row's minus the window.
pub(super) fn violations<'a>(rules: &Rules, rows: impl Iterator<Item = &'a Row>) -> Vec<Violation> {
    let rows: Vec<&Row> = rows.collect();
    let mut value = Value::new(rules.measure);
    let (mut first, mut last_step) = (0, None);
    let mut found = Vec::new();
    for (idx, row) in rows.iter().enumerate() {
        value.add(row.value);
        while rows[first].at <= row.at.saturating_sub(rules.window) {
            value.remove(rows[first].value);
            first += 1;
        }
        let step = row.at.div_euclid(rules.step());
        if value.units() < rules.threshold || last_step == Some(step) {
            continue;
        }
        last_step = Some(step);
        let oldest = first.max((idx + 1).saturating_sub(Finding::EVIDENCE_MAX));
        found.push(Violation {
            at: row.at,
            id: row.id.clone(),
            value: value.units(),
            n_rows: idx + 1 - first,
            tenant: row.tenant.clone(),
            received_at: row.received_at,
            evidence: rows[oldest..=idx].iter().map(|row| row.id.clone()).collect(),
        });
    }
    found
}

/// The value of a window that slides.
enum Value {
    Count(i128),
    Distinct(HashMap<i128, usize>),
    Sum(i128),
}

impl Value {
    fn new(measure: Measure) -> Self {
        match measure {
            Measure::Count => Self::Count(0),
            Measure::Distinct => Self::Distinct(HashMap::new()),
            Measure::Sum => Self::Sum(0),
        }
    }

    fn add(&mut self, value: i128) {
        match self {
            Self::Count(n) => *n += 1,
            Self::Distinct(counts) => *counts.entry(value).or_insert(0) += 1,
            // Values of our own making cannot overflow; those of a damaged state must not panic.
            Self::Sum(sum) => *sum = sum.wrapping_add(value),
        }
    }

    fn remove(&mut self, value: i128) {
        match self {
            Self::Count(n) => *n -= 1,
            Self::Distinct(counts) => {
                if let Some(n) = counts.get_mut(&value) {
                    *n -= 1;
                    if *n == 0 {
                        counts.remove(&value);
                    }
                }
            }
            Self::Sum(sum) => *sum = sum.wrapping_sub(value),
        }
    }

    fn units(&self) -> i128 {
        match self {
            Self::Count(n) => *n * UNIT,
            Self::Distinct(counts) => counts.len() as i128 * UNIT,
            Self::Sum(sum) => *sum,
        }
    }
}
