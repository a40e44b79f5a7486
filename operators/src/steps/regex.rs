//! `regex`: fields out of text.
//!
//! The engine takes linear time, and a pattern whose automaton would be large does not compile, so neither a pattern
//! nor a text can stall a worker. Text columns are views into the buffers of the column that was searched.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, ByteView, StringViewArray, make_view};
use arrow::buffer::NullBuffer;
use arrow::compute::{can_cast_types, cast};
use arrow::datatypes::DataType;
use logdrive_schemas::component::{Component, ConfigError, Node, NodeKind};
use logdrive_schemas::{Batch, FieldType, Layout, Reject, reject};
use regex_automata::Input;
use regex_automata::meta::{Cache, Config, Regex as Engine};
use regex_automata::util::primitives::NonMaxUsize;
use schemars::JsonSchema;
use serde::Deserialize;

use super::cast::{cast_failed, converted, unknown_type};
use super::edit::{Entries, entry, put, put_column, unknown_field};
use crate::step::{Emit, Stage, Step, StepConfig, StepContext, StepPlan};

/// The largest automaton of one pattern, in bytes.
const SIZE_LIMIT: usize = 1 << 20;
/// The most patterns of one step.
const PATTERNS_MAX: usize = 64;

/// What becomes of a row in which no pattern is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnNoMatch {
    /// It is a reject (`no_match`).
    #[default]
    Reject,
    /// It goes on; the fields are null.
    Keep,
    /// It is removed, and counted.
    Drop,
}

/// Takes fields out of text with a regular expression: every named group, such as `(?<status>\d{3})`, becomes a field.
///
/// The syntax is that of Rust's `regex`: as in Perl, but without look-around and back-references, so that the time is
/// linear in the text whatever the pattern. A pattern is searched anywhere in the text; `^` and `$` tie it to its start
/// and end. A group that takes no part in the match is null. A text that does not fit its type makes the row a reject
/// (`cast_failed`), as with `cast`. A pattern whose automaton exceeds 1 MiB is an error.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Regex {
    /// The field that is searched, a string. A null is a text without a match.
    pub field: String,
    /// The regular expression.
    #[serde(default)]
    pub pattern: Option<String>,
    /// Instead of `pattern`: several, of which the first that is found counts. The fields are those of all.
    #[serde(default)]
    pub patterns: Vec<String>,
    /// The types of groups: `boolean`, `decimal(p,s)`, `float64`, `int64`, `ip`, `string` or `timestamp`; `string` if
    /// not named here.
    #[serde(default)]
    pub types: Entries<String>,
    /// What becomes of a row in which no pattern is found: `reject`, `keep` or `drop`.
    #[serde(default)]
    pub on_no_match: OnNoMatch,
}

impl Component for Regex {
    const NAME: &'static str = "regex";
    const EXAMPLE: &'static str = concat!(
        "regex: { field: message, pattern: '^(?<status>\\d{3}) (?<ms>[0-9.]+)', types: { status: int64, ms: float64 }, ",
        "on_no_match: keep }"
    );
}

