//! Configuration errors: what, where, and the nearest valid name.

use super::node::{Key, Node};

/// A range of bytes of the configuration file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// Length in bytes.
    pub len: usize,
}

/// One thing that is wrong with a configuration. Holds no rendering: that is the command line's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConfigError {
    /// Stable code, such as `config::unknown_key`.
    pub code: &'static str,
    /// Where in the file.
    pub span: Span,
    /// What was found and what was expected: lower case, no full stop.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl ConfigError {
    /// An error without advice.
    #[must_use]
    pub fn new(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        Self { code, span, message: message.into(), help: None }
    }

    /// Adds advice.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// `expected` was wanted at `node`.
    #[must_use]
    pub fn wrong_type(node: &Node, expected: &str) -> Self {
        Self::new("config::wrong_type", node.span, format!("expected {expected}, found {}", node.describe()))
    }

    /// `key` is none of the keys of `what`.
    #[must_use]
    pub fn unknown_key(key: &Key, what: &str, valid: &[&str]) -> Self {
        Self::unknown_name("config::unknown_key", key.span, "key", &key.name, what, valid)
    }

    /// `name` is no `kind` of `what`; the help names the nearest of `valid`, or lists them.
    #[must_use]
    pub fn unknown_name(
        code: &'static str,
        span: Span,
        kind: &str,
        name: &str,
        what: &str,
        valid: &[&str],
    ) -> Self {
        let error = Self::new(code, span, format!("unknown {kind} `{name}` in {what}"));
        match nearest(name, valid) {
            Some(near) => error.with_help(format!("did you mean `{near}`?")),
            None if valid.is_empty() => error.with_help(format!("there is no {kind} here")),
            None => error.with_help(format!("valid: {}", valid.join(", "))),
        }
    }
}

/// The most similar of `valid`, if any is similar enough to be a likely slip.
#[must_use]
pub fn nearest<'a>(name: &str, valid: &[&'a str]) -> Option<&'a str> {
    valid
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 1 + name.len().max(candidate.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
