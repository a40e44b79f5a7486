//! Checkpoints in an object store: one that fails, loses answers, or is written to by two.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use logdrive_connectors::Metrics;
use logdrive_operators::Checkpoint as _;
use object_store::path::Path as Key;
use object_store::{ObjectStoreExt as _, PutPayload};
use tokio::sync::watch;

use super::super::{Checkpoints, Place, WAITING_MAX_BYTES};
use super::model::{Model, Step};
use super::{Folder, Lies, Manifest, Shelf, Store};

/// Writes a cut with some rows and a blob of its own.
fn write(store: &mut Store, model: &mut Model, cut: u64) -> std::io::Result<u64> {
    let rows = (0..40).map(|key| (key * cut as i64, cut as i64)).collect();
    let parts = model.apply(&Step { rows, blob: 5_000 + cut as usize, ..Step::default() }, 1);
    store.write(model.cut(cut, parts))
}

fn key(name: &str) -> Key {
    Key::from(format!("lake/a/{name}"))
}

#[test]
fn a_store_that_fails_or_loses_an_answer_makes_a_checkpoint_late() {
    let failures = Metrics::new().checkpoint_store_failures;
    for n_before in 0..7 {
        for is_done in [false, true] {
            let lies = Lies::in_a_store();
            let folder = lies.open();
            folder.be_patient(Some(&failures));
            let (mut store, mut model) = (Store::open(&folder, 1).unwrap().store, Model::default());
            write(&mut store, &mut model, 1).unwrap();
            folder.remote().unwrap().faults.be_down(n_before, 1, is_done);
            let before = failures.get();
            write(&mut store, &mut model, 2).unwrap();
            write(&mut store, &mut model, 3).unwrap();
            assert_eq!(failures.get(), before + 1, "after {n_before} operations");
            let shelf = lies.shelf();
            let manifest = shelf.newest().unwrap().unwrap();
            assert_eq!(shelf.verify(&manifest), vec![]);
            model.check(&folder, &manifest, 1);
            assert_eq!(Manifest::cuts(&lies.shelf().folder_names()), [2, 3]);
        }
    }
}

#[test]
fn of_two_processes_the_one_that_began_last_goes_on() {
    let lies = Lies::in_a_store();
    let (folder, mut model) = (lies.open(), Model::default());
    let mut first = Store::open(&folder, 1).unwrap().store;
    write(&mut first, &mut model, 1).unwrap();
    write(&mut first, &mut model, 2).unwrap();

    let elsewhere = tempfile::tempdir().unwrap();
    let other = lies.look(elsewhere.path());
    other.take_over().unwrap();
    let found = Store::open(&other, 1).unwrap();
    assert_eq!(found.restored.cut, 2);
    let (mut second, mut others) = (found.store, model.clone());
    let error = write(&mut first, &mut model, 3).unwrap_err().to_string();
    assert!(error.contains("another process has taken over the checkpoints at memory"), "{error}");
    for cut in [3, 4, 5] {
        write(&mut second, &mut others, cut).unwrap();
    }
    let shelf = lies.shelf();
    let manifest = shelf.newest().unwrap().unwrap();
    assert_eq!((manifest.cut, shelf.verify(&manifest)), (5, vec![]));
    others.check(&other, &manifest, 1);
}

#[tokio::test]
async fn a_manifest_of_this_name_is_never_overwritten() {
    let lies = Lies::in_a_store();
    let (folder, mut model) = (lies.open(), Model::default());
    let mut store = Store::open(&folder, 1).unwrap().store;
    let objects = lies.store.as_ref().unwrap();
    objects.put(&key(&Manifest::name(1)), PutPayload::from_static(b"of another")).await.unwrap();
    let error = write(&mut store, &mut model, 1).unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
    let there = objects.get(&key(&Manifest::name(1))).await.unwrap().bytes().await.unwrap();
    assert_eq!(&there[..], b"of another");
}

