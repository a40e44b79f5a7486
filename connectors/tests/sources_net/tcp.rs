//! `tcp`: framing, limits, back-pressure, stopping.

use std::time::Duration;

use logdrive_connectors::Intake;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Collected, eventually, gzip, lines, messages_of, next, start_on_port};

#[tokio::test]
async fn lines_become_messages() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port("{type: tcp, listen: \"127.0.0.1:PORT\"}", &intake).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"one\r\n\r\n\ntwo\nlast").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(lines(&collected.until(3).await), ["one", "two", "last"]);
    eventually(|| running.connections() == 0).await;
    assert_eq!(running.messages(), 3);
    running.stop().await;
}

#[tokio::test]
async fn any_segments_give_the_same_messages() {
    let (collected, intake) = Collected::all();
    let yaml = "{type: tcp, listen: \"127.0.0.1:PORT\", max_line_bytes: 40B}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let text: String = (0..200).map(|i| format!("{}{i}\r\n", "x".repeat(i % 60))).collect();
    let mut expected = None;
    for segment in [text.len(), 1, 7, 41, 1000] {
        let before = collected.len();
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for piece in text.as_bytes().chunks(segment) {
            stream.write_all(piece).await.unwrap();
        }
        drop(stream);
        let messages = collected.until(before + 200).await.split_off(before);
        assert_eq!(expected.get_or_insert_with(|| messages.clone()), &messages, "segments of {segment}");
    }
    assert!(running.rejects("line_too_long") > 0);
    running.stop().await;
}

#[tokio::test]
async fn a_line_over_the_limit_is_broken_and_the_next_is_read() {
    let (collected, intake) = Collected::all();
    let yaml = "{type: tcp, listen: \"127.0.0.1:PORT\", max_line_bytes: 1KiB}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(&vec![b'x'; 100_000]).await.unwrap();
    stream.write_all(b"\nnext\n").await.unwrap();
    let messages = collected.until(2).await;
    assert_eq!(messages[0].len(), 1025);
    assert_eq!(messages[0][1024], 0xFF);
    assert_eq!(messages[1], b"next");
    assert_eq!(running.rejects("line_too_long"), 1);
    running.stop().await;
}

#[tokio::test]
async fn compressed_streams() {
    let (collected, intake) = Collected::all();
    let yaml = "{type: tcp, listen: \"127.0.0.1:PORT\", compression: auto}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let text: String = (0..20_000).map(|i| format!("line {i}\n")).collect();
    let members = [gzip(&text.as_bytes()[..50_000]), gzip(&text.as_bytes()[50_000..])].concat();
    let frame = zstd::bulk::compress(text.as_bytes(), 3).unwrap();
    for (n, bytes) in [members, frame, text.clone().into_bytes()].iter().enumerate() {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        drop(stream);
        let messages = collected.until((n + 1) * 20_000).await.split_off(n * 20_000);
        assert_eq!(lines(&messages).join("\n") + "\n", text);
    }
    running.stop().await;
}

#[tokio::test]
async fn a_full_buffer_stops_the_peer() {
    let (intake, mut received) = Intake::channel(1);
    let (running, addr) = start_on_port("{type: tcp, listen: \"127.0.0.1:PORT\"}", &intake).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let line = [&[b'x'; 1023][..], b"\n"].concat();
    let mut n_sent = 0;
    // Nobody receives: at some point the peer cannot write on.
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(300), stream.write_all(&line)).await {
        written.unwrap();
        n_sent += 1;
        assert!(n_sent < 64 << 10, "64 MiB were taken although nobody receives");
    }
    let mut n_received = 0;
    while n_received < n_sent {
        n_received += messages_of(&next(&mut received).await).len();
    }
    running.cx.shutdown.cancel();
    drop(received);
    running.stop().await;
}

#[tokio::test]
async fn stopping_takes_what_has_arrived_and_marks_what_is_not_whole() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port("{type: tcp, listen: \"127.0.0.1:PORT\"}", &intake).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"whole\nhal").await.unwrap();
    collected.until(1).await;
    assert_eq!(running.connections(), 1);
    let metrics = std::sync::Arc::clone(&running.cx.metrics);
    running.stop().await;
    let messages = collected.until(2).await;
    assert_eq!(messages, [b"whole".to_vec(), b"hal\xFF".to_vec()]);
    assert_eq!(metrics.source_rejects.with_label_values(&["in", "line_cut_off"]).get(), 1);
    assert_eq!(stream.read(&mut [0; 10]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let (_, intake) = Collected::all();
    let yaml = "{type: tcp, listen: \"127.0.0.1:PORT\", idle_timeout: 50ms}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    assert_eq!(stream.read(&mut [0; 10]).await.unwrap(), 0);
    assert_eq!(running.refused("idle_timeout"), 1);
    running.stop().await;
}

#[tokio::test]
async fn an_address_in_use_is_an_error_before_anything_runs() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let yaml = format!("{{type: tcp, listen: \"{}\"}}", taken.local_addr().unwrap());
    let (_, intake) = Collected::all();
    assert!(crate::support::start(&yaml, intake).await.is_err());
}
