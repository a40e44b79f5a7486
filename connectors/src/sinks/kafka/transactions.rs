//! Transactions, and the marks that make a repeated row known.
//!
//! What is sent between two flushes is one transaction, and so are the offsets behind it: for every source and
//! partition that rows came from, the offset behind the last one, as an offset of a consumer group that has no
//! members, `<transactional id>-<source>`. Messages and marks become visible together or not at all. This is not the
//! source's own group: other sinks may be behind, and its offsets are committed only when all of them have the rows.
//!
//! Why that is exactly once. The runtime gives a sink the rows of a partition in the order of their offsets, and
//! flushes whole epochs only, so that a mark says: everything before it is in committed transactions. Before the first
//! row, `init_transactions` ends what an earlier process with this id left open (a commit that had begun is carried
//! out, everything else is aborted) and fences that process: its transactions fail from then on. After that the marks
//! do not change but by us. They are asked for as stable offsets (`read_committed`), so a commit that is being carried
//! out is waited for. A row before its mark is in a committed transaction and is skipped; one behind it is in none.
//! When a commit fails in doubt, the sink connects again and reads the marks, which tell.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use logdrive_schemas::{Origin, Partition};
use rdkafka::client::OAuthToken;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{Producer as _, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};

use super::deliveries::Reports;
use crate::error::BoxError;
use crate::kafka::oauth::{Login, Tokens};
use crate::source::partition_of;

type Producer = ThreadedProducer<Reports>;

/// How long the library is asked to wait at once.
const STEP: Duration = Duration::from_secs(5);

/// How far the transactions of one source's rows have come.
struct Marks {
    consumer: Arc<BaseConsumer<Reader>>,
    login: Arc<Login>,
    /// Behind what is in committed transactions.
    next: HashMap<Partition, u64>,
    /// Behind what is in the open one, by topic and number.
    progress: BTreeMap<(String, i32), u64>,
}

/// What reads marks.
struct Reader(Arc<Login>);

impl ClientContext for Reader {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.0.token()
    }
}

impl ConsumerContext for Reader {}

pub(super) struct Transactions {
    id: String,
    client: ClientConfig,
    tokens: Option<Arc<Tokens>>,
    patience: Duration,
    is_open: bool,
    marks: HashMap<Arc<str>, Marks>,
}

impl Transactions {
    /// `client` configures what reads marks; `patience` is how long a commit may take.
    pub(super) fn new(
        id: &str,
        client: ClientConfig,
        tokens: Option<Arc<Tokens>>,
        patience: Duration,
    ) -> Self {
        Self { id: id.to_owned(), client, tokens, patience, is_open: false, marks: HashMap::new() }
    }

    /// The producer is a new one, which has aborted what the one before had not committed. What was noted stays: the
    /// rows are sent once more.
    pub(super) fn reopened(&mut self) {
        self.is_open = false;
    }

    /// All rows come again: what is known of earlier transactions may be wrong.
    pub(super) fn forget(&mut self) {
        self.is_open = false;
        self.marks.clear();
    }

    /// Rows of this origin before this offset are in committed transactions; `None` if they have no place in Kafka.
    pub(super) async fn mark(&mut self, origin: &Origin) -> Result<Option<u64>, BoxError> {
        let Some((topic, number)) = place(origin) else { return Ok(None) };
        if !self.marks.contains_key(&origin.source) {
            let mut client = self.client.clone();
            client.set("group.id", format!("{}-{}", self.id, origin.source));
            let login = Login::new(self.tokens.as_ref());
            let consumer = Arc::new(client.create_with_context(Reader(Arc::clone(&login)))?);
            let marks = Marks { consumer, login, next: HashMap::new(), progress: BTreeMap::new() };
            self.marks.insert(Arc::clone(&origin.source), marks);
        }
        let Some(marks) = self.marks.get_mut(&origin.source) else { return Ok(None) };
        if let Some(next) = marks.next.get(&origin.partition) {
            return Ok(Some(*next));
        }
        let (consumer, login) = (Arc::clone(&marks.consumer), Arc::clone(&marks.login));
        let patience = self.patience;
        let next = blocking(move || {
            login.serve(&consumer);
            read_mark(&consumer, topic, number, patience)
        })
        .await?;
        if next > 0 {
            let partition = origin.peer.as_deref().unwrap_or_default();
            tracing::info!(partition, next, "Rows before this offset are in committed transactions.");
        }
        marks.next.insert(origin.partition, next);
        Ok(Some(next))
    }

