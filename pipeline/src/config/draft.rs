//! The configuration's sections, read but not yet connected: every name and key checked, no types yet.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::FieldRef;
use logdrive_connectors::buffer::BufferConfig;
use logdrive_connectors::{DECODERS, DecoderEntry, SINKS, SOURCES, SinkEntry, SourceEntry};
use logdrive_operators::{DETECTORS, DetectorEntry, STEPS, StepEntry};
use logdrive_queries::Functions;
use logdrive_schemas::component::{ConfigError, Key, Node, NodeKind, Scalar, Span, nearest, parse_as};
use logdrive_schemas::{FieldType, RowSchema, catalogue};

use super::checkpoints;
use super::function;
use super::plan::QueueConfig;
use super::postgres::{self, PostgresPlan};
use super::view::{ViewConfig, ViewDraft};
use crate::checkpoint::Place;

/// The keys of a file's top level.
const SECTIONS: &[&str] = &[
    "api",
    "checkpoints",
    "data_dir",
    "detectors",
    "drain_timeout",
    "functions",
    "in_flight_max_bytes",
    "postgres",
    "sinks",
    "sources",
    "stall_timeout",
    "streams",
    "tests",
    "views",
    "workers",
];

/// A name in a `from`.
#[derive(Clone, Debug)]
pub(super) struct Reference {
    pub(super) name: String,
    pub(super) span: Span,
}

pub(super) struct SourceDraft {
    pub(super) key: Key,
    pub(super) entry: &'static SourceEntry,
    pub(super) node: Node,
    pub(super) decoder: &'static DecoderEntry,
    pub(super) decoder_node: Node,
    pub(super) schema: RowSchema,
    pub(super) attributes: Option<AttributesDraft>,
    pub(super) buffer: BufferConfig,
}

/// The column of what the source says of each message beside its bytes.
pub(super) struct AttributesDraft {
    pub(super) field: FieldRef,
    /// Where its name stands.
    pub(super) span: Span,
}

