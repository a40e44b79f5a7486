//! `udp`: what arrives, and what the kernel dropped, to the datagram.

use std::net::UdpSocket;
use std::time::Duration;

use logdrive_connectors::Intake;

use crate::support::{Collected, DEADLINE, eventually, lines, messages_of, start_on_port};

#[tokio::test]
async fn datagrams_become_messages() {
    let (collected, intake) = Collected::all();
    let yaml = "{type: udp, listen: \"127.0.0.1:PORT\", sockets: 2, max_datagram_bytes: 100B}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    for datagram in [&b"a\nb\r\n"[..], b"", b"c", &[b'x'; 200], b"d"] {
        sender.send_to(datagram, addr).unwrap();
    }
    let messages = collected.until(5).await;
    assert_eq!(lines(&messages[..3]), ["a", "b", "c"]);
    assert_eq!(messages[3], [&[b'x'; 100][..], b"\xFF"].concat());
    assert_eq!(messages[4], b"d");
    assert_eq!(running.rejects("datagram_truncated"), 1);
    running.stop().await;
}

#[tokio::test]
async fn a_datagram_may_be_one_message() {
    let (collected, intake) = Collected::all();
    let (running, addr) =
        start_on_port("{type: udp, listen: \"127.0.0.1:PORT\", split: none}", &intake).await;
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"a\nb\n", addr).unwrap();
    assert_eq!(collected.until(1).await, [b"a\nb\n"]);
    running.stop().await;
}

/// 100,000 datagrams from four peers to a reader that is slower than they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sent_less_received_is_the_metric_exactly() {
    const SENT: u64 = 100_000;
    let (intake, mut received) = Intake::channel(1);
    let yaml = "{type: udp, listen: \"127.0.0.1:PORT\", sockets: 2, receive_buffer: 256KiB}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let send = std::thread::spawn(move || {
        let senders: Vec<UdpSocket> = (0..4).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        for i in 0..SENT {
            let datagram = format!("{{\"n\":{i},\"message\":\"{:0200}\"}}", i);
            senders[i as usize % 4].send_to(datagram.as_bytes(), addr).unwrap();
        }
    });
    let count = tokio::spawn(async move {
        let mut n = 0;
        while let Some(group) = received.recv().await {
            n += messages_of(&group).len() as u64;
            if n < 20_000 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        n
    });
    tokio::task::spawn_blocking(|| send.join().unwrap()).await.unwrap();
    eventually(|| running.messages() + running.dropped() == SENT).await;
    let dropped = running.dropped();
    drop(intake);
    running.stop().await;
    let n_received = tokio::time::timeout(DEADLINE, count).await.unwrap().unwrap();
    assert!(dropped > 0, "the reader was not slow enough for this test to mean anything");
    assert_eq!(SENT - n_received, dropped);
}

#[tokio::test]
async fn nothing_is_answered_and_stopping_takes_what_has_arrived() {
    let (intake, mut received) = Intake::channel(1);
    let (running, addr) = start_on_port("{type: udp, listen: \"127.0.0.1:PORT\", sockets: 1}", &intake).await;
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    for i in 0..1000 {
        sender.send_to(format!("{i}").as_bytes(), addr).unwrap();
    }
    running.cx.shutdown.cancel();
    drop(intake);
    let mut n = 0;
    while let Some(group) = received.recv().await {
        n += messages_of(&group).len();
    }
    running.stop().await;
    assert_eq!(n, 1000);
    sender.set_nonblocking(true).unwrap();
    assert!(sender.recv(&mut [0; 10]).is_err());
}
