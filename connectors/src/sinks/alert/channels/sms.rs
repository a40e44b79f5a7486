//! Text messages, through the HTTP interface of whoever sends them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::ConfigError;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use url::form_urlencoded::Serializer;

use super::http::{Poster, address, content_type, json as json_headers};
use super::{Channel, Notice, Undelivered, shortened, yes};
use crate::sinks::http_auth::{Auth, Secret, Tls, invalid};

/// How a gateway wants its request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SmsBody {
    /// `application/x-www-form-urlencoded`.
    #[default]
    Form,
    /// A JSON object.
    Json,
}

/// Text messages, through a gateway that takes one POST for each message.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sms {
    /// The gateway's address.
    pub url: Secret,
    /// The numbers that are told.
    pub to: Vec<String>,
    /// The fields of a request. In their values `{to}` is the number and `{text}` the message. By default
    /// `{ To: "{to}", Body: "{text}" }`, as many gateways have them.
    #[serde(default = "Sms::fields_default")]
    pub fields: BTreeMap<String, String>,
    /// The form of a request.
    #[serde(default)]
    pub format: SmsBody,
    /// Longer messages are cut, in characters.
    #[serde(default = "Sms::max_length_default")]
    pub max_length: usize,
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

impl Sms {
    fn fields_default() -> BTreeMap<String, String> {
        [("To", "{to}"), ("Body", "{text}")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    fn max_length_default() -> usize {
        160
    }

    pub(super) fn build(&self, timeout: Duration) -> Result<Box<dyn Channel>, ConfigError> {
        if self.to.is_empty() || self.max_length == 0 {
            return Err(invalid("`to` names no number, or `max_length` is 0"));
        }
        let mut headers = HeaderMap::new();
        if let Some(auth) = &self.auth {
            headers.insert(AUTHORIZATION, auth.header()?);
        }
        let poster = Poster::new(address("url", self.url.expose())?, headers, &self.tls, timeout)?;
        Ok(Box::new(Gateway { poster, config: self.clone(), done: (0, BTreeSet::new()) }))
    }
}

struct Gateway {
    poster: Poster,
    config: Sms,
    /// Of the delivery that is under way, who was told already.
    done: (u64, BTreeSet<String>),
}

#[async_trait]
impl Channel for Gateway {
    async fn deliver(&mut self, notice: &Notice) -> Result<(), Undelivered> {
        if self.done.0 != notice.number {
            self.done = (notice.number, BTreeSet::new());
        }
        let text = shortened(&notice.headline(), self.config.max_length);
        let mut refused = None;
        for to in &self.config.to {
            if self.done.1.contains(to) {
                continue;
            }
            let (headers, body) = request(&self.config, to, &text);
            match self.poster.post(headers, body).await {
                Ok(()) => {}
                // The others are to be told all the same.
                Err(Undelivered::Never(reason)) => refused = Some(reason),
                Err(later) => return Err(later),
            }
            self.done.1.insert(to.clone());
        }
        refused.map_or(Ok(()), |reason| Err(Undelivered::Never(reason)))
    }
}

fn request(config: &Sms, to: &str, text: &str) -> (HeaderMap, String) {
    // In one pass: a message may contain `{to}`.
    let filled = |value: &str| {
        let parts: Vec<_> = value.split("{text}").map(|part| part.replace("{to}", to)).collect();
        parts.join(text)
    };
    let fields = config.fields.iter().map(|(name, value)| (name.as_str(), filled(value)));
    match config.format {
        SmsBody::Form => {
            let form = Serializer::new(String::new()).extend_pairs(fields).finish();
            (content_type("application/x-www-form-urlencoded"), form)
        }
        SmsBody::Json => {
            let object: Map<String, Value> =
                fields.map(|(name, value)| (name.into(), value.into())).collect();
            (json_headers(), Value::Object(object).to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_in_messages_are_text() {
        let config = Sms {
            url: "http://localhost".into(),
            to: vec!["+1".into()],
            fields: [("a".to_owned(), "{to}: {text}".to_owned())].into(),
            format: SmsBody::Form,
            max_length: 160,
            auth: None,
            tls: Tls::default(),
            send_resolved: true,
        };
        assert_eq!(request(&config, "+1", "{to} & {text}").1, "a=%2B1%3A+%7Bto%7D+%26+%7Btext%7D");
        let json = Sms { format: SmsBody::Json, ..config };
        assert_eq!(request(&json, "+1", "x\"").1, r#"{"a":"+1: x\""}"#);
    }
}
