//! The Merkle tree of RFC 6962: hashes, a tree that grows at its end, inclusion and consistency proofs.

use sha2::{Digest as _, Sha256};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// The hash of an entry: SHA-256 of a zero byte and the entry.
#[must_use]
pub fn leaf_hash(entry: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(entry).finalize().into()
}

/// The hash of two subtrees: SHA-256 of a one byte and both hashes.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// A tree that grows at its end, held as the roots of its perfect subtrees, largest first: at most 64 hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompactRange {
    size: u64,
    hashes: Vec<Hash>,
}

impl CompactRange {
    /// The tree of `size` leaves with these subtrees; `None` if their number cannot be.
    #[must_use]
    pub fn from_parts(size: u64, hashes: Vec<Hash>) -> Option<Self> {
        (hashes.len() == size.count_ones() as usize).then_some(Self { size, hashes })
    }

    /// How many leaves it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The roots of its perfect subtrees.
    #[must_use]
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// Adds a leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        for _ in 0..self.size.trailing_ones() {
            let left = self.hashes.pop().expect("there is a hash for each bit of the size");
            hash = node_hash(&left, &hash);
        }
        self.hashes.push(hash);
        self.size += 1;
    }

    /// The hash of the whole tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut hashes = self.hashes.iter().rev();
        let Some(last) = hashes.next() else { return Sha256::digest([]).into() };
        hashes.fold(*last, |right, left| node_hash(left, &right))
    }
}

/// The subtrees, as ranges of leaves, whose hashes prove that leaf `index` is in a tree of `size`; leaf to root.
pub(crate) fn inclusion_ranges(index: u64, size: u64) -> Vec<(u64, u64)> {
    let (mut low, mut high) = (0, size);
    let mut ranges = Vec::new();
    while 1 < high.saturating_sub(low) {
        let middle = low + split(high - low);
        if index < middle {
            ranges.push((middle, high));
            high = middle;
        } else {
            ranges.push((low, middle));
            low = middle;
        }
    }
    ranges.reverse();
    ranges
}

/// The subtrees whose hashes prove that a tree of `old` leaves is the start of one of `size`.
pub(crate) fn consistency_ranges(old: u64, size: u64) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    if old == 0 || size <= old {
        return ranges;
    }
    let (mut low, mut high) = (0, size);
    while old < high {
        let middle = low + split(high - low);
        if old <= middle {
            ranges.push((middle, high));
            high = middle;
        } else {
            ranges.push((low, middle));
            low = middle;
        }
    }
    // The old tree itself need not be told: its root is known.
    if 0 < low {
        ranges.push((low, high));
    }
    ranges.reverse();
    ranges
}

/// The largest power of two below `n`, which is at least two.
fn split(n: u64) -> u64 {
    1 << (n - 1).ilog2()
}

/// Whether `path` proves that `leaf` is leaf `index` of the tree of `size` leaves with this root.
#[must_use]
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, path: &[Hash], root: &Hash) -> bool {
    if size <= index {
        return false;
    }
    let (mut node, mut last, mut hash) = (index, size - 1, *leaf);
    for other in path {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(other, &hash);
            if node & 1 == 0 {
                // Not zero, for then `last` would be.
                let up = node.trailing_zeros();
                (node, last) = (node >> up, last >> up);
            }
        } else {
            hash = node_hash(&hash, other);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    last == 0 && hash == *root
}

/// Whether `path` proves that the tree of `old` leaves is the start of that of `size`. An empty tree is the start of
/// everything, so nothing can be proved about it: that is false.
#[must_use]
pub fn verify_consistency(old: u64, size: u64, path: &[Hash], old_root: &Hash, root: &Hash) -> bool {
    if old == 0 || size <= old {
        return old != 0 && old == size && path.is_empty() && old_root == root;
    }
    let mut path = path.iter();
    let start = if old.is_power_of_two() { Some(old_root) } else { path.next() };
    let Some(start) = start else { return false };
    let up = (old - 1).trailing_ones();
    let (mut node, mut last) = ((old - 1) >> up, (size - 1) >> up);
    let (mut old_hash, mut hash) = (*start, *start);
    for other in path {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            old_hash = node_hash(other, &old_hash);
            hash = node_hash(other, &hash);
            if node & 1 == 0 {
                let up = node.trailing_zeros();
                (node, last) = (node >> up, last >> up);
            }
        } else {
            hash = node_hash(&hash, other);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    last == 0 && old_hash == *old_root && hash == *root
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6962 §2.1, word for word.
    fn tree_hash(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Sha256::digest([]).into(),
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(split(leaves.len() as u64) as usize);
                node_hash(&tree_hash(left), &tree_hash(right))
            }
        }
    }

    #[test]
    fn trees_and_proofs_of_all_small_sizes() {
        let leaves: Vec<Hash> = (0..70_u8).map(|n| leaf_hash(&[n])).collect();
        let part = |(low, high): (u64, u64)| tree_hash(&leaves[low as usize..high as usize]);
        let mut range = CompactRange::default();
        for size in 0..=leaves.len() as u64 {
            let root = part((0, size));
            assert_eq!(range.root(), root);
            assert_eq!(CompactRange::from_parts(size, range.hashes().to_vec()), Some(range.clone()));
            for index in 0..size {
                let path: Vec<Hash> = inclusion_ranges(index, size).into_iter().map(part).collect();
                let leaf = &leaves[index as usize];
                assert!(verify_inclusion(leaf, index, size, &path, &root), "{index} of {size}");
                for index in [index + 1, index.wrapping_sub(1)] {
                    assert!(!verify_inclusion(leaf, index, size, &path, &root), "{index} of {size}");
                }
                assert!(!verify_inclusion(leaf, index, size, &[path.as_slice(), &[root]].concat(), &root));
            }
            for old in 1..=size {
                let path: Vec<Hash> = consistency_ranges(old, size).into_iter().map(part).collect();
                let old_root = part((0, old));
                assert!(verify_consistency(old, size, &path, &old_root, &root), "{old} of {size}");
                if old < size {
                    assert!(!verify_consistency(old, size, &path, &root, &old_root));
                    assert!(!verify_consistency(old, size, &path[1..], &old_root, &root));
                    assert!(!verify_consistency(
                        old,
                        size,
                        &[path.as_slice(), &[root]].concat(),
                        &old_root,
                        &root
                    ));
                }
            }
            if let Some(leaf) = leaves.get(size as usize) {
                range.push(*leaf);
            }
        }
    }

    #[test]
    fn sizes_at_the_edge_do_not_panic() {
        for n in [0, 1, u64::MAX - 1, u64::MAX] {
            assert!(!verify_inclusion(&[0; 32], n, u64::MAX, &[[0; 32]; 70], &[1; 32]));
            assert!(!verify_consistency(n, u64::MAX, &[[0; 32]; 70], &[1; 32], &[2; 32]));
        }
        assert_eq!(inclusion_ranges(u64::MAX - 1, u64::MAX).len(), 63);
    }
}
