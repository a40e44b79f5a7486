//! A log that shows whether it was changed.
//!
//! Entries are canonical JSON. Each names its number, its log and the hash of its predecessor (a chain); their hashes
//! are the leaves of an RFC 6962 Merkle tree, whose size and root a *checkpoint* holds. Chain and tree share one hash,
//! so there is never a second history. Small enough to be audited by itself: nothing here knows the rest of Logdrive.
//!
//! ```text
//! lock                       held while a process writes
//! checkpoint                 origin, size and root (three lines as in C2SP tlog-checkpoint), and the writer's state
//! <first>.log                frames `length 4 | crc32 4 | entry`, little-endian; named by the first entry, 20 digits
//! <first>.log.cut            what the last start cut off behind the checkpoint
//! ```
//!
//! What this first version cannot see: an old copy of the whole folder, checkpoint included, is a valid log. That
//! takes a memory outside of the folder (a witness, or a checkpoint kept elsewhere and [`prove_consistency`]).

mod canonical;
mod checkpoint;
mod entry;
mod log;
mod merkle;
mod proof;
mod segment;
#[cfg(test)]
mod tests;
mod verify;

pub use canonical::{CanonicalError, canonicalise};
pub use log::{AuditError, Log, RecentEntry};
pub use merkle::{CompactRange, Hash, leaf_hash, node_hash, verify_consistency, verify_inclusion};
pub use proof::{ConsistencyProof, Proof, export, prove, prove_consistency};
pub use verify::{Fault, Report, verify};
