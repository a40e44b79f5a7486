//! Requests signed as Amazon's services want it (Signature Version 4).

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{PayloadChecksumKind, SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use logdrive_schemas::component::ConfigError;
use opensearch::http::Url;
use opensearch::http::headers::{HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::error::BoxError;
use crate::sinks::Secret;
use crate::sinks::http_auth::invalid;

/// How requests to Amazon's OpenSearch Service are signed. Keys come from here or from the environment
/// (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`), which is read at the start; profiles and the
/// metadata services of machines and containers are not asked.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Aws {
    /// The region, such as `eu-central-1`.
    pub region: String,
    /// `es` for domains, `aoss` for serverless collections.
    #[serde(default = "Aws::service_default")]
    pub service: String,
    /// The id of the access key.
    #[serde(default)]
    pub access_key_id: Option<String>,
    /// The access key; write it as `${NAME}` and set the environment variable.
    #[serde(default)]
    pub secret_access_key: Option<Secret>,
    /// The token of temporary keys.
    #[serde(default)]
    pub session_token: Option<Secret>,
}

impl Aws {
    fn service_default() -> String {
        "es".into()
    }

    pub(super) fn signer(&self) -> Result<Signer, ConfigError> {
        let known = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let keys = match (&self.access_key_id, &self.secret_access_key) {
            (Some(id), Some(key)) => {
                let token = self.session_token.as_ref().map(|token| token.expose().to_owned());
                Some((id.clone(), key.expose().to_owned(), token))
            }
            (None, None) => known("AWS_ACCESS_KEY_ID")
                .zip(known("AWS_SECRET_ACCESS_KEY"))
                .map(|(id, key)| (id, key, known("AWS_SESSION_TOKEN"))),
            _ => None,
        };
        let (id, key, token) = keys.ok_or_else(|| {
            invalid("`aws` has no access key").with_help(
                "set `access_key_id` and `secret_access_key`, or the environment variables AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY",
            )
        })?;
        Ok(Signer {
            credentials: Credentials::new(id, key, token, None, "logdrive"),
            region: self.region.clone(),
            service: self.service.clone(),
        })
    }
}

/// Signs requests. Its `Debug` shows no key.
#[derive(Clone, Debug)]
pub(super) struct Signer {
    credentials: Credentials,
    region: String,
    service: String,
}

impl Signer {
    /// The headers that make a request acceptable, for some minutes.
    pub(super) fn headers(
        &self,
        method: &str,
        url: &Url,
        content: (&str, bool),
        body: Option<&Bytes>,
    ) -> Result<HeaderMap, BoxError> {
        let mut settings = SigningSettings::default();
        // Serverless collections want the checksum; domains do not mind it.
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let identity = self.credentials.clone().into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(&self.service)
            // A clock before 1970 makes a signature that is refused, no panic.
            .time(SystemTime::now().max(SystemTime::UNIX_EPOCH + Duration::from_secs(1)))
            .settings(settings)
            .build()?
            .into();
        let (content_type, gzip) = content;
        let encoding = gzip.then_some(("content-encoding", "gzip"));
        let signed = [("content-type", content_type)].into_iter().chain(encoding);
        let body = SignableBody::Bytes(body.map(AsRef::as_ref).unwrap_or_default());
        let request = SignableRequest::new(method, url.as_str(), signed, body)?;
        let (instructions, _) = sign(request, &params)?.into_parts();
        let mut headers = HeaderMap::new();
        for (name, value) in instructions.headers() {
            let mut value = HeaderValue::from_str(value)?;
            value.set_sensitive(true);
            headers.insert(HeaderName::from_bytes(name.as_bytes())?, value);
        }
        Ok(headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aws(id: Option<&str>, key: Option<&str>) -> Aws {
        Aws {
            region: "eu-central-1".into(),
            service: "es".into(),
            access_key_id: id.map(Into::into),
            secret_access_key: key.map(Into::into),
            session_token: Some("t0ken".into()),
        }
    }

    #[test]
    fn a_signature_covers_address_body_and_time_and_shows_no_key() {
        let signer = aws(Some("AKID"), Some("s3cret")).signer().unwrap();
        let url = Url::parse("https://search.example.com/_bulk?filter_path=a%2Cb").unwrap();
        let content = ("application/x-ndjson", true);
        let of = |body: &'static str| signer.headers("POST", &url, content, Some(&body.into())).unwrap();
        let (one, two) = (of("one"), of("two"));
        let text = one["authorization"].to_str().unwrap();
        assert!(text.starts_with("AWS4-HMAC-SHA256 Credential=AKID/"), "{text}");
        assert!(text.contains("/eu-central-1/es/aws4_request"), "{text}");
        let names = "SignedHeaders=content-encoding;content-type;host;x-amz-content-sha256;x-amz-date;\
                     x-amz-security-token";
        assert!(text.contains(names), "{text}");
        assert_ne!(one["x-amz-content-sha256"], two["x-amz-content-sha256"]);
        assert_eq!(one["x-amz-security-token"], "t0ken");
        let shown = format!("{signer:?} {one:?}");
        assert!(!shown.contains("s3cret") && !shown.contains("t0ken"), "{shown}");
    }

    #[test]
    fn half_a_key_is_refused() {
        assert!(aws(Some("AKID"), None).signer().is_err());
        assert!(aws(None, Some("s3cret")).signer().is_err());
    }
}
