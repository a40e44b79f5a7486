//! Crashes after each step, replays that are cut differently, hostile values.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use futures::TryStreamExt;
use logdrive_schemas::component::{Node, parse};
use logdrive_schemas::{Batch, Epoch, Origin};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::remote::Remote;
use super::storage::objects;
use super::*;
use crate::sinks::fixtures::{block_on, context, events};

/// How far a commit gets before the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Died {
    BeforeSeal,
    BeforePrepare,
    BeforeCommit,
    BeforeReveal,
    Never,
}

const DEATHS: [Died; 5] =
    [Died::BeforeSeal, Died::BeforePrepare, Died::BeforeCommit, Died::BeforeReveal, Died::Never];

fn sink(folder: &Path, yaml: &str) -> ParquetSink {
    let yaml = format!("{{path: {}, {yaml}}}", folder.join("lake").display());
    let node = Node::parse(yaml.as_bytes(), Default::default()).unwrap();
    let mut errors = Vec::new();
    let config = parse::<Parquet>(&node, &mut errors).unwrap_or_else(|| panic!("{errors:?}"));
    config.build_sink(&context(folder)).unwrap()
}

fn remote_sink(folder: &Path, store: &Arc<dyn ObjectStore>) -> ParquetSink {
    let remote = Remote::new(Arc::clone(store), "some/lake", "memory:///some/lake");
    ParquetSink { store: Some(remote), ..sink(folder, "partition_by: [tenant]") }
}

/// Rows with these offsets, from two tenants.
fn rows(offsets: std::ops::RangeInclusive<u64>) -> Batch {
    let texts: Vec<String> = offsets.clone().map(|offset| format!("message {offset}")).collect();
    let tenant = |offset: u64| Some(if offset.is_multiple_of(2) { "even" } else { "odd" });
    let rows: Vec<_> = offsets.zip(&texts).map(|(offset, text)| (offset, tenant(offset), &**text)).collect();
    events(&rows)
}

/// Flushes as far as told.
async fn flush_until(sink: &mut ParquetSink, died: Died) {
    if died == Died::Never {
        sink.flush(Epoch(2)).await.unwrap();
        return;
    }
    if died == Died::BeforeSeal {
        return;
    }
    let record = sink.seal(Epoch(2)).await.unwrap().expect("there are rows");
    let storage = Arc::clone(&sink.state.as_ref().unwrap().storage);
    if died >= Died::BeforeCommit {
        storage.prepare(&record).await.unwrap();
    }
    if died >= Died::BeforeReveal {
        storage.commit(&record).await.unwrap();
    }
}

fn read_file(file: File) -> Vec<RecordBatch> {
    ParquetRecordBatchReaderBuilder::try_new(file)
        .unwrap()
        .build()
        .unwrap()
        .map(|rows| rows.unwrap())
        .collect()
}

fn read_local(folder: &Path) -> Vec<RecordBatch> {
    let files = committed_files(&folder.join("lake")).unwrap();
    files.iter().flat_map(|file| read_file(File::open(&file.path).unwrap())).collect()
}

/// The offsets of all rows, ascending; every one must belong to its message.
fn offsets(batches: &[RecordBatch]) -> Vec<u64> {
    let mut offsets = Vec::new();
    for batch in batches {
        let position = batch.column_by_name("_position").unwrap().as_string_view();
        let original = batch.column_by_name("_original").unwrap().as_binary_view();
        for idx in 0..batch.num_rows() {
            let offset: u64 = position.value(idx).rsplit_once(':').unwrap().1.parse().unwrap();
            assert_eq!(original.value(idx), format!("message {offset}").as_bytes());
            offsets.push(offset);
        }
    }
    offsets.sort_unstable();
    offsets
}

/// All `.parquet` files that a reader without a commit log would find.
fn visible(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            visible(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            found.push(path);
        }
    }
}

