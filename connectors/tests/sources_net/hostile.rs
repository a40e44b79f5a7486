//! Peers that mean harm. Each is refused or becomes a reject, memory stays bounded, and a good peer is served
//! meanwhile.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};

use crate::support::{
    Answer, Collected, DEADLINE, Running, eventually, exchange, gzip, lines, peak, request, reset_peak,
    start_on_port,
};

/// What the process may grow by at any time during one of these tests, the test's own buffers included.
const GROWTH_MAX: usize = 192 << 20;
const TCP: &str = "{type: tcp, listen: \"127.0.0.1:PORT\"}";
const HTTP: &str = "{type: http, listen: \"127.0.0.1:PORT\"}";

/// One of these tests at a time: they measure the process.
struct Alone {
    before: usize,
    _turn: MutexGuard<'static, ()>,
}

impl Alone {
    async fn new() -> Self {
        static TURN: Mutex<()> = Mutex::const_new(());
        let turn = TURN.lock().await;
        Self { before: reset_peak(), _turn: turn }
    }

    fn check(&self) {
        let growth = peak().saturating_sub(self.before);
        assert!(growth < GROWTH_MAX, "grew by {} MiB", growth >> 20);
    }
}

async fn tcp_peer_is_served(addr: SocketAddr, collected: &Collected) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"{\"good\":1}\n").await.unwrap();
    eventually(|| collected.now().iter().any(|m| m == b"{\"good\":1}")).await;
}

async fn http_peer_is_served(addr: SocketAddr) {
    let answer = request(addr, "POST /", "", b"{\"good\":1}").await;
    assert_eq!((answer.status, answer.json()["accepted"].as_u64()), (200, Some(1)));
}

/// Writes as long as the server lets us; how many bytes that were.
async fn write_while_possible(addr: SocketAddr, head: &[u8], piece: &[u8], n_pieces: usize) -> usize {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    let write = async {
        writer.write_all(head).await.ok();
        for n in 0..n_pieces {
            if writer.write_all(piece).await.is_err() {
                return n * piece.len();
            }
        }
        writer.shutdown().await.ok();
        n_pieces * piece.len()
    };
    let (n, _) =
        tokio::time::timeout(DEADLINE, async { tokio::join!(write, reader.read_to_end(&mut answer)) })
            .await
            .expect("the server takes it or refuses it");
    n
}

async fn post_gzip(addr: SocketAddr, body: &[u8]) -> Answer {
    request(addr, "POST /", "Content-Encoding: gzip\r\n", body).await
}

/// A gigabyte of zeros, in about five megabytes.
fn gzip_bomb() -> Vec<u8> {
    gzip(&vec![0; 8 << 20]).repeat(128)
}

/// A zstd frame of 8 GiB of zeros: blocks that repeat one byte 128 KiB times, in four bytes each.
fn zstd_bomb(window: u8) -> Vec<u8> {
    let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0x00, window];
    for _ in 0..65_536 {
        let header: u32 = (128 << 10) << 3 | 1 << 1;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(b'0');
    }
    frame.extend_from_slice(&[1, 0, 0]);
    frame
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compression_bombs() {
    let alone = Alone::new().await;
    let (collected, intake) = Collected::all();
    let (http, http_addr) = start_on_port(HTTP, &intake).await;
    let yaml = "{type: tcp, listen: \"127.0.0.1:PORT\", compression: auto, max_line_bytes: 64KiB}";
    let (tcp, tcp_addr) = start_on_port(yaml, &intake).await;
    // Windows of 8 MiB, which is allowed, of 16 MiB, 2 GiB and 2 TiB.
    let bombs = [
        ("gzip", gzip_bomb()),
        ("zstd", zstd_bomb(0x68)),
        ("zstd", zstd_bomb(0x70)),
        ("zstd", zstd_bomb(0xA8)),
        ("zstd", zstd_bomb(0xF8)),
    ];
    for (encoding, bomb) in &bombs {
        let header = format!("Content-Encoding: {encoding}\r\n");
        let status = request(http_addr, "POST /", &header, bomb).await.status;
        assert_eq!(status, if matches!(bomb[5], 0x70 | 0xA8 | 0xF8) { 400 } else { 413 });
        write_while_possible(tcp_addr, bomb, b"", 0).await;
    }
    eventually(|| tcp.connections() == 0).await;
    assert_eq!(tcp.refused("expansion"), 2);
    assert_eq!(tcp.refused("corrupt_compression"), 3);
    assert_eq!(http.refused("expansion") + http.refused("body_too_large"), 2);
    assert_eq!(http.refused("corrupt_compression"), 3);
    // What was handed over is at most prefixes of one endless line.
    assert!(collected.now().iter().all(|m| m.len() <= (64 << 10) + 1 && m.last() == Some(&0xFF)));
    http_peer_is_served(http_addr).await;
    tcp_peer_is_served(tcp_addr, &collected).await;
    alone.check();
    http.stop().await;
    tcp.stop().await;
}

