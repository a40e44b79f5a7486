//! Every view equals DataFusion's batch answer over the same rows, however they come.

mod delta;
mod finals;
mod functions;
mod harness;
mod later;
mod reference;
mod slt;
mod state;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BinaryViewArray, Float64Array, Int64Array, RecordBatch, StringViewArray,
    TimestampMicrosecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::Result;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use logdrive_operators::{CompileError, View};
use logdrive_schemas::chunk::Partition;
use logdrive_schemas::{Batch, Layout, Origin};
use proptest::prelude::*;

use self::harness::{CUT_EVERY, Epochs, Outcome, Run};
use super::{Emit, Table, ViewOptions, plan, sql, windows};
use crate::compiler::Positions;
use crate::functions::Functions;
use crate::session;

const SECOND: i64 = 1_000_000;
/// The clock of the first epoch, in milliseconds; event time is about the same.
const START: u64 = 1_700_000_000_000;
const LATENESS: i64 = 20 * SECOND;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("@timestamp", windows::time_type(), true),
        Field::new("tenant", DataType::Utf8View, true),
        Field::new("n", DataType::Int64, true),
        Field::new("amount", DataType::Float64, true),
    ]))
}

pub(super) fn events() -> Table {
    Table { name: "events".into(), schema: schema(), changes: false, fingerprint: 0 }
}

pub(super) fn options(emit: Emit) -> ViewOptions {
    ViewOptions {
        name: "v".into(),
        emit,
        lateness: Duration::from_micros(LATENESS as u64),
        idle_timeout: Duration::from_secs(60),
        max_bytes: 1 << 30,
        retain: Duration::from_secs(100_000),
        unbounded: true,
        functions: Functions::default(),
    }
}

/// Few cases, unless PROPTEST_CASES says how many: each runs a view several times.
fn cases(few: u32) -> ProptestConfig {
    let said = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: said.unwrap_or(few), ..ProptestConfig::default() }
}

fn view(sql: &str, emit: Emit) -> Result<Arc<dyn View>, CompileError> {
    plan(sql, &[events()], options(emit))
}

/// A row of the test's input.
#[derive(Clone, Debug)]
struct Row {
    at: Option<i64>,
    tenant: Option<&'static str>,
    n: Option<i64>,
    amount: Option<f64>,
}

fn columns(rows: &[Row]) -> Vec<ArrayRef> {
    vec![
        Arc::new(rows.iter().map(|r| r.at).collect::<TimestampMicrosecondArray>().with_timezone("UTC")),
        Arc::new(rows.iter().map(|r| r.tenant).collect::<StringViewArray>()),
        Arc::new(rows.iter().map(|r| r.n).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|r| r.amount).collect::<Float64Array>()),
    ]
}

/// A row that is like no other, some columns of it.
pub(super) fn row_like_no_other(n: i64, columns_of: &Schema) -> RecordBatch {
    let row = Row { at: Some(n), tenant: Some("a"), n: Some(n), amount: Some(n as f64 / 3.0) };
    let all = RecordBatch::try_new(schema(), columns(&[row])).unwrap();
    let columns = columns_of.fields().iter().map(|field| schema().index_of(field.name()).unwrap());
    all.project(&columns.collect::<Vec<_>>()).unwrap()
}

fn batch(partition: u64, first: u64, rows: &[Row]) -> Batch {
    let columns = RecordBatch::try_new(schema(), columns(rows)).unwrap();
    let origin = Origin {
        source: "in".into(),
        partition: Partition(partition),
        ordered: true,
        received_at: 0,
        peer: None,
    };
    let original = BinaryViewArray::from_iter_values(rows.iter().map(|_| b"{}"));
    let offsets = UInt64Array::from_iter_values(first..first + rows.len() as u64);
    Batch::new(columns, original, offsets, Arc::new(origin), Arc::new(Layout::Columns)).unwrap()
}

