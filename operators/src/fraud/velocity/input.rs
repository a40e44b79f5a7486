//! The first operator: batches to events, each row once, also after a crash.

use std::sync::Arc;

use timely::container::{CapacityContainerBuilder, NoopBuilder};
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use super::Rules;
use super::events::{Event, read};
use crate::detector::WorkerContext;
use crate::flow::{BatchStream, Batches, Counted, Cuts, StateWriter, frontier, restored};

pub(super) const PART: &str = "input";

/// Which messages were counted, and the handing in of that.
struct Input {
    rules: Arc<Rules>,
    cx: WorkerContext,
    counted: Counted,
    cuts: Cuts,
}

impl Input {
    fn new(rules: &Arc<Rules>, cx: &WorkerContext) -> Self {
        let operator = rules.operator(PART);
        let mut counted = Counted::default();
        for (_, _, mut state) in restored(&cx.checkpoint.restored(&operator), rules.fingerprint) {
            counted.restore(&mut state);
        }
        Self { rules: Arc::clone(rules), cx: cx.clone(), counted, cuts: Cuts::new(operator, cx) }
    }

    /// No more rows of epochs before `frontier`.
    fn advance(&mut self, frontier: Option<u64>) {
        let Self { rules, cx, counted, cuts } = self;
        let encode = |counted: &Counted| {
            let mut writer = StateWriter::new(rules.fingerprint, cx);
            counted.encode(&mut writer);
            writer.finish()
        };
        while let Some(epoch) = counted.oldest().filter(|epoch| frontier.is_none_or(|f| f > *epoch)) {
            cuts.pass(epoch, || encode(counted));
            counted.complete(epoch);
        }
        if let Some(frontier) = frontier {
            cuts.pass(frontier, || encode(counted));
        }
    }
}

/// Events, and rejects.
pub(super) fn attach<'scope>(
    input: BatchStream<'scope>,
    rules: &Arc<Rules>,
    cx: &WorkerContext,
) -> (StreamVec<'scope, u64, Event>, BatchStream<'scope>) {
    let mut events_in = Input::new(rules, cx);
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
                    let Some(batch) = events_in.counted.fresh(*capability.time(), batch) else { continue };
                    let read = read(&events_in.rules, batch);
                    events.extend(read.events);
                    rejects.extend(read.rejects);
                    n_timeless += read.n_timeless;
                }
                if n_timeless > 0 {
                    events_in.cx.counters.late(&events_in.rules.name, n_timeless);
                }
                if !events.is_empty() {
                    events_out.session(&capability.retain(0)).give_iterator(events.into_iter());
                }
                if !rejects.is_empty() {
                    let capability = capability.retain(1);
                    rejects_out.session_with_builder(&capability).give_container(&mut Batches(rejects));
                }
            });
            events_in.advance(frontier(frontiers));
        }
    });
    (events, rejects)
}
