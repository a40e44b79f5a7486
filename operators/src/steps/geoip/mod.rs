//! Where an IP address is: adds a struct with ECS geo names, from a MaxMind database or a CSV of networks.

mod columns;
mod database;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::DataType;
use logdrive_schemas::component::{Component, ConfigError, Node, NodeKind, Span};
use logdrive_schemas::{Batch, FieldType};
use schemars::JsonSchema;
use serde::Deserialize;

use super::table::Table;
use super::table_columns::{column_names, replace_columns, with_column};
use crate::step::{Emit, Reloadable, Stage, Step, StepConfig, StepContext, StepPlan};
use columns::GeoColumns;
pub use columns::{FIELDS, GeoRecord};
pub use database::Database;

/// Adds where an IP address is, as an object with the names that the Elastic Common Schema has for it. An address that
/// the database does not know, such as a private one, and what is no address, add nothing.
///
/// The database is read again when its file changes; replace it by renaming. One that cannot be read is not used.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Geoip {
    /// The field that holds the address.
    pub field: String,
    /// The field that is added, or replaced.
    #[serde(default = "into_default")]
    pub into: String,
    /// A MaxMind database (`.mmdb`: City, Country or ASN), or a CSV file (`.csv`) with the column `network`, such as
    /// `81.2.69.0/24`, and columns named like `fields`, with `latitude` and `longitude` for `location`. The longest
    /// prefix wins.
    pub database: String,
    /// What to add: `continent_code`, `continent_name`, `country_iso_code`, `country_name`, `region_iso_code`,
    /// `region_name`, `city_name`, `postal_code`, `timezone`, `location`, `as.number`, `as.organization.name`. Default:
    /// all that this kind of database has.
    #[serde(default)]
    pub fields: Vec<String>,
}

fn into_default() -> String {
    "geo".into()
}

impl Component for Geoip {
    const NAME: &'static str = "geoip";
    const EXAMPLE: &'static str = "geoip: { field: ip, into: geo, database: examples/geo.csv }\n";
}

impl StepConfig for Geoip {
    fn plan(self, node: &Node, input: &Stage, cx: &StepContext) -> Result<StepPlan, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let span = |key: &str| node.get(key).map_or(node.span, |value| value.span);
        match input.schema.field_with_name(&self.field) {
            Ok(field) if !matches!(field.data_type(), DataType::Utf8 | DataType::Utf8View) => {
                let message = format!("`{}` is no ip or string, so it holds no IP address", self.field);
                errors.push(ConfigError::new("config::wrong_type", span("field"), message));
            }
            Ok(_) => {}
            Err(_) => errors.push(ConfigError::unknown_name(
                "config::unknown_field",
                span("field"),
                "field",
                &self.field,
                &format!("stream `{}`", cx.stream),
                &column_names(input),
            )),
        }
        for (idx, name) in self.fields.iter().enumerate().filter(|(_, name)| !FIELDS.contains(&name.as_str()))
        {
            let span = item_span(node, "fields", idx);
            errors.push(ConfigError::unknown_name(
                "config::unknown_value",
                span,
                "field",
                name,
                "`geoip`",
                FIELDS,
            ));
        }
        let path = cx.working_dir.join(&self.database);
        let table = Table::open(path, |path: &Path, _: Option<&Database>| Database::open(path));
        let table = table.map_err(|reason| {
            let message = format!("cannot use database `{}`: {reason}", self.database);
            errors.push(ConfigError::new("config::bad_file", span("database"), message));
        });
        let Ok(table) = table else { return Err(errors) };
        if !errors.is_empty() {
            return Err(errors);
        }
        let names = if self.fields.is_empty() { table.current().fields() } else { self.fields };
        let columns = Arc::new(GeoColumns::new(&names));
        let output =
            with_column(input, &self.into, FieldType::Object(columns.types().to_vec()).field(&self.into));
        let (field, into, stage) = (self.field.clone(), self.into.clone(), output.clone());
        let instance_of = Arc::clone(&table);
        Ok(StepPlan {
            output,
            reads: vec![self.field],
            writes: vec![self.into],
            renames: Vec::new(),
            build: Box::new(move || {
                Box::new(GeoipStep {
                    field: field.clone(),
                    into: into.clone(),
                    stage: stage.clone(),
                    columns: Arc::clone(&columns),
                    database: instance_of.current(),
                    table: Arc::clone(&instance_of),
                    known: Known::default(),
                })
            }),
            reloads: vec![table as Arc<dyn Reloadable>],
        })
    }
}

fn item_span(node: &Node, key: &str, idx: usize) -> Span {
    match node.get(key) {
        Some(Node { kind: NodeKind::Seq(items), span }) => items.get(idx).map_or(*span, |item| item.span),
        Some(other) => other.span,
        None => node.span,
    }
}

struct GeoipStep {
    field: String,
    into: String,
    stage: Stage,
    columns: Arc<GeoColumns>,
    table: Arc<Table<Database>>,
    /// The version that `known` comes from.
    database: Arc<Database>,
    known: Known,
}

impl Step for GeoipStep {
    fn apply(&mut self, batch: Batch, out: &mut Emit) {
        let database = self.table.current();
        if !Arc::ptr_eq(&database, &self.database) {
            self.database = database;
            self.known = Known::default();
        }
        let column = batch.rows().column_by_name(&self.field).map(|column| self.locate(column));
        let column = column.unwrap_or_else(|| self.columns.build(&vec![None; batch.num_rows()]));
        out.rows.push(replace_columns(batch, vec![(&self.into, column)], &self.stage));
    }
}

impl GeoipStep {
    /// The struct for each address. What is at a place of the database is decoded once, not once per address.
    fn locate(&mut self, addresses: &ArrayRef) -> ArrayRef {
        // Index 0 is for what is not known.
        let mut records: Vec<Option<Arc<GeoRecord>>> = vec![None];
        let mut idx_of_place: HashMap<usize, u32> = HashMap::default();
        let mut idx_of = |text: Option<&str>| {
            let Some(address) = text.and_then(|text| text.trim().parse::<IpAddr>().ok()) else { return 0 };
            let address = address.to_canonical();
            let Some(place) = self.database.place(address) else { return 0 };
            *idx_of_place.entry(place).or_insert_with(|| {
                match self.known.get(place, || self.database.lookup(address)) {
                    None => 0,
                    known => {
                        records.push(known);
                        (records.len() - 1) as u32
                    }
                }
            })
        };
        let indices: UInt32Array = match addresses.data_type() {
            DataType::Utf8 => addresses.as_string::<i32>().iter().map(|text| Some(idx_of(text))).collect(),
            DataType::Utf8View => addresses.as_string_view().iter().map(|text| Some(idx_of(text))).collect(),
            _ => UInt32Array::from_value(0, addresses.len()),
        };
        take(&self.columns.build(&records), &indices, None).expect("every index was made above")
    }
}

/// Places that were decoded, in two generations: when the younger is full, the older is forgotten.
#[derive(Default)]
struct Known {
    young: HashMap<usize, Option<Arc<GeoRecord>>>,
    old: HashMap<usize, Option<Arc<GeoRecord>>>,
}

impl Known {
    const GENERATION_MAX: usize = 32_768;

    fn get(
        &mut self,
        place: usize,
        decode: impl FnOnce() -> Option<Arc<GeoRecord>>,
    ) -> Option<Arc<GeoRecord>> {
        if let Some(known) = self.young.get(&place) {
            return known.clone();
        }
        let record = self.old.remove(&place).unwrap_or_else(decode);
        if self.young.len() >= Self::GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(place, record.clone());
        record
    }
}

#[cfg(test)]
mod tests;
