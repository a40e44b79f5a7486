//! Who may send over HTTP.

use std::fmt;

use base64::Engine;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use logdrive_schemas::component::{ConfigError, Span};
use schemars::JsonSchema;
use serde::Deserialize;
use subtle::ConstantTimeEq;

/// Credentials: any one of them lets a request in.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// The token of `Authorization: Bearer …`.
    #[serde(default)]
    pub bearer: Option<String>,
    /// `user:password` of `Authorization: Basic …`.
    #[serde(default)]
    pub basic: Option<String>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Auth(***)")
    }
}

/// The values of `Authorization` that are let in; none: everybody is.
#[derive(Clone, Default)]
pub(crate) struct Authorizations(Vec<String>);

impl Authorizations {
    pub(crate) fn of(auth: Option<&Auth>) -> Result<Self, ConfigError> {
        let Some(auth) = auth else { return Ok(Self::default()) };
        let bearer = auth.bearer.iter().map(|token| format!("Bearer {token}"));
        let encode = |pair: &String| base64::engine::general_purpose::STANDARD.encode(pair);
        let values: Vec<_> =
            bearer.chain(auth.basic.iter().map(|pair| format!("Basic {}", encode(pair)))).collect();
        if values.is_empty() {
            let message = "`auth` names neither `bearer` nor `basic`";
            return Err(ConfigError::new("config::invalid_value", Span::default(), message));
        }
        Ok(Self(values))
    }

    pub(crate) fn let_in(&self, headers: &HeaderMap) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let given = headers.get(AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
        // All are compared, each in constant time: how long it takes says nothing about how close a guess was.
        let matches = self.0.iter().map(|wanted| wanted.as_bytes().ct_eq(given).unwrap_u8());
        matches.fold(0, |any, one| any | one) == 1
    }
}
