//! The expression compiler as operators see it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, helpers included")]

use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, StringViewArray, StructArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Fields, Schema, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use logdrive_operators::{CompileError, Compiler, Expression};
use logdrive_queries::SqlCompiler;

static COMPILER: LazyLock<SqlCompiler> = LazyLock::new(SqlCompiler::new);

fn schema() -> Schema {
    let payment = Fields::from(vec![
        Field::new("method", DataType::Utf8View, true),
        Field::new("amount", DataType::Decimal128(10, 2), true),
        Field::new(
            "card",
            DataType::Struct(Fields::from(vec![Field::new("bin", DataType::Utf8View, true)])),
            true,
        ),
    ]);
    Schema::new(vec![
        Field::new("@timestamp", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("level", DataType::Utf8View, true),
        Field::new("latency_ms", DataType::Int64, true),
        Field::new("userId", DataType::Utf8View, true),
        Field::new("user", DataType::Utf8View, true),
        Field::new("type", DataType::Utf8View, true),
        Field::new("ok", DataType::Boolean, true),
        Field::new("payment", DataType::Struct(payment), true),
        Field::new("tags", DataType::List(Arc::new(Field::new("item", DataType::Utf8View, true))), true),
    ])
}

fn rows() -> RecordBatch {
    let DataType::Struct(payment) = schema().field_with_name("payment").unwrap().data_type().clone() else {
        unreachable!()
    };
    let DataType::Struct(card) = payment[2].data_type().clone() else { unreachable!() };
    let texts = |values: [Option<&str>; 3]| Arc::new(StringViewArray::from(values.to_vec())) as ArrayRef;
    let times = TimestampMicrosecondArray::from(vec![Some(0), Some(1_700_000_000_000_000), None])
        .with_timezone("UTC");
    let amounts = arrow::array::Decimal128Array::from(vec![Some(1050), None, Some(3)]);
    let cards = StructArray::new(card, vec![texts([Some("411111"), None, None])], None);
    let payments = StructArray::new(
        payment,
        vec![
            texts([Some("card"), Some("paypal"), None]),
            Arc::new(amounts.with_precision_and_scale(10, 2).unwrap()),
            Arc::new(cards),
        ],
        None,
    );
    let mut tags = arrow::array::ListBuilder::new(arrow::array::StringViewBuilder::new());
    tags.values().append_value("a");
    tags.values().append_value("b");
    tags.append(true);
    tags.append(true);
    tags.append(false);
    RecordBatch::try_new(
        Arc::new(schema()),
        vec![
            Arc::new(times),
            texts([Some("DEBUG"), Some("INFO"), None]),
            Arc::new(Int64Array::from(vec![Some(500), Some(0), None])),
            texts([Some("u1"), Some("u2"), None]),
            texts([Some("ann"), Some("bob"), None]),
            texts([Some("error"), Some("transaction"), None]),
            Arc::new(BooleanArray::from(vec![Some(true), Some(false), None])),
            Arc::new(payments),
            Arc::new(tags.finish()),
        ],
    )
    .unwrap()
}

fn compile(sql: &str) -> Arc<dyn Expression> {
    COMPILER.compile(sql, &schema()).unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

fn error(sql: &str) -> CompileError {
    match COMPILER.compile(sql, &schema()) {
        Ok(expression) => panic!("{sql} compiles: {expression:?}"),
        Err(error) => error,
    }
}

/// The piece of the text that an error points at.
fn pointed<'a>(sql: &'a str, error: &CompileError) -> &'a str {
    let (start, length) = error.at.unwrap_or_else(|| panic!("{error:?} points nowhere"));
    &sql[start..start + length]
}

fn texts(values: &ArrayRef) -> Vec<String> {
    let options = FormatOptions::new().with_null("null");
    let formatter = ArrayFormatter::try_new(values, &options).unwrap();
    (0..values.len()).map(|row| formatter.value(row).to_string()).collect()
}

fn eval(sql: &str) -> Vec<String> {
    let expression = compile(sql);
    let values = expression.evaluate(&rows()).unwrap_or_else(|error| panic!("{sql}: {error}"));
    assert_eq!(values.len(), 3, "{sql}");
    assert_eq!(values.data_type(), expression.data_type(), "{sql}");
    texts(&values)
}

