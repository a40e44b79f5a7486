//! TLS of whatever listens, also outside of this crate.

pub use crate::sources::net::tls::{ClientAuth, Security, Tls};