    /// Rows of this origin before `next` are in the open transaction, or in earlier ones.
    pub(super) fn note(&mut self, origin: &Origin, next: u64) {
        if let (Some(place), Some(marks)) = (place(origin), self.marks.get_mut(&origin.source)) {
            let progress = marks.progress.entry(place).or_default();
            *progress = next.max(*progress);
        }
    }

    /// Opens a transaction, unless one is open.
    pub(super) async fn begin(&mut self, producer: Producer) -> Result<(), BoxError> {
        if !self.is_open {
            blocking(move || producer.begin_transaction()).await?;
            self.is_open = true;
        }
        Ok(())
    }

    /// Commits the open transaction with its marks, if there is one.
    pub(super) async fn commit(&mut self, producer: Producer) -> Result<(), BoxError> {
        if !std::mem::take(&mut self.is_open) {
            return Ok(());
        }
        let mut groups = Vec::new();
        for marks in self.marks.values() {
            let mut list = TopicPartitionList::with_capacity(marks.progress.len());
            for ((topic, number), next) in &marks.progress {
                let next = Offset::Offset(i64::try_from(*next).unwrap_or(i64::MAX));
                list.add_partition_offset(topic, *number, next)?;
            }
            if list.count() > 0 {
                groups.push((list, Arc::clone(&marks.consumer)));
            }
        }
        let patience = self.patience;
        blocking(move || {
            for (list, consumer) in &groups {
                let group = consumer.group_metadata().ok_or(KafkaError::Canceled)?;
                again(patience, || producer.send_offsets_to_transaction(list, &group, STEP))?;
            }
            again(patience, || producer.commit_transaction(STEP))
        })
        .await?;
        for marks in self.marks.values_mut() {
            for ((topic, number), next) in std::mem::take(&mut marks.progress) {
                marks.next.insert(partition_of(&format!("{topic}/{number}")), next);
            }
        }
        Ok(())
    }
}

/// Where rows were in Kafka, if they come from there.
fn place(origin: &Origin) -> Option<(String, i32)> {
    let name =
        origin.peer.as_deref().filter(|name| origin.ordered && partition_of(name) == origin.partition)?;
    let (topic, number) = name.rsplit_once('/')?;
    Some((topic.to_owned(), number.parse().ok()?))
}

fn read_mark(
    consumer: &BaseConsumer<Reader>,
    topic: String,
    number: i32,
    patience: Duration,
) -> KafkaResult<u64> {
    let mut list = TopicPartitionList::new();
    list.add_partition(&topic, number);
    let list = consumer.committed_offsets(list, patience)?;
    let elems = list.elements();
    let Some(elem) = elems.first() else { return Ok(0) };
    elem.error()?;
    match elem.offset() {
        Offset::Offset(next) => Ok(u64::try_from(next).unwrap_or(0)),
        _ => Ok(0),
    }
}

/// The library's calls may be repeated while it says so.
fn again(patience: Duration, call: impl Fn() -> KafkaResult<()>) -> KafkaResult<()> {
    let deadline = Instant::now() + patience;
    loop {
        match call() {
            Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {}
            result => return result,
        }
    }
}

/// On a thread that may wait.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> KafkaResult<T> + Send + 'static,
) -> Result<T, BoxError> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => Ok(result?),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_comes_from_kafka_in_order_has_a_place() {
        let origin = |peer: Option<&str>, name: &str, ordered| Origin {
            source: "in".into(),
            partition: partition_of(name),
            ordered,
            received_at: 0,
            peer: peer.map(Into::into),
        };
        let there = Some(("a/b".to_owned(), 7));
        assert_eq!(place(&origin(Some("a/b/7"), "a/b/7", true)), there);
        assert_eq!(place(&origin(Some("a/b/7"), "a/b/7", false)), None);
        assert_eq!(place(&origin(Some("127.0.0.1/24"), "tcp", true)), None);
        assert_eq!(place(&origin(None, "a/b/7", true)), None);
    }
}