/// The rows of each partition, in the order of its log. Within the lateness, so none is late.
fn arb_partitions() -> impl Strategy<Value = Vec<Vec<Row>>> {
    let tenant =
        prop_oneof![Just(None), Just(Some("a")), Just(Some("b")), Just(Some("a longer tenant's name"))];
    let row = (0..LATENESS, 0..8 * SECOND, tenant, prop::option::of(-3..6i64), prop::option::of(-40..40i32));
    let partition = prop::collection::vec(row, 0..60).prop_map(|rows| {
        let mut at = START as i64 * 1_000;
        let row = |(back, step, tenant, n, amount): (i64, i64, _, _, Option<i32>)| {
            at += step;
            Row { at: Some(at - back), tenant, n, amount: amount.map(f64::from) }
        };
        rows.into_iter().map(row).collect()
    });
    prop::collection::vec(partition, 1..4)
}

/// Cuts partitions into batches, and these into epochs, by the numbers in `cuts`.
fn epochs(partitions: &[Vec<Row>], cuts: &[u8]) -> Epochs {
    let mut cuts = cuts.iter().copied().cycle();
    let mut next = move || usize::from(cuts.next().unwrap_or(1));
    let mut epochs = Epochs::new();
    let mut epoch = START;
    let mut at = vec![0; partitions.len()];
    // Grows, so that no numbers in `cuts` go on for ever without a row.
    let mut n = 0;
    while at.iter().zip(partitions).any(|(at, rows)| *at < rows.len()) {
        epoch += 1 + 40 * next() as u64;
        n += 1;
        let batches = epochs.entry(epoch).or_default();
        for (partition, rows) in partitions.iter().enumerate() {
            // All partitions are known from the first epoch on: one that appears later may be late as a whole.
            let n_rows = ((next() + n) % 7).max(usize::from(n == 1));
            let end = rows.len().min(at[partition] + n_rows);
            if end > at[partition] {
                batches.push(batch(partition as u64, at[partition] as u64, &rows[at[partition]..end]));
            }
            at[partition] = end;
        }
    }
    // Whole seconds, so that there are cuts in between and behind.
    let end = epoch + 3 * CUT_EVERY;
    epochs.entry(end).or_default();
    epochs
}

fn formatted(rows: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let columns: Vec<_> = rows
        .columns()
        .iter()
        .map(|column| match column.data_type() {
            // Sums in another order differ in the last digits.
            DataType::Float64 => arrow::compute::cast(column, &DataType::Float32).unwrap(),
            _ => Arc::clone(column),
        })
        .collect();
    let formats: Vec<_> = columns.iter().map(|c| ArrayFormatter::try_new(c, &options).unwrap()).collect();
    (0..rows.num_rows())
        .map(|row| formats.iter().map(|f| f.value(row).to_string()).collect::<Vec<_>>().join("|"))
        .collect()
}

/// The answer of DataFusion over all rows at once. A row of hopping windows comes once for each of them, as `hop`.
fn batch_answer(sql: &str, rows: &[Row], hop: Option<(i64, i64)>) -> Vec<String> {
    try_batch_answer(sql, rows, hop).unwrap()
}

