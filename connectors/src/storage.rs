//! Small files that are replaced as a whole.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

/// Replaces a file so that a crash leaves the old or the new content, never a mixture: temporary file, sync, rename,
/// sync of the folder.
///
/// # Errors
/// If the disk fails.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_data()?;
    std::fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

/// Appends to a file and makes it durable; creates the file and its folder.
///
/// # Errors
/// If the disk fails.
pub fn append(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut file = File::options().create(true).append(true).open(path)?;
    file.write_all(content)?;
    file.sync_data()
}
