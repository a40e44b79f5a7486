//! The JSON Schema of a configuration, for editors: generated from the registries, never written by hand.

use logdrive_connectors::buffer::BufferConfig;
use logdrive_connectors::{DECODERS, SINKS, SOURCES};
use logdrive_operators::{DETECTORS, STEPS};
use logdrive_schemas::catalogue;
use schemars::{Schema, schema_for};
use serde_json::{Map, Value, json};

use super::checkpoints::CheckpointsConfig;
use super::function::FunctionConfig;
use super::plan::QueueConfig;
use super::postgres::PostgresConfig;
use super::view::ViewConfig;

/// The JSON Schema (draft 2020-12) of a pipeline file.
#[must_use]
pub fn json_schema() -> Value {
    let mut defs = Map::new();
    let decoder = json!({ "anyOf": [
        { "enum": DECODERS.iter().map(|d| d.name).collect::<Vec<_>>() },
        one_of(DECODERS.iter().map(|d| component(d.name, (d.schema)(), &[], &mut defs))),
    ]});
    let schema = json!({ "anyOf": [
        { "enum": catalogue::NAMES },
        { "type": "object", "required": ["fields"], "additionalProperties": false, "properties": {
            "fields": { "type": "object" }, "event_time": { "type": "string" }, "lateness": { "type": "string" } } },
    ]});
    let buffer = inline(schema_for!(BufferConfig), &mut defs);
    let queue = inline(schema_for!(QueueConfig), &mut defs);
    let from = json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] });
    let source_keys = [("decoder", decoder), ("schema", schema), ("buffer", buffer)];
    let sink_keys = [("from", from.clone()), ("where", json!({ "type": "string" })), ("queue", queue)];
    let detector_keys = [("from", from.clone())];
    let sources = one_of(SOURCES.iter().map(|s| component(s.name, (s.schema)(), &source_keys, &mut defs)));
    let sinks = one_of(SINKS.iter().map(|s| component(s.name, (s.schema)(), &sink_keys, &mut defs)));
    let detectors =
        one_of(DETECTORS.iter().map(|d| component(d.name, (d.schema)(), &detector_keys, &mut defs)));
    let function = inline(schema_for!(FunctionConfig), &mut defs);
    let view = inline(schema_for!(ViewConfig), &mut defs);
    let checkpoints = inline(schema_for!(CheckpointsConfig), &mut defs);
    let postgres = inline(schema_for!(PostgresConfig), &mut defs);
    let mut steps: Vec<Value> = STEPS
        .iter()
        .map(|step| {
            let config = inline((step.schema)(), &mut defs);
            json!({ "type": "object", "required": [step.name], "additionalProperties": false,
                    "properties": { step.name: config } })
        })
        .collect();
    steps.push(json!({ "type": "object", "required": ["route"], "additionalProperties": false,
        "properties": { "route": { "type": "object", "additionalProperties": { "type": "string" } } } }));
    let map = |of: Value| json!({ "type": "object", "additionalProperties": of });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A Logdrive pipeline",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "data_dir": { "type": "string", "description": "Buffers, checkpoints, queues.", "default": "./data" },
            "checkpoints": checkpoints,
            "workers": { "type": "integer", "minimum": 1, "description": "Dataflow workers; default: cores." },
            "api": { "anyOf": [{ "enum": ["off", false] }, { "type": "object", "properties": { "listen": { "type": "string" } } }] },
            "postgres": { "anyOf": [{ "enum": ["off", false] }, postgres] },
            "in_flight_max_bytes": { "type": "string", "description": "How much of one source may be received and not delivered." },
            "drain_timeout": { "type": "string", "description": "How long a graceful stop may take." },
            "stall_timeout": { "type": "string", "description": "After how long without progress inside, while there is input, the process ends, to go on from its checkpoint; `0s`: never.", "default": "5m" },
            "sources": map(sources),
            "streams": map(json!({ "type": "object", "required": ["from"], "additionalProperties": false,
                "properties": { "from": from, "steps": { "type": "array", "items": { "oneOf": steps } } } })),
            "detectors": map(detectors),
            "functions": map(function),
            "views": map(view),
            "sinks": map(sinks),
            "tests": { "type": "array", "items": { "type": "object", "required": ["input", "expect"],
                "properties": { "name": { "type": "string" }, "input": { "type": "object" }, "expect": { "type": "object" } } } },
        },
        "required": ["sources", "sinks"],
        "$defs": defs,
    })
}

fn one_of(items: impl Iterator<Item = Value>) -> Value {
    json!({ "oneOf": items.collect::<Vec<_>>() })
}

/// A component's schema with `type` and the keys that belong to the plan.
fn component(name: &str, schema: Schema, keys: &[(&str, Value)], defs: &mut Map<String, Value>) -> Value {
    let mut value = inline(schema, defs);
    let Some(object) = value.as_object_mut() else { return value };
    object.insert("type".into(), json!("object"));
    let properties = object.entry("properties").or_insert_with(|| json!({}));
    if let Some(properties) = properties.as_object_mut() {
        properties.insert("type".into(), json!({ "const": name }));
        for (key, schema) in keys {
            properties.insert((*key).into(), schema.clone());
        }
    }
    let required = object.entry("required").or_insert_with(|| json!([]));
    if let Some(required) = required.as_array_mut() {
        required.push(json!("type"));
    }
    value
}

/// Moves a schema's own definitions to the common ones.
fn inline(schema: Schema, defs: &mut Map<String, Value>) -> Value {
    let mut value = schema.to_value();
    if let Some(object) = value.as_object_mut() {
        object.remove("$schema");
        if let Some(Value::Object(own)) = object.remove("$defs") {
            defs.extend(own);
        }
    }
    value
}
