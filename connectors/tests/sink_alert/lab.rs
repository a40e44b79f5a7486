//! Findings, and a sink in a folder of its own.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, BinaryViewArray, BooleanArray, RecordBatch, StringViewArray, UInt64Array};
use logdrive_connectors::{ConnectorContext, Metrics, SINKS, Sink};
use logdrive_schemas::component::{Limits, Node};
use logdrive_schemas::{Batch, Epoch, Layout, Origin, Partition};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::server::{Reaction, Request, Server};

/// One finding.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) id: String,
    pub(crate) entity: String,
    pub(crate) tenant: &'static str,
    pub(crate) severity: &'static str,
    /// What the `where` of the first route says.
    pub(crate) condition: bool,
}

pub(crate) fn finding(id: &str, entity: &str, severity: &'static str) -> Finding {
    Finding { id: id.into(), entity: entity.into(), tenant: "acme", severity, condition: true }
}

/// Rows with the columns that a plan computes for the sink.
pub(crate) fn batch(findings: &[Finding]) -> Batch {
    let text = |of: &dyn Fn(&Finding) -> String| -> ArrayRef {
        Arc::new(StringViewArray::from_iter_values(findings.iter().map(of)))
    };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", text(&|f| f.id.clone())),
        ("tenant", text(&|f| f.tenant.into())),
        ("_alert_id", text(&|f| f.id.clone())),
        ("_alert_detector", text(&|_| "card_testing".into())),
        ("_alert_entity", text(&|f| f.entity.clone())),
        ("_alert_severity", text(&|f| f.severity.into())),
        ("_alert_group_0", text(&|_| "card_testing".into())),
        ("_alert_group_1", text(&|f| f.entity.clone())),
        ("_alert_group_2", text(&|f| f.tenant.into())),
        ("_alert_route_0", Arc::new(findings.iter().map(|f| Some(f.condition)).collect::<BooleanArray>())),
    ];
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    let origin = Origin {
        source: "card_testing".into(),
        partition: Partition(0),
        ordered: false,
        received_at: 0,
        peer: None,
    };
    let original = BinaryViewArray::from_iter_values(findings.iter().map(|_| b""));
    let offsets = UInt64Array::from_iter_values(0..findings.len() as u64);
    Batch::new(rows, original, offsets, Arc::new(origin), Arc::new(Layout::Columns)).unwrap()
}

/// A sink called `alerts`, as a pipeline would build it.
pub(crate) fn sink(dir: &Path, yaml: &str) -> (Box<dyn Sink>, Arc<Metrics>) {
    let cx = ConnectorContext {
        name: "alerts".into(),
        state_dir: dir.join("alerts"),
        metrics: Arc::new(Metrics::new()),
        shutdown: CancellationToken::new(),
    };
    let node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
    let entry = SINKS.iter().find(|entry| entry.name == "alert").unwrap();
    match (entry.build)(&node, &cx) {
        Ok(sink) => (sink, cx.metrics),
        Err(errors) => panic!("{errors:?}"),
    }
}

/// Writes and flushes, which waits for no channel.
pub(crate) async fn give(sink: &mut dyn Sink, findings: &[Finding]) {
    let started = Instant::now();
    assert!(sink.write(&batch(findings)).await.unwrap().is_none());
    assert!(sink.flush(Epoch(1)).await.unwrap().is_none());
    assert!(started.elapsed() < Duration::from_secs(5), "a flush waits for a channel");
}

/// Looks until it is so.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A far end that keeps what it was sent and answered with 2xx, and lets a function say what it answers.
pub(crate) struct FarEnd {
    pub(crate) server: Server,
    taken: Arc<Mutex<Vec<Request>>>,
}

impl FarEnd {
    pub(crate) async fn start(mut answer: impl FnMut(&Request) -> u16 + Send + 'static) -> Self {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&taken);
        let server = Server::start(move |request| {
            let status = answer(request);
            if status < 300 {
                kept.lock().unwrap().push(request.clone());
            }
            Reaction::status(status)
        });
        Self { server: server.await, taken }
    }

    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    pub(crate) fn taken(&self) -> Vec<Request> {
        self.taken.lock().unwrap().clone()
    }

    /// What was taken at an address.
    pub(crate) fn bodies(&self, target: &str) -> Vec<Value> {
        let taken = self.taken();
        let there = taken.iter().filter(|request| request.target == target);
        there.map(|request| serde_json::from_slice(&request.body).unwrap()).collect()
    }
}
