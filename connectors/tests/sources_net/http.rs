//! `http`: documents, bulk requests, and what a shipper is told when.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use logdrive_connectors::{Intake, NotDurable};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Collected, answer_of, eventually, exchange, gzip, lines, next, request, start_on_port};

const HTTP: &str = "{type: http, listen: \"127.0.0.1:PORT\", path: /logs}";

#[tokio::test]
async fn lines_and_arrays() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(HTTP, &intake).await;
    let answer = request(addr, "POST /", "", b"{\"a\":1}\r\n\n{\"b\":2}").await;
    assert_eq!((answer.status, answer.json()["accepted"].as_u64()), (200, Some(2)));
    let answer = request(addr, "PUT /logs", "", b" [{\"c\": [3]},\n{}]").await;
    assert_eq!((answer.status, answer.json()["accepted"].as_u64()), (200, Some(2)));
    assert_eq!(lines(&collected.now()), ["{\"a\":1}", "{\"b\":2}", "{\"c\": [3]}", "{}"]);
    let answer = request(addr, "POST /", "", b"").await;
    assert_eq!((answer.status, answer.json()["accepted"].as_u64()), (200, Some(0)));
    let answer = request(addr, "POST /logs", "", b"[{},").await;
    assert_eq!((answer.status, answer.json()["error"]["type"].as_str()), (400, Some("parse_exception")));
    assert_eq!(request(addr, "POST /other", "", b"{}").await.status, 404);
    assert_eq!(request(addr, "DELETE /", "", b"").await.status, 405);
    assert_eq!(collected.len(), 4);
    running.stop().await;
}

#[tokio::test]
async fn bulk_requests() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(HTTP, &intake).await;
    let body = b"{\"index\":{\"_index\":\"a\",\"_id\":\"1\"}}\n{\"m\" : 1}\n{\"create\":{}}\n{\"m\":2}\n";
    let answer = request(addr, "POST /logs-x/_bulk", "Content-Type: application/x-ndjson\r\n", body).await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("x-elastic-product: elasticsearch"));
    let json = answer.json();
    assert_eq!(json["errors"], false);
    assert_eq!(json["items"][0]["index"]["_id"], "1");
    assert_eq!(json["items"][1]["create"]["_index"], "logs-x");
    assert_eq!(json["items"][1]["create"]["status"], 201);
    assert_eq!(lines(&collected.now()), ["{\"m\" : 1}", "{\"m\":2}"]);
    let answer = request(addr, "PUT /_bulk?filter_path=errors,items.*.status", "", body).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"]["type"], "action_request_validation_exception");
    assert_eq!(collected.len(), 2);
    let body = b"{\"delete\":{\"_index\":\"a\",\"_id\":\"1\"}}\n";
    let answer = request(addr, "POST /_bulk?filter_path=errors,items.*.status", "", body).await;
    assert_eq!(
        answer.body,
        "{\"took\":0,\"errors\":true,\"items\":[{\"delete\":{\"error\":{\"type\":\"illegal_argument_exception\",\"reason\":\"a log is only added to: [delete] is not possible\"},\"status\":400}}]}"
    );
    running.stop().await;
}

#[tokio::test]
async fn what_shippers_ask_at_start_up() {
    let (_, intake) = Collected::all();
    let (running, addr) = start_on_port(HTTP, &intake).await;
    let answer = request(addr, "GET /", "", b"").await;
    assert_eq!(answer.json()["version"]["number"], "8.17.0");
    assert!(answer.head.contains("x-elastic-product: elasticsearch"));
    let answer = request(addr, "HEAD /", "", b"").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    assert_eq!(request(addr, "GET /_license", "", b"").await.json()["license"]["status"], "active");
    assert_eq!(request(addr, "GET /_cluster/health", "", b"").await.json()["status"], "green");
    let answer = request(addr, "GET /_index_template/logs", "", b"").await;
    assert_eq!((answer.status, answer.json()["status"].as_u64()), (404, Some(404)));
    running.stop().await;
    let (_, intake) = Collected::all();
    let yaml = "{type: http, listen: \"127.0.0.1:PORT\", elasticsearch_version: none}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let answer = request(addr, "GET /", "", b"").await;
    assert!(!answer.head.contains("elastic") && !answer.body.contains("\"version\""));
    running.stop().await;
}

#[tokio::test]
async fn success_is_answered_only_when_the_data_is_durable() {
    let (intake, mut received) = Intake::channel(1);
    let (running, addr) = start_on_port(HTTP, &intake).await;
    let asked = tokio::spawn(async move { request(addr, "POST /", "", b"{}").await });
    let group = next(&mut received).await;
    assert!(!asked.is_finished());
    group.ack.unwrap().send(Err(NotDurable("the disk is gone".into()))).unwrap();
    let answer = asked.await.unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("retry-after: 1") && answer.body.contains("the disk is gone"));
    // An acknowledgement that is dropped means the same.
    let asked = tokio::spawn(async move { request(addr, "POST /", "", b"{}").await });
    drop(next(&mut received).await);
    assert_eq!(asked.await.unwrap().status, 503);
    // So does a pipeline that has gone.
    drop(received);
    assert_eq!(request(addr, "POST /", "", b"{}").await.status, 503);
    running.stop().await;
}

#[tokio::test]
async fn a_full_buffer_is_429_after_a_while() {
    let (intake, received) = Intake::channel(1);
    let yaml = "{type: http, listen: \"127.0.0.1:PORT\", full_timeout: 50ms, ack_timeout: 100ms}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let answer = request(addr, "POST /", "", b"{}").await;
    assert_eq!(answer.status, 503, "taken, but nobody confirms");
    let answer = request(addr, "POST /", "", b"{}").await;
    assert_eq!(answer.status, 429);
    assert!(answer.head.contains("retry-after: 1"));
    assert_eq!(running.refused("buffer_full"), 1);
    drop(received);
    running.stop().await;
}

