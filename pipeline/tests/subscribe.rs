//! Following views: a snapshot, then every change once, over HTTP and over the PostgreSQL protocol, also across
//! connections that break.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "shared with other tests")]
mod e2e_support;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _, stdout};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use e2e_support::{Lab, PATIENCE, free_port, http, until};
use serde_json::{Value, json};

const START: i64 = 1_700_000_000;

struct Served {
    lab: Lab,
    input: u16,
    postgres: u16,
}

impl Served {
    fn new(workers: usize) -> Self {
        let (input, postgres) = (free_port(), free_port());
        let lab = Lab::new("");
        let yaml = format!(
            r#"
data_dir: data
workers: {workers}
api: {{ listen: "127.0.0.1:{}" }}
postgres: {{ listen: "127.0.0.1:{postgres}" }}
sources:
  in:
    type: http
    listen: "127.0.0.1:{input}"
    schema: {{ fields: {{ tenant: string, amount: int64, "@timestamp": timestamp }}, lateness: 1s }}
views:
  totals:
    sql: SELECT tenant, count(*) AS n, sum(amount) AS total FROM in GROUP BY tenant
    unbounded: true
  per_window:
    sql: >
      SELECT tenant, tumble_start("@timestamp", INTERVAL '10 seconds') AS "@timestamp", count(*) AS n
      FROM in GROUP BY tenant, tumble("@timestamp", INTERVAL '10 seconds')
    emit: final
  large:
    sql: SELECT tenant, amount * 2 AS twice FROM in WHERE amount % 10 = 0
sinks:
  out: {{ type: file, from: [totals, per_window, large], path: out.ndjson }}
"#,
            lab.api
        );
        lab.write("pipeline.yaml", &yaml);
        Self { lab, input, postgres }
    }

    fn post(&self, range: std::ops::Range<i64>) {
        let body: String = range.map(event).collect();
        let (status, answer) = http(self.input, "POST", "/", "application/x-ndjson", &body);
        assert_eq!(status, 200, "{answer}");
    }

    /// The rows of a query, each with how often it is there.
    fn table(&self, query: &str) -> BTreeMap<String, i64> {
        let (status, rows) = http(self.lab.api, "POST", "/v1/sql", "", query);
        assert_eq!(status, 200, "{rows}");
        let mut table = BTreeMap::new();
        for line in rows.lines() {
            *table.entry(serde_json::from_str::<Value>(line).unwrap().to_string()).or_default() += 1;
        }
        table
    }

    fn follow(&self, view: &str, token: Option<&str>) -> impl Iterator<Item = Value> + use<> {
        let token = token.map(|token| format!("?token={token}")).unwrap_or_default();
        let path = format!("/v1/views/{view}/changes{token}");
        self.lines(&path, "")
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}")))
    }

    /// The lines of an answer that does not end.
    fn lines(&self, path: &str, headers: &str) -> impl Iterator<Item = String> + use<> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.lab.api)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // The first version of HTTP has no chunks.
        write!(stream, "GET {path} HTTP/1.0\r\n{headers}\r\n").unwrap();
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let status = lines.next().unwrap();
        assert!(status.contains(" 200 "), "{status}");
        while !lines.next().unwrap().is_empty() {}
        lines
    }
}

