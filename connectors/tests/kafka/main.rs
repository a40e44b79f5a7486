//! The `kafka` source and sink against a real broker: groups, offsets, transactions, and what is refused.
#![cfg(feature = "kafka")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "what fails here fails the test")]

mod broker;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../sources_net/certificates.rs"]
mod certificates;
mod encodings;
mod hardship;
mod oauth;
mod registry;
mod sink;
mod source;
#[path = "../support/mod.rs"]
mod support;

use broker::Broker;
use std::io::{Write as _, stdout};

/// One at a time and one broker for all: it is large.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_a_real_broker() {
    let Some(broker) = Broker::start(21_320) else {
        writeln!(&mut stdout(), "skipped: kafka: broker not at hand").unwrap();
        return;
    };
    source::messages_arrive_in_order_and_a_resume_goes_on_where_the_group_is(&broker).await;
    source::where_to_begin_is_configured_and_then_stays(&broker).await;
    source::aborted_transactions_are_not_read(&broker).await;
    source::topics_are_found_by_pattern_and_lag_is_shown(&broker).await;
    source::partitions_are_held_until_what_was_received_is_delivered(&broker).await;
    // These two mostly wait.
    tokio::join!(
        source::nothing_is_lost_while_nobody_takes_anything(&broker),
        source::a_broker_that_is_not_there_is_tried_again(&broker),
    );
    registry::messages_are_read_by_their_schemas_and_poison_stays_as_it_is(&broker).await;
    encodings::avro_and_json_by_a_registry_come_back(&broker).await;
    sink::documents_arrive_with_topic_key_and_headers(&broker).await;
    sink::what_is_refused_for_good_is_a_reject_and_nothing_else_is(&broker).await;
    sink::transactions_bring_what_a_source_repeats_once(&broker).await;
    encodings::arrow_batches_come_back_within_their_bounds(&broker).await;
    hardship::tls_and_passwords_are_checked_on_both_sides(&broker).await;
    oauth::tokens_let_us_in_as_long_as_they_are_renewed(&broker).await;
    hardship::whatever_happens_to_connections_every_row_arrives_once(&broker).await;
    sink::a_broker_that_goes_and_comes_back_has_everything(&broker).await;
}
