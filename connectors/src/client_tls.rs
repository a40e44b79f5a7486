//! TLS for whatever connects and speaks a protocol of its own over it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use logdrive_schemas::component::{ConfigError, Span};
use rustls_platform_verifier::Verifier;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// How the far end is checked, and how the client proves who it is.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// A PEM file of authorities to trust besides those of the system.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// A PEM file with the client's certificate and what leads from it to an authority.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// A PEM file with the key of `certificate`.
    #[serde(default)]
    pub key: Option<PathBuf>,
}

impl Tls {
    /// Reads the files.
    pub(crate) fn client(&self) -> Result<Arc<ClientConfig>, ConfigError> {
        let provider = Arc::new(default_provider());
        let extra = self.ca.as_deref().map(|path| certificates("tls.ca", path)).transpose()?;
        let verifier = Verifier::new_with_extra_roots(extra.unwrap_or_default(), Arc::clone(&provider))
            .map_err(|e| invalid(format!("`tls.ca` cannot be used: {e}")))?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| invalid(format!("TLS: {e}")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match (&self.certificate, &self.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(certificate), Some(path)) => {
                let key = PrivateKeyDer::from_pem_file(path)
                    .map_err(|e| invalid(format!("cannot read `tls.key` `{}`: {e}", path.display())))?;
                builder
                    .with_client_auth_cert(certificates("tls.certificate", certificate)?, key)
                    .map_err(|e| invalid(format!("`tls.certificate` and `tls.key` do not fit: {e}")))?
            }
            _ => return Err(invalid("`tls.certificate` and `tls.key` belong together")),
        };
        Ok(Arc::new(config))
    }
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|e| invalid(format!("cannot read `{key}` `{}`: {e}", path.display())))?;
    if found.is_empty() {
        return Err(invalid(format!("`{key}` `{}` holds no certificate", path.display())));
    }
    Ok(found)
}

fn invalid(message: impl Into<String>) -> ConfigError {
    ConfigError::new("config::invalid_value", Span::default(), message)
}
