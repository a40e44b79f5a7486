//! The few operators that everything is made of, each for one type of rows: arrange, reduce, and what evaluates
//! expressions on batches.

use arrow::array::RecordBatch;
use datafusion::common::Result;
use differential_dataflow::operators::arrange::arrangement::arrange_core;
use differential_dataflow::operators::arrange::{Arranged, TraceAgent};
use differential_dataflow::trace::implementations::{ContainerChunker, ValBatcher, ValBuilder, ValSpine};
use differential_dataflow::trace::{BatchReader, Cursor, Navigable, TraceReader};
use differential_dataflow::{AsCollection, Data, VecCollection};
use logdrive_operators::Batches;
use timely::container::{CapacityContainerBuilder, NoopBuilder};
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::progress::frontier::AntichainRef;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::super::health::Health;
use super::super::spec::isolate;
use super::codec::Row;
use super::failed::Failures;
use super::render::Time;

/// Decides which worker keeps a key; not what the tables of a worker hash by.
pub(super) const SEED: u64 = 0x6c6f_6764_6465_6c74;

/// What an arranged update costs beside its bytes, about: two vectors, a time, a difference.
const UPDATE_BYTES: usize = 72;

/// How many updates of a batch are looked at to know how long rows are.
const SAMPLE: usize = 64;

/// Rows with a key.
pub(super) type Keyed<'scope, T> = VecCollection<'scope, T, (Row, Row), isize>;
/// Rows, found by their key.
pub(super) type ByKey<'scope, T> = Arranged<'scope, TraceAgent<ValSpine<Row, Row, T, isize>>>;

/// An update of a collection of rows with a key.
type Update<T> = ((Row, Row), T, isize);

/// Brings each key's rows to one worker, by a hash with a seed: senders of logs choose their keys.
pub(super) fn arrange<'scope, T: Time>(rows: Keyed<'scope, T>, name: &str) -> ByKey<'scope, T> {
    let by_key = Exchange::new(|((key, _), ..): &Update<T>| xxh3_64_with_seed(key, SEED));
    arrange_core::<
        _,
        _,
        ContainerChunker<Vec<Update<T>>>,
        ValBatcher<Row, Row, T, isize>,
        ValBuilder<Row, Row, T, isize>,
        ValSpine<Row, Row, T, isize>,
    >(rows.inner, by_key, name)
}

/// One or more rows for each key that has some; `logic` sees them in the order of their bytes.
pub(super) fn reduce<'scope, T: Time>(
    input: ByKey<'scope, T>,
    name: &str,
    mut logic: impl FnMut(&Row, &[(&Row, isize)], &mut Vec<(Row, isize)>) + 'static,
) -> ByKey<'scope, T> {
    input.reduce_abelian::<_, ValBuilder<Row, Row, T, isize>, ValSpine<Row, Row, T, isize>, _, _>(
        name,
        move |key, rows, out| logic(key, rows, out),
        |buffer, key, updates| {
            buffer.clear();
            buffer.extend(updates.drain(..).map(|(row, time, diff)| ((key.clone(), row), time, diff)));
        },
    )
}

/// Has what an arrangement takes counted.
pub(super) fn charge<'scope, T: Time>(arranged: &ByKey<'scope, T>, name: &str, health: &Health) {
    let mut trace = arranged.trace.clone();
    // Whoever only counts holds nothing back.
    trace.set_logical_compaction(AntichainRef::new(&[]));
    trace.set_physical_compaction(AntichainRef::new(&[]));
    let health = health.clone();
    let mut mean = 0;
    let mut builder = OperatorBuilder::new(format!("{name} state"), arranged.stream.scope());
    let slot = health.slot(builder.operator_info().global_id);
    let mut input = builder.new_input(arranged.stream.clone(), Pipeline);
    builder.build(move |_| {
        move |_| {
            let mut is_new = false;
            input.for_each(|_, batches| {
                is_new = true;
                for batch in batches.drain(..) {
                    mean = sampled(&batch).unwrap_or(mean);
                }
            });
            if is_new {
                let mut n_updates = 0;
                trace.map_batches(|batch| n_updates += batch.len());
                health.charge(slot, n_updates, n_updates * (mean + UPDATE_BYTES));
            }
        }
    });
}

