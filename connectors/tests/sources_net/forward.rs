//! `forward`: chunks and their acknowledgements, handshakes, hostile frames, and the Fluentd project's own client.

use std::io::{Write as _, stdout};
use std::process::Stdio;
use std::time::Duration;

use logdrive_connectors::{Intake, NotDurable};
use rmpv::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::certificates::Certificates;
use crate::fluent;
use crate::support::{Collected, DEADLINE, eventually, lines, messages_of, next, start_on_port};

fn forward(more: &str) -> String {
    format!("{{type: forward, listen: \"127.0.0.1:PORT\"{more}}}")
}

fn packed(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, value).unwrap();
    bytes
}

/// A PackedForward of numbered events, which asks for an answer.
fn chunk(name: &str, numbers: std::ops::Range<u64>) -> Vec<u8> {
    let event = |n: u64| {
        let record = Value::Map(vec![("n".into(), n.into()), ("text".into(), "x".repeat(1000).into())]);
        packed(&Value::Array(vec![n.into(), record]))
    };
    let events: Vec<u8> = numbers.flat_map(event).collect();
    let option = Value::Map(vec![("chunk".into(), name.into())]);
    packed(&Value::Array(vec!["app".into(), Value::Binary(events), option]))
}

fn numbers(messages: &[Vec<u8>]) -> Vec<u64> {
    let number = |message: &Vec<u8>| {
        let document: serde_json::Value = serde_json::from_slice(message).unwrap();
        assert_eq!(document["tag"], "app");
        document["n"].as_u64().unwrap()
    };
    messages.iter().map(number).collect()
}

/// The next acknowledgement.
async fn ack(stream: &mut TcpStream, name: &str) {
    let expected = packed(&Value::Map(vec![("ack".into(), name.into())]));
    let mut bytes = vec![0; expected.len()];
    tokio::time::timeout(DEADLINE, stream.read_exact(&mut bytes)).await.expect("an answer in time").unwrap();
    assert_eq!(bytes, expected);
}

/// Twenty bytes must not keep anybody busy for minutes.
#[tokio::test]
async fn a_record_that_says_it_has_billions_of_members_is_one_reject() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(&forward(""), &intake).await;
    let event = b"\x92\x00\xDF\xFF\xFF\xFF\xFF\xA1n\x01".to_vec();
    let frame = packed(&Value::Array(vec!["app".into(), Value::Binary(event)]));
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(&frame.repeat(20)).await.unwrap();
    collected.until(20).await;
    assert_eq!(running.rejects("malformed_event"), 20);
    running.stop().await;
}

#[tokio::test]
async fn a_chunk_is_acknowledged_once_all_of_it_is_durable() {
    let (intake, mut received) = Intake::channel(10);
    let (running, addr) = start_on_port(&forward(""), &intake).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // Three groups, and nothing behind the first of them is answered before.
    stream.write_all(&chunk("first", 0..3000)).await.unwrap();
    stream.write_all(&chunk("second", 3000..3001)).await.unwrap();
    let mut found = Vec::new();
    let mut acks = Vec::new();
    while found.len() < 3001 {
        let group = next(&mut received).await;
        found.extend(numbers(&messages_of(&group)));
        acks.extend(group.ack);
    }
    assert_eq!(found, (0..3001).collect::<Vec<_>>());
    assert!(acks.len() > 2);
    let last = acks.remove(acks.len() - 2);
    acks.into_iter().for_each(|ack| ack.send(Ok(())).unwrap());
    let early = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut [0; 9])).await;
    assert!(early.is_err(), "acknowledged although a part is not durable");
    last.send(Ok(())).unwrap();
    ack(&mut stream, "first").await;
    ack(&mut stream, "second").await;
    running.stop().await;
}

#[tokio::test]
async fn what_is_not_durable_is_not_acknowledged() {
    let (collected, intake) = Collected::answering(|| Err(NotDurable("the disk is gone".into())));
    let (running, addr) = start_on_port(&forward(""), &intake).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(&chunk("c", 0..10)).await.unwrap();
    assert_eq!(collected.until(10).await.len(), 10);
    let n = tokio::time::timeout(DEADLINE, stream.read(&mut [0; 9])).await.expect("an end in time");
    assert!(matches!(n, Ok(0) | Err(_)));
    running.stop().await;
}