#[test]
fn a_crash_at_any_step_loses_and_repeats_nothing() {
    for died in DEATHS {
        let folder = tempfile::tempdir().unwrap();
        block_on(async {
            let mut first = sink(folder.path(), "partition_by: [tenant, date]");
            first.connect().await.unwrap();
            first.write(&rows(1..=10)).await.unwrap();
            first.flush(Epoch(1)).await.unwrap();
            first.write(&rows(11..=14)).await.unwrap();
            first.write(&rows(15..=20)).await.unwrap();
            flush_until(&mut first, died).await;
        });
        let upto = if died >= Died::BeforeReveal { 20 } else { 10 };
        assert_eq!(offsets(&read_local(folder.path())), (1..=upto).collect::<Vec<_>>(), "{died:?}");
        let mut found = Vec::new();
        visible(&folder.path().join("lake"), &mut found);
        found.iter().for_each(|path| drop(read_file(File::open(path).unwrap())));
        block_on(async {
            let mut second = sink(folder.path(), "partition_by: [tenant, date]");
            second.connect().await.unwrap();
            for range in [6..=13, 14..=20, 21..=25] {
                second.write(&rows(range)).await.unwrap();
            }
            second.flush(Epoch(9)).await.unwrap();
            let n_duplicates = second.cx.metrics.sink_duplicates.with_label_values(&["sink"]).get();
            assert_eq!(n_duplicates, upto - 5, "{died:?}");
        });
        assert_eq!(offsets(&read_local(folder.path())), (1..=25).collect::<Vec<_>>(), "{died:?}");
        let mut found = Vec::new();
        visible(&folder.path().join("lake"), &mut found);
        assert_eq!(found.len(), committed_files(&folder.path().join("lake")).unwrap().len(), "{died:?}");
        assert_eq!(fs::read_dir(folder.path().join("lake/_tmp")).unwrap().count(), 0, "{died:?}");
    }
}

#[test]
fn an_error_and_a_second_connect_repeat_nothing() {
    for died in DEATHS {
        let folder = tempfile::tempdir().unwrap();
        block_on(async {
            let mut sink = sink(folder.path(), "");
            sink.connect().await.unwrap();
            sink.write(&rows(1..=10)).await.unwrap();
            flush_until(&mut sink, died).await;
            sink.connect().await.unwrap();
            sink.write(&rows(1..=10)).await.unwrap();
            sink.flush(Epoch(2)).await.unwrap();
        });
        assert_eq!(offsets(&read_local(folder.path())), (1..=10).collect::<Vec<_>>(), "{died:?}");
    }
}

async fn read_remote(store: &Arc<dyn ObjectStore>, folder: &Path) -> Vec<RecordBatch> {
    let remote = Remote::new(Arc::clone(store), "some/lake", "memory:///some/lake");
    let mut batches = Vec::new();
    for file in objects(remote).await.unwrap() {
        let bytes = store.get(&file.path.as_str().into()).await.unwrap().bytes().await.unwrap();
        let copy = folder.join("copy");
        fs::write(&copy, bytes).unwrap();
        batches.extend(read_file(File::open(copy).unwrap()));
    }
    batches
}

#[test]
fn an_object_store_is_exactly_once_too() {
    for died in DEATHS {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        block_on(async {
            let mut first = remote_sink(folder.path(), &store);
            first.connect().await.unwrap();
            first.write(&rows(1..=10)).await.unwrap();
            first.flush(Epoch(1)).await.unwrap();
            first.write(&rows(11..=20)).await.unwrap();
            flush_until(&mut first, died).await;
            drop(first);
            let upto = if died >= Died::BeforeReveal { 20 } else { 10 };
            let read = offsets(&read_remote(&store, folder.path()).await);
            assert_eq!(read, (1..=upto).collect::<Vec<_>>(), "{died:?}");
            let mut second = remote_sink(folder.path(), &store);
            second.connect().await.unwrap();
            second.write(&rows(3..=17)).await.unwrap();
            second.write(&rows(18..=22)).await.unwrap();
            second.flush(Epoch(9)).await.unwrap();
            let read = offsets(&read_remote(&store, folder.path()).await);
            assert_eq!(read, (1..=22).collect::<Vec<_>>(), "{died:?}");
            let all: Vec<_> = store.list(None).try_collect().await.unwrap();
            let n_objects = all.iter().filter(|o| o.location.as_ref().ends_with(".parquet")).count();
            let remote = Remote::new(Arc::clone(&store), "some/lake", "");
            assert_eq!(n_objects, objects(remote).await.unwrap().len(), "leftovers are deleted: {died:?}");
        });
    }
}

