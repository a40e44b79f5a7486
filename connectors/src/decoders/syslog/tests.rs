//! The examples of the RFCs, what devices send, and messages of a generator.

use logdrive_schemas::component::{Limits, Node};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::io::{Write as _, stdout};

use super::*;
use crate::decoders::texts::testing::{self, chunk, decode_all};

fn decoder(yaml: &str) -> Box<dyn Decoder> {
    testing::decoder::<Syslog>(yaml)
}

fn with_fields(yaml: &str, fields: &[(&str, &str)]) -> Result<Box<dyn Decoder>, ConfigError> {
    testing::with_fields::<Syslog>(yaml, fields)
}

fn one(decoder: &mut dyn Decoder, message: impl AsRef<[u8]>) -> Result<Value, String> {
    decode_all(decoder, &[message]).remove(0)
}

fn decode(message: impl AsRef<[u8]>) -> Result<Value, String> {
    one(&mut *decoder("{}"), message)
}

/// `log.syslog` of a priority.
fn syslog(priority: u8) -> Value {
    let (facility, severity) = (priority / 8, priority % 8);
    json!({
        "priority": priority,
        "facility": {"code": facility, "name": FACILITIES[usize::from(facility)]},
        "severity": {"code": severity, "name": SEVERITIES[usize::from(severity)]},
    })
}

/// The same with more members.
fn syslog_with(priority: u8, more: &Value) -> Value {
    let mut syslog = syslog(priority);
    syslog.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    syslog
}

#[test]
fn the_examples_of_rfc_5424() {
    let text = "<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \u{feff}'su root' failed for lonvick on /dev/pts/8";
    let expect = json!({
        "@timestamp": "2003-10-11T22:14:15.003Z",
        "message": "'su root' failed for lonvick on /dev/pts/8",
        "host": {"hostname": "mymachine.example.com"},
        "log": {"syslog": syslog_with(34, &json!({"version": "1", "appname": "su", "msgid": "ID47"}))},
    });
    assert_eq!(decode(text), Ok(expect));

    let text =
        "<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time to make the do-nuts.";
    let expect = json!({
        "@timestamp": "2003-08-24T12:14:15.000003Z",
        "message": "%% It's time to make the do-nuts.",
        "host": {"hostname": "192.0.2.1"},
        "log": {"syslog": syslog_with(165, &json!({"version": "1", "appname": "myproc", "procid": "8710"}))},
    });
    assert_eq!(decode(text), Ok(expect));

    let element = r#"[exampleSDID@32473 iut="3" eventSource="Application" eventID="1011"]"#;
    let header = "<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 ";
    let text = format!("{header}{element} \u{feff}An application event log entry...");
    let data = json!({"iut": "3", "eventSource": "Application", "eventID": "1011"});
    let log = syslog_with(
        165,
        &json!({
            "version": "1", "appname": "evntslog", "msgid": "ID47",
            "structured_data": {"exampleSDID@32473": data},
        }),
    );
    let expect = json!({
        "@timestamp": "2003-10-11T22:14:15.003Z",
        "message": "An application event log entry...",
        "host": {"hostname": "mymachine.example.com"},
        "log": {"syslog": log},
    });
    assert_eq!(decode(text), Ok(expect.clone()));

    let text = format!("{header}{element}[examplePriority@32473 class=\"high\"]");
    let mut expect = expect;
    expect.as_object_mut().unwrap().remove("message");
    expect["log"]["syslog"]["structured_data"]["examplePriority@32473"] = json!({"class": "high"});
    assert_eq!(decode(text), Ok(expect));
}

#[test]
fn nothing_but_nilvalues() {
    let expect = json!({
        "@timestamp": "2024-01-02T03:04:05.5Z",
        "log": {"syslog": syslog_with(0, &json!({"version": "1"}))},
    });
    for text in ["<0>1 - - - - - -", "<0>1 - - - - - - ", "<0>1 - - - - - - \u{feff}"] {
        assert_eq!(decode(text), Ok(expect.clone()), "{text}");
    }
}

