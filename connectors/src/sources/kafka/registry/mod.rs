//! Messages whose schema is in a registry: each begins with a zero byte and the schema's number, and becomes JSON text
//! before it is decoded, so that everything behind sees what it always sees.
//!
//! What cannot be read by its schema, or names one that the registry does not have, stays as it is: the `json` decoder
//! rejects it with its original bytes. A registry that does not answer is another matter: nothing is read until it
//! does, since such messages are not at fault.

mod avro;
mod protobuf;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use apache_avro::Schema;
use arrow::buffer::Buffer;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use logdrive_schemas::component::{ConfigError, duration};
use logdrive_schemas::{Chunk, MessageRange};
use prometheus::IntCounter;
use reqwest::header::HeaderMap;
use reqwest::{Client, Url};
use schemars::JsonSchema;
use serde::Deserialize;

use self::protobuf::Protobuf;
use crate::context::ConnectorContext;
use crate::error::BoxError;
use crate::sinks::http_auth::{Auth, Tls, add_headers, client, parse_base_url};

/// How long it is remembered that the registry does not have a schema.
const UNKNOWN_FOR: Duration = Duration::from_secs(30);
/// Schemas that are kept; with more, all are asked for anew. Whoever sends messages chooses numbers.
const SCHEMAS_MAX: usize = 10_000;
/// What one value of a message may take in memory, whatever length it claims.
const VALUE_BYTES_MAX: usize = 64 << 20;
/// How deep schemas may refer to schemas.
const REFERENCES_MAX: usize = 16;
/// The zero byte and the number.
const HEAD: usize = 5;

/// A registry of schemas, as Confluent's and those that speak like it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SchemaRegistry {
    /// Its address, such as `http://localhost:8081`.
    pub endpoint: String,
    /// Who the source says it is.
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
    pub(super) fn build(&self, cx: &ConnectorContext) -> Result<Registry, ConfigError> {
        let url = parse_base_url(&self.endpoint)?;
        let mut headers = HeaderMap::new();
        add_headers(&BTreeMap::new(), self.auth.as_ref(), &mut headers)?;
        let client = client(headers, &self.tls, url.scheme() == "http", self.timeout)?;
        // For the whole process; the first value given stays.
        apache_avro::util::max_allocation_bytes(VALUE_BYTES_MAX);
        let unreadable = cx.metrics.source_errors.with_label_values(&[&*cx.name, "schema"]);
        Ok(Registry { client, url, schemas: HashMap::new(), unreadable })
    }
}

/// What a schema's number stands for.
#[derive(Clone)]
enum Known {
    Avro(Arc<(Schema, Vec<Schema>)>),
    Json,
    Protobuf(Arc<Protobuf>),
    /// The registry does not have it, or it cannot be understood.
    Unknown(Instant),
}

/// Asks the registry, and remembers.
pub(super) struct Registry {
    client: Client,
    url: Url,
    schemas: HashMap<u32, Known>,
    unreadable: IntCounter,
}

#[derive(Deserialize)]
struct Answer {
    schema: String,
    #[serde(default, rename = "schemaType")]
    schema_type: Option<String>,
    #[serde(default)]
    references: Vec<Reference>,
}

#[derive(Clone, Deserialize)]
struct Reference {
    name: String,
    subject: String,
    version: u32,
}

impl Registry {
    /// Learns every schema that messages of the chunk name. May be repeated.
    ///
    /// # Errors
    /// If the registry does not answer, or asks for time.
    pub(super) async fn learn(&mut self, chunk: &Chunk) -> Result<(), BoxError> {
        for idx in 0..chunk.messages.len() {
            let Some((number, _)) = split(chunk.message(idx)) else { continue };
            match self.schemas.get(&number) {
                Some(Known::Unknown(at)) if UNKNOWN_FOR < at.elapsed() => {}
                Some(_) => continue,
                None => {}
            }
            let known = self.ask(number).await?;
            if SCHEMAS_MAX <= self.schemas.len() {
                self.schemas.clear();
            }
            self.schemas.insert(number, known);
        }
        Ok(())
    }

    /// The chunk with what can be read as JSON text.
    pub(super) fn translate(&self, chunk: Chunk) -> Chunk {
        let mut data = Vec::with_capacity(chunk.data.len() * 2);
        let mut messages = Vec::with_capacity(chunk.messages.len());
        for idx in 0..chunk.messages.len() {
            let message = chunk.message(idx);
            let start = data.len();
            let readable = split(message).is_some_and(|(number, body)| self.write(number, body, &mut data));
            if !readable {
                data.truncate(start);
                data.extend_from_slice(message);
                // A tombstone is empty and nobody's fault.
                self.unreadable.inc_by(u64::from(!message.is_empty()));
            }
            let range =
                |n: usize| u32::try_from(n).expect("a chunk holds a few megabytes, and grows a few times");
            messages.push(MessageRange { start: range(start), len: range(data.len() - start) });
        }
        Chunk { data: Buffer::from(data), messages, ..chunk }
    }

