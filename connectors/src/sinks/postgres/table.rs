//! The table: its name, its columns, how it is made, and how the columns of rows fit into it.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, SchemaRef};
use logdrive_schemas::RowSchema;
use logdrive_schemas::schema::TYPE_KEY;
use tokio_postgres::Statement;
use tokio_postgres::types::Type;

use super::config::Postgres;
use super::encode::{Kind, TextKind};
use super::link::{Link, Trouble, Value};
use crate::document::JSON_TEXT;

/// What PostgreSQL cuts names off at.
pub(super) const NAME_BYTES_MAX: usize = 63;
/// Whoever makes tables has this lock: it is "logdrive" in ASCII.
pub(super) const LOCK: u64 = 0x6c6f_6764_7269_7665;
/// How many different rows are remembered; each is a prepared statement.
const SHAPES_MAX: usize = 64;

/// A name in double quotes.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The name of a table, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TableName {
    schema: Option<String>,
    name: String,
}

impl TableName {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (schema, name) = match text.split_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, text),
        };
        let is_name = |name: &str| (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains(['.', '\0']);
        let both = is_name(name) && schema.is_none_or(is_name);
        both.then(|| Self { schema: schema.map(str::to_owned), name: name.to_owned() })
    }

    /// As SQL has it.
    fn quoted(&self) -> String {
        let schema = self.schema.as_ref().map(|schema| format!("{}.", quote(schema)));
        format!("{}{}", schema.unwrap_or_default(), quote(&self.name))
    }
}

/// A column of the table.
#[derive(Debug, PartialEq, Eq)]
struct Column {
    name: String,
    /// Its type, or that below its domain.
    oid: u32,
    is_array: bool,
    /// It takes no null, and has nothing to put there instead.
    wants_value: bool,
    /// The server computes it.
    is_generated: bool,
}

/// The table as the server has it.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) schema: String,
    name: TableName,
    columns: Vec<Column>,
    is_there: bool,
    shapes: Vec<(SchemaRef, Arc<Shape>)>,
}

/// How the columns of rows go into those of the table.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) columns: Vec<Fit>,
    /// How the whole document is written, behind the columns.
    pub(super) document: Option<Way>,
    pub(super) statement: Statement,
    /// In the binary form of COPY.
    pub(super) is_binary: bool,
}

/// How a column is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// Unless another column has no binary form.
    pub(super) binary: Kind,
    pub(super) text: TextKind,
}

/// A column of rows, and how it is written.
#[derive(Debug)]
pub(super) struct Fit {
    /// Which column of the rows.
    pub(super) idx: usize,
    pub(super) way: Way,
    /// A row without a value gets the time of its arrival.
    pub(super) else_arrival: bool,
}

