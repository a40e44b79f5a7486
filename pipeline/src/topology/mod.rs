//! The running pipeline: the only place where tokio and timely meet.
//!
//! Connectors run as tokio tasks, one per source and one per sink. Operators run on timely workers, one thread each.
//! Between them lie queues: `queue` into the dataflow, `egress` out of it. What is in flight is bounded per
//! source by credits in bytes; no other queue grows beyond that.
//!
//! ```text
//!  tokio                  timely worker                                  tokio
//!  ingest ──chunk@e──▶ decode ─▶ steps ─▶ stateful ──▶ egress ──batch@e──▶ sink task
//!    ▲                                                   │ holds e            │
//!    └──── commit ◀──── frontier passes e ◀──── lets go ◀┴──── durable ◀──────┘
//! ```

mod changes;
mod egress;
mod epochs;
mod in_flight;
mod ingest;
mod late;
mod outbox;
mod positions;
pub(crate) mod profile;
mod queue;
mod refused;
mod reload;
mod runtime;
mod seen;
mod sink_task;
mod snapshots;
mod taps;
mod watchdog;
mod worker;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use logdrive_connectors::buffer::queue::DiskQueue;
use logdrive_connectors::{ConnectorContext, ConnectorError, Metrics, Sink, Source, SourceKind, buffer};
use logdrive_queries::Functions;
use logdrive_schemas::component::ConfigError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::status::NodeNames;
use crate::checkpoint::{CheckpointWriter, Checkpoints};
use crate::config::{Input, Plan};

pub use changes::{Event, Lost, Subscription};
pub use epochs::now_micros;
pub use refused::Refused;
pub use snapshots::{Progress, ViewReader};
pub use taps::{Tap, TapReader};
pub use watchdog::exit_on_panic;

/// Why a pipeline does not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A component cannot be built.
    #[error("the configuration does not fit")]
    Config(Vec<ConfigError>),
    /// A component cannot go on.
    #[error("{component} cannot go on")]
    Connector {
        /// The source or sink.
        component: String,
        /// Why.
        #[source]
        source: ConnectorError,
    },
    /// The drain took longer than `drain_timeout`. What was not delivered is still in the buffers.
    #[error("not everything was delivered within {0:?}; the rest waits in the buffers for the next start")]
    DrainTimeout(Duration),
    /// A task panicked.
    #[error("{0} failed inside")]
    Panicked(String),
    /// The dataflow cannot be started.
    #[error("the dataflow cannot start: {0}")]
    Timely(String),
}

/// Sources and sinks that take the place of configured ones, for tests of pipelines.
#[derive(Default)]
pub struct Stand {
    /// By source index.
    pub sources: HashMap<usize, Box<dyn Source>>,
    /// By sink index.
    pub sinks: HashMap<usize, Box<dyn Sink>>,
}

/// A pipeline that runs.
pub struct Running {
    tasks: JoinSet<(String, Result<(), ConnectorError>)>,
    shutdown: CancellationToken,
    stop_ticks: CancellationToken,
    abandon: Arc<AtomicBool>,
    /// Cancelled when the last worker has ended.
    dataflow: CancellationToken,
    drain_timeout: Duration,
    view: View,
}

/// What can be seen of a running pipeline from outside.
#[derive(Clone)]
pub struct View {
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Taps by node name.
    pub taps: Arc<HashMap<String, Tap>>,
    /// All nodes, in pipeline order.
    pub names: Arc<NodeNames>,
    /// Reads views.
    pub views: Arc<ViewReader>,
    /// The rows that failed last.
    pub refused: Arc<Refused>,
    /// The paths of the Parquet files that the pipeline writes, by the names of their sinks and streams.
    pub lakes: Arc<Vec<(String, String)>>,
    /// Functions that the configuration defines, for those who ask.
    pub functions: Functions,
    /// Cancelled to stop gracefully.
    pub shutdown: CancellationToken,
    /// Whether all listeners are open and the dataflow runs.
    pub ready: Arc<AtomicBool>,
}

