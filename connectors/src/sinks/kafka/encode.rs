//! What a message is made of: the document, or the row's columns; alone, or behind the number of its schema.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use logdrive_schemas::Batch;
use logdrive_schemas::component::ConfigError;
use schemars::JsonSchema;
use serde::Deserialize;

use super::avro;
use super::registry::{ByTopic, Numbers, SchemaRegistry};
use super::topic::make_topic;
use crate::document::Documents;
use crate::error::ConnectorError;
use crate::sinks::text::Text;

/// How many different rows are remembered from one flush to the next.
const SCHEMAS_MAX: usize = 64;
/// What is known of documents in advance.
const JSON_SCHEMA: &str =
    r#"{"$schema":"http://json-schema.org/draft-07/schema#","title":"Row","type":"object"}"#;

/// What messages are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Documents; with a `schema_registry` behind the number of a schema that says they are objects.
    #[default]
    Json,
    /// Avro records of the columns; with a `schema_registry` behind the number of their schema, else alone, for readers
    /// that have it from elsewhere.
    Avro,
    /// Arrow IPC streams, each with as many rows as `message.max.bytes` lets in (one message for each batch and topic, if
    /// they fit). Keys and headers must then be the same for all rows.
    Arrow,
}

/// Makes payloads.
pub(super) struct Encoder {
    pub(super) encoding: Encoding,
    numbers: Option<Numbers>,
    schemas: Vec<(SchemaRef, Arc<str>)>,
}

impl Encoder {
    pub(super) fn new(encoding: Encoding, registry: Option<&SchemaRegistry>) -> Result<Self, ConfigError> {
        let kind = if encoding == Encoding::Avro { "AVRO" } else { "JSON" };
        let numbers = registry.map(|registry| registry.build(kind)).transpose()?;
        Ok(Self { encoding, numbers, schemas: Vec::new() })
    }

    /// The schema of a batch's messages.
    fn schema(&mut self, batch: &Batch) -> Arc<str> {
        let rows = batch.schema();
        if let Some((_, text)) =
            self.schemas.iter().find(|(known, _)| Arc::ptr_eq(known, &rows) || *known == rows)
        {
            return Arc::clone(text);
        }
        let text: Arc<str> = match self.encoding {
            Encoding::Avro => avro::schema(rows.fields()).into(),
            Encoding::Json | Encoding::Arrow => JSON_SCHEMA.into(),
        };
        self.schemas.push((rows, Arc::clone(&text)));
        text
    }

    /// Learns the numbers of what is about to be sent.
    pub(super) async fn prepare(&mut self, batch: &Batch, topics: &Text) -> Result<(), ConnectorError> {
        if self.numbers.is_none() {
            return Ok(());
        }
        let schema = self.schema(batch);
        let needed: BTreeSet<String> = {
            let (bound, mut topic) = (topics.bind(batch), String::new());
            let n_rows = if topics.constant().is_some() { 1 } else { batch.num_rows() };
            let name = |row| {
                bound.write(row, &mut topic);
                make_topic(&mut topic);
                topic.clone()
            };
            (0..n_rows).map(name).collect()
        };
        if let Some(numbers) = &mut self.numbers {
            for topic in &needed {
                numbers.learn(&schema, topic).await?;
            }
        }
        Ok(())
    }

    /// Everything since the last flush is delivered.
    pub(super) fn flushed(&mut self) {
        if let Some(numbers) = &mut self.numbers {
            numbers.forget_if_many();
        }
        if SCHEMAS_MAX < self.schemas.len() {
            self.schemas.clear();
        }
    }

    /// The payloads of a batch that was prepared.
    pub(super) fn bind<'a>(&'a self, batch: &'a Batch) -> Payloads<'a> {
        let body = match self.encoding {
            Encoding::Avro => Body::Avro(avro::Rows::new(batch.rows())),
            Encoding::Json | Encoding::Arrow => Body::Json(Documents::new(batch)),
        };
        let numbers = self.numbers.as_ref().map(|numbers| {
            let rows = batch.schema();
            let schema = self.schemas.iter().find(|(known, _)| *known == rows);
            schema.and_then(|(_, text)| numbers.of(text))
        });
        Payloads { body, numbers }
    }
}

enum Body<'a> {
    Avro(avro::Rows),
    Json(Documents<'a>),
}

/// The payloads of a batch's rows.
pub(super) struct Payloads<'a> {
    body: Body<'a>,
    /// `None` without a registry.
    numbers: Option<Option<&'a ByTopic>>,
}

impl Payloads<'_> {
    /// Writes the payload of a row over `out`. False if its schema has no number, which is a bug: it was prepared.
    pub(super) fn write(&self, row: usize, topic: &str, out: &mut Vec<u8>) -> bool {
        out.clear();
        if let Some(numbers) = self.numbers {
            let Some(number) = numbers.and_then(|numbers| numbers.get(topic)) else { return false };
            out.push(0);
            out.extend_from_slice(&number.to_be_bytes());
        }
        match &self.body {
            Body::Avro(rows) => rows.write(row, out),
            Body::Json(documents) => documents.write(row, out),
        }
        true
    }
}
