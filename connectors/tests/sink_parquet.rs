//! The Parquet sink as a pipeline uses it: from YAML, every type there and back.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Write as _, stdout};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, BooleanArray, Decimal128Array, Float64Array, Int64Array,
    ListBuilder, RecordBatch, StringViewArray, StringViewBuilder, StructArray, TimestampMicrosecondArray,
    UInt64Array,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::DataType;
use logdrive_connectors::sinks::parquet::{committed_files, committed_objects};
use logdrive_connectors::{ConnectorContext, Metrics, SINKS, Sink};
use logdrive_schemas::component::Node;
use logdrive_schemas::{Batch, Epoch, FieldType, Layout, Origin, Partition, RowSchema};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tokio_util::sync::CancellationToken;

fn build(yaml: &str, state: &Path) -> Box<dyn Sink> {
    let cx = ConnectorContext {
        name: "lake".into(),
        state_dir: state.to_owned(),
        metrics: Arc::new(Metrics::new()),
        shutdown: CancellationToken::new(),
    };
    let entry = SINKS.iter().find(|entry| entry.name == "parquet").unwrap();
    (entry.build)(&Node::parse(yaml.as_bytes(), Default::default()).unwrap(), &cx).unwrap()
}

fn schema() -> RowSchema {
    let field = |name: &str, field_type| (name.to_owned(), field_type);
    RowSchema::of_fields(vec![
        field("@timestamp", FieldType::Timestamp),
        field("amount", FieldType::Decimal(12, 2)),
        field("ip", FieldType::Ip),
        field("ok", FieldType::Boolean),
        field("tags", FieldType::List(Box::new(FieldType::String))),
        field("where", FieldType::GeoPoint),
        field(
            "payment",
            FieldType::Object(vec![
                field("method", FieldType::String),
                field("n", FieldType::Int64),
                field("nothing", FieldType::Object(Vec::new())),
            ]),
        ),
        field("empty", FieldType::Object(Vec::new())),
    ])
}

/// Two rows: one with every value, one without any.
fn rows() -> RecordBatch {
    let schema = schema();
    let mut tags = ListBuilder::new(StringViewBuilder::new());
    tags.values().append_value("a tag that is too long for a view to hold it");
    tags.values().append_null();
    tags.append(true);
    tags.append(false);
    let struct_of = |field_type: &FieldType, columns: Vec<ArrayRef>| -> ArrayRef {
        let DataType::Struct(fields) = field_type.arrow() else { unreachable!() };
        Arc::new(StructArray::new(fields, columns, Some(NullBuffer::from(vec![true, false]))))
    };
    let nothing: ArrayRef = Arc::new(StructArray::new_empty_fields(2, None));
    let times = TimestampMicrosecondArray::from(vec![Some(1_789_000_000_123_456), None]).with_timezone("UTC");
    let decimals = Decimal128Array::from(vec![Some(1_999), None]).with_precision_and_scale(12, 2).unwrap();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(times),
        Arc::new(decimals),
        Arc::new(StringViewArray::from(vec![Some("2001:db8::1"), None])),
        Arc::new(BooleanArray::from(vec![Some(true), None])),
        Arc::new(tags.finish()),
        struct_of(
            &schema.fields[5].1,
            vec![
                Arc::new(Float64Array::from(vec![Some(52.5), None])),
                Arc::new(Float64Array::from(vec![Some(13.4), None])),
            ],
        ),
        struct_of(
            &schema.fields[6].1,
            vec![
                Arc::new(StringViewArray::from(vec![Some("card"), None])),
                Arc::new(Int64Array::from(vec![Some(i64::MIN), None])),
                Arc::clone(&nothing),
            ],
        ),
        nothing,
    ];
    RecordBatch::try_new(schema.arrow(), columns).unwrap()
}

