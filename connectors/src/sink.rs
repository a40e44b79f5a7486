//! Where data leaves.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError, Node};
use logdrive_schemas::{Batch, Edit, Epoch, Layout};

use crate::context::ConnectorContext;
use crate::error::ConnectorError;

/// The strongest promise a sink can keep. A pipeline has the weakest of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guarantee {
    /// May lose: nobody confirms.
    BestEffort,
    /// Loses nothing; a crash may repeat rows.
    AtLeastOnce,
    /// Loses nothing and repeats nothing, also after a crash.
    ExactlyOnce,
}

/// When the runtime asks a sink to flush.
#[derive(Clone, Copy, Debug)]
pub struct FlushPolicy {
    /// As soon as this many bytes are written and not flushed.
    pub bytes_max: usize,
    /// As soon as the oldest row that is not flushed is this old.
    pub age_max: Duration,
}

/// Where data leaves. Runs on tokio and knows nothing of dataflow.
///
/// The runtime calls `connect` until it succeeds; then `write` for every batch, in epoch order, each epoch only when
/// it is complete; then `flush`, when the policy says so. After `Err` from `write` or `flush` it calls `connect`, and
/// writes again everything since the last successful flush: nothing may be assumed about what was done before.
#[async_trait]
pub trait Sink: Send {
    /// Opens the far end. Also recovers: what an earlier process left half-done is finished or undone here.
    async fn connect(&mut self) -> Result<(), ConnectorError>;

    /// Accepts a batch; `Ok` means accepted, **not** durable. Returns the rows that can never be delivered, as a
    /// batch of the `rejects` stream. A row that was refused is refused again when it comes again, also by a sink that
    /// knows how far it has come: the process may have crashed before its reject arrived.
    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError>;

    /// Makes every accepted batch of epochs up to and including `upto` survive a crash. Acknowledgement rests on
    /// this promise and on nothing else. Returns rejects like `write`.
    async fn flush(&mut self, upto: Epoch) -> Result<Option<Batch>, ConnectorError>;

    /// When to flush.
    fn flush_policy(&self) -> FlushPolicy;

    /// Ends cleanly after a last `flush`: closes connections, releases locks.
    async fn close(&mut self) -> Result<(), ConnectorError> {
        Ok(())
    }
}

/// The YAML of a sink, without the keys that belong to the plan (`type`, `from`, `where`, `queue`).
pub trait SinkConfig: Component {
    /// The strongest promise this configuration can keep.
    fn guarantee(&self) -> Guarantee;

    /// Whether it reads columns (Parquet) or passes messages on (`tcp`); what reads nothing but counts says neither.
    fn reads(&self) -> Reads;

    /// Columns that are to be computed for it: its batches have them besides the others.
    fn computed(&self) -> Vec<Computed> {
        Vec::new()
    }

    /// Reads certificates and the like; opens no connection.
    ///
    /// # Errors
    /// What is wrong with the configuration; the span may be left empty, the caller fills it in.
    fn build(self, cx: &ConnectorContext) -> Result<Box<dyn Sink>, ConfigError>;
}

/// A column that a sink needs and its user describes: a sink knows no SQL. A row that it fails on is a reject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Computed {
    /// Its name, which no column of an input has.
    pub column: String,
    /// Its value in SQL, over the columns of each input.
    pub sql: String,
    /// Whether it is a condition.
    pub condition: bool,
}

/// A batch whose documents lack the columns that were computed for a sink, whose names begin with `prefix`.
pub(crate) fn without_computed(batch: &Batch, prefix: &str) -> Batch {
    let layout = match &**batch.layout() {
        Layout::Columns => {
            let schema = batch.schema();
            let kept: Vec<_> = (0..schema.fields().len())
                .filter(|idx| !schema.field(*idx).name().starts_with(prefix))
                .collect();
            return match batch.rows().project(&kept) {
                Ok(rows) => batch.clone().with_rows(rows, Arc::clone(batch.layout())),
                // No index is out of range.
                Err(_) => batch.clone(),
            };
        }
        Layout::Original(edits) => {
            let of_sink = |edit: &&Edit| matches!(edit, Edit::Set { key } if key.starts_with(prefix));
            Layout::Original(edits.iter().filter(|edit| !of_sink(edit)).cloned().collect())
        }
    };
    batch.clone().with_rows(batch.rows().clone(), Arc::new(layout))
}

/// What a sink looks at, for field-need analysis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Every column of its input.
    AllColumns,
    /// The document, and these columns (for an index name, a path).
    Document(Vec<String>),
}

/// One line of the registry.
pub struct SinkEntry {
    /// `type:`.
    pub name: &'static str,
    /// A complete fragment of YAML.
    pub example: &'static str,
    /// The JSON Schema of its keys.
    pub schema: fn() -> schemars::Schema,
    /// Reads the YAML without building: its promise and what it reads.
    pub check: fn(&Node, &mut Vec<ConfigError>) -> Option<(Guarantee, Reads)>,
    /// Reads the YAML: [`SinkConfig::computed`]. Nothing if the YAML is wrong.
    pub computed: fn(&Node) -> Vec<Computed>,
    /// Reads the YAML and builds.
    pub build: fn(&Node, &ConnectorContext) -> Result<Box<dyn Sink>, Vec<ConfigError>>,
}

impl SinkEntry {
    /// The entry of a configuration type.
    #[must_use]
    pub const fn of<C: SinkConfig>() -> Self {
        Self {
            name: C::NAME,
            example: C::EXAMPLE,
            schema: || schemars::schema_for!(C),
            check: |node, errors| {
                let config = logdrive_schemas::component::parse::<C>(node, errors)?;
                Some((config.guarantee(), config.reads()))
            },
            computed: |node| {
                let config = logdrive_schemas::component::parse::<C>(node, &mut Vec::new());
                config.map(|config| config.computed()).unwrap_or_default()
            },
            build: |node, cx| {
                let mut errors = Vec::new();
                let config = logdrive_schemas::component::parse::<C>(node, &mut errors).ok_or(errors)?;
                config.build(cx).map_err(|e| vec![crate::source::spanned(e, node)])
            },
        }
    }
}
