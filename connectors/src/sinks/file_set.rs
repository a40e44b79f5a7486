//! The open files of a `file` sink: bounded in number, never outside of one folder, never through a symlink.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::file::{File as FileConfig, FileCompression};

/// Lines of one file that wait to be written.
const PENDING_BYTES_MAX: usize = 256 << 10;
/// Compressed files of this run that are remembered as whole.
const WHOLE_MAX: usize = 65_536;

/// Why lines were not appended.
#[derive(Debug)]
pub(super) enum AppendError {
    /// The disk failed, or is full.
    Io(io::Error),
    /// There can be no such file: a symlink, a folder, a name too long.
    Refused(String),
}

impl From<io::Error> for AppendError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ELOOP) => Self::Refused("a part of the path is a symbolic link".into()),
            Some(libc::EISDIR | libc::ENAMETOOLONG | libc::ENOTDIR) => Self::Refused(error.to_string()),
            _ => Self::Io(error),
        }
    }
}

/// Files open for appending. After any error it must be dropped.
pub(super) struct FileSet {
    root: PathBuf,
    fsync: bool,
    compression: FileCompression,
    rotate_bytes: u64,
    n_open_max: usize,
    open: HashMap<String, OpenFile>,
    /// Counts appends, to know which file was not written for longest.
    clock: u64,
    /// Folders with new entries that are not durable yet.
    folders: HashSet<PathBuf>,
    /// Compressed files that this run wrote whole and may therefore append to.
    whole: HashSet<String>,
}

struct OpenFile {
    path: PathBuf,
    file: File,
    n_bytes: u64,
    pending: Vec<u8>,
    unsynced: bool,
    used: u64,
}

impl FileSet {
    pub(super) fn new(root: PathBuf, config: &FileConfig) -> Self {
        Self {
            root,
            fsync: config.fsync,
            compression: config.compression,
            rotate_bytes: config.rotate.map_or(u64::MAX, |rotate| rotate.max_bytes),
            n_open_max: config.max_open_files,
            open: HashMap::new(),
            clock: 0,
            folders: HashSet::new(),
            whole: HashSet::new(),
        }
    }

    /// Appends whole lines to the file at `path` below the root, creating it.
    pub(super) fn append(&mut self, path: &str, lines: &[u8]) -> Result<(), AppendError> {
        self.clock += 1;
        if !self.open.contains_key(path) {
            self.evict()?;
            let file = self.open_file(path)?;
            self.open.insert(path.to_owned(), file);
        }
        let file = self.open.get_mut(path).expect("opened above");
        file.used = self.clock;
        file.pending.extend_from_slice(lines);
        if file.pending.len() > PENDING_BYTES_MAX {
            file.write_out(self.compression)?;
            self.rotate(path)?;
        }
        Ok(())
    }