#[test]
fn a_writer_that_was_replaced_cannot_commit() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    block_on(async {
        let mut old = remote_sink(one.path(), &store);
        old.connect().await.unwrap();
        old.write(&rows(1..=10)).await.unwrap();
        let record = old.seal(Epoch(1)).await.unwrap().unwrap();
        let storage = Arc::clone(&old.state.as_ref().unwrap().storage);
        storage.prepare(&record).await.unwrap();
        let mut new = remote_sink(other.path(), &store);
        new.connect().await.unwrap();
        assert!(storage.commit(&record).await.is_err());
        new.write(&rows(1..=10)).await.unwrap();
        new.flush(Epoch(1)).await.unwrap();
        assert_eq!(offsets(&read_remote(&store, one.path()).await), (1..=10).collect::<Vec<_>>());
    });
}

#[test]
fn two_writers_of_one_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut one, mut other) = (sink(folder.path(), ""), sink(folder.path(), ""));
        one.connect().await.unwrap();
        assert!(other.connect().await.is_err());
        one.close().await.unwrap();
        other.connect().await.unwrap();
    });
}

#[test]
fn findings_are_written_once_by_identity() {
    let folder = tempfile::tempdir().unwrap();
    let unordered = |ids: &[u64]| {
        let texts: Vec<String> = ids.iter().map(|id| format!("message {id}")).collect();
        let rows: Vec<_> = ids.iter().zip(&texts).map(|(id, text)| (*id, None, &**text)).collect();
        let batch = events(&rows);
        let origin = Arc::new(Origin { ordered: false, ..Origin::clone(batch.origin()) });
        let (layout, original) = (Arc::clone(batch.layout()), batch.original().clone());
        Batch::new(batch.rows().clone(), original, batch.offsets().clone(), origin, layout).unwrap()
    };
    block_on(async {
        let mut first = sink(folder.path(), "");
        first.connect().await.unwrap();
        first.write(&unordered(&[900, 7, 31])).await.unwrap();
        first.flush(Epoch(1)).await.unwrap();
        drop(first);
        let mut second = sink(folder.path(), "");
        second.connect().await.unwrap();
        second.write(&unordered(&[31, 8, 900])).await.unwrap();
        second.flush(Epoch(2)).await.unwrap();
    });
    assert_eq!(offsets(&read_local(folder.path())), [7, 8, 31, 900]);
}

#[test]
fn hostile_values_stay_in_the_lake_and_are_kept_apart() {
    let folder = tempfile::tempdir().unwrap();
    let long = "x".repeat(100_000);
    let hostile = [
        "../../../etc",
        "..",
        "/etc/passwd",
        "a=b/c",
        "",
        "日本語",
        "a\0b",
        long.as_str(),
        "_tmp",
        "%2F",
        "/",
    ];
    let mut input: Vec<_> =
        hostile.iter().enumerate().map(|(idx, tenant)| (idx as u64, Some(*tenant), "m")).collect();
    input.push((99, None, "m"));
    block_on(async {
        let mut sink = sink(folder.path(), "partition_by: [tenant], max_open_files: 3");
        sink.connect().await.unwrap();
        sink.write(&events(&input)).await.unwrap();
        sink.flush(Epoch(1)).await.unwrap();
    });
    let files = committed_files(&folder.path().join("lake")).unwrap();
    let folders: BTreeSet<_> =
        files.iter().map(|file| Path::new(&file.path).parent().unwrap().to_owned()).collect();
    assert_eq!(folders.len(), input.len() - 1, "only empty and null share a folder");
    for path in &folders {
        let relative = path.strip_prefix(folder.path().join("lake")).unwrap();
        assert_eq!(relative.components().count(), 1, "{relative:?}");
    }
    assert!(folders.iter().any(|folder| folder.ends_with("tenant=__HIVE_DEFAULT_PARTITION__")));
    assert_eq!(files.iter().map(|file| file.rows).sum::<u64>(), input.len() as u64);
    let tenants: BTreeSet<String> = read_local(folder.path())
        .iter()
        .flat_map(|rows| rows.column_by_name("tenant").unwrap().as_string_view().iter().flatten())
        .map(str::to_owned)
        .collect();
    assert_eq!(
        tenants,
        hostile.iter().map(|t| (*t).to_owned()).collect(),
        "the column keeps the exact value"
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn rows_are_sorted_by_event_time_with_statistics() {
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        let mut sink = sink(folder.path(), "bloom_filters: [tenant], batch: {max_rows: 1000}");
        sink.connect().await.unwrap();
        sink.write(&rows(50..=99)).await.unwrap();
        sink.write(&rows(1..=49)).await.unwrap();
        sink.flush(Epoch(1)).await.unwrap();
    });
    let files = committed_files(&folder.path().join("lake")).unwrap();
    assert_eq!((files.len(), files[0].min_time, files[0].max_time), (1, 1_000_000, 99_000_000));
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&files[0].path).unwrap()).unwrap();
    let column = reader.metadata().row_group(0).column(0).clone();
    assert!(column.statistics().is_some() && column.column_index_offset().is_some());
    assert!(reader.metadata().row_group(0).column(1).bloom_filter_offset().is_some());
    let rows = reader.build().unwrap().next().unwrap().unwrap();
    assert!(rows.column(0).as_primitive::<TimestampMicrosecondType>().values().is_sorted());
}

