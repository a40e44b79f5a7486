//! What a configuration may say.

use std::sync::Arc;

use logdrive_connectors::{ConnectorContext, SOURCES};
use logdrive_schemas::component::{Limits, Node};

fn problems(yaml: &str) -> Vec<String> {
    let mut node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
    let kind = node.take("type").unwrap();
    let entry = SOURCES.iter().find(|s| Some(s.name) == kind.as_str()).unwrap();
    let cx = ConnectorContext {
        name: "in".into(),
        state_dir: "unused".into(),
        metrics: Arc::default(),
        shutdown: Default::default(),
    };
    match (entry.build)(&node, &cx) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.into_iter().map(|e| e.message).collect(),
    }
}

#[test]
fn examples_build() {
    for name in ["beats", "http", "stdin", "syslog", "tcp", "udp", "unix"] {
        let entry = SOURCES.iter().find(|s| s.name == name).unwrap();
        assert_eq!(problems(entry.example), [""; 0], "{name}");
    }
}

#[test]
fn contradictions_and_slips_are_errors() {
    for (yaml, says) in [
        ("{type: tcp}", "listen"),
        ("{type: tcp, listen: here}", "is no address"),
        ("{type: tcp, listen: \":5044\"}", "is no address"),
        ("{type: tcp, listen: \"[::]:70000\"}", "is no address"),
        ("{type: tcp, listen: \"[::]:5044\", max_line_byte: 1KiB}", "unknown key"),
        ("{type: tcp, listen: \"[::]:5044\", max_line_bytes: 0B}", "max_line_bytes"),
        ("{type: tcp, listen: \"[::]:5044\", max_line_bytes: 3MiB}", "max_buffered_bytes"),
        ("{type: udp, listen: \"[::]:5044\", sockets: 0}", "sockets"),
        ("{type: udp, listen: \"[::]:5044\", max_datagram_bytes: 1MiB}", "max_datagram_bytes"),
        ("{type: unix, path: x, permissions: \"0999\"}", "no permissions"),
        ("{type: http, listen: \"[::]:80\", path: logs}", "path"),
        ("{type: http, listen: \"[::]:80\", auth: {}}", "auth"),
        ("{type: http, listen: \"[::]:80\", max_expanded_bytes: 1GiB}", "64MiB"),
        (
            "{type: tcp, listen: \"[::]:1\", tls: {certificate: /nowhere.pem, key: /nowhere.key}}",
            "/nowhere.pem",
        ),
        (
            "{type: tcp, listen: \"[::]:1\", tls: {certificate: a, key: b, client_auth: required}}",
            "client_ca",
        ),
        ("{type: tcp, listen: \"[::]:1\", framing: syslog}", "unknown value"),
        ("{type: syslog, listen: \"[::]:1\", protocol: [tcp, relp]}", "cannot share a port"),
        ("{type: syslog, listen: \"[::]:1\", protocol: [udp, smtp]}", "smtp"),
        ("{type: syslog, listen: \"[::]:1\", protocol: {udp: 1}}", "relp"),
        ("{type: syslog, listen: \"[::]:1\", protocol: []}", "names none"),
        ("{type: syslog, listen: \"[::]:1\", protocol: smtp}", "smtp"),
        (
            "{type: syslog, listen: \"[::]:1\", protocol: udp, tls: {certificate: a, key: b}}",
            "needs the protocol",
        ),
        ("{type: syslog, listen: \"[::]:1\", max_message_bytes: 1GiB}", "max_message_bytes"),
        ("{type: beats, listen: \"[::]:1\", max_message_bytes: 64MiB}", "max_message_bytes"),
        ("{type: beats, listen: \"[::]:1\", max_window: 0}", "max_window"),
        ("{type: beats, listen: \"[::]:1\", keep_alive: 0s}", "keep_alive"),
        ("{type: stdin, max_line_bytes: 1GiB}", "max_line_bytes"),
    ] {
        let problems = problems(yaml);
        assert!(problems.iter().any(|p| p.contains(says)), "{yaml}: {problems:?}");
    }
}

#[test]
fn secrets_are_not_shown() {
    use logdrive_connectors::sources::http::Http;
    let yaml = "{listen: \"[::]:80\", auth: {bearer: s3cret, basic: \"user:s3cret\"}}";
    let node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
    let config = logdrive_schemas::component::parse::<Http>(&node, &mut Vec::new()).unwrap();
    assert!(!format!("{config:?}").contains("s3cret"));
}

#[test]
fn a_key_that_does_not_fit_its_certificate_is_an_error() {
    let certificates = crate::certificates::Certificates::new();
    let (certificate, key) = (certificates.path("server.pem"), certificates.path("client.key"));
    let tls = format!("{{certificate: \"{}\", key: \"{}\"}}", certificate.display(), key.display());
    let problems = problems(&format!("{{type: tcp, listen: \"[::]:1\", tls: {tls}}}"));
    assert!(problems.iter().any(|p| p.contains("server.pem")), "{problems:?}");
}

#[test]
fn syslog_is_decoded_as_syslog_unless_told_otherwise() {
    let decoder = |name| SOURCES.iter().find(|s| s.name == name).unwrap().decoder;
    assert_eq!((decoder("syslog"), decoder("tcp")), ("syslog", "json"));
}
