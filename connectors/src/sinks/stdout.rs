//! One JSON document a line on standard output.

use std::io::{self, Write};
use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError};
use logdrive_schemas::{Batch, Epoch};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::ConnectorContext;
use crate::document::Documents;
use crate::error::ConnectorError;
use crate::sink::{FlushPolicy, Guarantee, Reads, Sink, SinkConfig};

/// Writes one JSON document a line to standard output. What the reader of a pipe does with it is not known.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stdout {}

impl Component for Stdout {
    const NAME: &'static str = "stdout";
    const EXAMPLE: &'static str = "type: stdout\n";
}

impl SinkConfig for Stdout {
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn reads(&self) -> Reads {
        Reads::Document(Vec::new())
    }

    fn build(self, cx: &ConnectorContext) -> Result<Box<dyn Sink>, ConfigError> {
        Ok(Box::new(StdoutSink { cx: cx.clone(), out: io::stdout, lines: Vec::new(), n_rows: 0 }))
    }
}

/// Bytes that wait for a flush at most; beyond, lines are written early.
const LINES_BYTES_MAX: usize = 1 << 20;

/// A running [`Stdout`], over anything that opens a writer.
struct StdoutSink<F> {
    cx: ConnectorContext,
    out: F,
    lines: Vec<u8>,
    n_rows: u64,
}

impl<W: Write, F: FnMut() -> W + Clone + Send + 'static> StdoutSink<F> {
    /// Writes on a thread that may block: a pipe whose reader is slow must not stop others.
    async fn write_lines(&mut self) -> Result<(), ConnectorError> {
        let (lines, mut out) = (std::mem::take(&mut self.lines), self.out.clone());
        let n_bytes = lines.len() as u64;
        let written = tokio::task::spawn_blocking(move || {
            let mut out = out();
            out.write_all(&lines).and_then(|()| out.flush())
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Err(ConnectorError::refused("standard output", "the reader has closed the pipe"));
            }
            Ok(Err(error)) => return Err(ConnectorError::disconnected("standard output", error)),
            Err(error) => return Err(ConnectorError::disconnected("standard output", error)),
        }
        self.cx.metrics.sink_bytes.with_label_values(&[&self.cx.name]).inc_by(n_bytes);
        Ok(())
    }
}

#[async_trait]
impl<W: Write, F: FnMut() -> W + Clone + Send + 'static> Sink for StdoutSink<F> {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        self.lines.clear();
        self.n_rows = 0;
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        {
            let documents = Documents::new(batch);
            for idx in 0..batch.num_rows() {
                documents.write(idx, &mut self.lines);
                self.lines.push(b'\n');
            }
        }
        self.n_rows += batch.num_rows() as u64;
        if self.lines.len() > LINES_BYTES_MAX {
            self.write_lines().await?;
        }
        Ok(None)
    }

    async fn flush(&mut self, _upto: Epoch) -> Result<Option<Batch>, ConnectorError> {
        self.write_lines().await?;
        let n_rows = std::mem::take(&mut self.n_rows);
        self.cx.metrics.sink_rows.with_label_values(&[&self.cx.name]).inc_by(n_rows);
        Ok(None)
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy { bytes_max: 64 << 10, age_max: Duration::from_millis(100) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::sinks::fixtures::{block_on, context, events};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn one_document_a_line_at_flush() {
        let folder = tempfile::tempdir().unwrap();
        let (cx, shared) = (context(folder.path()), Shared::default());
        let out = shared.clone();
        let mut sink = StdoutSink { cx, out: move || out.clone(), lines: Vec::new(), n_rows: 0 };
        block_on(async {
            sink.write(&events(&[(1, None, "{\"a\":1}"), (2, None, "{}")])).await.unwrap();
            assert!(shared.0.lock().unwrap().is_empty());
            sink.flush(Epoch(1)).await.unwrap();
        });
        assert_eq!(*shared.0.lock().unwrap(), b"{\"a\":1}\n{}\n");
    }
}
