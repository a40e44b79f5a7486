//! `mqtt` and Mosquitto.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::at_hand;
use crate::components::Component;
use crate::listening::listen;
use crate::shippers::Running;
use crate::storm::{
    Feeder, Tally, lines, numbered, numbers_behind, read_lines, settle, sink_survives, storm, until,
};
use crate::support::proxy::{FAULTS, Proxy};
use crate::support::sink;

const PORT: u16 = 21_400;
const MARK: &str = "\"n\":";

fn client(program: &str, topic: &str, qos: u8) -> Command {
    let mut command = Command::new(program);
    command.args(["-p", &PORT.to_string(), "-t", topic, "-q", &qos.to_string()]);
    command
}

/// What is published to the broker arrives at the source.
async fn there(version: &str, qos: u8) {
    let (dir, topic) = (tempfile::tempdir().unwrap(), format!("there/{qos}"));
    let proxy = Proxy::start(([127, 0, 0, 1], PORT).into(), None).await;
    let yaml = format!(
        "{{type: mqtt, endpoint: \"mqtt://{}\", version: \"{version}\", qos: {qos}, topics: [\"{topic}\"], keep_alive: 1s}}",
        proxy.address
    );
    let source = listen(dir.path(), &yaml, 0, MARK).await;
    let session = source.file("session");
    until(|| "subscribed".into(), || read_lines(&session).lines().count() > 0).await;
    let mut publisher = client("mosquitto_pub", &topic, qos).arg("-l").stdin(Stdio::piped()).spawn().unwrap();
    let mut input = publisher.stdin.take().unwrap();
    let feeder = Feeder::start(move |numbers| input.write_all(lines(numbers).as_bytes()).unwrap());
    let what = format!("mqtt source, version {version}, QoS {qos}");
    storm(&what, &proxy, &FAULTS, true, || source.delivered.n_all()).await;
    let n_sent = feeder.stop();
    // The broker has confirmed all, and forgets nothing that the source has not confirmed.
    assert!(tokio::task::spawn_blocking(move || publisher.wait()).await.unwrap().unwrap().success());
    let acknowledged = Tally::of(0..n_sent);
    settle(&what, &proxy, n_sent, &acknowledged, async || source.delivered.clone()).await;
    source.stop().await;
}

/// What the sink publishes arrives at a subscriber.
async fn back(version: &str, qos: u8) {
    let (dir, topic) = (tempfile::tempdir().unwrap(), format!("back/{qos}"));
    let subscriber = || {
        let mut command = client("mosquitto_sub", &topic, qos);
        command.args(["-c", "-i", &format!("back-{qos}")]);
        command
    };
    // The broker keeps what is published from here on.
    assert!(subscriber().arg("-E").status().unwrap().success());
    let said = dir.path().join("said");
    let subscribed = Running::start(&mut subscriber(), &said);
    let proxy = Proxy::start(([127, 0, 0, 1], PORT).into(), None).await;
    let yaml = format!(
        "{{endpoint: \"mqtt://{}\", version: \"{version}\", qos: {qos}, topic: \"{topic}\", timeout: 1s}}",
        proxy.address
    );
    let what = format!("mqtt sink, version {version}, QoS {qos}");
    let stored = async || Tally::of(numbers_behind(&read_lines(&said), MARK));
    sink_survives(&what, &proxy, &FAULTS, sink("mqtt", &yaml).0, (20, numbered), stored).await;
    drop(subscribed);
}

fn broker(dir: &Path) -> Result<Component, String> {
    let config = dir.join("mosquitto.conf");
    std::fs::write(&config, "allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 200\n")
        .unwrap();
    Component::start("mosquitto.sh", PORT, &[("MOSQUITTO_CONF", config.to_str().unwrap())])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_mosquitto_and_we_confirm_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let _broker = at_hand!("what_mosquitto_and_we_confirm_arrives", broker(dir.path()));
    tokio::join!(there("5", 1), there("3.1.1", 2), back("3.1.1", 1), back("5", 2));
}
