//! Looks at checkpoints of a pipeline that does not run.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use arrow::error::ArrowError;
use tempfile::TempDir;

use super::folder::Folder;
use super::manifest::{Damage, FileRef, Manifest, Run, TableState, hex};
use super::{Place, all_shards, run};

/// A place with checkpoints that nothing is written to.
#[derive(Debug)]
pub struct Shelf {
    folder: Arc<Folder>,
    /// What is read from an object store.
    _copies: Option<TempDir>,
}

impl Shelf {
    /// Opens a place. What is in an object store is copied to a folder of its own as far as it is read.
    ///
    /// # Errors
    /// If it cannot be reached.
    pub fn open(place: &Place) -> io::Result<Self> {
        let (place, copies) = match place {
            Place::Folder(_) => (place.clone(), None),
            Place::Store { url, options, .. } => {
                let folder = tempfile::tempdir()?;
                let (url, options, copies) = (url.clone(), options.clone(), folder.path().to_owned());
                (Place::Store { url, options, copies }, Some(folder))
            }
        };
        let folder = Folder::open(&place)?;
        folder.names()?;
        folder.be_patient(None);
        Ok(Self { folder, _copies: copies })
    }

    /// What is in a folder that is open.
    #[cfg(test)]
    pub(super) fn of(folder: Arc<Folder>, copies: TempDir) -> Self {
        Self { folder, _copies: Some(copies) }
    }

    /// All names.
    #[cfg(test)]
    pub(super) fn folder_names(&self) -> Vec<String> {
        self.folder.names().expect("it can be read")
    }

    /// The checkpoints, the newest first: each one's cut, and its manifest or what is wrong with it.
    ///
    /// # Errors
    /// If the place cannot be read.
    pub fn list(&self) -> io::Result<Vec<(u64, Result<Manifest, Damage>)>> {
        let cuts = Manifest::cuts(&self.folder.names()?);
        Ok(cuts.into_iter().rev().map(|cut| (cut, Manifest::read(&self.folder, cut))).collect())
    }

    /// The newest checkpoint whose manifest can be read, if there is one.
    ///
    /// # Errors
    /// If the place cannot be read, or none of its manifests.
    pub fn newest(&self) -> io::Result<Option<Manifest>> {
        let mut damage = None;
        for (_, manifest) in self.list()? {
            match manifest {
                Ok(manifest) => return Ok(Some(manifest)),
                Err(found) => damage = damage.or(Some(found)),
            }
        }
        damage.map_or(Ok(None), |damage| Err(io::Error::other(damage.to_string())))
    }

    /// Reads everything that a checkpoint consists of: all that is wrong with it.
    #[must_use]
    pub fn verify(&self, manifest: &Manifest) -> Vec<Damage> {
        let mut damages = manifest.check(&self.folder).err().unwrap_or_default();
        let damaged: BTreeSet<String> = damages.iter().map(|damage| damage.file.clone()).collect();
        for operator in manifest.operators.values() {
            let parts = operator.state.parts(&self.folder);
            damages.extend(parts.err().filter(|damage| !damaged.contains(&damage.file)));
            for table in operator.tables.values() {
                for (run, file) in table.runs.iter().filter_map(|run| Some((run, run.file.as_ref()?))) {
                    if !damaged.contains(&file.name) {
                        damages.extend(wrong_rows(self.folder.path(), table, run, file));
                    }
                }
            }
        }
        damages
    }
}

fn wrong_rows(dir: &Path, table: &TableState, run: &Run, file: &FileRef) -> Option<Damage> {
    let damage = |what: String| Some(Damage { file: file.name.clone(), what });
    match read_run(dir, table, file) {
        Ok((_, _, Some(row))) => damage(format!("row {row} is not behind the one before it")),
        Ok((rows, removed, None)) if (rows, removed) == (run.rows, run.removed) => None,
        Ok((rows, removed, None)) => damage(format!(
            "{rows} rows and {removed} removed keys, instead of {} and {}",
            run.rows, run.removed
        )),
        Err(error) => damage(error.to_string()),
    }
}

/// How many rows a file has, how many of them remove keys, and the first that is out of order.
fn read_run(dir: &Path, table: &TableState, file: &FileRef) -> Result<(u64, u64, Option<u64>), ArrowError> {
    let (mut n_rows, mut n_removed, mut last) = (0, 0, Vec::new());
    for rows in run::read(dir, file, all_shards())? {
        let rows = rows?;
        if table.keys > 0 {
            let keys = run::key_converter(&rows.schema(), table.keys)?;
            let keys = keys.convert_columns(&rows.columns()[..table.keys])?;
            for (row, key) in keys.iter().enumerate() {
                if key.as_ref() <= last.as_slice() {
                    return Ok((0, 0, Some(n_rows + n_removed + row as u64)));
                }
                last = key.as_ref().to_vec();
            }
        }
        let of_batch = run::removed(&rows, table.keys).map_or(0, |removed| removed.true_count() as u64);
        n_rows += rows.num_rows() as u64 - of_batch;
        n_removed += of_batch;
    }
    Ok((n_rows, n_removed, None))
}

