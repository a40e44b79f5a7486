//! `pg_catalog` and `information_schema`, as far as clients look: made anew from the tables for each query that reads
//! them.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Int16Array, Int32Array, Int64Array, RecordBatch, StringArray, new_null_array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::Result;
use datafusion::datasource::MemTable;
use xxhash_rust::xxh3::xxh3_64;

use super::{CATALOG, INFORMATION, Relation, SCHEMA, Session};

const OID_CATALOG: i64 = 11;
const OID_PUBLIC: i64 = 2200;
const OID_INFORMATION: i64 = 13_000;
const OID_OWNER: i64 = 10;
const OID_DATABASE: i64 = 16_383;
const OID_HEAP: i64 = 2;

/// Number, name, length, category, element, array.
type PgType = (i64, &'static str, i16, &'static str, i64, i64);

/// The types that columns have, and those that clients look for by name.
const TYPES: &[PgType] = &[
    (16, "bool", 1, "B", 0, 1000),
    (17, "bytea", -1, "U", 0, 1001),
    (18, "char", 1, "S", 0, 1002),
    (19, "name", 64, "S", 18, 1003),
    (20, "int8", 8, "N", 0, 1016),
    (21, "int2", 2, "N", 0, 1005),
    (23, "int4", 4, "N", 0, 1007),
    (25, "text", -1, "S", 0, 1009),
    (26, "oid", 4, "N", 0, 1028),
    (114, "json", -1, "U", 0, 199),
    (700, "float4", 4, "N", 0, 1021),
    (701, "float8", 8, "N", 0, 1022),
    (1042, "bpchar", -1, "S", 0, 1014),
    (1043, "varchar", -1, "S", 0, 1015),
    (1082, "date", 4, "D", 0, 1182),
    (1083, "time", 8, "D", 0, 1183),
    (1114, "timestamp", 8, "D", 0, 1115),
    (1184, "timestamptz", 8, "D", 0, 1185),
    (1186, "interval", 16, "T", 0, 1187),
    (1700, "numeric", -1, "N", 0, 1231),
    (2950, "uuid", 16, "U", 0, 2951),
    (3802, "jsonb", -1, "U", 0, 3807),
];

/// Tables that are there so that clients may look into them, each with the columns they ask for.
pub(super) const EMPTY: &[(&str, &[&str])] = &[
    ("pg_attrdef", &["oid", "adrelid", "adnum", "adbin"]),
    ("pg_auth_members", &["roleid", "member", "grantor"]),
    ("pg_cast", &["oid", "castsource", "casttarget"]),
    ("pg_collation", &["oid", "collname", "collnamespace"]),
    (
        "pg_constraint",
        &[
            "oid",
            "conname",
            "connamespace",
            "contype",
            "conrelid",
            "confrelid",
            "conkey",
            "confkey",
            "conindid",
            "conparentid",
        ],
    ),
    ("pg_depend", &["classid", "objid", "objsubid", "refclassid", "refobjid", "deptype"]),
    ("pg_description", &["objoid", "classoid", "objsubid", "description"]),
    ("pg_enum", &["oid", "enumtypid", "enumsortorder", "enumlabel"]),
    ("pg_event_trigger", &["oid", "evtname"]),
    ("pg_extension", &["oid", "extname", "extversion", "extnamespace"]),
    ("pg_foreign_server", &["oid", "srvname"]),
    ("pg_foreign_table", &["ftrelid", "ftserver"]),
    (
        "pg_index",
        &[
            "indexrelid",
            "indrelid",
            "indnatts",
            "indisunique",
            "indisprimary",
            "indkey",
            "indisvalid",
            "indexprs",
            "indpred",
        ],
    ),
    ("pg_indexes", &["schemaname", "tablename", "indexname", "indexdef"]),
    ("pg_inherits", &["inhrelid", "inhparent", "inhseqno", "inhdetachpending"]),
    ("pg_language", &["oid", "lanname"]),
    ("pg_locks", &["locktype", "pid", "mode"]),
    ("pg_matviews", &["schemaname", "matviewname", "matviewowner"]),
    ("pg_operator", &["oid", "oprname"]),
    ("pg_partitioned_table", &["partrelid", "partstrat"]),
    ("pg_policy", &["oid", "polname", "polrelid"]),
    ("pg_proc", &["oid", "proname", "pronamespace", "prokind", "prorettype"]),
    ("pg_publication", &["oid", "pubname", "puballtables"]),
    ("pg_publication_namespace", &["oid", "pnpubid", "pnnspid"]),
    ("pg_publication_rel", &["oid", "prpubid", "prrelid"]),
    ("pg_range", &["rngtypid", "rngsubtype", "rngmultitypid"]),
    ("pg_rewrite", &["oid", "rulename", "ev_class"]),
    ("pg_sequence", &["seqrelid"]),
    ("pg_sequences", &["schemaname", "sequencename"]),
    ("pg_shdescription", &["objoid", "classoid", "description"]),
    ("pg_stat_activity", &["datid", "datname", "pid", "usename", "state", "query"]),
    ("pg_stat_user_tables", &["relid", "schemaname", "relname"]),
    ("pg_statistic_ext", &["oid", "stxrelid", "stxname", "stxnamespace", "stxkind", "stxstattarget"]),
    ("pg_tablespace", &["oid", "spcname"]),
    ("pg_timezone_names", &["name", "abbrev"]),
    ("pg_trigger", &["oid", "tgrelid", "tgname"]),
    ("check_constraints", &["constraint_catalog", "constraint_schema", "constraint_name"]),
    ("constraint_column_usage", &["table_schema", "table_name", "column_name", "constraint_name"]),
    ("element_types", &["object_schema", "object_name", "data_type"]),
    (
        "key_column_usage",
        &[
            "constraint_schema",
            "constraint_name",
            "table_schema",
            "table_name",
            "column_name",
            "ordinal_position",
        ],
    ),
    ("parameters", &["specific_schema", "specific_name"]),
    ("referential_constraints", &["constraint_schema", "constraint_name"]),
    ("routines", &["routine_schema", "routine_name", "routine_type", "data_type"]),
    ("sequences", &["sequence_schema", "sequence_name"]),
    (
        "table_constraints",
        &["constraint_schema", "constraint_name", "table_schema", "table_name", "constraint_type"],
    ),
    ("triggers", &["trigger_schema", "trigger_name"]),
];

