//! Functions that users define in SQL, over those of the library.
//!
//! A call is replaced by the function's expression when a query is optimised: it costs what the expression costs, a view
//! over it changes when it does, and nothing else has to know that it was there.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::physical_plan::PhysicalExpr;
use logdrive_operators::CompileError;

use crate::compiler::{logical, mistyped, on_large_stack};
use crate::session;
use crate::views::is_reserved;

/// The largest expression of a function once those that it calls are part of it, in operators, calls, names and values:
/// each of thirty functions that calls the one before twice would have a billion.
const NODES_LIMIT: usize = 10_000;

/// Functions that users define in SQL. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Functions(Vec<Arc<ScalarUDF>>);

impl Functions {
    /// The code of errors that say that a name is wrong.
    pub const NAME_ERROR: &str = "sql::function_name";

    /// Adds a function. Its expression is one of its arguments only, and may call the functions that are there already.
    ///
    /// # Errors
    /// If the expression is wrong, or the name: not one that SQL finds without quotes, or taken.
    pub fn define(
        &mut self,
        name: &str,
        arguments: Vec<(String, DataType)>,
        sql: &str,
    ) -> Result<(), CompileError> {
        let state = session::with(self).build();
        check_name(name, &state)?;
        let fields: Vec<Field> =
            arguments.into_iter().map(|(name, data_type)| Field::new(name, data_type, true)).collect();
        let function = on_large_stack(|| Defined::new(name, Arc::new(Schema::new(fields)), sql, &state))?;
        self.0.push(Arc::new(ScalarUDF::new_from_impl(function)));
        Ok(())
    }

    /// The functions as DataFusion takes them.
    pub(crate) fn udfs(&self) -> impl Iterator<Item = Arc<ScalarUDF>> + '_ {
        self.0.iter().cloned()
    }
}

fn check_name(name: &str, state: &SessionState) -> Result<(), CompileError> {
    let refuse = |message: String, help: &str| {
        Err(CompileError { code: Functions::NAME_ERROR, message, help: Some(help.into()), at: None })
    };
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !name.chars().all(is_plain) || !name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') {
        let help =
            "use lower-case letters, digits and `_`, and begin with no digit: SQL looks functions up so";
        return refuse(format!("`{name}` cannot be the name of a function"), help);
    }
    let is_known = state.scalar_functions().contains_key(name)
        || state.aggregate_functions().contains_key(name)
        || state.window_functions().contains_key(name)
        || state.higher_order_functions().contains_key(name)
        || is_reserved(name);
    if is_known {
        return refuse(format!("there is a function `{name}` already"), "give it another name");
    }
    Ok(())
}

/// A function as DataFusion wants it.
#[derive(Debug)]
struct Defined {
    name: String,
    signature: Signature,
    arguments: SchemaRef,
    body: Expr,
    data_type: DataType,
    /// For a call that is evaluated before it is replaced.
    physical: Arc<dyn PhysicalExpr>,
}

impl Defined {
    fn new(name: &str, arguments: SchemaRef, sql: &str, state: &SessionState) -> Result<Self, CompileError> {
        let body = logical(state, sql, &arguments)?;
        check_size(&body)?;
        let schema = DFSchema::try_from(Arc::clone(&arguments)).map_err(|error| mistyped(&error))?;
        let data_type = body.get_type(&schema).map_err(|error| mistyped(&error))?;
        let physical = state.create_physical_expr(body.clone(), &schema).map_err(|error| mistyped(&error))?;
        let types: Vec<DataType> = arguments.fields().iter().map(|field| field.data_type().clone()).collect();
        let signature = if types.is_empty() {
            Signature::nullary(Volatility::Immutable)
        } else {
            Signature::exact(types, Volatility::Immutable)
        };
        Ok(Self { name: name.into(), signature, arguments, body, data_type, physical })
    }
}

fn check_size(body: &Expr) -> Result<(), CompileError> {
    let mut n_nodes = 0;
    let walked = body.apply(|_| {
        n_nodes += 1;
        Ok(if n_nodes > NODES_LIMIT { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    walked.map_err(|error| mistyped(&error))?;
    if n_nodes <= NODES_LIMIT {
        return Ok(());
    }
    Err(CompileError {
        code: "sql::syntax",
        message: "the function is too large once those that it calls are part of it".into(),
        help: Some(format!("it may have {NODES_LIMIT} operators, calls, names and values")),
        at: None,
    })
}

impl PartialEq for Defined {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, &self.arguments, &self.body) == (&other.name, &other.arguments, &other.body)
    }
}

impl Eq for Defined {}

impl Hash for Defined {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.name, &self.body).hash(state);
    }
}

