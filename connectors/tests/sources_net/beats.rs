//! `beats`: windows, acknowledgements, hostile frames, and Elastic's own client.

use std::io::Write as _;
use std::io::stdout;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use logdrive_connectors::{Intake, NotDurable};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::certificates::Certificates;
use crate::lumber;
use crate::support::{Collected, DEADLINE, eventually, lines, messages_of, next, start_on_port};

fn beats(more: &str) -> String {
    format!("{{type: beats, listen: \"127.0.0.1:PORT\"{more}}}")
}

fn frame(head: &[u8], numbers: &[u32], rest: &[u8]) -> Vec<u8> {
    let numbers = numbers.iter().flat_map(|n| n.to_be_bytes());
    head.iter().copied().chain(numbers).chain(rest.iter().copied()).collect()
}

fn json(sequence: u32, text: &str) -> Vec<u8> {
    frame(b"2J", &[sequence, text.len() as u32], text.as_bytes())
}

fn compressed(frames: &[u8]) -> Vec<u8> {
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    zlib.write_all(frames).unwrap();
    let zlib = zlib.finish().unwrap();
    frame(b"2C", &[zlib.len() as u32], &zlib)
}

/// A window of documents, compressed.
fn window(texts: &[String]) -> Vec<u8> {
    let events: Vec<u8> = texts.iter().zip(1..).flat_map(|(text, n)| json(n, text)).collect();
    [frame(b"2W", &[texts.len() as u32], b""), compressed(&events)].concat()
}

/// The next acknowledgement: version and sequence number.
async fn ack(stream: &mut TcpStream) -> (u8, u32) {
    let mut bytes = [0; 6];
    tokio::time::timeout(DEADLINE, stream.read_exact(&mut bytes)).await.expect("an answer in time").unwrap();
    assert_eq!(bytes[1], b'A');
    (bytes[0] - b'0', u32::from_be_bytes(bytes[2..].try_into().unwrap()))
}

#[tokio::test]
async fn a_window_is_acknowledged_once_it_is_durable() {
    let (intake, mut received) = Intake::channel(10);
    let (running, addr) = start_on_port(&beats(", keep_alive: 50ms"), &intake).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let texts: Vec<String> = (0..100).map(|n| format!("{{\"n\":{n}}}")).collect();
    stream.write_all(&window(&texts)).await.unwrap();
    let group = next(&mut received).await;
    assert_eq!(lines(&messages_of(&group)), texts);
    // Until then, signs of life.
    assert_eq!(ack(&mut stream).await, (2, 0));
    assert_eq!(ack(&mut stream).await, (2, 0));
    group.ack.unwrap().send(Ok(())).unwrap();
    loop {
        match ack(&mut stream).await {
            (2, 0) => {}
            done => break assert_eq!(done, (2, 100)),
        }
    }
    // Afterwards, silence.
    let more = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut [0; 6])).await;
    assert!(more.is_err());
    running.stop().await;
}

#[tokio::test]
async fn windows_that_follow_each_other_are_acknowledged_in_order() {
    let (intake, mut received) = Intake::channel(10);
    let (running, addr) = start_on_port(&beats(""), &intake).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    for n in 1..=3 {
        let texts: Vec<String> = (0..n).map(|i| format!("{{\"n\":{i}}}")).collect();
        stream.write_all(&window(&texts)).await.unwrap();
    }
    let mut groups = Vec::new();
    for _ in 0..3 {
        groups.push(next(&mut received).await);
    }
    for group in groups.into_iter().rev() {
        group.ack.unwrap().send(Ok(())).unwrap();
    }
    for n in 1..=3 {
        assert_eq!(ack(&mut stream).await, (2, n));
    }
    running.stop().await;
}

#[tokio::test]
async fn version_1_with_a_window_that_stays() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(&beats(""), &intake).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let event = |n: u32| {
        let text = n.to_string();
        let pairs = [frame(b"", &[4], b"line"), frame(b"", &[text.len() as u32], text.as_bytes())].concat();
        frame(b"1D", &[n, 1], &pairs)
    };
    stream.write_all(&frame(b"1W", &[2], b"")).await.unwrap();
    for first in [10, 12, 14] {
        stream.write_all(&[event(first), event(first + 1)].concat()).await.unwrap();
        assert_eq!(ack(&mut stream).await, (1, first + 1));
    }
    let texts: Vec<String> = (10..16).map(|n| format!("{{\"line\":\"{n}\"}}")).collect();
    assert_eq!(lines(&collected.until(6).await), texts);
    running.stop().await;
}

