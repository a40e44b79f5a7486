//! RELP's frames: `TXNR COMMAND DATALEN[ DATA]\n`.

use crate::sources::net::collect::Collect;

/// A transaction's number has up to this many digits, and so has a length.
const DIGITS_MAX: usize = 9;
const COMMAND_BYTES_MAX: usize = 32;
/// Commands other than `syslog` need little to say.
const OTHER_BYTES_MAX: usize = 4 << 10;
/// No honest sender has a larger message.
const DATA_BYTES_MAX: usize = 64 << 20;

/// Why nothing that follows can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Not a frame.
    Malformed,
    /// It announces more than anybody sends.
    TooLong,
}

impl FrameError {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "malformed_frame",
            Self::TooLong => "frame_too_long",
        }
    }
}

/// A frame that is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message, which is with the others.
    Syslog {
        /// The transaction's number.
        txnr: u32,
    },
    /// Another command.
    Other {
        /// The transaction's number.
        txnr: u32,
        /// What it is called.
        command: String,
        /// What comes with it.
        data: Vec<u8>,
    },
}

/// Where in a frame the next byte belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Txnr,
    Command,
    Length,
    /// Behind a length of zero: the end, or a space before it.
    Empty,
    Data,
    End,
}

/// Reads frames, however they were cut into reads.
#[derive(Debug)]
pub struct Frames {
    part: Part,
    /// Digits of the number that has begun.
    n_digits: usize,
    txnr: u32,
    command: String,
    /// What is left of the data.
    left: usize,
    other: Vec<u8>,
}

impl Default for Frames {
    fn default() -> Self {
        Self { part: Part::Txnr, n_digits: 0, txnr: 0, command: String::new(), left: 0, other: Vec::new() }
    }
}

