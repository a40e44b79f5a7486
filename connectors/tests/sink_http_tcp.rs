//! The `http` and `tcp` sinks over real sockets, with far ends that are slow, rude or gone.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use logdrive_connectors::{ConnectorError, Sink};
use logdrive_schemas::{Batch, Epoch};
use support::server::{Reaction, Request, Server};
use support::{batch, count, deliver, deliver_at_last, errors, sink, texts};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

fn documents(n_rows: usize) -> Vec<String> {
    (0..n_rows).map(|n| format!(r#"{{"n":{n},"text":"äöü \" \\n"}}"#)).collect()
}

fn batches(n_rows: usize) -> Vec<Batch> {
    documents(n_rows).chunks(10).enumerate().map(|(n, chunk)| batch(1, n as u64 * 10, chunk, &[])).collect()
}

fn lines(n_rows: usize) -> String {
    documents(n_rows).into_iter().map(|document| document + "\n").collect()
}

/// A server that reacts as told, in turn, and properly after that. Returns what it was asked.
async fn scripted(script: Vec<Reaction>) -> (Server, Arc<Mutex<Vec<Request>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (kept, mut script) = (Arc::clone(&asked), script.into_iter());
    let server = Server::start(move |request| {
        kept.lock().unwrap().push(request.clone());
        script.next().unwrap_or_else(|| Reaction::status(204))
    });
    (server.await, asked)
}

fn http(server: &Server, more: &str) -> String {
    format!("endpoint: {}/logs?a=b\nrequest_timeout: 300ms\n{more}", server.url())
}

#[tokio::test]
async fn http_posts_documents_as_lines() {
    let (server, asked) = scripted(Vec::new()).await;
    let more = "headers: { X-Tenant: shop }\nauth: { bearer: tok }\ngzip: true\nbatch: { max_bytes: 1KB }";
    let (mut out, cx) = sink("http", &http(&server, more));
    assert_eq!(deliver_at_last(&mut *out, &batches(100)).await.1, 0);
    let asked = asked.lock().unwrap();
    let bodies: Vec<u8> = asked.iter().flat_map(|request| request.body.clone()).collect();
    assert_eq!(String::from_utf8(bodies).unwrap(), lines(100));
    assert!(3 < asked.len() && asked.iter().all(|request| request.body.len() <= 1000));
    let first = &asked[0];
    assert_eq!((first.method.as_str(), first.target.as_str()), ("POST", "/logs?a=b"));
    assert_eq!(first.headers["x-tenant"], "shop");
    assert_eq!(first.headers["authorization"], "Bearer tok");
    assert_eq!(first.headers["content-type"], "application/x-ndjson");
    assert_eq!(count(&cx.metrics.sink_rows), 100);
    assert_eq!(count(&cx.metrics.sink_bytes), asked.iter().map(|r| r.n_bytes as u64).sum::<u64>());
}

#[tokio::test]
async fn http_sends_less_to_a_server_that_takes_less() {
    let got = Arc::new(Mutex::new(String::new()));
    let kept = Arc::clone(&got);
    let server = Server::start(move |request| {
        let body = String::from_utf8(request.body.clone()).unwrap();
        if body.lines().count() > 7 || body.contains(r#""n":33,"#) {
            return Reaction::status(413);
        }
        kept.lock().unwrap().push_str(&body);
        Reaction::status(200)
    });
    let server = server.await;
    let (mut out, cx) = sink("http", &http(&server, ""));
    let (rejects, _) = deliver_at_last(&mut *out, &batches(50)).await;
    assert_eq!(texts(&rejects, "position"), ["0000000000000001:33"]);
    assert!(texts(&rejects, "reason")[0].starts_with("http_413: "));
    let expect: String = lines(50).split_inclusive('\n').filter(|l| !l.contains(r#""n":33,"#)).collect();
    assert_eq!(*got.lock().unwrap(), expect);
    assert_eq!(count(&cx.metrics.sink_rows), 49);
}

#[tokio::test]
async fn http_refusals_of_rows_are_rejects() {
    let refusal = Reaction::Answer { status: 422, headers: Vec::new(), body: b"no\r\nsuch field".to_vec() };
    let (server, _) = scripted(vec![refusal]).await;
    let (mut out, cx) = sink("http", &http(&server, ""));
    out.connect().await.unwrap();
    let rejects = deliver(&mut *out, &batches(30)).await.unwrap();
    assert_eq!(texts(&rejects, "reason"), ["http_422: no  such field"; 30]);
    assert_eq!(texts(&rejects, "original"), documents(30));
    assert_eq!(deliver(&mut *out, &batches(30)).await.unwrap().len(), 0);
    assert_eq!(count(&cx.metrics.sink_rows), 30);
}

#[tokio::test]
async fn http_keeps_rows_that_it_cannot_deliver_now() {
    let wait = || vec![("Retry-After", "7".to_owned())];
    let busy = |status| Reaction::Answer { status, headers: wait(), body: Vec::new() };
    let away = vec![("Location", "http://127.0.0.1:1/".to_owned())];
    let redirect = Reaction::Answer { status: 307, headers: away, body: Vec::new() };
    let seconds = |n| Some(Duration::from_secs(n));
    let cases = [
        (busy(429), Some(seconds(7)), "busy"),
        (busy(503), Some(seconds(7)), "server_error"),
        (Reaction::status(500), Some(None), "server_error"),
        (Reaction::Silence, Some(None), "timeout"),
        (Reaction::Close, None, "broken"),
        (Reaction::Cut { body: b"nearly done".to_vec() }, None, "broken"),
        (Reaction::status(401), None, "refused"),
        (Reaction::status(404), None, "refused"),
        (redirect, None, "refused"),
    ];
    for (reaction, busy, kind) in cases {
        let shown = format!("{reaction:?}");
        let (server, asked) = scripted(vec![reaction]).await;
        let (mut out, cx) = sink("http", &http(&server, ""));
        out.connect().await.unwrap();
        match (deliver(&mut *out, &batches(30)).await, busy) {
            (Err(ConnectorError::Busy { after, .. }), Some(expect)) => assert_eq!(after, expect, "{shown}"),
            (Err(ConnectorError::Disconnected { .. }), None) => {}
            (other, _) => panic!("{shown}: {other:?}"),
        }
        assert_eq!(errors(&cx, kind), 1, "{shown}");
        assert_eq!(deliver_at_last(&mut *out, &batches(30)).await.1, 0, "{shown}");
        let last = asked.lock().unwrap().last().unwrap().body.clone();
        assert_eq!(String::from_utf8(last).unwrap(), lines(30), "{shown}");
    }
    let (server, _) = scripted(Vec::new()).await;
    let (mut out, _) = sink("http", &http(&server, ""));
    drop(server);
    out.connect().await.unwrap();
    let error = deliver(&mut *out, &batches(3)).await.unwrap_err();
    assert!(matches!(error, ConnectorError::Disconnected { .. }), "{error:?}");
}

fn tcp(listener: &TcpListener, more: &str) -> (Box<dyn Sink>, logdrive_connectors::ConnectorContext) {
    sink("tcp", &format!("endpoint: \"{}\"\n{more}", listener.local_addr().unwrap()))
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn read_all(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn tcp_writes_documents_as_lines() {
    let listener = listen().await;
    let (mut out, cx) = tcp(&listener, "");
    let reader = tokio::spawn(async move { read_all(listener.accept().await.unwrap().0).await });
    assert_eq!(deliver_at_last(&mut *out, &batches(20_000)).await.1, 0);
    out.close().await.unwrap();
    assert!(reader.await.unwrap() == lines(20_000), "bytes differ");
    assert_eq!(count(&cx.metrics.sink_rows), 20_000);
    assert_eq!(count(&cx.metrics.sink_bytes), lines(20_000).len() as u64);
}

#[tokio::test]
async fn tcp_waits_for_a_slow_far_end_and_loses_nothing() {
    let listener = listen().await;
    let (mut out, _) = tcp(&listener, "");
    let reader = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut all, mut piece) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            let n_bytes = stream.read(&mut piece).await.unwrap();
            if n_bytes == 0 {
                return all;
            }
            all.extend_from_slice(&piece[..n_bytes]);
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    });
    let sent = batches(200_000);
    assert_eq!(deliver_at_last(&mut *out, &sent).await.1, 0);
    out.close().await.unwrap();
    assert!(reader.await.unwrap() == lines(200_000).into_bytes(), "bytes differ");
}

#[tokio::test]
async fn tcp_notices_a_far_end_that_closes_midway() {
    let listener = listen().await;
    let (mut out, cx) = tcp(&listener, "");
    let reader = tokio::spawn(async move {
        // The first takes some and leaves, which resets the connection since there is more to read.
        let (mut first, _) = listener.accept().await.unwrap();
        first.read_exact(&mut [0; 1000]).await.unwrap();
        drop(first);
        read_all(listener.accept().await.unwrap().0).await
    });
    let (_, n_errors) = deliver_at_last(&mut *out, &batches(50_000)).await;
    out.close().await.unwrap();
    assert_eq!(n_errors, 1);
    assert!(reader.await.unwrap() == lines(50_000), "the second gets everything");
    assert_eq!((count(&cx.metrics.sink_rows), errors(&cx, "disconnected")), (50_000, 1));
}

#[tokio::test]
async fn tcp_fails_once_the_far_end_has_closed() {
    for linger in [None, Some(Duration::ZERO)] {
        let listener = listen().await;
        let (mut out, _) = tcp(&listener, "");
        out.connect().await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        // With a linger of zero, closing is a reset.
        socket2::SockRef::from(&stream).set_linger(linger).unwrap();
        assert!(deliver(&mut *out, &batches(10)).await.is_ok());
        let mut stream = stream;
        stream.read_exact(&mut vec![0; lines(10).len()]).await.unwrap();
        drop(stream);
        // Loopback: when drop returned, the end of the stream is in the sink's socket.
        let error = match out.write(&batches(10)[0]).await {
            Ok(_) => out.flush(Epoch(2)).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error, ConnectorError::Disconnected { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn tcp_gives_up_on_a_far_end_that_takes_nothing() {
    let listener = listen().await;
    let (mut out, _) = tcp(&listener, "stall_timeout: 300ms");
    out.connect().await.unwrap();
    let _silent = listener.accept().await.unwrap();
    let sent = batches(400_000);
    let error = deliver(&mut *out, &sent).await.unwrap_err();
    assert!(matches!(error, ConnectorError::Disconnected { .. }), "{error:?}");
}

#[tokio::test]
async fn tcp_refused_is_an_error_and_talk_of_the_far_end_is_not() {
    let listener = listen().await;
    let (mut out, cx) = tcp(&listener, "");
    out.connect().await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, &[b'x'; 10_000]).await.unwrap();
    assert!(deliver(&mut *out, &batches(10)).await.is_ok());
    drop((stream, listener));
    let error = out.connect().await.unwrap_err();
    assert!(matches!(error, ConnectorError::Disconnected { .. }), "{error:?}");
    assert!(deliver(&mut *out, &batches(10)).await.is_err(), "without a connection nothing is delivered");
    assert_eq!(count(&cx.metrics.sink_rows), 10);
}
