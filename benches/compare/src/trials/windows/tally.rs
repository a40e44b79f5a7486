//! Which windows have arrived, and whether they are right: every window of every tenant once, with the count and the
//! sum of the events that were produced.

use std::time::Instant;

use jiff::Timestamp;
use serde_json::Value;

use super::events::{Cell, Expected, tenant};
use crate::ledger::Verdict;

/// Seconds of 2026-11-21T00:00:00Z.
const MIDNIGHT: i64 = 1_795_219_200;

/// Rows of the output topic against what is expected.
pub(super) struct Tally<'a> {
    expected: &'a Expected,
    seen: Vec<bool>,
    verdict: Verdict,
    events: u64,
    /// When the latest new row arrived.
    pub(super) latest: Instant,
}

impl<'a> Tally<'a> {
    /// Nothing has arrived.
    pub(super) fn new(expected: &'a Expected) -> Self {
        let verdict = Verdict { wanted: expected.rows, ..Verdict::default() };
        Self { expected, seen: vec![false; expected.len()], verdict, events: 0, latest: Instant::now() }
    }

    /// Whether every window is there.
    pub(super) fn is_complete(&self) -> bool {
        self.verdict.arrived >= self.verdict.wanted
    }

    /// What arrived. The counts of all windows must add up to the number of events.
    pub(super) fn verdict(&self) -> Verdict {
        let mut verdict = self.verdict.clone();
        if self.is_complete() && self.events != self.expected.events {
            verdict.wrong = verdict.wrong.max(1);
            let (counted, events) = (self.events, self.expected.events);
            verdict.example.get_or_insert(format!("{counted} events in all windows, not {events}"));
        }
        verdict
    }

    /// Takes a row of the output. Rows of the windows of the events that close the others do not count.
    pub(super) fn take(&mut self, line: &[u8]) {
        self.verdict.bytes += line.len() as u64 + 1;
        let Some(row) = Row::of(line) else {
            self.verdict.unknown += 1;
            self.verdict
                .example
                .get_or_insert_with(|| String::from_utf8_lossy(line).chars().take(200).collect());
            return;
        };
        let Some(place) = self.expected.place(row.minute, row.tenant) else { return };
        if self.expected.cell(place).events == 0 {
            self.verdict.unknown += 1;
        } else if self.seen[place] {
            self.verdict.repeated += 1;
        } else {
            self.seen[place] = true;
            self.latest = Instant::now();
            self.verdict.arrived += 1;
            self.verdict.compared += 1;
            self.events += row.cell.events;
            let wanted = self.expected.cell(place);
            if row.cell != wanted {
                self.verdict.wrong += 1;
                let Row { minute, tenant, cell } = row;
                self.verdict
                    .example
                    .get_or_insert(format!("minute {minute} of tenant {tenant}: {cell:?}, not {wanted:?}"));
            }
        }
    }
}

/// A row of the output.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    minute: u64,
    tenant: u64,
    cell: Cell,
}

impl Row {
    /// Reads a row; none if it is not one. Sums of binary fractions are rounded to hundredths.
    fn of(line: &[u8]) -> Option<Self> {
        let row: Value = serde_json::from_slice(line).ok()?;
        let start: Timestamp = row["window"].as_str()?.parse().ok()?;
        let seconds = u64::try_from(start.as_second() - MIDNIGHT).ok()?;
        let whole = seconds % 60 == 0 && start.subsec_nanosecond() == 0;
        let events = row["events"].as_u64()?;
        let cents = row["amount"].as_f64().filter(|amount| (0.0..1e12).contains(amount))? * 100.0;
        let cell = Cell { events, cents: cents.round() as u64 };
        // Pathway takes a row back with -1: that is a row too many.
        let stays = row.get("diff").is_none_or(|diff| *diff == 1);
        (whole && stays).then_some(Self {
            minute: seconds / 60,
            tenant: tenant(row["tenant"].as_str()?)?,
            cell,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::events::{event, name};
    use super::*;

    const LINES: u64 = 31_000;

    fn expected() -> Expected {
        let mut expected = Expected::of(LINES).expect("few lines");
        let mut line = Vec::new();
        (0..LINES).for_each(|index| expected.add(event(index, &mut line)));
        expected
    }

    /// The row of every cell that must arrive.
    fn rows(expected: &Expected) -> Vec<String> {
        let cells = (0..expected.len()).map(|place| (place as u64, expected.cell(place)));
        let row = |(place, cell): (u64, Cell)| {
            let (minute, tenant) = (place / 1000, name(place % 1000));
            let (events, amount) = (cell.events, cell.cents as f64 / 100.0);
            format!(
                r#"{{"tenant":"{tenant}","window":"2026-11-21T00:{minute:02}:00Z","events":{events},"amount":{amount}}}"#
            )
        };
        cells.filter(|(_, cell)| cell.events > 0).map(row).collect()
    }

    #[test]
    fn products_write_times_in_their_own_ways() {
        for time in [
            "2026-11-21T00:02:00Z",
            "2026-11-21T00:02:00+00:00",
            "2026-11-21T00:02:00.000000000+0000",
            "2026-11-21 00:02:00Z",
        ] {
            let text = format!(
                r#"{{"tenant":"shop-007","window":"{time}","events":2,"amount":30906.839999999997}}"#
            );
            let row = Row { minute: 2, tenant: 7, cell: Cell { events: 2, cents: 3_090_684 } };
            assert_eq!(Row::of(text.as_bytes()), Some(row), "{time}");
        }
        for other in [
            "",
            "{}",
            r#"{"tenant":"shop-007","window":"2026-11-21T00:02:30Z","events":2,"amount":1}"#,
            r#"{"tenant":"shop-007","window":"2026-11-20T00:02:00Z","events":2,"amount":1}"#,
            r#"{"tenant":"shop-007","window":"2026-11-21T00:02:00Z","events":2,"amount":1,"diff":-1}"#,
        ] {
            assert_eq!(Row::of(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn every_window_once_is_right_and_closing_windows_do_not_count() {
        let expected = expected();
        let mut tally = Tally::new(&expected);
        let rows = rows(&expected);
        rows.iter().rev().for_each(|row| tally.take(row.as_bytes()));
        tally.take(br#"{"tenant":"shop-007","window":"2026-11-21T00:13:00Z","events":1,"amount":1}"#);
        assert!(tally.is_complete());
        let verdict = tally.verdict();
        assert!(verdict.is_right(), "{verdict:?}");
        assert_eq!(verdict.compared, rows.len() as u64);
    }

    #[test]
    fn a_late_part_of_a_window_and_a_missing_one_are_found() {
        let expected = expected();
        let mut tally = Tally::new(&expected);
        let mut rows = rows(&expected);
        rows.pop();
        rows.push(rows[0].clone());
        rows[0] = rows[0].replacen("\"events\":", "\"events\":1", 1);
        rows.push("no row".to_owned());
        rows.iter().for_each(|row| tally.take(row.as_bytes()));
        let verdict = tally.verdict();
        assert!(!tally.is_complete() && !verdict.is_right());
        assert_eq!((verdict.arrived, verdict.wanted), (expected.rows - 1, expected.rows));
        assert_eq!((verdict.repeated, verdict.unknown, verdict.wrong), (1, 1, 1));
        assert!(verdict.faults().contains("minute 0"), "{}", verdict.faults());
    }
}