/// Starts a pipeline; returns once its listeners are open and its dataflow runs.
///
/// # Errors
/// If a component cannot be built, a listener cannot be opened, or stored state cannot be read.
pub async fn start(plan: Plan, metrics: Arc<Metrics>, mut stand: Stand) -> Result<Running, RunError> {
    let shutdown = CancellationToken::new();
    let data_dir = plan.data_dir.clone();
    let context = |kind: &str, name: &Arc<str>| ConnectorContext {
        name: Arc::clone(name),
        state_dir: data_dir.join(kind).join(&**name),
        metrics: Arc::clone(&metrics),
        shutdown: shutdown.clone(),
    };
    let of_detectors = plan.detectors.iter().map(|d| d.detector.operators().len());
    let of_views = plan.views.iter().map(|v| v.view.operators().len());
    let n_outboxes = (0..plan.views.len()).filter(|view| plan.has_outbox(*view)).count();
    let n_operators = of_detectors.chain(of_views).sum::<usize>() + n_outboxes;
    let (checkpoints, checkpoint_writer) = open_checkpoints(&plan, n_operators, &metrics).await?;
    let sources = build_sources(&plan, &mut stand, &context)?;
    let sinks = build_sinks(&plan, &mut stand, &context)?;

    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for _ in 0..plan.workers {
        let (to, from): (Vec<_>, Vec<_>) = plan.sources.iter().map(|_| queue::queue()).unzip();
        senders.push(to);
        receivers.push(Some(from));
    }
    let draining = watch::Sender::new(false);
    let taken = in_flight::Taken::new(sinks.len());
    let (mut sink_ends, mut sink_tasks) = (Vec::new(), Vec::new());
    for (idx, sink) in sinks.into_iter().enumerate() {
        let from_sink = egress::FromSink::new(plan.workers);
        let (to_sink, receiver) = mpsc::unbounded_channel();
        let told = sink_task::ToldTaken {
            by_sinks: Arc::clone(&taken),
            idx,
            is_behind_others: plan.sinks[idx].inputs.contains(&Input::Rejects),
        };
        let inbox = sink_task::Inbox::new(receiver, plan.workers, draining.subscribe(), told);
        sink_ends.push((to_sink, Arc::clone(&from_sink)));
        sink_tasks.push((idx, sink, inbox, from_sink));
    }
    let epochs = epochs::Epochs::new(checkpoints.newest_cut(), n_operators > 0);
    let views = ViewReader::new(&plan, &epochs, &metrics);
    let pulse = watchdog::Pulse::new(plan.workers, plan.sources.len(), runtime::places(&plan));
    let refused = Arc::new(Refused::default());
    let nodes = all_nodes(&plan);
    let taps = taps::Taps::new(nodes.iter().copied());
    let view = View {
        metrics: Arc::clone(&metrics),
        taps: Arc::new(nodes.iter().map(|n| (plan.name(*n).to_owned(), taps.of(*n))).collect()),
        names: Arc::new(node_names(&plan)),
        views: Arc::clone(&views),
        refused: Arc::clone(&refused),
        lakes: Arc::new(plan.lakes()),
        functions: plan.functions.clone(),
        shutdown: shutdown.clone(),
        ready: Arc::default(),
    };
    let runtime = Arc::new(runtime::Runtime {
        plan,
        metrics: Arc::clone(&metrics),
        taps,
        checkpoints: Arc::clone(&checkpoints),
        queues: Mutex::new(receivers),
        sinks: sink_ends,
        shutdown: shutdown.clone(),
        views,
        pulse: Arc::clone(&pulse),
        refused,
    });

    let frontiers = Frontiers::new(n_operators > 0);
    let mut tasks = JoinSet::new();
    let stop_ticks = CancellationToken::new();
    for (idx, sink, inbox, from_sink) in sink_tasks {
        let task = sink_task(&runtime, idx, sink, inbox, from_sink, frontiers.sunk.subscribe())?;
        let name = runtime.plan.sinks[idx].name.to_string();
        tasks.spawn(async move { (name, task.run().await) });
    }
    let (abandon, dataflow) = spawn_dataflow(&runtime, frontiers.sunk.clone()).await?;
    if n_operators > 0 {
        let (sunk, cut) = (frontiers.sunk.subscribe(), frontiers.cut.clone());
        tasks.spawn(async move { ("checkpoints".to_owned(), checkpoint_writer.run(sunk, cut).await) });
    }
    tokio::spawn(frontiers.clone().run(stop_ticks.clone()));
    tokio::spawn(Arc::clone(&epochs).run(stop_ticks.clone()));

    reload::spawn(&runtime, stop_ticks.clone());

    // A sink that cannot write goes to its queue before what waits for it slows the others.
    let queues = runtime.plan.sinks.iter().map(|sink| sink.queue.memory_bytes);
    let before_queues =
        if needs_queues(&runtime.plan) { queues.max().unwrap_or_default().saturating_mul(2) } else { 0 };
    let backlog = epochs.backlog_max_bytes(runtime.plan.workers).max(before_queues);
    let limits = in_flight::Limits {
        backlog: backlog.min(runtime.plan.in_flight_max_bytes),
        bytes: runtime.plan.in_flight_max_bytes,
    };
    let n_active = Arc::new(AtomicUsize::new(runtime.plan.sources.len()));
    for (idx, (mut source, path)) in sources.into_iter().enumerate() {
        let name = Arc::clone(&runtime.plan.sources[idx].name);
        let failed = |source| RunError::Connector { component: name.to_string(), source };
        let in_checkpoint = || checkpoints.restored_positions(&name);
        let positions = positions::Positions::open(path, in_checkpoint).map_err(failed)?;
        source.connect(&positions.all()).await.map_err(failed)?;
        let task = ingest::IngestTask {
            name: Arc::clone(&name),
            source,
            queues: senders.iter_mut().map(|worker| worker[idx].clone()).collect(),
            idx,
            epochs: Arc::clone(&epochs),
            checkpoints: Arc::clone(&checkpoints),
            pulse: Arc::clone(&pulse),
            progress: in_flight::Progress {
                taken: taken.subscribe(),
                sunk: frontiers.sunk.subscribe(),
                delivered: frontiers.delivered.subscribe(),
            },
            positions,
            in_flight: in_flight::InFlight::new(limits),
            sent: HashMap::new(),
            metrics: Arc::clone(&metrics),
            shutdown: shutdown.clone(),
            n_active: Arc::clone(&n_active),
            draining: draining.clone(),
        };
        tasks.spawn(async move { (task.name.to_string(), task.run().await) });
    }
    watchdog::watch(&pulse, runtime.plan.stall_timeout).map_err(|e| RunError::Timely(e.to_string()))?;
    view.ready.store(true, Ordering::Release);
    Ok(Running {
        tasks,
        shutdown,
        stop_ticks,
        abandon,
        dataflow,
        drain_timeout: runtime.plan.drain_timeout,
        view,
    })
}

