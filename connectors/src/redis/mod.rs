//! What the source and the sink `redis` share: how a server is reached, and how its errors are read.

use std::path::PathBuf;
use std::sync::Once;
use std::time::Duration;

use logdrive_schemas::component::{ConfigError, Span};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo as _, RedisError,
    RedisResult, TlsCertificates,
};
use schemars::JsonSchema;
use serde::Deserialize;
use socket2::TcpKeepalive;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;

use crate::error::ConnectorError;
use crate::sinks::Secret;

/// A server that does not answer a connection for so long is not there.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// How the server of a `rediss` address is checked, and how the client proves who it is.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// A PEM file of authorities to trust instead of those of the system.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// A PEM file with the client's certificate.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// A PEM file with the key of `certificate`.
    #[serde(default)]
    pub key: Option<PathBuf>,
}

/// A value that is wrong in a way serde cannot see.
pub(crate) fn invalid(message: impl Into<String>) -> ConfigError {
    ConfigError::new("config::invalid_value", Span::default(), message)
}

/// A client for the server at `endpoint`; connects to nothing.
pub(crate) fn client(
    endpoint: &str,
    username: Option<&str>,
    password: Option<&Secret>,
    tls: Option<&Tls>,
) -> Result<Client, ConfigError> {
    let wrong = || {
        invalid(format!("`{endpoint}` is no address of a server, write it like `redis://localhost:6379/0`"))
    };
    if endpoint.contains('@') {
        return Err(invalid("the address holds credentials, which belong under `username` and `password`"));
    }
    let info = endpoint.into_connection_info().map_err(|_| wrong())?;
    let secured = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
    if username.is_some() && password.is_none() {
        return Err(invalid("`username` needs a `password`"));
    }
    let mut login = info.redis_settings().clone();
    if let Some(password) = password {
        login = login.set_password(password.expose());
    }
    if let Some(username) = username {
        login = login.set_username(username);
    }
    // Who listens to channels says nothing, and would never notice that the server is gone.
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    let info = info.set_redis_settings(login).set_tcp_settings(tcp);
    let made = match (secured, tls) {
        (false, Some(_)) => return Err(invalid("`tls` needs an `endpoint` that begins with `rediss://`")),
        (false, None) => Client::open(info),
        (true, tls) => {
            static PROVIDER: Once = Once::new();
            PROVIDER.call_once(|| {
                if default_provider().install_default().is_err() {
                    tracing::debug!("Another provider of cryptography is in place already.");
                }
            });
            Client::build_with_tls(info, certificates(tls.unwrap_or(&Tls::default()))?)
        }
    };
    made.map_err(|error| invalid(format!("`endpoint` or `tls` cannot be used: {error}")))
}

fn certificates(tls: &Tls) -> Result<TlsCertificates, ConfigError> {
    let read = |key: &str, path: &PathBuf| {
        std::fs::read(path).map_err(|e| invalid(format!("cannot read `{key}` `{}`: {e}", path.display())))
    };
    let client_tls = match (&tls.certificate, &tls.key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(ClientTlsConfig {
            client_cert: read("tls.certificate", certificate)?,
            client_key: read("tls.key", key)?,
        }),
        _ => return Err(invalid("`tls.certificate` and `tls.key` belong together")),
    };
    let root_cert = tls.ca.as_ref().map(|path| read("tls.ca", path)).transpose()?;
    Ok(TlsCertificates { client_tls, root_cert })
}

/// A connection whose requests may take so long.
pub(crate) async fn connect(client: &Client, answer_max: Duration) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_MAX))
        .set_response_timeout(Some(answer_max));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// What the runtime is to do about an error. A server that is loading or full, or a login that is wrong, may be well
/// again: nothing is given up.
pub(crate) fn failed(endpoint: &str, error: RedisError) -> ConnectorError {
    match error.code() {
        Some("BUSY" | "LOADING" | "MASTERDOWN" | "OOM" | "READONLY" | "TRYAGAIN") => {
            tracing::warn!(endpoint, %error, "Redis asks for time.");
            ConnectorError::Busy { endpoint: endpoint.to_owned(), after: None }
        }
        _ => ConnectorError::disconnected(endpoint, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_logins_are_checked() {
        let password = Secret::from("p");
        let made = |endpoint: &str, user, password| client(endpoint, user, password, None).is_ok();
        assert!(made("redis://localhost", None, None));
        assert!(made("redis://localhost:6379/3", Some("u"), Some(&password)));
        assert!(made("rediss://localhost", None, None));
        assert!(!made("http://localhost", None, None));
        assert!(!made("redis://u:p@localhost", None, None));
        assert!(!made("redis://localhost", Some("u"), None));
        assert!(client("redis://localhost", None, None, Some(&Tls::default())).is_err());
    }
}
