//! Members of one consumer group, as whole binaries, killed and added while numbered messages flow from one topic
//! into another and into a search index: nothing is missing, and nothing is twice where the far end knows identities.
//!
//! `LOGDRIVE_KAFKA_MESSAGES` sets how many messages.
#![cfg(feature = "kafka")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, helpers included")]

#[allow(dead_code, reason = "shared with other tests")]
mod e2e_support;
#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _, stdout};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e_support::{Lab, Pipeline, free_port, until_within};
use support::message::seq_of;
use support::search::{Manners, Search};

const MESSAGES: usize = 120_000;
const PORT: u16 = 21_330;
/// Of the broker of the other test.
const PORT_TOO: u16 = 21_332;
/// How long everything may take to arrive at last, unless there is more of it than usual.
const ARRIVAL_MAX: Duration = Duration::from_secs(240);

/// As much as usual, or as the environment says.
fn n_messages() -> usize {
    let messages = std::env::var("LOGDRIVE_KAFKA_MESSAGES").ok().and_then(|n| n.parse().ok());
    messages.unwrap_or(MESSAGES)
}

fn arrival_max() -> Duration {
    ARRIVAL_MAX.max(Duration::from_micros(1000 * n_messages() as u64))
}

/// A broker on a port of its own, stopped and wiped when dropped.
struct Broker(PathBuf, u16);

impl Broker {
    /// `None` if it cannot be had here.
    fn start(port: u16) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
        let shared = std::env::var_os("LOGDRIVE_SHARED").map_or(root, PathBuf::from);
        let broker = Self(shared.join("components/kafka.sh"), port);
        let ready = broker.0.exists() && ["install", "wipe", "start"].iter().all(|verb| broker.run(verb));
        ready.then_some(broker)
    }

    fn run(&self, verb: &str) -> bool {
        let mut command = Command::new(&self.0);
        command.arg(verb).env("KAFKA_PARTITIONS", "6");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if verb != "install" {
            command.arg(self.1.to_string());
        }
        command.status().is_ok_and(|status| status.success())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.run("stop");
        self.run("wipe");
    }
}

fn member(search: &Search) -> Lab {
    Lab::new(&format!(
        r#"
sources:
  in:
    type: kafka
    endpoint: ["127.0.0.1:{PORT}"]
    topics: [numbered]
    group: members
    options: {{ session.timeout.ms: 6000, heartbeat.interval.ms: 500 }}
    schema: {{ fields: {{ seq: int64 }} }}
sinks:
  copy: {{ type: kafka, from: [in], endpoint: ["127.0.0.1:{PORT}"], topic: copied }}
  search:
    type: elasticsearch
    from: [in]
    endpoint: ["http://{}"]
    index: numbered
    batch: {{ timeout: 200ms }}
"#,
        search.address
    ))
}

/// The numbered documents in a file that grows, which is read as it grows.
struct Copies {
    path: PathBuf,
    /// How far it was read.
    at: u64,
    seen: Vec<u32>,
    n_different: usize,
}

impl Copies {
    fn new(lab: &Lab, n: usize) -> Self {
        Self { path: lab.path("out.ndjson"), at: 0, seen: vec![0; n], n_different: 0 }
    }

    /// Whether all are there.
    fn are_complete(&mut self) -> bool {
        if let Ok(mut file) = File::open(&self.path) {
            file.seek(SeekFrom::Start(self.at)).unwrap();
            let (mut lines, mut line) = (BufReader::new(file), String::new());
            while lines.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
                let seen = &mut self.seen[seq_of(line.trim_end()).unwrap() as usize];
                self.n_different += usize::from(*seen == 0);
                *seen += 1;
                self.at += line.len() as u64;
                line.clear();
            }
        }
        self.n_different == self.seen.len()
    }

    fn n_repeated(&self) -> u32 {
        self.seen.iter().map(|n| n.saturating_sub(1)).sum()
    }
}

/// Sends messages into the topic through a pipeline of its own, as fast as they are taken out, so that there are some
/// to come whatever happens.
struct Feeder {
    _pipeline: Pipeline,
    _lab: Lab,
    stream: TcpStream,
    n_sent: usize,
    n_all: usize,
}

impl Feeder {
    fn start(broker: u16, n_all: usize) -> Self {
        let port = free_port();
        let lab = Lab::new(&format!(
            r#"
sources: {{ in: {{ type: tcp, listen: "127.0.0.1:{port}", schema: {{ fields: {{ seq: int64 }} }} }} }}
sinks: {{ out: {{ type: kafka, from: [in], endpoint: ["127.0.0.1:{broker}"], topic: numbered }} }}
"#
        ));
        let pipeline = lab.run();
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        Self { _pipeline: pipeline, _lab: lab, stream, n_sent: 0, n_all }
    }

    /// Feeds until this many are sent.
    fn feed(&mut self, upto: usize) {
        let lines: String = (self.n_sent..upto).map(|n| format!("{{\"seq\":{n}}}\n")).collect();
        self.stream.write_all(lines.as_bytes()).unwrap();
        self.n_sent = upto;
    }

