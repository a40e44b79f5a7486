//! The scan against the general path: the same rows, the same rejects, whatever comes.

use std::fs;

use arrow::array::Array;
use logdrive_schemas::{FieldType, MessageRange};
use proptest::prelude::*;

use super::tests::{chunk, decoder, nested, reasons, shared};
use super::*;

const FIELDS: &[(&str, &str)] = &[
    ("s", "string"),
    ("i", "int64"),
    ("f", "float64"),
    ("d", "decimal(12,2)"),
    ("w", "decimal(38,20)"),
    ("t", "timestamp"),
    ("b", "boolean"),
    ("ip", "ip"),
    ("g", "geo_point"),
    ("l", "list<string>"),
    ("n", "list<list<int64>>"),
    ("a_key_that_is_longer_than_a_register", "string"),
];

/// The fields, and two of them once more in a nested object, twice nested.
fn schema() -> RowSchema {
    let mut fields: Vec<_> =
        FIELDS.iter().map(|(name, t)| ((*name).to_owned(), FieldType::parse(t).unwrap())).collect();
    let inner = vec![fields[0].clone(), fields[1].clone()];
    let outer = vec![("o".to_owned(), FieldType::Object(inner)), fields[0].clone(), fields[6].clone()];
    fields.push(("o".to_owned(), FieldType::Object(outer)));
    fields.push(("e".to_owned(), FieldType::Object(vec![])));
    RowSchema::of_fields(fields)
}

/// Both paths, as long as a test lasts: what they have learnt is part of the test.
struct Both {
    fast: JsonDecoder,
    general: JsonDecoder,
}

impl Both {
    fn new(schema: &RowSchema) -> Self {
        let general = JsonDecoder { scans: false, ..JsonDecoder::new(schema) };
        Self { fast: JsonDecoder::new(schema), general }
    }

    /// Decodes with both and compares; the number of rows.
    #[track_caller]
    fn agree(&mut self, messages: &[impl AsRef<[u8]>]) -> usize {
        self.agree_on(&chunk(messages))
    }

    #[track_caller]
    fn agree_on(&mut self, chunk: &Chunk) -> usize {
        let (fast, general) = (self.fast.decode(chunk), self.general.decode(chunk));
        assert_eq!(reasons(&fast), reasons(&general));
        let (Some(fast), Some(general)) = (&fast.rows, &general.rows) else {
            assert_eq!(fast.rows.is_some(), general.rows.is_some());
            return 0;
        };
        assert_eq!(fast.offsets(), general.offsets());
        assert_eq!(fast.original(), general.original());
        for (fast, general) in fast.rows().columns().iter().zip(general.rows().columns()) {
            fast.to_data().validate_full().unwrap();
            assert_eq!(fast, general);
        }
        fast.num_rows()
    }
}

/// Whether the scan takes the message without help.
fn is_scanned(fields: &[(&str, &str)], message: &str) -> bool {
    let chunk = chunk(&[message]);
    let mut arena = Arena::new(chunk.data.clone());
    let mut decoder = decoder(fields);
    assert!(decoder.ahead.is_utf8(&chunk, 0, &mut arena));
    decoder.scan(Message::of(&chunk, 0), &mut arena).is_some()
}

