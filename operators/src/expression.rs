//! SQL expressions, as operators see them. The compiler lives in `queries`; operators know nothing of DataFusion.

use std::fmt::Debug;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Schema};
use logdrive_schemas::component::{ConfigError, Node, NodeKind, Span};

/// A compiled SQL expression, evaluated on whole batches.
pub trait Expression: Debug + Send + Sync {
    /// The value for each row; as long as `rows`.
    ///
    /// # Errors
    /// If any row fails (a division by zero, a bad cast). Callers then find the failing rows by halving.
    fn evaluate(&self, rows: &RecordBatch) -> Result<ArrayRef, ExpressionError>;

    /// The type of the value.
    fn data_type(&self) -> &DataType;

    /// The top-level columns that it reads, sorted.
    fn columns(&self) -> &[String];
}

/// Some row of a batch failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ExpressionError(pub String);

/// Why SQL does not compile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CompileError {
    /// Stable code: `sql::syntax`, `sql::unknown_column`, `sql::unknown_function`, `sql::type`, `sql::unsupported`,
    /// `sql::unbounded`.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// The nearest valid name, or what to do.
    pub help: Option<String>,
    /// Where in the expression's text, in bytes, if known: start and length.
    pub at: Option<(usize, usize)>,
}

impl CompileError {
    /// The same error of SQL that stands at `node`; it names the place inside the SQL where the YAML shows it as it is.
    #[must_use]
    pub fn in_configuration(self, node: &Node) -> ConfigError {
        let span = match (&node.kind, self.at) {
            // A plain scalar on one line has no escapes and no folding: offsets in its text are offsets in the file.
            (NodeKind::Scalar(scalar), Some((start, len)))
                if !scalar.quoted && node.span.len == scalar.text.len() && start <= node.span.len =>
            {
                let len = len.min(node.span.len - start).max(1);
                Span { start: node.span.start + start, len }
            }
            _ => node.span,
        };
        ConfigError { code: self.code, span, message: self.message, help: self.help }
    }
}

/// Turns SQL text into expressions.
pub trait Compiler: Debug + Send + Sync {
    /// Compiles one scalar expression over the columns of `input`.
    ///
    /// # Errors
    /// If it does not parse, names an unknown column or function, or its types do not fit.
    fn compile(&self, sql: &str, input: &Schema) -> Result<std::sync::Arc<dyn Expression>, CompileError>;
}