fn try_batch_answer(sql: &str, rows: &[Row], hop: Option<(i64, i64)>) -> Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let context = SessionContext::new_with_state(session::builder().build());
    windows::udfs().for_each(|udf| context.register_udf(udf));
    let mut expanded = rows.to_vec();
    let mut starts = vec![None; rows.len()];
    if let Some((slide, size)) = hop {
        (expanded, starts) = (Vec::new(), Vec::new());
        for row in rows {
            let at = row.at.unwrap();
            let last = at.div_euclid(slide) * slide;
            for start in (0..).map(|n| last - n * slide).take_while(|start| start + size > at) {
                expanded.push(row.clone());
                starts.push(Some(start));
            }
        }
    }
    let mut fields = schema().fields().to_vec();
    fields.push(Arc::new(Field::new("hop", windows::time_type(), true)));
    let with_hop = Arc::new(Schema::new(fields));
    let mut columns = columns(&expanded);
    let starts: TimestampMicrosecondArray = starts.into_iter().collect();
    columns.push(Arc::new(starts.with_timezone("UTC")));
    let rows = RecordBatch::try_new(Arc::clone(&with_hop), columns).unwrap();
    let table = MemTable::try_new(with_hop, vec![vec![rows]]).unwrap();
    context.register_table("events", Arc::new(table)).unwrap();
    let mut query = sql::parse(sql, &[events()], &Positions::new(sql)).unwrap();
    sql::name_windows(&mut query);
    let query = query.to_string();
    let answer = runtime.block_on(async { context.sql(&query).await?.collect().await })?;
    let mut rows: Vec<String> = answer.iter().flat_map(formatted).collect();
    rows.sort_unstable();
    Ok(rows)
}

/// What is left when all changes are applied; a change that takes back what was not told panics.
fn settled(rows: &[(u64, RecordBatch)], emit: Emit) -> Vec<String> {
    settled_as(rows, emit, formatted)
}

/// The same, with rows as `format` writes them.
fn settled_as(
    rows: &[(u64, RecordBatch)],
    emit: Emit,
    format: fn(&RecordBatch) -> Vec<String>,
) -> Vec<String> {
    let mut left: BTreeMap<String, i64> = BTreeMap::new();
    let mut rows: Vec<&(u64, RecordBatch)> = rows.iter().collect();
    rows.sort_by_key(|(epoch, _)| *epoch);
    for (_, batch) in rows {
        let n_columns = batch.num_columns();
        let (shown, change) = match emit {
            Emit::Final => (batch.clone(), None),
            Emit::Changes => {
                let shown = batch.project(&(0..n_columns - 2).collect::<Vec<_>>()).unwrap();
                (shown, Some(formatted(&batch.project(&[n_columns - 2]).unwrap())))
            }
        };
        for (row, text) in format(&shown).into_iter().enumerate() {
            let diff = if change.as_ref().is_some_and(|change| change[row] == "delete") { -1 } else { 1 };
            *left.entry(text).or_default() += diff;
        }
    }
    let mut settled = Vec::new();
    for (row, n) in left {
        assert!(n >= 0, "taken back but never told: {row}");
        settled.extend(std::iter::repeat_n(row, usize::try_from(n).unwrap()));
    }
    settled
}

/// A query as a view, and as DataFusion answers it.
struct Case {
    view: &'static str,
    batch: Option<&'static str>,
    hop: Option<(i64, i64)>,
}

const fn case(view: &'static str) -> Case {
    Case { view, batch: None, hop: None }
}