fn event(n: i64) -> String {
    let at = START * 1_000 + n * 50;
    format!(r#"{{"@timestamp":{at},"tenant":"t{}","amount":{n}}}"#, n % 37) + "\n"
}

/// What a reader knows of a view. Changes count when progress is told.
#[derive(Default)]
struct Replica {
    rows: BTreeMap<String, i64>,
    waiting: Vec<(String, i64)>,
    token: Option<String>,
    n_resyncs: usize,
    epoch: u64,
}

impl Replica {
    /// A message; true if it was progress.
    fn take(&mut self, mut message: Value) -> bool {
        let fields = message.as_object_mut().unwrap();
        assert!(!fields.contains_key("_error"), "{fields:?}");
        if fields.contains_key("_resync") {
            self.n_resyncs += 1;
            self.rows.clear();
            self.waiting.clear();
            return false;
        }
        let epoch = fields.remove("_epoch").unwrap().as_u64().unwrap();
        if fields.contains_key("_progress") {
            self.token = Some(fields["_token"].as_str().unwrap().to_owned());
            assert!(epoch >= self.epoch, "progress goes back");
            self.epoch = epoch;
            for (row, change) in self.waiting.drain(..) {
                *self.rows.entry(row).or_default() += change;
            }
            self.rows.retain(|_, n| *n != 0);
            return true;
        }
        let change = match fields.remove("_change").unwrap().as_str().unwrap() {
            "insert" => 1,
            "delete" => -1,
            other => panic!("{other}"),
        };
        self.waiting.push((message.to_string(), change));
        false
    }

    /// What was told and does not count yet comes again.
    fn disconnected(&mut self) {
        self.waiting.clear();
    }
}

/// Numbers that look like chance, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Follows while rows flow, goes away and comes back at random; in the end it knows what the view has.
fn accumulates(workers: usize) {
    let served = Served::new(workers);
    let pipeline = served.lab.run();
    served.post(0..500);
    let last = 20_000;
    let is_written = AtomicBool::new(false);
    let is_written = &is_written;
    thread::scope(|scope| {
        scope.spawn(|| {
            for from in (500..last).step_by(150) {
                served.post(from..(from + 150).min(last));
                thread::sleep(Duration::from_millis(20));
            }
            is_written.store(true, Ordering::Release);
        });
        for view in ["totals", "per_window"] {
            let served = &served;
            scope.spawn(move || {
                let (mut replica, mut dice) =
                    (Replica::default(), Dice(workers as u64 * 7 + view.len() as u64));
                // The newest windows stay open.
                let newest = (last - 1) * 50 - 1_000;
                let expected = move || match view {
                    "totals" => served.table("SELECT * FROM totals"),
                    _ => served.table(&format!(
                        "SELECT * FROM per_window WHERE \"@timestamp\" <= to_timestamp_micros({})",
                        (START * 1_000 + newest - 10_000) * 1_000
                    )),
                };
                let deadline = Instant::now() + 3 * PATIENCE;
                let mut n_connections = 0;
                'following: loop {
                    n_connections += 1;
                    let mut left = 1 + dice.below(400) as i64;
                    // Who always goes before progress is told never gets anywhere.
                    let mut may_go = replica.token.is_some() && dice.below(2) == 0;
                    for message in served.follow(view, replica.token.as_deref()) {
                        assert!(Instant::now() < deadline, "{view}: {} rows", replica.rows.len());
                        if replica.take(message) {
                            may_go = true;
                            assert!(replica.rows.values().all(|n| *n == 1), "{view}: {:?}", replica.rows);
                            let is_all = || {
                                let sum = json!({ "n": last }).to_string();
                                served.table("SELECT sum(n) AS n FROM totals").contains_key(&sum)
                            };
                            let is_over = is_written.load(Ordering::Acquire) && is_all();
                            if is_over && replica.rows == expected() {
                                break 'following;
                            }
                        }
                        left -= 1;
                        if left <= 0 && may_go {
                            break;
                        }
                    }
                    replica.disconnected();
                }
                assert_eq!(replica.n_resyncs, 0, "{view}: {n_connections} connections");
                assert!(n_connections > 3, "{view}: {n_connections} connections");
            });
        }
    });
    pipeline.stop();
}

#[test]
fn a_reader_that_comes_and_goes_misses_and_repeats_nothing() {
    accumulates(1);
}

#[test]
fn a_reader_of_three_workers_that_comes_and_goes_misses_and_repeats_nothing() {
    accumulates(3);
}

#[test]
fn a_reader_is_told_progress_and_to_begin_anew() {
    let served = Served::new(1);
    let pipeline = served.lab.run();
    served.post(0..74);
    until("all are counted", || served.table("SELECT sum(n) AS n FROM totals").contains_key("{\"n\":74}"));

    // Without changes there is progress all the same.
    let mut replica = Replica::default();
    let began = Instant::now();
    let mut n_progress = 0;
    for message in served.follow("totals", None) {
        n_progress += usize::from(replica.take(message));
        if n_progress == 3 {
            break;
        }
    }
    assert!(began.elapsed() < Duration::from_secs(15));
    assert_eq!(replica.rows, served.table("SELECT * FROM totals"));
    pipeline.until_metric("logdrive_subscribers", "totals", 0.0);

    // A token of another run, and one that never was.
    for token in ["0123456789abcdef-1700000000000", "nonsense"] {
        let messages: Vec<Value> = served.follow("totals", Some(token)).take(1).collect();
        assert!(messages[0]["_resync"].as_str().unwrap().contains("another run"), "{messages:?}");
        replica.token = Some(token.to_owned());
        let mut again = Replica::default();
        for message in served.follow("totals", Some(token)) {
            if again.take(message) {
                break;
            }
        }
        assert_eq!((again.n_resyncs, &again.rows), (1, &replica.rows));
    }
    assert!(pipeline.metric("logdrive_subscriber_resyncs_total", "totals").unwrap() >= 4.0);

    // Server-sent events, as a browser follows them.
    let mut events = served.lines("/v1/views/totals/changes", "accept: text/event-stream\r\n");
    let first: Vec<String> = events.by_ref().take(3).collect();
    assert_eq!((first[0].as_str(), first[2].as_str()), ("event: change", ""));
    assert!(first[1].starts_with("data: {\"tenant\":"), "{first:?}");
    let id = events.find_map(|line| line.strip_prefix("id: ").map(str::to_owned)).unwrap();
    let header = format!("accept: text/event-stream\r\nlast-event-id: {id}\r\n");
    served.post(74..75);
    let lines = served.lines("/v1/views/totals/changes", &header);
    let resumed: Vec<String> = lines.take_while(|line| !line.contains("\"n\":3")).collect();
    assert!(resumed.iter().any(|line| line.starts_with("data: {\"tenant\":\"t0\",\"n\":2")), "{resumed:?}");
    assert!(resumed.iter().all(|line| !line.contains("resync") && !line.contains("\"t1\"")), "{resumed:?}");

    let (status, body) = http(served.lab.api, "GET", "/v1/views/total/changes", "", "");
    assert!(status == 404 && body.contains("did you mean `totals`"), "{body}");
    pipeline.stop();
}

