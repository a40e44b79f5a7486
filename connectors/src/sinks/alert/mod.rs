//! Telling people and systems of findings.
//!
//! ```text
//! rows ─► findings ─► routes ─► groups ─► journal ─► a queue per channel ─► far ends
//! ```
//!
//! A flush makes findings durable in the journal and waits for no channel, so a channel that is down holds nothing up
//! and loses nothing. Everything else happens behind it: `book` decides, `journal` remembers, `office` sends.

mod book;
mod channels;
mod journal;
mod office;
mod route;
mod rows;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError, duration};
use logdrive_schemas::{Batch, Epoch, reject};
use prometheus::IntCounter;
use schemars::JsonSchema;
use serde::Deserialize;

use self::book::Found;
use self::office::{Office, Settings};
use super::http_auth::invalid;
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::metrics::Metrics;
use crate::sink::{Computed, FlushPolicy, Guarantee, Reads, Sink, SinkConfig};

pub use channels::{
    Alertmanager, ChannelConfig, Email, PagerDuty, Slack, Sms, SmsBody, StartTls, Teams, Webhook,
};
pub use route::{Escalation, Route};

/// How much may be written between two flushes.
const FLUSH_BYTES: usize = 1 << 20;
/// How long a finding waits for others before all of them are made durable.
const FLUSH_AGE: Duration = Duration::from_millis(100);

/// Tells channels of findings: of a detector's, or of any stream that has the columns `id`, `detector`, `entity` and
/// `severity` (`P0` to `P3`).
///
/// Findings that go the same way (`routes`), are of one severity and agree in `group_by` are one alert. Its channels are
/// told `group_wait` after its first finding; again, with the newest of them, when there were more and `repeat_interval`
/// has passed; and of its end, when there was none for `resolve_after`. A finding that comes twice counts once (of the
/// last 65 536).
///
/// A finding is delivered, for the pipeline, when it is on disk, in `<data_dir>/sinks/NAME`; a channel that is down holds
/// up neither the pipeline nor the other channels, and is tried again, for ever, after at most five minutes. What waits
/// for it is told once, as it is by then. A crash can repeat what was told last: Alertmanager and PagerDuty recognise
/// it, mails and webhooks have an identity. What a channel will never take (a status such as 400) is kept in
/// `refused.ndjson` there, logged and counted.
///
/// `title`, `body`, `group_by` and the `where` of routes are SQL over the columns of the finding. A row that one of them
/// fails on (a division by zero) is a reject.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Alert {
    /// The ways to tell, each under a name: `NAME: { KIND: { … } }`.
    pub channels: BTreeMap<String, ChannelConfig>,
    /// Which findings go to which channels: the first that matches, unless it says `continue`. By default every finding
    /// goes to all channels; if none matches it goes nowhere, and is counted.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// What findings of one alert have in common, in SQL; each is a label of the alert.
    #[serde(default = "Alert::group_by_default")]
    pub group_by: Vec<String>,
    /// How long an alert waits for more findings before anybody is told.
    #[serde(default = "Alert::group_wait_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub group_wait: Duration,
    /// How often, at most, channels are told again of an alert that goes on.
    #[serde(default = "Alert::repeat_interval_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub repeat_interval: Duration,
    /// An alert without a new finding for this long is over. Counted anew when the pipeline starts.
    #[serde(default = "Alert::resolve_after_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub resolve_after: Duration,
    /// One line, in SQL. By default the detector and the entity.
    #[serde(default)]
    pub title: Option<String>,
    /// The text, in SQL. By default how many findings there are, and since when.
    #[serde(default)]
    pub body: Option<String>,
    /// How many alerts may be open or waiting for a channel. Beyond it findings wait in the sink's own queue, and then
    /// the sources are slowed.
    #[serde(default = "Alert::max_alerts_default")]
    pub max_alerts: usize,
    /// How long one request may take.
    #[serde(default = "Alert::request_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub request_timeout: Duration,
    /// How long a stop waits for channels; what is not sent then is sent after the next start.
    #[serde(default = "Alert::drain_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub drain_timeout: Duration,
}

impl Alert {
    fn group_by_default() -> Vec<String> {
        ["detector", "entity", "tenant"].map(str::to_owned).into()
    }

    fn group_wait_default() -> Duration {
        Duration::from_secs(10)
    }

    fn repeat_interval_default() -> Duration {
        Duration::from_hours(4)
    }

    fn resolve_after_default() -> Duration {
        Duration::from_mins(15)
    }

    fn max_alerts_default() -> usize {
        10_000
    }

    fn request_timeout_default() -> Duration {
        Duration::from_secs(10)
    }

    fn drain_timeout_default() -> Duration {
        Duration::from_secs(5)
    }

