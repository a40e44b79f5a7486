//! What is restored is what was handed in, whatever happens in between.

pub(super) mod faults;
mod model;
mod remote;

use std::collections::BTreeMap;
use std::sync::Arc;

use logdrive_connectors::Metrics;
use logdrive_operators::Checkpoint;
use logdrive_schemas::{Partition, Position};
use object_store::memory::InMemory;
use proptest::prelude::*;

use self::model::{Model, Step, arb_steps};
use super::folder::Folder;
use super::inspect::Shelf;
use super::manifest::Manifest;
use super::remote::Remote;
use super::store::Store;
use super::{Checkpoints, Place};

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Random changes on a random number of workers, which is another one after each crash; the machine stops at
    /// random operations, and comes back with the state of the last checkpoint that was complete.
    #[test]
    fn what_is_restored_is_the_last_complete_checkpoint(
        steps in arb_steps(),
        crashes in prop::collection::vec((0..40usize, 0..60u64), 0..6),
        at_once in any::<bool>(),
        is_far in any::<bool>(),
    ) {
        let lies = if is_far { Lies::in_a_store() } else { Lies::on_disk() };
        let (mut model, mut workers) = (Model::default(), 2);
        let mut at_cuts = BTreeMap::from([(0, model.clone())]);
        let mut folder = lies.open();
        let mut store = Store::open(&folder, workers).unwrap().store;
        for (idx, step) in steps.iter().enumerate() {
            if !at_once {
                store.at_once_bytes = 0;
            }
            if let Some((_, left)) = crashes.iter().find(|(at, _)| *at == idx) {
                arm(&folder, *left);
            }
            let cut = idx as u64 + 1;
            let parts = model.apply(step, workers);
            let written = store.write(model.cut(cut, parts));
            at_cuts.insert(cut, model.clone());
            let Ok(fallback) = written else {
                workers = 1 + (workers + idx) % 4;
                folder = lies.open();
                let found = Store::open(&folder, workers).unwrap();
                prop_assert!(found.damages.is_empty(), "{:?}", found.damages);
                // The manifest was there, or it was not.
                let restored = found.restored.cut;
                prop_assert!(restored == cut || at_cuts.range(..cut).next_back().unwrap().0 == &restored);
                at_cuts.retain(|cut, _| *cut <= restored);
                model = at_cuts[&restored].clone();
                model.check(&folder, &found.restored, workers);
                store = found.store;
                continue;
            };
            prop_assert!(fallback == 0 || at_cuts.contains_key(&fallback) && fallback < cut);
            if step.waits {
                store.finish_merging();
            }
            let shelf = lies.shelf();
            let manifest = shelf.newest().unwrap().unwrap();
            prop_assert_eq!(manifest.cut, cut);
            model.check(&folder, &manifest, workers);
            prop_assert_eq!(shelf.verify(&manifest), vec![]);
            let on_disk = folder.names().unwrap().len();
            prop_assert!(on_disk <= 80, "{} files", on_disk);
        }
    }
}

/// Where the checkpoints of a test lie.
struct Lies {
    dir: tempfile::TempDir,
    store: Option<Arc<InMemory>>,
}

impl Lies {
    fn on_disk() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), store: None }
    }

    fn in_a_store() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), store: Some(Arc::default()) }
    }

    /// As the pipeline does.
    fn open(&self) -> Arc<Folder> {
        let folder = self.look(self.dir.path());
        folder.take_over().unwrap();
        folder
    }

    /// As a command does, on a machine that has no copies.
    fn shelf(&self) -> Shelf {
        let copies = tempfile::tempdir().unwrap();
        let path = if self.store.is_some() { copies.path() } else { self.dir.path() };
        Shelf::of(self.look(path), copies)
    }

    fn look(&self, path: &std::path::Path) -> Arc<Folder> {
        let store = self.store.as_ref().map(Arc::<InMemory>::clone);
        let remote = store.map(|store| Remote::new(store, "lake/a".into(), "memory").unwrap());
        Folder::with(path, remote)
    }
}

