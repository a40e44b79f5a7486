//! Which files a path stands for.
//!
//! A sink makes a file visible by a rename, and works under names that start with `_` or `.`: what is hidden, or
//! below something hidden, is not data.

use datafusion::datasource::listing::ListingTableUrl;
use datafusion::object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use futures::TryStreamExt;

/// The partition value that stands for null.
const NULL_PARTITION: &str = "__HIVE_DEFAULT_PARTITION__";

/// A data file and what its path says about its rows.
#[derive(Debug)]
pub(super) struct DataFile {
    pub(super) meta: ObjectMeta,
    /// `k=v` folders, outermost first; `None` is null.
    pub(super) partitions: Vec<(String, Option<String>)>,
}

/// The data files at a path: itself, or all in the folder, sorted by path.
pub(super) async fn list(
    store: &dyn ObjectStore,
    url: &ListingTableUrl,
) -> Result<Vec<DataFile>, datafusion::object_store::Error> {
    if !url.is_collection() {
        let meta = store.head(url.prefix()).await?;
        return Ok(vec![DataFile { meta, partitions: Vec::new() }]);
    }
    let mut found: Vec<ObjectMeta> = store.list(Some(url.prefix())).try_collect().await?;
    found.sort_unstable_by(|a, b| a.location.cmp(&b.location));
    let files = found.into_iter().filter_map(|meta| {
        if !url.contains(&meta.location, false) {
            return None;
        }
        let parts: Vec<String> =
            meta.location.prefix_match(url.prefix())?.map(|part| part.as_ref().to_owned()).collect();
        let (name, folders) = parts.split_last()?;
        let hidden = parts.iter().any(|part| part.starts_with(['_', '.']));
        if hidden || !name.ends_with(".parquet") {
            return None;
        }
        let partitions = folders.iter().filter_map(|folder| folder.split_once('=')).map(|(key, value)| {
            let value = (value != NULL_PARTITION).then(|| decoded(value));
            (decoded(key), value)
        });
        Some(DataFile { partitions: partitions.collect(), meta })
    });
    Ok(files.collect())
}

/// Folder names have what a path cannot hold as `%XX`; listing escapes the `%` once more where it stood in a file
/// system.
fn decoded(text: &str) -> String {
    let once = percent_encoding::percent_decode_str(text).decode_utf8_lossy();
    percent_encoding::percent_decode_str(&once).decode_utf8_lossy().into_owned()
}
