//! Every pipeline in `examples/` is valid and passes its own tests, as it lies there; so do those of `deploy/`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in a workspace").to_owned()
}

fn logdrive(command: &str, file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_logdrive"))
        .args([command.as_ref(), file.as_os_str()])
        .current_dir(workspace())
        .env("TABLES", "examples")
        .output()
        .expect("the binary starts")
}

#[test]
fn every_example_is_valid_and_passes_its_tests() {
    let mut n_examples = 0;
    let in_folder = |folder: &str| std::fs::read_dir(workspace().join(folder)).expect("the folder is there");
    let examples = in_folder("examples").map(|entry| entry.expect("a readable folder").path());
    let examples = examples.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    let deployed = ["worker", "traffic"].map(|name| workspace().join(format!("deploy/compose/{name}.yaml")));
    for path in examples.chain(deployed) {
        n_examples += 1;
        for command in ["check", "test"] {
            let output = logdrive(command, &path);
            assert!(
                output.status.success(),
                "`{command} {}` failed: {}{}",
                path.display(),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    assert!(n_examples > 2, "no example was found");
}
