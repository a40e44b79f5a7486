//! Documents against a naive implementation on maps, and every Arrow type.

use std::sync::Arc;

use arrow::array::types::Int32Type;
use arrow::array::{
    Array, ArrayRef, BinaryArray, BinaryViewArray, BooleanArray, Date32Array, Date64Array, Decimal128Array,
    Decimal256Array, DictionaryArray, FixedSizeBinaryArray, Float32Array, Float64Array, Int8Array,
    Int64Array, LargeStringArray, ListArray, NullArray, RecordBatch, StringArray, StringViewArray,
    StructArray, Time64MicrosecondArray, TimestampMicrosecondArray, TimestampNanosecondArray,
    TimestampSecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Schema, i256};
use logdrive_schemas::{Batch, Edit, Layout, Origin, Partition};
use proptest::prelude::*;
use serde_json::{Map, Value};

use super::*;

fn batch(columns: Vec<(&str, ArrayRef)>, original: &str, layout: Layout) -> Batch {
    let n_rows = columns.first().map_or(1, |(_, column)| column.len());
    let fields: Vec<_> =
        columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(n_rows));
    let rows = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options).unwrap();
    let origin =
        Origin { source: "test".into(), partition: Partition(0), ordered: true, received_at: 0, peer: None };
    let original = BinaryViewArray::from_iter_values(std::iter::repeat_n(original.as_bytes(), n_rows));
    let offsets = UInt64Array::from_iter_values(0..n_rows as u64);
    Batch::new(rows, original, offsets, Arc::new(origin), Arc::new(layout)).unwrap()
}

fn document(batch: &Batch, idx: usize) -> String {
    let mut out = b"before".to_vec();
    Documents::new(batch).write(idx, &mut out);
    assert!(!out.contains(&b'\n') && !out.contains(&b'\r'));
    String::from_utf8(out).unwrap().strip_prefix("before").unwrap().to_owned()
}

/// The document of one column `c`, of whose values the first is a null.
fn check_column(column: impl Array + 'static, expect: &[&str]) {
    let batch = batch(vec![("c", Arc::new(column))], "", Layout::Columns);
    assert_eq!(document(&batch, 0), "{}");
    for (idx, expect) in expect.iter().enumerate() {
        assert_eq!(document(&batch, idx + 1), format!("{{\"c\":{expect}}}"), "{}", batch.schema());
    }
}

#[test]
fn numbers_and_booleans() {
    check_column(NullArray::new(1), &[]);
    check_column(BooleanArray::from(vec![None, Some(true), Some(false)]), &["true", "false"]);
    check_column(Int8Array::from(vec![None, Some(-128)]), &["-128"]);
    check_column(Int64Array::from(vec![None, Some(i64::MIN)]), &["-9223372036854775808"]);
    check_column(UInt64Array::from(vec![None, Some(u64::MAX)]), &["18446744073709551615"]);
    check_column(Float32Array::from(vec![None, Some(0.1)]), &["0.1"]);
    check_column(
        Float64Array::from(vec![None, Some(0.1), Some(f64::NAN), Some(f64::INFINITY), Some(-0.0)]),
        &["0.1", "null", "null", "-0.0"],
    );
}

#[test]
fn decimals_have_all_digits_of_their_scale() {
    let decimal = |values: Vec<Option<i128>>, scale| {
        Decimal128Array::from(values).with_precision_and_scale(38, scale).unwrap()
    };
    check_column(
        decimal(vec![None, Some(1234), Some(-5), Some(0), Some(100)], 2),
        &["12.34", "-0.05", "0.00", "1.00"],
    );
    check_column(decimal(vec![None, Some(7), Some(0)], 0), &["7", "0"]);
    check_column(decimal(vec![None, Some(7), Some(0)], -2), &["700", "0"]);
    check_column(
        decimal(vec![None, Some(i128::MIN + 1)], 38),
        &["-1.70141183460469231731687303715884105727"],
    );
    let large = Decimal256Array::from(vec![None, Some(i256::from_i128(-150))]);
    check_column(large.with_precision_and_scale(76, 2).unwrap(), &["-1.50"]);
}

