//! Parquet files in Hive-style folders, on local disk or in an object store: the lake.
//!
//! Exactly once, with atomic visibility: data files are written where readers do not look, then one record in the
//! commit log names them together with how far each source has been written, then they get their final names. What a
//! crash interrupts before the record never was; what it interrupts behind the record is finished by `connect`.
//!
//! ```text
//!   <path>/tenant=acme/date=2026-11-21/part-00000007-0000.parquet    data
//!   <path>/_logdrive/00000007.json                                   commit log: files, marks
//!   <path>/_logdrive/blocks/00000000.json                            the files of 256 commits together
//!   <path>/_tmp/                                                     data before its commit (local disk)
//! ```

mod commit;
mod dedupe;
mod local;
mod remote;
mod rows;
mod storage;
#[cfg(test)]
mod tests;
mod writers;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError, Span, bytes, duration};
use logdrive_schemas::{Batch, Epoch};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::object_stores;
use crate::sink::{FlushPolicy, Guarantee, Reads, Sink, SinkConfig};
use commit::Record;
use dedupe::{Pending, Seen};
use storage::Storage;
use writers::Writers;

pub use commit::CommittedFile;
pub use storage::{committed_files, committed_objects};

/// Writes Parquet files in Hive-style folders (`tenant=acme/date=2026-11-21/`), exactly once: after a crash no row is
/// missing and none is there twice, and readers never see half a file or half a commit.
///
/// Beside the columns of its input each file has `_source`, `_position`, `_received_at` and `_original`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parquet {
    /// A folder, or `s3://bucket/prefix`. One pipeline at a time may write to it.
    pub path: String,
    /// The columns whose values name the folders. `date` and `hour` are made of the event time unless there is a
    /// column of that name. A column with many different values makes many small files.
    #[serde(default)]
    pub partition_by: Vec<String>,
    /// When files are closed and become visible.
    #[serde(default)]
    pub batch: Rolling,
    /// `none`, `snappy`, `zstd` or `zstd(LEVEL)` with a level from 1 to 22.
    #[serde(default = "compression_default")]
    pub compression: String,
    /// Rows of one file that are sorted by event time and encoded together, in bytes of memory.
    #[serde(default = "row_group_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub row_group_bytes: u64,
    /// Rows that wait to be encoded, of all files together, in bytes of memory.
    #[serde(default = "memory_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub memory_bytes: u64,
    /// How many files are written at a time; the one that was not written for longest is closed first.
    #[serde(default = "max_open_files_default")]
    pub max_open_files: usize,
    /// Whether the column `_original` holds each message as it was received. Without it, fields that no schema
    /// declares are lost.
    #[serde(default = "original_default")]
    pub original: bool,
    /// Columns with a Bloom filter, for queries that look for one value among many.
    #[serde(default)]
    pub bloom_filters: Vec<String>,
    /// Options of the object store, such as `aws_endpoint` and `aws_region`. Credentials are better left to the
    /// environment (`AWS_ACCESS_KEY_ID`, …), which is read first.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// When files are closed and become visible.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rolling {
    /// Bytes of rows, before compression.
    #[serde(default = "Rolling::max_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_bytes: u64,
    /// Rows of one file.
    #[serde(default = "Rolling::max_rows_default")]
    pub max_rows: u64,
    /// The age of the oldest row that is not visible yet. Short times make many small files.
    #[serde(default = "Rolling::timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
}

impl Rolling {
    fn max_bytes_default() -> u64 {
        128 << 20
    }

    fn max_rows_default() -> u64 {
        10_000_000
    }

    fn timeout_default() -> Duration {
        Duration::from_secs(5)
    }
}

impl Default for Rolling {
    fn default() -> Self {
        Self {
            max_bytes: Self::max_bytes_default(),
            max_rows: Self::max_rows_default(),
            timeout: Self::timeout_default(),
        }
    }
}

fn compression_default() -> String {
    "zstd(3)".into()
}

fn row_group_bytes_default() -> u64 {
    64 << 20
}

fn memory_bytes_default() -> u64 {
    128 << 20
}

fn max_open_files_default() -> usize {
    256
}

fn original_default() -> bool {
    true
}

impl Component for Parquet {
    const NAME: &'static str = "parquet";
    const EXAMPLE: &'static str =
        "type: parquet\npath: data/lake\npartition_by: [tenant, date]\nbatch: { timeout: 5s }\n";
}

impl SinkConfig for Parquet {
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn reads(&self) -> Reads {
        Reads::AllColumns
    }

    fn build(self, cx: &ConnectorContext) -> Result<Box<dyn Sink>, ConfigError> {
        Ok(Box::new(self.build_sink(cx)?))
    }
}

impl Parquet {
    fn build_sink(self, cx: &ConnectorContext) -> Result<ParquetSink, ConfigError> {
        let invalid = |message: String| ConfigError::new("config::invalid_value", Span::default(), message);
        writers::compression(&self.compression).map_err(invalid)?;
        if self.max_open_files == 0 || self.row_group_bytes == 0 || self.batch.max_rows == 0 {
            let message = "`max_open_files`, `row_group_bytes` and `batch.max_rows` must be at least 1";
            return Err(invalid(message.into()));
        }
        let store = match object_stores::is_url(&self.path) {
            true => Some(storage::object_store(&self.path, &self.options).map_err(invalid)?),
            false => None,
        };
        Ok(ParquetSink { config: Arc::new(self), cx: cx.clone(), store, state: None })
    }
}

