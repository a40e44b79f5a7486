//! Numbered messages. A message is a function of the seed and its number, so whoever finds one can tell whether every
//! byte of it is as it was sent.

use std::fmt::Write as _;

/// Random numbers by a seed (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from `from` up to but not including `to`.
    pub(crate) fn range(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from)
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }
}

/// How a message travels. Its number tells: each channel counts for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    Tcp,
    Http,
    File,
}

impl Channel {
    pub(crate) const ALL: [Self; 3] = [Self::Tcp, Self::Http, Self::File];

    pub(crate) fn of(seq: u64) -> Self {
        Self::ALL[(seq % 3) as usize]
    }

    /// The number of this channel's `n`th message.
    pub(crate) fn seq(self, n: u64) -> u64 {
        n * 3 + self as u64
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::File => "file",
        }
    }
}

/// One in so many messages is no JSON.
const MALFORMED_ONE_IN: u64 = 29;

/// Whether a message is no JSON, and must become a reject.
pub(crate) fn is_malformed(seq: u64) -> bool {
    seq / 3 % MALFORMED_ONE_IN == 7
}

/// A message as it is sent, without the line's end. `seq`, `via` and `text` are declared in the pipeline's schema,
/// `amount` and `more` are not: they must travel untouched.
pub(crate) fn line(seed: u64, seq: u64) -> String {
    const WORDS: [&str; 8] =
        ["pay", "Größe", "\\\"quoted\\\"", "\\u00e9t\\u00e9", "\\n", "日本", "\\\\", "🙂"];
    let mut dice = Dice::new(seed ^ seq.wrapping_mul(0xD6E8_FEB8_6659_FD93));
    let via = Channel::of(seq).name();
    let mut line = format!("{{\"seq\":{seq},\"via\":\"{via}\",\"text\":\"");
    for _ in 0..dice.range(0, 24) {
        line.push_str(WORDS[dice.range(0, 8) as usize]);
        line.push(' ');
    }
    if is_malformed(seq) {
        // Cut off in the middle of the text, or a value missing.
        if dice.one_in(2) {
            line.push_str("\",\"amount\":}");
        }
        return line;
    }
    let (whole, part) = (dice.range(0, 10_000), dice.range(0, 10));
    write!(line, "\",\"amount\":{whole}.{part}0,\"more\":{{\"k\":[{part},null]}}}}").expect("to memory");
    line
}

/// The number in a message, wherever it was found.
pub(crate) fn seq_of(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("\"seq\":")?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}
