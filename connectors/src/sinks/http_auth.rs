//! What every sink that speaks HTTP shares: credentials that never show, TLS, compressed bodies.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use logdrive_schemas::component::{ConfigError, Span};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client};
use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

/// Text that must not be shown: its `Debug` prints `***`.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the wire only.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A user and a password.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Basic {
    /// The user's name.
    pub user: String,
    /// The password; write it as `${NAME}` and set the environment variable.
    pub password: Secret,
}

/// Who the sink says it is. To an `http` address this travels in the clear.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Auth {
    /// An API key, as `Authorization: ApiKey …`. For Elasticsearch the encoded form, as its console shows it.
    ApiKey(Secret),
    /// A user and a password.
    Basic(Basic),
    /// A token, as `Authorization: Bearer …`.
    Bearer(Secret),
}

impl Auth {
    /// The value of the `Authorization` header, marked so that it is not logged.
    pub(crate) fn header(&self) -> Result<HeaderValue, ConfigError> {
        let text = match self {
            Self::ApiKey(key) => format!("ApiKey {}", key.expose()),
            Self::Basic(Basic { user, password }) => {
                format!("Basic {}", STANDARD.encode(format!("{user}:{}", password.expose())))
            }
            Self::Bearer(token) => format!("Bearer {}", token.expose()),
        };
        let mut value = HeaderValue::from_str(&text)
            .map_err(|_| invalid("`auth` has a character that a header cannot carry"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// How the far end of an `https` address is checked.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// A PEM file of authorities to trust besides those of the system.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Whether the certificate is checked. `false` lets anybody on the way read and change everything.
    #[serde(default = "yes")]
    pub verify: bool,
}

impl Default for Tls {
    fn default() -> Self {
        Self { ca: None, verify: true }
    }
}

impl Tls {
    /// The bytes of the `ca` file.
    pub(crate) fn ca_pem(&self) -> Result<Option<Vec<u8>>, ConfigError> {
        let Some(path) = &self.ca else { return Ok(None) };
        let pem = std::fs::read(path)
            .map_err(|error| invalid(format!("cannot read `tls.ca` `{}`: {error}", path.display())))?;
        Ok(Some(pem))
    }
}

/// A client that sends these headers, follows no redirects, and uses no proxy.
pub(crate) fn client(
    headers: HeaderMap,
    tls: &Tls,
    is_plain: bool,
    timeout: Duration,
) -> Result<Client, ConfigError> {
    let mut builder = Client::builder()
        .user_agent(concat!("logdrive/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .redirect(Policy::none())
        .no_proxy()
        .no_gzip()
        .timeout(timeout);
    // A machine without any certificates must still be able to speak plain HTTP.
    if !tls.verify || is_plain {
        builder = builder.danger_accept_invalid_certs(true);
    } else if let Some(pem) = tls.ca_pem()? {
        let certificates = Certificate::from_pem_bundle(&pem)
            .map_err(|error| invalid(format!("`tls.ca` is no certificate: {error}")))?;
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|error| invalid(format!("cannot set up TLS: {error}")))
}

/// Adds headers that the configuration names; their values are not logged.
pub(crate) fn add_headers(
    named: &BTreeMap<String, Secret>,
    auth: Option<&Auth>,
    headers: &mut HeaderMap,
) -> Result<(), ConfigError> {
    for (name, value) in named {
        let parsed = HeaderName::from_bytes(name.as_bytes());
        let parsed = parsed.map_err(|_| invalid(format!("`{name}` in `headers` is no header name")))?;
        let mut value = HeaderValue::from_str(value.expose())
            .map_err(|_| invalid(format!("the value of `{name}` in `headers` is none for a header")))?;
        value.set_sensitive(true);
        headers.insert(parsed, value);
    }
    if let Some(auth) = auth {
        headers.insert(AUTHORIZATION, auth.header()?);
    }
    Ok(())
}

/// The default of a key that is on.
pub(crate) fn yes() -> bool {
    true
}

/// A value that is wrong in a way serde cannot see.
pub(crate) fn invalid(message: impl Into<String>) -> ConfigError {
    ConfigError::new("config::invalid_value", Span::default(), message)
}

/// Reads an `http` or `https` address. Credentials in it would end up in logs, so they are refused.
pub(crate) fn parse_url(text: &str) -> Result<Url, ConfigError> {
    let url = Url::parse(text).map_err(|error| invalid(format!("`endpoint` is no address: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(invalid("`endpoint` must begin with `http://` or `https://` and name a host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid("`endpoint` holds credentials, which belong under `auth`"));
    }
    Ok(url)
}

/// The same for an address that others are joined to: its path ends with a slash.
pub(crate) fn parse_base_url(text: &str) -> Result<Url, ConfigError> {
    let mut url = parse_url(text)?;
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

/// Compresses for the wire: level 1 takes most of what there is to gain from JSON, at little CPU.
pub(crate) fn gzip<'a>(parts: impl Iterator<Item = &'a [u8]>, size_hint: usize) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(size_hint / 4), Compression::new(1));
    for part in parts {
        encoder.write_all(part).expect("writing to memory cannot fail");
    }
    encoder.finish().expect("writing to memory cannot fail")
}

/// The seconds of a `Retry-After` header; dates are not read.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_show() {
        let password = Secret::from("hunter2");
        let auth = Auth::Basic(Basic { user: "u".into(), password });
        let header = auth.header().unwrap();
        assert_eq!(header.to_str().unwrap(), "Basic dTpodW50ZXIy");
        let shown = format!("{auth:?} {header:?} {:?}", Auth::Bearer("tok3n".into()));
        assert!(
            !shown.contains("hunter2") && !shown.contains("dTpodW") && !shown.contains("tok3n"),
            "{shown}"
        );
        assert!(shown.contains("***"));
    }

    #[test]
    fn addresses_with_credentials_are_refused() {
        assert!(parse_url("http://localhost:9200").is_ok());
        assert!(parse_url("http://u:p@localhost:9200").is_err());
        assert!(parse_url("ftp://localhost").is_err());
        assert!(parse_url("localhost:9200").is_err());
    }
}