/// What has state in a configuration.
#[derive(Clone, Debug)]
pub struct Stateful {
    /// `view` or `detector`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// What the state of its operators is written with, by operator.
    pub operators: BTreeMap<String, u64>,
    /// Those that have state of their own for a while, which says nothing of the others'.
    pub others: Vec<String>,
}

/// What becomes of state when a configuration is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on with what it has.
    Keeps,
    /// What it has is of another query, its own or one that it reads, and is dropped: it begins anew.
    Rebuilt,
    /// It has nothing yet.
    New,
    /// Nothing in the configuration has this state any more.
    Dropped,
}

/// What becomes of the state of one view or detector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fate {
    /// `view` or `detector`; of what is no longer configured that is not known.
    pub kind: Option<&'static str>,
    /// Its name.
    pub name: String,
    /// What.
    pub outcome: Outcome,
    /// How many rows there are in the checkpoint, with some that are outdated.
    pub rows: u64,
    /// How many bytes they take on disk.
    pub bytes: u64,
}

/// Compares what is configured with a checkpoint.
#[must_use]
pub fn compare(manifest: Option<&Manifest>, configured: &[Stateful]) -> Vec<Fate> {
    let empty = BTreeMap::new();
    let operators = manifest.map_or(&empty, |manifest| &manifest.operators);
    let size_of = |names: &[&String]| {
        let of_names = names.iter().filter_map(|name| operators.get(*name));
        let runs = of_names.flat_map(|operator| operator.tables.values()).flat_map(|table| &table.runs);
        runs.fold((0, 0), |(rows, bytes), run| {
            (rows + run.rows, bytes + run.file.as_ref().map_or(0, |file| file.bytes))
        })
    };
    let mut fates: Vec<Fate> = configured
        .iter()
        .map(|node| {
            let names: Vec<&String> = node.operators.keys().collect();
            let has = |(name, fingerprint): (&String, &u64)| {
                operators.get(name).is_some_and(|operator| operator.fingerprint == hex(*fingerprint))
            };
            let outcome = if !names.iter().any(|name| operators.contains_key(*name)) {
                Outcome::New
            } else if node.operators.iter().all(has) {
                Outcome::Keeps
            } else {
                Outcome::Rebuilt
            };
            let (rows, bytes) = size_of(&names);
            Fate { kind: Some(node.kind), name: node.name.clone(), outcome, rows, bytes }
        })
        .collect();
    let known: BTreeSet<&String> =
        configured.iter().flat_map(|node| node.operators.keys().chain(&node.others)).collect();
    let mut unknown: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
    for operator in operators.keys().filter(|operator| !known.contains(operator)) {
        let name = operator.rsplit_once('.').map_or(operator.as_str(), |(name, _)| name);
        unknown.entry(name).or_default().push(operator);
    }
    for (name, names) in unknown {
        let (rows, bytes) = size_of(&names);
        fates.push(Fate { kind: None, name: name.to_owned(), outcome: Outcome::Dropped, rows, bytes });
    }
    fates
}

#[cfg(test)]
mod tests {
    use super::super::manifest::OperatorState;
    use super::*;

    #[test]
    fn a_configuration_is_compared_with_what_is_on_disk() {
        let mut manifest = Manifest::empty(1);
        for (name, fingerprint) in
            [("a.gather", 1), ("a.keep", 1), ("a.outbox", 9), ("b.keep", 2), ("gone.keep", 3)]
        {
            let runs = vec![Run { rows: 5, ..Run::default() }];
            let tables = BTreeMap::from([("open".to_owned(), TableState { keys: 2, runs })]);
            let state = OperatorState { fingerprint: hex(fingerprint), tables, ..OperatorState::default() };
            manifest.operators.insert(name.to_owned(), state);
        }
        let view = |name: &str, parts: &[&str], fingerprint| Stateful {
            kind: "view",
            name: name.to_owned(),
            operators: parts.iter().map(|part| (format!("{name}.{part}"), fingerprint)).collect(),
            others: vec![format!("{name}.outbox")],
        };
        let configured =
            [view("a", &["gather", "keep"], 1), view("b", &["keep"], 7), view("c", &["keep"], 4)];
        let fates = compare(Some(&manifest), &configured);
        let told: Vec<_> = fates.iter().map(|fate| (fate.name.as_str(), fate.outcome, fate.rows)).collect();
        let expected = [
            ("a", Outcome::Keeps, 10),
            ("b", Outcome::Rebuilt, 5),
            ("c", Outcome::New, 0),
            ("gone", Outcome::Dropped, 5),
        ];
        assert_eq!(told, expected);
        assert!(compare(None, &configured).iter().all(|fate| fate.outcome == Outcome::New));
    }
}
