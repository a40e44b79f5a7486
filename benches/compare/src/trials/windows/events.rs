//! The events of W8, and what must come out: each a function of its number.
//!
//! They are the JSON lines of the other workloads, but of one of [`TENANTS`] tenants.

use memchr::memmem;

use crate::data::{self, Dice, Format, STEP_MS};
use crate::error::Result;

/// How many keys there are.
pub(super) const TENANTS: u64 = 1000;
/// How many partitions the topics have: one, as with several a product that has one clock
/// for all of them drops the rest of one partition when it has read another to the events that close the windows.
pub(super) const PARTITIONS: u64 = 1;
/// By how much an event may be late, in seconds.
pub(super) const LATENESS: u64 = 120;
/// How much later than the last event those are that close the windows, in milliseconds.
const CLOSING_MS: u64 = 600_000;
const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 86_400_000;

/// What counts of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// Minutes after midnight.
    pub(super) minute: u64,
    /// Which tenant.
    pub(super) tenant: u64,
    /// The amount in hundredths.
    pub(super) cents: u64,
}

/// The name of a tenant.
pub(super) fn name(tenant: u64) -> String {
    format!("shop-{tenant:03}")
}

/// The inverse of [`name`].
pub(super) fn tenant(name: &str) -> Option<u64> {
    name.strip_prefix("shop-")?.parse().ok().filter(|tenant| *tenant < TENANTS)
}

/// Replaces the contents of `line` with event `index` and says what counts of it.
pub(super) fn event(index: u64, line: &mut Vec<u8>) -> Event {
    write(index, Dice::of(index ^ 0x7738).below(TENANTS), line)
}

/// Replaces the contents of `line` with the event of `tenant` that comes so long after `lines` others that their
/// windows close.
pub(super) fn closer(lines: u64, tenant: u64, line: &mut Vec<u8>) -> Event {
    write(lines + CLOSING_MS / STEP_MS, tenant, line)
}

fn write(index: u64, tenant: u64, line: &mut Vec<u8>) -> Event {
    line.clear();
    data::line(Format::Json, index, line);
    let cents = cents(line).expect("a line has an amount with two decimals");
    let before = memmem::rfind(line, b",\"tenant\":").expect("a line has a tenant, its last field");
    line.truncate(before);
    line.extend_from_slice(format!(",\"tenant\":\"{}\"}}", name(tenant)).as_bytes());
    Event { minute: index * STEP_MS / MINUTE_MS, tenant, cents }
}

fn cents(line: &[u8]) -> Option<u64> {
    const MARK: &[u8] = b"\"amount\":";
    let text = &line[memmem::find(line, MARK)? + MARK.len()..];
    let text = std::str::from_utf8(&text[..text.iter().position(|byte| *byte == b',')?]).ok()?;
    let (whole, rest) = text.split_once('.').filter(|(_, rest)| rest.len() == 2)?;
    Some(whole.parse::<u64>().ok()? * 100 + rest.parse::<u64>().ok()?)
}

/// What a window of a tenant must hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cell {
    /// How many events.
    pub(super) events: u64,
    /// The sum of their amounts, in hundredths.
    pub(super) cents: u64,
}

/// What must come out: a cell for every minute and tenant.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    cells: Vec<Cell>,
    /// Cells with events: the rows that must arrive.
    pub(super) rows: u64,
    /// How many events there are.
    pub(super) events: u64,
}

impl Expected {
    /// Of nothing so far; an error if `lines` events and those that close them are not within one day.
    pub(super) fn of(lines: u64) -> Result<Self> {
        let most = (DAY_MS - CLOSING_MS - MINUTE_MS) / STEP_MS;
        if lines == 0 || lines > most {
            return Err(
                format!("W8 takes 1 to {most} lines: they are {STEP_MS} ms apart, within a day").into()
            );
        }
        let minutes = lines * STEP_MS / MINUTE_MS + 1;
        Ok(Self { cells: vec![Cell::default(); (minutes * TENANTS) as usize], rows: 0, events: 0 })
    }

    /// Adds an event.
    pub(super) fn add(&mut self, event: Event) {
        let place = self.place(event.minute, event.tenant).expect("the event is one of the first lines");
        let cell = &mut self.cells[place];
        self.rows += u64::from(cell.events == 0);
        self.events += 1;
        cell.events += 1;
        cell.cents += event.cents;
    }

    /// How many cells there are.
    pub(super) fn len(&self) -> usize {
        self.cells.len()
    }

    /// The number of a cell; none if its window comes after all events, or holds none.
    pub(super) fn place(&self, minute: u64, tenant: u64) -> Option<usize> {
        let place = minute.checked_mul(TENANTS)?.checked_add(tenant)?;
        usize::try_from(place).ok().filter(|place| *place < self.cells.len())
    }

    /// What a cell must hold.
    pub(super) fn cell(&self, place: usize) -> Cell {
        self.cells[place]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn an_event_says_what_its_line_says() {
        let mut line = Vec::new();
        for index in [0, 29_999, 30_000, 1_234_567] {
            let event = event(index, &mut line);
            let value: Value = serde_json::from_slice(&line).expect("JSON");
            assert_eq!(value.as_object().map(serde_json::Map::len), Some(15));
            assert_eq!(value["tenant"].as_str().and_then(tenant), Some(event.tenant));
            assert_eq!(
                value["amount"].as_f64().map(|amount| (amount * 100.0).round() as u64),
                Some(event.cents)
            );
            let time = value["@timestamp"].as_str().expect("text");
            assert_eq!(&time[11..16], format!("{:02}:{:02}", event.minute / 60, event.minute % 60));
            assert_eq!(event.minute, index / 30_000);
        }
        assert_eq!((tenant("shop-999"), tenant("shop-1000"), tenant("mill")), (Some(999), None, None));
    }

    #[test]
    fn all_events_are_expected_and_those_that_close_come_late_enough() {
        let lines = 40_000;
        let mut expected = Expected::of(lines).expect("few lines");
        let (mut line, mut cents) = (Vec::new(), 0);
        for index in 0..lines {
            let event = event(index, &mut line);
            cents += event.cents;
            expected.add(event);
        }
        let cells = (0..expected.len()).map(|place| expected.cell(place));
        assert_eq!(cells.clone().map(|cell| cell.events).sum::<u64>(), lines);
        assert_eq!(cells.clone().map(|cell| cell.cents).sum::<u64>(), cents);
        assert_eq!(cells.filter(|cell| cell.events > 0).count() as u64, expected.rows);
        assert!(expected.rows > 1990, "nearly every tenant has events in both minutes");

        let last = closer(lines, 7, &mut line);
        let end = (lines * STEP_MS).div_ceil(MINUTE_MS);
        assert!(last.minute * 60 > end * 60 + LATENESS, "{last:?}");
        assert_eq!((last.tenant, expected.place(last.minute, 7)), (7, None));
    }

    #[test]
    fn more_than_a_day_is_refused() {
        assert!(Expected::of(42_000_000).is_ok());
        assert!(Expected::of(43_200_000).is_err() && Expected::of(0).is_err());
    }
}