#[test]
fn what_rfc_5424_has_not_is_a_reject() {
    let longest = |n: usize| "x".repeat(n);
    assert!(
        decode(format!("<1>1 - {} {} {} {} -", longest(255), longest(48), longest(128), longest(32))).is_ok()
    );
    let time = |time: &str| format!("<1>1 {time} h a p m -");
    assert!(decode(time("2003-10-11T22:14:15.123456Z")).is_ok());
    for (text, expect) in [
        (time("2003-10-11T22:14:15.1234567Z"), "invalid_timestamp"),
        (time("2003-10-11T24:00:00Z"), "invalid_timestamp"),
        (time("2003-10-11t22:14:15Z"), "invalid_timestamp"),
        (time("2003-10-11T22:14:60Z"), "invalid_timestamp"),
        (time("2003-02-29T22:14:15Z"), "invalid_timestamp"),
        (time("2003-10-11T22:14:15"), "invalid_timestamp"),
        (time("--"), "invalid_timestamp"),
        (format!("<1>1 - {} a p m -", longest(256)), "invalid_hostname"),
        (format!("<1>1 - h {} p m -", longest(49)), "invalid_appname"),
        (format!("<1>1 - h a {} m -", longest(129)), "invalid_procid"),
        (format!("<1>1 - h a p {} -", longest(33)), "invalid_msgid"),
        ("<1>1 -  a p m -".into(), "invalid_hostname"),
        ("<1>1 - h é p m -".into(), "invalid_appname"),
        ("<1>1 - h a p".into(), "invalid_procid"),
        ("<1>1 - h a p m".into(), "invalid_msgid"),
        ("<1>1 ".into(), "invalid_timestamp"),
        ("<1>1 - h a p m ".into(), "invalid_structured_data"),
        ("<1>1 - h a p m x".into(), "invalid_structured_data"),
        ("<1>1 - h a p m -x".into(), "invalid_structured_data: no space"),
        ("<1>1 - h a p m [a]x".into(), "invalid_structured_data: no space"),
        ("<1>1 - h a p m [a".into(), "invalid_structured_data"),
        ("<1>1 - h a p m [a][a]".into(), "invalid_structured_data: an SD-ID that is there twice"),
    ] {
        let reason = decode(&text).unwrap_err();
        assert!(reason.starts_with(expect), "{text}: {reason}");
    }
    let mut strict = decoder("format: rfc5424");
    for (text, expect) in [
        ("<192>1 - - - - - -", "invalid_priority"),
        ("<01>1 - - - - - -", "invalid_priority"),
        ("1 - - - - - -", "invalid_priority"),
        ("<1>2 - - - - - -", "unsupported_version: version 2"),
        ("<1>12 - - - - - -", "unsupported_version: version 12"),
        ("<1>1", "invalid_version"),
        ("<1> - - - - - -", "invalid_version"),
        ("", "empty: no bytes"),
    ] {
        let reason = one(&mut *strict, text).unwrap_err();
        assert!(reason.starts_with(expect), "{text}: {reason}");
    }
}

#[test]
fn the_examples_of_rfc_3164() {
    let mut decoder = decoder("{}");
    let text = "<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8";
    let expect = json!({
        "@timestamp": "2023-10-11T22:14:15Z",
        "message": "'su root' failed for lonvick on /dev/pts/8",
        "host": {"hostname": "mymachine"},
        "log": {"syslog": syslog_with(34, &json!({"appname": "su"}))},
    });
    assert_eq!(one(&mut *decoder, text), Ok(expect));
    // Without priority and time the whole of it is the message.
    let expect = json!({
        "@timestamp": "2024-01-02T03:04:05.5Z",
        "message": "Use the BFG!",
        "log": {"syslog": syslog(13)},
    });
    assert_eq!(one(&mut *decoder, "Use the BFG!"), Ok(expect));
    let text = "<0>1990 Oct 22 10:52:01 TZ-6 scapegoat.dmz.example.org 10.1.2.3 sched[0]: That's All Folks!";
    let row = one(&mut *decoder, text).unwrap();
    assert_eq!(row["message"], text[3..]);
}

