//! The `redis` source and sink against a real server: groups, acknowledgements, what is taken over, lists, channels, TLS.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "what fails here fails the test")]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "../sources_net/certificates.rs"]
mod certificates;
mod server;
mod sink;
mod source;
#[path = "../support/mod.rs"]
mod support;

use std::io::{Write as _, stdout};

use server::Server;

/// One after the other on one server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_real_server() {
    let Some(server) = Server::start(21_220, "") else {
        writeln!(&mut stdout(), "skipped: redis: server not at hand").unwrap();
        return;
    };
    source::what_is_delivered_is_acknowledged_and_what_is_not_comes_again(&server).await;
    source::a_lost_connection_repeats_nothing(&server).await;
    source::what_a_consumer_that_is_gone_had_pending_is_taken_over(&server).await;
    source::what_lives_is_left_alone(&server).await;
    source::identifiers_that_are_no_offsets_arrive_too(&server).await;
    source::channels_are_listened_to(&server).await;
    sink::documents_become_entries_elements_and_messages(&server).await;
    sink::what_holds_something_else_makes_rejects(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_tls_and_a_password() {
    let certificates = certificates::Certificates::new();
    let path = |name: &str| certificates.path(name).display().to_string();
    let arguments = format!(
        "--requirepass s3cret --tls-port 21222 --tls-cert-file {} --tls-key-file {} --tls-ca-cert-file {}",
        path("server.pem"),
        path("server.key"),
        path("ca.pem")
    );
    let Some(server) = Server::start(21_221, &arguments) else {
        writeln!(&mut stdout(), "skipped: redis: server not at hand").unwrap();
        return;
    };
    sink::a_server_that_asks_for_certificates_takes_documents(&server, &certificates).await;
}
