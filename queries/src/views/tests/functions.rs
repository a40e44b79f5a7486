//! Functions that users define, called by views.

use std::sync::Arc;

use arrow::datatypes::DataType;

use super::harness::Run;
use super::{Row, START, epochs, events, options, settled};
use crate::functions::Functions;
use crate::views::{Emit, View, ViewOptions, plan};

fn doubled(sql: &str) -> Functions {
    let mut functions = Functions::default();
    functions.define("doubled", vec![("x".into(), DataType::Float64)], sql).unwrap();
    functions
}

fn with(sql: &str, functions: Functions) -> Arc<dyn View> {
    let options = ViewOptions { functions, ..options(Emit::Changes) };
    plan(sql, &[events()], options).unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

fn rows(view: &Arc<dyn View>) -> Vec<String> {
    let row = |n: i64| Row {
        at: Some(START as i64 * 1_000 + n),
        tenant: Some(if n % 2 == 0 { "a" } else { "b" }),
        n: Some(n),
        amount: Some(n as f64),
    };
    let epochs = epochs(&[(0..40).map(row).collect()], &[3, 1]);
    let outcome = Run { view, workers: 2, crashes: false, restored: None, read_at: None }.go(&epochs);
    settled(&outcome.rows, Emit::Changes)
}

#[test]
fn a_call_in_a_view_is_the_expression_that_it_stands_for() {
    for (called, written) in [
        (
            "SELECT tenant, sum(doubled(amount)) AS s FROM events WHERE doubled(amount) > 4 \
             GROUP BY tenant, tumble(\"@timestamp\", INTERVAL '1 minute')",
            "SELECT tenant, sum(amount * 2) AS s FROM events WHERE amount * 2 > 4 \
             GROUP BY tenant, tumble(\"@timestamp\", INTERVAL '1 minute')",
        ),
        (
            "SELECT DOUBLED(e.amount) AS d, o.n FROM events e JOIN events o ON doubled(e.amount) = o.amount",
            "SELECT e.amount * 2 AS d, o.n FROM events e JOIN events o ON e.amount * 2 = o.amount",
        ),
        (
            "SELECT doubled(n % 3) AS d, count(*) AS c FROM events GROUP BY doubled(n % 3) HAVING doubled(count(*)) > 26",
            "SELECT (n % 3) * 2.0 AS d, count(*) AS c FROM events GROUP BY (n % 3) * 2.0 HAVING count(*) > 13",
        ),
    ] {
        let (as_called, as_written) = (with(called, doubled("x * 2")), with(written, Functions::default()));
        assert_eq!(as_called.schema(), as_written.schema(), "{called}");
        let told = rows(&as_called);
        assert!(!told.is_empty(), "{called}");
        assert_eq!(told, rows(&as_written), "{called}");
        // Another function, another view.
        assert_eq!(as_called.fingerprints(), with(called, doubled("x * 2")).fingerprints(), "{called}");
        assert_ne!(as_called.fingerprints(), with(called, doubled("x * 3")).fingerprints(), "{called}");
    }
}

#[test]
fn a_view_knows_no_function_that_is_not_defined() {
    let error = plan("SELECT doubled(amount) AS d FROM events", &[events()], options(Emit::Changes));
    assert!(error.unwrap_err().message.contains("doubled"));
}
