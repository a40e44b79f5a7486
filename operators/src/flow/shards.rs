//! Virtual shards: a fixed number of them, so that state fits any number of workers.
//!
//! A key's hash, which must be seeded so that nobody outside chooses it, names the shard; shards go to workers in
//! contiguous ranges.

use std::ops::Range;

/// How many there are. More workers than that would have nothing to do.
pub const SHARDS: u16 = 1024;

/// The shard of a key with this hash.
#[must_use]
pub fn shard_of(hash: u64) -> u16 {
    (hash % u64::from(SHARDS)) as u16
}

/// The worker that keeps a shard.
#[must_use]
pub fn worker_of(shard: u16, peers: usize) -> usize {
    usize::from(shard) * peers / usize::from(SHARDS)
}

/// The shards that a worker keeps.
#[must_use]
pub fn shards_of(worker: usize, peers: usize) -> Range<u16> {
    let first = |worker: usize| (worker * usize::from(SHARDS)).div_ceil(peers.max(1)) as u16;
    first(worker)..first(worker + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_is_kept_by_one_worker() {
        for peers in [1, 2, 3, 5, 7, 64, 1024, 1500] {
            for worker in 0..peers {
                assert!(shards_of(worker, peers).all(|shard| worker_of(shard, peers) == worker));
            }
            let n_shards: usize = (0..peers).map(|worker| shards_of(worker, peers).len()).sum();
            assert_eq!(n_shards, usize::from(SHARDS), "{peers} workers");
        }
    }
}