pub(super) struct StreamDraft {
    pub(super) key: Key,
    pub(super) from: Vec<Reference>,
    pub(super) steps: Vec<(&'static StepEntry, Node)>,
}

pub(super) struct DetectorDraft {
    pub(super) key: Key,
    pub(super) from: Vec<Reference>,
    pub(super) entry: &'static DetectorEntry,
    pub(super) node: Node,
}

pub(super) struct SinkDraft {
    pub(super) key: Key,
    pub(super) from: Vec<Reference>,
    pub(super) entry: &'static SinkEntry,
    pub(super) filter: Option<Node>,
    pub(super) node: Node,
    pub(super) queue: QueueConfig,
}

/// Everything a configuration says.
pub(super) struct Draft {
    pub(super) data_dir: PathBuf,
    pub(super) checkpoints: Place,
    pub(super) workers: usize,
    pub(super) api: Option<SocketAddr>,
    pub(super) postgres: Option<PostgresPlan>,
    pub(super) in_flight_max_bytes: u64,
    pub(super) drain_timeout: Duration,
    pub(super) stall_timeout: Duration,
    pub(super) sources: Vec<SourceDraft>,
    pub(super) streams: Vec<StreamDraft>,
    pub(super) detectors: Vec<DetectorDraft>,
    pub(super) functions: Functions,
    /// Whether one of them is wrong.
    pub(super) functions_broken: bool,
    pub(super) views: Vec<ViewDraft>,
    pub(super) sinks: Vec<SinkDraft>,
    pub(super) tests: Vec<Node>,
    /// Names of sources, streams, detectors and views that are there, but wrong: what reads them has no error of its own.
    pub(super) broken: BTreeSet<String>,
}

pub(super) fn read(root: &Node, errors: &mut Vec<ConfigError>) -> Draft {
    for (key, _) in root.as_map().unwrap_or_default() {
        if !SECTIONS.contains(&key.name.as_str()) {
            errors.push(ConfigError::unknown_key(key, "the top level", SECTIONS));
        }
    }
    let data_dir: PathBuf = root.get("data_dir").and_then(Node::as_str).unwrap_or("./data").into();
    let mut draft = Draft {
        checkpoints: checkpoints::read(root, &data_dir, errors),
        data_dir,
        workers: std::thread::available_parallelism().map_or(1, usize::from),
        api: Some(SocketAddr::from(([127, 0, 0, 1], 8686))),
        postgres: None,
        in_flight_max_bytes: 256 << 20,
        drain_timeout: Duration::from_secs(30),
        stall_timeout: Duration::from_secs(300),
        sources: Vec::new(),
        streams: Vec::new(),
        detectors: Vec::new(),
        functions: Functions::default(),
        functions_broken: false,
        views: Vec::new(),
        sinks: Vec::new(),
        tests: Vec::new(),
        broken: BTreeSet::new(),
    };
    read_settings(root, &mut draft, errors);
    for (key, node) in entries(root, "sources", errors) {
        match read_source(key, node, errors) {
            Some(source) => draft.sources.push(source),
            None => _ = draft.broken.insert(key.name.clone()),
        }
    }
    for (key, node) in entries(root, "streams", errors) {
        let n_before = draft.streams.len();
        read_stream(key, node, &mut draft.streams, errors);
        if draft.streams.len() == n_before {
            draft.broken.insert(key.name.clone());
        }
    }
    for (key, node) in entries(root, "detectors", errors) {
        match read_detector(key, node, errors) {
            Some(detector) => draft.detectors.push(detector),
            None => _ = draft.broken.insert(key.name.clone()),
        }
    }
    for (key, node) in entries(root, "functions", errors) {
        draft.functions_broken |= !function::read(key, node, &mut draft.functions, errors);
    }
    for (key, node) in entries(root, "views", errors) {
        match parse_as::<ViewConfig>(node, "a view", errors) {
            Some(config) => {
                let (key, node, functions) = (key.clone(), node.clone(), draft.functions.clone());
                draft.views.push(ViewDraft { key, node, config, functions });
            }
            None => _ = draft.broken.insert(key.name.clone()),
        }
    }
    for (key, node) in entries(root, "sinks", errors) {
        draft.sinks.extend(read_sink(key, node, errors));
    }
    match root.get("tests").map(|node| &node.kind) {
        Some(NodeKind::Seq(tests)) => draft.tests.clone_from(tests),
        Some(_) => errors.push(ConfigError::wrong_type(root.get("tests").expect("just found"), "a list")),
        None => {}
    }
    draft
}

fn read_settings(root: &Node, draft: &mut Draft, errors: &mut Vec<ConfigError>) {
    if let Some(node) = root.get("workers") {
        match node.as_str().and_then(|s| s.parse().ok()).filter(|n| (1..=1024).contains(n)) {
            Some(n) => draft.workers = n,
            None => errors.push(ConfigError::wrong_type(node, "a number from 1 to 1024")),
        }
    }
    if let Some(node) = root.get("in_flight_max_bytes") {
        match node.as_str().and_then(|s| s.parse::<bytesize::ByteSize>().ok()) {
            Some(n) => draft.in_flight_max_bytes = n.as_u64().max(1 << 20),
            None => errors.push(ConfigError::wrong_type(node, "a size such as `256MiB`")),
        }
    }
    for (key, timeout) in
        [("drain_timeout", &mut draft.drain_timeout), ("stall_timeout", &mut draft.stall_timeout)]
    {
        let Some(node) = root.get(key) else { continue };
        match node.as_str().and_then(|s| humantime::parse_duration(s).ok()) {
            Some(found) => *timeout = found,
            None => errors.push(ConfigError::wrong_type(node, "a duration such as `30s`")),
        }
    }
    draft.postgres = root.get("postgres").and_then(|node| postgres::read(node, errors));
    let Some(node) = root.get("api") else { return };
    match &node.kind {
        NodeKind::Scalar(s) if s.text == "off" || s.text == "false" => draft.api = None,
        NodeKind::Map(entries) => {
            for (key, value) in entries {
                match (key.name.as_str(), value.as_str().and_then(|s| s.parse().ok())) {
                    ("listen", Some(listen)) => draft.api = Some(listen),
                    ("listen", None) => {
                        errors.push(ConfigError::wrong_type(value, "an address such as `127.0.0.1:8686`"));
                    }
                    _ => errors.push(ConfigError::unknown_key(key, "`api`", &["listen"])),
                }
            }
        }
        _ => errors.push(ConfigError::wrong_type(node, "`off` or a map with `listen`")),
    }
}

/// The entries of a section, with well-formed names.
fn entries<'a>(root: &'a Node, section: &str, errors: &mut Vec<ConfigError>) -> Vec<(&'a Key, &'a Node)> {
    let Some(node) = root.get(section).filter(|node| !node.is_null()) else { return Vec::new() };
    let Some(entries) = node.as_map() else {
        errors.push(ConfigError::wrong_type(node, "a map of names"));
        return Vec::new();
    };
    for (key, _) in entries {
        let first_ok = key.name.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
        let rest_ok = key.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        if !first_ok || !rest_ok || key.name.len() > 64 || key.name == "rejects" {
            let message = format!("`{}` cannot be a name", key.name);
            errors.push(
                ConfigError::new("config::invalid_name", key.span, message)
                    .with_help("names start with a letter; letters, digits, `_` and `-` follow, 64 at most; `rejects` is taken"),
            );
        }
    }
    entries.iter().map(|(k, v)| (k, v)).collect()
}

