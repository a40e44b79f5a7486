//! Tokens for SASL/OAUTHBEARER: from a file that somebody keeps fresh, or from an endpoint that gives them to whoever
//! shows a client's name and secret (RFC 6749, client credentials).
//!
//! librdkafka asks for a token when a client is made and again when four fifths of its life are over, in calls that must
//! not wait on the runtime: the endpoint is asked on a thread of its own.

use std::error::Error;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use logdrive_schemas::component::{ConfigError, duration};
use rdkafka::client::OAuthToken;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;
use url::form_urlencoded::Serializer;

use super::invalid;
use crate::sinks::http_auth::{self, Tls, parse_url};
use crate::sinks::{Basic, Secret};

/// A token whose life nobody says ends after so long.
const LIFE: Duration = Duration::from_mins(5);
/// The most that an endpoint may answer, and that a file may hold.
const ANSWER_MAX: usize = 1 << 20;
/// How long a new client waits for its first token.
const FIRST_MAX: Duration = Duration::from_secs(15);
/// How often it looks whether it has come.
const LOOK: Duration = Duration::from_millis(20);

/// Where tokens come from: either `token_file`, or `endpoint` with `client_id` and `client_secret`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OAuth {
    /// A file with a token, which is read again whenever one is needed.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// An endpoint that gives tokens for client credentials, such as `https://id.example/oauth2/token`. Proxies of the
    /// environment are not used.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The client's name.
    #[serde(default)]
    pub client_id: Option<String>,
    /// The client's secret; write it as `${NAME}` and set the environment variable.
    #[serde(default)]
    pub client_secret: Option<Secret>,
    /// What the token is to be good for.
    #[serde(default)]
    pub scope: Option<String>,
    /// How the certificate of an `https` endpoint is checked.
    #[serde(default)]
    pub tls: Tls,
    /// How long the endpoint may take to answer.
    #[serde(default = "OAuth::timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
}

impl OAuth {
    fn timeout_default() -> Duration {
        Duration::from_secs(10)
    }

    /// Reads certificates; opens no connection.
    pub(crate) fn build(&self) -> Result<Arc<Tokens>, ConfigError> {
        let made = match (&self.token_file, &self.endpoint, &self.client_id, &self.client_secret) {
            (Some(path), None, None, None) => Tokens::File(path.clone()),
            (None, Some(endpoint), Some(id), Some(secret)) => {
                let endpoint = Endpoint {
                    url: parse_url(endpoint)?,
                    client: Basic { user: id.clone(), password: secret.clone() },
                    scope: self.scope.clone(),
                    tls: self.tls.clone(),
                    timeout: self.timeout,
                };
                endpoint.client()?;
                Tokens::Endpoint(endpoint)
            }
            _ => {
                return Err(invalid(
                    "`oauth` wants either `token_file`, or `endpoint`, `client_id` and `client_secret`",
                ));
            }
        };
        Ok(Arc::new(made))
    }
}

/// Where tokens come from.
pub(crate) enum Tokens {
    File(PathBuf),
    Endpoint(Endpoint),
}

pub(crate) struct Endpoint {
    url: Url,
    client: Basic,
    scope: Option<String>,
    tls: Tls,
    timeout: Duration,
}

/// What an endpoint answers.
#[derive(Deserialize)]
struct Answer {
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

/// What a token says, if it is a JSON Web Token.
#[derive(Default, Deserialize)]
struct Claims {
    #[serde(default)]
    sub: Option<String>,
    /// In seconds since the Unix epoch.
    #[serde(default)]
    exp: Option<f64>,
}

type Failure = Box<dyn Error + Send + Sync>;

impl Endpoint {
    fn client(&self) -> Result<reqwest::Client, ConfigError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        http_auth::client(headers, &self.tls, self.url.scheme() == "http", self.timeout)
    }

    async fn ask(&self) -> Result<Answer, Failure> {
        let client = self.client().map_err(|error| error.message)?;
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if let Some(scope) = &self.scope {
            form.append_pair("scope", scope);
        }
        // The name and the secret are encoded twice over (RFC 6749, 2.3.1).
        let encoded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let request = client
            .post(self.url.clone())
            .basic_auth(encoded(&self.client.user), Some(encoded(self.client.password.expose())))
            .body(form.finish());
        let response = request.send().await?;
        let status = response.status().as_u16();
        let said = response.bytes().await?;
        if status != 200 || ANSWER_MAX < said.len() {
            return Err(format!("the token endpoint answers with status {status}").into());
        }
        serde_json::from_slice(&said).map_err(|_| "the token endpoint answers without a token".into())
    }
}