/// Reads the newest checkpoint; where it is far away that takes as long as it takes.
async fn open_checkpoints(
    plan: &Plan,
    n_operators: usize,
    metrics: &Arc<Metrics>,
) -> Result<(Arc<Checkpoints>, CheckpointWriter), RunError> {
    let (place, workers, metrics) = (plan.checkpoints.clone(), plan.workers, Arc::clone(metrics));
    let open = move || Checkpoints::open(&place, n_operators, workers, &metrics);
    let opened = tokio::task::spawn_blocking(open).await;
    let opened = opened.map_err(|e| RunError::Panicked(e.to_string()))?;
    opened.map_err(|source| RunError::Connector { component: "checkpoints".into(), source })
}

impl Running {
    /// What can be seen from outside.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Waits until the pipeline ends: every source has ended, or [`View::shutdown`] was cancelled, and everything is
    /// delivered.
    ///
    /// # Errors
    /// What ended it early. Nothing that was not delivered is acknowledged.
    pub async fn wait(mut self) -> Result<(), RunError> {
        let result = self.join_tasks().await;
        self.view.ready.store(false, Ordering::Release);
        if result.is_err() {
            self.abandon.store(true, Ordering::Release);
        }
        self.shutdown.cancel();
        self.dataflow.cancelled().await;
        self.stop_ticks.cancel();
        self.tasks.abort_all();
        result
    }

    async fn join_tasks(&mut self) -> Result<(), RunError> {
        let shutdown = self.shutdown.clone();
        let drain_timeout = self.drain_timeout;
        let deadline = async move {
            shutdown.cancelled().await;
            tokio::time::sleep(drain_timeout).await;
        };
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                joined = self.tasks.join_next() => match joined {
                    None => return Ok(()),
                    Some(Ok((_, Ok(())))) => {}
                    Some(Ok((component, Err(source)))) => {
                        return Err(RunError::Connector { component, source });
                    }
                    Some(Err(e)) => return Err(RunError::Panicked(e.to_string())),
                },
                // The checkpoint writer lives as long as the dataflow: once that is done nothing more can come.
                () = self.dataflow.cancelled() => {
                    while !self.tasks.is_empty() {
                        match tokio::time::timeout(Duration::from_secs(1), self.tasks.join_next()).await {
                            Ok(Some(Ok((component, Err(source))))) => {
                                return Err(RunError::Connector { component, source });
                            }
                            Ok(Some(_)) => {}
                            _ => break,
                        }
                    }
                    return Ok(());
                }
                () = &mut deadline => return Err(RunError::DrainTimeout(drain_timeout)),
            }
        }
    }
}