/// Takes `type` out and finds its registry entry.
fn take_type<T>(
    key: &Key,
    node: &mut Node,
    kind: &str,
    entries: &'static [T],
    name: fn(&T) -> &'static str,
    errors: &mut Vec<ConfigError>,
) -> Option<&'static T> {
    if node.as_map().is_none() {
        errors.push(ConfigError::wrong_type(node, "a map with `type`"));
        return None;
    }
    let Some(type_node) = node.take("type") else {
        let message = format!("{kind} `{}` has no `type`", key.name);
        let names: Vec<_> = entries.iter().map(name).collect();
        let help = format!("types: {}", names.join(", "));
        errors.push(ConfigError::new("config::missing_key", key.span, message).with_help(help));
        return None;
    };
    find(&type_node, kind, entries, name, errors)
}

fn find<T>(
    node: &Node,
    kind: &str,
    entries: &'static [T],
    name: fn(&T) -> &'static str,
    errors: &mut Vec<ConfigError>,
) -> Option<&'static T> {
    let Some(text) = node.as_str() else {
        errors.push(ConfigError::wrong_type(node, &format!("the name of a {kind} type")));
        return None;
    };
    let found = entries.iter().find(|entry| name(entry) == text);
    if found.is_none() {
        let names: Vec<_> = entries.iter().map(name).collect();
        errors.push(ConfigError::unknown_name(
            "config::unknown_type",
            node.span,
            "type",
            text,
            &format!("{kind}s"),
            &names,
        ));
    }
    found
}

/// Where a key is unknown to a component, names the nearest of those that its whole section has: the component knows
/// only its own.
pub(super) fn complete_keys(node: &Node, section: &[&str], errors: &mut [ConfigError]) {
    for error in errors.iter_mut().filter(|error| error.code == "config::unknown_key") {
        let key =
            node.as_map().unwrap_or_default().iter().map(|(key, _)| key).find(|key| key.span == error.span);
        let Some(key) = key else { continue };
        match (nearest(&key.name, section), &mut error.help) {
            (Some(near), help) => *help = Some(format!("did you mean `{near}`?")),
            (None, Some(help)) if help.starts_with("valid: ") => help.extend([", ", &section.join(", ")]),
            (None, _) => {}
        }
    }
}