#[tokio::test]
async fn encodings() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(HTTP, &intake).await;
    let text = b"{\"a\":1}\n{\"b\":2}\n";
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut zlib, text).unwrap();
    for (encoding, body) in [
        ("gzip", gzip(text)),
        ("GZIP", gzip(text)),
        ("zstd", zstd::bulk::compress(text, 1).unwrap()),
        ("deflate", zlib.finish().unwrap()),
        ("identity", text.to_vec()),
    ] {
        let answer = request(addr, "POST /", &format!("Content-Encoding: {encoding}\r\n"), &body).await;
        assert_eq!((answer.status, answer.json()["accepted"].as_u64()), (200, Some(2)), "{encoding}");
    }
    assert_eq!(collected.len(), 10);
    for encoding in ["br", "gzip, gzip", "zstd,gzip"] {
        let answer = request(addr, "POST /", &format!("Content-Encoding: {encoding}\r\n"), text).await;
        assert_eq!(answer.status, 415, "{encoding}");
    }
    let answer = request(addr, "POST /", "Content-Encoding: gzip\r\nContent-Encoding: gzip\r\n", text).await;
    assert_eq!(answer.status, 415);
    let answer = request(addr, "POST /", "Content-Encoding: gzip\r\n", text).await;
    assert_eq!(answer.status, 400);
    let stump = &gzip(text)[..20];
    assert_eq!(request(addr, "POST /", "Content-Encoding: gzip\r\n", stump).await.status, 400);
    assert_eq!(collected.len(), 10);
    running.stop().await;
}

#[tokio::test]
async fn only_those_with_credentials_are_let_in() {
    let (collected, intake) = Collected::all();
    let yaml = "{type: http, listen: \"127.0.0.1:PORT\", auth: {bearer: s3cret, basic: \"user:pass\"}}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    for (header, status) in [
        ("", 401),
        ("Authorization: Bearer s3cre\r\n", 401),
        ("Authorization: Bearer s3cretX\r\n", 401),
        ("Authorization: Bearer s3cret\r\n", 200),
        ("Authorization: Basic dXNlcjpwYXNz\r\n", 200),
        ("Authorization: Basic dXNlcjpwYXNzX\r\n", 401),
    ] {
        assert_eq!(request(addr, "POST /", header, b"{}").await.status, status, "{header}");
    }
    assert_eq!(collected.len(), 2);
    assert_eq!(running.refused("unauthorized"), 4);
    running.stop().await;
}

#[tokio::test]
async fn a_connection_serves_many_requests_and_chunked_bodies() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(HTTP, &intake).await;
    let chunked = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{\"a\"\r\n3\r\n:1}\r\n0\r\n\r\n";
    let last = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
    let answer = exchange(addr, format!("{chunked}{chunked}{last}").as_bytes()).await;
    assert_eq!(answer.body.matches("HTTP/1.1 200 OK").count(), 2);
    assert_eq!(lines(&collected.now()), ["{\"a\":1}", "{\"a\":1}", "{}"]);
    running.stop().await;
}

#[tokio::test]
async fn a_long_line_is_broken_and_the_others_are_taken() {
    let (collected, intake) = Collected::all();
    let yaml = "{type: http, listen: \"127.0.0.1:PORT\", max_line_bytes: 10B}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let answer = request(addr, "POST /", "", b"{\"a\":\"0123456789\"}\n{}").await;
    assert_eq!((answer.status, answer.json()["accepted"].as_u64()), (200, Some(2)));
    assert_eq!(collected.now(), [b"{\"a\":\"0123\xFF".to_vec(), b"{}".to_vec()]);
    assert_eq!(running.rejects("line_too_long"), 1);
    running.stop().await;
}

/// A peer that has said everything (and closed its side) still gets its answer, even while the source stops.
#[tokio::test]
async fn stopping_and_half_open_peers() {
    let (intake, mut received) = Intake::channel(1);
    let (running, addr) = start_on_port(HTTP, &intake).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
    stream.shutdown().await.unwrap();
    let group = next(&mut received).await;
    let stopped = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stopped);
    let stop = tokio::spawn(async move {
        running.stop().await;
        flag.store(true, Ordering::Relaxed);
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!stopped.load(Ordering::Relaxed), "a request is unanswered");
    group.ack.unwrap().send(Ok(())).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer_of(&answer).status, 200);
    stop.await.unwrap();
    eventually(|| stopped.load(Ordering::Relaxed)).await;
}

/// A client that was made for Elasticsearch's API, not by us.
#[tokio::test]
async fn a_real_client_can_send() {
    use opensearch::http::transport::Transport;
    use opensearch::{BulkOperation, BulkOperations, BulkParts, OpenSearch};
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(HTTP, &intake).await;
    let client = OpenSearch::new(Transport::single_node(&format!("http://{addr}")).unwrap());
    let mut operations = BulkOperations::new();
    for n in 0..100 {
        let document = serde_json::json!({ "n": n });
        operations.push(BulkOperation::index(document).id(n.to_string())).unwrap();
    }
    let answer = client.bulk(BulkParts::Index("logs")).body(vec![operations]).send().await.unwrap();
    assert!(answer.status_code().is_success());
    let answer: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(answer["errors"], false);
    assert_eq!(answer["items"].as_array().unwrap().len(), 100);
    assert_eq!(lines(&collected.now())[99], "{\"n\":99}");
    let pinged = client.ping().send().await.unwrap();
    assert!(pinged.status_code().is_success());
    running.stop().await;
}