/// The empty tables of `information_schema`; the others are of `pg_catalog`.
fn is_information(table: &str) -> bool {
    !table.starts_with("pg_")
}

/// Tables of `pg_catalog` that have rows.
const FULL: &[&str] = &[
    "pg_am",
    "pg_attribute",
    "pg_authid",
    "pg_class",
    "pg_database",
    "pg_namespace",
    "pg_roles",
    "pg_settings",
    "pg_tables",
    "pg_type",
    "pg_user",
    "pg_views",
];

/// Whether a name without a schema is that of a table in `pg_catalog`.
pub(super) fn is_known(table: &str) -> bool {
    table.starts_with("pg_") && (FULL.contains(&table) || super::is_empty(table))
}

/// The number of a table, the same in every process.
pub(super) fn oid(table: &str) -> i64 {
    i64::from((xxh3_64(table.as_bytes()) % (1 << 30)) as u32) + 16_384
}

/// The number of a table of the catalog that clients name.
pub(super) fn catalog_oid(table: &str) -> Option<i64> {
    Some(match table {
        "pg_type" => 1247,
        "pg_attribute" => 1249,
        "pg_proc" => 1255,
        "pg_class" => 1259,
        "pg_database" => 1262,
        "pg_namespace" => 2615,
        _ => return None,
    })
}

/// The name of a type, as PostgreSQL writes it.
pub(super) fn type_name(oid: i64) -> &'static str {
    match oid {
        16 => "boolean",
        17 => "bytea",
        20 => "bigint",
        21 => "smallint",
        23 => "integer",
        25 => "text",
        114 => "json",
        700 => "real",
        701 => "double precision",
        1043 => "character varying",
        1082 => "date",
        1083 => "time without time zone",
        1114 => "timestamp without time zone",
        1184 => "timestamp with time zone",
        1186 => "interval",
        1700 => "numeric",
        3802 => "jsonb",
        1000 => "boolean[]",
        1001 => "bytea[]",
        1005 => "smallint[]",
        1007 => "integer[]",
        1009 => "text[]",
        1016 => "bigint[]",
        1021 => "real[]",
        1022 => "double precision[]",
        1115 => "timestamp without time zone[]",
        1182 => "date[]",
        1185 => "timestamp with time zone[]",
        1231 => "numeric[]",
        other => TYPES.iter().find(|known| known.0 == other).map_or("???", |known| known.1),
    }
}