#[test]
fn little_memory_makes_more_row_groups_and_files_but_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        let yaml =
            "partition_by: [tenant], row_group_bytes: 10KB, memory_bytes: 20KB, batch: {max_rows: 300}";
        let mut sink = sink(folder.path(), yaml);
        sink.connect().await.unwrap();
        for first in (1..=1_000).step_by(50) {
            sink.write(&rows(first..=first + 49)).await.unwrap();
            assert!(sink.state.as_ref().is_some_and(|state| !state.writers.is_full()), "memory is bounded");
        }
        sink.flush(Epoch(1)).await.unwrap();
    });
    assert_eq!(offsets(&read_local(folder.path())), (1..=1_000).collect::<Vec<_>>());
    assert!(committed_files(&folder.path().join("lake")).unwrap().len() >= 4);
}

#[test]
fn rows_of_different_schemas_go_to_different_files() {
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        let mut sink = sink(folder.path(), "original: false");
        sink.connect().await.unwrap();
        let all = rows(1..=4);
        let fewer = all.rows().project(&[0]).unwrap();
        let layout = Arc::clone(all.layout());
        sink.write(&all).await.unwrap();
        sink.write(&rows(5..=6).with_rows(fewer.slice(0, 2), layout)).await.unwrap();
        sink.flush(Epoch(1)).await.unwrap();
    });
    let mut widths: Vec<usize> = read_local(folder.path()).iter().map(RecordBatch::num_columns).collect();
    widths.sort_unstable();
    assert_eq!(widths, [4, 5]);
}

#[test]
fn a_long_history_is_read_in_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    block_on(async {
        let mut sink = remote_sink(folder.path(), &store);
        sink.connect().await.unwrap();
        for offset in 1..=260 {
            sink.write(&rows(offset..=offset)).await.unwrap();
            sink.flush(Epoch(offset)).await.unwrap();
            if offset == 255 || offset == 256 {
                sink.connect().await.unwrap();
            }
        }
        // The records behind a block are not needed any more to list the files.
        store.delete(&"some/lake/_logdrive/00000003.json".into()).await.unwrap();
        drop(sink);
        let mut sink = remote_sink(folder.path(), &store);
        sink.connect().await.unwrap();
        assert_eq!(sink.state.as_ref().unwrap().n_commits, 260);
        sink.write(&rows(250..=261)).await.unwrap();
        sink.flush(Epoch(261)).await.unwrap();
        let read = offsets(&read_remote(&store, folder.path()).await);
        assert_eq!(read, (1..=261).collect::<Vec<_>>());
    });
}

#[test]
fn bad_configuration_is_refused() {
    for bad in ["compression: zstd(99)", "compression: 'zstd('", "max_open_files: 0", "path: 'ftp://x'"] {
        let node = Node::parse(
            format!("{{path: x, {bad}}}").replacen("path: x, path", "path", 1).as_bytes(),
            Default::default(),
        );
        let config = parse::<Parquet>(&node.unwrap(), &mut Vec::new()).unwrap();
        assert!(config.build_sink(&context(Path::new("."))).is_err(), "{bad}");
    }
}
