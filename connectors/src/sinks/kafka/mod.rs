//! Rows into Kafka topics.
//!
//! The client library batches, compresses and sends on threads of its own. A flush waits until the broker has
//! confirmed every message; what it refuses for good becomes a reject. With a transactional id, a flush is the end of
//! a transaction (see `transactions`).

mod avro;
mod config;
mod deliveries;
mod encode;
mod ipc;
mod registry;
mod topic;
mod transactions;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError};
use logdrive_schemas::{Batch, Epoch, Reject};
use prometheus::IntCounter;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, PurgeConfig, ThreadedProducer};

pub use self::config::{Compression, Kafka, KafkaBatch, Partitioner};
use self::deliveries::{Deliveries, Outcome, Reports, Row, is_about_the_message, is_about_the_topic, opaque};
use self::encode::Encoder;
pub use self::encode::Encoding;
use self::ipc::{Bounds, Message};
pub use self::registry::SchemaRegistry;
use self::topic::make_topic;
use self::transactions::Transactions;
use super::http_rejects::{Refused, merge};
use super::text::Text;
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::kafka::is_refusal;
use crate::kafka::oauth::{Login, Tokens};
use crate::sink::{FlushPolicy, Guarantee, Reads, Sink, SinkConfig};

/// How long a broker may take to answer when the sink connects.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long a full queue is waited for before it is tried again, if nobody says that there is room.
const FULL_WAIT: Duration = Duration::from_millis(20);

/// What is made of every row besides its document.
#[derive(Debug)]
struct Texts {
    topic: Text,
    key: Option<Text>,
    headers: Vec<(String, Text)>,
}

impl Component for Kafka {
    const NAME: &'static str = "kafka";
    const EXAMPLE: &'static str = r#"
type: kafka
from: [events]
endpoint: ["localhost:9092"]
topic: "events-{tenant}"
key: "{customer}"
"#;
}

impl SinkConfig for Kafka {
    fn guarantee(&self) -> Guarantee {
        match self.transactional_id {
            Some(_) => Guarantee::ExactlyOnce,
            None => Guarantee::AtLeastOnce,
        }
    }

    fn reads(&self) -> Reads {
        if self.encoding != Encoding::Json {
            return Reads::AllColumns;
        }
        let Ok(texts) = self.texts() else { return Reads::Document(Vec::new()) };
        let of_headers = texts.headers.iter().map(|(_, text)| text);
        let all = [&texts.topic].into_iter().chain(&texts.key).chain(of_headers);
        Reads::Document(all.flat_map(Text::columns).collect())
    }

    fn build(self, cx: &ConnectorContext) -> Result<Box<dyn Sink>, ConfigError> {
        self.check()?;
        let labels = &[&*cx.name];
        Ok(Box::new(KafkaSink {
            client: self.client(cx)?,
            tokens: self.tokens()?,
            encoder: Encoder::new(self.encoding, self.schema_registry.as_ref())?,
            bounds: Bounds { bytes: self.payload_bytes_max(), rows: usize::MAX },
            groups: HashMap::new(),
            texts: self.texts()?,
            transactions: self.transactions(cx)?,
            endpoint: self.endpoint.join(","),
            name: Arc::clone(&cx.name),
            policy: FlushPolicy {
                bytes_max: usize::try_from(self.batch.max_bytes).unwrap_or(usize::MAX),
                age_max: self.batch.timeout,
            },
            link: None,
            was_let_in: false,
            batches: Vec::new(),
            skipped: HashSet::new(),
            n_rows: 0,
            duplicates: cx.metrics.sink_duplicates.with_label_values(labels),
            rows: cx.metrics.sink_rows.with_label_values(labels),
            bytes: cx.metrics.sink_bytes.with_label_values(labels),
        }))
    }
}

/// A producer, and what became of what it was given.
struct Link {
    producer: ThreadedProducer<Reports>,
    deliveries: Arc<Deliveries>,
}

