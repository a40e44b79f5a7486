//! Mail over SMTP.

use std::time::Duration;

use async_trait::async_trait;
use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls as SmtpTls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};
use logdrive_schemas::component::ConfigError;
use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use super::http::chain;
use super::{Channel, Notice, Undelivered, yes};
use crate::sinks::http_auth::{Basic, Tls, invalid};

/// Answers that are about who we are, which somebody will mend, and not about the mail.
const LOGIN_CODES: [u16; 4] = [421, 530, 534, 535];

/// Whether a connection that begins in the clear is secured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StartTls {
    /// Never. Mail and password can be read on the way.
    Off,
    /// If the server offers it. Who sits on the way can take the offer away.
    Opportunistic,
    /// Always; a server that does not offer it gets nothing.
    #[default]
    Required,
}

/// Mail over SMTP. What is told of one alert is one thread.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Email {
    /// The server: `smtp://mail.example:587` begins in the clear, `smtps://mail.example:465` with TLS.
    pub endpoint: String,
    /// With `smtp`, whether the connection is secured before anything is sent: `required`, `opportunistic` or `off`.
    #[serde(default)]
    pub starttls: StartTls,
    /// Who sends, such as `Logdrive <logdrive@example.com>`.
    pub from: String,
    /// Who is told.
    pub to: Vec<String>,
    /// The login.
    #[serde(default)]
    pub auth: Option<Basic>,
    /// How the server's certificate is checked.
    #[serde(default)]
    pub tls: Tls,
    /// Whether it is told of the end.
    #[serde(default = "yes")]
    pub send_resolved: bool,
}

impl Email {
    pub(super) fn build(&self, timeout: Duration) -> Result<Box<dyn Channel>, ConfigError> {
        let wrong = || invalid("`endpoint` is no mail server, write it like `smtp://mail.example:587`");
        let url = Url::parse(&self.endpoint).map_err(|_| wrong())?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
        let secured = match url.scheme() {
            "smtp" => false,
            "smtps" => true,
            _ => return Err(wrong()),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let tls = match (secured, self.starttls) {
            (true, _) => SmtpTls::Wrapper(self.parameters(host)?),
            (false, StartTls::Required) => SmtpTls::Required(self.parameters(host)?),
            (false, StartTls::Opportunistic) => SmtpTls::Opportunistic(self.parameters(host)?),
            (false, StartTls::Off) => SmtpTls::None,
        };
        let port = url.port().unwrap_or(if secured { 465 } else { 587 });
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
            .port(port)
            .tls(tls)
            .timeout(Some(timeout));
        if let Some(Basic { user, password }) = &self.auth {
            builder = builder.credentials(Credentials::new(user.clone(), password.expose().to_owned()));
        }
        let mailbox = |key: &str, text: &String| {
            text.parse::<Mailbox>().map_err(|error| invalid(format!("`{key}`: `{text}`: {error}")))
        };
        let to = self.to.iter().map(|to| mailbox("to", to)).collect::<Result<Vec<_>, _>>()?;
        if to.is_empty() {
            return Err(invalid("`to` names nobody"));
        }
        Ok(Box::new(Mail { transport: builder.build(), from: mailbox("from", &self.from)?, to }))
    }

    fn parameters(&self, host: &str) -> Result<TlsParameters, ConfigError> {
        let mut builder =
            TlsParameters::builder(host.to_owned()).dangerous_accept_invalid_certs(!self.tls.verify);
        if let Some(pem) = self.tls.ca_pem()? {
            let certificate = Certificate::from_pem(&pem)
                .map_err(|error| invalid(format!("`tls.ca` is no certificate: {error}")))?;
            builder = builder.add_root_certificate(certificate);
        }
        builder.build_rustls().map_err(|error| invalid(format!("cannot set up TLS: {error}")))
    }
}

struct Mail {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    to: Vec<Mailbox>,
}

#[async_trait]
impl Channel for Mail {
    async fn deliver(&mut self, notice: &Notice) -> Result<(), Undelivered> {
        let message = message(notice, &self.from, &self.to).map_err(Undelivered::Never)?;
        match self.transport.send(message).await {
            Ok(_) => Ok(()),
            Err(error) => {
                let login = error.status().is_some_and(|code| LOGIN_CODES.contains(&u16::from(code)));
                let reason = chain(&error);
                if error.is_permanent() && !login {
                    Err(Undelivered::Never(reason))
                } else {
                    Err(Undelivered::later(reason))
                }
            }
        }
    }
}

fn message(notice: &Notice, from: &Mailbox, to: &[Mailbox]) -> Result<Message, String> {
    let domain = from.email.domain();
    let mut builder = Message::builder()
        .from(from.clone())
        .subject(notice.headline())
        // A repetition is recognised as one.
        .message_id(Some(format!("<{}@{domain}>", notice.delivery_id())))
        .references(format!("<{}@{domain}>", notice.alert))
        .header(ContentType::TEXT_PLAIN);
    for to in to {
        builder = builder.to(to.clone());
    }
    let mut text = format!("{}\n\n", notice.body);
    for (name, value) in notice.labels.iter().filter(|(_, value)| !value.is_empty()) {
        text += &format!("{name}: {value}\n");
    }
    text += &format!("severity: {}\nsince: {}\n", notice.severity, notice.starts_at);
    if let Some(ends) = notice.ends_at {
        text += &format!("ended: {ends}\n");
    }
    text += &format!("findings: {}\n", notice.n_findings);
    for finding in &notice.findings {
        text += &format!("\n{finding}\n");
    }
    builder.body(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn a_mail_is_one_of_a_thread() {
        let mut notice = example(false);
        notice.title = "two\r\nBcc: nobody@example.com".into();
        let from = "Logdrive <l@example.com>".parse().unwrap();
        let message = message(&notice, &from, &["a@example.com".parse().unwrap()]).unwrap();
        let text = String::from_utf8(message.formatted()).unwrap();
        assert!(text.contains("Message-ID: <00ff-7@example.com>"), "{text}");
        assert!(text.contains("References: <00ff@example.com>"), "{text}");
        assert!(!text.contains("\nBcc:"), "{text}");
    }
}
