//! What can be wrong with a query, in words that help.

use std::error::Error;

use datafusion::common::{DataFusionError, SchemaError};
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{Location, Span};
use logdrive_operators::CompileError;

use crate::compiler::{Positions, nearest_name, quoted, readable};

/// Why a query has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SqlError {
    /// Stable code: `sql::syntax`, `sql::unknown_column`, `sql::unknown_function`, `sql::unknown_table`, `sql::type`,
    /// `sql::read_only`, `sql::no_data`, `sql::memory`, `sql::timeout`, `sql::failed`.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// The nearest valid name, or what to do.
    pub help: Option<String>,
    /// Where in the query's text, in bytes, if known: start and length.
    pub at: Option<(usize, usize)>,
}

impl SqlError {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), help: None, at: None }
    }

    pub(super) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

impl From<CompileError> for SqlError {
    fn from(error: CompileError) -> Self {
        Self { code: error.code, message: error.message, help: error.help, at: error.at }
    }
}

impl From<SqlError> for CompileError {
    fn from(error: SqlError) -> Self {
        Self { code: error.code, message: error.message, help: error.help, at: error.at }
    }
}

/// A failure while a query is prepared or run.
#[derive(Debug)]
pub(super) enum Failure {
    /// A file was listed and is gone: another listing will not have it.
    Vanished(SqlError),
    Final(SqlError),
}

impl From<SqlError> for Failure {
    fn from(error: SqlError) -> Self {
        Self::Final(error)
    }
}

impl Failure {
    pub(super) fn into_error(self) -> SqlError {
        match self {
            Self::Vanished(error) | Self::Final(error) => error,
        }
    }

    /// What an error of DataFusion means to the one who asked.
    pub(super) fn of(error: &DataFusionError, positions: &Positions<'_>) -> Self {
        let described = describe(error, positions);
        if is_vanished(error) { Self::Vanished(described) } else { Self::Final(described) }
    }
}

fn is_vanished(error: &DataFusionError) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let gone = match error.downcast_ref::<std::io::Error>() {
            Some(io) => io.kind() == std::io::ErrorKind::NotFound,
            None => matches!(
                error.downcast_ref::<datafusion::object_store::Error>(),
                Some(datafusion::object_store::Error::NotFound { .. })
            ),
        };
        if gone {
            return true;
        }
        cause = error.source();
    }
    // Parquet keeps some causes as text only.
    let text = error.to_string();
    text.contains("No such file or directory") || text.contains("not found: ")
}

pub(crate) fn describe(error: &DataFusionError, positions: &Positions<'_>) -> SqlError {
    let (root, at) = peel(error, positions);
    let mut described = match root {
        DataFusionError::SQL(parser, _) => match parser.as_ref() {
            ParserError::RecursionLimitExceeded => {
                SqlError::new("sql::syntax", "the query is nested too deeply")
            }
            ParserError::ParserError(message) | ParserError::TokenizerError(message) => {
                let (message, at) = positions.of_message(message);
                return SqlError { at, ..SqlError::new("sql::syntax", message) };
            }
        },
        DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let mut valid: Vec<&str> = valid_fields.iter().map(|field| field.name.as_str()).collect();
                valid.sort_unstable();
                valid.dedup();
                let error = SqlError::new("sql::unknown_column", format!("unknown column `{}`", field.name));
                match nearest_name(&field.name, &valid) {
                    Some(meant) => error.help(format!("did you mean `{}`?", quoted(meant))),
                    None if valid.is_empty() => error,
                    None => {
                        let names: Vec<String> = valid.iter().take(40).map(|name| quoted(name)).collect();
                        error.help(format!("columns: {}", names.join(", ")))
                    }
                }
            }
            other => SqlError::new("sql::type", other.to_string()),
        },
        DataFusionError::ResourcesExhausted(message) => {
            SqlError::new("sql::memory", message.lines().next().unwrap_or_default())
                .help("read fewer columns or rows, or allow more memory")
        }
        DataFusionError::Plan(message) if message.starts_with("Invalid function '") => {
            let name = message.split('\'').nth(1).unwrap_or_default();
            let error = SqlError::new("sql::unknown_function", format!("unknown function `{name}`"));
            match message.split("Did you mean '").nth(1).and_then(|rest| rest.split('\'').next()) {
                Some(meant) => error.help(format!("did you mean `{meant}`?")),
                None => error,
            }
        }
        DataFusionError::Plan(_) | DataFusionError::NotImplemented(_) => {
            SqlError::new("sql::type", readable(root))
        }
        _ => SqlError::new("sql::failed", readable(root)),
    };
    described.at = described.at.or(at);
    described
}

/// The error inside the wrappings, and where it is in the text if a wrapping knows.
fn peel<'e>(
    mut error: &'e DataFusionError,
    positions: &Positions<'_>,
) -> (&'e DataFusionError, Option<(usize, usize)>) {
    let mut at = None;
    loop {
        error = match error {
            DataFusionError::Diagnostic(diagnostic, inner) => {
                at = at.or(diagnostic.span.and_then(|span| {
                    positions.range(Span::new(
                        Location::new(span.start.line, span.start.column),
                        Location::new(span.end.line, span.end.column),
                    ))
                }));
                inner
            }
            DataFusionError::Context(_, inner) => inner,
            DataFusionError::Shared(inner) => inner,
            DataFusionError::Collection(errors) if !errors.is_empty() => &errors[0],
            _ => return (error, at),
        };
    }
}
