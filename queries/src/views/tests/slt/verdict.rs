//! What a view makes of a query of a file, beside what the file and DataFusion say.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use datafusion::sql::sqlparser::ast;

use super::super::*;
use super::script::{Asked, Expected, Script};
use super::stream::{self, Content, Feed, Seeded};
use crate::views::{lower, spec};

/// More rows than this say nothing that fewer do not say.
const MAX_ROWS: usize = 2_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The view's rows are those of the file.
    Passed,
    /// The file wants an error, and the view is refused.
    RefusedAsMeant,
    Refused {
        error: String,
        hint: Option<String>,
    },
    /// The query is no test of a view.
    NotApplicable(&'static str),
    /// DataFusion gives another answer, too, when the rows of the tables come in another order.
    Unordered,
    Differs(String),
}

/// How strict to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suite {
    /// Files of ours: the view's rows must read as the file has them.
    Own,
    /// Files written for DataFusion: the types of its columns are others, and so is how they read.
    Public,
}

pub(super) fn of(script: &Script, asked: &Asked, suite: Suite) -> Verdict {
    let judged = catch_unwind(AssertUnwindSafe(|| judge(script, asked, suite)));
    judged.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Verdict::Differs(format!("panic: {}", text.unwrap_or_default()))
    })
}

fn judge(script: &Script, asked: &Asked, suite: Suite) -> Verdict {
    let contents = match script.contents(&asked.sql) {
        Ok(contents) => contents,
        Err(why) => return Verdict::NotApplicable(why),
    };
    if contents.iter().map(|content| content.rows.num_rows()).sum::<usize>() > MAX_ROWS {
        return Verdict::NotApplicable("reads more rows than help");
    }
    let is_refused = suite == Suite::Own && matches!(asked.expected, Expected::Error(_));
    let sql = if is_refused { asked.sql.clone() } else { without_order(&asked.sql) };
    let view = view(&sql, &contents, Feed::Streams, Emit::Changes);
    if let (Err(error), Expected::Error(meant)) = (&view, &asked.expected) {
        let is_meant = suite == Suite::Public || meant.is_match(&error.message, None);
        return if is_meant { Verdict::RefusedAsMeant } else { refused(error) };
    }
    let batch = match (asked.has_batch_answer, &asked.expected) {
        (_, Expected::Error(_)) => return Verdict::NotApplicable("fails at a row"),
        (false, _) => None,
        (true, _) => match script.answer(&asked.sql) {
            Ok(answer) => match answer.iter().map(normalised).collect() {
                Some(normalised) => Some(normalised),
                None => return Verdict::NotApplicable("has numbers that no column of a view can have"),
            },
            Err(error) if suite == Suite::Own => return Verdict::Differs(error.to_string()),
            Err(_) => return Verdict::NotApplicable("is not answered by DataFusion as it is set up here"),
        },
    };
    if let Err(error) = &view {
        return refused(error);
    }
    let mut seeded = Seeded::new(u64::from(asked.line) * 7919 + asked.file.len() as u64);
    let test = Test { script, asked, suite, contents: &contents, sql: &sql, batch };
    let mut ways = vec![(Feed::Streams, Emit::Changes), (Feed::Views, Emit::Changes)];
    if suite == Suite::Own {
        ways.push((Feed::Streams, Emit::Final));
    }
    for (feed, emit) in ways {
        if let Err(verdict) = test.run(feed, emit, &mut seeded) {
            return verdict;
        }
    }
    Verdict::Passed
}

/// Why a view cannot have the rows of a query; `None` if it can.
pub(super) fn refusal(script: &Script, asked: &Asked) -> Option<CompileError> {
    let contents = script.contents(&asked.sql).unwrap();
    view(&asked.sql, &contents, Feed::Streams, Emit::Changes).err()
}

fn refused(error: &CompileError) -> Verdict {
    Verdict::Refused { error: error.message.clone(), hint: error.help.clone() }
}

fn view(sql: &str, contents: &[Content], feed: Feed, emit: Emit) -> Result<Arc<dyn View>, CompileError> {
    let table = |content: &Content| Table {
        name: content.name.clone(),
        schema: content.rows.schema(),
        changes: feed == Feed::Views,
        fingerprint: 0,
    };
    let tables: Vec<Table> = contents.iter().map(table).collect();
    // Rows come in any order, and none is late.
    let lateness = Duration::from_secs(100 * 365 * 86_400);
    plan(sql, &tables, ViewOptions { lateness, ..options(emit) })
}

/// A query whose tables are known and which a view can answer.
struct Test<'a> {
    script: &'a Script,
    asked: &'a Asked,
    suite: Suite,
    contents: &'a [Content],
    sql: &'a str,
    batch: Option<Vec<RecordBatch>>,
}

