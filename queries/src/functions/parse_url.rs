//! `parse_url`: the parts of a URL.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Builder, StringViewBuilder, StructArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::Result;
use url::Url;

use super::function::{Arguments, Constants, Function, Kind, Parameters, failed};

const PARTS: &[&str] = &["scheme", "host", "port", "path", "query", "fragment"];

/// `parse_url(text [, part])`.
pub(super) static PARSE_URL: Function = Function {
    name: "parse_url",
    signature: "parse_url(text [, part text]) → struct {scheme, host, port, path, query, fragment}, or the part as text",
    doc: "The parts of a URL as the WHATWG standard reads it (hosts in lower case and punycode). The port is the \
          scheme's own if none is written. A text that starts with `/` is taken as path, query and fragment. What is \
          not a URL gives null. User names and passwords are not shown.",
    example: ("parse_url('https://Shop.example/cart?id=7#top', 'host')", "shop.example"),
    parameters: Parameters { required: &[Kind::Text], optional: &[Kind::Text], more: None },
    returns: |arguments| if arguments == 1 { DataType::Struct(fields()) } else { DataType::Utf8View },
    check: |constants: &Constants<'_>| {
        constants.require(1, "the part")?;
        match constants.text(1) {
            Some(part) if !PARTS.contains(&part) => {
                Err(format!("`{part}` is not a part of a URL: {}", PARTS.join(", ")))
            }
            _ => Ok(()),
        }
    },
    evaluate: parse_url,
};

fn fields() -> Fields {
    let part = |name: &&str| {
        Field::new(*name, if *name == "port" { DataType::Int64 } else { DataType::Utf8View }, true)
    };
    PARTS.iter().map(part).collect()
}

/// A URL, or what of one a request line shows.
struct Parsed {
    url: Url,
    relative: bool,
}

impl Parsed {
    fn of(text: &str) -> Option<Self> {
        let text = text.trim();
        let relative = text.starts_with('/') && !text.starts_with("//");
        let url = if relative {
            // Any base will do: only what follows the host is shown.
            Url::parse(&format!("http://host{text}")).ok()?
        } else {
            Url::parse(text).ok()?
        };
        Some(Self { url, relative })
    }

    fn part(&self, part: &str) -> Option<&str> {
        match part {
            "scheme" if !self.relative => Some(self.url.scheme()),
            "host" if !self.relative => self.url.host_str(),
            "path" => Some(self.url.path()),
            "query" => self.url.query(),
            "fragment" => self.url.fragment(),
            _ => None,
        }
    }

    fn port(&self) -> Option<u16> {
        if self.relative { None } else { self.url.port_or_known_default() }
    }
}

fn parse_url(arguments: &Arguments<'_>) -> Result<ArrayRef> {
    let texts = arguments.text(0)?;
    if arguments.len() == 2 {
        let part = arguments.text(1)?;
        let mut column = StringViewBuilder::with_capacity(arguments.rows);
        for row in 0..arguments.rows {
            let parsed = texts.get(row).and_then(Parsed::of);
            match (parsed, part.get(row)) {
                (Some(parsed), Some("port")) => column.append_option(parsed.port().map(|p| p.to_string())),
                (Some(parsed), Some(part)) => column.append_option(parsed.part(part)),
                _ => column.append_null(),
            }
        }
        return Ok(Arc::new(column.finish()));
    }
    let parsed: Vec<Option<Parsed>> =
        (0..arguments.rows).map(|row| texts.get(row).and_then(Parsed::of)).collect();
    let columns = PARTS.iter().map(|part| -> ArrayRef {
        if *part == "port" {
            let mut column = Int64Builder::with_capacity(parsed.len());
            parsed.iter().for_each(|p| {
                column.append_option(p.as_ref().and_then(Parsed::port).map(i64::from));
            });
            return Arc::new(column.finish());
        }
        let mut column = StringViewBuilder::with_capacity(parsed.len());
        parsed.iter().for_each(|p| column.append_option(p.as_ref().and_then(|p| p.part(part))));
        Arc::new(column.finish())
    });
    let nulls = NullBuffer::from_iter(parsed.iter().map(Option::is_some));
    let array = StructArray::try_new(fields(), columns.collect(), Some(nulls))
        .map_err(|error| failed(error.to_string()))?;
    Ok(Arc::new(array))
}

#[cfg(test)]
mod tests {
    use crate::functions::testing::{compile_error, eval, eval_texts};

    #[test]
    fn parts() {
        let url = "https://user:secret@Bücher.example:8443/a%20b/../c?q=1&r=2#frag";
        for (part, expected) in [
            ("scheme", "https"),
            ("host", "xn--bcher-kva.example"),
            ("port", "8443"),
            ("path", "/c"),
            ("query", "q=1&r=2"),
            ("fragment", "frag"),
        ] {
            assert_eq!(eval(&format!("parse_url('{url}', '{part}')")), expected, "{part}");
        }
        assert_eq!(eval("parse_url('http://[::1]/', 'host')"), "[::1]");
        assert_eq!(eval("parse_url('https://a.b', 'port')"), "443");
        assert_eq!(eval("parse_url('/cart?id=7', 'query')"), "id=7");
        assert_eq!(eval("parse_url('/cart?id=7', 'host')"), "null");
        assert_eq!(eval("parse_url('not a url', 'host')"), "null");
        assert_eq!(eval("parse_url(NULL, 'host')"), "null");
    }

    #[test]
    fn as_a_struct() {
        let texts = ["https://a.b/p?q", "nonsense"];
        assert_eq!(eval_texts("parse_url(text)['host']", &texts), ["a.b", "null"]);
        assert_eq!(eval_texts("parse_url(text)['port'] + 1", &texts), ["444", "null"]);
        assert_eq!(eval_texts("parse_url(text) IS NULL", &texts), ["false", "true"]);
    }

    #[test]
    fn an_unknown_part_does_not_compile() {
        assert!(compile_error("parse_url(text, 'hots')").message.contains("`hots` is not a part of a URL"));
        assert!(compile_error("parse_url(text, text)").message.contains("must be a constant"));
    }
}
