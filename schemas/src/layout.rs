//! How a row leaves as a JSON document.

use serde::{Deserialize, Serialize};

/// How a row leaves as a JSON document. Known when the pipeline is planned; every batch carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    /// The document is an object made of all columns, in order; nulls are left out.
    Columns,
    /// The document is the original message, a JSON object, with these edits applied in order. Without edits it
    /// leaves byte for byte as it came.
    Original(Vec<Edit>),
}

/// A change to the original object, at top level.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Edit {
    /// The member `key` is the value of the column of that name, replaced in place or added at the end; a null
    /// value removes the member.
    Set {
        /// The column, and the member.
        key: String,
    },
    /// Only these members stay.
    Keep {
        /// The members.
        keys: Vec<String>,
    },
    /// There is no member `key`.
    Remove {
        /// The member.
        key: String,
    },
    /// The member `from` is called `to`, its value untouched.
    Rename {
        /// The name until now.
        from: String,
        /// The new name.
        to: String,
    },
}
