//! Hashes: `hmac_sha256` (to make identifiers unlinkable) and `sha256`.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringViewBuilder};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::function::{Arguments, Function, Kind, Parameters, Text, any};

/// `hmac_sha256(key, value)`.
pub(super) static HMAC_SHA256: Function = Function {
    name: "hmac_sha256",
    signature: "hmac_sha256(key text, value text) → text",
    doc: "The HMAC-SHA-256 of a value under a key, in lower-case hexadecimal (64 digits): the same value gives the \
          same pseudonym, and without the key nobody can tell which. Keep the key out of the file: \
          `hmac_sha256('${PSEUDONYM_KEY}', user_id)`.",
    example: (
        "hmac_sha256('Jefe', 'what do ya want for nothing?')",
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    ),
    parameters: Parameters { required: &[Kind::Text, Kind::Text], optional: &[], more: None },
    returns: |_| DataType::Utf8View,
    check: any,
    evaluate: hmac_sha256,
};

/// `sha256(value)`.
pub(super) static SHA256: Function = Function {
    name: "sha256",
    signature: "sha256(value text) → text",
    doc: "The SHA-256 digest of a text, in lower-case hexadecimal. To hide personal data use `hmac_sha256`: a plain \
          digest of an e-mail address or a card number is found by trying all of them.",
    example: ("sha256('abc')", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    parameters: Parameters { required: &[Kind::Text], optional: &[], more: None },
    returns: |_| DataType::Utf8View,
    check: any,
    evaluate: |arguments| {
        let values = arguments.text(0)?;
        Ok(hex_column(arguments.rows, |row| Some(Sha256::digest(values.get(row)?).into())))
    },
};

fn hmac_sha256(arguments: &Arguments<'_>) -> Result<ArrayRef> {
    let (keys, values) = (arguments.text(0)?, arguments.text(1)?);
    // The key schedule costs as much as a short message, so a constant key pays it once.
    let constant = match keys {
        Text::Constant(key) => key.map(|key| keyed(key.as_bytes())),
        Text::Column(_) => None,
    };
    Ok(hex_column(arguments.rows, |row| {
        let (key, value) = (keys.get(row)?, values.get(row)?);
        let mut mac = constant.clone().unwrap_or_else(|| keyed(key.as_bytes()));
        mac.update(value.as_bytes());
        Some(mac.finalize().into_bytes().into())
    }))
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of every length")
}

fn hex_column(rows: usize, digest: impl Fn(usize) -> Option<[u8; 32]>) -> ArrayRef {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut column = StringViewBuilder::with_capacity(rows);
    let mut text = String::with_capacity(64);
    for row in 0..rows {
        text.clear();
        match digest(row) {
            Some(digest) => {
                for byte in digest {
                    text.push(char::from(DIGITS[usize::from(byte >> 4)]));
                    text.push(char::from(DIGITS[usize::from(byte & 15)]));
                }
                column.append_value(&text);
            }
            None => column.append_null(),
        }
    }
    Arc::new(column.finish())
}

#[cfg(test)]
mod tests {
    use hmac::Mac;

    use crate::functions::testing::{eval, eval_texts, shared};

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }

    fn mac(key: &[u8], message: &[u8]) -> String {
        let mut mac = super::keyed(key);
        mac.update(message);
        hex(&mac.finalize().into_bytes())
    }

    #[test]
    fn rfc_4231() {
        let vectors: [(Vec<u8>, Vec<u8>, &str); 6] = [
            (vec![0x0b; 20], b"Hi There".to_vec(), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
            (
                b"Jefe".to_vec(),
                b"what do ya want for nothing?".to_vec(),
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (vec![0xaa; 20], vec![0xdd; 50], "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
            ((1..=25).collect(), vec![0xcd; 50], "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
            (
                vec![0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First".to_vec(),
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
            (
                vec![0xaa; 131],
                b"This is a test using a larger than block-size key and a larger than block-size data. The key \
                  needs to be hashed before being used by the HMAC algorithm."
                    .to_vec(),
                "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
            ),
        ];
        for (key, message, expected) in vectors {
            assert_eq!(mac(&key, &message), expected);
        }
    }

    #[test]
    fn wycheproof() {
        let Some(text) = shared("wycheproof", "wycheproof/testvectors_v1/hmac_sha256_test.json") else {
            return;
        };
        let file: serde_json::Value = serde_json::from_str(&text).unwrap();
        let (mut valid, mut invalid) = (0, 0);
        for group in file["testGroups"].as_array().unwrap() {
            for test in group["tests"].as_array().unwrap() {
                let field = |name: &str| test[name].as_str().unwrap();
                let found = mac(&unhex(field("key")), &unhex(field("msg"))).starts_with(field("tag"));
                match field("result") {
                    "invalid" => invalid += usize::from(!found),
                    _ => valid += usize::from(found),
                }
                assert_eq!(found, field("result") != "invalid", "{test}");
            }
        }
        assert!(valid > 50 && invalid > 50, "{valid} valid, {invalid} invalid");
    }

    #[test]
    fn constant_and_varying_keys_agree_and_nulls_stay() {
        let expected = mac(b"k", b"v");
        assert_eq!(eval_texts("hmac_sha256('k', text)", &["v"]), [expected.as_str()]);
        assert_eq!(eval_texts("hmac_sha256(text, 'v')", &["k"]), [expected.as_str()]);
        assert_eq!(eval_texts("hmac_sha256(text, NULL)", &["k"]), ["null"]);
        assert_eq!(eval("hmac_sha256('k', 12345)"), mac(b"k", b"12345"));
        assert_eq!(eval("sha256(NULL)"), "null");
    }
}
