//! Runs a detector on rows in given epochs, on timely workers.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, Int64Array, RecordBatch, StringViewArray,
    TimestampMicrosecondArray, UInt64Array,
};
use arrow::datatypes::{
    DataType, Field, Float64Type, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType,
};
use logdrive_operators::flow::{Changes, TablesInMemory};
use logdrive_operators::{
    Batches, Checkpoint, CompileError, Compiler, DETECTORS, Detector, DetectorContext, DetectorCounters,
    Expression, ExpressionError, Lifecycle, Snapshots, ViewRows, WorkerContext,
};
use logdrive_schemas::chunk::Partition;
use logdrive_schemas::component::{Limits, Node};
use logdrive_schemas::{Batch, Epoch, Layout, Origin};
use timely::container::NoopBuilder;
use timely::dataflow::operators::{Input, InspectCore, Probe};
use timely::dataflow::{InputHandle, ProbeHandle};

/// Where epochs start: a moment in 2023.
pub(crate) const BASE_EPOCH: u64 = 1_700_000_000_000;

/// The event time of a row that has none.
pub(crate) const NO_TIME: i64 = i64::MIN;

/// Event time in microseconds, in seconds from a start well before [`BASE_EPOCH`].
pub(crate) fn at(seconds: i64) -> i64 {
    (BASE_EPOCH as i64 - 10_000_000) * Epoch::UNIT_US + seconds * 1_000_000
}

/// A small generator of numbers that are the same on every run.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// One message.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) at: i64,
    pub(crate) card: Option<String>,
    pub(crate) amount: Option<i64>,
    pub(crate) partition: u64,
    pub(crate) offset: u64,
}

/// What arrives in each epoch.
pub(crate) type Epochs = BTreeMap<u64, Vec<Event>>;

/// Cuts `events` into epochs of at most `n_max`, with gaps between them.
pub(crate) fn cut_into_epochs(rng: &mut Rng, events: &[Event], n_max: u64) -> Epochs {
    let (mut epoch, mut rest, mut epochs) = (BASE_EPOCH, events, Epochs::new());
    while !rest.is_empty() {
        epoch += 1 + rng.below(4);
        let (head, tail) = rest.split_at(rest.len().min(1 + rng.below(n_max) as usize));
        epochs.insert(epoch, head.to_vec());
        rest = tail;
    }
    epochs
}

/// What a finding said.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) epoch: u64,
    pub(crate) id: String,
    pub(crate) entity: String,
    pub(crate) tenant: Option<String>,
    pub(crate) score: f64,
    pub(crate) window_start: i64,
    pub(crate) window_end: i64,
    pub(crate) evidence: Vec<String>,
}

/// The state at a cut.
#[derive(Clone, Debug, Default)]
pub(crate) struct States {
    pub(crate) blobs: HashMap<String, Vec<Vec<u8>>>,
    tables: HashMap<String, TablesInMemory>,
}

/// Everything that came out.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) findings: Vec<Found>,
    pub(crate) n_rejects: usize,
    pub(crate) late: usize,
    pub(crate) evicted: usize,
    pub(crate) most_rows: usize,
    /// Cut, operator, worker.
    states: BTreeMap<u64, BTreeMap<(String, usize), Vec<u8>>>,
    /// What was handed in at each cut, by operator.
    changes: BTreeMap<u64, Vec<(String, Changes)>>,
    operators: Vec<String>,
}

impl Outcome {
    /// One of the cuts at which every instance handed in its state, oldest first.
    pub(crate) fn complete_cut(&self, workers: usize, choose: impl FnOnce(usize) -> usize) -> (u64, States) {
        let n_instances = self.operators.len() * workers;
        let complete: Vec<_> = self.states.iter().filter(|(_, s)| s.len() == n_instances).collect();
        assert!(!complete.is_empty(), "no complete cut");
        let (cut, states) = complete[choose(complete.len())];
        let mut by_operator = States::default();
        for ((operator, _), state) in states {
            by_operator.blobs.entry(operator.clone()).or_default().push(state.clone());
        }
        for (operator, changes) in self.changes.range(..=cut).flat_map(|(_, changes)| changes) {
            by_operator.tables.entry(operator.clone()).or_default().apply(changes).unwrap();
        }
        (*cut, by_operator)
    }
}

