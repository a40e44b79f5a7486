//! Lets the disk fail at any operation, as if the machine had stopped there.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Mutex;

#[derive(Debug, Default)]
pub(in crate::checkpoint) struct Faults(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// How many operations still succeed.
    left: Option<u64>,
    has_crashed: bool,
    /// Files that were not synced.
    unsynced: BTreeSet<String>,
}

impl Faults {
    /// The machine stops after so many operations.
    pub(in crate::checkpoint) fn arm(&self, left: u64) {
        self.0.lock().unwrap().left = Some(left);
    }

    pub(in crate::checkpoint) fn step(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        match &mut state.left {
            Some(0) => {}
            Some(left) => {
                *left -= 1;
                return Ok(());
            }
            None => return Ok(()),
        }
        if !std::mem::replace(&mut state.has_crashed, true) {
            // What was not synced may be there in part.
            for name in &state.unsynced {
                if let Ok(file) = File::options().write(true).open(dir.join(name)) {
                    let len = file.metadata()?.len();
                    file.set_len(len / 2)?;
                }
            }
        }
        Err(io::Error::other("the machine has stopped"))
    }

    pub(in crate::checkpoint) fn begun(&self, name: &str) {
        self.0.lock().unwrap().unsynced.insert(name.to_owned());
    }

    pub(in crate::checkpoint) fn synced(&self, name: &str) {
        self.0.lock().unwrap().unsynced.remove(name);
    }
}
