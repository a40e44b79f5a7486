//! The file that says how long the log is and what its root is. Replaced atomically at every commit.
//!
//! ```text
//! <origin>
//! <size>
//! <root, base64>
//!
//! <what the writer goes on with, JSON>
//! <crc32 of everything before, 8 hexadecimal digits>
//! ```
//!
//! The first three lines are the body of a C2SP checkpoint; a signature will follow them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::merkle::{CompactRange, Hash};
use crate::segment::sync_dir;

/// The file's name.
pub(crate) const NAME: &str = "checkpoint";

/// The log up to a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) origin: String,
    pub(crate) range: CompactRange,
    /// The leaf hash of the last entry.
    pub(crate) last: Option<Hash>,
    /// The time of the last entry, in microseconds since the Unix epoch.
    pub(crate) time: i64,
    pub(crate) marks: BTreeMap<String, u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    last: Option<String>,
    marks: BTreeMap<String, u64>,
    range: Vec<String>,
    time: i64,
}

impl Checkpoint {
    /// The three lines that others see.
    pub(crate) fn note(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.range.size(), STANDARD.encode(self.range.root()))
    }

    fn write(&self) -> Result<String, serde_json::Error> {
        let state = State {
            last: self.last.map(|hash| STANDARD.encode(hash)),
            marks: self.marks.clone(),
            range: self.range.hashes().iter().map(|hash| STANDARD.encode(hash)).collect(),
            time: self.time,
        };
        let mut text = format!("{}\n{}\n", self.note(), serde_json::to_string(&state)?);
        let crc = crc32fast::hash(text.as_bytes());
        text.push_str(&format!("{crc:08x}\n"));
        Ok(text)
    }

    /// Reads a checkpoint whose root and subtrees agree.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let body = text.strip_suffix('\n').ok_or("it is cut off")?;
        let (body, crc) = body.rsplit_once('\n').ok_or("it is cut off")?;
        if crc != format!("{:08x}", crc32fast::hash(&text.as_bytes()[..body.len() + 1])) {
            return Err("its checksum does not match");
        }
        let lines: Vec<&str> = body.split('\n').collect();
        let [origin, size, root, "", state] = lines[..] else { return Err("it has other lines") };
        let size: u64 = size.parse().map_err(|_| "its size is no number")?;
        let state: State = serde_json::from_str(state).map_err(|_| "its state makes no sense")?;
        let hashes: Option<Vec<Hash>> = state.range.iter().map(|text| read_hash(text)).collect();
        let range = hashes.and_then(|hashes| CompactRange::from_parts(size, hashes));
        let range = range.ok_or("its subtrees do not fit its size")?;
        let last = match &state.last {
            Some(text) => Some(read_hash(text).ok_or("its last hash is none")?),
            None => None,
        };
        if STANDARD.encode(range.root()) != root || last.is_none() != (size == 0) {
            return Err("its root does not fit its subtrees");
        }
        Ok(Self { origin: origin.to_owned(), range, last, time: state.time, marks: state.marks })
    }

    /// Replaces the file; durable on return.
    pub(crate) fn store(&self, dir: &Path) -> io::Result<()> {
        let text = self.write().map_err(io::Error::other)?;
        let path = dir.join("checkpoint.tmp");
        let mut file = File::create(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        fs::rename(&path, dir.join(NAME))?;
        sync_dir(dir)
    }
}

pub(crate) fn read_hash(text: &str) -> Option<Hash> {
    STANDARD.decode(text).ok()?.try_into().ok()
}