#[derive(Debug)]
struct Runtime {
    every: u64,
    restored: States,
    outcome: Mutex<Outcome>,
}

impl Checkpoint for Runtime {
    fn next_cut(&self, epoch: u64) -> u64 {
        epoch.div_ceil(self.every) * self.every
    }

    fn put(&self, operator: &str, worker: usize, cut: u64, state: Vec<u8>) {
        assert_eq!(cut % self.every, 0);
        let mut outcome = self.outcome.lock().unwrap();
        if let Some((last, _)) =
            outcome.states.iter().rev().find(|(_, s)| s.contains_key(&(operator.into(), worker)))
        {
            assert_eq!(cut, last + self.every, "{operator} on {worker} hands in at every cut, in order");
        }
        outcome.states.entry(cut).or_default().insert((operator.into(), worker), state);
    }

    fn put_changes(&self, operator: &str, worker: usize, cut: u64, changes: Changes) {
        self.put(operator, worker, cut, changes.state.clone());
        let mut outcome = self.outcome.lock().unwrap();
        outcome.changes.entry(cut).or_default().push((operator.to_owned(), changes));
    }

    fn restored_rows(
        &self,
        operator: &str,
        fingerprint: u64,
        table: &str,
        shards: Range<u16>,
    ) -> Box<dyn Iterator<Item = RecordBatch> + '_> {
        let tables = self.restored.tables.get(operator).filter(|tables| tables.fingerprint == fingerprint);
        Box::new(tables.and_then(|tables| tables.rows(table, &shards).unwrap()).into_iter())
    }

    fn restored(&self, operator: &str) -> Vec<Vec<u8>> {
        self.restored.blobs.get(operator).cloned().unwrap_or_default()
    }
}

impl DetectorCounters for Runtime {
    fn finding(&self, _: &str, _: &str) {}

    fn late(&self, _: &str, n_rows: usize) {
        self.outcome.lock().unwrap().late += n_rows;
    }

    fn evicted(&self, _: &str, n_rows: usize) {
        self.outcome.lock().unwrap().evicted += n_rows;
    }

    fn state_rows(&self, _: &str, _: usize, n_rows: usize) {
        let mut outcome = self.outcome.lock().unwrap();
        outcome.most_rows = outcome.most_rows.max(n_rows);
    }
}

/// How to run.
pub(crate) struct Run {
    yaml: String,
    lateness: i64,
    workers: usize,
    every: u64,
    restored: States,
    idle_until: Option<u64>,
}

impl Run {
    pub(crate) fn new(yaml: &str) -> Self {
        Self {
            yaml: yaml.into(),
            lateness: 0,
            workers: 1,
            every: 1000,
            restored: States::default(),
            idle_until: None,
        }
    }

    pub(crate) fn lateness(mut self, micros: i64) -> Self {
        self.lateness = micros;
        self
    }

    pub(crate) fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    pub(crate) fn every(mut self, epochs: u64) -> Self {
        self.every = epochs;
        self
    }

    pub(crate) fn restored(mut self, states: States) -> Self {
        self.restored = states;
        self
    }

    /// Ticks on to this epoch before the end.
    pub(crate) fn idle_until(mut self, epoch: u64) -> Self {
        self.idle_until = Some(epoch);
        self
    }

