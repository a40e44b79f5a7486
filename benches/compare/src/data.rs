//! The input: three kinds of lines, each a function of its number.
//!
//! Nothing is remembered about a line that was sent. Its number stands in it, scrambled, as `zq` and 14 hexadecimal
//! digits; a receiver reads the number back and can make the whole line again to compare with what arrived.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Result, fail};

/// One fixed seed: every machine and every run has the same bytes.
const SEED: u64 = 0x4c6f_6764_7269_7665;
/// The instant of line 0, in milliseconds after midnight of 2026-11-21; lines are 2 ms apart.
pub const STEP_MS: u64 = 2;

const ID_BITS: u64 = (1 << 56) - 1;
const ID_FACTOR: u64 = 0x00d1_3425_43de_82ef;
/// What stands before every id. No other field can hold these two letters in a row.
pub const ID_MARK: &[u8] = b"zq";
const ID_DIGITS: usize = 14;

/// What kind of lines a workload reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// E-commerce events: one JSON object of 15 keys.
    Json,
    /// The access log of nginx, `combined`.
    Nginx,
    /// RFC 5424 with structured data.
    Syslog,
}

impl Format {
    /// The name of the file that holds such lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Nginx => "nginx",
            Self::Syslog => "syslog",
        }
    }
}

/// A small generator of well-mixed numbers (SplitMix64).
pub struct Dice(u64);