impl StepConfig for Regex {
    fn plan(self, node: &Node, input: &Stage, _: &StepContext) -> Result<StepPlan, Vec<ConfigError>> {
        let mut errors = Vec::new();
        match input.schema.field_with_name(&self.field) {
            Ok(field) if can_be_searched(field.data_type()) => {}
            Ok(_) => {
                let message = format!("`{}` is no string, so nothing can be searched in it", self.field);
                errors.push(ConfigError::new("config::wrong_type", entry(node, "field").span, message));
            }
            Err(_) => errors.push(unknown_field(&self.field, entry(node, "field").span, &input.schema)),
        }
        let patterns = self.compile(node, &mut errors);
        let mut columns: Vec<Column> = Vec::new();
        for name in patterns.iter().flat_map(group_names) {
            if !columns.iter().any(|column| column.name == name) {
                columns.push(Column::text(name));
            }
        }
        self.read_types(node, &mut columns, &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut stage = input.clone();
        for column in &mut columns {
            (stage, column.idx) = put(&stage, column.field_type.field(&column.name));
            column.stage = Some(stage.clone());
        }
        let patterns: Vec<Pattern> =
            patterns.into_iter().map(|engine| Pattern::new(engine, &columns)).collect();
        let writes = columns.iter().map(|column| column.name.clone()).collect();
        let (field, layout, on_no_match) = (self.field.clone(), Arc::clone(&stage.layout), self.on_no_match);
        Ok(StepPlan {
            output: stage,
            reads: vec![self.field],
            writes,
            renames: Vec::new(),
            reloads: Vec::new(),
            build: Box::new(move || {
                Box::new(Search {
                    field: field.clone(),
                    searchers: patterns.iter().map(Searcher::new).collect(),
                    columns: columns.clone(),
                    layout: Arc::clone(&layout),
                    on_no_match,
                })
            }),
        })
    }
}

fn can_be_searched(data_type: &DataType) -> bool {
    matches!(data_type, DataType::LargeUtf8 | DataType::Utf8 | DataType::Utf8View)
}

/// The names of a pattern's groups.
fn group_names(engine: &Engine) -> impl Iterator<Item = &str> {
    engine.group_info().all_names().filter_map(|(_, _, name)| name)
}

impl Regex {
    fn compile(&self, node: &Node, errors: &mut Vec<ConfigError>) -> Vec<Engine> {
        let list: Vec<(&str, &Node)> = match (&self.pattern, entry(node, "patterns")) {
            (Some(pattern), _) if self.patterns.is_empty() => vec![(pattern, entry(node, "pattern"))],
            (None, Node { kind: NodeKind::Seq(nodes), .. }) if !self.patterns.is_empty() => {
                self.patterns.iter().map(String::as_str).zip(nodes).collect()
            }
            (found, _) => {
                let what = if found.is_some() { "both `pattern` and `patterns`" } else { "no `pattern`" };
                let error = ConfigError::new("config::missing_key", node.span, format!("`regex` has {what}"));
                errors.push(error.with_help("write either `pattern`, or `patterns` with a list"));
                return Vec::new();
            }
        };
        if list.len() > PATTERNS_MAX {
            let message = format!("more than {PATTERNS_MAX} patterns");
            errors.push(ConfigError::new("config::bad_pattern", entry(node, "patterns").span, message));
            return Vec::new();
        }
        list.into_iter()
            .filter_map(|(pattern, at)| engine(pattern, at).map_err(|e| errors.push(e)).ok())
            .collect()
    }

