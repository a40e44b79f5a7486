//! The `postgres` sink against a real server: types, tables that are made, rejects, TLS, faults, and rows that come
//! again.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "what fails here fails the test")]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "../sources_net/certificates.rs"]
mod certificates;
mod faults;
mod once;
mod refusals;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod types;

use std::io::{Write as _, stdout};

use server::Server;

/// One after the other on one server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_real_server() {
    let Some(mut server) = Server::start(None) else {
        writeln!(&mut stdout(), "skipped: postgres: server not at hand").unwrap();
        return;
    };
    types::a_table_is_made_from_the_rows_and_gets_their_values(&server).await;
    types::a_table_with_types_of_its_own_reads_text(&server).await;
    types::columns_are_added_and_others_left_alone(&server).await;
    types::where_timescale_is_a_table_becomes_a_hypertable(&server).await;
    refusals::what_is_refused_is_a_reject_and_nothing_else_is(&server).await;
    refusals::many_refused_rows_are_found_among_the_others(&server).await;
    refusals::what_the_configuration_asks_in_vain_is_said_at_once(&server).await;
    once::what_comes_again_is_known(&server).await;
    once::writers_at_the_same_time_bring_each_row_once(&server).await;
    once::old_positions_are_forgotten(&server).await;
    faults::whatever_happens_to_connections_every_row_arrives_once(&server).await;
    faults::a_server_that_crashes_has_every_row_once(&mut server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_tls_client_certificates_and_a_password() {
    let certificates = certificates::Certificates::new();
    let paths = ["server.pem", "server.key", "ca.pem"].map(|name| certificates.path(name));
    let Some(server) = Server::start(Some([&paths[0], &paths[1], &paths[2]])) else {
        writeln!(&mut stdout(), "skipped: postgres: server not at hand").unwrap();
        return;
    };
    refusals::certificates_names_and_passwords_are_checked(&server, &certificates).await;
}
