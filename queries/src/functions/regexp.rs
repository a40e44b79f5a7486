//! `regexp_extract`: a group of the first match. The other `regexp_` functions are DataFusion's.
//!
//! The engine takes linear time, and a pattern whose automaton would be large does not compile, so neither a
//! pattern nor a text can stall a worker.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use arrow::array::{ArrayRef, StringViewBuilder};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use regex_automata::meta::{Config, Regex};

use super::function::{Arguments, Constants, Function, Kind, Parameters, failed};

/// The largest automaton of one pattern, in bytes.
const SIZE_LIMIT: usize = 1 << 20;

/// `regexp_extract(text, pattern [, group])`.
pub(super) static REGEXP_EXTRACT: Function = Function {
    name: "regexp_extract",
    signature: "regexp_extract(text, pattern text [, group int64 or text]) → text",
    doc: "A group of the first match of a regular expression, by number or by name; the first group if none is \
          named, and the whole match for 0 or for a pattern without groups. Null if nothing matches.",
    example: ("regexp_extract('took 35 ms', '(?<number>[0-9]+) ms', 'number')", "35"),
    parameters: Parameters { required: &[Kind::Text, Kind::Text], optional: &[Kind::Text], more: None },
    returns: |_| DataType::Utf8View,
    check: |constants: &Constants<'_>| {
        constants.require(1, "the pattern")?;
        constants.require(2, "the group")?;
        let Some(pattern) = constants.text(1) else { return Ok(()) };
        let regex = compile(pattern)?;
        group_index(&regex, constants.text(2)).map(|_| ())
    },
    evaluate: regexp_extract,
};

/// Compiled patterns by text, oldest first. Batches may be small and compiling a pattern costs more than
/// matching a thousand short texts.
static COMPILED: LazyLock<Mutex<Vec<(String, Regex)>>> = LazyLock::new(Mutex::default);
const COMPILED_LIMIT: usize = 64;

fn compile(pattern: &str) -> Result<Regex, String> {
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, regex)) = compiled.iter().find(|(text, _)| text == pattern) {
        return Ok(regex.clone());
    }
    let config = Config::new().nfa_size_limit(Some(SIZE_LIMIT)).onepass_size_limit(Some(SIZE_LIMIT));
    let regex = Regex::builder().configure(config).build(pattern).map_err(|error| {
        let reason = match error.syntax_error() {
            Some(syntax) => syntax.to_string(),
            None if error.size_limit().is_some() => "it is too large".into(),
            None => error.to_string(),
        };
        format!("the pattern is not a regular expression: {reason}")
    })?;
    if compiled.len() == COMPILED_LIMIT {
        compiled.remove(0);
    }
    compiled.push((pattern.to_owned(), regex.clone()));
    Ok(regex)
}

fn group_index(regex: &Regex, group: Option<&str>) -> Result<usize, String> {
    let info = regex.group_info();
    let count = regex.captures_len();
    match group {
        None => Ok(usize::from(count > 1)),
        Some(group) => match group.parse::<usize>() {
            Ok(index) if index < count => Ok(index),
            Ok(index) => Err(format!("the pattern has {} groups, not {index}", count - 1)),
            Err(_) => info
                .to_index(regex_automata::PatternID::ZERO, group)
                .ok_or_else(|| format!("the pattern has no group named `{group}`")),
        },
    }
}

fn regexp_extract(arguments: &Arguments<'_>) -> Result<ArrayRef> {
    let mut column = StringViewBuilder::with_capacity(arguments.rows);
    let pattern = arguments.text(1)?.get(0);
    let (Some(pattern), true) = (pattern, arguments.rows > 0) else {
        (0..arguments.rows).for_each(|_| column.append_null());
        return Ok(Arc::new(column.finish()));
    };
    let texts = arguments.text(0)?;
    let regex = compile(pattern).map_err(failed)?;
    let group = if arguments.len() > 2 { arguments.text(2)?.get(0) } else { None };
    let group = group_index(&regex, group).map_err(failed)?;
    let mut captures = regex.create_captures();
    for row in 0..arguments.rows {
        let Some(text) = texts.get(row) else {
            column.append_null();
            continue;
        };
        regex.captures(text, &mut captures);
        column.append_option(captures.get_group(group).and_then(|span| text.get(span.range())));
    }
    Ok(Arc::new(column.finish()))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use crate::functions::testing::{compile_error, eval, eval_texts};

    #[test]
    fn groups() {
        assert_eq!(eval("regexp_extract('a1b22', '[a-z]([0-9]+)')"), "1");
        assert_eq!(eval("regexp_extract('a1b22', '[a-z][0-9]+')"), "a1");
        assert_eq!(eval("regexp_extract('a1b22', '([a-z])([0-9]+)', 2)"), "1");
        assert_eq!(eval("regexp_extract('a1b22', '(?<x>b)', 'x')"), "b");
        assert_eq!(eval("regexp_extract('a', '(x)?a', 1)"), "null");
        assert_eq!(eval_texts("regexp_extract(text, 'é(.)')", &["éü", "e"]), ["ü", "null"]);
        assert_eq!(eval("regexp_extract(NULL, 'x')"), "null");
    }

    #[test]
    fn bad_patterns_do_not_compile() {
        assert!(compile_error("regexp_extract(text, '(')").message.contains("not a regular expression"));
        assert!(compile_error("regexp_extract(text, 'a', 2)").message.contains("0 groups"));
        assert!(compile_error("regexp_extract(text, 'a', 'b')").message.contains("no group named `b`"));
        let bomb = compile_error(r"regexp_extract(text, '(((\w{100}){100}){100}){100}')");
        assert!(bomb.message.contains("too large"), "{bomb}");
    }

    #[test]
    fn a_catastrophic_pattern_is_linear() {
        let text = "a".repeat(100_000) + "!";
        let started = Instant::now();
        assert_eq!(eval_texts("regexp_extract(text, '^(a+)+$')", &[&text]), ["null"]);
        assert!(started.elapsed() < Duration::from_secs(20), "took {:?}", started.elapsed());
    }

    #[test]
    fn the_functions_of_datafusion_are_there() {
        assert_eq!(eval("regexp_like('abc', 'B', 'i')"), "true");
        assert_eq!(eval("regexp_match('abc', 'b(.)')[1]"), "c");
        assert_eq!(eval("regexp_replace('abc', 'b', 'x')"), "axc");
        assert_eq!(eval("regexp_count('abab', 'ab')"), "2");
    }
}
