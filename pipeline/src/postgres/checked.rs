//! Only whole and well-formed messages reach the protocol's library, which would panic on others. It reads from here as
//! from a connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The largest message; a statement has at most 64 KiB, and parameters may have some more.
const MESSAGE_MAX: usize = 4 << 20;
/// The largest first message.
const STARTUP_MAX: usize = 10_000;
const PROTOCOL: u16 = 3;
const CANCEL: u32 = 80_877_102;

/// A connection, with its messages looked at before they are read.
pub(super) struct Checked<S> {
    stream: S,
    /// What has come and is not passed on.
    received: BytesMut,
    /// How much of it is whole messages.
    n_checked: usize,
    expects: Expects,
}

/// What the next message must be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    Startup,
    /// With how many passwords were seen.
    Typed(u8),
}

impl<S> Checked<S> {
    /// `first` was read already.
    pub(super) fn new(stream: S, first: &[u8]) -> Self {
        Self { stream, received: BytesMut::from(first), n_checked: 0, expects: Expects::Startup }
    }

    /// Looks at what has come.
    fn check(&mut self) -> io::Result<()> {
        loop {
            let rest = &self.received[self.n_checked..];
            let Some(length) = length(rest, self.expects)? else { return Ok(()) };
            let Some(message) = rest.get(..length) else { return Ok(()) };
            self.expects =
                expected_after(message, self.expects).ok_or_else(|| malformed("a message is malformed"))?;
            self.n_checked += length;
        }
    }
}

fn malformed(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// How long the message is that begins here, as soon as that is known.
fn length(rest: &[u8], expects: Expects) -> io::Result<Option<usize>> {
    let (offset, max) = match expects {
        Expects::Startup => (0, STARTUP_MAX),
        Expects::Typed(_) => (1, MESSAGE_MAX),
    };
    let Some(bytes) = rest.get(offset..offset + 4) else { return Ok(None) };
    let length = bytes.iter().fold(0usize, |value, byte| value << 8 | usize::from(*byte));
    if length < 4 || length > max {
        return Err(malformed("the length of a message is out of range"));
    }
    Ok(Some(offset + length))
}

/// What comes after a message; nothing if it is malformed.
fn expected_after(message: &[u8], expects: Expects) -> Option<Expects> {
    match expects {
        Expects::Startup => {
            let mut body = Body(message.get(4..)?);
            let code = body.long()?;
            if code == CANCEL {
                // A process and a secret; nothing comes after it.
                return (12..=268).contains(&message.len().checked_sub(4)?).then_some(Expects::Startup);
            }
            if (code >> 16) as u16 != PROTOCOL {
                return None;
            }
            while body.0 != [0] {
                body.text()?;
                body.text()?;
            }
            Some(Expects::Typed(0))
        }
        Expects::Typed(n_passwords) => {
            let (kind, rest) = message.split_first()?;
            let body = Body(rest.get(4..)?);
            let is_well_formed = match kind {
                b'p' => return body.password(n_passwords).map(|()| Expects::Typed(n_passwords + 1)),
                b'Q' | b'f' => body.query(),
                b'P' => body.parse(),
                b'B' => body.bind(),
                b'D' | b'C' => body.target(),
                b'E' => body.execute(),
                b'S' | b'H' | b'X' | b'c' => body.0.is_empty().then_some(()),
                b'd' => Some(()),
                _ => None,
            };
            is_well_formed.map(|()| expects)
        }
    }
}

/// What is left of a message.
struct Body<'a>(&'a [u8]);

