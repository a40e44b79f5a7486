//! What views can compute, found by trying: every aggregate function that DataFusion has, as a view over a stream that
//! is cut into epochs and workers, beside the batch answer. The list in the reference is made of this.

use std::fmt::Write as _;
use std::path::Path;

use super::*;

/// What the reference says of a function.
enum Found {
    Equal,
    /// Right, but not the only right answer: it depends on the order in which rows come.
    Close,
    Refused(String),
}

const ARGUMENTS: &[&str] = &[
    "amount",
    "n",
    "n > 1",
    "tenant",
    "amount, n",
    "amount, n, 0.5",
    "amount, 0.9",
    "amount, 2",
    "tenant, ','",
    "*",
    "\"@timestamp\"",
];

const WINDOW: &str = "tumble(\"@timestamp\", INTERVAL '1 minute')";

fn sample() -> Vec<Vec<Row>> {
    let row = |n: i64| Row {
        at: Some(START as i64 * 1_000 + n * SECOND),
        tenant: [Some("a"), None, Some("b")][n as usize % 3],
        n: (n % 7 != 0).then_some(n % 5),
        amount: (n % 4 != 0).then_some((n * 37 % 101) as f64),
    };
    vec![(0..150).map(row).collect(), (0..150).step_by(7).map(row).collect()]
}

/// The first arguments that the function takes, and what a view makes of it.
fn tried(name: &str) -> Option<(String, Found)> {
    let rows = sample().concat();
    ARGUMENTS.iter().find_map(|arguments| {
        let orders = name.starts_with("first")
            || name.starts_with("last")
            || name.starts_with("nth")
            || name.ends_with("_agg");
        let order = if orders { " ORDER BY \"@timestamp\", n, amount" } else { "" };
        let call = format!("{name}({arguments}{order})");
        let sql = format!("SELECT tenant, {call} AS value FROM events GROUP BY tenant, {WINDOW}");
        let expected = try_batch_answer(&sql, &rows, None).ok()?;
        let shown = format!("{name}({arguments})");
        let view = match view(&sql, Emit::Final) {
            Ok(view) => view,
            Err(error) => return Some((shown, Found::Refused(error.message))),
        };
        let all = epochs(&sample(), &[3, 11, 6, 1]);
        let outcome = Run { view: &view, workers: 2, crashes: false, restored: None, read_at: None }.go(&all);
        if let Some(reason) = outcome.stopped {
            return Some((shown, Found::Refused(reason)));
        }
        let found = settled(&outcome.rows, Emit::Final);
        if found == expected {
            return Some((shown, Found::Equal));
        }
        assert!(name.starts_with("approx") || name == "any_value", "{sql}:\n{found:?}\n{expected:?}");
        Some((shown, Found::Close))
    })
}

fn functions() -> String {
    let state = session::builder().build();
    let mut names: Vec<&String> = state.aggregate_functions().keys().collect();
    names.sort_unstable();
    let (mut equal, mut close, mut refused) = (Vec::new(), Vec::new(), String::new());
    for name in names {
        match tried(name) {
            Some((call, Found::Equal)) => equal.push(format!("`{call}`")),
            Some((call, Found::Close)) => close.push(format!("`{call}`")),
            Some((call, Found::Refused(why))) => writeln!(refused, "- `{call}`: {why}").unwrap(),
            None => {}
        }
    }
    let mut text = format!(
        "**Aggregate functions** that give what DataFusion gives over the same rows: {}.\n",
        equal.join(", ")
    );
    if !close.is_empty() {
        writeln!(text, "\nRight, but dependent on the order in which rows come: {}.", close.join(", "))
            .unwrap();
    }
    if !refused.is_empty() {
        write!(text, "\nNot yet:\n\n{refused}").unwrap();
    }
    text
}

#[test]
fn the_reference_says_what_works() {
    let mut text = functions();
    text.push_str("\n**Queries** that are tested against the batch answer over random rows, epochs, workers and crashes:\n\n```sql\n");
    let plain = CASES.iter().map(|case| case.view).chain(ENDLESS.iter().copied());
    let queries =
        plain.chain(delta::QUERIES.iter().copied()).chain(delta::AS_OF.iter().map(|(view, _)| *view));
    queries.for_each(|query| {
        let words: Vec<&str> = query.split_whitespace().collect();
        writeln!(text, "{};", words.join(" ")).unwrap();
    });
    text.push_str("```\n\n**Queries** whose rows are told once (`emit: final`), tested so:\n\n```sql\n");
    finals::FINAL.iter().for_each(|query| writeln!(text, "{query};").unwrap());
    text.push_str("```\n\n**Refused**, with what to do instead:\n\n| query | answer |\n|---|---|\n");
    for (sql, emit) in REFUSED {
        let error = refusal(sql, *emit);
        let help = error.help.map(|help| format!("; {help}")).unwrap_or_default();
        writeln!(text, "| `{}` | {}{help} |", sql.replace('|', "\\|"), error.message).unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/views.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = page.split_once("<!-- generated").unwrap();
    let (comment, rest) = rest.split_once("-->\n").unwrap();
    let (_, tail) = rest.split_once("<!-- end -->").unwrap();
    let fresh = format!("{head}<!-- generated{comment}-->\n\n{text}\n<!-- end -->{tail}");
    if std::env::var_os("LOGDRIVE_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &fresh).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap();
    assert!(page == fresh, "docs/views.md is out of date: run with LOGDRIVE_UPDATE_DOCS=1\n{text}");
}
