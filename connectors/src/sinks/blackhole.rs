//! Counts rows and throws them away: for benches, and for trying out a pipeline.

use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError};
use logdrive_schemas::{Batch, Epoch};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::sink::{FlushPolicy, Guarantee, Reads, Sink, SinkConfig};

/// Counts rows and bytes and throws them away. Every declared field is decoded, so that a bench measures real work.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Blackhole {}

impl Component for Blackhole {
    const NAME: &'static str = "blackhole";
    const EXAMPLE: &'static str = "type: blackhole\n";
}

impl SinkConfig for Blackhole {
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn reads(&self) -> Reads {
        Reads::AllColumns
    }

    fn build(self, cx: &ConnectorContext) -> Result<Box<dyn Sink>, ConfigError> {
        Ok(Box::new(BlackholeSink { cx: cx.clone(), n_rows: 0, n_bytes: 0 }))
    }
}

/// A running [`Blackhole`].
struct BlackholeSink {
    cx: ConnectorContext,
    n_rows: u64,
    n_bytes: u64,
}

#[async_trait]
impl Sink for BlackholeSink {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        (self.n_rows, self.n_bytes) = (0, 0);
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        self.n_rows += batch.num_rows() as u64;
        self.n_bytes += batch.original().lengths().map(u64::from).sum::<u64>();
        Ok(None)
    }

    async fn flush(&mut self, _upto: Epoch) -> Result<Option<Batch>, ConnectorError> {
        let (n_rows, n_bytes) = (std::mem::take(&mut self.n_rows), std::mem::take(&mut self.n_bytes));
        self.cx.metrics.sink_rows.with_label_values(&[&self.cx.name]).inc_by(n_rows);
        self.cx.metrics.sink_bytes.with_label_values(&[&self.cx.name]).inc_by(n_bytes);
        Ok(None)
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy { bytes_max: 0, age_max: Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::fixtures::{block_on, context, events};

    #[test]
    fn it_counts_what_was_flushed() {
        let folder = tempfile::tempdir().unwrap();
        let cx = context(folder.path());
        let mut sink = Blackhole {}.build(&cx).unwrap();
        block_on(async {
            sink.connect().await.unwrap();
            sink.write(&events(&[(1, None, "abc"), (2, None, "de")])).await.unwrap();
            let rows = cx.metrics.sink_rows.with_label_values(&["sink"]);
            assert_eq!(rows.get(), 0);
            sink.flush(Epoch(1)).await.unwrap();
            assert_eq!(rows.get(), 2);
            assert_eq!(cx.metrics.sink_bytes.with_label_values(&["sink"]).get(), 5);
        });
    }
}