fn all_nodes(plan: &Plan) -> Vec<Input> {
    (0..plan.sources.len())
        .map(Input::Source)
        .chain((0..plan.streams.len()).map(Input::Stream))
        .chain((0..plan.detectors.len()).map(Input::Detector))
        .chain((0..plan.views.len()).map(Input::View))
        .chain([Input::Rejects])
        .collect()
}

fn node_names(plan: &Plan) -> NodeNames {
    let sources = plan.sources.iter().map(|s| ("source", &s.name));
    let streams = plan.streams.iter().map(|s| ("stream", &s.name));
    let detectors = plan.detectors.iter().map(|d| ("detector", &d.name));
    let views = plan.views.iter().map(|v| ("view", &v.name));
    let sinks = plan.sinks.iter().map(|s| ("sink", &s.name));
    let all = sources.chain(streams).chain(detectors).chain(views).chain(sinks);
    NodeNames(all.map(|(kind, name)| (kind, name.to_string())).collect())
}

type Contexts<'a> = dyn Fn(&str, &Arc<str>) -> ConnectorContext + 'a;

/// Sources, each with the file that keeps its positions if it does not keep them itself.
fn build_sources(
    plan: &Plan,
    stand: &mut Stand,
    context: &Contexts<'_>,
) -> Result<Vec<(Box<dyn Source>, Option<PathBuf>)>, RunError> {
    let mut sources = Vec::with_capacity(plan.sources.len());
    for (idx, source) in plan.sources.iter().enumerate() {
        if let Some(stand_in) = stand.sources.remove(&idx) {
            sources.push((stand_in, None));
            continue;
        }
        let cx = context("sources", &source.name);
        let built = match (source.entry.build)(&source.node, &cx).map_err(RunError::Config)? {
            SourceKind::Log(log) => log,
            SourceKind::Listener(listener) => {
                let cx = context("buffer", &source.name);
                buffer::wrap(listener, &source.buffer, &cx)
            }
        };
        let path = built
            .wants_positions_kept()
            .then(|| plan.data_dir.join("positions").join(format!("{}.json", source.name)));
        sources.push((built, path));
    }
    Ok(sources)
}

fn build_sinks(
    plan: &Plan,
    stand: &mut Stand,
    context: &Contexts<'_>,
) -> Result<Vec<Box<dyn Sink>>, RunError> {
    let build = |(idx, sink): (usize, &crate::config::SinkPlan)| match stand.sinks.remove(&idx) {
        Some(stand_in) => Ok(stand_in),
        None => (sink.entry.build)(&sink.node, &context("sinks", &sink.name)).map_err(RunError::Config),
    };
    plan.sinks.iter().enumerate().map(build).collect()
}

fn sink_task(
    runtime: &Arc<runtime::Runtime>,
    idx: usize,
    sink: Box<dyn Sink>,
    inbox: sink_task::Inbox,
    back: Arc<egress::FromSink>,
    sunk: watch::Receiver<u64>,
) -> Result<sink_task::SinkTask, RunError> {
    let plan = &runtime.plan.sinks[idx];
    let name = Arc::clone(&plan.name);
    let data_dir = &runtime.plan.data_dir;
    let queue = if needs_queues(&runtime.plan) && plan.queue.max_bytes > 0 && !plan.is_implicit() {
        let dir = data_dir.join("queues").join(&*name);
        let queue = DiskQueue::open(&dir, plan.queue.max_bytes)
            .map_err(|source| RunError::Connector { component: name.to_string(), source })?;
        Some(queue)
    } else {
        None
    };
    let window = sink_task::Window::new(
        back,
        queue,
        usize::try_from(plan.queue.memory_bytes).unwrap_or(usize::MAX),
        sunk,
        data_dir.join("rejects").join(format!("{name}.own.ndjson")),
        runtime.reject_counter(&name),
        !plan.inputs.contains(&Input::Rejects),
    );
    let (metrics, seen) = (Arc::clone(&runtime.metrics), seen::Seen::default());
    Ok(sink_task::SinkTask { name, sink, inbox, window, metrics, seen })
}

