//! The decoder against the JSON test suite, naughty strings, and serde_json.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use logdrive_schemas::FieldType;
use proptest::prelude::*;
use serde::de::IgnoredAny;
use serde_json::Value as Json;

use super::*;
pub(super) use crate::decoders::texts::testing::chunk;
use crate::document::Documents;

pub(super) fn decoder(fields: &[(&str, &str)]) -> JsonDecoder {
    let fields = fields.iter().map(|(name, t)| ((*name).into(), FieldType::parse(t).unwrap())).collect();
    JsonDecoder::new(&RowSchema::of_fields(fields))
}

pub(super) fn reasons(decoded: &Decoded) -> Vec<String> {
    decoded
        .rejects
        .iter()
        .flat_map(|batch| {
            batch.rows().column(0).as_string_view().iter().flatten().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect()
}

/// Decodes one message; `Err` is its reject's reason.
fn decode_one(decoder: &mut JsonDecoder, message: impl AsRef<[u8]>) -> Result<Batch, String> {
    let decoded = decoder.decode(&chunk(&[message]));
    match decoded.rows {
        Some(rows) => {
            assert!(decoded.rejects.is_none());
            for column in rows.rows().columns() {
                column.to_data().validate_full().unwrap();
            }
            Ok(rows)
        }
        None => Err(reasons(&decoded).remove(0)),
    }
}

/// Decodes `{"f": value}` with `f` of that type and writes the column as JSON; `Err` is the reject's code.
fn check(field_type: &str, value: &str, expect: Result<&str, &str>) {
    let mut decoder = decoder(&[("f", field_type)]);
    let found = decode_one(&mut decoder, format!("{{\"f\":{value}}}")).map(columns_as_json);
    let found = found.map_err(|reason| reason.split(':').next().unwrap().to_owned());
    let expect = expect
        .map(|text| format!("{{{}}}", if text.is_empty() { String::new() } else { format!("\"f\":{text}") }));
    assert_eq!(found, expect.map_err(str::to_owned), "{field_type} from {value}");
}

fn columns_as_json(batch: Batch) -> String {
    let rows = batch.rows().clone();
    let mut out = Vec::new();
    Documents::new(&batch.with_rows(rows, Arc::new(Layout::Columns))).write(0, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn strings_take_any_value() {
    check("string", r#""plain""#, Ok(r#""plain""#));
    check("string", r#""a\tb\u00e9\ud83d\ude00""#, Ok("\"a\\tbé😀\""));
    check("string", r#""\u0000""#, Ok(r#""\u0000""#));
    check("string", r#""""#, Ok(r#""""#));
    check("string", r#""\\""#, Ok(r#""\\""#));
    check("string", r#""\"""#, Ok(r#""\"""#));
    check("string", "1.50", Ok(r#""1.50""#));
    check("string", "1e999", Ok(r#""1e999""#));
    check("string", "true", Ok(r#""true""#));
    check("string", r#" { "a" : ["}", 1 ] } "#, Ok(r#""{ \"a\" : [\"}\", 1 ] }""#));
    check("string", "null", Ok(""));
}

#[test]
fn integers() {
    check("int64", "1", Ok("1"));
    check("int64", "-0", Ok("0"));
    check("int64", "1.0", Ok("1"));
    check("int64", "1e3", Ok("1000"));
    check("int64", "9223372036854775807", Ok("9223372036854775807"));
    check("int64", "-9223372036854775808", Ok("-9223372036854775808"));
    check("int64", "9007199254740993.0", Ok("9007199254740993"));
    check("int64", "9223372036854775808", Err("number_out_of_range"));
    check("int64", "123456789012345678901234567890", Err("number_out_of_range"));
    check("int64", "1.5", Err("number_out_of_range"));
    check("int64", "1e999", Err("number_out_of_range"));
    check("int64", r#""1""#, Err("wrong_type"));
    check("int64", "true", Err("wrong_type"));
    check("int64", "[1]", Err("wrong_type"));
}

#[test]
fn floats() {
    check("float64", "1", Ok("1.0"));
    check("float64", "-1.5e3", Ok("-1500.0"));
    check("float64", "18446744073709551616", Ok("1.8446744073709552e+19"));
    check("float64", "1e-999", Ok("0.0"));
    check("float64", "1e999", Err("number_out_of_range"));
    check("float64", "-1e999", Err("number_out_of_range"));
    check("float64", r#""1.5""#, Err("wrong_type"));
    check("float64", "null", Ok(""));
}

#[test]
fn decimals() {
    check("decimal(10,2)", "12.34", Ok("12.34"));
    check("decimal(10,2)", "12", Ok("12.00"));
    check("decimal(10,2)", "-0.05", Ok("-0.05"));
    check("decimal(10,2)", r#""12.3""#, Ok("12.30"));
    check(
        "decimal(38,0)",
        "12345678901234567890123456789012345678",
        Ok("12345678901234567890123456789012345678"),
    );
    check("decimal(10,2)", "12.345", Err("number_out_of_range"));
    check("decimal(4,2)", "123", Err("number_out_of_range"));
    check("decimal(10,2)", r#""12,3""#, Err("wrong_type"));
    check("decimal(10,2)", "false", Err("wrong_type"));
}

#[test]
fn booleans_times_addresses() {
    check("boolean", "true", Ok("true"));
    check("boolean", "0", Err("wrong_type"));
    check("boolean", r#""true""#, Err("wrong_type"));
    check("timestamp", r#""2024-01-02T03:04:05.25+01:00""#, Ok(r#""2024-01-02T02:04:05.25Z""#));
    check("timestamp", "1704164645123", Ok(r#""2024-01-02T03:04:05.123Z""#));
    check("timestamp", "-1", Ok(r#""1969-12-31T23:59:59.999Z""#));
    check("timestamp", "1.5", Err("number_out_of_range"));
    check("timestamp", "9223372036854775807", Err("number_out_of_range"));
    check("timestamp", r#""soon""#, Err("wrong_type"));
    check("timestamp", "{}", Err("wrong_type"));
    check("ip", r#""10.0.0.1""#, Ok(r#""10.0.0.1""#));
    check("ip", r#""2001:db8::1""#, Ok(r#""2001:db8::1""#));
    check("ip", r#""10.0.0.1:80""#, Err("wrong_type"));
    check("ip", "1", Err("wrong_type"));
}

#[test]
fn geo_points() {
    for value in
        [r#"{"lat":52.5,"lon":13.4}"#, r#"{"lon":13.4,"x":1,"lat":52.5}"#, "[13.4, 52.5]", r#""52.5, 13.4""#]
    {
        check("geo_point", value, Ok(r#"{"lat":52.5,"lon":13.4}"#));
    }
    check("geo_point", "[200, 0]", Err("number_out_of_range"));
    check("geo_point", "[1e999, 0]", Err("number_out_of_range"));
    check("geo_point", r#"{"lat":1}"#, Err("wrong_type"));
    check("geo_point", r#"{"lat":1,"lat":1,"lon":1}"#, Err("duplicate_key"));
    check("geo_point", "[1]", Err("wrong_type"));
    check("geo_point", r#""somewhere""#, Err("wrong_type"));
    check("geo_point", "7", Err("wrong_type"));
}

#[test]
fn lists() {
    check("list<int64>", "[1, null ,2.0]", Ok("[1,null,2]"));
    check("list<int64>", "[]", Ok("[]"));
    check("list<int64>", "5", Ok("[5]"));
    check("list<int64>", "null", Ok(""));
    check("list<int64>", r#"[1,"x"]"#, Err("wrong_type"));
    check("list<string>", r#"["a\n", 1.50, {"b":[1]} , "c"]"#, Ok(r#"["a\n","1.50","{\"b\":[1]}","c"]"#));
    check("list<list<int64>>", "[1,[2,3]]", Ok("[[1],[2,3]]"));
    check(
        "list<decimal(38,1)>",
        "[123456789012345678901234567890, 0.5]",
        Ok("[123456789012345678901234567890.0,0.5]"),
    );
}

pub(super) fn nested() -> JsonDecoder {
    let amount = vec![("amount".into(), FieldType::Int64), ("note".into(), FieldType::String)];
    JsonDecoder::new(&RowSchema::of_fields(vec![
        ("payment".into(), FieldType::Object(amount)),
        ("void".into(), FieldType::Object(vec![])),
    ]))
}

#[test]
fn objects_become_structs() {
    let check = |message: &str, expect: Result<&str, &str>| {
        assert_eq!(
            decode_one(&mut nested(), message).map(columns_as_json),
            expect.map(str::to_owned).map_err(str::to_owned),
            "{message}"
        );
    };
    check(
        r#"{"payment":{"note":7,"x":{},"amount":1},"void":{"a":1}}"#,
        Ok(r#"{"payment":{"amount":1,"note":"7"},"void":{}}"#),
    );
    check(r#"{"payment":null}"#, Ok("{}"));
    check(r#"{"payment":{}}"#, Ok(r#"{"payment":{}}"#));
    check(r#"{"payment":1}"#, Err("wrong_type: `payment` is a number, not an object"));
    check(
        r#"{"payment":{"amount":"1"}}"#,
        Err("wrong_type: `payment.amount` is a string that is not an integer"),
    );
    check(r#"{"payment":{"amount":1,"amount":1}}"#, Err("duplicate_key: `payment.amount` is there twice"));
    check(
        r#"{"payment":{"amount":1,"\u0061mount":1}}"#,
        Err("duplicate_key: `payment.amount` is there twice"),
    );
    check(r#"{"x":1,"x":2,"payment":{"y":1,"y":2}}"#, Ok(r#"{"payment":{}}"#));
}

#[test]
fn what_is_no_object_is_rejected_with_its_code() {
    let check = |message: &[u8], code: &str| {
        let reason = decode_one(&mut decoder(&[("f", "string")]), message).unwrap_err();
        assert_eq!(reason.split(':').next(), Some(code), "{reason}");
    };
    check(b"", "empty");
    check(b" \t\r", "empty");
    check(b"\xef\xbb\xbf", "empty");
    check(b"[]", "not_an_object");
    check(b"\"x\"", "not_an_object");
    check(b"1", "not_an_object");
    check(b"1e999", "not_an_object");
    check(b"null", "not_an_object");
    check(b"{", "invalid_json");
    check(b"{\"f\":\"trunc", "invalid_json");
    check(b"{\"f\":1}{}", "invalid_json");
    check(b"{\"f\":01}", "invalid_json");
    check(b"{\"f\":01,\"g\":1e999}", "invalid_json");
    check(b"{\"f\":\"\xff\"}", "invalid_utf8");
    check(b"{\"f\":\"\\ud800\"}", "invalid_json");
    check(b"{\"g\":\"\\udc00x\"}", "invalid_json");
    let deep = |n: usize| format!("{{\"g\":{}{}}}", "[".repeat(n), "]".repeat(n));
    check(deep(64).as_bytes(), "too_deep");
    assert!(decode_one(&mut decoder(&[("f", "string")]), deep(63)).is_ok());
}

#[test]
fn a_failed_message_leaves_nothing_behind() {
    let mut decoder = decoder(&[
        ("a", "list<list<int64>>"),
        ("s", "string"),
        ("b", "boolean"),
        ("g", "geo_point"),
        ("z", "int64"),
    ]);
    let good = r#"{"a":[[1],[2]],"s":"a string of some length\n","b":true,"g":[1,2],"z":3}"#;
    let bad = r#"{"a":[[9],[9,"x"]],"s":"z"}"#;
    let late = r#"{"a":[[9],[9]],"s":"another string of some length","b":false,"g":[3,4],"z":"x"}"#;
    for _ in 0..2 {
        let decoded = decoder.decode(&chunk(&[late, good, bad, good, late]));
        let rows = decoded.rows.unwrap();
        for column in rows.rows().columns() {
            column.to_data().validate_full().unwrap();
        }
        assert_eq!(rows.offsets().values(), &[1, 3]);
        let batch = rows.clone().with_rows(rows.rows().clone(), Arc::new(Layout::Columns));
        for idx in 0..2 {
            let mut out = Vec::new();
            Documents::new(&batch).write(idx, &mut out);
            let expect =
                r#"{"a":[[1],[2]],"s":"a string of some length\n","b":true,"g":{"lat":2.0,"lon":1.0},"z":3}"#;
            assert_eq!(String::from_utf8(out).unwrap(), expect);
            assert_eq!(rows.original().value(idx), good.as_bytes());
        }
        assert_eq!(decoded.rejects.unwrap().offsets().values(), &[0, 2, 4]);
    }
}

#[test]
fn strings_are_views_into_the_chunk() {
    let mut decoder = decoder(&[("plain", "string"), ("escaped", "string"), ("raw", "string")]);
    let chunk = chunk(&[
        r#"{"plain":"a string longer than a view","escaped":"a string with a \n in it","raw":[1,2,3,4,5,6,7,8]}"#,
    ]);
    let rows = decoder.decode(&chunk).rows.unwrap();
    let inside = |idx: usize| {
        let text = rows.rows().column(idx).as_string_view().value(0);
        chunk.data.as_slice().as_ptr_range().contains(&text.as_ptr())
    };
    assert_eq!([inside(0), inside(1), inside(2)], [true, false, true]);
    assert!(chunk.data.as_slice().as_ptr_range().contains(&rows.original().value(0).as_ptr()));
}

#[test]
fn a_byte_order_mark_is_taken_off() {
    let rows =
        decode_one(&mut decoder(&[("f", "string")]), "\u{feff}{\"f\":\"a string of some length\"}").unwrap();
    assert_eq!(rows.original().value(0), b"{\"f\":\"a string of some length\"}");
    assert_eq!(rows.rows().column(0).as_string_view().value(0), "a string of some length");
}

#[test]
fn without_fields_there_are_rows() {
    let decoded = decoder(&[]).decode(&chunk(&["{}", "{\"a\":1}", "x"]));
    assert_eq!(decoded.rows.as_ref().unwrap().num_rows(), 2);
    assert_eq!(reasons(&decoded).len(), 1);
}

/// The shared data, or `None` with a line that says that the test is skipped.
pub(super) fn shared(test: &str, path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("LOGDRIVE_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let path = root.join("data").join(path);
    if path.exists() {
        return Some(path);
    }
    writeln!(&mut stdout(), "skipped: {test}: data not at hand").unwrap();
    None
}

/// What we do where the suite leaves it open: `None` accepts, `Some` is the code of the reject.
const OPEN: &[(&str, Option<&str>)] = &[
    // Numbers of any size pass where they are not read as numbers.
    ("i_number_double_huge_neg_exp.json", None),
    ("i_number_huge_exp.json", None),
    ("i_number_neg_int_huge_exp.json", None),
    ("i_number_pos_double_huge_exp.json", None),
    ("i_number_real_neg_overflow.json", None),
    ("i_number_real_pos_overflow.json", None),
    ("i_number_real_underflow.json", None),
    ("i_number_too_big_neg_int.json", None),
    ("i_number_too_big_pos_int.json", None),
    ("i_number_very_big_negative_int.json", None),
    // Half a surrogate pair is no character, and Arrow strings are UTF-8.
    ("i_object_key_lone_2nd_surrogate.json", Some("invalid_json")),
    ("i_string_1st_surrogate_but_2nd_missing.json", Some("invalid_json")),
    ("i_string_1st_valid_surrogate_2nd_invalid.json", Some("invalid_json")),
    ("i_string_incomplete_surrogate_and_escape_valid.json", Some("invalid_json")),
    ("i_string_incomplete_surrogate_pair.json", Some("invalid_json")),
    ("i_string_incomplete_surrogates_escape_valid.json", Some("invalid_json")),
    ("i_string_invalid_lonely_surrogate.json", Some("invalid_json")),
    ("i_string_invalid_surrogate.json", Some("invalid_json")),
    ("i_string_inverted_surrogates_U+1D11E.json", Some("invalid_json")),
    ("i_string_lone_second_surrogate.json", Some("invalid_json")),
    // JSON is UTF-8.
    ("i_string_UTF-16LE_with_BOM.json", Some("invalid_utf8")),
    ("i_string_UTF-8_invalid_sequence.json", Some("invalid_utf8")),
    ("i_string_UTF8_surrogate_U+D800.json", Some("invalid_utf8")),
    ("i_string_invalid_utf-8.json", Some("invalid_utf8")),
    ("i_string_iso_latin_1.json", Some("invalid_utf8")),
    ("i_string_lone_utf8_continuation_byte.json", Some("invalid_utf8")),
    ("i_string_not_in_unicode_range.json", Some("invalid_utf8")),
    ("i_string_overlong_sequence_2_bytes.json", Some("invalid_utf8")),
    ("i_string_overlong_sequence_6_bytes.json", Some("invalid_utf8")),
    ("i_string_overlong_sequence_6_bytes_null.json", Some("invalid_utf8")),
    ("i_string_truncated-utf-8.json", Some("invalid_utf8")),
    ("i_string_utf16BE_no_BOM.json", Some("invalid_utf8")),
    ("i_string_utf16LE_no_BOM.json", Some("invalid_utf8")),
    ("i_structure_500_nested_arrays.json", Some("too_deep")),
    // Only at the start of a message is it taken off.
    ("i_structure_UTF-8_BOM_empty_object.json", Some("invalid_json")),
];

/// Each file as the value of one field. None of the files that are wrong alone becomes right by that.
#[test]
fn the_json_test_suite_behaves() {
    let Some(folder) = shared("the_json_test_suite_behaves", "json-test-suite/test_parsing") else { return };
    let mut decoder = decoder(&[("f", "string")]);
    let mut n_files = [0; 3];
    let mut wrong = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let mut message = b"{\"f\":".to_vec();
        message.extend_from_slice(&fs::read(&path).unwrap());
        message.push(b'}');
        let code = decode_one(&mut decoder, &message).err().map(|r| r.split(':').next().unwrap().to_owned());
        let right = match name.as_bytes()[0] {
            b'y' => {
                n_files[0] += 1;
                code.is_none()
            }
            b'n' => {
                n_files[1] += 1;
                code.is_some()
            }
            _ => {
                n_files[2] += 1;
                OPEN.iter().any(|(file, expect)| *file == name && *expect == code.as_deref())
            }
        };
        if !right {
            wrong.push((name, code));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(n_files, [95, 188, 35], "files of each kind");
}

#[test]
fn the_files_for_transformers_do_not_panic() {
    let Some(folder) = shared("the_files_for_transformers_do_not_panic", "json-test-suite/test_transform")
    else {
        return;
    };
    for entry in fs::read_dir(folder).unwrap() {
        let content = fs::read(entry.unwrap().path()).unwrap();
        for field_type in ["string", "int64", "float64", "decimal(38,10)", "list<string>", "list<float64>"] {
            let mut decoder = decoder(&[("f", field_type)]);
            let message = [b"{\"f\":", &content[..], b"}"].concat();
            let decoded = decoder.decode(&chunk(&[&message, &content]));
            let n_rows =
                decoded.rows.map_or(0, |b| b.num_rows()) + decoded.rejects.map_or(0, |b| b.num_rows());
            assert_eq!(n_rows, 2);
        }
    }
}

#[test]
fn naughty_strings_come_out_as_they_went_in() {
    let Some(path) = shared("naughty_strings_come_out_as_they_went_in", "naughty-strings/blns.json") else {
        return;
    };
    let strings: Vec<String> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert!(strings.len() > 400);
    let messages: Vec<_> = strings.iter().map(|s| serde_json::json!({ "f": s }).to_string()).collect();
    let decoded = decoder(&[("f", "string")]).decode(&chunk(&messages));
    assert!(decoded.rejects.is_none());
    let rows = decoded.rows.unwrap();
    let as_columns = rows.clone().with_rows(rows.rows().clone(), Arc::new(Layout::Columns));
    for (idx, string) in strings.iter().enumerate() {
        assert_eq!(rows.rows().column(0).as_string_view().value(idx), string);
        let mut original = Vec::new();
        Documents::new(&rows).write(idx, &mut original);
        assert_eq!(original, messages[idx].as_bytes());
        let mut columns = Vec::new();
        Documents::new(&as_columns).write(idx, &mut columns);
        assert_eq!(serde_json::from_slice::<Json>(&columns).unwrap(), serde_json::json!({ "f": string }));
    }
}

/// Any JSON value, not too large.
fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(Json::from),
        ".*".prop_map(Json::from),
        "[a-z\"\\\\\n\u{e9}]{0,20}".prop_map(Json::from),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Json::from),
            prop::collection::hash_map("[a-f]{1,2}", inner, 0..5)
                .prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    })
}

fn generated() -> impl Strategy<Value = serde_json::Map<String, Json>> {
    prop::collection::hash_map("[sifblo]|[a-z]{1,3}", any_json(), 0..8)
        .prop_map(|map| map.into_iter().collect())
}

/// What the value of field `key` of that type should be in a document, by serde_json; `None` rejects.
fn expected(field_type: &str, value: &Json, text: &str) -> Option<Json> {
    match (field_type, value) {
        (_, Json::Null) => Some(Json::Null),
        ("string", Json::String(_)) => Some(value.clone()),
        ("string", _) => Some(text.into()),
        ("int64", Json::Number(n)) if n.is_i64() => Some(value.clone()),
        ("int64", Json::Number(n)) => {
            let float = n.as_f64().filter(|f| !n.is_u64() && f.fract() == 0.0)?;
            (float.abs() < 2_f64.powi(63)).then(|| Json::from(float as i64))
        }
        ("float64", Json::Number(n)) => Some(Json::from(n.as_f64()?)),
        ("boolean", Json::Bool(_)) => Some(value.clone()),
        ("list<string>", Json::Array(items)) => items
            .iter()
            .map(|item| expected("string", item, &item.to_string()))
            .collect::<Option<Vec<_>>>()
            .map(Json::from),
        ("list<string>", _) => Some(Json::from(vec![expected("string", value, text)?])),
        _ => None,
    }
}

const GENERATED_FIELDS: &[(&str, &str)] =
    &[("s", "string"), ("i", "int64"), ("f", "float64"), ("b", "boolean"), ("l", "list<string>")];

proptest! {
    #[test]
    fn decoded_values_are_serde_jsons(object in generated()) {
        let message = Json::Object(object.clone()).to_string();
        let mut expect = Some(serde_json::Map::new());
        for (name, field_type) in GENERATED_FIELDS {
            let Some(value) = object.get(*name) else { continue };
            match (expected(field_type, value, &value.to_string()), &mut expect) {
                (Some(Json::Null), _) => {}
                (Some(value), Some(map)) => { map.insert((*name).into(), value); }
                _ => expect = None,
            }
        }
        let found = decode_one(&mut decoder(GENERATED_FIELDS), &message);
        match (found, expect) {
            (Ok(batch), Some(expect)) => {
                let document: Json = serde_json::from_str(&columns_as_json(batch)).unwrap();
                // Also by way of text, since serde_json may read a float one bit off.
                let expect: Json = serde_json::from_str(&Json::Object(expect).to_string()).unwrap();
                prop_assert_eq!(document, expect);
            }
            (Err(_), None) => {}
            (found, expect) => prop_assert!(false, "{:?} but expected {:?}", found.map(columns_as_json), expect),
        }
    }

    #[test]
    fn any_chunking_gives_the_same_rows(
        objects in prop::collection::vec(prop_oneof![generated().prop_map(|o| Json::Object(o).to_string()), ".{0,20}"], 1..20),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let fields = [("s", "string"), ("l", "list<string>"), ("f", "float64")];
        let documents = |decoder: &mut JsonDecoder, messages: &[String]| {
            let decoded = decoder.decode(&chunk(messages));
            let mut all = Vec::new();
            if let Some(rows) = &decoded.rows {
                let batch = rows.clone().with_rows(rows.rows().clone(), Arc::new(Layout::Columns));
                let documents = Documents::new(&batch);
                for idx in 0..batch.num_rows() {
                    let mut out = batch.original().value(idx).to_vec();
                    documents.write(idx, &mut out);
                    all.push(out);
                }
            }
            (all, reasons(&decoded))
        };
        let whole = documents(&mut decoder(&fields), &objects);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(objects.len())).collect();
        cuts.extend([0, objects.len()]);
        cuts.sort_unstable();
        let mut decoder = decoder(&fields);
        let mut parts = (Vec::new(), Vec::new());
        for pair in cuts.windows(2) {
            let (rows, rejects) = documents(&mut decoder, &objects[pair[0]..pair[1]]);
            parts.0.extend(rows);
            parts.1.extend(rejects);
        }
        prop_assert_eq!(parts, whole);
    }

    #[test]
    fn any_bytes_are_rows_or_rejects(messages in prop::collection::vec(any_bytes(), 0..8)) {
        let fields = [("a", "string"), ("b", "list<decimal(5,2)>"), ("c", "geo_point"), ("d", "timestamp"), ("e", "int64")];
        let mut without_fields = decoder(&[]);
        let decoded = decoder(&fields).decode(&chunk(&messages));
        let n_rows = decoded.rows.map_or(0, |b| b.num_rows()) + decoded.rejects.map_or(0, |b| b.num_rows());
        prop_assert_eq!(n_rows, messages.len());
        // Without fields, what is accepted is what serde_json accepts, but for half surrogate pairs and depth.
        for message in &messages {
            let text = message.strip_prefix(BYTE_ORDER_MARK).unwrap_or(message);
            let theirs = std::str::from_utf8(text).is_ok()
                && serde_json::from_slice::<BTreeMap<String, IgnoredAny>>(text).is_ok();
            match decode_one(&mut without_fields, message) {
                Ok(_) => prop_assert!(theirs, "{:?} accepted", String::from_utf8_lossy(message)),
                Err(reason) => prop_assert!(!theirs || reason.contains("surrogate"), "{reason}"),
            }
        }
    }
}

/// Bytes, from hopeless to nearly JSON.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let tokens = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\\u00e9",
        "\\ud83d",
        "\"a\"",
        "\"b\"",
        "\"c\"",
        "1",
        "-",
        "0.5",
        "1e999",
        "123456789012345678901234567890",
        "true",
        "null",
        " ",
        "\n",
        "\u{0}",
        "é",
        "{\"a\":",
        "\"e\":",
    ];
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        prop::collection::vec(prop::sample::select(tokens.to_vec()), 0..16)
            .prop_map(|t| t.concat().into_bytes()),
        (generated(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(object, at, byte)| {
            let mut text = Json::Object(object).to_string().into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            text
        }),
    ]
}
