//! `logdrive test`: runs the `tests:` of configuration files through the real dataflow, with messages from the file
//! in place of sources and a list in place of sinks.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::buffer::Buffer;
use async_trait::async_trait;
use logdrive_connectors::document::Documents;
use logdrive_connectors::sink::FlushPolicy;
use logdrive_connectors::{Budget, ConnectorError, Guarantee, Metrics, SINKS, Sink, Source};
use logdrive_schemas::component::{Node, NodeKind, Span};
use logdrive_schemas::{Batch, Chunk, Epoch, MessageRange, Partition, Position};
use serde_json::Value;

use super::{Outcome, PipelineFiles, load, print, runtime, with_causes};
use crate::checkpoint::Place;
use crate::config::{Files, Input, Plan, SinkPlan, TestCase};
use crate::topology::{self, Stand};

/// How many tests run at once.
const PARALLEL: usize = 8;

pub(super) fn run(files: &PipelineFiles) -> Outcome {
    let (sources, plan) = load(files)?;
    if plan.tests.is_empty() {
        return Err("there are no `tests:` in these files".into());
    }
    let color = std::io::stdout().is_terminal();
    let runtime = runtime()?;
    let (mut out, mut n_failed) = (String::new(), 0);
    for cases in (0..plan.tests.len()).collect::<Vec<_>>().chunks(PARALLEL) {
        let runs = cases.iter().map(|idx| run_case(files, *idx)).collect::<Result<Vec<_>, _>>()?;
        for (idx, result) in cases.iter().zip(runtime.block_on(futures::future::join_all(runs))) {
            let case = &plan.tests[*idx];
            match result {
                Ok(()) => writeln!(out, "{} {}", paint("pass", "32", color), case.name),
                Err(why) => {
                    n_failed += 1;
                    let place = place(&sources, case);
                    writeln!(out, "{} {} ({place})\n{why}", paint("FAIL", "31", color), case.name)
                }
            }
            .expect("writing to a string cannot fail");
        }
    }
    let n_passed = plan.tests.len() - n_failed;
    writeln!(out, "{n_passed} passed, {n_failed} failed").expect("writing to a string cannot fail");
    print(&out)?;
    Ok(if n_failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn paint(text: &str, code: &str, color: bool) -> String {
    if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

fn place(files: &Files, case: &TestCase) -> String {
    let place = files.place(case.span);
    place.map_or_else(String::new, |place| format!("{}:{}", place.path.display(), place.line))
}

/// Prepares one test: a plan of its own, in a folder of its own.
fn run_case(
    files: &PipelineFiles,
    idx: usize,
) -> Result<impl Future<Output = Result<(), String>> + use<>, String> {
    let (_, mut plan) = load(files)?;
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    plan.data_dir = dir.path().to_owned();
    plan.checkpoints = Place::Folder(dir.path().join("checkpoints"));
    plan.workers = 1;
    let case = plan.tests.swap_remove(idx);
    let mut stand = Stand::default();
    for source in 0..plan.sources.len() {
        let messages =
            case.input.iter().find(|(s, _)| *s == source).map(|(_, m)| m.clone()).unwrap_or_default();
        let name = Arc::clone(&plan.sources[source].name);
        stand.sources.insert(source, Box::new(Listed { name, messages, given: false }));
    }
    let mut watched: Vec<Input> = case.expect.iter().map(|(input, _)| *input).collect();
    watched.sort_unstable();
    watched.dedup();
    // Rejects nobody expects would make a failing test a riddle, so they are always watched; and they come last.
    watched.retain(|input| *input != Input::Rejects);
    watched.push(Input::Rejects);
    plan.sinks = watched.iter().map(|input| capture_plan(&plan, *input)).collect();
    let captured: Vec<Captured> = watched.iter().map(|_| Captured::default()).collect();
    for (sink, rows) in captured.iter().enumerate() {
        stand.sinks.insert(sink, Box::new(Capture(Arc::clone(rows))));
    }
    Ok(async move {
        let running =
            topology::start(plan, Arc::new(Metrics::new()), stand).await.map_err(|e| with_causes(&e))?;
        running.wait().await.map_err(|e| with_causes(&e))?;
        drop(dir);
        let rows = |input: Input| {
            let at = watched.iter().position(|w| *w == input).unwrap_or(0);
            captured[at].lock().unwrap_or_else(PoisonError::into_inner).clone()
        };
        let mut why = String::new();
        for (input, expected) in &case.expect {
            compare(expected, &rows(*input), &mut why);
        }
        if why.is_empty() {
            return Ok(());
        }
        for reject in rows(Input::Rejects) {
            writeln!(why, "    reject: {reject}").expect("writing to a string cannot fail");
        }
        Err(why)
    })
}

fn capture_plan(plan: &Plan, input: Input) -> SinkPlan {
    let n_lanes = match input {
        Input::Stream(idx) => plan.streams[idx].lanes.len(),
        _ => 1,
    };
    SinkPlan {
        name: format!("expect {}", plan.name(input)).into(),
        entry: SINKS.iter().find(|entry| entry.name == "blackhole").expect("a sink that every build has"),
        node: Node { kind: NodeKind::Map(Vec::new()), span: Span::default() },
        inputs: vec![input],
        steps: (0..n_lanes).map(|_| Vec::new()).collect(),
        guarantee: Guarantee::BestEffort,
        queue: crate::config::QueueConfig::default(),
    }
}

/// Every expected document must be there, in order, with the fields that are expected; others may be there too.
fn compare(expected: &[Value], actual: &[Value], why: &mut String) {
    if expected.len() != actual.len() {
        writeln!(why, "    expected {} rows, found {}", expected.len(), actual.len())
            .expect("writing to a string cannot fail");
    }
    for (idx, expected) in expected.iter().enumerate() {
        match actual.get(idx) {
            Some(actual) if contains(actual, expected) => {}
            Some(actual) => writeln!(why, "    row {idx}: expected {expected}\n           found {actual}")
                .expect("writing to a string cannot fail"),
            None => {}
        }
    }
    for extra in actual.iter().skip(expected.len()) {
        writeln!(why, "    not expected: {extra}").expect("writing to a string cannot fail");
    }
}

fn contains(actual: &Value, expected: &Value) -> bool {
    match (actual, expected) {
        (Value::Object(actual), Value::Object(expected)) => expected.iter().all(|(key, value)| {
            // `field: null` says that the field is not there.
            actual.get(key).map_or(value.is_null(), |actual| contains(actual, value))
        }),
        (Value::Array(actual), Value::Array(expected)) => {
            actual.len() == expected.len() && actual.iter().zip(expected).all(|(a, e)| contains(a, e))
        }
        (Value::Number(actual), Value::Number(expected)) => actual.as_f64() == expected.as_f64(),
        _ => actual == expected,
    }
}

/// Messages from the test, once.
struct Listed {
    name: Arc<str>,
    messages: Vec<String>,
    given: bool,
}

#[async_trait]
impl Source for Listed {
    async fn connect(&mut self, _: &[Position]) -> Result<(), ConnectorError> {
        Ok(())
    }

    async fn recv(&mut self, _: Budget) -> Result<Chunk, ConnectorError> {
        if std::mem::replace(&mut self.given, true) || self.messages.is_empty() {
            return Err(ConnectorError::End);
        }
        let mut data = Vec::new();
        let mut messages = Vec::new();
        for message in &self.messages {
            messages.push(MessageRange { start: data.len() as u32, len: message.len() as u32 });
            data.extend_from_slice(message.as_bytes());
            data.push(b'\n');
        }
        let n_messages = messages.len() as u64;
        Ok(Chunk {
            source: Arc::clone(&self.name),
            partition: Partition(0),
            data: Buffer::from_vec(data),
            messages,
            offsets: (0..n_messages).collect(),
            received_at: topology::now_micros(),
            peer: None,
            attributes: None,
            next_offset: n_messages,
        })
    }

    async fn commit(&mut self, _: Position) -> Result<(), ConnectorError> {
        Ok(())
    }
}

type Captured = Arc<Mutex<Vec<Value>>>;

/// Keeps documents instead of sending them.
struct Capture(Captured);

#[async_trait]
impl Sink for Capture {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        let documents = Documents::new(batch);
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for idx in 0..batch.num_rows() {
            let mut document = Vec::new();
            documents.write(idx, &mut document);
            let text = || Value::String(String::from_utf8_lossy(&document).into_owned());
            rows.push(serde_json::from_slice(&document).unwrap_or_else(|_| text()));
        }
        Ok(None)
    }

    async fn flush(&mut self, _: Epoch) -> Result<Option<Batch>, ConnectorError> {
        Ok(None)
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy { bytes_max: 1, age_max: Duration::ZERO }
    }
}
