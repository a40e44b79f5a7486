//! The receiver against a broker that says what the test wants: real ones do not break where it matters.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rumqttc::mqttbytes::{QoS, v4};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Mqtt;
use crate::context::ConnectorContext;
use crate::metrics::Metrics;
use crate::source::{Intake, NotDurable, Received, SourceConfig as _, SourceKind};

/// No single wait is longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// One connection, at the broker's end.
struct Peer {
    stream: TcpStream,
    bytes: BytesMut,
}

impl Peer {
    /// Accepts a client and answers its CONNECT.
    async fn accept(listener: &TcpListener, session_present: bool) -> Self {
        let stream = soon(listener.accept()).await.unwrap().0;
        let mut peer = Self { stream, bytes: BytesMut::new() };
        let v4::Packet::Connect(connect) = peer.next().await else { panic!("a client connects first") };
        assert!(!connect.clean_session, "the session is kept");
        peer.send(v4::Packet::ConnAck(v4::ConnAck::new(v4::ConnectReturnCode::Success, session_present)))
            .await;
        peer
    }

    async fn send(&mut self, packet: v4::Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, usize::MAX).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn publish(&mut self, id: u16, qos: QoS, payload: &str) {
        let mut publish = v4::Publish::new("t", qos, payload);
        publish.pkid = id;
        self.send(v4::Packet::Publish(publish)).await;
    }