    /// Writes and, unless told otherwise, syncs everything.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        let paths: Vec<String> = self.open.keys().cloned().collect();
        for path in paths {
            let file = self.open.get_mut(&path).expect("its key was just listed");
            file.write_out(self.compression)?;
            file.sync(self.fsync)?;
            if file.was_moved() {
                self.open.remove(&path);
            } else {
                self.rotate(&path)?;
            }
        }
        for folder in self.folders.drain() {
            if self.fsync {
                File::open(&folder)?.sync_all()?;
            }
        }
        Ok(())
    }

    /// Closes the file that was not written for longest if there is no room for another.
    fn evict(&mut self) -> io::Result<()> {
        if self.open.len() < self.n_open_max {
            return Ok(());
        }
        let oldest = self.open.iter().min_by_key(|(_, file)| file.used).map(|(path, _)| path.clone());
        if let Some(mut file) = oldest.and_then(|path| self.open.remove(&path)) {
            file.write_out(self.compression)?;
            file.sync(self.fsync)?;
        }
        Ok(())
    }

    fn open_file(&mut self, path: &str) -> Result<OpenFile, AppendError> {
        fs::create_dir_all(&self.root)?;
        let (mut folder, mut segments) = (self.root.clone(), path.split('/').peekable());
        let mut name = "";
        while let Some(segment) = segments.next() {
            if segments.peek().is_none() {
                name = segment;
            } else {
                self.create_folder(&folder, segment)?;
                folder.push(segment);
            }
        }
        let path_full = folder.join(name);
        if self.compression != FileCompression::None {
            // A torn end of an earlier run would hide everything behind it from readers.
            if self.whole.len() >= WHOLE_MAX {
                self.whole.clear();
            }
            let is_ours = !self.whole.insert(path.to_owned());
            if !is_ours && fs::symlink_metadata(&path_full).is_ok_and(|m| m.is_file() && m.len() > 0) {
                set_aside(&path_full)?;
            }
        }
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
        let mut file = options.open(&path_full)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(AppendError::Refused("not a regular file".into()));
        }
        let n_bytes = metadata.len();
        self.folders.insert(folder);
        let mut pending = Vec::new();
        if n_bytes > 0 && self.compression == FileCompression::None && !ends_with_newline(&mut file)? {
            pending.push(b'\n');
        }
        Ok(OpenFile { path: path_full, file, n_bytes, pending, unsynced: true, used: self.clock })
    }

    fn create_folder(&mut self, parent: &Path, segment: &str) -> Result<(), AppendError> {
        let folder = parent.join(segment);
        match fs::create_dir(&folder) {
            Ok(()) => {
                self.folders.insert(parent.to_owned());
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if fs::symlink_metadata(&folder)?.is_dir() {
                    Ok(())
                } else {
                    Err(AppendError::Refused(format!("`{segment}` is not a folder of its own")))
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    fn rotate(&mut self, path: &str) -> io::Result<()> {
        if self.open.get(path).is_none_or(|file| file.n_bytes < self.rotate_bytes) {
            return Ok(());
        }
        let mut file = self.open.remove(path).expect("looked up above");
        file.sync(self.fsync)?;
        if !file.was_moved() {
            set_aside(&file.path)?;
        }
        self.folders.extend(file.path.parent().map(Path::to_owned));
        Ok(())
    }
}

impl OpenFile {
    fn write_out(&mut self, compression: FileCompression) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let compressed = match compression {
            FileCompression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
                encoder.write_all(&self.pending)?;
                Some(encoder.finish()?)
            }
            FileCompression::None => None,
            FileCompression::Zstd => Some(zstd::bulk::compress(&self.pending, 3)?),
        };
        let bytes = compressed.as_ref().unwrap_or(&self.pending);
        self.file.write_all(bytes)?;
        self.n_bytes += bytes.len() as u64;
        self.unsynced = true;
        self.pending.clear();
        Ok(())
    }

    fn sync(&mut self, fsync: bool) -> io::Result<()> {
        if fsync && self.unsynced {
            self.file.sync_data()?;
        }
        self.unsynced = false;
        Ok(())
    }

    /// Whether somebody, such as logrotate, has moved the file: lines must then go to a new one.
    fn was_moved(&self) -> bool {
        match (fs::symlink_metadata(&self.path), self.file.metadata()) {
            (Ok(there), Ok(here)) => (there.dev(), there.ino()) != (here.dev(), here.ino()),
            _ => true,
        }
    }
}

fn ends_with_newline(file: &mut File) -> io::Result<bool> {
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// Renames a file to itself with the next free number behind it.
fn set_aside(path: &Path) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let mut last = 0_u64;
    for entry in fs::read_dir(folder)? {
        let number = entry?
            .file_name()
            .to_str()
            .and_then(|other| other.strip_prefix(name)?.strip_prefix('.')?.parse::<u64>().ok());
        last = last.max(number.unwrap_or(0));
    }
    fs::rename(path, folder.join(format!("{name}.{}", last.saturating_add(1))))
}