#[test]
fn what_is_usual_is_scanned() {
    for message in [
        r#"{"s":"x","i":1,"f":1.5,"d":12.34,"t":"2024-01-02T03:04:05.678Z","b":true,"ip":"10.0.0.1"}"#,
        r#" { "s" : "x\n" , "i" : -5 , "unknown" : [ 1 , { "a" : "\u00e9" } , [ ] , { } ] } "#,
        r#"{"s":"\ud83d\ude00 and \"more\" \\ than twelve bytes","i":123456789012345678}"#,
        r#"{"s":null,"i":null,"d":"1.5","t":1704164645123,"ip":"2001:db8::1","l":["a",null,"b"],"n":[[1],2]}"#,
        r#"{"s":[1,2],"f":0.30000000000000004,"d":1e3,"w":123456789012345678,"i":1.0}"#,
        r#"{"s":1.50,"t":"2024-01-02","f":1e5,"x":1e999}"#,
        "{}",
        "{ }",
    ] {
        assert!(is_scanned(FIELDS, message), "{message}");
    }
    for message in [
        r#"{"s":"x","s":"x"}"#,
        r#"{"\u0073":"x"}"#,
        r#"{"s":"\ud83d"}"#,
        r#"{"s":"\x"}"#,
        r#"{"i":01}"#,
        r#"{"i":1.}"#,
        r#"{"i":-}"#,
        r#"{"i":1"#,
        r#"{"i":1}}"#,
        r#"{"i":1},"#,
        r#"{"i":1,}"#,
        r#"{,"i":1}"#,
        r#"{"i" 1}"#,
        r#"["i"]"#,
        r#"{"x":[1,]}"#,
        r#"{"x":{"a":1,}}"#,
        r#"{"x":tru}"#,
        "{\"s\":\"a\tb\"}",
        "{\"x\":\"a\u{0}b\"}",
        "",
        " ",
    ] {
        assert!(!is_scanned(FIELDS, message), "{message}");
    }
}

