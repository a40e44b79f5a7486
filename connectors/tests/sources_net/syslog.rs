//! `syslog`: framings and dialects over TCP and UDP, and RELP.

use std::net::SocketAddr;

use logdrive_connectors::{Intake, NotDurable};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::certificates::Certificates;
use crate::support::{Collected, DEADLINE, eventually, lines, messages_of, next, start_on_port};

const DIALECTS: [&str; 9] = [
    "<34>Oct 11 22:14:15 mymachine su: 'su root' failed",
    "<165>1 2003-10-11T22:14:15.003Z host evntslog - ID47 [exampleSDID@32473 iut=\"3\"] text",
    "<189>29: *Mar  1 18:46:11: %SYS-5-CONFIG_I: Configured from console by vty2 (10.34.195.36)",
    "<189>Nov 21 10:00:00: %LINK-3-UPDOWN: no hostname",
    "<13>Nov 21 2026 10:00:00 host app[12]: with a year",
    "<14>2026-11-21T10:00:00+01:00 host app: RFC 3339 in RFC 3164",
    "2026 Nov 21 10:00:00 no priority, a year first",
    "no priority",
    "<13>text alone",
];

fn syslog(more: &str) -> String {
    format!("{{type: syslog, listen: \"127.0.0.1:PORT\"{more}}}")
}

#[tokio::test]
async fn udp_and_tcp_share_a_port() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(&syslog(""), &intake).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"<1>over udp\nwith two lines\r\n\0", addr).await.unwrap();
    assert_eq!(lines(&collected.until(1).await), ["<1>over udp\nwith two lines"]);
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"<2>over tcp\n").await.unwrap();
    assert_eq!(lines(&collected.until(2).await)[1], "<2>over tcp");
    running.stop().await;
}

#[tokio::test]
async fn every_framing_and_dialect_in_any_segments() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(&syslog(", protocol: tcp"), &intake).await;
    let with = |end: &str| DIALECTS.map(|text| format!("{text}{end}")).concat();
    // A counted connection may carry messages without a priority once it has begun with one that has.
    let counted = DIALECTS.map(|text| format!("{} {text}", text.len())).concat();
    let counted_with_lf = DIALECTS.map(|text| format!("{} {text}\n", text.len() + 1)).concat();
    let counted_and_lf = DIALECTS.map(|text| format!("{} {text}\n", text.len())).concat();
    let mut n = 0;
    for stream in
        [with("\n"), with("\r\n"), with("\0"), with("\0\n"), counted, counted_with_lf, counted_and_lf]
    {
        for segment in [stream.len(), 1, 13] {
            let mut connection = TcpStream::connect(addr).await.unwrap();
            connection.set_nodelay(true).unwrap();
            for piece in stream.as_bytes().chunks(segment) {
                connection.write_all(piece).await.unwrap();
            }
            connection.shutdown().await.unwrap();
            n += DIALECTS.len();
            let got = collected.until(n).await.split_off(n - DIALECTS.len());
            assert_eq!(lines(&got), DIALECTS, "{stream:?} in segments of {segment}");
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn tls_alone_opens_no_datagrams() {
    let certificates = Certificates::new();
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(&syslog(&format!(", {}", certificates.mutual())), &intake).await;
    UdpSocket::bind(addr).await.expect("nobody listens for datagrams");
    let mut stream = certificates.connect(addr, Some("client")).await.unwrap();
    stream.write_all(b"9 <1>secret").await.unwrap();
    assert_eq!(lines(&collected.until(1).await), ["<1>secret"]);
    running.stop().await;
}

#[tokio::test]
async fn a_frame_over_the_limit_or_cut_off_is_broken() {
    let (collected, intake) = Collected::all();
    let yaml = syslog(", protocol: tcp, max_message_bytes: 10B");
    let (running, addr) = start_on_port(&yaml, &intake).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"13 <1>4567890123<2>ok\n99999999 <3>").await.unwrap();
    stream.shutdown().await.unwrap();
    let expected = [b"<1>4567890\xFF".to_vec(), b"<2>ok".to_vec(), b"<3>\xFF".to_vec()];
    assert_eq!(collected.until(3).await, expected);
    eventually(|| running.rejects("line_too_long") == 1 && running.rejects("line_cut_off") == 1).await;
    running.stop().await;
}

#[tokio::test]
async fn tcp_with_octet_counting_takes_nothing_else() {
    let (collected, intake) = Collected::all();
    let yaml = "{type: tcp, listen: \"127.0.0.1:PORT\", framing: octet_counting}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"3 a\nb3 cdeno length").await.unwrap();
    assert_eq!(stream.read(&mut [0; 10]).await.unwrap_or(0), 0);
    assert_eq!(collected.until(3).await, [b"a\nb".to_vec(), b"cde".to_vec(), b"no length\xFF".to_vec()]);
    assert_eq!(running.refused("malformed_frame"), 1);
    running.stop().await;
}

/// A RELP client that has introduced itself.
async fn relp(addr: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let offer = "relp_version=0\nrelp_software=test\ncommands=syslog";
    stream.write_all(format!("1 open {} {offer}\n", offer.len()).as_bytes()).await.unwrap();
    let answer = read_until(&mut stream, "commands=syslog\n").await;
    assert!(answer.starts_with("1 rsp ") && answer.contains(" 200 OK\n"), "{answer}");
    stream
}

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut all = Vec::new();
    while !all.ends_with(end.as_bytes()) {
        let read = tokio::time::timeout(DEADLINE, stream.read_buf(&mut all)).await;
        let n = read.unwrap_or_else(|_| panic!("{:?} so far", String::from_utf8_lossy(&all))).unwrap();
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&all));
    }
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn relp_answers_in_order_once_durable() {
    let (intake, mut received) = Intake::channel(10);
    let (running, addr) = start_on_port(&syslog(", protocol: relp"), &intake).await;
    let mut stream = relp(addr).await;
    stream.write_all(b"2 syslog 5 <1>on").await.unwrap();
    stream.write_all(b"\n3 syslog 6 <1>two\n").await.unwrap();
    let mut groups = vec![next(&mut received).await];
    while groups.iter().map(|group| group.messages.len()).sum::<usize>() < 2 {
        groups.push(next(&mut received).await);
    }
    stream.write_all(b"4 syslog 0\n5 what 0\n6 close 0\n").await.unwrap();
    let early = tokio::time::timeout(std::time::Duration::from_millis(50), stream.read(&mut [0; 10])).await;
    assert!(early.is_err(), "nothing is durable, nothing is answered");
    let messages: Vec<_> = groups.iter().flat_map(messages_of).collect();
    assert_eq!(lines(&messages), ["<1>on", "<1>two"]);
    for group in groups.into_iter().rev() {
        group.ack.unwrap().send(Ok(())).unwrap();
    }
    let answer = read_until(&mut stream, "serverclose 0\n").await;
    let ok = "2 rsp 6 200 OK\n3 rsp 6 200 OK\n4 rsp 6 200 OK\n5 rsp 19 500 unknown command\n6 rsp 0\n";
    assert_eq!(answer, format!("{ok}0 serverclose 0\n"));
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    running.stop().await;
}

