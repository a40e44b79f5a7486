//! A real broker, and what tests do with it besides.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use logdrive_connectors::{Budget, ConnectorContext, ConnectorError, Metrics, SOURCES, Source, SourceKind};
use logdrive_schemas::Chunk;
use logdrive_schemas::component::{Limits, Node};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

/// No single wait is longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A broker on a port of its own, stopped and wiped when dropped.
pub(crate) struct Broker {
    script: PathBuf,
    port: u16,
}

impl Broker {
    /// `None` if it cannot be had here.
    pub(crate) fn start(port: u16) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
        let shared = std::env::var_os("LOGDRIVE_SHARED").map_or(root, PathBuf::from);
        let broker = Self { script: shared.join("components/kafka.sh"), port };
        let ready =
            broker.script.exists() && broker.run("install") && broker.run("wipe") && broker.run("start");
        ready.then_some(broker)
    }

    fn run(&self, verb: &str) -> bool {
        let mut command = Command::new(&self.script);
        command.arg(verb).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if verb != "install" {
            command.arg(self.port.to_string());
        }
        command.status().is_ok_and(|status| status.success())
    }

    /// Stops it; what it holds stays.
    pub(crate) fn pause(&self) {
        assert!(self.run("stop"));
    }

    pub(crate) fn resume(&self) {
        assert!(self.run("start"));
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) async fn topic(&self, name: &str, n_partitions: i32, settings: &[(&str, &str)]) {
        let config = ClientConfig::from_iter([("bootstrap.servers".to_owned(), self.address())]);
        let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
        let mut topic = NewTopic::new(name, n_partitions, TopicReplication::Fixed(1));
        for (key, value) in settings {
            topic = topic.set(key, value);
        }
        let made = admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
        assert!(made.iter().all(Result::is_ok), "{made:?}");
    }

    pub(crate) fn producer(&self, settings: &[(&str, &str)]) -> BaseProducer {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.address()).set("linger.ms", "1");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        config.create().unwrap()
    }

    /// What a group has noted for partition 0 of a topic.
    pub(crate) fn committed(&self, group: &str, topic: &str) -> Option<i64> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.address()).set("group.id", group);
        let consumer: BaseConsumer = config.create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, 0);
        let list = consumer.committed_offsets(list, PATIENCE).unwrap();
        match list.elements()[0].offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }
    }

    /// Sends texts to a partition, each with a key and a header.
    pub(crate) fn send(&self, topic: &str, partition: i32, texts: &[String]) {
        let producer = self.producer(&[]);
        put(&producer, topic, partition, texts);
        producer.flush(PATIENCE).unwrap();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.run("stop");
        self.run("wipe");
    }
}

/// Hands texts to a producer, waiting while it has no room.
pub(crate) fn put(producer: &BaseProducer, topic: &str, partition: i32, texts: &[String]) {
    for text in texts {
        let headers = || OwnedHeaders::new().insert(Header { key: "trace", value: Some("t1") });
        let mut record = BaseRecord::to(topic).partition(partition).key("k").payload(text).headers(headers());
        while let Err((_, back)) = producer.send(record) {
            producer.poll(Duration::from_millis(10));
            record = back;
        }
    }
}

/// Texts with numbers.
pub(crate) fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("{{\"n\":{n}}}")).collect()
}

/// A source called `in`, as a pipeline would build it.
pub(crate) fn source(yaml: &str) -> (Box<dyn Source>, ConnectorContext) {
    let cx = ConnectorContext {
        name: "in".into(),
        state_dir: "unused".into(),
        metrics: Arc::new(Metrics::new()),
        shutdown: CancellationToken::new(),
    };
    let node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
    let entry = SOURCES.iter().find(|entry| entry.name == "kafka").unwrap();
    match (entry.build)(&node, &cx) {
        Ok(SourceKind::Log(source)) => (source, cx),
        Ok(SourceKind::Listener(_)) => panic!("it has a log of its own"),
        Err(errors) => panic!("{errors:?}"),
    }
}

/// The next chunk, unless there is none within `limit`.
pub(crate) async fn recv(source: &mut dyn Source, limit: Duration) -> Option<Chunk> {
    match tokio::time::timeout(limit, source.recv(Budget::default())).await {
        Ok(Ok(chunk)) => Some(chunk),
        Ok(Err(error)) => panic!("{error}"),
        Err(_) => None,
    }
}

/// Chunks until they hold this many messages.
pub(crate) async fn recv_messages(source: &mut dyn Source, n_messages: usize) -> Vec<Chunk> {
    let (mut chunks, mut n) = (Vec::new(), 0);
    while n < n_messages {
        let chunk = recv(source, PATIENCE).await;
        let chunk = chunk.unwrap_or_else(|| panic!("{n} of {n_messages} messages, then none"));
        n += chunk.messages.len();
        chunks.push(chunk);
    }
    assert_eq!(n, n_messages);
    chunks
}

pub(crate) fn texts(chunks: &[Chunk]) -> Vec<String> {
    let of = |chunk: &Chunk| {
        (0..chunk.messages.len())
            .map(|n| String::from_utf8(chunk.message(n).into()).unwrap())
            .collect::<Vec<_>>()
    };
    chunks.iter().flat_map(of).collect()
}

/// Connects, trying again as the runtime does.
pub(crate) async fn connect(source: &mut dyn Source) {
    for _ in 0..10 {
        match source.connect(&[]).await {
            Ok(()) => return,
            Err(ConnectorError::Disconnected { .. }) => tokio::time::sleep(Duration::from_millis(200)).await,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("cannot connect");
}
