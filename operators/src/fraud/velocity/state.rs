//! Rows of events on their way into and out of checkpoints.

use logdrive_schemas::chunk::Partition;

use super::events::{MessageId, Row};
use crate::flow::{StateReader, StateWriter};

pub(super) fn write_row(writer: &mut StateWriter, row: &Row) {
    writer.i64(row.at);
    writer.text(&row.id.source);
    writer.u64(row.id.partition.0);
    writer.u64(row.id.offset);
    writer.i128(row.value);
    writer.u64(u64::from(row.tenant.is_some()));
    writer.text(row.tenant.as_deref().unwrap_or_default());
    writer.i64(row.received_at);
}

/// `None` where the state is shorter than it says.
pub(super) fn read_row(state: &mut StateReader<'_>) -> Option<Row> {
    let at = state.i64()?;
    let id = MessageId { source: state.text()?, partition: Partition(state.u64()?), offset: state.u64()? };
    let value = state.i128()?;
    let has_tenant = state.u64()? == 1;
    let tenant = state.text()?;
    let received_at = state.i64()?;
    Some(Row { at, id, value, tenant: has_tenant.then_some(tenant), received_at })
}
