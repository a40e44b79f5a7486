//! The functions that PostgreSQL's clients call to look around. What asks for something that is not here (comments,
//! rules, sizes) has no answer; what asks for a permission is let.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};

use super::{SCHEMA, Session, VERSION, catalog};

/// Names of tables by their number in the catalog.
type Names = Arc<HashMap<i64, String>>;

/// How a function answers.
#[derive(Clone, Debug)]
enum Answer {
    /// Always so.
    Is(ScalarValue),
    /// From the text of its argument at this place.
    Text(fn(&str, &Known) -> Option<String>, usize),
    /// From the number of its first argument.
    Number(fn(i64, &Known) -> Option<String>),
    /// The number of a table.
    Oid,
}

/// What functions may look at.
#[derive(Clone, Debug)]
struct Known {
    session: Arc<Session>,
    names: Names,
}

/// The functions of a session.
pub(super) fn all(session: &Arc<Session>, names: Names) -> impl Iterator<Item = ScalarUDF> {
    let known = Known { session: Arc::clone(session), names };
    let text = |text: &str| Answer::Is(ScalarValue::Utf8(Some(text.to_owned())));
    let nothing = || Answer::Is(ScalarValue::Utf8(None));
    let yes = || Answer::Is(ScalarValue::Boolean(Some(true)));
    let number = |n| Answer::Is(ScalarValue::Int64(Some(n)));
    let version = format!("PostgreSQL {VERSION} (Logdrive {})", env!("CARGO_PKG_VERSION"));
    let schemas = ScalarValue::List(ScalarValue::new_list(
        &["pg_catalog", SCHEMA].map(|name| ScalarValue::Utf8(Some(name.to_owned()))),
        &DataType::Utf8,
        true,
    ));
    let mut functions = vec![
        ("version", text(&version)),
        ("current_schema", text(SCHEMA)),
        ("current_schemas", Answer::Is(schemas)),
        ("pg_backend_pid", number(i64::from(std::process::id()))),
        ("pg_get_userbyid", text(&session.user)),
        ("pg_encoding_to_char", text("UTF8")),
        ("pg_is_in_recovery", Answer::Is(ScalarValue::Boolean(Some(false)))),
        ("pg_get_partkeydef", nothing()),
        ("format_type", Answer::Number(|oid, _| Some(catalog::type_name(oid).to_owned()))),
        ("pg_relation_name", Answer::Number(|oid, known| Some(known.names.get(&oid)?.clone()))),
        ("to_regclass", Answer::Oid),
        ("quote_ident", Answer::Text(|name, _| Some(quoted(name)), 0)),
        ("quote_literal", Answer::Text(|text, _| Some(format!("'{}'", text.replace('\'', "''"))), 0)),
        ("current_setting", Answer::Text(setting, 0)),
        ("set_config", Answer::Text(|value, _| Some(value.to_owned()), 1)),
        ("txid_current", number(1)),
        ("pg_relation_size", number(0)),
        ("pg_total_relation_size", number(0)),
        ("pg_table_size", number(0)),
        ("pg_database_size", number(0)),
        ("pg_my_temp_schema", number(0)),
    ];
    for name in ["current_database", "current_catalog"] {
        functions.push((name, text(&session.database)));
    }
    for name in ["current_user", "session_user", "user", "current_role"] {
        functions.push((name, text(&session.user)));
    }
    for name in [
        "pg_table_is_visible",
        "pg_type_is_visible",
        "pg_function_is_visible",
        "has_schema_privilege",
        "has_table_privilege",
        "has_any_column_privilege",
        "has_column_privilege",
        "has_database_privilege",
        "has_function_privilege",
        "pg_advisory_unlock_all",
    ] {
        functions.push((name, yes()));
    }
    for name in [
        "obj_description",
        "col_description",
        "shobj_description",
        "pg_get_expr",
        "pg_get_viewdef",
        "pg_get_constraintdef",
        "pg_get_indexdef",
        "pg_get_ruledef",
        "pg_get_triggerdef",
        "pg_get_statisticsobjdef_columns",
        "pg_get_function_identity_arguments",
        "pg_get_function_result",
        "pg_get_serial_sequence",
        "pg_tablespace_location",
        "pg_size_pretty",
        "inet_server_addr",
        "inet_client_addr",
    ] {
        functions.push((name, nothing()));
    }
    functions.into_iter().map(move |(name, answer)| ScalarUDF::from(Udf::new(name, answer, known.clone())))
}

fn setting(name: &str, known: &Known) -> Option<String> {
    known.session.settings.get(&name.to_ascii_lowercase()).cloned()
}

/// A name as SQL needs it.
fn quoted(name: &str) -> String {
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if is_plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

struct Udf {
    name: &'static str,
    answer: Answer,
    known: Known,
    signature: Signature,
}

impl Udf {
    fn new(name: &'static str, answer: Answer, known: Known) -> Self {
        let any = TypeSignature::OneOf(vec![TypeSignature::Nullary, TypeSignature::VariadicAny]);
        Self { name, answer, known, signature: Signature::new(any, Volatility::Stable) }
    }
}

impl Debug for Udf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Udf {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Udf {}

impl Hash for Udf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for Udf {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match &self.answer {
            Answer::Is(value) => value.data_type(),
            Answer::Text(..) | Answer::Number(_) => DataType::Utf8,
            Answer::Oid => DataType::Int64,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let argument = |place: usize, data_type: DataType| -> Result<ArrayRef> {
            let column = match args.args.get(place) {
                Some(value) => value.to_array(args.number_rows)?,
                None => Arc::new(StringArray::new_null(args.number_rows)),
            };
            Ok(cast(&column, &data_type)?)
        };
        let array: ArrayRef = match &self.answer {
            Answer::Is(value) => return Ok(ColumnarValue::Scalar(value.clone())),
            Answer::Text(of, place) => {
                let texts = argument(*place, DataType::Utf8)?;
                let values = texts.as_string::<i32>().iter();
                Arc::new(
                    values.map(|text| text.and_then(|text| of(text, &self.known))).collect::<StringArray>(),
                )
            }
            Answer::Number(of) => {
                let numbers = argument(0, DataType::Int64)?;
                let values = numbers.as_primitive::<Int64Type>().iter();
                Arc::new(values.map(|n| n.and_then(|n| of(n, &self.known))).collect::<StringArray>())
            }
            Answer::Oid => {
                let texts = argument(0, DataType::Utf8)?;
                let values = texts.as_string::<i32>().iter();
                Arc::new(values.map(|name| name.map(table_oid)).collect::<Int64Array>())
            }
        };
        Ok(ColumnarValue::Array(array))
    }
}

/// The number of a table by its name as SQL has it, with or without its schema.
fn table_oid(name: &str) -> i64 {
    if let Ok(oid) = name.parse() {
        return oid;
    }
    let bare = name.rsplit_once('.').map_or(name, |(_, table)| table);
    let bare = bare.trim_matches('"').replace("\"\"", "\"");
    catalog::catalog_oid(&bare).unwrap_or_else(|| catalog::oid(&bare))
}