#[test]
fn what_is_sent_in_the_name_of_rfc_3164() {
    let mut decoder = decoder("format: rfc3164");
    for (text, priority, hostname, appname, procid, message) in [
        (
            "Dec 10 06:55:46 LabSZ sshd[24200]: Invalid user a",
            13,
            Some("LabSZ"),
            Some("sshd"),
            Some("24200"),
            "Invalid user a",
        ),
        ("<30>Jan  1 00:00:00 h CRON(x)[1]: job", 30, Some("h"), Some("CRON(x)"), Some("1"), "job"),
        ("<30>Jan  1 00:00:00 sshd[7]: local", 30, None, Some("sshd"), Some("7"), "local"),
        ("<30>Jan  1 00:00:00 kernel: local", 30, None, Some("kernel"), None, "local"),
        (
            "<30>Jan  1 00:00:00 h syslogd 1.4.1: restart.",
            30,
            Some("h"),
            None,
            None,
            "syslogd 1.4.1: restart.",
        ),
        ("<30>2024-01-01T00:00:00.123+01:00 h app: m", 30, Some("h"), Some("app"), None, "m"),
        ("<30>Jan  1 00:00:00 fe80::1 app[]: m", 30, Some("fe80::1"), None, None, "app[]: m"),
        ("<30>app[1]: m", 30, None, Some("app"), Some("1"), "m"),
        (
            "<30>Jan  1 00:00:00 h see http://x.example/: m",
            30,
            Some("h"),
            None,
            None,
            "see http://x.example/: m",
        ),
        ("<30>Jan  1 00:00:00 h app: m\n", 30, Some("h"), Some("app"), None, "m"),
        (
            "<166>Oct 11 2003 22:14:15 fw1 : %ASA-6-302013: Built",
            166,
            Some("fw1"),
            None,
            None,
            "%ASA-6-302013: Built",
        ),
        ("<166>Oct 11 2003 22:14:15: %ASA-6-302013: Built", 166, None, None, None, "%ASA-6-302013: Built"),
        ("<166>%ASA-6-302013: Built outbound", 166, None, None, None, "%ASA-6-302013: Built outbound"),
        (
            "<189>29: *Mar  1 18:46:11.123: %SYS-5-CONFIG_I: x",
            189,
            None,
            Some("29"),
            None,
            "*Mar  1 18:46:11.123: %SYS-5-CONFIG_I: x",
        ),
        ("<189>*Mar  1 18:46:11.123: %SYS-5-CONFIG_I: x", 189, None, None, None, "%SYS-5-CONFIG_I: x"),
        ("<192>no such priority", 13, None, None, None, "<192>no such priority"),
        ("app: without priority and time", 13, None, None, None, "app: without priority and time"),
        ("<13>", 13, None, None, None, ""),
        ("<13>Jan  1 00:00:00", 13, None, None, None, ""),
        ("<13>Jan  1 00:00:00 h", 13, Some("h"), None, None, ""),
        ("<13>1 - - - - - - x", 13, None, None, None, "1 - - - - - - x"),
    ] {
        let row = one(&mut *decoder, text).unwrap();
        let found = (
            row["log"]["syslog"]["priority"].as_u64().unwrap(),
            row["host"]["hostname"].as_str(),
            row["log"]["syslog"]["appname"].as_str(),
            row["log"]["syslog"]["procid"].as_str(),
            row["message"].as_str().unwrap_or_default(),
        );
        assert_eq!(found, (priority, hostname, appname, procid, message), "{text}");
    }
}

#[test]
fn times_without_a_zone_are_in_the_configured_one() {
    let mut decoder = decoder("timezone: \"+02:00\"");
    let row = one(&mut *decoder, "<34>Jan  2 05:04:05 h a: m").unwrap();
    assert_eq!(row["@timestamp"], "2024-01-02T03:04:05Z");
    for bad in ["Europe/Berlin", "+2", "2:00", "+24:00"] {
        let yaml = format!("timezone: \"{bad}\"");
        let node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
        let mut errors = Vec::new();
        assert!(logdrive_schemas::component::parse::<Syslog>(&node, &mut errors).is_none());
        assert!(errors[0].message.contains("is no zone, write `UTC` or an offset"), "{errors:?}");
    }
}

