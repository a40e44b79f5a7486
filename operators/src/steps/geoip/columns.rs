//! What is known about an address, and how it becomes a struct column.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float64Array, Int64Array, StringViewArray, StructArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::Fields;
use logdrive_schemas::FieldType;

/// Every field that can be added.
pub const FIELDS: &[&str] = &[
    "continent_code",
    "continent_name",
    "country_iso_code",
    "country_name",
    "region_iso_code",
    "region_name",
    "city_name",
    "postal_code",
    "timezone",
    "location",
    "as.number",
    "as.organization.name",
];

/// What is known about an address.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GeoRecord {
    /// The texts, in the order of [`FIELDS`]; the places of `location` and `as.number` stay empty.
    pub texts: [Option<Box<str>>; FIELDS.len()],
    /// Latitude and longitude in degrees.
    pub location: Option<(f64, f64)>,
    /// The number of the autonomous system.
    pub as_number: Option<i64>,
}

impl GeoRecord {
    /// Whether nothing is known at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.location.is_none() && self.as_number.is_none() && self.texts.iter().all(Option::is_none)
    }

    /// Sets a text; empty ones count as missing.
    pub fn set(&mut self, field: &str, text: Option<&str>) {
        if let Some(idx) = FIELDS.iter().position(|name| *name == field) {
            self.texts[idx] = text.filter(|text| !text.is_empty()).map(Into::into);
        }
    }
}

/// The members of the struct that a step adds.
pub(super) struct GeoColumns {
    types: Vec<(String, FieldType)>,
}

impl GeoColumns {
    pub(super) fn new(names: &[String]) -> Self {
        let mut types: Vec<(String, FieldType)> = Vec::new();
        for name in names {
            let Some(of_system) = name.strip_prefix("as.") else {
                let field_type = if name == "location" { FieldType::GeoPoint } else { FieldType::String };
                if !types.iter().any(|(known, _)| known == name) {
                    types.push((name.clone(), field_type));
                }
                continue;
            };
            if !types.iter().any(|(known, _)| known == "as") {
                types.push(("as".into(), FieldType::Object(Vec::new())));
            }
            let system = types.iter_mut().find(|(known, _)| known == "as");
            let Some((_, FieldType::Object(members))) = system else { continue };
            let member = match of_system {
                "number" => ("number".into(), FieldType::Int64),
                _ => {
                    let organization = FieldType::Object(vec![("name".into(), FieldType::String)]);
                    ("organization".into(), organization)
                }
            };
            if !members.contains(&member) {
                members.push(member);
            }
        }
        Self { types }
    }

    pub(super) fn types(&self) -> &[(String, FieldType)] {
        &self.types
    }

    /// One struct per record; null where nothing is known.
    pub(super) fn build(&self, records: &[Option<Arc<GeoRecord>>]) -> ArrayRef {
        let columns = self.types.iter().map(|(name, field_type)| column(name, field_type, records)).collect();
        strukt(&self.types, columns, records.iter().map(Option::is_some).collect())
    }
}

fn strukt(types: &[(String, FieldType)], columns: Vec<ArrayRef>, valid: Vec<bool>) -> ArrayRef {
    let fields: Fields = types.iter().map(|(name, field_type)| field_type.field(name)).collect();
    let valid = NullBuffer::from(valid);
    Arc::new(StructArray::new(fields, columns, Some(valid)))
}

fn column(name: &str, field_type: &FieldType, records: &[Option<Arc<GeoRecord>>]) -> ArrayRef {
    let records = records.iter().map(Option::as_deref);
    match field_type {
        FieldType::GeoPoint => {
            let places: Vec<Option<(f64, f64)>> = records.map(|record| record?.location).collect();
            let lat: Float64Array = places.iter().map(|place| place.map(|(lat, _)| lat)).collect();
            let lon: Float64Array = places.iter().map(|place| place.map(|(_, lon)| lon)).collect();
            let valid = lat.nulls().map_or_else(|| vec![true; lat.len()], |nulls| nulls.iter().collect());
            let float = |name: &str| (name.to_owned(), FieldType::Float64);
            strukt(&[float("lat"), float("lon")], vec![Arc::new(lat), Arc::new(lon)], valid)
        }
        FieldType::Object(members) => {
            let texts: Vec<Option<&str>> =
                records.clone().map(|record| record?.texts[FIELDS.len() - 1].as_deref()).collect();
            let numbers: Int64Array = records.map(|record| record?.as_number).collect();
            let valid = (0..texts.len()).map(|idx| texts[idx].is_some() || numbers.is_valid(idx)).collect();
            let member = |(_, field_type): &(String, FieldType)| -> ArrayRef {
                let FieldType::Object(of_organization) = field_type else { return Arc::new(numbers.clone()) };
                let valid = texts.iter().map(Option::is_some).collect();
                strukt(
                    of_organization,
                    vec![Arc::new(texts.iter().copied().collect::<StringViewArray>())],
                    valid,
                )
            };
            strukt(members, members.iter().map(member).collect(), valid)
        }
        _ => {
            let idx = FIELDS.iter().position(|known| *known == name).unwrap_or_default();
            Arc::new(records.map(|record| record?.texts[idx].as_deref()).collect::<StringViewArray>())
        }
    }
}
