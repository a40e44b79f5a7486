//! The source and the sink `mqtt` with the real binary and a real broker, Mosquitto.
//!
//! Skipped where there is none: the broker is started by `components/mosquitto.sh` of the shared folder.

#![cfg(feature = "mqtt")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails, one that is skipped says so"
)]
#![allow(dead_code, reason = "what end-to-end tests share is not all used here")]

mod e2e_support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::io::stdout;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use e2e_support::{Lab, free_port, until, until_within};

const VERSIONS: [&str; 2] = ["3.1.1", "5"];

/// A broker on a port of its own, with a folder for what it persists.
struct Broker {
    script: PathBuf,
    dir: tempfile::TempDir,
    port: u16,
}

impl Broker {
    /// `None`, and a word why, if there is none here. `extra` are lines of its configuration.
    fn start(test: &str, extra: &str) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
        let shared = std::env::var_os("LOGDRIVE_SHARED").map_or(root, PathBuf::from);
        let script = shared.join("components/mosquitto.sh");
        let broker = Self { script, dir: tempfile::tempdir().unwrap(), port: free_port() };
        let path = broker.dir.path().display();
        let extra = if extra.is_empty() { "allow_anonymous true" } else { extra };
        let config = format!(
            "persistence true\npersistence_location {path}/\n\
             max_queued_messages 0\nmax_inflight_messages 200\n{extra}\n"
        );
        fs::write(broker.config(), config.replace("{dir}", &path.to_string())).unwrap();
        if !(broker.script.exists() && broker.run("install") && broker.run("start")) {
            writeln!(&mut stdout(), "skipped: {test}: no Mosquitto at hand").unwrap();
            return None;
        }
        Some(broker)
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("mosquitto.conf")
    }

    fn run(&self, verb: &str) -> bool {
        let mut command = Command::new(&self.script);
        command.arg(verb).env("MOSQUITTO_CONF", self.config());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if verb != "install" {
            command.arg(self.port.to_string());
        }
        command.status().is_ok_and(|status| status.success())
    }

    /// Publishes each line as a message; returns when the broker has confirmed all.
    fn publish(&self, topic: &str, qos: u8, lines: &[String], more: &[&str]) {
        let mut child = self.publisher(topic, qos, more);
        child.stdin.take().unwrap().write_all((lines.join("\n") + "\n").as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// A process that publishes the lines of its standard input.
    fn publisher(&self, topic: &str, qos: u8, more: &[&str]) -> Child {
        let (port, qos) = (self.port.to_string(), qos.to_string());
        Command::new("mosquitto_pub")
            .args(["-p", &port, "-t", topic, "-q", &qos, "-l"])
            .args(more)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.run("stop");
    }
}

fn numbered(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|n| format!(r#"{{"n":{n}}}"#)).collect()
}

/// The numbers of the documents in a file.
fn numbers(lab: &Lab, name: &str) -> Vec<u64> {
    lab.documents(name).iter().map(|d| d["n"].as_u64().unwrap()).collect()
}

fn all_arrived(lab: &Lab, name: &str, n: u64) -> bool {
    let numbers: BTreeSet<u64> = numbers(lab, name).into_iter().collect();
    numbers.len() as u64 == n
}

/// The file of subscriptions is there once the broker has answered.
fn subscribed(lab: &Lab, source: &str) -> bool {
    let text = fs::read_to_string(lab.path(&format!("data/sources/{source}/session"))).unwrap_or_default();
    text.lines().count() > 1
}

#[test]
fn levels_and_properties_are_columns() {
    let Some(broker) = Broker::start("levels_and_properties_are_columns", "") else { return };
    for version in VERSIONS {
        let lab = Lab::new(&format!(
            r##"
sources:
  plant:
    type: mqtt
    endpoint: "mqtt://127.0.0.1:{}"
    version: {version}
    qos: 2
    topics: ["plant/+/sensor/+", "rest/#"]
    metadata: mqtt
    levels: [site, device]
    schema: {{ fields: {{ n: int64 }} }}
streams:
  seven: {{ from: plant, steps: [ {{ where: "mqtt.site = '7' AND n > 0" }} ] }}
sinks:
  all: {{ type: file, from: [plant], path: all.ndjson }}
  out: {{ type: file, from: [seven], path: out.ndjson }}
  dead: {{ type: file, from: [rejects], path: dead.ndjson }}
"##,
            broker.port
        ));
        let pipeline = lab.run();
        until("subscribed", || subscribed(&lab, "plant"));
        let properties: &[&str] = &[
            "-V",
            "5",
            "-D",
            "publish",
            "content-type",
            "text/json",
            "-D",
            "publish",
            "user-property",
            "k",
            "v",
        ];
        let more = if version == "5" { properties } else { &[] };
        for qos in 0..=2 {
            broker.publish("plant/7/sensor/t4", qos, &[format!(r#"{{"n":{qos}}}"#), "nonsense".into()], more);
            broker.publish("plant/8/sensor/t5", qos, &numbered(5..6), more);
        }
        broker.publish("rest/a/b", 1, &numbered(9..10), more);
        until("all arrived", || lab.lines("all.ndjson").len() == 7 && lab.lines("dead.ndjson").len() == 3);
        pipeline.stop();
        let mqtt = |qos: u8, topic: &str, site: &str, device: Option<&str>| {
            let mut mqtt = json!({ "topic": topic, "site": site });
            if let Some(device) = device {
                mqtt["device"] = json!(device);
            }
            (mqtt["qos"], mqtt["retain"], mqtt["duplicate"]) = (json!(qos), json!(false), json!(false));
            if version == "5" {
                mqtt["content_type"] = json!("text/json");
                mqtt["user_properties"] = json!([{ "name": "k", "value": "v" }]);
            }
            mqtt
        };
        let expected: Vec<Value> = (1..=2)
            .map(|qos| json!({ "n": qos, "mqtt": mqtt(qos, "plant/7/sensor/t4", "7", Some("t4")) }))
            .collect();
        assert_eq!(lab.documents("out.ndjson"), expected, "version {version}");
        let rest = lab.documents("all.ndjson").into_iter().find(|d| d["n"] == 9).unwrap();
        assert_eq!(rest["mqtt"], mqtt(1, "rest/a/b", "a/b", None));
    }
}

#[test]
fn what_the_broker_counts_as_delivered_survives_kills() {
    const N: u64 = 20_000;
    let Some(broker) = Broker::start("what_the_broker_counts_as_delivered_survives_kills", "") else {
        return;
    };
    for (version, qos) in [("3.1.1", 1), ("5", 1), ("3.1.1", 2), ("5", 2)] {
        let topic = format!("numbers/{version}/{qos}");
        let lab = Lab::new(&format!(
            r#"
sources:
  numbers:
    type: mqtt
    endpoint: "mqtt://127.0.0.1:{}"
    version: {version}
    qos: {qos}
    topics: ["{topic}"]
    schema: {{ fields: {{ n: int64 }} }}
sinks:
  out: {{ type: file, from: [numbers], path: out.ndjson }}
"#,
            broker.port
        ));
        let mut pipeline = lab.run();
        until("subscribed", || subscribed(&lab, "numbers"));
        let mut publisher = broker.publisher(&topic, qos, &[]);
        let mut input = publisher.stdin.take().unwrap();
        let writer = std::thread::spawn(move || {
            for lines in numbered(0..N).chunks(100) {
                input.write_all((lines.join("\n") + "\n").as_bytes()).unwrap();
            }
        });
        for n_kills in 1..=4 {
            let enough = N / 8 * n_kills;
            until_within(Duration::from_secs(120), "some arrived", || {
                lab.lines("out.ndjson").len() as u64 >= enough
            });
            pipeline.kill();
            pipeline = lab.run();
        }
        writer.join().unwrap();
        assert!(publisher.wait().unwrap().success());
        until_within(Duration::from_secs(120), "all arrived", || all_arrived(&lab, "out.ndjson", N));
        pipeline.stop();
        let found = numbers(&lab, "out.ndjson").len() as u64;
        eprintln!("MQTT {version}, QoS {qos}: {N} sent, 4 kills, 0 missing, {} repeated", found - N);
    }
}

#[test]
fn a_broker_that_is_down_is_waited_for_and_nothing_is_lost_when_it_restarts() {
    let test = "a_broker_that_is_down_is_waited_for_and_nothing_is_lost_when_it_restarts";
    let Some(broker) = Broker::start(test, "") else { return };
    assert!(broker.run("stop"));
    let lab = Lab::new(&format!(
        r#"
sources:
  numbers:
    type: mqtt
    endpoint: "mqtt://127.0.0.1:{}"
    topics: ["numbers/#"]
    schema: {{ fields: {{ n: int64 }} }}
sinks:
  out: {{ type: file, from: [numbers], path: out.ndjson }}
"#,
        broker.port
    ));
    let pipeline = lab.run();
    until("tried in vain", || pipeline.metric("logdrive_source_errors_total", "kind=\"lost\"") >= Some(2.0));
    assert!(broker.run("start"));
    until("subscribed", || subscribed(&lab, "numbers"));
    broker.publish("numbers/a", 1, &numbered(0..500), &[]);
    until("the first arrived", || all_arrived(&lab, "out.ndjson", 500));
    assert!(broker.run("stop"));
    until("noticed", || pipeline.metric("logdrive_source_connections", "") == Some(0.0));
    assert!(broker.run("start"));
    // The session is the broker's: what is published before the source is back waits for it.
    broker.publish("numbers/a", 1, &numbered(500..1000), &[]);
    until("the rest arrived", || all_arrived(&lab, "out.ndjson", 1000));
    pipeline.stop();
}

#[test]
fn members_of_a_shared_subscription_split_the_messages() {
    let Some(broker) = Broker::start("members_of_a_shared_subscription_split_the_messages", "") else {
        return;
    };
    for version in VERSIONS {
        let member = |name: &str| {
            format!(
                r#"  {name}: {{ type: mqtt, endpoint: "mqtt://127.0.0.1:{}", version: {version}, topics: ["$share/group{version}/shared{version}/+"],
       metadata: mqtt, schema: {{ fields: {{ n: int64 }} }} }}
"#,
                broker.port
            )
        };
        let lab = Lab::new(&format!(
            "sources:\n{}{}sinks:\n  left: {{ type: file, from: [one], path: one.ndjson }}\n  right: {{ type: file, from: [two], path: two.ndjson }}\n",
            member("one"),
            member("two")
        ));
        let pipeline = lab.run();
        until("subscribed", || subscribed(&lab, "one") && subscribed(&lab, "two"));
        broker.publish(&format!("shared{version}/x"), 1, &numbered(0..1000), &[]);
        until("all arrived", || lab.lines("one.ndjson").len() + lab.lines("two.ndjson").len() >= 1000);
        pipeline.stop();
        let (one, two) = (numbers(&lab, "one.ndjson"), numbers(&lab, "two.ndjson"));
        let both: BTreeSet<u64> = one.iter().chain(&two).copied().collect();
        assert_eq!((both.len(), one.len() + two.len()), (1000, 1000), "each once");
        assert!(one.len() > 100 && two.len() > 100, "{} and {}", one.len(), two.len());
        assert_eq!(
            lab.documents("one.ndjson")[0]["mqtt"]["levels"],
            json!(["x"]),
            "the filter without its group"
        );
    }
}

#[test]
fn documents_go_to_topics_and_come_back() {
    let Some(broker) = Broker::start("documents_go_to_topics_and_come_back", "") else { return };
    for version in VERSIONS {
        for qos in 0..=2 {
            let lab = Lab::new(&format!(
                r#"
sources:
  back:
    type: mqtt
    endpoint: "mqtt://127.0.0.1:{0}"
    version: {version}
    qos: {qos}
    topics: ["out/{version}/{qos}/+"]
    metadata: mqtt
    levels: [tenant]
    schema: {{ fields: {{ n: int64 }} }}
  lines: {{ type: file, paths: ["in.ndjson"], schema: {{ fields: {{ n: int64, tenant: string }} }} }}
sinks:
  there: {{ type: mqtt, from: [lines], endpoint: "mqtt://127.0.0.1:{0}", version: {version}, qos: {qos}, topic: "out/{version}/{qos}/{{tenant}}" }}
  out: {{ type: file, from: [back], path: out.ndjson }}
"#,
                broker.port
            ));
            let pipeline = lab.run();
            until("subscribed", || subscribed(&lab, "back"));
            let tenants = ["acme", "a/b", "+", "#", "é"];
            let lines: Vec<_> = (0..5000)
                .map(|n| format!("{{\"n\":{n},\"tenant\":\"{}\"}}\n", tenants[n % tenants.len()]))
                .collect();
            lab.write("in.ndjson", &lines.concat());
            until("all came back", || all_arrived(&lab, "out.ndjson", 5000));
            let confirmed = || pipeline.metric("logdrive_sink_rows_total", "there");
            until("all are confirmed", || confirmed() == Some(5000.0));
            pipeline.stop();
            let documents = lab.documents("out.ndjson");
            assert_eq!(documents.len(), 5000, "nothing twice");
            let names = ["acme", "a%2Fb", "%2B", "%23", "é"];
            for document in documents {
                let n = document["n"].as_u64().unwrap() as usize;
                assert_eq!(document["mqtt"]["tenant"], names[n % names.len()], "{document}");
                assert_eq!(document["mqtt"]["qos"], qos);
            }
        }
    }
}

#[test]
fn tls_with_certificates_of_both_ends_and_a_password() {
    let dir = tempfile::tempdir().unwrap();
    if !certificates(dir.path()) {
        writeln!(
            &mut stdout(),
            "skipped: tls_with_certificates_of_both_ends_and_a_password: no openssl at hand"
        )
        .unwrap();
        return;
    }
    let path = dir.path().display();
    let users = dir.path().join("users");
    let made =
        Command::new("mosquitto_passwd").args(["-c", "-b"]).arg(&users).args(["plant", "s3cret"]).status();
    if !made.is_ok_and(|status| status.success()) {
        writeln!(
            &mut stdout(),
            "skipped: tls_with_certificates_of_both_ends_and_a_password: no Mosquitto at hand"
        )
        .unwrap();
        return;
    }
    let extra = format!(
        "cafile {path}/ca.pem\ncertfile {path}/server.pem\nkeyfile {path}/server.key\nrequire_certificate true\n\
         allow_anonymous false\npassword_file {path}/users"
    );
    let Some(broker) = Broker::start("tls_with_certificates_of_both_ends_and_a_password", &extra) else {
        return;
    };
    let client = format!(
        "endpoint: \"mqtts://localhost:{}\", tls: {{ ca: {path}/ca.pem, certificate: {path}/client.pem, key: {path}/client.key }}, username: plant",
        broker.port
    );
    let lab = Lab::new(&format!(
        r#"
sources:
  back: {{ type: mqtt, {client}, password: s3cret, topics: ["t"], schema: {{ fields: {{ n: int64 }} }} }}
  wrong: {{ type: mqtt, {client}, password: wrong, topics: ["t"], schema: {{ fields: {{ n: int64 }} }} }}
  stranger: {{ type: mqtt, endpoint: "mqtts://localhost:{}", topics: ["t"], schema: {{ fields: {{ n: int64 }} }} }}
  lines: {{ type: file, paths: ["in.ndjson"] }}
sinks:
  there: {{ type: mqtt, from: [lines], {client}, password: s3cret, topic: t }}
  out: {{ type: file, from: [back, wrong, stranger], path: out.ndjson }}
"#,
        broker.port
    ));
    let pipeline = lab.run();
    until("subscribed", || subscribed(&lab, "back"));
    lab.write("in.ndjson", &(numbered(0..100).join("\n") + "\n"));
    until("all came back", || all_arrived(&lab, "out.ndjson", 100));
    let error = |labels: &str| pipeline.metric("logdrive_source_errors_total", labels) >= Some(1.0);
    until("a wrong password is refused", || error("kind=\"refused\",source=\"wrong\""));
    until("an unknown authority is not trusted", || error("source=\"stranger\""));
    assert!(!pipeline.log().contains("s3cret"));
    pipeline.stop();
}

/// An authority, and certificates of it for the server `localhost` and for a client.
fn certificates(dir: &Path) -> bool {
    let script = "set -e
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem -addext basicConstraints=critical,CA:TRUE
for who in server client; do
  openssl req -newkey rsa:2048 -nodes -subj /CN=$who -keyout $who.key -out $who.csr
  printf 'subjectAltName=DNS:localhost\\nbasicConstraints=CA:FALSE\\n' > ext
  openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out $who.pem
done";
    let status = Command::new("sh")
        .args(["-c", script])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}