#[test]
fn expressions_have_their_values() {
    for (sql, expected) in [
        ("level <> 'DEBUG'", ["false", "true", "null"]),
        ("latency_ms / 1000.0", ["0.5", "0.0", "null"]),
        ("userId", ["u1", "u2", "null"]),
        ("UPPER(userId) || '!'", ["U1!", "U2!", "null"]),
        ("type = 'error' AND ok", ["true", "false", "null"]),
        ("user = 'ann'", ["true", "false", "null"]),
        ("payment.method", ["card", "paypal", "null"]),
        ("payment['method']", ["card", "paypal", "null"]),
        ("payment.card.bin", ["411111", "null", "null"]),
        ("payment['card'].bin", ["411111", "null", "null"]),
        ("payment.card['bin']", ["411111", "null", "null"]),
        ("payment.amount * 2", ["21.00", "null", "0.06"]),
        ("\"@timestamp\" > '2020-01-01'", ["false", "true", "null"]),
        ("@timestamp > '2020-01-01T00:00:00Z'", ["false", "true", "null"]),
        ("date_part('year', \"@timestamp\")", ["1970", "2023", "null"]),
        ("tags[1]", ["a", "null", "null"]),
        ("array_length(tags)", ["2", "0", "null"]),
        ("CASE WHEN ok THEN 'yes' ELSE 'no' END", ["yes", "no", "no"]),
        ("coalesce(level, 'none')", ["DEBUG", "INFO", "none"]),
        ("level IN ('INFO', 'WARN')", ["false", "true", "null"]),
        ("level LIKE 'D%'", ["true", "false", "null"]),
        ("level ~ '^I'", ["false", "true", "null"]),
        ("1 + 1", ["2", "2", "2"]),
        ("'x'", ["x", "x", "x"]),
        ("true", ["true", "true", "true"]),
        ("latency_ms BETWEEN 1 AND 1000 -- a comment", ["true", "false", "null"]),
        ("try_cast(userId AS BIGINT) IS NULL", ["true", "true", "true"]),
        ("tags IS NULL", ["false", "false", "true"]),
    ] {
        assert_eq!(eval(sql), expected, "{sql}");
    }
}

#[test]
fn text_leaves_as_views() {
    for sql in
        ["'x'", "level", "upper(level)", "concat(level, 'x')", "CAST(latency_ms AS VARCHAR)", "redact(level)"]
    {
        assert_eq!(*compile(sql).data_type(), DataType::Utf8View, "{sql}");
    }
}

#[test]
fn columns_are_not_copied_to_be_compared() {
    let plan = format!("{:?}", compile("level <> 'DEBUG'"));
    assert!(!plan.contains("Cast"), "{plan}");
    let plan = format!("{:?}", compile("\"@timestamp\" > '2020-01-01'"));
    assert!(!plan.contains("Cast") && plan.contains("Timestamp"), "{plan}");
}

#[test]
fn columns_are_those_read_sorted() {
    for (sql, expected) in [
        ("userId || level || userId", vec!["level", "userId"]),
        ("payment.card.bin = payment.method", vec!["payment"]),
        ("1 = 1", vec![]),
        ("@timestamp IS NULL", vec!["@timestamp"]),
    ] {
        assert_eq!(compile(sql).columns(), expected, "{sql}");
    }
}

#[test]
fn columns_are_found_by_name() {
    let expression = compile("latency_ms + 1");
    let narrow = rows().project(&[4, 2]).unwrap();
    assert_eq!(texts(&expression.evaluate(&narrow).unwrap()), ["501", "1", "null"]);
    let error = expression.evaluate(&rows().project(&[0]).unwrap()).unwrap_err();
    assert!(error.0.contains("no column `latency_ms`"), "{error}");
}

#[test]
fn a_failing_row_fails_the_batch_and_halving_finds_it() {
    let expression = compile("1000 / latency_ms");
    assert!(expression.evaluate(&rows()).unwrap_err().0.to_lowercase().contains("divide by zero"));
    assert_eq!(texts(&expression.evaluate(&rows().slice(0, 1)).unwrap()), ["2"]);
    assert!(expression.evaluate(&rows().slice(1, 1)).is_err());
    assert_eq!(texts(&expression.evaluate(&rows().slice(2, 1)).unwrap()), ["null"]);
    assert_eq!(expression.evaluate(&rows().slice(0, 0)).unwrap().len(), 0);
}

#[test]
fn unknown_names_are_pointed_at_with_the_nearest() {
    for (sql, at, help) in [
        ("levle = 'x'", "levle", "did you mean `level`?"),
        ("1 = 1 AND\n  userid = 'é' AND ok", "userid", "did you mean `userId`?"),
        ("'é' = lvel", "lvel", "did you mean `level`?"),
        ("payment.metod", "payment.metod", "did you mean `payment.method`?"),
        ("payment['card'].bim", "payment['card'].bim", "did you mean `payment.card.bin`?"),
        ("bin = '4'", "bin", "did you mean `payment.card.bin`?"),
        ("timestamp IS NULL", "timestamp", "did you mean `\"@timestamp\"`?"),
        ("completely_different", "completely_different", "declare it in the source's schema"),
        ("\"Level\" = 'x'", "\"Level\"", "did you mean `level`?"),
    ] {
        let error = error(sql);
        assert_eq!(error.code, "sql::unknown_column", "{error:?}");
        assert_eq!(pointed(sql, &error), at, "{error:?}");
        assert!(error.help.as_deref().unwrap().starts_with(help), "{error:?}");
    }
    let through = error("level.x = 1");
    assert_eq!(through.code, "sql::unknown_column");
    assert!(through.message.contains("`level` has no fields"), "{through:?}");
}

