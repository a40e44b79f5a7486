//! `logdrive infer`: the `schema:` block that fits a file of JSON lines.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::{Outcome, print};

#[derive(Args, Debug)]
pub(super) struct Infer {
    /// A file with one JSON object a line; `-` for standard input.
    file: PathBuf,
    /// How many lines to look at.
    #[arg(long, default_value_t = 10_000)]
    lines: usize,
}

/// Longest line that is looked at, in bytes.
const LINE_MAX: u64 = 1 << 20;

/// What the values of one field have in common.
#[derive(Debug, Default)]
struct Seen {
    n: usize,
    kinds: BTreeMap<&'static str, usize>,
    children: Fields,
    items: Option<Box<Self>>,
}

/// Fields in the order in which they were first seen.
#[derive(Debug, Default)]
struct Fields(Vec<(String, Seen)>);

pub(super) fn run(command: &Infer) -> Outcome {
    let input: Box<dyn std::io::Read> = if command.file.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(&command.file).map_err(|e| format!("{}: {e}", command.file.display()))?)
    };
    let mut reader = BufReader::new(input);
    let mut fields = Fields::default();
    let (mut n_rows, mut n_bad) = (0, 0);
    let mut line = Vec::new();
    while n_rows + n_bad < command.lines {
        line.clear();
        let n = reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line).map_err(|e| e.to_string())?;
        if n == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice(&line) {
            Ok(Value::Object(object)) => {
                n_rows += 1;
                object.iter().for_each(|(key, value)| fields.see(key, value));
            }
            _ => n_bad += 1,
        }
    }
    if n_rows == 0 {
        return Err(format!("{}: no line is a JSON object", command.file.display()));
    }
    let mut out = String::from("schema:\n  fields:\n");
    fields.write(&mut out, 4);
    writeln!(out, "# from {n_rows} rows; {n_bad} lines were no JSON objects").expect("a string");
    print(&out)
}

impl Fields {
    fn see(&mut self, key: &str, value: &Value) {
        let idx = self.0.iter().position(|(name, _)| name == key).unwrap_or_else(|| {
            self.0.push((key.to_owned(), Seen::default()));
            self.0.len() - 1
        });
        self.0[idx].1.see(value);
    }

    fn write(&self, out: &mut String, indent: usize) {
        for (name, seen) in &self.0 {
            let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let reserved = ["true", "false", "null", "yes", "no"].contains(&name.as_str());
            let first_ok = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            let key = if plain && first_ok && !reserved {
                name.clone()
            } else {
                Value::String(name.clone()).to_string()
            };
            write!(out, "{:indent$}{key}:", "").expect("a string");
            if seen.is("object") {
                out.push('\n');
                seen.children.write(out, indent + 2);
            } else {
                writeln!(out, " {}", seen.type_name()).expect("a string");
            }
        }
    }
}

impl Seen {
    fn see(&mut self, value: &Value) {
        let kind = match value {
            Value::Null => return,
            Value::Bool(_) => "boolean",
            Value::Number(n) if n.is_i64() => "int64",
            Value::Number(_) => "float64",
            Value::String(s) => string_kind(s),
            Value::Array(items) => {
                let seen = self.items.get_or_insert_default();
                items.iter().for_each(|item| seen.see(item));
                "list"
            }
            Value::Object(object) => {
                object.iter().for_each(|(key, value)| self.children.see(key, value));
                "object"
            }
        };
        self.n += 1;
        *self.kinds.entry(kind).or_default() += 1;
    }

    fn is(&self, kind: &str) -> bool {
        self.n > 0 && self.kinds.get(kind) == Some(&self.n)
    }

    fn type_name(&self) -> String {
        let numbers = self.kinds.get("int64").unwrap_or(&0) + self.kinds.get("float64").unwrap_or(&0);
        if let Some(items) = self.items.as_ref().filter(|_| self.is("list")) {
            // A list of objects has no type of its own: it is kept as text.
            let item = items.type_name();
            return if items.is("object") { "string".into() } else { format!("list<{item}>") };
        }
        match () {
            () if self.is("int64") => "int64",
            () if self.n > 0 && numbers == self.n => "float64",
            () if self.is("boolean") => "boolean",
            () if self.is("timestamp") => "timestamp",
            () if self.is("ip") => "ip",
            () => "string",
        }
        .to_owned()
    }
}

fn string_kind(text: &str) -> &'static str {
    if text.parse::<IpAddr>().is_ok() {
        return "ip";
    }
    let bytes = text.as_bytes();
    let date = bytes.len() >= 19
        && bytes[4] == b'-'
        && bytes[7] == b'-'
        && matches!(bytes[10], b'T' | b' ')
        && bytes[13] == b':'
        && bytes[..4].iter().all(u8::is_ascii_digit);
    if date { "timestamp" } else { "string" }
}

#[cfg(test)]
mod tests {
    use logdrive_schemas::FieldType;

    use super::*;

    #[test]
    fn types_are_found_and_are_types() {
        let mut fields = Fields::default();
        for line in [
            r#"{"@timestamp":"2026-11-21T10:00:00Z","ip":"10.0.0.1","n":1,"x":1,"ok":true,"tags":["a"],"o":{"k":"v"}}"#,
            r#"{"@timestamp":"2026-11-21T10:00:01Z","ip":"::1","n":2,"x":1.5,"ok":null,"tags":[],"late":"z"}"#,
        ] {
            let Value::Object(object) = serde_json::from_str(line).unwrap() else { panic!("an object") };
            object.iter().for_each(|(key, value)| fields.see(key, value));
        }
        let mut out = String::new();
        fields.write(&mut out, 0);
        assert_eq!(
            out,
            "\"@timestamp\": timestamp\nip: ip\nn: int64\nx: float64\nok: boolean\ntags: list<string>\no:\n  k: string\nlate: string\n"
        );
        for line in out.lines().filter(|line| !line.starts_with('o')) {
            let name = line.split(": ").nth(1).unwrap_or("string");
            assert!(FieldType::parse(name).is_some() || name.is_empty(), "{name}");
        }
    }
}
