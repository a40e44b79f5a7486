//! Checkpoints in whole pipelines: what the commands say of them, and what happens when one is damaged.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "shared with other tests")]
mod e2e_support;

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use e2e_support::{Lab, free_port, http, until};
use serde_json::Value;

fn yaml(port: u16, views: &str) -> String {
    format!(
        "
sources:
  in:
    type: http
    listen: \"127.0.0.1:{port}\"
    schema: {{ fields: {{ tenant: string, amount: int64, \"@timestamp\": timestamp }}, lateness: 1s }}
views:
{views}
sinks: {{ out: {{ type: file, from: [totals], path: out.ndjson }} }}
"
    )
}

const TOTALS: &str = "  totals: { sql: \"SELECT tenant, count(*) AS n, sum(amount) AS total FROM in GROUP BY tenant\", unbounded: true }\n";
const PER_WINDOW: &str = "  per_window: { sql: \"SELECT count(*) AS n FROM in GROUP BY tumble(\\\"@timestamp\\\", INTERVAL '10 seconds')\" }\n";

fn post(port: u16, range: std::ops::Range<i64>) {
    let event = |n: i64| {
        format!(
            "{{\"@timestamp\":{},\"tenant\":\"t{}\",\"amount\":{n}}}\n",
            1_700_000_000_000 + n * 500,
            n % 3
        )
    };
    let body: String = range.map(event).collect();
    assert_eq!(http(port, "POST", "/", "application/x-ndjson", &body).0, 200);
}

/// How many rows were counted, and their sum.
fn counted(lab: &Lab) -> (i64, i64) {
    let api = format!("http://127.0.0.1:{}", lab.api);
    let text = lab.succeed(&["sql", "--api", &api, "--format", "json", "SELECT * FROM totals"]);
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sum = |name: &str| rows.iter().map(|row| row[name].as_i64().unwrap()).sum();
    (sum("n"), sum("total"))
}

fn sums(n: i64) -> (i64, i64) {
    (n, n * (n - 1) / 2)
}

/// The manifests, the oldest first.
fn manifests(lab: &Lab) -> Vec<PathBuf> {
    let entries = fs::read_dir(lab.path("data/checkpoints")).unwrap();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    found.sort();
    found
}

#[test]
fn nothing_is_lost_when_the_newest_checkpoint_is_damaged() {
    let port = free_port();
    let lab = Lab::new(&yaml(port, &(TOTALS.to_owned() + PER_WINDOW)));
    let mut sent = 0;
    for round in 0..4 {
        let pipeline = lab.run();
        if round > 0 {
            assert_eq!(pipeline.metric("logdrive_checkpoint_damaged_files_total", ""), Some(1.0));
            until("what was counted is counted", || counted(&lab) == sums(sent));
        }
        for _ in 0..3 {
            post(port, sent..sent + 40);
            sent += 40;
            let cuts = pipeline.metric("logdrive_checkpoint_cuts_total", "").unwrap();
            until("all are counted, and one more cut is on disk", || {
                counted(&lab) == sums(sent)
                    && pipeline.metric("logdrive_checkpoint_cuts_total", "").unwrap() > cuts
            });
        }
        pipeline.kill();
        let newest = manifests(&lab).pop().unwrap();
        let mut bytes = fs::read(&newest).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x20;
        fs::write(&newest, bytes).unwrap();
    }
    let pipeline = lab.run();
    until("all are counted", || counted(&lab) == sums(sent));
    pipeline.until_metric("logdrive_buffer_messages", "in", 0.0);
    pipeline.stop();
}

#[test]
fn checkpoints_are_inspected_verified_and_compared_with_a_new_configuration() {
    let port = free_port();
    let lab = Lab::new(&yaml(port, &(TOTALS.to_owned() + PER_WINDOW)));
    let output = lab.command(&["checkpoint", "inspect", "data"]);
    assert!(!output.status.success(), "there is none yet");
    let planned = lab.succeed(&["plan", "pipeline.yaml"]);
    assert!(planned.contains("no checkpoint") && planned.contains("view totals: new"), "{planned}");

    let pipeline = lab.run();
    post(port, 0..300);
    pipeline.until_metric("logdrive_buffer_messages", "in", 0.0);
    pipeline.stop();
    let inspected = lab.succeed(&["checkpoint", "inspect", "data"]);
    assert!(
        inspected.contains("source in  partition ") && inspected.contains("up to offset 300"),
        "{inspected}"
    );
    assert!(inspected.contains("operator totals.keep  fingerprint "), "{inspected}");
    assert!(inspected.contains("table open  by key  3 rows in 1 runs"), "{inspected}");
    assert!(inspected.contains("table closed  without keys"), "{inspected}");
    assert_eq!(inspected.matches("epoch ").count(), 2, "{inspected}");
    let verified = lab.succeed(&["checkpoint", "verify", "data/checkpoints"]);
    assert_eq!(verified.matches("whole: ").count(), 2, "{verified}");

    // Windows that have closed can be read after a restart.
    let pipeline = lab.run();
    let api = format!("http://127.0.0.1:{}", lab.api);
    let windows = ["sql", "--api", &api, "--format", "json", "SELECT sum(n) AS n FROM per_window"];
    until("all windows are there", || lab.succeed(&windows).trim() == "{\"n\":300}");
    pipeline.stop();

    let other = TOTALS.replace("sum(amount)", "max(amount)");
    lab.configure(&yaml(port, &(other + &PER_WINDOW.replace("per_window", "windows"))));
    let planned = lab.succeed(&["plan", "pipeline.yaml"]);
    assert!(planned.contains("view totals: REBUILT"), "{planned}");
    assert!(planned.contains("view windows: new, starts empty"), "{planned}");
    assert!(planned.contains("state per_window: DROPPED"), "{planned}");
    lab.configure(&yaml(port, TOTALS));
    let planned = lab.succeed(&["plan", "pipeline.yaml"]);
    assert!(planned.contains("view totals: keeps its state (3 rows"), "{planned}");

    let rows = fs::read_dir(lab.path("data/checkpoints")).unwrap().map(|entry| entry.unwrap().path());
    let rows = rows.filter(|path| path.to_string_lossy().contains("totals.keep.open")).max().unwrap();
    let mut bytes = fs::read(&rows).unwrap();
    bytes.pop();
    fs::write(&rows, bytes).unwrap();
    let output = lab.command(&["checkpoint", "verify", "data"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success(), "{told}");
    assert!(told.contains("DAMAGED") && told.contains("totals.keep.open"), "{told}");
    assert!(told.contains("bytes instead of"), "{told}");
}

/// The machine is gone, and its disk but for what tells files apart: the checkpoints in an object store have the rest.
#[test]
fn a_machine_that_has_nothing_goes_on_from_the_store() {
    let yaml = "
sources: { in: { type: file, paths: [\"in.ndjson\"], schema: { fields: { tenant: string, amount: int64 } } } }
views:
  totals: { sql: \"SELECT tenant, count(*) AS n, sum(amount) AS total FROM in GROUP BY tenant\", unbounded: true }
sinks: { out: { type: file, from: [totals], path: out.ndjson } }
";
    let lab = Lab::new("");
    let url = format!("file://{}", lab.path("store").display());
    lab.configure(&format!("checkpoints: {{ path: \"{url}\" }}\n{yaml}"));
    let mut sent = 0;
    let append = |range: std::ops::Range<i64>| {
        let mut file = fs::File::options().create(true).append(true).open(lab.path("in.ndjson")).unwrap();
        range.for_each(|n| writeln!(file, "{{\"tenant\":\"t{}\",\"amount\":{n}}}", n % 3).unwrap());
    };
    for round in 0..3 {
        append(sent..sent + 200);
        sent += 200;
        let pipeline = lab.run();
        until("all are counted", || counted(&lab) == sums(sent));
        let cuts = pipeline.metric("logdrive_checkpoint_cuts_total", "").unwrap();
        until("all are in a checkpoint", || {
            pipeline.metric("logdrive_checkpoint_cuts_total", "").unwrap() > cuts + 1.0
        });
        if round == 1 {
            pipeline.kill();
        } else {
            pipeline.stop();
        }
        assert!(!lab.path("data/checkpoints").exists());
        let verified = lab.succeed(&["checkpoint", "verify", &url]);
        assert_eq!(verified.matches("whole: ").count(), 2, "{verified}");
        assert!(lab.succeed(&["checkpoint", "inspect", &url]).contains("operator totals.keep"));
        let planned = lab.succeed(&["plan", "pipeline.yaml"]);
        assert!(planned.contains("view totals: keeps its state"), "{planned}");
        let kept = fs::read(lab.path("data/sources/in/files.json")).unwrap();
        fs::remove_dir_all(lab.path("data")).unwrap();
        fs::create_dir_all(lab.path("data/sources/in")).unwrap();
        fs::write(lab.path("data/sources/in/files.json"), kept).unwrap();
    }
    let pipeline = lab.run();
    until("nothing is counted twice", || counted(&lab) == sums(sent));
    // Everything behind the checkpoint's positions was read, and nothing before them.
    append(sent..sent + 1);
    until("it goes on", || counted(&lab) == sums(sent + 1));
    assert_eq!(pipeline.metric("logdrive_source_messages_total", "in"), Some(1.0));
    pipeline.stop();
}
