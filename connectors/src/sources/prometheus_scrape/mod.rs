//! The `prometheus_scrape` source: asks targets for their metrics, as Prometheus does.

mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use logdrive_schemas::component::{Component, ConfigError, bytes, duration};
use prometheus::IntCounterVec;
use reqwest::Client;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use super::net::counts::Counts;
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::prometheus::exposition::Format;
use crate::sinks::http_auth::{Auth, Tls, add_headers, client, invalid, parse_url};
use crate::source::{Intake, Listener, NotDurable, Received, SourceConfig, SourceKind};
use rows::{Rows, Scrape, Target};

/// Which formats are understood, the better one first.
const FORMATS: &str = "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5";
/// No target exposes more.
const BODY_BYTES_MAX: u64 = 64 << 20;

/// Asks targets for their metrics every `scrape_interval`, in Prometheus' text format or OpenMetrics. Each sample becomes
/// a row of the schema `metric`: `name`, `value`, `unit` where it is known, what kind of metric it is under
/// `metric.kind`, and its labels under `labels`, with the labels `job` and `instance` that Prometheus would add. Lines that
/// cannot be read become rejects.
///
/// As in Prometheus there are the samples `up`, `scrape_duration_seconds` and `scrape_samples_scraped` besides. A scrape
/// that fails is not repeated before the next is due.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrometheusScrape {
    /// The targets, such as `http://localhost:9100/metrics`. Proxies of the environment are not used.
    pub endpoint: Vec<String>,
    /// How often each target is asked.
    #[serde(default = "PrometheusScrape::scrape_interval_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub scrape_interval: Duration,
    /// How long a target may take. At most `scrape_interval`.
    #[serde(default = "PrometheusScrape::scrape_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub scrape_timeout: Duration,
    /// The label `job`. The name of the source if not given.
    #[serde(default)]
    pub job: Option<String>,
    /// Whether labels `job` and `instance` that a target exposes itself stay. If not, they are called `exported_job` and
    /// `exported_instance`.
    #[serde(default)]
    pub honor_labels: bool,
    /// Who the source says it is.
    #[serde(default)]
    pub auth: Option<Auth>,
    /// How the certificate of an `https` address is checked.
    #[serde(default)]
    pub tls: Tls,
    /// A target that exposes more is not read. At most `64MiB`.
    #[serde(default = "PrometheusScrape::max_body_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_body_bytes: u64,
}

impl PrometheusScrape {
    fn scrape_interval_default() -> Duration {
        Duration::from_secs(15)
    }

    fn scrape_timeout_default() -> Duration {
        Duration::from_secs(10)
    }

    fn max_body_bytes_default() -> u64 {
        16 << 20
    }

    fn client(&self) -> Result<Client, ConfigError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(FORMATS));
        add_headers(&BTreeMap::new(), self.auth.as_ref(), &mut headers)?;
        let is_plain = self.endpoint.iter().all(|target| target.starts_with("http:"));
        client(headers, &self.tls, is_plain, self.scrape_timeout)
    }
}

impl Component for PrometheusScrape {
    const NAME: &'static str = "prometheus_scrape";
    const EXAMPLE: &'static str = r#"
type: prometheus_scrape
endpoint: ["http://localhost:9100/metrics"]
schema: metric
"#;
}

impl SourceConfig for PrometheusScrape {
    fn build(self, cx: &ConnectorContext) -> Result<SourceKind, ConfigError> {
        if self.endpoint.is_empty() {
            return Err(invalid("`endpoint` names no target"));
        }
        if self.scrape_interval < Duration::from_millis(10) {
            return Err(invalid("`scrape_interval` is less than 10ms"));
        }
        if self.max_body_bytes > BODY_BYTES_MAX {
            return Err(invalid("`max_body_bytes` is more than 64MiB"));
        }
        let targets = self.endpoint.iter().map(|target| parse_url(target)).collect::<Result<Vec<_>, _>>()?;
        let client = self.client()?;
        Ok(SourceKind::Listener(Box::new(Scraper { config: self, client, targets, cx: cx.clone() })))
    }
}

struct Scraper {
    config: PrometheusScrape,
    client: Client,
    targets: Vec<Url>,
    cx: ConnectorContext,
}

#[async_trait]
impl Listener for Scraper {
    async fn bind(&mut self) -> Result<(), ConnectorError> {
        Ok(())
    }