/// The number of the type that a column has on the wire.
#[must_use]
pub fn type_oid(data_type: &DataType) -> i64 {
    match data_type {
        DataType::Boolean => 16,
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => 21,
        DataType::Int32 | DataType::UInt16 => 23,
        DataType::Int64 | DataType::UInt32 => 20,
        DataType::Float16 | DataType::Float32 => 700,
        DataType::Float64 => 701,
        DataType::UInt64
        | DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => 1700,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => 17,
        DataType::Date32 | DataType::Date64 => 1082,
        DataType::Time32(_) | DataType::Time64(_) => 1083,
        DataType::Timestamp(_, None) => 1114,
        DataType::Timestamp(_, Some(_)) => 1184,
        DataType::Duration(_) | DataType::Interval(_) => 1186,
        DataType::Struct(_) | DataType::Map(..) | DataType::Union(..) => 3802,
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => {
            let of = type_oid(item.data_type());
            TYPES.iter().find(|known| known.0 == of && of != 3802).map_or(3802, |known| known.5)
        }
        DataType::Dictionary(_, values) => type_oid(values),
        _ => 25,
    }
}

/// How many bytes a value of a type takes; -1 if that differs.
#[must_use]
pub fn type_size(oid: i64) -> i16 {
    TYPES.iter().find(|known| known.0 == oid).map_or(-1, |known| known.2)
}

/// The name of a type in `pg_type`.
fn short_name(oid: i64) -> String {
    let own = TYPES.iter().find(|known| known.0 == oid).map(|known| known.1.to_owned());
    own.or_else(|| TYPES.iter().find(|known| known.5 == oid).map(|known| format!("_{}", known.1)))
        .unwrap_or_else(|| "text".to_owned())
}

type Tables = Vec<(&'static str, Arc<dyn TableProvider>)>;

/// A table that is made column by column.
#[derive(Default)]
struct Made {
    fields: Vec<Field>,
    columns: Vec<ArrayRef>,
}

impl Made {
    fn with(mut self, name: &str, column: ArrayRef) -> Self {
        self.fields.push(Field::new(name, column.data_type().clone(), true));
        self.columns.push(column);
        self
    }

    fn text<'a>(self, name: &str, values: impl IntoIterator<Item = &'a str>) -> Self {
        self.with(name, Arc::new(values.into_iter().map(Some).collect::<StringArray>()))
    }

    fn number(self, name: &str, values: impl IntoIterator<Item = i64>) -> Self {
        self.with(name, Arc::new(values.into_iter().collect::<Int64Array>()))
    }

    fn short(self, name: &str, values: impl IntoIterator<Item = i16>) -> Self {
        self.with(name, Arc::new(values.into_iter().collect::<Int16Array>()))
    }

    fn flag(self, name: &str, values: impl IntoIterator<Item = bool>) -> Self {
        self.with(name, Arc::new(values.into_iter().map(Some).collect::<BooleanArray>()))
    }

    fn n_rows(&self) -> usize {
        self.columns.first().map_or(0, |column| column.len())
    }

    /// Columns of one text each.
    fn same(mut self, columns: &[(&str, &str)]) -> Self {
        for (name, value) in columns {
            let n_rows = self.n_rows();
            self = self.text(name, std::iter::repeat_n(*value, n_rows));
        }
        self
    }

    /// Columns of one number each.
    fn numbers(mut self, columns: &[(&str, i64)]) -> Self {
        for (name, value) in columns {
            let n_rows = self.n_rows();
            self = self.number(name, std::iter::repeat_n(*value, n_rows));
        }
        self
    }

    /// Columns of one truth each.
    fn flags(mut self, columns: &[(&str, bool)]) -> Self {
        for (name, value) in columns {
            let n_rows = self.n_rows();
            self = self.flag(name, std::iter::repeat_n(*value, n_rows));
        }
        self
    }

    /// Columns without values.
    fn nulls(mut self, columns: &[&str]) -> Self {
        for name in columns {
            let n_rows = self.n_rows();
            let is_list = name.ends_with("acl") || name.ends_with("options");
            let item = Arc::new(Field::new("item", DataType::Utf8, true));
            let data_type = if is_list { DataType::List(item) } else { DataType::Utf8 };
            self = self.with(name, new_null_array(&data_type, n_rows));
        }
        self
    }

    fn table(self) -> Result<Arc<dyn TableProvider>> {
        let schema = Arc::new(Schema::new(self.fields));
        let rows = RecordBatch::try_new(Arc::clone(&schema), self.columns)?;
        Ok(Arc::new(MemTable::try_new(schema, vec![vec![rows]])?))
    }
}

