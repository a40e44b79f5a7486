//! sqllogictest: every query of a file as a view. The rows of the tables come in random order, in random epochs, on one
//! to three workers that crash and go on from a checkpoint, once as those of streams and once as those of views, with
//! others that are taken back; in the end the view must have the rows that the file has.

mod features;
mod public;
mod script;
mod stream;
mod verdict;

use std::path::{Path, PathBuf};

use self::script::Script;
use self::verdict::{Suite, Verdict};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sqllogictest")
}

/// Our files.
fn files() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "slt")).collect();
    files.sort_unstable();
    files
}

/// A file that is generated is up to date, or becomes so.
fn checked(path: &Path, fresh: &str) {
    if std::env::var_os("LOGDRIVE_UPDATE_DOCS").is_some() {
        std::fs::write(path, fresh).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == fresh, "{} is out of date: run with LOGDRIVE_UPDATE_DOCS=1\n{fresh}", path.display());
}

#[test]
fn views_have_the_rows_that_our_files_say() {
    let mut wrong = Vec::new();
    for path in files() {
        Script::new().run(&path, false, |script, asked| {
            let verdict = verdict::of(script, &asked, Suite::Own);
            if !matches!(verdict, Verdict::Passed | Verdict::RefusedAsMeant) {
                wrong.push(format!("{}:{}: {}\n{verdict:?}", asked.file, asked.line, asked.sql));
            }
        });
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
