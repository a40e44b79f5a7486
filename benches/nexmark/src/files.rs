//! The events as JSON lines, a file for each table: what every product reads when all do the same work.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use arrow::array::{ArrayRef, RecordBatch};
use arrow::buffer::Buffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimeUnit};
use arrow_json::LineDelimitedWriter;
use logdrive_compare::error::{Result, fail};
use logdrive_connectors::decoder::{Decoder, DecoderConfig, Demand};
use logdrive_connectors::decoders::Json;
use logdrive_schemas::chunk::Partition;
use logdrive_schemas::component::ConfigError;
use logdrive_schemas::{Batch, Chunk, FieldType, MessageRange, RowSchema};

use crate::events::{self, Epoch, TABLES, schema};

/// How many persons, auctions and bids there are of 50 events.
const SHARES: [usize; 3] = [1, 3, 46];

/// The file of a table.
#[must_use]
pub fn path(folder: &Path, table: &str) -> PathBuf {
    folder.join(format!("{table}.jsonl"))
}

/// Writes so many events below the scratch folder unless they are there; returns their folder.
///
/// # Errors
/// If that fails.
pub fn make(scratch: &Path, n_events: usize, per_epoch: usize) -> Result<PathBuf> {
    let folder = scratch.join("data").join(format!("nexmark-{n_events}"));
    if folder.exists() {
        return Ok(folder);
    }
    let unfinished = folder.with_extension("part");
    fs::create_dir_all(&unfinished).map_err(fail(format_args!("cannot make {}", unfinished.display())))?;
    write(&unfinished, &events::generate(n_events, per_epoch))?;
    fs::rename(&unfinished, &folder)?;
    Ok(folder)
}

fn write(folder: &Path, epochs: &[Epoch]) -> Result<()> {
    for (idx, table) in TABLES.iter().enumerate() {
        let mut writer = LineDelimitedWriter::new(BufWriter::new(File::create(path(folder, table))?));
        for batch in epochs.iter().filter_map(|epoch| epoch[idx].as_ref()) {
            writer.write(&in_milliseconds(batch.rows())?)?;
        }
        writer.finish()?;
        writer.into_inner().flush()?;
    }
    Ok(())
}

/// Points in time as numbers, in milliseconds since the Unix epoch: what every product reads most cheaply.
fn in_milliseconds(rows: &RecordBatch) -> Result<RecordBatch> {
    let schema = rows.schema();
    let columns = schema.fields().iter().zip(rows.columns()).map(|(field, column)| {
        let column = match column.data_type() {
            DataType::Timestamp(_, zone) => {
                let millis = cast(column, &DataType::Timestamp(TimeUnit::Millisecond, zone.clone()))?;
                cast(&millis, &DataType::Int64)?
            }
            _ => ArrayRef::clone(column),
        };
        Ok((field.name().clone(), column))
    });
    Ok(RecordBatch::try_from_iter(columns.collect::<Result<Vec<_>>>()?)?)
}

/// A table's file, decoded epoch by epoch as a source of a pipeline would.
pub struct Feed {
    lines: BufReader<File>,
    decoder: Box<dyn Decoder>,
    table: &'static str,
    per_epoch: usize,
    next_offset: u64,
}

impl Feed {
    /// Of a table, of which these columns are decoded.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn open(folder: &Path, table: usize, columns: &[String], n_events: usize) -> Result<Self> {
        let name = TABLES[table];
        let path = path(folder, name);
        let file = File::open(&path).map_err(fail(format_args!("cannot read {}", path.display())))?;
        let decoder = decoder(name, columns).map_err(|error| error.to_string())?;
        let per_epoch = n_events * SHARES[table] / SHARES.iter().sum::<usize>();
        Ok(Self {
            lines: BufReader::with_capacity(1 << 20, file),
            decoder,
            table: name,
            per_epoch: per_epoch.max(1),
            next_offset: 0,
        })
    }

    /// The rows of the next epoch; `None` at the end.
    ///
    /// # Errors
    /// If a line cannot be read or is not a row.
    pub fn next_epoch(&mut self) -> Result<Option<Batch>> {
        let mut data = Vec::new();
        let mut messages = Vec::with_capacity(self.per_epoch);
        while messages.len() < self.per_epoch {
            let start = u32::try_from(data.len())?;
            let len = self.lines.read_until(b'\n', &mut data)?;
            if len == 0 {
                break;
            }
            messages.push(MessageRange { start, len: u32::try_from(len)? - 1 });
        }
        if messages.is_empty() {
            return Ok(None);
        }
        let first = self.next_offset;
        self.next_offset += messages.len() as u64;
        let decoded = self.decoder.decode(&Chunk {
            source: self.table.into(),
            partition: Partition(0),
            data: Buffer::from_vec(data),
            messages,
            offsets: (first..self.next_offset).collect(),
            received_at: 0,
            peer: None,
            attributes: None,
            next_offset: self.next_offset,
        });
        match decoded.rejects {
            None => Ok(decoded.rows),
            Some(rejects) => {
                Err(format!("{} lines of {} are no rows", rejects.num_rows(), self.table).into())
            }
        }
    }
}

/// Decodes what is read of a table, as a pipeline has it decoded.
fn decoder(table: &str, columns: &[String]) -> std::result::Result<Box<dyn Decoder>, ConfigError> {
    let columns: BTreeSet<&str> = columns.iter().map(String::as_str).chain(["date_time"]).collect();
    let schema = schema(table);
    let fields = schema.fields().iter().filter(|field| columns.contains(field.name().as_str()));
    let fields = fields.filter_map(|field| Some((field.name().clone(), FieldType::of(field)?)));
    let schema = RowSchema { event_time: "date_time".into(), ..RowSchema::of_fields(fields.collect()) };
    Json {}.build(&Demand { schema, validate: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let scratch = std::env::temp_dir().join(format!("nexmark-files-{}", std::process::id()));
        let folder = make(&scratch, 1_000, 100).expect("room for a thousand events");
        let epochs = events::generate(1_000, 100);
        for (table, name) in TABLES.iter().enumerate() {
            let columns: Vec<String> =
                schema(name).fields().iter().map(|field| field.name().clone()).collect();
            let mut feed = Feed::open(&folder, table, &columns, 100).expect("the file was made");
            for epoch in &epochs {
                let found = feed.next_epoch().expect("rows").map(|batch| batch.rows().clone());
                assert_eq!(found, epoch[table].as_ref().map(|batch| batch.rows().clone()));
            }
            assert!(feed.next_epoch().expect("an end").is_none());
        }
        assert!(fs::remove_dir_all(scratch).is_ok());
    }
}