/// How many bytes the rows of a batch have, about.
fn sampled<B>(batch: &B) -> Option<usize>
where
    B: Navigable,
    for<'a> B::Cursor: Cursor<Key<'a> = &'a Row, Val<'a> = &'a Row>,
{
    let (mut cursor, mut n_bytes, mut n_rows) = (batch.cursor(), 0, 0);
    while let Some(key) = cursor.get_key(batch) {
        while let Some(row) = cursor.get_val(batch) {
            (n_bytes, n_rows) = (n_bytes + key.len() + row.len(), n_rows + 1);
            if n_rows == SAMPLE {
                return Some(n_bytes / n_rows);
            }
            cursor.step_val(batch);
        }
        cursor.step_key(batch);
    }
    n_bytes.checked_div(n_rows)
}

/// Evaluates something on all items of a container at once: `decode` makes a batch of them, `work` says for some of
/// its rows what they give, `finish` makes the output. Rows that make `work` fail become rejects, and the others go on.
pub(super) fn batchwise<'scope, T: Time, In: Data, Mid: 'static, Out: Data>(
    input: VecCollection<'scope, T, In, isize>,
    name: &str,
    health: &Health,
    decode: impl Fn(&[(In, T, isize)]) -> Result<RecordBatch> + 'static,
    mut work: impl FnMut(&RecordBatch) -> Result<Vec<(usize, Mid)>> + 'static,
    finish: impl Fn(&In, Mid) -> Out + 'static,
) -> (VecCollection<'scope, T, Out, isize>, Stream<'scope, T, Batches>) {
    let (health, failures) = (health.clone(), Failures::new(health));
    let mut builder = OperatorBuilder::new(name.to_owned(), input.inner.scope());
    let mut input = builder.new_input(input.inner, Pipeline);
    let (rows_out, rows) = builder.new_output::<Vec<(Out, T, isize)>>();
    let (rejects_out, rejects) = builder.new_output::<Batches>();
    let mut rows_out = OutputBuilder::<T, CapacityContainerBuilder<Vec<(Out, T, isize)>>>::from(rows_out);
    let mut rejects_out = OutputBuilder::<T, NoopBuilder<Batches>>::from(rejects_out);
    builder.set_notify_for(0, timely::progress::operate::FrontierInterest::Never);
    builder.build(move |_| {
        move |_| {
            let (mut rows_out, mut rejects_out) = (rows_out.activate(), rejects_out.activate());
            input.for_each(|capability, updates| {
                let updates = std::mem::take(updates);
                let rows = health.check(decode(&updates).map(Some));
                let Some(rows) = rows else { return };
                let (parts, refused) = isolate(rows.num_rows(), |start, len| work(&rows.slice(start, len)));
                let rows_at = capability.retain(0);
                let mut session = rows_out.session_with_builder(&rows_at);
                for (start, mids) in parts {
                    for (idx, mid) in mids {
                        let (item, time, diff) = &updates[start + idx];
                        session.give((finish(item, mid), time.clone(), *diff));
                    }
                }
                // What is taken back failed when it came.
                let refused = refused.into_iter().filter(|reject| updates[reject.idx].2 > 0).collect();
                let epoch = capability.time().epoch();
                if let Some(refused) = failures.of_rows(&rows, refused, epoch) {
                    let rejects_at = capability.retain(1);
                    let mut refused = Batches(vec![refused]);
                    rejects_out.session_with_builder(&rejects_at).give_container(&mut refused);
                }
            });
        }
    });
    (rows.as_collection(), rejects)
}
