//! The first operator: batches to events, each row once, also after a crash.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{BooleanArray, UInt64Array};
use arrow::compute::kernels::cmp::gt;
use logdrive_schemas::Batch;
use logdrive_schemas::chunk::Partition;
use timely::container::{CapacityContainerBuilder, NoopBuilder};
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use super::Rules;
use super::events::{Event, read};
use super::state::{Cuts, Writer, restored};
use crate::detector::WorkerContext;
use crate::flow::{BatchStream, Batches};

pub(super) const PART: &str = "input";

/// The highest offset of each partition.
type Offsets = HashMap<(Arc<str>, Partition), u64>;

/// Which messages were counted.
struct Counted {
    rules: Arc<Rules>,
    cx: WorkerContext,
    /// What was counted when the state that was restored was taken: replayed rows up to there are skipped.
    before: Offsets,
    /// As of the epochs that are complete.
    complete: Offsets,
    /// What the epochs that are not complete add.
    open: BTreeMap<u64, Offsets>,
    cuts: Cuts,
}

impl Counted {
    fn new(rules: &Arc<Rules>, cx: &WorkerContext) -> Self {
        let operator = rules.operator(PART);
        let mut before = Offsets::new();
        for (_, _, mut state) in restored(&cx.checkpoint.restored(&operator), rules) {
            let n = state.u64().unwrap_or(0);
            for _ in 0..n {
                let (Some(source), Some(partition), Some(offset)) = (state.text(), state.u64(), state.u64())
                else {
                    break;
                };
                raise(&mut before, (source, Partition(partition)), offset);
            }
        }
        let (rules, complete) = (Arc::clone(rules), before.clone());
        let cuts = Cuts::new(operator, cx);
        Self { rules, cx: cx.clone(), before, complete, open: BTreeMap::new(), cuts }
    }

    /// The rows of `batch` that were not counted before the crash.
    fn fresh(&mut self, epoch: u64, batch: Batch) -> Option<Batch> {
        if !batch.origin().ordered {
            return Some(batch);
        }
        let key = (Arc::clone(&batch.origin().source), batch.origin().partition);
        let seen = self.before.get(&key).copied();
        let highest = batch.offsets().values().iter().copied().max().unwrap_or(0);
        raise(self.open.entry(epoch).or_default(), key, highest);
        match seen {
            Some(seen) => {
                let fresh: BooleanArray =
                    gt(batch.offsets(), &UInt64Array::new_scalar(seen)).expect("two columns of one type");
                batch.filter(&fresh).expect("Arrow filters columns of every type that a schema has")
            }
            None => Some(batch),
        }
    }

    /// No more rows of epochs before `frontier`.
    fn advance(&mut self, frontier: Option<u64>) {
        while let Some(entry) = self.open.first_entry() {
            let epoch = *entry.key();
            if frontier.is_some_and(|frontier| frontier <= epoch) {
                break;
            }
            self.cuts.pass(epoch, || encode(&self.complete, &self.rules, &self.cx));
            for (key, offset) in entry.remove() {
                raise(&mut self.complete, key, offset);
            }
        }
        if let Some(frontier) = frontier {
            self.cuts.pass(frontier, || encode(&self.complete, &self.rules, &self.cx));
        }
    }
}

fn raise(offsets: &mut Offsets, key: (Arc<str>, Partition), offset: u64) {
    let highest = offsets.entry(key).or_insert(offset);
    *highest = (*highest).max(offset);
}

fn encode(offsets: &Offsets, rules: &Rules, cx: &WorkerContext) -> Vec<u8> {
    let mut writer = Writer::new(rules, cx);
    writer.u64(offsets.len() as u64);
    for ((source, partition), offset) in offsets {
        writer.text(source);
        writer.u64(partition.0);
        writer.u64(*offset);
    }
    writer.finish()
}

/// Events, and rejects.
pub(super) fn attach<'scope>(
    input: BatchStream<'scope>,
    rules: &Arc<Rules>,
    cx: &WorkerContext,
) -> (StreamVec<'scope, u64, Event>, BatchStream<'scope>) {
    let mut counted = Counted::new(rules, cx);
    let mut builder = OperatorBuilder::new(rules.operator(PART), input.scope());
    let mut input = builder.new_input(input, Pipeline);
    let (events_out, events) = builder.new_output::<Vec<Event>>();
    let (rejects_out, rejects) = builder.new_output::<Batches>();
    let mut events_out = OutputBuilder::<_, CapacityContainerBuilder<Vec<Event>>>::from(events_out);
    let mut rejects_out = OutputBuilder::<_, NoopBuilder<Batches>>::from(rejects_out);
    builder.build(move |capabilities| {
        drop(capabilities);
        move |frontiers| {
            let mut events_out = events_out.activate();
            let mut rejects_out = rejects_out.activate();
            input.for_each(|capability, batches| {
                let (mut events, mut rejects) = (Vec::new(), Vec::new());
                let mut n_timeless = 0;
                for batch in std::mem::take(&mut batches.0) {
                    let Some(batch) = counted.fresh(*capability.time(), batch) else { continue };
                    let read = read(&counted.rules, batch);
                    events.extend(read.events);
                    rejects.extend(read.rejects);
                    n_timeless += read.n_timeless;
                }
                if n_timeless > 0 {
                    counted.cx.counters.late(&counted.rules.name, n_timeless);
                }
                if !events.is_empty() {
                    events_out.session(&capability.retain(0)).give_iterator(events.into_iter());
                }
                if !rejects.is_empty() {
                    let capability = capability.retain(1);
                    rejects_out.session_with_builder(&capability).give_container(&mut Batches(rejects));
                }
            });
            counted.advance(frontiers[0].frontier().first().copied());
        }
    });
    (events, rejects)
}