    fn checked(mut self) -> Result<Self, ConfigError> {
        if self.channels.is_empty() {
            return Err(invalid("`channels` names none"));
        }
        if self.routes.is_empty() {
            let channels = self.channels.keys().cloned().collect();
            self.routes.push(Route { channels, ..Route::default() });
        }
        let known: Vec<_> = self.channels.keys().map(String::as_str).collect();
        for name in self.routes.iter().flat_map(Route::names) {
            if !self.channels.contains_key(name) {
                let help = match logdrive_schemas::component::nearest(name, &known) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("channels: {}", known.join(", ")),
                };
                return Err(invalid(format!("a route names the unknown channel `{name}`")).with_help(help));
            }
        }
        if self.routes.iter().any(|route| route.channels.is_empty()) {
            return Err(invalid("a route has no `channels`"));
        }
        if self.resolve_after <= self.group_wait {
            return Err(invalid("`resolve_after` must be longer than `group_wait`"));
        }
        if self.request_timeout.is_zero() || self.max_alerts == 0 {
            return Err(invalid("`request_timeout` and `max_alerts` must not be zero"));
        }
        Ok(self)
    }
}

/// As milliseconds.
fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
}

impl Component for Alert {
    const NAME: &'static str = "alert";
    const EXAMPLE: &'static str = r#"
type: alert
from: [card_testing]
channels:
  ops: { alertmanager: { endpoint: ["http://localhost:9093"] } }
  fraud_team: { slack: { url: "https://hooks.slack.com/services/T0/B0/secret" } }
  duty: { pagerduty: { routing_key: "secret" } }
routes:
  - { severity: [P0, P1], channels: [ops, fraud_team], escalate: [{ after: 30m, channels: [duty] }] }
  - { where: "score > 2", channels: [fraud_team] }
title: "detector || ' ' || entity || ': ' || round(score, 1)"
"#;
}

impl SinkConfig for Alert {
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn reads(&self) -> Reads {
        Reads::Document(vec!["tenant".into()])
    }

    fn computed(&self) -> Vec<Computed> {
        rows::computed(self)
    }

    fn build(self, cx: &ConnectorContext) -> Result<Box<dyn Sink>, ConfigError> {
        let config = self.checked()?;
        // So that what is wrong with a channel is an error before anything runs.
        config.build_channels()?;
        let labels = &[&*cx.name];
        Ok(Box::new(AlertSink {
            name: Arc::clone(&cx.name),
            dir: cx.state_dir.clone(),
            office: None,
            found: Vec::new(),
            n_rows: 0,
            rows: cx.metrics.sink_rows.with_label_values(labels),
            duplicates: cx.metrics.sink_duplicates.with_label_values(labels),
            unrouted: cx.metrics.alert_unrouted.with_label_values(labels),
            metrics: Arc::clone(&cx.metrics),
            config,
        }))
    }
}

impl Alert {
    fn build_channels(&self) -> Result<BTreeMap<String, Box<dyn channels::Channel>>, ConfigError> {
        let build = |(name, channel): (&String, &ChannelConfig)| match channel.build(self.request_timeout) {
            Ok(built) => Ok((name.clone(), built)),
            Err(mut error) => {
                error.message = format!("channel `{name}`: {}", error.message);
                Err(error)
            }
        };
        self.channels.iter().map(build).collect()
    }
}

struct AlertSink {
    config: Alert,
    name: Arc<str>,
    dir: PathBuf,
    /// Open from the first connection on.
    office: Option<Office>,
    /// Since the last flush.
    found: Vec<Found>,
    n_rows: u64,
    rows: IntCounter,
    duplicates: IntCounter,
    unrouted: IntCounter,
    metrics: Arc<Metrics>,
}

#[async_trait]
impl Sink for AlertSink {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        (self.found, self.n_rows) = (Vec::new(), 0);
        if self.office.is_none() {
            let channels = self.config.build_channels();
            let channels = channels.map_err(|e| ConnectorError::refused("a channel", e.message))?;
            let settings = Settings {
                sink: Arc::clone(&self.name),
                dir: self.dir.clone(),
                rules: rows::rules(&self.config),
                channels: self.config.channels.keys().cloned().collect(),
                alerts_max: self.config.max_alerts,
                drain_timeout: self.config.drain_timeout,
                metrics: Arc::clone(&self.metrics),
            };
            self.office = Some(Office::open(settings, channels).await?);
        }
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        let (found, n_unrouted, rejects) = rows::read(&self.config, batch, office::now());
        self.n_rows += (batch.num_rows() - rejects.len()) as u64;
        self.unrouted.inc_by(n_unrouted);
        self.found.extend(found);
        Ok(reject::of_batch(batch, &rejects))
    }

    async fn flush(&mut self, _upto: Epoch) -> Result<Option<Batch>, ConnectorError> {
        let Some(office) = &self.office else {
            return Err(ConnectorError::disconnected("the channels of alerts", "not connected"));
        };
        if !self.found.is_empty() {
            let n_known = office.take(&self.found).await?;
            self.duplicates.inc_by(n_known);
            self.found.clear();
        }
        self.rows.inc_by(std::mem::take(&mut self.n_rows));
        Ok(None)
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy { bytes_max: FLUSH_BYTES, age_max: FLUSH_AGE }
    }

    async fn close(&mut self) -> Result<(), ConnectorError> {
        match self.office.take() {
            Some(office) => office.close().await,
            None => Ok(()),
        }
    }
}