#[tokio::test]
async fn every_type_there_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().join("lake");
    let yaml = format!("{{path: {}, partition_by: [ok, date, hour]}}", lake.display());
    let mut sink = build(&yaml, &folder.path().join("state"));
    let origin = Origin {
        source: "shop".into(),
        partition: Partition(1),
        ordered: true,
        received_at: 1_789_100_000_000_000,
        peer: None,
    };
    let input = rows();
    let original = BinaryViewArray::from_iter_values([&b"{\"not utf-8\": \"\xff\"}"[..], b"{}"]);
    let offsets = UInt64Array::from(vec![u64::MAX - 1, u64::MAX]);
    let layout = Arc::new(Layout::Original(Vec::new()));
    let batch = Batch::new(input.clone(), original.clone(), offsets, Arc::new(origin), layout).unwrap();
    sink.connect().await.unwrap();
    assert!(sink.write(&batch).await.unwrap().is_none());
    assert!(committed_files(&lake).unwrap().is_empty(), "nothing is visible before the flush");
    sink.flush(Epoch(1)).await.unwrap();
    sink.close().await.unwrap();

    let mut files = committed_files(&lake).unwrap();
    files.sort_by_key(|file| file.min_time);
    let folders: Vec<&str> = files
        .iter()
        .map(|file| Path::new(&file.path).parent().unwrap().strip_prefix(&lake).unwrap().to_str().unwrap())
        .collect();
    assert_eq!(
        folders,
        ["ok=true/date=2026-09-10/hour=00", "ok=__HIVE_DEFAULT_PARTITION__/date=2026-09-11/hour=04"]
    );
    for (idx, file) in files.iter().enumerate() {
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&file.path).unwrap()).unwrap();
        let read = reader.build().unwrap().next().unwrap().unwrap();
        assert_eq!(read.num_rows(), 1);
        for name in ["@timestamp", "amount", "ip", "ok", "tags", "where"] {
            let (want, got) = (input.column_by_name(name).unwrap(), read.column_by_name(name).unwrap());
            assert_eq!(&want.slice(idx, 1), got, "{name}");
            assert_eq!(
                read.schema().field_with_name(name).unwrap(),
                input.schema().field_with_name(name).unwrap()
            );
        }
        // Parquet has no structs without fields: only those are left out.
        let (want, got) = (input.column_by_name("payment").unwrap(), read.column_by_name("payment").unwrap());
        let (want, got) = (want.as_struct().slice(idx, 1), got.as_struct());
        assert_eq!((got.num_columns(), got.is_null(0)), (2, want.is_null(0)));
        assert_eq!(want.column(0), got.column(0));
        assert_eq!(want.column(1), got.column(1));
        assert!(read.column_by_name("empty").is_none());
        let originals = read.column_by_name("_original").unwrap();
        assert_eq!(originals.as_binary_view().value(0), original.value(idx));
        let positions = read.column_by_name("_position").unwrap();
        let offset = u64::MAX - 1 + idx as u64;
        assert_eq!(positions.as_string_view().value(0), format!("0000000000000001:{offset}"));
    }
}

/// Against a real S3 server: `LOGDRIVE_TEST_S3=s3://bucket/prefix`, with `AWS_ENDPOINT`, `AWS_ALLOW_HTTP`,
/// `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` as the object store reads them.
#[tokio::test]
async fn an_s3_server_takes_a_lake() {
    let Ok(url) = std::env::var("LOGDRIVE_TEST_S3") else {
        writeln!(&mut stdout(), "skipped: an_s3_server_takes_a_lake: no S3 server at hand").unwrap();
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let url = format!("{url}/{}", folder.path().file_name().unwrap().to_str().unwrap());
    let origin = Origin {
        source: "shop".into(),
        partition: Partition(1),
        ordered: true,
        received_at: 1_789_100_000_000_000,
        peer: None,
    };
    let original = BinaryViewArray::from_iter_values([b"{}", b"{}"]);
    let layout = Arc::new(Layout::Original(Vec::new()));
    let batch =
        Batch::new(rows(), original, UInt64Array::from(vec![1, 2]), Arc::new(origin), layout).unwrap();
    for _ in 0..2 {
        let mut sink = build(&format!("{{path: '{url}', partition_by: [ip, date]}}"), folder.path());
        sink.connect().await.unwrap();
        sink.write(&batch).await.unwrap();
        sink.flush(Epoch(1)).await.unwrap();
    }
    let files = committed_objects(&url, &BTreeMap::new()).await.unwrap();
    assert_eq!(files.iter().map(|file| file.rows).sum::<u64>(), 2, "the second run was a replay");
}

#[test]
fn a_lake_that_does_not_exist_has_no_files() {
    assert!(committed_files(Path::new("no/such/lake")).unwrap().is_empty());
}
