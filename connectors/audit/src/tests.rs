//! The log as a whole: what it is after a crash, and what it says when it was changed.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use crate::checkpoint::Checkpoint;
use crate::entry::Entry;
use crate::merkle::{CompactRange, Hash, leaf_hash};
use crate::*;

const ORIGIN: &str = "logdrive/test";

fn open(dir: &Path) -> Log {
    Log::open(dir, ORIGIN).unwrap().with(600, None)
}

/// A log of `n` entries in several segments.
fn log(n: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    for idx in 0..n {
        assert_eq!(log.append("event", &format!("s-{idx}"), b"{\"b\":1, \"a\":2.50}").unwrap(), idx);
    }
    log.set_mark("shop/1", n);
    log.commit().unwrap();
    dir
}

fn files(dir: &Path) -> Vec<PathBuf> {
    segment::list(dir).unwrap().into_iter().map(|(_, path)| path).collect()
}

/// Frames of all segments.
fn entries(dir: &Path) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    export(dir, 0..u64::MAX, &mut out).unwrap();
    out.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
}

/// Writes the entries anew, with right checksums, in one segment.
fn forge(dir: &Path, entries: &[Vec<u8>]) {
    for path in files(dir) {
        fs::remove_file(path).unwrap();
    }
    let mut bytes = Vec::new();
    for entry in entries {
        segment::write_frame(entry, &mut bytes);
    }
    fs::write(segment::path(dir, 0), bytes).unwrap();
}

