//! PagerDuty, Events API v2: `POST /v2/enqueue`.

use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::Severity;
use logdrive_schemas::component::ConfigError;
use reqwest::header::HeaderMap;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::http::{Poster, address, json as json_headers};
use super::{Channel, Notice, Undelivered, shortened, yes};
use crate::sinks::http_auth::{Secret, Tls};

/// The longest summary that PagerDuty takes, in characters.
const SUMMARY_MAX: usize = 1024;

/// PagerDuty (Events API v2). An alert is one incident: what is told of it again has the same `dedup_key`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PagerDuty {
    /// The integration key of the service; write it as `${NAME}` and set the environment variable.
    pub routing_key: Secret,
    /// The API, without its path.
    #[serde(default = "PagerDuty::endpoint_default")]
    pub endpoint: String,
    /// Whether it is told of the end.
    #[serde(default = "yes")]
    pub send_resolved: bool,
}

impl PagerDuty {
    fn endpoint_default() -> String {
        "https://events.pagerduty.com".into()
    }

    pub(super) fn build(&self, timeout: Duration) -> Result<Box<dyn Channel>, ConfigError> {
        let mut url = address("endpoint", &self.endpoint)?;
        url.set_path("/v2/enqueue");
        let poster = Poster::new(url, HeaderMap::new(), &Tls::default(), timeout)?;
        Ok(Box::new(Events { poster, routing_key: self.routing_key.clone() }))
    }
}

struct Events {
    poster: Poster,
    routing_key: Secret,
}

#[async_trait]
impl Channel for Events {
    async fn deliver(&mut self, notice: &Notice) -> Result<(), Undelivered> {
        let mut event = event(notice);
        event["routing_key"] = self.routing_key.expose().into();
        self.poster.post(json_headers(), event.to_string()).await
    }
}

fn event(notice: &Notice) -> Value {
    if notice.resolved {
        return json!({ "event_action": "resolve", "dedup_key": notice.alert });
    }
    let severity = match notice.severity {
        Severity::P0 => "critical",
        Severity::P1 => "error",
        Severity::P2 => "warning",
        Severity::P3 => "info",
    };
    json!({
        "event_action": "trigger",
        "dedup_key": notice.alert,
        "client": "Logdrive",
        "payload": {
            "summary": shortened(&notice.title, SUMMARY_MAX),
            "source": notice.labels.get("entity").filter(|e| !e.is_empty()).unwrap_or(&notice.sink),
            "severity": severity,
            "timestamp": notice.starts_at.to_string(),
            "component": notice.labels.get("detector"),
            "group": notice.labels.get("tenant"),
            "custom_details": {
                "body": notice.body,
                "severity": notice.severity,
                "labels": notice.labels,
                "count": notice.n_findings,
                "findings": notice.findings,
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn an_incident_begins_and_ends() {
        let (trigger, resolve) = (event(&example(false)), event(&example(true)));
        assert_eq!(
            (&trigger["dedup_key"], &trigger["event_action"]),
            (&resolve["dedup_key"], &json!("trigger"))
        );
        assert_eq!(trigger["payload"]["severity"], "error");
        assert_eq!(resolve["event_action"], "resolve");
    }
}
