//! What can go wrong at the edge. Whose fault it is decides what happens next.

use std::time::Duration;

/// A cause that is kept for the log.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Whose fault it is decides what happens next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectorError {
    /// The far end asks for time, or failed in a way that passes. The runtime tries again after a pause.
    #[error("{endpoint} asks to retry")]
    Busy {
        /// Who.
        endpoint: String,
        /// How long it asked for, if it said.
        after: Option<Duration>,
    },
    /// The link is gone. The runtime calls `connect` with back-off.
    #[error("connection to {endpoint} lost")]
    Disconnected {
        /// Who.
        endpoint: String,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The source is exhausted. The pipeline drains and, when every source has ended, ends.
    #[error("end of input")]
    End,
    /// The far end refuses this configuration. Retrying is pointless; the pipeline stops and says why.
    #[error("{endpoint} refused: {reason}")]
    Refused {
        /// Who.
        endpoint: String,
        /// Why, in its words.
        reason: String,
    },
    /// The local disk failed. What was promised durable may not be: the process stops.
    #[error("{path}: storage failed")]
    Storage {
        /// Which file or folder.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl ConnectorError {
    /// A lost connection.
    pub fn disconnected(endpoint: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self::Disconnected { endpoint: endpoint.into(), source: source.into() }
    }

    /// A refusal.
    pub fn refused(endpoint: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Refused { endpoint: endpoint.into(), reason: reason.into() }
    }

    /// A failure of the local disk.
    pub fn storage(path: impl AsRef<std::path::Path>, source: std::io::Error) -> Self {
        Self::Storage { path: path.as_ref().display().to_string(), source }
    }
}