#[tokio::test]
async fn only_one_layer_is_expanded() {
    let (collected, intake) = Collected::all();
    let (http, addr) = start_on_port(HTTP, &intake).await;
    let nested = gzip(&gzip(&vec![b'0'; 1 << 20]));
    let answer = post_gzip(addr, &nested).await;
    assert_eq!(answer.status, 200);
    // Garbage that no decoder accepts, and no more of it than was sent.
    let messages = collected.now();
    assert!(!messages.is_empty() && messages.iter().map(Vec::len).sum::<usize>() < 64 << 10);
    assert!(messages.iter().all(|m| std::str::from_utf8(m).is_err() || m.len() < 100));
    http.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_megabytes_without_a_newline() {
    let alone = Alone::new().await;
    let (collected, intake) = Collected::all();
    let (tcp, addr) = start_on_port(TCP, &intake).await;
    let (http, http_addr) = start_on_port(HTTP, &intake).await;
    let piece = vec![b'x'; 1 << 20];
    assert_eq!(write_while_possible(addr, b"", &piece, 100).await, 100 << 20);
    let messages = collected.until(1).await;
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].len(), (1 << 20) + 1);
    assert_eq!(tcp.rejects("line_too_long"), 1);
    // Over HTTP: refused by its length, and, without one, when it gets too long.
    let head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n";
    assert!(write_while_possible(http_addr, head, &piece, 100).await < 100 << 20);
    let head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = [b"100000\r\n", &piece[..], b"\r\n"].concat();
    assert!(write_while_possible(http_addr, head, &chunk, 100).await < 100 << 20);
    assert_eq!(http.refused("body_too_large"), 2);
    tcp_peer_is_served(addr, &collected).await;
    http_peer_is_served(http_addr).await;
    alone.check();
    tcp.stop().await;
    http.stop().await;
}

/// Peers that open a line each and never end it: the memory that all share runs out, and their lines are given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_lines_that_never_end() {
    let alone = Alone::new().await;
    let (collected, intake) = Collected::all();
    let yaml = "{type: tcp, listen: \"127.0.0.1:PORT\", max_buffered_bytes_total: 8MiB}";
    let (tcp, addr) = start_on_port(yaml, &intake).await;
    let mut streams = Vec::new();
    let piece = vec![b'x'; 500 << 10];
    for _ in 0..100 {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(&piece).await.unwrap();
        streams.push(stream);
    }
    eventually(|| tcp.rejects("max_buffered_bytes_total") > 50).await;
    tcp_peer_is_served(addr, &collected).await;
    alone.check();
    // A peer whose line was given up is served again from its next line on.
    for (n, stream) in streams.iter_mut().enumerate() {
        stream.write_all(format!("\nagain {n}\n").as_bytes()).await.unwrap();
    }
    eventually(|| collected.now().iter().filter(|m| m.starts_with(b"again")).count() == 100).await;
    tcp.stop().await;
}

async fn dribblers(addr: SocketAddr, n: usize) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..n {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nX-A: ").await.unwrap();
        streams.push(stream);
    }
    streams
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_headers() {
    let alone = Alone::new().await;
    let (_, intake) = Collected::all();
    let yaml = "{type: http, listen: \"127.0.0.1:PORT\", header_timeout: 1s}";
    let (http, addr) = start_on_port(yaml, &intake).await;
    let mut streams = dribblers(addr, 500).await;
    http_peer_is_served(addr).await;
    // They go on dribbling; the deadline is for the whole head.
    let end = std::time::Instant::now() + DEADLINE;
    while http.connections() > 0 {
        assert!(std::time::Instant::now() < end, "{} are still open", http.connections());
        for stream in &mut streams {
            stream.write_all(b"a").await.ok();
        }
        http_peer_is_served(addr).await;
    }
    assert_eq!(http.refused("header_timeout"), 500);
    alone.check();
    http.stop().await;
}

