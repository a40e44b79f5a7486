//! The ways to tell people and systems of an alert.

mod alertmanager;
mod email;
mod http;
mod pagerduty;
mod slack;
mod sms;
mod teams;
mod webhook;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use logdrive_schemas::Severity;
use logdrive_schemas::component::ConfigError;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::book::{Alert, Delivery};
use super::office::Settings;

pub use alertmanager::Alertmanager;
pub use email::{Email, StartTls};
pub use pagerduty::PagerDuty;
pub use slack::Slack;
pub use sms::{Sms, SmsBody};
pub use teams::Teams;
pub use webhook::Webhook;

/// The kind of a channel.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChannelConfig {
    /// Prometheus' Alertmanager.
    Alertmanager(Alertmanager),
    /// Mail.
    Email(Email),
    /// PagerDuty.
    Pagerduty(PagerDuty),
    /// Slack.
    Slack(Slack),
    /// Text messages.
    Sms(Sms),
    /// Microsoft Teams.
    Teams(Teams),
    /// Anything that takes a POST.
    Webhook(Webhook),
}

impl ChannelConfig {
    /// Whether it is told of the end.
    pub(super) fn send_resolved(&self) -> bool {
        match self {
            Self::Alertmanager(c) => c.send_resolved,
            Self::Email(c) => c.send_resolved,
            Self::Pagerduty(c) => c.send_resolved,
            Self::Slack(c) => c.send_resolved,
            Self::Sms(c) => c.send_resolved,
            Self::Teams(c) => c.send_resolved,
            Self::Webhook(c) => c.send_resolved,
        }
    }

    /// Whether it ends an alert by itself that it does not hear of.
    pub(super) fn forgets(&self) -> bool {
        matches!(self, Self::Alertmanager(_))
    }

    pub(super) fn build(&self, timeout: Duration) -> Result<Box<dyn Channel>, ConfigError> {
        match self {
            Self::Alertmanager(c) => c.build(timeout),
            Self::Email(c) => c.build(timeout),
            Self::Pagerduty(c) => c.build(timeout),
            Self::Slack(c) => c.build(timeout),
            Self::Sms(c) => c.build(timeout),
            Self::Teams(c) => c.build(timeout),
            Self::Webhook(c) => c.build(timeout),
        }
    }
}

/// Why an alert was not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Undelivered {
    /// It is tried again.
    Later {
        reason: String,
        /// How long the far end asks for.
        after: Option<Duration>,
    },
    /// The far end will not take it.
    Never(String),
}

impl Undelivered {
    fn later(reason: impl Into<String>) -> Self {
        Self::Later { reason: reason.into(), after: None }
    }
}

/// A way to tell of an alert.
#[async_trait]
pub(super) trait Channel: Send {
    /// Tells it; `Ok` only if the far end has confirmed.
    async fn deliver(&mut self, notice: &Notice) -> Result<(), Undelivered>;
}

/// What a channel is told.
#[derive(Clone, Debug)]
pub(super) struct Notice {
    /// The name of the sink.
    pub(super) sink: String,
    /// The same for all that is told of one alert.
    pub(super) alert: String,
    /// Of this delivery; the same when it is repeated.
    pub(super) number: u64,
    pub(super) resolved: bool,
    pub(super) severity: Severity,
    pub(super) title: String,
    pub(super) body: String,
    /// What the findings of the alert have in common.
    pub(super) labels: BTreeMap<String, String>,
    pub(super) starts_at: Timestamp,
    pub(super) updated_at: Timestamp,
    pub(super) ends_at: Option<Timestamp>,
    /// If nothing more is heard of it, it is over then.
    pub(super) expires_at: Timestamp,
    pub(super) n_findings: u64,
    /// The newest findings.
    pub(super) findings: Vec<Value>,
}

impl Notice {
    pub(super) fn of(settings: &Settings, delivery: &Delivery, alert: &Alert) -> Self {
        let time = |ms| Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH);
        let newest = alert.findings.front();
        let (starts_at, updated_at) = (time(alert.opened_at), time(alert.last_at));
        let said = newest.and_then(|finding| finding.body.clone());
        Self {
            sink: settings.sink.to_string(),
            alert: delivery.alert.clone(),
            number: delivery.number,
            resolved: delivery.resolve,
            severity: alert.severity,
            title: newest.map(|finding| finding.title.clone()).unwrap_or_default(),
            body: said.unwrap_or_else(|| match alert.n_findings {
                1 => format!("One finding, at {starts_at}."),
                n => format!("{n} findings, from {starts_at} to {updated_at}."),
            }),
            labels: alert.labels.clone(),
            starts_at,
            updated_at,
            ends_at: alert.resolved_at.filter(|_| delivery.resolve).map(time),
            expires_at: time(super::office::now() + 2 * settings.rules.resolve_after),
            n_findings: alert.n_findings,
            findings: alert.findings.iter().map(|finding| finding.document.clone()).collect(),
        }
    }

    fn status(&self) -> &'static str {
        if self.resolved { "resolved" } else { "firing" }
    }

    /// One line.
    fn headline(&self) -> String {
        let status = if self.resolved { "RESOLVED" } else { "FIRING" };
        let title: String = self.title.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        match self.n_findings {
            0 | 1 => format!("[{status}] {} {title}", self.severity),
            n => format!("[{status}:{n}] {} {title}", self.severity),
        }
    }

    /// What identifies this delivery over repetitions.
    fn delivery_id(&self) -> String {
        format!("{}-{}", self.alert, self.number)
    }

    /// Red to grey.
    fn colour(&self) -> &'static str {
        match (self.resolved, self.severity) {
            (true, _) => "#2eb886",
            (false, Severity::P0) => "#a30200",
            (false, Severity::P1) => "#e01e5a",
            (false, Severity::P2) => "#daa038",
            (false, Severity::P3) => "#808080",
        }
    }
}

/// The beginning of a text, of at most `n_max` characters.
fn shortened(text: &str, n_max: usize) -> String {
    match text.char_indices().nth(n_max) {
        None => text.to_owned(),
        Some(_) => text.chars().take(n_max.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// The default of `send_resolved`.
fn yes() -> bool {
    true
}

#[cfg(test)]
pub(super) fn example(resolved: bool) -> Notice {
    let time = |s| Timestamp::from_second(s).unwrap();
    Notice {
        sink: "alerts".into(),
        alert: "00ff".into(),
        number: 7,
        resolved,
        severity: Severity::P1,
        title: "card_testing: card <1>".into(),
        body: "8 declined".into(),
        labels: [("detector", "card_testing"), ("entity", "card <1>"), ("tenant", "acme")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        starts_at: time(1_795_258_800),
        updated_at: time(1_795_258_860),
        ends_at: resolved.then(|| time(1_795_259_000)),
        expires_at: time(1_795_260_000),
        n_findings: 3,
        findings: vec![serde_json::json!({"id": "f3", "score": 2.5})],
    }
}
