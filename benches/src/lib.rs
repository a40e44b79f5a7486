//! What the benches share: a seeded generator of e-commerce lines, and chunks made of them.

pub mod kernels;

use std::fmt::Write as _;

use arrow::buffer::Buffer;
use logdrive_schemas::{Chunk, FieldType, MessageRange, Partition, RowSchema};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Makes JSON lines as a shop writes them: about 450 bytes, always the same keys in the same order, a nested object, an
/// array, one string in fifty with an escape. The same seed gives the same lines.
#[derive(Debug)]
pub struct Lines {
    rng: SmallRng,
    millis: i64,
}

impl Lines {
    /// The lines of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { rng: SmallRng::seed_from_u64(seed), millis: 1_767_225_600_000 }
    }

    /// Appends the next line to `out`, without a line break.
    pub fn write(&mut self, out: &mut String) {
        const LEVELS: &[&str] = &["DEBUG", "INFO", "INFO", "INFO", "WARN", "ERROR"];
        const TYPES: &[&str] = &["transaction", "behavior", "performance", "error"];
        const METHODS: &[&str] = &["card", "paypal", "invoice", "bank_transfer"];
        const COUNTRIES: &[&str] = &["DE", "FR", "US", "GB", "JP", "BR"];
        let rng = &mut self.rng;
        self.millis += rng.random_range(0..20);
        let (second, milli) = (self.millis / 1000 % 86_400, self.millis % 1000);
        let pick = |rng: &mut SmallRng, of: &[&'static str]| of[rng.random_range(0..of.len())];
        let note = if rng.random_range(0..50) == 0 { "gift \\\"wrapped\\\"" } else { "checkout completed" };
        write!(
            out,
            concat!(
                r#"{{"@timestamp":"2026-01-01T{:02}:{:02}:{:02}.{:03}Z","level":"{}","type":"{}","#,
                r#""tenant":"shop-{:03}","service":"checkout-api","trace_id":"{:032x}","user_id":"u-{:07}","#,
                r#""session_id":"{:016x}","ip":"{}.{}.{}.{}","card_id":"card-{:08x}","amount":{}.{:02},"currency":"EUR","#,
                r#""items":{},"latency_ms":{}.{},"payment":{{"method":"{}","country":"{}","approved":{}}},"#,
                r#""tags":["web","eu-{}"],"message":"{note}"}}"#
            ),
            second / 3600,
            second / 60 % 60,
            second % 60,
            milli,
            pick(rng, LEVELS),
            pick(rng, TYPES),
            rng.random_range(0..200),
            rng.random::<u128>(),
            rng.random_range(0..10_000_000),
            rng.random::<u64>(),
            rng.random_range(1..224),
            rng.random::<u8>(),
            rng.random::<u8>(),
            rng.random::<u8>(),
            rng.random::<u32>(),
            rng.random_range(1..2_000),
            rng.random_range(0..100),
            rng.random_range(1..20),
            rng.random_range(1..900),
            rng.random_range(0..10),
            pick(rng, METHODS),
            pick(rng, COUNTRIES),
            rng.random_bool(0.95),
            rng.random_range(1..4),
            note = note,
        )
        .expect("writing to a string cannot fail");
    }

    /// The next `n_lines` lines as one chunk, a line break between them.
    ///
    /// # Panics
    /// If they exceed 4 GiB.
    #[must_use]
    pub fn chunk(&mut self, n_lines: usize) -> Chunk {
        let mut text = String::with_capacity(n_lines * 460);
        let mut messages = Vec::with_capacity(n_lines);
        for _ in 0..n_lines {
            let start = text.len();
            self.write(&mut text);
            messages.push(MessageRange {
                start: u32::try_from(start).expect("a chunk below 4 GiB"),
                len: u32::try_from(text.len() - start).expect("a chunk below 4 GiB"),
            });
            text.push('\n');
        }
        Chunk {
            source: "bench".into(),
            partition: Partition(0),
            data: Buffer::from_vec(text.into_bytes()),
            offsets: (0..n_lines as u64).collect(),
            next_offset: n_lines as u64,
            messages,
            received_at: self.millis * 1000,
            peer: None,
            attributes: None,
        }
    }

    /// Fifteen fields of the lines, of every common type.
    #[must_use]
    pub fn schema() -> RowSchema {
        let string = |name: &str| (name.to_owned(), FieldType::String);
        RowSchema::of_fields(vec![
            ("@timestamp".into(), FieldType::Timestamp),
            string("level"),
            string("type"),
            string("tenant"),
            string("service"),
            string("trace_id"),
            string("user_id"),
            string("session_id"),
            ("ip".into(), FieldType::Ip),
            string("card_id"),
            ("amount".into(), FieldType::Decimal(12, 2)),
            string("currency"),
            ("items".into(), FieldType::Int64),
            ("latency_ms".into(), FieldType::Float64),
            (
                "payment".into(),
                FieldType::Object(vec![string("method"), ("approved".into(), FieldType::Boolean)]),
            ),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_of_the_usual_size_and_repeatable() {
        let chunk = Lines::new(1).chunk(1_000);
        let mean = chunk.data.len() / 1_000;
        assert!((430..470).contains(&mean), "{mean} bytes a line");
        assert_eq!(chunk.data, Lines::new(1).chunk(1_000).data);
        assert!(serde_json::from_slice::<serde_json::Value>(chunk.message(0)).is_ok());
    }
}