impl ScalarUDFImpl for Defined {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.data_type.clone())
    }

    fn simplify(&self, values: Vec<Expr>, _: &SimplifyContext) -> Result<ExprSimplifyResult> {
        let body = self.body.clone().transform_up(|node| {
            let Expr::Column(column) = &node else { return Ok(Transformed::no(node)) };
            let value = values.get(self.arguments.index_of(&column.name)?).ok_or_else(|| {
                DataFusionError::Internal(format!("{} is called without `{}`", self.name, column.name))
            })?;
            Ok(Transformed::yes(value.clone()))
        })?;
        Ok(ExprSimplifyResult::Simplified(body.data))
    }

    fn invoke_with_args(&self, call: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let values = call.args.iter().map(|value| value.to_array(call.number_rows)).collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(call.number_rows));
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.arguments), values, &options)?;
        self.physical.evaluate(&rows)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Float64Array, Int64Array, StringViewArray};
    use arrow::util::display::{ArrayFormatter, FormatOptions};
    use logdrive_operators::Compiler;

    use super::*;
    use crate::SqlCompiler;

    fn functions(definitions: &[(&str, &[(&str, DataType)], &str)]) -> Result<Functions, CompileError> {
        let mut functions = Functions::default();
        for (name, arguments, sql) in definitions {
            let arguments = arguments.iter().map(|(name, of)| ((*name).to_owned(), of.clone())).collect();
            functions.define(name, arguments, sql)?;
        }
        Ok(functions)
    }

    fn shop() -> Functions {
        functions(&[
            ("vat", &[], "0.25"),
            ("net", &[("amount", DataType::Float64), ("rate", DataType::Float64)], "amount / (1 + rate)"),
            ("of_shop", &[("amount", DataType::Float64)], "net(amount, vat())"),
            ("shown", &[("n", DataType::Int64), ("unit", DataType::Utf8View)], "n || ' ' || upper(unit)"),
        ])
        .unwrap()
    }

    fn rows() -> RecordBatch {
        let columns: [(&str, ArrayRef); 3] = [
            ("amount", Arc::new(Float64Array::from(vec![Some(10.0), None]))),
            ("rate", Arc::new(Int64Array::from(vec![1, 1]))),
            ("unit", Arc::new(StringViewArray::from(vec!["kg", "t"]))),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, values)| (name, values, true))).unwrap()
    }

    fn evaluated(functions: &Functions, sql: &str) -> Vec<String> {
        let expression = SqlCompiler::with(functions).compile(sql, &rows().schema()).unwrap();
        let values = expression.evaluate(&rows()).unwrap();
        let formatter = ArrayFormatter::try_new(&values, &FormatOptions::new().with_null("null")).unwrap();
        (0..2).map(|row| formatter.value(row).to_string()).collect()
    }

    #[test]
    fn a_call_is_what_the_function_says() {
        let shop = shop();
        for (sql, expected) in [
            // An argument has its own name, whatever it is called with; integers become floats.
            ("net(amount, rate)", ["5.0", "null"]),
            ("net(rate, amount)", ["0.09090909090909091", "null"]),
            ("NET(amount, 1) + of_shop(amount)", ["13.0", "null"]),
            ("shown(rate + 1, unit)", ["2 KG", "2 T"]),
            // All of it is known beforehand.
            ("of_shop(5)", ["4.0", "4.0"]),
            ("vat()", ["0.25", "0.25"]),
        ] {
            assert_eq!(evaluated(&shop, sql), expected, "{sql}");
        }
        let called = SqlCompiler::with(&shop).compile("of_shop(amount) > 1", &rows().schema()).unwrap();
        assert_eq!(called.columns(), ["amount"]);
    }

    #[test]
    fn a_call_that_is_not_replaced_gives_the_same() {
        let function = shop().udfs().nth(1).unwrap();
        let args = |values: [f64; 2]| ColumnarValue::Array(Arc::new(Float64Array::from(values.to_vec())));
        let field = |name: &str| Arc::new(Field::new(name, DataType::Float64, true));
        let call = ScalarFunctionArgs {
            args: vec![args([10.0, 3.0]), args([1.0, 0.5])],
            arg_fields: vec![field("a"), field("b")],
            number_rows: 2,
            return_field: field("net"),
            config_options: Arc::default(),
        };
        let values = function.invoke_with_args(call).unwrap().into_array(2).unwrap();
        assert_eq!(*values, Float64Array::from(vec![5.0, 2.0]));
    }

    #[test]
    fn calls_are_checked_where_they_stand() {
        let compiler = SqlCompiler::with(&shop());
        for (sql, expected) in [
            ("net(amount)", "net"),
            ("net(unit, rate)", "net"),
            ("nett(amount, rate)", "nett"),
            ("net(amount, tax)", "tax"),
        ] {
            let error = compiler.compile(sql, &rows().schema()).unwrap_err();
            assert!(error.message.contains(expected), "{sql}: {error:?}");
        }
    }

    #[test]
    fn what_cannot_be_a_function_is_refused() {
        let one = [("n", DataType::Int64)];
        for (name, sql, code) in [
            ("Net", "n", "sql::function_name"),
            ("2nd", "n", "sql::function_name"),
            ("upper", "n", "sql::function_name"),
            ("sum", "n", "sql::function_name"),
            ("row_number", "n", "sql::function_name"),
            ("tumble_start", "n", "sql::function_name"),
            ("session", "n", "sql::function_name"),
            ("now", "n", "sql::function_name"),
            ("sha256", "n", "sql::function_name"),
            ("f", "m", "sql::unknown_column"),
            ("f", "f(n)", "sql::unknown_function"),
            ("f", "n +", "sql::syntax"),
            ("f", "n; n", "sql::syntax"),
        ] {
            let error = functions(&[(name, &one, sql)]).unwrap_err();
            assert_eq!(error.code, code, "{name} as {sql}: {error:?}");
        }
        for sql in ["sum(n)", "random() + n", "now()", "(SELECT 1)", "row_number() OVER ()"] {
            assert!(functions(&[("f", &one, sql)]).is_err(), "{sql}");
        }
        let twice = functions(&[("f", &one, "n"), ("f", &one, "n")]).unwrap_err();
        assert_eq!(twice.code, "sql::function_name");
    }

    #[test]
    fn functions_of_functions_do_not_explode() {
        let mut functions = Functions::default();
        let arguments = || vec![("n".to_owned(), DataType::Int64)];
        functions.define("f0", arguments(), "n").unwrap();
        let error = (1..40).find_map(|level| {
            let below = level - 1;
            let sql = format!("f{below}(n) + f{below}(n + 1)");
            functions.define(&format!("f{level}"), arguments(), &sql).err()
        });
        assert!(error.unwrap().message.contains("too large"));
    }
}
