//! Object stores that a configuration names by a URL: the Parquet sink's and that of the checkpoints are opened alike.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use object_store::path::Path as Key;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart};
use tokio::io::AsyncReadExt;
use url::Url;

/// Objects up to this size are sent at once, larger ones in parts of this size.
pub const PART_BYTES: usize = 8 << 20;
/// Parts of one object that are under way at a time.
const PARTS_AT_A_TIME: usize = 4;

/// Whether a path names an object store.
#[must_use]
pub fn is_url(path: &str) -> bool {
    path.contains("://")
}

/// The object store that a URL names and the prefix in it, with options from the environment (`AWS_…`) and from the
/// configuration, which come first.
///
/// # Errors
/// What is wrong with the URL or the options.
pub fn open(url: &str, options: &BTreeMap<String, String>) -> Result<(Arc<dyn ObjectStore>, Key), String> {
    let parsed = Url::parse(url).map_err(|error| format!("`{url}` is no URL: {error}"))?;
    let environment = std::env::vars_os().filter_map(|(name, value)| {
        let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
        name.starts_with("AWS_").then(|| (name.to_ascii_lowercase(), value))
    });
    let options = environment.chain(options.iter().map(|(key, value)| (key.clone(), value.clone())));
    let (store, prefix) =
        object_store::parse_url_opts(&parsed, options).map_err(|error| error.to_string())?;
    Ok((store.into(), prefix))
}

/// Why a file was not uploaded.
#[derive(Debug)]
pub enum UploadError {
    /// The file cannot be read.
    File(io::Error),
    /// The object cannot be written.
    Store(StoreError),
}

impl From<StoreError> for UploadError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Makes an object of a file.
///
/// # Errors
/// If the file cannot be read, or the object cannot be written: then there is none, or the one that was there before.
pub async fn upload(store: &dyn ObjectStore, from: &Path, to: &Key) -> Result<(), UploadError> {
    let mut file = tokio::fs::File::open(from).await.map_err(UploadError::File)?;
    let mut part = Vec::new();
    (&mut file).take(PART_BYTES as u64).read_to_end(&mut part).await.map_err(UploadError::File)?;
    if part.len() < PART_BYTES {
        store.put(to, PutPayload::from(part)).await?;
        return Ok(());
    }
    let mut upload = WriteMultipart::new_with_chunk_size(store.put_multipart(to).await?, PART_BYTES);
    while !part.is_empty() {
        upload.wait_for_capacity(PARTS_AT_A_TIME).await?;
        upload.put(std::mem::take(&mut part).into());
        (&mut file).take(PART_BYTES as u64).read_to_end(&mut part).await.map_err(UploadError::File)?;
    }
    upload.finish().await?;
    Ok(())
}