/// The tables of `pg_catalog` and of `information_schema`.
pub(super) fn tables(
    session: &Session,
    relations: &[(String, SchemaRef, Relation)],
) -> Result<(Tables, Tables)> {
    let (mut catalog, mut information) = (Tables::new(), Tables::new());
    for (name, columns) in EMPTY {
        let table = empty(columns)?;
        if is_information(name) { information.push((name, table)) } else { catalog.push((name, table)) }
    }
    catalog.push(("pg_namespace", namespaces()?));
    catalog.push(("pg_class", classes(relations)?));
    catalog.push(("pg_attribute", attributes(relations)?));
    catalog.push(("pg_type", types()?));
    catalog.push(("pg_database", databases(session)?));
    catalog.push(("pg_roles", roles(session)?));
    catalog.push(("pg_authid", roles(session)?));
    catalog.push((
        "pg_user",
        Made::default()
            .text("usename", [session.user.as_str()])
            .numbers(&[("usesysid", OID_OWNER)])
            .flags(&[("usesuper", false), ("usecreatedb", false)])
            .table()?,
    ));
    catalog.push((
        "pg_am",
        Made::default().number("oid", [OID_HEAP]).same(&[("amname", "heap"), ("amtype", "t")]).table()?,
    ));
    let settings = &session.settings;
    let made = Made::default()
        .text("name", settings.keys().map(String::as_str))
        .text("setting", settings.values().map(String::as_str));
    catalog.push(("pg_settings", made.nulls(&["unit", "category", "short_desc"]).table()?));
    let of = |kind: Relation| {
        relations.iter().filter(move |(.., found)| *found == kind).map(|(name, ..)| name.as_str())
    };
    let made = Made::default().text("viewname", of(Relation::View));
    catalog.push((
        "pg_views",
        made.same(&[("schemaname", SCHEMA), ("viewowner", &session.user), ("definition", "")]).table()?,
    ));
    let made = Made::default().text("tablename", of(Relation::Table));
    let made = made.same(&[("schemaname", SCHEMA), ("tableowner", &session.user)]);
    catalog.push(("pg_tables", made.nulls(&["tablespace"]).flags(&[("hasindexes", false)]).table()?));

    let database = session.database.as_str();
    let made = Made::default().text("schema_name", [CATALOG, INFORMATION, SCHEMA]);
    information.push((
        "schemata",
        made.same(&[("catalog_name", database), ("schema_owner", &session.user)]).table()?,
    ));
    let kind = |kind: Relation| if kind == Relation::View { "VIEW" } else { "BASE TABLE" };
    let made = Made::default()
        .text("table_name", relations.iter().map(|(name, ..)| name.as_str()))
        .text("table_type", relations.iter().map(|(.., relation)| kind(*relation)))
        .same(&[
            ("table_catalog", database),
            ("table_schema", SCHEMA),
            ("is_insertable_into", "NO"),
            ("is_typed", "NO"),
        ])
        .nulls(&["self_referencing_column_name", "reference_generation", "commit_action"]);
    information.push(("tables", made.table()?));
    let made = Made::default()
        .text("table_name", of(Relation::View))
        .same(&[("table_catalog", database), ("table_schema", SCHEMA), ("is_updatable", "NO")])
        .nulls(&["view_definition", "check_option"]);
    information.push(("views", made.table()?));
    information.push(("columns", columns(database, relations)?));
    let made = Made::default().text("character_set_name", ["UTF8"]).same(&[("default_collate_name", "C")]);
    information.push(("character_sets", made.table()?));
    Ok((catalog, information))
}

fn empty(columns: &[&str]) -> Result<Arc<dyn TableProvider>> {
    let numbers = ["oid", "relid", "objid", "objoid", "objsubid", "classoid", "adnum", "pid"];
    let mut made = Made::default();
    for name in columns {
        let is_number = numbers.contains(name)
            || name.ends_with("relid")
            || name.ends_with("rel")
            || name.ends_with("id");
        made = if is_number { made.number(name, []) } else { made.text(name, []) };
    }
    made.table()
}