#[test]
fn parameters_can_be_columns() {
    let prefix = "log.syslog.structured_data.exampleSDID@32473";
    let fields = [
        (format!("{prefix}.iut"), "int64"),
        (format!("{prefix}.eventSource"), "string"),
        (format!("{prefix}.load"), "float64"),
        (format!("{prefix}.ip"), "ip"),
        ("log.level".into(), "string"),
        ("host".into(), "string"),
    ];
    let fields: Vec<_> = fields.iter().map(|(name, t)| (name.as_str(), *t)).collect();
    let mut decoder = with_fields("{}", &fields).unwrap();
    let text = r#"<165>1 - h - - - [other a="1"][exampleSDID@32473 iut="3" eventSource="a\"b\]" load="0.5" ip="::1" ip="x"]"#;
    // Of two values the first counts, but each must be of the type.
    assert!(
        one(&mut *decoder, text)
            .unwrap_err()
            .starts_with("invalid_parameter: `ip` of `exampleSDID@32473` is no ip")
    );
    let expect = json!({
        "log": {
            "syslog": {"structured_data": {"exampleSDID@32473":
                {"iut": 3, "eventSource": "a\"b]", "load": 0.5, "ip": "::1"}}},
            "level": "notice",
        },
        "host": "h",
    });
    assert_eq!(one(&mut *decoder, text.replace("\"x\"", "\"::2\"")), Ok(expect));
    let row = one(&mut *decoder, "<165>1 - h - - - [other a=\"1\"]").unwrap();
    assert_eq!(row, json!({"log": {"level": "notice"}, "host": "h"}));
    let reason = one(&mut *decoder, "<165>1 - h - - - [exampleSDID@32473 iut=\"x\"]").unwrap_err();
    assert_eq!(reason, "invalid_parameter: `iut` of `exampleSDID@32473` is no int64: `x`");
}

#[test]
fn a_schema_that_does_not_fit_is_an_error() {
    for (field, expect) in [
        (("log.syslog.apname", "string"), "did you mean `log.syslog.appname`?"),
        (("payload", "string"), "it has: message, host.hostname"),
    ] {
        let error = with_fields("{}", &[field]).err().unwrap();
        assert!(error.help.as_deref().unwrap().contains(expect), "{error:?}");
    }
    for (field, expect) in [
        (("message", "int64"), "it is string, not int64"),
        (("log.syslog.priority", "string"), "it is int64, not string"),
        (("@timestamp", "string"), "it is timestamp, not string"),
        (("log.syslog.structured_data.a.b", "timestamp"), "parameters are string, int64, float64 or ip"),
        (("log.syslog.structured_data", "list<string>"), "of this type"),
    ] {
        let error = with_fields("{}", &[field]).err().unwrap();
        assert_eq!(error.code, "config::schema_mismatch");
        assert!(error.message.contains(expect), "{error:?}");
    }
}

#[test]
fn what_is_not_utf8_is_rejected_or_replaced() {
    let text = b"<34>1 - h - - - - a message with \xff in it";
    assert!(decode(text).unwrap_err().starts_with("invalid_utf8: no UTF-8 at byte"));
    let row = one(&mut *decoder("charset_errors: replace"), text).unwrap();
    assert_eq!(row["message"], "a message with \u{fffd} in it");
}

#[test]
fn text_is_viewed_in_the_chunk() {
    use arrow::array::AsArray;
    let chunk =
        chunk(&["<34>1 - h - - - - a message of some length", "<34>Oct 11 22:14:15 h a: another message"]);
    let rows = with_fields("{}", &[("message", "string")]).unwrap().decode(&chunk).rows.unwrap();
    for text in rows.rows().column(0).as_string_view().iter().flatten() {
        assert!(chunk.data.as_slice().as_ptr_range().contains(&text.as_ptr()), "{text}");
    }
}