    /// Feeds until the index holds `n` documents.
    fn until_stored(&mut self, n: usize, search: &Search) {
        let deadline = Instant::now() + arrival_max();
        let ahead = self.n_all / 5;
        while search.n_documents() < n {
            let upto = (search.n_documents() + ahead).min(self.n_all).max(self.n_sent);
            let lines: String = (self.n_sent..upto).map(|n| format!("{{\"seq\":{n}}}\n")).collect();
            self.stream.write_all(lines.as_bytes()).unwrap();
            self.n_sent = upto;
            assert!(Instant::now() < deadline, "{} of {n} are stored, {upto} are sent", search.n_documents());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_a_group_are_killed_and_added_and_nothing_is_missing() {
    let Some(_broker) = Broker::start(PORT) else {
        writeln!(&mut stdout(), "skipped: kafka: broker not at hand").unwrap();
        return;
    };
    let n_messages = n_messages();
    let search = Search::start(1, Manners::default()).await;
    let started = Instant::now();
    let mut feeder = Feeder::start(PORT, n_messages);
    feeder.until_stored(0, &search);
    let labs: Vec<Lab> = (0..4).map(|_| member(&search)).collect();
    let mut members: BTreeMap<usize, Pipeline> = (0..3).map(|n| (n, labs[n].run())).collect();
    let mut n_kills = 0;
    // Percent of all messages, who is killed, and who starts, perhaps again with what it remembers.
    for (percent, killed, starts) in [
        (10, Some(0), None),
        (25, None, Some(3)),
        (40, Some(1), Some(0)),
        (60, Some(3), Some(1)),
        (80, Some(2), None),
    ] {
        feeder.until_stored(n_messages * percent / 100, &search);
        if let Some(member) = killed.and_then(|killed| members.remove(&killed)) {
            member.kill();
            n_kills += 1;
        }
        if let Some(starts) = starts {
            members.insert(starts, labs[starts].run());
        }
    }
    // What a killed member had in its queue on disk, which holds rows when the index is slow, it alone delivers.
    for (n, lab) in labs.iter().enumerate() {
        members.entry(n).or_insert_with(|| lab.run());
    }
    feeder.until_stored(n_messages, &search);
    assert_eq!(search.n_documents(), n_messages, "each once");
    let took = started.elapsed();
    let reader = Lab::new(&format!(
        r#"
sources: {{ in: {{ type: kafka, endpoint: ["127.0.0.1:{PORT}"], topics: [copied], group: reader, schema: {{ fields: {{ seq: int64 }} }} }} }}
sinks: {{ out: {{ type: file, from: [in], path: out.ndjson }} }}
"#
    ));
    let reading = reader.run();
    let mut copies = Copies::new(&reader, n_messages);
    until_within(arrival_max(), "everything is copied", || copies.are_complete());
    for member in members.into_values() {
        member.stop();
    }
    // Nothing comes any more.
    reading.stop();
    copies.are_complete();

    // Everything is committed: whoever comes next is given nothing that was there before.
    let last = labs[3].run();
    let n_again = last.metric("logdrive_source_messages_total", "source=\"in\"").unwrap_or(0.0);
    assert_eq!(n_again, 0.0, "{}", last.log());
    last.stop();
    println!(
        "{n_messages} messages in {took:?}, {n_kills} members killed: search {n_messages}, {} sent again and \
         recognised; topic {n_messages} and {} repeated",
        search.n_conflicts(),
        copies.n_repeated()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_a_copy_by_transactions_is_exact() {
    const N_MESSAGES: usize = 240_000;
    const N_KILLS: usize = 6;
    let Some(_broker) = Broker::start(PORT_TOO) else {
        writeln!(&mut stdout(), "skipped: kafka: broker not at hand").unwrap();
        return;
    };
    let mut feeder = Feeder::start(PORT_TOO, N_MESSAGES);
    let copy = Lab::new(&format!(
        r#"
sources:
  in:
    type: kafka
    endpoint: ["127.0.0.1:{PORT_TOO}"]
    topics: [numbered]
    group: copies
    options: {{ group.instance.id: one, session.timeout.ms: 30000, heartbeat.interval.ms: 500 }}
    schema: {{ fields: {{ seq: int64 }} }}
sinks:
  copy:
    type: kafka
    from: [in]
    endpoint: ["127.0.0.1:{PORT_TOO}"]
    topic: copied
    transactional_id: copy-one
    batch: {{ timeout: 20ms }}
"#
    ));
    let reader = Lab::new(&format!(
        r#"
sources: {{ in: {{ type: kafka, endpoint: ["127.0.0.1:{PORT_TOO}"], topics: [copied], group: reader, schema: {{ fields: {{ seq: int64 }} }} }} }}
sinks: {{ out: {{ type: file, from: [in], path: out.ndjson }} }}
"#
    ));
    feeder.feed(N_MESSAGES);
    let reading = reader.run();
    let rows = |pipeline: &Pipeline, what: &str| {
        pipeline.metric(&format!("logdrive_sink_{what}_total"), "sink=\"copy\"").unwrap_or(0.0)
    };
    let mut n_skipped = 0.0;
    for _ in 0..N_KILLS {
        let pipeline = copy.run();
        // In the midst of it, unless it is too fast for that.
        until_within(ARRIVAL_MAX, "some are copied", || {
            rows(&pipeline, "rows") >= 5000.0 || reader.lines("out.ndjson").len() >= N_MESSAGES
        });
        n_skipped += rows(&pipeline, "duplicate_rows");
        pipeline.kill();
    }
    let last = copy.run();
    // A partition is in order: what comes twice comes before the last of what comes once.
    let mut copies = Copies::new(&reader, N_MESSAGES);
    until_within(ARRIVAL_MAX, "everything is copied", || copies.are_complete());
    n_skipped += rows(&last, "duplicate_rows");
    last.stop();
    reading.stop();
    copies.are_complete();
    assert_eq!(copies.n_repeated(), 0);
    println!(
        "{N_MESSAGES} messages, {N_KILLS} kills: {N_MESSAGES} copied once each, {n_skipped} repeated and skipped"
    );
}