fn read_source(key: &Key, node: &Node, errors: &mut Vec<ConfigError>) -> Option<SourceDraft> {
    let mut node = node.clone();
    let entry = take_type(key, &mut node, "source", SOURCES, |e| e.name, errors)?;
    let buffer = match node.take("buffer") {
        Some(buffer) => parse_as::<BufferConfig>(&buffer, "buffer", errors).unwrap_or_default(),
        None => BufferConfig::default(),
    };
    let mut decoder_node = node.take("decoder").unwrap_or_else(|| scalar(entry.decoder, node.span));
    let decoder = match decoder_node.kind {
        NodeKind::Scalar(_) => {
            let found = find(&decoder_node, "decoder", DECODERS, |e| e.name, errors);
            decoder_node = Node { kind: NodeKind::Map(Vec::new()), span: decoder_node.span };
            found
        }
        _ => take_type(key, &mut decoder_node, "decoder", DECODERS, |e| e.name, errors),
    };
    let schema = node.take("schema");
    let n_before = errors.len();
    (entry.check)(&node, errors);
    complete_keys(&node, &["buffer", "decoder", "schema"], &mut errors[n_before..]);
    let decoder = decoder?;
    let schema = match schema {
        Some(node) => read_schema(&node, errors)?,
        None => (decoder.default_schema)(&decoder_node).map_err(|e| errors.extend(e)).ok()?,
    };
    let attributes = (entry.attributes)(&node).map(|(name, fields)| AttributesDraft {
        field: Arc::new(FieldType::Object(fields.fields).field(&name)),
        span: node.get("metadata").unwrap_or(&node).span,
    });
    Some(SourceDraft { key: key.clone(), entry, node, decoder, decoder_node, schema, attributes, buffer })
}

fn read_schema(node: &Node, errors: &mut Vec<ConfigError>) -> Option<RowSchema> {
    let Some(name) = node.as_str() else { return RowSchema::parse(node, errors) };
    let found = catalogue::find(name);
    if found.is_none() {
        errors.push(ConfigError::unknown_name(
            "config::unknown_schema",
            node.span,
            "schema",
            name,
            "the catalogue",
            catalogue::NAMES,
        ));
    }
    found
}

fn read_from(key: &Key, node: &mut Node, errors: &mut Vec<ConfigError>) -> Vec<Reference> {
    let Some(from) = node.take("from") else {
        let message = format!("`{}` has no `from`", key.name);
        errors.push(ConfigError::new("config::missing_key", key.span, message));
        return Vec::new();
    };
    let items = match &from.kind {
        NodeKind::Seq(items) => items.as_slice(),
        _ => std::slice::from_ref(&from),
    };
    let mut references: Vec<Reference> = Vec::with_capacity(items.len());
    for item in items {
        match item.as_str() {
            Some(name) if references.iter().any(|r| r.name == name) => {
                let message = format!("`{name}` stands twice in `from`");
                errors.push(ConfigError::new("config::duplicate_name", item.span, message));
            }
            Some(name) => references.push(Reference { name: name.into(), span: item.span }),
            None => errors.push(ConfigError::wrong_type(item, "a name")),
        }
    }
    if references.is_empty() && items.is_empty() {
        errors.push(ConfigError::wrong_type(&from, "at least one name"));
    }
    references
}