/// Lines of the shared data, or none with a line that says that the test is skipped.
fn shared(test: &str, path: &str) -> Option<Vec<String>> {
    let root = std::env::var_os("LOGDRIVE_SHARED").map_or_else(
        || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
        std::path::PathBuf::from,
    );
    let Ok(text) = std::fs::read(root.join("data").join(path)) else {
        writeln!(&mut stdout(), "skipped: {test}: data not at hand").unwrap();
        return None;
    };
    Some(String::from_utf8_lossy(&text).lines().map(str::to_owned).collect())
}

#[test]
fn real_logs_have_time_host_and_tag() {
    for (path, hostname, n_tagged) in
        [("loghub/Linux/Linux_2k.log", "combo", 1950), ("loghub/OpenSSH/OpenSSH_2k.log", "LabSZ", 2000)]
    {
        let Some(lines) = shared("real_logs_have_time_host_and_tag", path) else { return };
        let rows = decode_all(&mut *decoder("{}"), &lines);
        assert_eq!(rows.len(), 2000);
        let mut n_found = 0;
        for (row, line) in rows.iter().zip(&lines) {
            let row = row.as_ref().unwrap();
            assert_eq!(row["host"]["hostname"], hostname, "{line}");
            assert!(line.ends_with(row["message"].as_str().unwrap()), "{line}");
            n_found += usize::from(row["log"]["syslog"]["appname"].is_string());
        }
        assert!(n_found >= n_tagged, "{path}: {n_found} tags");
    }
}

proptest! {
    #[test]
    fn generated_messages_come_back(
        priority in 0_u8..192,
        micros in 0_i64..4_102_444_800_000_000,
        parts in prop::collection::vec("[!-~]{1,32}", 4),
        params in prop::collection::btree_map("[a-z]{1,8}", ".{0,12}", 0..4),
        message in "[^\u{feff}].{0,60}",
    ) {
        let time = jiff::Timestamp::from_microsecond(micros).unwrap();
        let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace(']', "\\]");
        let data: String = params.iter().map(|(name, value)| format!(" {name}=\"{}\"", escape(value))).collect();
        let text = format!("<{priority}>1 {time} {} [id@1{data}] {message}", parts.join(" "));
        let mut log = syslog_with(priority, &json!({"version": "1", "structured_data": {"id@1": params}}));
        for (name, part) in ["appname", "procid", "msgid"].iter().zip(&parts[1..]) {
            if part != "-" {
                log[*name] = part.as_str().into();
            }
        }
        let mut expect = json!({"@timestamp": time.to_string(), "message": message, "log": {"syslog": log}});
        if parts[0] != "-" {
            expect["host"] = json!({"hostname": parts[0]});
        }
        prop_assert_eq!(decode(text), Ok(expect));
    }

    #[test]
    fn any_bytes_are_rows_or_rejects(messages in prop::collection::vec(nearly(), 0..6)) {
        for yaml in ["{}", "format: rfc3164", "format: rfc5424", "charset_errors: replace"] {
            // `decode_all` checks that each message is one or the other, and that the arrays are valid.
            let results = decode_all(&mut *decoder(yaml), &messages);
            for (result, message) in results.iter().zip(&messages) {
                // The tolerant dialect takes everything that is text.
                let tolerated = yaml != "format: rfc3164" || result.is_ok() || message.is_empty();
                prop_assert!(tolerated || std::str::from_utf8(message).is_err());
            }
        }
    }
}

/// Bytes, from hopeless to nearly a message.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let good = [
        "<165>1 2003-10-11T22:14:15.003Z h evntslog - ID47 [a@1 iut=\"3\" b=\"\\]\"][c d=\"1\"] \u{feff}text",
        "<34>Oct 11 22:14:15 mymachine su[42]: 'su root' failed",
    ];
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        "(<[0-9]{1,3}>)?(1 )?[-\\]\\[ :%a=\"\\\\é0-9\n]{0,40}".prop_map(String::into_bytes),
        (0..2_usize, any::<prop::sample::Index>(), any::<u8>(), any::<prop::sample::Index>()).prop_map(
            move |(which, at, byte, end)| {
                let mut text = good[which].as_bytes().to_vec();
                let at = at.index(text.len());
                text[at] = byte;
                let end = text.len() - end.index(text.len()) / 4;
                text.truncate(end);
                text
            }
        ),
    ]
}
