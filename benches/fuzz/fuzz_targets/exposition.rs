//! Any text as what a target of Prometheus exposes, and as a line of StatsD: nothing panics, a sample has a name, and no
//! label holds what its line does not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use logdrive_connectors::prometheus::exposition::{Family, Format, Line, line};
use logdrive_connectors::sources::statsd::line::parse;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for format in [Format::OpenMetrics, Format::Prometheus] {
        let mut family = Family::default();
        for text in text.split('\n') {
            let found = line(text, format);
            family.read(&found);
            if let Line::Sample(sample) = found {
                assert!(!sample.name.is_empty());
                let n_bytes: usize = sample.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
                assert!(n_bytes + sample.name.len() < text.len());
                std::hint::black_box(family.of(&sample.name));
            }
        }
    }
    for line in data.split(|byte| *byte == b'\n') {
        if let Some(found) = parse(line) {
            assert!(!found.name.is_empty() && !found.values.is_empty() && found.rate > 0.0);
        }
    }
});