#[test]
fn a_message_does_not_reach_into_the_next() {
    let mut both = Both::new(&schema());
    assert_eq!(both.agree(&[r#"{"s":"x""#, "}", r#"{"i":1"#, r#"2,"f":1}"#, r#"{"s":"x"}"#]), 1);
    // Nothing between the messages.
    let mut chunk = chunk(&[r#"{"s":"a","i":1,"f":2.5}{"s":"b"}   {"i":123456}"#]);
    let ranges = [(0, 8), (8, 7), (15, 8), (23, 9), (32, 3), (35, 8), (35, 12), (0, 23), (23, 9), (0, 32)];
    chunk.messages = ranges.map(|(start, len)| MessageRange { start, len }).to_vec();
    chunk.offsets = (0..ranges.len() as u64).collect();
    assert_eq!(both.agree_on(&chunk), 4);
}

#[test]
fn messages_that_are_not_utf8_do_not_matter_to_others() {
    let mut both = Both::new(&schema());
    let good = "{\"s\":\"a text that is longer than twelve bytes, é\",\"i\":1}".as_bytes();
    let bad = b"{\"s\":\"\xff\"}".as_slice();
    let half = b"{\"s\":\"\xc3".as_slice();
    let mut messages = vec![good; 2_000];
    messages[100] = bad;
    messages[1_999] = half;
    messages[1_500] = half;
    assert_eq!(both.agree(&messages), 1_997);
}

#[test]
fn every_prefix_and_every_changed_byte_is_judged_alike() {
    let mut both = Both::new(&schema());
    let message = concat!(
        r#"{"t":"2024-01-02T03:04:05.678Z","s":"a string of some length","i":-12345,"f":1.5e3,"d":99.5,"b":false,"#,
        r#""ip":"192.168.0.1","x":[1,"\u00e9",{"y":null}],"o":{"s":"\"","o":{"i":1}},"l":["a"],"e":{}}"#
    )
    .as_bytes();
    assert_eq!(both.agree(&[message]), 1);
    for len in 0..message.len() {
        both.agree(&[&message[..len]]);
    }
    for at in 0..message.len() {
        let changed = (0..=255).map(|byte| {
            let mut changed = message.to_vec();
            changed[at] = byte;
            changed
        });
        both.agree(&changed.collect::<Vec<_>>());
    }
}

#[test]
fn deep_nesting_is_judged_alike() {
    let mut both = Both::new(&schema());
    for n in 40..70 {
        let lists = format!("{}{}", "[".repeat(n), "]".repeat(n));
        let objects = format!("{}1{}", "{\"a\":".repeat(n), "}".repeat(n));
        for key in ["s", "x", "n", "o"] {
            both.agree(&[format!("{{\"{key}\":{lists}}}"), format!("{{\"{key}\":{objects}}}")]);
        }
    }
}

#[test]
fn keys_beyond_what_is_remembered_are_judged_alike() {
    let mut both = Both::new(&schema());
    let messages: Vec<_> = (0..3_000)
        .map(|n| {
            let long = "k".repeat(n % 300);
            format!(
                r#"{{"s":"x","key-{n}":1,"{long}":[],"i":{n},"a_key_that_is_longer_than_a_register":"{n}"}}"#
            )
        })
        .collect();
    assert_eq!(both.agree(&messages), 3_000);
}

#[test]
fn the_json_test_suite_is_judged_alike() {
    let Some(folder) = shared("the_json_test_suite_is_judged_alike", "json-test-suite/test_parsing") else {
        return;
    };
    for entry in fs::read_dir(folder).unwrap() {
        let content = fs::read(entry.unwrap().path()).unwrap();
        for (name, _) in FIELDS.iter().chain(&[("o", ""), ("x", "")]) {
            let message = [format!("{{\"{name}\":").as_bytes(), &content, b"}"].concat();
            Both::new(&schema()).agree(&[&content, &message]);
        }
    }
}

/// The text of a value, of any type, in any spelling.
fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        2 => "\"[a-zA-Z0-9 \u{e9}\u{20ac}]{0,40}\"",
        2 => r#""([a-z]{0,14}(\\["\\/bfnrt]|\\u00[0-9a-fA-F]{2}|\\ud83d\\ude0[0-9]|\\u20ac)?){0,3}""#,
        1 => r#""\\u[dD][89a-fA-F][0-9a-f]{2}(\\u[dD][c-f][0-9]{2})?""#,
        3 => "-?(0|[1-9][0-9]{0,4})([.][0-9]{1,3})?",
        2 => "-?(0|[1-9][0-9]{0,25})([.][0-9]{1,25})?([eE][-+]?[0-9]{1,3})?",
        1 => "\"-?[0-9]{1,12}([.][0-9]{1,3})?\"",
        2 => r#""20[0-9]{2}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-5][0-9]:[0-6][0-9]([.,][0-9]{1,7})?(Z|[+]01:00)?""#,
        2 => r#""[12]?[0-9]?[0-9][.][12]?[0-9]?[0-9][.][0-9]{1,3}[.][0-9]{1,3}""#,
        1 => r#""[0-9a-f]{0,4}::[0-9a-f]{1,4}""#,
        2 => "true|false|null",
        1 => "17[0-9]{8,11}",
        1 => r#""[0-9]{1,3}[.]5, ?[0-9]{1,3}""#,
        1 => r#"\[[0-9]{1,3}[.]5,[0-9]{1,2}\]|\{"lat":[0-9]{1,2},"lon":[0-9]{1,3}\}"#,
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let space = "[ \n\t\r]{0,1}";
        prop_oneof![
            (prop::collection::vec(inner.clone(), 0..4), space)
                .prop_map(|(items, space)| format!("[{space}{}{space}]", items.join(&format!("{space},")))),
            (prop::collection::vec((key(), inner), 0..4), space)
                .prop_map(|(members, space)| object(&members, &space)),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    let names: Vec<_> = FIELDS.iter().map(|(name, _)| *name).chain(["o", "e", "lat", "lon"]).collect();
    prop_oneof![
        12 => prop::sample::select(names).prop_map(|name| format!("\"{name}\"")),
        3 => "\"[a-z\u{e9}]{0,3}\"",
        1 => r#""(\\u006[0-9]|\\n|[a-z]){1,2}""#,
    ]
}

fn object(members: &[(String, String)], space: &str) -> String {
    let members: Vec<_> =
        members.iter().map(|(key, value)| format!("{space}{key}{space}:{space}{value}{space}")).collect();
    format!("{{{}}}", members.join(","))
}

/// An object in which each field, if it is there, mostly has a value of its type.
fn typed() -> impl Strategy<Value = String> {
    let field = |name: &'static str, values: &'static str| {
        (prop_oneof![1 => Just(0_u8), 20 => Just(1), 1 => Just(2)], values, value()).prop_map(
            move |(kind, usual, any)| match kind {
                0 => None,
                1 => Some((format!("\"{name}\""), usual)),
                _ => Some((format!("\"{name}\""), any)),
            },
        )
    };
    let members = (
        field("t", r#""2024-01-02T03:0[45]:[0-5][0-9]([.][0-9]{3})?Z""#),
        field("s", r#""[a-z]{0,30}""#),
        field("i", "-?[1-9][0-9]{0,18}"),
        field("f", "-?[0-9][.][0-9]{1,17}|0|-0|-0[.]0"),
        field("d", "[1-9][0-9]{0,8}[.][0-9]{1,2}"),
        field("b", "true|false"),
        field("ip", r#""[1-9]{1,2}[.][0-9][.]1[0-9]{2}[.][0-9]""#),
        field("x", r#"\["[a-z]{0,9}",[0-9],\{"y":null\}\]"#),
        field("o", r#"\{"o":\{"i":[1-9],"s":"[a-z]{0,15}"\},"b":true\}"#),
        field("l", r#"\["[a-z]{0,15}",null\]"#),
        "[ ]{0,1}",
    );
    members.prop_map(|(t, s, i, f, d, b, ip, x, o, l, space)| {
        object(&[t, s, i, f, d, b, ip, x, o, l].into_iter().flatten().collect::<Vec<_>>(), &space)
    })
}

/// A message, whole or with a few bytes changed, taken out or put in.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let untyped = prop::collection::vec((key(), value()), 0..8).prop_map(|members| object(&members, ""));
    let whole = prop_oneof![3 => typed(), 1 => untyped].prop_map(String::into_bytes);
    let change = (
        any::<prop::sample::Index>(),
        0..4_u8,
        prop_oneof![any::<u8>(), prop::sample::select(b"{}[]\",:\\ eE.+-019tfn\n\x00".to_vec()),],
    );
    let changes = prop_oneof![2 => Just(0_usize..1), 1 => Just(1..4)]
        .prop_flat_map(move |n| prop::collection::vec(change.clone(), n));
    (whole, changes).prop_map(|(mut text, changes)| {
        for (at, kind, byte) in changes {
            let at = at.index(text.len().max(1));
            match kind {
                _ if text.is_empty() => text.push(byte),
                0 => text[at] = byte,
                1 => text.insert(at, byte),
                2 => drop(text.remove(at)),
                _ => text.truncate(at),
            }
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 100 } else { 20_000 }))]

    #[test]
    fn both_paths_agree(chunks in prop::collection::vec(prop::collection::vec(message(), 1..12), 1..4)) {
        let mut both = Both::new(&schema());
        for messages in &chunks {
            both.agree(messages);
        }
    }

    #[test]
    fn both_paths_agree_on_numbers(
        numbers in prop::collection::vec(prop_oneof![
            any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(|n| format!("{n:e}")),
            any::<f64>().prop_filter("not too long", |n| n.is_finite() && n.abs() < 1e30 && n.abs() > 1e-30)
                .prop_map(|n| n.to_string()),
            (any::<i64>(), 0..20_usize).prop_map(|(n, scale)| {
                let digits = format!("{:020}", n.unsigned_abs());
                let (whole, fraction) = digits.split_at(20 - scale);
                let whole = whole.trim_start_matches('0');
                let whole = if whole.is_empty() { "0" } else { whole };
                format!("{}{whole}{}{fraction}", if n < 0 { "-" } else { "" }, if scale > 0 { "." } else { "" })
            }),
            any::<u64>().prop_map(|n| n.to_string()),
            any::<i128>().prop_map(|n| n.to_string()),
        ], 1..20),
    ) {
        let mut both = Both::new(&schema());
        for name in ["i", "f", "d", "w", "t", "s", "x"] {
            let messages: Vec<_> = numbers.iter().map(|n| format!("{{\"{name}\":{n}}}")).collect();
            both.agree(&messages);
        }
    }
}

#[test]
fn nested_objects_are_judged_alike() {
    let general = JsonDecoder { scans: false, ..nested() };
    let mut both = Both { fast: nested(), general };
    both.agree(&[
        r#"{"payment":{"note":7,"x":{},"amount":1},"void":{"a":1}}"#,
        r#"{"payment":{"note":7,"amount":1,"amount":2}}"#,
        r#"{"payment":{"note":7},"payment":{"note":7}}"#,
        r#"{"payment":null,"payment":{}}"#,
        r#"{"void":{},"void":{}}"#,
        r#"{"payment":null,"void":null}"#,
    ]);
}
