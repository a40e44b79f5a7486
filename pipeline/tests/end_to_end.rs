//! Whole pipelines with the real binary: what goes in, what comes out, and what is there after a stop or a kill.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails, one that is skipped says so"
)]

mod e2e_support;

use std::fs;
use std::io::stdout;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use e2e_support::{
    Collector, LOGDRIVE, Lab, bytes_below, free_port, http, send, try_http, until, until_within,
};

fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!(r#"{{"n":{n},"level":"INFO"}}"#)).collect()
}

// ---- documents ----

#[test]
fn steps_make_exact_documents_and_leave_the_rest_as_it_came() {
    let port = free_port();
    let lab = Lab::new(&format!(
        r#"
sources:
  in:
    type: tcp
    listen: "127.0.0.1:{port}"
    schema: {{ fields: {{ level: string, latency_ms: int64, user: string, secret: string }} }}
streams:
  events:
    from: in
    steps:
      - where: level <> 'DEBUG'
      - set: {{ latency_s: latency_ms / 1000.0 }}
      - rename: {{ user: user_name }}
      - remove: [secret]
      - add: {{ env: prod }}
sinks:
  raw:  {{ type: file, from: [in], path: raw.ndjson }}
  out:  {{ type: file, from: [events], path: out.ndjson }}
  dead: {{ type: file, from: [rejects], path: dead.ndjson }}
"#
    ));
    let pipeline = lab.run();
    let untouched = [
        r#"{ "z" : 1e2 ,"a":1.0,  "big":123456789012345678901234567890, "level":"INFO","latency_ms":500 }"#,
        r#"{"level":"DEBUG","tiny":1E-7,"minus":-0.0,"text":"\u00e9\/é","n":null}"#,
        r#"{"user":"ann","level":"WARN","latency_ms":1,"secret":"s3","other":{"b":[1, 2],"a":{}}}"#,
        r#"{"level":"ERROR"}"#,
    ];
    let bad = [r#"{"level":"#, "[1,2]", r#"{"latency_ms":"many"}"#];
    send(port, &untouched);
    send(port, &bad);
    until("everything is there", || {
        lab.lines("raw.ndjson").len() == 4
            && lab.lines("out.ndjson").len() == 3
            && lab.lines("dead.ndjson").len() == 3
    });
    pipeline.stop();

    assert_eq!(lab.lines("raw.ndjson"), untouched, "byte for byte");
    let out = lab.lines("out.ndjson");
    assert_eq!(
        lab.documents("out.ndjson")[1..],
        [
            json!({"level":"WARN","latency_ms":1,"latency_s":0.001,"user_name":"ann","env":"prod",
                   "other":{"b":[1,2],"a":{}}}),
            // What is null and was not there stays away.
            json!({"level":"ERROR","env":"prod"}),
        ]
    );
    // What nobody named is spliced through as it was written.
    for part in
        [r#""z" : 1e2"#, r#""a":1.0"#, r#""big":123456789012345678901234567890"#, r#""latency_s":0.5"#]
    {
        assert!(out[0].contains(part), "{part} is not in {}", out[0]);
    }
    assert!(out[1].contains(r#""other":{"b":[1, 2],"a":{}}"#), "{}", out[1]);

    let rejects = lab.documents("dead.ndjson");
    for (reject, original) in rejects.iter().zip(bad) {
        assert_eq!((&reject["source"], &reject["original"]), (&json!("in"), &json!(original)));
        assert!(reject["reason"].as_str().is_some_and(|reason| reason.contains(':')), "{reject}");
        assert!(reject["position"].is_string() && reject["received_at"].is_string(), "{reject}");
    }
}

#[test]
fn nothing_sent_before_sigint_is_lost() {
    let port = free_port();
    let lab = Lab::new(&format!(
        r#"
sources:
  in: {{ type: tcp, listen: "127.0.0.1:{port}", schema: {{ fields: {{ level: string }} }} }}
streams: {{ events: {{ from: in, steps: [{{ where: level = 'INFO' }}] }} }}
sinks: {{ out: {{ type: file, from: [events], path: out.ndjson }} }}
"#
    ));
    let pipeline = lab.run();
    let sent = numbered(0..50_000);
    send(port, &sent);
    pipeline.stop();
    let received = lab.lines("out.ndjson");
    assert_eq!(received.len(), sent.len());
    assert!(received == sent, "not the same lines in the same order");
}

#[test]
fn a_peer_that_never_stops_sending_does_not_hold_the_stop() {
    let port = free_port();
    let lab = Lab::new(&format!(
        r#"
sources: {{ in: {{ type: tcp, listen: "127.0.0.1:{port}", schema: {{ fields: {{ level: string }} }} }} }}
sinks: {{ out: {{ type: file, from: [in], path: out.ndjson }} }}
"#
    ));
    let pipeline = lab.run();
    let sender = thread::spawn(move || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        // Faster than a silence would end the reading; ends when the pipeline closes the connection.
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline && stream.write_all(b"{\"level\":\"INFO\"}\n").is_ok() {
            thread::sleep(Duration::from_millis(10));
        }
    });
    until("rows arrive", || !lab.lines("out.ndjson").is_empty());
    let started = Instant::now();
    pipeline.stop();
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    sender.join().unwrap();
}

/// A sink that gathers rows for a file holds up nobody: what it has taken is no backlog, whoever waits for its flush.
#[test]
fn rows_that_wait_for_a_flush_do_not_hold_up_the_source() {
    let lab = Lab::new(
        "
sources: { in: { type: file, paths: [in.ndjson], schema: { fields: { n: int64 } } } }
sinks:
  lake: { type: parquet, from: [in], path: lake, batch: { timeout: 1h, max_bytes: 1GiB } }
",
    );
    // More than may wait for sinks with one worker.
    let filler = "x".repeat(8 << 10);
    let lines: Vec<String> = (0..6_000).map(|n| format!(r#"{{"n":{n},"filler":"{filler}"}}"#)).collect();
    lab.write("in.ndjson", &(lines.join("\n") + "\n"));
    let pipeline = lab.run();
    pipeline.until_metric("logdrive_decoder_rows_total", "", 6_000.0);
    pipeline.stop();
    assert!(bytes_below(&lab.path("lake")) > 0);
}

// ---- durability of the http source ----

#[test]
fn an_http_answer_is_a_promise_that_survives_sigkill() {
    let port = free_port();
    let lab = Lab::new(&format!(
        r#"
sources: {{ in: {{ type: http, listen: "127.0.0.1:{port}", schema: {{ fields: {{ n: int64 }} }} }} }}
sinks: {{ out: {{ type: file, from: [in], path: out.ndjson }} }}
"#
    ));
    let requests = [
        ("/", "application/x-ndjson", "{\"n\":1}\n{\"n\":2}\n".to_owned()),
        ("/", "application/json", "[{\"n\":3}, {\"n\":4}]".to_owned()),
        (
            "/_bulk",
            "application/x-ndjson",
            "{\"index\":{\"_index\":\"a\"}}\n{\"n\":5}\n{\"create\":{\"_index\":\"a\"}}\n{\"n\":6}\n"
                .to_owned(),
        ),
        ("/logs/_bulk", "application/x-ndjson", "{\"create\":{}}\n{\"n\":7}\n".to_owned()),
    ];
    for (path, kind, body) in &requests {
        let pipeline = lab.run();
        let (status, answer) = http(port, "POST", path, kind, body);
        pipeline.kill();
        assert_eq!(status, 200, "{answer}");
        if path.ends_with("_bulk") {
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(answer["errors"], json!(false), "{answer}");
        }
    }
    let pipeline = lab.run();
    let numbers = || {
        let mut n: Vec<_> = lab.documents("out.ndjson").iter().filter_map(|d| d["n"].as_i64()).collect();
        n.sort_unstable();
        n.dedup();
        n
    };
    until("all seven are delivered", || numbers() == [1, 2, 3, 4, 5, 6, 7]);
    let (status, _) = http(port, "POST", "/", "application/json", "{\"n\":");
    assert!(status == 400 || status == 200, "a broken body is refused, or its lines are rejects: {status}");
    pipeline.stop();
}

// ---- sources that end ----

#[test]
fn a_pipeline_ends_by_itself_when_its_input_ends() {
    let lab = Lab::new(
        r"
sources: { in: { type: stdin, schema: { fields: { n: int64 } } } }
sinks: { out: { type: file, from: [in], path: out.ndjson } }
",
    );
    let mut pipeline = lab.spawn(Stdio::piped());
    let sent = numbered(0..1000);
    let mut stdin = pipeline.stdin();
    stdin.write_all((sent.join("\n") + "\n").as_bytes()).unwrap();
    drop(stdin);
    assert!(pipeline.wait().success(), "{}", pipeline.log());
    assert_eq!(lab.lines("out.ndjson"), sent);
}

#[test]
fn generated_events_are_counted_exactly() {
    let lab = Lab::new(
        r"
sources: { shop: { type: generate, rate: max, count: 10000, seed: 3, schema: ecommerce } }
sinks: { out: { type: file, from: [shop], path: out.ndjson } }
",
    );
    let mut pipeline = lab.spawn(Stdio::null());
    assert!(pipeline.wait().success(), "{}", pipeline.log());
    assert_eq!(lab.lines("out.ndjson").len(), 10_000);
    assert_eq!(lab.lines("data/rejects/rejects.ndjson"), Vec::<String>::new());
}

#[test]
fn a_file_is_read_once_over_two_runs() {
    let lab = Lab::new(
        r"
sources: { in: { type: file, paths: [in/*.log], follow: false, schema: { fields: { n: int64 } } } }
sinks: { out: { type: file, from: [in], path: out.ndjson } }
",
    );
    fs::create_dir(lab.path("in")).unwrap();
    let sent = numbered(0..5000);
    lab.write("in/a.log", &(sent.join("\n") + "\n"));
    for _ in 0..2 {
        let mut pipeline = lab.spawn(Stdio::null());
        assert!(pipeline.wait().success(), "{}", pipeline.log());
        assert_eq!(lab.lines("out.ndjson"), sent);
    }
    let more = numbered(5000..5010);
    lab.write("in/a.log", &([sent.clone(), more.clone()].concat().join("\n") + "\n"));
    assert!(lab.spawn(Stdio::null()).wait().success());
    assert_eq!(lab.lines("out.ndjson"), [sent, more].concat(), "only what is new is read");
}

// ---- sinks that are down ----

/// One sink whose far end is dead beside one that lives.
fn dead_beside_live(restart: bool) {
    let (port, far) = (free_port(), free_port());
    let lab = Lab::new(&format!(
        r#"
sources: {{ in: {{ type: tcp, listen: "127.0.0.1:{port}", schema: {{ fields: {{ n: int64 }} }} }} }}
sinks:
  live: {{ type: file, from: [in], path: out.ndjson }}
  dead: {{ type: tcp, from: [in], endpoint: "127.0.0.1:{far}" }}
"#
    ));
    let mut pipeline = lab.run();
    let mut sent = numbered(0..5000);
    send(port, &sent);
    until("the live sink has everything", || lab.lines("out.ndjson").len() == sent.len());
    assert_eq!(lab.lines("out.ndjson"), sent);
    pipeline.until_metric("logdrive_buffer_messages", "in", 0.0);
    assert_eq!(pipeline.metric("logdrive_sink_up", "dead"), Some(0.0));
    assert!(bytes_below(&lab.path("data/queues/dead")) > 0);
    if restart {
        pipeline.stop();
        pipeline = lab.run();
    }
    let more = numbered(5000..6000);
    send(port, &more);
    sent.extend(more);
    until("the live sink goes on", || lab.lines("out.ndjson").len() == sent.len());
    let collector = Collector::listen(far);
    until_within(Duration::from_secs(90), "the sink that was dead has everything", || {
        collector.lines().len() >= sent.len()
    });
    pipeline.until_metric("logdrive_sink_queue_bytes", "dead", 0.0);
    pipeline.stop();
    assert_eq!(collector.lines(), sent);
}

#[test]
fn a_dead_sink_does_not_stop_the_others_and_gets_its_rows_later() {
    dead_beside_live(false);
}

#[test]
fn a_dead_sink_gets_its_rows_also_after_a_restart() {
    dead_beside_live(true);
}

#[test]
fn a_connection_that_breaks_ends_nothing_but_itself() {
    let (port, far) = (free_port(), free_port());
    let lab = Lab::new(&format!(
        r#"
sources: {{ in: {{ type: tcp, listen: "127.0.0.1:{port}", schema: {{ fields: {{ n: int64 }} }} }} }}
sinks: {{ out: {{ type: tcp, from: [in], endpoint: "127.0.0.1:{far}" }} }}
"#
    ));
    let listener = TcpListener::bind(("127.0.0.1", far)).unwrap();
    let pipeline = lab.run();
    let mut sent = numbered(0..200_000);
    send(port, &sent);
    // Closed with much of it unread: whoever writes on gets an error, and a signal if nobody prevents that.
    let (mut stream, _) = listener.accept().unwrap();
    stream.read_exact(&mut [0; 1000]).unwrap();
    drop((stream, listener));
    let collector = Collector::listen(far);
    until("every row arrives at the next connection", || collector.lines().len() >= sent.len());
    pipeline.stop();
    let mut arrived = collector.lines();
    arrived.sort_unstable();
    arrived.dedup();
    sent.sort_unstable();
    assert!(arrived == sent, "{} of {} arrived", arrived.len(), sent.len());
}

/// Answers every request with a status, from now on.
fn answer_all(port: u16, status: &'static str) {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    // Ends with the process.
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || {
                let mut stream = BufReader::new(stream.unwrap());
                loop {
                    let (mut line, mut length) = (String::new(), 0);
                    while stream.read_line(&mut line).unwrap_or(0) > 2 {
                        let lower = line.to_ascii_lowercase();
                        length = lower
                            .strip_prefix("content-length:")
                            .map_or(length, |n| n.trim().parse().unwrap());
                        line.clear();
                    }
                    if line.is_empty() || stream.read_exact(&mut vec![0; length]).is_err() {
                        return;
                    }
                    write!(stream.get_mut(), "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").unwrap();
                }
            });
        }
    });
}

#[test]
fn rows_refused_after_they_waited_on_disk_reach_the_rejects_stream() {
    let (port, far) = (free_port(), free_port());
    let lab = Lab::new(&format!(
        r#"
sources: {{ in: {{ type: tcp, listen: "127.0.0.1:{port}", schema: {{ fields: {{ n: int64 }} }} }} }}
sinks:
  live: {{ type: file, from: [in], path: out.ndjson }}
  picky: {{ type: http, from: [in], endpoint: "http://127.0.0.1:{far}/" }}
  refused: {{ type: file, from: [rejects], path: refused.ndjson }}
"#
    ));
    let pipeline = lab.run();
    let sent = numbered(0..3000);
    send(port, &sent);
    until("the rows are on disk", || {
        bytes_below(&lab.path("data/queues/picky")) > 0
            && pipeline.metric("logdrive_buffer_messages", "in") == Some(0.0)
    });
    pipeline.stop();
    let pipeline = lab.run();
    answer_all(far, "422 Unprocessable Content");
    until_within(Duration::from_secs(90), "every row is a reject", || {
        lab.lines("refused.ndjson").len() >= sent.len()
    });
    pipeline.until_metric("logdrive_sink_queue_bytes", "picky", 0.0);
    pipeline.stop();
    let mut refused: Vec<String> = lab
        .documents("refused.ndjson")
        .iter()
        .map(|reject| reject["original"].as_str().unwrap_or_default().to_owned())
        .collect();
    refused.sort_unstable();
    let mut expect = sent;
    expect.sort_unstable();
    assert!(refused == expect, "{} instead of {}", refused.len(), expect.len());
}

#[test]
fn a_dead_only_sink_slows_the_sender_and_loses_nothing() {
    let (port, far) = (free_port(), free_port());
    let lab = Lab::new(&format!(
        r#"
in_flight_max_bytes: 16MiB
sources:
  in:
    type: tcp
    listen: "127.0.0.1:{port}"
    buffer: {{ max_bytes: 1MiB }}
    schema: {{ fields: {{ n: int64 }} }}
sinks: {{ dead: {{ type: tcp, from: [in], endpoint: "127.0.0.1:{far}", flush_interval: 20ms }} }}
"#
    ));
    let pipeline = lab.run();
    // More than fits into what lies between: the kernel's buffers, and 64 MiB in front of the write-ahead buffer.
    let filler = "x".repeat(8000);
    let sent: Vec<_> = (0..20_000).map(|n| format!(r#"{{"n":{n},"filler":"{filler}"}}"#)).collect();
    let written = Arc::new(AtomicU64::new(0));
    let (counter, to_send) = (Arc::clone(&written), sent.clone());
    let sender = thread::spawn(move || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        for line in to_send {
            stream.write_all((line + "\n").as_bytes()).unwrap();
            counter.fetch_add(1, Ordering::Release);
        }
    });
    // Blocked: no line more for two seconds, although not all are written.
    let (mut last, mut since) = (0, Instant::now());
    until("the sender is held back", || {
        let now = written.load(Ordering::Acquire);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        now > 0 && since.elapsed() > Duration::from_secs(2)
    });
    assert!(last < sent.len() as u64, "all was taken, although nothing can leave");
    assert!(bytes_below(&lab.path("data/buffer")) < 8 << 20, "{}", bytes_below(&lab.path("data/buffer")));
    assert!(pipeline.resident() < 300 << 20, "{} bytes resident", pipeline.resident());
    let collector = Collector::listen(far);
    until_within(Duration::from_secs(120), "everything arrives", || collector.lines().len() >= sent.len());
    sender.join().unwrap();
    pipeline.stop();
    assert!(collector.lines() == sent, "not the same lines in the same order");
}

// ---- detection and audit ----

fn velocity_lab() -> (Lab, u16) {
    let port = free_port();
    let lab = Lab::new(&format!(
        r#"
sources: {{ in: {{ type: http, listen: "127.0.0.1:{port}", schema: ecommerce }} }}
streams:
  payments:
    from: in
    steps:
      - set: {{ card: lower(card_id) }}
detectors:
  card_testing:
    type: velocity
    from: payments
    where: type = 'transaction' AND card IS NOT NULL
    by: [card]
    window: 5m
    threshold: 8
    severity: P1
sinks:
  ledger: {{ type: audit, from: [card_testing], path: audit }}
  alerts: {{ type: file, from: [card_testing], path: findings.ndjson }}
  all:    {{ type: audit, from: [payments], path: everything }}
"#
    ));
    (lab, port)
}

/// Payments with one card, a second apart, starting at `first`.
fn payments(card: &str, range: std::ops::Range<u32>) -> String {
    range
        .map(|n| {
            format!(
                r#"{{"@timestamp":"2026-11-21T10:00:{n:02}Z","type":"transaction","tenant":"atlas","card_id":"{card}","amount":"1.00"}}{}"#,
                "\n"
            )
        })
        .collect()
}

fn post(port: u16, body: &str) {
    let (status, answer) = http(port, "POST", "/", "application/x-ndjson", body);
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn velocity_findings_reach_file_and_audit_log_which_shows_changes() {
    let (lab, port) = velocity_lab();
    let pipeline = lab.run();
    post(port, &payments("CARD-A", 0..9));
    post(port, &payments("card-b", 0..7));
    until("the finding is there", || !lab.lines("findings.ndjson").is_empty());
    pipeline.stop();

    let findings = lab.documents("findings.ndjson");
    assert_eq!(findings.len(), 1, "{findings:?}");
    let finding = &findings[0];
    assert_eq!(
        [&finding["detector"], &finding["entity"], &finding["severity"], &finding["tenant"]],
        [&json!("card_testing"), &json!("card-a"), &json!("P1"), &json!("atlas")]
    );
    assert_eq!(finding["evidence"].as_array().map(Vec::len), Some(8), "{finding}");

    assert!(lab.succeed(&["audit", "verify", "audit"]).contains("1 entries"));
    assert!(lab.succeed(&["audit", "verify", "everything"]).contains("16 entries"));
    let exported = lab.succeed(&["audit", "export", "audit"]);
    let entry: Value = serde_json::from_str(exported.lines().next().unwrap()).unwrap();
    assert_eq!(entry["body"]["id"], finding["id"], "{entry}");

    lab.write("proof.json", &lab.succeed(&["audit", "prove", "everything", "11"]));
    assert!(lab.succeed(&["audit", "prove", "proof.json", "--check"]).contains("entry 11"));
    let mut proof: Value =
        serde_json::from_str(&fs::read_to_string(lab.path("proof.json")).unwrap()).unwrap();
    proof["index"] = json!(10);
    lab.write("wrong.json", &proof.to_string());
    assert_eq!(lab.command(&["audit", "prove", "wrong.json", "--check"]).status.code(), Some(1));

    // One byte of the twelfth entry, in a copy.
    let copy = lab.path("copy");
    fs::create_dir(&copy).unwrap();
    let mut flipped = false;
    for entry in fs::read_dir(lab.path("everything")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let names = |w: &[u8]| w == b"atlas";
        let twelfth = bytes.windows(5).enumerate().filter(|(_, w)| names(w)).map(|(at, _)| at).nth(11);
        if let Some(at) = twelfth {
            bytes[at] = b'A';
            flipped = true;
        }
        fs::write(copy.join(path.file_name().unwrap()), bytes).unwrap();
    }
    assert!(flipped);
    let output = lab.command(&["audit", "verify", "copy"]);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("entry 11"), "{message}");
    assert!(lab.succeed(&["audit", "verify", "everything"]).contains("intact"));
}

/// Five of eight payments, an end, three more: exactly one finding.
fn velocity_over(end: impl FnOnce(e2e_support::Pipeline, &Lab)) {
    let (lab, port) = velocity_lab();
    let pipeline = lab.run();
    post(port, &payments("card-a", 0..5));
    end(pipeline, &lab);
    let pipeline = lab.run();
    post(port, &payments("card-a", 5..8));
    until("the finding is there", || !lab.lines("findings.ndjson").is_empty());
    pipeline.until_metric("logdrive_buffer_messages", "in", 0.0);
    pipeline.stop();
    let findings = lab.documents("findings.ndjson");
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0]["evidence"].as_array().map(Vec::len), Some(8), "{}", findings[0]);
    assert!(lab.succeed(&["audit", "verify", "audit"]).contains("1 entries"));
    assert!(
        lab.succeed(&["audit", "verify", "everything"]).contains("8 entries"),
        "no row twice, none missing"
    );
}

#[test]
fn velocity_state_survives_a_kill_before_its_checkpoint() {
    velocity_over(|pipeline, _| pipeline.kill());
}

#[test]
fn velocity_state_survives_a_kill_behind_its_checkpoint() {
    velocity_over(|pipeline, _| {
        // The buffer is trimmed once the rows are in a checkpoint.
        pipeline.until_metric("logdrive_buffer_messages", "in", 0.0);
        pipeline.kill();
    });
}

#[test]
fn velocity_state_survives_a_graceful_stop() {
    velocity_over(|pipeline, lab| {
        pipeline.stop();
        assert!(bytes_below(&lab.path("data/checkpoints")) > 0);
    });
}

// ---- looking at it ----

#[test]
fn a_running_pipeline_shows_itself() {
    let port = free_port();
    let lab = Lab::new(&format!(
        r#"
sources: {{ in: {{ type: tcp, listen: "127.0.0.1:{port}", schema: {{ fields: {{ n: int64 }} }} }} }}
streams: {{ even: {{ from: in, steps: [{{ where: n % 2 = 0 }}] }} }}
sinks: {{ out: {{ type: file, from: [even], path: out.ndjson }} }}
"#
    ));
    let pipeline = lab.run();
    assert_eq!(pipeline.get("/health").0, 200);
    assert_eq!(pipeline.get("/ready").0, 200);

    let tap = Command::new(LOGDRIVE)
        .args(["tap", "even", "-n", "3", "--for", "30s", "--api", &format!("http://127.0.0.1:{}", lab.api)])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // A tap shows what flows from now on: rows are sent until it has seen enough.
    let mut tap = Some(tap);
    let mut n_sent = 0;
    until("tap ends", || {
        send(port, &numbered(n_sent..n_sent + 10));
        n_sent += 10;
        tap.as_mut().unwrap().try_wait().unwrap().is_some()
    });
    let output = tap.take().unwrap().wait_with_output().unwrap();
    let tapped = String::from_utf8(output.stdout).unwrap();
    assert_eq!(tapped.lines().count(), 3, "{tapped}");
    for line in tapped.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        assert_eq!(row["n"].as_i64().unwrap() % 2, 0);
    }

    send(port, &["nonsense"]);
    until("all even rows are there", || lab.lines("out.ndjson").len() == n_sent / 2);
    pipeline.until_metric("logdrive_source_messages_total", "in", (n_sent + 1) as f64);
    pipeline.until_metric("logdrive_sink_rows_total", "out", (n_sent / 2) as f64);
    pipeline.until_metric("logdrive_rejects_total", "in", 1.0);
    assert_eq!(pipeline.metric("logdrive_stream_filtered_rows_total", "even"), Some((n_sent / 2) as f64));
    let (status, text) = pipeline.get("/v1/status");
    assert_eq!(status, 200);
    let state: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(state["rejects"], json!(1));
    let stream = state["nodes"].as_array().unwrap().iter().find(|node| node["name"] == "even").unwrap();
    assert_eq!((&stream["kind"], &stream["rows"]), (&json!("stream"), &json!(n_sent / 2)));

    let wrong = lab.command(&["tap", "evn", "--api", &format!("http://127.0.0.1:{}", lab.api)]);
    assert!(!wrong.status.success());
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("did you mean `even`"));
    pipeline.stop();
}

#[test]
fn check_graph_and_test_speak_about_a_pipeline() {
    let yaml = |expected: &str| {
        format!(
            r#"
sources: {{ in: {{ type: stdin, schema: {{ fields: {{ n: int64, unread: string }} }} }} }}
streams: {{ even: {{ from: in, steps: [{{ where: n % 2 = 0 }}] }} }}
sinks: {{ out: {{ type: file, from: [even], path: out.ndjson }} }}
tests:
  - name: odd rows go
    input: {{ in: ['{{"n":1}}', '{{"n":2}}'] }}
    expect: {{ even: [{{ n: {expected} }}] }}
"#
        )
    };
    let lab = Lab::new(&yaml("2"));
    let check = lab.succeed(&["check", "pipeline.yaml"]);
    assert!(check.contains("valid") && check.contains("reads 1 of 2 declared fields: n"), "{check}");
    let mermaid = lab.succeed(&["graph", "pipeline.yaml"]);
    assert!(mermaid.starts_with("flowchart") && mermaid.contains("even"), "{mermaid}");
    let dot = lab.succeed(&["graph", "--format", "dot", "pipeline.yaml"]);
    assert!(dot.contains(r#""in" -> "even""#) && dot.contains(r#""even" -> "out""#), "{dot}");
    lab.succeed(&["test", "pipeline.yaml"]);
    assert!(!lab.path("data").exists(), "nothing of this makes a data folder");

    lab.configure(&yaml("3"));
    let output = lab.command(&["test", "pipeline.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(said.contains("odd rows go") && said.contains(r#"expected {"n":3}"#), "{said}");

    lab.configure("sources: { in: { type: stdn } }\n");
    let output = lab.command(&["check", "pipeline.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("did you mean `stdin`"));
}

#[test]
fn the_json_schema_knows_every_component() {
    let lab = Lab::new("");
    let schema: Value = serde_json::from_str(&lab.succeed(&["schema"])).unwrap();
    let text = schema.to_string();
    assert!(schema["properties"]["sources"].is_object(), "{schema}");
    for name in ["tcp", "generate", "velocity", "elasticsearch", "geoip", "lookup"] {
        assert!(text.contains(&format!("\"{name}\"")), "{name} is not in the schema");
    }
    assert!(text.contains("max_connections_per_ip"), "fields of components are in it");
}

#[test]
fn infer_prints_a_schema_that_a_pipeline_takes() {
    let lab = Lab::new("");
    lab.write(
        "sample.ndjson",
        "{\"@timestamp\":\"2026-11-21T10:00:00Z\",\"n\":1,\"ratio\":1,\"user\":{\"name\":\"ann\",\"ip\":\"10.0.0.1\"},\"tags\":[\"a\"]}\n\
         {\"n\":2,\"ratio\":0.5,\"ok\":true}\nnonsense\n",
    );
    let block = lab.succeed(&["infer", "sample.ndjson"]);
    for part in ["n: int64", "ratio: float64", "ok: boolean", "name: string", "ip: ip", "tags: list<string>"]
    {
        assert!(block.contains(part), "{part} is not in {block}");
    }
    let indented: String = block.lines().map(|line| format!("    {line}\n")).collect();
    lab.configure(&format!(
        "sources:\n  in:\n    type: stdin\n{indented}streams:\n  events:\n    from: in\n    steps:\n      - where: n > 1 AND ok\n\
         sinks: {{ out: {{ type: blackhole, from: [events] }} }}\n"
    ));
    lab.succeed(&["check", "pipeline.yaml"]);
}

#[test]
fn rejects_are_listed_and_replayed() {
    let port = free_port();
    let yaml = |kind: &str| {
        format!(
            r#"
sources: {{ in: {{ type: tcp, listen: "127.0.0.1:{port}", schema: {{ fields: {{ n: {kind} }} }} }} }}
streams: {{ events: {{ from: in, steps: [{{ where: n IS NOT NULL }}] }} }}
sinks: {{ out: {{ type: file, from: [events], path: out.ndjson }} }}
"#
        )
    };
    let lab = Lab::new(&yaml("int64"));
    let pipeline = lab.run();
    let wrong = [r#"{"n":"one"}"#, r#"{"n":"two"}"#];
    send(port, &[wrong[0], wrong[1], "nonsense"]);
    until("they are rejects", || lab.lines("data/rejects/rejects.ndjson").len() == 3);
    pipeline.stop();
    let list = lab.succeed(&["rejects", "list"]);
    assert!(list.lines().any(|line| line.trim_start().starts_with("2 ") && line.contains(" in ")), "{list}");
    let all = lab.succeed(&["rejects", "list", "--all"]);
    assert!(all.contains("nonsense"), "{all}");
    let replayed = lab.succeed(&["rejects", "replay", "--source", "in"]);
    assert_eq!(replayed, format!("{}\n{}\nnonsense\n", wrong[0], wrong[1]));

    // The schema is mended, and what failed is sent again.
    lab.configure(&yaml("string"));
    let pipeline = lab.run();
    lab.succeed(&["rejects", "replay", "--to", &format!("127.0.0.1:{port}")]);
    until("the mended rows arrive", || lab.lines("out.ndjson").len() == 2);
    pipeline.stop();
    assert_eq!(lab.lines("out.ndjson"), wrong);
}

#[test]
fn a_buffer_is_checked_from_outside() {
    let (port, far) = (free_port(), free_port());
    let lab = Lab::new(&format!(
        r#"
sources: {{ in: {{ type: http, listen: "127.0.0.1:{port}", schema: {{ fields: {{ n: int64 }} }} }} }}
sinks: {{ dead: {{ type: tcp, from: [in], endpoint: "127.0.0.1:{far}" }} }}
"#
    ));
    let pipeline = lab.run();
    post(port, &(numbered(0..10).join("\n") + "\n"));
    pipeline.kill();
    let report = lab.succeed(&["buffer", "check", "data/buffer/in"]);
    assert!(report.contains("10 messages wait"), "{report}");
    // A byte in the middle of the only segment.
    let segment = fs::read_dir(lab.path("data/buffer/in/buffer"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(4).position(|w| w == b"INFO").expect("messages lie there as they came");
    bytes[at] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let output = lab.command(&["buffer", "check", "data/buffer/in"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("DAMAGED") || said.contains("torn"), "{said}");
}

// ---- a real server ----

/// A real OpenSearch, stopped at the end.
struct OpenSearch {
    script: PathBuf,
    port: u16,
}

impl OpenSearch {
    fn start() -> Option<Self> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let shared =
            std::env::var_os("LOGDRIVE_SHARED").map_or_else(|| workspace.join("../shared"), PathBuf::from);
        let script = shared.join("components/opensearch.sh");
        let skip =
            |why: &str| writeln!(&mut stdout(), "skipped: documents_are_found_in_opensearch: {why}").unwrap();
        if !script.exists() {
            skip("data not at hand");
            return None;
        }
        let port = (19_200..19_300).find(|port| {
            let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
            free(*port) && free(*port + 100)
        })?;
        let run = |args: &[&str]| {
            Command::new("timeout")
                .arg("180")
                .arg("bash")
                .arg(&script)
                .args(args)
                .stdout(Stdio::null())
                .status()
        };
        if !run(&["install"]).is_ok_and(|status| status.success()) {
            skip("OpenSearch cannot be installed here");
            return None;
        }
        // From here on it is stopped in any case.
        let server = Self { script: script.clone(), port };
        assert!(run(&["start", &port.to_string()]).unwrap().success(), "OpenSearch does not start");
        // On a disk that is nearly full it would make no index, and everybody would wait for ever.
        let settings = r#"{"persistent":{"cluster.routing.allocation.disk.threshold_enabled":false}}"#;
        let set = try_http(port, "PUT", "/_cluster/settings", "application/json", settings);
        assert_eq!(set.unwrap().0, 200);
        Some(server)
    }

    fn call(&self, method: &str, path: &str) -> (u16, Value) {
        let (status, body) = try_http(self.port, method, path, "application/json", "").unwrap();
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }
}

impl Drop for OpenSearch {
    fn drop(&mut self) {
        // `wipe` stops it and removes its data.
        let port = self.port.to_string();
        Command::new("timeout").arg("60").arg("bash").arg(&self.script).args(["wipe", &port]).status().ok();
    }
}

#[test]
fn documents_are_found_in_opensearch() {
    let Some(server) = OpenSearch::start() else { return };
    let port = free_port();
    let lab = Lab::new(&format!(
        r#"
sources: {{ in: {{ type: tcp, listen: "127.0.0.1:{port}", schema: ecommerce }} }}
streams:
  events:
    from: in
    steps:
      - geoip: {{ field: ip, into: geo, database: geo.csv }}
sinks:
  search:
    type: elasticsearch
    from: [events]
    endpoint: ["http://127.0.0.1:{}"]
    index: "ecommerce-logs-%Y.%m.%d"
"#,
        server.port
    ));
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/geo.csv"), lab.path("geo.csv")).unwrap();
    let pipeline = lab.run();
    let sent: Vec<_> = (0..100)
        .map(|n| {
            format!(
                r#"{{"@timestamp":"2026-11-{:02}T10:00:00Z","type":"error","tenant":"atlas","message":"number {n}","ip":"10.10.0.{n}"}}"#,
                20 + n % 2
            )
        })
        .collect();
    send(port, &sent);
    pipeline.until_metric("logdrive_sink_rows_total", "search", 100.0);
    pipeline.stop();
    server.call("POST", "/ecommerce-logs-*/_refresh");
    for day in ["2026.11.20", "2026.11.21"] {
        let (status, found) = server.call("GET", &format!("/ecommerce-logs-{day}/_search?size=100"));
        assert_eq!(status, 200, "{found}");
        assert_eq!(found["hits"]["total"]["value"], json!(50), "{day}");
    }
    let (_, found) = server.call("GET", "/ecommerce-logs-*/_search?q=message:42");
    let hits = found["hits"]["hits"].as_array().unwrap();
    assert_eq!(hits.len(), 1, "{found}");
    assert_eq!(hits[0]["_source"]["geo"]["city_name"], json!("Paris"), "{found}");
    let (_, found) = server.call("GET", "/ecommerce-logs-*/_search?q=ip:%2210.10.0.40/29%22");
    assert_eq!(found["hits"]["total"]["value"], json!(8), "addresses are searched as networks: {found}");
    let (_, mapping) = server.call("GET", "/ecommerce-logs-2026.11.21/_mapping");
    let fields = &mapping["ecommerce-logs-2026.11.21"]["mappings"]["properties"];
    let types = [
        &fields["ip"]["type"],
        &fields["geo"]["properties"]["location"]["type"],
        &fields["@timestamp"]["type"],
        &fields["tenant"]["type"],
    ];
    assert_eq!(types, ["ip", "geo_point", "date", "keyword"], "{fields}");
}