#[test]
fn unknown_functions_are_pointed_at_with_the_nearest() {
    let sql = "level = 'x' OR cidr_mach(level, '10.0.0.0/8')";
    let found = error(sql);
    assert_eq!((found.code, pointed(sql, &found)), ("sql::unknown_function", "cidr_mach"));
    assert_eq!(found.help.as_deref(), Some("did you mean `cidr_match`?"));
    assert_eq!(error("a.b(level)").code, "sql::unknown_function");
    assert_eq!(error("zzzzzzzzzz()").help, None);
}

#[test]
fn a_replay_gives_the_same_values() {
    for sql in [
        "now()",
        "NOW() > \"@timestamp\"",
        "random() < 0.5",
        "uuid()",
        "current_date()",
        "current_timestamp",
        "current_date",
    ] {
        let error = error(sql);
        assert_eq!(error.code, "sql::volatile", "{sql}: {error:?}");
        assert!(error.help.is_some() && error.at.is_some(), "{sql}: {error:?}");
    }
}

#[test]
fn only_scalar_expressions_compile() {
    for sql in [
        "",
        "   ",
        "-- nothing",
        "level =",
        "level = 'x",
        "level = 'x' level",
        "level AS l",
        "level; level",
        "level;",
        "SELECT 1",
        "(SELECT 1)",
        "level IN (SELECT 'x')",
        "EXISTS (SELECT 1)",
        "latency_ms > ANY (SELECT 1)",
        "count(*)",
        "sum(latency_ms) > 1",
        "row_number() OVER ()",
        "lag(level) OVER (ORDER BY level)",
        "*",
        "$1",
        "?",
        "level,",
        ")",
        "(level",
        "\0",
        "level = \u{202e}'x'",
    ] {
        let error = error(sql);
        assert_eq!(error.code, "sql::syntax", "{sql}: {error:?}");
        assert!(!error.message.is_empty() && !error.message.contains("Line:"), "{sql}: {error:?}");
    }
    let sql = "level = 'x' levl";
    assert_eq!(pointed(sql, &error(sql)), "levl");
    let sql = "latency_ms + count(level)";
    assert_eq!(pointed(sql, &error(sql)), "count");
}

#[test]
fn types_that_do_not_fit_do_not_compile() {
    for sql in [
        "level + payment",
        "ok > 'maybe'",
        "\"@timestamp\" > 'yesterday'",
        "CAST('x' AS BIGINT)",
        "upper()",
        "date_part(level)",
        "payment = 1",
        "CASE WHEN payment THEN 1 END",
    ] {
        let error = error(sql);
        assert_eq!(error.code, "sql::type", "{sql}: {error:?}");
        assert!(!error.message.contains("Error during") && !error.message.contains('\n'), "{sql}: {error:?}");
    }
}

#[test]
fn bombs_are_errors() {
    let nested = |open: &str, close: &str, n: usize| format!("{}1{}", open.repeat(n), close.repeat(n));
    for sql in [
        nested("(", ")", 10_000),
        nested("upper(", ")", 10_000),
        nested("[", "]", 10_000),
        nested("NOT ", "", 10_000),
        nested("- ", "", 10_000),
        nested("CASE WHEN ok THEN ", " END", 3_000),
        format!("ok{}", " AND ok".repeat(10_000)),
        format!("1{}", " + 1".repeat(10_000)),
        "x".repeat(1 << 20),
        "(".repeat(10_000),
        format!("level{}", "['x']".repeat(5_000)),
        format!("level{}", "::VARCHAR".repeat(5_000)),
        // Below the limits on text, above that on depth.
        format!("1{}", " + latency_ms".repeat(1_400)),
        format!("{}ok", "NOT ".repeat(790)),
        format!("level{}", "['x']".repeat(2_000)),
        nested("coalesce(1, 1 + ", ")", 190),
    ] {
        let error = error(&sql);
        assert_eq!(error.code, "sql::syntax", "{}…: {error:?}", &sql[..30]);
    }
}

#[test]
fn long_but_shallow_expressions_compile_and_evaluate() {
    let any = (0..900).map(|n| format!("level = 'l{n}'")).collect::<Vec<_>>().join(" OR ");
    assert_eq!(eval(&any), ["false", "false", "null"]);
    let list = (0..5_000).map(|n| format!("'l{n}'")).collect::<Vec<_>>().join(", ");
    assert_eq!(eval(&format!("level IN ({list})")), ["false", "false", "null"]);
    let deep = format!("{}latency_ms{}", "(".repeat(150), ")".repeat(150));
    assert_eq!(eval(&deep), ["500", "0", "null"]);
    // At the limit of depth, on a stack as small as a worker's may be.
    let calls = format!("{}level{}", "upper(lower(".repeat(48), "))".repeat(48));
    assert_eq!(eval(&calls), ["DEBUG", "INFO", "null"]);
    let sum = format!("latency_ms{}", " + latency_ms".repeat(90));
    assert_eq!(eval(&sum), ["45500", "0", "null"]);
}
