//! From rows to findings, by the columns that the plan has computed.

use std::collections::BTreeMap;

use arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch};
use arrow::datatypes::DataType;
use logdrive_schemas::{Batch, Reject, Severity};
use serde_json::Value;

use super::book::{Found, Seen};
use super::{Alert, millis};
use crate::document::Documents;
use crate::sink::{Computed, without_computed};
use crate::sinks::template::value_text;

/// What the names of all computed columns begin with.
const PREFIX: &str = "_alert_";

/// The columns that are needed of every input.
pub(super) fn computed(config: &Alert) -> Vec<Computed> {
    let column = |name: &str, sql: &str, condition| Computed {
        column: format!("{PREFIX}{name}"),
        sql: sql.to_owned(),
        condition,
    };
    let mut all: Vec<_> =
        ["id", "detector", "entity", "severity"].map(|name| column(name, name, false)).into();
    all.extend(config.title.iter().map(|sql| column("title", sql, false)));
    all.extend(config.body.iter().map(|sql| column("body", sql, false)));
    for (idx, sql) in config.group_by.iter().enumerate() {
        all.push(column(&format!("group_{idx}"), sql, false));
    }
    for (idx, route) in config.routes.iter().enumerate() {
        all.extend(route.condition.iter().map(|sql| column(&format!("route_{idx}"), sql, true)));
    }
    all
}

struct Columns<'a>(&'a RecordBatch);

impl Columns<'_> {
    fn column(&self, name: &str) -> Option<&ArrayRef> {
        self.0.column_by_name(&format!("{PREFIX}{name}"))
    }

    fn text(&self, name: &str, row: usize) -> Option<String> {
        value_text(self.column(name)?, row).map(|text| text.into_owned())
    }

    /// Null counts as false.
    fn is_true(&self, name: &str, row: usize) -> bool {
        self.column(name).is_some_and(|column| {
            *column.data_type() == DataType::Boolean && column.is_valid(row) && column.as_boolean().value(row)
        })
    }
}

/// The findings of a batch, one for each route that a row matches; how many rows match none; rows that are no findings.
pub(super) fn read(config: &Alert, batch: &Batch, at: i64) -> (Vec<Found>, u64, Vec<Reject>) {
    let columns = Columns(batch.rows());
    let plain = without_computed(batch, PREFIX);
    let documents = Documents::new(&plain);
    let tenant = batch.rows().column_by_name("tenant");
    let (mut all, mut n_unrouted, mut rejects) = (Vec::new(), 0, Vec::new());
    for row in 0..batch.num_rows() {
        let severity = columns.text("severity", row);
        let Some(severity) = severity.as_deref().and_then(severity_of) else {
            let reason = "alert_severity: `severity` is none of P0, P1, P2, P3".to_owned();
            rejects.push(Reject { idx: row, reason });
            continue;
        };
        let id = columns.text("id", row).unwrap_or_else(|| batch.id(row));
        let detector = columns.text("detector", row).unwrap_or_default();
        let entity = columns.text("entity", row).unwrap_or_default();
        let tenant = tenant.and_then(|column| value_text(column, row));
        let mut labels = BTreeMap::new();
        for (idx, name) in config.group_by.iter().enumerate() {
            labels.insert(name.clone(), columns.text(&format!("group_{idx}"), row).unwrap_or_default());
        }
        let finding = Seen {
            id,
            title: columns.text("title", row).unwrap_or_else(|| format!("{detector}: {entity}")),
            body: columns.text("body", row),
            document: document(&documents, row),
        };
        let mut routed = false;
        for (idx, route) in config.routes.iter().enumerate() {
            let condition = route.condition.is_none() || columns.is_true(&format!("route_{idx}"), row);
            if !route.is_for(severity, tenant.as_deref(), condition) {
                continue;
            }
            routed = true;
            // The labels as JSON: no two groups have the same text.
            let labels_text = serde_json::to_string(&labels).unwrap_or_default();
            all.push(Found {
                at,
                key: format!("{idx} {severity} {labels_text}"),
                severity,
                labels: labels.clone(),
                channels: route.channels.clone(),
                escalate: route.levels(),
                finding: finding.clone(),
            });
            if !route.goes_on {
                break;
            }
        }
        n_unrouted += u64::from(!routed);
    }
    (all, n_unrouted, rejects)
}

fn severity_of(text: &str) -> Option<Severity> {
    match text {
        "P0" => Some(Severity::P0),
        "P1" => Some(Severity::P1),
        "P2" => Some(Severity::P2),
        "P3" => Some(Severity::P3),
        _ => None,
    }
}

/// The row as it came to the sink.
fn document(documents: &Documents<'_>, row: usize) -> Value {
    let mut text = Vec::new();
    documents.write(row, &mut text);
    serde_json::from_slice(&text)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&text).into_owned()))
}

/// What time makes due.
pub(super) fn rules(config: &Alert) -> super::book::Rules {
    let of = |is: fn(&super::channels::ChannelConfig) -> bool| {
        config.channels.iter().filter(|(_, channel)| is(channel)).map(|(name, _)| name.clone()).collect()
    };
    super::book::Rules {
        group_wait: millis(config.group_wait),
        repeat_interval: millis(config.repeat_interval),
        resolve_after: millis(config.resolve_after),
        resolves: of(super::channels::ChannelConfig::send_resolved),
        forgets: of(super::channels::ChannelConfig::forgets),
    }
}
