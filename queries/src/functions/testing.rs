//! What the tests of all functions need: expressions are evaluated through the compiler, as users do.

use std::io::{Write as _, stdout};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, LargeStringArray, RecordBatch, StringArray, StringViewArray};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use logdrive_operators::{CompileError, Compiler};

use crate::SqlCompiler;

static COMPILER: LazyLock<SqlCompiler> = LazyLock::new(SqlCompiler::new);

fn text_batch(column: ArrayRef) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable([("text", column, true)]).unwrap()
}

fn run(sql: &str, rows: &RecordBatch) -> Vec<String> {
    let expression = COMPILER.compile(sql, &rows.schema()).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let values = expression.evaluate(rows).unwrap_or_else(|error| panic!("{sql}: {error}"));
    assert_eq!(values.len(), rows.num_rows());
    let options = FormatOptions::new().with_null("null");
    let formatter = ArrayFormatter::try_new(&values, &options).unwrap();
    (0..values.len()).map(|row| formatter.value(row).to_string()).collect()
}

/// The value of a constant expression, as text.
pub(crate) fn eval(sql: &str) -> String {
    run(sql, &text_batch(Arc::new(StringViewArray::from(vec![Option::<&str>::None])))).remove(0)
}

/// The values of an expression over a column `text`, which must be the same for every Arrow string type. A null row
/// is added, and must give null.
pub(crate) fn eval_texts(sql: &str, texts: &[&str]) -> Vec<String> {
    let values: Vec<Option<&str>> = texts.iter().copied().map(Some).chain([None]).collect();
    let columns: [ArrayRef; 3] = [
        Arc::new(StringViewArray::from(values.clone())),
        Arc::new(StringArray::from(values.clone())),
        Arc::new(LargeStringArray::from(values)),
    ];
    let [view, utf8, large] = columns.map(|column| run(sql, &text_batch(column)));
    assert_eq!(view, utf8, "{sql}");
    assert_eq!(view, large, "{sql}");
    let (last, rest) = view.split_last().unwrap();
    assert!(last == "null" || sql.contains("IS NULL"), "{sql}: null gives {last}");
    rest.to_vec()
}

/// The error of an expression over a text column `text`.
pub(crate) fn compile_error(sql: &str) -> CompileError {
    let rows = text_batch(Arc::new(StringViewArray::from(vec!["x"])));
    COMPILER.compile(sql, &rows.schema()).expect_err(sql)
}

/// A file of the shared data; `None`, with a line that says so, if it is not at hand.
pub(crate) fn shared(test: &str, path: &str) -> Option<String> {
    let root = std::env::var("LOGDRIVE_SHARED")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared").into());
    let text = std::fs::read_to_string(Path::new(&root).join("data").join(path)).ok();
    if text.is_none() {
        writeln!(&mut stdout(), "skipped: {test}: data not at hand").unwrap();
    }
    text
}

#[test]
fn every_example_is_true() {
    for function in crate::FUNCTIONS {
        let (sql, expected) = function.example;
        assert_eq!(eval(sql), expected, "{sql}");
    }
}

#[test]
fn functions_are_sorted_and_documented() {
    assert!(crate::FUNCTIONS.is_sorted_by_key(|function| function.name));
    for function in crate::FUNCTIONS {
        assert!(function.signature.starts_with(&format!("{}(", function.name)), "{function:?}");
        assert!(function.signature.contains(" → ") && function.doc.len() > 20, "{function:?}");
        assert!(function.example.0.starts_with(function.name), "{function:?}");
    }
}

#[test]
fn hostile_strings_never_panic() {
    let Some(text) = shared("hostile_strings_never_panic", "naughty-strings/blns.json") else { return };
    let strings: Vec<String> = serde_json::from_str(&text).unwrap();
    let strings: Vec<&str> = strings.iter().map(String::as_str).collect();
    for sql in [
        "cidr_match(text, '10.0.0.0/8')",
        "cidr_match('10.0.0.1', text)",
        "hmac_sha256(text, text)",
        "hmac_sha256('k', text)",
        "ip_version(text)",
        "json_get(text, 'a.b[0]')",
        "json_get_bool(text, '$')",
        "json_get_float(text, '$')",
        "json_get_int(text, '$')",
        "json_get_str(text, '$')",
        "luhn_valid(text)",
        "parse_url(text)['path']",
        "parse_url(text, 'host')",
        "redact(text)",
        "redact(text, 'card,iban')",
        "regexp_extract(text, '(.)$')",
        "sha256(text)",
    ] {
        assert_eq!(eval_texts(sql, &strings).len(), strings.len());
    }
    // The same strings as SQL: an error or a value, never a panic.
    let rows = text_batch(Arc::new(StringViewArray::from(vec!["x"])));
    for string in strings {
        if let Ok(expression) = COMPILER.compile(string, &rows.schema()) {
            expression.evaluate(&rows).map(drop).unwrap_or_default();
        }
    }
}
