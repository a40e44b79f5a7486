//! The dataflow of one worker: sources, streams, detectors, views and sinks, as the plan says.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;

use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::datatypes::SchemaRef;
use logdrive_connectors::Decoder;
use logdrive_operators::flow::frontier;
use logdrive_operators::{
    BatchStream, Batches, Beginning, Emit, Stage, Step, ViewInput, ViewOutput, WorkerContext,
};
use logdrive_schemas::Batch;
use timely::container::NoopBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::{Capability, Concatenate, Probe};
use timely::dataflow::{ProbeHandle, Scope};

use super::egress;
use super::outbox::{self, Outbox};
use super::queue::{Ingest, QueueReceiver};
use super::runtime::Runtime;
use crate::config::Input;
use crate::config::attributes::Attach;

/// How many chunks an ingest operator decodes before it lets the others run.
const FUEL: usize = 4;

/// The streams of every node that is built, one per lane.
type Lanes<'scope> = HashMap<Input, Vec<BatchStream<'scope>>>;

/// Builds the dataflow; the probe's frontier is what every sink has made durable. The others say how far detectors and
/// views are, by their places for the watchdog.
pub(super) fn build<'scope>(
    scope: Scope<'scope, u64>,
    runtime: &Arc<Runtime>,
    mut queues: Vec<QueueReceiver>,
) -> (ProbeHandle<u64>, Vec<(usize, ProbeHandle<u64>)>) {
    let plan = &runtime.plan;
    let probe = ProbeHandle::new();
    let mut places: Vec<(usize, ProbeHandle<u64>)> = Vec::new();
    let mut watched = |rows: BatchStream<'scope>| {
        let probe = ProbeHandle::new();
        let rows = rows.probe_with(&probe);
        places.push((plan.sinks.len() + places.len(), probe));
        rows
    };
    let mut lanes = Lanes::new();
    let mut rejects = Vec::new();
    for (idx, queue) in queues.drain(..).enumerate() {
        let (rows, refused) = ingest(scope, runtime, idx, queue);
        lanes.insert(Input::Source(idx), vec![rows]);
        rejects.push(refused);
    }
    for (idx, stream) in plan.streams.iter().enumerate() {
        let inputs: Vec<_> = inputs_of(&lanes, &stream.inputs);
        let mut outputs = Vec::with_capacity(inputs.len());
        for (input, lane) in inputs.into_iter().zip(&stream.lanes) {
            let steps = lane.steps.iter().map(|step| (step.build)()).collect();
            let (rows, refused) = steps_operator(&stream.name, Input::Stream(idx), input, steps, runtime);
            outputs.push(rows);
            rejects.push(refused);
        }
        lanes.insert(Input::Stream(idx), outputs);
    }
    let worker_cx = WorkerContext {
        index: scope.index(),
        peers: scope.peers(),
        checkpoint: runtime.checkpoint(),
        counters: runtime.detector_counters(),
        lifecycle: runtime.lifecycle(),
        snapshots: runtime.snapshots(),
    };
    for (idx, detector) in plan.detectors.iter().enumerate() {
        let inputs = inputs_of(&lanes, &detector.inputs);
        let aligned: Vec<_> =
            inputs.into_iter().map(|s| align(s, Arc::clone(&detector.input.schema))).collect();
        let input = scope.concatenate(aligned);
        let (findings, refused) = detector.detector.attach(input, &worker_cx);
        let findings = tapped(&detector.name, Input::Detector(idx), watched(findings), runtime);
        lanes.insert(Input::Detector(idx), vec![findings]);
        rejects.push(refused);
    }
    // What goes to sinks that write each row once.
    let mut held: HashMap<Input, BatchStream<'scope>> = HashMap::new();
    let mut beginnings: HashMap<Input, Beginning<'scope>> = HashMap::new();
    for (idx, view) in plan.views.iter().enumerate() {
        let inputs = view.inputs.iter().map(|of| {
            let aligned = |lane| align(lane, Arc::clone(&of.columns.schema));
            let rows = scope.concatenate(inputs_of(&lanes, &[of.input]).into_iter().map(aligned));
            let beginning = beginnings.get(&of.input).cloned();
            ViewInput { rows, beginning: beginning.map(|beginning| beginning.map(aligned)) }
        });
        let inputs = inputs.collect();
        let first = scope.worker().peek_identifier();
        let ViewOutput { rows, rejects: refused, beginning } = view.view.attach(inputs, &worker_cx);
        let operators = first..scope.worker().peek_identifier();
        runtime.views.profile().attached(scope.index(), &view.name, operators);
        let rows = followed(&view.name, Input::View(idx), watched(rows), runtime);
        if plan.has_outbox(idx) {
            let outbox = Outbox::new(view, &worker_cx);
            held.insert(Input::View(idx), outbox::attach(outbox, rows.clone(), &worker_cx));
        }
        lanes.insert(Input::View(idx), vec![rows]);
        beginnings.extend(beginning.map(|beginning| (Input::View(idx), beginning)));
        rejects.push(counted(&view.name, refused, runtime));
    }
    // Sinks that read rejects are last in the plan: what the others refuse flows into them.
    let mut rejects = Some(rejects);
    for (idx, sink) in plan.sinks.iter().enumerate() {
        if sink.inputs.contains(&Input::Rejects)
            && let Some(rejects) = rejects.take()
        {
            let all = scope.concatenate(rejects);
            lanes.insert(Input::Rejects, vec![tapped("rejects", Input::Rejects, all, runtime)]);
        }
        let inputs = sink.inputs.iter().flat_map(|input| match held.get(input).filter(|_| sink.is_exact()) {
            Some(changes) => vec![changes.clone()],
            None => inputs_of(&lanes, &[*input]),
        });
        let mut filtered = Vec::with_capacity(sink.steps.len());
        for (input, steps) in inputs.zip(&sink.steps) {
            if steps.is_empty() {
                filtered.push(input);
                continue;
            }
            let steps = steps.iter().map(|step| (step.build)()).collect();
            let (rows, refused) = filter_operator(&sink.name, input, steps, runtime);
            filtered.push(rows);
            if let Some(rejects) = &mut rejects {
                rejects.push(refused);
            }
        }
        let input = scope.concatenate(filtered);
        let (to_sink, from_sink) = runtime.sink_channels(idx);
        let (pulse, worker) = (Arc::clone(&runtime.pulse), scope.index());
        // What others refuse comes to a sink that reads rejects only when they let go of it.
        let waits = sink.inputs.contains(&Input::Rejects);
        let reached = move |epoch| pulse.reached(idx, worker, if waits { u64::MAX } else { epoch });
        reached(0);
        let refused = egress::attach(&sink.name, input, to_sink, from_sink, reached);
        let refused = refused.probe_with(&probe);
        if let Some(rejects) = &mut rejects {
            rejects.push(refused);
        }
    }
    (probe, places)
}

