//! What the sink sends in other encodings than JSON, read back: by our own source with a registry (a stand-in for it), by
//! the Avro library, by Arrow's reader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use arrow::array::{
    ArrayRef, AsArray as _, Decimal128Array, Int64Array, ListArray, RecordBatch, StringViewArray,
    StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int64Type};
use arrow::ipc::reader::StreamReader;
use logdrive_connectors::ConnectorError;
use logdrive_schemas::Batch;
use serde_json::{Value, json};

use crate::broker::{Broker, PATIENCE, connect, recv, recv_messages, source, texts};
use crate::sink::from_kafka;
use crate::support::server::{Reaction, Server};
use crate::support::{batch, count, deliver, deliver_at_last, sink, texts as column};

/// Schemas by number, and the numbers of subjects.
#[derive(Default)]
struct Registered {
    schemas: Vec<Value>,
    subjects: BTreeMap<String, BTreeSet<usize>>,
    n_asked: usize,
    is_down: bool,
}

impl Registered {
    fn react(&mut self, method: &str, target: &str, body: &[u8]) -> Reaction {
        self.n_asked += 1;
        if self.is_down {
            return Reaction::status(503);
        }
        let parts: Vec<&str> = target.trim_start_matches('/').split('/').collect();
        match (method, parts.as_slice()) {
            ("POST", ["subjects", subject, rest @ ..]) => {
                let asked: Value = serde_json::from_slice(body).unwrap();
                let found = self.schemas.iter().position(|known| *known == asked);
                let is_there =
                    |numbers: &BTreeSet<usize>| found.is_some_and(|found| numbers.contains(&found));
                if rest.is_empty() && !self.subjects.get(*subject).is_some_and(is_there) {
                    return Reaction::json(
                        404,
                        &json!({ "error_code": 40_401, "message": "no such subject" }),
                    );
                }
                if *subject == "taken-value" {
                    return Reaction::json(409, &json!({ "error_code": 409, "message": "incompatible" }));
                }
                let number = found.unwrap_or_else(|| {
                    self.schemas.push(asked);
                    self.schemas.len() - 1
                });
                self.subjects.entry((*subject).to_owned()).or_default().insert(number);
                Reaction::json(200, &json!({ "id": number + 1 }))
            }
            ("GET", ["schemas", "ids", number]) => {
                let number: usize = number.parse().unwrap();
                self.schemas
                    .get(number - 1)
                    .map_or(Reaction::status(404), |schema| Reaction::json(200, schema))
            }
            _ => Reaction::status(404),
        }
    }
}

async fn registry() -> (Server, Arc<Mutex<Registered>>) {
    let registered: Arc<Mutex<Registered>> = Arc::default();
    let inner = Arc::clone(&registered);
    let server = Server::start(move |request| {
        inner.lock().unwrap().react(&request.method, &request.target, &request.body)
    });
    (server.await, registered)
}

/// Rows with a column of many types, which leave as `documents` where they leave as JSON.
fn rows(first: u64, n_rows: usize) -> Batch {
    let numbers = || (first as i64..).take(n_rows);
    let time: TimestampMicrosecondArray = numbers().map(|n| Some(1_700_000_000_000_000 + n)).collect();
    let amount: Decimal128Array = numbers().map(|n| (n % 3 > 0).then_some(i128::from(n) * 25)).collect();
    let tags = ListArray::new(
        Arc::new(Field::new("item", DataType::Utf8View, true)),
        OffsetBuffer::from_lengths((0..n_rows).map(|n| n % 2)),
        Arc::new((0..n_rows / 2).map(|n| Some(format!("t{n}"))).collect::<StringViewArray>()),
        None,
    );
    let place = StructArray::from(vec![(
        Arc::new(Field::new("city", DataType::Utf8View, true)),
        Arc::new(numbers().map(|n| (n % 2 == 0).then(|| format!("Köln {n}"))).collect::<StringViewArray>())
            as ArrayRef,
    )]);
    let tenants: StringViewArray = numbers().map(|n| Some(["a", "b"][n as usize % 2])).collect();
    let columns: [(&str, ArrayRef); 6] = [
        ("@timestamp", Arc::new(time.with_timezone("UTC"))),
        ("n", Arc::new(numbers().map(Some).collect::<Int64Array>())),
        ("amount", Arc::new(amount.with_precision_and_scale(12, 2).unwrap())),
        ("tags", Arc::new(tags)),
        ("place", Arc::new(place)),
        ("tenant", Arc::new(tenants)),
    ];
    let documents: Vec<String> = numbers().map(|n| format!("{{\"n\":{n},\"more\":[{n}]}}")).collect();
    batch(3, first, &documents, &columns)
}

fn yaml(broker: &Broker, rest: &str) -> String {
    format!("endpoint: [\"{}\"]\n{rest}", broker.address())
}