impl Dice {
    /// The throws that belong to a number.
    pub fn of(index: u64) -> Self {
        let mut dice = Self(SEED ^ index.wrapping_mul(0xd605_bbb5_8c8a_bd4d));
        dice.next();
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

const AGENTS: &[&str] = &[
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_6) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.6 Safari/605.1.15",
    "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:131.0) Gecko/20100101 Firefox/131.0",
    "ShopApp/7.12.1 (iOS 18.0)",
    "python-requests/2.32.3",
];
const LEVELS: &[&str] = &["debug", "debug", "info", "info", "info", "info", "info", "info", "warn", "error"];
const KINDS: &[&str] =
    &["transaction", "transaction", "behavior", "behavior", "performance", "error", "security", "metric"];
const CURRENCIES: &[&str] = &["EUR", "USD", "GBP", "CHF", "MAD"];
const COUNTRIES: &[&str] = &["DE", "FR", "ES", "MA", "US", "NL", "IT", "PL"];
const TENANTS: &[&str] = &["north-shop", "atlas-market", "riverside", "blue-kite", "old-mill", "harbour"];
const AREAS: &[&str] = &["products", "orders", "basket", "checkout", "search"];
const STATUS: &[u64] = &[200, 200, 200, 200, 201, 304, 404, 500];

/// Whether the line is one that the filter of W3 takes out.
pub fn is_debug(index: u64) -> bool {
    Dice::of(index).one(LEVELS) == "debug"
}

/// Appends the id of line `index`.
pub fn id(index: u64, out: &mut Vec<u8>) {
    let scrambled = index.wrapping_add(1).wrapping_mul(ID_FACTOR) & ID_BITS;
    out.extend_from_slice(ID_MARK);
    for digit in (0..ID_DIGITS).rev() {
        out.push(b"0123456789abcdef"[(scrambled >> (digit * 4)) as usize & 15]);
    }
}

/// The inverse of [`ID_FACTOR`] modulo 2^56, by Newton's method.
const fn inverse() -> u64 {
    let mut found = 1_u64;
    let mut round = 0;
    while round < 6 {
        found = found.wrapping_mul(2_u64.wrapping_sub(ID_FACTOR.wrapping_mul(found)));
        round += 1;
    }
    found & ID_BITS
}

/// The number of the line whose id follows [`ID_MARK`] at the start of `text`.
pub fn index_of(text: &[u8]) -> Option<u64> {
    let mut scrambled = 0_u64;
    for digit in text.get(..ID_DIGITS)? {
        scrambled = scrambled << 4 | u64::from((*digit as char).to_digit(16)?);
    }
    (scrambled.wrapping_mul(const { inverse() }) & ID_BITS).checked_sub(1)
}

/// Hours, minutes, seconds and milliseconds of a line's instant.
fn clock(index: u64) -> (u64, u64, u64, u64) {
    let ms = index * STEP_MS;
    (ms / 3_600_000 % 24, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000)
}

/// A line's time of day, `HH:MM:SS`.
pub fn time_of_day(index: u64) -> String {
    let (h, m, s, _) = clock(index);
    format!("{h:02}:{m:02}:{s:02}")
}

/// An address that the harness's geo database knows.
fn address(dice: &mut Dice) -> String {
    format!("{}.{}.{}.{}", 1 + dice.below(223), dice.below(256), dice.below(256), 1 + dice.below(254))
}

fn message(dice: &mut Dice, kind: &str) -> String {
    let n = dice.below(1_000_000);
    match (dice.below(20), kind) {
        (0, _) => format!("customer wrote \\\"leave parcel {n} at the door\\\"\\nand closed the chat"),
        (1, _) => format!("Lieferung {n} nach Köln bestätigt, Größe geändert – façade n° 7"),
        (_, "transaction") => format!("payment for order {n} captured by the second gateway on retry"),
        (_, "error") => format!("upstream inventory-{n} closed the connection: error 104 at Stock::reserve"),
        (_, "security") => format!("login from new device, challenge {n} sent"),
        (_, "performance") => format!("page rendered: {n} bytes of markup"),
        _ => format!("visitor opened product {n} and two others"),
    }
}

/// Appends line `index` without its end.
pub fn line(format: Format, index: u64, out: &mut Vec<u8>) {
    let mut dice = Dice::of(index);
    let level = dice.one(LEVELS);
    let (h, m, s, ms) = clock(index);
    match format {
        Format::Json => {
            let kind = dice.one(KINDS);
            put(
                out,
                format_args!(
                    "{{\"@timestamp\":\"2026-11-21T{h:02}:{m:02}:{s:02}.{ms:03}Z\",\"type\":\"{kind}\",\"level\":\"{level}\""
                ),
            );
            put(
                out,
                format_args!(
                    ",\"message\":\"{}\",\"user_id\":\"u{}\",\"session_id\":\"",
                    message(&mut dice, kind),
                    dice.below(3_000_000)
                ),
            );
            id(index, out);
            put(
                out,
                format_args!(
                    "\",\"ip\":\"{}\",\"amount\":{}.{:02}",
                    address(&mut dice),
                    dice.below(2500),
                    dice.below(100)
                ),
            );
            put(
                out,
                format_args!(
                    ",\"currency\":\"{}\",\"country\":\"{}\"",
                    dice.one(CURRENCIES),
                    dice.one(COUNTRIES)
                ),
            );
            put(out, format_args!(",\"user_agent\":\"{}\"", dice.one(AGENTS)));
            put(
                out,
                format_args!(
                    ",\"url\":\"/api/v2/{}/{}?from=mail&p={}\"",
                    dice.one(AREAS),
                    dice.below(800_000),
                    dice.below(60)
                ),
            );
            put(
                out,
                format_args!(
                    ",\"status\":{},\"latency_ms\":{}.{}",
                    dice.one(STATUS),
                    dice.below(1200),
                    1 + dice.below(9)
                ),
            );
            put(out, format_args!(",\"tenant\":\"{}\"}}", dice.one(TENANTS)));
        }
        Format::Nginx => {
            let access = Access::of(index);
            put(
                out,
                format_args!(
                    "{} - {} [21/Nov/2026:{h:02}:{m:02}:{s:02} +0000] \"{} ",
                    access.ip, access.user, access.method
                ),
            );
            put(
                out,
                format_args!(
                    "{} HTTP/1.1\" {} {} \"{}\" \"{}\"",
                    access.path, access.status, access.bytes, access.referrer, access.agent
                ),
            );
        }
        Format::Syslog => {
            let entry = Entry::of(index);
            put(
                out,
                format_args!(
                    "<{}>1 2026-11-21T{h:02}:{m:02}:{s:02}.{ms:03}Z {} {} {} ",
                    entry.priority, entry.host, entry.app, entry.pid
                ),
            );
            put(
                out,
                format_args!(
                    "{} [shop@32473 tenant=\"{}\" session=\"{}\" ms=\"{}\"] {}",
                    entry.msgid, entry.tenant, entry.session, entry.ms, entry.message
                ),
            );
        }
    }
}

/// Writing into memory cannot fail.
fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("memory takes it");
}

fn id_text(index: u64) -> String {
    let mut text = Vec::new();
    id(index, &mut text);
    String::from_utf8(text).expect("digits")
}

/// What an access log line says.
pub struct Access {
    /// The client.
    pub ip: String,
    /// Who, or `-`.
    pub user: &'static str,
    /// The request's method.
    pub method: &'static str,
    /// The request's target; the id stands in it.
    pub path: String,
    /// The answer's status.
    pub status: u64,
    /// The answer's size.
    pub bytes: u64,
    /// Where the client came from.
    pub referrer: String,
    /// The client's program.
    pub agent: &'static str,
}

impl Access {
    /// What line `index` says.
    pub fn of(index: u64) -> Self {
        let mut dice = Dice::of(index ^ 0x6e67);
        Self {
            ip: address(&mut dice),
            user: if dice.below(5) == 0 { "nora" } else { "-" },
            method: dice.one(&["GET", "GET", "GET", "POST", "PUT"]),
            path: format!("/{}/{}?s={}", dice.one(AREAS), dice.below(8000), id_text(index)),
            status: dice.one(STATUS),
            bytes: dice.below(120_000),
            referrer: format!("https://shop/{}", dice.below(9000)),
            agent: dice.one(AGENTS),
        }
    }
}