    pub(crate) fn go(self, epochs: &Epochs) -> Outcome {
        let Self { yaml, lateness, workers, every, restored, idle_until } = self;
        let detector = plan(&yaml, lateness);
        let outcome = Outcome { operators: detector.operators(), ..Outcome::default() };
        let runtime = Arc::new(Runtime { every, restored, outcome: Mutex::new(outcome) });
        let shared = Arc::clone(&runtime);
        let epochs = epochs.clone();
        let guards = timely::execute(timely::Config::process(workers), move |worker| {
            let mut input = InputHandle::<u64, NoopBuilder<Batches>>::new_with_builder();
            let probe = ProbeHandle::new();
            let (index, peers) = (worker.index(), worker.peers());
            let checkpoint: Arc<dyn Checkpoint> = Arc::<Runtime>::clone(&shared);
            let counters: Arc<dyn DetectorCounters> = Arc::<Runtime>::clone(&shared);
            let cx = WorkerContext {
                index,
                peers,
                checkpoint,
                counters,
                lifecycle: Arc::new(Endless),
                snapshots: Arc::new(Endless),
            };
            worker.dataflow::<u64, _, _>(|scope| {
                let stream = scope.input_from(&mut input);
                let (findings, rejects) = detector.attach(stream, &cx);
                let (of_findings, of_rejects) = (Arc::clone(&shared), Arc::clone(&shared));
                findings
                    .inspect_container(move |event| {
                        if let Ok((epoch, batches)) = event {
                            let found = batches.0.iter().flat_map(|batch| read(*epoch, batch));
                            of_findings.outcome.lock().unwrap().findings.extend(found);
                        }
                    })
                    .probe_with(&probe);
                rejects
                    .inspect_container(move |event| {
                        if let Ok((_, batches)) = event {
                            let n_rows: usize = batches.0.iter().map(Batch::num_rows).sum();
                            of_rejects.outcome.lock().unwrap().n_rejects += n_rows;
                        }
                    })
                    .probe_with(&probe);
            });
            if let Some(first) = epochs.keys().next() {
                input.advance_to(first - first % shared.every);
            }
            for (n, (epoch, events)) in epochs.iter().enumerate() {
                // Workers drift apart, but not for ever.
                if n % (3 + index) == 0 {
                    worker.step_while(|| probe.less_than(&(epoch - 10)) && probe.less_than(input.time()));
                }
                input.advance_to(*epoch);
                for (idx, batch) in batches(events).into_iter().enumerate() {
                    if (n + idx) % peers == index {
                        input.send_batch(&mut Batches(vec![batch]));
                    }
                }
                // Without a step the frontier jumps over several epochs at once.
                if epoch % 3 == 0 {
                    worker.step();
                }
            }
            if let Some(epoch) = idle_until {
                input.advance_to(epoch);
                worker.step_while(|| probe.less_than(&epoch));
            }
            input.close();
            worker.step_while(|| !probe.done());
        })
        .unwrap();
        for result in guards.join() {
            result.unwrap();
        }
        let mut outcome = std::mem::take(&mut *runtime.outcome.lock().unwrap());
        outcome.findings.sort_by_key(|finding| (finding.epoch, finding.window_end));
        outcome
    }
}

/// Nothing stops before its end, and nobody reads.
#[derive(Debug)]
struct Endless;

impl Snapshots for Endless {
    fn is_due(&self, _: &str, _: usize, _: u64) -> bool {
        false
    }

    fn answer(&self, _: &str, _: usize, _: u64, _: Result<ViewRows, String>) {}

    fn reached(&self, _: &str, _: i64, _: Option<(&str, u64)>) {}
}

impl Lifecycle for Endless {
    fn is_stopping(&self) -> bool {
        false
    }
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("@timestamp", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("card", DataType::Utf8View, true),
        Field::new("amount", DataType::Int64, true),
        Field::new("tenant", DataType::Utf8View, true),
    ]))
}