fn inputs_of<'scope>(lanes: &Lanes<'scope>, inputs: &[Input]) -> Vec<BatchStream<'scope>> {
    inputs.iter().filter_map(|input| lanes.get(input)).flatten().cloned().collect()
}

type Output = OutputBuilder<u64, NoopBuilder<Batches>>;

/// Sends batches, if there are any.
macro_rules! give {
    ($output:expr, $capability:expr, $batches:expr) => {
        let mut container = Batches($batches);
        if !container.0.is_empty() {
            $output.activate().session_with_builder($capability).give_container(&mut container);
        }
    };
}

/// Decodes a source's chunks at the epochs they were stamped with.
fn ingest<'scope>(
    scope: Scope<'scope, u64>,
    runtime: &Arc<Runtime>,
    idx: usize,
    queue: QueueReceiver,
) -> (BatchStream<'scope>, BatchStream<'scope>) {
    let source = &runtime.plan.sources[idx];
    let mut decoder: Box<dyn Decoder> = (source.decoder.build)(&source.decoder_node, &source.demand)
        .expect("the plan built the same decoder");
    let attach = source.attributes.as_ref().map(|field| {
        let stage = Stage { schema: decoder.schema(), layout: Arc::new(decoder.layout()) };
        Attach::new(stage, field)
    });
    let mut builder = OperatorBuilder::new(format!("source:{}", source.name), scope);
    let (rows, rows_stream) = builder.new_output::<Batches>();
    let (rejects, rejects_stream) = builder.new_output::<Batches>();
    let (mut rows, mut rejects) = (Output::from(rows), Output::from(rejects));
    let info = builder.operator_info();
    let activator = scope.activator_for(std::rc::Rc::clone(&info.address));
    queue.waker.set(scope.worker().sync_activator_for(info.address.to_vec()));
    let name = Arc::clone(&source.name);
    let rows_counter = runtime.metrics.decoder_rows.with_label_values(&[&source.name]);
    let taps = runtime.taps.of(Input::Source(idx));
    let reject_counter = runtime.reject_counter(&source.name);
    builder.build(move |capabilities| {
        let mut capabilities: Option<Vec<Capability<u64>>> = Some(capabilities);
        move |_| {
            let Some(held) = capabilities.as_mut() else { return };
            for _ in 0..FUEL {
                match queue.receiver.try_recv() {
                    Ok(Ingest::Chunk(epoch, chunk)) => {
                        held.iter_mut().for_each(|capability| capability.downgrade(&epoch));
                        let decoded = decoder.decode(&chunk);
                        if let Some(mut batch) = decoded.rows {
                            if let Some(attach) = &attach {
                                batch = attach.attach(batch, &chunk);
                            }
                            rows_counter.inc_by(batch.num_rows() as u64);
                            taps.offer(&batch);
                            give!(rows, &held[0], vec![batch]);
                        }
                        if let Some(batch) = decoded.rejects {
                            reject_counter.count(&batch);
                            give!(rejects, &held[1], vec![batch]);
                        }
                    }
                    Ok(Ingest::Tick(epoch)) => {
                        held.iter_mut().for_each(|capability| capability.downgrade(&epoch));
                    }
                    Err(TryRecvError::Empty) => return,
                    Ok(Ingest::End) | Err(TryRecvError::Disconnected) => {
                        tracing::debug!(source = %name, "No more input.");
                        capabilities = None;
                        return;
                    }
                }
            }
            activator.activate();
        }
    });
    (rows_stream, rejects_stream)
}

