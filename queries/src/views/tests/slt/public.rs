//! The files of sqllogictest that come with DataFusion, as far as views can be asked what they ask. They are not part of
//! this repository: the sources of `datafusion-sqllogictest` are looked for where cargo keeps such, and where
//! `tests/sqllogictest/fetch` puts them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use xxhash_rust::xxh3::xxh3_64;

use super::script::Script;
use super::verdict::{self, Suite, Verdict};
use super::{checked, folder};

const CRATE: &str = "datafusion-sqllogictest-55.2.0";

/// With `LOGDRIVE_SQLLOGICTEST=sample` one of so many files is read.
const ONE_OF: u64 = 12;

/// How many files are read at the same time.
const THREADS: usize = 2;

/// The files, if they are at hand.
fn at_hand() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")))?;
    let registries = std::fs::read_dir(home.join("registry/src")).into_iter().flatten();
    let mut folders: Vec<PathBuf> = registries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/sqllogictest"));
    let mut folders = folders.into_iter().map(|folder| folder.join(CRATE).join("test_files"));
    folders.find(|folder| folder.is_dir())
}

fn all_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "slt") {
            found.push(path);
        }
    }
}

fn name_of(path: &Path, root: &Path) -> String {
    path.strip_prefix(root).unwrap().to_string_lossy().into_owned()
}

/// What became of each query of the files that are wanted, by file and line.
fn asked(root: &Path, is_wanted: impl Fn(&str) -> bool) -> BTreeMap<String, Verdict> {
    let mut files = Vec::new();
    all_files(root, &mut files);
    files.retain(|path| is_wanted(&name_of(path, root)));
    files.sort_unstable();
    let (files, verdicts) = (Mutex::new(files), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let Some(path) = files.lock().unwrap().pop() else { return };
                    let name = name_of(&path, root);
                    Script::new().run(&path, true, |script, asked| {
                        let verdict = verdict::of(script, &asked, Suite::Public);
                        verdicts.lock().unwrap().insert(format!("{name}:{}", asked.line), verdict);
                    });
                }
            });
        }
    });
    verdicts.into_inner().unwrap()
}

/// The differences that are known, with the reason for each.
fn known() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(folder().join("differences.txt")).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once(' ').unwrap()).map(|(at, why)| (at.to_owned(), why.to_owned())).collect()
}

fn report(verdicts: &BTreeMap<String, Verdict>, known: &BTreeMap<String, String>) -> String {
    let count =
        |is_one: &dyn Fn(&Verdict) -> bool| verdicts.values().filter(|verdict| is_one(verdict)).count();
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    let mut not_applicable: BTreeMap<&str, usize> = BTreeMap::new();
    for verdict in verdicts.values() {
        match verdict {
            Verdict::Refused { error, .. } => *refused.entry(general(error)).or_default() += 1,
            Verdict::NotApplicable(why) => *not_applicable.entry(why).or_default() += 1,
            _ => {}
        }
    }
    let passed = count(&|verdict| *verdict == Verdict::Passed);
    let unordered = count(&|verdict| *verdict == Verdict::Unordered);
    let meant = count(&|verdict| *verdict == Verdict::RefusedAsMeant);
    let n_refused: usize = refused.values().sum();
    let n_known = verdicts.keys().filter(|at| known.contains_key(*at)).count();
    let applicable = passed + unordered + meant + n_refused + n_known;
    let mut text = format!(
        "Of the {} queries in the sqllogictest files of DataFusion (`{CRATE}`) {applicable} can be asked of views. \
         {passed} views have the rows that the file says, {unordered} are right but depend on the order in which rows come \
         (as DataFusion's answer does), {meant} are refused as the file wants, {n_refused} are refused, {n_known} differ for \
         a known reason.\n\n| refused | queries |\n|---|---:|\n",
        verdicts.len(),
    );
    let mut refused: Vec<_> = refused.into_iter().collect();
    refused.sort_by_key(|(why, n)| (std::cmp::Reverse(*n), why.clone()));
    for (why, n) in refused {
        writeln!(text, "| {} | {n} |", why.replace('|', "\\|")).unwrap();
    }
    text.push_str("\n| not asked, because the query | queries |\n|---|---:|\n");
    for (why, n) in not_applicable {
        writeln!(text, "| {why} | {n} |").unwrap();
    }
    text.push_str("\n| differs | because |\n|---|---|\n");
    for (at, why) in known {
        writeln!(text, "| `{at}` | {why} |").unwrap();
    }
    text
}

/// An error without the names in it.
fn general(error: &str) -> String {
    let line = error.lines().next().unwrap_or_default();
    let mut general = String::new();
    for (idx, part) in line.split('`').enumerate() {
        general.push_str(if idx % 2 == 0 { part } else { "`…`" });
    }
    match general.find([':', '\'', '(']) {
        Some(at) if !general.contains('`') => general[..at].trim_end().to_owned(),
        _ => general,
    }
}

#[test]
fn views_have_the_rows_that_the_files_of_datafusion_say() {
    let Ok(wanted) = std::env::var("LOGDRIVE_SQLLOGICTEST") else {
        println!(
            "skipped: views_have_the_rows_that_the_files_of_datafusion_say: takes many minutes (LOGDRIVE_SQLLOGICTEST=sample, =all, or part of a file's name)"
        );
        return;
    };
    let Some(root) = at_hand() else {
        println!(
            "skipped: views_have_the_rows_that_the_files_of_datafusion_say: {CRATE} is not at hand (queries/tests/sqllogictest/fetch)"
        );
        return;
    };
    let verdicts = asked(&root, |file| match wanted.as_str() {
        "all" => true,
        "sample" => xxh3_64(file.as_bytes()).is_multiple_of(ONE_OF),
        part => file.contains(part),
    });
    let known = known();
    let differs = verdicts.iter().filter_map(|(at, verdict)| match verdict {
        Verdict::Differs(how) if !known.contains_key(at) => Some(format!("{at}: {how}")),
        _ => None,
    });
    let differs: Vec<String> = differs.collect();
    let report = report(&verdicts, &known);
    println!("{report}");
    assert!(differs.is_empty(), "{}", differs.join("\n"));
    if wanted == "all" {
        checked(&folder().join("public.md"), &report);
    }
}