    fn read_types(&self, node: &Node, columns: &mut [Column], errors: &mut Vec<ConfigError>) {
        let types = entry(node, "types");
        for (name, type_name) in &self.types.0 {
            let place = entry(types, name);
            let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
            let Some(column) = columns.iter_mut().find(|column| column.name == *name) else {
                // Without a group the patterns are at fault, which is said there.
                if !names.is_empty() {
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    errors.push(ConfigError::unknown_name(
                        "config::unknown_field",
                        place.span,
                        "group",
                        name,
                        "the pattern",
                        &names,
                    ));
                }
                continue;
            };
            match FieldType::parse(type_name) {
                Some(field_type) if can_cast_types(&DataType::Utf8View, &field_type.arrow()) => {
                    column.field_type = field_type;
                    column.type_name.clone_from(type_name);
                }
                Some(_) => {
                    let message = format!("text cannot become {type_name}");
                    errors.push(ConfigError::new("config::wrong_type", place.span, message));
                }
                None => errors.push(unknown_type(type_name, place)),
            }
        }
    }
}

/// Compiles a pattern that has at least one named group.
fn engine(pattern: &str, at: &Node) -> Result<Engine, ConfigError> {
    let error = |message: String| ConfigError::new("config::bad_pattern", at.span, message);
    let config = Config::new().nfa_size_limit(Some(SIZE_LIMIT)).onepass_size_limit(Some(SIZE_LIMIT));
    let engine = Engine::builder().configure(config).build(pattern).map_err(|e| match e.syntax_error() {
        Some(syntax) => {
            // The last line says what; those before draw the pattern once more.
            let text = syntax.to_string();
            let what = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            error(format!("`{pattern}` is no regular expression: {what}"))
        }
        None if e.size_limit().is_some() => {
            error(format!("`{pattern}` is too large: more than {SIZE_LIMIT} bytes")).with_help(
                "lower the numbers of repetitions, or write `[0-9]` for `\\d` and `[0-9A-Za-z_]` for `\\w`",
            )
        }
        None => error(format!("`{pattern}` does not compile: {e}")),
    })?;
    if group_names(&engine).next().is_none() {
        return Err(error(format!("`{pattern}` has no named group, so it makes no field"))
            .with_help("name what you want of the text: `(?<status>[0-9]+)`"));
    }
    Ok(engine)
}

/// A field that the groups of one name become.
#[derive(Clone, Debug)]
struct Column {
    name: String,
    field_type: FieldType,
    type_name: String,
    /// Where it goes.
    idx: usize,
    /// Rows with this column and those before it.
    stage: Option<Stage>,
}

impl Column {
    fn text(name: &str) -> Self {
        let (field_type, type_name) = (FieldType::String, "string".into());
        Self { name: name.into(), field_type, type_name, idx: 0, stage: None }
    }
}

/// A pattern, and which column each of its named groups is.
#[derive(Clone, Debug)]
struct Pattern {
    engine: Engine,
    /// Group and column.
    groups: Vec<(usize, usize)>,
}

impl Pattern {
    fn new(engine: Engine, columns: &[Column]) -> Self {
        let groups = engine.group_info().all_names().filter_map(|(_, group, name)| {
            columns.iter().position(|column| Some(column.name.as_str()) == name).map(|column| (group, column))
        });
        Self { groups: groups.collect(), engine }
    }
}

/// A pattern with one worker's memory for it.
struct Searcher {
    pattern: Pattern,
    cache: Cache,
    slots: Vec<Option<NonMaxUsize>>,
}

impl Searcher {
    fn new(pattern: &Pattern) -> Self {
        let slots = vec![None; pattern.engine.group_info().slot_len()];
        Self { cache: pattern.engine.create_cache(), pattern: pattern.clone(), slots }
    }

