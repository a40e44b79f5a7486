//! What views can be asked, feature by feature: docs/sql.md is made of our files.

use std::fmt::Write as _;

use super::script::{Asked, Expected, Script};
use super::{checked, files, folder, verdict};

/// The rows of a file's table: a feature, whether it works, the first query that shows it.
fn rows(path: &std::path::Path) -> String {
    let mut text = String::new();
    let mut last = String::new();
    Script::new().run(path, false, |script, asked| {
        if asked.feature == last {
            return;
        }
        last.clone_from(&asked.feature);
        let sql = asked.sql.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
        let (feature, works) = (&asked.feature, works(script, &asked));
        writeln!(text, "| {feature} | {works} | `{sql}` |").unwrap();
    });
    text
}

fn works(script: &Script, asked: &Asked) -> String {
    if let Expected::Rows(_) = asked.expected {
        return "works".into();
    }
    let error = verdict::refusal(script, asked).unwrap();
    // What a type error says is what to write instead.
    assert!(
        error.help.is_some() || error.code == "sql::type",
        "no hint for {}: {}",
        asked.sql,
        error.message
    );
    let hint = error.help.map(|hint| format!(". Instead: {hint}")).unwrap_or_default();
    format!("refused: {}{hint}", error.message).replace('|', "\\|")
}

#[test]
fn the_page_says_which_sql_works() {
    let mut text = String::from(
        "# SQL in views\n\n\
         What a view can be asked, feature by feature, made of the files in `queries/tests/sqllogictest`. Each query there is \
         run as a view whose rows come in random order and epochs on one to three workers, with rows that are taken back and \
         a crash in between; what is left must be what the file and DataFusion's batch answer say. What is refused says what \
         to write instead. [Views](views.md) has what bounds the state of a view.\n\n\
         <!-- generated: LOGDRIVE_UPDATE_DOCS=1 cargo test --workspace --lib slt::features -->\n",
    );
    for path in files() {
        let file = std::fs::read_to_string(&path).unwrap();
        let headline = file.lines().next().unwrap().trim_start_matches("# ").trim_end_matches('.');
        write!(text, "\n## {headline}\n\n| | | for example |\n|---|---|---|\n{}", rows(&path)).unwrap();
    }
    let public = std::fs::read_to_string(folder().join("public.md")).unwrap();
    if !public.is_empty() {
        write!(text, "\n## A public suite\n\n{public}").unwrap();
    }
    checked(&folder().join("../../../docs/sql.md"), &text);
}