const CASES: &[Case] = &[
    case(
        "SELECT tenant, tumble_start(\"@timestamp\", INTERVAL '10 seconds') AS s, count(*) AS n, sum(n) AS total, \
          avg(amount) AS mean, min(n) AS least, max(amount) AS most FROM events \
          GROUP BY tenant, tumble(\"@timestamp\", INTERVAL '10 seconds')",
    ),
    case(
        "SELECT tumble_end(\"@timestamp\", INTERVAL '1 minute') AS e, count(DISTINCT tenant) AS tenants, \
          stddev(amount) AS deviation, count(*) FILTER (WHERE n > 1) AS large FROM events WHERE n IS NOT NULL \
          GROUP BY tumble(\"@timestamp\", INTERVAL '1 minute')",
    ),
    case(
        "SELECT tenant, n, count(*) AS c, approx_distinct(tenant) AS about, \
          array_agg(DISTINCT amount ORDER BY amount) AS amounts FROM events \
          GROUP BY n, tenant, tumble(\"@timestamp\", INTERVAL '30 seconds', INTERVAL '7 seconds') HAVING count(*) > 1",
    ),
    case(
        "WITH some AS (SELECT tenant, n, \"@timestamp\" AS at FROM events WHERE amount > -10) \
          SELECT tenant, count(*) AS c, tumble_start(at, INTERVAL '15 seconds') AS s FROM some \
          GROUP BY tenant, tumble(at, INTERVAL '15 seconds')",
    ),
    case(
        "SELECT upper(tenant) AS who, tumble(\"@timestamp\", INTERVAL '20 seconds')['start'] AS s, \
          first_value(n ORDER BY \"@timestamp\", n, amount) AS first, last_value(n ORDER BY \"@timestamp\", n, amount) AS last, \
          sum(CASE WHEN n > 0 THEN amount ELSE 0 END) AS positive, median(n) AS middle FROM \
          (SELECT *, n + 1 AS more FROM events WHERE tenant <> 'b') WHERE more > -5 \
          GROUP BY tenant, tumble(\"@timestamp\", INTERVAL '20 seconds')",
    ),
    Case {
        view: "SELECT tenant, hop_start(\"@timestamp\", INTERVAL '10 seconds', INTERVAL '25 seconds') AS s, \
               count(*) AS c, max(n) AS most, bool_or(n > 2) AS any FROM events \
               GROUP BY tenant, hop(\"@timestamp\", INTERVAL '10 seconds', INTERVAL '25 seconds')",
        batch: Some(
            "SELECT tenant, hop AS s, count(*) AS c, max(n) AS most, bool_or(n > 2) AS any FROM events GROUP BY tenant, hop",
        ),
        hop: Some((10 * SECOND, 25 * SECOND)),
    },
    Case {
        view: "SELECT tenant, session_start(\"@timestamp\", INTERVAL '5 seconds') AS s, \
               session_end(\"@timestamp\", INTERVAL '5 seconds') AS e, count(*) AS c, sum(n) AS total FROM events \
               GROUP BY tenant, session(\"@timestamp\", INTERVAL '5 seconds')",
        batch: Some(
            "SELECT tenant, min(\"@timestamp\") AS s, max(\"@timestamp\") + INTERVAL '5 seconds' AS e, count(*) AS c, \
             sum(n) AS total FROM \
             (SELECT *, sum(is_first) OVER (PARTITION BY tenant ORDER BY \"@timestamp\", is_first DESC \
                                            ROWS UNBOUNDED PRECEDING) AS id FROM \
              (SELECT *, CASE WHEN \"@timestamp\" <= INTERVAL '5 seconds' + \
                        lag(\"@timestamp\") OVER (PARTITION BY tenant ORDER BY \"@timestamp\") THEN 0 ELSE 1 END AS is_first \
               FROM events)) GROUP BY tenant, id",
        ),
        hop: None,
    },
    Case {
        view: "SELECT count(*) AS c, max(amount) AS most FROM events WHERE n > 1 GROUP BY session(\"@timestamp\", INTERVAL '3 seconds')",
        batch: Some(
            "SELECT count(*) AS c, max(amount) AS most FROM \
             (SELECT *, sum(is_first) OVER (ORDER BY \"@timestamp\", is_first DESC ROWS UNBOUNDED PRECEDING) AS id FROM \
              (SELECT *, CASE WHEN \"@timestamp\" <= INTERVAL '3 seconds' + \
                        lag(\"@timestamp\") OVER (ORDER BY \"@timestamp\") THEN 0 ELSE 1 END AS is_first \
               FROM events WHERE n > 1)) GROUP BY id",
        ),
        hop: None,
    },
];

/// Views without windows, which never close.
const ENDLESS: &[&str] = &[
    "SELECT tenant, count(*) AS c, sum(amount) AS total, count(DISTINCT n) AS kinds FROM events GROUP BY tenant",
    "SELECT DISTINCT tenant, n FROM events WHERE n > 0",
    "SELECT max(n) - min(n) AS spread, count(amount) AS c FROM events HAVING count(*) > 0",
    "SELECT tenant, n * 2 AS twice, amount / 4 AS quarter FROM events WHERE n > 0 AND tenant <> 'b'",
];

