//! A [`Book`] that survives a crash: a snapshot, and the entries since, one JSON document a line.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::book::{Book, Entry};
use crate::storage;

/// Entries are folded into the snapshot when they are this many bytes, and more than it.
const FOLD_BYTES: u64 = 1 << 20;

/// The file `state.json`.
#[derive(Serialize, Deserialize)]
struct Snapshot<B> {
    /// Which journal goes on from here.
    generation: u64,
    book: B,
}

/// The entries since the snapshot.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    generation: u64,
    file: File,
    n_bytes: u64,
    snapshot_bytes: u64,
    /// A write failed midway: what follows it would not be read.
    broken: bool,
}

impl Journal {
    /// Reads what an earlier process left; makes the folder.
    pub(super) fn open(dir: &Path) -> io::Result<(Self, Book)> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join("state.json");
        let (generation, mut book, snapshot_bytes) = match std::fs::read(&path) {
            Ok(bytes) => {
                let read: Snapshot<Book> = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
                (read.generation, read.book.restored(), bytes.len() as u64)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (0, Book::default(), 0),
            Err(error) => return Err(error),
        };
        let path = journal_path(dir, generation);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        // A line that was not finished was not promised.
        let whole = memchr::memrchr(b'\n', &bytes).map_or(0, |at| at + 1);
        for line in bytes[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            book.apply(serde_json::from_slice::<Entry>(line).map_err(io::Error::other)?);
        }
        let file = File::options().create(true).append(true).open(&path)?;
        file.set_len(whole as u64)?;
        file.sync_all()?;
        File::open(dir)?.sync_all()?;
        let dir = dir.to_owned();
        Ok((Self { dir, generation, file, n_bytes: whole as u64, snapshot_bytes, broken: false }, book))
    }

    /// Makes entries durable.
    pub(super) fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("an earlier write failed"));
        }
        let mut lines = Vec::new();
        for entry in entries {
            serde_json::to_writer(&mut lines, entry).map_err(io::Error::other)?;
            lines.push(b'\n');
        }
        self.broken = true;
        self.file.write_all(&lines)?;
        self.file.sync_data()?;
        self.broken = false;
        self.n_bytes += lines.len() as u64;
        Ok(())
    }

    /// Folds the entries into a new snapshot if there are many.
    pub(super) fn fold_if_long(&mut self, book: &Book) -> io::Result<()> {
        if self.n_bytes > FOLD_BYTES.max(self.snapshot_bytes) { self.fold(book) } else { Ok(()) }
    }

    /// Folds the entries into a new snapshot: at any moment there is one whole state on disk.
    pub(super) fn fold(&mut self, book: &Book) -> io::Result<()> {
        let generation = self.generation + 1;
        let file = File::create(journal_path(&self.dir, generation))?;
        let text = serde_json::to_vec(&Snapshot { generation, book }).map_err(io::Error::other)?;
        storage::replace(&self.dir.join("state.json"), &text)?;
        std::fs::remove_file(journal_path(&self.dir, self.generation))?;
        (self.generation, self.file) = (generation, file);
        (self.n_bytes, self.snapshot_bytes) = (0, text.len() as u64);
        Ok(())
    }
}

fn journal_path(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("journal-{generation}.ndjson"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(delivery: u64) -> Entry {
        Entry::Done { channel: "mail".into(), delivery, taken: true }
    }

    fn notify(n: u64) -> Entry {
        let finding = super::super::book::Seen {
            id: n.to_string(),
            title: String::new(),
            body: None,
            document: serde_json::Value::Null,
        };
        Entry::Found(Box::new(super::super::book::Found {
            at: 0,
            key: n.to_string(),
            severity: logdrive_schemas::Severity::P0,
            labels: Default::default(),
            channels: vec![],
            escalate: vec![],
            finding,
        }))
    }

    #[test]
    fn a_torn_line_is_cut_off_and_the_rest_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, mut book) = Journal::open(dir.path()).unwrap();
        for n in 0..10 {
            journal.append(&[notify(n), done(n)]).unwrap();
            book.apply(notify(n));
        }
        drop(journal);
        let path = dir.path().join("journal-0.ndjson");
        let whole = std::fs::read(&path).unwrap();
        for cut in [1, 5, 30] {
            std::fs::write(&path, [&whole[..], &whole[..cut]].concat()).unwrap();
            let (mut journal, again) = Journal::open(dir.path()).unwrap();
            assert_eq!(again, book);
            journal.append(&[done(99)]).unwrap();
            assert_eq!(Journal::open(dir.path()).unwrap().1, book);
        }
    }

    #[test]
    fn folding_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, mut book) = Journal::open(dir.path()).unwrap();
        for n in 0..30 {
            journal.append(&[notify(n)]).unwrap();
            book.apply(notify(n));
            if n % 7 == 0 {
                journal.fold(&book).unwrap();
            }
            assert_eq!(Journal::open(dir.path()).unwrap().1, book);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn damage_is_no_beginning() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("journal-0.ndjson"), "{\"found\":\n{}\n").unwrap();
        assert!(Journal::open(dir.path()).is_err());
    }
}
