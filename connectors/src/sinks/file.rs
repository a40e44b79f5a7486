//! One JSON document a line, into files whose path may depend on time and on columns.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError, Span, bytes};
use logdrive_schemas::{Batch, Epoch, Reject, reject};
use schemars::JsonSchema;
use serde::Deserialize;

use super::file_set::{AppendError, FileSet};
use super::template::PathTemplate;
use crate::context::ConnectorContext;
use crate::document::Documents;
use crate::error::ConnectorError;
use crate::sink::{FlushPolicy, Guarantee, Reads, Sink, SinkConfig};

/// Writes one JSON document a line to files. A crash may repeat the last lines, and may leave one line cut short,
/// which is then ended where it is and written again in full.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Where to write: `%Y-%m-%d` and the like are the event time in UTC (the arrival, for rows without one),
    /// `{column}` is a value. Values are percent-encoded, so that none of them can leave the folder.
    pub path: String,
    /// Whether each flush waits for the disk. Without it a power failure loses what was acknowledged.
    #[serde(default = "yes")]
    pub fsync: bool,
    /// `none`, `gzip` or `zstd`; the file is then a sequence of gzip members or zstd frames, one or more per flush.
    #[serde(default)]
    pub compression: FileCompression,
    /// When a file is set aside.
    #[serde(default)]
    pub rotate: Option<Rotate>,
    /// How many files are kept open; the one that was not written for longest is closed first.
    #[serde(default = "max_open_files")]
    pub max_open_files: usize,
}

/// How a file is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileCompression {
    /// gzip, level 6.
    Gzip,
    /// Plain lines.
    #[default]
    None,
    /// zstd, level 3.
    Zstd,
}

/// When a file is set aside.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rotate {
    /// A file that has reached this size is renamed to `<path>.<number>`, counting up from 1.
    #[serde(deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_bytes: u64,
}

fn yes() -> bool {
    true
}

fn max_open_files() -> usize {
    64
}

impl Component for File {
    const NAME: &'static str = "file";
    const EXAMPLE: &'static str =
        "type: file\npath: \"data/logs/%Y-%m-%d.ndjson\"\nrotate: { max_bytes: 1GiB }\n";
}

impl SinkConfig for File {
    fn guarantee(&self) -> Guarantee {
        if self.fsync { Guarantee::AtLeastOnce } else { Guarantee::BestEffort }
    }

    fn reads(&self) -> Reads {
        Reads::Document(PathTemplate::parse(&self.path).map(|t| t.columns()).unwrap_or_default())
    }

    fn build(self, cx: &ConnectorContext) -> Result<Box<dyn Sink>, ConfigError> {
        let invalid = |message: String| ConfigError::new("config::invalid_value", Span::default(), message);
        let template = PathTemplate::parse(&self.path).map_err(invalid)?;
        if self.max_open_files == 0 || self.rotate.is_some_and(|r| r.max_bytes == 0) {
            return Err(invalid("`max_open_files` and `rotate.max_bytes` must be at least 1".into()));
        }
        Ok(Box::new(FileSink { config: self, template, cx: cx.clone(), files: None, n_rows: 0, n_bytes: 0 }))
    }
}

/// A running [`File`].
struct FileSink {
    config: File,
    template: PathTemplate,
    cx: ConnectorContext,
    /// `None` until connected, and after every error.
    files: Option<FileSet>,
    n_rows: u64,
    n_bytes: u64,
}

/// The lines of a batch that go to one file.
#[derive(Default)]
struct Lines {
    rows: Vec<u32>,
    bytes: Vec<u8>,
}

impl FileSink {
    /// Runs `work` where it may block. Whatever fails, the files are closed and opened anew by `connect`.
    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut FileSet) -> io::Result<T> + Send + 'static,
    ) -> Result<T, ConnectorError> {
        let path = self.config.path.clone();
        let Some(mut files) = self.files.take() else {
            return Err(ConnectorError::disconnected(path, io::Error::from(io::ErrorKind::NotConnected)));
        };
        let done = tokio::task::spawn_blocking(move || work(&mut files).map(|value| (files, value)));
        match done.await {
            Ok(Ok((files, value))) => {
                self.files = Some(files);
                Ok(value)
            }
            Ok(Err(error)) => Err(ConnectorError::disconnected(path, error)),
            Err(error) => Err(ConnectorError::disconnected(path, error)),
        }
    }

    /// The documents of a batch, by file.
    fn lines(&self, batch: &Batch) -> HashMap<String, Lines> {
        let (bound, documents) = (self.template.bind(batch), Documents::new(batch));
        let mut lines: HashMap<String, Lines> = HashMap::new();
        let mut path = String::new();
        for idx in 0..batch.num_rows() {
            if idx == 0 || !self.template.is_constant() {
                bound.render(idx, &mut path);
            }
            if !lines.contains_key(&path) {
                lines.insert(path.clone(), Lines::default());
            }
            let file = lines.get_mut(&path).expect("inserted above");
            documents.write(idx, &mut file.bytes);
            file.bytes.push(b'\n');
            file.rows.push(idx as u32);
        }
        lines
    }
}