fn plan(yaml: &str, lateness: i64) -> Arc<dyn Detector> {
    let node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
    let cx = DetectorContext {
        name: "detector".into(),
        compiler: Arc::new(Columns),
        input: schema(),
        event_time: "@timestamp".into(),
        lateness: Duration::from_micros(lateness as u64),
    };
    let entry = DETECTORS.iter().find(|entry| entry.name == "velocity").unwrap();
    (entry.plan)(&node, &cx).unwrap_or_else(|errors| panic!("{errors:?}"))
}

/// The events of an epoch, a batch for each partition.
fn batches(events: &[Event]) -> Vec<Batch> {
    let mut by_partition: BTreeMap<u64, Vec<&Event>> = BTreeMap::new();
    for event in events {
        by_partition.entry(event.partition).or_default().push(event);
    }
    by_partition.into_iter().map(|(partition, events)| batch(partition, &events)).collect()
}

fn batch(partition: u64, events: &[&Event]) -> Batch {
    let times = events.iter().map(|e| (e.at != NO_TIME).then_some(e.at));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(times.collect::<TimestampMicrosecondArray>().with_timezone("UTC")),
        Arc::new(events.iter().map(|e| e.card.as_deref()).collect::<StringViewArray>()),
        Arc::new(events.iter().map(|e| e.amount).collect::<Int64Array>()),
        Arc::new(events.iter().map(|_| Some("acme")).collect::<StringViewArray>()),
    ];
    let rows = RecordBatch::try_new(schema(), columns).unwrap();
    let origin = Origin {
        source: "shop".into(),
        partition: Partition(partition),
        ordered: true,
        received_at: 0,
        peer: None,
    };
    let original: BinaryViewArray = events.iter().map(|_| Some(b"{}")).collect();
    let offsets = UInt64Array::from_iter_values(events.iter().map(|e| e.offset));
    Batch::new(rows, original, offsets, Arc::new(origin), Arc::new(Layout::Original(vec![]))).unwrap()
}

fn read(epoch: u64, batch: &Batch) -> Vec<Found> {
    let column = |name: &str| batch.rows().column_by_name(name).unwrap();
    let text = |name: &str, idx: usize| column(name).as_string_view().value(idx).to_owned();
    let time = |name: &str, idx: usize| column(name).as_primitive::<TimestampMicrosecondType>().value(idx);
    let one = |idx: usize| Found {
        epoch,
        id: text("id", idx),
        entity: text("entity", idx),
        tenant: column("tenant").is_valid(idx).then(|| text("tenant", idx)),
        score: column("score").as_primitive::<Float64Type>().value(idx),
        window_start: time("window_start", idx),
        window_end: time("window_end", idx),
        evidence: {
            let ids = column("evidence").as_list::<i32>().value(idx);
            ids.as_string_view().iter().map(|id| id.unwrap().to_owned()).collect()
        },
    };
    (0..batch.num_rows()).map(one).collect()
}

/// Knows `1 / column` and nothing else.
#[derive(Debug)]
struct Columns;

impl Compiler for Columns {
    fn compile(&self, sql: &str, _: &Schema) -> Result<Arc<dyn Expression>, CompileError> {
        let column = sql.strip_prefix("1 / ").expect("the only expression there is");
        Ok(Arc::new(Reciprocal(vec![column.to_owned()])))
    }
}

#[derive(Debug)]
struct Reciprocal(Vec<String>);

impl Expression for Reciprocal {
    fn evaluate(&self, rows: &RecordBatch) -> Result<ArrayRef, ExpressionError> {
        let column = rows.column_by_name(&self.0[0]).unwrap().as_primitive::<Int64Type>();
        let divide = |n: Option<i64>| match n {
            Some(0) => Err(ExpressionError("division by zero".into())),
            other => Ok(other.map(|n| 1 / n)),
        };
        let values = column.iter().map(divide).collect::<Result<Vec<_>, _>>()?;
        Ok(Arc::new(Int64Array::from(values)))
    }

    fn data_type(&self) -> &DataType {
        &DataType::Int64
    }

    fn columns(&self) -> &[String] {
        &self.0
    }
}