fn read_stream(key: &Key, node: &Node, streams: &mut Vec<StreamDraft>, errors: &mut Vec<ConfigError>) {
    let mut node = node.clone();
    if node.as_map().is_none() {
        errors.push(ConfigError::wrong_type(&node, "a map with `from` and `steps`"));
        return;
    }
    let from = read_from(key, &mut node, errors);
    let steps = node.take("steps");
    for (key, _) in node.as_map().unwrap_or_default() {
        errors.push(ConfigError::unknown_key(key, "a stream", &["from", "steps"]));
    }
    let mut draft = StreamDraft { key: key.clone(), from, steps: Vec::new() };
    let items = match steps.as_ref().map(|node| &node.kind) {
        None => &[],
        Some(NodeKind::Seq(items)) => items.as_slice(),
        Some(_) => {
            errors.push(ConfigError::wrong_type(steps.as_ref().expect("just matched"), "a list of steps"));
            &[]
        }
    };
    let mut routes = Vec::new();
    for (idx, item) in items.iter().enumerate() {
        let Some([(step, config)]) = item.as_map() else {
            errors.push(ConfigError::wrong_type(item, "one step, such as `where: level <> 'DEBUG'`"));
            continue;
        };
        if step.name == "route" {
            if idx + 1 < items.len() {
                let error =
                    ConfigError::new("config::invalid_value", step.span, "`route` is not the last step");
                errors.push(error.with_help("steps behind it belong in streams that read its routes"));
            }
            routes = read_routes(key, config, errors);
            continue;
        }
        match STEPS.iter().find(|entry| entry.name == step.name) {
            Some(entry) => draft.steps.push((entry, config.clone())),
            None => {
                let mut names: Vec<_> = STEPS.iter().map(|e| e.name).collect();
                names.push("route");
                errors.push(ConfigError::unknown_name(
                    "config::unknown_step",
                    step.span,
                    "step",
                    &step.name,
                    "a stream",
                    &names,
                ));
            }
        }
    }
    streams.push(draft);
    streams.append(&mut routes);
}

/// `route: { errors: "type = 'error'", rest: "true" }` makes the streams `events.errors` and `events.rest`: a row
/// goes to the first route whose condition is true, or to `events.unmatched`.
fn read_routes(stream: &Key, node: &Node, errors: &mut Vec<ConfigError>) -> Vec<StreamDraft> {
    let Some(where_step) = STEPS.iter().find(|entry| entry.name == "where") else { return Vec::new() };
    let Some(entries) = node.as_map().filter(|entries| !entries.is_empty()) else {
        errors.push(ConfigError::wrong_type(node, "a map of route names to conditions"));
        return Vec::new();
    };
    let mut streams = Vec::new();
    let mut not_before = String::new();
    let mut push = |name: &str, span, condition: String| {
        streams.push(StreamDraft {
            key: Key { name: format!("{}.{name}", stream.name), span },
            from: vec![Reference { name: stream.name.clone(), span }],
            steps: vec![(where_step, scalar(&condition, span))],
        });
    };
    for (key, value) in entries {
        let Some(condition) = value.as_str() else {
            errors.push(ConfigError::wrong_type(value, "a condition"));
            continue;
        };
        if key.name == "unmatched" {
            let message = "`unmatched` is the route of what no other route takes";
            errors.push(ConfigError::new("config::invalid_name", key.span, message));
            continue;
        }
        push(&key.name, value.span, format!("(({condition}) IS TRUE){not_before}"));
        not_before.push_str(&format!(" AND (({condition}) IS NOT TRUE)"));
    }
    push("unmatched", node.span, format!("true{not_before}"));
    streams
}

fn scalar(text: &str, span: Span) -> Node {
    Node { kind: NodeKind::Scalar(Scalar { text: text.into(), quoted: true }), span }
}

fn read_detector(key: &Key, node: &Node, errors: &mut Vec<ConfigError>) -> Option<DetectorDraft> {
    let mut node = node.clone();
    let entry = take_type(key, &mut node, "detector", DETECTORS, |e| e.name, errors)?;
    let from = read_from(key, &mut node, errors);
    Some(DetectorDraft { key: key.clone(), from, entry, node })
}

fn read_sink(key: &Key, node: &Node, errors: &mut Vec<ConfigError>) -> Option<SinkDraft> {
    let mut node = node.clone();
    let entry = take_type(key, &mut node, "sink", SINKS, |e| e.name, errors)?;
    let from = read_from(key, &mut node, errors);
    let filter = node.take("where");
    let queue = match node.take("queue") {
        Some(queue) => parse_as::<QueueConfig>(&queue, "queue", errors).unwrap_or_default(),
        None => QueueConfig::default(),
    };
    Some(SinkDraft { key: key.clone(), from, entry, filter, node, queue })
}
