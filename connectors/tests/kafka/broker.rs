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

use crate::certificates::Certificates;
use crate::support::proxy::Proxy;

/// No single wait is longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A broker on a port of its own, stopped and wiped when dropped.
pub(crate) struct Broker {
    script: PathBuf,
    port: u16,
    /// Certificates of the secure listener.
    pub(crate) certificates: Certificates,
}

/// From the port of the broker: its secure listener, the one that is reached through a proxy, and that proxy.
const SECURE: u16 = 2;
const FAULTY: u16 = 3;
const PROXY: u16 = 4;
/// Who may use the secure listener.
pub(crate) const USER: &str = "shop";
pub(crate) const PASSWORD: &str = "t0psecret";

/// What looks at tokens that nobody has signed.
const UNSECURED: &str = "org.apache.kafka.common.security.oauthbearer.internals.unsecured.\
                         OAuthBearerUnsecuredValidatorCallbackHandler";

impl Broker {
    /// `None` if it cannot be had here.
    pub(crate) fn start(port: u16) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
        let shared = std::env::var_os("LOGDRIVE_SHARED").map_or(root, PathBuf::from);
        let script = shared.join("components/kafka.sh");
        let broker = Self { script, port, certificates: Certificates::new() };
        let ready =
            broker.script.exists() && broker.run("install") && broker.run("wipe") && broker.run("start");
        ready.then_some(broker)
    }

    /// Its configuration beside the script's.
    fn settings(&self) -> String {
        let (port, controller) = (self.port, self.port + 1);
        let (secure, faulty, proxy) = (port + SECURE, port + FAULTY, port + PROXY);
        let pem = |name: &str| std::fs::read_to_string(self.certificates.path(name)).unwrap();
        let store = self.certificates.path("store.pem");
        std::fs::write(&store, pem("server.key") + &pem("server.pem")).unwrap();
        // The script's separator is written as an escape.
        let login = |module: &str, rest: &str| {
            format!("org.apache.kafka.common.security.{module} required{rest}\\u003b")
        };
        let plain = login("plain.PlainLoginModule", &format!(" user_{USER}=\"{PASSWORD}\""));
        let scram = login("scram.ScramLoginModule", "");
        let bearer = login(
            "oauthbearer.OAuthBearerLoginModule",
            " unsecuredLoginStringClaim_sub=\"broker\" unsecuredValidatorRequiredScope=\"kafka\"",
        );
        [
            format!(
                "listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},\
                 SECURE://127.0.0.1:{secure},FAULTY://127.0.0.1:{faulty}"
            ),
            format!(
                "advertised.listeners=PLAINTEXT://127.0.0.1:{port},SECURE://localhost:{secure},\
                 FAULTY://127.0.0.1:{proxy}"
            ),
            "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL,\
             FAULTY:PLAINTEXT"
                .into(),
            "inter.broker.listener.name=PLAINTEXT".into(),
            "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER".into(),
            "listener.name.secure.ssl.keystore.type=PEM".into(),
            format!("listener.name.secure.ssl.keystore.location={}", store.display()),
            format!("listener.name.secure.plain.sasl.jaas.config={plain}"),
            format!("listener.name.secure.oauthbearer.sasl.jaas.config={bearer}"),
            "listener.name.secure.oauthbearer.connections.max.reauth.ms=5000".into(),
            format!("listener.name.secure.oauthbearer.sasl.server.callback.handler.class={UNSECURED}"),
            format!("listener.name.secure.scram-sha-256.sasl.jaas.config={scram}"),
            format!("listener.name.secure.scram-sha-512.sasl.jaas.config={scram}"),
        ]
        .join(";")
    }

    /// Lets a user in by a mechanism that keeps no password.
    pub(crate) fn add_user(&self, mechanism: &str) -> bool {
        let mut command = Command::new(&self.script);
        command.args(["tool", "kafka.admin.ConfigCommand", "--bootstrap-server", &self.address(), "--alter"]);
        command.args(["--add-config", &format!("{mechanism}=[password={PASSWORD}]")]);
        command.args(["--entity-type", "users", "--entity-name", USER]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// Where TLS and a password are asked for.
    pub(crate) fn secure(&self) -> String {
        format!("localhost:{}", self.port + SECURE)
    }

    /// The bad way to it.
    pub(crate) async fn proxy(&self) -> Proxy {
        let at = |port: u16| ([127, 0, 0, 1], self.port + port).into();
        Proxy::start_at(at(PROXY), at(FAULTY), None).await
    }

    fn run(&self, verb: &str) -> bool {
        let mut command = Command::new(&self.script);
        command
            .arg(verb)
            .env("KAFKA_EXTRA", self.settings())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
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
