//! Faults inside: a worker that panics and one that never comes back end the process; a sink that is down does not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "shared with other tests")]
mod e2e_support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use e2e_support::{Lab, free_port, http};
use logdrive::config::{self, PlanContext};
use logdrive::topology::{self, Stand};
use logdrive_connectors::Metrics;
use logdrive_operators::{BatchStream, Batches, Detector, WorkerContext};
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

/// Where the child finds its folder, and which fault it is to have.
const DIR: &str = "LOGDRIVE_TEST_DIR";
const FAULT: &str = "LOGDRIVE_TEST_FAULT";

/// Does what no detector should at the first row.
#[derive(Clone, Debug)]
struct Faulty {
    panics: bool,
}

impl Detector for Faulty {
    fn reads(&self) -> Vec<String> {
        Vec::new()
    }

    fn operators(&self) -> Vec<String> {
        Vec::new()
    }

    fn fingerprints(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    fn attach<'scope>(
        &self,
        input: BatchStream<'scope>,
        _: &WorkerContext,
    ) -> (BatchStream<'scope>, BatchStream<'scope>) {
        let panics = self.panics;
        let mut builder = OperatorBuilder::new("faulty".to_owned(), input.scope());
        let mut input = builder.new_input(input, Pipeline);
        let (_, findings) = builder.new_output::<Batches>();
        let (_, rejects) = builder.new_output::<Batches>();
        builder.build(move |_| {
            move |_| {
                input.for_each(|_, batches| {
                    assert!(!panics || batches.0.is_empty(), "a fault of this test");
                    while !batches.0.is_empty() {
                        std::thread::park();
                    }
                });
            }
        });
        (findings, rejects)
    }
}

/// Runs a pipeline with a fault; comes back only if the fault does nothing.
fn child(dir: &Path, panics: bool) {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    std::fs::write(dir.join("in.ndjson"), "{\"card\":\"a\",\"@timestamp\":1700000000000}\n").unwrap();
    let yaml = "
data_dir: data
workers: 2
api: off
stall_timeout: 1s
sources:
  in: { type: file, paths: [in.ndjson], follow: true, schema: { fields: { card: string, \"@timestamp\": timestamp } } }
detectors: { fast: { type: velocity, from: [in], by: [card], window: 1m, threshold: 1000 } }
sinks: { out: { type: file, from: [fast], path: out.ndjson } }
";
    std::fs::write(dir.join("pipeline.yaml"), yaml).unwrap();
    std::env::set_current_dir(dir).unwrap();
    let cx = PlanContext { working_dir: dir.to_owned() };
    let (_, plan) = config::load(&["pipeline.yaml".into()], &cx);
    let mut plan = plan.unwrap_or_else(|errors| panic!("{errors:?}"));
    plan.detectors[0].detector = Arc::new(Faulty { panics });
    topology::exit_on_panic();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let running = topology::start(plan, Arc::new(Metrics::new()), Stand::default()).await.unwrap();
        tokio::time::timeout(Duration::from_secs(50), running.wait()).await.ok();
    });
}

/// The code and the log of a child with a fault.
fn end_of_child(test: &str, fault: &str) -> (Option<i32>, String) {
    if let Ok(dir) = std::env::var(DIR) {
        child(Path::new(&dir), std::env::var(FAULT).unwrap() == "panic");
        std::process::exit(0);
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(DIR, dir.path())
        .env(FAULT, fault)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("the child does not end:\n{}", std::fs::read_to_string(log).unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    (status.code(), std::fs::read_to_string(log).unwrap())
}

#[test]
fn a_panic_in_one_worker_ends_the_process() {
    let (code, log) = end_of_child("a_panic_in_one_worker_ends_the_process", "panic");
    assert_eq!(code, Some(101), "{log}");
    assert!(log.contains("a fault of this test"), "{log}");
}

#[test]
fn a_dataflow_that_stands_still_ends_the_process_and_says_where() {
    let (code, log) = end_of_child("a_dataflow_that_stands_still_ends_the_process_and_says_where", "stall");
    assert_eq!(code, Some(102), "{log}");
    assert!(log.contains("The dataflow stands still"), "{log}");
    assert!(log.contains("has been in one step for"), "{log}");
    assert!(log.contains("detector fast ") && log.contains(" on worker 1"), "{log}");
}

#[test]
fn a_sink_that_is_down_is_no_stall() {
    let port = free_port();
    let nobody = free_port();
    let lab = Lab::new(&format!(
        "
stall_timeout: 500ms
sources: {{ in: {{ type: http, listen: \"127.0.0.1:{port}\", schema: {{ fields: {{ n: int64 }} }} }} }}
views: {{ sums: {{ sql: \"SELECT n % 2 AS odd, count(*) AS n FROM in GROUP BY n % 2\", unbounded: true }} }}
sinks:
  down: {{ type: http, from: [in, sums], endpoint: \"http://127.0.0.1:{nobody}/\" }}
  refused: {{ type: file, from: [rejects], path: refused.ndjson }}
"
    ));
    let pipeline = lab.run();
    assert_eq!(http(port, "POST", "/", "application/x-ndjson", "{\"n\":1}\nno json\n").0, 200);
    e2e_support::until("the sink has failed some times", || {
        pipeline.metric("logdrive_sink_errors_total", "down").is_some_and(|n| n >= 4.0)
    });
    assert!(!pipeline.log().contains("stands still"), "{}", pipeline.log());
    assert_eq!(pipeline.get("/health").0, 200);
    pipeline.kill();
}