fn arm(folder: &Folder, left: u64) {
    match folder.remote() {
        Some(remote) => remote.faults.arm(left),
        None => folder.faults.arm(left),
    }
}

#[test]
fn the_first_checkpoint_may_have_no_rows() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::new(&dir.path().join("checkpoints"));
    let mut store = Store::open(&folder, 1).unwrap().store;
    let mut model = Model::default();
    let parts = model.apply(&Step { blob: 10, ..Step::default() }, 1);
    store.write(model.cut(1, parts)).unwrap();
    model.check(&folder, &Store::open(&folder, 1).unwrap().restored, 1);
}

fn three_cuts(dir: &std::path::Path) -> (Arc<Folder>, Vec<Model>) {
    let folder = Folder::new(dir);
    let mut store = Store::open(&folder, 1).unwrap().store;
    let mut model = Model::default();
    let models = (1..=3u64).map(|cut| {
        let step =
            Step { rows: (0..40).map(|key| (key * cut as i64, cut as i64)).collect(), ..Step::default() };
        let parts = model.apply(&Step { blob: 5_000 + cut as usize, ..step }, 1);
        store.write(model.cut(cut, parts)).unwrap();
        model.clone()
    });
    (folder, models.collect())
}

#[test]
fn a_damaged_file_of_each_kind_falls_back_to_the_parent() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, models) = three_cuts(dir.path());
    let parent: Vec<String> = Manifest::read(&folder, 2).unwrap().files().map(|f| f.name.clone()).collect();
    let newest = Manifest::read(&folder, 3).unwrap();
    let own = newest.files().map(|file| file.name.clone()).filter(|name| !parent.contains(name));
    let names: Vec<String> = own.chain([Manifest::name(3)]).collect();
    let has = |ending: &str| names.iter().any(|name| name.ends_with(ending));
    assert!(has(".parquet") && has(".blob") && has(".json"), "{names:?}");
    for name in &names {
        let whole = std::fs::read(dir.path().join(name)).unwrap();
        for at in [0, whole.len() / 2, whole.len() - 1, usize::MAX] {
            let copy = tempfile::tempdir().unwrap();
            for file in folder.names().unwrap() {
                std::fs::copy(dir.path().join(&file), copy.path().join(&file)).unwrap();
            }
            let damaged = match at {
                usize::MAX => whole[..whole.len() - 1].to_vec(),
                _ => {
                    let mut damaged = whole.clone();
                    damaged[at] ^= 0x40;
                    damaged
                }
            };
            std::fs::write(copy.path().join(name), damaged).unwrap();
            let copied = Folder::new(copy.path());
            let found = Store::open(&copied, 1).unwrap();
            assert_eq!((found.restored.cut, found.newest), (2, 3), "{name}, byte {at}");
            assert_eq!(found.damages.len(), 1);
            models[1].check(&copied, &found.restored, 1);
            // The next two are kept, and not the damaged one.
            let (mut store, mut model) = (found.store, models[1].clone());
            for cut in [4, 5, 6] {
                let parts = model.apply(&Step { rows: vec![(1, 1)], ..Step::default() }, 1);
                store.write(model.cut(cut, parts)).unwrap();
            }
            assert_eq!(Manifest::cuts(&copied.names().unwrap()), [5, 6]);
            assert_eq!(Manifest::damaged_cuts(&copied.names().unwrap()).count(), 0);
        }
    }
}

#[test]
fn if_all_are_damaged_nothing_starts_and_nothing_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, _) = three_cuts(dir.path());
    for cut in [2, 3] {
        std::fs::write(dir.path().join(Manifest::name(cut)), b"{}").unwrap();
    }
    let before = folder.names().unwrap().len();
    let error = Store::open(&folder, 1).err().unwrap().to_string();
    assert!(error.contains("every checkpoint is damaged: checkpoint-00000000000000000003.json"), "{error}");
    assert_eq!(folder.names().unwrap().len(), before);
}