    async fn next(&mut self) -> v4::Packet {
        loop {
            match v4::Packet::read(&mut self.bytes, 1 << 20) {
                Ok(packet) => return packet,
                Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) => {
                    assert_ne!(soon(self.stream.read_buf(&mut self.bytes)).await.unwrap(), 0, "closed");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Grants what the client subscribes to.
    async fn subscribed(&mut self, qos: QoS) {
        let v4::Packet::Subscribe(subscribe) = self.next().await else { panic!("it subscribes") };
        let granted = vec![v4::SubscribeReasonCode::Success(qos)];
        self.send(v4::Packet::SubAck(v4::SubAck::new(subscribe.pkid, granted))).await;
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("in time")
}

/// A source of a broker that is the test.
async fn start(
    qos: u8,
    extra: &str,
) -> (TcpListener, mpsc::Receiver<Received>, ConnectorContext, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cx = ConnectorContext {
        name: "m".into(),
        state_dir: dir.path().to_owned(),
        metrics: Arc::new(Metrics::new()),
        shutdown: CancellationToken::new(),
    };
    let port = listener.local_addr().unwrap().port();
    let yaml = format!(
        "endpoint: \"mqtt://127.0.0.1:{port}\"\ntopics: [\"#\"]\nqos: {qos}\nversion: 3.1.1\n{extra}"
    );
    let node = logdrive_schemas::component::Node::parse(yaml.as_bytes(), Default::default()).unwrap();
    let config = logdrive_schemas::component::parse::<Mqtt>(&node, &mut Vec::new()).unwrap();
    let SourceKind::Listener(mut source) = config.build(&cx).unwrap() else { panic!("it needs the buffer") };
    source.bind().await.unwrap();
    let (intake, received) = Intake::channel(8);
    tokio::spawn(source.run(intake));
    (listener, received, cx, dir)
}

fn text(received: &Received) -> String {
    String::from_utf8(received.data.to_vec()).unwrap()
}

#[tokio::test]
async fn a_message_is_taken_once_whatever_becomes_of_its_confirmation() {
    let (listener, mut received, _cx, _dir) = start(2, "").await;
    let mut broker = Peer::accept(&listener, false).await;
    broker.subscribed(QoS::ExactlyOnce).await;
    broker.publish(5, QoS::ExactlyOnce, "one").await;
    let one = soon(received.recv()).await.unwrap();
    assert_eq!(text(&one), "one");
    drop(broker);

    // Kept only after the connection broke: the broker sends it again, and is told over the new connection.
    let mut broker = Peer::accept(&listener, true).await;
    broker.publish(5, QoS::ExactlyOnce, "one").await;
    one.ack.unwrap().send(Ok(())).unwrap();
    assert_eq!(broker.next().await, v4::Packet::PubRec(v4::PubRec::new(5)));
    drop(broker);

    // The confirmation did not arrive: it is known that the message is kept.
    let mut broker = Peer::accept(&listener, true).await;
    broker.publish(5, QoS::ExactlyOnce, "one").await;
    assert_eq!(broker.next().await, v4::Packet::PubRec(v4::PubRec::new(5)));
    broker.send(v4::Packet::PubRel(v4::PubRel::new(5))).await;
    assert_eq!(broker.next().await, v4::Packet::PubComp(v4::PubComp::new(5)));
    // An earlier process may have confirmed what this one knows nothing of.
    broker.send(v4::Packet::PubRel(v4::PubRel::new(9))).await;
    assert_eq!(broker.next().await, v4::Packet::PubComp(v4::PubComp::new(9)));
    // The identifier is free again: another message.
    broker.publish(5, QoS::ExactlyOnce, "two").await;
    assert_eq!(text(&soon(received.recv()).await.unwrap()), "two", "and no second `one`");
}

#[tokio::test]
async fn nothing_is_confirmed_that_is_not_kept() {
    let (listener, mut received, cx, _dir) = start(1, "").await;
    let mut broker = Peer::accept(&listener, false).await;
    broker.subscribed(QoS::AtLeastOnce).await;
    broker.publish(1, QoS::AtLeastOnce, "a").await;
    let a = soon(received.recv()).await.unwrap();
    broker.publish(2, QoS::AtLeastOnce, "b").await;
    let b = soon(received.recv()).await.unwrap();
    b.ack.unwrap().send(Ok(())).unwrap();
    assert_eq!(broker.next().await, v4::Packet::PubAck(v4::PubAck::new(2)), "each for itself");
    // What cannot be kept is asked for again: over another connection, since a broker repeats itself only then.
    a.ack.unwrap().send(Err(NotDurable("full".into()))).unwrap();
    let mut broker = Peer::accept(&listener, true).await;
    broker.publish(1, QoS::AtLeastOnce, "a").await;
    let a = soon(received.recv()).await.unwrap();
    assert_eq!(text(&a), "a");
    // The broker has forgotten the client: identifier 1 is another message, which the late answer must not confirm.
    drop(broker);
    let mut broker = Peer::accept(&listener, false).await;
    broker.subscribed(QoS::AtLeastOnce).await;
    broker.publish(1, QoS::AtLeastOnce, "c").await;
    let c = soon(received.recv()).await.unwrap();
    a.ack.unwrap().send(Ok(())).unwrap();
    broker.publish(2, QoS::AtLeastOnce, "d").await;
    soon(received.recv()).await.unwrap().ack.unwrap().send(Ok(())).unwrap();
    assert_eq!(broker.next().await, v4::Packet::PubAck(v4::PubAck::new(2)));
    c.ack.unwrap().send(Ok(())).unwrap();
    assert_eq!(broker.next().await, v4::Packet::PubAck(v4::PubAck::new(1)));
    let errors = cx.metrics.source_errors.with_label_values(&["m", "not_kept"]).get();
    assert_eq!(errors, 1);
    cx.shutdown.cancel();
    assert_eq!(broker.next().await, v4::Packet::Disconnect);
    assert!(soon(received.recv()).await.is_none());
}

#[tokio::test]
async fn a_message_that_is_too_large_is_a_reject_and_no_obstacle() {
    let (listener, mut received, cx, _dir) = start(1, "max_packet_bytes: 4KiB\n").await;
    let mut broker = Peer::accept(&listener, false).await;
    broker.subscribed(QoS::AtLeastOnce).await;
    broker.publish(1, QoS::AtLeastOnce, &"x".repeat(100_000)).await;
    broker.publish(2, QoS::AtLeastOnce, "next").await;
    let mut messages = Vec::new();
    while messages.len() < 2 {
        let group = soon(received.recv()).await.unwrap();
        messages.extend(
            group.messages.iter().map(|m| group.data[m.start as usize..(m.start + m.len) as usize].to_vec()),
        );
        group.ack.unwrap().send(Ok(())).unwrap();
    }
    assert!(messages[0].len() <= 4 << 10 && messages[0].last() == Some(&0xff), "no UTF-8: a reject");
    assert_eq!(messages[1], b"next");
    for id in 1..=2 {
        assert_eq!(broker.next().await, v4::Packet::PubAck(v4::PubAck::new(id)));
    }
    assert_eq!(cx.metrics.source_rejects.with_label_values(&["m", "too_large"]).get(), 1);
}

#[tokio::test]
async fn a_full_buffer_stops_the_reading_and_the_broker_still_hears_of_the_source() {
    let (listener, mut received, _cx, _dir) = start(1, "keep_alive: 1s\n").await;
    let mut broker = Peer::accept(&listener, false).await;
    broker.subscribed(QoS::AtLeastOnce).await;
    for id in 1..=20 {
        broker.publish(id, QoS::AtLeastOnce, "x").await;
        // A group of its own for each, as far as the intake takes them.
        tokio::task::yield_now().await;
    }
    // Nobody takes anything out of the intake.
    for _ in 0..3 {
        assert_eq!(broker.next().await, v4::Packet::PingReq);
        broker.send(v4::Packet::PingResp).await;
    }
    let mut n = 0;
    while n < 20 {
        let group = soon(received.recv()).await.unwrap();
        n += group.messages.len();
        group.ack.unwrap().send(Ok(())).unwrap();
    }
}
