//! Schemas: a stand-in for the registry, which speaks as Confluent's does, and messages through a real broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use apache_avro::Schema;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use logdrive_connectors::{Budget, ConnectorError};
use prost::encoding::{encode_key, encode_varint, int64, string};
use rdkafka::producer::{BaseRecord, Producer as _};
use serde_json::json;

use crate::broker::{Broker, PATIENCE, connect, recv_messages, source};
use crate::support::server::{Reaction, Server};

const MONEY: &str = r#"{"type":"record","name":"Money","fields":[
    {"name":"amount","type":{"type":"bytes","logicalType":"decimal","precision":10,"scale":2}},
    {"name":"currency","type":{"type":"enum","name":"Currency","symbols":["EUR","USD"]}}]}"#;
const ORDER: &str = r#"{"type":"record","name":"Order","fields":[
    {"name":"id","type":"long"},
    {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"}},
    {"name":"note","type":["null","string"]},
    {"name":"price","type":"Money"},
    {"name":"tags","type":{"type":"map","values":"double"}}]}"#;
const ENDLESS: &str = r#"{"type":"record","name":"Node","fields":[{"name":"next","type":["null","Node"]}]}"#;

/// A length-delimited field of a Protobuf message.
fn part(number: u32, content: &[u8], out: &mut Vec<u8>) {
    encode_key(number, prost::encoding::WireType::LengthDelimited, out);
    encode_varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

/// A field of a message type: name, number, label, kind, and the type's name if it is one.
fn field(name: &str, number: i64, label: i64, kind: i64, of: &str) -> Vec<u8> {
    let mut field = Vec::new();
    string::encode(1, &name.to_owned(), &mut field);
    int64::encode(3, &number, &mut field);
    int64::encode(4, &label, &mut field);
    int64::encode(5, &kind, &mut field);
    if !of.is_empty() {
        string::encode(6, &of.to_owned(), &mut field);
    }
    field
}

/// `message Skipped {} message Event { int64 id = 1; string text = 2; google.protobuf.Timestamp at = 3; repeated
/// Place places = 4; } message Place { string name = 1; }`, with `Place` in a file of its own.
fn descriptors() -> (Vec<u8>, Vec<u8>) {
    let message = |name: &str, fields: &[Vec<u8>]| {
        let mut message = Vec::new();
        string::encode(1, &name.to_owned(), &mut message);
        fields.iter().for_each(|field| part(2, field, &mut message));
        message
    };
    let mut event = Vec::new();
    string::encode(1, &"default".to_owned(), &mut event);
    part(3, b"place.proto", &mut event);
    part(3, b"google/protobuf/timestamp.proto", &mut event);
    part(4, &message("Skipped", &[]), &mut event);
    let fields = [
        field("id", 1, 1, 3, ""),
        field("text", 2, 1, 9, ""),
        field("at", 3, 1, 11, ".google.protobuf.Timestamp"),
        field("places", 4, 3, 11, ".shop.Place"),
    ];
    part(4, &message("Event", &fields), &mut event);
    part(12, b"proto3", &mut event);
    let mut place = Vec::new();
    string::encode(1, &"other".to_owned(), &mut place);
    string::encode(2, &"shop".to_owned(), &mut place);
    part(4, &message("Place", &[field("name", 1, 1, 9, "")]), &mut place);
    part(12, b"proto3", &mut place);
    (event, place)
}

fn with_head(number: u32, body: &[u8]) -> Vec<u8> {
    [&[0], &number.to_be_bytes()[..], body].concat()
}

pub(crate) async fn messages_are_read_by_their_schemas_and_poison_stays_as_it_is(broker: &Broker) {
    broker.topic("schemas", 1, &[]).await;
    let (event, place) = descriptors();
    let n_asked = Arc::new(AtomicUsize::new(0));
    let is_down = Arc::new(AtomicBool::new(true));
    let (asked, down) = (Arc::clone(&n_asked), Arc::clone(&is_down));
    let registry = Server::start(move |request| {
        asked.fetch_add(1, Ordering::SeqCst);
        if down.swap(false, Ordering::SeqCst) {
            return Reaction::status(503);
        }
        assert_eq!(request.headers["authorization"], "Basic dTpw");
        let money = [json!({ "name": "Money", "subject": "money value", "version": 3 })];
        let places = [json!({ "name": "place.proto", "subject": "place", "version": 1 })];
        let answer = match request.target.as_str() {
            "/registry/schemas/ids/1" => json!({ "schema": ORDER, "references": money }),
            "/registry/subjects/money%20value/versions/3" => json!({ "schema": MONEY }),
            "/registry/schemas/ids/2" => json!({ "schemaType": "JSON", "schema": "{}" }),
            "/registry/schemas/ids/3" => {
                json!({ "schemaType": "PROTOBUF", "schema": "the text of it", "references": places })
            }
            "/registry/schemas/ids/3?format=serialized" => {
                json!({ "schemaType": "PROTOBUF", "schema": STANDARD.encode(&event), "references": places })
            }
            "/registry/subjects/place/versions/1?format=serialized" => {
                json!({ "schemaType": "PROTOBUF", "schema": STANDARD.encode(&place) })
            }
            "/registry/schemas/ids/4" => json!({ "schema": ENDLESS }),
            _ => return Reaction::status(404),
        };
        Reaction::json(200, &answer)
    });
    let registry = registry.await;

    let (order, parts) = Schema::parse_str_with_list(ORDER, [MONEY]).unwrap();
    let decimal = apache_avro::Decimal::from([0x04, 0xd2]);
    let record = Value::Record(vec![
        ("id".into(), Value::Long(7)),
        ("at".into(), Value::TimestampMillis(1_700_000_000_123)),
        ("note".into(), Value::Union(1, Box::new(Value::String("a \"quote\"".into())))),
        (
            "price".into(),
            Value::Record(vec![
                ("amount".into(), Value::Decimal(decimal)),
                ("currency".into(), Value::Enum(1, "USD".into())),
            ]),
        ),
        ("tags".into(), Value::Map([("weight".to_owned(), Value::Double(1.5))].into())),
    ]);
    let all = parts.iter().chain([&order]).collect();
    let writer = GenericDatumWriter::builder(&order).schemata(all).unwrap().build().unwrap();
    let avro = writer.write_value_to_vec(record).unwrap();
    // The second type of the file.
    let mut proto = vec![2, 2];
    int64::encode(1, &-5, &mut proto);
    let mut at = Vec::new();
    int64::encode(1, &1_700_000_000, &mut at);
    part(3, &at, &mut proto);
    let mut wien = Vec::new();
    string::encode(1, &"Wien".to_owned(), &mut wien);
    part(4, &wien, &mut proto);

    let poison =
        [b"no head".to_vec(), with_head(99, b"unknown"), with_head(1, &avro[..9]), with_head(4, &[2; 5000])];
    let sent = [
        with_head(1, &avro),
        with_head(2, br#"{"n": 1}"#),
        with_head(3, &proto),
        Vec::new(),
        with_head(3, &[0]),
    ];
    let producer = broker.producer(&[]);
    for payload in sent.iter().chain(&poison) {
        producer.send(BaseRecord::<str, [u8]>::to("schemas").partition(0).payload(payload)).unwrap();
    }
    producer.flush(PATIENCE).unwrap();

    let yaml = format!(
        "endpoint: [\"{}\"]\ntopics: [schemas]\ngroup: schemas\n\
         schema_registry: {{ endpoint: \"{}/registry\", auth: {{ basic: {{ user: u, password: p }} }} }}",
        broker.address(),
        registry.url()
    );
    let (mut source, cx) = source(&yaml);
    connect(&mut *source).await;
    // A registry that is not well is waited for.
    let error = source.recv(Budget::default()).await.unwrap_err();
    assert!(matches!(error, ConnectorError::Disconnected { .. }), "{error:?}");
    connect(&mut *source).await;
    let chunks = recv_messages(&mut *source, sent.len() + poison.len()).await;
    let received: Vec<Vec<u8>> =
        chunks.iter().flat_map(|c| (0..c.messages.len()).map(|n| c.message(n).to_vec())).collect();
    let text = |n: usize| serde_json::from_slice::<serde_json::Value>(&received[n]).unwrap();
    let expect = json!({
        "id": 7, "at": "2023-11-14T22:13:20.123Z", "note": "a \"quote\"",
        "price": { "amount": "12.34", "currency": "USD" }, "tags": { "weight": 1.5 },
    });
    assert_eq!(text(0), expect);
    assert_eq!(received[1], br#"{"n": 1}"#);
    let expect =
        json!({ "id": -5, "text": "", "at": "2023-11-14T22:13:20Z", "places": [{ "name": "Wien" }] });
    assert_eq!(text(2), expect);
    assert!(received[3].is_empty(), "a tombstone stays one");
    assert_eq!(text(4), json!({}), "the first type of the file");
    assert_eq!(received[5..], poison, "what cannot be read stays as it is");
    assert_eq!(cx.metrics.source_errors.with_label_values(&["in", "schema"]).get(), 4);
    assert!(n_asked.load(Ordering::SeqCst) < 12, "schemas are asked for once");
}