/// Runs a view with a crash: the newest cut before it, and from there on other epochs and another number of workers.
fn with_crash(
    view: &Arc<dyn View>,
    partitions: &[Vec<Row>],
    cuts: (&[u8], &[u8]),
    workers: (usize, usize),
    crash: usize,
) -> Outcome {
    let all = epochs(partitions, cuts.0);
    let crash_at = all.keys().nth(crash % all.len()).copied().unwrap();
    let until: Epochs = all.range(..=crash_at).map(|(epoch, batches)| (*epoch, batches.clone())).collect();
    let first = Run { view, workers: workers.0, crashes: true, restored: None, read_at: None }.go(&until);
    let n_parts = view.operators().len() * workers.0;
    let Some(cut) = first.cut_before(crash_at, n_parts).filter(|_| n_parts > 0) else {
        return Run { view, workers: workers.1, crashes: false, restored: None, read_at: None }.go(&all);
    };
    // Sources replay from a little before the cut, cut otherwise, at later epochs.
    let mut rest: Vec<Vec<Row>> = partitions.to_vec();
    let mut skipped = vec![0; partitions.len()];
    for batches in all.range(..cut).map(|(_, batches)| batches) {
        for batch in batches {
            let partition = batch.origin().partition.0 as usize;
            skipped[partition] = batch.offsets().value(batch.num_rows() - 1) as usize + 1;
        }
    }
    for (rows, skipped) in rest.iter_mut().zip(&mut skipped) {
        *skipped = skipped.saturating_sub(3);
        rows.drain(..*skipped);
    }
    let shifted: Epochs = epochs(&rest, cuts.1)
        .into_iter()
        .map(|(epoch, batches)| {
            let moved = batches.into_iter().map(|batch| {
                let skipped = skipped[batch.origin().partition.0 as usize] as u64;
                let offsets = batch.offsets().values().iter().map(|offset| offset + skipped);
                let offsets = UInt64Array::from_iter_values(offsets);
                let (rows, original) = (batch.rows().clone(), batch.original().clone());
                Batch::new(rows, original, offsets, Arc::clone(batch.origin()), Arc::clone(batch.layout()))
                    .unwrap()
            });
            (epoch - START + cut, moved.collect())
        })
        .collect();
    let second =
        Run { view, workers: workers.1, crashes: false, restored: Some((&first, cut)), read_at: None }
            .go(&shifted);
    let mut rows: Vec<(u64, RecordBatch)> =
        first.rows.into_iter().filter(|(epoch, _)| *epoch < cut).collect();
    rows.extend(second.rows);
    Outcome { rows, stopped: first.stopped.or(second.stopped), ..Outcome::default() }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn a_view_equals_the_batch_answer(
        partitions in arb_partitions(),
        cuts in prop::collection::vec(0..20u8, 1..12),
        more_cuts in prop::collection::vec(0..20u8, 1..12),
        workers in (1..4usize, 1..4usize),
        crash in any::<prop::sample::Index>(),
        which in 0..CASES.len() + ENDLESS.len(),
        changes in any::<bool>(),
    ) {
        let endless = Case { view: ENDLESS[which % ENDLESS.len()], batch: None, hop: None };
        let case = CASES.get(which).unwrap_or(&endless);
        let emit = if changes || which >= CASES.len() { Emit::Changes } else { Emit::Final };
        let view = view(case.view, emit).unwrap();
        let rows: Vec<Row> = partitions.concat();
        let expected = batch_answer(case.batch.unwrap_or(case.view), &rows, case.hop);

        let all = epochs(&partitions, &cuts);
        let outcome = Run { view: &view, workers: workers.0, crashes: false, restored: None, read_at: None }.go(&all);
        prop_assert_eq!(&outcome.stopped, &None);
        prop_assert_eq!(outcome.n_rejects, 0);
        prop_assert_eq!(settled(&outcome.rows, emit), &expected[..], "{}", case.view);
        let count = |name| outcome.counts.get(name).copied().unwrap_or(0);
        prop_assert_eq!(count("in"), rows.len());
        prop_assert_eq!(count("in"), count("filtered") + count("late") + count("failed") + count("used"));
        if emit == Emit::Final {
            let mut ids = outcome.ids.clone();
            ids.sort_unstable();
            ids.dedup();
            prop_assert_eq!(ids.len(), outcome.ids.len(), "rows are told apart");
        }

        let read_at = all.keys().nth(crash.index(all.len())).copied();
        let until: Epochs = all.range(..read_at.unwrap()).map(|(e, b)| (*e, b.clone())).collect();
        let batches = until.values().flatten();
        let seen: Vec<Row> = batches
            .flat_map(|batch| {
                let (partition, first) = (batch.origin().partition.0 as usize, batch.offsets().value(0) as usize);
                partitions[partition][first..first + batch.num_rows()].to_vec()
            })
            .collect();
        if view.table().is_some() {
            let read = Run { view: &view, workers: workers.1, crashes: false, restored: None, read_at }.go(&all);
            let mut rows: Vec<String> = read.snapshot.values().flatten().flat_map(formatted).collect();
            rows.sort_unstable();
            let answer = batch_answer(case.batch.unwrap_or(case.view), &seen, case.hop);
            // An aggregate without groups has no row before the first row has come.
            if !seen.is_empty() {
                prop_assert_eq!(rows, answer, "read at an epoch: {}", case.view);
            }
        }

        let crashed = with_crash(&view, &partitions, (&cuts, &more_cuts), workers, crash.index(1000));
        prop_assert_eq!(crashed.stopped, None);
        prop_assert_eq!(settled(&crashed.rows, emit), expected, "after a crash: {}", case.view);
    }
}

