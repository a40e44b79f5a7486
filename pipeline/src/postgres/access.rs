//! Who may connect: passwords by SCRAM-SHA-256, of which only what verifies them is kept.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::Sink;
use pgwire::api::ClientInfo;
use pgwire::api::auth::driver::AuthOutcome;
use pgwire::api::auth::mechanism::AuthMechanismFactory;
use pgwire::api::auth::sasl::SaslMechanisms;
use pgwire::api::auth::sasl::scram::{
    SCRAM_ITERATIONS, ScramAuth, ScramSecret, gen_salted_password, random_nonce,
};
use pgwire::api::auth::{
    AuthDriver, AuthSource, DefaultServerParameterProvider, LoginInfo, Password, StartupHandler,
    protocol_negotiation, save_startup_parameters_to_metadata,
};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};

use super::connection::{Connection, Connections};
use super::error::fatal;
use crate::config::postgres::PostgresConfig;

/// What verifies a password.
#[derive(Clone)]
pub(crate) struct Verifier {
    salt: Vec<u8>,
    iterations: usize,
    stored_key: Vec<u8>,
    server_key: Vec<u8>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(***)")
    }
}

impl Verifier {
    /// What PostgreSQL keeps: `SCRAM-SHA-256$iterations:salt$stored key:server key`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (head, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let ((iterations, salt), (stored, server)) = (head.split_once(':')?, keys.split_once(':')?);
        let decode = |text: &str| STANDARD.decode(text).ok();
        let iterations = iterations.parse().ok().filter(|n| (1..=10_000_000).contains(n))?;
        let (salt, stored_key, server_key) = (decode(salt)?, decode(stored)?, decode(server)?);
        (stored_key.len() == 32 && server_key.len() == 32).then_some(Self {
            salt,
            iterations,
            stored_key,
            server_key,
        })
    }

    fn of(password: &str) -> Self {
        let salt = random_nonce().into_bytes();
        let salted = gen_salted_password(password, &salt, SCRAM_ITERATIONS);
        match ScramSecret::verifier_from_salted_password(salt, salted, SCRAM_ITERATIONS) {
            ScramSecret::Verifier { salt, iterations, stored_key, server_key } => {
                Self { salt, iterations, stored_key, server_key }
            }
            ScramSecret::SaltedPassword { .. } => unreachable!("it is made as a verifier"),
        }
    }

    fn secret(&self) -> ScramSecret {
        ScramSecret::Verifier {
            salt: self.salt.clone(),
            iterations: self.iterations,
            stored_key: self.stored_key.clone(),
            server_key: self.server_key.clone(),
        }
    }
}

/// Everybody with a password.
#[derive(Debug)]
struct Users {
    known: BTreeMap<String, Verifier>,
    /// That of nobody: who is not known fails like who has another password.
    nobody: Verifier,
}

#[allow(elided_lifetimes_in_paths, reason = "the macro tells apart whether the trait names them")]
#[async_trait]
impl AuthSource for Users {
    async fn get_password(&self, login: &LoginInfo) -> PgWireResult<Password> {
        Err(PgWireError::InvalidPassword(login.user().unwrap_or_default().to_owned()))
    }

    async fn get_scram_secret(&self, login: &LoginInfo) -> PgWireResult<(ScramSecret, Option<()>)> {
        let known = login.user().and_then(|user| self.known.get(user));
        Ok((known.unwrap_or(&self.nobody).secret(), None))
    }
}

/// Lets clients in.
pub(super) struct Access {
    driver: AuthDriver<Arc<DefaultServerParameterProvider>>,
    scram: Option<Arc<ScramAuth>>,
    wants_tls: bool,
    connections: Arc<Connections>,
}

impl Access {
    pub(super) fn new(config: &PostgresConfig, connections: &Arc<Connections>) -> Self {
        let mut parameters = DefaultServerParameterProvider::default();
        parameters.server_version = super::connection::server_version();
        parameters.is_superuser = false;
        parameters.time_zone = "UTC".to_owned();
        parameters.date_style = "ISO, MDY".to_owned();
        let scram = (!config.users.is_empty()).then(|| {
            let verifier = |text: &str| Verifier::parse(text).unwrap_or_else(|| Verifier::of(text));
            let known = config.users.iter().map(|(name, password)| (name.clone(), verifier(password.text())));
            let users = Users { known: known.collect(), nobody: Verifier::of(&random_nonce()) };
            Arc::new(ScramAuth::new(Arc::new(users)))
        });
        Self {
            driver: AuthDriver::new(Arc::new(parameters)),
            scram,
            wants_tls: config.tls.is_some(),
            connections: Arc::clone(connections),
        }
    }
}

/// Lets one client in, or says that there are too many.
pub(super) struct Door {
    pub(super) access: Arc<Access>,
    pub(super) is_full: bool,
}

#[async_trait]
impl StartupHandler for Door {
    async fn on_startup<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let access = &self.access;
        let outcome = match message {
            PgWireFrontendMessage::Startup(startup) => {
                protocol_negotiation(client, &startup).await?;
                save_startup_parameters_to_metadata(client, &startup);
                if self.is_full {
                    return Err(fatal("53300", "there are too many connections"));
                }
                if access.wants_tls && !client.is_secure() {
                    return Err(fatal("28000", "connections must be secured: use sslmode=require"));
                }
                let user = client.metadata().get("user").filter(|user| !user.is_empty());
                if user.is_none() {
                    return Err(PgWireError::UserNameRequired);
                }
                match &access.scram {
                    Some(scram) => {
                        let mechanisms = SaslMechanisms::new(vec![Arc::<ScramAuth>::clone(scram)]);
                        access.driver.begin_authentication(client, mechanisms.create()).await?
                    }
                    None => AuthOutcome::Authenticated { identity: None, final_message: None },
                }
            }
            PgWireFrontendMessage::PasswordMessageFamily(message) => {
                match access.driver.advance_authentication(client, message).await {
                    // The name that the mechanism knows is often empty.
                    Err(PgWireError::InvalidPassword(_)) => {
                        let user = client.metadata().get("user").cloned().unwrap_or_default();
                        return Err(PgWireError::InvalidPassword(user));
                    }
                    outcome => outcome?,
                }
            }
            _ => return Ok(()),
        };
        if let AuthOutcome::Authenticated { final_message, .. } = outcome {
            access.driver.complete_authentication(client, final_message).await?;
            let connection = Connection::new(client.metadata());
            let (pid, secret) = client.pid_and_secret_key();
            let seat = access.connections.seat(pid, &secret, &connection);
            client.session_extensions().insert(seat);
            client.session_extensions().insert(connection);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_postgresql_keeps_of_a_password_is_read() {
        let kept = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let verifier = Verifier::parse(kept).unwrap();
        assert_eq!((verifier.iterations, verifier.salt.as_slice()), (4096, &b"saltsaltsaltsalt"[..]));
        assert!(!format!("{verifier:?}").contains("salt"));
        for broken in ["", "pencil", "SCRAM-SHA-256$4096:x", "SCRAM-SHA-256$0:c2FsdA==$AAAA:AAAA", "md5abc"] {
            assert!(Verifier::parse(broken).is_none(), "{broken}");
        }
    }
}
