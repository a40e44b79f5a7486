//! The data that flows through Logdrive, and the contract between YAML and components.
//!
//! Nouns, each with one meaning: a *message* is what was received; a *row* is a decoded message; a *chunk* is an
//! undecoded group of messages with their positions; a *batch* is an Arrow group of rows; an *epoch* is an ingest
//! tick and the timely timestamp; a *position* says where a message came from; a *reject* is a message that failed,
//! with its reason; a *finding* is what a detector says.
//!
//! **Architecture invariant:** nothing here does I/O, knows a clock, or depends on tokio, timely or DataFusion.

pub mod batch;
pub mod catalogue;
pub mod chunk;
pub mod component;
pub mod epoch;
pub mod finding;
pub mod layout;
pub mod reject;
pub mod schema;

pub use batch::{Batch, Origin};
pub use chunk::{Chunk, MessageRange, Partition, Position};
pub use epoch::Epoch;
pub use finding::{Finding, Severity};
pub use layout::{Edit, Layout};
pub use reject::{Reject, Rejects};
pub use schema::{FieldType, RowSchema};
