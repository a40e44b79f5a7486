//! SASL/OAUTHBEARER: tokens from a file and from an endpoint (a stand-in for it), which live for some seconds, at a broker
//! that checks that they are tokens, that they are still valid and what they are good for, but no signature.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use logdrive_connectors::ConnectorError;
use logdrive_schemas::Epoch;
use serde_json::json;

use crate::broker::{Broker, PATIENCE, connect, numbered, recv, recv_messages, source, texts};
use crate::sink::from_kafka;
use crate::support::server::{Reaction, Server};
use crate::support::{deliver_at_last, sink};

/// A token without a signature.
fn token(user: &str, scope: &str, life: Duration) -> String {
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let (issued, ends) = (now.as_secs_f64(), (now + life).as_secs_f64());
    let claims = json!({ "sub": user, "scope": scope, "iat": issued, "exp": ends });
    format!("{}.{}.", part(json!({ "alg": "none" })), part(claims))
}

fn yaml(broker: &Broker, oauth: &str, rest: &str) -> String {
    format!(
        "endpoint: [\"{}\"]\ntls: {{ ca: \"{}\" }}\nsasl: {{ mechanism: OAUTHBEARER, oauth: {oauth} }}\n{rest}",
        broker.secure(),
        broker.certificates.path("ca.pem").display()
    )
}

pub(crate) async fn tokens_let_us_in_as_long_as_they_are_renewed(broker: &Broker) {
    /// Shorter than the test: connections must be renewed within it.
    const LIFE: Duration = Duration::from_secs(8);
    broker.topic("tokens", 1, &[]).await;
    let n_asked = Arc::new(AtomicUsize::new(0));
    let said = Arc::new(Mutex::new(Vec::new()));
    let (asked, heard) = (Arc::clone(&n_asked), Arc::clone(&said));
    let server = Server::start(move |request| {
        asked.fetch_add(1, Ordering::SeqCst);
        heard.lock().unwrap().push((
            request.headers["authorization"].clone(),
            String::from_utf8(request.body.clone()).unwrap(),
        ));
        let answer =
            json!({ "access_token": token("shop", "kafka", LIFE), "token_type": "Bearer", "expires_in": 8 });
        Reaction::json(200, &answer)
    });
    let server = server.await;
    let from_endpoint = format!(
        "{{ endpoint: \"{}/token\", client_id: shop, client_secret: \"s/ecret\", scope: kafka }}",
        server.url()
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, token("shop", "kafka", LIFE)).unwrap();
    let from_file = format!("{{ token_file: \"{}\" }}", file.display());

    let (mut out, _) =
        sink("kafka", &yaml(broker, &from_endpoint, "topic: tokens\ntransactional_id: tokens"));
    let (mut back, _) = source(&yaml(broker, &from_file, "topics: [tokens]\ngroup: tokens"));
    assert_eq!(deliver_at_last(&mut *out, &[from_kafka(0, &numbered(0..10))]).await.1, 0);
    connect(&mut *back).await;
    assert_eq!(texts(&recv_messages(&mut *back, 10).await), numbered(0..10));
    // For longer than a token lives, on the same connections.
    let (began, mut n_sent, mut found) = (Instant::now(), 10, Vec::new());
    while began.elapsed() < LIFE * 2 {
        std::fs::write(&file, token("shop", "kafka", LIFE)).unwrap();
        let rows = from_kafka(n_sent, &numbered(n_sent..n_sent + 10));
        n_sent += 10;
        assert!(out.write(&rows).await.unwrap().is_none());
        out.flush(Epoch(1)).await.unwrap();
        found.extend(recv(&mut *back, Duration::from_millis(300)).await);
    }
    let deadline = Instant::now() + PATIENCE;
    while texts(&found).len() < n_sent - 10 {
        assert!(Instant::now() < deadline, "{} of {n_sent}", texts(&found).len());
        found.extend(recv(&mut *back, Duration::from_millis(300)).await);
    }
    assert_eq!(texts(&found), numbered(10..n_sent));
    assert!(n_asked.load(Ordering::SeqCst) >= 3, "tokens are renewed");
    let (login, form) = said.lock().unwrap()[0].clone();
    assert_eq!(
        login,
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("shop:s%2Fecret"))
    );
    assert_eq!(form, "grant_type=client_credentials&scope=kafka");

    // A token that is not good for this is refused; that there is none may pass.
    std::fs::write(&file, token("shop", "else", LIFE * 20)).unwrap();
    let (mut wrong, _) = sink("kafka", &yaml(broker, &from_file, "topic: tokens"));
    let error = wrong.connect().await.unwrap_err();
    assert!(matches!(error, ConnectorError::Refused { .. }), "{error:?}");
    let (mut wrong, _) = source(&yaml(broker, &from_file, "topics: [tokens]\ngroup: wrong"));
    let error = wrong.connect(&[]).await.unwrap_err();
    assert!(matches!(error, ConnectorError::Refused { .. }), "{error:?}");
    std::fs::remove_file(&file).unwrap();
    let (mut none, _) = sink("kafka", &yaml(broker, &from_file, "topic: tokens"));
    let error = none.connect().await.unwrap_err();
    assert!(matches!(error, ConnectorError::Disconnected { .. }), "{error:?}");
}
