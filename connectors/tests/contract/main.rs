//! The contract of every registered connector: its documented example builds, a key that it has not is refused, and
//! `docs/connectors.md`, which is made from the registries, is fresh.
//!
//! `LOGDRIVE_UPDATE_DOCS=1 cargo test --workspace --test contract` writes it.

#![cfg(all(feature = "kafka", feature = "mongodb", feature = "mqtt"))]
#![allow(clippy::unwrap_used, reason = "a test, helpers included")]

mod evidence;
mod reference;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use logdrive_connectors::{ConnectorContext, DECODERS, Demand, Metrics, SINKS, SOURCES, SourceKind};
use logdrive_schemas::component::{Key, Limits, Node, NodeKind, Scalar, Span};
use tokio_util::sync::CancellationToken;

use self::evidence::EVIDENCE;

/// Keys of an example that belong to the plan.
const PLAN_KEYS: &[&str] = &["type", "from", "where", "queue", "decoder", "schema", "buffer"];

/// A component's own keys in its example.
fn own_keys(example: &str) -> Node {
    let mut node = Node::parse(example.as_bytes(), Limits::default()).unwrap();
    for key in PLAN_KEYS {
        node.take(key);
    }
    node
}

fn with_unknown_key(mut node: Node) -> Node {
    let text = Scalar { text: "1".into(), quoted: false };
    let value = Node { kind: NodeKind::Scalar(text), span: Span::default() };
    match &mut node.kind {
        NodeKind::Map(entries) => {
            entries.push((Key { name: "no_such_key".into(), span: Span { start: 1, len: 1 } }, value))
        }
        // An example of nothing but its type.
        other => {
            let key = Key { name: "no_such_key".into(), span: Span { start: 1, len: 1 } };
            *other = NodeKind::Map(vec![(key, value)]);
        }
    }
    node
}

fn context(name: &str, dir: &Path) -> ConnectorContext {
    ConnectorContext {
        name: name.into(),
        state_dir: dir.join(name),
        metrics: Arc::new(Metrics::new()),
        shutdown: CancellationToken::new(),
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[tokio::test]
async fn documented_examples_build() {
    let dir = tempfile::tempdir().unwrap();
    for entry in SOURCES {
        let built = (entry.build)(&own_keys(entry.example), &context(entry.name, dir.path()));
        let is_log = match built.unwrap_or_else(|errors| panic!("source {}: {errors:?}", entry.name)) {
            SourceKind::Log(_) => true,
            SourceKind::Listener(_) => false,
        };
        let claimed = EVIDENCE.iter().find(|e| (e.kind, e.name) == ("source", entry.name)).unwrap();
        assert_eq!(claimed.has_log, is_log, "source {}", entry.name);
    }
    for entry in SINKS {
        let built = (entry.build)(&own_keys(entry.example), &context(entry.name, dir.path()));
        assert!(built.is_ok(), "sink {}: {:?}", entry.name, built.err());
    }
    for entry in DECODERS {
        let node = own_keys(entry.example);
        let schema =
            (entry.default_schema)(&node).unwrap_or_else(|e| panic!("decoder {}: {e:?}", entry.name));
        let built = (entry.build)(&node, &Demand { schema, validate: true });
        assert!(built.is_ok(), "decoder {}: {:?}", entry.name, built.err());
    }
}

#[test]
fn keys_that_nobody_knows_are_refused() {
    for entry in SOURCES {
        let mut errors = Vec::new();
        (entry.check)(&with_unknown_key(own_keys(entry.example)), &mut errors);
        assert!(errors.iter().any(|e| e.code == "config::unknown_key"), "source {}: {errors:?}", entry.name);
    }
    for entry in SINKS {
        let mut errors = Vec::new();
        (entry.check)(&with_unknown_key(own_keys(entry.example)), &mut errors);
        assert!(errors.iter().any(|e| e.code == "config::unknown_key"), "sink {}: {errors:?}", entry.name);
    }
    for entry in DECODERS {
        let errors = (entry.default_schema)(&with_unknown_key(own_keys(entry.example))).unwrap_err();
        assert!(errors.iter().any(|e| e.code == "config::unknown_key"), "decoder {}: {errors:?}", entry.name);
    }
}

/// A claim in the table names the tests that show it; they must be there.
#[test]
fn what_is_claimed_is_tested() {
    let names = |kind| {
        let mut names: Vec<_> = EVIDENCE.iter().filter(|e| e.kind == kind).map(|e| e.name).collect();
        names.sort_unstable();
        names
    };
    let mut sources: Vec<_> = SOURCES.iter().map(|entry| entry.name).collect();
    let mut sinks: Vec<_> = SINKS.iter().map(|entry| entry.name).collect();
    sources.sort_unstable();
    sinks.sort_unstable();
    assert_eq!((names("source"), names("sink")), (sources, sinks));
    for evidence in EVIDENCE {
        for test in evidence.tests {
            let (file, function) = test.split_once("::").unwrap_or((test, ""));
            let text = std::fs::read_to_string(repository().join(file));
            let text = text.unwrap_or_else(|e| panic!("{} {}: {file}: {e}", evidence.kind, evidence.name));
            assert!(text.contains(&format!("fn {function}")), "{} {}: {test}", evidence.kind, evidence.name);
        }
    }
}

#[test]
fn the_reference_is_fresh() {
    let path = repository().join("docs/connectors.md");
    let text = reference::write();
    if std::env::var_os("LOGDRIVE_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == text,
        "docs/connectors.md is not what the registries say: LOGDRIVE_UPDATE_DOCS=1 writes it"
    );
}