#[tokio::test]
async fn hostile_frames_end_their_connection_alone() {
    let (collected, intake) = Collected::all();
    let limits = ", max_chunk_bytes: 64KiB, max_expanded_bytes: 64KiB, max_message_bytes: 4KiB";
    let (running, addr) = start_on_port(&forward(limits), &intake).await;
    let bomb = {
        let option = Value::Map(vec![("compressed".into(), "gzip".into())]);
        let bytes = crate::support::gzip(&vec![0x90; 1 << 20]);
        packed(&Value::Array(vec!["a".into(), Value::Binary(bytes), option]))
    };
    let hostile = [
        ("malformed_frame", b"\xC1".to_vec()),
        ("malformed_frame", b"GET / HTTP/1.1\r\n".to_vec()),
        ("malformed_frame", packed(&Value::Array(vec![1.into(), 2.into(), 3.into()]))),
        ("frame_too_long", b"\x93\xA1a\xDB\xFF\xFF\xFF\xFF".to_vec()),
        ("frame_too_long", b"\xDD\xFF\xFF\xFF\xFF".to_vec()),
        ("expansion", bomb),
    ];
    let mut expected = std::collections::BTreeMap::<_, u64>::new();
    for (reason, bytes) in hostile {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let n = tokio::time::timeout(DEADLINE, stream.read(&mut [0; 9])).await.expect("an end in time");
        assert!(matches!(n, Ok(0) | Err(_)), "{reason}");
        *expected.entry(reason).or_default() += 1;
        eventually(|| running.refused(reason) == expected[reason]).await;
    }
    // A nested record and a cut one are rejects, and the connection goes on.
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let deep = [&b"\x93\xA3app\x01\x81\xA1a"[..], &[0x91; 500], b"\xC0"].concat();
    stream.write_all(&deep).await.unwrap();
    let cut = Value::Array(vec!["app".into(), Value::Binary(b"\x92\x01\x81\xA1a".to_vec())]);
    stream.write_all(&packed(&cut)).await.unwrap();
    stream.write_all(&chunk("c", 7..8)).await.unwrap();
    ack(&mut stream, "c").await;
    eventually(|| running.rejects("malformed_event") == 2).await;
    let found = collected.until(3).await;
    assert!(found[..2].iter().all(|message| message.ends_with(b"\xFF")), "{:?}", lines(&found));
    assert_eq!(numbers(&found[2..]), [7]);
    running.stop().await;
}

#[tokio::test]
async fn with_a_key_nobody_sends_without_a_handshake() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(&forward(", shared_key: k"), &intake).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(&chunk("c", 0..10)).await.unwrap();
    let mut said = Vec::new();
    // The connection is closed in the middle of what was sent.
    stream.read_to_end(&mut said).await.ok();
    eventually(|| running.refused("no_handshake") == 1).await;
    assert_eq!(collected.len(), 0);
    running.stop().await;
}

/// Fluentd's client sends numbered events, all of which are acknowledged.
async fn client_sends(mode: &str, source: &str, options: &str) {
    let test = format!("fluent-logger {mode}");
    let program = match fluent::program() {
        Ok(program) => program,
        Err(why) => return writeln!(&mut stdout(), "skipped: {test}: {why}").unwrap(),
    };
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(&forward(source), &intake).await;
    let mut command = fluent::command(&program, addr.port(), mode, 2000, options);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(fluent::acked(&said).len(), 2000, "{test}: {}", String::from_utf8_lossy(&output.stderr));
    let mut found = numbers(&collected.until(2000).await);
    found.sort_unstable();
    assert_eq!(found, (0..2000).collect::<Vec<_>>(), "{test}");
    let document: serde_json::Value = serde_json::from_slice(&collected.now()[0]).unwrap();
    assert!(document["@timestamp"].as_str().is_some_and(|time| time.starts_with("20")), "{document}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_projects_own_client_is_understood() {
    for mode in ["Message", "Forward", "PackedForward", "CompressedPackedForward"] {
        client_sends(mode, "", "{}").await;
    }
    let users = ", shared_key: k, users: { u: p }";
    let security =
        r#"{"security":{"clientHostname":"client","sharedKey":"k","username":"u","password":"p"}}"#;
    client_sends("PackedForward", users, security).await;
    let certificates = Certificates::new();
    let ca = certificates.path("ca.pem").display().to_string();
    client_sends("Forward", &format!(", {}", certificates.tls("")), &format!("{{\"ca\":\"{ca}\"}}")).await;
}
