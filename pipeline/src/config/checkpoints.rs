//! `checkpoints:`: where the state of views and detectors is kept.

use std::collections::BTreeMap;
use std::path::Path;

use logdrive_connectors::object_stores;
use logdrive_schemas::component::{ConfigError, Node, parse_as};
use serde::Deserialize;

use crate::checkpoint::Place;

/// The keys of `checkpoints`.
#[derive(Clone, Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CheckpointsConfig {
    /// A folder, or `s3://bucket/prefix`. One pipeline at a time may write to it.
    path: String,
    /// Options of the object store, such as `aws_endpoint` and `aws_region`. Credentials are better left to the
    /// environment (`AWS_ACCESS_KEY_ID`, …), which is read first.
    #[serde(default)]
    options: BTreeMap<String, String>,
}

/// Where checkpoints lie: in the pipeline's folder unless it is configured otherwise.
pub(super) fn read(root: &Node, data_dir: &Path, errors: &mut Vec<ConfigError>) -> Place {
    let default = Place::Folder(data_dir.join("checkpoints"));
    let Some(node) = root.get("checkpoints") else { return default };
    let Some(config) = parse_as::<CheckpointsConfig>(node, "`checkpoints`", errors) else { return default };
    let mut invalid = |key: &str, message: String, help: &str| {
        let span = node.get(key).unwrap_or(node).span;
        errors.push(ConfigError::new("config::invalid_value", span, message).with_help(help));
    };
    let CheckpointsConfig { path, options } = config;
    if !object_stores::is_url(&path) {
        if path.is_empty() {
            invalid("path", "there is no folder without a name".into(), "write a folder or a URL");
        } else if !options.is_empty() {
            invalid("options", "a folder has no options".into(), "only an object store has; leave them away");
        }
        return Place::Folder(path.into());
    }
    match object_stores::open(&path, &options) {
        Err(message) => invalid("path", message, "write a folder, or a URL such as `s3://bucket/prefix`"),
        Ok(_) if path.starts_with("memory:") => {
            invalid("path", "what is kept in memory is no checkpoint".into(), "write a folder or a URL");
        }
        Ok(_) => {}
    }
    Place::Store { url: path, options, copies: data_dir.join("checkpoint-copies") }
}
