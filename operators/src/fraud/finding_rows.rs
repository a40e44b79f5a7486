//! Findings as rows of a detector's stream.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryViewArray, Float64Array, Int64Array, ListArray, RecordBatch, StringViewArray,
    StructArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Schema};
use logdrive_schemas::chunk::Partition;
use logdrive_schemas::{Batch, Finding, Layout, Origin};

/// `findings` of `detector` as one batch, `None` if there are none. Each row's offset is the head of its finding's
/// id, its original is empty. `received_at` is in microseconds since the Unix epoch.
#[must_use]
pub fn to_batch(detector: &Arc<str>, received_at: i64, findings: &[Finding]) -> Option<Batch> {
    let text = |f: fn(&Finding) -> &str| -> ArrayRef {
        Arc::new(StringViewArray::from_iter_values(findings.iter().map(f)))
    };
    let time = |f: fn(&Finding) -> i64| -> ArrayRef {
        let times = TimestampMicrosecondArray::from_iter_values(findings.iter().map(f));
        Arc::new(times.with_timezone("UTC"))
    };
    let versions = findings.iter().map(|f| i64::from(f.detector_version));
    let severities = findings.iter().map(|f| f.severity.to_string());
    let schema = Finding::schema();
    let columns: Vec<ArrayRef> = vec![
        time(|f| f.window_end),
        text(|f| &f.id),
        text(|f| &f.detector),
        Arc::new(Int64Array::from_iter_values(versions)),
        text(|f| &f.entity),
        Arc::new(findings.iter().map(|f| f.tenant.as_deref()).collect::<StringViewArray>()),
        Arc::new(StringViewArray::from_iter_values(severities)),
        Arc::new(Float64Array::from_iter_values(findings.iter().map(|f| f.score))),
        time(|f| f.window_start),
        time(|f| f.window_end),
        features(findings, &schema),
        evidence(findings, &schema),
    ];
    let rows = RecordBatch::try_new(schema, columns).expect("the columns are built to the schema");
    let origin = Origin {
        source: Arc::clone(detector),
        partition: Partition(0),
        ordered: false,
        received_at,
        peer: None,
    };
    let heads = findings.iter().map(|f| f.id.get(..16).and_then(|head| u64::from_str_radix(head, 16).ok()));
    let offsets = UInt64Array::from_iter_values(heads.map(|head| head.expect("an id is hexadecimal digits")));
    let original = BinaryViewArray::from_iter_values(findings.iter().map(|_| b""));
    Batch::new(rows, original, offsets, Arc::new(origin), Arc::new(Layout::Columns))
}

/// The items' field of a list column.
fn item_of(schema: &Schema, column: &str) -> Arc<Field> {
    match schema.field_with_name(column).map(Field::data_type) {
        Ok(DataType::List(item)) => Arc::clone(item),
        _ => unreachable!("the schema of findings has a list `{column}`"),
    }
}

fn features(findings: &[Finding], schema: &Schema) -> ArrayRef {
    let item = item_of(schema, "features");
    let DataType::Struct(fields) = item.data_type() else { unreachable!("a feature is a struct") };
    let all = || findings.iter().flat_map(|f| &f.features);
    let names = StringViewArray::from_iter_values(all().map(|(name, _)| name));
    let values = Float64Array::from_iter_values(all().map(|(_, value)| *value));
    let features = StructArray::new(fields.clone(), vec![Arc::new(names), Arc::new(values)], None);
    let lengths = OffsetBuffer::from_lengths(findings.iter().map(|f| f.features.len()));
    Arc::new(ListArray::new(Arc::clone(&item), lengths, Arc::new(features), None))
}

fn evidence(findings: &[Finding], schema: &Schema) -> ArrayRef {
    let ids: Arc<dyn Array> =
        Arc::new(StringViewArray::from_iter_values(findings.iter().flat_map(|f| &f.evidence)));
    let lengths = OffsetBuffer::from_lengths(findings.iter().map(|f| f.evidence.len()));
    Arc::new(ListArray::new(item_of(schema, "evidence"), lengths, ids, None))
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use logdrive_schemas::Severity;

    use super::*;

    #[test]
    fn rows_have_the_schema_of_findings() {
        let finding = |id: &str, n: usize| Finding {
            id: id.into(),
            detector: "d".into(),
            detector_version: 1,
            entity: "card".into(),
            tenant: None,
            severity: Severity::P1,
            score: 1.5,
            window_start: 1,
            window_end: 2,
            features: vec![("count".into(), 3.0); n],
            evidence: vec!["a-b-c".into(); n],
        };
        let findings = [finding(&"0f".repeat(16), 0), finding(&"f0".repeat(16), 2)];
        let batch = to_batch(&"d".into(), 7, &findings).unwrap();
        assert_eq!(batch.schema(), Finding::schema());
        assert_eq!(batch.offsets().values()[..], [0x0f0f_0f0f_0f0f_0f0f, 0xf0f0_f0f0_f0f0_f0f0]);
        assert_eq!(batch.rows().column(11).as_list::<i32>().value_length(1), 2);
        assert!(!batch.origin().ordered);
        assert!(to_batch(&"d".into(), 7, &[]).is_none());
    }
}