impl Body<'_> {
    fn skip(&mut self, n_bytes: usize) -> Option<()> {
        self.0 = self.0.get(n_bytes..)?;
        Some(())
    }

    fn short(&mut self) -> Option<usize> {
        let (two, rest) = self.0.split_first_chunk::<2>()?;
        self.0 = rest;
        Some(usize::from(u16::from_be_bytes(*two)))
    }

    fn long(&mut self) -> Option<u32> {
        let (four, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*four))
    }

    fn text(&mut self) -> Option<()> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        self.skip(end + 1)
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    /// A value behind its length; -1 stands for none.
    fn value(&mut self) -> Option<()> {
        match self.long()?.cast_signed() {
            -1 => Some(()),
            length => self.skip(usize::try_from(length).ok()?),
        }
    }

    fn query(mut self) -> Option<()> {
        self.text()?;
        self.end()
    }

    fn parse(mut self) -> Option<()> {
        self.text()?;
        self.text()?;
        let n_types = self.short()?;
        self.skip(4 * n_types)?;
        self.end()
    }

    fn bind(mut self) -> Option<()> {
        self.text()?;
        self.text()?;
        let n_formats = self.short()?;
        self.skip(2 * n_formats)?;
        for _ in 0..self.short()? {
            self.value()?;
        }
        let n_formats = self.short()?;
        self.skip(2 * n_formats)?;
        self.end()
    }

    fn target(mut self) -> Option<()> {
        let kind = *self.0.first()?;
        self.skip(1)?;
        self.text()?;
        self.end()?;
        matches!(kind, b'S' | b'P').then_some(())
    }

    fn execute(mut self) -> Option<()> {
        self.text()?;
        self.long()?;
        self.end()
    }

    /// The first is the name of a mechanism and what it begins with, the second what it ends with.
    fn password(mut self, n_before: u8) -> Option<()> {
        match n_before {
            0 => {
                self.text()?;
                self.value()?;
                self.end()
            }
            1 => Some(()),
            _ => None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Checked<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check()?;
        while this.n_checked == 0 {
            let mut chunk = [0; 8 << 10];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.received.extend_from_slice(chunk.filled());
            this.check()?;
        }
        let n_bytes = this.n_checked.min(into.remaining());
        into.put_slice(&this.received[..n_bytes]);
        this.received.advance(n_bytes);
        this.n_checked -= n_bytes;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Checked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, from)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn startup(body: &[u8]) -> Vec<u8> {
        [&(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind][..], &startup(body)].concat()
    }

    async fn passes(bytes: &[u8]) -> Option<usize> {
        let (first, rest) = bytes.split_at(bytes.len().min(8));
        let mut out = Vec::new();
        Checked::new(rest, first).read_to_end(&mut out).await.ok()?;
        assert_eq!(out, &bytes[..out.len()]);
        Some(out.len())
    }

    #[tokio::test]
    async fn only_well_formed_messages_pass() {
        let hello = startup(b"\x00\x03\x00\x00user\x00ada\x00\x00");
        assert_eq!(passes(&hello).await, Some(hello.len()));
        for good in [
            message(b'Q', b"SELECT 1\x00"),
            message(b'P', b"\x00SELECT $1\x00\x00\x01\x00\x00\x00\x14"),
            message(b'B', b"\x00\x00\x00\x01\x00\x01\x00\x02\x00\x00\x00\x01x\xff\xff\xff\xff\x00\x00"),
            message(b'D', b"S\x00"),
            message(b'E', b"\x00\x00\x00\x00\x00"),
            message(b'S', b""),
            message(b'p', b"SCRAM-SHA-256\x00\x00\x00\x00\x01n"),
        ] {
            let whole = [hello.clone(), good.clone(), good[..good.len() - 1].to_vec()].concat();
            let expected = if good[0] == b'p' { None } else { Some(hello.len() + good.len()) };
            let found = passes(&whole).await;
            assert!(found == expected || found == Some(hello.len() + good.len()), "{good:?} {found:?}");
        }
        for bad in [
            message(b'Q', b"SELECT 1"),
            message(b'P', b"\x00SELECT $1\x00\x00\x02\x00\x00\x00\x14"),
            message(b'B', b"\x00\x00\x00\x00\x00\x01\x00\x00\x00\x09x\x00\x00"),
            message(b'B', b"\x00\x00\x00\x00\x00\x01\xff\xff\xff\xfe\x00\x00"),
            message(b'D', b"x\x00"),
            message(b'E', b"\x00"),
            message(b'S', b"x"),
            message(b'p', b"SCRAM-SHA-256\x00\x00\x00\x00\x02n"),
            message(b'?', b""),
            vec![b'Q', 0xff, 0xff, 0xff, 0xff],
            vec![b'Q', 0, 0, 0, 3],
        ] {
            assert_eq!(passes(&[hello.clone(), bad.clone()].concat()).await, None, "{bad:?}");
        }
        for bad in [
            startup(b"\x00\x03\x00\x00user\x00ada"),
            startup(b"\x00\x02\x00\x00\x00"),
            startup(b"\x04\xd2\x16\x2e\x00\x00"),
        ] {
            assert_eq!(passes(&bad).await, None, "{bad:?}");
        }
    }
}
