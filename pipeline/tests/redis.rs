//! Members of one consumer group, as whole binaries, killed and added while numbered entries flow from one Redis stream
//! into another and into a search index: nothing is missing.
//!
//! `LOGDRIVE_REDIS_MESSAGES` sets how many entries.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, helpers included")]

#[allow(dead_code, reason = "shared with other tests")]
mod e2e_support;
#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _, stdout};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e_support::{Lab, Pipeline};
use support::message::seq_of;
use support::search::{Manners, Search};

const MESSAGES: usize = 60_000;
const PORT: u16 = 21_230;
/// How long everything may take to arrive at last.
const ARRIVAL_MAX: Duration = Duration::from_secs(120);

/// A server on a port of its own, stopped when dropped.
struct Server(PathBuf);

impl Server {
    /// `None` if it cannot be had here.
    fn start() -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
        let shared = std::env::var_os("LOGDRIVE_SHARED").map_or(root, PathBuf::from);
        let server = Self(shared.join("components/redis.sh"));
        (server.0.exists() && server.run("install") && server.run("start")).then_some(server)
    }

    fn run(&self, verb: &str) -> bool {
        let mut command = Command::new(&self.0);
        command.arg(verb).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if verb != "install" {
            command.arg(PORT.to_string());
        }
        command.status().is_ok_and(|status| status.success())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.run("stop");
    }
}

/// As much of the protocol as a test needs.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect() -> Self {
        Self(BufReader::new(TcpStream::connect(("127.0.0.1", PORT)).unwrap()))
    }

    /// Adds numbered entries.
    fn add(&mut self, numbers: std::ops::Range<usize>) {
        let commands: String =
            numbers.clone().map(|n| format!("XADD numbered * message \"{{\\\"seq\\\":{n}}}\"\r\n")).collect();
        self.0.get_mut().write_all(commands.as_bytes()).unwrap();
        for _ in numbers {
            self.bulk();
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        assert!(!line.starts_with('-'), "{line}");
        line.trim_end().to_owned()
    }

    fn bulk(&mut self) -> String {
        assert!(self.line().starts_with('$'));
        self.line()
    }

    /// Every message of a stream.
    fn read(&mut self, key: &str) -> Vec<String> {
        self.0.get_mut().write_all(format!("XRANGE {key} - +\r\n").as_bytes()).unwrap();
        let n: usize = self.line()[1..].parse().unwrap();
        let one = |client: &mut Self| {
            // An identifier and the list of a field and its value.
            client.line();
            client.bulk();
            client.line();
            client.bulk();
            client.bulk()
        };
        (0..n).map(|_| one(self)).collect()
    }

    fn n_pending(&mut self) -> usize {
        self.0.get_mut().write_all(b"XPENDING numbered members - + 10\r\n").unwrap();
        let n: usize = self.line()[1..].parse().unwrap();
        for _ in 0..n {
            self.line();
            self.bulk();
            self.bulk();
            self.line();
            self.line();
        }
        n
    }
}

fn member(search: &Search) -> Lab {
    Lab::new(&format!(
        r#"
sources:
  in:
    type: redis
    endpoint: "redis://127.0.0.1:{PORT}"
    keys: [numbered]
    group: members
    field: message
    claim_idle: 2s
    schema: {{ fields: {{ seq: int64 }} }}
sinks:
  copy: {{ type: redis, from: [in], endpoint: "redis://127.0.0.1:{PORT}", key: copied }}
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_a_group_are_killed_and_added_and_nothing_is_missing() {
    let Some(_server) = Server::start() else {
        writeln!(&mut stdout(), "skipped: redis: server not at hand").unwrap();
        return;
    };
    let messages = std::env::var("LOGDRIVE_REDIS_MESSAGES").ok().and_then(|n| n.parse().ok());
    let n_messages: usize = messages.unwrap_or(MESSAGES);
    let search = Search::start(1, Manners::default()).await;
    let mut client = Client::connect();
    let started = Instant::now();
    let labs: Vec<Lab> = (0..4).map(|_| member(&search)).collect();
    let mut members: BTreeMap<usize, Pipeline> = (0..3).map(|n| (n, labs[n].run())).collect();
    let (mut n_sent, mut n_kills) = (0, 0);
    let mut feed = |client: &mut Client, percent: usize| {
        let upto = n_messages * percent / 100;
        while n_sent < upto {
            let next = (n_sent + 500).min(upto);
            client.add(n_sent..next);
            n_sent = next;
        }
    };
    // Percent of all messages, who is killed while they are on their way, and who starts, perhaps again with what it
    // remembers.
    for (percent, killed, starts) in [
        (15, Some(0), None),
        (30, None, Some(3)),
        (45, Some(1), Some(0)),
        (60, Some(3), Some(1)),
        (80, Some(2), None),
    ] {
        feed(&mut client, percent);
        if let Some(member) = killed.and_then(|killed| members.remove(&killed)) {
            member.kill();
            n_kills += 1;
        }
        if let Some(starts) = starts {
            members.insert(starts, labs[starts].run());
        }
    }
    feed(&mut client, 100);
    let deadline = Instant::now() + ARRIVAL_MAX;
    let mut seen = vec![0_u32; n_messages];
    let mut found = vec![0_u32; n_messages];
    while found.contains(&0) || seen.contains(&0) || client.n_pending() > 0 {
        assert!(Instant::now() < deadline, "some are missing or pending");
        std::thread::sleep(Duration::from_millis(200));
        for (counts, texts) in [(&mut seen, client.read("copied")), (&mut found, search.documents())] {
            counts.fill(0);
            texts.iter().for_each(|text| counts[seq_of(text).unwrap() as usize] += 1);
        }
    }
    for member in members.into_values() {
        member.stop();
    }
    let n_twice = |counts: &[u32]| counts.iter().map(|n| n - 1).sum::<u32>();
    println!(
        "{n_messages} entries in {:?}, {n_kills} members killed: stream {} repeated, index {} repeated, {} sent again and \
         recognised",
        started.elapsed(),
        n_twice(&seen),
        n_twice(&found),
        search.n_conflicts()
    );
}
