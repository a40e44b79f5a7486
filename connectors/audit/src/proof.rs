//! Proofs about a log, and its entries as text.

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, read_hash};
use crate::merkle::{
    CompactRange, Hash, consistency_ranges, inclusion_ranges, leaf_hash, verify_consistency, verify_inclusion,
};
use crate::verify::{Fault, load, walk};

/// That an entry is in a log: can be verified without it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// The entry, byte for byte.
    pub leaf: String,
    /// Its number.
    pub index: u64,
    /// The size of the tree that the proof is about.
    pub size: u64,
    /// Hashes from the leaf to the root, base64.
    pub path: Vec<String>,
    /// The checkpoint of that tree: origin, size and root, a line each.
    pub checkpoint: String,
}

impl Proof {
    /// Whether entry, number, path and checkpoint fit each other. Whether to believe the checkpoint is for the caller
    /// to know.
    #[must_use]
    pub fn verify(&self) -> bool {
        let lines: Vec<&str> = self.checkpoint.split('\n').collect();
        let [_, size, root, ""] = lines[..] else { return false };
        let path: Option<Vec<Hash>> = self.path.iter().map(|text| read_hash(text)).collect();
        let (Some(path), Some(root)) = (path, read_hash(root)) else { return false };
        let leaf = leaf_hash(self.leaf.as_bytes());
        size == self.size.to_string() && verify_inclusion(&leaf, self.index, self.size, &path, &root)
    }
}

/// That a log only grew since it had `old` entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsistencyProof {
    /// The size it had.
    pub old: u64,
    /// The size it has.
    pub size: u64,
    /// Hashes, base64.
    pub path: Vec<String>,
    /// The checkpoint of the log now: origin, size and root, a line each.
    pub checkpoint: String,
}

impl ConsistencyProof {
    /// Whether it proves that the tree with `old_root` is the start of the checkpoint's.
    #[must_use]
    pub fn verify(&self, old_root: &Hash) -> bool {
        let lines: Vec<&str> = self.checkpoint.split('\n').collect();
        let [_, size, root, ""] = lines[..] else { return false };
        let path: Option<Vec<Hash>> = self.path.iter().map(|text| read_hash(text)).collect();
        let (Some(path), Some(root)) = (path, read_hash(root)) else { return false };
        size == self.size.to_string() && verify_consistency(self.old, self.size, &path, old_root, &root)
    }
}

/// Proves that entry `index` is in the log. Reads the whole log.
///
/// # Errors
/// If there is no such entry, or the log is not as its checkpoint says.
pub fn prove(dir: &Path, index: u64) -> Result<Proof, Fault> {
    let checkpoint = load(dir)?;
    let size = checkpoint.range.size();
    if size <= index {
        return Err(Fault::new(index, format!("there is none, the log has {size} entries")));
    }
    let mut leaf = Vec::new();
    let path = subtrees(dir, &checkpoint, &inclusion_ranges(index, size), &mut |n, text| {
        if n == index {
            leaf = text.to_vec();
        }
    })?;
    let leaf = String::from_utf8(leaf).map_err(|_| Fault::new(index, "it is not UTF-8"))?;
    let proof = Proof { leaf, index, size, path, checkpoint: checkpoint.note() };
    if proof.verify() {
        Ok(proof)
    } else {
        Err(Fault::new(index, "the log does not have its checkpoint's root"))
    }
}

/// Proves that the log, when it had `old` entries, is the start of what it is now. Reads the whole log.
///
/// # Errors
/// If it never had so many, or the log is not as its checkpoint says.
pub fn prove_consistency(dir: &Path, old: u64) -> Result<ConsistencyProof, Fault> {
    let checkpoint = load(dir)?;
    let size = checkpoint.range.size();
    if old == 0 || size < old {
        return Err(Fault::new(old, format!("the log has {size} entries, it proves sizes from 1 to that")));
    }
    let mut range = CompactRange::default();
    let path = subtrees(dir, &checkpoint, &consistency_ranges(old, size), &mut |n, text| {
        if n < old {
            range.push(leaf_hash(text));
        }
    })?;
    let proof = ConsistencyProof { old, size, path, checkpoint: checkpoint.note() };
    let whole = proof.verify(&range.root());
    if whole { Ok(proof) } else { Err(Fault::new(old, "the log does not have its checkpoint's root")) }
}

/// The hashes of these subtrees, in one pass over the log.
fn subtrees(
    dir: &Path,
    checkpoint: &Checkpoint,
    ranges: &[(u64, u64)],
    visit: &mut dyn FnMut(u64, &[u8]),
) -> Result<Vec<String>, Fault> {
    let mut parts = vec![CompactRange::default(); ranges.len()];
    walk(dir, checkpoint, &mut |n, text, leaf| {
        visit(n, text);
        for (part, (low, high)) in parts.iter_mut().zip(ranges) {
            if (*low..*high).contains(&n) {
                part.push(leaf);
            }
        }
        Ok(())
    })?;
    Ok(parts.iter().map(|part| STANDARD.encode(part.root())).collect())
}

/// Writes the entries of a range of numbers, one a line, byte for byte as they were hashed. Returns how many.
///
/// # Errors
/// If the log is not as its checkpoint says, or `out` fails.
pub fn export(dir: &Path, range: Range<u64>, out: &mut dyn Write) -> Result<u64, Fault> {
    let checkpoint = load(dir)?;
    let mut n_written = 0;
    walk(dir, &checkpoint, &mut |n, text, _| {
        if range.contains(&n) {
            let written = out.write_all(text).and_then(|()| out.write_all(b"\n"));
            written.map_err(|e| Fault::new(n, format!("it cannot be written: {e}")))?;
            n_written += 1;
        }
        Ok(())
    })?;
    out.flush().map_err(|e| Fault::new(range.end, format!("the output cannot be flushed: {e}")))?;
    Ok(n_written)
}
