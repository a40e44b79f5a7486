//! Views: continuous queries. What compiles them lives in `queries`; the pipeline attaches them like detectors.

use std::cell::Cell;
use std::fmt::Debug;
use std::rc::Rc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use crate::detector::WorkerContext;
use crate::flow::BatchStream;

/// What became of the rows of a view's inputs. `rows in = filtered + late + failed + used`, exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ViewOutcome {
    /// Read from the inputs.
    In,
    /// Removed by a condition of the query.
    Filtered,
    /// Too late for every window it belongs to, or too far ahead of the clock.
    Late,
    /// Failed an expression, or has no event time.
    Failed,
    /// Went into the state, or straight into the result.
    Used,
}

impl ViewOutcome {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::In, Self::Filtered, Self::Late, Self::Failed, Self::Used];

    /// As a label of a metric.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Filtered => "filtered",
            Self::Late => "late",
            Self::Failed => "failed",
            Self::Used => "used",
        }
    }
}

/// The rows of a view that one worker keeps.
#[derive(Clone, Debug, Default)]
pub struct ViewRows {
    /// What all changes that have left the view come to.
    pub told: Vec<RecordBatch>,
    /// What has not left it, because its window is open and the view tells each row once.
    pub untold: Vec<RecordBatch>,
}

impl From<Vec<RecordBatch>> for ViewRows {
    fn from(told: Vec<RecordBatch>) -> Self {
        Self { told, untold: Vec::new() }
    }
}

/// Those who want to read views while they run.
pub trait Snapshots: Debug + Send + Sync {
    /// Whether somebody waits for the rows of `view` on `worker` as of the epochs before `epoch` or before an earlier
    /// one. Cheap when nobody does.
    fn is_due(&self, view: &str, worker: usize, epoch: u64) -> bool;

    /// Answers them: the rows of the view that `worker` keeps, or why there are none.
    fn answer(&self, view: &str, worker: usize, epoch: u64, rows: Result<ViewRows, String>);

    /// How far event time has come in `view`, in microseconds since the Unix epoch, and which partition of which source
    /// holds it back: the one with the oldest newest row of those that are not idle.
    fn reached(&self, view: &str, watermark: i64, held_back_by: Option<(&str, u64)>);

    /// What `operator`, by timely's number of it, keeps on `worker`. Told when it changes.
    fn keeps(&self, _worker: usize, _operator: usize, _n_rows: usize, _n_bytes: usize) {}
}

/// What a view that keeps its result has of it when it begins, on one worker: for views over it that have nothing yet.
#[derive(Clone, Debug)]
pub struct Beginning<'scope> {
    rows: BatchStream<'scope>,
    is_wanted: Rc<Cell<bool>>,
    is_new: bool,
}

impl<'scope> Beginning<'scope> {
    /// `rows` come at time zero, before all epochs, if `is_wanted` says so when the dataflow starts. `is_new`: the view
    /// begins without state, on all workers.
    #[must_use]
    pub fn new(rows: BatchStream<'scope>, is_wanted: &Rc<Cell<bool>>, is_new: bool) -> Self {
        Self { rows, is_wanted: Rc::clone(is_wanted), is_new }
    }

    /// Whether what readers have of the view is no longer its result.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// The rows as they were at the cut that the view was restored from. Every change since comes from the view itself.
    #[must_use]
    pub fn rows(&self) -> BatchStream<'scope> {
        self.is_wanted.set(true);
        self.rows.clone()
    }

    /// With other rows.
    #[must_use]
    pub fn map(self, f: impl FnOnce(BatchStream<'scope>) -> BatchStream<'scope>) -> Self {
        Self { rows: f(self.rows), ..self }
    }
}

/// What a view reads.
#[derive(Clone, Debug)]
pub struct ViewInput<'scope> {
    /// Rows, as they come.
    pub rows: BatchStream<'scope>,
    /// What was there before, if it is a view that keeps its result.
    pub beginning: Option<Beginning<'scope>>,
}

/// What comes out of a view.
#[derive(Debug)]
pub struct ViewOutput<'scope> {
    /// Its rows.
    pub rows: BatchStream<'scope>,
    /// What failed or came too late, as batches of the `rejects` stream.
    pub rejects: BatchStream<'scope>,
    /// What it begins with, if it keeps its result.
    pub beginning: Option<Beginning<'scope>>,
}

/// A compiled query over streams.
pub trait View: Debug + Send + Sync {
    /// The columns that it reads of each of its inputs, in the order in which it was planned with them.
    fn reads(&self) -> Vec<Vec<String>>;

    /// The columns of its rows.
    fn schema(&self) -> SchemaRef;

    /// The same without what says how they change.
    fn rows(&self) -> SchemaRef;

    /// The columns of the view as a table, which can be read while it runs; `None` if it keeps nothing.
    fn table(&self) -> Option<SchemaRef>;

    /// The column that says when a row of its happened, if it has one.
    fn event_time(&self) -> Option<&str>;

    /// Names of the stateful operators it attaches, unique in the pipeline: each hands in its state at every cut.
    fn operators(&self) -> Vec<String>;

    /// What the state of its operators is written with, by operator: another one means that old state does not fit.
    fn fingerprints(&self) -> Vec<(String, u64)>;

    /// How the query is computed, for a reader.
    fn explain(&self) -> String;

    /// Builds its dataflow on one worker. One that has no state begins with what the views that it reads begin with.
    fn attach<'scope>(&self, inputs: Vec<ViewInput<'scope>>, cx: &WorkerContext) -> ViewOutput<'scope>;
}
