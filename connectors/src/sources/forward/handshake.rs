//! Who may send: `HELO`, `PING`, `PONG`, with a key that both sides know and that never travels.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use sha2::{Digest as _, Sha512};
use subtle::ConstantTimeEq as _;

use super::msgpack::{Head, Reader};
use crate::sinks::Secret;

/// Random bytes of a connection.
const NONCE_BYTES: usize = 16;

/// What peers must know.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) shared_key: Secret,
    /// Who may send, if not everybody who knows the key.
    pub(super) users: BTreeMap<String, Secret>,
    /// The name that this side gives itself.
    pub(super) hostname: String,
}

/// The handshake of one connection.
pub(super) struct Handshake<'a> {
    keys: &'a Keys,
    nonce: [u8; NONCE_BYTES],
    auth_salt: [u8; NONCE_BYTES],
}

impl<'a> Handshake<'a> {
    pub(super) fn new(keys: &'a Keys) -> Self {
        Self { keys, nonce: rand::random(), auth_salt: rand::random() }
    }

    /// What the peer is told first.
    pub(super) fn hello(&self) -> Vec<u8> {
        let mut out = vec![0x92];
        write_text(b"HELO", &mut out);
        out.push(0x83);
        write_text(b"nonce", &mut out);
        write_bytes(&self.nonce, &mut out);
        write_text(b"auth", &mut out);
        // Empty: no users are asked for.
        write_bytes(if self.keys.users.is_empty() { b"" } else { &self.auth_salt }, &mut out);
        write_text(b"keepalive", &mut out);
        out.push(0xC3);
        out
    }

    /// Reads `PING`: the answer, and whether the peer may send.
    pub(super) fn answer(&self, frame: &[u8]) -> Option<(Vec<u8>, bool)> {
        let mut reader = Reader(frame);
        if reader.head().ok()? != Head::Array(6) || reader.text().ok()? != b"PING" {
            return None;
        }
        let mut next = || reader.text().ok();
        let (hostname, salt, digest, user, password) = (next()?, next()?, next()?, next()?, next()?);
        let key = self.keys.shared_key.expose().as_bytes();
        let expected = digest_of(&[salt, hostname, &self.nonce, key]);
        let reason = if !bool::from(expected.as_bytes().ct_eq(digest)) {
            "shared_key mismatch"
        } else if !self.is_user(user, password) {
            "username/password mismatch"
        } else {
            ""
        };
        let mut out = vec![0x95];
        write_text(b"PONG", &mut out);
        out.push(if reason.is_empty() { 0xC3 } else { 0xC2 });
        write_text(reason.as_bytes(), &mut out);
        if reason.is_empty() {
            let own = self.keys.hostname.as_bytes();
            write_text(own, &mut out);
            write_text(digest_of(&[salt, own, &self.nonce, key]).as_bytes(), &mut out);
        } else {
            write_text(b"", &mut out);
            write_text(b"", &mut out);
        }
        Some((out, reason.is_empty()))
    }

    fn is_user(&self, user: &[u8], digest: &[u8]) -> bool {
        if self.keys.users.is_empty() {
            return true;
        }
        let known = std::str::from_utf8(user).ok().and_then(|user| self.keys.users.get(user));
        let password = known.map_or(&b""[..], |password| password.expose().as_bytes());
        let expected = digest_of(&[&self.auth_salt, user, password]);
        bool::from(expected.as_bytes().ct_eq(digest)) && known.is_some()
    }
}

/// SHA-512 in hexadecimal digits.
fn digest_of(parts: &[&[u8]]) -> String {
    let mut hash = Sha512::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().iter().fold(String::with_capacity(128), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}

/// The answer to a chunk.
pub(super) fn acknowledgement(chunk: &[u8]) -> Vec<u8> {
    let mut out = vec![0x81];
    write_text(b"ack", &mut out);
    write_text(chunk, &mut out);
    out
}

fn write_text(text: &[u8], out: &mut Vec<u8>) {
    match text.len() {
        len @ 0..32 => out.push(0xA0 | len as u8),
        len @ 32..256 => out.extend([0xD9, len as u8]),
        len => {
            out.push(0xDB);
            out.extend((len as u32).to_be_bytes());
        }
    }
    out.extend_from_slice(text);
}

fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend([0xC4, bytes.len() as u8]);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use rmpv::Value;
    use rmpv::decode::read_value;

    use super::*;

    fn ping(handshake: &Handshake<'_>, key: &str, user: &str, password: &str) -> (Value, bool) {
        let digest = digest_of(&[b"salt", b"client", &handshake.nonce, key.as_bytes()]);
        let password = digest_of(&[&handshake.auth_salt, user.as_bytes(), password.as_bytes()]);
        let ping = ["PING", "client", "salt", &digest, user, &password].map(Value::from);
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &Value::Array(ping.into())).unwrap();
        let (answer, ok) = handshake.answer(&bytes).unwrap();
        (read_value(&mut &*answer).unwrap(), ok)
    }

    #[test]
    fn who_knows_the_key_and_a_user_may_send() {
        let users = [("u".to_owned(), Secret::from("p"))].into();
        let keys = Keys { shared_key: "k".into(), users, hostname: "here".into() };
        let handshake = Handshake::new(&keys);
        let hello = read_value(&mut &*handshake.hello()).unwrap();
        assert_eq!(hello[0], Value::from("HELO"));
        assert_eq!(hello[1]["auth"].as_slice().unwrap(), handshake.auth_salt);
        let (pong, ok) = ping(&handshake, "k", "u", "p");
        assert!(ok && pong[1] == Value::from(true));
        let own = digest_of(&[b"salt", b"here", &handshake.nonce, b"k"]);
        assert_eq!((pong[3].as_str(), pong[4].as_str()), (Some("here"), Some(&*own)));
        for (key, user, password) in [("x", "u", "p"), ("k", "u", "x"), ("k", "x", "")] {
            let (pong, ok) = ping(&handshake, key, user, password);
            assert!(!ok && pong[1] == Value::from(false) && pong[4].as_str() == Some(""));
        }
        assert!(handshake.answer(b"\x93\xA1a\x01\x80").is_none());
    }

    #[test]
    fn acknowledgements_are_of_any_length() {
        for len in [0, 31, 32, 255, 256, 70_000] {
            let chunk = "c".repeat(len);
            let read = read_value(&mut &*acknowledgement(chunk.as_bytes())).unwrap();
            assert_eq!(read["ack"].as_str(), Some(&*chunk));
        }
    }
}
