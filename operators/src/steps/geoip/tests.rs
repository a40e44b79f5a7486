//! Against the truths beside the test databases, broken files, and replacement.

use std::fs;
use std::io::{Write as _, stdout};
use std::path::PathBuf;

use arrow::array::StructArray;
use arrow::datatypes::{Float64Type, Int64Type};
use serde_json::Value;

use super::*;
use crate::steps::lookup::tests::{apply, batch, plan};

/// A file of the test databases; `None`, with a line that says so, if they are not at hand.
fn data(test: &str, name: &str) -> Option<PathBuf> {
    let shared = std::env::var_os("LOGDRIVE_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let path = shared.join("data/geo").join(name);
    if !path.exists() {
        writeln!(&mut stdout(), "skipped: {test}: data not at hand").unwrap();
        return None;
    }
    Some(path)
}

fn locate(step: &mut dyn Step, addresses: &[&str]) -> StructArray {
    let values: Vec<Option<&str>> = addresses.iter().map(|address| Some(*address)).collect();
    let out = apply(step, batch("ip", &values));
    assert!(out.rejects.is_empty());
    out.rows[0].rows().column_by_name("geo").unwrap().as_struct().clone()
}

fn text(geo: &StructArray, name: &str, idx: usize) -> Option<String> {
    let column = geo.column_by_name(name).unwrap().as_string_view().clone();
    (geo.is_valid(idx) && column.is_valid(idx)).then(|| column.value(idx).to_owned())
}

/// `(first address, truth)` of every network of a source file that no later, narrower network hides.
fn truths(path: &Path) -> Vec<(String, Value)> {
    let networks: Vec<serde_json::Map<String, Value>> =
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let networks: Vec<(ipnet::IpNet, Value)> = networks
        .into_iter()
        .flatten()
        .map(|(network, truth)| (network.trim_start_matches("::ffff:").parse().unwrap(), truth))
        .collect();
    let is_hidden = |idx: usize| {
        let address = networks[idx].0.network();
        networks.iter().enumerate().any(|(other, (network, _))| {
            other != idx && network.contains(&address) && network.prefix_len() >= networks[idx].0.prefix_len()
        })
    };
    let shown = (0..networks.len()).filter(|idx| !is_hidden(*idx));
    shown.map(|idx| (networks[idx].0.network().to_string(), networks[idx].1.clone())).collect()
}

#[test]
fn the_city_database_says_what_its_source_says() {
    let name = "the_city_database_says_what_its_source_says";
    let Some(path) = data(name, "GeoIP2-City-Test.mmdb") else { return };
    let yaml = format!("{{field: ip, database: {}}}", path.display());
    let plan = plan::<Geoip>(Path::new("."), &yaml, "ip").unwrap();
    let truths = truths(&path.with_extension("json"));
    assert!(truths.len() > 100);
    let addresses: Vec<&str> = truths.iter().map(|(address, _)| address.as_str()).collect();
    let geo = locate(&mut *(plan.build)(), &addresses);
    let mut n_located = 0;
    for (idx, (address, truth)) in truths.iter().enumerate() {
        let want = |pointer: &str| truth.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        assert_eq!(text(&geo, "city_name", idx), want("/city/names/en"), "{address}");
        assert_eq!(text(&geo, "continent_code", idx), want("/continent/code"), "{address}");
        assert_eq!(text(&geo, "country_iso_code", idx), want("/country/iso_code"), "{address}");
        assert_eq!(text(&geo, "country_name", idx), want("/country/names/en"), "{address}");
        assert_eq!(text(&geo, "postal_code", idx), want("/postal/code"), "{address}");
        assert_eq!(text(&geo, "timezone", idx), want("/location/time_zone"), "{address}");
        let region = want("/country/iso_code").zip(want("/subdivisions/0/iso_code"));
        assert_eq!(text(&geo, "region_iso_code", idx), region.map(|(c, r)| format!("{c}-{r}")), "{address}");
        let location = geo.column_by_name("location").unwrap().as_struct();
        if let Some(lat) = truth.pointer("/location/latitude").and_then(Value::as_f64) {
            assert_eq!(location.column(0).as_primitive::<Float64Type>().value(idx), lat, "{address}");
            n_located += 1;
        }
    }
    assert!(n_located > 100);
}

#[test]
fn the_asn_database_adds_the_system() {
    let Some(path) = data("the_asn_database_adds_the_system", "GeoLite2-ASN-Test.mmdb") else { return };
    let yaml = format!("{{field: ip, database: {}}}", path.display());
    let plan = plan::<Geoip>(Path::new("."), &yaml, "ip").unwrap();
    let geo = locate(&mut *(plan.build)(), &["1.0.0.1", "::ffff:1.128.0.1", "127.0.0.1"]);
    let system = geo.column_by_name("as").unwrap().as_struct();
    let names = system.column(1).as_struct().column(0).as_string_view();
    assert_eq!(system.column(0).as_primitive::<Int64Type>().values()[..2], [15_169, 1_221]);
    assert_eq!((names.value(0), names.value(1)), ("Google Inc.", "Telstra Pty Ltd"));
    assert!(geo.is_null(2));
}

#[test]
fn broken_databases_are_errors_or_unknown_but_never_a_panic() {
    let name = "broken_databases_are_errors_or_unknown_but_never_a_panic";
    let Some(broken) = data(name, "GeoIP2-City-Test-Broken-Double-Format.mmdb") else { return };
    let yaml = format!("{{field: ip, database: {}}}", broken.display());
    let Err(errors) = plan::<Geoip>(Path::new("."), &yaml, "ip") else { panic!("it is used") };
    assert_eq!(errors[0].code, "config::bad_file");
    let Some(other) = data(name, "GeoIP2-Anonymous-IP-Test.mmdb") else { return };
    assert!(Database::open(&other).unwrap_err().contains("says nothing about places"));
    let Some(good) = data(name, "GeoIP2-City-Test.mmdb") else { return };
    let bytes = fs::read(good).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.mmdb");
    // Cut anywhere, and with bytes turned over: opening may fail, a lookup may find nothing.
    for step in 0..60 {
        let mut damaged = bytes.clone();
        if step % 2 == 0 {
            damaged.truncate(bytes.len() * step / 60);
        } else {
            (step..damaged.len()).step_by(97 + step).for_each(|idx| damaged[idx] ^= 0xff);
        }
        fs::write(&path, damaged).unwrap();
        if let Ok(database) = Database::open(&path) {
            for address in ["81.2.69.160", "2001:218::1", "1.2.3.4"] {
                drop(database.lookup(address.parse().unwrap()));
            }
        }
    }
}

const NETWORKS: &str = "network,country_iso_code,city_name,latitude,longitude,as.number\n\
    10.0.0.0/8,DE,,,,\n10.1.0.0/16,DE,Berlin,52.5,13.4,64512\n10.1.2.0/24,FR,Paris,48.9,2.4,\n\
    10.255.0.0/16,AT,,,,\n192.0.2.7,US,,,,\n2001:db8::/32,JP,Tokyo,35.7,139.7,\n";

#[test]
fn the_longest_prefix_of_a_csv_wins() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("n.csv"), NETWORKS).unwrap();
    let plan = plan::<Geoip>(folder.path(), "{field: ip, database: n.csv}", "ip").unwrap();
    assert_eq!(plan.writes, ["geo"]);
    let addresses = [
        "10.0.0.0",
        "10.1.0.1",
        "10.1.2.255",
        "10.1.3.0",
        "10.255.255.255",
        "11.0.0.0",
        "192.0.2.7",
        "192.0.2.8",
        "2001:db8::9",
        "2001:db9::",
        "::ffff:10.1.2.3",
        "9.255.255.255",
        "no address",
        "",
    ];
    let want = [
        Some("DE"),
        Some("DE"),
        Some("FR"),
        Some("DE"),
        Some("AT"),
        None,
        Some("US"),
        None,
        Some("JP"),
        None,
        Some("FR"),
        None,
        None,
        None,
    ];
    let geo = locate(&mut *(plan.build)(), &addresses);
    for (idx, want) in want.iter().enumerate() {
        assert_eq!(text(&geo, "country_iso_code", idx).as_deref(), *want, "{}", addresses[idx]);
    }
    assert_eq!(text(&geo, "city_name", 1).as_deref(), Some("Berlin"));
    assert_eq!(plan.output.schema.field_with_name("geo").unwrap().data_type(), geo.data_type());
}