#[test]
fn what_is_committed_comes_back_and_proves_itself() {
    let dir = log(20);
    assert!(3 < files(dir.path()).len());
    let report = verify(dir.path()).unwrap();
    assert_eq!((report.size, report.uncommitted_bytes, report.strays.len()), (20, 0, 0));
    assert_eq!(report.origin, ORIGIN);
    let log = open(dir.path());
    assert_eq!((log.size(), log.marks()["shop/1"], log.cut_bytes()), (20, 20, 0));
    let recent = log.recent(3).unwrap();
    assert_eq!(recent.iter().map(|e| e.id.as_str()).collect::<Vec<_>>(), ["s-17", "s-18", "s-19"]);
    assert!(matches!(Log::open(dir.path(), ORIGIN), Err(AuditError::Locked(_))));
    drop(log);
    assert!(matches!(Log::open(dir.path(), "logdrive/other"), Err(AuditError::Origin { .. })));
    for index in 0..20 {
        let proof = prove(dir.path(), index).unwrap();
        assert!(proof.verify() && proof.leaf.contains(&format!("\"id\":\"s-{index}\"")));
        let json = serde_json::to_string(&proof).unwrap();
        assert_eq!(serde_json::from_str::<Proof>(&json).unwrap(), proof);
        assert!(!Proof { index: (index + 1) % 20, ..proof.clone() }.verify());
        assert!(!Proof { size: 21, ..proof.clone() }.verify());
        assert!(!Proof { leaf: proof.leaf.replace("event", "evens"), ..proof }.verify());
    }
    assert!(prove(dir.path(), 20).is_err());
    let mut range = CompactRange::default();
    for (idx, entry) in entries(dir.path()).iter().enumerate() {
        range.push(leaf_hash(entry));
        let proof = prove_consistency(dir.path(), idx as u64 + 1).unwrap();
        assert!(proof.verify(&range.root()) && !proof.verify(&[0; 32]));
        let value: serde_json::Value = serde_json::from_slice(entry).unwrap();
        assert_eq!((&value["n"], &value["v"]), (&idx.into(), &1.into()));
        assert!(entry.starts_with(br#"{"body":{"a":2.50,"b":1},"id":"#));
    }
    assert!(prove_consistency(dir.path(), 0).is_err() && prove_consistency(dir.path(), 21).is_err());
}

#[test]
fn a_body_that_is_no_json_changes_nothing() {
    let dir = log(2);
    let mut log = open(dir.path());
    assert!(matches!(log.append("event", "x", b"{\"a\":"), Err(AuditError::Body(_))));
    assert_eq!(log.append("event", "x", b"{}").unwrap(), 2);
    log.commit().unwrap();
    assert_eq!(verify(dir.path()).unwrap().size, 3);
}

// Attack 1: a flipped bit, with and without mending the checksum.
#[test]
fn a_flipped_byte_is_named() {
    let dir = log(6);
    for path in files(dir.path()) {
        let bytes = fs::read(&path).unwrap();
        let first: u64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let mut at = 0;
        let mut n = first;
        while at < bytes.len() {
            let (_, end) = segment::read_frame(&bytes, at).unwrap();
            for position in at..end {
                let mut flipped = bytes.clone();
                flipped[position] ^= 1;
                fs::write(&path, &flipped).unwrap();
                let fault = verify(dir.path()).unwrap_err();
                assert_eq!(fault.index, n, "byte {position} of {}: {fault}", path.display());
            }
            (at, n) = (end, n + 1);
        }
        fs::write(&path, &bytes).unwrap();
    }
    let original = entries(dir.path());
    for idx in 0..6 {
        let mut entries = original.clone();
        let text = String::from_utf8(entries[idx].clone()).unwrap();
        entries[idx] = text.replace("2.50", "9.50").into_bytes();
        forge(dir.path(), &entries);
        let fault = verify(dir.path()).unwrap_err();
        assert_eq!(fault.index, idx as u64, "{fault}");
    }
}

// Attacks 3, 6 and 7: removed, swapped and re-ordered entries.
#[test]
fn a_missing_or_moved_entry_is_named() {
    let dir = log(6);
    let original = entries(dir.path());
    for idx in 0..6 {
        let mut fewer = original.clone();
        fewer.remove(idx);
        forge(dir.path(), &fewer);
        assert_eq!(verify(dir.path()).unwrap_err().index, idx as u64);
        assert!(prove(dir.path(), 0).is_err());
        assert!(Log::open(dir.path(), ORIGIN).is_err(), "one is missing: {idx}");
        let mut swapped = original.clone();
        swapped.swap(idx, (idx + 1) % 6);
        forge(dir.path(), &swapped);
        assert!(verify(dir.path()).unwrap_err().index <= idx as u64);
    }
    // A new history, whole in itself, under the old checkpoint.
    let mut rewritten = Vec::new();
    let mut prev: Option<Hash> = None;
    for n in 0..6 {
        let entry =
            Entry { log: ORIGIN, n, time: 5, prev: prev.as_ref(), kind: "event", id: "x", body: "{}" };
        rewritten.push(entry.write().into_bytes());
        prev = Some(leaf_hash(&rewritten[n as usize]));
    }
    forge(dir.path(), &rewritten);
    assert!(verify(dir.path()).unwrap_err().what.contains("checkpoint"));
    assert!(matches!(Log::open(dir.path(), ORIGIN), Err(AuditError::Damaged { .. })));
}

#[test]
fn swapped_missing_and_foreign_segments_are_named() {
    let dir = log(20);
    let paths = files(dir.path());
    let bytes: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    let first_of = |idx: usize| -> u64 { paths[idx].file_stem().unwrap().to_str().unwrap().parse().unwrap() };
    fs::write(&paths[1], &bytes[2]).unwrap();
    fs::write(&paths[2], &bytes[1]).unwrap();
    assert_eq!(verify(dir.path()).unwrap_err().index, first_of(1));
    fs::write(&paths[2], &bytes[2]).unwrap();
    fs::remove_file(&paths[1]).unwrap();
    assert_eq!(verify(dir.path()).unwrap_err().index, first_of(1));
    fs::write(&paths[1], &bytes[1]).unwrap();
    verify(dir.path()).unwrap();
    // Attack 20: another log's segment.
    let other = tempfile::tempdir().unwrap();
    let mut theirs = Log::open(other.path(), "logdrive/other").unwrap().with(600, None);
    for _ in 0..20 {
        theirs.append("event", "s", b"{}").unwrap();
    }
    theirs.commit().unwrap();
    fs::copy(&files(other.path())[0], &paths[0]).unwrap();
    assert_eq!(verify(dir.path()).unwrap_err().index, 0);
}

// Attack 4: something behind the end. Attack 5: files that do not belong there.
#[test]
fn excess_is_no_part_of_the_log() {
    let dir = log(6);
    let checkpoint = verify(dir.path()).unwrap();
    let last = files(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&last).unwrap();
    let len = bytes.len();
    let prev = leaf_hash(&entries(dir.path())[5]);
    let entry = Entry { log: ORIGIN, n: 6, time: 5, prev: Some(&prev), kind: "event", id: "x", body: "{}" };
    segment::write_frame(entry.write().as_bytes(), &mut bytes);
    bytes.extend_from_slice(b"junk");
    fs::write(&last, &bytes).unwrap();
    fs::write(dir.path().join("stray"), b"").unwrap();
    let report = verify(dir.path()).unwrap();
    assert_eq!(report.uncommitted_bytes, (bytes.len() - len) as u64);
    assert_eq!((report.root, report.strays.len()), (checkpoint.root, 1));
    assert!(prove(dir.path(), 6).is_err());
    assert_eq!(entries(dir.path()).len(), 6);
    let log = open(dir.path());
    assert_eq!((log.size(), log.cut_bytes()), (6, report.uncommitted_bytes));
    // In the middle it is a fault.
    drop(log);
    let first = files(dir.path()).remove(0);
    let mut bytes = fs::read(&first).unwrap();
    bytes.extend_from_slice(b"junk");
    fs::write(&first, bytes).unwrap();
    assert!(verify(dir.path()).is_err());
}

// Attack 8: the end is gone, the checkpoint is not. Attack 28: a crash anywhere.
#[test]
fn a_crash_loses_what_was_not_committed_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), ORIGIN).unwrap();
    log.append("event", "one", b"{}").unwrap();
    log.set_mark("m", 1);
    log.commit().unwrap();
    let committed = fs::read(dir.path().join("checkpoint")).unwrap();
    let path = files(dir.path()).remove(0);
    let len = fs::read(&path).unwrap().len();
    log.append("event", "two", b"{}").unwrap();
    log.append("event", "three", b"{}").unwrap();
    log.set_mark("m", 3);
    log.commit().unwrap();
    drop(log);
    let newest = fs::read(dir.path().join("checkpoint")).unwrap();
    let bytes = fs::read(&path).unwrap();
    for cut in 0..=bytes.len() {
        // Before the checkpoint was replaced: back to the first commit, if that much is there.
        let crashed = tempfile::tempdir().unwrap();
        let segment = crashed.path().join(path.file_name().unwrap());
        fs::write(&segment, &bytes[..cut]).unwrap();
        fs::write(crashed.path().join("checkpoint"), &committed).unwrap();
        match Log::open(crashed.path(), ORIGIN) {
            Ok(mut log) => {
                assert!(len <= cut);
                assert_eq!((log.size(), log.marks()["m"]), (1, 1));
                log.append("event", "two", b"{}").unwrap();
                log.commit().unwrap();
                drop(log);
                assert_eq!(verify(crashed.path()).unwrap().size, 2);
            }
            Err(error) => {
                assert!(cut < len, "{error}");
                assert!(matches!(error, AuditError::Damaged { .. }), "{error}");
                assert_eq!(verify(crashed.path()).unwrap_err().index, 0);
            }
        }
        // After: nothing may be missing, and nothing is touched if it is.
        fs::write(&segment, &bytes[..cut]).unwrap();
        fs::write(crashed.path().join("checkpoint"), &newest).unwrap();
        let opened = Log::open(crashed.path(), ORIGIN);
        assert_eq!(opened.is_ok(), cut == bytes.len());
        assert_eq!(fs::read(&segment).unwrap(), &bytes[..cut]);
    }
}