    /// Searches `text`, and tells column, start and end of each group of the match. False if there is none.
    fn search(&mut self, text: &str, mut found: impl FnMut(usize, usize, usize)) -> bool {
        let input = Input::new(text);
        if self.pattern.engine.search_slots_with(&mut self.cache, &input, &mut self.slots).is_none() {
            return false;
        }
        for (group, column) in &self.pattern.groups {
            if let (Some(start), Some(end)) = (self.slots[2 * group], self.slots[2 * group + 1]) {
                found(*column, start.get(), end.get());
            }
        }
        true
    }
}

struct Search {
    field: String,
    searchers: Vec<Searcher>,
    columns: Vec<Column>,
    layout: Arc<Layout>,
    on_no_match: OnNoMatch,
}

/// What was found in the rows of a batch: the views of each column, and the rows without a match.
struct Found {
    views: Vec<Vec<u128>>,
    valid: Vec<Vec<bool>>,
    unmatched: Vec<usize>,
}

impl Search {
    fn search(&mut self, texts: &StringViewArray) -> Found {
        let mut found = Found {
            views: vec![vec![0; texts.len()]; self.columns.len()],
            valid: vec![vec![false; texts.len()]; self.columns.len()],
            unmatched: Vec::new(),
        };
        for (row, text) in texts.iter().enumerate() {
            let view = texts.views()[row];
            let matched = text.is_some_and(|text| {
                self.searchers.iter_mut().any(|searcher| {
                    searcher.search(text, |column, start, end| {
                        found.views[column][row] = part(view, text, start, end);
                        found.valid[column][row] = true;
                    })
                })
            });
            if !matched {
                found.unmatched.push(row);
            }
        }
        found
    }
}

/// The view of a part of `text`, of which `view` is the view.
fn part(view: u128, text: &str, start: usize, end: usize) -> u128 {
    // A long part is of a long text, which lies in a buffer; a short one is in the view itself.
    let whole = ByteView::from(view);
    make_view(&text.as_bytes()[start..end], whole.buffer_index, whole.offset.wrapping_add(start as u32))
}

impl Step for Search {
    fn apply(&mut self, batch: Batch, out: &mut Emit) {
        let column = batch.rows().column_by_name(&self.field).expect("the plan has found the field");
        let column = cast(column, &DataType::Utf8View).expect("text becomes a view whatever it holds");
        let texts = column.as_string_view();
        let found = self.search(texts);
        let mut keep = vec![true; batch.num_rows()];
        let mut rejects = Vec::new();
        match self.on_no_match {
            OnNoMatch::Keep => {}
            OnNoMatch::Drop => {
                out.n_filtered += found.unmatched.len();
                found.unmatched.iter().for_each(|row| keep[*row] = false);
            }
            OnNoMatch::Reject => {
                let reject = |row: &usize| Reject { idx: *row, reason: self.no_match(texts, *row) };
                rejects.extend(found.unmatched.iter().map(reject));
            }
        }
        let mut rows = batch.rows().clone();
        for ((target, views), valid) in self.columns.iter().zip(found.views).zip(found.valid) {
            let nulls = Some(NullBuffer::from(valid)).filter(|nulls| nulls.null_count() > 0);
            let buffers = texts.data_buffers().to_vec();
            let parts = StringViewArray::try_new(views.into(), buffers, nulls)
                .expect("the views are of parts of texts, cut between characters");
            let parts: ArrayRef = Arc::new(parts);
            let values = if target.field_type == FieldType::String {
                parts
            } else {
                let values =
                    converted(&parts, &target.field_type.arrow(), target.field_type == FieldType::Ip);
                let failed = (0..parts.len()).filter(|row| parts.is_valid(*row) && values.is_null(*row));
                rejects.extend(failed.map(|row| cast_failed(&target.name, &target.type_name, row, &parts)));
                values
            };
            let stage = target.stage.as_ref().expect("set when it was planned");
            rows = put_column(&rows, target.idx, values, &stage.schema);
        }
        // Several values of one row may be wrong: the first is told.
        rejects.sort_by_key(|reject| reject.idx);
        rejects.dedup_by_key(|reject| reject.idx);
        rejects.iter().for_each(|reject| keep[reject.idx] = false);
        out.rejects.extend(reject::of_batch(&batch, &rejects));
        let batch = batch.with_rows(rows, Arc::clone(&self.layout));
        let kept = batch.filter(&BooleanArray::from(keep));
        out.rows.extend(kept.expect("Arrow filters columns of every type that a schema has"));
    }
}

impl Search {
    #[cold]
    fn no_match(&self, texts: &StringViewArray, row: usize) -> String {
        if texts.is_null(row) {
            return format!("no_match: `{}` is null", self.field);
        }
        let text: String = texts.value(row).chars().take(80).collect();
        format!("no_match: `{}` is `{text}`", self.field)
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Float64Type, Int64Type};
    use proptest::prelude::*;

    use super::super::testing::*;
    use super::*;

    fn texts(out: &Emit, name: &str) -> Vec<Option<String>> {
        let columns = out.rows.iter().map(|batch| batch.rows().column_by_name(name).unwrap());
        columns.flat_map(|column| column.as_string_view().iter().map(|t| t.map(str::to_owned))).collect()
    }