pub(crate) async fn avro_and_json_by_a_registry_come_back(broker: &Broker) {
    let (server, registered) = registry().await;
    for topic in ["avro-a", "avro-b", "framed", "taken"] {
        broker.topic(topic, 1, &[]).await;
    }
    let with =
        |rest: &str| yaml(broker, &format!("{rest}\nschema_registry: {{ endpoint: \"{}\" }}", server.url()));
    let (mut avro, cx) = sink("kafka", &with("topic: \"avro-{tenant}\"\nencoding: avro\nkey: \"{n}\""));
    registered.lock().unwrap().is_down = true;
    avro.connect().await.unwrap();
    let error = deliver(&mut *avro, &[rows(0, 10)]).await.unwrap_err();
    assert!(matches!(error, ConnectorError::Disconnected { .. }), "{error:?}");
    registered.lock().unwrap().is_down = false;
    let (rejects, _) = deliver_at_last(&mut *avro, &[rows(0, 10), rows(10, 490)]).await;
    assert!(rejects.is_empty());
    assert_eq!(count(&cx.metrics.sink_rows), 500);
    {
        let registered = registered.lock().unwrap();
        assert_eq!(registered.subjects.keys().collect::<Vec<_>>(), ["avro-a-value", "avro-b-value"]);
        assert_eq!(registered.schemas.len(), 1);
        assert!(registered.n_asked < 6, "each subject is asked for once: {}", registered.n_asked);
    }
    let (mut framed, _) = sink("kafka", &with("topic: framed"));
    deliver_at_last(&mut *framed, &[rows(0, 100)]).await;

    // Back through our own source.
    let read = |topics: &str| {
        format!(
            "topics: [{topics}]\ngroup: \"back{}\"\nschema_registry: {{ endpoint: \"{}\" }}",
            topics.len(),
            server.url()
        )
    };
    let (mut back, cx) = source(&yaml(broker, &read("\"^avro-.*\"")));
    connect(&mut *back).await;
    let mut found: Vec<Value> = texts(&recv_messages(&mut *back, 500).await)
        .iter()
        .map(|t| serde_json::from_str(t).unwrap())
        .collect();
    found.sort_by_key(|document| document["n"].as_i64());
    assert_eq!(
        found[7],
        json!({
            "@timestamp": "2023-11-14T22:13:20.000007Z", "n": 7, "amount": "1.75", "tags": ["t3"],
            "place": { "city": null }, "tenant": "b"
        })
    );
    assert_eq!(found[6]["place"]["city"], "Köln 6");
    assert!(found[6]["amount"].is_null() && found[6]["tags"] == json!([]));
    assert_eq!(
        found.iter().map(|document| document["n"].as_i64().unwrap()).collect::<Vec<_>>(),
        (0..500).collect::<Vec<_>>()
    );
    let (mut back, _) = source(&yaml(broker, &read("framed")));
    connect(&mut *back).await;
    let framed = texts(&recv_messages(&mut *back, 100).await);
    assert_eq!(framed[99], "{\"n\":99,\"more\":[99]}", "a document is what it was");
    assert_eq!(cx.metrics.source_errors.with_label_values(&["in", "schema"]).get(), 0);

    // A schema that does not fit what is registered, or that is only looked for, and is not there.
    let (mut taken, _) = sink("kafka", &with("topic: taken\nencoding: avro"));
    taken.connect().await.unwrap();
    let error = deliver(&mut *taken, &[rows(0, 1)]).await.unwrap_err();
    assert!(
        matches!(&error, ConnectorError::Refused { reason, .. } if reason.contains("incompatible")),
        "{error:?}"
    );
    let looks = format!(
        "topic: framed\nencoding: avro\nschema_registry: {{ endpoint: \"{}\", register: false }}",
        server.url()
    );
    let (mut looking, _) = sink("kafka", &yaml(broker, &looks));
    looking.connect().await.unwrap();
    assert!(matches!(deliver(&mut *looking, &[rows(0, 1)]).await, Err(ConnectorError::Disconnected { .. })));
    registered.lock().unwrap().subjects.entry("framed-value".into()).or_default().insert(0);
    assert!(deliver_at_last(&mut *looking, &[rows(0, 1)]).await.0.is_empty());
}

/// All rows of Arrow messages, and how many messages there were.
fn read(messages: &[Vec<u8>]) -> Vec<RecordBatch> {
    let of = |message: &Vec<u8>| {
        StreamReader::try_new(message.as_slice(), None).unwrap().map(Result::unwrap).collect::<Vec<_>>()
    };
    messages.iter().flat_map(of).collect()
}

