//! Numbers of schemas, from a registry: each topic has a subject, `TOPIC-value`, under which the schema of its messages
//! is registered or looked up, once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use logdrive_schemas::component::{ConfigError, duration};
use reqwest::Client;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use url::Url;

use crate::error::ConnectorError;
use crate::sinks::http_auth::{Auth, Tls, add_headers, client, parse_base_url, yes};
use crate::sinks::http_rejects::excerpt;

/// Schemas and topics that are remembered; beyond that all are asked for anew.
const KNOWN_MAX: usize = 10_000;
const KIND: HeaderValue = HeaderValue::from_static("application/vnd.schemaregistry.v1+json");

/// A registry of schemas, as Confluent's and those that speak like it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SchemaRegistry {
    /// Its address, such as `http://localhost:8081`.
    pub endpoint: String,
    /// Whether a schema that a subject has not is registered. Otherwise the sink waits until somebody has done that.
    #[serde(default = "yes")]
    pub register: bool,
    /// Who the sink says it is.
    #[serde(default)]
    pub auth: Option<Auth>,
    /// How the certificate of an `https` address is checked.
    #[serde(default)]
    pub tls: Tls,
    /// How long one answer may take.
    #[serde(default = "SchemaRegistry::timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
}

impl SchemaRegistry {
    fn timeout_default() -> Duration {
        Duration::from_secs(10)
    }

    /// Reads certificates; opens no connection.
    pub(super) fn build(&self, kind: &'static str) -> Result<Numbers, ConfigError> {
        let url = parse_base_url(&self.endpoint)?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, KIND);
        headers.insert(ACCEPT, KIND);
        add_headers(&std::collections::BTreeMap::new(), self.auth.as_ref(), &mut headers)?;
        let client = client(headers, &self.tls, url.scheme() == "http", self.timeout)?;
        let register = self.register;
        Ok(Numbers { client, url, register, kind, known: HashMap::new(), n_known: 0, has_worked: false })
    }
}

/// The numbers of one schema's subjects, by topic.
pub(super) type ByTopic = HashMap<String, u32>;

/// Asks the registry, and remembers.
pub(super) struct Numbers {
    client: Client,
    url: Url,
    register: bool,
    /// What the registry calls schemas of this kind.
    kind: &'static str,
    known: HashMap<Arc<str>, ByTopic>,
    n_known: usize,
    /// Whether it has answered before: what it refuses now may pass.
    has_worked: bool,
}

#[derive(Deserialize)]
struct Answer {
    id: u32,
}

impl Numbers {
    /// What is known of a schema.
    pub(super) fn of(&self, schema: &str) -> Option<&ByTopic> {
        self.known.get(schema)
    }

    /// Nothing that was learned is needed any more.
    pub(super) fn forget_if_many(&mut self) {
        if KNOWN_MAX < self.n_known {
            self.known.clear();
            self.n_known = 0;
        }
    }

    /// Learns the number of a schema under a topic's subject.
    pub(super) async fn learn(&mut self, schema: &Arc<str>, topic: &str) -> Result<(), ConnectorError> {
        if self.of(schema).is_some_and(|known| known.contains_key(topic)) {
            return Ok(());
        }
        let number = self.ask(schema, topic).await?;
        self.has_worked = true;
        self.known.entry(Arc::clone(schema)).or_default().insert(topic.to_owned(), number);
        self.n_known += 1;
        Ok(())
    }

    async fn ask(&self, schema: &str, topic: &str) -> Result<u32, ConnectorError> {
        // A topic's name needs no escapes.
        let subject = format!("{topic}-value");
        let path = match self.register {
            true => format!("subjects/{subject}/versions"),
            false => format!("subjects/{subject}"),
        };
        let lost = |error: crate::error::BoxError| ConnectorError::disconnected(self.url.as_str(), error);
        let url = self.url.join(&path).map_err(|error| lost(error.into()))?;
        let body = json!({ "schema": schema, "schemaType": self.kind }).to_string();
        let response = self.client.post(url).body(body).send().await.map_err(|error| lost(error.into()))?;
        let status = response.status().as_u16();
        let said = response.bytes().await.map_err(|error| lost(error.into()))?;
        let why = || {
            let said = excerpt(&String::from_utf8_lossy(&said));
            format!("the schema registry answers for `{subject}` with status {status}: {said}")
        };
        match status {
            200 => {
                let answer: Result<Answer, _> = serde_json::from_slice(&said);
                answer.map(|answer| answer.id).map_err(|_| lost(why().into()))
            }
            // Who we are, or a schema that does not fit what others have registered.
            401 | 403 | 409 | 422 if !self.has_worked => {
                Err(ConnectorError::refused(self.url.as_str(), why()))
            }
            _ => Err(lost(why().into())),
        }
    }
}