    #[test]
    fn groups_become_typed_columns() {
        let input = batch(&[("m", text(&[Some("200 1.5 /a"), Some("404 20 /a/path/of/some/length"), None]))]);
        let yaml = r"regex: { field: m, pattern: '^(?<status>\d{3}) (?<ms>[0-9.]+) (?<path>/\S+)', types: { status: int64, ms: float64 } }";
        let (plan, out) = run_plan(yaml, &input);
        assert_eq!(names(&plan.output), ["m", "status", "ms", "path"]);
        assert_eq!(
            (plan.reads, plan.writes),
            (vec!["m".into()], vec!["status".into(), "ms".into(), "path".into()])
        );
        let rows = out.rows[0].rows();
        assert_eq!(rows.column(1).as_primitive::<Int64Type>().values()[..], [200, 404]);
        assert_eq!(rows.column(2).as_primitive::<Float64Type>().values()[..], [1.5, 20.0]);
        assert_eq!(texts(&out, "path"), [Some("/a".into()), Some("/a/path/of/some/length".into())]);
        assert_eq!(reason(&out.rejects[0], 0), "no_match: `m` is null");
    }

    #[test]
    fn long_parts_are_views_into_the_searched_column() {
        let input = batch(&[("m", text(&[Some("short"), Some("key=a value of some length; rest")]))]);
        let out = run("regex: { field: m, pattern: '=(?<v>[^;]+)', on_no_match: keep }", &input);
        let rows = out.rows[0].rows();
        let (from, found) = (rows.column(0).as_string_view(), rows.column(1).as_string_view());
        assert_eq!(found.value(1), "a value of some length");
        assert_eq!(found.value(1).as_ptr(), from.value(1)[4..].as_ptr());
        assert!(found.is_null(0));
    }

    #[test]
    fn without_a_match_a_row_is_rejected_kept_or_dropped() {
        let input = batch(&[("m", text(&[Some("a1"), Some("b"), Some("a2"), None]))]);
        let yaml =
            |what: &str| format!("regex: {{ field: m, pattern: 'a(?<n>[0-9])', on_no_match: {what} }}");
        let out = run(&yaml("reject"), &input);
        assert_eq!((ids(&out.rows), ids(&out.rejects)), (vec![0, 2], vec![1, 3]));
        assert_eq!(reason(&out.rejects[0], 0), "no_match: `m` is `b`");
        let out = run(&yaml("keep"), &input);
        assert_eq!(texts(&out, "n"), [Some("1".into()), None, Some("2".into()), None]);
        let out = run(&yaml("drop"), &input);
        assert_eq!((ids(&out.rows), out.n_filtered, out.rejects.len()), (vec![0, 2], 2, 0));
    }

    #[test]
    fn what_does_not_parse_is_a_reject() {
        let input = batch(&[("m", text(&[Some("1 2"), Some("x 2"), Some("x y"), Some("3 y"), Some("4")]))]);
        let yaml = r"regex: { field: m, pattern: '^(?<a>\S+)( (?<b>\S+))?$', types: { a: int64, b: int64 } }";
        let out = run(yaml, &input);
        assert_eq!((ids(&out.rows), ids(&out.rejects)), (vec![0, 4], vec![1, 2, 3]));
        let reasons: Vec<String> = (0..3).map(|idx| reason(&out.rejects[0], idx)).collect();
        let expect = ["`a` is no int64: x", "`a` is no int64: x", "`b` is no int64: y"];
        assert_eq!(reasons, expect.map(|text| format!("cast_failed: {text}")));
    }