fn row(at: i64, tenant: &'static str, n: i64) -> Row {
    Row { at: Some(START as i64 * 1_000 + at * SECOND), tenant: Some(tenant), n: Some(n), amount: Some(1.0) }
}

fn at_epochs(batches: Vec<(u64, Batch)>) -> Epochs {
    let mut epochs = Epochs::new();
    for (epoch, batch) in batches {
        epochs.entry(START + epoch).or_default().push(batch);
    }
    epochs
}

const PER_TEN_SECONDS: &str = "SELECT tumble_start(\"@timestamp\", INTERVAL '10 seconds') AS s, count(*) AS c \
                               FROM events GROUP BY tumble(\"@timestamp\", INTERVAL '10 seconds')";

#[test]
fn late_rows_are_rejected_and_counted() {
    let view = view(PER_TEN_SECONDS, Emit::Final).unwrap();
    let epochs = at_epochs(vec![
        (10, batch(0, 0, &[row(0, "a", 1), row(100, "a", 1)])),
        // The watermark is at 80 s.
        (20, batch(0, 2, &[row(69, "a", 1), row(79, "a", 1), row(80, "a", 1), row(10_000, "a", 1)])),
        (30, batch(0, 6, &[Row { at: None, ..row(0, "a", 1) }])),
    ]);
    let outcome = Run { view: &view, workers: 2, crashes: false, restored: None, read_at: None }.go(&epochs);
    assert_eq!(outcome.n_rejects, 4);
    let counts: Vec<_> = ["in", "late", "failed", "used"].map(|name| outcome.counts[name]).to_vec();
    assert_eq!(counts, [7, 3, 1, 3]);
    assert_eq!(settled(&outcome.rows, Emit::Final).len(), 3);
}

#[test]
fn a_window_closes_once_the_watermark_passes_its_end_and_not_before() {
    let view = view(PER_TEN_SECONDS, Emit::Final).unwrap();
    let closed_at = |last: i64| {
        let epochs = at_epochs(vec![(10, batch(0, 0, &[row(0, "a", 1), row(last, "a", 1)]))]);
        Run { view: &view, workers: 1, crashes: true, restored: None, read_at: None }.go(&epochs).rows.len()
    };
    assert_eq!(closed_at(29), 0);
    assert_eq!(closed_at(30), 1);
}