impl Tokens {
    /// A fresh one. Blocks.
    fn fetch(&self) -> Result<OAuthToken, Failure> {
        let (token, expires_in, user) = match self {
            Self::File(path) => {
                let read = std::fs::read_to_string(path);
                let text = read.map_err(|error| format!("cannot read `{}`: {error}", path.display()))?;
                let token = text.trim().to_owned();
                if token.is_empty() || ANSWER_MAX < token.len() {
                    return Err(format!("`{}` holds no token", path.display()).into());
                }
                (token, None, None)
            }
            Self::Endpoint(endpoint) => {
                // The thread that asks may belong to a runtime, and must not be one that drives it.
                let asked = std::thread::scope(|scope| {
                    let asking = scope.spawn(|| {
                        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                        runtime.block_on(endpoint.ask())
                    });
                    asking.join()
                });
                let answer = asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                (answer.access_token, answer.expires_in, Some(endpoint.client.user.clone()))
            }
        };
        let claims = claims(&token);
        let now = Timestamp::now().as_millisecond();
        let life = expires_in.map_or(LIFE, Duration::from_secs);
        let ends = now.saturating_add(i64::try_from(life.as_millis()).unwrap_or(i64::MAX));
        let lifetime_ms = claims.exp.map_or(ends, |exp| (exp * 1000.0) as i64);
        if lifetime_ms <= now {
            return Err("the token is not valid any more".into());
        }
        let principal_name = claims.sub.or(user).unwrap_or_else(|| "logdrive".into());
        Ok(OAuthToken { token, principal_name, lifetime_ms })
    }
}

fn claims(token: &str) -> Claims {
    let payload =
        token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok());
    payload.and_then(|payload| serde_json::from_slice(&payload).ok()).unwrap_or_default()
}

/// How one client logs in, and what became of it.
#[derive(Default)]
pub(crate) struct Login {
    tokens: Option<Arc<Tokens>>,
    last: Mutex<Option<Result<(), String>>>,
}

impl Login {
    /// `None` for clients that do not log in by tokens.
    pub(crate) fn new(tokens: Option<&Arc<Tokens>>) -> Arc<Self> {
        Arc::new(Self { tokens: tokens.map(Arc::clone), last: Mutex::default() })
    }

    /// For the client library.
    pub(crate) fn token(&self) -> Result<OAuthToken, Box<dyn Error>> {
        let Some(tokens) = &self.tokens else { return Err("no tokens are configured".into()) };
        let fetched = tokens.fetch();
        let noted = fetched.as_ref().map(drop).map_err(ToString::to_string);
        if let Err(error) = &noted {
            tracing::warn!(error, "Cannot get a token for Kafka; trying again.");
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(noted);
        // The library takes it as text, in which there may be no NUL.
        fetched.map_err(|error| error.to_string().replace('\0', " ").into())
    }

    /// Why there is no token, if that is so: it may pass.
    pub(crate) fn failure(&self) -> Option<String> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()?.err()
    }

    /// Has a consumer ask for its token: consumers ask only while they are polled.
    pub(crate) fn serve<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>) {
        if self.tokens.is_none() {
            return;
        }
        let deadline = Instant::now() + FIRST_MAX;
        loop {
            // It has no messages yet; what is polled is events.
            drop(consumer.poll(LOOK));
            let asked = self.last.lock().unwrap_or_else(PoisonError::into_inner).is_some();
            if asked || deadline < Instant::now() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(claims: &str) -> String {
        format!("e30.{}.", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_token_in_a_file_says_who_it_is_and_how_long_it_lives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let tokens = Tokens::File(path.clone());
        assert!(tokens.fetch().is_err());
        let exp = Timestamp::now().as_second() + 100;
        std::fs::write(&path, jwt(&format!("{{\"sub\":\"shop\",\"exp\":{exp}}}")) + "\n").unwrap();
        let token = tokens.fetch().unwrap();
        assert_eq!((token.principal_name.as_str(), token.lifetime_ms), ("shop", exp * 1000));
        assert!(!token.token.contains('\n'));
        // What is no JWT is taken as it is, and an old one is none.
        std::fs::write(&path, "opaque").unwrap();
        assert_eq!(tokens.fetch().unwrap().principal_name, "logdrive");
        std::fs::write(&path, jwt("{\"exp\":1700000000}")).unwrap();
        assert!(tokens.fetch().is_err());
    }

    #[test]
    fn it_is_one_or_the_other() {
        let of = |yaml: &str| {
            let node = logdrive_schemas::component::Node::parse(
                yaml.as_bytes(),
                logdrive_schemas::component::Limits::default(),
            )
            .unwrap();
            let mut errors = Vec::new();
            let config: OAuth =
                logdrive_schemas::component::parse_as(&node, "oauth", &mut errors).expect("it parses");
            config.build().is_ok()
        };
        assert!(of("token_file: /run/token"));
        assert!(of("endpoint: \"http://localhost/token\"\nclient_id: a\nclient_secret: b\nscope: c"));
        assert!(!of("endpoint: \"http://localhost/token\"\nclient_id: a"));
        assert!(!of("token_file: /run/token\nclient_id: a"));
        assert!(!of("scope: a"));
    }
}
