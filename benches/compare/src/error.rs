//! Errors: the harness only ever reports them.

use std::error::Error;
use std::fmt::{Arguments, Display};

/// What went wrong, for a person.
pub type Problem = Box<dyn Error + Send + Sync>;
/// A result whose error is text for a person.
pub type Result<T> = std::result::Result<T, Problem>;

/// Puts what was being done before the error that stopped it.
pub fn fail<E: Display>(what: Arguments<'_>) -> impl FnOnce(E) -> Problem + use<E> {
    let what = what.to_string();
    move |error| format!("{what}: {error}").into()
}