fn namespaces() -> Result<Arc<dyn TableProvider>> {
    Made::default()
        .number("oid", [OID_CATALOG, OID_PUBLIC, OID_INFORMATION])
        .text("nspname", [CATALOG, SCHEMA, INFORMATION])
        .numbers(&[("nspowner", OID_OWNER)])
        .nulls(&["nspacl"])
        .table()
}

fn classes(relations: &[(String, SchemaRef, Relation)]) -> Result<Arc<dyn TableProvider>> {
    let kind = |kind: Relation| if kind == Relation::View { "v" } else { "r" };
    let n_columns = |schema: &SchemaRef| i16::try_from(schema.fields().len()).unwrap_or(i16::MAX);
    Made::default()
        .number("oid", relations.iter().map(|(name, ..)| oid(name)))
        .text("relname", relations.iter().map(|(name, ..)| name.as_str()))
        .text("relkind", relations.iter().map(|(.., relation)| kind(*relation)))
        .short("relnatts", relations.iter().map(|(_, schema, _)| n_columns(schema)))
        .numbers(&[
            ("relnamespace", OID_PUBLIC),
            ("reltype", 0),
            ("reloftype", 0),
            ("relowner", OID_OWNER),
            ("relam", 0),
            ("relfilenode", 0),
            ("reltablespace", 0),
            ("relpages", 0),
            ("reltuples", -1),
            ("reltoastrelid", 0),
            ("relchecks", 0),
        ])
        .flags(&[
            ("relhasindex", false),
            ("relisshared", false),
            ("relhasrules", false),
            ("relhastriggers", false),
            ("relhassubclass", false),
            ("relrowsecurity", false),
            ("relforcerowsecurity", false),
            ("relispopulated", true),
            ("relispartition", false),
        ])
        .same(&[("relpersistence", "p"), ("relreplident", "n")])
        .nulls(&["relacl", "reloptions", "relpartbound"])
        .table()
}

/// The columns of all tables: table, place, name, type.
fn all_columns(
    relations: &[(String, SchemaRef, Relation)],
) -> impl Iterator<Item = (&str, i16, &str, &DataType, bool)> {
    relations.iter().flat_map(|(table, schema, _)| {
        schema.fields().iter().zip(1..).map(|(field, place)| {
            (table.as_str(), place, field.name().as_str(), field.data_type(), field.is_nullable())
        })
    })
}

fn attributes(relations: &[(String, SchemaRef, Relation)]) -> Result<Arc<dyn TableProvider>> {
    let columns = || all_columns(relations);
    let length = |data_type: &DataType| type_size(type_oid(data_type));
    Made::default()
        .number("attrelid", columns().map(|(table, ..)| oid(table)))
        .text("attname", columns().map(|(_, _, name, ..)| name))
        .number("atttypid", columns().map(|(_, _, _, data_type, _)| type_oid(data_type)))
        .short("attlen", columns().map(|(_, _, _, data_type, _)| length(data_type)))
        .short("attnum", columns().map(|(_, place, ..)| place))
        .flag("attnotnull", columns().map(|(.., nullable)| !nullable))
        .numbers(&[
            ("atttypmod", -1),
            ("attndims", 0),
            ("attcollation", 0),
            ("attinhcount", 0),
            ("attstattarget", -1),
        ])
        .flags(&[("atthasdef", false), ("attisdropped", false), ("attislocal", true)])
        .same(&[
            ("attidentity", ""),
            ("attgenerated", ""),
            ("attstorage", "p"),
            ("attalign", "d"),
            ("attcompression", ""),
        ])
        .nulls(&["attacl", "attoptions", "attfdwoptions"])
        .table()
}

