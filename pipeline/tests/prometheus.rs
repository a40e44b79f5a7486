//! The real Prometheus sends by remote write while the binary is killed and started again: every sample that Prometheus
//! has is delivered.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, helpers included")]
#![allow(dead_code, reason = "the helpers serve several tests")]

#[path = "../../connectors/tests/components/mod.rs"]
mod components;
mod e2e_support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Write as _, stdout};
use std::path::PathBuf;
use std::time::Duration;

use components::Component;
use e2e_support::{Lab, free_port, http, until, until_within};
use serde_json::Value;

const KILLS: usize = 4;
/// Milliseconds of a day.
const DAY: i64 = 86_400_000;
const PORT: u16 = 21_140;

/// Where the script keeps what it runs with.
fn run_folder() -> PathBuf {
    let home = std::env::var_os("COMPONENTS_HOME").map(PathBuf::from);
    let home =
        home.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/components"));
    home.join("run").join(format!("prometheus-{PORT}"))
}

/// Without the lengths that HTTP/1.1 may put between the parts of a body.
fn whole(body: &str) -> String {
    let mut out = String::new();
    let mut rest = body;
    while let Some((len, behind)) = rest.split_once("\r\n") {
        let Ok(len) = usize::from_str_radix(len, 16) else { break };
        out.push_str(&behind[..len]);
        rest = behind[len..].trim_start_matches("\r\n");
    }
    if out.is_empty() { body.to_owned() } else { out }
}

/// The millisecond of the day in `2026-11-21T10:00:00.25Z`.
fn millisecond(time: &str) -> i64 {
    let (hour, rest) = time[11..].split_once(':').unwrap();
    let (minute, second) = rest.trim_end_matches('Z').split_once(':').unwrap();
    let minutes = hour.parse::<i64>().unwrap() * 60 + minute.parse::<i64>().unwrap();
    minutes * 60_000 + (second.parse::<f64>().unwrap() * 1000.0).round() as i64
}

/// Every sample that Prometheus has: series and millisecond of the day.
fn samples() -> BTreeSet<(String, i64)> {
    let query = "/api/v1/query?query=%7B__name__%3D~%22.%2B%22%7D%5B10m%5D";
    let (status, body) = http(PORT, "GET", query, "", "");
    assert_eq!(status, 200, "{body}");
    let answer: Value = serde_json::from_str(&whole(&body)).unwrap();
    let mut found = BTreeSet::new();
    for series in answer["data"]["result"].as_array().unwrap() {
        let labels: BTreeMap<_, _> = series["metric"].as_object().unwrap().iter().collect();
        let name = serde_json::to_string(&labels).unwrap();
        for value in series["values"].as_array().unwrap() {
            let at = (value[0].as_f64().unwrap() * 1000.0).round() as i64;
            found.insert((name.clone(), at % DAY));
        }
    }
    found
}

/// The same of what was delivered, and how often.
fn delivered(lab: &Lab) -> BTreeMap<(String, i64), usize> {
    let mut found = BTreeMap::new();
    for document in lab.documents("out.ndjson") {
        let name = document["name"].as_str().unwrap();
        let mut labels: BTreeMap<String, Value> = BTreeMap::new();
        labels.extend(document["labels"].as_object().unwrap().iter().map(|(k, v)| (k.clone(), v.clone())));
        labels.insert("__name__".into(), name.into());
        let at = millisecond(document["@timestamp"].as_str().unwrap());
        *found.entry((serde_json::to_string(&labels).unwrap(), at)).or_default() += 1;
    }
    found
}

#[test]
fn every_sample_of_prometheus_arrives_although_the_binary_is_killed() {
    // What an earlier run stored would be found, too.
    fs::remove_dir_all(run_folder().join("data")).ok();
    let prometheus = match Component::start("prometheus.sh", PORT, &[]) {
        Ok(prometheus) => prometheus,
        Err(why) => {
            return writeln!(
                &mut stdout(),
                "skipped: every_sample_of_prometheus_arrives_although_the_binary_is_killed: {why}"
            )
            .unwrap();
        }
    };
    let port = free_port();
    let lab = Lab::new(&format!(
        "sources: {{ in: {{ type: prometheus_remote_write, listen: \"127.0.0.1:{port}\", schema: metric }} }}\n\
         streams: {{ all: {{ from: [in], steps: [{{ where: \"name IS NOT NULL AND type = 'metric'\" }}] }} }}\n\
         sinks: {{ out: {{ type: file, from: [all], path: out.ndjson }} }}\n"
    ));
    let mut pipeline = lab.run();
    let config = run_folder().join("prometheus.yml");
    let text = fs::read_to_string(&config).unwrap();
    let write = format!(
        "\nremote_write:\n- url: \"http://127.0.0.1:{port}/api/v1/write\"\n  \
         queue_config: {{ min_backoff: 50ms, max_backoff: 500ms, batch_send_deadline: 200ms }}\n"
    );
    fs::write(&config, text + &write).unwrap();
    assert_eq!(http(PORT, "POST", "/-/reload", "", "").0, 200);
    until("samples arrive", || !delivered(&lab).is_empty());
    for _ in 0..KILLS {
        let before = delivered(&lab).len();
        until("samples go on to arrive", || delivered(&lab).len() > before);
        pipeline.kill();
        pipeline = lab.run();
    }
    let before = delivered(&lab).len();
    until("samples go on to arrive", || delivered(&lab).len() > before);
    // Prometheus sends what comes after it was told to.
    let first = delivered(&lab).keys().map(|(_, at)| *at).min().unwrap();
    let wanted: BTreeSet<_> = samples().into_iter().filter(|(_, at)| *at > first).collect();
    assert!(wanted.len() > 1000, "{}", wanted.len());
    until_within(Duration::from_secs(60), "everything that Prometheus has arrives", || {
        let found = delivered(&lab);
        wanted.iter().all(|sample| found.contains_key(sample))
    });
    drop(prometheus);
    pipeline.stop();
    let found = delivered(&lab);
    let n_repeated = found.values().filter(|n| **n > 1).count();
    println!(
        "{KILLS} kills: {} samples in Prometheus, {} delivered by now, none missing, {n_repeated} repeated",
        wanted.len(),
        found.len()
    );
}
