//! Every kind of configuration error as a user reads it: one file in `golden/errors/` for each, and the rendering
//! as a snapshot beside it. `INSTA_UPDATE=always` writes the snapshots again; read them before they are committed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::path::{Path, PathBuf};

use logdrive::config::{self, Files, PlanContext};
use logdrive_schemas::component::ConfigError;

fn load(path: &Path) -> (Files, Vec<ConfigError>) {
    // Tests start in the crate's folder.
    let cx = PlanContext { working_dir: PathBuf::from(".") };
    let (files, plan) = config::load(&[path.to_owned()], &cx);
    (files, plan.err().unwrap_or_default())
}

/// Runs a golden case: there are errors, in the order of the file, each with a place in it.
fn golden(name: &str) {
    let path = PathBuf::from(format!("tests/golden/errors/{name}.yaml"));
    let (files, errors) = load(&path);
    assert!(!errors.is_empty(), "{name} is accepted");
    assert!(errors.is_sorted_by_key(|e| e.span.start), "{name}: not in the order of the file");
    let rendered = config::report::render(&files, &errors, false);
    insta::with_settings!({ snapshot_path => "golden/errors", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, rendered);
    });
}

/// One test per case, and a check that no file of the folder is left out.
macro_rules! golden {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                golden(stringify!($name));
            }
        )*

        #[test]
        fn every_golden_file_is_a_test() {
            let mut names: Vec<_> = std::fs::read_dir("tests/golden/errors")
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
                .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
                .collect();
            names.sort();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

golden!(
    bad_name,
    bomb,
    checkpoints,
    cycle,
    cycle_of_one,
    detector_without_key,
    duplicate_key,
    duplicate_name,
    functions,
    metadata,
    missing_key,
    no_source,
    route_misuse,
    several,
    sql_syntax,
    steps,
    syntax,
    test_of_unknown_stream,
    test_without_expect,
    text_decoders,
    too_deep,
    type_error,
    undeclared_field,
    undefined_variable,
    unknown_field_type,
    unknown_function,
    unknown_input,
    unknown_schema,
    unknown_section_key,
    unknown_source_key,
    unknown_source_type,
    unknown_step,
    unknown_top_level_key,
    views,
    views_of_each_other,
    where_not_boolean,
    wrong_type,
);

fn only_error(bytes: &[u8]) -> (Files, ConfigError) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipeline.yaml");
    std::fs::write(&path, bytes).unwrap();
    let (files, mut errors) = load(&path);
    assert_eq!(errors.len(), 1, "{errors:?}");
    (files, errors.remove(0))
}

#[test]
fn a_file_over_the_limit_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipeline.yaml");
    // 100 MB that take no room on disk.
    std::fs::File::create(&path).unwrap().set_len(100 << 20).unwrap();
    let started = std::time::Instant::now();
    let (_, errors) = load(&path);
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].code, "config::too_large");
    assert!(errors[0].message.contains("104857600 bytes"), "{}", errors[0].message);
    assert!(started.elapsed() < std::time::Duration::from_secs(1));
}

#[test]
fn invalid_utf8_is_named_with_its_place() {
    let (files, error) = only_error(b"sources:\n  in: { type: stdin }\n  b\xff: { type: stdin }\n");
    assert_eq!(error.code, "config::not_utf8");
    let place = files.place(error.span).unwrap();
    assert_eq!((place.line, place.column), (3, 4));
}

#[test]
fn an_empty_file_and_a_missing_file_are_errors() {
    let (_, error) = only_error(b"");
    assert!(!error.message.is_empty());
    let (_, errors) = load(Path::new("tests/golden/errors/not-there.yaml"));
    assert_eq!(errors[0].code, "config::unreadable");
    assert!(errors[0].message.contains("not-there.yaml"));
}
