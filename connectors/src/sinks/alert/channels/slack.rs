//! Slack, an incoming webhook.

use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::ConfigError;
use reqwest::header::HeaderMap;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::http::{Poster, address, json as json_headers};
use super::{Channel, Notice, Undelivered, shortened, yes};
use crate::sinks::http_auth::{Secret, Tls};

/// The longest text of a section that Slack takes, in characters.
const TEXT_MAX: usize = 3000;
/// The longest field.
const FIELD_MAX: usize = 500;

/// Slack, through an incoming webhook. Slack asks for at most one message a second; when it says so, what follows waits.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Slack {
    /// The webhook's address, which is a secret; write it as `${NAME}` and set the environment variable.
    pub url: Secret,
    /// Whether it is told of the end.
    #[serde(default = "yes")]
    pub send_resolved: bool,
}

impl Slack {
    pub(super) fn build(&self, timeout: Duration) -> Result<Box<dyn Channel>, ConfigError> {
        let url = address("url", self.url.expose())?;
        Ok(Box::new(Hook(Poster::new(url, HeaderMap::new(), &Tls::default(), timeout)?)))
    }
}

struct Hook(Poster);

#[async_trait]
impl Channel for Hook {
    async fn deliver(&mut self, notice: &Notice) -> Result<(), Undelivered> {
        self.0.post(json_headers(), message(notice).to_string()).await
    }
}

fn message(notice: &Notice) -> Value {
    let headline = escaped(&notice.headline());
    let labels = notice.labels.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| {
        json!({ "title": name, "value": escaped(&shortened(value, FIELD_MAX)), "short": true })
    });
    json!({
        "text": headline,
        "attachments": [{
            "color": notice.colour(),
            "fallback": headline,
            "text": escaped(&shortened(&notice.body, TEXT_MAX)),
            "fields": labels.collect::<Vec<_>>(),
            "footer": format!("Logdrive {}", notice.alert),
            "ts": notice.ends_at.unwrap_or(notice.updated_at).as_second(),
        }],
    })
}

/// Text in which nothing is a link or a mention.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn values_are_no_markup() {
        let message = message(&example(false));
        assert_eq!(message["text"], "[FIRING:3] P1 card_testing: card &lt;1&gt;");
        assert_eq!(message["attachments"][0]["fields"][1]["value"], "card &lt;1&gt;");
    }
}
