//! Alerts end to end: a detector's findings, routed by SQL, reach channels; the binary is killed again and again while a
//! channel is unwell, and no alert is missing.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, helpers included")]
#![allow(dead_code, reason = "the helpers serve several tests")]

mod e2e_support;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use e2e_support::{Lab, free_port, http, send, until};
use serde_json::{Value, json};

const KILLS: usize = 5;
const PER_LIFE: usize = 60;

/// A far end of webhooks. Every `n_bad`th request to `/ill` fails: with 503, or without an answer although it was taken.
struct FarEnd {
    port: u16,
    taken: Arc<Mutex<Vec<(String, Value)>>>,
}

impl FarEnd {
    fn start(n_bad: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let (kept, n_requests) = (Arc::clone(&taken), Arc::new(AtomicUsize::new(0)));
        // Ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (kept, n_requests) = (Arc::clone(&kept), Arc::clone(&n_requests));
                thread::spawn(move || serve(stream, n_bad, &kept, &n_requests));
            }
        });
        Self { port, taken }
    }

    /// How often each entity was told of at an address, by status.
    fn told(&self, target: &str, status: &str) -> BTreeMap<String, usize> {
        let mut told = BTreeMap::new();
        for (_, body) in
            self.taken.lock().unwrap().iter().filter(|(t, b)| t == target && b["status"] == status)
        {
            *told.entry(body["labels"]["entity"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        told
    }
}

fn serve(
    stream: TcpStream,
    n_bad: usize,
    kept: &Mutex<Vec<(String, Value)>>,
    n_requests: &AtomicUsize,
) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let (mut line, mut target, mut n_bytes) = (String::new(), String::new(), 0);
        while reader.read_line(&mut line).ok()? > 0 && line != "\r\n" {
            if target.is_empty() {
                target = line.split(' ').nth(1)?.to_owned();
            }
            if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                n_bytes = n.trim().parse().ok()?;
            }
            line.clear();
        }
        let mut body = vec![0; n_bytes];
        reader.read_exact(&mut body).ok()?;
        let is_bad = target == "/ill" && n_requests.fetch_add(1, Ordering::Relaxed) % n_bad == n_bad - 1;
        if is_bad && n_requests.load(Ordering::Relaxed).is_multiple_of(2) {
            writer.write_all(b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n").ok()?;
            continue;
        }
        kept.lock().unwrap().push((target, serde_json::from_slice(&body).ok()?));
        if is_bad {
            return None;
        }
        writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
    }
}

#[test]
fn no_alert_is_missing_although_the_binary_is_killed_and_a_channel_is_unwell() {
    let far = FarEnd::start(25);
    let (input, url) = (free_port(), format!("http://127.0.0.1:{}", far.port));
    let lab = Lab::new(&format!(
        r#"
sources:
  in:
    type: http
    listen: "127.0.0.1:{input}"
    schema: {{ fields: {{ id: string, detector: string, entity: string, tenant: string, severity: string }} }}
sinks:
  alerts:
    type: alert
    from: [in]
    channels:
      well: {{ webhook: {{ url: "{url}/well", secret: s3cret }} }}
      ill: {{ webhook: {{ url: "{url}/ill" }} }}
    group_wait: 100ms
    resolve_after: 20s
"#
    ));
    let mut pipeline = lab.run();
    let mut n_sent = 0;
    for life in 0..=KILLS {
        for _ in 0..PER_LIFE {
            // Each finding twice: what comes again is no news.
            let finding = json!({
                "id": format!("f{n_sent}"), "detector": "d", "entity": format!("card {n_sent}"),
                "tenant": "acme", "severity": "P1",
            });
            let (status, _) =
                http(input, "POST", "/", "application/x-ndjson", &format!("{finding}\n{finding}\n"));
            assert_eq!(status, 200);
            n_sent += 1;
        }
        if life < KILLS {
            let n_told = PER_LIFE * life + life * 7 % PER_LIFE;
            until("some alerts are told", || far.told("/well", "firing").len() > n_told);
            pipeline.kill();
            pipeline = lab.run();
        }
    }
    let mut repeated = Vec::new();
    for status in ["firing", "resolved"] {
        for target in ["/well", "/ill"] {
            until("all alerts are told", || far.told(target, status).len() == n_sent);
            repeated.push(far.told(target, status).into_values().sum::<usize>() - n_sent);
        }
    }
    pipeline.stop();
    println!(
        "{KILLS} kills: {n_sent} alerts, each begins and ends at 2 channels, none missing; repeated {repeated:?}"
    );
    assert!(repeated[0] <= KILLS && repeated[2] <= KILLS, "one for each kill at most: {repeated:?}");
}

#[test]
fn findings_of_a_detector_are_routed_and_described_in_sql() {
    let far = FarEnd::start(usize::MAX);
    let (input, url) = (free_port(), format!("http://127.0.0.1:{}", far.port));
    let lab = Lab::new(&format!(
        r#"
sources:
  in:
    type: tcp
    listen: "127.0.0.1:{input}"
    schema: {{ fields: {{ card: string, "@timestamp": timestamp }} }}
detectors:
  card_testing: {{ type: velocity, from: in, by: [card], window: 5m, threshold: 3, severity: P1 }}
sinks:
  alerts:
    type: alert
    from: [card_testing]
    channels:
      vip: {{ webhook: {{ url: "{url}/vip" }} }}
      rest: {{ webhook: {{ url: "{url}/rest" }} }}
    routes:
      - {{ where: "entity LIKE 'vip%'", channels: [vip] }}
      - {{ channels: [rest] }}
    title: "upper(detector) || ' ' || entity"
    body: "'score ' || round(score, 1)"
    group_by: [detector, entity, "substr(entity, 1, 3)"]
    group_wait: 100ms
"#
    ));
    let pipeline = lab.run();
    let rows: Vec<_> = ["vip-1", "card-2"]
        .iter()
        .flat_map(|card| {
            (0..3).map(move |s| format!(r#"{{"card":"{card}","@timestamp":"2026-11-21T10:00:0{s}Z"}}"#))
        })
        .collect();
    send(input, &rows);
    until("both are told", || far.taken.lock().unwrap().len() == 2);
    for (target, entity) in [("/vip", "vip-1"), ("/rest", "card-2")] {
        let taken = far.taken.lock().unwrap();
        let (_, alert) = taken.iter().find(|(t, _)| t == target).unwrap();
        assert_eq!(alert["title"], format!("CARD_TESTING {entity}"));
        assert_eq!(alert["body"], "score 1.0");
        assert_eq!(alert["severity"], "P1");
        assert_eq!(alert["labels"]["substr(entity, 1, 3)"], entity[..3]);
        assert_eq!(alert["findings"][0]["entity"], entity);
        assert_eq!(alert["findings"][0]["_alert_id"], Value::Null);
    }
    pipeline.until_metric("logdrive_alerts_open", "alerts", 2.0);
    pipeline.stop();
}

#[test]
fn what_is_wrong_is_an_error_with_its_place() {
    let lab = Lab::new(
        r#"
sources:
  in: { type: stdin, schema: { fields: { id: string, detector: string, entity: string } } }
sinks:
  alerts:
    type: alert
    from: [in]
    channels: { chat: { slack: { url: "http://localhost/" } } }
    routes:
      - { where: "entity", channels: [chat] }
    title: "entty"
"#,
    );
    let output = lab.command(&["check", "pipeline.yaml"]);
    assert!(!output.status.success());
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    for expected in ["severity", "tenant", "a condition must be true or false", "did you mean `entity`"] {
        assert!(said.contains(expected), "{expected} is not in:\n{said}");
    }
}