#[test]
fn the_end_of_the_pipeline_ends_a_subscription() {
    let served = Served::new(1);
    let pipeline = served.lab.run();
    served.post(0..10);
    let mut messages = served.follow("totals", None);
    assert!(messages.next().is_some());
    let (done, ended) = std::sync::mpsc::channel();
    thread::spawn(move || {
        messages.by_ref().for_each(drop);
        done.send(()).ok();
    });
    pipeline.stop();
    ended.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn psql_follows_views_and_queries_over_them() {
    if Command::new("psql").arg("--version").output().is_err() {
        writeln!(&mut stdout(), "skipped: psql_follows_views_and_queries_over_them: there is no psql")
            .unwrap();
        return;
    }
    let served = Served::new(1);
    let pipeline = served.lab.run();
    served.post(0..74);
    until("all are counted", || served.table("SELECT sum(n) AS n FROM totals").contains_key("{\"n\":74}"));
    let follow = |statement: &str| {
        let target = format!("host=127.0.0.1 port={} user=ada", served.postgres);
        // To a pipe, psql writes what it has in blocks.
        let child = Command::new("stdbuf")
            .args(["-oL", "psql", "-X", "-At", "-d", &target, "-c", &format!("COPY ({statement}) TO STDOUT")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Psql(child)
    };
    // Which of: epoch, progress, token, change, columns of the view.
    let split = |line: String| line.split('\t').map(str::to_owned).collect::<Vec<_>>();

    let mut psql = follow("SUBSCRIBE totals");
    let mut lines = psql.lines().map(split);
    let (mut tenants, mut token) = (Vec::new(), String::new());
    for line in lines.by_ref() {
        match line[1].as_str() {
            "f" => tenants.push(line[4].clone()),
            _ => {
                token.clone_from(&line[2]);
                break;
            }
        }
    }
    assert_eq!(tenants.len(), 37);
    served.post(74..75);
    let changes: Vec<Vec<String>> = lines.filter(|line| line[1] == "f").take(2).collect();
    let of = |line: &[String]| line[3..].join(" ");
    let found: Vec<String> = changes.iter().map(|line| of(line)).collect();
    assert_eq!(found, ["delete t0 2 37", "insert t0 3 111"]);
    drop(psql);

    // From the token on, the same change comes again, and no snapshot.
    let mut psql = follow(&format!("SUBSCRIBE totals FROM '{token}'"));
    let again: Vec<Vec<String>> = psql.lines().map(split).filter(|line| line[1] == "f").take(2).collect();
    assert_eq!(again, changes);
    drop(psql);

    // A token of another run ends with an error, and says what to do.
    let error = follow("SUBSCRIBE totals FROM '0123456789abcdef-1'").error();
    assert!(error.contains("another run") && error.contains("subscribe again without a token"), "{error}");

    // Some rows and columns, of a view that keeps nothing: its changes from now on.
    let mut psql = follow("SUBSCRIBE (SELECT twice + 1 AS odd FROM large WHERE tenant <> 't1')");
    let mut lines = psql.lines().map(split);
    assert_eq!(lines.next().unwrap()[1], "t");
    // 1100, 1110 and 1120.
    served.post(1_100..1_121);
    let odd: Vec<String> = lines.filter(|line| line[1] == "f").take(3).map(|line| of(&line)).collect();
    assert_eq!(odd, ["insert 2201", "insert 2221", "insert 2241"]);
    drop(psql);

    let error = follow("SUBSCRIBE (SELECT tenant, count(*) FROM totals GROUP BY tenant)").error();
    assert!(error.contains("choose rows and columns"), "{error}");
    pipeline.stop();
}

/// A psql that follows; stopped when it goes out of scope.
struct Psql(std::process::Child);

impl Psql {
    fn lines(&mut self) -> impl Iterator<Item = String> + use<'_> {
        BufReader::new(self.0.stdout.as_mut().unwrap()).lines().map_while(Result::ok)
    }

    /// What it says when it fails by itself.
    fn error(mut self) -> String {
        let mut error = String::new();
        self.0.stderr.as_mut().unwrap().read_to_string(&mut error).unwrap();
        assert!(!self.0.wait().unwrap().success(), "{error}");
        error
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