/// A running [`Parquet`].
struct ParquetSink {
    config: Arc<Parquet>,
    cx: ConnectorContext,
    /// The object store and the prefix; `None` for a local folder.
    store: Option<storage::Remote>,
    /// `None` until connected, and after every error.
    state: Option<State>,
}

struct State {
    storage: Arc<Storage>,
    writers: Writers,
    /// What it holds now.
    seen: Seen,
    pending: Pending,
    n_commits: u64,
}

impl ParquetSink {
    fn lost(&self) -> ConnectorError {
        ConnectorError::disconnected(
            &self.config.path,
            std::io::Error::from(std::io::ErrorKind::NotConnected),
        )
    }

    /// Runs `work` where it may block and use the processor for long.
    async fn encode<T: Send + 'static>(
        &mut self,
        mut state: State,
        work: impl FnOnce(&mut Writers) -> Result<T, ConnectorError> + Send + 'static,
    ) -> Result<(State, T), ConnectorError> {
        let done = tokio::task::spawn_blocking(move || {
            let value = work(&mut state.writers)?;
            Ok((state, value))
        });
        done.await.map_err(|error| ConnectorError::disconnected(&self.config.path, error))?
    }

    /// Closes all files; `None` if there is nothing new.
    async fn seal(&mut self, upto: Epoch) -> Result<Option<Record>, ConnectorError> {
        let state = self.state.take().ok_or_else(|| self.lost())?;
        let (state, files) = self.encode(state, Writers::finish).await?;
        let record = (!files.is_empty())
            .then(|| Record::new(state.n_commits, upto, files, &state.pending, &state.seen));
        self.state = Some(state);
        Ok(record)
    }

    /// Takes note that `record` is committed and visible.
    fn settle(&mut self, record: Record) {
        let Some(state) = &mut self.state else { return };
        state.n_commits += 1;
        state.writers.begin(state.n_commits);
        state.pending = Pending::default();
        let metrics = &self.cx.metrics;
        let (n_rows, n_bytes) = record.files.iter().fold((0, 0), |sum, f| (sum.0 + f.rows, sum.1 + f.bytes));
        metrics.sink_rows.with_label_values(&[&self.cx.name]).inc_by(n_rows);
        metrics.sink_bytes.with_label_values(&[&self.cx.name]).inc_by(n_bytes);
        state.seen.apply(&record);
    }
}

#[async_trait]
impl Sink for ParquetSink {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        self.state = None;
        let spool = match &self.store {
            Some(_) => self.cx.state_dir.join("spool"),
            None => PathBuf::from(&self.config.path).join(storage::TMP),
        };
        let (storage, history) = match &self.store {
            Some(remote) => Storage::open_remote(remote.clone(), spool.clone()).await?,
            None => Storage::open_local(PathBuf::from(&self.config.path), spool.clone()).await?,
        };
        let mut seen = Seen::default();
        history.records.iter().for_each(|record| seen.apply(record));
        let mut writers = Writers::new(Arc::clone(&self.config), spool);
        writers.begin(history.n_commits);
        self.state = Some(State {
            storage: Arc::new(storage),
            writers,
            seen,
            pending: Pending::default(),
            n_commits: history.n_commits,
        });
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        let bug =
            |error| ConnectorError::refused("parquet", format!("a column that cannot be written: {error}"));
        let mut state = self.state.take().ok_or_else(|| self.lost())?;
        let fresh = match state.seen.fresh(batch) {
            Some(mask) => batch.filter(&mask).map_err(bug)?,
            None => Some(batch.clone()),
        };
        let n_duplicates = batch.num_rows() - fresh.as_ref().map_or(0, Batch::num_rows);
        self.cx.metrics.sink_duplicates.with_label_values(&[&self.cx.name]).inc_by(n_duplicates as u64);
        if let Some(fresh) = fresh {
            state.pending.note(&fresh);
            for part in rows::split(&fresh, &self.config.partition_by).map_err(bug)? {
                state.writers.push(part).map_err(bug)?;
            }
            if state.writers.is_full() {
                state = self.encode(state, Writers::make_room).await?.0;
            }
        }
        self.state = Some(state);
        Ok(None)
    }

    async fn flush(&mut self, upto: Epoch) -> Result<Option<Batch>, ConnectorError> {
        let Some(record) = self.seal(upto).await? else { return Ok(None) };
        // Taken out while it is not known how far the commit got: any error ends in `connect`.
        let state = self.state.take().ok_or_else(|| self.lost())?;
        let storage = Arc::clone(&state.storage);
        storage.prepare(&record).await?;
        storage.commit(&record).await?;
        storage.reveal(&record).await?;
        self.state = Some(state);
        self.settle(record);
        Ok(None)
    }

    fn flush_policy(&self) -> FlushPolicy {
        let bytes_max = usize::try_from(self.config.batch.max_bytes).unwrap_or(usize::MAX);
        FlushPolicy { bytes_max, age_max: self.config.batch.timeout }
    }

    async fn close(&mut self) -> Result<(), ConnectorError> {
        self.state = None;
        Ok(())
    }
}