    async fn run(self: Box<Self>, intake: Intake) -> Result<(), ConnectorError> {
        let Self { config, client, targets, cx } = *self;
        let counts = Arc::new(Counts::new(&cx));
        let job = config.job.unwrap_or_else(|| cx.name.to_string());
        let tasks = TaskTracker::new();
        let timeout = config.scrape_timeout.min(config.scrape_interval);
        for url in targets {
            let port = url.port_or_known_default().unwrap_or_default();
            let instance = format!("{}:{port}", url.host_str().unwrap_or_default());
            let scrapes = Scrapes {
                target: Target { job: job.clone(), instance, honor_labels: config.honor_labels },
                url,
                client: client.clone(),
                timeout,
                body_bytes_max: config.max_body_bytes as usize,
                counts: Arc::clone(&counts),
                name: Arc::clone(&cx.name),
                errors: cx.metrics.source_errors.clone(),
                intake: intake.clone(),
            };
            tasks.spawn(scrapes.run(config.scrape_interval, cx.shutdown.clone()));
        }
        tasks.close();
        tasks.wait().await;
        Ok(())
    }
}

/// What a target answered.
struct Exposed {
    text: Vec<u8>,
    format: Format,
}

/// Asks one target, again and again.
struct Scrapes {
    target: Target,
    url: Url,
    client: Client,
    timeout: Duration,
    body_bytes_max: usize,
    counts: Arc<Counts>,
    name: Arc<str>,
    errors: IntCounterVec,
    intake: Intake,
}

impl Scrapes {
    async fn run(self, every: Duration, shutdown: CancellationToken) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let (at, begun) = (Timestamp::now(), Instant::now());
            let exposed = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                exposed = tokio::time::timeout(self.timeout, self.fetch()) => exposed,
            };
            let exposed = exposed.unwrap_or_else(|_| Err("the target takes too long".into()));
            if let Err(error) = &exposed {
                self.errors.with_label_values(&[&*self.name, "scrape_failed"]).inc();
                tracing::warn!(source = %self.name, target = %self.url, error, "A target could not be scraped.");
            }
            if self.hand_over(exposed.ok().as_ref(), at, begun.elapsed()).await.is_err() {
                return;
            }
        }
    }

    /// Asks for the metrics.
    async fn fetch(&self) -> Result<Exposed, String> {
        let response = self.client.get(self.url.clone()).send().await;
        let mut response = response.map_err(|error| error.without_url().to_string())?;
        if !response.status().is_success() {
            return Err(format!("status {}", response.status().as_u16()));
        }
        let kind =
            response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let format = match kind.starts_with("application/openmetrics-text") {
            true => Format::OpenMetrics,
            false => Format::Prometheus,
        };
        let mut text = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| error.without_url().to_string())? {
            if text.len() + chunk.len() > self.body_bytes_max {
                return Err("the target exposes more than `max_body_bytes`".into());
            }
            text.extend_from_slice(&chunk);
        }
        Ok(Exposed { text, format })
    }

    /// Hands over what one scrape becomes.
    async fn hand_over(
        &self,
        exposed: Option<&Exposed>,
        at: Timestamp,
        took: Duration,
    ) -> Result<(), NotDurable> {
        let nanos = u64::try_from(at.as_nanosecond()).unwrap_or(0);
        let mut rows = Rows::default();
        let mut n_samples = 0;
        if let Some(Exposed { text, format }) = exposed {
            let mut scrape = Scrape::new(text, *format, &self.target, nanos);
            while scrape.fill(&mut rows) {
                self.send(&mut rows).await?;
            }
            n_samples = scrape.n_samples;
            self.counts.rejected("malformed_line", scrape.n_malformed, self.url.as_str());
        }
        let up = if exposed.is_some() { 1.0 } else { 0.0 };
        for (name, value) in [
            ("up", up),
            ("scrape_duration_seconds", took.as_secs_f64()),
            ("scrape_samples_scraped", n_samples as f64),
        ] {
            rows.own(name, value, &self.target, nanos);
        }
        self.send(&mut rows).await
    }

    async fn send(&self, rows: &mut Rows) -> Result<(), NotDurable> {
        let Rows { data, messages } = std::mem::take(rows);
        self.counts.received(&messages);
        let peer = Some(self.url.as_str().into());
        self.intake.send(Received { data: data.into(), messages, peer, attributes: None, ack: None }).await
    }
}
