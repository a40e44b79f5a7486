//! The events of the benchmark as batches.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryViewArray, Int64Array, RecordBatch, StringViewArray, TimestampMicrosecondArray,
    UInt64Array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use logdrive_queries::views::Table;
use logdrive_schemas::chunk::Partition;
use logdrive_schemas::{Batch, Layout, Origin};
use nexmark::EventGenerator;
use nexmark::config::NexmarkConfig;
use nexmark::event::{Auction, Bid, Event, Person};

/// The tables, in the order of [`Epoch`].
pub const TABLES: [&str; 3] = ["person", "auction", "bid"];

/// The columns of a table.
#[must_use]
pub fn schema(table: &str) -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let (int, text) = (DataType::Int64, DataType::Utf8View);
    let fields: Vec<(&str, DataType)> = match table {
        "person" => vec![
            ("id", int),
            ("name", text.clone()),
            ("email_address", text.clone()),
            ("credit_card", text.clone()),
            ("city", text.clone()),
            ("state", text.clone()),
            ("date_time", time),
            ("extra", text),
        ],
        "auction" => vec![
            ("id", int.clone()),
            ("item_name", text.clone()),
            ("description", text.clone()),
            ("initial_bid", int.clone()),
            ("reserve", int.clone()),
            ("date_time", time.clone()),
            ("expires", time),
            ("seller", int.clone()),
            ("category", int),
            ("extra", text),
        ],
        _ => vec![
            ("auction", int.clone()),
            ("bidder", int.clone()),
            ("price", int),
            ("channel", text.clone()),
            ("url", text.clone()),
            ("date_time", time),
            ("extra", text),
        ],
    };
    let fields = fields.into_iter().map(|(name, data_type)| Field::new(name, data_type, true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// What a view can name.
#[must_use]
pub fn table(name: &str) -> Table {
    Table { name: name.to_owned(), schema: schema(name), changes: false, fingerprint: 0 }
}

/// When the first event happens, in milliseconds since the Unix epoch: noon of 1 January 2026. Fixed, so that all runs
/// have the same events.
const BEGIN: u64 = 1_767_268_800_000;

/// The rows of each table that come in one epoch.
pub type Epoch = [Option<Batch>; 3];

/// `n_events` events in the order of their time, so many to an epoch.
#[must_use]
pub fn generate(n_events: usize, per_epoch: usize) -> Vec<Epoch> {
    let mut generator = EventGenerator::new(NexmarkConfig { base_time: BEGIN, ..NexmarkConfig::default() });
    let mut offsets = [0; 3];
    let mut epochs = Vec::new();
    let mut left = n_events;
    while left > 0 {
        let (mut persons, mut auctions, mut bids) = (Vec::new(), Vec::new(), Vec::new());
        for event in generator.by_ref().take(left.min(per_epoch)) {
            match event {
                Event::Person(person) => persons.push(person),
                Event::Auction(auction) => auctions.push(auction),
                Event::Bid(bid) => bids.push(bid),
            }
        }
        left = left.saturating_sub(per_epoch);
        let columns = [of_persons(&persons), of_auctions(&auctions), of_bids(&bids)];
        let mut tables = columns.into_iter().enumerate();
        epochs.push(std::array::from_fn(|_| {
            let (idx, columns) = tables.next()?;
            let rows = RecordBatch::try_new(schema(TABLES[idx]), columns).ok()?;
            let first = offsets[idx];
            offsets[idx] += rows.num_rows() as u64;
            batch(TABLES[idx], first, rows)
        }));
    }
    epochs
}

fn batch(table: &str, first: u64, rows: RecordBatch) -> Option<Batch> {
    let n_rows = rows.num_rows();
    let origin =
        Origin { source: table.into(), partition: Partition(0), ordered: true, received_at: 0, peer: None };
    let original = BinaryViewArray::from_iter_values(std::iter::repeat_n(b"", n_rows));
    let offsets = UInt64Array::from_iter_values(first..first + n_rows as u64);
    Batch::new(rows, original, offsets, Arc::new(origin), Arc::new(Layout::Columns))
}

fn ints<T>(rows: &[T], of: impl Fn(&T) -> usize) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| of(row) as i64)))
}

fn texts<'a, T>(rows: &'a [T], of: impl Fn(&'a T) -> &'a String) -> ArrayRef {
    Arc::new(StringViewArray::from_iter_values(rows.iter().map(of)))
}

fn times<T>(rows: &[T], of: impl Fn(&T) -> u64) -> ArrayRef {
    let times = rows.iter().map(|row| (of(row) * 1_000).cast_signed());
    Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
}

fn of_persons(rows: &[Person]) -> Vec<ArrayRef> {
    vec![
        ints(rows, |row| row.id),
        texts(rows, |row| &row.name),
        texts(rows, |row| &row.email_address),
        texts(rows, |row| &row.credit_card),
        texts(rows, |row| &row.city),
        texts(rows, |row| &row.state),
        times(rows, |row| row.date_time),
        texts(rows, |row| &row.extra),
    ]
}

fn of_auctions(rows: &[Auction]) -> Vec<ArrayRef> {
    vec![
        ints(rows, |row| row.id),
        texts(rows, |row| &row.item_name),
        texts(rows, |row| &row.description),
        ints(rows, |row| row.initial_bid),
        ints(rows, |row| row.reserve),
        times(rows, |row| row.date_time),
        times(rows, |row| row.expires),
        ints(rows, |row| row.seller),
        ints(rows, |row| row.category),
        texts(rows, |row| &row.extra),
    ]
}

fn of_bids(rows: &[Bid]) -> Vec<ArrayRef> {
    vec![
        ints(rows, |row| row.auction),
        ints(rows, |row| row.bidder),
        ints(rows, |row| row.price),
        texts(rows, |row| &row.channel),
        texts(rows, |row| &row.url),
        times(rows, |row| row.date_time),
        texts(rows, |row| &row.extra),
    ]
}