#[test]
fn a_changed_checkpoint_is_refused() {
    let dir = log(6);
    let path = dir.path().join("checkpoint");
    let text = fs::read_to_string(&path).unwrap();
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(verify(dir.path()).is_err() && Log::open(dir.path(), ORIGIN).is_err(), "byte {at}");
        fs::write(&path, &text.as_bytes()[..at]).unwrap();
        assert!(verify(dir.path()).is_err() && Log::open(dir.path(), ORIGIN).is_err(), "cut at {at}");
    }
    fs::remove_file(&path).unwrap();
    assert!(verify(dir.path()).is_err() && Log::open(dir.path(), ORIGIN).is_err());
    // A checkpoint that is well-formed but of a larger log.
    let mut checkpoint = Checkpoint::parse(&text).unwrap();
    checkpoint.range.push([1; 32]);
    checkpoint.store(dir.path()).unwrap();
    assert_eq!(verify(dir.path()).unwrap_err().index, 6);
    assert!(matches!(Log::open(dir.path(), ORIGIN), Err(AuditError::Damaged { .. })));
}

// Attack 19: the clock goes back.
#[test]
fn a_clock_that_goes_back_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), ORIGIN).unwrap().with(1 << 20, Some(|| 10_000_000));
    log.append("event", "a", b"{}").unwrap();
    log.commit().unwrap();
    drop(log);
    let mut log = Log::open(dir.path(), ORIGIN).unwrap().with(1 << 20, Some(|| 5_000_000));
    assert_eq!(log.append("event", "b", b"{}").unwrap(), 2);
    assert_eq!(log.append("event", "c", b"{}").unwrap(), 3);
    log.commit().unwrap();
    assert_eq!(verify(dir.path()).unwrap().clock_steps, 1);
}

