//! `docs/connectors.md`, from the registries.

use std::fmt::Write as _;

use logdrive_connectors::{DECODERS, Guarantee, SINKS, SOURCES};
use schemars::Schema;
use serde_json::Value;

use super::evidence::EVIDENCE;
use super::own_keys;

/// The whole text.
pub(crate) fn write() -> String {
    let mut out = String::from(
        "# Connectors\n\n\
         Made from the code by `LOGDRIVE_UPDATE_DOCS=1 cargo test --workspace --test contract`; do not edit.\n\n\
         A source with a log of its own is read again from the last position that every sink has. Any other source has \
         the write-ahead buffer: what is on disk there survives, and a peer that waits for an answer gets it then. \
         \"Tested against\" names what the tests run with; \"–\" means nothing but unit tests.\n\n",
    );
    table(&mut out, "source", SOURCES.iter().map(|entry| (entry.name, None)));
    let sinks = SINKS.iter().map(|entry| {
        let promise = (entry.check)(&own_keys(entry.example), &mut Vec::new()).map(|(promise, _)| promise);
        (entry.name, promise)
    });
    table(&mut out, "sink", sinks);
    out += "# Reference\n\nKeys that every source has: `type`, `decoder`, `schema`, `buffer`. \
            Keys that every sink has: `type`, `from`, `where`, `queue`.\n";
    for entry in SOURCES {
        section(&mut out, "Source", entry.name, entry.example, &(entry.schema)());
    }
    for entry in DECODERS {
        section(&mut out, "Decoder", entry.name, entry.example, &(entry.schema)());
    }
    for entry in SINKS {
        section(&mut out, "Sink", entry.name, entry.example, &(entry.schema)());
    }
    out
}

fn table<'a>(out: &mut String, kind: &str, names: impl Iterator<Item = (&'a str, Option<Guarantee>)>) {
    writeln!(out, "| {kind} | guarantee | tested against | faults survived |\n|---|---|---|---|").unwrap();
    for (name, promise) in names {
        let evidence = EVIDENCE.iter().find(|e| (e.kind, e.name) == (kind, name)).unwrap();
        let guarantee = match promise {
            Some(Guarantee::BestEffort) => "best effort",
            Some(Guarantee::AtLeastOnce) => "at least once",
            Some(Guarantee::ExactlyOnce) => "exactly once",
            None if evidence.has_log => "read again from its log",
            None => "kept once on disk",
        };
        writeln!(out, "| `{name}` | {guarantee} | {} | {} |", evidence.with, evidence.faults).unwrap();
    }
    out.push('\n');
}

fn section(out: &mut String, kind: &str, name: &str, example: &str, schema: &Schema) {
    let schema = schema.as_value();
    writeln!(out, "\n## {kind} `{name}`\n").unwrap();
    writeln!(out, "{}\n", text(schema).trim()).unwrap();
    writeln!(out, "```yaml\n{}\n```", example.trim()).unwrap();
    let mut rows = Vec::new();
    keys(schema, schema, "", &mut rows);
    if !rows.is_empty() {
        writeln!(out, "\n| key | default | |\n|---|---|---|").unwrap();
        out.push_str(&rows.concat());
    }
}

/// One row for each key, and for each key of an object below it.
fn keys(root: &Value, of: &Value, prefix: &str, rows: &mut Vec<String>) {
    let Some(properties) = of["properties"].as_object() else { return };
    let required = of["required"].as_array().cloned().unwrap_or_default();
    for (name, property) in properties {
        let default = match &property["default"] {
            _ if required.iter().any(|key| key == name) => "required".to_owned(),
            Value::Null => String::new(),
            Value::String(text) => format!("`{text}`"),
            Value::Object(_) => duration(&property["default"]),
            // What is written as text is a size.
            Value::Number(number) if property["type"] == "string" => {
                format!("`{}`", size(number.as_u64().unwrap_or_default()))
            }
            default => format!("`{default}`"),
        };
        let said = text(property).split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
        let choices = choices(root, property);
        let space = if said.is_empty() || choices.is_empty() { "" } else { " " };
        rows.push(format!("| `{prefix}{name}` | {default} | {said}{space}{choices} |\n"));
        below(root, property, &format!("{prefix}{name}"), rows);
    }
}

/// The keys of what a key holds: of an object, of the objects in a list (`key[].`) or in a map (`key.*.`), and of each
/// alternative.
fn below(root: &Value, property: &Value, path: &str, rows: &mut Vec<String>) {
    let schema = resolved(root, property);
    if schema["items"].is_object() {
        below(root, &schema["items"], &format!("{path}[]"), rows);
    }
    if schema["additionalProperties"].is_object() {
        below(root, &schema["additionalProperties"], &format!("{path}.*"), rows);
    }
    for alternative in schema["oneOf"].as_array().into_iter().flatten() {
        // Its one key is not required: it is what chooses it.
        let mut chosen = alternative.clone();
        chosen["required"] = Value::Null;
        if let Some(properties) = chosen["properties"].as_object_mut() {
            for property in properties.values_mut().filter(|property| property["description"].is_null()) {
                property["description"] = alternative["description"].clone();
            }
        }
        keys(root, &chosen, &format!("{path}."), rows);
    }
    keys(root, schema, &format!("{path}."), rows);
}

/// A duration as it is written in YAML; nothing for other objects, whose keys have rows of their own.
fn duration(value: &Value) -> String {
    match (value["secs"].as_u64(), value["nanos"].as_u64()) {
        (Some(seconds), Some(0)) => format!("`{seconds}s`"),
        (Some(seconds), Some(nanos)) => format!("`{}ms`", seconds * 1_000 + nanos / 1_000_000),
        _ => String::new(),
    }
}

fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{bytes}B"), |(unit, name)| format!("{}{name}", bytes / unit))
}

/// What a schema refers to.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let inner = schema["anyOf"].as_array().and_then(|any| any.iter().find(|one| one.get("$ref").is_some()));
    let schema = inner.unwrap_or(schema);
    match schema["$ref"].as_str().and_then(|path| path.strip_prefix('#')) {
        Some(path) => root.pointer(path).unwrap_or(schema),
        None => schema,
    }
}

/// The values that a key can have, with what each means.
fn choices(root: &Value, property: &Value) -> String {
    let schema = resolved(root, property);
    let constants = schema["oneOf"].as_array().into_iter().flatten();
    let named = constants.filter_map(|one| Some((one["const"].as_str()?, text(one))));
    let mut all: Vec<String> = named
        .map(|(value, said)| {
            let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
            format!("`{value}`: {}", said.trim_end_matches('.'))
        })
        .collect();
    let values = schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
    all.extend(values.map(|value| format!("`{value}`")));
    if all.is_empty() { String::new() } else { format!("({})", all.join("; ")) }
}

fn text(schema: &Value) -> &str {
    schema["description"].as_str().unwrap_or_default()
}