#[tokio::test]
async fn what_lacks_or_is_damaged_is_fetched_or_falls_back() {
    let lies = Lies::in_a_store();
    let (folder, mut model) = (lies.open(), Model::default());
    let mut store = Store::open(&folder, 1).unwrap().store;
    let models: Vec<Model> = (1..=3)
        .map(|cut| {
            write(&mut store, &mut model, cut).unwrap();
            model.clone()
        })
        .collect();
    let newest = Manifest::read(&folder, 3).unwrap();
    // Copies that are damaged, or of what is gone.
    for file in newest.files() {
        std::fs::write(lies.dir.path().join(&file.name), b"damaged").unwrap();
    }
    std::fs::write(lies.dir.path().join("state-of-long-ago.parquet"), b"").unwrap();
    let again = lies.open();
    let found = Store::open(&again, 2).unwrap();
    assert_eq!((found.restored.cut, found.damages.len()), (3, 0));
    models[2].check(&again, &found.restored, 2);
    assert!(!lies.dir.path().join("state-of-long-ago.parquet").exists());

    // A machine that has nothing, and an object that is gone.
    let own = newest.files().find(|file| file.name.ends_with(".blob")).unwrap();
    lies.store.as_ref().unwrap().delete(&key(&own.name)).await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let other = lies.look(elsewhere.path());
    other.take_over().unwrap();
    let found = Store::open(&other, 1).unwrap();
    assert_eq!((found.restored.cut, found.newest, found.damages.len()), (2, 3, 1));
    models[1].check(&other, &found.restored, 1);
    let names = lies.shelf().folder_names();
    assert_eq!((Manifest::cuts(&names), Manifest::damaged_cuts(&names).count()), (vec![2], 1));
}

fn place(store: &Path, copies: &Path) -> Place {
    let url = format!("file://{}/of pipeline", store.display()).replace(' ', "%20");
    Place::Store { url, options: BTreeMap::new(), copies: copies.to_owned() }
}

async fn until(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "it did not come to be");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Nothing waits but the writer; what waits in memory is bounded; and the process can end.
#[tokio::test]
async fn while_the_store_is_down_cuts_are_skipped_and_the_pipeline_can_end() {
    let (dir, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (place, metrics) = (place(dir.path(), copies.path()), Arc::new(Metrics::new()));
    let (checkpoints, writer) = Checkpoints::open(&place, 1, 1, &metrics).unwrap();
    let faults = &checkpoints.folder.remote().unwrap().faults;
    let (_sunk, sunk) = watch::channel(u64::MAX);
    let task = tokio::spawn(writer.run(sunk, watch::Sender::new(0)));
    faults.be_down(0, 4, false);
    let mut cut = 0;
    while metrics.checkpoint_skipped.get() == 0 {
        cut += 1_000;
        if checkpoints.wants(cut, cut) {
            checkpoints.put("a", 0, cut, vec![7; WAITING_MAX_BYTES / 4]);
        }
        assert!(cut < 20_000, "what waits is not bounded");
    }
    assert_eq!((metrics.checkpoint_cuts.get(), checkpoints.written()), (0, 0));
    until(|| metrics.checkpoint_cuts.get() > 0).await;
    assert!(metrics.checkpoint_store_failures.get() >= 4);
    assert!(checkpoints.wants(cut + 1_000, cut + 1_000));

    faults.be_down(0, u64::MAX, false);
    checkpoints.put("a", 0, cut + 1_000, vec![8]);
    let failed = metrics.checkpoint_store_failures.get();
    until(|| metrics.checkpoint_store_failures.get() > failed).await;
    let begun = Instant::now();
    task.abort();
    assert!(task.await.is_err_and(|error| error.is_cancelled()));
    // The end of this test waits for the thread that writes.
    assert!(begun.elapsed() < Duration::from_secs(5));
}

/// Against a real S3 server: `LOGDRIVE_TEST_S3=s3://bucket/prefix`, with `AWS_ENDPOINT`, `AWS_ALLOW_HTTP`,
/// `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` as the object store reads them.
#[test]
fn an_s3_server_keeps_checkpoints() {
    let Ok(url) = std::env::var("LOGDRIVE_TEST_S3") else {
        writeln!(&mut std::io::stdout(), "skipped: an_s3_server_keeps_checkpoints: no S3 server at hand")
            .unwrap();
        return;
    };
    let copies = tempfile::tempdir().unwrap();
    let url = format!("{url}/{}", copies.path().file_name().unwrap().to_str().unwrap());
    let at =
        |copies: &Path| Place::Store { url: url.clone(), options: BTreeMap::new(), copies: copies.into() };
    let folder = Folder::open(&at(copies.path())).unwrap();
    folder.take_over().unwrap();
    let (mut store, mut model) = (Store::open(&folder, 1).unwrap().store, Model::default());
    for cut in 1..=5 {
        write(&mut store, &mut model, cut).unwrap();
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Folder::open(&at(elsewhere.path())).unwrap();
    other.take_over().unwrap();
    let found = Store::open(&other, 2).unwrap();
    assert_eq!((found.restored.cut, found.damages.len()), (5, 0));
    model.check(&other, &found.restored, 2);
    let error = write(&mut store, &mut model, 6).unwrap_err().to_string();
    assert!(error.contains("another process has taken over"), "{error}");
    let shelf = Shelf::open(&at(Path::new(""))).unwrap();
    assert_eq!(shelf.verify(&shelf.newest().unwrap().unwrap()), vec![]);
}
