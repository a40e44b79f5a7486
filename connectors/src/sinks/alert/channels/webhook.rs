//! A POST of our own form, signed as [Standard Webhooks](https://www.standardwebhooks.com) says.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use logdrive_schemas::component::ConfigError;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::Sha256;

use super::http::{Poster, address, json as json_headers};
use super::{Channel, Notice, Undelivered, yes};
use crate::sinks::http_auth::{Auth, Secret, Tls, invalid};

/// Posts each alert as a JSON object with `id`, `status` (`firing` or `resolved`), `severity`, `title`, `body`, `labels`,
/// `starts_at`, `updated_at`, `ends_at`, `count` and the newest `findings`.
///
/// With `secret` a request is signed as Standard Webhooks says: `webhook-id` (the same when a delivery is repeated),
/// `webhook-timestamp` (seconds), and `webhook-signature`, `v1,` and the base64 of HMAC-SHA256 of
/// `ID.TIMESTAMP.BODY`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// Where to post to; may be a secret.
    pub url: Secret,
    /// The key of signatures: `whsec_` and base64, or any text. Write it as `${NAME}` and set the environment variable.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// Headers to send besides. Their values are not shown in logs.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// Who the sink says it is.
    #[serde(default)]
    pub auth: Option<Auth>,
    /// How the certificate of an `https` address is checked.
    #[serde(default)]
    pub tls: Tls,
    /// Whether it is told of the end.
    #[serde(default = "yes")]
    pub send_resolved: bool,
}

impl Webhook {
    pub(super) fn build(&self, timeout: Duration) -> Result<Box<dyn Channel>, ConfigError> {
        let url = address("url", self.url.expose())?;
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let parsed = HeaderName::from_bytes(name.as_bytes());
            let parsed = parsed.map_err(|_| invalid(format!("`{name}` in `headers` is no header name")))?;
            let mut value = HeaderValue::from_str(value.expose())
                .map_err(|_| invalid(format!("the value of `{name}` in `headers` is none for a header")))?;
            value.set_sensitive(true);
            headers.insert(parsed, value);
        }
        if let Some(auth) = &self.auth {
            headers.insert(AUTHORIZATION, auth.header()?);
        }
        let key = self.secret.as_ref().map(key).transpose()?;
        Ok(Box::new(Hook { poster: Poster::new(url, headers, &self.tls, timeout)?, key }))
    }
}

fn key(secret: &Secret) -> Result<Vec<u8>, ConfigError> {
    let key = match secret.expose().strip_prefix("whsec_") {
        Some(encoded) => {
            STANDARD.decode(encoded).map_err(|_| invalid("`secret` is no base64 behind `whsec_`"))?
        }
        None => secret.expose().as_bytes().to_vec(),
    };
    if key.is_empty() { Err(invalid("`secret` is empty")) } else { Ok(key) }
}

struct Hook {
    poster: Poster,
    key: Option<Vec<u8>>,
}

#[async_trait]
impl Channel for Hook {
    async fn deliver(&mut self, notice: &Notice) -> Result<(), Undelivered> {
        let body = body(notice).to_string();
        let id = notice.delivery_id();
        let mut headers = json_headers();
        headers.extend(header("webhook-id", &id));
        if let Some(key) = &self.key {
            let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            headers.extend(header("webhook-timestamp", &seconds.to_string()));
            headers.extend(header("webhook-signature", &signature(key, &id, seconds, &body)));
        }
        self.poster.post(headers, body).await
    }
}

fn header(name: &'static str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    Some((HeaderName::from_static(name), HeaderValue::from_str(value).ok()?))
}

fn signature(key: &[u8], id: &str, seconds: u64, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(format!("{id}.{seconds}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

fn body(notice: &Notice) -> Value {
    json!({
        "id": notice.alert,
        "sink": notice.sink,
        "status": notice.status(),
        "severity": notice.severity,
        "title": notice.title,
        "body": notice.body,
        "labels": notice.labels,
        "starts_at": notice.starts_at.to_string(),
        "updated_at": notice.updated_at.to_string(),
        "ends_at": notice.ends_at.map(|ends| ends.to_string()),
        "count": notice.n_findings,
        "findings": notice.findings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's reference libraries.
    #[test]
    fn signatures_are_those_of_the_specification() {
        let key = key(&Secret::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")).unwrap();
        let body = r#"{"test": 2432232314}"#;
        let signed = signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