/// Whether sinks put on disk what they cannot write: that helps the other sinks to go on. Where there are none it
/// would only write everything twice.
fn needs_queues(plan: &Plan) -> bool {
    plan.sinks.iter().filter(|sink| !sink.is_implicit()).count() > 1
}

/// How far the pipeline is.
#[derive(Clone)]
struct Frontiers {
    /// Every epoch before it has left every sink.
    sunk: watch::Sender<u64>,
    /// Every epoch before it is in two checkpoints on disk.
    cut: watch::Sender<u64>,
    /// Every epoch before it is both: its positions may be committed.
    delivered: watch::Sender<u64>,
}

impl Frontiers {
    fn new(has_state: bool) -> Self {
        let cut = if has_state { 0 } else { u64::MAX };
        Self { sunk: watch::Sender::new(0), cut: watch::Sender::new(cut), delivered: watch::Sender::new(0) }
    }

    async fn run(self, stop: CancellationToken) {
        let (mut sunk, mut cut) = (self.sunk.subscribe(), self.cut.subscribe());
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = sunk.changed() => {}
                _ = cut.changed() => {}
            }
            let delivered = (*sunk.borrow_and_update()).min(*cut.borrow_and_update());
            self.delivered.send_if_modified(|old| std::mem::replace(old, delivered) != delivered);
        }
    }
}

/// Runs the workers on threads of their own. The token is cancelled when the last one has ended.
async fn spawn_dataflow(
    runtime: &Arc<runtime::Runtime>,
    sunk: watch::Sender<u64>,
) -> Result<(Arc<AtomicBool>, CancellationToken), RunError> {
    let abandon = Arc::new(AtomicBool::new(false));
    let (built_sender, mut built) = mpsc::unbounded_channel();
    let dataflow = CancellationToken::new();
    let (ended, pulse) = (dataflow.clone(), Arc::clone(&runtime.pulse));
    let n_workers = runtime.plan.workers;
    let (worker_runtime, worker_abandon) = (Arc::clone(runtime), Arc::clone(&abandon));
    let guards = timely::execute(timely::Config::process(n_workers), move |worker| {
        let queues = worker_runtime.take_queues(worker.index());
        if !worker_runtime.plan.views.is_empty() {
            worker_runtime.views.profile().listen(worker);
        }
        let (probe, places) = worker.dataflow(|scope| worker::build(scope, &worker_runtime, queues));
        let pulse = &worker_runtime.pulse;
        built_sender.send(()).ok();
        while worker.step_or_park(Some(Duration::from_millis(100))) {
            pulse.stepped(worker.index());
            for (place, probe) in &places {
                let reached = probe.with_frontier(|f| f.first().copied()).unwrap_or(u64::MAX);
                pulse.reached(*place, worker.index(), reached);
            }
            if worker_abandon.load(Ordering::Acquire) {
                // What is inside is neither delivered nor acknowledged: it comes again at the next start.
                worker.installed_dataflows().into_iter().for_each(|idx| worker.drop_dataflow(idx));
                return;
            }
            if worker.index() == 0 {
                let frontier = probe.with_frontier(|f| f.first().copied());
                // Before its first step a probe's frontier is empty; at the end the loop ends.
                if let Some(frontier) = frontier {
                    sunk.send_if_modified(|old| std::mem::replace(old, frontier.max(*old)) < frontier);
                }
            }
        }
        if worker.index() == 0 {
            sunk.send_replace(u64::MAX);
        }
    })
    .map_err(RunError::Timely)?;
    std::thread::Builder::new()
        .name("dataflow".into())
        .spawn(move || {
            // Panics of workers abort the process before they come here.
            drop(guards);
            pulse.over();
            ended.cancel();
        })
        .map_err(|e| RunError::Timely(e.to_string()))?;
    for _ in 0..n_workers {
        if built.recv().await.is_none() {
            return Err(RunError::Timely("a worker ended while it was built".into()));
        }
    }
    Ok((abandon, dataflow))
}
