//! What an event costs from a TCP socket through the whole pipeline into nothing, beside the floors of the same run.
//!
//! Prints CPU-seconds (user and system, of this process) per million events for
//! - `tcp discard`: reading the same bytes from the loopback and dropping them;
//! - `tape`: simd-json's tape alone over the same lines, in memory;
//! - `tcp → json → blackhole`, with the write-ahead buffer on disk (what users get) and in memory.
//!
//! The sender's CPU is not counted: it is measured by its own thread and subtracted.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use logdrive::config::{self, PlanContext};
use logdrive::topology::{self, Stand};
use logdrive_benches::Lines;
use logdrive_connectors::Metrics;
use logdrive_queries::SqlCompiler;
use simd_json::{Buffers, INPUT_PADDING, Tape, fill_tape_padded};

const EVENTS: u64 = 2_000_000;
const BLOCK: usize = 10_000;
const ROUNDS: usize = 3;

/// CPU seconds of a thread or process, from the clock ticks (10 ms) in `/proc/…/stat`.
fn cpu(stat: &str) -> f64 {
    let text = fs::read_to_string(stat).expect("the kernel tells");
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().filter_map(|f| f.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

/// The lines, sent `EVENTS / BLOCK` times; returns the sender's own CPU seconds.
fn send(address: String, block: Arc<Vec<u8>>) -> std::thread::JoinHandle<f64> {
    std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).expect("the listener is open");
        for _ in 0..EVENTS / BLOCK as u64 {
            stream.write_all(&block).expect("the listener reads");
        }
        drop(stream);
        cpu("/proc/thread-self/stat")
    })
}

fn discard(block: &Arc<Vec<u8>>) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let before = cpu("/proc/self/stat");
    let sender = send(address, Arc::clone(block));
    let (mut stream, _) = listener.accept().expect("the sender connects");
    let mut buffer = vec![0; 256 << 10];
    while stream.read(&mut buffer).expect("the sender writes") > 0 {}
    let sent = sender.join().expect("the sender ends");
    cpu("/proc/self/stat") - before - sent
}

fn tape(block: &[u8]) -> f64 {
    let before = cpu("/proc/self/stat");
    let (mut buffers, mut scratch, mut spare) = (Buffers::default(), Vec::new(), Tape(Vec::new()));
    for _ in 0..EVENTS / BLOCK as u64 {
        for line in block.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            scratch.clear();
            scratch.extend_from_slice(line);
            scratch.extend_from_slice(&[b' '; INPUT_PADDING]);
            let mut tape = spare.reset();
            fill_tape_padded(&mut scratch, line.len(), &mut buffers, &mut tape).expect("valid JSON");
            spare = tape.reset();
        }
    }
    cpu("/proc/self/stat") - before
}

fn pipeline(block: &Arc<Vec<u8>>, mode: &str) -> (f64, Duration) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let fields: Vec<String> =
        Lines::schema().fields.iter().map(|(n, t)| format!("{n:?}: {}", yaml(t))).collect();
    let yaml = format!(
        "data_dir: {:?}\napi: off\nsources:\n  in: {{ type: tcp, listen: \"127.0.0.1:{port}\", decoder: json, \
         buffer: {{ mode: {mode} }}, schema: {{ fields: {{ {} }} }} }}\nsinks:\n  out: {{ type: blackhole, from: [in] }}\n",
        dir.path().join("data"),
        fields.join(", ")
    );
    let file: PathBuf = dir.path().join("bench.yaml");
    fs::write(&file, yaml).expect("the folder is ours");
    let cx = PlanContext { compiler: Arc::new(SqlCompiler::new()), working_dir: dir.path().to_owned() };
    let (files, plan) = config::load(&[file], &cx);
    let plan = plan.unwrap_or_else(|errors| panic!("{}", config::report::render(&files, &errors, false)));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let metrics = Arc::new(Metrics::new());
        let running = topology::start(plan, Arc::clone(&metrics), Stand::default()).await.expect("it starts");
        let (before, started) = (cpu("/proc/self/stat"), Instant::now());
        let sender = send(format!("127.0.0.1:{port}"), Arc::clone(block));
        let rows = metrics.sink_rows.with_label_values(&["out"]);
        while rows.get() < EVENTS {
            assert!(
                started.elapsed() < Duration::from_secs(300),
                "{} of {EVENTS} events arrived",
                rows.get()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let took = started.elapsed();
        let sent = sender.join().expect("the sender ends");
        let used = cpu("/proc/self/stat") - before - sent;
        running.view().shutdown.cancel();
        running.wait().await.expect("it ends");
        (used, took)
    })
}

fn yaml(field: &logdrive_schemas::FieldType) -> String {
    use logdrive_schemas::FieldType;
    match field {
        FieldType::Boolean => "boolean".into(),
        FieldType::Decimal(p, s) => format!("\"decimal({p},{s})\""),
        FieldType::Float64 => "float64".into(),
        FieldType::GeoPoint => "geo_point".into(),
        FieldType::Int64 => "int64".into(),
        FieldType::Ip => "ip".into(),
        FieldType::List(item) => format!("\"list<{}>\"", yaml(item)),
        FieldType::Object(fields) => {
            let fields: Vec<String> = fields.iter().map(|(n, t)| format!("{n:?}: {}", yaml(t))).collect();
            format!("{{ {} }}", fields.join(", "))
        }
        FieldType::String => "string".into(),
        FieldType::Timestamp => "timestamp".into(),
    }
}

fn main() {
    // `cargo test` runs benches to see that they work: there is nothing to measure then.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let mut lines = Lines::new(7);
    let mut block = String::new();
    for _ in 0..BLOCK {
        lines.write(&mut block);
        block.push('\n');
    }
    let block = Arc::new(block.into_bytes());
    let per_million = 1e6 / EVENTS as f64;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{EVENTS} events of {} bytes; CPU-seconds per million events", block.len() / BLOCK)
        .expect("stdout");
    for round in 1..=ROUNDS {
        let (discard, tape) = (discard(&block) * per_million, tape(&block) * per_million);
        let (disk, disk_took) = pipeline(&block, "disk");
        let (memory, memory_took) = pipeline(&block, "memory");
        let rate = |took: Duration| EVENTS as f64 / took.as_secs_f64() / 1e3;
        writeln!(
            out,
            "round {round}: tcp discard {discard:.2}  tape {tape:.2}  tcp→json→blackhole disk {:.2} ({:.0}k/s)  memory {:.2} ({:.0}k/s)",
            disk * per_million,
            rate(disk_took),
            memory * per_million,
            rate(memory_took)
        )
        .expect("stdout");
    }
}