#[test]
fn a_replaced_database_is_used_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let replace = |text: &str| {
        fs::write(folder.path().join("new"), text).unwrap();
        fs::rename(folder.path().join("new"), folder.path().join("n.csv")).unwrap();
    };
    replace(NETWORKS);
    let yaml = "{field: ip, database: n.csv, fields: [country_iso_code]}";
    let plan = plan::<Geoip>(folder.path(), yaml, "ip").unwrap();
    let mut step = (plan.build)();
    let mut country = || text(&locate(&mut *step, &["10.0.0.1"]), "country_iso_code", 0);
    assert_eq!(country().as_deref(), Some("DE"));
    replace("network,country_iso_code\n10.0.0.0/8,CH\n");
    assert_eq!(country().as_deref(), Some("DE"), "nothing is read while rows flow");
    assert_eq!(plan.reloads[0].reload_if_changed(), Ok(true));
    assert_eq!(country().as_deref(), Some("CH"), "what was remembered of the old one is forgotten");
    for broken in ["network\nx\n", "", "country\nDE\n", "network,latitude,longitude\n::/0,north,1\n"] {
        replace(broken);
        assert!(plan.reloads[0].reload_if_changed().is_err(), "{broken:?}");
        assert_eq!(country().as_deref(), Some("CH"));
    }
}

#[test]
fn errors_have_their_place() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("n.csv"), NETWORKS).unwrap();
    let yaml = "{field: pi, database: n.csv, fields: [city_name, contry_name]}";
    let Err(errors) = plan::<Geoip>(folder.path(), yaml, "ip") else { panic!("it is planned") };
    let found: Vec<_> =
        errors.iter().map(|e| (e.code, &yaml[e.span.start..e.span.start + e.span.len])).collect();
    assert_eq!(found, [("config::unknown_field", "pi"), ("config::unknown_value", "contry_name")]);
    let Err(errors) = plan::<Geoip>(folder.path(), "{field: n, database: no.mmdb}", "ip") else { panic!() };
    let codes: Vec<_> = errors.iter().map(|e| e.code).collect();
    assert_eq!(codes, ["config::wrong_type", "config::bad_file"]);
}