#[test]
fn points_in_time() {
    let micros =
        [0, 1_704_164_645_000_000, 1_704_164_645_120_000, 1_704_164_645_000_001, -1, 253_402_300_800_000_000];
    let expect = [
        "\"1970-01-01T00:00:00Z\"",
        "\"2024-01-02T03:04:05Z\"",
        "\"2024-01-02T03:04:05.12Z\"",
        "\"2024-01-02T03:04:05.000001Z\"",
        "\"1969-12-31T23:59:59.999999Z\"",
        "\"+010000-01-01T00:00:00Z\"",
    ];
    let values: Vec<_> = std::iter::once(None).chain(micros.into_iter().map(Some)).collect();
    check_column(TimestampMicrosecondArray::from(values.clone()).with_timezone("UTC"), &expect);
    check_column(TimestampMicrosecondArray::from(values), &expect);
    check_column(TimestampSecondArray::from(vec![None, Some(1)]), &["\"1970-01-01T00:00:01Z\""]);
    check_column(
        TimestampNanosecondArray::from(vec![None, Some(1)]),
        &["\"1970-01-01T00:00:00.000000001Z\""],
    );
    check_column(Date32Array::from(vec![None, Some(-1)]), &["\"1969-12-31\""]);
    check_column(Date64Array::from(vec![None, Some(86_400_000)]), &["\"1970-01-02\""]);
    check_column(Time64MicrosecondArray::from(vec![None, Some(1_000_000)]), &["\"00:00:01\""]);
    for extreme in [i64::MIN, i64::MAX] {
        check_column(
            TimestampMicrosecondArray::from(vec![None, Some(extreme)]),
            &[if extreme < 0 {
                "\"-290308-12-21T19:59:05.224192Z\""
            } else {
                "\"+294247-01-10T04:00:54.775807Z\""
            }],
        );
    }
}

#[test]
fn text_and_bytes() {
    let text = "a\"\\\u{1}é\n";
    let json = r#""a\"\\\u0001é\n""#;
    check_column(StringArray::from(vec![None, Some(text)]), &[json]);
    check_column(LargeStringArray::from(vec![None, Some(text)]), &[json]);
    check_column(StringViewArray::from(vec![None, Some(text)]), &[json]);
    check_column(
        DictionaryArray::<Int32Type>::from_iter([None, Some(text), Some("b"), Some(text)]),
        &[json, "\"b\"", json],
    );
    check_column(DictionaryArray::<Int32Type>::from_iter([None::<&str>]), &[]);
    check_column(BinaryArray::from(vec![None, Some(&b"\xff\x00"[..]), Some(b"")]), &["\"/wA=\"", "\"\""]);
    check_column(BinaryViewArray::from(vec![None, Some(&b"abc"[..])]), &["\"YWJj\""]);
    let fixed = FixedSizeBinaryArray::try_from_sparse_iter_with_size([None, Some(b"abcd")].into_iter(), 4);
    check_column(fixed.unwrap(), &["\"YWJjZA==\""]);
}