impl Test<'_> {
    fn run(&self, feed: Feed, emit: Emit, seeded: &mut Seeded) -> Result<(), Verdict> {
        let view = match view(self.sql, self.contents, feed, emit) {
            Ok(view) => view,
            // Not every view has final rows, and not every one can have rows that are taken back.
            Err(_) if emit == Emit::Final || feed == Feed::Views => return Ok(()),
            Err(error) => return Err(refused(&error)),
        };
        let logs = stream::logs(self.contents, feed, seeded);
        if logs.iter().all(stream::Log::is_empty) {
            return Err(Verdict::NotApplicable("reads tables without rows"));
        }
        let outcome = stream::run(&view, &logs, seeded);
        if let Some(reason) = outcome.stopped {
            return Err(Verdict::Differs(format!("{feed:?}: stopped: {reason}")));
        }
        let format = if self.suite == Suite::Own { shown } else { formatted };
        let found = settled_as(&outcome.rows, emit, format);
        let wanted = self.wanted();
        if found != wanted {
            if self.depends_on_order(seeded) {
                return Err(Verdict::Unordered);
            }
            return Err(Verdict::Differs(format!("{feed:?}, {emit:?}: {}", difference(&found, &wanted))));
        }
        let rejects =
            self.asked.label.as_ref().and_then(|label| label.strip_prefix("rejects-")?.parse().ok());
        if feed == Feed::Streams && self.suite == Suite::Own && outcome.n_rejects != rejects.unwrap_or(0) {
            return Err(Verdict::Differs(format!("{} rejects", outcome.n_rejects)));
        }
        Ok(())
    }

    /// The rows that the view must have, sorted. What the file says and what DataFusion says must agree in files of ours;
    /// elsewhere the latter decides.
    fn wanted(&self) -> Vec<String> {
        let mut of_file = match &self.asked.expected {
            Expected::Rows(rows) => rows.clone(),
            Expected::Error(_) => Vec::new(),
        };
        of_file.sort_unstable();
        let Some(batch) = &self.batch else { return of_file };
        let format = if self.suite == Suite::Own { shown } else { formatted };
        let mut rows: Vec<String> = batch.iter().flat_map(format).collect();
        rows.sort_unstable();
        if self.suite == Suite::Own {
            assert_eq!(rows, of_file, "DataFusion's answer and the file's");
        }
        rows
    }

    fn depends_on_order(&self, seeded: &mut Seeded) -> bool {
        let answers: BTreeSet<Option<Vec<String>>> = (0..6)
            .map(|_| {
                let shuffled = |content: &Content| (content.name.clone(), content.shuffled(seeded));
                let tables: Vec<_> = self.contents.iter().map(shuffled).collect();
                let answer = self.script.answer_over(&self.asked.sql, &tables).ok()?;
                let mut rows: Vec<String> =
                    answer.iter().filter_map(normalised).flat_map(|rows| formatted(&rows)).collect();
                rows.sort_unstable();
                Some(rows)
            })
            .collect();
        answers.len() > 1
    }
}

/// The rows that are in one answer and not in the other.
fn difference(found: &[String], wanted: &[String]) -> String {
    let only = |these: &[String], those: &[String]| {
        let rows: Vec<&str> = these.iter().filter(|row| !those.contains(row)).map(String::as_str).collect();
        rows.iter().take(3).map(|row| row.chars().take(200).collect()).collect::<Vec<String>>()
    };
    let counts = format!("{} rows, {} wanted", found.len(), wanted.len());
    format!("{counts}; only found: {:?}; only wanted: {:?}", only(found, wanted), only(wanted, found))
}

/// The same columns in the types that rows of a pipeline have; `None` if they do not have such values.
fn normalised(rows: &RecordBatch) -> Option<RecordBatch> {
    match lower::normalised(&rows.schema()) {
        Some(stage) => spec::run(&[stage], rows).map(|staged| staged.rows).ok(),
        None => Some(rows.clone()),
    }
}

/// A view has no order: ORDER BY that only sorts the answer is left out.
fn without_order(sql: &str) -> String {
    let Ok(mut query) = sql::parse(sql, &[], &Positions::new(sql)) else { return sql.to_owned() };
    let decides = query.limit_clause.is_some()
        || query.fetch.is_some()
        || match &*query.body {
            ast::SetExpr::Select(select) => matches!(select.distinct, Some(ast::Distinct::On(_))),
            other => matches!(other, ast::SetExpr::Values(_)),
        };
    if query.order_by.is_none() || decides {
        return sql.to_owned();
    }
    query.order_by = None;
    query.to_string()
}

fn without_zeros(number: &str) -> String {
    if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        number.to_owned()
    }
}

fn rounded(number: &str) -> String {
    match number.parse::<f64>() {
        Ok(value) if value.is_finite() => without_zeros(&format!("{value:.9}")),
        _ => number.to_owned(),
    }
}

/// Rows as sqllogictest writes them: cells with a space in between.
pub(super) fn shown(rows: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let formats: Vec<_> =
        rows.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
    let cell = |column: usize, row: usize| {
        let text = formats[column].value(row).to_string();
        match rows.column(column).data_type() {
            DataType::Utf8View if text.is_empty() => "(empty)".into(),
            // Sums in another order differ in the last digits.
            DataType::Float64 => rounded(&text),
            DataType::Decimal128(..) => without_zeros(&text),
            _ => text,
        }
    };
    let row = |row: usize| (0..formats.len()).map(|column| cell(column, row)).collect::<Vec<_>>().join(" ");
    (0..rows.num_rows()).map(row).collect()
}
