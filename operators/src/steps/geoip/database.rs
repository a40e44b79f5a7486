//! Databases of networks: MaxMind's format, and CSV.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use ipnet::IpNet;
use maxminddb::{Reader, WithinOptions};
use serde::Deserialize;

use super::columns::{FIELDS, GeoRecord};
use crate::steps::table_file::read_csv_as_text;

/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 2 << 30;
/// Networks of a MaxMind database that are decoded when it is opened, so that a broken one is found out.
const CHECKED_NETWORKS: usize = 1_000;

/// Networks, and what is known about them.
#[derive(Debug)]
pub enum Database {
    /// A CSV file.
    Csv(Networks),
    /// A MaxMind database, as bytes that are decoded when asked.
    MaxMind(Box<Reader<Vec<u8>>>),
}

impl Database {
    /// Reads a file that ends in `.mmdb` or `.csv`.
    ///
    /// # Errors
    /// If it cannot be read, or is broken.
    pub fn open(path: &Path) -> Result<Self, String> {
        let n_bytes = fs::metadata(path).map_err(|error| error.to_string())?.len();
        if n_bytes > FILE_BYTES_MAX {
            return Err(format!("it has {n_bytes} bytes, the limit is {FILE_BYTES_MAX}"));
        }
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let bytes = fs::read(path).map_err(|error| error.to_string())?;
        match extension.to_ascii_lowercase().as_str() {
            "csv" => Ok(Self::Csv(Networks::parse(&bytes)?)),
            "mmdb" => {
                let reader = Reader::from_source(bytes).map_err(|error| error.to_string())?;
                check(&reader)?;
                Ok(Self::MaxMind(Box::new(reader)))
            }
            _ => Err("expected a name that ends in `.mmdb` or `.csv`".into()),
        }
    }

    /// Where the database keeps what it knows about an address: the same for all addresses of a network, and often of
    /// many networks.
    #[must_use]
    pub fn place(&self, address: IpAddr) -> Option<usize> {
        match self {
            Self::Csv(networks) => networks.place(address),
            Self::MaxMind(reader) => reader.lookup(address).ok()?.offset(),
        }
    }

    /// What is known about an address. What is broken inside a database counts as unknown.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<Arc<GeoRecord>> {
        match self {
            Self::Csv(networks) => networks.lookup(address),
            Self::MaxMind(reader) => {
                let record = reader.lookup(address).ok()?.decode::<MaxMindRecord<'_>>().ok()??;
                let record = GeoRecord::from(record);
                (!record.is_empty()).then(|| Arc::new(record))
            }
        }
    }

    /// The fields that this kind of database has.
    #[must_use]
    pub fn fields(&self) -> Vec<String> {
        let (of_places, of_systems) = FIELDS.split_at(FIELDS.len() - 2);
        let names: Vec<&str> = match self {
            Self::Csv(networks) => networks.fields.clone(),
            Self::MaxMind(reader) => match reader.metadata().database_type.as_str() {
                kind if kind.contains("ASN") || kind.contains("ISP") => of_systems.to_vec(),
                kind if kind.contains("Country") => of_places[..4].to_vec(),
                _ => of_places.to_vec(),
            },
        };
        names.into_iter().map(str::to_owned).collect()
    }
}