#[test]
fn what_an_older_version_wrote_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("00000000000000001000.ckpt"), b"LDCKPT01").unwrap();
    let found = Store::open(&Folder::new(dir.path()), 1).unwrap();
    assert_eq!((found.restored.cut, found.newest), (0, 0));
    assert!(dir.path().join("00000000000000001000.ckpt").exists());
}

#[test]
fn bytes_written_are_in_proportion_to_what_changes() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::new(dir.path());
    let mut store = Store::open(&folder, 1).unwrap().store;
    let mut model = Model::default();
    let many = Step { rows: (0..20_000).map(|key| (key, key * 7_919)).collect(), ..Step::default() };
    let parts = model.apply(&many, 1);
    store.write(model.cut(1, parts)).unwrap();
    let whole = folder.n_written();
    for cut in 2..102u64 {
        let rows = (0..10).map(|n| (n * 97 + cut as i64, cut as i64)).collect();
        let parts = model.apply(&Step { rows, ..Step::default() }, 1);
        store.write(model.cut(cut, parts)).unwrap();
    }
    let changes = folder.n_written() - whole;
    assert!(whole > 100_000, "{whole} bytes of state");
    // A hundred whole states would be a hundred times as much. Most of it are the manifests and the files' frames.
    assert!(changes < 100 * 12_000, "{changes} bytes for 100 cuts of ten rows, {whole} bytes of state");
    let manifest = Manifest::read(&folder, 101).unwrap();
    model.check(&folder, &manifest, 1);
    assert!(manifest.files().count() < 12);
}

fn open(
    dir: &std::path::Path,
    n_operators: usize,
    workers: usize,
) -> (Arc<Checkpoints>, super::CheckpointWriter) {
    let place = Place::Folder(dir.to_owned());
    Checkpoints::open(&place, n_operators, workers, &Arc::new(Metrics::new())).unwrap()
}

#[test]
fn a_cut_is_complete_when_every_part_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoints, mut writer) = open(dir.path(), 1, 2);
    assert_eq!((checkpoints.next_cut(1_001), checkpoints.next_cut(2_000)), (2_000, 2_000));
    let source: Arc<str> = "in".into();
    for (epoch, offset) in [(1_990, 5), (1_999, 7), (2_000, 9)] {
        checkpoints.sent(&source, Position { partition: Partition(3), offset }, epoch);
    }
    // An instance that began earlier hands in something at a cut that never is complete.
    checkpoints.put("a", 0, 1_000, vec![0]);
    checkpoints.put("a", 0, 2_000, vec![1]);
    assert!(writer.receiver.try_recv().is_err());
    checkpoints.put("a", 1, 2_000, vec![2]);
    let cut = writer.receiver.try_recv().unwrap();
    assert_eq!((cut.cut, cut.parts.len()), (2_000, 3));
    assert_eq!(cut.positions, BTreeMap::from([("in".to_owned(), BTreeMap::from([(3, 7)]))]));
    let mut store = writer.store.take().unwrap();
    store.write(cut).unwrap();
    let (checkpoints, _) = open(dir.path(), 1, 2);
    assert_eq!(checkpoints.restored("a"), [vec![1], vec![2]]);
    assert_eq!(checkpoints.newest_cut(), 2_000);
}

#[test]
fn while_the_writer_is_behind_cuts_are_skipped_by_all() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoints, _writer) = open(dir.path(), 1, 2);
    let large = vec![0; super::WAITING_MAX_BYTES / 2 + 1];
    for cut in [1_000, 2_000] {
        for worker in [0, 1] {
            assert!(checkpoints.wants(cut, cut), "{cut}");
            checkpoints.put("a", worker, cut, if worker == 0 { large.clone() } else { Vec::new() });
        }
    }
    assert!(!checkpoints.wants(3_000, 3_000));
    checkpoints.pressure.n_bytes.store(0, std::sync::atomic::Ordering::Release);
    assert!(!checkpoints.wants(3_000, 3_000), "all instances get the same answer");
    // Of cuts that are passed at once the last is enough.
    assert!(!checkpoints.wants(4_000, 6_500) && !checkpoints.wants(5_000, 6_500));
    assert!(checkpoints.wants(6_000, 6_500));
}
