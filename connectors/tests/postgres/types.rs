//! What becomes of each type, in tables that the sink makes and in others.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryViewArray, BooleanArray, Decimal128Array, Float64Array, Int64Array, ListArray,
    RecordBatch, StringViewArray, StructArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Schema};
use logdrive_schemas::{Batch, FieldType, Layout, Origin, Partition};
use serde_json::{Value, json};

use crate::server::Server;
use crate::support::{RECEIVED_AT, count, deliver, sink, texts};

/// Three rows with a column of every type; the second one is empty, the third one has extremes.
fn every_type(partition: u64) -> Batch {
    let of = |text: &str| FieldType::parse(text).unwrap();
    let tags = ListArray::new(
        Arc::new(of("string").field("item")),
        OffsetBuffer::from_lengths([2, 0, 1]),
        Arc::new(StringViewArray::from(vec![Some("a\"b"), None, Some("c,d\\")])),
        Some(vec![true, false, true].into()),
    );
    let place = StructArray::from(vec![(
        Arc::new(Field::new("city", DataType::Utf8View, true)),
        Arc::new(StringViewArray::from(vec![Some("Köln"), None, Some("tab\tand \\")])) as ArrayRef,
    )]);
    let place = StructArray::new(
        place.fields().clone(),
        place.columns().to_vec(),
        Some(vec![true, false, true].into()),
    );
    let time = TimestampMicrosecondArray::from(vec![
        Some(1_700_000_000_123_456),
        None,
        Some(-62_135_596_800_000_000),
    ]);
    let amount = Decimal128Array::from(vec![Some(1_234_567), None, Some(-5)]);
    let columns: Vec<(Field, ArrayRef)> = vec![
        (of("timestamp").field("@timestamp"), Arc::new(time.with_timezone("UTC"))),
        (of("boolean").field("ok"), Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
        (of("int64").field("n"), Arc::new(Int64Array::from(vec![Some(7), None, Some(i64::MIN)]))),
        (of("float64").field("f"), Arc::new(Float64Array::from(vec![Some(0.1), None, Some(f64::INFINITY)]))),
        (of("decimal(12,2)").field("amount"), Arc::new(amount.with_precision_and_scale(12, 2).unwrap())),
        (
            of("string").field("Text \"x\""),
            Arc::new(StringViewArray::from(vec![Some("grüße\n\\N"), None, Some("")])),
        ),
        (
            of("ip").field("ip"),
            Arc::new(StringViewArray::from(vec![Some("10.0.0.1"), None, Some("2001:db8::1")])),
        ),
        (of("list<string>").field("tags"), Arc::new(tags)),
        (Field::new("place", place.fields().clone().into_type(), true), Arc::new(place)),
        (
            Field::new("raw", DataType::BinaryView, true),
            Arc::new(BinaryViewArray::from(vec![Some(&[0_u8, 255][..]), None, Some(&[])])),
        ),
    ];
    let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = columns.into_iter().unzip();
    let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
    let origin = Origin {
        source: "shop".into(),
        partition: Partition(partition),
        ordered: true,
        received_at: RECEIVED_AT,
        peer: None,
    };
    let original =
        BinaryViewArray::from_iter_values([r#"{"whole":1}"#, r#"{"whole":2}"#, r#"{"whole":"ü"}"#]);
    let offsets = UInt64Array::from_iter_values(0..3);
    Batch::new(rows, original, offsets, Arc::new(origin), Arc::new(Layout::Original(Vec::new()))).unwrap()
}

trait IntoType {
    fn into_type(self) -> DataType;
}

impl IntoType for arrow::datatypes::Fields {
    fn into_type(self) -> DataType {
        DataType::Struct(self)
    }
}

fn rows(server: &Server, sql: &str) -> Vec<Value> {
    let text = server.psql(&format!("SET TimeZone = 'UTC'; SELECT to_jsonb(t) FROM ({sql}) AS t"));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) async fn a_table_is_made_from_the_rows_and_gets_their_values(server: &Server) {
    let yaml = server.yaml() + "table: made\ncreate_table: true\ndocument: whole\n";
    let (mut out, cx) = sink("postgres", &yaml);
    out.connect().await.unwrap();
    let rejects = deliver(&mut *out, &[every_type(1)]).await.unwrap();
    assert!(rejects.is_empty(), "{:?}", texts(&rejects, "reason"));
    assert_eq!(count(&cx.metrics.sink_rows), 3);
    let types = "SELECT string_agg(format('%s %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum) \
                 FROM pg_attribute WHERE attrelid = 'made'::regclass AND attnum > 0";
    assert_eq!(
        server.psql(types),
        "@timestamp timestamp with time zone, ok boolean, n bigint, f double precision, amount numeric(12,2), \
         Text \"x\" text, ip inet, tags jsonb, place jsonb, raw bytea, whole jsonb"
    );
    let found = rows(server, "SELECT * FROM made ORDER BY n DESC NULLS LAST");
    assert_eq!(
        found[0],
        json!({
            "@timestamp": "2023-11-14T22:13:20.123456+00:00", "ok": true, "n": 7, "f": 0.1, "amount": 12345.67,
            "Text \"x\"": "grüße\n\\N", "ip": "10.0.0.1", "tags": ["a\"b", null], "place": {"city": "Köln"},
            "raw": "\\x00ff", "whole": {"whole": 1}
        })
    );
    assert_eq!(
        found[1],
        json!({
            "@timestamp": "0001-01-01T00:00:00+00:00", "ok": false, "n": i64::MIN, "f": "Infinity",
            "amount": -0.05, "Text \"x\"": "", "ip": "2001:db8::1", "tags": ["c,d\\"],
            "place": {"city": "tab\tand \\"}, "raw": "\\x", "whole": {"whole": "ü"}
        })
    );
    let nulls = found[2].as_object().unwrap();
    assert!(nulls.iter().all(|(name, value)| value.is_null() != (name == "whole")), "{nulls:?}");
}

pub(crate) async fn a_table_with_types_of_its_own_reads_text(server: &Server) {
    server.psql(
        "CREATE TYPE mood AS ENUM ('grüße\n\\N', ''); CREATE SCHEMA odd; \
         CREATE TABLE odd.types (id bigserial, \"@timestamp\" text, ok text, n varchar(30), f text, \
         amount double precision, \"Text \"\"x\"\"\" mood, ip text, tags text[], place json, raw text, \
         doubled numeric GENERATED ALWAYS AS (amount * 2) STORED, whole text)",
    );
    let (mut out, cx) = sink("postgres", &(server.yaml() + "table: odd.types\ndocument: whole\n"));
    out.connect().await.unwrap();
    let rejects = deliver(&mut *out, &[every_type(1)]).await.unwrap();
    assert!(rejects.is_empty(), "{:?}", texts(&rejects, "reason"));
    assert_eq!(count(&cx.metrics.sink_rows), 3);
    let found = rows(server, "SELECT * FROM odd.types ORDER BY id");
    assert_eq!(
        found[0],
        json!({
            "id": 1, "@timestamp": "2023-11-14T22:13:20.123456Z", "ok": "true", "n": "7", "f": "0.1",
            "amount": 12345.67, "Text \"x\"": "grüße\n\\N", "ip": "10.0.0.1", "tags": ["a\"b", null],
            "place": {"city": "Köln"}, "raw": "\\x00ff", "doubled": 24691.34, "whole": "{\"whole\":1}"
        })
    );
    assert_eq!(found[2]["tags"], json!(["c,d\\"]));
    assert_eq!(found[2]["place"], json!({"city": "tab\tand \\"}));
    // The books are beside the table.
    assert_eq!(server.count("SELECT count(*) FROM odd.logdrive_positions"), 1);
}

pub(crate) async fn columns_are_added_and_others_left_alone(server: &Server) {
    server.psql(
        "CREATE TABLE partly (n bigint, \"@timestamp\" timestamptz NOT NULL, note text DEFAULT 'none')",
    );
    let config = server.yaml() + "table: partly\ncreate_table: true\ncolumns: [\"@timestamp\", n, ok]\n";
    let (mut out, _) = sink("postgres", &config);
    out.connect().await.unwrap();
    assert!(deliver(&mut *out, &[every_type(2)]).await.unwrap().is_empty());
    let found = rows(server, "SELECT * FROM partly ORDER BY n");
    assert_eq!(
        found[1],
        json!({"@timestamp": "2023-11-14T22:13:20.123456+00:00", "n": 7, "ok": true, "note": "none"})
    );
    // A row without a time has that of its arrival, where there must be one.
    assert_eq!(found[2]["@timestamp"], "2026-11-21T11:00:00+00:00");
    // A column that changes its type while rows come is noticed.
    server.psql("ALTER TABLE partly ALTER n TYPE text");
    assert!(deliver(&mut *out, &[every_type(3)]).await.is_err());
    out.connect().await.unwrap();
    assert!(deliver(&mut *out, &[every_type(3)]).await.unwrap().is_empty());
    assert_eq!(
        server.psql("SELECT string_agg(n, ' ' ORDER BY n) FROM partly"),
        format!("{0} {0} 7 7", i64::MIN)
    );
}

/// TimescaleDB itself is in no package of Debian: what it is asked for is noted.
pub(crate) async fn where_timescale_is_a_table_becomes_a_hypertable(server: &Server) {
    server.psql(
        "CREATE TABLE asked (of regclass, by name); \
         CREATE FUNCTION create_hypertable(of regclass, by name, if_not_exists boolean) RETURNS void LANGUAGE sql \
         AS 'INSERT INTO asked VALUES ($1, $2)'",
    );
    for (name, more) in [("hyper", ""), ("flat", "hypertable: false\n")] {
        let yaml = format!("{}table: {name}\ncreate_table: true\n{more}", server.yaml());
        let (mut out, _) = sink("postgres", &yaml);
        out.connect().await.unwrap();
        assert!(deliver(&mut *out, &[every_type(4)]).await.unwrap().is_empty());
    }
    assert_eq!(server.psql("SELECT * FROM asked"), "hyper|@timestamp");
    server.psql("DROP FUNCTION create_hypertable");
}
