//! Documents into Elasticsearch or OpenSearch, by `_bulk`.
//!
//! Every row's id is derived from its message, and the operation is `create`: whatever is sent twice, because an
//! answer was lost or after a crash, is stored once. So the sink may always send again when in doubt, and does.

mod answer;
mod bulk;
mod config;
mod deliver;
mod dialect;
mod endpoints;
mod gate;
mod index;
mod lifecycle;
mod signing;
mod template;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError};
use logdrive_schemas::{Batch, Epoch};
use tokio::task::{JoinError, JoinSet};

use self::bulk::{Action, Bulk};
pub use self::config::{BatchConfig, Elasticsearch, Id, LifecycleConfig, Op, RetryConfig, TemplateConfig};
use self::deliver::{Counters, Delivery, Pause, deliver};
use self::endpoints::Endpoints;
use self::gate::Gate;
use self::index::IndexPattern;
use self::lifecycle::{Attached, Policy};
pub use self::signing::Aws;
use self::template::Template;
use super::http_rejects::{Refused, merge};
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::sink::{FlushPolicy, Guarantee, Reads, Sink, SinkConfig};

impl Component for Elasticsearch {
    const NAME: &'static str = "elasticsearch";
    const EXAMPLE: &'static str = r#"
type: elasticsearch
from: [events]
endpoint: ["http://localhost:9200"]
index: "ecommerce-logs-%Y.%m.%d"
"#;
}

impl SinkConfig for Elasticsearch {
    fn guarantee(&self) -> Guarantee {
        match (self.id, self.op) {
            (Id::Auto, Op::Create) if !self.data_stream => Guarantee::ExactlyOnce,
            _ => Guarantee::AtLeastOnce,
        }
    }

    fn reads(&self) -> Reads {
        let mut columns = self.pattern().map(|pattern| pattern.columns()).unwrap_or_default();
        columns.extend(self.routing.clone());
        Reads::Document(columns)
    }

    fn build(self, cx: &ConnectorContext) -> Result<Box<dyn Sink>, ConfigError> {
        let index = self.pattern()?;
        let template = self.index_template(&index)?;
        self.check(&index)?;
        let policy = self.policy(&index)?;
        let max_bytes = usize::try_from(self.batch.max_bytes).unwrap_or(usize::MAX);
        let delivery = Delivery {
            endpoints: Endpoints::new(
                &self.urls()?,
                self.auth.as_ref(),
                self.aws.as_ref().map(Aws::signer).transpose()?,
                &self.tls,
                cx,
            )?,
            gate: Gate::new(self.concurrency, cx.metrics.sink_concurrency.with_label_values(&[&*cx.name])),
            bytes_max: AtomicUsize::new(max_bytes),
            pipeline: self.pipeline.clone(),
            idempotent: self.id == Id::Auto && self.op == Op::Create,
            gzip: self.gzip,
            timeout: self.request_timeout,
            pause: Pause { first: self.retry.first, max: self.retry.max.max(self.retry.first) },
            counters: Counters::new(cx),
        };
        Ok(Box::new(ElasticsearchSink {
            name: Arc::clone(&cx.name),
            delivery: Arc::new(delivery),
            index,
            action: self.action(),
            template,
            policy,
            concurrency: self.concurrency,
            flush_policy: FlushPolicy {
                bytes_max: max_bytes.saturating_mul(self.concurrency),
                age_max: self.batch.timeout,
            },
            max_bytes,
            open: Bulk::default(),
            requests: JoinSet::new(),
            rejects: Vec::new(),
        }))
    }
}

struct ElasticsearchSink {
    name: Arc<str>,
    delivery: Arc<Delivery>,
    index: IndexPattern,
    action: Action,
    template: Option<Template>,
    policy: Option<Policy>,
    concurrency: usize,
    flush_policy: FlushPolicy,
    max_bytes: usize,
    /// The request that is being filled.
    open: Bulk,
    /// At most `concurrency`, each on its own until its last item is confirmed.
    requests: JoinSet<Result<Refused, ConnectorError>>,
    /// Since the last flush; bounded by its policy.
    rejects: Refused,
}

impl ElasticsearchSink {
    /// Sends what was filled, as soon as fewer than `concurrency` requests are under way.
    async fn start(&mut self) -> Result<(), ConnectorError> {
        if self.open.is_empty() {
            self.open = Bulk::default();
            return Ok(());
        }
        while self.concurrency <= self.requests.len() {
            let Some(ended) = self.requests.join_next().await else { break };
            self.absorb(ended)?;
        }
        self.requests.spawn(deliver(Arc::clone(&self.delivery), std::mem::take(&mut self.open)));
        Ok(())
    }

    fn absorb(
        &mut self,
        ended: Result<Result<Refused, ConnectorError>, JoinError>,
    ) -> Result<(), ConnectorError> {
        match ended {
            Ok(rejects) => self.rejects.extend(rejects?),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
        Ok(())
    }
}

#[async_trait]
impl Sink for ElasticsearchSink {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        self.open = Bulk::default();
        self.rejects.clear();
        self.requests.shutdown().await;
        self.delivery.bytes_max.store(self.max_bytes, Ordering::Relaxed);
        self.delivery.endpoints.probe().await?;
        let endpoint = self.delivery.endpoints.pick().await;
        let endpoint = endpoint.ok_or_else(|| {
            ConnectorError::disconnected(self.delivery.endpoints.names(), "every endpoint has failed")
        })?;
        let dialect = dialect::ask(endpoint).await?;
        tracing::info!(endpoint = endpoint.name(), server = %dialect, "Connected.");
        let attached = match &self.policy {
            Some(policy) => policy.install(endpoint, dialect).await?,
            None => Attached::Nothing,
        };
        if let Some(template) = &self.template {
            template.install(endpoint, &attached).await?;
        }
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        while let Some(ended) = self.requests.try_join_next() {
            self.absorb(ended)?;
        }
        let mut row = 0;
        while row < batch.num_rows() {
            let max = self.delivery.bytes_max.load(Ordering::Relaxed);
            row = self.open.fill(batch, row, max, (&self.index, &self.action));
            if row < batch.num_rows() {
                self.start().await?;
            }
        }
        // Rejects leave with the flush: if that fails, these rows come again.
        Ok(None)
    }

    async fn flush(&mut self, _upto: Epoch) -> Result<Option<Batch>, ConnectorError> {
        self.start().await?;
        while let Some(ended) = self.requests.join_next().await {
            self.absorb(ended)?;
        }
        Ok(merge(&self.name, &std::mem::take(&mut self.rejects)))
    }

    fn flush_policy(&self) -> FlushPolicy {
        self.flush_policy
    }

    async fn close(&mut self) -> Result<(), ConnectorError> {
        self.requests.shutdown().await;
        Ok(())
    }
}
