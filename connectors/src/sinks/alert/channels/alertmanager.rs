//! Prometheus' Alertmanager, API v2: `POST /api/v2/alerts`.

use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::ConfigError;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::http::{Poster, address, json as json_headers};
use super::{Channel, Notice, Undelivered, yes};
use crate::sinks::http_auth::{Auth, Tls, invalid};

/// Prometheus' Alertmanager (API v2), which has routes, silences and receivers of its own. An alert's labels are
/// `alertname` (the detector, else the sink), `severity`, and what `group_by` names. Every server of a cluster is told,
/// and one of them must confirm. If this process is gone, Alertmanager ends the alert after twice `resolve_after`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Alertmanager {
    /// The servers of one cluster, such as `http://localhost:9093`.
    pub endpoint: Vec<String>,
    /// Who the sink says it is.
    #[serde(default)]
    pub auth: Option<Auth>,
    /// How the certificate of an `https` address is checked.
    #[serde(default)]
    pub tls: Tls,
    /// Whether it is told of the end.
    #[serde(default = "yes")]
    pub send_resolved: bool,
}

impl Alertmanager {
    pub(super) fn build(&self, timeout: Duration) -> Result<Box<dyn Channel>, ConfigError> {
        let mut headers = HeaderMap::new();
        if let Some(auth) = &self.auth {
            headers.insert(AUTHORIZATION, auth.header()?);
        }
        let servers = self.endpoint.iter().map(|endpoint| {
            let mut url = address("endpoint", endpoint)?;
            url.set_path(&format!("{}/api/v2/alerts", url.path().trim_end_matches('/')));
            Poster::new(url, headers.clone(), &self.tls, timeout)
        });
        let servers = servers.collect::<Result<Vec<_>, _>>()?;
        if servers.is_empty() {
            return Err(invalid("`endpoint` names no server"));
        }
        Ok(Box::new(Cluster { servers }))
    }
}

struct Cluster {
    servers: Vec<Poster>,
}

#[async_trait]
impl Channel for Cluster {
    async fn deliver(&mut self, notice: &Notice) -> Result<(), Undelivered> {
        let body = body(notice).to_string();
        let told = self.servers.iter().map(|server| server.post(json_headers(), body.clone()));
        let mut failed = None;
        let mut taken = false;
        for told in futures::future::join_all(told).await {
            match told {
                Ok(()) => taken = true,
                // One that may take it later outweighs one that will not.
                Err(error @ Undelivered::Later { .. }) => failed = Some(error),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) if !taken => Err(error),
            _ => Ok(()),
        }
    }
}

fn body(notice: &Notice) -> Value {
    let name = notice.labels.get("detector").unwrap_or(&notice.sink);
    let mut labels = Map::new();
    labels.insert("alertname".into(), name.as_str().into());
    labels.insert("severity".into(), notice.severity.to_string().into());
    for (label, value) in notice.labels.iter().filter(|(_, value)| !value.is_empty()) {
        labels.insert(label_name(label), value.as_str().into());
    }
    json!([{
        "labels": labels,
        "annotations": {
            "summary": notice.title,
            "description": notice.body,
            "findings": notice.n_findings.to_string(),
            "logdrive_id": notice.alert,
        },
        "startsAt": notice.starts_at.to_string(),
        "endsAt": notice.ends_at.unwrap_or(notice.expires_at).to_string(),
    }])
}

/// What is no name of a label becomes one: `geo.country` is `geo_country`.
fn label_name(text: &str) -> String {
    let mut name: String = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        name.insert(0, '_');
    }
    name
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn labels_are_the_same_at_the_end() {
        let (firing, resolved) = (body(&example(false)), body(&example(true)));
        assert_eq!(firing[0]["labels"], resolved[0]["labels"]);
        assert_eq!(firing[0]["labels"]["alertname"], "card_testing");
        assert_eq!(firing[0]["endsAt"], "2026-11-21T11:20:00Z");
        assert_eq!(resolved[0]["endsAt"], "2026-11-21T11:03:20Z");
        assert_eq!(label_name("4 geo.land"), "_4_geo_land");
    }
}