impl Frames {
    /// Takes from `input` what belongs to one frame; returns how much, and the frame if it is complete. Messages go to
    /// `into` as they come. To be called until all input is taken.
    ///
    /// # Errors
    /// If it is no frame.
    pub fn step(&mut self, input: &[u8], into: &mut Collect) -> Result<(usize, Option<Frame>), FrameError> {
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            if self.part == Part::Data {
                let now = self.left.min(input.len() - at);
                let data = &input[at..at + now];
                if self.command == "syslog" {
                    into.put(data);
                } else {
                    self.other.extend_from_slice(data);
                }
                at += now;
                self.left -= now;
                if self.left == 0 {
                    self.part = Part::End;
                }
                continue;
            }
            at += 1;
            if self.head(byte)? {
                return Ok((at, Some(self.end(into))));
            }
        }
        Ok((at, None))
    }

    /// Whether this byte ends the frame.
    fn head(&mut self, byte: u8) -> Result<bool, FrameError> {
        match (self.part, byte) {
            (Part::Txnr, b'0'..=b'9') => {
                let digit = self.digit(byte)?;
                self.txnr = self.txnr * 10 + u32::from(digit);
            }
            (Part::Txnr, b' ') if self.n_digits > 0 => self.part = Part::Command,
            (Part::Command, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-')
                if self.command.len() < COMMAND_BYTES_MAX =>
            {
                self.command.push(char::from(byte));
            }
            (Part::Command, b' ') if !self.command.is_empty() => {
                self.part = Part::Length;
                self.n_digits = 0;
            }
            (Part::Length, b'0'..=b'9') => {
                let digit = self.digit(byte)?;
                self.left = self.left * 10 + usize::from(digit);
            }
            (Part::Length, b' ' | b'\n') if self.n_digits == 0 => return Err(FrameError::Malformed),
            (Part::Length, b' ') if self.left == 0 => self.part = Part::Empty,
            (Part::Length, b' ') => {
                let max = if self.command == "syslog" { DATA_BYTES_MAX } else { OTHER_BYTES_MAX };
                if self.left > max {
                    return Err(FrameError::TooLong);
                }
                self.part = Part::Data;
            }
            (Part::Length, b'\n') if self.left == 0 => return Ok(true),
            (Part::Empty | Part::End, b'\n') => return Ok(true),
            _ => return Err(FrameError::Malformed),
        }
        Ok(false)
    }

    fn digit(&mut self, byte: u8) -> Result<u8, FrameError> {
        self.n_digits += 1;
        if self.n_digits > DIGITS_MAX { Err(FrameError::Malformed) } else { Ok(byte - b'0') }
    }

    fn end(&mut self, into: &mut Collect) -> Frame {
        let Self { txnr, command, other, .. } = std::mem::take(self);
        if command == "syslog" {
            into.trim();
            into.end_message();
            Frame::Syslog { txnr }
        } else {
            Frame::Other { txnr, command, data: other }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(stream: &[u8], cuts: &[usize]) -> (Vec<Frame>, Vec<Vec<u8>>, Option<FrameError>) {
        let (mut frames, mut into) = (Frames::default(), Collect::new(20));
        let (mut found, mut at, mut failed) = (Vec::new(), 0, None);
        'all: for cut in cuts.iter().copied().chain([stream.len()]) {
            while at < cut {
                match frames.step(&stream[at..cut], &mut into) {
                    Ok((n, frame)) => {
                        at += n;
                        found.extend(frame);
                    }
                    Err(error) => {
                        failed = Some(error);
                        break 'all;
                    }
                }
            }
        }
        let group = into.take();
        let of = |m: &logdrive_schemas::MessageRange| {
            group.data[m.start as usize..(m.start + m.len) as usize].to_vec()
        };
        (found, group.messages.iter().map(of).collect(), failed)
    }

    #[test]
    fn reads_what_librelp_sends() {
        let stream =
            b"1 open 14 relp_version=0\n2 syslog 7 <1>a\nbc\n3 syslog 4 <1>\n\n4 syslog 0 \n5 close 0\n";
        let (frames, messages, failed) = read(stream, &[]);
        assert_eq!(failed, None);
        assert_eq!(messages, [b"<1>a\nbc".to_vec(), b"<1>".to_vec()]);
        let open = Frame::Other { txnr: 1, command: "open".into(), data: b"relp_version=0".to_vec() };
        let close = Frame::Other { txnr: 5, command: "close".into(), data: Vec::new() };
        let syslog = |txnr| Frame::Syslog { txnr };
        assert_eq!(frames, [open, syslog(2), syslog(3), syslog(4), close]);
    }

    #[test]
    fn a_message_over_the_limit_is_its_prefix() {
        let (frames, messages, _) = read(b"1 syslog 25 0123456789012345678901234\n2 syslog 1 x\n", &[]);
        assert_eq!(messages, [b"01234567890123456789\xFF".to_vec(), b"x".to_vec()]);
        assert_eq!(frames.len(), 2);
    }

    #[test]
    fn hostile_frames_are_errors() {
        let malformed = [
            &b"x"[..],
            b" 1 ",
            b"1234567890 ",
            b"1  ",
            b"1 a!",
            b"1 syslog \n",
            b"1 syslog x",
            b"1 syslog 1\n",
            b"1 syslog 1234567890 ",
            b"1 syslog 1 ab",
            b"1 open 0 x",
            b"99999999999 a",
            b"1 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ",
        ];
        for stream in malformed {
            assert_eq!(read(stream, &[]).2, Some(FrameError::Malformed), "{}", stream.escape_ascii());
        }
        for stream in [&b"1 syslog 999999999 "[..], b"1 open 5000 "] {
            assert_eq!(read(stream, &[]).2, Some(FrameError::TooLong));
        }
    }

    proptest! {
        #[test]
        fn any_splitting_gives_the_same_frames(
            parts in proptest::collection::vec(prop_oneof![
                Just("1 open 2 ab\n".to_owned()), Just("3 close 0\n".to_owned()), Just("9".to_owned()),
                "[a-z]{0,30}".prop_map(|text| format!("7 syslog {} {text}\n", text.len())),
            ], 0..10),
            cuts in proptest::collection::vec(0usize..300, 0..20),
        ) {
            let stream = parts.concat().into_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(stream.len())).collect();
            cuts.sort_unstable();
            prop_assert_eq!(read(&stream, &[]), read(&stream, &cuts));
        }
    }
}
