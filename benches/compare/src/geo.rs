//! A geo database of made-up places in MaxMind's format, so that every address of the input has a place.
//!
//! Only what the comparison needs of the format: a complete binary tree over the first 16 bits of IPv4 addresses,
//! strings, doubles, small integers, arrays and maps. Layout: tree, 16 zero bytes, data, marker, metadata.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Result, fail};

const PLACES: u32 = 769;
const DEPTH: u32 = 16;
const NODES: u32 = (1 << DEPTH) - 1;
const MARKER: &[u8] = b"\xab\xcd\xefMaxMind.com";

const STRING: u8 = 2;
const DOUBLE: u8 = 3;
const UINT16: u8 = 5;
const UINT32: u8 = 6;
const MAP: u8 = 7;
const UINT64: u8 = 9;
const ARRAY: u8 = 11;

const COUNTRIES: &[(&str, &str)] = &[
    ("NO", "Norway"),
    ("PT", "Portugal"),
    ("JP", "Japan"),
    ("CL", "Chile"),
    ("KE", "Kenya"),
    ("NZ", "New Zealand"),
    ("IN", "India"),
];

/// Country code and city of an address, given its first two bytes.
pub fn place(first: u32, second: u32) -> (&'static str, String) {
    let place = number(first, second);
    (COUNTRIES[place as usize % COUNTRIES.len()].0, format!("Town {place}"))
}

fn number(first: u32, second: u32) -> u32 {
    (first * 263 + second) % PLACES
}

fn head(kind: u8, size: usize, out: &mut Vec<u8>) {
    let (first, extended) = if kind > 7 { (0, Some(kind - 7)) } else { (kind << 5, None) };
    match size {
        0..29 => out.push(first | size as u8),
        _ => out.push(first | 29),
    }
    out.extend(extended);
    if size >= 29 {
        out.push(u8::try_from(size - 29).expect("nothing here is longer than 284 bytes"));
    }
}

fn string(text: &str, out: &mut Vec<u8>) {
    head(STRING, text.len(), out);
    out.extend_from_slice(text.as_bytes());
}

fn unsigned(kind: u8, value: u64, out: &mut Vec<u8>) {
    let bytes = value.to_be_bytes();
    let significant = &bytes[value.leading_zeros() as usize / 8..];
    head(kind, significant.len(), out);
    out.extend_from_slice(significant);
}

fn double(value: f64, out: &mut Vec<u8>) {
    head(DOUBLE, 8, out);
    out.extend_from_slice(&value.to_be_bytes());
}

/// A map of one name to one text, as the format has for names in languages.
fn names(text: &str, out: &mut Vec<u8>) {
    string("names", out);
    head(MAP, 1, out);
    string("en", out);
    string(text, out);
}

/// One place, shaped like an entry of a City database.
fn entry(place: u32, out: &mut Vec<u8>) {
    let (code, country) = COUNTRIES[place as usize % COUNTRIES.len()];
    head(MAP, 5, out);
    string("city", out);
    head(MAP, 2, out);
    string("geoname_id", out);
    unsigned(UINT32, u64::from(5000 + place), out);
    names(&format!("Town {place}"), out);
    string("continent", out);
    head(MAP, 2, out);
    string("code", out);
    string("EU", out);
    names("Europe", out);
    string("country", out);
    head(MAP, 2, out);
    string("iso_code", out);
    string(code, out);
    names(country, out);
    string("location", out);
    head(MAP, 3, out);
    string("latitude", out);
    double(f64::from(place % 180) - 89.5, out);
    string("longitude", out);
    double(f64::from(place % 360) - 179.5, out);
    string("time_zone", out);
    string("Europe/Lisbon", out);
    string("postal", out);
    head(MAP, 1, out);
    string("code", out);
    string(&format!("{place:05}"), out);
}

fn metadata(out: &mut Vec<u8>) {
    out.extend_from_slice(MARKER);
    head(MAP, 9, out);
    for (key, value) in [
        ("binary_format_major_version", 2),
        ("binary_format_minor_version", 0),
        ("ip_version", 4),
        ("record_size", 24),
    ] {
        string(key, out);
        unsigned(UINT16, value, out);
    }
    string("build_epoch", out);
    unsigned(UINT64, 1_795_219_200, out);
    string("node_count", out);
    unsigned(UINT32, u64::from(NODES), out);
    string("database_type", out);
    string("GeoLite2-City", out);
    string("languages", out);
    head(ARRAY, 1, out);
    string("en", out);
    string("description", out);
    head(MAP, 1, out);
    string("en", out);
    string("Made-up places", out);
}

/// The database as bytes.
fn database() -> Vec<u8> {
    let (mut data, mut offsets) = (Vec::new(), Vec::new());
    for place in 0..PLACES {
        offsets.push(data.len() as u32);
        entry(place, &mut data);
    }
    let mut out = Vec::with_capacity(NODES as usize * 6 + data.len() + 512);
    for depth in 0..DEPTH {
        for prefix in 0..1_u32 << depth {
            for bit in 0..2 {
                let child = prefix * 2 + bit;
                let record = if depth + 1 < DEPTH {
                    (1 << (depth + 1)) - 1 + child
                } else {
                    NODES + 16 + offsets[number(child >> 8, child & 255) as usize]
                };
                out.extend_from_slice(&record.to_be_bytes()[1..]);
            }
        }
    }
    out.extend_from_slice(&[0; 16]);
    out.append(&mut data);
    metadata(&mut out);
    out
}

/// Writes the database into the scratch folder unless it is there.
pub fn file(scratch: &Path) -> Result<PathBuf> {
    let path = scratch.join("data").join("places.mmdb");
    if !path.exists() {
        fs::create_dir_all(scratch.join("data"))?;
        fs::write(&path, database()).map_err(fail(format_args!("cannot write {}", path.display())))?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows the tree as a reader of the format does.
    #[test]
    fn an_address_leads_to_its_place() {
        let bytes = database();
        for (first, second) in [(1_u32, 0_u32), (10, 77), (223, 255)] {
            let address = first << 24 | second << 16 | 0x0101;
            let mut node = 0_u32;
            for bit in 0..32 {
                if node >= NODES {
                    break;
                }
                let at = (node * 6 + (address >> (31 - bit) & 1) * 3) as usize;
                node = u32::from_be_bytes([0, bytes[at], bytes[at + 1], bytes[at + 2]]);
            }
            let start = (node - NODES - 16) as usize + NODES as usize * 6 + 16;
            let mut wanted = Vec::new();
            entry(number(first, second), &mut wanted);
            assert_eq!(&bytes[start..start + wanted.len()], &wanted[..]);
            let text = String::from_utf8_lossy(&wanted).into_owned();
            let (code, city) = place(first, second);
            assert!(text.contains(code) && text.contains(&city));
        }
    }

    #[test]
    fn sizes_of_29_and_more_take_a_byte_more() {
        let mut out = Vec::new();
        string(&"x".repeat(30), &mut out);
        assert_eq!(&out[..2], &[STRING << 5 | 29, 1]);
        out.clear();
        unsigned(UINT64, 258, &mut out);
        assert_eq!(out, [2, 2, 1, 2]);
    }
}
