//! From the dataflow to a sink: holds the capability of every epoch until the sink's task says that it is durable.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use logdrive_operators::flow::frontier;
use logdrive_operators::{BatchStream, Batches};
use logdrive_schemas::Batch;
use timely::container::NoopBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use tokio::sync::{mpsc, oneshot};

use super::queue::Waker;

/// What a worker tells a sink's task.
#[derive(Debug)]
pub(super) enum ToSink {
    /// Rows of this epoch.
    Batch { epoch: u64, worker: usize, batch: Box<Batch> },
    /// This worker will send nothing before this epoch; `u64::MAX` when it will send nothing more at all.
    Frontier { worker: usize, epoch: u64 },
}

/// What a sink's task tells the workers.
#[derive(Debug)]
pub(super) struct FromSink {
    /// Every epoch before it is durable.
    released: AtomicU64,
    /// One per worker.
    workers: Vec<WorkerSide>,
}

#[derive(Debug, Default)]
struct WorkerSide {
    waker: Waker,
    rejects: Mutex<Vec<Refused>>,
}

/// Rows that the far end refused.
#[derive(Debug)]
struct Refused {
    batch: Batch,
    at: At,
}

/// At which epoch refused rows leave.
#[derive(Debug)]
enum At {
    /// This one, which the worker still holds.
    Held(u64),
    /// The newest one: theirs was let go of when they went to the disk queue. The worker tells which it was.
    Newest(oneshot::Sender<u64>),
}

impl FromSink {
    pub(super) fn new(n_workers: usize) -> Arc<Self> {
        let workers = (0..n_workers).map(|_| WorkerSide::default()).collect();
        Arc::new(Self { released: AtomicU64::new(0), workers })
    }

    /// Hands refused rows back to the worker that holds their epoch. Before [`Self::release`] of that epoch.
    pub(super) fn reject(&self, epoch: u64, worker: usize, rejects: Batch) {
        self.workers[worker].refused(Refused { batch: rejects, at: At::Held(epoch) });
    }

    /// Hands refused rows back whose epoch was let go of. They leave at the epoch that the receiver gives.
    pub(super) fn reject_late(&self, rejects: Batch) -> oneshot::Receiver<u64> {
        let (told, epoch) = oneshot::channel();
        self.workers[0].refused(Refused { batch: rejects, at: At::Newest(told) });
        epoch
    }

    /// Lets go of every epoch before `epoch`; `u64::MAX`: of all, and nothing is refused any more.
    pub(super) fn release(&self, epoch: u64) {
        self.released.fetch_max(epoch, Ordering::AcqRel);
        self.workers.iter().for_each(|side| side.waker.wake());
    }
}

impl WorkerSide {
    fn refused(&self, refused: Refused) {
        self.rejects.lock().unwrap_or_else(PoisonError::into_inner).push(refused);
        self.waker.wake();
    }
}

/// Attaches a sink. The stream that comes out carries the rows that the sink refused, and its frontier is what the
/// sink has made durable. `reached` is told before which epoch everything has come to the sink's task.
pub(super) fn attach<'scope>(
    name: &str,
    input: BatchStream<'scope>,
    to_sink: mpsc::UnboundedSender<ToSink>,
    from_sink: Arc<FromSink>,
    reached: impl Fn(u64) + 'static,
) -> BatchStream<'scope> {
    let scope = input.scope();
    let worker = scope.index();
    let mut builder = OperatorBuilder::new(format!("sink:{name}"), scope);
    let mut input = builder.new_input(input, Pipeline);
    let (output, rejects) = builder.new_output::<Batches>();
    let mut output = OutputBuilder::<u64, NoopBuilder<Batches>>::from(output);
    let info = builder.operator_info();
    from_sink.workers[worker].waker.set(scope.worker().sync_activator_for(info.address.to_vec()));
    builder.build(move |mut capabilities| {
        let mut held: BTreeMap<u64, Capability<u64>> = BTreeMap::new();
        // At the newest epoch that the input may still have, or had: for rows that are refused late.
        let mut newest = capabilities.pop();
        let mut told = 0;
        move |frontiers| {
            input.for_each(|time, batches| {
                let epoch = *time.time();
                held.entry(epoch).or_insert_with(|| time.retain(0));
                for batch in std::mem::take(&mut batches.0) {
                    // The task outlives the dataflow; if it is gone the process is ending.
                    to_sink.send(ToSink::Batch { epoch, worker, batch: Box::new(batch) }).ok();
                }
            });
            let frontier = frontier(frontiers).unwrap_or(u64::MAX);
            if frontier > told {
                told = frontier;
                reached(frontier);
                if let Some(newest) = newest.as_mut().filter(|_| frontier < u64::MAX) {
                    newest.downgrade(&frontier);
                }
                to_sink.send(ToSink::Frontier { worker, epoch: frontier }).ok();
            }
            // In this order: a release must not overtake the rejects of its epochs.
            let released = from_sink.released.load(Ordering::Acquire);
            let side = &from_sink.workers[worker];
            let refused = std::mem::take(&mut *side.rejects.lock().unwrap_or_else(PoisonError::into_inner));
            let mut output = output.activate();
            for Refused { batch, at } in refused {
                let capability = match &at {
                    At::Held(epoch) => held.get(epoch),
                    At::Newest(_) => newest.as_ref(),
                };
                let capability = capability.expect("rejects come before the release of their epoch");
                output.session_with_builder(capability).give_container(&mut Batches(vec![batch]));
                if let At::Newest(told) = at {
                    // The sink's task may be ending, together with the process.
                    told.send(*capability.time()).ok();
                }
            }
            held = held.split_off(&released);
            if released == u64::MAX {
                newest = None;
            }
        }
    });
    rejects
}
