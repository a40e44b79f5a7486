//! A tiny stand-in for SQL in tests: `column`, `'text'`, `column = 'text'`, `column / column`.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Int64Type, Schema};

use crate::expression::{CompileError, Compiler, Expression, ExpressionError};

#[derive(Debug)]
enum Kind {
    Column,
    Text(String),
    Equals(String),
    Divide,
}

#[derive(Debug)]
struct Stub {
    kind: Kind,
    columns: Vec<String>,
    data_type: DataType,
}

impl Expression for Stub {
    fn evaluate(&self, rows: &RecordBatch) -> Result<ArrayRef, ExpressionError> {
        let column = |idx: usize| rows.column_by_name(&self.columns[idx]).unwrap();
        Ok(match &self.kind {
            Kind::Column => Arc::clone(column(0)),
            Kind::Text(text) => Arc::new(StringArray::from(vec![text.as_str(); rows.num_rows()])),
            Kind::Equals(text) => {
                let values = column(0).as_string_view().iter();
                Arc::new(values.map(|v| v.map(|v| v == text)).collect::<arrow::array::BooleanArray>())
            }
            Kind::Divide => {
                let (a, b) = (column(0).as_primitive::<Int64Type>(), column(1).as_primitive::<Int64Type>());
                let divide = |(a, b): (Option<i64>, Option<i64>)| match (a, b) {
                    (Some(_), Some(0)) => Err(ExpressionError("division by zero".into())),
                    (Some(a), Some(b)) => Ok(Some(a / b)),
                    _ => Ok(None),
                };
                let values = a.iter().zip(b.iter()).map(divide).collect::<Result<Vec<_>, _>>()?;
                Arc::new(Int64Array::from(values))
            }
        })
    }

    fn data_type(&self) -> &DataType {
        &self.data_type
    }

    fn columns(&self) -> &[String] {
        &self.columns
    }
}

#[derive(Debug)]
pub(crate) struct StubCompiler;

impl Compiler for StubCompiler {
    fn compile(&self, sql: &str, input: &Schema) -> Result<Arc<dyn Expression>, CompileError> {
        let unquoted = |text: &str| text.trim().strip_prefix('\'')?.strip_suffix('\'').map(str::to_owned);
        let column = |name: &str| {
            let name = name.trim();
            let field = input.field_with_name(name).map_err(|_| CompileError {
                code: "sql::unknown_column",
                message: format!("unknown column `{name}`"),
                help: None,
                at: sql.find(name).map(|at| (at, name.len())),
            })?;
            Ok((name.to_owned(), field.data_type().clone()))
        };
        let stub = if let Some(text) = unquoted(sql).filter(|text| !text.contains('\'')) {
            Stub { kind: Kind::Text(text), columns: vec![], data_type: DataType::Utf8 }
        } else if let Some((a, b)) = sql.split_once('=') {
            let kind = Kind::Equals(unquoted(b).expect("the stub compares with text"));
            Stub { kind, columns: vec![column(a)?.0], data_type: DataType::Boolean }
        } else if let Some((a, b)) = sql.split_once('/') {
            let columns = vec![column(a)?.0, column(b)?.0];
            Stub { kind: Kind::Divide, columns, data_type: DataType::Int64 }
        } else {
            let (name, data_type) = column(sql)?;
            Stub { kind: Kind::Column, columns: vec![name], data_type }
        };
        Ok(Arc::new(stub))
    }
}
