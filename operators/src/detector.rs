//! Detectors: stateful pieces of dataflow that say findings.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use logdrive_schemas::component::{Component, ConfigError, Node};

use crate::expression::Compiler;
use crate::flow::{BatchStream, Changes};
use crate::view::{Snapshots, ViewOutcome};

/// What a detector may use while it is planned.
#[derive(Clone, Debug)]
pub struct DetectorContext {
    /// The detector's name in the pipeline.
    pub name: Arc<str>,
    /// Compiles SQL.
    pub compiler: Arc<dyn Compiler>,
    /// The columns of its input.
    pub input: SchemaRef,
    /// The event-time column.
    pub event_time: String,
    /// How late a row may be.
    pub lateness: Duration,
}

/// Keeps the state of operators over crashes. One per pipeline; the runtime implements it.
///
/// State is cut at an epoch: an operator that was restored from the state of epoch `F` has seen every row of epochs
/// before `F` and none since. After a crash sources replay from a position at or before that cut, so an operator
/// remembers, per partition of [`logdrive_schemas::Origin`], the offset up to which it has counted, and skips rows
/// below it.
///
/// A cut may be restored only if all sinks have flushed what came before it: a finding or a reject of an epoch before
/// the cut is not made again.
pub trait Checkpoint: Debug + Send + Sync {
    /// The first epoch at or after `epoch` at which operators hand in their state.
    fn next_cut(&self, epoch: u64) -> u64;

    /// Whether state is to be handed in at `cut` by one whose frontier has reached `reached`. All instances get the
    /// same answer for a cut. What is not handed in now is part of what is handed in next.
    fn wants(&self, cut: u64, reached: u64) -> bool {
        let _ = (cut, reached);
        true
    }

    /// Hands in the state of an operator's instance: everything of epochs before `cut`, nothing since. Every
    /// instance hands in something at every cut that its frontier passes and that is wanted, in order.
    fn put(&self, operator: &str, worker: usize, cut: u64, state: Vec<u8>);

    /// Like [`Self::put`], but the state is in tables, of which only what changed is handed in. An operator uses either
    /// this or the other.
    fn put_changes(&self, operator: &str, worker: usize, cut: u64, changes: Changes);

    /// The rows of a table of `operator` in these shards, as of the cut that [`Self::restored`] is of; nothing if they
    /// were handed in with another fingerprint. Columns are those that were handed in, all nullable.
    fn restored_rows(
        &self,
        operator: &str,
        fingerprint: u64,
        table: &str,
        shards: Range<u16>,
    ) -> Box<dyn Iterator<Item = RecordBatch> + '_>;

    /// The newest cut that is on disk. One who goes on from there, or from a later one, has what was handed in at it.
    fn written(&self) -> u64 {
        0
    }

    /// What all instances of `operator` handed in at the newest complete cut before this process started; empty at
    /// first. The number of workers may have changed: each instance takes what it is responsible for.
    fn restored(&self, operator: &str) -> Vec<Vec<u8>>;
}

/// Counts what detectors do; the runtime makes metrics of it.
pub trait DetectorCounters: Debug + Send + Sync {
    /// A finding was said.
    fn finding(&self, detector: &str, severity: &str);
    /// Rows came later than allowed.
    fn late(&self, detector: &str, n_rows: usize);
    /// Rows were dropped because a limit on the state was reached.
    fn evicted(&self, detector: &str, n_rows: usize) {
        let _ = (detector, n_rows);
    }
    /// Rows of a view's input that it does not hold, or let go of: why, and how many.
    fn view_rows(&self, view: &str, outcome: ViewOutcome, n_rows: usize) {
        let _ = (view, outcome, n_rows);
    }
    /// About how many bytes the state of one worker's instance of a view takes.
    fn view_bytes(&self, view: &str, worker: usize, n_bytes: usize) {
        let _ = (view, worker, n_bytes);
    }
    /// A view has stopped on a worker, and why: its rows are no longer right.
    fn view_stopped(&self, view: &str, reason: &str) {
        let _ = (view, reason);
    }
    /// The rows kept in the state of one worker's instance.
    fn state_rows(&self, detector: &str, worker: usize, n_rows: usize);
}

/// Whether the end of input means that there is no more, or that the pipeline stops and goes on another time.
pub trait Lifecycle: Debug + Send + Sync {
    /// True once the pipeline is to stop.
    fn is_stopping(&self) -> bool;
}

/// What an operator may use while it runs on one worker.
#[derive(Clone, Debug)]
pub struct WorkerContext {
    /// This worker.
    pub index: usize,
    /// How many there are.
    pub peers: usize,
    /// Keeps state.
    pub checkpoint: Arc<dyn Checkpoint>,
    /// Counts.
    pub counters: Arc<dyn DetectorCounters>,
    /// Tells a stop from an end.
    pub lifecycle: Arc<dyn Lifecycle>,
    /// Who reads views.
    pub snapshots: Arc<dyn Snapshots>,
}

/// A detector that fits its input.
pub trait Detector: Debug + Send + Sync {
    /// The columns that it reads.
    fn reads(&self) -> Vec<String>;

    /// Names of the stateful operators it attaches, unique in the pipeline: each hands in its state at every cut.
    fn operators(&self) -> Vec<String>;

    /// What the state of its operators is written with, by operator: another one means that old state does not fit.
    fn fingerprints(&self) -> Vec<(String, u64)>;

    /// Builds its dataflow on one worker. The output's batches have [`logdrive_schemas::Finding::schema`]; rows that
    /// fail an expression leave on the second stream as batches of the `rejects` stream.
    fn attach<'scope>(
        &self,
        input: BatchStream<'scope>,
        cx: &WorkerContext,
    ) -> (BatchStream<'scope>, BatchStream<'scope>);
}

/// The YAML of a detector, without the keys that belong to the plan (`type`, `from`). `where` stays with it.
pub trait DetectorConfig: Component {
    /// Checks the detector against its input; called twice, like a step's plan.
    ///
    /// # Errors
    /// All that is wrong.
    fn plan(self, node: &Node, cx: &DetectorContext) -> Result<Arc<dyn Detector>, Vec<ConfigError>>;
}

/// One line of the registry.
pub struct DetectorEntry {
    /// `type:`.
    pub name: &'static str,
    /// A complete fragment of YAML.
    pub example: &'static str,
    /// The JSON Schema of its keys.
    pub schema: fn() -> schemars::Schema,
    /// Reads the YAML and plans.
    pub plan: fn(&Node, &DetectorContext) -> Result<Arc<dyn Detector>, Vec<ConfigError>>,
}

impl DetectorEntry {
    /// The entry of a configuration type.
    #[must_use]
    pub const fn of<C: DetectorConfig>() -> Self {
        Self {
            name: C::NAME,
            example: C::EXAMPLE,
            schema: || schemars::schema_for!(C),
            plan: |node, cx| {
                let mut errors = Vec::new();
                let config = logdrive_schemas::component::parse::<C>(node, &mut errors).ok_or(errors)?;
                config.plan(node, cx)
            },
        }
    }
}
