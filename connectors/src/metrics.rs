//! Every metric of Logdrive, in Prometheus conventions. Numbers shown elsewhere are read from here.

use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, exponential_buckets,
};

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $type:ident $name:literal [$($label:literal),*];)*) => {
        /// All metric families, registered once per process.
        #[derive(Debug)]
        pub struct Metrics {
            /// Where they are gathered from.
            pub registry: Registry,
            $($(#[doc = $help])+ pub $field: $type,)*
        }

        impl Metrics {
            /// Registers all families in a registry of their own.
            ///
            /// # Panics
            /// If two families have one name: a bug in the list below.
            #[must_use]
            pub fn new() -> Self {
                let registry = Registry::new();
                $(
                    let $field = <$type as Family>::family($name, concat!($($help),+).trim(), &[$($label),*]);
                    registry.register(Box::new($field.clone())).expect("metric names are unique");
                )*
                Self { registry, $($field,)* }
            }
        }
    };
}

metrics! {
    /// Messages received by a source, before the buffer.
    source_messages: IntCounterVec "logdrive_source_messages_total" ["source"];
    /// Bytes of messages received by a source.
    source_bytes: IntCounterVec "logdrive_source_bytes_total" ["source"];
    /// Open connections of a source.
    source_connections: IntGaugeVec "logdrive_source_connections" ["source"];
    /// Connections that a source refused or closed, by reason.
    source_connections_refused: IntCounterVec "logdrive_source_connections_refused_total" ["source", "reason"];
    /// Messages that never became whole (a line too long, a cut frame) and are rejects, by reason.
    source_rejects: IntCounterVec "logdrive_source_rejects_total" ["source", "reason"];
    /// Datagrams that the kernel dropped because nobody read them in time.
    source_dropped: IntCounterVec "logdrive_source_kernel_dropped_total" ["source"];
    /// Messages between what is delivered and the end of a Kafka partition.
    kafka_lag: IntGaugeVec "logdrive_kafka_lag_messages" ["source", "topic", "partition"];
    /// Trouble of a source with its far end, by kind.
    source_errors: IntCounterVec "logdrive_source_errors_total" ["source", "kind"];
    /// Bytes received that wait to enter the write-ahead buffer. At most 16 MiB, or `buffer.max_bytes` if that is less.
    intake_bytes: IntGaugeVec "logdrive_intake_bytes" ["source"];
    /// Bytes in the write-ahead buffer that are not yet delivered.
    buffer_bytes: IntGaugeVec "logdrive_buffer_bytes" ["source"];
    /// Messages in the write-ahead buffer that are not yet delivered.
    buffer_messages: IntGaugeVec "logdrive_buffer_messages" ["source"];
    /// Group commits of the write-ahead buffer.
    buffer_commits: IntCounterVec "logdrive_buffer_commits_total" ["source"];
    /// Bytes cut off a torn tail when a buffer was opened.
    buffer_truncated_bytes: IntCounterVec "logdrive_buffer_truncated_bytes_total" ["source"];
    /// Rows decoded from a source.
    decoder_rows: IntCounterVec "logdrive_decoder_rows_total" ["source"];
    /// Rows that left a stream.
    stream_rows: IntCounterVec "logdrive_stream_rows_total" ["stream"];
    /// Rows that a stream's `where` steps removed.
    stream_filtered_rows: IntCounterVec "logdrive_stream_filtered_rows_total" ["stream"];
    /// Messages and rows that became rejects, by where they failed.
    rejects: IntCounterVec "logdrive_rejects_total" ["component", "code"];
    /// Findings of a detector, by severity.
    findings: IntCounterVec "logdrive_findings_total" ["detector", "severity"];
    /// Rows that a detector or a view did not see because they came later than allowed.
    late_rows: IntCounterVec "logdrive_late_rows_total" ["detector"];
    /// Rows kept in the state of a detector or a view.
    detector_rows: IntGaugeVec "logdrive_detector_state_rows" ["detector"];
    /// Rows of a view's input: read (`in`), and what became of them (`filtered`, `late`, `failed`, `used`).
    view_rows: IntCounterVec "logdrive_view_rows_total" ["view", "outcome"];
    /// About how many bytes a view's state takes on each worker.
    view_bytes: IntGaugeVec "logdrive_view_state_bytes" ["view", "worker"];
    /// 1 for a view that has stopped, because its state outgrew its limit or an aggregate failed.
    view_stopped: IntGaugeVec "logdrive_view_stopped" ["view"];
    /// Checkpoints written.
    checkpoint_cuts: IntCounter "logdrive_checkpoint_cuts_total" [];
    /// Checkpoints that were not begun, since those before were not yet written.
    checkpoint_skipped: IntCounter "logdrive_checkpoint_skipped_total" [];
    /// Operations of the checkpoints' object store that failed and were tried again.
    checkpoint_store_failures: IntCounter "logdrive_checkpoint_store_failures_total" [];
    /// Bytes written to checkpoints, with what was merged.
    checkpoint_bytes: IntCounter "logdrive_checkpoint_written_bytes_total" [];
    /// Bytes of the files of the newest checkpoint.
    checkpoint_size: IntGauge "logdrive_checkpoint_size_bytes" [];
    /// Files of the newest checkpoint.
    checkpoint_files: IntGauge "logdrive_checkpoint_files" [];
    /// Damaged files found at the start, so that an older checkpoint was restored.
    checkpoint_damaged: IntCounter "logdrive_checkpoint_damaged_files_total" [];
    /// Connections of readers that are open, by protocol.
    reader_connections: IntGaugeVec "logdrive_reader_connections" ["protocol"];
    /// Statements of readers, by protocol and outcome (`ok`, `error`, `cancelled`).
    reader_statements: IntCounterVec "logdrive_reader_statements_total" ["protocol", "outcome"];
    /// Those who follow the changes of a view.
    subscribers: IntGaugeVec "logdrive_subscribers" ["view"];
    /// Times that a subscriber was told to begin anew, because the changes it wanted were no longer kept.
    subscriber_resyncs: IntCounterVec "logdrive_subscriber_resyncs_total" ["view"];
    /// Rows that a sink's far end confirmed.
    sink_rows: IntCounterVec "logdrive_sink_rows_total" ["sink"];
    /// Bytes that a sink sent.
    sink_bytes: IntCounterVec "logdrive_sink_bytes_total" ["sink"];
    /// Rows that a sink's far end already had, by identity.
    sink_duplicates: IntCounterVec "logdrive_sink_duplicate_rows_total" ["sink"];
    /// Rows sent again after the far end asked to.
    sink_retried_rows: IntCounterVec "logdrive_sink_retried_rows_total" ["sink"];
    /// Rows that the far end accepted but put elsewhere (a failure store).
    sink_redirected_rows: IntCounterVec "logdrive_sink_redirected_rows_total" ["sink"];
    /// Errors of a sink, by kind.
    sink_errors: IntCounterVec "logdrive_sink_errors_total" ["sink", "kind"];
    /// 1 if the sink's last attempt succeeded.
    sink_up: IntGaugeVec "logdrive_sink_up" ["sink"];
    /// Requests that a sink lets be under way at once, as it adapts to its far end.
    sink_concurrency: IntGaugeVec "logdrive_sink_concurrency" ["sink"];
    /// 0 while an endpoint of a sink rests because it failed.
    sink_endpoint_up: IntGaugeVec "logdrive_sink_endpoint_up" ["sink", "endpoint"];
    /// Bytes in a sink's disk queue.
    sink_queue_bytes: IntGaugeVec "logdrive_sink_queue_bytes" ["sink"];
    /// Seconds that a flush took.
    sink_flush_seconds: HistogramVec "logdrive_sink_flush_seconds" ["sink"];
    /// Alerts that are open.
    alerts_open: IntGaugeVec "logdrive_alerts_open" ["sink"];
    /// What waits to be told to a channel of alerts.
    alert_queue: IntGaugeVec "logdrive_alert_queue_notifications" ["sink", "channel"];
    /// Attempts to tell a channel of an alert, by outcome: delivered, failed (and tried again), refused.
    alert_deliveries: IntCounterVec "logdrive_alert_notifications_total" ["sink", "channel", "outcome"];
    /// Findings that no route of an alert sink is for.
    alert_unrouted: IntCounterVec "logdrive_alert_unrouted_findings_total" ["sink"];
    /// Seconds that a channel of alerts took.
    alert_seconds: HistogramVec "logdrive_alert_notification_seconds" ["sink", "channel"];
    /// Bytes received and not yet delivered, of one source. Bounded by `in_flight_max_bytes`.
    in_flight_bytes: IntGaugeVec "logdrive_in_flight_bytes" ["source"];
    /// Seconds between now and the oldest epoch that is not delivered.
    lag_seconds: GaugeVec "logdrive_lag_seconds" ["source"];
    /// Times a lookup or geo database was replaced while running.
    reloads: IntCounterVec "logdrive_table_reloads_total" ["table"];
    /// When the process started, in seconds since the Unix epoch.
    start_time: Gauge "process_start_time_seconds" [];
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

trait Family: Sized {
    fn family(name: &str, help: &str, labels: &[&str]) -> Self;
}

macro_rules! families {
    ($($type:ident: |$name:ident, $help:ident, $labels:ident| $new:expr;)*) => {$(
        impl Family for $type {
            fn family($name: &str, $help: &str, $labels: &[&str]) -> Self {
                let _ = $labels;
                $new.expect("metric names and labels are well-formed")
            }
        }
    )*};
}

families! {
    Gauge: |name, help, labels| Self::new(name, help);
    GaugeVec: |name, help, labels| Self::new(Opts::new(name, help), labels);
    HistogramVec: |name, help, labels| Self::new(
        HistogramOpts::new(name, help).buckets(exponential_buckets(0.0005, 2.0, 18).expect("a valid range")),
        labels,
    );
    IntCounter: |name, help, labels| Self::new(name, help);
    IntGauge: |name, help, labels| Self::new(name, help);
    IntCounterVec: |name, help, labels| Self::new(Opts::new(name, help), labels);
    IntGaugeVec: |name, help, labels| Self::new(Opts::new(name, help), labels);
}