impl Table {
    /// Looks the table up. If it is not there, it may only be made.
    pub(super) async fn open(link: &Link, name: TableName, may_make: bool) -> Result<Self, Trouble> {
        let quoted = name.quoted();
        let given: [Value<'_>; 1] = [(&quoted, Type::TEXT)];
        let find = "SELECT nspname::text FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace \
                    WHERE pg_class.oid = to_regclass($1)";
        let found = link.query(find, &given).await?.first().map(|row| row.get::<_, String>(0));
        let is_there = found.is_some();
        if !is_there && !may_make {
            return Err(Trouble::Refused(format!(
                "there is no table {quoted}; `create_table: true` makes it"
            )));
        }
        let schema = match (found, &name.schema) {
            (Some(found), _) => found,
            (None, Some(schema)) => schema.clone(),
            (None, None) => {
                let current = link.query("SELECT current_schema()::text", &[]).await?;
                let current = current.first().and_then(|row| row.get::<_, Option<String>>(0));
                current.ok_or_else(|| Trouble::Refused("no schema of the `search_path` exists".into()))?
            }
        };
        let name = TableName { schema: Some(schema.clone()), name: name.name };
        let mut table = Self { schema, name, columns: Vec::new(), is_there, shapes: Vec::new() };
        if is_there {
            table.load(link).await?;
        }
        Ok(table)
    }

    /// Its whole name, in quotes.
    pub(super) fn quoted(&self) -> String {
        self.name.quoted()
    }

    async fn load(&mut self, link: &Link) -> Result<(), Trouble> {
        self.columns = self.ask(link).await?;
        self.is_there = !self.columns.is_empty();
        self.shapes.clear();
        Ok(())
    }

    async fn ask(&self, link: &Link) -> Result<Vec<Column>, Trouble> {
        let columns = "SELECT attname::text, CASE typtype WHEN 'd' THEN typbasetype ELSE pg_type.oid END, \
                       typcategory = 'A', attnotnull AND NOT atthasdef AND attidentity = '', \
                       attgenerated <> '' FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid \
                       WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum";
        let name = self.quoted();
        let rows = link.query(columns, &[(&name, Type::TEXT)]).await?;
        let column = |row: &tokio_postgres::Row| Column {
            name: row.get(0),
            oid: row.get(1),
            is_array: row.get(2),
            wants_value: row.get(3),
            is_generated: row.get(4),
        };
        Ok(rows.iter().map(column).collect())
    }

    /// Whether the table is still what the shapes were made for: a binary form of another type could be taken for
    /// something else.
    pub(super) async fn check(&self, link: &Link) -> Result<(), Trouble> {
        match self.ask(link).await? == self.columns {
            true => Ok(()),
            false => Err(Trouble::Busy(format!("{} has changed", self.quoted()).into())),
        }
    }

    /// How rows of this schema are written. Makes what the table lacks, if that is asked for. Not within a transaction.
    pub(super) async fn shape(
        &mut self,
        link: &Link,
        rows: &SchemaRef,
        config: &Postgres,
    ) -> Result<Arc<Shape>, Trouble> {
        let known = self.shapes.iter().find(|(known, _)| Arc::ptr_eq(known, rows) || known == rows);
        if let Some((_, shape)) = known {
            return Ok(Arc::clone(shape));
        }
        let wanted: Vec<(usize, &FieldRef)> = rows
            .fields()
            .iter()
            .enumerate()
            .filter(|(_, field)| config.columns.is_empty() || config.columns.contains(field.name()))
            .collect();
        let mut lacking: Vec<(&str, String)> = Vec::new();
        for (_, field) in &wanted {
            if self.column(field.name()).is_none() {
                lacking.push((field.name(), declared(field)));
            }
        }
        if let Some(name) = config.document.as_deref().filter(|name| self.column(name).is_none()) {
            lacking.push((name, "jsonb".into()));
        }
        if !lacking.is_empty() {
            self.make(link, &lacking, config).await?;
        }
        let mut names = Vec::new();
        let mut columns = Vec::new();
        let mut is_binary = true;
        for (idx, field) in wanted {
            let Some(column) = self.column(field.name()).filter(|column| !column.is_generated) else {
                continue;
            };
            let binary = Kind::of(field, column.oid);
            is_binary &= binary.is_some();
            let way =
                Way { binary: binary.unwrap_or(Kind::Text), text: TextKind::of(field, column.is_array) };
            let else_arrival = column.wants_value && column.name == RowSchema::EVENT_TIME;
            names.push(quote(field.name()));
            columns.push(Fit { idx, way, else_arrival });
        }
        let mut document = None;
        if let Some(column) = config.document.as_deref().and_then(|name| self.column(name)) {
            let binary = Kind::of_json(column.oid);
            is_binary &= binary.is_some();
            document = Some(Way { binary: binary.unwrap_or(Kind::Text), text: TextKind::Json });
            names.push(quote(&column.name));
        }
        if names.is_empty() {
            return Err(Trouble::Refused(format!("the rows have no column that {} has", self.quoted())));
        }
        let form = if is_binary { "binary" } else { "text" };
        let copy = format!("COPY {} ({}) FROM STDIN (FORMAT {form})", self.quoted(), names.join(", "));
        let statement = link.prepare(&copy).await?;
        let shape = Arc::new(Shape { columns, document, statement, is_binary });
        if SHAPES_MAX <= self.shapes.len() {
            self.shapes.clear();
        }
        self.shapes.push((Arc::clone(rows), Arc::clone(&shape)));
        Ok(shape)
    }

    fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Makes the table, or columns that it lacks.
    async fn make(
        &mut self,
        link: &Link,
        lacking: &[(&str, String)],
        config: &Postgres,
    ) -> Result<(), Trouble> {
        let name = self.quoted();
        if let Some((column, _)) = lacking.first().filter(|_| !config.create_table) {
            let advice =
                "add it, name the `columns` to write, or let `create_table: true` add what is missing";
            return Err(Trouble::Refused(format!("{name} has no column `{column}`; {advice}")));
        }
        if let Some((column, _)) = lacking.iter().find(|(column, _)| NAME_BYTES_MAX < column.len()) {
            return Err(Trouble::Refused(format!("`{column}` is too long for the name of a column")));
        }
        let each = |(column, declared): &(&str, String)| format!("{} {declared}", quote(column));
        let all: Vec<String> = lacking.iter().map(each).collect();
        let adding: Vec<String> = all.iter().map(|one| format!("ADD COLUMN IF NOT EXISTS {one}")).collect();
        // Another process may be doing the same, perhaps with other columns.
        let mut statements = format!(
            "BEGIN; SET LOCAL client_min_messages = warning; SELECT pg_advisory_xact_lock({LOCK}); \
             CREATE TABLE IF NOT EXISTS {name} (); ALTER TABLE {name} {}; ",
            adding.join(", ")
        );
        let has_time = lacking
            .iter()
            .any(|(column, declared)| *column == RowSchema::EVENT_TIME && declared.as_str() == "timestamptz");
        if !self.is_there && config.hypertable && has_time && self.has_timescale(link).await? {
            let literal = name.replace('\'', "''");
            statements += &format!(
                "SELECT create_hypertable('{literal}'::regclass, '{}'::name, if_not_exists => true); ",
                RowSchema::EVENT_TIME
            );
        }
        link.run(&(statements + "COMMIT")).await?;
        tracing::info!(table = name, columns = all.join(", "), "PostgreSQL has what the rows need.");
        self.load(link).await
    }

    async fn has_timescale(&self, link: &Link) -> Result<bool, Trouble> {
        let find = "SELECT count(*) > 0 FROM pg_proc WHERE proname = 'create_hypertable' \
                    AND pg_function_is_visible(oid)";
        Ok(link.query(find, &[]).await?.first().is_some_and(|row| row.get(0)))
    }
}

/// The type of a column that is made for a field.
fn declared(field: &Field) -> String {
    let marked = field.metadata().get(TYPE_KEY).map(String::as_str);
    let plain = match field.data_type() {
        DataType::Dictionary(_, values) => values,
        other => other,
    };
    let name = match plain {
        DataType::Boolean => "boolean",
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => "smallint",
        DataType::Int32 | DataType::UInt16 => "integer",
        DataType::Int64 | DataType::UInt32 => "bigint",
        DataType::UInt64 => "numeric(20)",
        DataType::Float16 | DataType::Float32 => "real",
        DataType::Float64 => "double precision",
        DataType::Decimal32(p, s)
        | DataType::Decimal64(p, s)
        | DataType::Decimal128(p, s)
        | DataType::Decimal256(p, s)
            if *s >= 0 =>
        {
            return format!("numeric({p}, {s})");
        }
        DataType::Date32 | DataType::Date64 => "date",
        DataType::Time32(_) | DataType::Time64(_) => "time",
        DataType::Timestamp(_, Some(_)) => "timestamptz",
        DataType::Timestamp(_, None) => "timestamp",
        DataType::Binary | DataType::BinaryView | DataType::LargeBinary | DataType::FixedSizeBinary(_) => {
            "bytea"
        }
        DataType::Struct(_)
        | DataType::List(_)
        | DataType::LargeList(_)
        | DataType::FixedSizeList(_, _)
        | DataType::ListView(_)
        | DataType::LargeListView(_)
        | DataType::Map(_, _) => "jsonb",
        _ if marked == Some("ip") => "inet",
        _ if marked == Some(JSON_TEXT) => "jsonb",
        other if other.is_decimal() => "numeric",
        _ => "text",
    };
    name.into()
}

#[cfg(test)]
mod tests {
    use logdrive_schemas::FieldType;

    use super::*;

    #[test]
    fn names_are_quoted_and_checked() {
        let quoted = |text| TableName::parse(text).map(|name| name.quoted());
        assert_eq!(quoted("events").as_deref(), Some("\"events\""));
        assert_eq!(quoted("Log s.e\"v").as_deref(), Some("\"Log s\".\"e\"\"v\""));
        for wrong in ["", ".", "a.", ".b", "a.b.c", "a\0", &"x".repeat(64)] {
            assert_eq!(quoted(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn every_type_of_a_schema_has_a_column() {
        for (of, expect) in [
            ("boolean", "boolean"),
            ("int64", "bigint"),
            ("float64", "double precision"),
            ("decimal(12,2)", "numeric(12, 2)"),
            ("string", "text"),
            ("ip", "inet"),
            ("timestamp", "timestamptz"),
            ("geo_point", "jsonb"),
            ("list<string>", "jsonb"),
        ] {
            assert_eq!(declared(&FieldType::parse(of).unwrap().field("x")), expect, "{of}");
        }
    }
}
