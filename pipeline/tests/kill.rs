//! Kills the binary with SIGKILL at random moments while numbered messages arrive, and counts: acknowledged is
//! delivered or rejected, what is delivered was sent and is intact, nothing is there twice, and afterwards a fresh
//! message arrives. A second test has a sink's far end promise what it does not do, and must see the loss.
//!
//! `LOGDRIVE_KILLS` sets the number of kills, `LOGDRIVE_KILL_SEED` repeats a run's choices (not its timing).

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, helpers included")]

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use support::found::{self, Found};
use support::message::{Channel, Dice, is_malformed, line};
use support::oracle::{Books, Oracle, Targets};
use support::process::Process;
use support::search::{Manners, Search};
use support::verdict::{Fault, Verdict, judge};
use tokio::time::sleep;

/// How long a fresh message may take to be everywhere.
const ARRIVAL_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(60);

/// Where everything of one run lies.
struct Place {
    _dir: tempfile::TempDir,
    pipeline: PathBuf,
    lake: PathBuf,
    ledger: PathBuf,
    rejects: PathBuf,
    targets: Targets,
}

impl Place {
    fn new(search: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        let (tcp, http) = (free_address(), free_address());
        let (logs, pipeline) = (root.join("logs"), root.join("kill.yaml"));
        std::fs::create_dir(&logs).unwrap();
        let path = root.display();
        let yaml = format!(
            r#"
data_dir: "{path}/data"
workers: 2
api: off
sources:
  lines: {{ type: tcp, listen: "{tcp}", decoder: json, schema: {{ fields: {{ seq: int64, via: string, text: string }} }} }}
  posts: {{ type: http, listen: "{http}", decoder: json, schema: {{ fields: {{ seq: int64, via: string, text: string }} }} }}
  files: {{ type: file, paths: ["{path}/logs/app.log*"], poll_interval: 50ms, decoder: json, schema: {{ fields: {{ seq: int64, via: string, text: string }} }} }}
streams:
  events:
    from: [lines, posts, files]
    steps:
      - add: {{ env: kill }}
sinks:
  search:
    type: elasticsearch
    from: [events]
    endpoint: ["http://{search}"]
    index: kill
    batch: {{ max_bytes: 64KiB, timeout: 150ms }}
    retry: {{ first: 50ms, max: 200ms }}
    # So small that the disk queue is used whenever the server is down.
    queue: {{ memory_bytes: 64KiB }}
  lake: {{ type: parquet, from: [events], path: "{path}/lake", partition_by: [via], batch: {{ timeout: 200ms }} }}
  ledger: {{ type: audit, from: [events], path: "{path}/audit" }}
  dead: {{ type: file, from: [rejects], path: "{path}/rejects.ndjson" }}
"#
        );
        std::fs::write(&pipeline, yaml).unwrap();
        Self {
            pipeline,
            lake: root.join("lake"),
            ledger: root.join("audit"),
            rejects: root.join("rejects.ndjson"),
            targets: Targets { tcp, http, logs },
            _dir: dir,
        }
    }

    async fn found(&self, search: &Search) -> Found {
        let (rejects, n_torn) = found::rejects(&self.rejects);
        let (lake, ledger) = (found::lake(&self.lake).await, found::ledger(&self.ledger));
        Found { search: search.documents(), lake, ledger, rejects, n_torn }
    }