struct KafkaSink {
    client: ClientConfig,
    tokens: Option<Arc<Tokens>>,
    encoder: Encoder,
    bounds: Bounds,
    /// Messages of several rows, by the first of them.
    groups: HashMap<Row, Vec<usize>>,
    texts: Texts,
    transactions: Option<Transactions>,
    endpoint: String,
    name: Arc<str>,
    policy: FlushPolicy,
    link: Option<Link>,
    /// Whether the brokers let us in before: what they refuse now may pass.
    was_let_in: bool,
    /// Since the last flush, for rejects; bounded by its policy.
    batches: Vec<Batch>,
    /// Rows that are not sent again, because they are delivered or refused.
    skipped: HashSet<Row>,
    n_rows: u64,
    duplicates: IntCounter,
    rows: IntCounter,
    bytes: IntCounter,
}

/// Makes a producer that reaches a broker. One for transactions ends those that an earlier process left open, and
/// that process too, if it is still there.
fn open(
    client: &ClientConfig,
    name: &Arc<str>,
    endpoint: &str,
    topic: Option<&str>,
    login: &Arc<Login>,
) -> Result<Link, ConnectorError> {
    let deliveries = Arc::new(Deliveries::default());
    let reports =
        Reports { name: Arc::clone(name), deliveries: Arc::clone(&deliveries), login: Arc::clone(login) };
    let producer: ThreadedProducer<Reports> = client
        .create_with_context(reports)
        .map_err(|error| ConnectorError::refused(endpoint, error.to_string()))?;
    let transactional = client.get("transactional.id").is_some();
    let reached = producer.client().fetch_metadata(topic, CONNECT_MAX).map(drop);
    match reached.and_then(|()| if transactional { producer.init_transactions(CONNECT_MAX) } else { Ok(()) })
    {
        Ok(()) => Ok(Link { producer, deliveries }),
        Err(error) => Err(match (login.failure(), deliveries.refusal()) {
            (Some(reason), _) => ConnectorError::disconnected(endpoint, reason),
            (None, Some(reason)) => ConnectorError::refused(endpoint, reason),
            (None, None) if is_refusal(&error) => ConnectorError::refused(endpoint, error.to_string()),
            (None, None) => ConnectorError::disconnected(endpoint, error),
        }),
    }
}

impl KafkaSink {
    /// The far end cannot take anything now; or never again from this process.
    fn lost(&self, error: impl Into<crate::error::BoxError>) -> ConnectorError {
        let fatal = self.link.as_ref().and_then(|link| link.producer.client().fatal_error());
        match fatal {
            Some((RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced, _)) => {
                ConnectorError::refused(
                    &self.endpoint,
                    "another process has taken over this `transactional_id`; each needs one of its own",
                )
            }
            _ => ConnectorError::disconnected(&self.endpoint, error),
        }
    }