#[tokio::test]
async fn slow_bodies() {
    let (_, intake) = Collected::all();
    let yaml = "{type: http, listen: \"127.0.0.1:PORT\", body_timeout: 100ms}";
    let (http, addr) = start_on_port(yaml, &intake).await;
    let answer = exchange(addr, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{").await;
    assert_eq!(answer.status, 408);
    let answer =
        exchange(addr, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n").await;
    assert_eq!(answer.status, 408);
    http_peer_is_served(addr).await;
    http.stop().await;
}

async fn flood(yaml: &str, reason: &str) -> (Running, SocketAddr, Collected) {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(yaml, &intake).await;
    let mut streams = Vec::new();
    for _ in 0..200 {
        streams.push(TcpStream::connect(addr).await.unwrap());
    }
    eventually(|| running.refused(reason) == 190).await;
    assert_eq!(running.connections(), 10);
    // The first ten stay, all others are closed.
    for stream in &mut streams[10..] {
        let read = tokio::time::timeout(DEADLINE, stream.read(&mut [0])).await.expect("closed at once");
        assert_eq!(read.unwrap_or(0), 0);
    }
    drop(streams);
    eventually(|| running.connections() == 0).await;
    (running, addr, collected)
}

#[tokio::test]
async fn connection_floods() {
    let limits = "max_connections: 10, max_connections_per_ip: 100";
    let yaml = format!("{{type: tcp, listen: \"127.0.0.1:PORT\", {limits}}}");
    let (tcp, addr, collected) = flood(&yaml, "max_connections").await;
    tcp_peer_is_served(addr, &collected).await;
    tcp.stop().await;
    let limits = "max_connections: 100, max_connections_per_ip: 10";
    let yaml = format!("{{type: http, listen: \"127.0.0.1:PORT\", {limits}}}");
    let (http, addr, _) = flood(&yaml, "max_connections_per_ip").await;
    http_peer_is_served(addr).await;
    http.stop().await;
}

#[tokio::test]
async fn malformed_requests() {
    let (collected, intake) = Collected::all();
    let (http, addr) = start_on_port(HTTP, &intake).await;
    let huge = format!("POST / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(200_000));
    let status = exchange(addr, huge.as_bytes()).await.status;
    assert!(matches!(status, 431 | 0), "{status}");
    let many = format!("POST / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: a\r\n".repeat(1000));
    let status = exchange(addr, many.as_bytes()).await.status;
    assert!(matches!(status, 431 | 0), "{status}");
    for chunk in ["zz\r\n", "-1\r\n", "ffffffffffffffffff\r\n", "\r\n", "1;\u{0}\r\n", "2\r\n{}X\r\n"] {
        let text = format!(
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{{}}\r\n0\r\n\r\n"
        );
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap().ok();
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{chunk:?}");
    }
    for head in [
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
        "GET\r\n\r\n",
    ] {
        let answer = exchange(addr, head.as_bytes()).await;
        assert_eq!(answer.status, 400, "{head:?}");
    }
    // Both a length and chunks: what one reads as the end of a request, another may not.
    let smuggled = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 40\r\n\
        Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nPOST / HTTP/1.1\r\nHost: x\r\n\r\n";
    let answer = exchange(addr, smuggled.as_bytes()).await;
    assert!(!answer.body.contains("HTTP/1.1"), "a second request was answered: {}", answer.body);
    assert_eq!(collected.len(), 0);
    http_peer_is_served(addr).await;
    http.stop().await;
}

#[tokio::test]
async fn bulk_requests_cannot_be_made_to_do_anything_but_add() {
    let (collected, intake) = Collected::all();
    let (http, addr) = start_on_port(HTTP, &intake).await;
    let body = concat!(
        "{\"index\":{\"_index\":\"a\",\"_id\":\"1\\n{\\\"delete\\\":{}}\"}}\n",
        "{\"m\":\"\\n{\\\"delete\\\":{\\\"_index\\\":\\\"a\\\"}}\\n\"}\n",
        "{\"index\":{\"_index\":\"a\"}}\n{\"delete\":{\"_index\":\"a\",\"_id\":\"1\"}}\n",
        "{\"delete\":{\"_index\":\"a\",\"_id\":\"1\"}}\n",
    );
    let answer = request(addr, "POST /_bulk", "", body.as_bytes()).await;
    let json = answer.json();
    assert_eq!(json["errors"], true);
    let statuses: Vec<_> = json["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| {
            let (operation, result) = i.as_object().unwrap().iter().next().unwrap();
            (operation.clone(), result["status"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(statuses, [("index".into(), 201), ("index".into(), 201), ("delete".into(), 400)]);
    assert_eq!(lines(&collected.now()).len(), 2);
    http.stop().await;
}

/// Peers that say nothing, and are still there when the source stops.
#[tokio::test]
async fn silent_peers_do_not_keep_a_source_from_stopping() {
    let (_, intake) = Collected::all();
    let (tcp, tcp_addr) = start_on_port(TCP, &intake).await;
    let (http, http_addr) = start_on_port(HTTP, &intake).await;
    let _silent = (TcpStream::connect(tcp_addr).await.unwrap(), TcpStream::connect(http_addr).await.unwrap());
    let _slow = dribblers(http_addr, 1).await;
    eventually(|| tcp.connections() == 1 && http.connections() == 2).await;
    tokio::time::timeout(Duration::from_secs(10), async {
        tcp.stop().await;
        http.stop().await;
    })
    .await
    .expect("stops within the deadline for what is in progress");
}
