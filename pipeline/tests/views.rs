//! Views in whole pipelines, with the real binary: read while they run, killed, stopped and ended.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "shared with other tests")]
mod e2e_support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use e2e_support::{Lab, free_port, http, until};
use serde_json::{Value, json};

const START: i64 = 1_700_000_000;

fn event(n: i64) -> String {
    let tenant = ["a", "b", "c"][(n % 3) as usize];
    let at = START * 1_000 + n * 500;
    format!(r#"{{"@timestamp":{at},"tenant":"{tenant}","amount":{n}}}"#) + "\n"
}

fn post(port: u16, range: std::ops::Range<i64>) {
    let body: String = range.map(event).collect();
    let (status, answer) = http(port, "POST", "/", "application/x-ndjson", &body);
    assert_eq!(status, 200, "{answer}");
}

fn lab() -> (Lab, u16) {
    let port = free_port();
    let lab = Lab::new(&format!(
        r#"
sources:
  in:
    type: http
    listen: "127.0.0.1:{port}"
    schema: {{ fields: {{ tenant: string, amount: int64, "@timestamp": timestamp }}, lateness: 1s }}
views:
  shares:
    sql: >
      SELECT t.tenant, t.total, t.n, s.n AS of_all, b.tenant AS best FROM totals t
      CROSS JOIN (SELECT count(*) AS n FROM in) s CROSS JOIN best b
    unbounded: true
  best:
    sql: SELECT tenant FROM totals ORDER BY total DESC LIMIT 1
    unbounded: true
  per_window:
    sql: >
      SELECT tenant, tumble_start("@timestamp", INTERVAL '10 seconds') AS "@timestamp", count(*) AS n, sum(amount) AS total
      FROM in GROUP BY tenant, tumble("@timestamp", INTERVAL '10 seconds')
    emit: final
  totals:
    sql: SELECT tenant, count(*) AS n, sum(amount) AS total FROM in GROUP BY tenant
    unbounded: true
sinks:
  lake:    {{ type: parquet, from: [per_window], path: lake, batch: {{ timeout: 200ms }} }}
  ledger:  {{ type: audit, from: [per_window], path: audit }}
  changes: {{ type: file, from: [totals], path: changes.ndjson }}
"#
    ));
    (lab, port)
}

/// What the rows of a query are, in any order.
fn rows(lab: &Lab, query: &str) -> Vec<Value> {
    let api = format!("http://127.0.0.1:{}", lab.api);
    let text = lab.succeed(&["sql", "--api", &api, "--format", "json", query]);
    let mut rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    rows.sort_by_key(ToString::to_string);
    rows
}

fn totals(range: std::ops::Range<i64>) -> Vec<Value> {
    let of = |residue: i64| range.clone().filter(move |n| n % 3 == residue);
    (0..3)
        .filter(|residue| of(*residue).next().is_some())
        .map(|residue| {
            let tenant = ["a", "b", "c"][residue as usize];
            json!({ "tenant": tenant, "n": of(residue).count(), "total": of(residue).sum::<i64>() })
        })
        .collect()
}

/// The same out of the view `shares`, which reads another view twice, and a source.
fn shares(range: std::ops::Range<i64>) -> Vec<Value> {
    let totals = totals(range.clone());
    let best = totals.iter().max_by_key(|row| row["total"].as_i64()).unwrap()["tenant"].clone();
    let share = |row: &Value| json!({ "tenant": row["tenant"], "total": row["total"], "n": row["n"], "of_all": range.end - range.start, "best": best });
    totals.iter().map(share).collect()
}

#[test]
fn live_views_are_read_at_one_epoch() {
    let (lab, port) = lab();
    let pipeline = lab.run();
    post(port, 0..100);
    let sums = "SELECT t.n AS n, sum(w.n) AS of_windows FROM totals t JOIN per_window w ON w.tenant = t.tenant \
                WHERE t.tenant = 'b' GROUP BY t.n";
    until("all are counted", || rows(&lab, "SELECT * FROM totals") == totals(0..100));
    assert_eq!(rows(&lab, sums), [json!({ "n": 33, "of_windows": 33 })]);
    // While rows come, what two views say of them agrees.
    for from in (100..1_000).step_by(100) {
        post(port, from..from + 100);
        let found = rows(&lab, sums);
        assert_eq!(found[0]["n"], found[0]["of_windows"]);
        let apart = "SELECT s.tenant FROM shares s JOIN totals t ON s.tenant = t.tenant WHERE s.n <> t.n OR s.of_all < s.n";
        assert_eq!(rows(&lab, apart), [] as [Value; 0]);
    }

    let ask = |kind: &str, query: &str| http(lab.api, "POST", "/v1/sql", kind, query);
    let (status, body) = ask("", "SELECT tenant FROM totals ORDER BY tenant");
    assert_eq!(
        (status, body.as_str()),
        (200, "{\"tenant\":\"a\"}\n{\"tenant\":\"b\"}\n{\"tenant\":\"c\"}\n")
    );
    let (status, body) = ask("", "SELECT * FROM total");
    assert_eq!(status, 400);
    assert!(body.contains("did you mean `totals`"), "{body}");
    let (status, body) = ask("", "SELECT * FROM '/etc/passwd'");
    assert_eq!(status, 400, "{body}");
    assert!(body.contains("sql::unknown_table"), "{body}");
    let api = format!("http://127.0.0.1:{}", lab.api);
    let watermarks = lab.succeed(&["explain", "--watermarks", "--api", &api]);
    assert!(watermarks.contains("per_window: 2023-11-14T22:2"), "{watermarks}");
    assert!(watermarks.contains("of `in`"), "{watermarks}");
    let explained = lab.succeed(&["explain", "pipeline.yaml", "--view", "per_window"]);
    assert!(explained.contains("windows: 10 s every 10 s of `@timestamp`"), "{explained}");
    // The lake that the pipeline writes goes by the name of its sink.
    until("windows are in the lake", || ask("", "SELECT * FROM lake").0 == 200);
    pipeline.stop();

    let output = lab.command(&["sql", "--api", "http://127.0.0.1:9", "SELECT * FROM totals"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && message.contains("`totals` is no file or folder here"), "{message}");
}

#[test]
fn a_view_goes_on_after_sigkill_as_if_nothing_had_happened() {
    let (lab, port) = lab();
    let mut sent = 0;
    for n in [40, 130, 250, 7, 333] {
        let pipeline = lab.run();
        post(port, sent..sent + n);
        sent += n;
        // Sometimes before the checkpoint, sometimes behind it.
        if n % 2 == 0 {
            pipeline.until_metric("logdrive_buffer_messages", "in", 0.0);
        }
        pipeline.kill();
    }
    let pipeline = lab.run();
    post(port, sent..sent + 100);
    sent += 100;
    until("all are counted", || rows(&lab, "SELECT * FROM totals") == totals(0..sent));
    assert_eq!(rows(&lab, "SELECT * FROM shares"), shares(0..sent));
    pipeline.until_metric("logdrive_buffer_messages", "in", 0.0);
    pipeline.stop();

    // 20 rows a window; those of the last ones are open, since a stop is no end.
    let mut expected: BTreeMap<(String, i64), (i64, i64)> = BTreeMap::new();
    let newest = (sent - 1) * 500 - 1_000;
    for n in (0..sent).filter(|n| (n / 20 + 1) * 10_000 <= newest) {
        let tenant = ["a", "b", "c"][(n % 3) as usize].to_owned();
        let window = expected.entry((tenant, START + n / 20 * 10)).or_default();
        *window = (window.0 + 1, window.1 + n);
    }
    let query = "SELECT tenant, CAST(to_unixtime(\"@timestamp\") AS BIGINT) AS at, n, total FROM 'lake'";
    let found = lab.succeed(&["sql", "--format", "json", query]);
    let mut in_lake = BTreeMap::new();
    for line in found.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let number = |name: &str| row[name].as_i64().unwrap();
        let key = (row["tenant"].as_str().unwrap().to_owned(), number("at"));
        let twice = in_lake.insert(key, (number("n"), number("total")));
        assert_eq!(twice, None, "each window once: {row}");
    }
    assert_eq!(in_lake, expected);
    let verified = lab.succeed(&["audit", "verify", "audit"]);
    assert!(verified.contains(&format!("{} entries", expected.len())), "{verified}");

    // The last change of each tenant is the truth, and what a kill repeats is told apart by `_epoch`.
    let mut last: BTreeMap<String, (i64, Value)> = BTreeMap::new();
    for mut change in lab.documents("changes.ndjson") {
        let epoch = change["_epoch"].as_i64().unwrap();
        if change["_change"] == "insert" {
            change.as_object_mut().unwrap().retain(|key, _| !key.starts_with('_'));
            let tenant = change["tenant"].as_str().unwrap().to_owned();
            let newest = last.entry(tenant).or_insert_with(|| (epoch, change.clone()));
            if newest.0 <= epoch {
                *newest = (epoch, change);
            }
        }
    }
    assert_eq!(last.into_values().map(|(_, change)| change).collect::<Vec<_>>(), totals(0..sent));
}

#[test]
fn all_windows_close_at_the_end_of_all_input() {
    let lab = Lab::new(
        r#"
sources: { in: { type: file, paths: [in.ndjson], follow: false, schema: { fields: { tenant: string, "@timestamp": timestamp } } } }
views:
  per_minute:
    sql: SELECT count(*) AS n FROM in GROUP BY tumble("@timestamp", INTERVAL '1 minute')
    emit: final
sinks: { out: { type: file, from: [per_minute], path: out.ndjson } }
"#,
    );
    lab.write("in.ndjson", &(0..300).map(event).collect::<String>());
    let mut pipeline = lab.run();
    assert!(pipeline.wait().success());
    let counts: Vec<i64> = lab.documents("out.ndjson").iter().map(|row| row["n"].as_i64().unwrap()).collect();
    // The first minute has begun before the first event.
    assert_eq!(counts.iter().sum::<i64>(), 300);
    assert_eq!(counts.len(), 3);
}

/// What is left of changes of tenants' totals, each of which must be there once.
fn settled(changes: &[Value]) -> Vec<Value> {
    let mut left: BTreeMap<String, (i64, Value)> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for change in changes {
        assert!(seen.insert(change.to_string()), "twice: {change}");
        let mut row = change.clone();
        row.as_object_mut().unwrap().retain(|key, _| !key.starts_with('_'));
        let sign = if change["_change"] == "insert" { 1 } else { -1 };
        left.entry(row.to_string()).or_insert((0, row)).0 += sign;
    }
    let left: Vec<(i64, Value)> = left.into_values().filter(|(count, _)| *count != 0).collect();
    assert!(left.iter().all(|(count, _)| *count == 1), "what is told does not add up: {left:?}");
    let mut rows: Vec<Value> = left.into_iter().map(|(_, row)| row).collect();
    rows.sort_by_key(|row| row["tenant"].to_string());
    rows
}

#[test]
fn each_change_reaches_a_sink_once_through_sigkills() {
    let port = free_port();
    let lab = Lab::new(&format!(
        r#"
sources:
  in: {{ type: http, listen: "127.0.0.1:{port}", schema: {{ fields: {{ tenant: string, amount: int64 }} }} }}
views:
  doubled:
    sql: SELECT t.tenant, t.n, 2 * t.total AS total FROM totals t JOIN totals u ON t.tenant = u.tenant
    unbounded: true
  totals:
    sql: SELECT tenant, count(*) AS n, sum(amount) AS total FROM in GROUP BY tenant
    unbounded: true
sinks:
  tape:   {{ type: parquet, from: [totals], path: tape, batch: {{ timeout: 100ms }} }}
  double: {{ type: parquet, from: [doubled], path: double, batch: {{ timeout: 300ms }} }}
  ledger: {{ type: audit, from: [totals], path: audit }}
"#
    ));
    let mut sent = 0;
    for millis in [300, 1_200, 1_900, 2_600, 700, 1_500, 2_200] {
        let pipeline = lab.run();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(millis) {
            post(port, sent..sent + 20);
            sent += 20;
            std::thread::sleep(Duration::from_millis(30));
        }
        pipeline.kill();
    }
    let pipeline = lab.run();
    post(port, sent..sent + 50);
    sent += 50;
    until("all are counted", || rows(&lab, "SELECT * FROM totals") == totals(0..sent));
    pipeline.until_metric("logdrive_buffer_messages", "in", 0.0);
    pipeline.stop();

    let told = |path: &str| -> Vec<Value> {
        let text = lab.succeed(&["sql", "--format", "json", &format!("SELECT * FROM '{path}'")]);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let tape = told("tape");
    assert!(tape.len() > 7 * 3, "changes left while it ran: {}", tape.len());
    assert_eq!(settled(&tape), totals(0..sent));
    let mut doubled = totals(0..sent);
    doubled.iter_mut().for_each(|row| row["total"] = json!(2 * row["total"].as_i64().unwrap()));
    assert_eq!(settled(&told("double")), doubled);
    let verified = lab.succeed(&["audit", "verify", "audit"]);
    assert!(verified.contains(&format!("{} entries", tape.len())), "{} changes: {verified}", tape.len());
}

#[test]
fn a_view_that_is_added_later_begins_with_the_rows_of_the_one_that_it_reads() {
    let port = free_port();
    let yaml = |more: &str| {
        format!(
            r#"
sources:
  in: {{ type: http, listen: "127.0.0.1:{port}", schema: {{ fields: {{ tenant: string, amount: int64 }} }} }}
views:
  totals:
    sql: SELECT tenant, count(*) AS n, sum(amount) AS total FROM in GROUP BY tenant
    unbounded: true
{more}
sinks:
  out: {{ type: file, from: [totals], path: out.ndjson }}
"#
        )
    };
    let lab = Lab::new(&yaml(""));
    let pipeline = lab.run();
    post(port, 0..90);
    pipeline.until_metric("logdrive_buffer_messages", "in", 0.0);
    pipeline.stop();

    let sum = "  sum:\n    sql: SELECT count(*) AS tenants, sum(n) AS n FROM totals\n    unbounded: true\n";
    lab.configure(&yaml(sum));
    let planned = lab.succeed(&["plan", "pipeline.yaml"]);
    assert!(planned.contains("view totals: keeps its state"), "{planned}");
    assert!(planned.contains("view sum: new, begins with the rows of `totals`"), "{planned}");
    let of_all = |n: i64| [json!({ "tenants": 3, "n": n })];
    let pipeline = lab.run();
    until("it begins with what is there", || rows(&lab, "SELECT * FROM sum") == of_all(90));
    post(port, 90..100);
    until("it goes on", || rows(&lab, "SELECT * FROM sum") == of_all(100));
    pipeline.kill();
    // It has state of its own now, or begins once more: never both.
    let pipeline = lab.run();
    post(port, 100..120);
    until("it goes on", || rows(&lab, "SELECT * FROM sum") == of_all(120));
    pipeline.until_metric("logdrive_buffer_messages", "in", 0.0);
    pipeline.stop();
    let planned = lab.succeed(&["plan", "pipeline.yaml"]);
    assert!(planned.contains("view sum: keeps its state"), "{planned}");
    let inspected = lab.succeed(&["checkpoint", "inspect", "data"]);
    let of_leaf = inspected.split("operator sum.leaf0").nth(1).unwrap_or_default();
    // Three times the same number: one row with its count.
    assert!(of_leaf.contains("table rows  by key  "), "{inspected}");
}