#[async_trait]
impl Sink for FileSink {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        (self.n_rows, self.n_bytes) = (0, 0);
        self.files = Some(FileSet::new(self.template.root().to_owned(), &self.config));
        if self.template.is_constant() {
            // The path is the user's own: better refused now than one reject per row.
            let mut path = String::new();
            self.template.render_constant(&mut path);
            let opened = self.blocking(move |files| match files.append(&path, b"") {
                Ok(()) => Ok(None),
                Err(AppendError::Refused(reason)) => Ok(Some(reason)),
                Err(AppendError::Io(error)) => Err(error),
            });
            if let Some(reason) = opened.await? {
                return Err(ConnectorError::refused(&self.config.path, reason));
            }
        }
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        let lines = self.lines(batch);
        let n_bytes: usize = lines.values().map(|file| file.bytes.len()).sum();
        let appended =
            self.blocking(move |files| {
                let mut rejects = Vec::new();
                for (path, file) in &lines {
                    match files.append(path, &file.bytes) {
                        Ok(()) => {}
                        Err(AppendError::Refused(reason)) => rejects.extend(file.rows.iter().map(|idx| {
                            Reject { idx: *idx as usize, reason: format!("path_refused: {reason}") }
                        })),
                        Err(AppendError::Io(error)) => return Err(error),
                    }
                }
                rejects.sort_by_key(|reject| reject.idx);
                Ok(rejects)
            });
        let rejects = appended.await?;
        self.n_rows += (batch.num_rows() - rejects.len()) as u64;
        self.n_bytes += n_bytes as u64;
        Ok(reject::of_batch(batch, &rejects))
    }

    async fn flush(&mut self, _upto: Epoch) -> Result<Option<Batch>, ConnectorError> {
        let synced = self.blocking(|files| Ok(files.sync())).await?;
        // After a failed fsync the kernel may have dropped the pages: to try again would lie.
        synced.map_err(|error| ConnectorError::storage(&self.config.path, error))?;
        let (n_rows, n_bytes) = (std::mem::take(&mut self.n_rows), std::mem::take(&mut self.n_bytes));
        self.cx.metrics.sink_rows.with_label_values(&[&self.cx.name]).inc_by(n_rows);
        self.cx.metrics.sink_bytes.with_label_values(&[&self.cx.name]).inc_by(n_bytes);
        Ok(None)
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy { bytes_max: 8 << 20, age_max: Duration::from_millis(200) }
    }

    async fn close(&mut self) -> Result<(), ConnectorError> {
        self.files = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::path::Path;

    use super::*;
    use crate::sinks::fixtures::{block_on, context, events};

    fn sink(folder: &Path, yaml: &str) -> Box<dyn Sink> {
        let yaml = yaml.replace("DIR", folder.to_str().unwrap());
        let node = logdrive_schemas::component::Node::parse(yaml.as_bytes(), Default::default()).unwrap();
        let mut errors = Vec::new();
        let config = logdrive_schemas::component::parse::<File>(&node, &mut errors).expect("valid");
        config.build(&context(folder)).unwrap()
    }

    fn deliver(sink: &mut dyn Sink, rows: &[(u64, Option<&str>, &str)]) -> Option<Batch> {
        block_on(async {
            let rejects = sink.write(&events(rows)).await.unwrap();
            sink.flush(Epoch(1)).await.unwrap();
            rejects
        })
    }

    #[test]
    fn rows_go_to_the_files_that_their_values_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut sink = sink(folder.path(), "{path: \"DIR/out/%Y/{tenant}.ndjson\", max_open_files: 2}");
        block_on(sink.connect()).unwrap();
        let rows = [(1, Some("a"), "1"), (2, Some("../../b"), "2"), (3, Some("a"), "3"), (4, Some("c"), "4")];
        assert!(deliver(&mut *sink, &rows).is_none());
        deliver(&mut *sink, &[(5, Some("a"), "5")]);
        let read = |name: &str| fs::read_to_string(folder.path().join("out/1970").join(name)).unwrap();
        assert_eq!(read("a.ndjson"), "1\n3\n5\n");
        assert_eq!(read("%2E.%2F..%2Fb.ndjson"), "2\n");
        assert_eq!(read("c.ndjson"), "4\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing outside the folder");
    }

    #[test]
    fn a_line_cut_by_a_crash_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.ndjson");
        fs::write(&path, "{\"a\":1}\n{\"a\":").unwrap();
        let mut sink = sink(folder.path(), "path: DIR/x.ndjson");
        block_on(sink.connect()).unwrap();
        deliver(&mut *sink, &[(1, None, "{\"a\":2}")]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"a\":1}\n{\"a\":\n{\"a\":2}\n");
    }

    #[test]
    fn a_symlink_below_the_folder_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("out")).unwrap();
        fs::create_dir_all(folder.path().join("elsewhere")).unwrap();
        fs::write(folder.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), folder.path().join("out/dir")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("secret"), folder.path().join("out/file")).unwrap();
        let mut by_dir = sink(folder.path(), "path: \"DIR/out/{tenant}/x\"");
        block_on(by_dir.connect()).unwrap();
        let rejects = deliver(&mut *by_dir, &[(1, Some("dir"), "1"), (2, Some("ok"), "2")]).unwrap();
        assert_eq!((rejects.num_rows(), rejects.offsets().value(0)), (1, 1));
        let mut by_file = sink(folder.path(), "path: \"DIR/out/{tenant}\"");
        block_on(by_file.connect()).unwrap();
        assert_eq!(deliver(&mut *by_file, &[(1, Some("file"), "1")]).unwrap().num_rows(), 1);
        assert_eq!(fs::read_to_string(folder.path().join("secret")).unwrap(), "s");
        let mut constant = sink(folder.path(), "path: DIR/out/file");
        assert!(matches!(block_on(constant.connect()), Err(ConnectorError::Refused { .. })));
    }

    #[test]
    fn a_full_file_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let mut sink = sink(folder.path(), "{path: DIR/x, rotate: {max_bytes: 4B}}");
        block_on(sink.connect()).unwrap();
        for offset in 1..=3 {
            deliver(&mut *sink, &[(offset, None, "abcd")]);
        }
        deliver(&mut *sink, &[(4, None, "e")]);
        for name in ["x.1", "x.2", "x.3"] {
            assert_eq!(fs::read_to_string(folder.path().join(name)).unwrap(), "abcd\n");
        }
        assert_eq!(fs::read_to_string(folder.path().join("x")).unwrap(), "e\n");
    }

    #[test]
    fn compressed_files_read_back_also_after_a_crash() {
        for compression in ["gzip", "zstd"] {
            let folder = tempfile::tempdir().unwrap();
            let yaml = format!("{{path: DIR/x, compression: {compression}}}");
            for offset in 1..=2 {
                let mut sink = sink(folder.path(), &yaml);
                block_on(sink.connect()).unwrap();
                deliver(&mut *sink, &[(offset, None, "one")]);
                deliver(&mut *sink, &[(offset, None, "two")]);
            }
            // The file of the first run may have been torn: the second run set it aside.
            for name in ["x", "x.1"] {
                let bytes = fs::read(folder.path().join(name)).unwrap();
                let mut text = String::new();
                if compression == "gzip" {
                    flate2::read::MultiGzDecoder::new(&*bytes).read_to_string(&mut text).unwrap();
                } else {
                    zstd::stream::read::Decoder::new(&*bytes).unwrap().read_to_string(&mut text).unwrap();
                }
                assert_eq!(text, "one\ntwo\n", "{compression} {name}");
            }
        }
    }

    #[test]
    fn a_file_that_was_moved_away_is_opened_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let mut sink = sink(folder.path(), "path: DIR/x");
        block_on(sink.connect()).unwrap();
        deliver(&mut *sink, &[(1, None, "1")]);
        fs::rename(&path, folder.path().join("moved")).unwrap();
        deliver(&mut *sink, &[(2, None, "2")]);
        deliver(&mut *sink, &[(3, None, "3")]);
        let all =
            fs::read_to_string(folder.path().join("moved")).unwrap() + &fs::read_to_string(&path).unwrap();
        assert_eq!(all, "1\n2\n3\n");
        assert!(path.exists());
    }
}
