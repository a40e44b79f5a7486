//! Lets the disk fail at any operation, as if the machine had stopped there.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use object_store::Error as StoreError;

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

/// Lets an object store fail: for good, as if the machine had stopped, or for a while.
#[derive(Debug, Default)]
pub(in crate::checkpoint) struct RemoteFaults(Mutex<RemoteState>);

#[derive(Debug, Default)]
struct RemoteState {
    /// How many operations still succeed before the machine stops.
    left: Option<u64>,
    /// How many operations still succeed before so many fail for now.
    passing: (u64, u64),
    /// Whether the next operation that fails is done: only its answer is lost.
    is_done: bool,
}

impl RemoteFaults {
    /// The machine stops after so many operations.
    pub(in crate::checkpoint) fn arm(&self, left: u64) {
        let mut state = self.0.lock().unwrap();
        (state.left, state.is_done) = (Some(left), left % 2 == 1);
    }

    /// After `n_before` operations `n` fail, of which every second one is done; then all is well again.
    pub(in crate::checkpoint) fn be_down(&self, n_before: u64, n: u64, is_done: bool) {
        let mut state = self.0.lock().unwrap();
        (state.passing, state.is_done) = ((n_before, n), is_done);
    }

    /// An error if the operation is not done; or one that is told although it is done.
    pub(in crate::checkpoint) fn step(&self) -> Result<Option<StoreError>, StoreError> {
        let mut state = self.0.lock().unwrap();
        let error = match (state.passing, state.left) {
            ((1.., 1..), _) => {
                state.passing.0 -= 1;
                return Ok(None);
            }
            ((0, 1..), _) => {
                state.passing.1 -= 1;
                StoreError::Generic { store: "test", source: "down".into() }
            }
            (_, Some(0)) => {
                StoreError::NotImplemented { operation: "any".into(), implementer: "test".into() }
            }
            (_, left) => {
                state.left = left.map(|left| left - 1);
                return Ok(None);
            }
        };
        state.is_done = !state.is_done;
        if state.is_done { Err(error) } else { Ok(Some(error)) }
    }
}