    fn has_refused(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.deliveries.has_refused())
    }

    fn producer(&self) -> Result<ThreadedProducer<Reports>, ConnectorError> {
        self.link.as_ref().map(|link| link.producer.clone()).ok_or_else(|| self.lost("not connected"))
    }

    /// Opens a transaction, if this sink has them and none is open.
    async fn begin(&mut self) -> Result<(), ConnectorError> {
        let producer = self.producer()?;
        let Some(transactions) = &mut self.transactions else { return Ok(()) };
        let began = transactions.begin(producer).await;
        began.map_err(|error| self.lost(error))
    }

    async fn commit(&mut self) -> Result<(), ConnectorError> {
        let producer = self.producer()?;
        let Some(transactions) = &mut self.transactions else { return Ok(()) };
        let committed = transactions.commit(producer).await;
        committed.map_err(|error| self.lost(error))
    }

    /// Notes which rows of a batch an earlier transaction has brought, and how far this one comes.
    async fn skip(&mut self, number: usize) -> Result<(), ConnectorError> {
        let Some(transactions) = &mut self.transactions else { return Ok(()) };
        let batch = &self.batches[number];
        let marked = transactions.mark(batch.origin()).await;
        let mark = marked.map_err(|error| ConnectorError::disconnected(&self.endpoint, error))?;
        let offsets = batch.offsets().values();
        let n_skipped = mark.map_or(0, |mark| offsets.partition_point(|offset| *offset < mark));
        if let Some(last) = offsets[n_skipped..].last() {
            transactions.note(batch.origin(), last + 1);
        }
        self.skipped.extend((0..n_skipped).map(|row| (number, row)));
        self.n_rows -= n_skipped as u64;
        self.duplicates.inc_by(n_skipped as u64);
        Ok(())
    }

    /// A transaction with a refused message can only be aborted, and a broker refuses whole groups of messages. So
    /// all is sent again by a producer that makes no groups, without what is refused, until nothing is. Every round
    /// learns of one row at least.
    async fn without_refused(
        &mut self,
        mut refused: Vec<(Row, RDKafkaErrorCode)>,
    ) -> Result<Vec<(Row, RDKafkaErrorCode)>, ConnectorError> {
        let mut singly = self.client.clone();
        singly.set("batch.num.messages", "1");
        loop {
            self.skipped.extend(refused.iter().map(|(row, _)| *row));
            self.groups.clear();
            self.open_link(singly.clone()).await?;
            self.begin().await?;
            let mut sent = Ok(());
            for number in 0..self.batches.len() {
                match self.send(number, None).await {
                    Ok(at_once) => refused.extend(self.alone(at_once)),
                    Err(error) => sent = Err(error),
                }
            }
            let Outcome { refused: more, failed } = self.end_transaction().await?;
            if more.is_empty() {
                sent?;
                return failed.map_or(Ok(refused), |error| Err(self.lost(error)));
            }
            for (row, code) in more {
                match self.groups.get(&row) {
                    // Which of its rows it is about is found by smaller messages.
                    Some(rows) => self.bounds.rows = self.bounds.rows.min(rows.len() / 2),
                    None => refused.push((row, code)),
                }
            }
        }
    }

    /// Makes a producer instead of the one there is. What that still holds is purged: all of it comes again.
    async fn open_link(&mut self, client: ClientConfig) -> Result<(), ConnectorError> {
        let before = self.link.take();
        if let Some(transactions) = &mut self.transactions {
            transactions.reopened();
        }
        let (name, endpoint) = (Arc::clone(&self.name), self.endpoint.clone());
        let topic = self.texts.topic.constant();
        let login = Login::new(self.tokens.as_ref());
        let opening = tokio::task::spawn_blocking(move || {
            drop(before);
            open(&client, &name, &endpoint, topic.as_deref(), &login)
        });
        self.link = Some(opening.await.map_err(|error| self.lost(error))??);
        Ok(())
    }

    /// Waits until everything is confirmed, or something is refused: then nothing of the transaction is wanted any more,
    /// and what has not left yet would wait until its time is over.
    async fn end_transaction(&self) -> Result<Outcome, ConnectorError> {
        let Some(link) = &self.link else { return Err(self.lost("not connected")) };
        link.deliveries.settled_or_refused().await;
        if link.deliveries.has_refused() {
            link.producer.purge(PurgeConfig::default().queue().inflight());
        }
        Ok(link.deliveries.settled().await)
    }

    /// Ends a transaction, without the rows that are refused.
    async fn settle_transaction(&mut self) -> Result<Vec<(Row, RDKafkaErrorCode)>, ConnectorError> {
        let Outcome { refused, failed } = self.end_transaction().await?;
        if refused.is_empty() {
            if let Some(error) = failed {
                return Err(self.lost(error));
            }
            self.commit().await?;
            return Ok(refused);
        }
        // Which of a group it is about is not known yet.
        let refused = self.without_refused(Vec::new()).await?;
        self.commit().await?;
        // Nothing may fail behind the commit: these rows are known from now on, and their rejects would be lost. Without a
        // producer the next row fails, and `connect` makes one.
        if let Err(error) = self.open_link(self.client.clone()).await {
            tracing::debug!(sink = %self.name, %error, "Cannot make a producer; trying again.");
        }
        Ok(refused)
    }

    /// Those of refused messages that are of one row; of the others smaller ones will be made.
    fn alone(&mut self, refused: Vec<(Row, RDKafkaErrorCode)>) -> Vec<(Row, RDKafkaErrorCode)> {
        let mut alone = Vec::new();
        for (row, code) in refused {
            match self.groups.get(&row) {
                Some(rows) => self.bounds.rows = self.bounds.rows.min(rows.len() / 2),
                None => alone.push((row, code)),
            }
        }
        alone
    }

    /// Hands rows of a batch to the library; `only` some of them, or all. What it refuses at once, by the first row of
    /// each message.
    async fn send(
        &mut self,
        number: usize,
        only: Option<&[usize]>,
    ) -> Result<Vec<(Row, RDKafkaErrorCode)>, ConnectorError> {
        let Some(link) = &self.link else { return Err(self.lost("not connected")) };
        let Some(batch) = self.batches.get(number) else { return Ok(Vec::new()) };
        let is_wanted = |row: &usize| !self.skipped.contains(&(number, *row));
        let rows: Vec<usize> = match only {
            Some(only) => only.iter().copied().filter(is_wanted).collect(),
            None => (0..batch.num_rows()).filter(is_wanted).collect(),
        };
        let keys = self.texts.key.as_ref().map(|key| key.bind(batch));
        let headers: Vec<_> =
            self.texts.headers.iter().map(|(name, text)| (name, text.bind(batch))).collect();
        let mut value = String::new();
        let mut headers_of = |row: usize| {
            let mut given = OwnedHeaders::new_with_capacity(headers.len());
            for (name, text) in &headers {
                if text.write(row, &mut value) {
                    given = given.insert(Header { key: name, value: Some(value.as_bytes()) });
                }
            }
            given
        };
        let mut key = String::new();
        let mut refused = Vec::new();
        if self.encoder.encoding == Encoding::Arrow {
            let made = ipc::messages(batch, &rows, &self.texts.topic, self.bounds);
            for Message { rows, topic, payload } in made.map_err(|error| self.lost(error))? {
                let first = rows[0];
                let mut record =
                    BaseRecord::with_opaque_to(&topic, opaque((number, first))).payload(payload.as_slice());
                if keys.as_ref().is_some_and(|keys| keys.write(first, &mut key)) {
                    record = record.key(key.as_bytes());
                }
                if !headers.is_empty() {
                    record = record.headers(headers_of(first));
                }
                if rows.len() > 1 {
                    self.groups.insert((number, first), rows);
                }
                if let Some(code) = self.hand_over(link, record).await? {
                    refused.push(((number, first), code));
                }
                self.bytes.inc_by(payload.len() as u64);
            }
            return Ok(refused);
        }
        let payloads = self.encoder.bind(batch);
        let topics = self.texts.topic.bind(batch);
        let (mut topic, mut payload) = (String::new(), Vec::new());
        for row in rows {
            topics.write(row, &mut topic);
            make_topic(&mut topic);
            if !payloads.write(row, &topic, &mut payload) {
                return Err(self.lost("the number of a schema was not asked for"));
            }
            let mut record =
                BaseRecord::with_opaque_to(&topic, opaque((number, row))).payload(payload.as_slice());
            if keys.as_ref().is_some_and(|keys| keys.write(row, &mut key)) {
                record = record.key(key.as_bytes());
            }
            if !headers.is_empty() {
                record = record.headers(headers_of(row));
            }
            if let Some(code) = self.hand_over(link, record).await? {
                refused.push(((number, row), code));
            }
            self.bytes.inc_by(payload.len() as u64);
        }
        Ok(refused)
    }

    /// Hands a message to the library, waiting while its queue is full. Why it does not take it, if so.
    async fn hand_over(
        &self,
        link: &Link,
        mut record: BaseRecord<'_, [u8], [u8], usize>,
    ) -> Result<Option<RDKafkaErrorCode>, ConnectorError> {
        loop {
            link.deliveries.sent();
            let Err((error, back)) = link.producer.send(record) else { return Ok(None) };
            link.deliveries.not_sent();
            match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => {
                    // All of it will be sent again.
                    if let Some(error) = link.deliveries.failure() {
                        return Err(self.lost(error));
                    }
                    record = back;
                    // Which of the two is of no interest.
                    drop(tokio::time::timeout(FULL_WAIT, link.deliveries.changed()).await);
                }
                Some(code) if is_about_the_message(code) => return Ok(Some(code)),
                _ => return Err(self.lost(error)),
            }
        }
    }

    /// Waits until everything is confirmed. Returns what is refused for good.
    async fn settle(&self) -> Result<Vec<(Row, RDKafkaErrorCode)>, ConnectorError> {
        let Some(link) = &self.link else { return Err(self.lost("not connected")) };
        let Outcome { refused, failed } = link.deliveries.settled().await;
        match failed {
            Some(error) => Err(self.lost(error)),
            None => Ok(refused),
        }
    }

    /// A broker refuses a whole batch of messages for its size, or for one of them: so each is sent alone, and what has
    /// several rows in halves.
    async fn one_by_one(
        &mut self,
        refused: Vec<(Row, RDKafkaErrorCode)>,
    ) -> Result<Vec<(Row, RDKafkaErrorCode)>, ConnectorError> {
        let (mut still, mut open) = (Vec::new(), Vec::new());
        self.sort_out(refused, false, &mut open, &mut still)?;
        // The first of them is the last, so that they come in their order.
        while let Some((batch, rows)) = open.pop() {
            let mut again = self.send(batch, Some(&rows)).await?;
            again.extend(self.settle().await?);
            self.sort_out(again, true, &mut open, &mut still)?;
        }
        Ok(still)
    }

    /// What is to be sent (again), and what is refused for good: rows that were in no group of messages (`was_alone`), or
    /// whose topic cannot be.
    fn sort_out(
        &mut self,
        refused: Vec<(Row, RDKafkaErrorCode)>,
        was_alone: bool,
        open: &mut Vec<(usize, Vec<usize>)>,
        still: &mut Vec<(Row, RDKafkaErrorCode)>,
    ) -> Result<(), ConnectorError> {
        for ((batch, row), code) in refused.into_iter().rev() {
            let rows = self.groups.remove(&(batch, row)).unwrap_or_else(|| vec![row]);
            if is_about_the_topic(code) {
                if self.texts.topic.constant().is_some() {
                    return Err(self.lost(KafkaError::MessageProduction(code)));
                }
                still.extend(rows.into_iter().map(|row| ((batch, row), code)));
            } else if !was_alone {
                open.push((batch, rows));
            } else if rows.len() == 1 {
                still.push(((batch, row), code));
            } else {
                let (first, second) = rows.split_at(rows.len() / 2);
                open.extend([(batch, second.to_vec()), (batch, first.to_vec())]);
            }
        }
        Ok(())
    }

    fn rejects(&self, mut refused: Vec<(Row, RDKafkaErrorCode)>) -> Refused {
        refused.sort_unstable_by_key(|(row, _)| *row);
        let mut groups: Vec<(usize, Vec<Reject>)> = Vec::new();
        for ((batch, idx), code) in refused {
            let reject = Reject { idx, reason: reason(code) };
            match groups.last_mut() {
                Some((last, group)) if *last == batch => group.push(reject),
                _ => groups.push((batch, vec![reject])),
            }
        }
        groups.into_iter().map(|(batch, group)| (self.batches[batch].clone(), group)).collect()
    }
}