    /// Waits until all sinks hold these messages.
    async fn arrive(&self, seqs: &[u64], search: &Search, process: &Process) {
        let until = Instant::now() + ARRIVAL_MAX;
        loop {
            let in_search = seqs.iter().all(|seq| search.holds(*seq));
            let in_ledger = found::in_ledger(&self.ledger, seqs);
            let in_lake = found::in_lake(&self.lake, seqs).await;
            if in_search && in_ledger && in_lake == seqs.len() {
                return;
            }
            assert!(
                Instant::now() < until,
                "fresh messages do not arrive (search {in_search}, audit {in_ledger}, lake {in_lake} of {}):\n{}",
                seqs.len(),
                process.said()
            );
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// An address that nobody listens on, and that nobody will be given: below the ports that the system hands out, or
/// else one of the oracle's own connections could take it while the binary is down.
fn free_address() -> SocketAddr {
    let mut dice = Dice::new(u64::from(std::process::id()) ^ u64::from(clock()));
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], dice.range(20_000, 32_000) as u16));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

fn clock() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Runs, kills `n_kills` times, lets one run end properly, and compares.
async fn kill_many(seed: u64, n_kills: usize, manners: Manners) -> (Verdict, Search) {
    let started = Instant::now();
    let mut dice = Dice::new(seed);
    let search = Search::start(dice.next(), manners).await;
    let place = Place::new(search.address);
    let books = Arc::new(Books::new(seed));
    // The first start is a whole one: only then are there files to be found damaged.
    let mut process = Process::start(&place.pipeline);
    process.ready().await;
    let oracle = Oracle::start(&books, &place.targets);
    for n in 0..n_kills {
        if n > 0 && dice.one_in(5) {
            // In the middle of recovery.
            sleep(Duration::from_millis(dice.range(0, 300))).await;
        } else {
            process.ready().await;
            // Only a life of some seconds commits positions: what is before them never comes again.
            let is_long = n == 0 || dice.one_in(6);
            let life = if is_long { dice.range(3500, 5000) } else { dice.range(200, 1200) };
            sleep(Duration::from_millis(life)).await;
        }
        process.kill();
        if dice.one_in(6) {
            search.go_down(Duration::from_millis(dice.range(500, 2500)));
        }
        process = Process::start(&place.pipeline);
    }
    search.behave();
    process.ready().await;
    let canaries = oracle.finish().await;
    place.arrive(&canaries, &search, &process).await;
    process.stop(STOP_MAX).await;
    let verdict = judge(&books, &place.found(&search).await, n_kills);
    let (n_conflicts, seconds) = (search.n_conflicts(), started.elapsed().as_secs());
    println!("kills {n_kills}, {verdict}, conflicts in search {n_conflicts}; {seconds} s, seed {seed}");
    (verdict, search)
}

/// Faults counted by what they are, and some of them.
fn summary(verdict: &Verdict) -> String {
    let mut kinds = BTreeMap::<String, usize>::new();
    for fault in &verdict.faults {
        let kind = match fault {
            Fault::Lost { sink, seq } => format!("lost in {sink}, sent by {:?}", Channel::of(*seq)),
            Fault::Twice { sink, seq } => format!("twice in {sink}, sent by {:?}", Channel::of(*seq)),
            Fault::Altered { sink, .. } => format!("altered in {sink}"),
            Fault::Invented { sink, .. } => format!("invented in {sink}"),
            Fault::Torn { .. } => "torn rejects".to_owned(),
        };
        *kinds.entry(kind).or_default() += 1;
    }
    let examples: Vec<String> = verdict.faults.iter().take(10).map(|fault| format!("{fault:?}")).collect();
    format!("promises not kept: {kinds:?}, such as\n{}", examples.join("\n"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_it_loses_and_doubles_nothing() {
    let seed = number("LOGDRIVE_KILL_SEED").unwrap_or_else(|| u64::from(clock()));
    let n_kills = number("LOGDRIVE_KILLS").map_or(60, |n| n as usize);
    println!("seed {seed}");
    let manners = Manners { lost_answer_one_in: 30, busy_item_one_in: 4000, lie_one_in: 0, delay_max: 20 };
    let (verdict, search) = kill_many(seed, n_kills, manners).await;
    assert!(verdict.faults.is_empty(), "{}", summary(&verdict));
    // Otherwise it was no test: nothing was under way when it was killed.
    assert!(0 < search.n_conflicts(), "nothing was ever sent twice");
    assert!(1000 < verdict.n_acknowledged && 0 < verdict.n_rejects);
}

/// The canary of this test: a flush that says "done" for rows that are not stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_that_lies_is_found_out() {
    let seed = number("LOGDRIVE_KILL_SEED").unwrap_or_else(|| u64::from(clock())) ^ 1;
    let manners = Manners { lost_answer_one_in: 30, busy_item_one_in: 4000, lie_one_in: 100, delay_max: 20 };
    let (verdict, search) = kill_many(seed, 2, manners).await;
    let lost: Vec<u64> = verdict
        .faults
        .iter()
        .map(|fault| match fault {
            Fault::Lost { sink: "search", seq } => *seq,
            other => panic!("only the search server lied, but: {other:?}"),
        })
        .collect();
    assert!(!lost.is_empty(), "the loss was not noticed");
    let lied = search.lied();
    let untold: Vec<_> = lost.iter().filter(|seq| !lied.contains(seq)).collect();
    assert!(untold.is_empty(), "lost without a lie: {untold:?}");
}

/// The other canaries: what the comparison must notice.
#[test]
fn the_comparison_sees_what_is_wrong() {
    let books = Books::new(7);
    for channel in Channel::ALL {
        let (seqs, _) = books.issue(channel, 10);
        books.acknowledge(seqs);
    }
    let good = |seq| !is_malformed(seq);
    let document = |seq| {
        let mut document: serde_json::Value = serde_json::from_str(&line(7, seq)).unwrap();
        document["env"] = json!("kill");
        document
    };
    let whole = Found {
        search: (0..30).filter(|seq| good(*seq)).map(|seq| document(seq).to_string()).collect(),
        lake: (0..30).filter(|seq| good(*seq)).map(|seq| (seq, line(7, seq))).collect(),
        ledger: (0..30).filter(|seq| good(*seq)).map(document).collect(),
        rejects: (0..30).filter(|seq| !good(*seq)).map(|seq| line(7, seq)).collect(),
        n_torn: 1,
    };
    let faults = |change: &dyn Fn(&mut Found)| {
        let mut found = whole.clone();
        change(&mut found);
        judge(&books, &found, 1).faults.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(faults(&|_| {}), []);
    assert_eq!(
        faults(&|found| found.search.push(document(3).to_string())),
        [Fault::Twice { sink: "search", seq: 3 }]
    );
    assert_eq!(faults(&|found| found.lake.push((4, line(7, 4)))), [Fault::Twice { sink: "lake", seq: 4 }]);
    assert_eq!(
        faults(&|found| found.ledger.retain(|body| body["seq"] != 5)),
        [Fault::Lost { sink: "ledger", seq: 5 }]
    );
    assert_eq!(faults(&|found| drop(found.rejects.remove(1))), [Fault::Lost { sink: "rejects", seq: 22 }]);
    assert_eq!(faults(&|found| found.rejects.push(line(7, 21))), []);
    assert_eq!(
        faults(&|found| found.lake.push((30, line(7, 30)))),
        [Fault::Invented { sink: "lake", seq: 30 }]
    );
    let altered = faults(&|found| found.lake[2].1.push(' '));
    assert!(altered.iter().any(|fault| matches!(fault, Fault::Altered { sink: "lake", .. })), "{altered:?}");
    let altered = faults(&|found| found.ledger[0]["amount"] = json!(0.5));
    assert!(
        altered.iter().any(|fault| matches!(fault, Fault::Altered { sink: "ledger", .. })),
        "{altered:?}"
    );
    assert_eq!(faults(&|found| found.n_torn = 2), [Fault::Torn { n_lines: 2 }]);
}