/// Runs a stream's steps, fused into one operator.
fn steps_operator<'scope>(
    name: &Arc<str>,
    node: Input,
    input: BatchStream<'scope>,
    steps: Vec<Box<dyn Step>>,
    runtime: &Arc<Runtime>,
) -> (BatchStream<'scope>, BatchStream<'scope>) {
    let out = runtime.metrics.stream_rows.with_label_values(&[name]);
    let filtered = runtime.metrics.stream_filtered_rows.with_label_values(&[name]);
    let taps = runtime.taps.of(node);
    apply_steps(name, input, steps, runtime, move |batches, n_filtered| {
        out.inc_by(batches.iter().map(|b| b.num_rows() as u64).sum());
        filtered.inc_by(n_filtered as u64);
        batches.iter().for_each(|batch| taps.offer(batch));
    })
}

/// Runs a sink's `where`, and computes the columns that it asks for.
fn filter_operator<'scope>(
    name: &Arc<str>,
    input: BatchStream<'scope>,
    steps: Vec<Box<dyn Step>>,
    runtime: &Arc<Runtime>,
) -> (BatchStream<'scope>, BatchStream<'scope>) {
    apply_steps(name, input, steps, runtime, |_, _| {})
}

fn apply_steps<'scope>(
    name: &Arc<str>,
    input: BatchStream<'scope>,
    mut steps: Vec<Box<dyn Step>>,
    runtime: &Arc<Runtime>,
    mut seen: impl FnMut(&[Batch], usize) + 'static,
) -> (BatchStream<'scope>, BatchStream<'scope>) {
    let scope = input.scope();
    let mut builder = OperatorBuilder::new(format!("steps:{name}"), scope);
    let mut input = builder.new_input(input, Pipeline);
    builder.set_notify_for(0, timely::progress::operate::FrontierInterest::Never);
    let (rows, rows_stream) = builder.new_output::<Batches>();
    let (rejects, rejects_stream) = builder.new_output::<Batches>();
    let (mut rows, mut rejects) = (Output::from(rows), Output::from(rejects));
    let reject_counter = runtime.reject_counter(name);
    builder.build(move |_| {
        move |_| {
            input.for_each(|time, batches| {
                let mut current = std::mem::take(&mut batches.0);
                let mut refused = Vec::new();
                let mut n_filtered = 0;
                for step in &mut steps {
                    let mut emit = Emit::default();
                    for batch in current.drain(..) {
                        step.apply(batch, &mut emit);
                    }
                    current = emit.rows;
                    refused.append(&mut emit.rejects);
                    n_filtered += emit.n_filtered;
                }
                seen(&current, n_filtered);
                refused.iter().for_each(|batch| reject_counter.count(batch));
                give!(rows, &time.retain(0), current);
                give!(rejects, &time.retain(1), refused);
            });
        }
    });
    (rows_stream, rejects_stream)
}

