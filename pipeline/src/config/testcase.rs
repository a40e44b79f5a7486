//! `tests:`: example messages and the documents that they must become.

use std::collections::HashMap;

use logdrive_schemas::component::{ConfigError, Node, NodeKind};

use super::plan::{Input, TestCase};

pub(super) fn read(
    nodes: &[Node],
    names: &HashMap<String, Input>,
    errors: &mut Vec<ConfigError>,
) -> Vec<TestCase> {
    nodes.iter().enumerate().filter_map(|(idx, node)| read_one(idx, node, names, errors)).collect()
}

fn read_one(
    idx: usize,
    node: &Node,
    names: &HashMap<String, Input>,
    errors: &mut Vec<ConfigError>,
) -> Option<TestCase> {
    let Some(entries) = node.as_map() else {
        errors.push(ConfigError::wrong_type(node, "a map with `name`, `input` and `expect`"));
        return None;
    };
    let mut case = TestCase {
        name: format!("test {}", idx + 1),
        span: node.span,
        input: Vec::new(),
        expect: Vec::new(),
    };
    let mut expects = false;
    for (key, value) in entries {
        match key.name.as_str() {
            "name" => case.name = value.as_str().unwrap_or_default().to_owned(),
            "input" => {
                for (input, items) in named(value, names, "source", |i| matches!(i, Input::Source(_)), errors)
                {
                    let Input::Source(source) = input else { continue };
                    // A message may be written as text, or as YAML for what would be JSON.
                    let text = |item: &Node| match &item.kind {
                        NodeKind::Scalar(scalar) => scalar.text.clone(),
                        _ => item.to_json().to_string(),
                    };
                    case.input.push((source, items.iter().map(text).collect()));
                }
            }
            "expect" => {
                expects = value.as_map().is_none_or(|names| !names.is_empty());
                let rows = |i| !matches!(i, Input::Source(_));
                for (input, items) in named(value, names, "stream, detector, view or `rejects`", rows, errors)
                {
                    case.expect.push((input, items.iter().map(Node::to_json).collect()));
                }
            }
            _ => errors.push(ConfigError::unknown_key(key, "a test", &["name", "input", "expect"])),
        }
    }
    if !expects {
        let message = format!("`{}` expects nothing, so it cannot fail", case.name);
        errors.push(ConfigError::new("config::missing_key", node.span, message));
    }
    Some(case)
}

/// The entries of a map from node names to lists.
fn named<'a>(
    node: &'a Node,
    names: &HashMap<String, Input>,
    kind: &str,
    allowed: fn(Input) -> bool,
    errors: &mut Vec<ConfigError>,
) -> Vec<(Input, &'a [Node])> {
    let Some(entries) = node.as_map() else {
        errors.push(ConfigError::wrong_type(node, "a map of names to lists"));
        return Vec::new();
    };
    let mut found = Vec::new();
    for (key, value) in entries {
        let NodeKind::Seq(items) = &value.kind else {
            errors.push(ConfigError::wrong_type(value, "a list"));
            continue;
        };
        match names.get(&key.name) {
            Some(input) if allowed(*input) => found.push((*input, items.as_slice())),
            _ => {
                let mut valid: Vec<_> =
                    names.iter().filter(|(_, i)| allowed(**i)).map(|(name, _)| name.as_str()).collect();
                valid.sort_unstable();
                errors.push(ConfigError::unknown_name(
                    "config::unknown_input",
                    key.span,
                    kind,
                    &key.name,
                    "a test",
                    &valid,
                ));
            }
        }
    }
    found
}