#[tokio::test]
async fn a_large_window_is_acknowledged_in_parts() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(&beats(""), &intake).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let texts: Vec<String> =
        (0..5000).map(|n| format!("{{\"n\":{n},\"x\":\"{}\"}}", "x".repeat(1000))).collect();
    stream.write_all(&window(&texts)).await.unwrap();
    let (mut last, mut n_acks) = (0, 0);
    while last < 5000 {
        let (_, sequence) = ack(&mut stream).await;
        assert!(sequence > last);
        last = sequence;
        n_acks += 1;
        assert!(collected.len() >= last as usize, "acknowledged before it was handed over");
    }
    assert!((4..=6).contains(&n_acks), "{n_acks}");
    assert_eq!(lines(&collected.now()), texts);
    running.stop().await;
}

#[tokio::test]
async fn what_is_not_durable_is_not_acknowledged() {
    let (_, intake) = Collected::answering(|| Err(NotDurable("no room".into())));
    let (running, addr) = start_on_port(&beats(""), &intake).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(&window(&["{}".into()])).await.unwrap();
    assert_eq!(stream.read(&mut [0; 6]).await.unwrap_or(0), 0);
    eventually(|| running.connections() == 0).await;
    running.stop().await;
}

#[tokio::test]
async fn no_more_than_the_bound_is_read_unacknowledged() {
    let (intake, mut received) = Intake::channel(1000);
    let (running, addr) = start_on_port(&beats(", max_unacknowledged_bytes: 1KiB"), &intake).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let events = [frame(b"2W", &[1], b""), json(1, &format!("\"{}\"", "x".repeat(1000)))].concat();
    let mut n_sent = 0;
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(300), stream.write_all(&events)).await
    {
        written.unwrap();
        n_sent += 1;
        assert!(n_sent < 64 << 10, "64 MiB were taken although nothing is acknowledged");
    }
    assert_eq!(received.len(), 1);
    drop(stream);
    running.cx.shutdown.cancel();
    received.close();
    while received.recv().await.is_some() {}
    running.stop().await;
}

#[tokio::test]
async fn stopping_does_not_wait_for_ever() {
    let (intake, received) = Intake::channel(1);
    let (running, addr) = start_on_port(&beats(""), &intake).await;
    let mut streams = Vec::new();
    // One waits for its acknowledgement, the others for a place in the buffer.
    for _ in 0..3 {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(&window(&["{}".into()])).await.unwrap();
        streams.push(stream);
    }
    eventually(|| running.connections() == 3 && received.len() == 1).await;
    running.stop().await;
}

#[tokio::test]
async fn memory_is_bounded_over_all_connections() {
    let (_, intake) = Collected::all();
    let yaml = beats(", max_buffered_bytes_total: 2MiB");
    let (running, addr) = start_on_port(&yaml, &intake).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let begun = frame(b"2J", &[1, 4 << 20], &vec![b'x'; 1 << 20]);
        stream.write_all(&[frame(b"2W", &[1], b""), begun].concat()).await.ok();
        streams.push(stream);
    }
    eventually(|| running.refused("max_buffered_bytes_total") >= 2).await;
    // Whose connection was closed gives back what it held.
    drop(streams);
    eventually(|| running.connections() == 0).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(&window(&[format!("\"{}\"", "x".repeat(500_000))])).await.unwrap();
    assert_eq!(ack(&mut stream).await, (2, 1));
    running.stop().await;
}

