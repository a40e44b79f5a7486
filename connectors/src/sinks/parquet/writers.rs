//! The data files of the next commit: rows wait in memory, sorted row groups go to disk.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::interleave_record_batch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::Parquet;
use super::commit::{CommittedFile, tmp_name};
use super::rows::{Part, lake_rows, lake_schema};
use crate::error::ConnectorError;

/// Rows that are put in order and encoded at a time.
const SLICE_ROWS: usize = 8_192;

/// Reads `none`, `snappy`, `zstd` or `zstd(LEVEL)`.
pub(super) fn compression(text: &str) -> Result<Compression, String> {
    let level = text.strip_prefix("zstd(").and_then(|rest| rest.strip_suffix(')'));
    let level = match (text, level) {
        ("none", _) => return Ok(Compression::UNCOMPRESSED),
        ("snappy", _) => return Ok(Compression::SNAPPY),
        ("zstd", _) => Some(3),
        (_, Some(level)) => level.trim().parse().ok(),
        _ => None,
    };
    let level = level.and_then(|level| ZstdLevel::try_new(level).ok());
    let valid = "`none`, `snappy`, `zstd` or `zstd(LEVEL)` with a level from 1 to 22";
    level.map(Compression::ZSTD).ok_or_else(|| format!("`{text}` is no compression; valid: {valid}"))
}

/// The data files of the next commit, one at a time for each schema and folder.
pub(super) struct Writers {
    config: Arc<Parquet>,
    spool: PathBuf,
    commit: u64,
    n_files: u32,
    /// The schemas of this run: as they came, and as they are stored.
    schemas: Vec<(SchemaRef, SchemaRef)>,
    open: HashMap<(usize, String), DataFile>,
    done: Vec<CommittedFile>,
    waiting_bytes: usize,
    /// Counts pushes, to know which file was not written for longest.
    clock: u64,
}

/// One file, of which the last rows still wait.
struct DataFile {
    schema: SchemaRef,
    folder: String,
    values: Vec<(String, Option<String>)>,
    waiting: Vec<(RecordBatch, Vec<i64>)>,
    waiting_bytes: usize,
    /// The file, once rows were encoded.
    encoder: Option<Encoder>,
    n_rows: u64,
    min_time: i64,
    max_time: i64,
    used: u64,
}

struct Encoder {
    name: String,
    writer: ArrowWriter<BufWriter<File>>,
}

impl Writers {
    pub(super) fn new(config: Arc<Parquet>, spool: PathBuf) -> Self {
        Self {
            config,
            spool,
            commit: 0,
            n_files: 0,
            schemas: Vec::new(),
            open: HashMap::new(),
            done: Vec::new(),
            waiting_bytes: 0,
            clock: 0,
        }
    }

    /// Begins the files of a commit.
    pub(super) fn begin(&mut self, commit: u64) {
        self.commit = commit;
        self.n_files = 0;
    }

    /// Copies rows; nothing is encoded yet.
    pub(super) fn push(&mut self, part: Part) -> Result<(), ArrowError> {
        self.clock += 1;
        let input = part.rows.schema();
        let schema_idx = self.schemas.iter().position(|(known, _)| *known == input).unwrap_or_else(|| {
            let stored = lake_schema(&input, self.config.original);
            self.schemas.push((input, stored));
            self.schemas.len() - 1
        });
        let schema = &self.schemas[schema_idx].1;
        let rows = lake_rows(&part.rows, schema)?;
        let n_bytes = rows.get_array_memory_size();
        let file = self.open.entry((schema_idx, part.folder)).or_insert_with_key(|(_, folder)| DataFile {
            schema: Arc::clone(schema),
            folder: folder.clone(),
            values: part.values,
            waiting: Vec::new(),
            waiting_bytes: 0,
            encoder: None,
            n_rows: 0,
            min_time: i64::MAX,
            max_time: i64::MIN,
            used: 0,
        });
        file.used = self.clock;
        file.n_rows += rows.num_rows() as u64;
        for time in &part.times {
            (file.min_time, file.max_time) = (file.min_time.min(*time), file.max_time.max(*time));
        }
        file.waiting.push((rows, part.times));
        file.waiting_bytes += n_bytes;
        self.waiting_bytes += n_bytes;
        Ok(())
    }

    /// Whether [`Self::make_room`] has something to do.
    pub(super) fn is_full(&self) -> bool {
        self.waiting_bytes as u64 > self.config.memory_bytes
            || self.open.len() > self.config.max_open_files
            || self.open.values().any(|file| self.has_row_group(file))
    }

    fn has_row_group(&self, file: &DataFile) -> bool {
        file.waiting_bytes as u64 >= self.config.row_group_bytes || file.n_rows >= self.config.batch.max_rows
    }

    /// Encodes what is large, and closes what is too many.
    pub(super) fn make_room(&mut self) -> Result<(), ConnectorError> {
        let large: Vec<_> = self
            .open
            .iter()
            .filter(|(_, file)| self.has_row_group(file))
            .map(|(key, _)| key.clone())
            .collect();
        for key in large {
            self.encode(&key)?;
        }
        while self.waiting_bytes as u64 > self.config.memory_bytes {
            let largest = self.open.iter().max_by_key(|(_, file)| file.waiting_bytes);
            let Some(key) = largest.map(|(key, _)| key.clone()) else { break };
            self.encode(&key)?;
        }
        while self.open.len() > self.config.max_open_files {
            let oldest = self.open.iter().min_by_key(|(_, file)| file.used);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { break };
            self.close(&key)?;
        }
        Ok(())
    }

