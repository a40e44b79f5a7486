//! The `file` source against real files: growth, rotation, truncation, links, restarts at every point.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says what it tried")]

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use logdrive_connectors::{Budget, ConnectorContext, ConnectorError, Metrics, SOURCES, Source, SourceKind};
use logdrive_schemas::component::{Limits, Node};
use logdrive_schemas::{Chunk, Partition, Position};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const DEADLINE: Duration = Duration::from_secs(10);

/// A folder of logs, a source that follows it, and what came out of it.
struct Tail {
    dir: tempfile::TempDir,
    yaml: String,
    metrics: Arc<Metrics>,
    source: Box<dyn Source>,
    delivered: HashMap<Partition, u64>,
    /// Messages by partition and offset: a second message at one place fails the test.
    messages: BTreeMap<(Partition, u64), Vec<u8>>,
    order: Vec<Vec<u8>>,
    /// Whether restarts go back to positions older than the last.
    lags: bool,
}

impl Tail {
    async fn new(prepare: impl FnOnce(&Path), keys: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("logs")).unwrap();
        prepare(&dir.path().join("logs"));
        let yaml = keys.replace("LOGS", &dir.path().join("logs").display().to_string());
        let metrics = Arc::new(Metrics::new());
        let source = build(&yaml, dir.path(), &metrics);
        let mut tail = Self {
            dir,
            yaml,
            metrics,
            source,
            delivered: HashMap::new(),
            messages: BTreeMap::new(),
            order: Vec::new(),
            lags: false,
        };
        tail.source.connect(&[]).await.unwrap();
        tail
    }

    fn logs(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    fn append(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.logs().join(name);
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_ref()).unwrap();
    }

    /// A restart that knows only about half of what was received.
    async fn restart_behind(&mut self, rng: &mut SmallRng) {
        let places: Vec<(Partition, u64)> = self.messages.keys().copied().collect();
        for (partition, delivered) in &mut self.delivered {
            if rng.random_bool(0.5) {
                let earlier: Vec<u64> = places
                    .iter()
                    .filter(|(p, offset)| p == partition && offset < delivered)
                    .map(|(_, offset)| *offset)
                    .collect();
                if !earlier.is_empty() {
                    *delivered = earlier[rng.random_range(earlier.len() / 2..earlier.len())];
                }
            }
        }
        self.lags = true;
        self.restart().await;
    }

    /// As after a crash: a new source that knows only what was delivered.
    async fn restart(&mut self) {
        self.source = build(&self.yaml, self.dir.path(), &self.metrics);
        let delivered: Vec<Position> =
            self.delivered.iter().map(|(&partition, &offset)| Position { partition, offset }).collect();
        self.source.connect(&delivered).await.unwrap();
    }

    fn take(&mut self, chunk: &Chunk) {
        assert!(!chunk.messages.is_empty() && chunk.messages.len() == chunk.offsets.len());
        for (idx, offset) in chunk.offsets.iter().enumerate() {
            assert!(*offset < chunk.next_offset);
            let message = chunk.message(idx).to_vec();
            // After a restart what was not delivered comes again, the same in the same place.
            match self.messages.insert((chunk.partition, *offset), message.clone()) {
                Some(before) if self.lags => assert_eq!(before, message),
                Some(_) => panic!("two messages at one place"),
                None => self.order.push(message),
            }
        }
        let before = self.delivered.insert(chunk.partition, chunk.next_offset);
        assert!(before.is_none_or(|before| before < chunk.next_offset), "positions grow");
    }

    async fn recv(&mut self, messages: usize) -> Result<(), ConnectorError> {
        let budget = Budget { messages, ..Budget::default() };
        let Ok(chunk) = tokio::time::timeout(DEADLINE, self.source.recv(budget)).await else {
            panic!("nothing comes after {} messages: {:?}", self.order.len(), self.logs());
        };
        let chunk = chunk?;
        assert!(chunk.messages.len() <= messages);
        self.take(&chunk);
        Ok(())
    }

    async fn recv_until(&mut self, n_messages: usize) {
        while self.order.len() < n_messages {
            self.recv(10_000).await.unwrap();
        }
    }

    /// Asserts that nothing comes for a while (longer than several polls).
    async fn assert_quiet(&mut self) {
        let next = tokio::time::timeout(Duration::from_millis(60), self.source.recv(Budget::default())).await;
        if let Ok(chunk) = next {
            let chunk = chunk.unwrap();
            panic!("unexpected: {:?}", String::from_utf8_lossy(chunk.message(0)));
        }
    }

    async fn recv_to_end(&mut self) {
        loop {
            match self.recv(3).await {
                Ok(()) => {}
                Err(ConnectorError::End) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn texts(&self) -> Vec<String> {
        self.order.iter().map(|m| String::from_utf8_lossy(m).into_owned()).collect()
    }
}

fn build(yaml: &str, dir: &Path, metrics: &Arc<Metrics>) -> Box<dyn Source> {
    let cx = ConnectorContext {
        name: "logs".into(),
        state_dir: dir.join("state/sources/logs"),
        metrics: Arc::clone(metrics),
        shutdown: tokio_util::sync::CancellationToken::new(),
    };
    let node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
    let entry = SOURCES.iter().find(|entry| entry.name == "file").unwrap();
    match (entry.build)(&node, &cx) {
        Ok(SourceKind::Log(source)) => source,
        Ok(SourceKind::Listener(_)) => panic!("file has a log of its own"),
        Err(errors) => panic!("{errors:?}"),
    }
}

const FOLLOW: &str = "paths: ['LOGS/app.log*']\npoll_interval: 1ms\n";

#[tokio::test(flavor = "multi_thread")]
async fn lines_come_when_complete_with_the_offsets_of_their_starts() {
    let mut tail = Tail::new(|_| {}, FOLLOW).await;
    tail.append("app.log", "first\r\n\nsec");
    tail.recv_until(1).await;
    tail.assert_quiet().await;
    tail.append("app.log", "ond\nthird");
    tail.recv_until(2).await;
    tail.assert_quiet().await;
    assert_eq!(tail.texts(), ["first", "second"]);
    let offsets: Vec<u64> = tail.messages.keys().map(|(_, offset)| *offset).collect();
    assert_eq!(offsets, [0, 8]);
    assert_eq!(tail.delivered.values().collect::<Vec<_>>(), [&15]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_line_in_pieces_is_one_partition_also_over_a_restart() {
    let mut tail = Tail::new(|_| {}, FOLLOW).await;
    tail.append("app.log", "half a ");
    tail.restart().await;
    tail.append("app.log", "line\n");
    tail.recv_until(1).await;
    tail.restart().await;
    // Grows over the length of the fingerprint, with restarts all the way.
    for n in 0..100 {
        tail.append("app.log", format!("line {n} {}\n", "x".repeat(n)));
        tail.recv_until(2 + n).await;
        if n % 7 == 0 {
            tail.restart().await;
        }
    }
    assert_eq!(tail.delivered.len(), 1, "one partition");
    tail.restart().await;
    tail.assert_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_follow_it_ends_and_the_last_line_needs_no_newline() {
    let keys = "paths: ['LOGS/**/*.log']\nexclude: ['**/no.log']\nfollow: false\n";
    let prepare = |logs: &Path| {
        fs::create_dir(logs.join("deep")).unwrap();
        fs::write(logs.join("a.log"), "a1\na2").unwrap();
        fs::write(logs.join("deep/b.log"), "b1\nb2\nb3\nb4\nb5\n").unwrap();
        fs::write(logs.join("no.log"), "n1\n").unwrap();
        fs::write(logs.join("empty.log"), "").unwrap();
    };
    let mut tail = Tail::new(prepare, keys).await;
    tail.recv_to_end().await;
    let mut texts = tail.texts();
    texts.sort();
    assert_eq!(texts, ["a1", "a2", "b1", "b2", "b3", "b4", "b5"]);
    tail.restart().await;
    tail.recv_to_end().await;
    assert_eq!(tail.order.len(), 7, "nothing twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_with_one_beginning_are_all_read() {
    let header = "#".repeat(2000);
    let keys = "paths: ['LOGS/*']\npoll_interval: 1ms\n";
    let prepare = |logs: &Path| {
        for n in 0..5 {
            fs::write(logs.join(format!("{n}.csv")), format!("{header}\n{n}\n")).unwrap();
            fs::write(logs.join(format!("short-{n}.csv")), format!("header\n{n}\n")).unwrap();
        }
    };
    let mut tail = Tail::new(prepare, keys).await;
    tail.recv_until(20).await;
    assert_eq!(tail.delivered.len(), 10);
    tail.restart().await;
    tail.assert_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_and_pipes_and_late_files() {
    let prepare = |logs: &Path| {
        fs::write(logs.join("app.log"), "1\n").unwrap();
        std::os::unix::fs::symlink(logs.join("app.log"), logs.join("app.log.link")).unwrap();
        fs::hard_link(logs.join("app.log"), logs.join("app.log.hard")).unwrap();
        std::os::unix::fs::symlink(logs.join("nowhere"), logs.join("app.log.broken")).unwrap();
        fs::create_dir(logs.join("app.log.d")).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(logs.join("app.log.pipe")).status();
        assert!(pipe.unwrap().success());
    };
    let mut tail = Tail::new(prepare, FOLLOW).await;
    tail.recv_until(1).await;
    tail.append("app.log", "2\n");
    tail.recv_until(2).await;
    tail.append("app.log-late", "3\n");
    tail.recv_until(3).await;
    tail.assert_quiet().await;
    assert_eq!(tail.texts(), ["1", "2", "3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn read_from_end_takes_what_is_appended_and_new_files_whole() {
    let keys = format!("{FOLLOW}read_from: end\n");
    let mut tail = Tail::new(|logs| fs::write(logs.join("app.log"), "old\nha").unwrap(), &keys).await;
    tail.append("app.log", "lf\nnew\n");
    tail.recv_until(2).await;
    assert_eq!(tail.texts(), ["half", "new"]);
    tail.append("app.log.late", "whole\n");
    tail.recv_until(3).await;
    // Also if nothing was delivered before the restart.
    let mut tail = Tail::new(|logs| fs::write(logs.join("app.log"), "old\n").unwrap(), &keys).await;
    tail.append("app.log", "new\n");
    tail.append("app.log.while-down", "whole\n");
    tail.restart().await;
    tail.recv_until(2).await;
    let mut texts = tail.texts();
    texts.sort();
    assert_eq!(texts, ["new", "whole"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_too_long_is_cut_and_spoilt_and_the_next_is_whole() {
    for len in [101, 5_000, 3 << 20] {
        let keys = format!("{FOLLOW}max_line_bytes: 100B\n");
        let mut tail = Tail::new(|_| {}, &keys).await;
        tail.append("app.log", "ok\n");
        tail.append("app.log", "x".repeat(len));
        tail.recv_until(1).await;
        tail.append("app.log", "\nnext\n");
        tail.recv_until(3).await;
        let mut cut = vec![b'x'; 100];
        cut.push(0xFF);
        assert_eq!(tail.order, [b"ok".to_vec(), cut, b"next".to_vec()], "{len}");
        let labels = ["logs", "line_too_long"];
        assert_eq!(tail.metrics.source_rejects.with_label_values(&labels).get(), 1);
        tail.restart().await;
        tail.assert_quiet().await;
    }
    // Exactly as long as allowed, and much longer than one read.
    let keys = format!("{FOLLOW}max_line_bytes: 5MiB\n");
    let mut tail = Tail::new(|_| {}, &keys).await;
    tail.append("app.log", [&vec![b'y'; 5 << 20][..], b"\nnext\n"].concat());
    tail.recv_until(2).await;
    assert_eq!(tail.order[0].len(), 5 << 20);
    assert_eq!(tail.order[1], b"next");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_and_renamed_files_are_read_to_their_end() {
    let keys = "paths: ['LOGS/app.log']\npoll_interval: 1ms\nrotate_wait: 100ms\n";
    let mut tail = Tail::new(|logs| fs::write(logs.join("app.log"), "0\n").unwrap(), keys).await;
    let mut writer = OpenOptions::new().append(true).open(tail.logs().join("app.log")).unwrap();
    tail.recv_until(1).await;
    fs::remove_file(tail.logs().join("app.log")).unwrap();
    writer.write_all(b"1\n").unwrap();
    tail.recv_until(2).await;
    tail.append("app.log", "2\n");
    tail.recv_until(3).await;
    let mut writer = OpenOptions::new().append(true).open(tail.logs().join("app.log")).unwrap();
    fs::rename(tail.logs().join("app.log"), tail.logs().join("elsewhere")).unwrap();
    writer.write_all(b"3\nlast without newline").unwrap();
    tail.recv_until(5).await;
    assert_eq!(tail.texts(), ["0", "1", "2", "3", "last without newline"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_and_grown_beyond_the_old_offset_between_two_looks() {
    let keys = "paths: ['LOGS/app.log']\npoll_interval: 1ms\n";
    let mut tail =
        Tail::new(|logs| fs::write(logs.join("app.log"), "h\nold 1\nold 2\n").unwrap(), keys).await;
    tail.recv_until(3).await;
    fs::write(tail.logs().join("app.log"), "h\nnew 1\nnew 2\nnew 3\n").unwrap();
    tail.recv_until(7).await;
    assert_eq!(tail.texts()[3..], ["h", "new 1", "new 2", "new 3"]);
    assert_eq!(tail.delivered.len(), 2, "another partition");
}

/// What was read is only what the next generation begins with too.
#[tokio::test(flavor = "multi_thread")]
async fn truncated_within_a_header_that_the_next_content_has_too() {
    for header in ["# header\n".to_owned(), format!("# {}\n", "h".repeat(500))] {
        for (n_old, n_new) in [(3, 5), (100, 5), (100, 300), (300, 100)] {
            for restart in [false, true] {
                let keys = "paths: ['LOGS/app.log']\npoll_interval: 1ms\n";
                let old: String = (0..n_old).map(|n| format!("old {n}\n")).collect();
                let new: String = (0..n_new).map(|n| format!("new {n}\n")).collect();
                let prepare =
                    |logs: &Path| fs::write(logs.join("app.log"), format!("{header}{old}")).unwrap();
                let mut tail = Tail::new(prepare, keys).await;
                tail.recv(1).await.unwrap();
                if restart {
                    tail.restart().await;
                }
                let log = tail.logs().join("app.log");
                fs::copy(&log, tail.logs().join("app.log.1")).unwrap();
                fs::write(&log, format!("{header}{new}")).unwrap();
                tail.recv_until(2 + n_old + n_new).await;
                let mut texts = tail.texts();
                texts.sort();
                let mut expect: Vec<&str> =
                    [&header, &header, &*old, &*new].iter().flat_map(|t| t.lines()).collect();
                expect.sort_unstable();
                assert_eq!(texts, expect, "{n_old} lines, then {n_new}");
                tail.restart().await;
                tail.assert_quiet().await;
            }
        }
    }
}

/// As between two ticks of the file system's clock.
#[tokio::test(flavor = "multi_thread")]
async fn replaced_by_as_much_at_the_same_time() {
    let keys = "paths: ['LOGS/app.log']\npoll_interval: 1ms\n";
    let mut tail = Tail::new(|logs| fs::write(logs.join("app.log"), "old 1\n").unwrap(), keys).await;
    tail.recv_until(1).await;
    let log = tail.logs().join("app.log");
    let time = fs::metadata(&log).unwrap().modified().unwrap();
    fs::write(&log, "new 1\n").unwrap();
    OpenOptions::new().append(true).open(&log).unwrap().set_modified(time).unwrap();
    tail.recv_until(2).await;
    assert_eq!(tail.texts(), ["old 1", "new 1"]);
    assert_eq!(tail.delivered.len(), 2, "another partition");
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_files_are_read_whole_and_recognised_as_what_they_were() {
    let lines: String = (0..5000).map(|n| format!("line number {n}\n")).collect();
    let gz = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let prepare = |logs: &Path| {
        fs::write(logs.join("app.log.9.gz"), gz("gz 1\ngz 2 without newline")).unwrap();
        fs::write(logs.join("app.log.8.zst"), zstd::encode_all(&b"zst 1\nzst 2\n"[..], 1).unwrap()).unwrap();
        fs::write(logs.join("app.log"), &lines).unwrap();
    };
    let mut tail = Tail::new(prepare, FOLLOW).await;
    tail.recv_until(5004).await;
    // Rotated and compressed while the source is down, with a line that was not read yet.
    tail.append("app.log", "one more\n");
    let all = fs::read_to_string(tail.logs().join("app.log")).unwrap();
    fs::remove_file(tail.logs().join("app.log")).unwrap();
    fs::write(tail.logs().join("app.log.1.gz"), gz(&all)).unwrap();
    tail.restart().await;
    tail.recv_until(5005).await;
    assert_eq!(tail.texts()[5004], "one more");
    tail.restart().await;
    tail.assert_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_files_than_are_held_open() {
    let n_files = 700;
    let prepare = |logs: &Path| {
        for n in 0..n_files {
            fs::write(logs.join(format!("app.log.{n}")), format!("{n} a\n")).unwrap();
        }
    };
    let mut tail = Tail::new(prepare, FOLLOW).await;
    tail.recv_until(n_files).await;
    for n in 0..n_files {
        tail.append(&format!("app.log.{n}"), format!("{n} b\n"));
    }
    tail.recv_until(2 * n_files).await;
    let open = fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open < 600, "{open} open");
    assert_eq!(tail.delivered.len(), n_files);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_recv_loses_nothing() {
    let mut tail = Tail::new(|_| {}, FOLLOW).await;
    let mut n_dropped = 0;
    for n in 0..300 {
        tail.append("app.log", format!("{n}\n"));
        // Dropped at the first point where it waits.
        let budget = Budget { messages: 1, ..Budget::default() };
        let received = tokio::select! {
            biased;
            chunk = tail.source.recv(budget) => Some(chunk.unwrap()),
            () = tokio::task::yield_now() => None,
        };
        match received {
            Some(chunk) => tail.take(&chunk),
            None => n_dropped += 1,
        }
    }
    assert!(0 < n_dropped, "the test must drop some");
    tail.recv_until(300).await;
    let expect: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    assert_eq!(tail.texts(), expect);
}

/// What a rotated log is made of.
#[derive(Clone, Copy, Debug)]
struct Rotation {
    seed: u64,
    /// Whether `paths` names only the live file.
    narrow: bool,
    copytruncate: bool,
    /// Whether restarts know only about half of what was received.
    behind: bool,
}

/// A writer that numbers its lines and is rotated, against a source that is restarted, in random order.
async fn rotate(rotation: Rotation) {
    println!("{rotation:?}");
    let mut rng = SmallRng::seed_from_u64(rotation.seed);
    let keys = if rotation.narrow { "paths: ['LOGS/app.log']\npoll_interval: 1ms\n" } else { FOLLOW };
    let mut tail = Tail::new(|_| {}, keys).await;
    let logs = tail.logs();
    let header = if rng.random_bool(0.5) { "# header\n" } else { "" };
    let (mut n_lines, mut n_headers, mut n_rotated, mut fresh) = (0, 0, 0, true);
    for _ in 0..60 {
        match rng.random_range(0..10) {
            0..4 => {
                let mut text = String::new();
                if fresh && !header.is_empty() {
                    text.push_str(header);
                    n_headers += 1;
                }
                fresh = false;
                for _ in 0..rng.random_range(1..40) {
                    text.push_str(&format!("line {n_lines} {}\n", "z".repeat(rng.random_range(0..40))));
                    n_lines += 1;
                }
                tail.append("app.log", text);
            }
            4..7 if tail.order.len() < n_lines + n_headers => {
                tail.recv(rng.random_range(1..30)).await.unwrap();
            }
            7 | 8 if rotation.behind => tail.restart_behind(&mut rng).await,
            7 | 8 => tail.restart().await,
            9 if !fresh => {
                // A generation that no look ever saw under its name is out of reach of a narrow pattern.
                if rotation.narrow {
                    tail.restart().await;
                }
                for n in (1..=n_rotated).rev() {
                    let (from, to) = (format!("app.log.{n}"), format!("app.log.{}", n + 1));
                    fs::rename(logs.join(from), logs.join(to)).unwrap();
                }
                n_rotated += 1;
                if rotation.copytruncate {
                    fs::copy(logs.join("app.log"), logs.join("app.log.1")).unwrap();
                    OpenOptions::new().write(true).open(logs.join("app.log")).unwrap().set_len(0).unwrap();
                } else {
                    fs::rename(logs.join("app.log"), logs.join("app.log.1")).unwrap();
                }
                fresh = true;
            }
            _ => {}
        }
    }
    tail.recv_until(n_lines + n_headers).await;
    if !rotation.behind {
        tail.restart().await;
        tail.assert_quiet().await;
    }
    let mut numbers: Vec<usize> = tail
        .texts()
        .iter()
        .filter_map(|t| t.strip_prefix("line ").map(|t| t.split(' ').next().unwrap().parse().unwrap()))
        .collect();
    numbers.sort_unstable();
    let expect: Vec<usize> = (0..n_lines).collect();
    assert_eq!(numbers, expect, "{rotation:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_by_create_with_restarts_loses_and_repeats_nothing() {
    for seed in 0..25 {
        for narrow in [false, true] {
            rotate(Rotation { seed, narrow, copytruncate: false, behind: seed % 2 == 1 }).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_by_copytruncate_with_restarts_loses_and_repeats_nothing() {
    for seed in 0..25 {
        for narrow in [false, true] {
            rotate(Rotation { seed, narrow, copytruncate: true, behind: seed % 2 == 1 }).await;
        }
    }
}

/// Rotated by the writer itself, so that nothing is written between copy and truncation.
async fn rotate_at_full_speed(rotate: impl Fn(&Path, &Path) + Send + 'static) {
    let mut tail = Tail::new(|_| {}, FOLLOW).await;
    let logs = tail.logs();
    let writer = std::thread::spawn(move || {
        for n in 0..20_000 {
            if n % 2_000 == 1_999 {
                rotate(&logs.join("app.log"), &logs.join(format!("app.log.{n}")));
            }
            let mut file = OpenOptions::new().append(true).create(true).open(logs.join("app.log")).unwrap();
            file.write_all(format!("{n}\n").as_bytes()).unwrap();
        }
    });
    tail.recv_until(20_000).await;
    writer.join().unwrap();
    tail.assert_quiet().await;
    let mut numbers: Vec<usize> = tail.texts().iter().map(|t| t.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..20_000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_by_create_under_a_writer_at_full_speed() {
    rotate_at_full_speed(|log, to| fs::rename(log, to).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_by_copytruncate_under_a_writer_at_full_speed() {
    rotate_at_full_speed(|log, to| {
        fs::copy(log, to).unwrap();
        OpenOptions::new().write(true).open(log).unwrap().set_len(0).unwrap();
    })
    .await;
}