#[tokio::test]
async fn hostile_frames_are_refused() {
    let (collected, intake) = Collected::all();
    let yaml = beats(", max_window: 1000, max_expanded_bytes: 1MiB, idle_timeout: 500ms");
    let (running, addr) = start_on_port(&yaml, &intake).await;
    let w = frame(b"2W", &[1], b"");
    let zeros = json(1, &"0".repeat(4 << 20));
    let cases = [
        ("malformed_frame", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("malformed_frame", b"\x16\x03\x01\x02\x00".to_vec()),
        ("window_size", frame(b"2W", &[u32::MAX], b"")),
        ("window_size", frame(b"2W", &[0], b"")),
        ("event_without_window", json(1, "{}")),
        ("frame_too_long", [&w[..], &frame(b"2J", &[1, u32::MAX], b"")].concat()),
        ("frame_too_long", [&w[..], &frame(b"2C", &[u32::MAX], b"")].concat()),
        ("frame_too_long", [&w[..], &frame(b"2D", &[1, u32::MAX, u32::MAX], b"")].concat()),
        ("nested_compression", [&w[..], &compressed(&compressed(&json(1, "{}")))].concat()),
        ("expansion", [&w[..], &compressed(&zeros)].concat()),
        ("corrupt_compression", [&w[..], &frame(b"2C", &[5], b"hello")].concat()),
        // Cut frames, and then nothing.
        ("idle_timeout", [&w[..], b"2J\0"].concat()),
        ("idle_timeout", [&w[..], &compressed(&json(1, "{}"))[..10]].concat()),
    ];
    for (reason, stream) in &cases {
        let before = running.refused(reason);
        let mut connection = TcpStream::connect(addr).await.unwrap();
        connection.write_all(stream).await.ok();
        eventually(|| running.refused(reason) == before + 1).await;
        connection.read_to_end(&mut Vec::new()).await.ok();
    }
    assert_eq!(collected.len(), 0);
    // One over the limit of an event is a reject, and acknowledged.
    running.stop().await;
    let (running, addr) = start_on_port(&beats(", max_message_bytes: 10B"), &intake).await;
    let mut connection = TcpStream::connect(addr).await.unwrap();
    connection.write_all(&window(&["\"0123456789\"".into(), "{}".into()])).await.unwrap();
    assert_eq!(ack(&mut connection).await, (2, 2));
    assert_eq!(collected.until(2).await, [b"\"012345678\xFF".to_vec(), b"{}".to_vec()]);
    assert_eq!(running.rejects("message_too_long"), 1);
    running.stop().await;
}

/// Runs Elastic's client until it has sent everything; returns the last number that was acknowledged.
async fn send(program: &std::path::Path, addr: SocketAddr, args: &[&str]) -> Option<usize> {
    let child = Command::new(program)
        .args(["-c", &addr.to_string()])
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    lumber::acked(std::str::from_utf8(&output.stdout).unwrap())
}

fn numbers(collected: &Collected) -> Vec<u64> {
    let number = |message: &Vec<u8>| {
        let event: serde_json::Value = serde_json::from_slice(message).unwrap();
        event["n"].as_u64().unwrap()
    };
    collected.now().iter().map(number).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn elastics_client_in_each_of_its_ways() {
    let program = match lumber::lumber() {
        Ok(program) => program,
        Err(why) => {
            return writeln!(&mut stdout(), "skipped: elastics_client_in_each_of_its_ways: {why}").unwrap();
        }
    };
    for args in [
        &["-compress", "0"][..],
        &["-compress", "9", "-batch", "2048"],
        &["-compress", "3", "-batch", "10", "-inflight", "5"],
    ] {
        let (collected, intake) = Collected::all();
        let (running, addr) = start_on_port(&beats(""), &intake).await;
        assert_eq!(send(&program, addr, &[args, &["-n", "10000"]].concat()).await, Some(9999));
        assert_eq!(numbers(&collected), (0..10_000).collect::<Vec<_>>(), "{args:?}");
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn elastics_client_sends_again_what_was_not_durable() {
    let program = match lumber::lumber() {
        Ok(program) => program,
        Err(why) => {
            return writeln!(
                &mut stdout(),
                "skipped: elastics_client_sends_again_what_was_not_durable: {why}"
            )
            .unwrap();
        }
    };
    for args in [&["-inflight", "0"][..], &["-inflight", "4"]] {
        let n_groups = AtomicUsize::new(0);
        let (collected, intake) = Collected::answering(move || {
            let n = n_groups.fetch_add(1, Ordering::Relaxed);
            if n % 7 == 6 { Err(NotDurable("lost".into())) } else { Ok(()) }
        });
        let (running, addr) = start_on_port(&beats(""), &intake).await;
        assert_eq!(send(&program, addr, &[args, &["-n", "5000"]].concat()).await, Some(4999));
        let mut numbers = numbers(&collected);
        assert!(numbers.len() > 5000, "something was repeated");
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers, (0..5000).collect::<Vec<_>>());
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn elastics_client_over_tls_with_a_certificate() {
    let program = match lumber::lumber() {
        Ok(program) => program,
        Err(why) => {
            return writeln!(&mut stdout(), "skipped: elastics_client_over_tls_with_a_certificate: {why}")
                .unwrap();
        }
    };
    let certificates = Certificates::new();
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(&beats(&format!(", {}", certificates.mutual())), &intake).await;
    let path = |name| certificates.path(name).display().to_string();
    let (ca, cert, key) = (path("ca.pem"), path("client.pem"), path("client.key"));
    let args = ["-n", "5000", "-ca", &ca, "-cert", &cert, "-key", &key];
    assert_eq!(send(&program, addr, &args).await, Some(4999));
    assert_eq!(numbers(&collected), (0..5000).collect::<Vec<_>>());
    running.stop().await;
}
