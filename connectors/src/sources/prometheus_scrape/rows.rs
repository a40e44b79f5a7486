//! From what a target exposes to documents.

use std::slice::Split;

use logdrive_schemas::MessageRange;

use crate::prometheus::exposition::{Family, Format, Line, Sample, line};
use crate::prometheus::{Head, MILLISECOND, sort_labels, write_row, write_value};

/// Documents are handed over in groups of about this size.
const GROUP_BYTES: usize = 4 << 20;
/// What of a line that cannot be read is kept.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Who is asked.
pub(super) struct Target {
    pub(super) job: String,
    pub(super) instance: String,
    pub(super) honor_labels: bool,
}

/// What a target exposed, as far as it is not read yet.
pub(super) struct Scrape<'a> {
    lines: Split<'a, u8, fn(&u8) -> bool>,
    family: Family<'a>,
    format: Format,
    target: &'a Target,
    nanos: u64,
    pub(super) n_samples: u64,
    /// Lines that could not be read.
    pub(super) n_malformed: u64,
}

impl<'a> Scrape<'a> {
    pub(super) fn new(text: &'a [u8], format: Format, target: &'a Target, nanos: u64) -> Self {
        let is_break: fn(&u8) -> bool = |byte| *byte == b'\n';
        let lines = text.split(is_break);
        Self { lines, family: Family::default(), format, target, nanos, n_samples: 0, n_malformed: 0 }
    }

    /// Adds documents until there are enough for a group; false once there is nothing left. Lines that cannot be read are
    /// added as they are.
    pub(super) fn fill(&mut self, rows: &mut Rows) -> bool {
        while rows.data.len() < GROUP_BYTES {
            let Some(bytes) = self.lines.next() else { return false };
            let parsed = std::str::from_utf8(bytes).map_or(Line::Malformed, |text| line(text, self.format));
            self.family.read(&parsed);
            let taken = match &parsed {
                // A longer one is nobody's metric.
                Line::Sample(_) if bytes.len() > LINE_BYTES_MAX => false,
                Line::Sample(sample) => self.sample(sample, rows),
                Line::Malformed => false,
                _ => continue,
            };
            if taken {
                self.n_samples += 1;
            } else {
                self.n_malformed += 1;
                rows.add(|out| out.extend_from_slice(&bytes[..bytes.len().min(LINE_BYTES_MAX)]));
            }
        }
        true
    }

    /// Adds a sample; false if it has a label twice.
    fn sample(&self, sample: &Sample<'_>, rows: &mut Rows) -> bool {
        let target = self.target;
        let exposes = |key: &str| sample.labels.iter().any(|(name, _)| name == key);
        let mut labels: Vec<(&str, &str)> = sample
            .labels
            .iter()
            .map(|(key, value)| {
                let key = match &**key {
                    "job" if !target.honor_labels => "exported_job",
                    "instance" if !target.honor_labels => "exported_instance",
                    key => key,
                };
                (key, &**value)
            })
            .collect();
        for (key, value) in [("job", &target.job), ("instance", &target.instance)] {
            if !target.honor_labels || !exposes(key) {
                labels.push((key, value));
            }
        }
        if !sort_labels(&mut labels) {
            return false;
        }
        let (kind, unit) = self.family.of(&sample.name);
        let head = Head { name: &sample.name, labels: &labels, kind, unit };
        let at = sample.timestamp.and_then(|millis| u64::try_from(millis).ok());
        let nanos = at.map_or(self.nanos, |millis| millis.saturating_mul(MILLISECOND));
        rows.add(|out| write_row(head, nanos, out, |object| write_value(sample.value, object)));
        true
    }
}

/// Documents as they are made.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) data: Vec<u8>,
    pub(super) messages: Vec<MessageRange>,
}

impl Rows {
    /// Adds a sample about the scrape itself.
    pub(super) fn own(&mut self, name: &str, value: f64, target: &Target, nanos: u64) {
        let labels = [("instance", target.instance.as_str()), ("job", target.job.as_str())];
        let head = Head { name, labels: &labels, kind: "gauge", unit: "" };
        self.add(|out| write_row(head, nanos, out, |object| write_value(value, object)));
    }

    fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.data.len();
        write(&mut self.data);
        let len = self.data.len() - start;
        self.messages.push(MessageRange { start: start as u32, len: len as u32 });
    }
}
