//! Some rows and columns of a view, for those who follow its changes: `SELECT … FROM view WHERE …`, applied to rows as
//! they come.

use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::datatypes::SchemaRef;
use logdrive_operators::CompileError;

use super::lower;
use super::spec::{Spec, run};
use super::sql::{self, Table};
use crate::compiler::{on_large_stack, readable};
use crate::functions::Functions;

const MORE: &str = "a subscription can choose rows and columns of a view, and nothing else";

/// A query that takes each row of one table by itself.
#[derive(Debug)]
pub struct Narrow {
    spec: Spec,
    columns: Vec<usize>,
}

impl Narrow {
    /// Compiles a query over a table with these columns; it may call `functions`.
    ///
    /// # Errors
    /// If it does not compile, or does more than choose rows and compute columns.
    pub fn new(
        query: &str,
        table: &str,
        schema: &SchemaRef,
        functions: &Functions,
    ) -> Result<Self, CompileError> {
        let refused = |message: &str| CompileError {
            code: "sql::unsupported",
            message: message.into(),
            help: Some("declare a view for the rest, and subscribe to that".into()),
            at: None,
        };
        let spec = on_large_stack(|| {
            let inputs = [Table {
                name: table.to_owned(),
                schema: Arc::clone(schema),
                changes: false,
                fingerprint: 0,
            }];
            let planned = sql::plan(query, &inputs, functions)?;
            if !planned.is_plain(&inputs) {
                return Err(refused(MORE));
            }
            let (plan, state) = planned.plain()?;
            lower::lower(&plan, &state)
        })?;
        if spec.aggregation.is_some() {
            return Err(refused(MORE));
        }
        let columns =
            spec.reads.iter().map(|name| schema.index_of(name).map_err(|e| refused(&e.to_string())));
        let columns = columns.collect::<Result<_, _>>()?;
        Ok(Self { spec, columns })
    }

    /// The columns that it gives.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.spec.schema
    }

    /// The rows that it gives, and which rows of the table they were.
    ///
    /// # Errors
    /// If an expression fails.
    pub fn apply(&self, rows: &RecordBatch) -> Result<(RecordBatch, UInt32Array), String> {
        let rows = rows.project(&self.columns).map_err(|error| error.to_string())?;
        let staged = run(&self.spec.before, &rows).map_err(|error| readable(&error))?;
        Ok((staged.rows, staged.indices))
    }
}
