//! The contract between YAML and components.

mod error;
mod node;
mod serde_node;

use std::fmt::Debug;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

pub use error::{ConfigError, Span, nearest};
pub use node::{Key, Limits, Node, NodeKind, Scalar};

/// The YAML face of a component. The struct's doc comment is its reference page, each field's doc comment a line of
/// it. Structs carry `#[serde(deny_unknown_fields)]`.
///
/// The keys that mean the same everywhere (`type`, `from`, `where`, `decoder`, `schema`, `buffer`) belong to the
/// plan and are taken out before a component sees its node.
pub trait Component: DeserializeOwned + JsonSchema + Clone + Debug + Send + Sync + 'static {
    /// The `type:` in YAML: a noun for sources, decoders and sinks, a verb for steps and detectors.
    const NAME: &'static str;
    /// A complete fragment of YAML, `type` included. The contract suite parses and builds it.
    const EXAMPLE: &'static str;
}

/// Reads a component's configuration, reporting every unknown key and the first error of every other kind.
pub fn parse<C: Component>(node: &Node, errors: &mut Vec<ConfigError>) -> Option<C> {
    parse_as(node, C::NAME, errors)
}

/// [`parse`] for configuration that is not a component of its own, called `what` in errors.
pub fn parse_as<C: DeserializeOwned>(node: &Node, what: &str, errors: &mut Vec<ConfigError>) -> Option<C> {
    let mut node = node.clone();
    let n_before = errors.len();
    loop {
        match C::deserialize(serde_node::NodeDeserializer::new(&node)) {
            Ok(config) => return (errors.len() == n_before).then_some(config),
            Err(error) => {
                let removed = error.unknown_key.as_ref().is_some_and(|key| node.remove_at(*key));
                errors.push(error.into_config_error(node.span, what));
                if !removed {
                    return None;
                }
            }
        }
    }
}

/// Reads a duration such as `100ms` or `5m`: for `#[serde(deserialize_with)]`, with `#[schemars(with = "String")]`.
///
/// # Errors
/// If the text is no duration.
pub fn duration<'de, D: serde::Deserializer<'de>>(from: D) -> Result<std::time::Duration, D::Error> {
    let text = <String as serde::Deserialize>::deserialize(from)?;
    humantime::parse_duration(&text).map_err(|_| {
        serde::de::Error::custom(format!("`{text}` is no duration, write it like `100ms` or `5m`"))
    })
}

/// Reads a size in bytes such as `64KiB` or `1GB`: for `#[serde(deserialize_with)]`, with
/// `#[schemars(with = "String")]`.
///
/// # Errors
/// If the text is no size.
pub fn bytes<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = <String as serde::Deserialize>::deserialize(from)?;
    text.parse::<bytesize::ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|_| serde::de::Error::custom(format!("`{text}` is no size, write it like `64KiB` or `1GB`")))
}