    #[test]
    fn the_first_pattern_that_is_found_counts() {
        let input = batch(&[("m", text(&[Some("user=7"), Some("id=8 user=9"), Some("id=1"), Some("?")]))]);
        let yaml =
            "regex: { field: m, patterns: ['id=(?<id>[0-9]+)', 'user=(?<user>[0-9]+)'], on_no_match: keep }";
        let (plan, out) = run_plan(yaml, &input);
        assert_eq!(names(&plan.output), ["m", "id", "user"]);
        assert_eq!(texts(&out, "id"), [None, Some("8".into()), Some("1".into()), None]);
        assert_eq!(texts(&out, "user"), [Some("7".into()), None, None, None]);
    }

    #[test]
    fn a_group_may_take_the_place_of_a_column() {
        let input = batch(&[("m", text(&[Some("<a>")])), ("n", int(&[Some(1)]))]);
        let (plan, out) = run_plan("regex: { field: m, pattern: '<(?<m>.)(?<n>)>' }", &input);
        assert_eq!(names(&plan.output), ["m", "n"]);
        assert_eq!((texts(&out, "m"), texts(&out, "n")), (vec![Some("a".into())], vec![Some(String::new())]));
    }

    #[test]
    fn every_error_is_told_where_it_is() {
        let input = batch(&[("m", text(&[None])), ("n", int(&[None]))]);
        let check = |yaml: &str, expect: &[(&'static str, &str)]| {
            let expect: Vec<_> = expect.iter().map(|(code, at)| (*code, (*at).to_owned())).collect();
            let found =
                plan_errors(yaml, &input).into_iter().map(|(code, at)| (code, at.trim_end().to_owned()));
            assert_eq!(found.collect::<Vec<_>>(), expect, "{yaml}");
        };
        check("regex: { field: x, pattern: '(?<a>.)' }", &[("config::unknown_field", "x")]);
        check("regex: { field: n, pattern: '(?<a>.)' }", &[("config::wrong_type", "n")]);
        check("regex: { field: m, pattern: '(.)' }", &[("config::bad_pattern", "'(.)'")]);
        check("regex: { field: m, pattern: '(?<a>.' }", &[("config::bad_pattern", "'(?<a>.'")]);
        check(
            "regex: { field: m, pattern: '(?<a>\\w{9999})' }",
            &[("config::bad_pattern", "'(?<a>\\w{9999})'")],
        );
        check(
            "regex: { field: m, patterns: ['(?<a>.)', '(?<a>'], types: { b: int64, a: int46 } }",
            &[
                ("config::bad_pattern", "'(?<a>'"),
                ("config::unknown_field", "int64"),
                ("config::unknown_type", "int46"),
            ],
        );
        check(
            "regex: { field: m, pattern: '(?<a>.)', types: { a: geo_point } }",
            &[("config::wrong_type", "geo_point")],
        );
        assert_eq!(plan_errors("regex: { field: m }", &input)[0].0, "config::missing_key");
        let both = "regex: { field: m, pattern: '(?<a>.)', patterns: ['(?<a>.)'] }";
        assert_eq!(plan_errors(both, &input)[0].0, "config::missing_key");
    }

    proptest! {
        #[test]
        fn groups_are_those_of_a_plain_search(lines in prop::collection::vec(prop::option::of("[a-c0-9é= ]{0,40}"), 1..20)) {
            let lines: Vec<Option<&str>> = lines.iter().map(Option::as_deref).collect();
            let out = run("regex: { field: m, pattern: '(?<k>[a-cé]+) *=(?<v>[^ ]*)', on_no_match: keep }", &batch(&[("m", text(&lines))]));
            let engine = Engine::new("(?<k>[a-cé]+) *=(?<v>[^ ]*)").unwrap();
            let mut captures = engine.create_captures();
            for (row, line) in lines.iter().enumerate() {
                engine.captures(line.unwrap_or_default(), &mut captures);
                for name in ["k", "v"] {
                    let expect = captures.get_group_by_name(name).map(|span| line.unwrap()[span].to_owned());
                    prop_assert_eq!(&texts(&out, name)[row], &expect);
                }
            }
        }
    }
}