#[test]
fn an_entry_that_passes_for_a_node_proves_nothing() {
    // Attack 26, second preimage: the two children of a node, presented as an entry.
    let (a, b) = (leaf_hash(b"a"), leaf_hash(b"b"));
    let root = node_hash(&a, &b);
    let inner = [a, b].concat();
    assert!(!verify_inclusion(&leaf_hash(&inner), 0, 1, &[], &root));
    assert_ne!(STANDARD.encode(leaf_hash(&inner)), STANDARD.encode(root));
    // CVE-2012-2459: a last leaf that is doubled has another root.
    let mut three = CompactRange::default();
    for leaf in [a, b, a] {
        three.push(leaf);
    }
    let mut four = three.clone();
    four.push(a);
    assert_ne!(three.root(), four.root());
}

#[derive(Clone, Debug)]
enum Step {
    Append(u8),
    Commit,
    Reopen,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn a_log_opened_again_is_as_its_last_commit_left_it(
        steps in proptest::collection::vec(
            prop_oneof![
                6 => (1_u8..9).prop_map(Step::Append),
                2 => Just(Step::Commit),
                1 => Just(Step::Reopen),
            ],
            1..30,
        )
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        let mut model: Vec<String> = Vec::new();
        let mut committed = 0;
        for step in steps.into_iter().chain([Step::Reopen]) {
            match step {
                Step::Append(n) => for _ in 0..n {
                    let id = format!("{}-{}", model.len(), committed);
                    prop_assert_eq!(log.append("event", &id, b"{\"k\":[1,2]}").unwrap(), model.len() as u64);
                    model.push(id);
                    log.set_mark("n", model.len() as u64);
                },
                Step::Commit => {
                    log.commit().unwrap();
                    committed = model.len();
                }
                Step::Reopen => {
                    drop(log);
                    log = open(dir.path());
                    model.truncate(committed);
                    prop_assert_eq!(log.size(), committed as u64);
                    prop_assert_eq!(log.marks().get("n").copied().unwrap_or(0), committed as u64);
                    let ids: Vec<String> = log.recent(u64::MAX).unwrap().into_iter().map(|e| e.id).collect();
                    prop_assert_eq!(&ids, &model);
                    prop_assert_eq!(verify(dir.path()).unwrap().size, committed as u64);
                }
            }
        }
    }
}
