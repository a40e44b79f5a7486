//! What the kill test is made of: numbered messages, who sends them, the process that is killed, the search server
//! that stores them, and the comparison of what was sent with what arrived.

pub(crate) mod found;
pub(crate) mod message;
pub(crate) mod oracle;
pub(crate) mod process;
pub(crate) mod search;
pub(crate) mod verdict;
