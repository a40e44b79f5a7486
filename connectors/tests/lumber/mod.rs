//! Builds the sender of this folder: Elastic's own client of the Beats protocol. Needs Go, and its modules at hand.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// The program, or why there is none.
pub(crate) fn lumber() -> Result<PathBuf, String> {
    program("lumber")
}

/// A program in Go of a folder beside this one, or why there is none.
pub(crate) fn program(name: &str) -> Result<PathBuf, String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../connectors/tests").join(name);
    let built = Command::new("go").arg("build").arg("-o").arg(&program).arg(".").current_dir(folder).output();
    match built {
        Ok(output) if output.status.success() => Ok(program),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("no Go: {error}")),
    }
}

/// The last number of what the program says was acknowledged, from `acked FIRST LAST` lines that must follow each other.
pub(crate) fn acked(said: &str) -> Option<usize> {
    let mut last = None;
    for line in said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let mut words = line.split(' ');
        assert_eq!(words.next(), Some("acked"), "{line}");
        let mut number = || words.next().and_then(|word| word.parse::<usize>().ok());
        let (first, to) = (number(), number());
        assert_eq!(first, Some(last.map_or(0, |last| last + 1)), "{line}");
        last = to;
    }
    last
}
