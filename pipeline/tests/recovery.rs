//! How long a pipeline takes to come back, against the size of its state; `just recovery` writes the table into
//! `docs/checkpoints.md`.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

#[allow(dead_code, reason = "shared with other tests")]
mod e2e_support;

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use e2e_support::{Lab, Pipeline, until_within};

const LIMIT: Duration = Duration::from_secs(900);
/// Changes per second while bytes are counted, and for how long.
const CHANGES: u64 = 1_000;
const SECONDS: u64 = 15;

fn line(key: u64, n: u64) -> String {
    format!("{{\"user\":\"user-{key:012}\",\"amount\":{n}}}\n")
}

fn append(lab: &Lab, lines: impl Iterator<Item = String>) {
    let file = fs::File::options().create(true).append(true).open(lab.path("in.ndjson")).unwrap();
    let mut file = std::io::BufWriter::new(file);
    lines.for_each(|line| file.write_all(line.as_bytes()).unwrap());
    file.flush().unwrap();
}

fn value(pipeline: &Pipeline, name: &str) -> f64 {
    pipeline.metric(name, "").unwrap_or(0.0)
}

fn wait_for_cuts(pipeline: &Pipeline, n: f64) {
    let cuts = value(pipeline, "logdrive_checkpoint_cuts_total");
    until_within(LIMIT, "cuts", || value(pipeline, "logdrive_checkpoint_cuts_total") >= cuts + n);
}

/// A line of the table.
fn measure(n_keys: u64) -> String {
    let lab = Lab::new(
        "
sources: { in: { type: file, paths: [in.ndjson], schema: { fields: { user: string, amount: int64 } } } }
views:
  totals:
    sql: SELECT user, count(*) AS n, sum(amount) AS total, max(amount) AS most FROM in GROUP BY user
    unbounded: true
    max_bytes: 8GiB
sinks: { out: { type: blackhole, from: [totals] } }
",
    );
    append(&lab, (0..n_keys).map(|key| line(key, key)));
    let pipeline = lab.run();
    let has_all = |pipeline: &Pipeline| {
        pipeline.metric("logdrive_detector_state_rows", "totals") == Some(n_keys as f64)
    };
    until_within(LIMIT, "all keys are counted", || has_all(&pipeline));
    wait_for_cuts(&pipeline, 3.0);
    let written = value(&pipeline, "logdrive_checkpoint_written_bytes_total");
    let began = Instant::now();
    for second in 0..SECONDS {
        append(&lab, (0..CHANGES).map(|n| line((second * 7_919 + n * 104_729) % n_keys, second)));
        while began.elapsed() < Duration::from_secs(second + 1) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    wait_for_cuts(&pipeline, 1.0);
    let rate = (value(&pipeline, "logdrive_checkpoint_written_bytes_total") - written)
        / began.elapsed().as_secs_f64();
    let size = value(&pipeline, "logdrive_checkpoint_size_bytes");
    let files = value(&pipeline, "logdrive_checkpoint_files");
    pipeline.kill();
    let began = Instant::now();
    let pipeline = lab.run();
    let ready = began.elapsed().as_secs_f64();
    // The first rows that come set the count.
    append(&lab, std::iter::once(line(0, 0)));
    until_within(LIMIT, "the state is back", || has_all(&pipeline));
    pipeline.kill();
    format!("| {n_keys} | {:.1} | {files:.0} | {ready:.2} | {:.0} |", size / 1e6, rate / 1e3)
}

#[test]
#[ignore = "a measurement: `just recovery`"]
fn recovery_time_against_state_size() {
    let sizes = std::env::var("LOGDRIVE_RECOVERY_ROWS").unwrap_or_else(|_| "10000,100000,1000000".to_owned());
    let mut table = String::from(
        "| rows of state | MB on disk | files | seconds from start to ready | kB written per second |\n|---|---|---|---|---|\n",
    );
    for size in sizes.split(',') {
        writeln!(table, "{}", measure(size.trim().parse().unwrap())).unwrap();
    }
    let mut stdout = std::io::stdout();
    stdout.write_all(table.as_bytes()).unwrap();
    if std::env::var_os("LOGDRIVE_UPDATE_DOCS").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/checkpoints.md");
        let text = fs::read_to_string(&path).unwrap();
        let (head, rest) = text.split_once("<!-- recovery -->\n").unwrap();
        let (_, tail) = rest.split_once("<!-- end -->").unwrap();
        fs::write(&path, format!("{head}<!-- recovery -->\n{table}<!-- end -->{tail}")).unwrap();
    }
}
