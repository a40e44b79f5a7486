//! Proofs that others made: the vectors of transparency-dev/merkle, all of them.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

use std::fs;
use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use logdrive_audit::{Hash, leaf_hash, verify_consistency, verify_inclusion};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Inclusion {
    leaf_idx: u64,
    tree_size: u64,
    root: String,
    leaf_hash: String,
    proof: Option<Vec<String>>,
    want_err: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Consistency {
    size1: u64,
    size2: u64,
    root1: String,
    root2: String,
    proof: Option<Vec<String>>,
    want_err: bool,
}

fn folder(test: &str, name: &str) -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let shared = std::env::var_os("LOGDRIVE_SHARED").map_or(workspace.join("../shared"), PathBuf::from);
    let folder = shared.join("data/merkle/testdata").join(name);
    if !folder.is_dir() {
        writeln!(&mut stdout(), "skipped: {test}: data not at hand").unwrap();
        return None;
    }
    Some(folder)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// The hash; what is none (the vectors have such roots, to compare them) becomes one of its own.
fn hash(text: &str) -> Hash {
    let bytes = STANDARD.decode(text).unwrap();
    bytes.as_slice().try_into().unwrap_or_else(|_| leaf_hash(&bytes))
}

fn path(proof: Option<Vec<String>>) -> Vec<Hash> {
    proof.unwrap_or_default().iter().map(|text| hash(text)).collect()
}

#[test]
fn inclusion() {
    let Some(folder) = folder("inclusion", "inclusion") else { return };
    let files = files(&folder);
    for file in &files {
        let case: Inclusion = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let (leaf, root) = (hash(&case.leaf_hash), hash(&case.root));
        // What is no hash cannot even be asked about.
        let are_hashes =
            [&case.leaf_hash, &case.root].iter().all(|text| STANDARD.decode(text).unwrap().len() == 32);
        let verified =
            are_hashes && verify_inclusion(&leaf, case.leaf_idx, case.tree_size, &path(case.proof), &root);
        assert_eq!(verified, !case.want_err, "{}", file.display());
    }
    assert_eq!(files.len(), 98);
}

#[test]
fn consistency() {
    let Some(folder) = folder("consistency", "consistency") else { return };
    let files = files(&folder);
    for file in &files {
        let case: Consistency = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let (root1, root2) = (hash(&case.root1), hash(&case.root2));
        let verified = verify_consistency(case.size1, case.size2, &path(case.proof), &root1, &root2);
        assert_eq!(verified, !case.want_err, "{}", file.display());
    }
    assert_eq!(files.len(), 98);
}
