//! The whole binary, killed again and again while numbered messages go from a file and over HTTP into PostgreSQL, whose
//! server crashes, too: each row is in the table once, and each that the table refuses is a reject.
//!
//! `LOGDRIVE_POSTGRES_MESSAGES` sets how many messages.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, helpers included")]

#[allow(dead_code, reason = "shared with other tests")]
mod e2e_support;
#[path = "../../connectors/tests/postgres/server.rs"]
mod server;

use std::collections::BTreeSet;
use std::io::{Write as _, stdout};
use std::time::{Duration, Instant};

use e2e_support::{Lab, free_port, try_http, until_within};
use server::{PASSWORD, Server, USER};

const MESSAGES: usize = 60_000;
/// One in so many is refused by the table.
const REFUSED_ONE_IN: usize = 997;
/// Messages of one request.
const PER_REQUEST: usize = 50;
/// How long everything may take to arrive at last.
const ARRIVAL_MAX: Duration = Duration::from_secs(120);

fn message(n: usize) -> String {
    let text = if n.is_multiple_of(REFUSED_ONE_IN) { "bad" } else { "ok" };
    format!("{{\"seq\":{n},\"text\":\"{text}\",\"more\":[{n},null]}}")
}

/// Posts messages, each once; the numbers of those that were acknowledged.
fn post(port: u16, numbers: std::ops::Range<usize>) -> BTreeSet<usize> {
    let mut acknowledged = BTreeSet::new();
    let mut at = numbers.start;
    while at < numbers.end {
        let end = (at + PER_REQUEST).min(numbers.end);
        let body: String = (at..end).map(|n| message(n) + "\n").collect();
        match try_http(port, "POST", "/", "application/x-ndjson", &body) {
            Ok((200..=299, _)) => {
                acknowledged.extend(at..end);
                at = end;
            }
            // Nobody knows whether these are there: sent again they would be other messages.
            _ => {
                std::thread::sleep(Duration::from_millis(20));
                at = end;
            }
        }
    }
    acknowledged
}

#[test]
fn killed_again_and_again_every_row_is_in_the_table_once() {
    let Some(mut server) = Server::start(None) else {
        writeln!(&mut stdout(), "skipped: postgres: server not at hand").unwrap();
        return;
    };
    let messages = std::env::var("LOGDRIVE_POSTGRES_MESSAGES").ok().and_then(|n| n.parse().ok());
    let n_messages: usize = messages.unwrap_or(MESSAGES);
    server.psql("CREATE TABLE numbered (seq bigint, text text CHECK (text <> 'bad'), whole jsonb)");
    let http = free_port();
    let lab = Lab::new(&format!(
        r#"
sources:
  file: {{ type: file, paths: ["in.ndjson"], poll_interval: 50ms, decoder: json, schema: {{ fields: {{ seq: int64, text: string }} }} }}
  http: {{ type: http, listen: "127.0.0.1:{http}", decoder: json, schema: {{ fields: {{ seq: int64, text: string }} }} }}
sinks:
  table:
    type: postgres
    from: [file, http]
    endpoint: "postgresql://127.0.0.1:{}/postgres"
    username: {USER}
    password: {PASSWORD}
    table: numbered
    document: whole
    batch: {{ timeout: 100ms }}
    timeout: 5s
    queue: {{ memory_bytes: 64KiB }}
  dead: {{ type: file, from: [rejects], path: rejects.ndjson }}
"#,
        server.port
    ));
    lab.write("in.ndjson", "");
    let started = Instant::now();
    let half = n_messages / 2;
    let (acknowledged, n_kills, n_crashes) = std::thread::scope(|scope| {
        let mut pipeline = lab.run();
        let poster = scope.spawn(|| post(http, half..n_messages));
        let mut file = std::fs::File::options().append(true).open(lab.path("in.ndjson")).unwrap();
        let (mut n_kills, mut n_crashes) = (0, 0);
        for part in 0..10 {
            let numbers = half * part / 10..half * (part + 1) / 10;
            for chunk in numbers.collect::<Vec<_>>().chunks(200) {
                let text: String = chunk.iter().map(|n| message(*n) + "\n").collect();
                file.write_all(text.as_bytes()).unwrap();
                std::thread::sleep(Duration::from_millis(4));
            }
            match part {
                3 | 7 => {
                    server.stop(if part == 3 { "-QUIT" } else { "-INT" });
                    std::thread::sleep(Duration::from_millis(300));
                    if part == 7 {
                        // Both at once, with rows in the queue on disk.
                        pipeline.kill();
                        n_kills += 1;
                        pipeline = lab.run();
                    }
                    server.resume();
                    n_crashes += 1;
                }
                _ => {
                    pipeline.kill();
                    n_kills += 1;
                    pipeline = lab.run();
                }
            }
        }
        let acknowledged = poster.join().unwrap();
        let is_refused = |n: &usize| n.is_multiple_of(REFUSED_ONE_IN);
        let sent: BTreeSet<usize> = (0..half).chain(acknowledged.iter().copied()).collect();
        let wanted = sent.iter().filter(|n| !is_refused(n)).count();
        until_within(ARRIVAL_MAX, "every row that was acknowledged is in the table", || {
            let seqs = server.try_psql("SELECT count(DISTINCT seq) FROM numbered");
            seqs.and_then(|n| n.parse::<usize>().ok()).is_some_and(|n| wanted <= n)
        });
        pipeline.stop();
        (sent, n_kills, n_crashes)
    });
    let rows = server.psql("SELECT seq FROM numbered ORDER BY 1");
    let found: Vec<usize> = rows.lines().map(|line| line.parse().unwrap()).collect();
    let distinct: BTreeSet<usize> = found.iter().copied().collect();
    let is_refused = |n: &&usize| n.is_multiple_of(REFUSED_ONE_IN);
    let missing: Vec<&usize> =
        acknowledged.iter().filter(|n| !is_refused(n) && !distinct.contains(n)).collect();
    assert!(missing.is_empty(), "missing: {missing:?}");
    assert_eq!(found.len(), distinct.len(), "nothing is there twice");
    let rejects: BTreeSet<usize> = lab
        .documents("rejects.ndjson")
        .iter()
        .map(|reject| {
            assert!(reject["reason"].as_str().unwrap().starts_with("postgres_23514"), "{reject}");
            let original: serde_json::Value =
                serde_json::from_str(reject["original"].as_str().unwrap()).unwrap();
            original["seq"].as_u64().unwrap() as usize
        })
        .collect();
    let lost: Vec<&usize> = acknowledged.iter().filter(is_refused).filter(|n| !rejects.contains(n)).collect();
    assert!(lost.is_empty(), "no reject: {lost:?}");
    println!(
        "postgres: {} messages in {:?}, {n_kills} kills, {n_crashes} ends of the server: {} rows, 0 missing, 0 twice, {} rejects",
        acknowledged.len(),
        started.elapsed(),
        found.len(),
        rejects.len()
    );
}