    fn write(&self, number: u32, body: &[u8], out: &mut Vec<u8>) -> bool {
        let value = match self.schemas.get(&number) {
            Some(Known::Json) => {
                out.extend_from_slice(body);
                return true;
            }
            Some(Known::Avro(schema)) => avro::read(&schema.0, &schema.1, body),
            Some(Known::Protobuf(schema)) => schema.read(body),
            Some(Known::Unknown(_)) | None => None,
        };
        value.is_some_and(|value| serde_json::to_writer(out, &value).is_ok())
    }

    async fn ask(&self, number: u32) -> Result<Known, BoxError> {
        let unknown = || Known::Unknown(Instant::now());
        let path = format!("schemas/ids/{number}");
        let Some(answer) = self.get(&path, false).await? else { return Ok(unknown()) };
        let known = match answer.schema_type.as_deref() {
            None | Some("AVRO") => {
                let parts: Vec<String> =
                    self.references(&answer, false).await?.into_iter().map(|(_, text)| text).collect();
                let schema = Schema::parse_str_with_list(&answer.schema, &parts).ok();
                // A hostile message could be nested without an end.
                let schema = schema.filter(|(schema, parts)| !avro::is_recursive(schema, parts));
                schema.map(|schema| Known::Avro(Arc::new(schema)))
            }
            Some("JSON") => Some(Known::Json),
            Some("PROTOBUF") => {
                let Some(answer) = self.get(&path, true).await? else { return Ok(unknown()) };
                let parts = self.references(&answer, true).await?;
                let parts: Option<Vec<(String, Vec<u8>)>> =
                    parts.into_iter().map(|(name, text)| Some((name, STANDARD.decode(text).ok()?))).collect();
                let schema = STANDARD.decode(&answer.schema).ok();
                let schema = parts.zip(schema).and_then(|(parts, schema)| Protobuf::new(&parts, &schema));
                schema.map(|schema| Known::Protobuf(Arc::new(schema)))
            }
            Some(_) => None,
        };
        if known.is_none() {
            tracing::warn!(
                number,
                kind = answer.schema_type,
                "A schema of the registry cannot be understood."
            );
        }
        Ok(known.unwrap_or_else(unknown))
    }

    /// All schemas that one refers to, each behind those that it refers to itself, by their names.
    async fn references(&self, answer: &Answer, serialized: bool) -> Result<Vec<(String, String)>, BoxError> {
        let mut found: Vec<(String, String)> = Vec::new();
        let mut open: Vec<(usize, Reference)> = answer.references.iter().cloned().map(|r| (1, r)).collect();
        while let Some((depth, reference)) = open.pop() {
            if REFERENCES_MAX < depth || 1000 < found.len() {
                return Err("schemas refer to schemas without an end".into());
            }
            let subject =
                url::form_urlencoded::byte_serialize(reference.subject.as_bytes()).collect::<String>();
            let path = format!("subjects/{}/versions/{}", subject.replace('+', "%20"), reference.version);
            let Some(answer) = self.get(&path, serialized).await? else { continue };
            open.extend(answer.references.iter().cloned().map(|r| (depth + 1, r)));
            found.retain(|(name, _)| *name != reference.name);
            found.push((reference.name, answer.schema));
        }
        found.reverse();
        Ok(found)
    }

    /// `None` if there is no such schema.
    async fn get(&self, path: &str, serialized: bool) -> Result<Option<Answer>, BoxError> {
        let mut url = self.url.join(path)?;
        if serialized {
            url.set_query(Some("format=serialized"));
        }
        let response = self.client.get(url).send().await?;
        match response.status().as_u16() {
            404 => Ok(None),
            200 => Ok(Some(serde_json::from_slice(&response.bytes().await?)?)),
            status => Err(format!("the schema registry answers with status {status}").into()),
        }
    }
}

/// The number of a message's schema, and what follows.
fn split(message: &[u8]) -> Option<(u32, &[u8])> {
    let (head, body) = message.split_at_checked(HEAD)?;
    match head {
        [0, number @ ..] => Some((u32::from_be_bytes(number.try_into().ok()?), body)),
        _ => None,
    }
}
