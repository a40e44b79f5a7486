//! Lines as servers write them, odd lines, and lines of a generator.

use logdrive_schemas::component::{Limits, Node};
use logdrive_schemas::{FieldType, reject};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::decoders::texts::testing::{self, chunk, decode_all};

fn config(yaml: &str) -> AccessLog {
    testing::config(yaml)
}

fn decoder(yaml: &str) -> Box<dyn Decoder> {
    testing::decoder::<AccessLog>(yaml)
}

fn with_fields(yaml: &str, fields: &[(&str, &str)]) -> Result<Box<dyn Decoder>, ConfigError> {
    testing::with_fields::<AccessLog>(yaml, fields)
}

fn one(decoder: &mut dyn Decoder, line: impl AsRef<[u8]>) -> Result<Value, String> {
    decode_all(decoder, &[line]).remove(0)
}

/// A combined line with this request, status and rest.
fn line(request: &str) -> String {
    format!(r#"192.0.2.7 - - [10/Oct/2000:13:55:36 -0700] "{request}" 400 157 "-" "-""#)
}

#[test]
fn the_line_of_apaches_manual() {
    let text = r#"127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326"#;
    let expect = json!({
        "@timestamp": "2000-10-10T20:55:36Z",
        "source": {"ip": "127.0.0.1"},
        "user": {"name": "frank"},
        "http": {
            "request": {"method": "GET"},
            "version": "1.0",
            "response": {"status_code": 200, "body": {"bytes": 2326}},
        },
        "url": {"original": "/apache_pb.gif"},
    });
    assert_eq!(one(&mut *decoder("format: common"), text), Ok(expect.clone()));
    let text = format!(r#"{text} "http://www.example.com/start.html" "Mozilla/4.08 [en] (Win98; I ;Nav)""#);
    let mut expect = expect;
    expect["http"]["request"]["referrer"] = "http://www.example.com/start.html".into();
    expect["user_agent"] = json!({"original": "Mozilla/4.08 [en] (Win98; I ;Nav)"});
    assert_eq!(one(&mut *decoder("{}"), text), Ok(expect));
}

#[test]
fn a_format_of_nginx_with_variables_of_its_own() {
    let yaml = concat!(
        "format: '$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent \"$http_referer\" ",
        "\"$http_user_agent\" \"$http_x_forwarded_for\" rt=$request_time uct=\"$upstream_connect_time\" ",
        "urt=\"$upstream_response_time\" $pipe $msec'",
    );
    let text = concat!(
        r#"2001:db8::1 - - [10/Oct/2000:13:55:36 +0000] "POST /cart?id=7 HTTP/2.0" 201 15 "https://shop.example/" "curl/8" "#,
        r#""203.0.113.9, 10.0.0.1" rt=0.125 uct="0.001, 0.002" urt="-" p 971211336.007"#,
    );
    let found = one(&mut *decoder(yaml), text).unwrap();
    let expect = json!({
        "@timestamp": "2000-10-10T20:55:36.007Z",
        "source": {"ip": "2001:db8::1"},
        "http": {
            "request": {"method": "POST", "referrer": "https://shop.example/"},
            "version": "2.0",
            "response": {"status_code": 201, "body": {"bytes": 15}},
        },
        "url": {"original": "/cart?id=7"},
        "user_agent": {"original": "curl/8"},
        "nginx": {
            "http_x_forwarded_for": "203.0.113.9, 10.0.0.1",
            "request_time": 0.125,
            "upstream_connect_time": 0.003,
            "pipe": "p",
        },
    });
    assert_eq!(found, expect);
}

#[test]
fn request_lines_that_are_none_are_kept_whole() {
    let mut decoder = decoder("{}");
    for (request, expect) in [
        (r"\x16\x03\x01\x02\x00", Some("\u{16}\u{3}\u{1}\u{2}\u{0}")),
        (r"\x03\x00\x00/*\xE0\x00", Some(r"\x03\x00\x00/*\xE0\x00")),
        ("GET /", Some("GET /")),
        ("-", None),
        ("", None),
        ("quit", Some("quit")),
        (r"\xC3\xA9 \x22", Some("é \"")),
    ] {
        let row = one(&mut *decoder, line(request)).unwrap();
        assert_eq!(row["url"]["original"].as_str(), expect, "{request}");
        assert_eq!(row["http"]["request"], Value::Null, "{request}");
        assert_eq!(row["http"]["response"]["status_code"], 400);
    }
    let row = one(&mut *decoder, line(r"GET /a\x22b\x5C HTTP/1.1")).unwrap();
    assert_eq!((&row["url"]["original"], &row["http"]["version"]), (&json!("/a\"b\\"), &json!("1.1")));
}

#[test]
fn quotes_inside_a_field_are_escaped() {
    let mut decoder = decoder("{}");
    let text = concat!(
        r#"192.0.2.7 - j\"doe [10/Oct/2000:13:55:36 -0700] "GET /?q=\"a\" HTTP/1.1" 200 0 "#,
        r#""http://e.example/\"x\" y\\" "agent \"A\" \x22B\x22""#,
    );
    let row = one(&mut *decoder, text).unwrap();
    assert_eq!(row["user"]["name"], "j\"doe");
    assert_eq!(row["url"]["original"], "/?q=\"a\"");
    assert_eq!(row["http"]["request"]["referrer"], "http://e.example/\"x\" y\\");
    assert_eq!(row["user_agent"]["original"], "agent \"A\" \"B\"");
    // A quote without a backslash does not end the field unless the text behind it follows.
    let text = line("GET /\"x\"y HTTP/1.1");
    assert_eq!(one(&mut *decoder, text).unwrap()["url"]["original"], "/\"x\"y");
}

#[test]
fn clients_have_addresses_or_names() {
    let mut decoder = decoder("format: common");
    for (client, field) in [
        ("203.0.113.9", "ip"),
        ("2001:db8:85a3::8a2e:370:7334", "ip"),
        ("::1", "ip"),
        ("::ffff:192.0.2.1", "ip"),
        ("client.example.com", "address"),
        ("unix:", "address"),
        ("203.0.113.999", "address"),
        ("1.2.3", "address"),
        ("fe80::1%eth0", "address"),
    ] {
        let text = format!("{client} - a user [10/Oct/2000:13:55:36 -0700] \"GET / HTTP/1.1\" 204 -");
        let row = one(&mut *decoder, text).unwrap();
        assert_eq!(row["source"], json!({ field: client }));
        assert_eq!(row["user"]["name"], "a user");
        assert_eq!(row["http"]["response"], json!({"status_code": 204}));
    }
}

#[test]
fn what_does_not_fit_is_a_reject() {
    let mut decoder = decoder("{}");
    let whole = line("GET / HTTP/1.1");
    for (text, expect) in [
        ("", "truncated: no ` ` behind `$remote_addr`, which begins at byte 0"),
        ("192.0.2.7", "truncated: no ` ` behind `$remote_addr`, which begins at byte 0"),
        (&whole[..40], "truncated: no `] \"` behind `$time_local`, which begins at byte 15"),
        (&whole[..whole.len() - 1], "truncated: no `\"` behind `$http_user_agent`"),
        (&format!("{whole} \"10.0.0.1\""), "trailing_text: the last field ends at byte"),
        (&format!("{whole} "), "trailing_text"),
        (
            &whole.replace("10/Oct", "31/Sep"),
            "invalid_time: `$time_local` at byte 15 is `31/Sep/2000:13:55:36 -0700`",
        ),
        (&whole.replace("400", "4x0"), "invalid_number: `$status` at byte"),
        (&whole.replace("157", "99999999999999999999"), "invalid_number: `$body_bytes_sent`"),
        (&whole.replace("] \"", "] "), "truncated: no `] \"`"),
    ] {
        let reason = one(&mut *decoder, text).unwrap_err();
        assert!(reason.starts_with(expect), "{text}: {reason}");
    }
    let mut with_head = self::decoder("format: '<$remote_addr> $status'");
    assert_eq!(one(&mut *with_head, "").unwrap_err(), "empty: no bytes");
    let reason = one(&mut *with_head, "1.2.3.4> 200").unwrap_err();
    assert_eq!(reason, "unexpected_start: the line does not begin with `<`");
    assert!(one(&mut *with_head, "<1.2.3.4> 200").is_ok());
}

#[test]
fn what_is_not_utf8_is_rejected_or_replaced() {
    let text = [line("GET /").as_bytes(), b"\xff"].concat();
    let reason = one(&mut *decoder("{}"), &text).unwrap_err();
    assert!(reason.starts_with("invalid_utf8: no UTF-8 at byte"), "{reason}");
    let text = [
        b"192.0.2.7 - - [10/Oct/2000:13:55:36 -0700] \"GET /a-path-of-some-length-",
        &b"\xff"[..],
        b" HTTP/1.1\" 200 1 \"-\" \"-\"",
    ]
    .concat();
    let row = one(&mut *decoder("charset_errors: replace"), &text).unwrap();
    assert_eq!(row["url"]["original"], "/a-path-of-some-length-\u{fffd}");
}

#[test]
fn good_lines_do_not_suffer_from_bad_ones() {
    let good = line("GET / HTTP/1.1");
    let lines = [good.as_str(), "garbage", &good, &good.replace("Oct", "Okt"), "\u{fffd}", &good];
    let results = decode_all(&mut *decoder("{}"), &lines);
    let accepted: Vec<_> = results.iter().map(Result::is_ok).collect();
    assert_eq!(accepted, [true, false, true, false, false, true]);
    assert_eq!(results[0], results[5]);
}

#[test]
fn text_is_viewed_in_the_chunk_unless_it_was_escaped() {
    use arrow::array::AsArray;
    let fields = [("http.request.referrer", "string"), ("user_agent.original", "string")];
    let mut decoder = with_fields("{}", &fields).unwrap();
    let text = concat!(
        r#"192.0.2.7 - - [10/Oct/2000:13:55:36 -0700] "GET / HTTP/1.1" 200 1 "#,
        r#""http://plain.example/" "an agent with \x22escapes\x22 in it""#
    );
    let chunk = chunk(&[text]);
    let rows = decoder.decode(&chunk).rows.unwrap();
    let inside = |text: &str| chunk.data.as_slice().as_ptr_range().contains(&text.as_ptr());
    let referrer =
        rows.rows().column(0).as_struct().column(0).as_struct().column(0).as_string_view().value(0);
    let agent = rows.rows().column(1).as_struct().column(0).as_string_view().value(0);
    assert_eq!((inside(referrer), inside(agent)), (true, false));
    assert_eq!(agent, "an agent with \"escapes\" in it");
}

#[test]
fn a_declared_schema_picks_and_types() {
    let format = "format: '$remote_addr [$time_iso8601] $status $request_time $request'";
    let fields = [
        ("when", "timestamp"),
        ("ip", "ip"),
        ("status", "int64"),
        ("nginx.request_time", "string"),
        ("method", "string"),
        ("http.request.method", "string"),
    ];
    let mut declared = Vec::new();
    for (path, field_type) in fields {
        crate::decoders::columns::add_field(&mut declared, path, FieldType::parse(field_type).unwrap());
    }
    let schema = RowSchema { event_time: "when".into(), ..RowSchema::of_fields(declared) };
    let mut decoder = config(format).build(&Demand { schema, validate: true }).unwrap();
    let text = "192.0.2.7 [2000-10-10T13:55:36-07:00] 200 0.5 GET / HTTP/1.1";
    let expect = json!({
        "when": "2000-10-10T20:55:36Z", "ip": "192.0.2.7", "status": 200, "nginx": {"request_time": "0.5"},
        "method": "GET", "http": {"request": {"method": "GET"}},
    });
    assert_eq!(one(&mut *decoder, text), Ok(expect));
    // Without a time in the line it is when the line was received.
    let row = one(&mut *self::decoder("format: '$remote_addr $status'"), "192.0.2.7 200").unwrap();
    assert_eq!(row["@timestamp"], "2024-01-02T03:04:05.5Z");
}

#[test]
fn a_schema_that_does_not_fit_is_an_error() {
    for (field, expect) in [
        (("user_agent.orginal", "string"), "did you mean `user_agent.original`?"),
        (("level", "string"), "it has: "),
        (("nginx.request_time", "float64"), "it has: "),
    ] {
        let error = with_fields("{}", &[field]).err().unwrap();
        assert_eq!(error.code, "config::schema_mismatch");
        assert!(error.help.as_deref().unwrap().contains(expect), "{error:?}");
    }
    for (field, expect) in [
        (("http.request.method", "int64"), "`$request` becomes string, not int64"),
        (("@timestamp", "int64"), "`$time_local` becomes timestamp, not int64"),
        (("http.response.status_code", "boolean"), "has no `http.response.status_code` of this type"),
    ] {
        let error = with_fields("{}", &[field]).err().unwrap();
        assert!(error.message.contains(expect), "{error:?}");
    }
}

#[test]
fn errors_of_the_format_name_their_place() {
    let yaml = "format: combned";
    let node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
    let mut errors = Vec::new();
    assert!(logdrive_schemas::component::parse::<AccessLog>(&node, &mut errors).is_none());
    let span = errors[0].span;
    assert_eq!(&yaml[span.start..span.start + span.len], "combned");
    assert!(errors[0].message.contains("`combned` is no log format"), "{errors:?}");
}

#[test]
fn rejects_hold_the_line() {
    let decoded = decoder("{}").decode(&chunk(&["nothing"]));
    let rejects = decoded.rejects.unwrap();
    assert_eq!(rejects.schema(), reject::schema());
    assert_eq!(rejects.original().value(0), b"nothing");
}

/// How nginx writes a value.
fn escaped(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for byte in text.bytes() {
        if !(32..=126).contains(&byte) || byte == b'"' || byte == b'\\' {
            write!(out, "\\x{byte:02X}").unwrap();
        } else {
            out.push(char::from(byte));
        }
    }
    out
}

proptest! {
    #[test]
    fn generated_lines_come_back(
        ip in any::<[u8; 4]>(),
        user in "[a-z]{1,8}",
        second in 0_i64..4_102_444_800,
        url in "/.{0,40}",
        status in 100_i64..600,
        bytes in 0..i64::MAX,
        referrer in ".{1,60}",
        agent in "[ -~]{2,90}",
    ) {
        let ip = std::net::Ipv4Addr::from(ip).to_string();
        let time = jiff::Timestamp::from_second(second).unwrap();
        let text = format!(
            r#"{ip} - {user} [{} +0000] "GET {} HTTP/1.1" {status} {bytes} "{}" "{}""#,
            jiff::tz::Offset::UTC.to_datetime(time).strftime("%d/%b/%Y:%H:%M:%S"),
            escaped(&url), escaped(&referrer), escaped(&agent),
        );
        let mut expect = json!({
            "@timestamp": time.to_string(),
            "source": {"ip": ip},
            "user": {"name": user},
            "http": {
                "request": {"method": "GET", "referrer": referrer},
                "version": "1.1",
                "response": {"status_code": status, "body": {"bytes": bytes}},
            },
            "url": {"original": url},
            "user_agent": {"original": agent},
        });
        if referrer == "-" {
            expect["http"]["request"].as_object_mut().unwrap().remove("referrer");
        }
        prop_assert_eq!(one(&mut *decoder("{}"), text), Ok(expect));
    }

    #[test]
    fn any_bytes_are_rows_or_rejects(lines in prop::collection::vec(nearly(), 0..6)) {
        for yaml in ["{}", "format: common", "charset_errors: replace", "format: 'x$a\"$request\" $msec,$upstream_response_time'"] {
            let mut decoder = decoder(yaml);
            // `decode_all` checks that each line is one or the other, and that the arrays are valid.
            decode_all(&mut *decoder, &lines);
        }
    }
}

/// Bytes, from hopeless to nearly a line.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let good = line(r"GET /\x22 HTTP/1.1");
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        "[x\" \\\\\\]\\[0-9/:.-]{0,60}".prop_map(String::into_bytes),
        (any::<prop::sample::Index>(), any::<u8>(), any::<prop::sample::Index>()).prop_map(
            move |(at, byte, end)| {
                let mut text = good.clone().into_bytes();
                let at = at.index(text.len());
                text[at] = byte;
                let end = text.len() - end.index(text.len()) / 4;
                text.truncate(end);
                text
            }
        ),
    ]
}