#[test]
fn the_slowest_partition_is_named() {
    let view = view(PER_TEN_SECONDS, Emit::Final).unwrap();
    let epochs = at_epochs(vec![
        (10, batch(0, 0, &[row(100, "a", 1)])),
        (10, batch(1, 0, &[row(50, "a", 1)])),
        (20, batch(0, 1, &[row(200, "a", 1)])),
    ]);
    let outcome = Run { view: &view, workers: 2, crashes: true, restored: None, read_at: None }.go(&epochs);
    let watermark = START as i64 * 1_000 + 30 * SECOND;
    assert_eq!(outcome.reached, (watermark, Some(("in".to_owned(), 1))));
}

#[test]
fn a_group_that_fails_an_expression_does_not_take_the_others_with_it() {
    let sql = "SELECT tenant, 12 / sum(n) AS share FROM events GROUP BY tenant, tumble(\"@timestamp\", INTERVAL '1 minute')";
    let view = view(sql, Emit::Final).unwrap();
    let rows = [row(0, "a", 3), row(1, "b", 1), row(1, "b", -1), row(2, "c", 4)];
    let epochs = at_epochs(vec![(10, batch(0, 0, &rows))]);
    let outcome = Run { view: &view, workers: 1, crashes: false, restored: None, read_at: None }.go(&epochs);
    assert_eq!(settled(&outcome.rows, Emit::Final), ["a|4", "c|3"]);
    assert_eq!((outcome.n_rejects, outcome.stopped), (1, None));
}

#[test]
fn a_row_that_fails_an_expression_does_not_take_the_others_with_it() {
    let sql = "SELECT tenant, sum(12 / n) AS share FROM events GROUP BY tenant";
    let view = view(sql, Emit::Changes).unwrap();
    let rows = [row(0, "a", 3), row(1, "a", 0), row(1, "b", 0), row(2, "a", 4)];
    let epochs = at_epochs(vec![(10, batch(0, 0, &rows))]);
    let outcome = Run { view: &view, workers: 1, crashes: false, restored: None, read_at: None }.go(&epochs);
    assert_eq!(settled(&outcome.rows, Emit::Changes), ["a|7"]);
    assert_eq!((outcome.n_rejects, outcome.counts["failed"]), (2, 2));
}

#[test]
fn a_view_that_outgrows_its_limit_stops() {
    for sql in [
        "SELECT n, count(*) AS c FROM events GROUP BY n",
        "SELECT a.n AS n, b.tenant AS tenant FROM events a JOIN events b ON a.n = b.n",
        "SELECT max(c) AS most FROM (SELECT n, count(*) AS c FROM events GROUP BY n)",
    ] {
        let options = ViewOptions { max_bytes: 100_000, ..options(Emit::Changes) };
        let view = plan(sql, &[events()], options.clone()).unwrap();
        let rows: Vec<Row> = (0..5_000).map(|n| row(0, "a", n)).collect();
        let later = (1..14).map(|n| (n * 1_000 + 10, batch(1, n, &[row(0, "a", 1)])));
        let epochs = at_epochs(std::iter::once((10, batch(0, 0, &rows))).chain(later).collect());
        let outcome =
            Run { view: &view, workers: 2, crashes: true, restored: None, read_at: None }.go(&epochs);
        let why = outcome.stopped.clone().unwrap_or_default();
        assert!(why.contains("max_bytes"), "{sql}: {why}");

        // It stays so after a restart, unless it may take more.
        let cut = outcome.cut_before(u64::MAX, 2 * view.operators().len()).unwrap();
        let after = at_epochs(vec![(cut + 10 - START, batch(0, 5_000, &[row(0, "a", 1)]))]);
        let goes_on = |max_bytes| {
            let options = ViewOptions { max_bytes, ..options.clone() };
            let view = plan(sql, &[events()], options).unwrap();
            let restored = Some((&outcome, cut));
            let outcome = Run { view: &view, workers: 1, crashes: false, restored, read_at: None }.go(&after);
            outcome.stopped.is_none()
        };
        assert_eq!([goes_on(100_000), goes_on(200_000)], [false, true], "{sql}");
    }
}