fn numbers(batches: &[RecordBatch]) -> Vec<i64> {
    let of = |batch: &RecordBatch| {
        batch.column_by_name("n").unwrap().as_primitive::<Int64Type>().values().to_vec()
    };
    batches.iter().flat_map(of).collect()
}

async fn received(broker: &Broker, topic: &str, n_messages: usize) -> Vec<Vec<u8>> {
    let (mut back, _) = source(&yaml(broker, &format!("topics: [{topic}]\ngroup: \"of-{topic}\"")));
    connect(&mut *back).await;
    let chunks = recv_messages(&mut *back, n_messages).await;
    chunks
        .iter()
        .flat_map(|c| (0..c.messages.len()).map(|n| c.message(n).to_vec()).collect::<Vec<_>>())
        .collect()
}

pub(crate) async fn arrow_batches_come_back_within_their_bounds(broker: &Broker) {
    broker.topic("arrow", 1, &[]).await;
    broker.topic("arrow-small", 1, &[("max.message.bytes", "20000")]).await;
    broker.topic("arrow-exact", 1, &[("max.message.bytes", "20000")]).await;
    // One message for each batch.
    let (mut out, cx) = sink("kafka", &yaml(broker, "topic: arrow\nencoding: arrow\nkey: all"));
    assert!(deliver_at_last(&mut *out, &[rows(0, 1000), rows(1000, 500)]).await.0.is_empty());
    assert_eq!(count(&cx.metrics.sink_rows), 1500);
    let batches = read(&received(broker, "arrow", 2).await);
    assert_eq!(numbers(&batches), (0..1500).collect::<Vec<_>>());
    let place = batches[1].column_by_name("place").unwrap().as_struct().column(0).as_string::<i32>();
    assert_eq!(place.value(0), "Köln 1000");

    // As many as the client's bound asks for.
    let bound = "topic: arrow\nencoding: arrow\noptions: { message.max.bytes: 10000 }";
    let (mut out, _) = sink("kafka", &yaml(broker, bound));
    assert!(deliver_at_last(&mut *out, &[rows(1500, 1000)]).await.0.is_empty());
    let (mut back, _) = source(&yaml(broker, "topics: [arrow]\ngroup: bounded"));
    connect(&mut *back).await;
    let mut messages: Vec<Vec<u8>> = Vec::new();
    while numbers(&read(&messages)).len() < 2500 {
        let chunk = recv(&mut *back, PATIENCE).await.unwrap();
        messages.extend((0..chunk.messages.len()).map(|n| chunk.message(n).to_vec()));
    }
    assert!(messages[2..].iter().all(|message| message.len() < 10_000) && messages.len() > 5);
    assert_eq!(numbers(&read(&messages)), (0..2500).collect::<Vec<_>>());

    // A topic that takes less than the client knows: what is refused comes in smaller messages, and a row that is too
    // large alone is a reject. With transactions, too.
    let long = |n: usize| if n == 700 { "x".repeat(50_000) } else { format!("row {n}") };
    let documents: Vec<String> = (0..1000).map(|n| format!("{{\"n\":{n}}}")).collect();
    let texts: ArrayRef = Arc::new((0..1000).map(|n| Some(long(n))).collect::<StringViewArray>());
    let numbered: ArrayRef = Arc::new((0..1000).map(Some).collect::<Int64Array>());
    for (topic, more) in [("arrow-small", ""), ("arrow-exact", "\ntransactional_id: arrow")] {
        let plain = batch(9, 0, &documents, &[("n", Arc::clone(&numbered)), ("text", Arc::clone(&texts))]);
        let rows = match more {
            "" => plain,
            _ => {
                let of = from_kafka(0, &documents);
                of.clone().with_rows(plain.rows().clone(), Arc::clone(of.layout()))
            }
        };
        let rest = format!("topic: {topic}\nencoding: arrow\ncompression: none{more}");
        let (mut out, cx) = sink("kafka", &yaml(broker, &rest));
        let (rejects, n_errors) = deliver_at_last(&mut *out, &[rows]).await;
        assert_eq!((column(&rejects, "original"), n_errors), (vec![documents[700].clone()], 0), "{topic}");
        assert_eq!(count(&cx.metrics.sink_rows), 999, "{topic}");
        out.close().await.unwrap();
        let (mut back, _) = source(&yaml(broker, &format!("topics: [{topic}]\ngroup: {topic}")));
        connect(&mut *back).await;
        let mut found = Vec::new();
        while found.len() < 999 {
            let chunk = recv(&mut *back, PATIENCE).await.unwrap();
            for n in 0..chunk.messages.len() {
                found.extend(numbers(&read(&[chunk.message(n).to_vec()])));
            }
        }
        found.sort_unstable();
        assert_eq!(found, (0..1000).filter(|n| *n != 700).collect::<Vec<_>>(), "{topic}");
    }
}