#[test]
fn nested_values() {
    let list =
        ListArray::from_iter_primitive::<Int32Type, _, _>([None, Some(vec![Some(1), None]), Some(vec![])]);
    check_column(list.clone(), &["[1,null]", "[]"]);
    let fields = vec![
        Arc::new(Field::new("a\"", DataType::Utf8, true)),
        Arc::new(Field::new("l", list.data_type().clone(), true)),
    ];
    let columns: Vec<ArrayRef> =
        vec![Arc::new(StringArray::from(vec![Some("x"), None, None])), Arc::new(list)];
    let nulls = vec![false, true, true].into();
    check_column(
        StructArray::new(fields.into(), columns, Some(nulls)),
        &[r#"{"l":[1,null]}"#, r#"{"l":[]}"#],
    );
}

#[test]
fn documents_can_be_held_across_an_await() {
    fn is_send<T: Send>() {}
    is_send::<Documents<'_>>();
}

#[test]
fn slices_are_respected() {
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([
        Some(vec![Some(1)]),
        None,
        Some(vec![Some(2), Some(3)]),
    ]);
    check_column(list.slice(1, 2), &["[2,3]"]);
    check_column(StringArray::from(vec![Some("x"), None, Some("y")]).slice(1, 2), &["\"y\""]);
    check_column(Int64Array::from(vec![Some(1), None, Some(2)]).slice(1, 2), &["2"]);
}

#[test]
fn an_original_is_one_line() {
    let original = "{\"a\":\r\n [1,\n2], \"b\":\"\\n\"}\r";
    let batch = batch(vec![], original, Layout::Original(vec![]));
    assert_eq!(document(&batch, 0), "{\"a\":   [1, 2], \"b\":\"\\n\"} ");
}

fn spliced(original: &str, edits: &[Edit], columns: Vec<(&str, ArrayRef)>) -> String {
    document(&batch(columns, original, Layout::Original(edits.to_vec())), 0)
}

fn set(key: &str) -> Edit {
    Edit::Set { key: key.into() }
}
fn remove(key: &str) -> Edit {
    Edit::Remove { key: key.into() }
}
fn rename(from: &str, to: &str) -> Edit {
    Edit::Rename { from: from.into(), to: to.into() }
}
fn keep(keys: &[&str]) -> Edit {
    Edit::Keep { keys: keys.iter().map(|k| (*k).into()).collect() }
}
fn int(value: Option<i64>) -> ArrayRef {
    Arc::new(Int64Array::from(vec![value]))
}

#[test]
fn edits_touch_only_what_they_name() {
    let check = |original: &str, edits: &[Edit], columns: Vec<(&str, ArrayRef)>, expect: &str| {
        assert_eq!(spliced(original, edits, columns), expect, "{original} {edits:?}");
    };
    let o = r#"{"a" : 1.50, "b":"\u00e9\/" , "c":{"a":[ ]}}"#;
    check(o, &[set("d")], vec![("d", int(Some(7)))], r#"{"a" : 1.50, "b":"\u00e9\/" , "c":{"a":[ ]},"d":7}"#);
    check(o, &[set("b")], vec![("b", int(Some(7)))], r#"{"a" : 1.50,"b":7,"c":{"a":[ ]}}"#);
    check(o, &[set("b")], vec![("b", int(None))], r#"{"a" : 1.50,"c":{"a":[ ]}}"#);
    check(o, &[set("x")], vec![("x", int(None))], o);
    check(o, &[remove("a"), remove("x")], vec![], r#"{"b":"\u00e9\/" , "c":{"a":[ ]}}"#);
    check(o, &[remove("x"), rename("y", "a")], vec![], o);
    check(o, &[rename("a", "c")], vec![], r#"{"c":1.50,"b":"\u00e9\/"}"#);
    check(o, &[rename("a", "a")], vec![], o);
    check(o, &[keep(&["b"])], vec![], r#"{"b":"\u00e9\/"}"#);
    check(o, &[keep(&[])], vec![], "{}");
    check(
        o,
        &[set("d"), rename("d", "e")],
        vec![("e", int(Some(7)))],
        r#"{"a" : 1.50, "b":"\u00e9\/" , "c":{"a":[ ]},"e":7}"#,
    );
    check(o, &[set("d"), remove("d"), keep(&["a"])], vec![], r#"{"a" : 1.50}"#);
    check("{}", &[set("d")], vec![("d", int(Some(7)))], r#"{"d":7}"#);
    check(r#"{"le\u0076el":1,"x":2}"#, &[remove("level")], vec![], r#"{"x":2}"#);
    check(
        r#"{"le\u0076el":1,"x":2}"#,
        &[set("level")],
        vec![("level", int(Some(7)))],
        r#"{"level":7,"x":2}"#,
    );
    check(r#"{"a":1,"b":2,"a":3}"#, &[set("a")], vec![("a", int(Some(7)))], r#"{"a":7,"b":2}"#);
    check(r#"{"a":1,"b":2,"a":3}"#, &[rename("a", "z")], vec![], r#"{"b":2,"z":3}"#);
    check(
        "{\"a\":\n1,\r\n\"b\":\n[\n]}",
        &[remove("x"), set("d")],
        vec![("d", int(Some(7)))],
        "{\"a\": 1,  \"b\": [ ],\"d\":7}",
    );
}

const KEYS: &[&str] = &["a", "b", "c", "level", "é", "", "x\"y"];

/// A key as JSON, sometimes with escapes where none are needed.
fn quoted_key() -> impl Strategy<Value = (String, String)> {
    (prop::sample::select(KEYS), any::<bool>()).prop_map(|(key, escape)| {
        let quoted = if escape {
            format!("\"{}\"", key.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect::<String>())
        } else {
            serde_json::to_string(key).unwrap()
        };
        (key.to_owned(), quoted)
    })
}

fn member_value() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "1.50",
        "null",
        "true",
        "\"\"",
        "\"}\\\",{\"",
        "\"\\\\\"",
        "[1, \"]\" ]",
        "{\"a\" : { }}",
        "-0e0",
        "[\n]",
        "\"é\"",
    ])
    .prop_map(str::to_owned)
}

fn space() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", "", " ", "\t", "\r\n", "  "])
}

fn edit() -> impl Strategy<Value = Edit> {
    let key = || prop::sample::select(KEYS).prop_map(str::to_owned);
    prop_oneof![
        3 => key().prop_map(|key| Edit::Set { key }),
        2 => key().prop_map(|key| Edit::Remove { key }),
        2 => (key(), key()).prop_map(|(from, to)| Edit::Rename { from, to }),
        1 => prop::collection::vec(key(), 0..6).prop_map(|keys| Edit::Keep { keys }),
    ]
}

/// Edits on a map. A value is a member's index or text; what `Set` puts in is found at the end, under the name that it
/// then has.
fn naive(object: &Map<String, Value>, edits: &[Edit], columns: &Map<String, Value>) -> Map<String, Value> {
    let mut map = object.clone();
    for (idx, edit) in edits.iter().enumerate() {
        match edit {
            Edit::Set { key } => {
                let name = edits[idx + 1..].iter().try_fold(key, |name, edit| match edit {
                    Edit::Keep { keys } => keys.contains(name).then_some(name),
                    Edit::Remove { key } => (key != name).then_some(name),
                    Edit::Rename { from, to } if from == name => Some(to),
                    Edit::Rename { to, .. } => (to != name).then_some(name),
                    Edit::Set { .. } => Some(name),
                });
                match name.and_then(|name| columns.get(name)) {
                    None => {}
                    Some(Value::Null) => {
                        map.remove(key);
                    }
                    Some(value) => {
                        map.insert(key.clone(), value.clone());
                    }
                }
            }
            Edit::Remove { key } => {
                map.remove(key);
            }
            Edit::Rename { from, to } => {
                if let Some(value) = map.remove(from) {
                    map.insert(to.clone(), value);
                }
            }
            Edit::Keep { keys } => map.retain(|key, _| keys.contains(key)),
        }
    }
    map
}

proptest! {
    #[test]
    fn edited_originals_mean_what_edited_maps_mean(
        members in prop::collection::vec((quoted_key(), member_value(), space(), space(), space(), space()), 0..8),
        edits in prop::collection::vec(edit(), 0..6),
        values in prop::collection::vec(prop::option::of(any::<i64>()), KEYS.len()),
    ) {
        let text: Vec<String> = members
            .iter()
            .map(|((_, key), value, s1, s2, s3, s4)| format!("{s1}{key}{s2}:{s3}{value}{s4}"))
            .collect();
        let original = format!("{{{}}}", text.join(","));
        let object: Map<String, Value> = serde_json::from_str(&original).unwrap();
        let columns: Map<String, Value> =
            KEYS.iter().zip(&values).map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
        let arrays = KEYS.iter().zip(&values).map(|(key, value)| (*key, int(*value))).collect();
        let found = spliced(&original, &edits, arrays);
        let expect = naive(&object, &edits, &columns);
        prop_assert_eq!(serde_json::from_str::<Value>(&found).unwrap(), Value::Object(expect), "{} {:?} {}", original, edits, found);
        // Members that no edit names keep their bytes.
        let named = |key: &str| edits.iter().any(|edit| match edit {
            Edit::Set { key: k } | Edit::Remove { key: k } => k == key,
            Edit::Rename { from, to } => from == key || to == key,
            Edit::Keep { keys } => !keys.iter().any(|k| k == key),
        });
        for ((key, quoted), value, _, s2, s3, _) in &members {
            if !named(key) {
                let member = format!("{quoted}{s2}:{s3}{value}").replace(['\r', '\n'], " ");
                prop_assert!(found.contains(&member), "{} lacks {}", found, member);
            }
        }
    }
}