#[tokio::test]
async fn relp_does_not_answer_for_what_is_not_durable() {
    let (_, intake) = Collected::answering(|| Err(NotDurable("no room".into())));
    let (running, addr) = start_on_port(&syslog(", protocol: relp"), &intake).await;
    let mut stream = relp(addr).await;
    stream.write_all(b"2 syslog 6 <1>one\n").await.unwrap();
    assert_eq!(stream.read(&mut [0; 10]).await.unwrap_or(0), 0);
    eventually(|| running.connections() == 0).await;
    running.stop().await;
}

#[tokio::test]
async fn relp_reads_no_more_than_may_be_unacknowledged() {
    let (intake, mut received) = Intake::channel(1000);
    let yaml = syslog(", protocol: relp, max_unacknowledged_bytes: 1KiB");
    let (running, addr) = start_on_port(&yaml, &intake).await;
    let mut stream = relp(addr).await;
    let frame = format!("2 syslog 1000 {}\n", "x".repeat(1000));
    let mut n_sent = 0;
    let waits = std::time::Duration::from_millis(300);
    while let Ok(written) = tokio::time::timeout(waits, stream.write_all(frame.as_bytes())).await {
        written.unwrap();
        n_sent += 1;
        assert!(n_sent < 64 << 10, "64 MiB were taken although nothing is acknowledged");
    }
    assert_eq!(received.len(), 1);
    // It goes on as soon as something is.
    next(&mut received).await.ack.unwrap().send(Ok(())).unwrap();
    let second = next(&mut received).await;
    assert!(!second.messages.is_empty());
    running.cx.shutdown.cancel();
    drop(second);
    drop(received);
    running.stop().await;
}

#[tokio::test]
async fn relp_stops_after_what_it_took_is_answered() {
    let (intake, mut received) = Intake::channel(10);
    let (running, addr) = start_on_port(&syslog(", protocol: relp"), &intake).await;
    let mut stream = relp(addr).await;
    stream.write_all(b"2 syslog 6 <1>one\n").await.unwrap();
    let group = next(&mut received).await;
    running.cx.shutdown.cancel();
    group.ack.unwrap().send(Ok(())).unwrap();
    assert_eq!(read_until(&mut stream, "serverclose 0\n").await, "2 rsp 6 200 OK\n0 serverclose 0\n");
    running.stop().await;
}

#[tokio::test]
async fn hostile_relp_is_let_go() {
    let (collected, intake) = Collected::all();
    let yaml = syslog(", protocol: relp, idle_timeout: 300ms");
    let (running, addr) = start_on_port(&yaml, &intake).await;
    for hostile in [
        &b"1 syslog 6 <1>one\n"[..],
        b"1 open 999999999 x",
        b"1 open 5 abcde\n",
        b"GET / HTTP/1.1\r\n",
        b"\xFF\xFF",
        b"99999999999 open",
    ] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(hostile).await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.ok();
    }
    let mut stream = relp(addr).await;
    stream.write_all(b"2 syslog 999999999 x").await.unwrap();
    stream.read_to_end(&mut Vec::new()).await.ok();
    let idle = relp(addr).await;
    eventually(|| running.refused("idle_timeout") == 1).await;
    drop(idle);
    assert_eq!(running.refused("malformed_frame") + running.refused("frame_too_long"), 7);
    assert_eq!(collected.len(), 0);
    running.stop().await;
}