/// Why a row is refused.
fn reason(code: RDKafkaErrorCode) -> String {
    let name = if is_about_the_topic(code) { "kafka_topic" } else { "kafka_message" };
    format!("{name}: {code}")
}

#[async_trait]
impl Sink for KafkaSink {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        self.batches.clear();
        self.groups.clear();
        self.bounds.rows = usize::MAX;
        self.n_rows = 0;
        self.skipped.clear();
        if let Some(transactions) = &mut self.transactions {
            transactions.forget();
        }
        match self.open_link(self.client.clone()).await {
            Ok(()) => {}
            Err(ConnectorError::Refused { reason, .. }) if self.was_let_in => return Err(self.lost(reason)),
            Err(error) => return Err(error),
        }
        self.was_let_in = true;
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        self.batches.push(batch.clone());
        self.n_rows += batch.num_rows() as u64;
        let number = self.batches.len() - 1;
        self.encoder.prepare(batch, &self.texts.topic).await?;
        self.skip(number).await?;
        if self.skipped.iter().filter(|(of, _)| *of == number).count() < batch.num_rows() {
            self.begin().await?;
        }
        let refused = match self.send(number, None).await {
            Ok(refused) => refused,
            // The transaction is broken by a row that is refused; the flush sees to it.
            Err(_) if self.transactions.is_some() && self.has_refused() => return Ok(None),
            Err(error) => return Err(error),
        };
        if let Some(link) = &self.link {
            link.deliveries.refuse(refused);
        }
        // Rejects leave with the flush: if that fails, these rows come again.
        Ok(None)
    }

    async fn flush(&mut self, _upto: Epoch) -> Result<Option<Batch>, ConnectorError> {
        let refused = match &self.transactions {
            None => {
                let refused = self.settle().await?;
                self.one_by_one(refused).await?
            }
            Some(_) => self.settle_transaction().await?,
        };
        self.rows.inc_by(self.n_rows - refused.len() as u64);
        let rejects = merge(&self.name, &self.rejects(refused));
        self.batches.clear();
        self.groups.clear();
        self.bounds.rows = usize::MAX;
        self.skipped.clear();
        self.encoder.flushed();
        self.n_rows = 0;
        Ok(rejects)
    }

    fn flush_policy(&self) -> FlushPolicy {
        self.policy
    }

    async fn close(&mut self) -> Result<(), ConnectorError> {
        if let Some(link) = self.link.take() {
            // Dropping it waits for the library's threads.
            drop(tokio::task::spawn_blocking(move || drop(link)).await);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::context;
    use super::*;
    use logdrive_schemas::component::{Limits, Node, parse};

    fn build(yaml: &str) -> Result<Reads, String> {
        let node = Node::parse(yaml.as_bytes(), Limits::default()).map_err(|e| format!("{e:?}"))?;
        let mut errors = Vec::new();
        let config: Kafka = parse(&node, &mut errors).ok_or_else(|| format!("{errors:?}"))?;
        let reads = config.reads();
        config.build(&context("unused".as_ref())).map(|_| reads).map_err(|error| error.message)
    }

    #[test]
    fn it_reads_what_its_texts_name_and_refuses_what_cannot_work() {
        let base = "endpoint: [\"localhost:9092\"]\n";
        let with = |rest: &str| build(&format!("{base}{rest}"));
        let all =
            "topic: \"t-{tenant}-%Y\"\nkey: \"{user}\"\nheaders: { a: \"{b}\", c: d }\ncompression: zstd";
        let columns = ["tenant", "@timestamp", "user", "b"].map(String::from);
        assert_eq!(with(all), Ok(Reads::Document(columns.into())));
        for (rest, named) in [
            ("topic: \"no topic\"", "no topic"),
            ("topic: \"{x\"", "{x"),
            ("topic: t\nkey: \"{}\"", "{}"),
            ("topic: t\noptions: { acks: 1 }", "acks"),
            ("topic: t\ndelivery_timeout: 0s", "delivery_timeout"),
            ("topic: t\nbatch: { max_bytes: 0 }", "max_bytes"),
            ("topic: t\ntransactional_id: \"\"", "transactional_id"),
            ("topic: t\ntransactional_id: a\ndelivery_timeout: 1h", "delivery_timeout"),
            ("topic: t\nencoding: arrow\nkey: \"{user}\"", "Arrow"),
            (
                "topic: t\nencoding: arrow\nschema_registry: { endpoint: \"http://localhost\" }",
                "schema_registry",
            ),
            ("topic: t\nencoding: protobuf", "protobuf"),
            ("topic: t\nsasl: { mechanism: PLAIN, username: u }", "password"),
            ("topic: t\nsasl: { mechanism: OAUTHBEARER, username: u, password: p }", "oauth"),
            ("topic: t\nsasl: { mechanism: OAUTHBEARER, oauth: { client_id: a } }", "token_file"),
        ] {
            let error = with(rest).unwrap_err();
            assert!(error.contains(named), "{rest}: {error}");
        }
    }
}