/// Queries that views refuse.
const REFUSED: &[(&str, Emit)] = &[
    ("SELECT tenant, count(*) FROM events GROUP BY tenant", Emit::Changes),
    ("SELECT tenant, count(*) FROM events GROUP BY tenant", Emit::Final),
    ("SELECT * FROM events a JOIN events b ON a.n = b.n", Emit::Changes),
    (
        "SELECT a.n FROM events a JOIN events b ON a.n = b.n WHERE a.\"@timestamp\" > now() - INTERVAL '1 hour'",
        Emit::Final,
    ),
    ("SELECT n FROM events ORDER BY n LIMIT 3", Emit::Changes),
    ("SELECT n FROM events ORDER BY n", Emit::Changes),
    ("SELECT n FROM events WHERE n NOT IN (SELECT n FROM events WHERE amount > 3)", Emit::Changes),
    ("SELECT n, now() AS seen FROM events", Emit::Changes),
    ("SELECT n FROM events WHERE date_trunc('hour', now()) < \"@timestamp\"", Emit::Changes),
    (
        "WITH RECURSIVE r AS (SELECT n FROM events UNION ALL SELECT n + 1 FROM r) SELECT n FROM r",
        Emit::Changes,
    ),
    (
        "SELECT max(c) FROM (SELECT count(*) AS c FROM events GROUP BY session(\"@timestamp\", INTERVAL '1 minute'))",
        Emit::Changes,
    ),
    ("SELECT count(*) FROM events GROUP BY tumble(now(), INTERVAL '1 minute')", Emit::Changes),
    ("SELECT count(*) FROM events GROUP BY tumble(\"@timestamp\", INTERVAL '1 month')", Emit::Changes),
    ("SELECT count(*) FROM events GROUP BY tumble(\"@timestamp\", 5)", Emit::Changes),
    (
        "SELECT count(*) FROM events GROUP BY hop(\"@timestamp\", INTERVAL '1 hour', INTERVAL '1 minute')",
        Emit::Changes,
    ),
    ("SELECT hop(\"@timestamp\", INTERVAL '1 minute', INTERVAL '1 hour') AS w FROM events", Emit::Changes),
    ("SELECT count(*) FROM events GROUP BY session(\"@timestamp\", INTERVAL '0 seconds')", Emit::Changes),
    ("SELECT tennant FROM events", Emit::Changes),
    ("SELECT tenant FROM event", Emit::Changes),
    ("SELECT tenant FRM events", Emit::Changes),
    ("SELECT tenant, row_number() OVER (PARTITION BY tenant ORDER BY n) AS r FROM events", Emit::Changes),
    ("SELECT n, n FROM events", Emit::Changes),
    ("SELECT 1 AS one", Emit::Changes),
    ("DELETE FROM events", Emit::Changes),
];

fn refusal(sql: &str, emit: Emit) -> CompileError {
    let options = ViewOptions { unbounded: false, ..options(emit) };
    plan(sql, &[events()], options).unwrap_err()
}

#[test]
fn a_view_explains_itself() {
    let sql = "SELECT tenant, hop_end(\"@timestamp\", INTERVAL '1 minute', INTERVAL '5 minutes') AS until, count(*) AS c \
               FROM events WHERE n > 3 GROUP BY tenant, hop(\"@timestamp\", INTERVAL '1 minute', INTERVAL '5 minutes') \
               HAVING count(*) > 10";
    insta::assert_snapshot!(view(sql, Emit::Final).unwrap().explain());
}
