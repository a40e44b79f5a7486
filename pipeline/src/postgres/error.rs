//! Errors with the codes of PostgreSQL, and where in the client's text they are.

use logdrive_queries::SqlError;
use pgwire::error::{ErrorInfo, PgWireError};

/// An error with a code of PostgreSQL.
pub(super) fn error(code: &str, message: impl Into<String>) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new("ERROR".into(), code.into(), message.into())))
}

/// An error with advice.
pub(super) fn error_with_hint(code: &str, message: impl Into<String>, hint: &str) -> PgWireError {
    let mut info = ErrorInfo::new("ERROR".into(), code.into(), message.into());
    info.hint = Some(hint.to_owned());
    PgWireError::UserError(Box::new(info))
}

/// An error that ends the connection.
pub(super) fn fatal(code: &str, message: impl Into<String>) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new("FATAL".into(), code.into(), message.into())))
}

/// A failure of a statement that begins at this byte of the client's text.
pub(super) fn of_sql(failure: SqlError, text: &str, start: usize) -> PgWireError {
    let code = match failure.code {
        "sql::syntax" => "42601",
        "sql::unknown_column" => "42703",
        "sql::unknown_function" => "42883",
        "sql::unknown_table" => "42P01",
        "sql::type" => "42804",
        "sql::read_only" => "25006",
        "sql::no_data" | "sql::view" => "55000",
        "sql::memory" => "53200",
        "sql::timeout" => "57014",
        "sql::unsupported" => "0A000",
        _ => "22000",
    };
    let mut info = ErrorInfo::new("ERROR".into(), code.into(), failure.message);
    info.hint = failure.help;
    info.detail = (failure.code != "sql::failed").then(|| failure.code.to_owned());
    // Positions count characters, from 1.
    let at = failure.at.and_then(|(at, _)| text.get(..start + at));
    info.position = at.map(|before| (before.chars().count() + 1).to_string());
    PgWireError::UserError(Box::new(info))
}
