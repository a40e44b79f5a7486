//! Microsoft Teams, a webhook of its Workflows that takes an Adaptive Card.

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

/// Teams takes messages of up to 28 KB; this is far below.
const TEXT_MAX: usize = 4000;

/// Microsoft Teams, through the webhook of a workflow ("Post to a channel when a webhook request is received").
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Teams {
    /// The webhook's address, which is a secret; write it as `${NAME}` and set the environment variable.
    pub url: Secret,
    /// Whether it is told of the end.
    #[serde(default = "yes")]
    pub send_resolved: bool,
}

impl Teams {
    pub(super) fn build(&self, timeout: Duration) -> Result<Box<dyn Channel>, ConfigError> {
        let url = address("url", self.url.expose())?;
        Ok(Box::new(Hook(Poster::new(url, HeaderMap::new(), &Tls::default(), timeout)?)))
    }
}

struct Hook(Poster);

#[async_trait]
impl Channel for Hook {
    async fn deliver(&mut self, notice: &Notice) -> Result<(), Undelivered> {
        self.0.post(json_headers(), card(notice).to_string()).await
    }
}

fn card(notice: &Notice) -> Value {
    let colour = match (notice.resolved, notice.severity) {
        (true, _) => "good",
        (false, Severity::P0 | Severity::P1) => "attention",
        (false, Severity::P2) => "warning",
        (false, Severity::P3) => "default",
    };
    let mut facts = vec![json!({ "title": "since", "value": notice.starts_at.to_string() })];
    facts.extend(notice.ends_at.map(|ends| json!({ "title": "ended", "value": ends.to_string() })));
    let labels = notice.labels.iter().filter(|(_, value)| !value.is_empty());
    facts.extend(labels.map(|(name, value)| json!({ "title": name, "value": shortened(value, 500) })));
    json!({
        "type": "message",
        "attachments": [{
            "contentType": "application/vnd.microsoft.card.adaptive",
            "contentUrl": null,
            "content": {
                "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                "type": "AdaptiveCard",
                "version": "1.4",
                "body": [
                    {
                        "type": "TextBlock", "size": "medium", "weight": "bolder", "wrap": true,
                        "color": colour, "text": shortened(&notice.headline(), TEXT_MAX),
                    },
                    { "type": "TextBlock", "wrap": true, "text": shortened(&notice.body, TEXT_MAX) },
                    { "type": "FactSet", "facts": facts },
                ],
            },
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn a_card_has_what_teams_asks_for() {
        let card = card(&example(true));
        assert_eq!(card["type"], "message");
        let content = &card["attachments"][0]["content"];
        assert_eq!((&content["type"], &content["version"]), (&json!("AdaptiveCard"), &json!("1.4")));
        assert_eq!(content["body"][0]["color"], "good");
    }
}