fn check(reader: &Reader<Vec<u8>>) -> Result<(), String> {
    let networks = reader.networks(WithinOptions::default()).map_err(|error| error.to_string())?;
    let mut is_useful = false;
    for network in networks.take(CHECKED_NETWORKS) {
        let decoded = network.and_then(|network| network.decode::<MaxMindRecord<'_>>());
        let record = decoded.map_err(|error| error.to_string())?;
        is_useful |= record.is_some_and(|record| !GeoRecord::from(record).is_empty());
    }
    let kind = &reader.metadata().database_type;
    is_useful.then_some(()).ok_or_else(|| format!("`{kind}` says nothing about places or systems"))
}

/// What City, Country and ASN databases hold, as far as it is used.
#[derive(Default, Deserialize)]
#[serde(default)]
struct MaxMindRecord<'a> {
    #[serde(borrow)]
    city: Named<'a>,
    #[serde(borrow)]
    continent: Named<'a>,
    #[serde(borrow)]
    country: Named<'a>,
    location: Location<'a>,
    postal: Postal<'a>,
    subdivisions: Vec<Named<'a>>,
    autonomous_system_number: Option<u32>,
    autonomous_system_organization: Option<&'a str>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Named<'a> {
    code: Option<&'a str>,
    iso_code: Option<&'a str>,
    #[serde(borrow)]
    names: Names<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Names<'a> {
    en: Option<&'a str>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Location<'a> {
    latitude: Option<f64>,
    longitude: Option<f64>,
    time_zone: Option<&'a str>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Postal<'a> {
    code: Option<&'a str>,
}

impl From<MaxMindRecord<'_>> for GeoRecord {
    fn from(from: MaxMindRecord<'_>) -> Self {
        let mut record = Self {
            location: from.location.latitude.zip(from.location.longitude),
            as_number: from.autonomous_system_number.map(i64::from),
            ..Self::default()
        };
        let region = from.subdivisions.first();
        // As in ISO 3166-2, and in ECS: the country comes first.
        let region_code = from.country.iso_code.zip(region.and_then(|region| region.iso_code));
        let region_code = region_code.map(|(country, region)| format!("{country}-{region}"));
        record.set("continent_code", from.continent.code);
        record.set("continent_name", from.continent.names.en);
        record.set("country_iso_code", from.country.iso_code);
        record.set("country_name", from.country.names.en);
        record.set("region_iso_code", region_code.as_deref());
        record.set("region_name", region.and_then(|region| region.names.en));
        record.set("city_name", from.city.names.en);
        record.set("postal_code", from.postal.code);
        record.set("timezone", from.location.time_zone);
        record.set("as.organization.name", from.autonomous_system_organization);
        record
    }
}

/// Networks as disjoint ranges: nested prefixes are resolved when the file is read, so that a lookup is one binary
/// search.
#[derive(Debug, Default)]
pub struct Networks {
    v4: Ranges,
    v6: Ranges,
    fields: Vec<&'static str>,
}

/// The first address of each range, ascending, and what is known from there on.
type Ranges = Vec<(u128, Option<Arc<GeoRecord>>)>;

impl Networks {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let rows = read_csv_as_text(bytes).map_err(|error| error.to_string())?;
        let networks = rows.column_by_name("network").ok_or("it has no column `network`")?.as_string_view();
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for idx in 0..rows.num_rows() {
            let text = if networks.is_valid(idx) { networks.value(idx).trim() } else { "" };
            let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            let network = network.map_err(|_| format!("`{text}` in row {} is no network", idx + 1))?;
            let record = record(&rows, idx).map_err(|reason| format!("{reason} in row {}", idx + 1))?;
            let of_network = match network {
                IpNet::V4(net) => (
                    u128::from(u32::from(net.network())),
                    u128::from(u32::from(net.broadcast())),
                    Arc::new(record),
                ),
                IpNet::V6(net) => (u128::from(net.network()), u128::from(net.broadcast()), Arc::new(record)),
            };
            if matches!(network, IpNet::V4(_)) { v4.push(of_network) } else { v6.push(of_network) }
        }
        let has = |name: &&&str| match **name {
            "location" => rows.column_by_name("latitude").is_some(),
            name => rows.column_by_name(name).is_some(),
        };
        let fields = FIELDS.iter().filter(has).copied().collect();
        Ok(Self { v4: flatten(v4)?, v6: flatten(v6)?, fields })
    }

    /// The number of the address's range; those of IPv6 come behind those of IPv4.
    fn place(&self, address: IpAddr) -> Option<usize> {
        let (ranges, offset, address) = match address {
            IpAddr::V4(address) => (&self.v4, 0, u128::from(u32::from(address))),
            IpAddr::V6(address) => (&self.v6, self.v4.len(), u128::from(address)),
        };
        let behind = ranges.partition_point(|(first, _)| *first <= address);
        behind.checked_sub(1).map(|idx| offset + idx)
    }

    fn lookup(&self, address: IpAddr) -> Option<Arc<GeoRecord>> {
        let place = self.place(address)?;
        let range = self.v4.get(place).or_else(|| self.v6.get(place - self.v4.len()))?;
        range.1.clone()
    }
}

fn record(rows: &RecordBatch, idx: usize) -> Result<GeoRecord, String> {
    let text = |name: &str| {
        let column = rows.column_by_name(name)?.as_string_view();
        column.is_valid(idx).then(|| column.value(idx).trim()).filter(|text| !text.is_empty())
    };
    let number = |name: &str| match text(name).map(|text| (text, text.parse::<f64>())) {
        None => Ok(None),
        Some((_, Ok(number))) if number.is_finite() => Ok(Some(number)),
        Some((text, _)) => Err(format!("`{text}` is no number")),
    };
    let mut record =
        GeoRecord { location: number("latitude")?.zip(number("longitude")?), ..GeoRecord::default() };
    for field in FIELDS.iter().filter(|field| !matches!(**field, "location" | "as.number")) {
        record.set(field, text(field));
    }
    if let Some(system) = text("as.number") {
        record.as_number = Some(system.parse().map_err(|_| format!("`{system}` is no number"))?);
    }
    Ok(record)
}

/// Makes disjoint ranges of networks, which are nested or apart but never overlap otherwise.
fn flatten(mut networks: Vec<(u128, u128, Arc<GeoRecord>)>) -> Result<Ranges, String> {
    // Outer networks come before the inner ones that begin at the same address.
    networks.sort_by_key(|(first, last, _)| (*first, u128::MAX - last));
    if let Some(pair) = networks.windows(2).find(|pair| (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1)) {
        let country = pair[1].2.texts.iter().flatten().next();
        return Err(format!("a network is listed twice, once with {country:?}"));
    }
    let mut ranges: Ranges = Vec::with_capacity(networks.len() * 2);
    let mut open: Vec<(u128, Arc<GeoRecord>)> = Vec::new();
    let mut push = |first: u128, record: Option<Arc<GeoRecord>>| match ranges.last_mut() {
        Some(last) if last.0 == first => last.1 = record,
        _ => ranges.push((first, record)),
    };
    let close = |open: &mut Vec<(u128, Arc<GeoRecord>)>,
                 upto: Option<u128>,
                 push: &mut dyn FnMut(u128, Option<Arc<GeoRecord>>)| {
        while let Some((last, _)) = open.last() {
            if upto.is_some_and(|upto| *last >= upto) {
                break;
            }
            let behind = last.checked_add(1);
            open.pop();
            if let Some(behind) = behind {
                push(behind, open.last().map(|(_, record)| Arc::clone(record)));
            }
        }
    };
    for (first, last, record) in networks {
        close(&mut open, Some(first), &mut push);
        push(first, Some(Arc::clone(&record)));
        open.push((last, record));
    }
    close(&mut open, None, &mut push);
    Ok(ranges)
}
