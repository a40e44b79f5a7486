//! What clients of PostgreSQL expect of SQL: their dialect, commands that are no queries, the functions and the catalog
//! that they ask when they connect.
//!
//! Names stay case-sensitive, as in all SQL here; names of functions are not.

mod catalog;
mod command;
mod functions;
mod rewrite;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider};
use datafusion::common::Result;
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;

pub use self::catalog::{type_oid, type_size};
pub use self::command::{Command, Explained, Subscribed, command, pieces};
pub(crate) use self::rewrite::{Rewritten, rewrite};
use crate::compiler::Positions;
use crate::lake::SqlError;

/// Which PostgreSQL this behaves like: its clients ask, to know which catalog there is.
pub const VERSION: &str = "15.0";

/// The schema of views and of what sinks wrote.
pub const SCHEMA: &str = "public";

const CATALOG: &str = "pg_catalog";
const INFORMATION: &str = "information_schema";

pub(crate) const DIALECT: PostgreSqlDialect = PostgreSqlDialect {};

/// Who asks, and what was set.
#[derive(Clone, Debug, Default)]
pub struct Session {
    /// The user's name.
    pub user: String,
    /// The database that the client named.
    pub database: String,
    /// Settings in lower case, as `SHOW` shows them.
    pub settings: BTreeMap<String, String>,
}

/// What a table is to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// A live view.
    View,
    /// What a sink wrote.
    Table,
}

/// The tables that a query reads, as they are named here; and whether it reads the catalog.
///
/// # Errors
/// If the query does not parse.
pub fn tables(sql: &str) -> Result<(Vec<String>, bool), SqlError> {
    let positions = Positions::new(sql);
    let mut statement = crate::lake::parse(sql, &positions, &DIALECT)?;
    let rewritten = rewrite(&mut statement);
    Ok((rewritten.tables, rewritten.catalog))
}

/// Adds the functions of a session, and the catalog if it is read.
pub(crate) fn prepare(
    context: &SessionContext,
    session: &Arc<Session>,
    relations: Option<&[(String, SchemaRef, Relation)]>,
) -> Result<()> {
    let known = relations.unwrap_or_default();
    let names = known.iter().map(|(name, ..)| (catalog::oid(name), name.clone())).collect();
    functions::all(session, Arc::new(names)).for_each(|udf| context.register_udf(udf));
    let Some(relations) = relations else { return Ok(()) };
    let (catalog, information) = catalog::tables(session, relations)?;
    let provider: Arc<dyn CatalogProvider> = match context.catalog("datafusion") {
        Some(provider) => provider,
        None => Arc::new(MemoryCatalogProvider::new()),
    };
    for (name, tables) in [(CATALOG, catalog), (INFORMATION, information)] {
        let schema = MemorySchemaProvider::new();
        for (table, provider) in tables {
            schema.register_table(table.to_owned(), provider)?;
        }
        provider.register_schema(name, Arc::new(schema))?;
    }
    Ok(())
}

/// Whether a table of the catalog is there and always empty.
pub(crate) fn is_empty(table: &str) -> bool {
    catalog::EMPTY.iter().any(|(name, _)| *name == table)
}
