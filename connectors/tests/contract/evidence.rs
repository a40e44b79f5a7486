//! What each connector was tried against, and where.

/// What is known of one connector beside what its code says.
pub(crate) struct Evidence {
    /// `source` or `sink`.
    pub(crate) kind: &'static str,
    pub(crate) name: &'static str,
    /// A source that can be read again where it ended; others have the write-ahead buffer.
    pub(crate) has_log: bool,
    /// The real counterpart and its version.
    pub(crate) with: &'static str,
    /// Faults after which nothing acknowledged was missing.
    pub(crate) faults: &'static str,
    /// `file::function`, from the top of the repository.
    pub(crate) tests: &'static [&'static str],
}

const NONE: Evidence =
    Evidence { kind: "", name: "", has_log: false, with: "–", faults: "–", tests: &[] };
const SOURCE: Evidence = Evidence { kind: "source", ..NONE };
const SINK: Evidence = Evidence { kind: "sink", ..NONE };

/// One entry for each registered source and sink.
pub(crate) const EVIDENCE: &[Evidence] = &[
    Evidence {
        name: "beats",
        with: "Elastic's client go-lumber 0.1.0: plain, compressed, pipelined, mutual TLS",
        faults: "SIGKILL; nested compression, huge windows and lengths, cut frames; latency, bandwidth, resets, half-open connections",
        tests: &[
            "pipeline/tests/beats.rs::what_was_acknowledged_arrives_although_the_binary_is_killed",
            "connectors/tests/faults/shippers.rs::what_elastics_client_was_told_is_there",
        ],
        ..SOURCE
    },
    Evidence {
        name: "file",
        has_log: true,
        with: "files that are appended, renamed, truncated",
        faults: "rotation by create and by copytruncate, with restarts",
        tests: &[
            "connectors/tests/source_file.rs::rotation_by_create_with_restarts_loses_and_repeats_nothing",
            "connectors/tests/source_file.rs::rotation_by_copytruncate_with_restarts_loses_and_repeats_nothing",
        ],
        ..SOURCE
    },
    Evidence { name: "generate", has_log: true, ..SOURCE },
    Evidence {
        name: "http",
        with: "HTTP/1.1 clients",
        faults: "SIGKILL; latency, bandwidth, resets, half-open connections",
        tests: &[
            "pipeline/tests/end_to_end.rs::an_http_answer_is_a_promise_that_survives_sigkill",
            "connectors/tests/faults/http.rs::what_was_answered_is_there",
        ],
        ..SOURCE
    },
    Evidence {
        name: "kafka",
        has_log: true,
        with: "Apache Kafka 4.3.1; TLS with PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER (unsigned tokens); schema \
               registry and token endpoint only as stand-ins",
        faults: "SIGKILL of members, members added, partitions taken away; latency, bandwidth, resets, half-open connections",
        tests: &[
            "connectors/tests/kafka/main.rs::with_a_real_broker",
            "connectors/tests/kafka/hardship.rs::",
            "connectors/tests/kafka/oauth.rs::tokens_let_us_in_as_long_as_they_are_renewed",
            "connectors/tests/kafka/registry.rs::",
            "pipeline/tests/kafka.rs::members_of_a_group_are_killed_and_added_and_nothing_is_missing",
        ],
        ..SOURCE
    },
    Evidence {
        name: "mqtt",
        with: "Mosquitto 2.0.11, MQTT 3.1.1 and 5",
        faults: "SIGKILL, broker restarted, broker down at the start; latency, bandwidth, resets, half-open connections",
        tests: &[
            "pipeline/tests/mqtt.rs::what_the_broker_counts_as_delivered_survives_kills",
            "pipeline/tests/mqtt.rs::a_broker_that_is_down_is_waited_for_and_nothing_is_lost_when_it_restarts",
            "connectors/tests/faults/mqtt.rs::what_mosquitto_and_we_confirm_arrives",
        ],
        ..SOURCE
    },
    Evidence {
        name: "otlp",
        with: "OpenTelemetry Collector 0.161.0 and telemetrygen 0.161.0: gRPC, HTTP, Protobuf, JSON",
        faults: "SIGKILL under the Collector; bombs, cut and malformed requests; latency, bandwidth, resets, half-open connections",
        tests: &[
            "connectors/tests/sources_net/otlp.rs::the_collector_sends",
            "connectors/tests/sources_net/otlp.rs::telemetrygen_sends",
            "pipeline/tests/otlp.rs::what_the_collector_acknowledged_arrives_although_the_binary_is_killed",
            "connectors/tests/faults/otlp.rs::what_the_collector_and_we_acknowledge_is_there",
        ],
        ..SOURCE
    },
    Evidence {
        name: "prometheus_remote_write",
        with: "Prometheus 2.42.0 (version 1); the Prometheus project's client, client_golang/exp 2026-09-07 (version 2)",
        faults: "SIGKILL under Prometheus; malformed requests, bombs; latency, bandwidth, resets, half-open connections",
        tests: &[
            "connectors/tests/sources_net/metrics.rs::prometheus_sends_and_is_scraped",
            "connectors/tests/sources_net/metrics.rs::remote_write_of_both_versions",
            "pipeline/tests/prometheus.rs::every_sample_of_prometheus_arrives_although_the_binary_is_killed",
            "connectors/tests/faults/prometheus.rs::every_sample_gets_to_prometheus_and_from_it",
            "connectors/tests/faults/prometheus.rs::what_prometheus_client_of_version_2_was_told_is_there",
        ],
        ..SOURCE
    },
    Evidence {
        name: "prometheus_scrape",
        with: "Prometheus 2.42.0 as the target",
        faults: "a target that is away",
        tests: &["connectors/tests/sources_net/metrics.rs::prometheus_sends_and_is_scraped"],
        ..SOURCE
    },
    Evidence {
        name: "statsd",
        with: "plain sockets, UDP and TCP",
        tests: &[
            "connectors/tests/sources_net/metrics.rs::statsd_is_aggregated_and_nothing_that_came_is_missing",
            "connectors/tests/sources_net/metrics.rs::statsd_over_tcp_counts_every_line_however_it_is_cut",
        ],
        ..SOURCE
    },
    Evidence { name: "stdin", ..SOURCE },
    Evidence {
        name: "syslog",
        with: "rsyslog 8.2302 (UDP, TCP, TLS, RELP), syslog-ng 3.38 (UDP, TCP, TLS)",
        faults: "RELP: SIGKILL, connections lost with messages unanswered; latency, bandwidth, resets, half-open connections",
        tests: &[
            "pipeline/tests/relp.rs::what_was_answered_arrives_although_the_binary_is_killed",
            "connectors/tests/sources_net/senders.rs::",
            "connectors/tests/faults/shippers.rs::every_line_of_rsyslog_arrives_over_relp",
        ],
        ..SOURCE
    },
    Evidence {
        name: "tcp",
        with: "plain sockets; TLS clients of rustls",
        faults: "SIGKILL (what was read and synced)",
        tests: &[
            "pipeline/tests/kill.rs::killed_at_any_moment_it_loses_and_doubles_nothing",
            "connectors/tests/sources_net/tls.rs::",
        ],
        ..SOURCE
    },
    Evidence {
        name: "udp",
        with: "plain sockets",
        tests: &["connectors/tests/sources_net/udp.rs::"],
        ..SOURCE
    },
    Evidence {
        name: "unix",
        with: "plain sockets",
        tests: &["connectors/tests/sources_net/unix.rs::"],
        ..SOURCE
    },
    Evidence {
        name: "redis",
        has_log: true,
        with: "Redis 7.0.15: streams in consumer groups, channels",
        faults: "SIGKILL of members, members added, connections closed by the server; latency, bandwidth, resets, half-open connections",
        tests: &[
            "connectors/tests/redis/main.rs::with_a_real_server",
            "connectors/tests/redis/source.rs::a_lost_connection_repeats_nothing",
            "connectors/tests/redis/source.rs::what_a_consumer_that_is_gone_had_pending_is_taken_over",
            "pipeline/tests/redis.rs::members_of_a_group_are_killed_and_added_and_nothing_is_missing",
            "connectors/tests/faults/redis.rs::what_redis_and_we_acknowledge_is_there",
        ],
        ..SOURCE
    },
    Evidence {
        name: "forward",
        with: "the Fluentd project's client for Node.js, @fluent-org/logger 1.0.10: every mode, acknowledgements, shared key \
               and users, TLS; Fluentd and Fluent Bit themselves could not be had",
        faults: "SIGKILL; lengths and nesting that lie, expansion, broken events; latency, bandwidth, resets, half-open connections",
        tests: &[
            "connectors/tests/sources_net/forward.rs::the_projects_own_client_is_understood",
            "connectors/tests/sources_net/forward.rs::hostile_frames_end_their_connection_alone",
            "pipeline/tests/forward.rs::what_was_acknowledged_arrives_although_the_binary_is_killed",
            "connectors/tests/faults/shippers.rs::what_fluentds_client_was_told_is_there",
        ],
        ..SOURCE
    },
    Evidence {
        name: "audit",
        with: "its own verifier",
        faults: "SIGKILL",
        tests: &["pipeline/tests/kill.rs::killed_at_any_moment_it_loses_and_doubles_nothing"],
        ..SINK
    },
    Evidence { name: "blackhole", ..SINK },
    Evidence {
        name: "elasticsearch",
        with: "Elasticsearch 9.5.3, OpenSearch 3.8.0: indices, data streams, TLS in front; policies (ILM, ISM) and signatures only against a stand-in",
        faults: "SIGKILL, a server that is away, answers that never come, requests refused in part; latency, bandwidth, resets, half-open connections",
        tests: &[
            "connectors/tests/sink_elasticsearch_real.rs::",
            "pipeline/tests/kill.rs::killed_at_any_moment_it_loses_and_doubles_nothing",
            "pipeline/tests/end_to_end.rs::a_dead_sink_gets_its_rows_also_after_a_restart",
        ],
        ..SINK
    },
    Evidence {
        name: "file",
        faults: "SIGKILL",
        tests: &["pipeline/tests/kill.rs::killed_at_any_moment_it_loses_and_doubles_nothing"],
        ..SINK
    },
    Evidence {
        name: "http",
        with: "HTTP/1.1 servers",
        faults: "a server that is away, refuses, or breaks connections; latency, bandwidth, resets, half-open connections",
        tests: &[
            "connectors/tests/sink_http_tcp.rs::",
            "connectors/tests/faults/http.rs::what_was_answered_is_there",
        ],
        ..SINK
    },
    Evidence {
        name: "kafka",
        with: "Apache Kafka 4.3.1; TLS with PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER (unsigned tokens); schema \
               registry and token endpoint only as stand-ins; Avro read by our own source, Arrow by its own reader",
        faults: "SIGKILL (with transactions nothing twice), broker restarted; latency, bandwidth, resets, half-open connections",
        tests: &[
            "connectors/tests/kafka/main.rs::with_a_real_broker",
            "connectors/tests/kafka/encodings.rs::avro_and_json_by_a_registry_come_back",
            "connectors/tests/kafka/encodings.rs::arrow_batches_come_back_within_their_bounds",
            "connectors/tests/kafka/hardship.rs::",
            "connectors/tests/kafka/oauth.rs::tokens_let_us_in_as_long_as_they_are_renewed",
            "pipeline/tests/kafka.rs::killed_again_and_again_a_copy_by_transactions_is_exact",
            "pipeline/tests/kafka.rs::members_of_a_group_are_killed_and_added_and_nothing_is_missing",
        ],
        ..SINK
    },
    Evidence {
        name: "mongodb",
        with: "no MongoDB, which could not be had: the official driver 3.9 against a stand-in that speaks OP_MSG as the \
               specification has it, TLS in front; never logins, replica sets of several members, nor a real time series",
        faults: "of the stand-in: no answer, not replicated, stepped down, throttled; latency, bandwidth, resets, half-open \
                 connections",
        tests: &[
            "connectors/tests/mongodb/main.rs::documents_arrive_with_their_types_and_come_again_in_vain",
            "connectors/tests/mongodb/main.rs::what_is_refused_is_a_reject_and_nothing_else_is",
            "connectors/tests/mongodb/main.rs::what_passes_is_tried_again_and_nothing_is_lost_or_doubled",
            "connectors/tests/mongodb/main.rs::collections_and_indices_are_made_as_documented",
            "connectors/tests/mongodb/main.rs::whatever_happens_to_connections_every_document_is_there_once",
        ],
        ..SINK
    },
    Evidence {
        name: "mqtt",
        with: "Mosquitto 2.0.11, MQTT 3.1.1 and 5",
        faults: "latency, bandwidth, resets, half-open connections",
        tests: &[
            "pipeline/tests/mqtt.rs::",
            "connectors/tests/faults/mqtt.rs::what_mosquitto_and_we_confirm_arrives",
        ],
        ..SINK
    },
    Evidence {
        name: "otlp",
        with: "OpenTelemetry Collector 0.161.0: gRPC, HTTP",
        faults: "the Collector restarted; requests refused in part; latency, bandwidth, resets, half-open connections",
        tests: &[
            "connectors/tests/sink_otlp.rs::the_collector_gets_every_row_although_it_is_restarted",
            "connectors/tests/sink_otlp.rs::rows_that_are_refused_become_rejects_and_no_others",
            "connectors/tests/faults/otlp.rs::what_the_collector_and_we_acknowledge_is_there",
        ],
        ..SINK
    },
    Evidence {
        name: "parquet",
        with: "local disk; MinIO 2026-02-12 where a server is given",
        faults: "SIGKILL",
        tests: &[
            "connectors/tests/sink_parquet.rs::",
            "pipeline/tests/kill.rs::killed_at_any_moment_it_loses_and_doubles_nothing",
        ],
        ..SINK
    },
    Evidence {
        name: "postgres",
        with: "PostgreSQL 15.18 (Debian): tables that are made and others, TLS with client certificates, SCRAM-SHA-256; \
               TimescaleDB could not be had, only its function is stood in for",
        faults: "SIGKILL (nothing twice), the server crashed and stopped; latency, bandwidth, resets, half-open connections; \
                 several writers at once",
        tests: &[
            "connectors/tests/postgres/main.rs::with_a_real_server",
            "connectors/tests/postgres/main.rs::with_tls_client_certificates_and_a_password",
            "connectors/tests/postgres/types.rs::where_timescale_is_a_table_becomes_a_hypertable",
            "connectors/tests/postgres/once.rs::writers_at_the_same_time_bring_each_row_once",
            "connectors/tests/postgres/faults.rs::whatever_happens_to_connections_every_row_arrives_once",
            "pipeline/tests/postgres.rs::killed_again_and_again_every_row_is_in_the_table_once",
        ],
        ..SINK
    },
    Evidence {
        name: "prometheus_remote_write",
        with: "Prometheus 2.42.0",
        faults: "Prometheus restarted; samples that it refuses; latency, bandwidth, resets, half-open connections",
        tests: &[
            "connectors/tests/sink_prometheus.rs::prometheus_gets_every_sample_although_it_is_restarted",
            "connectors/tests/faults/prometheus.rs::every_sample_gets_to_prometheus_and_from_it",
        ],
        ..SINK
    },
    Evidence { name: "stdout", ..SINK },
    Evidence {
        name: "tcp",
        with: "plain sockets",
        faults: "a far end that closes midway, or takes nothing",
        tests: &[
            "connectors/tests/sink_http_tcp.rs::tcp_notices_a_far_end_that_closes_midway",
            "connectors/tests/sink_http_tcp.rs::tcp_gives_up_on_a_far_end_that_takes_nothing",
        ],
        ..SINK
    },
    Evidence {
        name: "alert",
        with: "Alertmanager 0.25.0; mail to aiosmtpd 1.4.6 with STARTTLS and TLS. PagerDuty, Slack, Teams, text messages \
               and webhooks: a stand-in that checks the documented requests, never the services themselves",
        faults: "SIGKILL, channels that are away, refuse, limit or break connections; latency, bandwidth, resets, half-open connections",
        tests: &[
            "connectors/tests/sink_alert/real.rs::alertmanager_shows_what_is_open_and_is_told_of_its_end",
            "connectors/tests/sink_alert/real.rs::mails_arrive_over_starttls",
            "connectors/tests/sink_alert/shapes.rs::every_channel_is_told_of_beginning_and_end_as_documented",
            "connectors/tests/sink_alert/faults.rs::a_channel_that_is_down_holds_nothing_up_and_misses_nothing",
            "pipeline/tests/alerts.rs::no_alert_is_missing_although_the_binary_is_killed_and_a_channel_is_unwell",
            "connectors/tests/faults/alert.rs::every_alert_gets_to_alertmanager",
        ],
        ..SINK
    },
    Evidence {
        name: "redis",
        with: "Redis 7.0.15: streams, lists, channels; TLS with client certificates",
        faults: "SIGKILL, a server that is not a master for a while; latency, bandwidth, resets, half-open connections",
        tests: &[
            "connectors/tests/redis/main.rs::with_tls_and_a_password",
            "connectors/tests/redis/sink.rs::documents_become_entries_elements_and_messages",
            "pipeline/tests/redis.rs::members_of_a_group_are_killed_and_added_and_nothing_is_missing",
            "connectors/tests/faults/redis.rs::what_redis_and_we_acknowledge_is_there",
        ],
        ..SINK
    },
    Evidence {
        name: "syslog",
        with: "rsyslog 8.2302 and syslog-ng 3.38 as receivers: UDP, TCP in both framings, TLS with client certificates",
        faults: "a receiver that is not there yet; latency, bandwidth (what is under way when a connection breaks may be lost)",
        tests: &[
            "connectors/tests/sink_syslog/main.rs::rsyslog_takes_it_over_udp_tcp_and_tls",
            "connectors/tests/sink_syslog/main.rs::syslog_ng_takes_it_over_udp_tcp_and_tls",
            "connectors/tests/faults/syslog.rs::rsyslog_gets_what_no_broken_connection_took_along",
        ],
        ..SINK
    },
];