    /// Closes all files and makes them durable; their names are not, yet.
    pub(super) fn finish(&mut self) -> Result<Vec<CommittedFile>, ConnectorError> {
        let keys: Vec<_> = self.open.keys().cloned().collect();
        for key in keys {
            self.close(&key)?;
        }
        Ok(std::mem::take(&mut self.done))
    }

    /// Encodes the waiting rows of a file as one row group, and closes the file if it is large.
    fn encode(&mut self, key: &(usize, String)) -> Result<(), ConnectorError> {
        let Some(file) = self.open.get_mut(key) else { return Ok(()) };
        if file.encoder.is_none() {
            let name = format!("part-{:08}-{:04}.parquet", self.commit, self.n_files);
            self.n_files += 1;
            file.encoder = Some(Encoder::create(&self.config, &self.spool, name, &file.schema)?);
        }
        self.waiting_bytes -= file.waiting_bytes;
        file.encode_waiting().map_err(|error| failed(&self.spool, error))?;
        let n_bytes = file.encoder.as_ref().map_or(0, |encoder| encoder.writer.bytes_written());
        if n_bytes as u64 >= self.config.batch.max_bytes || file.n_rows >= self.config.batch.max_rows {
            self.close(key)?;
        }
        Ok(())
    }

    fn close(&mut self, key: &(usize, String)) -> Result<(), ConnectorError> {
        if self.open.get(key).is_some_and(|file| !file.waiting.is_empty()) {
            self.encode(key)?;
        }
        let Some(file) = self.open.remove(key) else { return Ok(()) };
        let Some(encoder) = file.encoder else { return Ok(()) };
        let written = encoder.writer.into_inner().map_err(|error| failed(&self.spool, error))?;
        let written = written.into_inner().map_err(|error| {
            ConnectorError::disconnected(self.spool.display().to_string(), error.into_error())
        })?;
        written.sync_all().map_err(|error| ConnectorError::storage(&self.spool, error))?;
        let n_bytes = written.metadata().map_err(|error| ConnectorError::storage(&self.spool, error))?.len();
        self.done.push(CommittedFile {
            path: format!("{}{}", file.folder, encoder.name),
            rows: file.n_rows,
            bytes: n_bytes,
            min_time: file.min_time,
            max_time: file.max_time,
            partition: file.values,
        });
        Ok(())
    }
}

impl Encoder {
    fn create(
        config: &Parquet,
        spool: &std::path::Path,
        name: String,
        schema: &SchemaRef,
    ) -> Result<Self, ConnectorError> {
        let path = spool.join(tmp_name(&name));
        let created = fs::create_dir_all(spool).and_then(|()| File::create_new(&path));
        let file =
            created.map_err(|error| ConnectorError::disconnected(path.display().to_string(), error))?;
        let writer = ArrowWriter::try_new(BufWriter::new(file), Arc::clone(schema), Some(properties(config)));
        let writer = writer.map_err(|error| match error {
            ParquetError::External(_) => failed(spool, error),
            _ => ConnectorError::refused("parquet", error.to_string()),
        })?;
        Ok(Self { name, writer })
    }
}

impl DataFile {
    /// Writes the waiting rows in the order of their event times, as one row group.
    fn encode_waiting(&mut self) -> Result<(), ParquetError> {
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let Some(encoder) = &mut self.encoder else { return Ok(()) };
        if waiting.iter().flat_map(|(_, times)| times).is_sorted() {
            for (rows, _) in &waiting {
                encoder.writer.write(rows)?;
            }
            return encoder.writer.flush();
        }
        let mut order: Vec<(i64, u32, u32)> = Vec::with_capacity(waiting.iter().map(|(_, t)| t.len()).sum());
        for (batch_idx, (_, times)) in waiting.iter().enumerate() {
            let row = |(idx, time): (usize, &i64)| (*time, batch_idx as u32, idx as u32);
            order.extend(times.iter().enumerate().map(row));
        }
        order.sort_unstable();
        let batches: Vec<&RecordBatch> = waiting.iter().map(|(rows, _)| rows).collect();
        for slice in order.chunks(SLICE_ROWS) {
            let indices: Vec<(usize, usize)> =
                slice.iter().map(|(_, batch, row)| (*batch as usize, *row as usize)).collect();
            encoder.writer.write(&interleave_record_batch(&batches, &indices)?)?;
        }
        encoder.writer.flush()
    }
}

fn properties(config: &Parquet) -> WriterProperties {
    let own = |name: &str| ColumnPath::from(name);
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("logdrive ", env!("CARGO_PKG_VERSION")).into())
        .set_compression(compression(&config.compression).unwrap_or(Compression::UNCOMPRESSED))
        .set_statistics_enabled(EnabledStatistics::Page)
        // Row groups end where `encode_waiting` says.
        .set_max_row_group_row_count(None)
        // Every value differs: a dictionary or statistics would only cost.
        .set_column_dictionary_enabled(own("_original"), false)
        .set_column_statistics_enabled(own("_original"), EnabledStatistics::None)
        .set_column_dictionary_enabled(own("_position"), false)
        .set_column_encoding(own("_position"), Encoding::DELTA_BYTE_ARRAY);
    for column in &config.bloom_filters {
        properties = properties.set_column_bloom_filter_enabled(own(column), true);
    }
    properties.build()
}

/// Disks that are full get free again: the runtime tries once more. Nothing was promised for these files yet.
fn failed(path: &std::path::Path, error: ParquetError) -> ConnectorError {
    match error {
        ParquetError::External(source) => ConnectorError::disconnected(path.display().to_string(), source),
        error => ConnectorError::disconnected(path.display().to_string(), io::Error::other(error)),
    }
}
