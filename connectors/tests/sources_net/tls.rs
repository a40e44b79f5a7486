//! TLS on listeners: who is let in, what is counted, and certificates that are renewed.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::certificates::Certificates;
use crate::support::{Collected, DEADLINE, answer_of, eventually, lines, start_on_port};

fn tcp(tls: &str) -> String {
    format!("{{type: tcp, listen: \"127.0.0.1:PORT\", {tls}}}")
}

/// Sends a line; an error if the server lets the client go, which TLS 1.3 shows only afterwards.
async fn say(
    certificates: &Certificates,
    addr: std::net::SocketAddr,
    name: Option<&str>,
) -> std::io::Result<()> {
    let mut stream = certificates.connect(addr, name).await?;
    stream.write_all(b"hello\n").await?;
    stream.shutdown().await?;
    stream.read_to_end(&mut Vec::new()).await.map(|_| ())
}

#[tokio::test]
async fn lines_come_encrypted_and_a_proper_end_makes_the_last_one_whole() {
    let certificates = Certificates::new();
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(&tcp(&certificates.tls("")), &intake).await;
    let mut stream = certificates.connect(addr, None).await.unwrap();
    let long = "x".repeat(300_000);
    stream.write_all(format!("one\n{long}\nlast").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(lines(&collected.until(3).await), ["one", &long, "last"]);
    // Without the end that TLS wants, somebody may have cut the stream.
    let mut stream = certificates.connect(addr, None).await.unwrap();
    stream.write_all(b"two\nhal").await.unwrap();
    collected.until(4).await;
    drop(stream);
    assert_eq!(collected.until(5).await[4], b"hal\xFF");
    running.stop().await;
}

#[tokio::test]
async fn clients_must_show_a_certificate_of_the_authority() {
    let certificates = Certificates::new();
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(&tcp(&certificates.mutual()), &intake).await;
    say(&certificates, addr, None).await.unwrap_err();
    say(&certificates, addr, Some("stranger")).await.unwrap_err();
    eventually(|| running.refused("tls_handshake") == 2).await;
    say(&certificates, addr, Some("client")).await.unwrap();
    assert_eq!(lines(&collected.until(1).await), ["hello"]);
    eventually(|| running.connections() == 0).await;
    running.stop().await;
}

#[tokio::test]
async fn optional_means_none_or_a_valid_one() {
    let certificates = Certificates::new();
    let (collected, intake) = Collected::all();
    let ca = certificates.path("ca.pem");
    let more = format!(", client_ca: \"{}\", client_auth: optional", ca.display());
    let (running, addr) = start_on_port(&tcp(&certificates.tls(&more)), &intake).await;
    say(&certificates, addr, None).await.unwrap();
    say(&certificates, addr, Some("client")).await.unwrap();
    say(&certificates, addr, Some("stranger")).await.unwrap_err();
    eventually(|| running.refused("tls_handshake") == 1).await;
    assert_eq!(collected.len(), 2);
    running.stop().await;
}

#[tokio::test]
async fn who_does_not_shake_hands_holds_up_nobody_and_is_let_go() {
    let certificates = Certificates::new();
    let (collected, intake) = Collected::all();
    let yaml = tcp(&certificates.tls(", handshake_timeout: 300ms"));
    let (running, addr) = start_on_port(&yaml, &intake).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(addr).await.unwrap());
    }
    say(&certificates, addr, None).await.unwrap();
    collected.until(1).await;
    let mut plain = TcpStream::connect(addr).await.unwrap();
    plain.write_all(b"this is no TLS at all\n").await.unwrap();
    eventually(|| running.refused("tls_handshake") == 1).await;
    eventually(|| running.refused("tls_handshake_timeout") == 20).await;
    assert_eq!(collected.len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn stopping_waits_for_no_handshake() {
    let certificates = Certificates::new();
    let (_, intake) = Collected::all();
    let yaml = tcp(&certificates.tls(", handshake_timeout: 10m"));
    let (running, addr) = start_on_port(&yaml, &intake).await;
    let _silent = TcpStream::connect(addr).await.unwrap();
    eventually(|| running.connections() == 1).await;
    running.stop().await;
}

#[tokio::test]
async fn renewed_certificates_are_read_again_and_bad_ones_are_not_used() {
    let certificates = Certificates::new();
    let (_, intake) = Collected::all();
    let (running, addr) = start_on_port(&tcp(&certificates.tls("")), &intake).await;
    say(&certificates, addr, None).await.unwrap();
    // A client that trusts only the new authority: it is let in once the new certificate is in use.
    certificates.issue("renewed");
    let until = std::time::Instant::now() + DEADLINE;
    while say(&certificates, addr, None).await.is_err() {
        assert!(std::time::Instant::now() < until, "the new certificate is never used");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    std::fs::write(certificates.path("server.pem"), "no certificate").unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_millis(1500);
    while std::time::Instant::now() < until {
        say(&certificates, addr, None).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    running.stop().await;
}

#[tokio::test]
async fn http_speaks_tls_too() {
    let certificates = Certificates::new();
    let (collected, intake) = Collected::all();
    let yaml = format!("{{type: http, listen: \"127.0.0.1:PORT\", {}}}", certificates.mutual());
    let (running, addr) = start_on_port(&yaml, &intake).await;
    let request = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 8\r\n\r\n{\"a\": 1}";
    let mut stream = certificates.connect(addr, Some("client")).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // hyper closes without TLS's own end.
    stream.read_to_end(&mut answer).await.ok();
    assert_eq!(answer_of(&answer).status, 200);
    assert_eq!(lines(&collected.until(1).await), ["{\"a\": 1}"]);
    let mut stream = certificates.connect(addr, None).await.unwrap();
    stream.write_all(request).await.ok();
    stream.read_to_end(&mut Vec::new()).await.unwrap_err();
    eventually(|| running.refused("tls_handshake") == 1).await;
    running.stop().await;
}
