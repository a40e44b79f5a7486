//! Streams, lists and channels as sinks.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringViewArray};
use logdrive_schemas::Batch;
use redis::{Value, cmd};

use crate::certificates::Certificates;
use crate::server::Server;
use crate::support::{batch, count, deliver, sink, texts};

fn rows(n: usize) -> Batch {
    let documents: Vec<_> = (0..n).map(|n| format!("{{\"n\":{n}}}")).collect();
    let tenants: StringViewArray = (0..n).map(|n| (n % 10 != 9).then_some(["a", "b"][n % 2])).collect();
    batch(1, 0, &documents, &[("tenant", Arc::new(tenants) as ArrayRef)])
}

pub(crate) async fn documents_become_entries_elements_and_messages(server: &Server) {
    let mut connection = server.connection();
    let head = format!("endpoint: \"{}\"\n", server.url());
    let (mut stream, cx) = sink("redis", &(head.clone() + "key: \"to:{tenant}\"\n"));
    stream.connect().await.unwrap();
    let rejects = deliver(&mut *stream, &[rows(3000)]).await.unwrap();
    assert_eq!(count(&cx.metrics.sink_rows), 2700);
    assert_eq!(rejects.iter().map(Batch::num_rows).sum::<usize>(), 300);
    assert!(texts(&rejects, "reason")[0].starts_with("redis_key"));
    assert_eq!(cmd("XLEN").arg("to:a").query::<i64>(&mut connection).unwrap(), 1500);
    let first: Value =
        cmd("XRANGE").arg("to:b").arg("-").arg("+").arg("COUNT").arg(1).query(&mut connection).unwrap();
    assert!(format!("{first:?}").contains(r#"{\"n\":1}"#), "{first:?}");

    let (mut short, _) = sink("redis", &(head.clone() + "key: short\nmax_length: 100\n"));
    short.connect().await.unwrap();
    deliver(&mut *short, &[rows(2000)]).await.unwrap();
    let n_left = cmd("XLEN").arg("short").query::<i64>(&mut connection).unwrap();
    assert!((100..400).contains(&n_left), "{n_left}");

    let (mut list, _) = sink("redis", &(head.clone() + "key: list\ndata_type: list\nmax_length: 50\n"));
    list.connect().await.unwrap();
    deliver(&mut *list, &[rows(200)]).await.unwrap();
    let elements: Vec<String> = cmd("LRANGE").arg("list").arg(0).arg(-1).query(&mut connection).unwrap();
    assert_eq!((elements.len(), elements[49].as_str()), (50, "{\"n\":199}"));

    let (mut channel, _) = sink("redis", &(head + "key: channel\ndata_type: channel\n"));
    channel.connect().await.unwrap();
    let mut listening = server.connection();
    let mut listening = listening.as_pubsub();
    listening.subscribe("channel").unwrap();
    deliver(&mut *channel, &[rows(10)]).await.unwrap();
    for n in 0..10 {
        assert_eq!(
            listening.get_message().unwrap().get_payload::<String>().unwrap(),
            format!("{{\"n\":{n}}}")
        );
    }
}

pub(crate) async fn what_holds_something_else_makes_rejects(server: &Server) {
    let mut connection = server.connection();
    cmd("SET").arg("taken:a").arg("text").exec(&mut connection).unwrap();
    let (mut stream, _) =
        sink("redis", &format!("endpoint: \"{}\"\nkey: \"taken:{{tenant}}x\"\n", server.url()));
    stream.connect().await.unwrap();
    cmd("SET").arg("taken:ax").arg("text").exec(&mut connection).unwrap();
    let rejects = deliver(&mut *stream, &[rows(8)]).await.unwrap();
    assert_eq!(rejects.iter().map(Batch::num_rows).sum::<usize>(), 4);
    assert!(texts(&rejects, "reason")[0].starts_with("redis_wrongtype"));
    assert_eq!(cmd("XLEN").arg("taken:bx").query::<i64>(&mut connection).unwrap(), 4);
    // A server that is not a master takes nothing, and will.
    cmd("REPLICAOF").arg("127.0.0.1").arg(9).exec(&mut connection).unwrap();
    assert!(deliver(&mut *stream, &[rows(2)]).await.is_err());
    cmd("REPLICAOF").arg("NO").arg("ONE").exec(&mut connection).unwrap();
    stream.connect().await.unwrap();
    deliver(&mut *stream, &[rows(2)]).await.unwrap();
}

pub(crate) async fn a_server_that_asks_for_certificates_takes_documents(
    server: &Server,
    certificates: &Certificates,
) {
    let path = |name: &str| certificates.path(name).display().to_string();
    let tls = format!(
        "tls: {{ ca: \"{}\", certificate: \"{}\", key: \"{}\" }}\n",
        path("ca.pem"),
        path("client.pem"),
        path("client.key")
    );
    let head = "endpoint: \"rediss://localhost:21222\"\nkey: secure\n";
    let (mut stranger, _) = sink("redis", &format!("{head}password: wrong\n{tls}"));
    assert!(stranger.connect().await.is_err());
    let (mut plain, _) = sink("redis", &format!("endpoint: \"{}\"\nkey: secure\n", server.url()));
    assert!(plain.connect().await.is_err() || deliver(&mut *plain, &[rows(3)]).await.is_err());
    let (mut good, cx) = sink("redis", &format!("{head}password: s3cret\n{tls}"));
    good.connect().await.unwrap();
    deliver(&mut *good, &[rows(500)]).await.unwrap();
    assert_eq!(count(&cx.metrics.sink_rows), 500);
}