/// Brings batches to a detector's schema: columns by name, missing ones null.
fn align<'scope>(input: BatchStream<'scope>, schema: SchemaRef) -> BatchStream<'scope> {
    map_batches("align", input, move |batch| {
        if batch.schema() == schema {
            return batch;
        }
        let n_rows = batch.num_rows();
        let columns: Vec<ArrayRef> = schema
            .fields()
            .iter()
            .map(|field| match batch.rows().column_by_name(field.name()) {
                Some(column) => Arc::clone(column),
                None => new_null_array(field.data_type(), n_rows),
            })
            .collect();
        let rows = RecordBatch::try_new(Arc::clone(&schema), columns).expect("the plan merged these schemas");
        let layout = Arc::clone(batch.layout());
        batch.with_rows(rows, layout)
    })
}

/// Lets `tap` look at a stream.
fn tapped<'scope>(
    name: &str,
    node: Input,
    input: BatchStream<'scope>,
    runtime: &Arc<Runtime>,
) -> BatchStream<'scope> {
    let taps = runtime.taps.of(node);
    map_batches(name, input, move |batch| {
        taps.offer(&batch);
        batch
    })
}

/// Lets `tap` look at a view's rows, and those who follow its changes.
fn followed<'scope>(
    name: &str,
    node: Input,
    input: BatchStream<'scope>,
    runtime: &Arc<Runtime>,
) -> BatchStream<'scope> {
    let taps = runtime.taps.of(node);
    let feed = runtime.views.feed(name).expect("every view of the plan has one");
    let scope = input.scope();
    let worker = scope.index();
    let mut builder = OperatorBuilder::new(name.to_owned(), scope);
    let mut input = builder.new_input(input, Pipeline);
    let (output, stream) = builder.new_output::<Batches>();
    let mut output = Output::from(output);
    builder.build(move |_| {
        move |frontiers| {
            input.for_each(|time, batches| {
                let batches = std::mem::take(&mut batches.0);
                for batch in &batches {
                    taps.offer(batch);
                    feed.changed(*time.time(), batch.rows());
                }
                give!(output, &time.retain(0), batches);
            });
            feed.passed(worker, frontier(frontiers).unwrap_or(u64::MAX));
        }
    });
    stream
}

/// Counts rejects.
fn counted<'scope>(
    name: &Arc<str>,
    rejects: BatchStream<'scope>,
    runtime: &Arc<Runtime>,
) -> BatchStream<'scope> {
    let counter = runtime.reject_counter(name);
    map_batches(name, rejects, move |batch| {
        counter.count(&batch);
        batch
    })
}

fn map_batches<'scope>(
    name: &str,
    input: BatchStream<'scope>,
    mut f: impl FnMut(Batch) -> Batch + 'static,
) -> BatchStream<'scope> {
    let mut builder = OperatorBuilder::new(name.to_owned(), input.scope());
    let mut input = builder.new_input(input, Pipeline);
    builder.set_notify_for(0, timely::progress::operate::FrontierInterest::Never);
    let (output, stream) = builder.new_output::<Batches>();
    let mut output = Output::from(output);
    builder.build(move |_| {
        move |_| {
            input.for_each(|time, batches| {
                let mapped: Vec<_> = std::mem::take(&mut batches.0).into_iter().map(&mut f).collect();
                give!(output, &time.retain(0), mapped);
            });
        }
    });
    stream
}