/// What a syslog line says.
pub struct Entry {
    /// Facility times 8 plus severity.
    pub priority: u64,
    /// The sending host.
    pub host: String,
    /// The sending program.
    pub app: &'static str,
    /// Its process.
    pub pid: u64,
    /// The kind of message.
    pub msgid: String,
    /// Structured data: the shop.
    pub tenant: &'static str,
    /// Structured data: the id.
    pub session: String,
    /// Structured data: a duration.
    pub ms: u64,
    /// The text.
    pub message: String,
}

impl Entry {
    /// What line `index` says.
    pub fn of(index: u64) -> Self {
        let mut dice = Dice::of(index ^ 0x5424);
        Self {
            priority: dice.below(192),
            host: format!("web{:02}.shop.example", dice.below(60)),
            app: dice.one(&["checkout", "gateway", "search", "stock"]),
            pid: 200 + dice.below(32_000),
            msgid: format!("EV{}", dice.below(700)),
            tenant: dice.one(TENANTS),
            session: id_text(index),
            ms: dice.below(1200),
            message: format!(
                "reserved {} pieces of article {} in warehouse number 2 for a waiting order",
                1 + dice.below(9),
                dice.below(900_000)
            ),
        }
    }
}

/// The file of the first `lines` lines, made if it is not there, and its size in bytes.
pub fn file(scratch: &Path, format: Format, lines: u64) -> Result<(PathBuf, u64)> {
    // The name has a sample of the content in it: a file that another version made is not taken for this one's.
    let mut sample = Vec::new();
    (0..100).for_each(|index| line(format, index, &mut sample));
    let sample =
        sample.iter().fold(SEED, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let path = scratch.join("data").join(format!("{}-{lines}-{:08x}.log", format.name(), sample >> 32));
    if let Ok(found) = fs::metadata(&path) {
        return Ok((path, found.len()));
    }
    let partial = path.with_extension("partial");
    let bytes = write_file(&partial, lines, |index, out| line(format, index, out))?;
    fs::rename(&partial, &path)?;
    Ok((path, bytes))
}

/// Writes lines into a file; returns how many bytes they are.
pub fn write_file(path: &Path, lines: u64, line: impl Fn(u64, &mut Vec<u8>)) -> Result<u64> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(fail(format_args!("cannot make {}", folder.display())))?;
    }
    let file = File::create(path).map_err(fail(format_args!("cannot write {}", path.display())))?;
    let mut to = BufWriter::with_capacity(1 << 20, file);
    let (mut text, mut bytes) = (Vec::with_capacity(1024), 0);
    for index in 0..lines {
        text.clear();
        line(index, &mut text);
        text.push(b'\n');
        bytes += text.len() as u64;
        to.write_all(&text)?;
    }
    to.flush()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn an_id_says_its_number() {
        for index in [0, 1, 2, 1000, 123_456_789, (1 << 40) + 7] {
            let mut text = Vec::new();
            id(index, &mut text);
            assert_eq!(text.len(), 16);
            assert_eq!(index_of(&text[2..]), Some(index));
        }
        assert_eq!(index_of(b"00"), None);
    }

    #[test]
    fn lines_are_as_long_as_stated_and_hold_their_id_once() {
        let mut means = Vec::new();
        for (format, mean) in [(Format::Json, 451.0), (Format::Nginx, 201.0), (Format::Syslog, 215.0)] {
            let mut total = 0;
            for index in 0..20_000 {
                let mut text = Vec::new();
                line(format, index, &mut text);
                total += text.len() + 1;
                let marks: Vec<usize> = memchr::memmem::find_iter(&text, ID_MARK).collect();
                assert_eq!(marks.len(), 1);
                assert_eq!(index_of(&text[marks[0] + 2..]), Some(index));
            }
            means.push((format, total as f64 / 20_000.0, mean));
        }
        assert!(means.iter().all(|(_, found, mean)| (found - mean).abs() < 1.5), "{means:?}");
    }

    #[test]
    fn json_lines_have_15_keys_and_one_in_twenty_is_special() {
        let (mut escaped, mut foreign, mut debug, mut texts) = (0, 0, 0, HashSet::new());
        for index in 0..20_000 {
            let mut text = Vec::new();
            line(Format::Json, index, &mut text);
            escaped += usize::from(text.contains(&b'\\'));
            foreign += usize::from(!text.is_ascii());
            debug += usize::from(is_debug(index));
            let value: Value = serde_json::from_slice(&text).expect("JSON");
            assert_eq!(value.as_object().map(serde_json::Map::len), Some(15));
            assert_eq!(value["level"] == "debug", is_debug(index));
            texts.insert(text);
        }
        assert!((900..1100).contains(&escaped), "{escaped}");
        assert!((900..1100).contains(&foreign), "{foreign}");
        assert!((3800..4200).contains(&debug), "{debug}");
        assert_eq!(texts.len(), 20_000);
    }
}
