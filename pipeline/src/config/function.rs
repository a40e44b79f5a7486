//! `functions:`: functions in SQL, for all other SQL of the configuration.

use std::collections::BTreeMap;

use logdrive_queries::Functions;
use logdrive_schemas::component::{ConfigError, Key, Node, parse_as};
use logdrive_schemas::schema::parse_fields;
use serde::Deserialize;

/// The keys of a function.
#[derive(Clone, Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FunctionConfig {
    /// The names of its arguments and their types, as those of fields in a schema, in the order of a call. An argument of
    /// another type is cast where that loses nothing.
    #[serde(default)]
    arguments: BTreeMap<String, String>,
    /// Its value, of its arguments only. It may call the functions above it, and is of the type that this has.
    sql: String,
}

/// Reads a function and adds it to those that are there. False if something is wrong with it.
pub(super) fn read(key: &Key, node: &Node, functions: &mut Functions, errors: &mut Vec<ConfigError>) -> bool {
    let Some(config) = parse_as::<FunctionConfig>(node, "a function", errors) else { return false };
    let n_before = errors.len();
    let arguments = node.get("arguments").filter(|_| !config.arguments.is_empty());
    let arguments = arguments.map(|node| parse_fields(node, errors)).unwrap_or_default();
    if n_before < errors.len() {
        return false;
    }
    let arguments = arguments.into_iter().map(|(name, of_type)| (name, of_type.arrow())).collect();
    let Err(error) = functions.define(&key.name, arguments, &config.sql) else { return true };
    errors.push(if error.code == Functions::NAME_ERROR {
        ConfigError { span: key.span, ..error.in_configuration(node) }
    } else {
        error.in_configuration(node.get("sql").unwrap_or(node))
    });
    false
}