fn types() -> Result<Arc<dyn TableProvider>> {
    // Number, name, length, category, element, array: each type, and its array.
    let arrays = TYPES.iter().map(|known| (known.5, format!("_{}", known.1), -1, "A", known.0, 0));
    let own = TYPES.iter().map(|known| (known.0, known.1.to_owned(), known.2, known.3, known.4, known.5));
    let all: Vec<(i64, String, i16, &str, i64, i64)> = own.chain(arrays).collect();
    Made::default()
        .number("oid", all.iter().map(|known| known.0))
        .text("typname", all.iter().map(|known| known.1.as_str()))
        .short("typlen", all.iter().map(|known| known.2))
        .text("typcategory", all.iter().map(|known| known.3))
        .number("typelem", all.iter().map(|known| known.4))
        .number("typarray", all.iter().map(|known| known.5))
        .flag("typbyval", all.iter().map(|known| (1..=8).contains(&known.2)))
        .text("typinput", all.iter().map(|known| if known.3 == "A" { "array_in" } else { "textin" }))
        .numbers(&[
            ("typnamespace", OID_CATALOG),
            ("typowner", OID_OWNER),
            ("typrelid", 0),
            ("typbasetype", 0),
            ("typcollation", 0),
            ("typtypmod", -1),
            ("typndims", 0),
        ])
        .same(&[
            ("typtype", "b"),
            ("typdelim", ","),
            ("typreceive", "recv"),
            ("typstorage", "p"),
            ("typalign", "d"),
        ])
        .flags(&[("typnotnull", false), ("typisdefined", true), ("typispreferred", false)])
        .nulls(&["typdefault", "typacl"])
        .table()
}

fn databases(session: &Session) -> Result<Arc<dyn TableProvider>> {
    Made::default()
        .number("oid", [OID_DATABASE])
        .text("datname", [session.database.as_str()])
        .numbers(&[("datdba", OID_OWNER), ("encoding", 6), ("datconnlimit", -1), ("dattablespace", 0)])
        .flags(&[("datistemplate", false), ("datallowconn", true)])
        .same(&[("datcollate", "C"), ("datctype", "C"), ("datlocprovider", "c")])
        .nulls(&["daticulocale", "datcollversion", "datacl"])
        .table()
}

fn roles(session: &Session) -> Result<Arc<dyn TableProvider>> {
    Made::default()
        .number("oid", [OID_OWNER])
        .text("rolname", [session.user.as_str()])
        .flags(&[
            ("rolsuper", false),
            ("rolinherit", true),
            ("rolcreaterole", false),
            ("rolcreatedb", false),
            ("rolcanlogin", true),
            ("rolreplication", false),
            ("rolbypassrls", false),
        ])
        .numbers(&[("rolconnlimit", -1)])
        .nulls(&["rolvaliduntil", "rolpassword"])
        .table()
}

fn columns(database: &str, relations: &[(String, SchemaRef, Relation)]) -> Result<Arc<dyn TableProvider>> {
    let all = || all_columns(relations);
    let oids: Vec<i64> = all().map(|(_, _, _, data_type, _)| type_oid(data_type)).collect();
    let is_array = |oid: i64| TYPES.iter().any(|known| known.5 == oid);
    let names: Vec<String> = oids.iter().map(|oid| short_name(*oid)).collect();
    let precision = |oid: &i64| match oid {
        21 => Some(16),
        23 => Some(32),
        20 => Some(64),
        700 => Some(24),
        701 => Some(53),
        _ => None,
    };
    Made::default()
        .text("table_name", all().map(|(table, ..)| table))
        .text("column_name", all().map(|(_, _, name, ..)| name))
        .with(
            "ordinal_position",
            Arc::new(all().map(|(_, place, ..)| i32::from(place)).collect::<Int32Array>()),
        )
        .text("is_nullable", all().map(|(.., nullable)| if nullable { "YES" } else { "NO" }))
        .text("data_type", oids.iter().map(|oid| if is_array(*oid) { "ARRAY" } else { type_name(*oid) }))
        .text("udt_name", names.iter().map(String::as_str))
        .with("numeric_precision", Arc::new(oids.iter().map(precision).collect::<Int32Array>()))
        .same(&[
            ("table_catalog", database),
            ("table_schema", SCHEMA),
            ("udt_catalog", database),
            ("udt_schema", CATALOG),
            ("is_identity", "NO"),
            ("is_generated", "NEVER"),
            ("is_updatable", "NO"),
        ])
        .nulls(&[
            "column_default",
            "character_maximum_length",
            "character_octet_length",
            "numeric_precision_radix",
            "numeric_scale",
            "datetime_precision",
            "interval_type",
            "collation_name",
            "domain_name",
            "generation_expression",
            "identity_generation",
        ])
        .table()
}
